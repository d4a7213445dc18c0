"""Is there room for what is to be staged, and what is said when the disk refuses it."""

from __future__ import annotations

import errno
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safe_pip.errors import CommitFailed, SafePipError, State, UnusableEnvironment

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
# Nothing is packed more densely in a wheel: https://zlib.net/zlib_tech.html, "Maximum Compression Factor".
_DENSEST = 1032


def needed(wheels: Iterable[Path]) -> int:
    """The bytes that the files in these wheels have, unpacked."""
    total = 0
    for wheel in wheels:
        # What is wrong with one that cannot be read is pip's to say.
        with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(wheel) as archive:
            total += sum(info.file_size for info in archive.infolist())
    return total


def check_room(directory: str, wheels: Iterable[Path]) -> None:
    """Raise `CommitFailed`, with nothing changed, if `wheels` unpacked are more than the disk has room for."""
    if sys.platform == "win32":
        return
    wheels = tuple(wheels)
    found = os.statvfs(directory)
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    # To look into a wheel of thousands of files takes longer than all the rest, and there is room nearly always.
    if free >= _DENSEST * sum(os.path.getsize(wheel) for wheel in wheels):
        return
    wanted = needed(wheels)
    if wanted > free:
        raise _full(directory, f": {_megabytes(wanted)} are needed, {_megabytes(free)} are free")


@contextmanager
def unpacking(directory: str) -> Iterator[None]:
    """Have a disk that is full end what is unpacked as an error of ours; what else goes wrong is raised as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(directory) from error
        raise


@contextmanager
def staging(directory: str) -> Iterator[None]:
    """Have whatever the disk refuses in the private tree end as an error of ours: nothing was changed."""
    try:
        yield
    except OSError as error:
        raise refusal(directory, error) from error


def refusal(directory: str, error: OSError) -> SafePipError:
    """What to raise when the disk refuses something in, or for, a private tree in `directory`."""
    if error.errno in _FULL:
        return _full(directory)
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else directory
    if error.errno in _REFUSED:
        return not_writable(Path(where), error)
    return CommitFailed(f"`{where}` could not be written: {error.strerror}", state=State.UNCHANGED)


def not_writable(path: Path, error: OSError) -> UnusableEnvironment:
    """What to raise when the disk refuses a change at `path`."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UnusableEnvironment(f"`{path}` is not writable: {error.strerror}")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UnusableEnvironment(f"`{path}` is not a directory")
    return UnusableEnvironment(f"`{path}` cannot be written: {error.strerror}")


def _full(directory: str, figures: str = "") -> SafePipError:
    return CommitFailed(f"there is not enough space in `{directory}`{figures}", state=State.UNCHANGED)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
