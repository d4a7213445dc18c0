"""What a file or directory has beside its content: times, and access for users and groups."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from safe_pip.fs import files
from safe_pip.fs.directory import Directory
from safe_pip.fs.watch import Changing

_DEFAULT_ACL = "system.posix_acl_default"


def set_time(directory: Directory, name: str, mtime_ns: int) -> None:
    """Give a file this time of modification, in nanoseconds."""
    with Changing("set_time", directory.join(name)):
        follows = directory.fd is None  # Windows cannot do without
        os.utime(directory.at(name), ns=(mtime_ns, mtime_ns), dir_fd=directory.fd, follow_symlinks=follows)


def patch(directory: Directory, name: str, offset: int, content: bytes) -> None:
    """Write `content` into a file at `offset`, in place: only for a file that no other process reads yet."""
    with Changing("write", directory.join(name)):
        flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(directory.at(name), flags, dir_fd=directory.fd)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            os.write(fd, content)
        finally:
            os.close(fd)


def pass_on(like: str, directory: Directory, name: str, mode: int) -> None:
    """Let files that are made in the directory `name`, which gets `mode`, have the access that `like` gives them.

    That is group and set-group-ID bit (inode(7)), and default access list (acl(5)), or none, as far as that is allowed.
    """
    if sys.platform == "win32":
        return
    status = os.stat(like)
    with Changing("set_mode", directory.join(name)), directory.opened(name) as fd:
        if os.fstat(fd).st_gid != status.st_gid:
            with contextlib.suppress(PermissionError):
                os.fchown(fd, -1, status.st_gid)
        inherits = os.fstat(fd).st_gid == status.st_gid
        os.fchmod(fd, mode | (status.st_mode & stat.S_ISGID if inherits else 0))
        _set_default_acl(fd, _default_acl(like))


def handed_on(path: str) -> tuple[int, bytes | None]:
    """What a directory gives to all that is made in it: its group, or -1, and its default access list, or None."""
    if sys.platform == "win32":
        return -1, None
    status = os.stat(path)
    return status.st_gid if status.st_mode & stat.S_ISGID else -1, _default_acl(path)


def copy_status(source: Directory, name: str, directory: Directory, new_name: str) -> None:
    """Give a file the mode, times, extended attributes and, as far as allowed, owner and group of another."""
    changing = Changing("set_mode", directory.join(new_name), source.join(name))
    with source.opened(name) as old, directory.opened(new_name) as new, changing:
        files.copy_status(old, new)


def _default_acl(where: str | int) -> bytes | None:
    if sys.platform == "linux":
        try:
            return os.getxattr(where, _DEFAULT_ACL)
        except OSError as error:
            # There is no such list, or the filesystem has none.
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
    return None


def _set_default_acl(fd: int, wanted: bytes | None) -> None:
    if sys.platform == "linux" and wanted != _default_acl(fd):
        # A filesystem without access lists refuses. New files there get the mode of the umask.
        with contextlib.suppress(OSError):
            if wanted is None:
                os.removexattr(fd, _DEFAULT_ACL)
            else:
                os.setxattr(fd, _DEFAULT_ACL, wanted)
