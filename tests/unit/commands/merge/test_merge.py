"""A staged tree merged into a prefix, and taken away again, within this process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from safe_pip.commands.merge import Conflicts
from safe_pip.commands.merge.manifest import Manifest
from safe_pip.environment.transaction import _Commit
from safe_pip.errors import NestingRefused, SafePipError, State, Unmergeable, UnusableEnvironment
from tests.support.faults import disk
from tests.support.faults.transaction import Link
from tests.support.trees.prefixes import SITE, MergePrefix, context, distribution, exact, meanwhile, stage

TREE = {
    "bin/tool": "#!/bin/sh\n",
    "include/deep/tool.h": "int tool;\n",
    f"{SITE}/tool/__init__.py": "1\n",
    "lib64": Link("lib"),
    "share/doc/tool/README": "read me\n",
    "var/empty": None,
}


@pytest.fixture
def staged(empty: Path) -> Path:
    return stage(empty / "staged", TREE)


@pytest.fixture
def prefix(empty: Path) -> MergePrefix:
    (empty / "prefix").mkdir()
    return MergePrefix(empty / "prefix")


def same(prefix: MergePrefix, staged: Path) -> None:
    assert exact(prefix.path) == exact(staged)
    assert prefix.private() == []


def test_everything_is_kept_as_it_was_staged(prefix: MergePrefix, staged: Path) -> None:
    os.link(staged / "bin/tool", staged / "bin/other-name")
    (staged / "share/doc/tool/README").chmod(0o444)
    (staged / "bin/tool").chmod(0o4711)
    (staged / "share/doc").chmod(0o2755)
    (staged / "include/deep").chmod(0o555)
    for name in ("include", "include/deep"):
        os.utime(staged / name, (5, 5))
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):  # not every filesystem has them
            os.setxattr(staged / "bin/tool", "user.origin", b"here")
    before = exact(staged)
    prefix.merge(staged)
    assert exact(staged) == before
    same(prefix, staged)


def test_owners_are_kept_for_root(prefix: MergePrefix, staged: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes root")
    for name in ("bin/tool", "share/doc", "lib64"):
        os.chown(staged / name, 1234, 4321, follow_symlinks=False)
    prefix.merge(staged)
    same(prefix, staged)


def test_holes_stay_holes(prefix: MergePrefix, empty: Path) -> None:
    (empty / "staged").mkdir()
    with open(empty / "staged/image", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 24)
        file.write(b"end")
        file.truncate(1 << 25)
    prefix.merge(empty / "staged")
    assert (prefix.path / "image").read_bytes() == (empty / "staged/image").read_bytes()
    assert (prefix.path / "image").stat().st_blocks <= (empty / "staged/image").stat().st_blocks + 16


def test_a_prefix_that_does_not_exist_is_made(empty: Path, staged: Path) -> None:
    prefix = MergePrefix(empty / "not/yet/there")
    prefix.merge(staged)
    same(prefix, staged)


def test_directories_that_are_there_are_entered_and_stay_as_they_are(prefix: MergePrefix, staged: Path) -> None:
    stage(prefix.path, {"share/doc/other": "mine\n", "var": None})
    (prefix.path / "share").chmod(0o700)
    prefix.merge(staged)
    assert (prefix.path / "share/doc/other").read_text() == "mine\n"
    assert stat.S_IMODE((prefix.path / "share").stat().st_mode) == 0o700
    assert (prefix.path / "var/empty").is_dir()


def test_merging_twice_is_merging_once(prefix: MergePrefix, staged: Path) -> None:
    prefix.merge(staged)
    before = exact(prefix.path)
    with disk.record() as changes:
        merged = prefix.merge(staged)
    assert not merged.is_changed
    assert exact(prefix.path) == before
    assert changes == []


def test_another_time_alone_is_no_difference(prefix: MergePrefix, staged: Path) -> None:
    prefix.merge(staged)
    before = exact(prefix.path)
    for path in staged.rglob("*"):
        os.utime(path, (7, 7), follow_symlinks=False)
    assert not prefix.merge(staged, "fail").is_changed
    assert exact(prefix.path) == before


def test_what_is_there_with_other_permissions_is_in_conflict(prefix: MergePrefix, staged: Path) -> None:
    prefix.merge(staged)
    (prefix.path / "bin/tool").chmod(0o644)
    with pytest.raises(Conflicts):
        prefix.merge(staged, "fail")


def other(prefix: MergePrefix) -> None:
    """A file of a distribution and one without an owner, where others are staged."""
    stage(prefix.path, distribution("other", "1", {"share/doc/tool/README": "other\n"}) | {"bin/tool": "mine\n"})


def test_what_is_there_with_other_content_is_replaced_and_named_with_its_owner(
    prefix: MergePrefix, staged: Path
) -> None:
    other(prefix)
    merged = prefix.merge(staged)
    assert dict(merged.replaced) == {
        str(prefix.path / "bin/tool"): None,
        str(prefix.path / "share/doc/tool/README"): "other",
    }
    assert (prefix.path / "bin/tool").read_text() == TREE["bin/tool"]


def test_with_fail_nothing_is_changed_and_all_of_it_is_named(prefix: MergePrefix, staged: Path) -> None:
    other(prefix)
    before = exact(prefix.path)
    with pytest.raises(Conflicts) as caught:
        prefix.merge(staged, "fail")
    assert {os.path.basename(path): owner for path, owner in caught.value.found} == {"tool": None, "README": "other"}
    assert caught.value.exit_status == 1
    assert exact(prefix.path) == before


def test_with_keep_it_stays_and_all_else_is_merged(prefix: MergePrefix, staged: Path) -> None:
    other(prefix)
    merged = prefix.merge(staged, "keep")
    assert [os.path.basename(path) for path, _ in merged.kept] == ["tool", "README"]
    assert (prefix.path / "bin/tool").read_text() == "mine\n"
    assert (prefix.path / "include/deep/tool.h").exists()
    assert not prefix.merge(staged, "keep").is_changed


@pytest.mark.parametrize("policy", ["warn", "fail", "keep"])
@pytest.mark.parametrize(
    "there",
    [
        {"bin/tool/inner": "", "share/doc": "a file\n"},
        {"bin/tool": None},
        {"share/doc": Link("nowhere")},
        {"lib64/x": ""},
    ],
    ids=["both", "empty directory", "dead link", "directory under a link"],
)
def test_a_directory_where_a_file_is_to_be_and_the_reverse_are_refused(
    prefix: MergePrefix, staged: Path, policy: str, there: dict[str, str | Link | None]
) -> None:
    stage(prefix.path, there)
    before = exact(prefix.path)
    with pytest.raises(Unmergeable) as caught:
        prefix.merge(staged, policy)
    assert (caught.value.exit_status, caught.value.state) == (1, State.UNCHANGED)
    assert exact(prefix.path) == before
    assert prefix.private() == []


def test_a_link_with_the_same_target_is_left_alone_and_another_one_is_in_conflict(
    prefix: MergePrefix, staged: Path
) -> None:
    stage(prefix.path, {"lib/x": "", "lib64": Link("lib")})
    inode = os.lstat(prefix.path / "lib64").st_ino
    prefix.merge(staged, "fail")
    assert os.lstat(prefix.path / "lib64").st_ino == inode
    (prefix.path / "lib64").unlink()
    (prefix.path / "lib64").symlink_to("./lib")
    assert len(prefix.merge(staged, "keep").kept) == 1
    assert len(prefix.merge(staged, "warn").replaced) == 1
    assert os.readlink(prefix.path / "lib64") == "lib"


def test_a_staged_directory_goes_where_a_link_leads(prefix: MergePrefix, empty: Path) -> None:
    stage(prefix.path, {"lib/x": "", "lib64": Link("lib")})
    prefix.merge(stage(empty / "other", {"lib64/new/y": "y", "lib64/z": "z", "lib/new/w": "w"}))
    assert sorted(os.listdir(prefix.path / "lib")) == ["new", "x", "z"]
    assert sorted(os.listdir(prefix.path / "lib/new")) == ["w", "y"]
    assert (prefix.path / "lib64").is_symlink()


def test_a_link_is_left_out_where_it_leads_to_the_directory_that_is_there(prefix: MergePrefix, empty: Path) -> None:
    stage(prefix.path, {"lib64/x": "", "lib": Link("lib64")})
    prefix.merge(stage(empty / "other", {"lib/y": "y", "lib64": Link("lib")}))
    assert sorted(os.listdir(prefix.path / "lib64")) == ["x", "y"]
    assert os.readlink(prefix.path / "lib") == "lib64"


def test_a_link_that_leads_out_of_the_prefix_is_not_followed(prefix: MergePrefix, empty: Path, staged: Path) -> None:
    outside = stage(empty / "outside", {"x": ""})
    (prefix.path / "share").symlink_to(outside)
    with pytest.raises(Unmergeable, match="lies outside"):
        prefix.merge(staged)
    assert os.listdir(outside) == ["x"]


def test_what_is_no_file_is_refused_by_name(prefix: MergePrefix, staged: Path) -> None:
    os.mkfifo(staged / "bin/pipe")
    with pytest.raises(Unmergeable, match="bin/pipe"):
        prefix.merge(staged)
    assert os.listdir(prefix.path) == []


def test_what_safe_pip_keeps_beside_a_tree_is_not_merged(prefix: MergePrefix, staged: Path) -> None:
    (staged / SITE / ".safe-pip").mkdir()
    (staged / SITE / ".safe-pip/commit").touch()
    prefix.merge(staged)
    assert not [*prefix.path.rglob(".safe-pip")]


@pytest.mark.usefixtures("as_a_user")
class TestAUser:
    """Without the powers of root."""

    def test_read_only_directories_that_are_staged_so_are_entered(self, prefix: MergePrefix, empty: Path) -> None:
        one = stage(empty / "one", {"share/ro/deep/a": "a", "share/ro/a": "a"})
        two = stage(empty / "two", {"share/ro/deep/b": "b", "share/ro/b": "b", "share/ro/new/c": "c"})
        for tree in (one, two):
            for path in (*tree.rglob("a"), *tree.rglob("b")):
                path.chmod(0o400)
            for name in ("share/ro/deep", "share/ro", "share/ro/new"):
                if (tree / name).exists():
                    (tree / name).chmod(0o555)
        prefix.merge(one)
        same(prefix, one)
        merged = prefix.merge(two, manifest=empty / "two.json")
        assert len(merged.put) == 3
        for name in ("share/ro", "share/ro/deep", "share/ro/new"):
            assert stat.S_IMODE((prefix.path / name).stat().st_mode) == 0o555
        assert stat.S_IMODE((prefix.path / "share/ro/b").stat().st_mode) == 0o400
        assert not prefix.merge(two).is_changed
        assert prefix.private() == []

    def test_what_was_merged_read_only_is_taken_away_again(self, prefix: MergePrefix, empty: Path) -> None:
        one = stage(empty / "one", {"share/ro/deep/a": "a", "share/ro/a": "a"})
        for name in ("share/ro/deep", "share/ro"):
            (one / name).chmod(0o555)
        prefix.merge(one, manifest=empty / "m")
        (prefix.path / "share/ro").chmod(0o755)
        (prefix.path / "share/ro/mine").write_text("mine")
        (prefix.path / "share/ro").chmod(0o555)
        prefix.unmerge(empty / "m")
        assert prefix.content().keys() == {"share", "share/ro", "share/ro/mine"}
        assert stat.S_IMODE((prefix.path / "share/ro").stat().st_mode) == 0o555

    def test_a_directory_that_its_owner_made_read_only_is_not_written(self, prefix: MergePrefix, staged: Path) -> None:
        stage(prefix.path, {"share/doc/mine": ""})
        (prefix.path / "share/doc").chmod(0o555)
        before = exact(prefix.path)
        with pytest.raises(UnusableEnvironment) as caught:
            prefix.merge(staged)
        assert (caught.value.exit_status, caught.value.state) == (78, State.UNCHANGED)
        assert exact(prefix.path) == before

    def test_a_read_only_prefix_is_refused(self, prefix: MergePrefix, staged: Path) -> None:
        prefix.path.chmod(0o555)
        with pytest.raises(UnusableEnvironment) as caught:
            prefix.merge(staged)
        assert caught.value.exit_status == 78
        assert os.listdir(prefix.path) == []

    def test_what_cannot_be_read_is_said_to_be_staged_so(self, prefix: MergePrefix, staged: Path) -> None:
        (staged / "bin/tool").chmod(0)
        with pytest.raises(Unmergeable, match="bin/tool` cannot be read"):
            prefix.merge(staged)
        assert os.listdir(prefix.path) == []


ONE = {f"{SITE}/dist/__init__.py": "1\n", f"{SITE}/dist/gone.py": "\n", "bin/dist": "one\n", "share/dist/old": "\n"}
TWO = {f"{SITE}/dist/__init__.py": "22\n", f"{SITE}/dist/come.py": "\n", "bin/dist": "two\n", "share/dist/new": "\n"}


def test_a_distribution_in_another_version_is_upgraded(prefix: MergePrefix, empty: Path) -> None:
    prefix.merge(stage(empty / "1", distribution("dist", "1", ONE)))
    stage(prefix.path, {f"{SITE}/dist/__pycache__/gone.cpython-313.pyc": "", f"{SITE}/dist/mine.txt": "mine"})
    merged = prefix.merge(stage(empty / "2", distribution("dist", "2", TWO)), "fail")
    assert merged.replaced == ()
    names = {str(path.relative_to(prefix.path)) for path in prefix.path.rglob("*") if path.is_file()}
    assert names == {*distribution("dist", "2", TWO), f"{SITE}/dist/mine.txt"}
    gone = {os.path.basename(path) for path in merged.removed}
    assert gone == {"gone.py", "INSTALLER", "METADATA", "RECORD", "old"}


def test_the_same_version_with_other_files_is_replaced_as_well(prefix: MergePrefix, empty: Path) -> None:
    prefix.merge(stage(empty / "1", distribution("dist", "1", ONE)))
    prefix.merge(stage(empty / "2", distribution("dist", "1", TWO)), "fail")
    names = {str(path.relative_to(prefix.path)) for path in prefix.path.rglob("*") if path.is_file()}
    assert names == {*distribution("dist", "1", TWO)}
    assert not prefix.merge(empty / "2").is_changed


def test_metadata_comes_last_and_no_directory_is_missing_while_one_is_upgraded(
    prefix: MergePrefix, empty: Path
) -> None:
    stage(prefix.path, {f"{SITE}/beside.py": "", "bin/beside": ""})
    prefix.merge(stage(empty / "1", distribution("dist", "1", ONE)))
    two = stage(empty / "2", distribution("dist", "2", TWO))
    with disk.record() as changes:
        prefix.merge(two)
    journaled = [change.path.endswith(".journal") for change in changes].index(True)
    done = [each for each in changes[journaled:] if each.operation in ("move", "move_over", "exchange")]
    paths = [os.path.basename(each.path) for each in done if "/.safe-pip/" not in each.path]
    assert paths.index("dist-2.dist-info") > max(map(paths.index, ("dist", "new")))
    assert ("exchange", str(prefix.path / SITE / "dist")) in [(each.operation, each.path) for each in done]


def test_a_distribution_without_a_record_is_not_replaced(prefix: MergePrefix, empty: Path) -> None:
    stage(prefix.path, {f"{SITE}/dist-1.dist-info/METADATA": "Name: dist\nVersion: 1\n"})
    with pytest.raises(Unmergeable, match="has no RECORD"):
        prefix.merge(stage(empty / "2", distribution("dist", "2", TWO)))


def test_two_versions_in_one_staged_tree_are_refused(prefix: MergePrefix, empty: Path) -> None:
    both = distribution("dist", "1", ONE) | distribution("dist", "2", TWO)
    with pytest.raises(Unmergeable, match="twice"):
        prefix.merge(stage(empty / "both", both))


def test_an_old_file_may_become_a_directory_and_the_reverse(prefix: MergePrefix, empty: Path) -> None:
    prefix.merge(stage(empty / "1", distribution("dist", "1", {"share/a": "", "share/b/x": ""})))
    prefix.merge(stage(empty / "2", distribution("dist", "2", {"share/b": "", "share/a/x": ""})))
    assert (prefix.path / "share/a/x").exists()
    assert (prefix.path / "share/b").is_file()


def test_bytecode_is_never_merged(prefix: MergePrefix, empty: Path) -> None:
    cached = f"{SITE}/__pycache__"
    stage(prefix.path, {f"{SITE}/old.py": "1", f"{cached}/old.cpython-313.pyc": "made by an import"})
    files = {
        f"{SITE}/old.py": "22",
        f"{SITE}/new.py": "1",
        f"{SITE}/pkg/__init__.py": "",
        f"{SITE}/sourceless.pyc": "1",
    }
    files |= {f"{cached}/{name}.cpython-313.pyc": "staged" for name in ("old", "new")}
    files |= {f"{SITE}/pkg/__pycache__/__init__.cpython-313.pyc": "staged"}
    staged = stage(empty / "bytecode", files)
    merged = prefix.merge(staged, is_moved=True)
    assert {os.path.basename(path) for path in merged.put} == {"old.py", "new.py", "__init__.py", "sourceless.pyc"}
    assert list((prefix.path / cached).glob("*")) == []  # what was made of the old source goes with it
    assert os.listdir(prefix.path / SITE / "pkg") == ["__init__.py"]
    assert not staged.exists()


# Manifests.


def test_a_manifest_lists_what_was_put_where(prefix: MergePrefix, staged: Path, empty: Path) -> None:
    stage(prefix.path, {"bin/tool": "#!/bin/sh\n", "share/mine": ""})
    prefix.merge(staged, manifest=empty / "m.json")
    document = json.loads((empty / "m.json").read_bytes())
    assert document["prefix"] == str(prefix.path)
    assert document["entries"].keys() == {name for name, content in TREE.items() if content is not None}
    assert document["entries"]["bin/tool"]["there"]
    assert document["entries"]["lib64"] == {"kind": "link", "mode": "0777", "target": "lib", "there": False}
    assert document["entries"]["share/doc/tool/README"]["mode"] == "0644"
    assert "share" not in document["directories"]
    assert {"share/doc", "var/empty", SITE} <= {*document["directories"]}


def test_what_was_merged_can_be_taken_away_again(prefix: MergePrefix, staged: Path, empty: Path) -> None:
    stage(prefix.path, {"bin/tool": "#!/bin/sh\n", "share/mine": "", "share/doc": None, "var": None})
    before = prefix.content()
    prefix.merge(staged, manifest=empty / "m.json")
    assert prefix.content() != before
    unmerged = prefix.unmerge(empty / "m.json")
    assert prefix.content() == before
    assert prefix.private() == []
    assert (unmerged.changed, unmerged.owned, unmerged.elsewhere, unmerged.gone, unmerged.left) == ((), (), (), (), ())
    assert len(unmerged.removed) == 4


@pytest.mark.parametrize("order", ["12", "21"])
def test_a_prefix_that_a_merge_made_goes_with_the_last_manifest(empty: Path, staged: Path, order: str) -> None:
    prefix = MergePrefix(empty / "above/prefix")
    (empty / "above").mkdir()
    prefix.merge(staged, manifest=empty / "1.json")
    prefix.merge(staged, manifest=empty / "1.json")
    prefix.merge(stage(empty / "more", {"share/more": "", f"{SITE}/more.py": ""}), manifest=empty / "2.json")
    prefix.unmerge(empty / f"{order[0]}.json")
    assert prefix.path.is_dir()
    trial = prefix.unmerge(empty / f"{order[1]}.json", is_trial=True)
    unmerged = prefix.unmerge(empty / f"{order[1]}.json")
    assert os.listdir(empty / "above") == []
    assert str(prefix.path) in unmerged.directories
    assert {*trial.directories} == {*unmerged.directories}
    assert unmerged.left == ()


@pytest.mark.parametrize("has_made", [False, True])
def test_a_prefix_stays_if_it_was_there_or_is_not_empty(empty: Path, staged: Path, has_made: bool) -> None:
    prefix = MergePrefix(empty / "prefix")
    if not has_made:
        prefix.path.mkdir()
    prefix.merge(staged, manifest=empty / "m.json")
    other = stage(empty / "other", {"other": ""})
    request = prefix.merge(other, manifest=empty / "m.json")
    assert request.removed
    if has_made:
        (prefix.path / "mine").touch()
    unmerged = prefix.unmerge(empty / "m.json")
    assert os.listdir(prefix.path) == (["mine"] if has_made else [])
    assert unmerged.left == ((str(prefix.path),) if has_made else ())


def test_merged_again_the_manifest_stays_what_it_was(prefix: MergePrefix, staged: Path, empty: Path) -> None:
    prefix.merge(staged, manifest=empty / "m.json")
    before = (empty / "m.json").read_bytes()
    prefix.merge(staged, manifest=empty / "m.json")
    assert (empty / "m.json").read_bytes() == before
    prefix.unmerge(empty / "m.json")
    assert os.listdir(prefix.path) == []


def test_what_was_changed_since_or_belongs_to_others_is_kept_and_named(
    prefix: MergePrefix, staged: Path, empty: Path
) -> None:
    prefix.merge(staged, manifest=empty / "m.json")
    (prefix.path / "share/doc/tool/README").write_text("edited\n")
    prefix.merge(stage(empty / "later", {"include/deep/tool.h": "int later;\n"}))
    stage(prefix.path, distribution("late", "1", {"bin/tool": "#!/bin/sh\n"}))
    unmerged = prefix.unmerge(empty / "m.json")
    assert {os.path.basename(path) for path in unmerged.changed} == {"README", "tool.h"}
    assert unmerged.owned == ((str(prefix.path / "bin/tool"), "late"),)
    assert (prefix.path / "share/doc/tool/README").read_text() == "edited\n"
    assert (prefix.path / "bin/tool").exists()
    assert not (prefix.path / SITE / "tool").exists()
    assert not (prefix.path / "lib64").is_symlink()


def test_a_distribution_goes_with_its_manifest_unless_it_was_upgraded_since(prefix: MergePrefix, empty: Path) -> None:
    one = stage(empty / "1", distribution("dist", "1", ONE))
    prefix.merge(one, manifest=empty / "m.json")
    prefix.merge(stage(empty / "2", distribution("dist", "2", ONE | {"share/dist/new": ""})))
    unmerged = prefix.unmerge(empty / "m.json")
    assert {owner for _, owner in unmerged.owned} == {"dist"}
    assert unmerged.removed == ()
    names = {str(path.relative_to(prefix.path)) for path in prefix.path.rglob("*") if path.is_file()}
    assert names == {*distribution("dist", "2", ONE | {"share/dist/new": ""})}


def test_what_lies_behind_a_link_by_now_is_left_alone(prefix: MergePrefix, staged: Path, empty: Path) -> None:
    prefix.merge(staged, manifest=empty / "m.json")
    (prefix.path / "share").rename(empty / "share")
    (prefix.path / "share").symlink_to(empty / "share")
    unmerged = prefix.unmerge(empty / "m.json")
    assert unmerged.elsewhere == (str(prefix.path / "share/doc/tool/README"),)
    assert (empty / "share/doc/tool/README").exists()


def test_a_merge_that_fails_leaves_the_manifest_as_it_was(prefix: MergePrefix, staged: Path, empty: Path) -> None:
    stage(prefix.path, {"bin/tool": "other"})
    with pytest.raises(Conflicts):
        prefix.merge(staged, "fail", manifest=empty / "m.json")
    assert not (empty / "m.json").exists()
    stage(prefix.path, {"share/doc": "a file"})
    with pytest.raises(Unmergeable):
        prefix.merge(staged, manifest=empty / "m.json")
    assert not (empty / "m.json").exists()


def manifest(prefix: str = "/p", **changes: object) -> dict[str, object]:
    entry = {"kind": "file", "mode": "0644", "sha256": "0" * 64, "there": False}
    return {"format": 1, "prefix": prefix, "entries": {"a/b": entry}, "directories": ["a"], "read_only": []} | changes


ENTRY = {"kind": "file", "mode": "0644", "sha256": "0" * 64, "there": False}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff",
        b"[]",
        b"{}",
        json.dumps(manifest())[:-1].encode(),
        *(
            json.dumps(manifest(**changes)).encode()
            for changes in (
                {"format": 2},
                {"prefix": "relative"},
                {"prefix": "/p/../q"},
                {"prefix": 7},
                {"entries": {"/absolute": ENTRY}},
                {"entries": {"a/../../b": ENTRY}},
                {"entries": {"..": ENTRY}},
                {"entries": {"a//b": ENTRY}},
                {"entries": {"": ENTRY}},
                {"entries": {"a\0b": ENTRY}},
                {"entries": {"lib/.safe-pip/commit": ENTRY}},
                {"entries": {"a": ENTRY | {"sha256": "0"}}},
                {"entries": {"a": ENTRY | {"kind": "device"}}},
                {"entries": {"a": ENTRY | {"kind": "link", "target": ""}}},
                {"entries": {"a": {"kind": "file"}}},
                {"entries": ["a"]},
                {"directories": ["../a"]},
                {"directories": ["/"]},
                {"directories": 3},
                {"read_only": ["a/../.."]},
            )
        ),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(Unmergeable, match="is not the manifest of a merge") as caught:
        Manifest.read(tmp_path / "m")
    assert caught.value.exit_status == 1


def test_a_manifest_reads_as_it_was_written(tmp_path: Path, prefix: MergePrefix, empty: Path) -> None:
    names = {"\udcff\n": "", "ä": "", "link": Link("\udcfe ü")}
    prefix.merge(stage(empty / "names", names), manifest=tmp_path / "m")
    assert Manifest.read(tmp_path / "m").entries.keys() == names.keys()
    prefix.unmerge(tmp_path / "m")
    assert os.listdir(prefix.path) == []


# --move


def test_what_is_moved_is_gone_where_it_was_staged(prefix: MergePrefix, staged: Path) -> None:
    os.link(staged / "bin/tool", staged / "bin/other-name")
    before, inode = exact(staged), (staged / "bin/tool").stat().st_ino
    prefix.merge(staged, is_moved=True)
    assert exact(prefix.path) == before
    assert (prefix.path / "bin/tool").stat().st_ino == inode
    assert not staged.exists()


def test_what_is_kept_out_is_not_deleted_where_it_was_staged(prefix: MergePrefix, staged: Path) -> None:
    stage(prefix.path, {"bin/tool": "of another program\n"})
    prefix.merge(staged, "keep", is_moved=True)
    assert (prefix.path / "bin/tool").read_text() == "of another program\n"
    assert [path.relative_to(staged).as_posix() for path in staged.rglob("*")] == ["bin", "bin/tool"]


# Odd places.


@pytest.mark.parametrize("deep", [300, 1500])
def test_a_tree_that_is_too_deep_for_later_commands_is_refused(prefix: MergePrefix, empty: Path, deep: int) -> None:
    (empty / "staged").mkdir()
    before = os.getcwd()
    os.chdir(empty / "staged")
    try:
        for _ in range(deep):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(before)
    try:
        with pytest.raises(Unmergeable, match="too deep"):
            prefix.merge(empty / "staged")
    finally:  # before Python 3.13 nothing in the standard library could
        subprocess.run(["rm", "-rf", empty / "staged"], check=True)
    assert os.listdir(prefix.path) == []


def test_a_path_that_is_too_long_in_the_prefix_is_refused(empty: Path) -> None:
    prefix = empty / "/".join(["p" * 200] * 18)
    prefix.mkdir(parents=True)
    staged = stage(empty / "staged", {"/".join(["d" * 200] * 3) + "/file": ""})
    with pytest.raises(SafePipError, match="File name too long") as caught:
        MergePrefix(prefix).merge(staged)
    assert caught.value.state is State.UNCHANGED
    assert os.listdir(prefix) == []


def test_a_manifest_that_is_no_file_is_refused_without_opening_it(
    prefix: MergePrefix, staged: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    with pytest.raises(Unmergeable, match="not a regular file"):
        prefix.unmerge(tmp_path / "fifo")
    with pytest.raises(Unmergeable, match="not a regular file"):
        prefix.merge(staged, manifest=tmp_path / "fifo")
    assert os.listdir(prefix.path) == []


def test_a_manifest_with_a_name_of_safe_pip_is_refused(prefix: MergePrefix, staged: Path, empty: Path) -> None:
    with pytest.raises(Unmergeable, match="safe-pip's own"):
        prefix.merge(staged, manifest=empty / ".safe-pip-manifest")
    assert os.listdir(prefix.path) == []


def test_a_manifest_in_the_place_of_what_is_staged_is_refused(prefix: MergePrefix, staged: Path) -> None:
    (prefix.path / "bin").mkdir()
    with pytest.raises(Unmergeable, match="is to be the manifest"):
        prefix.merge(staged, manifest=prefix.path / "bin/tool")
    assert os.listdir(prefix.path / "bin") == []


# Other commands at work.


@pytest.mark.parametrize("policy", ["warn", "keep"])
@pytest.mark.parametrize("files", [{"share/doc/one": "1"}, {"bin/tool": "other\n"}, {f"{SITE}/x.py": ""}], ids=str)
def test_what_another_one_puts_there_meanwhile_is_met_as_if_it_had_been_there(
    prefix: MergePrefix, staged: Path, monkeypatch: pytest.MonkeyPatch, empty: Path, files: dict[str, str], policy: str
) -> None:
    meanwhile(monkeypatch, lambda: prefix.merge(stage(empty / "other", files)))
    merged = prefix.merge(staged, policy)
    found = merged.replaced if policy == "warn" else merged.kept
    assert [os.path.basename(path) for path, _ in found] == (["tool"] if "bin/tool" in files else [])
    names = {str(path.relative_to(prefix.path)) for path in prefix.path.rglob("*") if path.is_file()}
    assert names == {*files, "bin/tool", "include/deep/tool.h", f"{SITE}/tool/__init__.py", "share/doc/tool/README"}
    assert prefix.private() == []


def test_a_conflict_that_comes_meanwhile_is_refused_where_none_is_wanted(
    prefix: MergePrefix, staged: Path, monkeypatch: pytest.MonkeyPatch, empty: Path
) -> None:
    meanwhile(monkeypatch, lambda: prefix.merge(stage(empty / "other", {"bin/tool": "other"})))
    with pytest.raises(Conflicts):
        prefix.merge(staged, "fail", manifest=empty / "m.json")
    assert prefix.content().keys() == {"bin", "bin/tool"}
    assert not (empty / "m.json").exists()


def test_what_was_the_same_and_changes_meanwhile_is_compared_again(
    prefix: MergePrefix, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(prefix.path, {"bin/tool": "#!/bin/sh\n"})
    meanwhile(monkeypatch, lambda: (prefix.path / "bin/tool").write_text("edited"))
    assert [os.path.basename(path) for path, _ in prefix.merge(staged).replaced] == ["tool"]


@pytest.mark.parametrize("there", [{}, {f"{SITE}/x.py": ""}], ids=["first site-packages", "another site-packages"])
def test_a_distribution_that_comes_meanwhile_is_upgraded(
    prefix: MergePrefix, monkeypatch: pytest.MonkeyPatch, empty: Path, there: dict[str, str]
) -> None:
    stage(prefix.path, there)
    one = stage(empty / "1", distribution("dist", "1", {f"{SITE}/old.py": ""}))
    two = stage(empty / "2", distribution("dist", "2", {f"{SITE}/new.py": ""}))
    meanwhile(monkeypatch, lambda: prefix.merge(one))
    prefix.merge(two)
    assert prefix.content().keys() == {*MergePrefix(two).content(), *there}


def test_a_file_that_is_edited_while_it_is_to_be_taken_away_is_kept(
    prefix: MergePrefix, staged: Path, monkeypatch: pytest.MonkeyPatch, empty: Path
) -> None:
    prefix.merge(staged, manifest=empty / "m.json")
    file = prefix.path / SITE / "tool/__init__.py"
    meanwhile(monkeypatch, lambda: file.write_text("edited"))
    assert prefix.unmerge(empty / "m.json").changed == (str(file),)
    assert file.read_text() == "edited"


def test_parents_that_others_make_again_and_again_hold_up_no_merge(
    prefix: MergePrefix, staged: Path, monkeypatch: pytest.MonkeyPatch, empty: Path
) -> None:
    original, names = _Commit._lock, iter(["bin", "include", "lib", "share", "var", "include/deep", "share/doc"])

    def locked(self: _Commit, *args: Any, **more: Any) -> Any:
        if (name := next(names, None)) is not None:
            (prefix.path / name).mkdir()
        return original(self, *args, **more)

    monkeypatch.setattr(_Commit, "_lock", locked)
    prefix.merge(staged)
    assert prefix.content() == MergePrefix(staged).content()
    assert next(names, None) is not None, "planned under the locks it is done"


def test_what_only_adds_goes_on_beside_a_build_and_what_replaces_does_not(
    prefix: MergePrefix, staged: Path, empty: Path
) -> None:
    stage(prefix.path, {f"{SITE}/here.py": "", "bin/python3": "", "share/x": "x"})
    with context.environment([str(prefix.path / SITE)]).keeping():
        prefix.merge(staged)
        with pytest.raises(NestingRefused):
            prefix.merge(stage(empty / "other", {"share/x": "other"}))
    assert (prefix.path / "share/x").read_text() == "x"


def test_a_durable_merge_syncs_what_it_seals_before_it_forgets_of_it(prefix: MergePrefix, staged: Path) -> None:
    with disk.record() as changes:
        prefix.merge(staged, durable=True)
    done = [(change.operation, change.path) for change in changes]
    sealed = done.index(("set_time", str(prefix.path / "bin")))
    forgotten = [path.endswith(".committed") and what == "remove" for what, path in done].index(True)
    assert sealed < done.index(("sync", str(prefix.path / "bin")), sealed) < forgotten


def test_nothing_in_the_prefix_is_changed_that_is_not_in_a_journal_first(prefix: MergePrefix, staged: Path) -> None:
    stage(prefix.path, {"bin/tool": "other", f"{SITE}/x.py": "", "share/doc/x": ""})
    with disk.record() as changes:
        prefix.merge(staged)
    journaled = [change.path.endswith(".journal") for change in changes].index(True)
    for change in changes[:journaled]:
        changed = change.paths if change.operation in ("move", "move_over", "exchange") else (change.path,)
        assert all("/.safe-pip" in path for path in changed), change


def test_a_full_disk_changes_nothing_and_says_so(prefix: MergePrefix, staged: Path) -> None:
    stage(prefix.path, {"bin/tool": "other", "share/doc/x": ""})
    before = prefix.content()
    refused = 0
    for number in range(0, 60, 3):
        with disk.error_at(number, errno.ENOSPC, forever=True, only=disk.GROWING) as trial:
            error = None
            try:
                prefix.merge(staged)
            except SafePipError as caught:
                error = caught
        if trial.struck is None:
            break
        if error is None:  # All was in its place by then, and what was left to do could be left.
            assert not prefix.merge(staged).is_changed
            break
        refused += 1
        assert "space" in error.message
        assert prefix.content() == before
    assert refused > 5
