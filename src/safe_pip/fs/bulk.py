"""Thousands of files at once, each a few system calls: what is listed is copied, and is what the listing says.

Paths are relative to two open directories whose trees belong to this user alone: nobody exchanges a directory in them
for a symbolic link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

from safe_pip.fs import watch
from safe_pip.fs.attributes import handed_on
from safe_pip.fs.directory import Directory
from safe_pip.fs.watch import Changing

_CHUNK = 1 << 20
_SMALL = 1 << 18
_CLONE = 0x40049409  # ioctl_ficlone(2)

if sys.platform == "win32":
    _READ = os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT
    _NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
else:
    _READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    _NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


# What there is to know of a file beside its content; numbers, since they are asked for thousands of times.
EXECUTABLE = 1
SOURCE = 2
"""It is a module's source: it has the time of its listing."""
COMPILED = 4
"""Its bytecode is in the listing."""
BYTECODE = 8


class LinkMode(Enum):
    """How a file comes to be at another place: sharing blocks where that can be, always copied, or the same file."""

    CLONE = "clone"
    COPY = "copy"
    HARDLINK = "hardlink"


Listed = Sequence[Any]
"""Of one file: relative path, size, SHA-256 digest in hexadecimal, kind; as it comes out of a listing."""


class Damaged(Exception):
    """A file is not what its listing says."""


def make_parents(directory: Directory, paths: Iterable[str]) -> None:
    """Make the directories that files of these relative paths lie in, where they are missing."""
    missing = dict.fromkeys(path.rpartition("/")[0] for path in paths)
    for parent in list(missing):
        while parent := parent.rpartition("/")[0]:
            if parent in missing:
                break
            missing[parent] = None
    missing.pop("", None)
    observer = watch.observer
    for parent in sorted(missing):  # what a directory lies in comes before it
        if observer is not None:
            observer("make_directory", directory.join(parent), "")
        with suppress(FileExistsError):
            os.mkdir(_at(directory, parent), dir_fd=directory.fd)


def write_file(directory: Directory, path: str, chunks: Iterable[bytes], kind: int, second: int) -> tuple[int, str]:
    """Make the new file `path`, as an installer makes it; on return its size and digest. Raises `FileExistsError`."""
    with Changing("create", os.path.join(directory.path, path)):
        fd = os.open(_at(directory, path), _NEW, 0o666, dir_fd=directory.fd)
        try:
            digest, size = hashlib.sha256(), 0
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                _write(fd, chunk)
            _finish(fd, _at(directory, path), kind, second)
        finally:
            os.close(fd)
    return size, digest.hexdigest()


def digest_file(directory: Directory, path: str) -> tuple[int, str]:
    """Size and digest of a file."""
    fd = os.open(_at(directory, path), _READ, dir_fd=directory.fd)
    try:
        digest, size = hashlib.sha256(), 0
        while chunk := os.read(fd, _CHUNK):
            digest.update(chunk)
            size += len(chunk)
        return size, digest.hexdigest()
    finally:
        os.close(fd)


def copy_files(
    source: Directory, destination: Directory, files: Iterable[Listed], *, second: int, by: LinkMode
) -> None:
    """Copy what is listed; what is there already makes room.

    The new files have the modes that the umask gives, and sources the time `second`. Raises `Damaged` at the first one
    that is not as listed, `OSError` if one cannot be read or written; some are there then, the last one in part.
    """
    copying = _Copying(source, destination, second, by)
    # A loop for thousands of small files: what is not needed for each is not done for each.
    read_from, write_to = source.fd, destination.fd
    open_, read, write, close, sha256 = os.open, os.read, os.write, os.close, hashlib.sha256
    observer, plain = watch.observer, by is LinkMode.COPY or not copying.can_share
    for path, size, digest, kind in files:
        if not plain or size >= _SMALL or read_from is None:
            copying.one(path, size, digest, kind)
            plain = not copying.can_share
            continue
        if observer is not None:
            observer("copy", destination.join(path), source.join(path))
        try:
            old = open_(path, _READ, dir_fd=read_from)
            try:
                content = read(old, size + 1)
            finally:
                close(old)
        except OSError:
            raise Damaged(path) from None
        if len(content) != size or sha256(content).hexdigest() != digest:
            raise Damaged(path)
        try:
            try:
                new = open_(path, _NEW, 0o666, dir_fd=write_to)
            except FileExistsError:
                os.unlink(path, dir_fd=write_to)
                new = open_(path, _NEW, 0o666, dir_fd=write_to)
            try:
                if size and write(new, content) != size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if kind & (EXECUTABLE | SOURCE):
                    _finish(new, path, kind, second)
            finally:
                close(new)
        except OSError as error:
            error.filename = destination.join(path)
            raise


class _Copying:
    """One file at a time: what is large, and what may share its blocks or be the same file."""

    def __init__(self, source: Directory, destination: Directory, second: int, by: LinkMode) -> None:
        self._source = source
        self._destination = destination
        self._second = second
        self._by = by
        self.can_share = by is not LinkMode.COPY and source.fd is not None
        """Whether the filesystem may still do what is asked for."""
        if by is LinkMode.CLONE and sys.platform != "linux":
            self.can_share = False
        self._umask = umask()
        self._handed_on: dict[str, int | None] = {}

    def one(self, path: str, size: int, digest: str, kind: int) -> None:
        try:
            old = os.open(_at(self._source, path), _READ, dir_fd=self._source.fd)
        except OSError:
            raise Damaged(path) from None
        try:
            with Changing("copy", os.path.join(self._destination.path, path), os.path.join(self._source.path, path)):
                if self._by is LinkMode.HARDLINK and self.can_share and self._is_as_new(old, path, kind):
                    _read(old, path, size, digest)
                    if self._link(path):
                        return
                    os.lseek(old, 0, os.SEEK_SET)
                new = self._make(path)
                try:
                    if self._by is LinkMode.CLONE and self.can_share and size and self._clone(old, new):
                        _read(old, path, size, digest)
                    else:
                        _read(old, path, size, digest, lambda chunk: _write(new, chunk))
                    _finish(new, _at(self._destination, path), kind, self._second)
                finally:
                    os.close(new)
        finally:
            os.close(old)

    def _make(self, path: str) -> int:
        where = _at(self._destination, path)
        try:
            return os.open(where, _NEW, 0o666, dir_fd=self._destination.fd)
        except FileExistsError:
            os.unlink(where, dir_fd=self._destination.fd)
            return os.open(where, _NEW, 0o666, dir_fd=self._destination.fd)

    def _is_as_new(self, fd: int, path: str, kind: int) -> bool:
        """Whether an open file has what a new one at `path` would get: where it is linked, anybody may have changed it.

        That is its owner, group, mode and access list, and of a source the time.
        """
        if sys.platform == "win32":
            return True
        parent = path.rpartition("/")[0]
        if parent not in self._handed_on:
            self._handed_on[parent] = _handed_on(os.path.join(self._destination.path, parent))
        status = os.fstat(fd)
        mode = 0o777 & ~self._umask | 0o111 if kind & EXECUTABLE else 0o666 & ~self._umask
        return (
            (status.st_uid, status.st_gid) == (os.geteuid(), self._handed_on[parent])
            and stat.S_IMODE(status.st_mode) == mode
            and (not kind & SOURCE or status.st_mtime_ns == self._second * 1_000_000_000)
            and not _is_marked(fd)
        )

    def _link(self, path: str) -> bool:
        try:
            for _ in range(2):
                try:
                    os.link(path, path, src_dir_fd=self._source.fd, dst_dir_fd=self._destination.fd)
                except FileExistsError:
                    os.unlink(path, dir_fd=self._destination.fd)
                else:
                    return True
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT):
                raise
            # Of one file: it has as many links as there can be. Of others not.
            self.can_share = error.errno == errno.EMLINK
        return False

    def _clone(self, old: int, new: int) -> bool:
        if sys.platform == "linux":
            import fcntl

            try:
                fcntl.ioctl(new, _CLONE, old)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                self.can_share = False
            else:
                return True
        return False


def _read(fd: int, path: str, size: int, digest: str, take: Callable[[bytes], None] | None = None) -> None:
    state, length = hashlib.sha256(), 0
    while chunk := _chunk(fd, path):
        length += len(chunk)
        if length > size:
            break
        state.update(chunk)
        if take is not None:
            take(chunk)
    if length != size or state.hexdigest() != digest:
        raise Damaged(path)


def _chunk(fd: int, path: str) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        raise Damaged(path) from None


def _handed_on(directory: str) -> int | None:
    """The group of a new file in a directory (open(2), "O_CREAT"); None if it gets an access list too (acl(5))."""
    group, acl = handed_on(directory)
    if acl is not None:
        return None
    if group != -1 or sys.platform == "win32":
        return group
    return os.getegid() if sys.platform == "linux" else os.stat(directory).st_gid


def _is_marked(fd: int) -> bool:
    """Whether a file has attributes that were given to it; a label of a security module each file has (xattr(7))."""
    if sys.platform == "linux":
        try:
            names = os.listxattr(fd)
        except OSError:
            return False
        return any(not name.startswith("security.") or name == "security.capability" for name in names)
    return False


def _finish(fd: int, where: str, kind: int, second: int) -> None:
    """Give a file that was just made the mode and the time that it is to have."""
    if kind & EXECUTABLE and sys.platform != "win32":
        os.fchmod(fd, 0o777 & ~umask() | 0o111)
    if kind & SOURCE:
        time = second * 1_000_000_000
        os.utime(fd if os.utime in os.supports_fd else where, ns=(time, time))


def umask() -> int:
    """The one of this process (umask(2)); another thread may meet none for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _at(directory: Directory, path: str) -> str:
    return path if directory.fd is not None else os.path.join(directory.path, path)
