"""`safe-pip merge`: what `cp -Rp STAGED/. PREFIX` does, as one transaction.

What is staged is compared with the prefix, copied into the stage, and committed as one change. Times do not count, so
that a file that was built again and did not change is left alone. Staged directories stay writable for their owner; the
plan has the modes that they are to get.
"""

import enum
import filecmp
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder, state, state_of, until_current
from safe_pip.commands.merge.manifest import Manifest, Put
from safe_pip.commands.options import Namespace, tell, warn
from safe_pip.environment.change import Terms, sweep_target
from safe_pip.environment.environment import Prefix
from safe_pip.environment.snapshot import Ownership, Snapshot, hides
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import MergeRefused, SafePipError, StalePlan, State, Unmergeable
from safe_pip.fs import Directory, attributes
from safe_pip.fs.proc import user
from safe_pip.fs.space import staging
from safe_pip.locking.state_directory import NAME
from safe_pip.merge.plan import ExactTree, Plan, Removal, Seen
from safe_pip.messages import count, say
from safe_pip.records import RECORD, RealPaths, is_bytecode, project_of

_DEEPEST = 256
"""How many directories may lie in each other. Walking through them takes as many frames of the interpreter's stack."""
_INFO = (".dist-info", ".egg-info")
Transactions = Callable[[Sequence[str]], Transaction]
"""Makes the transaction of an environment whose distributions lie in these directories."""
Owned = tuple[str, "str | None"]
"""A path and the distribution that owns it, if one does."""


class Conflicts(Unmergeable):
    """Files exist with other content, and the user wants none of them replaced."""

    def __init__(self, found: Sequence[Owned]) -> None:
        super().__init__(f"{count(len(found), 'file')} {'exists' if len(found) == 1 else 'exist'} with other content")
        self.found = tuple(found)


@dataclass(frozen=True)
class Request:
    """What the user asked for; `staged` has no symbolic link in it."""

    staged: Path
    policy: str = "warn"
    manifest: Path | None = None
    is_moved: bool = False
    is_trial: bool = False
    """What would be done is only looked for."""


class Merged(NamedTuple):
    """What a merge has done; all paths are absolute. `outside` lies outside the prefix, and was left alone."""

    into: Path
    put: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    replaced: tuple[Owned, ...] = ()
    kept: tuple[Owned, ...] = ()
    removed: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    @property
    def is_changed(self) -> bool:
        return bool(self.put or self.made or self.removed)


def main(options: Namespace, context: Context) -> int:
    staged = Path(os.path.realpath(options.staged))
    if not fs.is_directory(staged):
        raise Unmergeable(f"`{staged}` is not a directory" if fs.look(staged) else f"`{staged}` does not exist")
    find = prefix_finder(options.into, options.env)
    into = find().path
    if into.is_relative_to(staged):
        raise Unmergeable(f"`{into}` lies in `{staged}`, which is to be merged into it")
    manifest = None if options.manifest is None else Path(os.path.realpath(options.manifest))
    request = Request(staged, options.on_conflict, manifest, options.move, options.dry_run)
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
    if options.json:
        tell(json.dumps(_document(merged, request), indent=2))
    elif not options.quiet:
        tell("\n".join((*(_details(merged) if options.verbose else ()), _summary(merged, options))))
    return 0


def _owned(owner: str | None) -> str:
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
    facts = {name: value for name, value in merged._asdict().items() if name != "into"}
    return {
        "format": 1,
        "prefix": str(merged.into),
        **facts,
        "replaced": named(merged.replaced),
        "kept": named(merged.kept, "conflict"),
        "conflicts": named(conflicts),
        "changed": merged.is_changed,
        "manifest": None if conflicts or request.manifest is None else str(request.manifest),
        "dry_run": request.is_trial,
    }


def named(found: tuple[Owned, ...], reason: str = "") -> list[dict[str, str | None]]:
    """Paths with their owners, for the JSON document; if they are kept, with the reason."""
    more = {"reason": reason} if reason else {}
    return [{"path": path, "owner": owner, **more} for path, owner in found]


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


def _walk(staged: str, below: str, live: str, *, is_there: bool = True) -> Iterator[Item]:
    """Everything in a staged directory, which is to be at `live`; whether that is there already."""
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
            real = os.path.realpath(place) if seen is not None else ""  # of a link that leads to itself: the link
            found = fs.look(real, follows=False) if seen is not None else None
            is_entered = found is not None and stat.S_ISDIR(found.st_mode)
            if is_entered:
                place, seen = real, found
            yield Item(path, place, status, Verdict.SAME if is_entered else Verdict.NEW, seen)
            yield from _walk(staged, path, place, is_there=is_entered)
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
    try:
        return until_current(lambda: _Merge(find, transactions).carry_out(request))
    except MergeRefused as error:
        raise Unmergeable(error.message) from error


class Attempt:
    """One attempt to change the prefix that `find` finds."""

    def __init__(self, find: Callable[[], Prefix], transactions: Transactions) -> None:
        self._find = find
        self._prefix = find()
        self._transaction = transactions(self._prefix.environment)

    @contextmanager
    def _tidying(self) -> Iterator[None]:
        """Take the snapshot, which undoes what a killed command left, perhaps a tree (`StalePlan`); tidy at the end."""
        try:
            with self._looking():
                yield
        finally:
            self._transaction.environment.tidy(self._prefix.stateless_trees)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        self._transaction.take_snapshot(lambda: None)
        self._check_trees()
        yield

    def _check_trees(self) -> None:
        if self._find().trees != self._prefix.trees:
            raise StalePlan((), f"`{self._prefix.path}` changed while this command was at work")


class _Merge(Attempt):
    _request: Request
    _items: list[Item]  # all that is staged, parents before what is in them
    _wanted: list[Item]  # what is to be put, with the directories above it
    _put: frozenset[str]  # the paths of `_wanted` in the staged tree, directories left out
    _conflicts: dict[str, str | None]  # the places of files with other content, with their owners
    _projects: dict[str, str]  # the distributions that are staged, by the staged directory of their metadata
    _replaced: list[Removal]
    _going: set[str]  # the files and metadata directories of those that are replaced

    def carry_out(self, request: Request) -> Merged:
        self._request = request
        with self._looking() if request.is_trial else self._tidying():
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
            if request.is_trial:
                self._check_places()
                return merged._replace(replaced=conflicts if policy == "warn" else ())
            with self._recorded(merged):
                if self._wanted or self._replaced:
                    merged = self._commit(merged)
                else:
                    self._transaction.read(self._check)
                    sweep_target(self._transaction.environment, self._prefix.target)
            if request.is_moved:
                self._delete_staged()
            return merged

    def _compare(self, staged: str) -> tuple[str, ...]:
        """Compare with the prefix, or raise `Unmergeable`; on return the files to be replaced that lie outside it."""
        filecmp.clear_cache()
        with reading():  # too long a path, or a link that leads to itself
            items = list(_once(staged, _walk(staged, "", str(self._prefix.path))))
            self._projects, replaced = _distributions(staged, items, self._prefix)
        owned = {path for each in replaced for path in each.files}
        infos = tuple(os.path.join(path, "") for path in owned if path.endswith(_INFO))
        for number, item in enumerate(items):
            if item.seen is not None and not item.is_directory and (item.live in owned or item.live.startswith(infos)):
                items[number] = item._replace(verdict=Verdict.NEW)
        ownership = Ownership(map(str, self._prefix.trees), owned)
        self._items = items
        self._conflicts = {item.live: ownership.owner(item.live) for item in items if item.verdict is Verdict.CONFLICT}
        self._going = {path for path in owned if path.startswith(os.path.join(self._prefix.path, ""))}
        self._replaced = [each._replace(files=each.files & self._going) for each in replaced]
        return tuple(sorted(owned - self._going))

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

    def _commit(self, merged: Merged) -> Merged:
        place = str(self._prefix.path)
        modes: dict[str, Seen] = {}  # filled when the directories are staged
        exact = ExactTree(modes, frozenset(item.live for item in self._items if _is_opened(item)))
        with self._transaction.staging(self._prefix.target, Terms(self._shadows, self._judge, exact)) as change:
            change.mirror(place)
            _copy(self._request, self._wanted, change.staged(place), place, modes)
            for info, project in self._new_projects():
                change.add(project, os.path.join(change.staged(place), info, "RECORD"))
            for each in self._replaced:
                change.remove(each)
            return merged._replace(replaced=self._transaction.commit(change, self._validate))

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
        """Raise `StalePlan` if something that the merge leaves alone has changed."""
        self._check_trees()
        for item in self._items:
            is_kept = item.path not in self._put and not item.is_directory
            if is_kept and item.seen is not None and not _is_as_seen(item.live, item.seen):
                raise StalePlan((), f"`{item.live}` changed while this command was at work")

    def _shadows(self) -> bool:
        """Whether something new hides a module or a project of another tree, or is hidden by one."""
        if self._prefix.is_shipped:
            return False
        new: dict[Path, set[str]] = {}
        for item in self._wanted:
            tree, name = os.path.split(item.live)
            if self._prefix.is_tree(tree) and not name.endswith(".dist-info"):
                new.setdefault(Path(tree), set()).add(name)
        return hides(new, self._transaction.environment.trees(), (project for _, project in self._new_projects()))

    @contextmanager
    def _recorded(self, merged: Merged) -> Iterator[None]:
        """Within, the manifest says what is about to be put, also after a crash; if nothing is put, it is as before."""
        path = self._request.manifest
        if path is None:
            yield
            return
        if os.path.join(os.path.realpath(path.parent), path.name) in {item.live for item in self._items}:
            raise Unmergeable(f"`{path}` is to be the manifest, and a file that is staged is to be there")
        manifest, before = self._manifest(merged), None
        if os.path.lexists(path):
            manifest = manifest.with_earlier(Manifest.read(path))
            before = path.read_bytes()
        manifest.write(path)
        try:
            yield
        except BaseException as error:
            is_unfinished = isinstance(error, SafePipError) and error.state is State.UNFINISHED
            if not (is_unfinished or self._transaction.is_committed):
                with suppress(OSError):
                    fs.unlink(path) if before is None else fs.replace(path, before, mode=0o644)
            raise

    def _manifest(self, merged: Merged) -> Manifest:
        entries = {}
        base = os.path.join(self._prefix.path, "")
        for item in self._items:
            is_listed = item.path in self._put or item.verdict is Verdict.SAME
            if is_listed and not item.is_directory and item.live.startswith(base):
                source = os.path.join(self._request.staged, item.path)
                entries[item.live[len(base) :]] = Put.of(source, was_there=item.path not in self._put)
        made = tuple(path[len(base) :] for path in merged.made if path.startswith(base))
        opened = tuple(item.live[len(base) :] for item in self._items if _is_opened(item))
        return Manifest(str(self._prefix.path), entries, made, opened)

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


def _remove_if_empty(path: Path) -> None:
    fs.remove_tree(path / "__pycache__")
    fs.remove_empty_directories([path])


def _is_file(path: str) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path) and not is_bytecode(path)


def _is_opened(item: Item) -> bool:
    """Whether it is a directory that is read-only, staged and in its place, and that this user may open."""
    return item.is_directory and item.seen is not None and not item.status.st_mode & 0o200 and is_closed(item.seen)


def is_closed(status: os.stat_result) -> bool:
    """Whether it is a read-only directory of this user, and this user is not root."""
    return user() == status.st_uid != 0 and not status.st_mode & 0o200


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
