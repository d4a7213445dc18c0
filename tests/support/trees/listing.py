"""A directory tree as plain data: two of them are equal exactly if the trees are, byte for byte."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Tree = Mapping[str, str]
"""What is at each path, relative to the root: kind, permissions, digest of the content or target of the link."""


def tree_of(root: Path, is_ignored: Callable[[str], bool] = lambda path: False) -> Tree:
    """Everything below `root`; what `is_ignored`, given its relative path, is left out with all that is below it.

    Bytecode is named after what the import system would make of it: it holds its source's time, so that it differs
    between two installations of the same wheel.
    """
    return dict(_entries(str(root), "", is_ignored))


def differences(before: Tree, after: Tree) -> list[str]:
    """One line for each path that differs."""
    found = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            found.append(f"{path}: {before.get(path, 'nothing')}, now {after.get(path, 'nothing')}")
    return found


def _entries(root: str, below: str, is_ignored: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    with os.scandir(os.path.join(root, below)) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        path = os.path.join(below, entry.name)
        if is_ignored(path):
            continue
        status = entry.stat(follow_symlinks=False)
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        if stat.S_ISDIR(status.st_mode):
            yield path, f"directory {mode}"
            yield from _entries(root, path, is_ignored)
        elif stat.S_ISLNK(status.st_mode):
            yield path, f"link to {os.readlink(entry.path)}"
        elif not stat.S_ISREG(status.st_mode):
            yield path, f"special {status.st_mode:o}"
        elif path.endswith(".pyc"):
            yield path, f"{_validity(entry.path)} bytecode {mode}"
        else:
            yield path, f"file {mode} {hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()}"


def _validity(path: str) -> str:
    """Whether the import system would use this bytecode (PEP 552: a header of 16 bytes, timestamp and size)."""
    directory, name = os.path.split(path)
    source = os.path.join(os.path.dirname(directory), name.partition(".")[0] + ".py")
    with open(path, "rb") as file:
        header = file.read(16)
    try:
        status = os.stat(source)
    except OSError:
        return "orphaned"
    if len(header) < 16:
        return "torn"
    flags, modified, size = struct.unpack("<4xIII", header)
    is_valid = flags == 0 and modified == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF
    return "valid" if is_valid else "stale"
