"""What counts as a change of an installed project, and what an install would hide."""

import os
import shutil
import time
from pathlib import Path

import pytest

from safe_pip.environment.snapshot import ReadSet, Snapshot, are_settled, hides, listings


def install(site: Path, name: str = "idna", version: str = "1") -> Path:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    return info


def take(*directories: Path) -> Snapshot:
    return Snapshot.take(map(str, directories))


def test_a_project_is_found_under_its_normalized_name(tmp_path):
    install(tmp_path, "Zope.Interface_x")
    assert take(tmp_path).identity("zope-interface-x")


@pytest.mark.parametrize("name", ["a-1.dist-info", "a-1-py3.12.egg-info", "a.egg-info", "a.egg-link", "a-1-py3.12.egg"])
def test_every_form_of_metadata_is_seen(tmp_path, name):
    (tmp_path / name).mkdir() if not name.endswith("link") else (tmp_path / name).write_text(".\n")
    assert take(tmp_path).identity("a")


def test_an_egg_link_is_named_after_the_whole_project(tmp_path):
    (tmp_path / "foo-bar.egg-link").write_text(".\n")
    assert take(tmp_path).identity("foo-bar")


def test_an_untouched_project_keeps_its_identity(tmp_path):
    install(tmp_path)
    assert take(tmp_path).identity("idna") == take(tmp_path).identity("idna")


@pytest.mark.parametrize("file", ["METADATA", "RECORD", "direct_url.json"])
def test_rewriting_a_file_with_the_same_size_and_times_is_a_change(tmp_path, file):
    info = install(tmp_path)
    (info / file).write_text("one")
    before, status = take(tmp_path), os.stat(info / file)
    (info / file).unlink()
    (info / "other").write_text("")  # takes the inode number that was freed, on filesystems that give it away
    (info / file).write_text("two")
    os.utime(info / file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take(tmp_path).identity("idna") != before.identity("idna")
    assert not before.is_current("idna")


def test_a_second_metadata_directory_of_a_project_is_a_change(tmp_path):
    install(tmp_path)
    before = take(tmp_path)
    install(tmp_path, version="2")
    assert take(tmp_path).identity("idna") != before.identity("idna")


def test_a_removed_project_is_not_current(tmp_path):
    info = install(tmp_path)
    before = take(tmp_path)
    for file in info.iterdir():
        file.unlink()
    info.rmdir()
    assert not before.is_current("idna")


def test_moving_the_target_of_an_egg_link_is_a_change(tmp_path):
    source = tmp_path / "src"
    (source / "a.egg-info").mkdir(parents=True)
    (source / "a.egg-info" / "PKG-INFO").write_text("Name: a\nVersion: 1\n")
    (tmp_path / "a.egg-link").write_text(f"{source}\n.\n")
    before = take(tmp_path)
    (source / "a.egg-info" / "PKG-INFO").write_text("Name: a\nVersion: 22\n")
    assert take(tmp_path).identity("a") != before.identity("a")


def test_missing_and_unreadable_directories_hold_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert take(tmp_path / "missing", tmp_path / "file").projects == {}


def test_a_snapshot_that_is_taken_again_looks_at_one_status_of_what_is_unchanged(tmp_path, monkeypatch):
    """It is taken under the commit lock, which is held the longer the more is installed."""
    for name in ("a", "b", "c", "d"):
        install(tmp_path, name)
    before, looked_at, stat = take(tmp_path), [], os.stat
    install(tmp_path, "new")
    (tmp_path / "c-1.dist-info" / "REQUESTED").write_text("")
    shutil.rmtree(tmp_path / "d-1.dist-info")
    expected = take(tmp_path)

    def look(path, **kw):
        looked_at.append(os.path.relpath(path, tmp_path))
        return stat(path, **kw)

    monkeypatch.setattr(os, "stat", look)
    now = before.taken_again([str(tmp_path)], ["b"])
    monkeypatch.undo()
    assert now.projects.keys() == expected.projects.keys()
    assert [now.identity(name) == expected.identity(name) for name in ("a", "b")] == [True, True]
    assert [now.identity(name)[0] == expected.identity(name)[0][:4] for name in ("c", "new")] == [True, True]
    assert before.taken_again([str(tmp_path)]) == expected
    counts = {
        name: sum(path.startswith(f"{name}-1.dist-info") for path in looked_at) for name in ("a", "b", "c", "new")
    }
    assert counts == {"a": 1, "b": 4, "c": 2, "new": 1}


def test_listings_tell_of_what_comes_and_goes_once_they_are_settled(tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    path = [str(tmp_path / name) for name in ("link", "missing")]
    before = listings(path)
    assert not are_settled(before)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_000_000_000)
    assert are_settled(before)
    assert listings(path) == before
    install(tmp_path / "tree", "new")
    assert listings(path) != before


def test_a_snapshot_with_current_projects_looks_at_their_files_alone(tmp_path):
    for name in ("a", "b"):
        install(tmp_path, name)
    before = take(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}-1.dist-info" / "METADATA").write_text("changed")
    now = before.with_current(["a", "missing"])
    assert now.identity("a") == take(tmp_path).identity("a") != before.identity("a")
    assert now.identity("b") == before.identity("b")
    assert now.projects.keys() == before.projects.keys()


def test_a_read_set_names_what_changed_after_it_was_asked_for(tmp_path):
    install(tmp_path, "a")
    install(tmp_path, "b")
    before, read = take(tmp_path), ReadSet()
    read.add("a", before)
    read.add("absent", before)
    (tmp_path / "b-1.dist-info" / "METADATA").write_text("changed")
    assert read.changed(take(tmp_path)) == ()
    install(tmp_path, "absent")
    (tmp_path / "a-1.dist-info" / "METADATA").write_text("changed")
    assert read.changed(take(tmp_path)) == ("a", "absent")


def test_a_read_set_keeps_what_was_shown_first(tmp_path):
    install(tmp_path, "a")
    first, read = take(tmp_path), ReadSet()
    read.add("a", first)
    (tmp_path / "a-1.dist-info" / "METADATA").write_text("changed")
    read.add("a", take(tmp_path))
    assert read.changed(take(tmp_path)) == ("a",)


# What hides what is there, or is hidden by it.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Where it is installed."""
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another directory that modules are found in."""
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


def test_where_nothing_is_there_nothing_is_hidden(tree: Path, other: Path) -> None:
    assert not hides({tree: {"demo", "demo.py"}}, (tree, other), ("demo",))


def test_what_has_other_names_hides_nothing(tree: Path, other: Path) -> None:
    for name in ("demo2.py", "dem.py", "other-1.dist-info", "Demo.py"):
        (tree / name).touch()
        (other / name).touch()
    assert not hides({tree: {"demo"}}, (tree, other), ("demo",))


@pytest.mark.parametrize("where", ["tree", "other"])
@pytest.mark.parametrize("name", ["Some.Demo-1.dist-info", "some_demo-2.egg-info", "some-demo.egg-link"])
def test_a_project_that_is_there_is_hidden_whatever_its_modules(tmp_path, tree, other, where, name) -> None:
    (tmp_path / where / name).mkdir()
    assert hides({tree: {"module.py"}}, (tree, other), iter(["another", "some-demo"]))
    assert not hides({tree: {"module.py"}}, (tree, other), ["another"])


@pytest.mark.parametrize("there", ["demo.py", "demo", "demo.cpython-313-x86_64-linux-gnu.so", "demo.pth"])
@pytest.mark.parametrize("staged", ["demo.py", "demo", "demo.abi3.so"])
def test_a_module_of_the_same_name_in_another_tree_counts_however_it_is_spelt(tree, other, there, staged) -> None:
    (other / there).touch()
    assert hides({tree: {staged}}, (tree, other), ())
    assert hides({tree: {staged}}, (other, tree), ()), "the other one may be looked at first"


def test_in_its_own_tree_what_has_the_very_same_name_is_not_hidden_by_it(tree: Path) -> None:
    (tree / "demo").mkdir()
    assert not hides({tree: {"demo"}}, (tree,), ())


def test_in_its_own_tree_a_module_hides_a_package_of_the_same_name(tree: Path) -> None:
    (tree / "demo").mkdir()
    assert hides({tree: {"demo.py"}}, (tree,), ())


def test_the_very_same_name_in_two_trees_of_the_target_counts(tree: Path, other: Path) -> None:
    (other / "demo").mkdir()
    assert hides({tree: {"demo"}, other: set()}, (tree, other), ())
    assert not hides({tree: set(), other: {"demo"}}, (tree, other), ())


def test_what_is_no_directory_holds_nothing(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "archive.zip").touch()
    assert not hides({tree: {"archive.zip", "demo"}}, (tmp_path / "missing", tmp_path / "archive.zip", tree), ("demo",))


def test_a_directory_that_is_gone_meanwhile_holds_nothing(tree, other) -> None:
    (other / "demo.py").touch()
    assert hides({tree: {"demo"}}, (tree, other), ())
    (other / "demo.py").unlink()
    other.rmdir()
    assert not hides({tree: {"demo"}}, (tree, other), ())
