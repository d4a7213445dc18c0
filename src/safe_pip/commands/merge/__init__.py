"""`safe-pip merge`: what `cp -Rp STAGED/. PREFIX` does, as one transaction.

What is staged is compared with the prefix, copied into the stage, and committed as one change. Times do not count, so
that a file that was built again and did not change is left alone. Staged directories stay writable for their owner; the
plan has the modes that they are to get.
"""

import enum
import errno
import filecmp
import json
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder, state, state_of, until_current
from safe_pip.commands.merge.earlier import Attempt, Owned, Transactions, Unmerged, is_closed, named
from safe_pip.commands.merge.manifest import ALL, Manifest, Put
from safe_pip.commands.options import Namespace, tell, warn
from safe_pip.environment.change import Terms, sweep_target
from safe_pip.environment.environment import Prefix
from safe_pip.environment.snapshot import Ownership, Snapshot, hides
from safe_pip.errors import MergeRefused, StalePlan, Unmergeable
from safe_pip.fs import Directory, attributes
from safe_pip.fs.space import not_writable, staging
from safe_pip.locking.state_directory import NAME
from safe_pip.merge.plan import ExactTree, Plan, Removal, Seen
from safe_pip.merge.tree import ancestors
from safe_pip.messages import count, say
from safe_pip.records import RECORD, RealPaths, is_bytecode, is_own, project_of

_DEEPEST = 256
"""How many directories may lie in each other. Walking through them takes as many frames of the interpreter's stack."""
_INFO = (".dist-info", ".egg-info")


class Conflicts(Unmergeable):
    """Files exist with other content, and the user wants none of them replaced."""

    def __init__(self, found: Sequence[Owned]) -> None:
        super().__init__(f"{count(len(found), 'file')} {'exists' if len(found) == 1 else 'exist'} with other content")
        self.found = tuple(found)


@dataclass(frozen=True)
class Request:
    """What the user asked for; `staged` has no symbolic link in it. `replaces` is a manifest whose files may go."""

    staged: Path
    policy: str = "warn"
    manifest: Path | None = None
    is_moved: bool = False
    is_trial: bool = False
    """What would be done is only looked for."""
    replaces: Path | None = None

    @property
    def written(self) -> Path | None:
        return self.manifest or self.replaces

    @property
    def old(self) -> list[Path]:
        """The manifests that it replaces, its own first. One to be replaced may be gone once its own is there."""
        named = dict.fromkeys(path for path in (self.manifest, self.replaces) if path is not None)
        there = [path for path in named if fs.look(path, follows=False) is not None]
        return there or ([] if self.replaces is None else [self.replaces])


class Merged(NamedTuple):
    """What a merge has done; all paths are absolute. `outside` lies outside the prefix, and was left alone.

    `unmerged` tells what became of the files that its old manifests list.
    """

    into: Path
    put: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    replaced: tuple[Owned, ...] = ()
    kept: tuple[Owned, ...] = ()
    removed: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    unmerged: Unmerged | None = None

    @property
    def is_changed(self) -> bool:
        return bool(self.put or self.made or self.removed or (self.unmerged and self.unmerged.directories))


def main(options: Namespace, context: Context) -> int:
    staged = Path(os.path.realpath(options.staged))
    if not fs.is_directory(staged):
        raise Unmergeable(f"`{staged}` is not a directory" if fs.look(staged) else f"`{staged}` does not exist")
    find = prefix_finder(options.into, options.env)
    into = find().path
    if into.is_relative_to(staged):
        raise Unmergeable(f"`{into}` lies in `{staged}`, which is to be merged into it")
    manifest, replaces = (path and Path(os.path.realpath(path)) for path in (options.manifest, options.replace))
    request = Request(staged, options.on_conflict, manifest, options.move, options.dry_run, replaces)
    try:
        merged = merge(request, find, context.transaction)
    except Conflicts as error:
        for path, owner in error.found:
            say(f"`{path}` exists with other content, {_owned(owner)}")
        if options.json:
            tell(json.dumps(_document(Merged(into), request, error.found), indent=2))
        raise
    was = "would be" if options.dry_run else "was"
    for found, what in ((merged.replaced, "replaced"), (merged.kept, "kept with its other content")):
        for path, owner in found:
            warn(options, f"`{path}` {was} {what}, {_owned(owner)}")
    for path in merged.outside if not options.quiet else ():
        say(f"`{path}` lies outside the prefix and {was} left alone")
    if merged.unmerged is not None:
        merged.unmerged.tell_kept(options)
    if options.json:
        tell(json.dumps(_document(merged, request), indent=2))
    elif not options.quiet:
        tell("\n".join((*(_details(merged) if options.verbose else ()), _summary(merged, options))))
    return 0


def _owned(owner: str | None) -> str:
    if owner is not None and os.path.isabs(owner):
        return f"which the manifest `{owner}` lists"
    return f"which {'no distribution' if owner is None else f'`{owner}`'} owned"


def _details(merged: Merged) -> Iterator[str]:
    for what in ("put", "made", "same", "removed"):
        yield from (f"{what}: {path}" for path in getattr(merged, what))


def _summary(merged: Merged, options: Namespace) -> str:
    if not merged.is_changed:
        return f"Nothing to merge: all of it is in `{merged.into}`"
    put, made, removed = count(len(merged.put), "file"), count(len(merged.made), "directory"), len(merged.removed)
    directories = f" and {made}" if merged.made else ""
    said = f"{'Would merge' if options.dry_run else 'Merged'} {put}{directories} into `{merged.into}`"
    more = [f"{len(merged.same)} {'was' if len(merged.same) == 1 else 'were'} there"] if merged.same else []
    if removed:
        gone = "would go" if options.dry_run else "is gone" if removed == 1 else "are gone"
        more.append(f"{removed} of old versions {gone}")
    return ", ".join([said, *more])


def _document(merged: Merged, request: Request, conflicts: tuple[Owned, ...] = ()) -> dict[str, Any]:
    facts = {name: value for name, value in merged._asdict().items() if name not in ("into", "unmerged")}
    old = (merged.unmerged or Unmerged(merged.into)).document()
    return {
        "format": 1,
        "prefix": str(merged.into),
        **facts,
        **old,
        "replaced": named(merged.replaced),
        "kept": named(merged.kept, "conflict") + old["kept"],
        "conflicts": named(conflicts),
        "changed": merged.is_changed,
        "manifest": None if conflicts or request.written is None else str(request.written),
        "dry_run": request.is_trial,
    }


class Verdict(enum.Enum):
    NEW = "new"
    """Nothing is in its place, or a file of a distribution that it replaces."""
    SAME = "same"
    CONFLICT = "conflict"


class Item(NamedTuple):
    """Something staged: `path` relative to the staged tree, `live` its place (absolute, parents resolved).

    `seen` is what is at that place, None for nothing; `target` the text of a symbolic link.
    """

    path: str
    live: str
    status: os.stat_result
    verdict: Verdict
    seen: os.stat_result | None = None
    target: str = ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def _walk(staged: str, below: str, live: str, links: Collection[str], *, is_there: bool = True) -> Iterator[Item]:
    """Everything in a staged directory, which is to be at `live`; whether that is there already. The `links` go."""
    directory = os.path.join(staged, below)
    for name in sorted(os.listdir(directory)):
        path = os.path.join(below, name)
        if name == NAME or name.startswith(f"{NAME}-") or is_bytecode(path):
            continue
        if path.count(os.sep) > _DEEPEST:
            raise Unmergeable(f"`{directory}` lies too deep")
        status = os.lstat(os.path.join(staged, path))
        place = os.path.join(live, name)
        seen = fs.look(place, follows=False) if is_there else None
        if stat.S_ISDIR(status.st_mode):
            is_found = seen is not None and place not in links
            real = os.path.realpath(place) if is_found else ""  # of a link that leads to itself: the link
            found = fs.look(real, follows=False) if is_found else None
            is_entered = found is not None and stat.S_ISDIR(found.st_mode)
            if is_entered:
                place, seen = real, found
            yield Item(path, place, status, Verdict.SAME if is_entered else Verdict.NEW, seen)
            yield from _walk(staged, path, place, links, is_there=is_entered)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            target = os.readlink(os.path.join(staged, path)) if stat.S_ISLNK(status.st_mode) else ""
            item = Item(path, place, status, Verdict.NEW, seen, target)
            yield item._replace(verdict=_verdict(os.path.join(staged, path), item))
        else:
            raise Unmergeable(f"`{os.path.join(staged, path)}` is neither a file, a directory nor a symbolic link")


def _once(staged: str, items: Iterator[Item]) -> Iterator[Item]:
    """Each file once: through a link in the prefix two staged files may have the same place."""
    found: dict[str, Item] = {}
    for item in items:
        other = found.setdefault(item.live, item) if not item.is_directory else item
        if other is item:
            yield item
            continue
        one, two = os.path.join(staged, other.path), os.path.join(staged, item.path)
        if item.target != other.target or not (item.target or _is_same(one, other.status, two, item.status)):
            raise Unmergeable(f"`{one}` and `{two}` are to be at the same place, `{item.live}`")


def _verdict(source: str, item: Item) -> Verdict:
    if item.seen is None:
        return Verdict.NEW
    if stat.S_ISDIR(item.seen.st_mode):
        # `lib64 -> lib`, where `lib` leads to the directory `lib64`: the link leads there already.
        leads_to = os.path.realpath(os.path.join(os.path.dirname(item.live), item.target))
        return Verdict.SAME if item.target and leads_to == item.live else Verdict.NEW  # which the merge's plan refuses
    if item.target:
        is_same = stat.S_ISLNK(item.seen.st_mode) and os.readlink(item.live) == item.target
    else:
        is_same = _is_same(source, item.status, item.live, item.seen)
    return Verdict.SAME if is_same else Verdict.CONFLICT


def _is_same(source: str, status: os.stat_result, live: str, seen: os.stat_result) -> bool:
    mode = stat.S_IMODE(status.st_mode)
    if sys.platform != "win32" and os.geteuid() != 0:  # setuid and setgid are not passed on with a file of another user
        mode &= ~(stat.S_ISUID if status.st_uid != seen.st_uid else 0)
        mode &= ~(stat.S_ISGID if status.st_gid != seen.st_gid else 0)
    elif (status.st_uid, status.st_gid) != (seen.st_uid, seen.st_gid):
        return False
    is_alike = stat.S_ISREG(seen.st_mode) and mode == stat.S_IMODE(seen.st_mode)
    return is_alike and filecmp.cmp(source, live, shallow=False)


def _distributions(staged: str, items: list[Item], prefix: Prefix) -> tuple[dict[str, str], list[Removal]]:
    """The projects that are staged in a tree, and what they replace: what is there of them in another state."""
    paths, projects, replaced = RealPaths(), dict[str, str](), list[Removal]()
    found: dict[tuple[str, str], str] = {}
    same = {item.path for item in items if item.verdict is Verdict.SAME}
    for item in items:
        tree, info = os.path.split(item.live)
        if not item.is_directory or not info.endswith(".dist-info") or not prefix.is_tree(tree):
            continue
        project = projects[item.path] = project_of(info)
        other = found.setdefault((tree, project), item.path)
        if other != item.path:
            raise Unmergeable(f"`{staged}` holds `{project}` twice, in `{other}` and in `{item.path}`")
        names = os.listdir(tree) if fs.is_directory(tree) else []
        old = [name for name in names if name.endswith(_INFO) and project_of(name) == project]
        # A file that was changed since in one that stays is in conflict like any other.
        if not old or (old == [info] and os.path.join(item.path, RECORD) in same):
            continue
        files = set[str]()
        for path in (os.path.join(tree, name) for name in old):
            if path.endswith(".dist-info") and not os.path.lexists(os.path.join(path, RECORD)):
                why = f"`{project}` is there in `{path}`, which has no RECORD: nothing says which files it has"
                raise Unmergeable(why)
            files |= {path, *paths.files_of(path)}
        replaced.append(Removal(project, Path(tree), frozenset(files)))
    return projects, replaced


@contextmanager
def reading(path: str = "") -> Iterator[None]:
    """Within, what cannot be read that is to be compared or copied raises `Unmergeable`."""
    try:
        yield
    except OSError as error:
        raise Unmergeable(f"`{path or os.fsdecode(error.filename or '')}` cannot be read: {error.strerror}") from error


def merge(request: Request, find: Callable[[], Prefix], transactions: Transactions) -> Merged:
    """Merge; on return all is in its place, on error nothing was changed. Raises `Unmergeable` or as a commit does."""
    is_new = not fs.is_directory(find().path)  # an attempt may make it, and find at its end that it has to be repeated
    try:
        return until_current(lambda: _Merge(find, transactions).carry_out(request, is_new=is_new))
    except MergeRefused as error:
        raise Unmergeable(error.message) from error


class _Merge(Attempt):
    _request: Request
    _is_new: bool  # whether the prefix was missing
    _items: list[Item]  # all that is staged, parents before what is in them
    _wanted: list[Item]  # what is to be put, with the directories above it
    _put: frozenset[str]  # the paths of `_wanted` in the staged tree, directories left out
    _conflicts: dict[str, str | None]  # the places of files with other content, with their owners
    _projects: dict[str, str]  # the distributions that are staged, by the staged directory of their metadata
    _replaced: list[Removal]
    _going: set[str]  # the files and metadata directories of those, and files of old manifests
    _found: Unmerged  # what the old manifests list, without what is staged

    def carry_out(self, request: Request, *, is_new: bool) -> Merged:
        self._request, self._is_new = request, is_new
        with self._looking() if request.is_trial else self._tidying():
            replaced = request.old  # now that a killed command has been undone
            self._read(replaced, [request.written] if request.written else [])
            outside = self._compare(str(request.staged))
            items, policy, conflicts = self._items, request.policy, tuple(self._conflicts.items())
            if conflicts and policy == "fail":
                raise Conflicts(conflicts)
            self._wanted = _wanted(items, conflicts=policy == "warn")
            self._put = frozenset(item.path for item in self._wanted if not item.is_directory)
            merged = Merged(
                self._prefix.path,
                tuple(item.live for item in self._wanted if not item.is_directory),
                tuple(item.live for item in self._wanted if item.is_directory and item.verdict is Verdict.NEW),
                tuple(item.live for item in items if item.verdict is Verdict.SAME and not item.is_directory),
                kept=conflicts if policy == "keep" else (),
                removed=tuple(sorted(filter(_is_file, self._going - {item.live for item in items}))),
                outside=outside,
            )
            manifests = self._manifests(merged)
            if request.is_trial:
                self._check_places()
                unmerged = self._found if replaced else None
                return merged._replace(replaced=conflicts if policy == "warn" else (), unmerged=unmerged)
            if self._wanted or self._replaced or self._found.removed or self._found.directories or manifests:
                merged = self._commit(merged, manifests)
            else:
                self._transaction.read(self._check)
                sweep_target(self._transaction.environment, self._prefix.target)
            if request.is_moved:
                self._delete_staged()
        made = (*self._found.directories, *self._found.left)
        found = self._with_left(self._found, made, [path for path in replaced if path != request.written])
        return merged._replace(unmerged=found) if replaced else merged

    def _compare(self, staged: str) -> tuple[str, ...]:
        """Compare with the prefix, or raise `Unmergeable`; on return the files to be replaced that lie outside it."""
        filecmp.clear_cache()
        links = self._sorted(links=True).removed
        with reading():  # too long a path, or a link that leads to itself
            items = list(_once(staged, _walk(staged, "", str(self._prefix.path), links)))
            self._projects, replaced = _distributions(staged, items, self._prefix)
        owned = {path for each in replaced for path in each.files}
        infos = tuple(os.path.join(path, "") for path in owned if path.endswith(_INFO))
        there = {item.live for item in items if item.verdict is Verdict.SAME}
        found = self._sorted({*there, str(self._prefix.path)}, owned)
        own = {*found.removed}
        for number, item in enumerate(items):
            is_own = item.live in own or item.live in owned or item.live.startswith(infos)
            if item.seen is not None and not item.is_directory and is_own:
                items[number] = item._replace(verdict=Verdict.NEW)
        ownership = Ownership(map(str, self._prefix.trees), owned)
        self._items = items
        conflicts = (item.live for item in items if item.verdict is Verdict.CONFLICT)
        self._conflicts = {path: ownership.owner(path) or self._listed_by(path) for path in conflicts}
        inside = {path for path in owned if path.startswith(os.path.join(self._prefix.path, ""))}
        self._going = inside | own
        self._replaced = [each._replace(files=each.files & inside) for each in replaced]
        staged_ones = {item.live for item in items}
        met = self._going | staged_ones
        self._found = self._foreseen(found, self._going)._replace(
            removed=tuple(sorted(own - staged_ones)),
            changed=tuple(path for path in found.changed if path not in met),
            owned=tuple(each for each in found.owned if each[0] not in met),
        )
        return tuple(sorted(owned - inside))

    def _check_places(self) -> None:
        """Raise `Unmergeable` if a file is in the place of a directory, or the reverse, as the plan of a merge does."""
        for item in self._wanted:
            is_directory = item.seen is not None and stat.S_ISDIR(item.seen.st_mode)
            if item.seen is None or item.is_directory == is_directory or item.live in self._going:
                continue
            if item.is_directory:
                why = "is a file, and nothing that is replaced owns it: a directory has to be there"
                raise Unmergeable(f"`{item.live}` {why}")
            if not any(each.startswith(os.path.join(item.live, "")) for each in self._going):
                raise Unmergeable(f"`{item.live}` is a directory: a file has to be there")

    def _listed_by(self, path: str) -> str | None:
        """The manifest that lists a file with the content that it has, or at least lists it."""
        name = os.path.relpath(path, self._prefix.path)
        with suppress(OSError):
            if found := self._neighbours.owner(name, Put.of(path)):
                return found
        old = (str(path) for path, old in self._old.items() if name in old.entries)
        return self._neighbours.owner(name) or next(old, None)

    def _commit(self, merged: Merged, manifests: dict[Path, bytes]) -> Merged:
        place = str(self._prefix.path)
        modes: dict[str, Seen] = {}  # filled when the directories are staged
        opened = frozenset(item.live for item in self._items if _is_opened(item)) | self._closed()
        made = {*self._found.directories, *self._found.left, *self._made_by_replaced()} if self._old else None
        exact = ExactTree(modes, opened, made, self._entered(), frozenset(map(str, manifests)))
        with self._transaction.staging(self._prefix.target, Terms(self._shadows, self._judge, exact)) as change:
            change.mirror(place)
            _copy(self._request, self._wanted, change.staged(place), place, modes)
            for info, project in self._new_projects():
                change.add(project, os.path.join(change.staged(place), info, "RECORD"))
            for each in self._replaced:
                change.remove(each)
            self._replace(change, manifests, self._going)
            replaced = self._transaction.commit(change, self._validate)
            return merged._replace(replaced=tuple((path, self._conflicts.get(path, owner)) for path, owner in replaced))

    def _new_projects(self) -> Iterator[tuple[str, str]]:
        """The distributions that are put there: the staged directory of their metadata, and the project."""
        return (each for each in self._projects.items() if f"{each[0]}/RECORD" in self._put)

    def _judge(self, plan: Plan) -> None:
        """Raise `StalePlan` if what is replaced was not in conflict, `Unmergeable` if a file replaces a directory."""
        if not self._conflicts.keys() >= set(plan.overwritten):
            raise StalePlan((), "what is to be replaced has changed while it was compared")
        for root, path, old, new in ((each.root, each.path, each.old, each.new) for each in plan.operations):
            path = os.path.join(plan.roots[root], path)
            is_over_directory = old and new and stat.S_ISDIR(old.mode) and not stat.S_ISDIR(new.mode)
            if is_over_directory and not any(f"{each}/".startswith(f"{path}/") for each in self._going):
                raise Unmergeable(f"`{path}` is a directory: a file has to be there")

    def _validate(self, now: Snapshot) -> tuple[str, ...]:
        """Raise `StalePlan` if the prefix is not what was compared. The locks are held."""
        self._check()
        before = self._transaction.snapshot or Snapshot()
        projects = self._projects.values()
        if changed := tuple(each for each in projects if now.identity(each) != before.identity(each)):
            raise StalePlan(changed)
        return ()

    def _check(self) -> None:
        """Raise `StalePlan` if something that the merge leaves alone, or that earlier merges have put, has changed."""
        self._check_trees()
        self._check_old()
        for item in self._items:
            is_kept = item.seen is not None and item.path not in self._put
            if is_kept and item.is_directory and item.verdict is Verdict.SAME:
                is_kept = not fs.is_directory(item.live)  # another merge may have been undone, and taken it away
            if is_kept and item.seen is not None and not _is_as_seen(item.live, item.seen):
                raise StalePlan((), f"`{item.live}` changed while this command was at work")

    def _shadows(self, gone: Collection[str]) -> bool:
        """Whether something new hides a module or a project of another tree, or is hidden by one."""
        if self._prefix.is_shipped:
            return False
        new: dict[Path, set[str]] = {}
        for item in self._wanted:
            tree, name = os.path.split(item.live)
            if self._prefix.is_tree(tree) and not name.endswith(".dist-info"):
                new.setdefault(Path(tree), set()).add(name)
        projects = (project for _, project in self._new_projects())
        return hides(new, self._transaction.environment.trees(), projects, gone)

    def _entered(self) -> set[str]:
        """The directories that are there and stay: a distribution's own may be exchanged, if all of it is staged."""
        there = [item for item in self._items if item.is_directory and item.verdict is Verdict.SAME]
        wanted = {item.path for item in self._wanted}
        entered = {above for item in there if item.path not in wanted for above in (item.live, *ancestors(item.live))}
        trees = tuple(os.path.join(tree, "") for tree in self._prefix.trees)
        return entered | {item.live for item in there if not item.live.startswith(trees)}

    def _made_by_replaced(self) -> set[str]:
        """The directories that go with the distributions that are replaced if nothing is left in them, as by pip."""
        found = set[str]()
        trees = {str(tree) for tree in self._prefix.trees}
        for path in (path for each in self._replaced for path in each.files):
            above = [*ancestors(path)]
            below = [number for number, each in enumerate(above) if each in trees]
            found.update(above[: below[0]] if below else above[:1])
        return found - {item.live for item in self._items}

    def _manifests(self, merged: Merged) -> dict[Path, bytes]:
        """The manifests that change, with what they are to have."""
        written = self._request.written
        wanted = {path: self._emptied(path) for path in self._request.old}
        if written is not None:
            if os.path.join(os.path.realpath(written.parent), written.name) in {item.live for item in self._items}:
                raise Unmergeable(f"`{written}` is to be the manifest, and a file that is staged is to be there")
            if is_own(written.name):
                raise Unmergeable(f"`{written}` is to be the manifest, and such names are safe-pip's own")
            if not fs.is_directory(written.parent):
                raise not_writable(written, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
            wanted[written] = self._manifest(merged).encode()
        return {path: content for path, content in wanted.items() if _content(path) != content}

    def _manifest(self, merged: Merged) -> Manifest:
        # One that holds a lock or a mark may be left by a crash, and is removed by the next merge then.
        held = [*self._prefix.target.trees, *self._prefix.target.directories]
        old = (path for path in self._found.directories if any(each.is_relative_to(path) for each in held))
        entries, made = {}, [*merged.made, *self._found.left, *old]
        for item in self._items:
            name = os.path.relpath(item.live, self._prefix.path)
            if name.startswith(f"..{os.sep}"):
                continue
            if item.is_directory and item.verdict is Verdict.SAME:
                is_made = any(name in old.made for old in self._old.values()) or self._claimant(name)
                made += [item.live] if is_made else []
            elif not item.is_directory and (item.path in self._put or item.verdict is Verdict.SAME):
                put = Put.of(os.path.join(self._request.staged, item.path))
                entries[name] = replace(put, was_there=item.path not in self._put and not self._is_put(name, put))
        base = os.path.join(self._prefix.path, "")
        is_listed = any(ALL in old.made for old in self._old.values()) or self._claimant(ALL)
        all_of_it = [ALL] if is_listed or self._is_new else []
        names = (*all_of_it, *dict.fromkeys(path[len(base) :] for path in made if path.startswith(base)))
        opened = [item.live[len(base) :] for item in self._items if _is_opened(item)]
        known = (name for old in self._old.values() for name in old.read_only)
        return Manifest(str(self._prefix.path), entries, names, tuple(dict.fromkeys((*known, *opened))))

    def _is_put(self, name: str, put: Put) -> bool:
        """Whether a merge has put this file, or link, where it is."""
        known = (old.entries.get(name) for old in self._old.values())
        is_own = any(each and not each.was_there and each.is_like(put) for each in known)
        return is_own or self._neighbours.owner(name, put) is not None

    def _delete_staged(self) -> None:
        """Delete what was merged, with its bytecode. What came to it since, or was kept out, stays."""
        left = Verdict.CONFLICT if self._request.policy == "keep" else None
        for item in reversed(self._items):
            path = self._request.staged / item.path
            if item.is_directory:
                _remove_if_empty(path)
            elif item.verdict is not left and _is_as_seen(str(path), item.status):
                with suppress(OSError):
                    fs.unlink(path)
        _remove_if_empty(self._request.staged)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _remove_if_empty(path: Path) -> None:
    fs.remove_tree(path / "__pycache__")
    fs.remove_empty_directories([path])


def _is_file(path: str) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path) and not is_bytecode(path)


def _is_opened(item: Item) -> bool:
    """Whether it is a directory that is read-only, staged and in its place, and that this user may open."""
    return item.is_directory and item.seen is not None and not item.status.st_mode & 0o200 and is_closed(item.seen)


def _is_as_seen(path: str, seen: os.stat_result) -> bool:
    now = state_of(path)  # without the inode: overlayfs gives a file that is linked another one
    return now is not None and now[1:] == state(seen)[1:]


def _wanted(items: list[Item], *, conflicts: bool) -> list[Item]:
    """Those of the items that are to be staged: new ones, those in `conflicts`, and the directories above them."""
    taken: set[str] = set()
    for item in items:
        is_staged = item.verdict is Verdict.NEW or (conflicts and item.verdict is Verdict.CONFLICT)
        path = item.path if is_staged else ""
        while path and path not in taken:
            taken.add(path)
            path = os.path.dirname(path)
    return [item for item in items if item.path in taken]


def _copy(request: Request, items: list[Item], destination: str, place: str, modes: dict[str, Seen]) -> None:
    """Copy staged items, parents before what is in them, to `destination`, whose path ends with `place`.

    `modes` gets what each directory is to become. Raises `Unmergeable` if an item cannot be read, or changes.
    """
    linked: dict[tuple[int, int], str] = {}
    with staging(destination):
        for item in items:
            path, status = os.path.join(request.staged, item.path), item.status
            with ExitStack() as opened:
                with reading(path):
                    source, name = _at(opened, str(request.staged), item.path)
                    if not item.target:
                        os.close(source.open_file(name))
                there, name = _at(opened, destination, item.path)
                if item.is_directory:
                    fs.make_directory(there, name, 0o700)
                    attributes.copy_status(source, name, there, name)
                    given = there.stat(name).st_mode
                    fs.set_mode(there, name, stat.S_IMODE(given) | 0o700)
                    modes[os.path.join(place, item.path).strip("/")] = Seen(given, 0, status.st_mtime_ns)
                    continue
                inode = status.st_dev, status.st_ino
                if inode in linked:
                    fs.link(*_at(opened, destination, linked[inode]), there, name)
                else:
                    (fs.link if request.is_moved else fs.copy)(source, name, there, name)
                if status.st_nlink > 1:
                    linked.setdefault(inode, item.path)
                if state(source.stat(name)) != state(status):
                    raise Unmergeable(f"`{path}` was changed while it was merged")
        for item in reversed(items):  # times last, when nothing is put into them any more
            if item.is_directory:
                with ExitStack() as opened:
                    attributes.set_time(*_at(opened, destination, item.path), item.status.st_mtime_ns)


def _at(opened: ExitStack, root: str, path: str) -> tuple[Directory, str]:
    above, name = os.path.split(path)
    directory = opened.enter_context(Directory.open(root))
    return (opened.enter_context(directory.child(above)) if above else directory), name
