"""What a file or directory has beside its content: times, and access for users and groups."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from pathlib import Path

from safe_pip.fs import files
from safe_pip.fs.directory import READ, Directory, set_mode, set_owner
from safe_pip.fs.watch import Changing

ACL, _DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
# The kernel's form of a list (acl(5)): a version, then tag, permissions and id of each entry.
_USER, _GROUP, _MASK, _WRITE = 0x02, 0x08, 0x10, 2


def set_time(directory: Directory, name: str, mtime_ns: int) -> None:
    with Changing("set_time", directory.join(name)):
        follows = directory.fd is None  # Windows cannot do without
        os.utime(directory.at(name), ns=(mtime_ns, mtime_ns), dir_fd=directory.fd, follow_symlinks=follows)


def date_bytecode(directory: Directory, name: str, second: int) -> None:
    """Write the time of its source into a `.pyc` that goes by it, in place: no other process may read it yet."""
    with Changing("write", directory.join(name)):
        fd = directory.open_file(name, READ | os.O_RDWR)
        try:
            # PEP 552: magic number, flags, then, if no flag is set, the time and the size of the source; 32 bits each.
            header = os.read(fd, 16)
            if len(header) == 16 and header[4:8] == bytes(4):
                os.lseek(fd, 8, os.SEEK_SET)
                os.write(fd, (second & 0xFFFFFFFF).to_bytes(4, "little"))
        finally:
            os.close(fd)


def pass_on(like: str, directory: Directory, name: str, mode: int) -> None:
    """Let what is made in the directory `name`, which gets `mode`, have the group and the access list as in `like`."""
    if sys.platform == "win32":
        return
    status, found = os.stat(like), directory.stat(name)
    wanted, given = (_access_list(path, _DEFAULT_ACL) for path in (like, directory.join(name)))
    inherited = mode | (status.st_mode & stat.S_ISGID)
    if (found.st_gid, stat.S_IMODE(found.st_mode), given) == (status.st_gid, inherited, wanted):
        return
    with Changing("set_mode", directory.join(name)), directory.opened(name) as fd:
        if found.st_gid != status.st_gid:
            with contextlib.suppress(PermissionError):
                os.fchown(fd, -1, status.st_gid)
        os.fchmod(fd, inherited if os.fstat(fd).st_gid == status.st_gid else mode)
        if sys.platform == "linux" and wanted != given:
            with contextlib.suppress(OSError):  # the filesystem may have none: then the umask decides
                os.removexattr(fd, _DEFAULT_ACL) if wanted is None else os.setxattr(fd, _DEFAULT_ACL, wanted)


def set_access(
    directory: Directory, name: str, mode: int, *, group: int, owner: int | None = None, like: Directory | None = None
) -> None:
    """Give an entry this mode and group whatever the umask, the access list of `like`, and, where allowed, this owner.

    If this user may not give the group, the entry keeps its own, which then may do no more than all users.
    """
    if owner is not None:
        with contextlib.suppress(PermissionError):
            set_owner(directory, name, owner, -1)
    try:
        if directory.stat(name).st_gid != group:
            set_owner(directory, name, -1, group)
    except PermissionError:
        mode = mode & ~0o2070 | (mode & 0o007) << 3
    if sys.platform == "linux" and like is not None and like.fd is not None:
        with contextlib.suppress(OSError), directory.opened(name) as fd:  # the filesystem may have none
            found = os.getxattr(like.fd, ACL)
            with Changing("set_mode", directory.join(name)):
                os.setxattr(fd, ACL, found)
    set_mode(directory, name, mode)


def handed_on(path: str) -> tuple[int, bytes | None]:
    """What a directory gives to all that is made in it: its group, or -1, and its default access list, or None."""
    status = os.stat(path)
    return status.st_gid if status.st_mode & stat.S_ISGID else -1, _access_list(path, _DEFAULT_ACL)


def lets_write(path: str | Path, user: int) -> bool:
    """Whether an access list lets this user write, or any group beside the one that the mode is about."""
    entries = list(struct.iter_unpack("<HHI", (_access_list(path, ACL) or b"")[4:]))
    mask = next((allowed for tag, allowed, _ in entries if tag == _MASK), 0)
    return any(tag == _GROUP or (tag, who) == (_USER, user) for tag, may, who in entries if may & mask & _WRITE)


def copy_status(source: Directory, name: str, directory: Directory, new_name: str) -> None:
    """Give a file the mode, times, extended attributes and, as far as allowed, owner and group of another."""
    changing = Changing("set_mode", directory.join(new_name), source.join(name))
    with source.opened(name) as old, directory.opened(new_name) as new, changing:
        files.copy_status(old, new)


def _access_list(where: str | int | Path, name: str) -> bytes | None:
    if sys.platform == "linux":
        try:
            return os.getxattr(where, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):  # no such list, or a filesystem without
                raise
    return None
