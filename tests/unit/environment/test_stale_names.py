"""On a filesystem of several hosts, stat(2) says for seconds what was true before another host changed something.

Listing the directory through a new descriptor ends that. `Stale` is such a host.
"""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from safe_pip.environment import snapshot
from safe_pip.fs import Directory, proc, rename
from safe_pip.journal.parts import Dead
from safe_pip.locking import flock, state_directory
from tests.support.faults import disk
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution

Known = dict[tuple[str, str], os.stat_result | None]


class Stale:
    """A host that answers from what it came to `know` of the names in a directory until that is listed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._known: Known = {}
        self._stat, self._listdir, self._scandir = os.stat, os.listdir, os.scandir
        self.listed: list[str] = []
        monkeypatch.setattr(os, "stat", self.stat)
        monkeypatch.setattr(os, "listdir", self.listdir)
        monkeypatch.setattr(os, "scandir", self.scandir)

    def know(self, directory: Path, *missing: str) -> None:
        for name in (*self._listdir(directory), *missing):
            path = directory / name
            found = self._stat(path, follow_symlinks=False) if os.path.lexists(path) else None
            self._known[os.path.realpath(directory), name] = found

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if not isinstance(path, int):
            above, name = os.path.split(os.fspath(path))
            key = (os.path.realpath(above) if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}"), name)
            if key in self._known:
                if (found := self._known[key]) is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
                return found
        return self._stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def listdir(self, path: Any = ".") -> list[str]:
        self._ask(path)
        return self._listdir(path)

    def scandir(self, path: Any = ".") -> Any:
        self._ask(path)
        return self._scandir(path)

    def _ask(self, path: Any) -> None:
        real = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.realpath(path)
        self.listed.append(real)
        for key in [key for key in self._known if key[0] == real]:
            del self._known[key]


@pytest.fixture(autouse=True)
def _device_of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a commit finds out of the faked filesystem does not hold for the tests after it."""
    monkeypatch.setattr(rename, "_without_flags", set())


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(proc, "is_shared", lambda path: True)
    monkeypatch.setattr(proc, "is_shared_device", lambda device, path: True)
    (tmp_path / "site-packages").mkdir()
    return tmp_path / "site-packages"


@pytest.fixture
def stale(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Stale:
    return Stale(monkeypatch)


def replace(path: Path) -> None:
    path.with_name("new").write_text("new")
    path.with_name("new").rename(path)


def test_the_names_in_an_open_directory_are_asked_of_the_server_once(tree: Path, stale: Stale) -> None:
    (tree / "file").touch()
    stale.know(tree, "made")
    replace(tree / "file")
    (tree / "made").touch()
    with Directory.open(tree) as directory:
        assert directory.stat("file").st_size == 3
        assert directory.exists("made")
    assert stale.listed == [str(tree)]


def test_on_a_filesystem_of_one_host_nothing_more_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "one-1.dist-info").mkdir()
    stale = Stale(monkeypatch)
    with Directory.open(tmp_path) as directory, flock.Descriptor(tmp_path / "file") as descriptor:
        assert directory.exists("file")
        assert descriptor.is_current()
        assert not state_directory.has_locks(tmp_path)
        assert stale.listed == []
        snapshot.Snapshot.take([str(tmp_path)])
    assert stale.listed == [str(tmp_path)], "as before, for the names of distributions"


def test_a_lock_file_that_another_host_replaced_is_not_current(tree: Path, stale: Stale) -> None:
    state_directory.make(tree)
    with flock.Descriptor(tree / ".safe-pip" / "commit") as descriptor:
        stale.know(tree / ".safe-pip")
        assert descriptor.is_current()
        stale.know(tree / ".safe-pip")
        replace(tree / ".safe-pip" / "commit")
        assert not descriptor.is_current()


def test_lock_files_that_another_host_made_are_found(tree: Path, stale: Stale) -> None:
    stale.know(tree, ".safe-pip")
    state = tree / ".safe-pip"
    state.mkdir()
    for name in ("commit", "commit.gate", "environment", "environment.gate", "keep", "keep.gate"):
        stale.know(state, name)
        (state / name).touch()
    assert state_directory.has_locks(tree)
    stale.know(tree, ".safe-pip")
    assert not state_directory.make(tree)


def test_a_commit_lists_no_private_directory_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_known", {})
    monkeypatch.setattr(proc, "_filesystem_on", lambda device, path: proc.Filesystem("nfs4"))
    prefix, stale = DirectPrefix(tmp_path), Stale(monkeypatch)
    prefix.change([SmallDistribution("one", "1", {"site/one.py": "1"})])
    stale.listed.clear()
    with disk.record() as changes:
        prefix.change([SmallDistribution("two", "1", {"site/two.py": "2"})])
    private = [path for path in stale.listed if "/.safe-pip/" in path]
    assert sorted(private) == sorted(set(private))
    assert stale.listed.count(str(prefix.site / ".safe-pip")) <= 13
    assert not [change for change in changes if "exchange" in change.path], "NFS cannot, which is known"
    (ended,) = prefix.private()
    assert ended.endswith(".ended")  # a reader on another host sees by it that there was a change


def test_a_transaction_whose_journal_was_not_seen_yet_is_not_deleted(tree: Path, stale: Stale) -> None:
    state_directory.make(tree)
    state, identifier = tree / ".safe-pip", "0123456789abcdef"
    (state / f"{identifier}.owner").write_text("")
    stale.know(state, f"{identifier}.journal", f"{identifier}.committed")
    (state / f"{identifier}.journal").touch()
    Dead(str(tree), identifier).delete()
    assert (state / f"{identifier}.owner").exists()
