"""Every change that safe-pip makes to a disk passes through here, so that each can be recorded or made to fail."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def make_directories(path: Path, *, mode: int = 0o777) -> list[Path]:
    """Make `path` and whatever parent is missing; on return those that this call made, outermost first.

    Any number of processes may ask for overlapping paths at once (mkdir(2): who loses finds it made).
    """
    missing = [path]
    while not missing[-1].parent.is_dir() and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
    made = []
    for directory in reversed(missing):
        try:
            directory.mkdir(mode)
        except FileExistsError:
            if not directory.is_dir():
                raise
        else:
            made.append(directory)
    return made


def remove_empty_directories(paths: list[Path]) -> None:
    """Remove each of `paths` that is an empty directory, last first; what is not empty, or gone, stays as it is."""
    for path in reversed(paths):
        with contextlib.suppress(OSError):
            path.rmdir()


def make_private_directory(parent: Path | None = None, prefix: str = "safe-pip-") -> Path:
    """Make a directory of mode 0700 with a name nobody can guess, in `parent` or the temporary directory."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def temporary_directory() -> Path:
    """Where private directories are made unless a parent is named."""
    return Path(tempfile.gettempdir())


def remove_tree(path: Path) -> None:
    """Remove `path` and all below it as far as permissions allow; never raises."""
    shutil.rmtree(path, ignore_errors=True)


def rename(source: Path, destination: Path) -> None:
    """Rename as rename(2) does."""
    os.rename(source, destination)


def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make the new file `path` with `content`; raises `FileExistsError` if there is one, follows no symbolic link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    with open(descriptor, "wb") as file:
        file.write(content)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Give `path` this content: readers see the old file or the new one, whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".safe-pip-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def unlink(path: Path) -> None:
    """Remove the file `path`; one that is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def touch(path: Path) -> None:
    """Give `path` the present time, as a sign that it is in use; where that is refused it keeps its own."""
    with contextlib.suppress(OSError):
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
        py_compile.compile(str(source), doraise=True, quiet=1, invalidation_mode=timestamps)


def set_access(path: Path, mode: int, *, group: int, owner: int | None = None) -> None:
    """Give `path` this mode and group whatever the umask, and, where that is allowed, this owner.

    Who may not give the group away keeps his own, and then lets that group do no more than everybody.
    """
    if hasattr(os, "chown"):
        if owner is not None:
            with contextlib.suppress(PermissionError):
                os.chown(path, owner, -1, follow_symlinks=False)
        try:
            os.chown(path, -1, group, follow_symlinks=False)
        except PermissionError:
            mode = mode & ~0o2070 | (mode & 0o007) << 3
    os.chmod(path, mode)


def link_or_copy(source: Path, destination: Path) -> None:
    """Make the new file `destination` the same as `source`: a hard link, or a copy where links are refused."""
    try:
        os.link(source, destination)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, destination)


def copy_whole(source: Path, destination: Path) -> None:
    """Copy a file so that readers of `destination` see the old file or the new one, whole."""
    descriptor, name = tempfile.mkstemp(dir=destination.parent, prefix=".safe-pip-")
    os.close(descriptor)
    try:
        shutil.copy2(source, name)
        os.replace(name, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def unnamed_file(content: bytes) -> int:
    """A descriptor, at its start, of a file with `content` and no name: it is gone with its last descriptor."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        descriptor = os.dup(file.fileno())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
