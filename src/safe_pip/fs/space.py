"""Is there room for what will be staged? And which error reports what the disk refused."""

from __future__ import annotations

import errno
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safe_pip.errors import CommitFailed, SafePipError, State, UnusableEnvironment

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_DIRECTORY = (errno.ENOTDIR, errno.EEXIST)
# zlib packs nothing more densely: https://zlib.net/zlib_tech.html, "Maximum Compression Factor".
_DENSEST = 1032


def check_room(directory: str, wheels: Sequence[Path]) -> None:
    """Raise `CommitFailed`, with nothing changed, if `wheels` unpacked are more than the disk has room for."""
    if sys.platform == "win32":
        return
    found = os.statvfs(directory)
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    # To look into a wheel of thousands of files takes long, and there is nearly always room.
    if free >= _DENSEST * sum(os.path.getsize(wheel) for wheel in wheels):
        return
    wanted = 0
    for wheel in wheels:
        with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(wheel) as archive:  # pip reports damaged ones
            wanted += sum(info.file_size for info in archive.infolist())
    if wanted > free:
        raise _full(directory, f": {wanted / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free")


@contextmanager
def unpacking(directory: str, wheels: Sequence[Path] = ()) -> Iterator[None]:
    """Within, the error that the disk is full becomes a `CommitFailed`; other errors are raised unchanged.

    Raises it at once if there is no room for what is in `wheels`.
    """
    if wheels:
        check_room(directory, wheels)
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(directory) from error
        raise


@contextmanager
def staging(directory: str) -> Iterator[None]:
    """Within, every error of the disk becomes a `SafePipError`. Only a private tree is written: nothing was changed."""
    try:
        yield
    except OSError as error:
        raise refusal(directory, error) from error


def refusal(directory: str, error: OSError) -> SafePipError:
    """The error to raise when the disk refuses something in, or for, a private tree in `directory`."""
    if error.errno in _FULL:
        return _full(directory)
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else directory
    if error.errno in _NOT_WRITABLE + _NO_DIRECTORY:
        return not_writable(Path(where), error)
    return CommitFailed(f"`{where}` could not be written: {error.strerror}", state=State.UNCHANGED)


def not_writable(path: Path, error: OSError) -> UnusableEnvironment:
    """The error to raise when the disk refuses a change at `path`."""
    if error.errno in _NO_DIRECTORY:
        return UnusableEnvironment(f"`{path}` is not a directory")
    what = "is not writable" if error.errno in _NOT_WRITABLE else "cannot be written"
    return UnusableEnvironment(f"`{path}` {what}: {error.strerror}")


def _full(directory: str, figures: str = "") -> SafePipError:
    return CommitFailed(f"there is not enough space in `{directory}`{figures}", state=State.UNCHANGED)


def descriptor_limit() -> int:
    """The number of descriptors that this process may have (`ulimit -n`)."""
    if sys.platform == "win32":
        return sys.maxsize
    most = os.sysconf("SC_OPEN_MAX")
    return sys.maxsize if most < 0 else most
