"""What is copied from a listing."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.fs.bulk import BYTECODE, EXECUTABLE, SOURCE, Damaged, copy_files, write_file
from tests.support.faults.mounts import as_root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no store here")

KINDS = {"code.py": SOURCE, "tool": EXECUTABLE, "data.bin": 0, "inner/more.py": SOURCE | EXECUTABLE}
CONTENTS = {"small": b"x = 1\n", "empty": b"", "large": b"x" * 3_000_000}


class Pair:
    """What was prepared, and where it is copied to."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.content = content
        self.store, self.there = path / "store", path / "there"
        for directory in (self.store, self.there):
            (directory / "inner").mkdir(parents=True)
        with fs.Directory.open(self.store) as store:
            for name, kind in KINDS.items():
                write_file(store, name, [content], kind)

    def copy(self, clones: bool) -> None:
        digest = hashlib.sha256(self.content).hexdigest()
        listed = [(name, len(self.content), digest, kind) for name, kind in KINDS.items()]
        with fs.Directory.open(self.store) as store, fs.Directory.open(self.there) as there:
            copy_files(store, there, listed, clones=clones)


@pytest.fixture(params=CONTENTS.values(), ids=CONTENTS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    before = os.umask(0o022)
    try:
        yield Pair(tmp_path, request.param)
    finally:
        os.umask(before)


@pytest.mark.parametrize("clones", [False, True])
def test_files_have_the_modes_of_the_umask_and_the_present_time(pair: Pair, clones: bool) -> None:
    os.umask(0o077)
    for name in KINDS:
        os.utime(pair.store / name, (0, 0))
    for _ in range(2):  # the second time over what is there
        pair.copy(clones)
        for name, kind in KINDS.items():
            there = pair.there / name
            assert there.read_bytes() == pair.content
            assert not there.samefile(pair.store / name)
            assert stat.S_IMODE(there.stat().st_mode) == (0o711 if kind & EXECUTABLE else 0o600)
            assert there.stat().st_mtime > 0


@pytest.mark.parametrize("clones", [False, True])
@pytest.mark.parametrize("size", [20, 300_000])
@pytest.mark.parametrize("flags", [0, 1, 3])
def test_bytecode_that_goes_by_the_time_of_its_source_gets_the_new_one(
    tmp_path: Path, clones: bool, size: int, flags: int
) -> None:
    head = b"mag\n" + bytes([flags, 0, 0, 0])
    contents = {"one.py": b"x = 1\n", "one.pyc": head + b"time" + b"y" * size}
    kinds = {"one.py": SOURCE, "one.pyc": BYTECODE}
    for name in ("store", "there"):
        (tmp_path / name).mkdir()
    for name, content in contents.items():
        (tmp_path / "store" / name).write_bytes(content)
    listed = [(name, len(each), hashlib.sha256(each).hexdigest(), kinds[name]) for name, each in contents.items()]
    with fs.Directory.open(tmp_path / "store") as store, fs.Directory.open(tmp_path / "there") as there:
        copy_files(store, there, listed, clones=clones)
    time = int((tmp_path / "there" / "one.py").stat().st_mtime).to_bytes(4, "little")
    content = (tmp_path / "there" / "one.pyc").read_bytes()
    assert content == head + (b"time" if flags else time) + b"y" * size


@pytest.mark.parametrize("clones", [False, True])
@pytest.mark.parametrize("change", ["longer", "other", "gone", "directory"])
def test_a_file_that_is_not_as_listed_is_damaged(pair: Pair, clones: bool, change: str) -> None:
    file = pair.store / "data.bin"
    file.unlink()
    if change == "directory":
        file.mkdir()
    elif change != "gone":
        file.write_bytes(pair.content + b"y" if change == "longer" else b"z" * (len(pair.content) or 1))
    with pytest.raises(Damaged):
        pair.copy(clones)


@as_root
@pytest.mark.parametrize("clones", [False, True])
def test_in_a_directory_that_hands_on_its_group_files_have_that(pair: Pair, clones: bool) -> None:
    os.chown(pair.there / "inner", -1, 65534)
    (pair.there / "inner").chmod(0o2755)
    pair.copy(clones)
    assert (pair.there / "inner" / "more.py").stat().st_gid == 65534
