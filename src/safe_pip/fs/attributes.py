"""What a file or directory has beside its content: times, and who may do what with it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from safe_pip.fs.directory import Directory
from safe_pip.fs.files import _copy_status
from safe_pip.fs.watch import Changing

_DEFAULT_ACL = "system.posix_acl_default"


def set_time(directory: Directory, name: str, mtime_ns: int) -> None:
    """Give a file this time of modification, in nanoseconds."""
    with Changing("set_time", directory.join(name)):
        if directory.fd is None:
            os.utime(directory.at(name), ns=(mtime_ns, mtime_ns))
        else:
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory.fd, follow_symlinks=False)


def patch(directory: Directory, name: str, offset: int, content: bytes) -> None:
    """Write `content` into a file at `offset`, in place: only for what nobody else reads yet."""
    path = directory.join(name)
    with Changing("write", path):
        flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(directory.at(name), flags, dir_fd=directory.fd)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            os.write(fd, content)
        finally:
            os.close(fd)


def pass_on(like: str, directory: Directory, name: str, mode: int) -> None:
    """Have what is made in the directory `name` get what it would get in the directory at `like`, where that can be.

    That is: the group and the set-group-ID bit, or none (inode(7)), and the default access list, or none (acl(5)).
    Else it has `mode`.
    """
    if sys.platform == "win32":
        return
    status = os.stat(like)
    with Changing("set_mode", directory.join(name)):
        fd = directory.open_file(name)
        try:
            if os.fstat(fd).st_gid != status.st_gid:
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, -1, status.st_gid)
            inherits = os.fstat(fd).st_gid == status.st_gid
            os.fchmod(fd, mode | (status.st_mode & stat.S_ISGID if inherits else 0))
            if sys.platform == "linux":
                _set_default_acl(fd, _default_acl(like))
        finally:
            os.close(fd)


def handed_on(path: str) -> tuple[int, bytes | None]:
    """What a directory hands on to what is made in it: its group, or -1, and its default access list, or None."""
    if sys.platform == "win32":
        return -1, None
    status = os.stat(path)
    group = status.st_gid if status.st_mode & stat.S_ISGID else -1
    if sys.platform == "linux":
        return group, _default_acl(path)
    return group, None


def copy_status(source: Directory, name: str, directory: Directory, new_name: str) -> None:
    """Give a file the mode, times, extended attributes and, as far as allowed, owner and group of another."""
    old = source.open_file(name)
    try:
        new = directory.open_file(new_name)
        try:
            with Changing("set_mode", directory.join(new_name), source.join(name)):
                _copy_status(old, new)
        finally:
            os.close(new)
    finally:
        os.close(old)


if sys.platform == "linux":
    # No such list, or a filesystem that has none.
    _NONE = {errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP}

    def _default_acl(where: str | int) -> bytes | None:
        try:
            return os.getxattr(where, _DEFAULT_ACL)
        except OSError as error:
            if error.errno not in _NONE:
                raise
            return None

    def _set_default_acl(fd: int, wanted: bytes | None) -> None:
        if wanted == _default_acl(fd):
            return
        # Of another filesystem, it may have none to give: then what is made there goes by the umask.
        with contextlib.suppress(OSError):
            if wanted is None:
                os.removexattr(fd, _DEFAULT_ACL)
            else:
                os.setxattr(fd, _DEFAULT_ACL, wanted)
