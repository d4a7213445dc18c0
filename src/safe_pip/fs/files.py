"""Whole files and whole trees below an open directory: written, linked, copied, deleted, synced."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

from safe_pip.fs.directory import NEW, Directory, remove, remove_directory, set_mode
from safe_pip.fs.watch import Changing

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

# The disk is at fault, not the link: a copy would fail as well.
_NOT_THE_LINK = {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
# What a filesystem answers that syncs no directories.
_NOTHING_TO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_BLOCK = 1 << 12
# A directory with a default access list gives these to everything that is made in it (acl(5)).
_INHERITED = ("system.posix_acl_access", "system.posix_acl_default")
_DEEP = 50


def write_new(directory: Directory, name: str, content: bytes, mode: int = 0o600) -> None:
    """Make the file `name`, its mode as the umask allows, or `FileExistsError`; after a crash a part may exist."""
    with Changing("create", directory.join(name)):
        fd = os.open(directory.at(name), NEW, mode, dir_fd=directory.fd)
    try:
        append(fd, directory.join(name), content)
    finally:
        os.close(fd)


def append(fd: int, path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to the end of the open file `fd`; `path` is for tests that watch."""
    with Changing("write", path):
        os.lseek(fd, 0, os.SEEK_END)
        write_all(fd, content)


def write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def link(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Make a hard link of a file or a link itself, or a `copy` where links are refused; or `FileExistsError`."""
    fds = {} if sys.platform == "win32" else {"src_dir_fd": source.fd, "dst_dir_fd": destination.fd}
    try:
        with Changing("link", destination.join(new_name), source.join(name)):
            os.link(source.at(name), destination.at(new_name), follow_symlinks=sys.platform == "win32", **fds)
    except OSError as error:
        kind = stat.S_IFMT(source.stat(name).st_mode)
        if error.errno in _NOT_THE_LINK or kind not in (stat.S_IFREG, stat.S_IFLNK):
            raise
        copy(source, name, destination, new_name)


def copy(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Make a copy of a file or a link itself, with its status, or `FileExistsError`; a crash may leave a part of it."""
    path, status = destination.join(new_name), source.stat(name)
    if stat.S_ISLNK(status.st_mode):
        with Changing("copy", path, source.join(name)):
            os.symlink(os.readlink(source.at(name), dir_fd=source.fd), destination.at(new_name), dir_fd=destination.fd)
            if sys.platform != "win32":
                for owner, group in ((status.st_uid, -1), (-1, status.st_gid)):
                    with contextlib.suppress(OSError):
                        os.chown(new_name, owner, group, dir_fd=destination.fd, follow_symlinks=False)
                times = (status.st_atime_ns, status.st_mtime_ns)
                os.utime(new_name, ns=times, dir_fd=destination.fd, follow_symlinks=False)
        return
    with source.opened(name) as old:
        with Changing("copy", path, source.join(name)):
            new = os.open(destination.at(new_name), NEW, 0o600, dir_fd=destination.fd)
        try:
            with Changing("write", path):
                if not share_blocks(old, new):
                    _copy_data(old, new)
                copy_status(old, new)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(destination, new_name)
            raise
        finally:
            os.close(new)


def _copy_data(old: int, new: int) -> None:
    """Copy the content of a file; a block of zeros becomes a hole, as it may be one."""
    while block := os.read(old, _BLOCK):
        if block == bytes(len(block)):
            os.lseek(new, len(block), os.SEEK_CUR)
        else:
            write_all(new, block)
    os.ftruncate(new, os.lseek(new, 0, os.SEEK_CUR))


def share_blocks(old: int, new: int) -> bool:
    """Let the new file share the blocks of the old one; False where that is refused (ioctl_ficlone(2))."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # another filesystem, or one that cannot; a full disk refuses a copy too
            fcntl.ioctl(new, 0x40049409, old)
            return True
    return False


def copy_status(old: int, new: int) -> None:
    """Give an open file the mode, times, extended attributes and, as far as allowed, owner and group of another."""
    status = os.fstat(old)
    if sys.platform == "win32":
        return
    for owner, group in ((status.st_uid, -1), (-1, status.st_gid)):
        with contextlib.suppress(OSError):
            os.fchown(new, owner, group)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            kept = os.listxattr(old)
            for attribute in {*os.listxattr(new)}.intersection(_INHERITED).difference(kept):
                os.removexattr(new, attribute)
            for attribute in kept:
                with contextlib.suppress(OSError):
                    os.setxattr(new, attribute, os.getxattr(old, attribute))
    mode, given = stat.S_IMODE(status.st_mode), os.fstat(new)
    # A file of another owner or group must not run as that owner or group.
    if given.st_uid != status.st_uid:
        mode &= ~stat.S_ISUID
    if given.st_gid != status.st_gid:
        mode &= ~stat.S_ISGID
    os.fchmod(new, mode)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove_below(directory: Directory, name: str) -> None:
    """Remove `name`, if it exists, with all below it; no symbolic link is followed.

    Directories of this user are made writable first. What is on another filesystem stays. The deletion goes on after an
    error, and raises the first one at the end.
    """
    errors: list[OSError] = []
    with _noting(errors):
        if not stat.S_ISDIR(directory.stat(name).st_mode):
            remove(directory, name)
        else:
            with _enter(directory, name) as top:
                tried: set[str] = set()
                while True:
                    entries = [entry for entry in top.entries() if entry.name not in tried]
                    tried.update(entry.name for entry in entries)
                    _remove_entries(top, entries, top, _DEEP, errors)
                    try:
                        remove_directory(directory, name)
                        break
                    except OSError as error:
                        if not entries or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                            raise
    if errors:
        raise errors[0]


def _remove_entries(
    directory: Directory, entries: list[os.DirEntry[str]], top: Directory, levels: int, errors: list[OSError]
) -> None:
    """Remove entries of a directory; what lies too deep for stack or open files is only moved up into `top`."""
    if levels < 0:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for entry in entries:
        with _noting(errors):
            if not entry.is_dir(follow_symlinks=False):
                remove(directory, entry.name)
                continue
            try:
                with _enter(directory, entry.name) as below:
                    _remove_entries(below, below.entries(), top, levels - 1, errors)
                remove_directory(directory, entry.name)
            except OSError as error:
                if directory is top or error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                new = f"deep-{os.urandom(8).hex()}"
                with Changing("move", top.join(new), directory.join(entry.name)):
                    os.rename(directory.at(entry.name), top.at(new), src_dir_fd=directory.fd, dst_dir_fd=top.fd)


@contextlib.contextmanager
def _noting(errors: list[OSError]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(error)


def _enter(directory: Directory, name: str) -> Directory:
    if sys.platform != "win32":
        status = directory.stat(name)
        if status.st_mode & 0o700 != 0o700 and status.st_uid == os.geteuid():
            set_mode(directory, name, stat.S_IMODE(status.st_mode) | 0o700)
    below = directory.child(name)
    if below.identity[0] != directory.identity[0]:
        below.close()
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), below.path)
    return below


def sync(directory: Directory, name: str = "") -> None:
    """On return the disk holds the file or directory `name`, or `directory` itself (fsync(2)). Links are left out."""
    if not name:
        with Changing("sync", directory.path):
            if directory.fd is not None:
                _sync(directory.fd)
        return
    mode = directory.stat(name).st_mode
    if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and sys.platform != "win32"):
        with Changing("sync", directory.join(name)), directory.opened(name) as fd:
            _sync(fd)


def sync_tree(directory: Directory) -> None:
    """On return the disk holds all files and directories below `directory` and itself; no link is followed."""
    for entry in directory.entries():
        if entry.is_dir(follow_symlinks=False):
            with directory.child(entry.name) as below:
                sync_tree(below)
        else:
            sync(directory, entry.name)
    sync(directory)


def _sync(fd: int) -> None:
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # there fsync(2) stops at the drive's cache
        else:
            os.fsync(fd)
    except OSError as error:
        if not (error.errno in _NOTHING_TO_SYNC and stat.S_ISDIR(os.fstat(fd).st_mode)):
            raise
