"""An open directory, and the changes to what is directly in it.

Everything is relative to a descriptor (openat(2)): another process may exchange a path for another one or for a link,
and changes still go to the directory that was opened. Windows has no such descriptors: there it is the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

from safe_pip.fs import proc
from safe_pip.fs.watch import Changing

_SEPARATORS = ("/", "\\", ":") if sys.platform == "win32" else ("/",)

own: set[str] = set()
"""Parts of paths that this process has made up: what has one in its path is as this process left it, on all hosts."""
fresh: set[str] = set()
"""Directories that this process has listed since it has the locks that keep other hosts from changing them."""


class Directory:
    """A directory held open; its `path` is where it was then. To open a link or a file raises `NotADirectoryError`."""

    __slots__ = ("_identity", "_is_listed", "fd", "path")

    def __init__(self, path: str, fd: int | None) -> None:
        self.path, self.fd = path, fd
        self._identity: tuple[int, int] | None = None
        self._is_listed = False

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode, asked for when they are needed: most directories are opened for one change."""
        if self._identity is None:
            status = self.status()
            self._identity = status.st_dev, status.st_ino
        return self._identity

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Directory:
        """Open the directory at the absolute `path`; its last component must not be a symbolic link."""
        path = os.fspath(path)  # with a slash or a dot at the end, the kernel would follow a link
        if not os.path.isabs(path) or os.path.basename(path.rstrip("/")) in (".", ".."):
            raise ValueError(f"not the absolute path of a directory: {path!r}")
        path = os.path.normpath(path) if sys.platform == "win32" else path.rstrip("/") or "/"
        return cls(path, _open(path, None, path))

    def child(self, name: str) -> Directory:
        """Open the directory `name`, or `a/b/c` below this one, without passing through any symbolic link."""
        parts, path, fd = name.split("/"), self.path, self.fd
        for part in parts:
            self.at(part)
        if fd is not None and len(parts) > 1 and sys.platform == "linux":
            # One call, if the kernel says that no link was on the way: each call may have to ask a file server.
            with contextlib.suppress(OSError):
                found = Directory(os.path.join(path, name), _open(name, fd, name))
                if proc.link(f"self/fd/{found.fd}") == found.path:
                    return found
                found.close()
        for part in parts:
            path = os.path.join(path, part)
            try:
                below = _open(path if fd is None else part, fd, path)
            finally:
                if fd is not None and fd != self.fd:
                    os.close(fd)
            fd = below
        return Directory(path, fd)

    def again(self) -> Directory:
        """This directory once more, wherever it is now."""
        return Directory(self.path, None if self.fd is None else os.dup(self.fd))

    def status(self) -> os.stat_result:
        return os.stat(self.path if self.fd is None else self.fd)

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def at(self, name: str) -> str:
        """What a system call gets together with `fd`; raises `ValueError` if `name` is not a single name."""
        if name in ("", ".", "..") or "\0" in name or any(separator in name for separator in _SEPARATORS):
            raise ValueError(f"not a name: {name!r}")
        return name if self.fd is not None else self.join(name)

    def stat(self, name: str) -> os.stat_result:
        """The status of the entry itself (lstat(2)); raises `FileNotFoundError` if there is none."""
        if not (self._is_listed or self.path in fresh or any(part in self.join(name) for part in own)):
            self._is_listed = True
            if proc.is_shared_device(self.identity[0], self.path):
                refresh(self.path, self.fd)
        return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return bool(self.stat(name))
        return False

    def names(self) -> list[str]:
        return [entry.name for entry in self.entries()]

    def entries(self) -> list[os.DirEntry[str]]:
        """All entries, in no order. Ask `is_dir` and `stat` only with `follow_symlinks=False`, and never `path`."""
        try:
            with os.scandir(self.path if self.fd is None else self.fd) as entries:
                return list(entries)
        except OSError as error:
            # EBADF: this user may pass through the directory and may not read it.
            number = errno.EACCES if error.errno == errno.EBADF else error.errno
            raise OSError(number, os.strerror(number or 0), self.path) from None

    def read(self, name: str) -> bytes:
        """The content of the regular file `name`; raises `OSError` (ELOOP) for a symbolic link."""
        with self.opened(name) as fd, open(fd, "rb", closefd=False) as file:
            return file.read()

    def open_file(self, name: str, flags: int | None = None) -> int:
        """A descriptor of the regular file or the directory `name`, to read; no link is followed."""
        fd = os.open(self.at(name), READ if flags is None else flags, dir_fd=self.fd)
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            os.close(fd)
            raise OSError(errno.EINVAL, "Neither a file nor a directory", self.join(name))
        return fd

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Within, the regular file or the directory `name` is open to read; no link is followed."""
        fd = self.open_file(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def refresh(path: str, fd: int | None = None) -> None:
    """Have this host learn of changes that other hosts made in a directory, which `fd` may have open.

    What stat(2) says of a name there may be seconds old. A listing through a new descriptor asks the server.
    """
    with contextlib.suppress(OSError):
        fresh_names(path, fd)


def fresh_names(path: str, fd: int | None = None) -> list[str]:
    """What is in a directory, which `fd` may have open, listed through a new descriptor; raises `OSError`."""
    if sys.platform == "win32":
        return os.listdir(path)
    again = os.open(path if fd is None else ".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return os.listdir(again)
    finally:
        os.close(again)


if sys.platform == "win32":
    READ = os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT
    NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT

    def _open(name: str, parent: int | None, path: str) -> int | None:
        if not stat.S_ISDIR(os.lstat(name).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return None
else:
    # NONBLOCK: opening a FIFO that another user put there would wait for ever.
    READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

    def _open(name: str, parent: int | None, path: str) -> int | None:
        flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                return os.open(name, flags | os.O_RDONLY, dir_fd=parent)
            except PermissionError:
                # A user may pass through a directory without the permission to list it.
                return os.open(name, flags | getattr(os, "O_PATH", 0), dir_fd=parent)
        except OSError as error:
            # For a link, kernels differ: some answer for NOFOLLOW, some for DIRECTORY.
            number = errno.ENOTDIR if error.errno in (errno.ELOOP, errno.EMLINK) else error.errno
            raise OSError(number, os.strerror(number or 0), path) from None


def remove(directory: Directory, name: str) -> bool:
    """Remove a file or a symbolic link; False if there is none."""
    with Changing("remove", directory.join(name)), contextlib.suppress(FileNotFoundError):
        os.unlink(directory.at(name), dir_fd=directory.fd)
        return True
    return False


def remove_directory(directory: Directory, name: str) -> None:
    """Remove an empty directory, if it exists; raises `OSError` if it is not empty."""
    with Changing("remove_directory", directory.join(name)), contextlib.suppress(FileNotFoundError):
        os.rmdir(directory.at(name), dir_fd=directory.fd)


def make_directory(directory: Directory, name: str, mode: int = 0o777) -> None:
    """Make a directory with this mode as far as the umask allows; raises `FileExistsError`."""
    with Changing("make_directory", directory.join(name)):
        os.mkdir(directory.at(name), mode, dir_fd=directory.fd)


def set_mode(directory: Directory, name: str, mode: int) -> None:
    """Give a file or directory these permissions, whatever the umask; raises `OSError` (ELOOP) for a symbolic link."""
    where = directory.at(name)
    with Changing("set_mode", directory.join(name)):
        found = directory.stat(name).st_mode
        if stat.S_ISLNK(found):  # O_NOFOLLOW
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if stat.S_IMODE(found) == mode:
            return
        if sys.platform != "linux":
            os.chmod(where, mode, dir_fd=directory.fd, follow_symlinks=sys.platform == "win32")
            return
        try:
            with directory.opened(name) as fd:
                os.fchmod(fd, mode)
        except PermissionError:
            # Not readable: fchmodat(2) can be told to follow no link only since Linux 6.6.
            fd = os.open(where, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
            try:
                os.chmod(f"/proc/self/fd/{fd}", mode)  # a link has none: ENOTSUP
            finally:
                os.close(fd)


def set_owner(directory: Directory, name: str, owner: int, group: int) -> None:
    """Give a file, a directory or a link itself to this owner and group; only root may."""
    if sys.platform != "win32":
        with Changing("set_owner", directory.join(name)):
            os.chown(directory.at(name), owner, group, dir_fd=directory.fd, follow_symlinks=False)
