"""A plan in the making: operations are added in any order, and come out in that in which they are to be done."""

import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from safe_pip.errors import MergeRefused
from safe_pip.merge.incoming import Link, Source
from safe_pip.merge.plan import ExactTree, Kind, Operation, Seen
from safe_pip.merge.tree import Entry, Volume, ancestors, joined

_METADATA = re.compile(r"\.(dist-info|egg-info|egg-link)(/|\Z)")


class NeedsPart(Exception):
    """The volume of `directory` has no part yet, or `staged` (an absolute path, or empty) lies in that of another."""

    def __init__(self, volume: Volume, directory: str, staged: str) -> None:
        super().__init__(directory, staged)
        self.volume = volume
        self.directory = directory
        self.staged = staged


class Plan(NamedTuple):
    """What a commit does, in the order in which it does it, and what has to be true for it.

    `adds`: every operation creates a path that was not there, and none makes a package of a namespace. `links`: to be
    made in the stage first. `overwritten`: files of others, or of nobody, that are replaced. `top_level`: new names in
    a tree. `entered`: path, device and inode of each directory in which something is changed; `moved`: path, inode and
    ctime of each that leaves its place. `same_second`: staged sources (absolute paths) and the mtime of the live ones
    that they replace in the same second: a `.pyc` could not tell them apart. `emptied`: directories that are empty
    afterwards and cannot be moved; to be removed after the commit point, in this order, if they still are.
    """

    operations: tuple[Operation, ...]
    roots: tuple[str, ...]
    adds: bool
    links: tuple[Link, ...]
    overwritten: tuple[str, ...]
    top_level: tuple[str, ...]
    entered: tuple[tuple[str, int, int], ...]
    moved: tuple[tuple[str, int, int], ...]
    same_second: tuple[tuple[str, int], ...]
    emptied: tuple[str, ...] = ()


class Given(Protocol):
    """What of a `merge.Situation` matters here."""

    @property
    def roots(self) -> tuple[str, ...]: ...
    @property
    def trees(self) -> tuple[str, ...]: ...
    @property
    def parts(self) -> Mapping[Volume, int]: ...
    @property
    def order(self) -> tuple[str, ...]: ...
    @property
    def read(self) -> Callable[[str], Seen]: ...
    @property
    def exactly(self) -> ExactTree | None: ...


class Planner:
    """Collects operations, and what is to be known about them; see `Plan`."""

    def __init__(self, situation: Given) -> None:
        self.links: list[Link] = []
        self.overwritten: list[str] = []
        self.emptied: list[str] = []
        self._roots = situation.roots
        self._trees = frozenset(situation.trees)
        self._inside = tuple(joined(tree, "") for tree in situation.trees)
        self._parts = situation.parts
        self._order = {name: number for number, name in enumerate(situation.order)}
        self._read = situation.read
        self._exactly = situation.exactly
        self._places: dict[str, Entry] = {}
        self._operations: list[tuple[tuple[int, int], Operation]] = []
        self._adds = True
        self._top_level: list[str] = []
        self._entered: dict[str, tuple[int, int, int]] = {}
        self._moved: list[tuple[str, int, int]] = []
        self._same_second: list[tuple[str, int]] = []
        self._refused: list[str] = []

    def is_in_tree(self, path: str) -> bool:
        """Whether a directory lies below a tree."""
        return path.startswith(self._inside)

    def enter(self, live: Entry) -> None:
        """Note a directory that is on the way to what is changed."""
        self._places[live.path] = live

    def refuse(self, reason: str) -> None:
        """Note what makes the merge impossible."""
        self._refused.append(reason)

    def add(
        self,
        kind: Kind,
        live: Entry,
        name: str,
        source: Source | None = None,
        *,
        old: Entry | None = None,
        known: tuple[str, ...] = (),
    ) -> None:
        """Plan an operation on `name` in the directory `live`; raises `NeedsPart`."""
        path = joined(live.path, name)
        entered = self._entered.get(live.path)
        if entered is None:
            entered = self._entered[live.path] = self._root(live.path), live.inside[0], live.inode
            self._open(live)
        root = entered[0]
        if root < 0:
            self.refuse(f"`{path}` lies outside the directories that may be changed")
            return
        new = self._seen(source.entry, source.real) if source is not None else None
        before = self._seen(old, path) if old is not None else None
        if kind is Kind.MODE and before is not None:
            new = before._replace(mode=before.mode | 0o700)
        operation = Operation(
            kind,
            root,
            path[len(self._roots[root]) :].lstrip("/"),
            0 if kind is Kind.MODE else self._part(live, source),
            source.path if source is not None else "",
            str(len(self._operations)) if kind in (Kind.FILE, Kind.SWAP, Kind.REMOVE) else "",
            before,
            new,
            known,
        )
        self._operations.append((self._rank(operation, path), operation))
        self._note(kind, live, name, path, source, old)
        if source is not None and self._exactly is not None:
            self._seal(root, operation.path, source, is_top=True)

    def tidy(self, path: str) -> None:
        """Plan that a directory goes if it is empty once all is done."""
        root = self._root(os.path.dirname(path))
        if root >= 0:
            relative = path[len(self._roots[root]) :].lstrip("/")
            directory = Seen(stat.S_IFDIR | 0o755, 0, 0)
            self._operations.append((_deepest_first(7, path), Operation(Kind.TIDY, root, relative, old=directory)))
            self.emptied.append(path)
            self.emptied.sort(key=lambda each: (-each.count("/"), each))

    def _open(self, live: Entry) -> None:
        """Let entries of a read-only directory be changed, and have it as it was when all is done."""
        root = self._root(os.path.dirname(live.path))
        if self._exactly is None or live.path not in self._exactly.opened or root < 0:
            return
        relative = live.path[len(self._roots[root]) :].lstrip("/")
        was, opened = Seen(live.mode, 0, 0), Seen(live.mode | 0o700, 0, 0)
        self._operations.append(((-1, live.path.count("/")), Operation(Kind.MODE, root, relative, old=was, new=opened)))
        seal = Operation(Kind.SEAL, root, relative, old=opened, new=was)
        self._operations.append((_deepest_first(8, live.path), seal))

    def _seal(self, root: int, path: str, source: Source, *, is_top: bool = False) -> None:
        """Have what is staged as a directory get its permissions and its time in its place."""
        if not source.entry.is_directory or self._exactly is None:
            return
        wanted = self._exactly.modes.get(source.path)
        if wanted is not None and (is_top or wanted.mode != source.entry.mode):
            seal = Operation(Kind.SEAL, root, path, old=Seen(source.entry.mode, 0, 0), new=wanted)
            self._operations.append((_deepest_first(8, path), seal))
        for name, child in (source.entry.entries or {}).items():
            if child.is_directory:
                self._seal(root, f"{path}/{name}", source.child(name, child))

    def _note(self, kind: Kind, live: Entry, name: str, path: str, source: Source | None, old: Entry | None) -> None:
        is_package = name.startswith("__init__.") and not live.path.endswith("/__pycache__")
        if kind is not Kind.NEW or (is_package and self.is_in_tree(live.path)):
            self._adds = False
        if kind is Kind.NEW and live.path in self._trees and name != "__pycache__":
            self._top_level.append(name)
        if old is not None and old.is_directory and not old.target and kind is not Kind.MODE:
            self._moved.append((path, old.inode, old.ctime_ns))
        if kind is Kind.FILE and source is not None and name.endswith(".py"):
            self.compare_times(source.real, path)

    def compare_times(self, staged: str, live: str) -> None:
        """Note it if two sources, of which one replaces the other, are of the same second."""
        before = self._read(live).mtime_ns
        if self._read(staged).mtime_ns // 10**9 == before // 10**9:
            self._same_second.append((staged, before))

    def finished(self) -> Plan:
        """The plan; raises `MergeRefused` with all that makes it impossible."""
        if self._refused:
            raise MergeRefused("; ".join(dict.fromkeys(self._refused)))
        return Plan(
            operations=tuple(operation for _, operation in sorted(self._operations, key=lambda each: each[0])),
            roots=self._roots,
            adds=self._adds,
            links=tuple(self.links),
            overwritten=tuple(self.overwritten),
            top_level=tuple(self._top_level),
            entered=tuple((path, device, inode) for path, (_, device, inode) in self._entered.items()),
            moved=tuple(self._moved),
            same_second=tuple(self._same_second),
            emptied=tuple(self.emptied),
        )

    def _seen(self, entry: Entry, path: str) -> Seen:
        if entry.is_directory and not entry.target:
            return Seen(entry.mode, 0, 0)
        return self._read(path)

    def _root(self, directory: str) -> int:
        """The number of the innermost root that a directory is or lies in, -1 for none."""
        containing = [root for root in self._roots if joined(directory, "").startswith(joined(root, ""))]
        return self._roots.index(max(containing, key=len)) if containing else -1

    def _part(self, live: Entry, source: Source | None) -> int:
        part = self._parts.get(live.inside)
        if part is not None and (source is None or source.part == part):
            return part
        staged = ""
        if source is not None:
            staged, above = source.real, source.above
            # All files of a directory need the same; one with directories in it may lead to other volumes again.
            if above is not None and above.path and not _has_directories(above.entry):
                staged = above.real
        raise NeedsPart(live.inside, self._top_of_volume(live), staged)

    def _top_of_volume(self, live: Entry) -> str:
        """The outermost directory of a volume that may be changed: nothing will move it."""
        top = live.path
        for path in ancestors(live.path):
            entry = self._places.get(path)
            if entry is None or entry.inside != live.inside or self._root(path) < 0:
                break
            if entry.is_writable:
                top = path
        return top

    def _rank(self, operation: Operation, path: str) -> tuple[int, int]:
        """When an operation's turn comes: whoever sees the metadata of a distribution finds all the rest of it.

        What goes into the trees comes before what uses it (scripts), and leaves after it.
        """
        is_outside = not self.is_in_tree(path)
        is_leaving = operation.kind is Kind.REMOVE
        metadata = _METADATA.search(operation.path)
        if metadata is None:
            # Sources come after their bytecode and leave before it, so that no importer writes it in between.
            count = len(self._operations)
            return (4 if is_outside else 5, -count) if is_leaving else (1 if is_outside else 0, count)
        turn = self._order.get(operation.path[: metadata.end(1)].rpartition("/")[2], len(self._order))
        return (3, -turn) if is_leaving else (2, turn)


def _deepest_first(turn: int, path: str) -> tuple[int, int]:
    return turn, -path.count("/")


def _has_directories(directory: Entry) -> bool:
    return any(child.is_directory for child in (directory.entries or {}).values())
