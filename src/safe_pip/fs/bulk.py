"""Thousands of files at once, with few system calls each, for the store: copied and checked as a listing says.

Paths are relative to open directories in which no other user can exchange a directory for a symbolic link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from safe_pip.fs import watch
from safe_pip.fs.directory import NEW, READ, Directory
from safe_pip.fs.files import share_blocks, write_all
from safe_pip.fs.watch import Changing

_CHUNK, _SMALL = 1 << 20, 1 << 18
# PEP 552: magic number, flags, then, if no flag is set, the time of the source; 32 bits each.
_FLAGS, _TIME = slice(4, 8), 8

# What a listing says of a file beside its content. Numbers, because they are asked for thousands of times.
EXECUTABLE = 1
SOURCE = 2  # a module's source, whose bytecode, if there is some, tells its time
COMPILED = 4  # its bytecode is in the listing
BYTECODE = 8

Listed = Sequence[Any]
"""One file of a listing: relative path, size, SHA-256 digest in hexadecimal, kind."""


class Damaged(Exception):
    """A file is not what its listing says."""


def make_parents(directory: Directory, paths: Iterable[str]) -> None:
    """Make the missing directories that files of these relative paths lie in."""
    missing = {path.rpartition("/")[0] for path in paths}
    for parent in list(missing):
        while (parent := parent.rpartition("/")[0]) and parent not in missing:
            missing.add(parent)
    missing.discard("")
    observer = watch.observer
    for parent in sorted(missing):  # a directory comes after the one that it lies in
        if observer is not None:
            observer("make_directory", directory.join(parent), "")
        with suppress(FileExistsError):
            os.mkdir(parent, dir_fd=directory.fd)


def write_file(directory: Directory, path: str, chunks: Iterable[bytes], kind: int) -> tuple[int, str]:
    """Make the new file `path` like an installer; on return its size and digest. Raises `FileExistsError`."""
    with Changing("create", os.path.join(directory.path, path)):
        fd = os.open(path, NEW, 0o666, dir_fd=directory.fd)
        try:
            digest, size = hashlib.sha256(), 0
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                write_all(fd, chunk)
            if kind & EXECUTABLE:
                _set_executable(fd)
        finally:
            os.close(fd)
    return size, digest.hexdigest()


def copy_files(source: Directory, destination: Directory, files: Iterable[Listed], *, clones: bool) -> None:
    """Copy the listed files; what lies in their place is removed.

    With `clones` they share blocks with the old ones where the filesystem can. They get the modes of the umask and the
    present time, which is also written into bytecode. Raises `Damaged` at the first file that is not as listed,
    `OSError` if one cannot be written. Some files exist then, the last one perhaps in part.
    """
    # A loop for thousands of small files: what not every file needs is not done for every file.
    read_from, write_to = source.fd, destination.fd
    open_, write, close, sha256 = os.open, os.write, os.close, hashlib.sha256
    observer = watch.observer
    now = time.time_ns()
    stamp = (now // 1_000_000_000 & 0xFFFF_FFFF).to_bytes(4, "little")
    for path, size, digest, kind in files:
        if observer is not None:
            observer("copy", destination.join(path), source.join(path))
        try:
            old = open_(path, READ, dir_fd=read_from)
        except OSError:
            raise Damaged(path) from None
        try:
            content = None
            if size < _SMALL and not clones:
                content = _read(old, path, size + 1)
                if len(content) != size or sha256(content).hexdigest() != digest:
                    raise Damaged(path)
                if kind & BYTECODE and content[_FLAGS] == bytes(4):
                    content = content[:_TIME] + stamp + content[_TIME + 4 :]
            try:
                try:
                    new = open_(path, NEW, 0o666, dir_fd=write_to)
                except FileExistsError:
                    os.unlink(path, dir_fd=write_to)
                    new = open_(path, NEW, 0o666, dir_fd=write_to)
                try:
                    if content is None:
                        clones = _copy(old, new, path, size, digest, clones)
                        if sys.platform != "win32" and kind & BYTECODE and os.pread(old, 8, 0)[_FLAGS] == bytes(4):
                            os.pwrite(new, stamp, _TIME)
                    elif size and write(new, content) != size:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    if kind & EXECUTABLE:
                        _set_executable(new)
                    if kind & SOURCE:
                        os.utime(new, ns=(now, now))
                finally:
                    close(new)
            except OSError as error:
                error.filename = destination.join(path)
                raise
        finally:
            close(old)


def _read(fd: int, path: str, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except OSError:
        raise Damaged(path) from None


def _copy(old: int, new: int, path: str, size: int, digest: str, clones: bool) -> bool:
    """Clone a file, or copy it where that is refused. On return whether the filesystem can clone."""
    is_cloned = clones and size > 0 and share_blocks(old, new)
    state, length = hashlib.sha256(), 0
    while chunk := _read(old, path, _CHUNK):
        length += len(chunk)
        if length > size:
            break
        state.update(chunk)
        if not is_cloned:
            write_all(new, chunk)
    if length != size or state.hexdigest() != digest:
        raise Damaged(path)
    return clones and (is_cloned or size == 0)


def _set_executable(fd: int) -> None:
    if sys.platform != "win32":
        mask = os.umask(0)  # umask(2); another thread may meet none for a moment
        os.umask(mask)
        os.fchmod(fd, 0o777 & ~mask | 0o111)
