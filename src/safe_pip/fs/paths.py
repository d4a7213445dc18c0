"""Changes by plain paths, in directories that no other user can write.

`py_compile` and `warnings` are imported where bytecode is written: few commands write any.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import files
from safe_pip.fs.directory import Directory, remove, set_mode
from safe_pip.fs.rename import move_over
from safe_pip.fs.watch import Changing

_ATTEMPTS = 100


def make_directories(path: Path, *, mode: int = 0o777) -> list[Path]:
    """Make `path` and its missing parents; on return those that this call made, outermost first.

    Any number of processes may do so, and remove what they made, at once. If it raises, nothing stays that it made.
    """
    made: list[Path] = []
    attempts = 0
    try:
        while missing := [each for each in (path, *path.parents) if not each.is_dir()]:
            try:
                with Changing("make_directory", missing[-1]):
                    missing[-1].mkdir(mode)
                made.append(missing[-1])
            except FileExistsError:  # made by another process
                if is_no_directory(missing[-1]):
                    raise
            except FileNotFoundError:  # the parent was removed
                if (attempts := attempts + 1) == _ATTEMPTS:  # as in /proc, where nothing can be made
                    raise
    except (OSError, UnusableEnvironment):
        remove_empty_directories(made)
        raise
    return made


def look(path: str | os.PathLike[str], *, follows: bool = True) -> os.stat_result | None:
    """What stat(2) says of `path`; None if nothing is there. Raises `UnusableEnvironment` if that cannot be told."""
    try:
        return os.stat(path, follow_symlinks=follows)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnusableEnvironment(f"`{os.fspath(path)}` cannot be looked at: {error.strerror}") from error


def is_directory(path: str | os.PathLike[str]) -> bool:
    return (status := look(path)) is not None and stat.S_ISDIR(status.st_mode)


def is_file(path: str | os.PathLike[str]) -> bool:
    return (status := look(path)) is not None and stat.S_ISREG(status.st_mode)


def names(path: str | os.PathLike[str]) -> list[str]:
    """What is in a directory, in no order; nothing if there is none. Raises `UnusableEnvironment` as `look` does."""
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself leads to no directory
            return []
        raise UnusableEnvironment(f"`{os.fspath(path)}` cannot be read: {error.strerror}") from error


def readable_names(path: str | os.PathLike[str]) -> list[str]:
    """What is in a directory, in no order; nothing if there is none, or if it cannot be read."""
    with contextlib.suppress(OSError):
        return os.listdir(path)
    return []


def is_no_directory(path: Path) -> bool:
    """Whether something lies at `path` that is no directory and leads to none; raises what `look` raises."""
    status = look(path) or look(path, follows=False)
    return status is not None and not stat.S_ISDIR(status.st_mode)


def remove_empty_directories(paths: list[Path]) -> None:
    """Remove each of `paths` that is an empty directory, last first. Never raises."""
    for path in reversed(paths):
        with contextlib.suppress(OSError), Changing("remove_directory", path):
            path.rmdir()


def make_private_directory(parent: Path | None = None, prefix: str = "safe-pip-") -> Path:
    """Make a directory of mode 0700 with a name that cannot be guessed, in `parent` or the temporary directory."""
    with Changing("make_directory", os.path.join(parent or tempfile.gettempdir(), f"{prefix}*")):
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def has_working_directory() -> bool:
    """Whether the directory that this process works in exists: another process may have removed it."""
    with contextlib.suppress(OSError):
        return bool(os.getcwd())
    return False


def remove_tree(path: Path) -> None:
    """Remove the directory `path` and all below it as far as permissions allow. Never raises."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            with _parent(path) as parent:
                files.remove_below(parent, path.name)


def rename_path(source: Path, destination: Path) -> None:
    with Changing("rename", destination, source):
        os.rename(source, destination)


def write(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600) -> None:
    """Make the new file `path`; raises `FileExistsError`, also for a symbolic link."""
    with _parent(Path(path)) as parent:
        files.write_new(parent, os.path.basename(path), content, mode)


def open_log(path: str) -> int:
    """Make the new file `path`; on return a descriptor that writes at its end."""
    with Changing("create", path):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Give `path` this content and mode: readers see the whole old file or the whole new one."""
    with _parent(path) as parent:
        replace_in(parent, path.name, content, mode=mode)


def replace_in(directory: Directory, name: str, content: bytes, *, mode: int = 0o600) -> None:
    with _aside(directory) as aside:
        files.write_new(directory, aside, content)
        set_mode(directory, aside, mode)
        move_over(directory, aside, directory, name)


def copy_whole(source: Path, destination: Path) -> None:
    """Copy a file: readers of `destination` see the whole old file or the whole new one."""
    with _parent(source) as before, _parent(destination) as parent, _aside(parent) as name:
        files.copy(before, source.name, parent, name)
        move_over(parent, name, parent, destination.name)


def link_or_copy(source: Path, destination: Path) -> None:
    """Make the new file `destination` a hard link of `source`, or a copy where links are refused."""
    with _parent(source) as before, _parent(destination) as parent:
        files.link(before, source.name, parent, destination.name)


@contextlib.contextmanager
def _aside(directory: Directory) -> Iterator[str]:
    name = f".safe-pip-{os.urandom(8).hex()}"
    try:
        yield name
    except BaseException:
        with contextlib.suppress(OSError):
            remove(directory, name)
        raise


def unlink(path: Path) -> None:
    """Remove the file `path`, if it exists."""
    with contextlib.suppress(FileNotFoundError), Changing("remove", path):
        path.unlink()


def touch(path: Path) -> None:
    """Give `path` the present time, as a sign that it is in use. Never raises."""
    with contextlib.suppress(OSError), Changing("touch", path):
        os.utime(path)


def write_bytecode(source: Path) -> None:
    """Compile `source` into its `__pycache__`, in one step for readers, if this interpreter can; raises `OSError`."""
    import py_compile
    import warnings

    # Timestamps, whatever SOURCE_DATE_EPOCH says: the import system checks them without reading the source.
    timestamps = py_compile.PycInvalidationMode.TIMESTAMP
    with Changing("write_bytecode", source), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        py_compile.compile(str(source), quiet=2, invalidation_mode=timestamps)


def unnamed_file(content: bytes) -> int:
    """A descriptor of a file with `content` and no name, on Linux in memory, so that a full disk does not matter."""
    with Changing("create", os.path.join(os.sep, "*")):
        if sys.platform == "linux" and hasattr(os, "memfd_create"):  # Python may be built for an older glibc than 2.27
            descriptor = os.memfd_create("safe-pip")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        files.write_all(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _parent(path: Path) -> Directory:
    return Directory.open(os.path.realpath(path.parent))
