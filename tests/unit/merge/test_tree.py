"""What a scan sees of a directory, and what it does not look at."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from safe_pip.fs.proc import volume
from safe_pip.merge import tree
from safe_pip.merge.tree import FILE, LINK, Entry, ancestors, join, look, scan, states
from tests.support.faults.filesystems import another_filesystem


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    return root


def below(entry: Entry, path: str) -> Entry:
    for name in path.split("/"):
        assert entry.entries is not None
        entry = entry.entries[name]
    return entry


def names(entry: Entry) -> set[str]:
    assert entry.entries is not None
    return set(entry.entries)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A tree in a directory of which the path has no link in it."""
    site = Path(os.path.realpath(tmp_path)) / "v" / "site"
    site.mkdir(parents=True)
    return site


def staged(tmp_path: Path, site: Path, *paths: str) -> Entry:
    """A stage in which these paths below the tree are staged."""
    stage = Path(os.path.realpath(tmp_path)) / "stage"
    make(Path(f"{stage}{site}"), *paths)
    return scan(str(stage))


def seen(site: Path, entry: Entry | None = None, going: Iterable[str] = ()) -> Entry:
    """What is seen of the tree."""
    found = look("/", entry, [f"{site}/{name}" for name in going], [str(site)])
    return below(found, str(site).lstrip("/"))


# Scanning.


def test_a_scan_finds_everything_by_kind(site):
    make(site, "a.py", "pkg/b.py", "pkg/sub/c.py")
    (site / "pkg/link").symlink_to("sub")
    os.mkfifo(site / "pipe")
    entry = scan(str(site))
    assert names(entry) == {"a.py", "pkg", "pipe"}
    assert below(entry, "a.py").mode == stat.S_IFREG
    assert below(entry, "pkg/link").mode == stat.S_IFLNK
    assert below(entry, "pkg/sub/c.py") == FILE


def test_a_scan_knows_the_state_of_each_file_but_of_bytecode(site):
    paths = ["a.py", "pkg/b.py", "pkg/link", "pkg/sub/c.py"]
    make(site, "a.py", "pkg/b.py", "pkg/sub/c.py", "pkg/__pycache__/b.pyc")
    (site / "pkg/link").symlink_to("sub")
    assert dict(states(scan(str(site)))) == {path: os.lstat(site / path) for path in paths}


def test_of_a_directory_it_tells_what_a_commit_will_check(site):
    make(site, "pkg/a.py")
    (site / "pkg").chmod(0o2751)
    entry, info = below(scan(str(site)), "pkg"), os.lstat(site / "pkg")
    assert entry.path == f"{site}/pkg"
    assert entry.is_directory
    assert entry.is_whole
    assert (entry.mode, entry.uid, entry.inode, entry.ctime_ns) == (
        info.st_mode,
        info.st_uid,
        info.st_ino,
        info.st_ctime_ns,
    )
    assert entry.inside == volume(str(site))


def test_names_that_are_no_text_survive(site):
    os.mkdir(os.fsencode(site) + b"/\xff\n")
    make(site, "\udcff\n/\udcfe")
    assert [path for path, _ in states(scan(str(site)))] == ["\udcff\n/\udcfe"]


def test_a_directory_that_cannot_be_listed_is_not_whole(site, monkeypatch):
    make(site, "pkg/a.py", "b.py")
    listing = os.scandir

    def refusing(path):
        if path.endswith("/pkg"):
            raise PermissionError(13, "", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refusing)
    entry = scan(str(site))
    assert entry.is_whole
    assert not below(entry, "pkg").is_whole


def test_a_directory_that_vanishes_meanwhile_is_not_taken_for_empty(site, monkeypatch):
    make(site, "pkg/sub/a.py", "pkg/b.py")
    listing = os.scandir

    def vanishing(path):
        if path.endswith("/sub"):
            raise FileNotFoundError(2, "", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert not below(scan(str(site)), "pkg/sub").is_whole


def test_a_directory_of_another_user_counts_as_writable_only_with_write_permission(site, monkeypatch):
    make(site, "pkg/a.py")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(site).st_uid + 1)
    for answer in (True, False):
        monkeypatch.setattr(os, "access", lambda path, mode, *, effective_ids, answer=answer: answer)
        assert below(scan(str(site)), "pkg").is_writable is answer
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(site).st_uid)
    assert below(scan(str(site)), "pkg").is_writable


# Looking.


def test_of_a_tree_only_the_names_that_matter_are_seen(tmp_path, site):
    make(site, "a.py", "b.py", "c.py", "other/x.py")
    entry = seen(site, staged(tmp_path, site, "a.py", "new.py"), ["b.py", "gone.py"])
    assert names(entry) == {"a.py", "b.py"}
    assert not entry.is_whole


def test_a_directory_below_a_tree_that_something_goes_from_is_seen_whole(site):
    make(site, "pkg/a.py", "pkg/data/x", "pkg/deep/er/y")
    entry = seen(site, None, ["pkg/a.py"])
    assert below(entry, "pkg").is_whole
    assert below(entry, "pkg/data/x") is FILE
    assert below(entry, "pkg/deep/er").is_whole


def test_of_a_directory_below_a_tree_that_is_added_to_all_names_are_known_but_not_what_is_in_them(tmp_path, site):
    make(site, "ns/a.py", "ns/theirs/b.py")
    entry = below(seen(site, staged(tmp_path, site, "ns/new/c.py", "ns/a.py")), "ns")
    assert names(entry) == {"a.py", "theirs"}
    assert below(entry, "theirs").entries is None


def test_a_directory_outside_the_trees_that_is_only_added_to_is_not_listed(tmp_path, site, monkeypatch):
    share = site.parent / "share"
    make(share, "doc/a", "doc/theirs/b")
    entry = staged(tmp_path, share, "doc/new/c", "doc/a")
    monkeypatch.setattr(os, "scandir", None)
    found = below(look("/", entry, [], [str(site)]), str(share).lstrip("/"))
    assert names(below(found, "doc")) == {"a"}


def test_elsewhere_a_directory_is_listed_and_its_other_directories_are_left_alone(site):
    share = site.parent / "share"
    make(share, "doc/a", "doc/b", "doc/other/c")
    entry = below(look("/", None, [f"{share}/doc/a"], [str(site)]), str(share).lstrip("/"))
    assert names(below(entry, "doc")) == {"a", "b", "other"}
    assert below(entry, "doc").is_whole
    assert below(entry, "doc/other").entries is None
    assert not below(entry, "doc/other").is_whole


def test_the_directories_above_a_tree_are_not_listed(site, monkeypatch):
    make(site, "a.py")
    monkeypatch.setattr(os, "scandir", None)
    assert names(seen(site, None, ["a.py"])) == {"a.py"}


@pytest.mark.parametrize("place", ["site", "site/ns", "share"])
def test_bytecode_of_what_goes_or_is_replaced_is_seen(tmp_path, site, place):
    root = site.parent
    make(root, f"{place}/a.py", f"{place}/b.py", f"{place}/__pycache__/a.x.pyc", f"{place}/__pycache__/b.x.pyc")
    found = look("/", None, [f"{root}/{place}/a.py"], [str(site)])
    assert "a.x.pyc" in names(below(found, f"{root}/{place}/__pycache__".lstrip("/")))
    found = look("/", staged(tmp_path, root, f"{place}/a.py"), [], [str(site)])
    assert "a.x.pyc" in names(below(found, f"{root}/{place}/__pycache__".lstrip("/")))


def test_a_symbolic_link_that_something_is_staged_through_is_the_directory_it_leads_to(tmp_path, site):
    root = site.parent
    make(root, "share/man/a")
    (root / "man").symlink_to("share/man")
    found = look("/", staged(tmp_path, root, "man/a", "man/b", "share/man/c"), [], [str(site)])
    entry = below(found, f"{root}/man".lstrip("/"))
    assert entry.target == "share/man"
    assert entry.path == f"{root}/share/man"
    assert entry.is_directory
    assert names(entry) == {"a"}
    assert below(found, f"{root}/share/man".lstrip("/"))._replace(target="share/man") == entry


def test_a_symbolic_link_below_what_is_seen_whole_is_followed_for_what_is_staged_only(tmp_path, site):
    make(site, "pkg/a.py", "data/b")
    (site / "pkg/link").symlink_to(site / "data")
    assert below(seen(site, None, ["pkg/a.py"]), "pkg/link") is LINK
    entry = seen(site, staged(tmp_path, site, "pkg/link/b"), ["pkg/a.py"])
    assert names(below(entry, "pkg/link")) == {"b"}


def test_what_a_symbolic_link_led_into_first_is_seen_whole_all_the_same(tmp_path, site):
    root = site.parent
    make(site, "pkg/a.py", "pkg/sub/b", "pkg/sub/deep/c")
    (root / "alias").symlink_to("site/pkg/sub")
    (site / "pkg/sub/link").symlink_to("deep")
    found = look("/", staged(tmp_path, root, "alias/link/c"), [f"{site}/pkg/a.py"], [str(site)])
    entry = below(found, f"{site}/pkg/sub".lstrip("/"))
    assert names(entry) == {"b", "deep", "link"}
    assert entry.is_whole
    assert below(entry, "deep").is_whole
    assert below(entry, "link").target == "deep"


@pytest.mark.parametrize("target", ["nowhere", "file", "loop"])
def test_a_symbolic_link_that_leads_to_no_directory_is_a_link(tmp_path, site, target):
    make(site, "file")
    (site / "loop").symlink_to(target)
    assert below(seen(site, staged(tmp_path, site, "loop/a")), "loop") is LINK


def test_a_symbolic_link_that_goes_is_a_link(site):
    make(site, "data/b")
    (site / "link").symlink_to("data")
    assert below(seen(site, None, ["link"]), "link") is LINK


def test_a_directory_that_goes_by_name_is_seen_whole(site):
    make(site, "x.egg/EGG-INFO/PKG-INFO", "x.egg/a.py")
    assert below(seen(site, None, ["x.egg"]), "x.egg/a.py") is FILE
    share = site.parent / "share"
    make(share, "doc/other/c")
    assert below(look("/", None, [f"{share}/doc"], [str(site)]), f"{share}/doc/other/c".lstrip("/")) is FILE


def test_a_file_where_a_directory_is_staged_is_a_file(tmp_path, site):
    make(site, "a")
    assert below(seen(site, staged(tmp_path, site, "a/b/c")), "a") is FILE


def test_nothing_there_is_nothing(tmp_path, site):
    assert names(seen(site, staged(tmp_path, site, "a/b"), ["c/d"])) == set()


# Volumes.


def test_another_device_is_another_volume(site):
    other = "/dev/shm"
    if another_filesystem(Path("/")) != Path(other):
        pytest.skip(f"{other} is none of its own here")
    assert volume(other) != volume("/")
    entry = below(look("/", None, [f"{other}/x", f"{site}/a"], []), "dev/shm")
    assert entry.inside == volume(other)


def test_what_is_mounted_from_the_same_device_is_another_volume(site, monkeypatch):
    make(site, "pkg/bind/a.py", "pkg/bind/deeper/b.py", "pkg/c.py")
    bind = f"{site}/pkg/bind"
    monkeypatch.setattr(tree, "mount_points", lambda: frozenset({bind}))
    original = volume
    monkeypatch.setattr(tree, "volume", lambda path: (original(path)[0], 4711) if path == bind else original(path))
    entry = below(scan(str(site)), "pkg")
    assert entry.inside == original(str(site))
    assert below(entry, "bind").inside == (os.stat(site).st_dev, 4711)
    assert below(entry, "bind/deeper").inside == below(entry, "bind").inside


# Names.


def test_paths_are_joined_and_taken_apart():
    assert join("/", "a") == "/a"
    assert join("/a", "b") == "/a/b"
    assert list(ancestors("/a/b/c")) == ["/a/b", "/a", "/"]


def test_a_file_is_no_directory():
    assert not FILE.is_directory
    assert not LINK.is_directory
    assert stat.S_ISLNK(LINK.mode)


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_directory_that_is_replaced_while_it_is_looked_at_hides_nothing_else(site, monkeypatch, becomes):
    make(site, "old-1.dist-info/RECORD", "pkg/a.py")
    going = site / "old-1.dist-info"
    lstat = os.lstat

    def replaced(path):
        found = lstat(path)
        if path == str(going):
            monkeypatch.setattr(os, "lstat", lstat)
            (going / "RECORD").unlink()
            going.rmdir()
            if becomes == "a file":
                going.write_text("")
        return found

    monkeypatch.setattr(os, "lstat", replaced)
    entry = seen(site, None, ["old-1.dist-info/RECORD", "pkg/a.py"])
    assert os.lstat is lstat
    assert names(below(entry, "pkg")) == {"a.py"}
    assert not (entry.entries or {}).get(going.name, FILE).is_directory
