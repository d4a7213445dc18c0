"""Whole files and whole trees below an open directory: written, linked, copied, deleted, synced."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

from safe_pip.fs.directory import Directory, remove, remove_directory, set_mode
from safe_pip.fs.watch import Changing

# The disk is at fault, not the link: a copy would fail as well.
_NOT_THE_LINK = {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
# What a filesystem answers that syncs no directories.
_NOTHING_TO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_CHUNK = 1 << 20
_CLONE = 0x40049409  # ioctl_ficlone(2)
# What a directory with a default access list gives to all that is made in it (acl(5)).
_INHERITED = ("system.posix_acl_access", "system.posix_acl_default")
_DEEP = 50


def write_new(directory: Directory, name: str, content: bytes, mode: int = 0o600) -> None:
    """Make the file `name`, with this mode as far as the umask allows; raises `FileExistsError` if there is one.

    After a crash, or an error, it may be there with a part of its content.
    """
    path = directory.join(name)
    with Changing("create", path):
        fd = os.open(directory.at(name), _NEW, mode, dir_fd=directory.fd)
    try:
        append(fd, path, content)
    finally:
        os.close(fd)


def append(fd: int, path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to the end of the file that is open as `fd`; `path` is for those who watch."""
    path = os.fspath(path)
    with Changing("write", path):
        os.lseek(fd, 0, os.SEEK_END)
        _write(fd, content)


def link(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Make `new_name` a hard link of a file or of a symbolic link itself; where links are refused, a copy.

    The copy has content, mode, times and, as far as that is allowed, owner, group and extended attributes. Raises
    `FileExistsError` if the new name is taken. After a crash there may be a part of a copy.
    """
    try:
        with Changing("link", destination.join(new_name), source.join(name)):
            if sys.platform == "win32":
                os.link(source.at(name), destination.at(new_name))
            else:
                os.link(
                    source.at(name),
                    destination.at(new_name),
                    src_dir_fd=source.fd,
                    dst_dir_fd=destination.fd,
                    follow_symlinks=False,
                )
    except OSError as error:
        if error.errno in _NOT_THE_LINK:
            raise
        status = source.stat(name)
        if stat.S_ISLNK(status.st_mode):
            _copy_link(status, source, name, destination, new_name)
        elif stat.S_ISREG(status.st_mode):
            _copy(source, name, destination, new_name)
        else:
            raise


def copy(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Make `new_name` a copy of a file or of a symbolic link itself, with all that `link` gives its copies.

    Where the filesystem can, both share their blocks until one is changed. Raises `FileExistsError` if the new name is
    taken. After a crash there may be a part of a copy.
    """
    status = source.stat(name)
    if stat.S_ISLNK(status.st_mode):
        _copy_link(status, source, name, destination, new_name)
    else:
        _copy(source, name, destination, new_name)


def _copy_link(status: os.stat_result, source: Directory, name: str, destination: Directory, new_name: str) -> None:
    with Changing("copy", destination.join(new_name), source.join(name)):
        text = os.readlink(source.at(name), dir_fd=source.fd)
        os.symlink(text, destination.at(new_name), dir_fd=destination.fd)
        _copy_status_of_link(status, destination, new_name)


def _copy(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    path = destination.join(new_name)
    old = source.open_file(name)
    try:
        with Changing("copy", path, source.join(name)):
            new = os.open(destination.at(new_name), _NEW, 0o600, dir_fd=destination.fd)
        try:
            with Changing("write", path):
                _copy_content(old, new)
                _copy_status(old, new)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(destination, new_name)
            raise
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy_content(old: int, new: int) -> None:
    """Copy all that is in a file; holes stay holes where they are told."""
    size = os.fstat(old).st_size
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # no filesystem for it, or another one
            fcntl.ioctl(new, _CLONE, old)
            return
    at = 0
    while (found := _next_data(old, at)) is not None:
        start, end = found
        os.lseek(old, start, os.SEEK_SET)
        os.lseek(new, start, os.SEEK_SET)
        at = start + _copy_range(old, new, end - start)
        if at < end:
            break  # it has become shorter
    if at < size:
        os.ftruncate(new, size)


def _next_data(fd: int, at: int) -> tuple[int, int] | None:
    """The next stretch of a file that is no hole, None at its end; one that never ends where holes are not told."""
    if sys.platform == "win32":
        return (0, sys.maxsize) if at == 0 else None
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        return (0, sys.maxsize) if at == 0 else None


def _copy_range(old: int, new: int, count: int) -> int:
    """Copy so many bytes, or up to the end, from where both files are; on return how many there were."""
    done = 0
    while done < count:
        length = min(_CHUNK, count - done)
        moved = 0
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # two filesystems, or one that cannot
                moved = os.copy_file_range(old, new, length)
        if not moved:  # some files of the kernel's own have a content and say they have none
            chunk = os.read(old, length)
            _write(new, chunk)
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
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=directory.fd, follow_symlinks=False)


def _copy_status(old: int, new: int) -> None:
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
    # To run as somebody is not passed on with a file that is not his.
    if given.st_uid != status.st_uid:
        mode &= ~stat.S_ISUID
    if given.st_gid != status.st_gid:
        mode &= ~stat.S_ISGID
    os.fchmod(new, mode)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


if sys.platform == "win32":
    _NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
else:
    _NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_below(directory: Directory, name: str) -> None:
    """Remove `name` and, if it is a directory, all below it, through no symbolic link; nothing there is no error.

    Directories of this user that he may not change are made writable first. What is on another filesystem stays. It
    goes on after an error, and raises the first one at the end.
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

    What lies too deep in it is first lifted up to it: neither open files nor the stack of this interpreter would last
    for a tree of any depth.
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
        """Rename a directory into `top`, to a name that it never had before."""
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
    """Have the disk hold the file or directory `name`, or `directory` itself: fsync(2). Of a link there is nothing."""
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
    """The same for all files and directories below `directory`, and last itself; through no symbolic link."""
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
