"""Whole files and whole trees below an open directory: written, linked, copied, deleted, synced.

`fcntl` is imported where it is used: Windows has none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

from safe_pip.fs.directory import NEW, Directory, remove, remove_directory, set_mode
from safe_pip.fs.watch import Changing

CLONE = 0x40049409  # ioctl_ficlone(2)
# The disk is at fault, not the link: a copy would fail as well.
_NOT_THE_LINK = {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
# What a filesystem answers that syncs no directories.
_NOTHING_TO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_CHUNK = 1 << 20
# A directory with a default access list gives these to everything that is made in it (acl(5)).
_INHERITED = ("system.posix_acl_access", "system.posix_acl_default")
_DEEP = 50


def write_new(directory: Directory, name: str, content: bytes, mode: int = 0o600) -> None:
    """Make the file `name` with this mode as far as the umask allows; raises `FileExistsError`.

    After a crash or an error the file may exist with a part of its content.
    """
    create(directory.join(name), directory.at(name), directory.fd, content, mode)


def create(path: str, where: str, parent: int | None, content: bytes, mode: int) -> None:
    """Make the new file `where`, relative to the descriptor `parent`; `path` is for tests that watch."""
    with Changing("create", path):
        fd = os.open(where, NEW, mode, dir_fd=parent)
    try:
        append(fd, path, content)
    finally:
        os.close(fd)


def append(fd: int, path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to the end of the open file `fd`; `path` is for tests that watch."""
    with Changing("write", os.fspath(path)):
        os.lseek(fd, 0, os.SEEK_END)
        write_all(fd, content)


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content` where the open file is."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def link(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Make `new_name` a hard link of a file or of a symbolic link itself; a copy where links are refused.

    Raises `FileExistsError` if the new name is taken. After a crash a part of a copy may exist.
    """
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
    """Make `new_name` a copy of a file or of a symbolic link itself.

    It has content, mode, times and, as far as that is allowed, owner, group and extended attributes. Where the
    filesystem can, both files share their blocks until one is changed. Raises `FileExistsError` if the new name is
    taken. After a crash a part of a copy may exist.
    """
    path, status = destination.join(new_name), source.stat(name)
    if stat.S_ISLNK(status.st_mode):
        with Changing("copy", path, source.join(name)):
            os.symlink(os.readlink(source.at(name), dir_fd=source.fd), destination.at(new_name), dir_fd=destination.fd)
            _copy_status_of_link(status, destination, new_name)
        return
    old = source.open_file(name)
    try:
        with Changing("copy", path, source.join(name)):
            new = os.open(destination.at(new_name), NEW, 0o600, dir_fd=destination.fd)
        try:
            with Changing("write", path):
                _copy_content(old, new)
                copy_status(old, new)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(destination, new_name)
            raise
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy_content(old: int, new: int) -> None:
    """Copy the content of a file. Holes stay holes where the filesystem tells where they are."""
    size = os.fstat(old).st_size
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # another filesystem, or one that cannot
            fcntl.ioctl(new, CLONE, old)
            return
    at = 0
    while (data := _next_data(old, at)) is not None:
        start, end = data
        os.lseek(old, start, os.SEEK_SET)
        os.lseek(new, start, os.SEEK_SET)
        at = start + _copy_range(old, new, end - start)
        if at < end:
            break  # it has become shorter
    if at < size:
        os.ftruncate(new, size)


def _next_data(fd: int, at: int) -> tuple[int, int] | None:
    """The next stretch of data in a file, None at its end; an endless one where the filesystem knows of no holes."""
    if sys.platform != "win32":
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            return start, os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
    return (0, sys.maxsize) if at == 0 else None


def _copy_range(old: int, new: int, count: int) -> int:
    """Copy `count` bytes, or up to the end, from where both files are; on return how many were copied."""
    done = 0
    while done < count:
        length, moved = min(_CHUNK, count - done), 0
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # two filesystems, or one that cannot
                moved = os.copy_file_range(old, new, length)
        if not moved:  # some files of the kernel's own have content and say that they have none
            chunk = os.read(old, length)
            write_all(new, chunk)
            moved = len(chunk)
        if not moved:
            break
        done += moved
    return done


def _copy_status_of_link(status: os.stat_result, directory: Directory, name: str) -> None:
    if sys.platform == "win32":
        return
    for owner, group in ((status.st_uid, -1), (-1, status.st_gid)):
        with contextlib.suppress(OSError):
            os.chown(name, owner, group, dir_fd=directory.fd, follow_symlinks=False)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory.fd, follow_symlinks=False)


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
    """Remove `name` and, if it is a directory, all below it, through no symbolic link; if there is nothing, nothing.

    Directories of this user are made writable first. What is on another filesystem stays. The deletion goes on after an
    error, and raises the first one at the end.
    """
    errors: list[OSError] = []
    with _noting(errors):
        if not stat.S_ISDIR(directory.stat(name).st_mode):
            remove(directory, name)
        else:
            with _enter(directory, name) as top:
                _Emptying(top, errors).run()
            remove_directory(directory, name)
    if errors:
        raise errors[0]


class _Emptying:
    """The deletion of all that is in the directory `top`.

    Directories that lie too deep are first moved up into it: a tree of any depth would exhaust the open files and the
    stack of the interpreter.
    """

    def __init__(self, top: Directory, errors: list[OSError]) -> None:
        self._top = top
        self._errors = errors
        self._tried: set[str] = set()
        self._lifted = 0

    def run(self) -> None:
        while entries := [entry for entry in self._top.entries() if entry.name not in self._tried]:
            self._tried.update(entry.name for entry in entries)
            self._remove(self._top, entries, _DEEP)

    def _remove(self, directory: Directory, entries: list[os.DirEntry[str]], levels: int) -> None:
        for entry in entries:
            with _noting(self._errors):
                if not entry.is_dir(follow_symlinks=False):
                    remove(directory, entry.name)
                    continue
                with _enter(directory, entry.name) as below:
                    if levels > 0:
                        self._remove(below, below.entries(), levels - 1)
                if levels > 0:
                    remove_directory(directory, entry.name)
                else:
                    self._lift(directory, entry.name)

    def _lift(self, directory: Directory, name: str) -> None:
        """Rename a directory into `top`, to a name that was not there before."""
        while (new_name := f"deep-{self._lifted}") in self._tried or self._top.exists(new_name):
            self._lifted += 1
        with Changing("move", self._top.join(new_name), directory.join(name)):
            os.rename(directory.at(name), self._top.at(new_name), src_dir_fd=directory.fd, dst_dir_fd=self._top.fd)


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
        with Changing("sync", directory.join(name)):
            fd = directory.open_file(name)
            try:
                _sync(fd)
            finally:
                os.close(fd)


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
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # there fsync(2) stops at the drive's cache
        else:
            os.fsync(fd)
    except OSError as error:
        if not (error.errno in _NOTHING_TO_SYNC and stat.S_ISDIR(os.fstat(fd).st_mode)):
            raise
