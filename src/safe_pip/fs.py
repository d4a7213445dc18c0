"""Every change that safe-pip makes to a disk passes through this module, so that each can be recorded or made to fail."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def make_directories(path: Path) -> list[Path]:
    """Make `path` and whatever parent is missing; on return those that this call made, outermost first.

    Any number of processes may ask for overlapping paths at once (mkdir(2): who loses finds it made).
    """
    missing = [path]
    while not missing[-1].parent.is_dir() and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
    made = []
    for directory in reversed(missing):
        try:
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir():
                raise
        else:
            made.append(directory)
    return made


def remove_empty_directories(paths: list[Path]) -> None:
    """Remove each of `paths` that is an empty directory, last first; what is not empty, or gone, stays as it is."""
    for path in reversed(paths):
        with contextlib.suppress(OSError):
            path.rmdir()


def make_private_directory(parent: Path | None = None, prefix: str = "safe-pip-") -> Path:
    """Make a directory of mode 0700 with a name nobody can guess, in `parent` or the temporary directory."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def remove_tree(path: Path) -> None:
    """Remove `path` and all below it as far as permissions allow; never raises."""
    shutil.rmtree(path, ignore_errors=True)


def rename(source: Path, destination: Path) -> None:
    """Rename as rename(2) does."""
    os.rename(source, destination)


def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make the new file `path` with `content`; raises `FileExistsError` if there is one, and follows no symbolic link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    with open(descriptor, "wb") as file:
        file.write(content)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Give `path` this content: readers see the old file or the new one, whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".safe-pip-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def unlink(path: Path) -> None:
    """Remove the file `path`; one that is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
