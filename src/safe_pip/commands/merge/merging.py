"""One staged tree merged into a prefix: compared, staged, and committed like an install."""

import enum
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.commands.merge.comparison import Comparison, Item, Verdict, compare
from safe_pip.commands.merge.copying import Copying, wanted
from safe_pip.commands.merge.manifest import Manifest, Put
from safe_pip.environment.access import Prefix
from safe_pip.environment.change import Terms, sweep_target
from safe_pip.environment.snapshot import Snapshot, hides
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import MergeRefused, SafePipError, StalePlan, State, Unmergeable
from safe_pip.merge.plan import ExactTree, Kind, Plan, Removal, Seen
from safe_pip.records import is_bytecode

ATTEMPTS = 10
"""How often a merge begins anew when the prefix did not stay what it was held against."""

Transactions = Callable[[Sequence[str]], Transaction]
"""Makes the transaction of an environment whose distributions lie in these directories."""
Owned = tuple[str, "str | None"]
"""A path and the distribution that owns it, if one does."""


class Policy(enum.Enum):
    """What becomes of a file that is there with other content."""

    WARN = "warn"
    FAIL = "fail"
    KEEP = "keep"


class Conflicts(Unmergeable):
    """There are files with other content, and the user wants none of them replaced."""

    code = "conflicts"

    def __init__(self, found: Sequence[Owned]) -> None:
        what = "1 file exists" if len(found) == 1 else f"{len(found)} files exist"
        super().__init__(f"{what} with other content")
        self.found = tuple(found)


@dataclass(frozen=True)
class Request:
    """What the user asked for; `staged` has no symbolic link in it."""

    staged: Path
    policy: Policy = Policy.WARN
    manifest: Path | None = None
    is_moved: bool = False


class Merged(NamedTuple):
    """What a merge has done; all paths are absolute. `outside` was left alone, as it lies outside the prefix."""

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
        """Whether anything in the prefix is another than before."""
        return bool(self.put or self.made or self.removed)


def merge(request: Request, find: Callable[[], Prefix], transactions: Transactions) -> Merged:
    """Merge; on return all of it is in its place, on error nothing was changed. `find` finds the prefix as it is now.

    Raises `Unmergeable` for what cannot be merged and every error of a transaction.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return _Merge(request, find, transactions).carry_out()
        except MergeRefused as error:
            raise Unmergeable(error.message) from error
        except StalePlan:
            if attempt == ATTEMPTS:
                raise


class _Merge:
    """One attempt."""

    def __init__(self, request: Request, find: Callable[[], Prefix], transactions: Transactions) -> None:
        self._request = request
        self._find = find
        self._prefix = find()
        self._transaction = transactions(self._prefix.environment)

    def carry_out(self) -> Merged:
        """Merge, or raise `StalePlan`."""
        try:
            return self._carry_out()
        finally:
            self._transaction.environment.tidy(self._prefix.stateless_trees)

    def _carry_out(self) -> Merged:
        self._recover()
        comparison = self._compared = compare(str(self._request.staged), self._prefix)
        found = tuple((item.live, comparison.owners[item.live]) for item in comparison.conflicts)
        policy = self._request.policy
        if found and policy is Policy.FAIL:
            raise Conflicts(found)
        items = wanted(comparison.items, conflicts=policy is Policy.WARN)
        kept = found if policy is Policy.KEEP else ()
        new = [item for item in items if item.is_directory and item.verdict is Verdict.NEW]
        put = [item for item in items if not item.is_directory]
        self._put = frozenset(item.path for item in put)
        merged = Merged(
            self._prefix.path,
            tuple(item.live for item in put),
            tuple(item.live for item in new),
            tuple(item.live for item in comparison.items if item.verdict is Verdict.SAME and not item.is_directory),
            kept=kept,
            removed=tuple(sorted(_removed(comparison))),
            outside=tuple(path for each in comparison.replaced for path in each.outside),
        )
        with self._recorded(merged):
            if items or comparison.replaced:
                merged = self._commit(items, merged)
            else:
                self._transaction.read(self._check)
                sweep_target(self._transaction.environment, self._prefix.target)
        if self._request.is_moved:
            self._delete_staged()
        return merged

    def _recover(self) -> None:
        """See to it that what is compared is no half of a merge that died: with that a site-packages may go."""
        self._transaction.take_snapshot(lambda: None)
        if self._find().trees != self._prefix.trees:
            raise StalePlan((), f"an unfinished change of `{self._prefix.path}` was undone")

    def _commit(self, items: list[Item], merged: Merged) -> Merged:
        place = str(self._prefix.path)
        modes: dict[str, Seen] = {}  # filled when the directories are staged
        exact = ExactTree(modes, frozenset(map(_live, filter(_is_opened, self._compared.items))))
        terms = Terms(lambda: self._shadows(items), self._judge, exact)
        with self._transaction.staging(self._prefix.target, terms) as change:
            change.mirror(place)
            source = str(self._request.staged)
            copying = Copying(source, change.staged(place), place, modes, is_moved=self._request.is_moved)
            copying.copy(items)
            for project, _, info in self._compared.projects:
                if f"{info}/RECORD" in self._put:
                    change.add(project, os.path.join(change.staged(place), info, "RECORD"))
            for each in self._compared.replaced:
                change.remove(Removal(each.project, Path(each.tree), each.files))
            overwritten = self._transaction.commit(change, self._validate)
        return merged._replace(replaced=tuple(each for each in overwritten if not is_bytecode(each[0])))

    def _judge(self, plan: Plan) -> None:
        """Raise `StalePlan` if what is replaced was not in conflict, `Unmergeable` if a file replaces a directory."""
        known = {item.live for item in self._compared.conflicts}
        if any(path not in known and not is_bytecode(path) for path in plan.overwritten):
            raise StalePlan((), "what is to be replaced has changed while it was compared")
        going = {path for each in self._compared.replaced for path in each.files}
        for operation in plan.operations:
            path = os.path.join(plan.roots[operation.root], operation.path)
            if operation.kind is not Kind.SWAP or operation.old is None or operation.new is None:
                continue
            is_owned = path in going or any(each.startswith(os.path.join(path, "")) for each in going)
            if stat.S_ISDIR(operation.old.mode) and not stat.S_ISDIR(operation.new.mode) and not is_owned:
                raise Unmergeable(f"`{path}` is a directory: a file has to be there")

    def _validate(self, now: Snapshot) -> tuple[str, ...]:
        """Raise `StalePlan` if the prefix is not what was compared; under the locks."""
        self._check()
        before = self._transaction.snapshot or Snapshot()
        projects = [project for project, _, _ in self._compared.projects]
        changed = [project for project in projects if now.identity(project) != before.identity(project)]
        if changed:
            raise StalePlan(tuple(changed))
        return ()

    def _check(self) -> None:
        """The same for what is not to be changed."""
        if self._find().trees != self._prefix.trees:
            raise StalePlan((), f"`{self._prefix.path}` got another site-packages while this command was at work")
        for item in self._compared.items:
            is_kept = item.seen is not None and item.path not in self._put and not item.is_directory
            if is_kept and not _is_as_seen(item):
                raise StalePlan((), f"`{item.live}` changed while this command was at work")

    def _shadows(self, items: list[Item]) -> bool:
        """Whether what is new hides a module or a project of another tree, or is hidden by one."""
        if self._prefix.is_shipped:
            return False
        new: dict[Path, set[str]] = {}
        for item in items:
            tree, name = os.path.split(item.live)
            if self._prefix.is_tree(tree) and name != "__pycache__" and not name.endswith(".dist-info"):
                new.setdefault(Path(tree), set()).add(name)
        projects = (project for project, _, info in self._compared.projects if f"{info}/RECORD" in self._put)
        return hides(new, self._transaction.environment.trees(), projects)

    @contextmanager
    def _recorded(self, merged: Merged) -> Iterator[None]:
        """Within, the manifest says what the merge is about to put; if it puts nothing, the manifest is as before.

        Written before the commit, so that nothing is put that no manifest names, whoever dies in between.
        """
        path = self._request.manifest
        if path is None:
            yield
            return
        if os.path.join(os.path.realpath(path.parent), path.name) in map(_live, self._compared.items):
            raise Unmergeable(f"`{path}` is to be the manifest, and a file that is staged is to be there")
        manifest, before = self._manifest(merged), None
        if os.path.lexists(path):
            manifest = manifest.with_earlier(Manifest.read(path))
            before = path.read_bytes()
        manifest.write(path)
        try:
            yield
        except BaseException as error:
            is_over = isinstance(error, SafePipError) and error.state in (State.COMMITTED, State.UNFINISHED)
            if not is_over:
                with suppress(OSError):
                    fs.unlink(path) if before is None else fs.replace(path, before, mode=0o644)
            raise

    def _manifest(self, merged: Merged) -> Manifest:
        entries = {}
        base = os.path.join(self._prefix.path, "")
        for item in self._compared.items:
            is_listed = item.path in self._put or item.verdict is Verdict.SAME
            if is_listed and not item.is_directory and item.live.startswith(base):
                source = os.path.join(self._request.staged, item.path)
                entries[item.live[len(base) :]] = Put.of(source, was_there=item.path not in self._put)
        made = tuple(path[len(base) :] for path in merged.made if path.startswith(base))
        opened = tuple(item.live[len(base) :] for item in self._compared.items if _is_opened(item))
        return Manifest(str(self._prefix.path), entries, made, opened)

    def _delete_staged(self) -> None:
        """Delete what was merged, now that it is in its place; what came to it since, or was kept out, stays."""
        left = (Verdict.CONFLICT, Verdict.FOLLOWS) if self._request.policy is Policy.KEEP else ()
        for item in reversed(self._compared.items):
            path = self._request.staged / item.path
            if item.is_directory:
                fs.remove_empty_directories([path])
            elif item.verdict in left:
                continue
            elif _is_as_seen(item._replace(live=str(path), seen=item.status)):
                with suppress(OSError):
                    fs.unlink(path)
        fs.remove_empty_directories([self._request.staged])


def _removed(comparison: Comparison) -> set[str]:
    """The files of distributions that are replaced which the new ones do not have."""
    staged = {item.live for item in comparison.items}
    files = {path for each in comparison.replaced for path in each.files}
    return {path for path in files if path not in staged and os.path.lexists(path) and not os.path.isdir(path)}


def _is_opened(item: Item) -> bool:
    """Whether it is a directory that is read-only here as it is there, and this user's to open."""
    if item.seen is None or not item.is_directory or not hasattr(os, "geteuid"):
        return False
    is_read_only = not (item.status.st_mode | item.seen.st_mode) & 0o200
    return is_read_only and os.geteuid() == item.seen.st_uid != 0


def _live(item: Item) -> str:
    return item.live


def _is_as_seen(item: Item) -> bool:
    try:
        now = os.lstat(item.live)
    except OSError:
        return False
    seen = item.seen
    return seen is not None and (now.st_mode, now.st_size, now.st_mtime_ns) == (
        seen.st_mode,
        seen.st_size,
        seen.st_mtime_ns,
    )
