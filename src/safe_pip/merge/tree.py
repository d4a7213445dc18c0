"""What lies in a directory, staged or live, as far as a merge has to know it: names, kinds, and what may be moved.

A live file has only a kind: asking for the state of each of 20,000 files takes longer than the rest of a plan.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from safe_pip.fs.proc import Volume, mount_points, user, volume
from safe_pip.merge.plan import Link, Seen
from safe_pip.records import is_own


class Entry(NamedTuple):
    """What one name stands for: a kind and, of a directory (or a link to one that is staged into), what is in it."""

    mode: int
    path: str = ""  # absolute, with no link in it
    entries: "dict[str, Entry] | None" = None  # None for a directory that was not looked into
    is_whole: bool = True  # whether the entries are all that is in it
    target: str = ""  # the text of the link whose place it has
    uid: int = 0
    is_writable: bool = True
    inode: int = 0
    ctime_ns: int = 0
    inside: Volume = (0, 0)  # what is in it lies there
    states: Mapping[str, os.stat_result] = {}  # of staged files, but for bytecode that importers may write anew

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def children(self) -> "dict[str, Entry]":
        return {} if self.entries is None else self.entries


FILE = Entry(stat.S_IFREG)
LINK = Entry(stat.S_IFLNK)

_GONE = (FileNotFoundError, NotADirectoryError)  # raised where another program replaces what is being looked at


def scan(path: str) -> Entry:
    """Everything below the staged directory `path`, which has no symbolic link in it; follows none."""
    reader = _Reader((), (), is_staged=True)
    return reader.everything(reader.directory(path, volume(os.path.dirname(path))))


def states(directory: Entry) -> Iterator[tuple[str, os.stat_result]]:
    """The `states` of a directory that was scanned, and of those below it, with paths relative to it."""
    waiting = [("", directory)]
    while waiting:
        below, directory = waiting.pop()
        for name, status in directory.states.items():
            yield below + name, status
        waiting += [(f"{below}{name}/", child) for name, child in directory.children.items() if child.entries]


def seen_at(path: str) -> Seen:
    """The state of what is at `path`; if that has gone meanwhile, a state that no file is in."""
    try:
        return Seen.of(os.lstat(path))
    except _GONE:
        return Seen(0, 0, 0)


def look(path: str, staged: Entry | None, names: Collection[str], trees: Collection[str]) -> Entry:
    """The live directory `path`, into which `staged` is to be merged while the files `names` go.

    Only names that are staged or go are looked at. A directory that something goes from is listed; it is read
    completely if it goes by name or lies below the `trees`.
    """
    return _Reader(names, trees).enter(path, staged, volume(os.path.dirname(path)))


def union(first: Entry, second: Entry) -> Entry:
    """A live directory that was looked at twice, each time for other names."""
    entries = dict(first.children)
    for name, entry in second.children.items():
        known = entries.get(name)
        if known is None or (known.entries is None and entry.entries is not None):
            entries[name] = entry
    return first._replace(entries=entries, is_whole=first.is_whole or second.is_whole)


def own(staged: Entry, live: str, kept: Collection[str]) -> Iterator[str]:
    """The paths at which what is staged for `live` would touch safe-pip's own; what is in `kept` is not its own."""
    for name, child in staged.children.items():
        if is_own(name) and (path := join(live, name)) not in kept:
            yield path
        elif child.entries:
            yield from own(child, join(live, name), kept)


def is_below_own(path: str, kept: Collection[str]) -> bool:
    """Whether an absolute path is safe-pip's own, or lies below what is."""
    own_ones = (each for each in (path, *ancestors(path)) if is_own(os.path.basename(each)))
    return is_own(path) and any(each not in kept for each in own_ones)


def hides(new: Collection[str], there: Iterable[str]) -> bool:
    """Whether an import could find another module, once a directory with the names `there` has `new` too."""
    modules = {name.partition(".")[0] for name in new if _is_module(name)}
    return any(name.partition(".")[0] in modules and name not in new and _is_module(name) for name in there)


def _is_module(name: str) -> bool:
    return "." not in name or name.endswith((".py", ".pyc", ".pyw", ".so", ".pyd"))


def join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory != "/" else f"/{name}"


def ancestors(path: str) -> Iterator[str]:
    """The directories that an absolute path lies in, the innermost first."""
    while path != "/":
        path = path[: path.rindex("/")] or "/"
        yield path


class _Reader:
    """Reads directories, each once; what it has found grows while there is more to look for."""

    def __init__(self, names: Collection[str], trees: Collection[str], *, is_staged: bool = False) -> None:
        self._mounts = mount_points()
        self._uid = user()
        self._found: dict[str, Entry] = {}
        self._names = frozenset(names)
        self._below = _by_directory(names)
        self._inside = tuple(join(tree, "") for tree in trees)
        self._is_staged = is_staged
        # They stay whatever is in them, so they are not listed: a tree holds hundreds of names, /home more.
        self._staying = frozenset(trees).union(*map(ancestors, trees))

    def directory(self, path: str, outer: Volume) -> Entry:
        """The directory itself, not looked into; `outer` is the volume that it lies on."""
        info = os.lstat(path)
        is_ours = self._uid in (0, info.st_uid)
        # Asked only where something may be mounted: for each of 2,000 directories it costs more than listing it.
        is_same = info.st_dev == outer[0] and path not in self._mounts
        return Entry(
            info.st_mode,
            path,
            is_whole=False,
            uid=info.st_uid,
            is_writable=is_ours or os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids),
            inode=info.st_ino,
            ctime_ns=info.st_ctime_ns,
            inside=outer if is_same else volume(path),
        )

    def listed(self, entry: Entry) -> Entry:
        """The directory with all its names, added to what was found before; one that cannot be listed is not whole."""
        entries = self._found.get(entry.path, entry).children
        states: dict[str, os.stat_result] = {}
        has_states = self._is_staged and not entry.path.endswith("/__pycache__")
        is_whole = True
        try:
            with os.scandir(entry.path) as found:
                for item in found:
                    if item.name in entries:
                        continue
                    if item.is_dir(follow_symlinks=False):
                        with suppress(*_GONE):
                            entries[item.name] = self.directory(item.path, entry.inside)
                        continue
                    entries[item.name] = LINK if item.is_symlink() else FILE
                    if has_states:
                        states[item.name] = item.stat(follow_symlinks=False)
        except OSError:
            is_whole = False
        entry = self._found[entry.path] = entry._replace(entries=entries, is_whole=is_whole, states=states)
        return entry

    def everything(self, entry: Entry) -> Entry:
        entry = self.listed(entry)
        for name, child in entry.children.items():
            if child.is_directory and not child.target:
                with suppress(*_GONE):  # it stays one that was not looked into, which is not taken for empty
                    entry.children[name] = self.everything(child)
        return entry

    def enter(self, path: str, staged: Entry | None, outer: Volume) -> Entry:
        """The directory `path` with all that matters in it, added to what was found before."""
        entry = self._found.get(path) or self._opened(path, outer)
        entries, is_whole = entry.children, entry.is_whole
        for name, child in staged.children.items() if staged is not None else ():
            if child.entries is not None or not is_whole:
                self._look_at(entry, name, child)
        for name in self._below.get(path, ()):
            if not is_whole or (name in entries and entries[name] is not FILE):
                self._look_at(entry, name, None)
        if "__pycache__" in entries or (not is_whole and any(name.endswith(".py") for name in entries)):
            self._look_at(entry, "__pycache__", None)
        return entry

    def _opened(self, path: str, outer: Volume) -> Entry:
        entry = self.directory(path, outer)
        is_inside = path.startswith(self._inside)
        if path not in self._staying and (path in self._below or path in self._names):
            return self.everything(entry) if is_inside or path in self._names else self.listed(entry)
        # What is new in a directory below a tree may hide what is there.
        if is_inside or path.endswith("/__pycache__"):
            return self.listed(entry)
        entry = self._found[path] = entry._replace(entries={})
        return entry

    def _look_at(self, entry: Entry, name: str, staged: Entry | None) -> None:
        """Find out what `name` in a directory is; look into it if something is staged into it or goes from it."""
        path, found = join(entry.path, name), entry.children.get(name)
        is_entered = staged is not None and staged.is_directory
        with suppress(*_GONE):  # the plan will turn out to be stale
            if found is None:
                if entry.is_whole:
                    return
                mode = os.lstat(path).st_mode
                found = LINK if stat.S_ISLNK(mode) else FILE
                if stat.S_ISDIR(mode):
                    found = self.directory(path, entry.inside)
                entry.children[name] = found
            if stat.S_ISLNK(found.mode) or found.target:
                real = os.path.realpath(path)
                if is_entered and os.path.isdir(real):
                    target = self.enter(real, staged, volume(os.path.dirname(real)))
                    entry.children[name] = target._replace(target=os.readlink(path))
            elif found.is_directory and (
                is_entered or path in self._below or path in self._names or name == "__pycache__"
            ):
                entry.children[name] = self.enter(path, staged if is_entered else None, entry.inside)


def _by_directory(names: Collection[str]) -> dict[str, list[str]]:
    """For each directory that holds one of `names`, at whatever depth, the entries of it that lead there."""
    found: dict[str, list[str]] = {}
    for path in names:
        while path != "/":
            parent, _, name = path.rpartition("/")
            path = parent or "/"
            found.setdefault(path, []).append(name)
            if len(found[path]) > 1:
                break
    return found


class Source(NamedTuple):
    """What is staged for a place. Several may lead to one place, through symbolic links."""

    part: int
    path: str  # in the stage of that part
    real: str  # absolute
    entry: Entry
    above: "Source | None" = None

    def child(self, name: str, entry: Entry) -> "Source":
        return Source(self.part, f"{self.path}/{name}" if self.path else name, f"{self.real}/{name}", entry, self)


def children(sources: Sequence[Source], *, is_exact: bool = False) -> dict[str, list[Source]]:
    """What is staged for each name in a directory; directories without a file count only with `is_exact`."""
    staged: dict[str, list[Source]] = {}
    for source in sources:
        for name, child in source.entry.children.items():
            if is_exact or child.entries is None or has_files(child):
                staged.setdefault(name, []).append(source.child(name, child))
    return staged


def has_files(directory: Entry) -> bool:
    return any(child.entries is None or has_files(child) for child in directory.children.values())


def combine(given: Sequence[Source], links: list[Link]) -> Source | None:
    """What moves into place: the last file, or the first directory, to which `links` add the files of the others.

    None if there is nothing. Raises `ValueError` if a file and a directory have the same place.
    """
    if not any(source.entry.is_directory for source in given):
        return given[-1] if given else None
    first, *rest = given
    for other in rest:
        first = first._replace(entry=_combine_directories(first.entry, other.entry, first.real, other.real, links))
    return first


def _combine_directories(first: Entry, other: Entry, real: str, other_real: str, links: list[Link]) -> Entry:
    if not (first.is_directory and other.is_directory):
        raise ValueError(other_real)
    entries = dict(first.children)
    for name, child in other.children.items():
        mine, path, other_path = entries.get(name), f"{real}/{name}", f"{other_real}/{name}"
        if child.is_directory or (mine is not None and mine.is_directory):
            entries[name] = _combine_directories(mine or child._replace(entries={}), child, path, other_path, links)
        elif mine is None:
            entries[name] = child
            links.append(Link(other_path, path))
    return first._replace(entries=entries)
