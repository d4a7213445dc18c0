"""Directories on different filesystems, as far as a machine has them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")


def is_usable(path: Path) -> bool:
    """Whether this user can make files there."""
    return path.is_dir() and os.access(path, os.W_OK)


def another_filesystem(than: Path) -> Path | None:
    """A public directory on another filesystem than that of `than`, in memory if there is a choice."""
    device = than.stat().st_dev
    places = (MEMORY, Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/run"))
    return next((each for each in places if is_usable(each) and each.stat().st_dev != device), None)


def on_disk(path: Path) -> Path:
    """`path` if it is on a disk; else a directory that is on a disk, if there is one."""
    if not MEMORY.is_dir() or MEMORY.stat().st_dev != path.stat().st_dev:
        return path
    return another_filesystem(path) or path
