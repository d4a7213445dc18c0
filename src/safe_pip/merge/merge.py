"""What a commit has to do so that what is live becomes what was staged. It looks at trees in memory."""

from collections.abc import Collection, Sequence

from safe_pip.errors import MergeRefused
from safe_pip.merge.outgoing import Contents, Outgoing
from safe_pip.merge.plan import Kind, Link, Plan
from safe_pip.merge.planner import NeedsPart, Planner, Situation
from safe_pip.merge.tree import Entry, Source, ancestors, children, combine, has_files, join, union
from safe_pip.records import is_bytecode

__all__ = ["MergeRefused", "NeedsPart", "Situation", "merge"]


def merge(staged: Sequence[tuple[int, Entry, Entry]], going: Collection[str], situation: Situation) -> Plan:
    """Plan how each staged tree (with the number of its part) is merged into the live one while the files `going` go.

    Raises `NeedsPart`, and `MergeRefused` if something in the way belongs to no distribution that leaves.
    """
    work = _Merge(Outgoing(going), situation)
    for part, entry, live in staged:
        work.starts.append(live.path)
        work.pair(Source(part, live.path.strip("/"), entry.path, entry), live)
    return work.finish()


class _Merge:
    def __init__(self, going: Outgoing, situation: Situation) -> None:
        self.starts: list[str] = []
        self._planner = Planner(situation)
        self._refuse = self._planner.refused.append
        self._is_exact = situation.exactly is not None
        self._made = situation.exactly and situation.exactly.made
        self._going, self._situation = going, situation
        # Each live directory with what is staged into it, also through symbolic links that lead there.
        self._nodes: dict[str, tuple[Entry, list[Source]]] = {}
        self._met: set[str] = set()
        kept = {*situation.roots, *situation.trees}
        self._staying = kept.union(*map(ancestors, kept))
        self._unmoved = self._staying.union(situation.entered, situation.exactly.entered if situation.exactly else ())

    def pair(self, source: Source, live: Entry) -> None:
        """Note that `source` goes into `live`, and so on for all directories that are in both."""
        known, sources = self._nodes.get(live.path, (live, []))
        self._nodes[live.path] = union(known, live) if sources else live, [*sources, source]
        for name, child in source.entry.children.items():
            found = live.children.get(name) if child.entries is not None else None
            if found is None or not found.is_directory or not (self._is_exact or has_files(child)):
                continue
            if found.target:
                path = join(live.path, name)
                if path in self._going.paths or self._goes_with_all(live.path):
                    continue  # a directory takes the place of the link
                # What is staged for it has to stay in the stage until its turn has come.
                self._unmoved.update((*ancestors(path), *ancestors(found.path)))
                self.starts.append(found.path)
                found = found._replace(target="")
            self.pair(source.child(name, child), found)

    def finish(self) -> Plan:
        """Decide what is to be done, from the first directory down, then where only a symbolic link leads."""
        for path in self.starts:
            if path not in self._met:
                self._met.add(path)
                self._enter(*self._nodes[path], is_going=self._goes_with_all(path))
        for path in self._made or ():
            self._planner.tidy(path)
        return self._planner.finished()

    def _enter(self, live: Entry, sources: Sequence[Source], *, is_going: bool) -> None:
        self._planner.entered[live.path] = live
        entries = live.children
        staged = children(sources, is_exact=self._is_exact)
        if "__pycache__" in entries:
            self._going.add_bytecode(live, staged, is_going=is_going)
        for name in sorted({*staged, *entries}, key=lambda name: (name != "__pycache__", name)):
            found, given = entries.get(name), staged.get(name, [])
            if found is None:
                if (source := self._one(join(live.path, name), given)) is not None:
                    self._planner.add(Kind.NEW, live, name, source)
            elif not found.is_directory or found.target:
                goes = is_going or join(live.path, name) in self._going.paths
                self._replace_file(live, name, found, given, is_going=goes)
            else:
                self._merge_directory(live, name, found, given, is_going=is_going)

    def _replace_file(self, live: Entry, name: str, found: Entry, given: Sequence[Source], *, is_going: bool) -> None:
        if found.target and not is_going and all(source.entry.is_directory for source in given):
            return  # what is staged goes where the link leads
        path = join(live.path, name)
        if (source := self._one(path, given)) is None:
            if is_going:
                self._planner.add(Kind.REMOVE, live, name, old=found)
        elif not source.entry.is_directory:
            self._planner.add(Kind.FILE, live, name, source, old=found)
            if not (is_going or is_bytecode(path)):
                self._planner.overwritten.append(path)
        elif is_going:
            self._planner.add(Kind.SWAP, live, name, source, old=found)
        else:
            self._refuse_file(path)

    def _merge_directory(
        self, live: Entry, name: str, found: Entry, given: Sequence[Source], *, is_going: bool
    ) -> None:
        path = found.path
        if path in self._met:
            return
        self._met.add(path)
        known, sources = self._nodes.get(path, (found, []))
        found = union(found, known) if known is not found else found
        is_going = is_going or self._goes_whole(path)
        files = [source for source in given if not source.entry.is_directory]
        if files:
            contents = self._going.contents(found, is_going=is_going)
            source = self._one(path, [*files, *sources])
            if contents.is_fixed or contents.others or not self._can_move(live, found):
                self._refuse(f"`{path}` is a directory with files of others in it: a file has to be there")
            elif source is not None:
                self._move(Kind.SWAP, live, name, found, contents, source)
        elif not sources:
            if is_going or path in self._going.parents:
                self._remove_directory(live, name, found, is_going=is_going)
        elif not self._exchange(live, name, found, sources, is_going=is_going):
            self._enter(found, sources, is_going=is_going)

    def _remove_directory(self, live: Entry, name: str, found: Entry, *, is_going: bool) -> None:
        contents = self._going.contents(found, is_going=is_going)
        if contents.is_fixed or contents.others or not self._may_go(found, is_going=is_going):
            self._enter(found, (), is_going=is_going)
        elif self._can_move(live, found):
            self._move(Kind.REMOVE, live, name, found, contents)
        else:
            self._enter(found, (), is_going=found.path not in self._staying)
            is_filled = any(path.startswith(join(found.path, "")) for path in self.starts)
            if found.path not in self._staying and found.inside == live.inside and not is_filled:
                self._planner.tidy(found.path)

    def _exchange(self, live: Entry, name: str, found: Entry, sources: Sequence[Source], *, is_going: bool) -> bool:
        """Plan to exchange the whole directory; False if it has to be entered.

        Outside the trees this is done only with a directory that pip, too, would remove and make anew.
        """
        is_in_tree = self._planner.is_in_tree(found.path)
        if not self._can_move(live, found) or not (is_in_tree or (not self._is_exact and self._loses_files(found))):
            return False
        contents = self._going.contents(found, is_going=is_going)
        if contents.others and not is_in_tree:
            return False
        # A directory with nothing but bytecode was left by an uninstall.
        is_left = contents.has_going or (contents.has_bytecode and not contents.others)
        others = [join(found.path, path) for path in contents.others]
        if contents.is_fixed or not is_left or any(map(self._situation.foreign, others)):
            return False
        if (source := self._one(found.path, sources)) is None:
            return False
        for path, other in zip(contents.others, others, strict=True):
            self._carry_over(source, path, other)
        kind = Kind.EXCHANGE if source.part in self._situation.can_exchange else Kind.SWAP
        self._move(kind, live, name, found, contents, source)
        self._compare_times(source.entry, source.real, found)
        return True

    def _goes_whole(self, path: str) -> bool:
        return path not in self._staying and self._going.is_whole(path)

    def _goes_with_all(self, path: str) -> bool:
        return any(map(self._goes_whole, (path, *ancestors(path))))

    def _may_go(self, found: Entry, *, is_going: bool) -> bool:
        """Whether this directory may go with all below it: in a merge, if it was made by what goes or by an import.

        Outside the trees pip removes only directories that a file goes from: others may be an administrator's.
        """
        if found.path.endswith("/__pycache__"):
            return True
        if self._made is None:
            return is_going or self._loses_files(found) or self._planner.is_in_tree(found.path)
        below = (child for child in found.children.values() if child.is_directory and not child.target)
        return found.path in self._made and all(self._may_go(child, is_going=is_going) for child in below)

    def _loses_files(self, found: Entry) -> bool:
        return any(join(found.path, name) in self._going.paths for name in found.children)

    def _can_move(self, live: Entry, found: Entry) -> bool:
        is_allowed = self._situation.uid in (0, found.uid) or found.is_writable
        return is_allowed and found.path not in self._unmoved and found.inside == live.inside

    def _move(
        self, kind: Kind, live: Entry, name: str, found: Entry, contents: Contents, source: Source | None = None
    ) -> None:
        # Moving a directory to another parent writes in it: its `..` changes (rename(2), EACCES).
        if found.uid == self._situation.uid != 0 and not found.mode & 0o200:
            self._planner.add(Kind.MODE, live, name, old=found)
        self._planner.add(kind, live, name, source, old=found, known=tuple(contents.files))

    def _carry_over(self, source: Source, relative: str, path: str) -> None:
        """Have the unowned file at `path` linked into the staged directory that replaces its own."""
        entry: Entry | None = source.entry
        for name in relative.split("/"):
            if entry is not None and entry.entries is None:
                self._refuse(f"`{path}` has no owner, and its directory becomes a file")
                return
            entry = entry and entry.children.get(name)
        if entry is None:
            self._planner.links.append(Link(path, f"{source.real}/{relative}"))
        elif entry.is_directory:
            self._refuse_file(path)
        else:
            self._planner.overwritten.append(path)

    def _refuse_file(self, path: str) -> None:
        self._refuse(f"`{path}` is a file, and nothing that is replaced owns it: a directory has to be there")

    def _compare_times(self, staged: Entry, real: str, live: Entry) -> None:
        for name, child in staged.children.items():
            found = live.children.get(name)
            if found is None or found.target:
                continue
            if child.entries is not None:
                self._compare_times(child, f"{real}/{name}", found)
            elif name.endswith(".py") and not found.is_directory:
                self._planner.compare_times(f"{real}/{name}", join(live.path, name))

    def _one(self, path: str, given: Sequence[Source]) -> Source | None:
        try:
            return combine(given, self._planner.links)
        except ValueError:
            self._refuse(f"`{path}` is staged as a file and as a directory")
            return None
