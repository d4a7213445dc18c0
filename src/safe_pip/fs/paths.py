"""Changes by plain paths, for places that no other user can write: files, links, directories, private directories."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from safe_pip.fs import watch
from safe_pip.fs.directory import Directory
from safe_pip.fs.files import append, remove_below
from safe_pip.fs.watch import Changing

_ATTEMPTS = 100


def make_directories(path: Path, *, mode: int = 0o777) -> list[Path]:
    """Make `path` and whatever parent is missing; on return those that this call made, outermost first.

    Any number of processes may ask for overlapping paths at once (mkdir(2): who loses finds it made), and some of them
    may remove what they have made again. If it raises, nothing stays of what it made.
    """
    made: list[Path] = []
    attempts = 0
    try:
        while (directory := _first_missing(path)) is not None:
            try:
                with _changing("make_directory", directory):
                    directory.mkdir(mode)
            except FileExistsError:
                if is_no_directory(directory):
                    raise
            except FileNotFoundError:
                attempts += 1
                if attempts == _ATTEMPTS:  # as in /proc, where nothing can be made
                    raise
            else:
                made.append(directory)
    except OSError:
        remove_empty_directories(made)
        raise
    return made


def _first_missing(path: Path) -> Path | None:
    """The outermost directory that has to be made so that `path` can be."""
    missing = None
    while not path.is_dir() and path.parent != path:
        missing, path = path, path.parent
    return missing


def is_no_directory(path: Path) -> bool:
    """Whether something lies at `path` that is no directory, nor leads to one.

    Others may make a directory there, or remove it, at any instant: two questions would get answers of different ones.
    """
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return os.path.islink(path)


def remove_empty_directories(paths: list[Path]) -> None:
    """Remove each of `paths` that is an empty directory, last first; what is not empty, or gone, stays as it is."""
    for path in reversed(paths):
        with contextlib.suppress(OSError), _changing("remove_directory", path):
            path.rmdir()


def make_private_directory(parent: Path | None = None, prefix: str = "safe-pip-") -> Path:
    """Make a directory of mode 0700 with a name nobody can guess, in `parent` or the temporary directory."""
    with _changing("make_directory", (parent or temporary_directory()) / f"{prefix}*"):
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def temporary_directory() -> Path:
    """Where private directories are made unless a parent is named."""
    return Path(tempfile.gettempdir())


def remove_tree(path: Path) -> None:
    """Remove the directory `path` and all below it as far as permissions allow; never raises."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path = Path(os.path.abspath(path))
            with Directory.open(path.parent.resolve()) as parent:
                remove_below(parent, path.name)


def rename_path(source: Path, destination: Path) -> None:
    """Rename as rename(2) does."""
    with _changing("rename", destination, source):
        os.rename(source, destination)


def write(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600) -> None:
    """Make the new file `path` with `content`; raises `FileExistsError` if there is one, follows no symbolic link."""
    with _changing("create", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    try:
        append(descriptor, os.path.abspath(path), content)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Give `path` this content: readers see the old file or the new one, whole."""
    descriptor, temporary = _temporary_file(path.parent)
    try:
        try:
            append(descriptor, temporary, content)
        finally:
            os.close(descriptor)
        with _changing("set_mode", temporary):
            os.chmod(temporary, mode)
        with _changing("move_over", path, temporary):
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(temporary)
        raise


def unlink(path: Path) -> None:
    """Remove the file `path`; one that is gone already is no error."""
    with contextlib.suppress(FileNotFoundError), _changing("remove", path):
        path.unlink()


def touch(path: Path) -> None:
    """Give `path` the present time, as a sign that it is in use; where that is refused it keeps its own."""
    with contextlib.suppress(OSError), _changing("touch", path):
        os.utime(path)


def write_bytecode(source: Path) -> None:
    """Compile `source` for this interpreter into its `__pycache__`, in one step for readers.

    A source that this interpreter cannot compile is left without; raises `OSError` where nothing can be written.
    """
    import py_compile
    import warnings

    # Timestamps, whatever SOURCE_DATE_EPOCH says: they are what the import system checks without reading the source.
    timestamps = py_compile.PycInvalidationMode.TIMESTAMP
    with contextlib.suppress(py_compile.PyCompileError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _changing("write_bytecode", source):
            py_compile.compile(str(source), doraise=True, quiet=1, invalidation_mode=timestamps)


def set_access(path: Path, mode: int, *, group: int, owner: int | None = None) -> None:
    """Give `path` this mode and group whatever the umask, and, where that is allowed, this owner.

    Who may not give the group away keeps his own, and then lets that group do no more than everybody.
    """
    if sys.platform != "win32":
        if owner is not None:
            with contextlib.suppress(PermissionError), _changing("set_owner", path):
                os.chown(path, owner, -1, follow_symlinks=False)
        try:
            with _changing("set_owner", path):
                os.chown(path, -1, group, follow_symlinks=False)
        except PermissionError:
            mode = mode & ~0o2070 | (mode & 0o007) << 3
    with _changing("set_mode", path):
        os.chmod(path, mode)


def link_or_copy(source: Path, destination: Path) -> None:
    """Make the new file `destination` the same as `source`: a hard link, or a copy where links are refused."""
    try:
        with _changing("link", destination, source):
            os.link(source, destination)
    except FileNotFoundError:
        raise
    except OSError:
        with _changing("copy", destination, source):
            shutil.copyfile(source, destination)


def copy_whole(source: Path, destination: Path) -> None:
    """Copy a file so that readers of `destination` see the old file or the new one, whole."""
    descriptor, temporary = _temporary_file(destination.parent)
    os.close(descriptor)
    try:
        with _changing("copy", temporary, source):
            shutil.copy2(source, temporary)
        with _changing("move_over", destination, temporary):
            os.replace(temporary, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(temporary)
        raise


def unnamed_file(content: bytes) -> int:
    """A descriptor, at its start, of a file with `content` and no name: it is gone with its last descriptor."""
    with _changing("create", temporary_directory() / "*"), tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        descriptor = os.dup(file.fileno())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _temporary_file(directory: Path) -> tuple[int, Path]:
    with _changing("create", directory / ".safe-pip-*"):
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".safe-pip-")
    return descriptor, Path(name)


def _changing(operation: str, path: str | os.PathLike[str], source: Path | None = None) -> Changing:
    if watch.observer is None:  # nobody asks for absolute paths
        return Changing(operation, os.fspath(path), "" if source is None else str(source))
    return Changing(operation, os.path.abspath(path), "" if source is None else os.path.abspath(source))
