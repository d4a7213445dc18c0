"""A merge that takes the place of an earlier one, and what the manifests of several merges know of each other."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from safe_pip.commands.merge import Conflicts
from safe_pip.commands.merge.manifest import Manifest
from safe_pip.errors import NestingRefused, State, Unmergeable
from tests.support.faults import disk
from tests.support.faults.transaction import Link
from tests.support.trees.prefixes import SITE, MergePrefix, context, distribution, meanwhile, stage

Files = Mapping[str, "str | Link | None"]

OLD: Files = {
    "bin/tool": "1",
    "include/old/old.h": "",
    "include/tool.h": "same",
    "lib/libtool.so": Link("libtool.so.1"),
    "lib/libtool.so.1": "so",
    "var/empty": None,
}
NEW: Files = {
    "bin/tool": "22",
    "include/tool.h": "same",
    "lib/libtool.so": Link("libtool.so.2"),
    "lib/libtool.so.2": "so",
    "share/new": "",
}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """One filesystem is enough here: what differs between them is tested with merges alone."""
    return tmp_path.resolve()


@pytest.fixture
def prefix(empty: Path) -> MergePrefix:
    (empty / "manifests").mkdir()
    return MergePrefix(stage(empty / "prefix", {"bin/mine": "", "include/mine.h": ""}))


class Recipes:
    """Merges trees, each with a manifest of its own."""

    def __init__(self, prefix: MergePrefix, directory: Path) -> None:
        self.prefix, self._directory, self._count = prefix, directory, itertools.count()

    def __call__(self, name: str, files: Files, policy: str = "fail", replaces: str = "") -> Any:
        tree = stage(self._directory / f"staged-{next(self._count)}", files)
        more = {"replaces": self.manifest(replaces)} if replaces else {}
        return self.prefix.merge(tree, policy, manifest=self.manifest(name), **more)

    def manifest(self, name: str) -> Path:
        return self._directory / "manifests" / f"{name}.json"

    def undo(self, name: str) -> Any:
        return self.prefix.unmerge(self.manifest(name))

    def listed(self, name: str) -> set[str]:
        return {*Manifest.read(self.manifest(name)).entries}


@pytest.fixture
def merge(prefix: MergePrefix, empty: Path) -> Recipes:
    return Recipes(prefix, empty)


@pytest.fixture(params=["its own", "another"])
def again(request: pytest.FixtureRequest, merge: Recipes) -> Callable[..., Any]:
    """Merge something in place of `old`, with the same manifest or with a new one."""

    def merged(files: Files, policy: str = "fail") -> Any:
        if request.param == "its own":
            return merge("old", files, policy)
        done = merge("new", files, policy, "old")
        assert not merge.manifest("old").exists()
        merge.manifest("new").rename(merge.manifest("old"))
        return done

    return merged


def names(prefix: MergePrefix) -> set[str]:
    return {path for path, said in prefix.content().items() if said[0] != "d"}


def test_a_rebuilt_tree_takes_the_place_of_the_old_one(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    before = prefix.content()
    merge("old", OLD)
    kept = (prefix.path / "include/tool.h").stat().st_ctime_ns
    merged = again(NEW)
    new = {name for name, content in NEW.items() if content is not None}
    assert names(prefix) == {*new, "bin/mine", "include/mine.h"}
    assert (prefix.path / "bin/tool").read_text() == "22"
    assert (prefix.path / "include/tool.h").stat().st_ctime_ns == kept
    assert not {"include/old", "var", "var/empty"} & {*prefix.content()}
    assert (merged.replaced, merged.kept) == ((), ())
    assert {os.path.relpath(path, prefix.path) for path in merged.removed} == {"include/old/old.h", "lib/libtool.so.1"}
    assert merge.listed("old") == new
    assert not again(NEW).is_changed
    merge.undo("old")
    assert prefix.content() == before
    assert prefix.private() == []


@pytest.mark.parametrize("there", [{}, {f"{SITE}/x.py": ""}], ids=["plain", "with site-packages"])
def test_nothing_of_a_library_is_missing_while_it_is_replaced(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any], there: Files
) -> None:
    stage(prefix.path, there)
    merge("old", OLD)
    seen = set()

    def look(_: object) -> None:
        assert (prefix.path / "bin/tool").exists()
        seen.add((prefix.path / "lib/libtool.so").resolve(strict=True).name)

    with disk.watching(look):
        again(NEW)
    assert seen == {"libtool.so.1", "libtool.so.2"}


def test_directories_that_are_staged_again_stay_though_nothing_is_in_them(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    dist = {f"{SITE}/dist/__init__.py": "1"}
    merge("old", {"share/data/x": "", "share/y": "", f"{SITE}/dist/data": None, **distribution("dist", "1", dist)})
    (prefix.path / "share").chmod(0o711)
    inode = (prefix.path / "share").stat().st_ino
    dist = {f"{SITE}/dist/__init__.py": "22"}
    again({"share/data": None, "share/z": "", f"{SITE}/dist/data": None, **distribution("dist", "2", dist)})
    found = prefix.content()
    assert {"share/data", f"{SITE}/dist/data"} <= {*found}
    assert (prefix.path / "share").stat().st_ino == inode
    assert found["share"].split()[1] == "rwx--x--x"


def test_what_the_user_has_changed_stays_and_is_named(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    merge("old", {"etc/both": "1", "etc/gone/conf": "1", "etc/same": "1"})
    for name in ("etc/both", "etc/gone/conf", "etc/same"):
        (prefix.path / name).write_text("edited")
    with pytest.raises(Conflicts) as caught:
        again({"etc/both": "2", "etc/same": "edited"})
    assert caught.value.found == ((str(prefix.path / "etc/both"), str(merge.manifest("old"))),)
    merged = again({"etc/both": "2", "etc/same": "edited"}, "keep")
    assert merged.kept == caught.value.found
    assert merged.unmerged.changed == (str(prefix.path / "etc/gone/conf"),)
    assert merged.unmerged.left == (str(prefix.path / "etc/gone"),)
    assert (prefix.path / "etc/both").read_text() == "edited"
    (prefix.path / "etc/gone/conf").unlink()
    merge.undo("old")
    assert names(prefix) == {"bin/mine", "include/mine.h", "etc/both", "etc/same"}
    assert not (prefix.path / "etc/gone").exists()


def test_what_belongs_to_a_distribution_by_now_stays_and_is_named(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    merge("old", OLD)
    stage(prefix.path, distribution("late", "1", {"include/old/old.h": ""}))
    merged = again(NEW)
    assert merged.unmerged.owned == ((str(prefix.path / "include/old/old.h"), "late"),)
    assert (prefix.path / "include/old/old.h").exists()


def test_what_another_merge_has_put_as_well_stays_and_is_named(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    merge("old", OLD)
    merge("other", {"include/old/old.h": "", "var/empty": None})
    merged = again(NEW)
    assert merged.unmerged.owned == ((str(prefix.path / "include/old/old.h"), str(merge.manifest("other"))),)
    assert (prefix.path / "var/empty").is_dir()
    merge.undo("old")
    assert (prefix.path / "include/old/old.h").exists()
    merge.undo("other")
    assert {*prefix.content()} == {"bin", "bin/mine", "include", "include/mine.h"}


def test_a_file_of_another_merge_is_in_conflict_and_named_with_its_manifest(
    prefix: MergePrefix, merge: Recipes
) -> None:
    merge("old", {"bin/tool": "1"})
    with pytest.raises(Conflicts) as caught:
        merge("other", {"bin/tool": "2"})
    assert caught.value.found == ((str(prefix.path / "bin/tool"), str(merge.manifest("old"))),)
    assert merge("other", {"bin/tool": "2"}, "warn").replaced == caught.value.found
    with pytest.raises(Conflicts) as caught:
        merge("old", {"bin/tool": "1"})
    assert caught.value.found == ((str(prefix.path / "bin/tool"), str(merge.manifest("other"))),)
    assert merge.undo("old").changed == (str(prefix.path / "bin/tool"),)
    merge.undo("other")
    assert names(prefix) == {"bin/mine", "include/mine.h"}


@pytest.mark.parametrize("order", [*itertools.permutations("abc")], ids="".join)
def test_no_directory_stays_whatever_the_order_in_which_all_is_taken_away(
    prefix: MergePrefix, merge: Recipes, order: tuple[str, ...]
) -> None:
    stage(prefix.path, {"share/theirs": None})
    before = prefix.content()
    for name in "abc":
        common = {"share/doc/man": "same", "share/empty": None, "lib64": Link("lib"), "lib/deep/x": "same"}
        merge(name, {f"share/doc/{name}": name, f"lib/deep/{name}/y": "", **common})
    for number, name in enumerate(order, 1):
        merge.undo(name)
        if number < len(order):
            assert {"share/doc/man", "share/empty", "lib64", "lib/deep/x"} <= {*prefix.content()}
            assert {f"share/doc/{left}" for left in order[number:]} <= names(prefix)
    assert prefix.content() == before
    assert [*merge.manifest("a").parent.iterdir()] == []


def test_a_link_may_become_a_directory_and_a_file_too_and_the_reverse(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    one: Files = {"lib/x": "x", "lib64": Link("lib"), "share/a": "", "share/b/x": "", "share/c": Link("b")}
    two: Files = {"lib/x": "x", "lib64/x": "x", "share/a/x": "", "share/b": "", "share/c/y": ""}
    for files in (one, two, one):
        merge("old", files) if files is one and not merge.manifest("old").exists() else again(files)
        assert names(prefix) == {*files, "bin/mine", "include/mine.h"}
        assert merge.listed("old") == {*files}


def test_the_bytecode_of_a_source_that_goes_goes_with_it(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    merge("old", {f"{SITE}/pkg/__init__.py": "", f"{SITE}/pkg/old.py": "", f"{SITE}/gone/x.py": ""})
    cached = (f"{SITE}/pkg/__pycache__/old.cpython-313.pyc", f"{SITE}/gone/__pycache__/x.cpython-313.pyc")
    stage(prefix.path, dict.fromkeys(cached, "made by an import"))
    again({f"{SITE}/pkg/__init__.py": ""})
    assert names(prefix) == {f"{SITE}/pkg/__init__.py", "bin/mine", "include/mine.h"}
    assert not (prefix.path / SITE / "gone").exists()


def test_a_distribution_goes_if_the_new_tree_has_none(prefix: MergePrefix, merge: Recipes) -> None:
    merge("old", {"lib/a": "", **distribution("dist", "1", {f"{SITE}/dist/__init__.py": "", "bin/dist": ""})})
    merge("old", {"lib/a": ""})
    assert {*prefix.content()} == {"bin", "bin/mine", "include", "include/mine.h", "lib", "lib/a"}


def test_a_distribution_that_pip_has_upgraded_is_replaced_by_the_staged_one(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any]
) -> None:
    one = distribution(
        "dist", "1", {f"{SITE}/dist/__init__.py": "1", f"{SITE}/dist/one/x.py": "", "share/dist/old": ""}
    )
    merge("old", one)
    for name in one:
        (prefix.path / name).unlink()
    (prefix.path / SITE / "dist-1.dist-info").rmdir()
    two = {f"{SITE}/dist/__init__.py": "22", f"{SITE}/dist/two/x.py": "", "share/dist/two/x": ""}
    stage(prefix.path, distribution("dist", "2", two))
    merged = again(distribution("dist", "3", {f"{SITE}/dist/__init__.py": "333"}))
    assert (merged.replaced, merged.unmerged.changed, merged.unmerged.owned) == ((), (), ())
    new = distribution("dist", "3", {f"{SITE}/dist/__init__.py": "333"})
    assert names(prefix) == {*new, "bin/mine", "include/mine.h"}
    assert not {f"{SITE}/dist/one", f"{SITE}/dist/two", "share/dist/two"} & {*prefix.content()}


def test_what_replaces_a_manifest_alone_goes_on_beside_a_build_and_what_removes_does_not(
    prefix: MergePrefix, merge: Recipes
) -> None:
    stage(prefix.path, {f"{SITE}/here.py": "", "bin/python3": ""})
    merge("old", {"share/x": "x"})
    with context.environment([str(prefix.path / SITE)]).keeping():
        merge("old", {"share/x": "x", "share/y": "y"})
        with pytest.raises(NestingRefused):
            merge("old", {"share/x": "x"})
    assert merge.listed("old") == {"share/x", "share/y"}
    assert (prefix.path / "share/y").exists()


def test_a_file_that_another_merge_lists_meanwhile_is_not_taken_away(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge("old", OLD)
    meanwhile(monkeypatch, lambda: merge("other", {"include/old/old.h": "", "var/empty": None}))
    again(NEW)
    assert {"include/old/old.h", "var/empty"} <= {*prefix.content()}
    meanwhile(monkeypatch, lambda: merge("third", {"share/new": ""}))
    merge.undo("old")
    assert "share/new" in prefix.content()


def test_a_directory_that_is_taken_away_meanwhile_is_made_again(
    prefix: MergePrefix, merge: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge("old", {"share/empty": None})
    meanwhile(monkeypatch, lambda: merge.undo("old"))
    merge("other", {"share/empty": None, "share/x": ""})
    assert (prefix.path / "share/empty").is_dir()
    merge.undo("other")
    assert {*prefix.content()} == {"bin", "bin/mine", "include", "include/mine.h"}


def test_two_merges_with_one_manifest_are_as_one_after_the_other(
    prefix: MergePrefix, merge: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: merge("old", {"share/x": ""}))
    merge("old", {"share/y": ""})
    assert names(prefix) == {"share/y", "bin/mine", "include/mine.h"}
    assert merge.listed("old") == {"share/y"}


@pytest.mark.parametrize("lost", ["the manifest", "its directory"])
def test_a_killed_rebuild_is_undone_though_its_manifest_is_gone(
    prefix: MergePrefix, merge: Recipes, empty: Path, lost: str
) -> None:
    twin = MergePrefix(stage(empty / "twin", {"bin/mine": "", "include/mine.h": ""}))
    recipes = [merge, Recipes(twin, empty / "beside")]
    (empty / "beside/manifests").mkdir(parents=True)
    for each in recipes:
        each("old", OLD)
    before = prefix.content()
    with disk.record() as changes:
        recipes[1]("old", NEW)
    moves = [change.path for change in changes if change.operation == "move"]
    committed = [path.endswith(".committed") for path in moves].index(True)
    with pytest.raises(disk.Crashed), disk.crash_at(committed, only={"move"}):
        merge("old", NEW)
    assert prefix.content() != before
    shutil.rmtree(merge.manifest("old").parent)
    if lost == "the manifest":
        merge.manifest("old").parent.mkdir()
    prefix.merge(stage(empty / "next", {"bin/mine": ""}))
    assert prefix.content() == before
    assert prefix.private() == []
    assert not merge.manifest("old").exists()


def test_a_manifest_to_be_replaced_has_to_be_there_unless_that_is_done(prefix: MergePrefix, merge: Recipes) -> None:
    with pytest.raises(Unmergeable, match="cannot be read"):
        merge("new", NEW, replaces="old")
    assert names(prefix) == {"bin/mine", "include/mine.h"}
    merge("old", OLD)
    merge("new", NEW, replaces="old")
    assert not merge("new", NEW, replaces="old").is_changed


def test_without_a_name_the_new_manifest_takes_the_place_of_the_old_one(
    prefix: MergePrefix, merge: Recipes, empty: Path
) -> None:
    merge("old", OLD)
    prefix.merge(stage(empty / "again", NEW), "fail", replaces=merge.manifest("old"))
    assert merge.listed("old") == {*NEW}


def test_a_manifest_of_another_prefix_is_refused_unless_that_is_gone(
    prefix: MergePrefix, merge: Recipes, again: Callable[..., Any], empty: Path
) -> None:
    other = MergePrefix(empty / "other")
    other.merge(stage(empty / "tree", OLD), manifest=merge.manifest("old"))
    with pytest.raises(Unmergeable, match=f"is the manifest of a merge into `{other.path}`") as caught:
        again(NEW)
    assert caught.value.state is State.UNCHANGED
    other.path.rename(empty / "moved")
    again(NEW)
    assert merge.listed("old") == {*NEW}


def test_only_manifests_of_the_prefix_with_the_same_suffix_have_a_say(prefix: MergePrefix, merge: Recipes) -> None:
    merge("old", OLD)
    content, directory = merge.manifest("old").read_bytes(), merge.manifest("old").parent
    (directory / "old.json.bak").write_bytes(content)
    (directory / "link.json").symlink_to("old.json")
    (directory / "elsewhere.json").write_bytes(content.replace(b"/prefix", b"/elsewhere"))
    (directory / "no.json").write_bytes(b"{}")
    os.mkfifo(directory / "fifo.json")
    (directory / "directory.json").mkdir()
    merge("old", NEW)
    assert names(prefix) == {*NEW, "bin/mine", "include/mine.h"}


def test_a_neighbour_that_is_damaged_is_named_before_anything_goes(prefix: MergePrefix, merge: Recipes) -> None:
    merge("old", OLD)
    merge("other", {"include/old/old.h": ""})
    document = json.loads(merge.manifest("other").read_bytes())
    document["entries"]["include/old/old.h"]["sha256"] = "0"
    merge.manifest("other").write_text(json.dumps(document))
    with pytest.raises(Unmergeable, match=r"other\.json` is not the manifest of a merge: it is damaged"):
        merge("old", NEW)
    assert (prefix.path / "include/old/old.h").exists()


@pytest.mark.usefixtures("as_a_user")
def test_a_user_replaces_what_lies_in_read_only_directories(
    prefix: MergePrefix, merge: Recipes, empty: Path, again: Callable[..., Any]
) -> None:
    tree = stage(empty / "closed", {"share/ro/deep/a": "", "share/ro/a": "1", "share/ro/b": ""})
    for name in ("share/ro/deep", "share/ro"):
        (tree / name).chmod(0o555)
    prefix.merge(tree, manifest=merge.manifest("old"))
    again({"share/ro/a": "2"})
    assert names(prefix) == {"share/ro/a", "bin/mine", "include/mine.h"}
    assert prefix.content()["share/ro"].split()[1] == "r-xr-xr-x"
