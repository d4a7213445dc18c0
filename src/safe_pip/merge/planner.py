"""A plan in the making: operations are added in any order, and come out in the order in which they are to be done."""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from safe_pip.errors import MergeRefused
from safe_pip.fs.proc import Volume
from safe_pip.merge.plan import ExactTree, Kind, Link, Listed, Operation, Plan, Seen
from safe_pip.merge.tree import Entry, Source, ancestors, hides, join, seen_at

_METADATA = re.compile(r"\.(dist-info|egg-info|egg-link)(/|\Z)")


class NeedsPart(Exception):
    """The volume of `directory` has no part yet, or `staged` (an absolute path, or empty) lies in another part."""

    def __init__(self, volume: Volume, directory: str, staged: str) -> None:
        super().__init__(directory, staged)
        self.volume, self.directory, self.staged = volume, directory, staged


class Situation(NamedTuple):
    """What a merge has to know beside the trees. All paths are absolute, with no symbolic link in them."""

    roots: tuple[str, ...]  # nothing outside all of them is changed
    trees: tuple[str, ...]  # they hold distributions
    parts: Mapping[Volume, int]  # the number of the private directory on each volume
    entered: frozenset[str]  # directories that the filesystem refused to move as a whole
    can_exchange: frozenset[int]  # the parts that can
    uid: int  # the user that commits
    foreign: Callable[[str], bool]  # whether a path is in the RECORD of a distribution that stays
    order: tuple[str, ...] = ()  # names of the new metadata directories, dependencies first
    read: Callable[[str], Seen] = seen_at  # the state of a file
    exactly: ExactTree | None = None  # None for distributions


class Planner:
    """Collects operations, and what is to be known about them: the fields of `Plan`."""

    def __init__(self, situation: Situation) -> None:
        self.links: list[Link] = []
        self.overwritten: list[str] = []
        self.refused: list[str] = []  # what makes the merge impossible
        self.entered: dict[str, Entry] = {}  # the directories on the way to what is changed
        self._situation = situation
        self._exactly = situation.exactly
        self._inside = tuple(join(tree, "") for tree in situation.trees)
        self._order = {name: number for number, name in enumerate(situation.order)}
        self._operations: list[tuple[tuple[int, int, int], Operation]] = []
        self._adds, self._hides = True, False
        self._new: defaultdict[str, set[str]] = defaultdict(set)
        self._changed: dict[str, tuple[str, int, int]] = {}
        self._moved: list[Listed] = []
        self._same_second: list[tuple[str, int]] = []
        self._tidied: set[str] = set()

    def is_in_tree(self, path: str) -> bool:
        return path.startswith(self._inside)

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
        path = join(live.path, name)
        if live.path not in self._changed:
            self._changed[live.path] = live.path, live.inside[0], live.inode
            self._open(live)
        root, relative = self._split(path)
        if root < 0:
            self.refused.append(f"`{path}` lies outside the directories that may be changed")
            return
        new = self._seen(source.entry, source.real) if source is not None else None
        before = self._seen(old, path) if old is not None else None
        if kind is Kind.MODE and before is not None:
            new = before._replace(mode=before.mode | 0o700)
        part = 0 if kind is Kind.MODE else self._part(live, source)
        staged = source.path if source is not None else ""
        trash = str(len(self._operations)) if kind in (Kind.FILE, Kind.SWAP, Kind.REMOVE) else ""
        operation = Operation(kind, root, relative, part, staged, trash, before, new, known)
        self._operations.append((self._rank(operation, path), operation))
        self._note(kind, live, name, path, source, old)
        if source is not None and self._exactly is not None:
            self._seal(self._exactly, root, relative, source, is_top=True)

    def tidy(self, path: str) -> None:
        """Plan that a directory goes if it is empty once all is done."""
        root, relative = self._split(path)
        if root >= 0 and path not in self._tidied:
            self._tidied.add(path)
            old = Seen(stat.S_IFDIR | 0o755, 0, 0)
            self._operations.append(((7, -path.count("/"), 0), Operation(Kind.TIDY, root, relative, old=old)))

    def compare_times(self, staged: str, live: str) -> None:
        """Note a source that replaces one of the same second."""
        before = self._situation.read(live).mtime_ns
        if self._situation.read(staged).mtime_ns // 10**9 == before // 10**9:
            self._same_second.append((staged, before))

    def finished(self) -> Plan:
        if self.refused:
            raise MergeRefused("; ".join(dict.fromkeys(self.refused)))
        is_hiding = self._hides or any(hides(new, self.entered[path].children) for path, new in self._new.items())
        return Plan(
            operations=tuple(operation for _, operation in sorted(self._operations, key=lambda each: each[0])),
            roots=self._situation.roots,
            adds=self._adds and not is_hiding,
            links=tuple(self.links),
            overwritten=tuple(self.overwritten),
            entered=tuple(self._changed.values()),
            moved=tuple(self._moved),
            same_second=tuple(self._same_second),
            hides=is_hiding,
        )

    def _open(self, live: Entry) -> None:
        """Let entries of a read-only directory be changed, and have it as it was when all is done."""
        root, relative = self._split(live.path)
        if self._exactly is not None and live.path in self._exactly.opened and root >= 0:
            was, opened = Seen(live.mode, 0, 0), Seen(live.mode | 0o700, 0, 0)
            depth = live.path.count("/")
            self._operations.append(((-1, depth, 0), Operation(Kind.MODE, root, relative, old=was, new=opened)))
            self._operations.append(((8, -depth, 0), Operation(Kind.SEAL, root, relative, old=opened, new=was)))

    def _seal(self, exactly: ExactTree, root: int, path: str, source: Source, *, is_top: bool = False) -> None:
        """Have what is staged as a directory get its permissions and its time in its place."""
        if not source.entry.is_directory:
            return
        wanted = exactly.modes.get(source.path)
        if wanted is not None and (is_top or wanted.mode != source.entry.mode):
            seal = Operation(Kind.SEAL, root, path, old=Seen(source.entry.mode, 0, 0), new=wanted)
            self._operations.append(((8, -path.count("/"), 0), seal))
        for name, child in source.entry.children.items():
            self._seal(exactly, root, f"{path}/{name}", source.child(name, child))

    def _note(self, kind: Kind, live: Entry, name: str, path: str, source: Source | None, old: Entry | None) -> None:
        is_package = name.startswith("__init__.") and not live.path.endswith("/__pycache__")
        is_read = self._exactly is None or path not in self._exactly.unread
        is_package = is_package and self.is_in_tree(live.path)
        self._adds = self._adds and (kind is Kind.NEW or not is_read) and not is_package
        self._hides = self._hides or (kind is Kind.NEW and is_package)
        if self.is_in_tree(live.path) and not live.path.endswith("/__pycache__"):
            self._new[live.path].add(name)
        if old is not None and old.is_directory and not old.target and kind is not Kind.MODE:
            self._list(old)
        if kind is Kind.FILE and source is not None and name.endswith(".py"):
            self.compare_times(source.real, path)

    def _list(self, old: Entry) -> None:
        """Note what is in a directory that leaves its place, at whatever depth: the commit compares it."""
        names = {name: child.is_directory and not child.target for name, child in old.children.items()}
        names.pop("__pycache__", None)
        self._moved.append(Listed(old.path, old.mode, old.inode, old.ctime_ns, names))
        for name, is_directory in names.items():
            if is_directory:
                self._list(old.children[name])

    def _seen(self, entry: Entry, path: str) -> Seen:
        if entry.is_directory and not entry.target:
            return Seen(entry.mode, 0, 0)
        return self._situation.read(path)

    def _split(self, path: str) -> tuple[int, str]:
        """The number of the innermost root that `path` lies in, -1 for none, and the path relative to it."""
        above = join(os.path.dirname(path), "")
        roots = [root for root in self._situation.roots if above.startswith(join(root, ""))]
        if not roots:
            return -1, ""
        root = max(roots, key=len)
        return self._situation.roots.index(root), path[len(root) :].lstrip("/")

    def _part(self, live: Entry, source: Source | None) -> int:
        part = self._situation.parts.get(live.inside)
        if part is not None and (source is None or source.part == part):
            return part
        staged = source.real if source is not None else ""
        above = source.above if source is not None else None
        # All files of a directory need the same part; directories in it may lead to other volumes again.
        if above is not None and above.path and not any(child.is_directory for child in above.entry.children.values()):
            staged = above.real
        raise NeedsPart(live.inside, self._top_of_volume(live), staged)

    def _top_of_volume(self, live: Entry) -> str:
        """The outermost directory of a volume that may be changed: nothing will move it."""
        top = live.path
        for path in ancestors(live.path):
            entry = self.entered.get(path)
            if entry is None or entry.inside != live.inside or self._split(join(path, "-"))[0] < 0:
                break
            if entry.is_writable:
                top = path
        return top

    def _rank(self, operation: Operation, path: str) -> tuple[int, int, int]:
        """When an operation's turn comes: metadata is there only with all the rest, scripts only with what they use.

        Sources come after their bytecode and leave before it, so that no importer writes it in between. A symbolic link
        comes after the files, one of which it may lead to, and leaves before them.
        """
        is_outside, count = not self.is_in_tree(path), len(self._operations)
        is_leaving = operation.kind is Kind.REMOVE
        moved = operation.old if is_leaving else operation.new
        is_link = moved is not None and stat.S_ISLNK(moved.mode)
        metadata = _METADATA.search(operation.path)
        if metadata is None:
            return (4 if is_outside else 5, not is_link, -count) if is_leaving else (int(is_outside), is_link, count)
        turn = self._order.get(operation.path[: metadata.end(1)].rpartition("/")[2], len(self._order))
        return (3, -turn, 0) if is_leaving else (2, turn, 0)
