"""Staged tree + live tree -> plan: what a commit has to do so that what is live becomes what was staged.

Pure: it looks at trees in memory, and asks two functions that it is given, and only when it matters: who else owns a
file, and in what state is a file that an operation is about.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from safe_pip.errors import MergeRefused
from safe_pip.merge.incoming import Link, Source, by_name, combine, has_files
from safe_pip.merge.outgoing import Contents, Outgoing, united
from safe_pip.merge.plan import ExactTree, Kind, Seen
from safe_pip.merge.planner import NeedsPart, Plan, Planner
from safe_pip.merge.tree import Entry, Volume, ancestors, is_bytecode, joined

__all__ = ["Link", "MergeRefused", "NeedsPart", "Plan", "Situation", "merge", "read"]


def read(path: str) -> Seen:
    """The state of a file; one that has gone meanwhile is in a state that no file is in."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Seen(0, 0, 0)
    return Seen(info.st_mode, info.st_size, info.st_mtime_ns)


class Situation(NamedTuple):
    """What a merge has to know beside the trees. All paths are absolute, with no symbolic link in them.

    `roots`: nothing outside all of them is changed. `trees`: where distributions are; only below one is a directory
    exchanged. `parts`: for each volume the number of the private directory on it. `entered`: directories that refused
    to be moved as a whole. `can_exchange`: the parts that can. `uid`: who will do it. `foreign`: whether a path is in
    the RECORD of a distribution that stays. `order`: names of the new metadata directories, dependencies first.
    `exactly`: how a tree is put in, or taken out, as it is; None where it is distributions that come and go.
    """

    roots: tuple[str, ...]
    trees: tuple[str, ...]
    parts: Mapping[Volume, int]
    entered: frozenset[str]
    can_exchange: frozenset[int]
    uid: int
    foreign: Callable[[str], bool]
    order: tuple[str, ...] = ()
    read: Callable[[str], Seen] = read
    exactly: ExactTree | None = None


def merge(staged: Sequence[tuple[int, Entry, Entry]], going: Collection[str], situation: Situation) -> Plan:
    """Plan how each staged tree (with the number of its part) is merged into the live one while the files `going` go.

    Raises `NeedsPart` where something lies on a volume for which it is not staged, and `MergeRefused` for what is in
    the way and belongs to nobody who leaves.
    """
    work = _Merge(Outgoing(going), situation)
    for part, entry, live in staged:
        work.start(Source(part, live.path.strip("/"), entry.path, entry), live)
    work.enter_all()
    for path in (situation.exactly.made if situation.exactly is not None else None) or ():
        work.draft.tidy(path)
    return work.draft.finished()


class _Node(NamedTuple):
    """A live directory and what is staged into it, from wherever a symbolic link leads there."""

    live: Entry
    sources: list[Source]


class _Merge:
    def __init__(self, going: Outgoing, situation: Situation) -> None:
        self.draft = Planner(situation)
        self._exactly = situation.exactly
        self._going = going
        self._situation = situation
        self._nodes: dict[str, _Node] = {}
        self._starts: list[str] = []
        self._met: set[str] = set()
        kept = {*situation.roots, *situation.trees}
        self._staying = kept.union(*map(ancestors, kept))
        self._unmoved = self._staying | situation.entered

    def start(self, source: Source, live: Entry) -> None:
        """Note that `source` goes into `live`, and so on for all directories that are in both."""
        self._starts.append(live.path)
        self._pair(source, live)

    def _pair(self, source: Source, live: Entry) -> None:
        node = self._nodes.get(live.path)
        if node is None:
            self._nodes[live.path] = _Node(live, [source])
        else:
            self._nodes[live.path] = _Node(united(node.live, live), [*node.sources, source])
        entries = live.entries or {}
        for name, child in (source.entry.entries or {}).items():
            found = entries.get(name) if child.entries is not None else None
            if found is None or not found.is_directory or not (self._exactly or has_files(child)):
                continue
            if found.target:
                path = joined(live.path, name)
                if path in self._going or self._goes_with_all(live.path):
                    continue  # a directory takes the place of the link
                # What is staged for it is to be found in the stage until its turn has come.
                self._unmoved.update((*ancestors(path), *ancestors(found.path)))
                self._starts.append(found.path)
                found = found._replace(target="")
            self._pair(source.child(name, child), found)

    def enter_all(self) -> None:
        """Decide what is to be done, from the first directory down; then where only a symbolic link leads."""
        for path in self._starts:
            if path not in self._met:
                self._met.add(path)
                self._enter(*self._nodes[path], is_going=self._goes_with_all(path))

    def _enter(self, live: Entry, sources: Sequence[Source], *, is_going: bool) -> None:
        """Merge what is staged into a directory with what is in it, name by name."""
        self.draft.enter(live)
        entries = live.entries or {}
        staged = by_name(sources, is_exact=self._exactly is not None)
        if "__pycache__" in entries:
            self._going.judge_bytecode(live, staged, is_going=is_going)
        for name in sorted({*staged, *entries}, key=lambda name: (name != "__pycache__", name)):
            found, given = entries.get(name), staged.get(name, [])
            if found is None:
                self._put(live, name, given)
            elif not found.is_directory or found.target:
                goes = is_going or joined(live.path, name) in self._going
                self._replace_file(live, name, found, given, is_going=goes)
            else:
                self._merge_directory(live, name, found, given, is_going=is_going)

    def _put(self, live: Entry, name: str, given: Sequence[Source]) -> None:
        source = self._one(joined(live.path, name), given)
        if source is not None:
            self.draft.add(Kind.NEW, live, name, source)

    def _replace_file(self, live: Entry, name: str, found: Entry, given: Sequence[Source], *, is_going: bool) -> None:
        if found.target and not is_going and all(source.entry.is_directory for source in given):
            return  # what is staged goes where the link leads
        path = joined(live.path, name)
        source = self._one(path, given)
        if source is None:
            if is_going:
                self.draft.add(Kind.REMOVE, live, name, old=found)
        elif not source.entry.is_directory:
            self.draft.add(Kind.FILE, live, name, source, old=found)
            if not is_going and not is_bytecode(name, live.path):
                self.draft.overwritten.append(path)
        elif is_going:
            self.draft.add(Kind.SWAP, live, name, source, old=found)
        else:
            self.draft.refuse(f"`{path}` is a file, and nothing that is replaced owns it: a directory has to be there")

    def _merge_directory(
        self, live: Entry, name: str, found: Entry, given: Sequence[Source], *, is_going: bool
    ) -> None:
        path = found.path
        if path in self._met:
            return
        self._met.add(path)
        node = self._nodes.get(path)
        sources = node.sources if node is not None else []
        if node is not None and node.live is not found:
            found = united(found, node.live)
        is_going = is_going or self._goes_whole(path)
        files = [source for source in given if not source.entry.is_directory]
        if files:
            contents = self._going.contents(found, is_going=is_going)
            source = self._one(path, [*files, *sources])
            if contents.is_missed or not self._can_move(live, found):
                self.draft.refuse(f"`{path}` is a directory with files of others in it: a file has to be there")
            elif source is not None:
                self._move(Kind.SWAP, live, name, found, contents, source)
        elif not sources:
            if is_going or self._going.is_below(path):
                self._remove_directory(live, name, found, is_going=is_going)
        elif not self._exchange(live, name, found, sources, is_going=is_going):
            self._enter(found, sources, is_going=is_going)

    def _remove_directory(self, live: Entry, name: str, found: Entry, *, is_going: bool) -> None:
        contents = self._going.contents(found, is_going=is_going)
        if contents.is_missed or not self._may_go(found):
            self._enter(found, (), is_going=is_going)
        elif self._can_move(live, found):
            self._move(Kind.REMOVE, live, name, found, contents)
        else:
            self._enter(found, (), is_going=found.path not in self._staying)
            is_filled = any(path.startswith(joined(found.path, "")) for path in self._starts)
            if found.path not in self._staying and found.inside == live.inside and not is_filled:
                self.draft.emptied.append(found.path)

    def _exchange(self, live: Entry, name: str, found: Entry, sources: Sequence[Source], *, is_going: bool) -> bool:
        """Plan to exchange the whole directory; False if it has to be entered."""
        if not self.draft.is_in_tree(found.path) or not self._can_move(live, found):
            return False
        contents = self._going.contents(found, is_going=is_going)
        # What was left with bytecode only is litter of an uninstall.
        is_left = contents.has_going or (contents.has_bytecode and not contents.others)
        others = [joined(found.path, path) for path in contents.others]
        if contents.is_fixed or not is_left or any(map(self._situation.foreign, others)):
            return False
        source = self._one(found.path, sources)
        if source is None:
            return False
        for path in contents.others:
            self._carry_over(source, path, joined(found.path, path))
        kind = Kind.EXCHANGE if source.part in self._situation.can_exchange else Kind.SWAP
        self._move(kind, live, name, found, contents, source)
        self._compare_times(source.entry, source.real, found)
        return True

    def _goes_whole(self, path: str) -> bool:
        return path not in self._staying and self._going.is_whole(path)

    def _goes_with_all(self, path: str) -> bool:
        """Whether all that is in a directory goes because of what that is, or of what it lies in."""
        return self._goes_whole(path) or any(map(self._goes_whole, ancestors(path)))

    def _may_go(self, found: Entry) -> bool:
        """Whether this directory, and each that is in it, was made by what goes; the import system makes its own."""
        made = self._exactly.made if self._exactly is not None else None
        if made is None or found.path.endswith("/__pycache__"):
            return True
        below = (child for child in (found.entries or {}).values() if child.is_directory and not child.target)
        return found.path in made and all(map(self._may_go, below))

    def _can_move(self, live: Entry, found: Entry) -> bool:
        is_allowed = self._situation.uid in (0, found.uid) or found.is_writable
        return is_allowed and found.path not in self._unmoved and found.inside == live.inside

    def _move(
        self, kind: Kind, live: Entry, name: str, found: Entry, contents: Contents, source: Source | None = None
    ) -> None:
        # Who moves a directory to another parent writes in it: its `..` changes (rename(2), EACCES).
        if found.uid == self._situation.uid != 0 and not found.mode & 0o200:
            self.draft.add(Kind.MODE, live, name, old=found)
        self.draft.add(kind, live, name, source, old=found, known=tuple(contents.files))

    def _carry_over(self, source: Source, relative: str, path: str) -> None:
        """Have the file of nobody's at `path` linked into the staged directory that takes the place of its own."""
        entry: Entry | None = source.entry
        for name in relative.split("/"):
            if entry is None:
                break
            if entry.entries is None:
                self.draft.refuse(f"`{path}` belongs to nobody, and what it lies in becomes a file")
                return
            entry = entry.entries.get(name)
        if entry is None:
            self.draft.links.append(Link(path, f"{source.real}/{relative}"))
        elif entry.is_directory:
            self.draft.refuse(f"`{path}` is a file, and nothing that is replaced owns it: a directory has to be there")
        else:
            self.draft.overwritten.append(path)

    def _compare_times(self, staged: Entry, real: str, live: Entry) -> None:
        entries = live.entries or {}
        for name, child in (staged.entries or {}).items():
            found = entries.get(name)
            if found is None:
                continue
            if child.entries is not None:
                if found.entries is not None and not found.target:
                    self._compare_times(child, f"{real}/{name}", found)
            elif name.endswith(".py") and not found.is_directory:
                self.draft.compare_times(f"{real}/{name}", joined(live.path, name))

    def _one(self, path: str, given: Sequence[Source]) -> Source | None:
        try:
            return combine(given, self.draft.links)
        except ValueError:
            self.draft.refuse(f"`{path}` is staged as a file and as a directory")
            return None
