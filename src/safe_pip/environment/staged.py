"""What is done with files once they are staged: copied to another filesystem, given another time, taken out again."""

from __future__ import annotations

import csv
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress

from safe_pip import fs
from safe_pip.fs import Directory, attributes

_SECOND = 1_000_000_000
# PEP 552: magic number, flags, then, if no flag is set, the time and the size of the source; 32 bits each.
_FLAGS, _TIME = slice(4, 8), 8
_PARTED = ".safe-pip-parted"


@contextmanager
def parent_of(path: str) -> Iterator[tuple[Directory, str]]:
    """The open directory that a private path lies in, and its name there."""
    directory, name = os.path.split(path)
    with Directory.open(directory) as opened:
        yield opened, name


def mirror(root: str, live: str, *, is_moved: bool = False) -> None:
    """Make `root` + `live`, a directory, with all above it, so that what is made there is as if made in `live`.

    What exists in the target gives group, set-group-ID bit and default access list to its mirror, which only this user
    can read unless it may be moved to the target; what does not is made as any directory is.
    """
    with ExitStack() as opened:
        here, path = opened.enter_context(Directory.open(root)), "/"
        for name in filter(None, live.split("/")):
            path = os.path.join(path, name)
            if not here.exists(name):
                if os.path.isdir(path):
                    fs.make_directory(here, name, 0o700)
                    try:
                        mode = 0o700 | (stat.S_IMODE(os.stat(path).st_mode) & 0o777 if is_moved else 0)
                        attributes.pass_on(path, here, name, mode)
                    except FileNotFoundError:  # gone meanwhile: as one that was missing from the start
                        fs.remove_directory(here, name)
                        fs.make_directory(here, name)
                else:
                    fs.make_directory(here, name)
            here = opened.enter_context(here.child(name))


def mirror_below(root: str, live: str, directories: Iterable[str]) -> None:
    """Mirror those of the `directories` below `live` that hand on other access than what they lie in, if they exist."""
    found = {live: attributes.handed_on(live)} if os.path.isdir(live) else {}
    for relative in sorted({above for each in directories for above in _with_parents(each)}):
        path = os.path.join(live, relative)
        parent = os.path.dirname(path)
        if parent in found and os.path.isdir(path):
            with suppress(FileNotFoundError):
                found[path] = attributes.handed_on(path)
                if found[path] != found[parent]:
                    mirror(root, path, is_moved=True)


def _with_parents(path: str) -> Iterator[str]:
    while path.strip("/"):
        yield path
        path = os.path.dirname(path)


Linked = MutableMapping[tuple[int, int], tuple[str, int]]
"""Where the first of several links to a file was copied to, and how many are left, by the file's device and inode."""


def copy_below(source: Directory, name: str, destination: Directory, linked: Linked) -> None:
    """Copy `name` and all below it, with modes, times and symbolic links, into a directory of another filesystem.

    Links to one file stay that, by `linked`, which forgets the file with its last one: another may get its inode then.
    """
    status = source.stat(name)
    if not stat.S_ISDIR(status.st_mode):
        inode = status.st_dev, status.st_ino
        first, left = linked.pop(inode, ("", status.st_nlink))
        if first:
            with parent_of(first) as (directory, first_name):
                fs.link(directory, first_name, destination, name)
        else:
            fs.link(source, name, destination, name)
        if left > 1:
            linked[inode] = first or destination.join(name), left - 1
        return
    is_new = not destination.exists(name)
    if is_new:
        fs.make_directory(destination, name, 0o700)
    with source.child(name) as below, destination.child(name) as copied:
        for inner in below.names():
            copy_below(below, inner, copied, linked)
    if is_new:
        attributes.copy_status(source, name, destination, name)


def link(source: str, path: str) -> list[str]:
    """Let the file `source` be at the staged `path` too; on return what was made: first the outermost, then the file.

    Directories that are missing are made like those that the file is in. Of one that has gone there is nothing to make.
    """
    if not os.path.lexists(source):
        return []
    missing: list[tuple[str, str]] = []
    above, like = os.path.dirname(path), os.path.dirname(source)
    while not os.path.isdir(above):
        missing.append((above, like))
        above, like = os.path.dirname(above), os.path.dirname(like)
    for above, like in reversed(missing):
        with parent_of(above) as (directory, name), parent_of(like) as (live, live_name):
            fs.make_directory(directory, name, 0o700)
            attributes.copy_status(live, live_name, directory, name)
    with parent_of(path) as (directory, name), parent_of(source) as (live, live_name):
        fs.link(live, live_name, directory, name)
    return [*(above for above, _ in reversed(missing)), path]


def write(root: str, live: str, content: bytes) -> str:
    """Stage the file `live`: who may read the directory it is for may read it. On return where it is staged."""
    mode = stat.S_IMODE(os.stat(os.path.dirname(live)).st_mode) & 0o666
    with parent_of(root + live) as (directory, name):
        fs.write_new(directory, name, content)
        fs.set_mode(directory, name, mode)
    return root + live


def write_like(root: str, live: str, content: bytes) -> None:
    """Stage the file `live` with another content, and with its owner and permissions."""
    with parent_of(live) as (target, name), parent_of(root + live) as (directory, _):
        fs.remove(directory, name)
        fs.write_new(directory, name, content)
        attributes.copy_status(target, name, directory, name)
        attributes.set_time(directory, name, time.time_ns())


def bump_mtime(path: str, avoid: Mapping[str, Collection[int]]) -> None:
    """Give each source in the directory `path` a whole second as its time that none of its own (nanoseconds) is in.

    Bytecode that goes by that time is told. After a crash it may not have been.
    """
    new = {name: max(time // _SECOND for time in times) + 1 for name, times in avoid.items()}
    with Directory.open(path) as directory:
        for name, second in new.items():
            break_hard_link(directory, name)
            attributes.set_time(directory, name, second * _SECOND)
        with suppress(FileNotFoundError, NotADirectoryError), directory.child("__pycache__") as cache:
            for pyc in cache.names():
                source = f"{pyc.partition('.')[0]}.py"
                if pyc.endswith(".pyc") and source in new:
                    _date(cache, pyc, new[source])


def _date(cache: Directory, name: str, second: int) -> None:
    with open(cache.open_file(name), "rb") as file:
        header = file.read(16)
    if len(header) == 16 and header[_FLAGS] == bytes(4):
        break_hard_link(cache, name)
        attributes.patch(cache, name, _TIME, (second & 0xFFFFFFFF).to_bytes(4, "little"))


def break_hard_link(directory: Directory, name: str) -> None:
    """Have a file be no other link's: what is done to it is not done to prepared wheels or other environments."""
    if directory.stat(name).st_nlink > 1:
        fs.copy(directory, name, directory, f"{name}{_PARTED}")
        fs.move_over(directory, f"{name}{_PARTED}", directory, name)


def files_of(root: str, record: str) -> set[str]:
    """The absolute paths in the target of the files that a RECORD staged below `root` lists, and all beside it."""
    info = os.path.dirname(record)
    lib_dir = os.path.dirname(info).removeprefix(root)
    found = {os.path.join(where, name).removeprefix(root) for where, _, names in os.walk(info) for name in names}
    with suppress(FileNotFoundError), open(record, encoding="utf-8", newline="") as file:
        found |= {os.path.normpath(os.path.join(lib_dir, row[0])) for row in csv.reader(file) if row}
    return found


def take_out(roots: Iterable[str], files: Iterable[str], kept: Collection[str]) -> None:
    """Remove `files`, absolute paths in the target, from the stage, and directories that are empty then.

    `kept` are the directories of the target that stay mirrored.
    """
    files = tuple(files)
    for root in roots:
        emptied: set[str] = set()
        for path in files:
            with suppress(FileNotFoundError, NotADirectoryError), parent_of(root + path) as (directory, name):
                if directory.exists(name):
                    fs.remove(directory, name)
                    emptied.add(os.path.dirname(path))
        for path in sorted(emptied, key=len, reverse=True):
            _prune(root, path, kept)


def prune(root: str, directories: Iterable[str]) -> None:
    """Remove those of these directories of the target from the stage that stayed empty, with those above them."""
    for path in sorted(directories, key=len, reverse=True):
        _prune(root, path, ())


def _prune(root: str, path: str, kept: Collection[str]) -> None:
    while path not in kept and path != "/":
        with suppress(FileNotFoundError, NotADirectoryError), parent_of(root + path) as (directory, name):
            with directory.child(name) as emptied:
                if emptied.names():
                    return
            fs.remove_directory(directory, name)
        path = os.path.dirname(path)
