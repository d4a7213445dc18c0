"""What is linked in place of being copied is, but for its inode, what a copy would be."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.fs.bulk import EXECUTABLE, SOURCE, LinkMode, copy_files, write_file
from tests.support.faults.mounts import as_root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no store here")

SECOND = 1_500_000_000
KINDS = {"code.py": SOURCE, "tool": EXECUTABLE, "data.bin": 0, "inner/more.py": SOURCE | EXECUTABLE}
CONTENT = b"x = 1\n"
LISTED = [(name, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), kind) for name, kind in KINDS.items()]


class Pair:
    """What was prepared, and where it is linked to."""

    def __init__(self, path: Path) -> None:
        self.store, self.there = path / "store", path / "there"
        for directory in (self.store, self.there):
            (directory / "inner").mkdir(parents=True)
        with fs.Directory.open(self.store) as store:
            for name, kind in KINDS.items():
                write_file(store, name, [CONTENT], kind, SECOND)

    def link(self) -> set[str]:
        """Link what can be; on return what was."""
        with fs.Directory.open(self.store) as store, fs.Directory.open(self.there) as there:
            copy_files(store, there, LISTED, second=SECOND, by=LinkMode.HARDLINK)
        for name in KINDS:
            assert (self.there / name).read_bytes() == CONTENT
        return {name for name in KINDS if (self.there / name).samefile(self.store / name)}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    before = os.umask(0o022)
    try:
        yield Pair(tmp_path)
    finally:
        os.umask(before)


def test_what_nobody_has_changed_is_linked(pair: Pair) -> None:
    assert pair.link() == KINDS.keys()
    assert pair.link() == KINDS.keys()


def changes() -> list[object]:
    def mode(path: Path) -> None:
        path.chmod(0o600)

    def bit(path: Path) -> None:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_ISUID)

    def time(path: Path) -> None:
        os.utime(path, ns=(0, SECOND * 10**9 + 1))

    def owner(path: Path) -> None:
        os.chown(path, 65534, -1)

    def group(path: Path) -> None:
        os.chown(path, -1, 65534)

    return [mode, bit, time, pytest.param(owner, marks=as_root), pytest.param(group, marks=as_root)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("change", changes())
def test_what_was_changed_through_another_link_is_copied_as_if_nobody_had(
    pair: Pair, name: str, change: Callable[[Path], None]
) -> None:
    before = (pair.store / name).stat()
    change(pair.store / name)
    if change.__name__ == "time" and not KINDS[name] & SOURCE:
        assert pair.link() == KINDS.keys()
        return
    assert pair.link() == KINDS.keys() - {name}
    after = (pair.there / name).stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    if KINDS[name] & SOURCE:
        assert after.st_mtime_ns == SECOND * 10**9


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has attributes of this kind")
def test_what_was_given_an_attribute_is_copied_without_it(pair: Pair) -> None:
    try:
        os.setxattr(pair.store / "code.py", "user.note", b"theirs")
    except OSError:
        pytest.skip("this filesystem has no such attributes")
    assert pair.link() == KINDS.keys() - {"code.py"}
    assert "user.note" not in os.listxattr(pair.there / "code.py")


@as_root
def test_in_a_directory_that_hands_on_its_group_files_have_that(pair: Pair) -> None:
    os.chown(pair.there / "inner", -1, 65534)
    (pair.there / "inner").chmod(0o2755)
    assert pair.link() == KINDS.keys() - {"inner/more.py"}
    assert (pair.there / "inner" / "more.py").stat().st_gid == 65534


def test_with_another_umask_files_have_the_modes_that_it_gives(pair: Pair) -> None:
    os.umask(0o077)
    assert pair.link() == set()
    assert stat.S_IMODE((pair.there / "code.py").stat().st_mode) == 0o600
    assert stat.S_IMODE((pair.there / "tool").stat().st_mode) == 0o711
