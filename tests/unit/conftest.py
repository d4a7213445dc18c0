"""Fixtures for `fs`: different filesystems, and users with different rights."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from tests.support.faults.filesystems import MEMORY, another_filesystem, is_usable, on_disk

NOBODY = 65534


@pytest.fixture(params=["on-disk", "in-memory"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty directory, its path without links, on different filesystems."""
    if request.param == "in-memory" and not is_usable(MEMORY):
        pytest.skip(f"there is no {MEMORY} to write to")
    with tempfile.TemporaryDirectory(dir=on_disk(tmp_path) if request.param == "on-disk" else MEMORY) as name:
        yield Path(name).resolve()


@pytest.fixture
def elsewhere(empty: Path) -> Iterator[fs.Directory]:
    """An empty directory on another filesystem than `empty`."""
    other = another_filesystem(empty)
    if other is None:
        pytest.skip("there is no other filesystem")
    with tempfile.TemporaryDirectory(dir=other) as name, fs.Directory.open(name) as directory:
        yield directory


@pytest.fixture
def as_a_user(empty: Path) -> Iterator[None]:
    """Root may do everything: become another user, which owns `empty` and all in it."""
    if os.geteuid() != 0:
        yield
        return
    opened = []
    for directory in (empty, *empty.parents):
        mode = stat.S_IMODE(directory.stat().st_mode)
        if not mode & 0o001:
            opened.append((directory, mode))
            directory.chmod(mode | 0o001)
    for at, directories, files in os.walk(empty):
        for name in [".", *directories, *files]:
            os.lchown(os.path.join(at, name), NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        for directory, mode in opened:
            directory.chmod(mode)
