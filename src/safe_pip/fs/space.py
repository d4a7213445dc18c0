"""Which error reports what the disk refused."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safe_pip.errors import CommitFailed, SafePipError, State, UnusableEnvironment

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_DIRECTORY = (errno.ENOTDIR, errno.EEXIST)


@contextmanager
def unpacking(directory: str) -> Iterator[None]:
    """Within, the error that the disk is full becomes a `CommitFailed`; other errors are raised unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise refusal(directory, error) from error
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
        return CommitFailed(f"there is not enough space in `{directory}`", state=State.UNCHANGED)
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


def descriptor_limit() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    most = os.sysconf("SC_OPEN_MAX")
    return sys.maxsize if most < 0 else most
