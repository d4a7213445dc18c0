"""What is in a live directory: what goes with the distributions that leave, and what has to stay."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from safe_pip.merge.tree import FILE, Entry, ancestors, join
from safe_pip.records import is_bytecode

_MARKER = ".safe-pip-"  # of a transaction that was just committed: no data, and gone in a moment
_METADATA_FILES = ("RECORD", "METADATA", "PKG-INFO")


class Contents(NamedTuple):
    """What is in a directory, at whatever depth, with paths relative to it."""

    files: list[str]  # all but bytecode
    others: list[str]  # those of them that stay
    has_going: bool
    has_bytecode: bool
    is_fixed: bool  # something in it forbids that it is moved as a whole


class Outgoing:
    """What goes: the files that are named, and the bytecode of each source that goes or is replaced."""

    def __init__(self, files: Collection[str]) -> None:
        self.paths: set[str] = set()
        self.parents: set[str] = set()  # the directories that something goes from, or from below
        self._staying: set[str] = set()
        for path in files:
            self._add(path)

    def is_whole(self, path: str) -> bool:
        """Whether a directory goes with all that is in it: metadata belongs to one distribution alone."""
        is_metadata = path.endswith((".dist-info", ".egg-info"))
        return path in self.paths or (is_metadata and any(f"{path}/{name}" in self.paths for name in _METADATA_FILES))

    def add_bytecode(self, directory: Entry, staged: Collection[str], *, is_going: bool) -> None:
        """Have the bytecode of the sources in a directory go with them, and with those that `staged` replaces."""
        entries = directory.children
        cache = entries["__pycache__"]
        sources = {
            name[:-3]: is_going or name in staged or join(directory.path, name) in self.paths
            for name, entry in entries.items()
            if name.endswith(".py") and not entry.is_directory
        }
        for name in cache.entries or ():
            path = f"{cache.path}/{name}"
            goes = _goes_with_source(name, sources)
            if path in self.paths or not is_bytecode(path):
                continue
            if goes:
                self._add(path)
            elif goes is not None or not directory.is_whole:
                self._staying.add(path)

    def contents(self, directory: Entry, *, is_going: bool) -> Contents:
        files: list[str] = []
        others: list[str] = []
        has_going = has_bytecode = is_fixed = False
        paths, staying = self.paths, self._staying
        waiting = [(directory, "", is_going)]
        while waiting:
            entry, prefix, all_going = waiting.pop()
            path = entry.path
            is_fixed |= not entry.is_whole or entry.entries is None or entry.inside != directory.inside
            is_cache = path.endswith("/__pycache__")
            for name, child in entry.children.items():
                if child is not FILE and child.is_directory and not child.target:
                    waiting.append((child, f"{prefix}{name}/", all_going or self.is_whole(child.path)))
                elif is_cache and is_bytecode(f"{path}/{name}"):
                    has_bytecode = True
                    # In a cache below, the sources beside it are seen as well, and decide.
                    if entry is directory and not all_going:
                        has_going |= f"{path}/{name}" in paths
                        is_fixed |= f"{path}/{name}" in staying
                else:
                    files.append(prefix + name)
                    if all_going or f"{path}/{name}" in paths:
                        has_going = True
                    elif not name.startswith(_MARKER):
                        others.append(prefix + name)
        return Contents(files, others, has_going, has_bytecode, is_fixed)

    def _add(self, path: str) -> None:
        self.paths.add(path)
        for parent in ancestors(path):
            if parent in self.parents:
                break
            self.parents.add(parent)


def _goes_with_source(name: str, sources: Mapping[str, bool]) -> bool | None:
    """Whether the source of a bytecode file goes; None if it has none. Of several, the one with the longest name."""
    stem = name.rpartition(".pyc")[0]  # tags and sources may have dots: `a.cpython-313-pytest-8.4.1.pyc`
    while stem and stem not in sources:
        stem = stem.rpartition(".")[0]
    return sources[stem] if stem else None
