"""What one command has staged and what it takes away: carried out whole, or not at all."""

import os
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs, messages
from safe_pip.environment import import_check
from safe_pip.environment.environment import Environment, Target
from safe_pip.environment.snapshot import Ownership
from safe_pip.environment.stage import Stage
from safe_pip.errors import CommitFailed, SafePipError, State, TakenOver, UnusableEnvironment
from safe_pip.fs.proc import is_shared, user
from safe_pip.fs.space import staging
from safe_pip.journal import codec, commit, finish, sweep
from safe_pip.journal.directories import OpenDirectories, Refused
from safe_pip.journal.undo import proof
from safe_pip.locking import state_directory
from safe_pip.merge import merge, tree
from safe_pip.merge.plan import ExactTree, Journal, Link, Operation, Plan, Removal
from safe_pip.merge.tree import Entry

Overwritten = tuple[tuple[str, "str | None"], ...]
"""Files of others that a commit replaced, each with its owner (None: no distribution owned it)."""


class Terms(NamedTuple):
    """What holds for a change beside its files.

    `shadows`: does what is staged hide a module or a project of another tree, or is it hidden by one? It is given what
    goes of each tree, and does not count that. `judge` raises an error of ours for a plan that the command cannot agree
    to. `exact`: how a tree is put in, or taken out, as it is.
    """

    shadows: Callable[[Collection[str]], bool] = lambda gone: False
    judge: Callable[[Plan], None] = lambda plan: None
    exact: ExactTree | None = None


class ReadyPlan(NamedTuple):
    """A plan, ready to be carried out: its journal is written, and everything that it needs lies beside it."""

    plan: Plan
    journal: Journal
    overwritten: Overwritten


class Change:
    """One change of the target, private until it is committed."""

    def __init__(self, stage: Stage, target: Target, trees: Iterable[Path], terms: Terms, *, is_durable: bool) -> None:
        """`trees` are all trees of the environment; with `is_durable` the commit survives a loss of power."""
        self.target = target
        self.stage = stage
        self.removals: dict[str, Removal] = {}
        """What is removed, by project."""
        self._terms = terms
        # Another host may finish what a dead one wrote.
        self._is_durable = is_durable or any(map(is_shared, map(str, (*target.trees, *target.directories))))
        self._trees = tuple(dict.fromkeys(map(os.path.realpath, (*target.trees, *trees))))
        self._roots = dict.fromkeys(os.path.realpath(path) for path in (*target.trees, *target.directories))
        self._staged: dict[str, str] = {}
        self._written: Journal | None = None  # of the last plan that was to be carried out
        self._is_committed = self._is_unsynced = self._is_finished = self._is_taken_over = False
        self._remains: list[sweep.Remains] = []

    @property
    def is_empty(self) -> bool:
        return not self._staged and not self.removals and self._terms.exact is None

    @property
    def is_committed(self) -> bool:
        """Whether the change was made, whatever was raised since; True if that cannot be told."""
        return self._told() is not False

    def _told(self) -> bool | None:
        if self._written is not None and not self._is_committed and not self._is_taken_over:
            try:
                names = fs.names(state_directory.path_of(self.stage.home))
            except UnusableEnvironment:
                return None
            self._is_committed = f"{self.stage.identifier}{state_directory.COMMITTED}" in names
        return self._is_committed

    def shadows(self) -> bool:
        """Whether what is staged hides, or is hidden by, what stays of the environment."""
        files = ((each.tree, file) for each in self.removals.values() for file in each.files)
        below = ((str(tree), file.removeprefix(f"{tree}{os.sep}")) for tree, file in files)
        return self._terms.shadows({os.path.join(tree, path.partition(os.sep)[0]) for tree, path in below})

    def staged(self, path: str) -> str:
        """Where the file for the absolute `path` is staged."""
        return self.stage.root + path

    def allow(self, directory: str) -> None:
        """Let the change reach whatever lies below this directory, which may be missing."""
        real = os.path.realpath(directory)
        while not fs.is_directory(real):
            real = os.path.dirname(real)
        self._roots[real] = None

    def mirror(self, directory: str) -> None:
        """Make a directory of the target in the stage: what is made in it gets the modes that it would get there."""
        self.allow(directory)
        self.stage.mirror(directory)

    def add(self, project: str, record: str) -> None:
        """Add a distribution that is staged and verified; `record` is its RECORD in the stage."""
        self._staged[project] = record

    def put(self, path: str, content: bytes) -> None:
        """Stage a file of no distribution at the absolute `path`; its mode follows that of its directory."""
        self.mirror(os.path.dirname(path))
        self._staged[f"`{path}`"] = self.stage.write(path, content)

    def remove(self, removal: Removal) -> None:
        self.removals[removal.project] = removal
        self.allow(str(removal.tree))
        for path, content in removal.edits.items():
            self.stage.write_like(path, content)

    def drop(self, projects: Iterable[str]) -> None:
        """Leave these projects as they are."""
        self.stage.reset()  # It would put back what was kept of them for another plan.
        for project in projects:
            if record := self._staged.pop(project, None):
                self.stage.drop(record, tuple(self._staged.values()))
            if removal := self.removals.pop(project, None):
                self.stage.take_out(removal.edits.keys())

    def verify_imports(self, path: Iterable[str]) -> None:
        """Import what is new in a child interpreter; raises an error of ours, with nothing changed, if that fails."""
        if self._staged:
            import_check.verify_imports(self.stage, self._trees, path)

    def prepare(self, entered: frozenset[str] = frozenset()) -> ReadyPlan:
        """Plan against the target as it is now, and write the journal; changes nothing outside the private tree.

        Directories in `entered` are not moved as a whole. Raises `UnusableEnvironment` for what is in the way, or may
        not be written.
        """
        with staging(str(self.stage.home)):  # the environment may be moved or removed meanwhile
            self.stage.reset()
            self.stage.prune(self._staged.values())
            allowed = tuple(os.path.join(root, "") for root in self._roots)
            going = {path for removal in self.removals.values() for path in removal.files if path.startswith(allowed)}
            kept = {*self._roots, *self._trees}
            kept = kept.union(*map(tree.ancestors, kept))
            # Only safe-pip touches what is its own, whatever a wheel brings and a RECORD lists.
            going = {path for path in going if not tree.is_below_own(path, kept)}
            infos = (
                path for path in (*going, *map(os.path.dirname, going)) if path.endswith((".dist-info", ".egg-info"))
            )
            ownership = Ownership(self._trees, infos)
            while True:
                plan, staged = self._merged(going, kept, ownership, entered)
                if not plan.same_second:
                    break
                self.stage.bump_mtime(plan.same_second)
            self._terms.judge(plan)
            plan = plan._replace(links=self.stage.link(plan.links))
            written = self._journal(plan, staged)
            self.stage.add_markers(written.operations, written.roots)
            self.stage.write_journal(codec.encode(written))
            # Asked now: after the commit these files belong to what has replaced them.
            overwritten = tuple((path, ownership.owner(path)) for path in plan.overwritten)
            commit.check_permissions(written)
            if self._is_durable:
                self.stage.sync(staged)
            return ReadyPlan(plan, written, overwritten)

    def carry_out(self, ready: ReadyPlan, check: Callable[[], None]) -> Overwritten:
        """Do what was prepared, under the locks; on return it is committed. `check` is called before the first step.

        Raises `commit.Rejected` where the target is not what was planned for: then nothing was changed.
        """
        entered: frozenset[str] = frozenset()
        while True:
            self._written = ready.journal
            try:
                self._is_finished = commit.carry_out(ready.journal, ready.plan, durable=self._is_durable, check=check)
                break
            except commit.Rejected as rejected:
                if rejected.entered <= entered:
                    raise
                entered |= rejected.entered
            except TakenOver:
                self._is_taken_over = True
                raise
            except CommitFailed as error:
                self._is_unsynced = error.state is State.COMMITTED
                raise
            # With the locks held: what was done and undone leaves times that look like a change of another command.
            ready = self.prepare(entered)
        self._is_committed = True
        directories = (*self.target.trees, *self.target.directories)
        self._remains = [sweep.find(directory, self.stage.identifier) for directory in directories]
        return ready.overwritten

    def close(self, locks: Callable[[], AbstractContextManager[object]] | None) -> None:
        """Do what is left after the commit point, then delete everything private, and what dead processes left.

        Files that came into directories after their replacement was planned are restored under `locks`. Nothing is
        deleted before. What cannot be done now is left to the next command that changes the target, with a message:
        without `locks` all that needs them, in silence.
        """
        why, is_committed = "", self._told()
        if self._is_taken_over or is_committed is None or (not is_committed and self.stage.is_taken_over()):
            self.stage.close(keeps=True)
            return
        is_done = self._is_finished or not is_committed
        try:
            if not is_done and self._written is not None:
                with OpenDirectories(self._written, is_over=True) as directories:
                    unplanned = finish.find_unplanned(directories)
                    if unplanned and locks is not None:
                        with locks():
                            finish.restore_unplanned(directories, unplanned)
                    finish.seal(directories, finish.remove_markers(directories))
                is_done = (not unplanned or locks is not None) and not self._is_unsynced
        except (OSError, Refused, SafePipError) as error:
            why = error.message if isinstance(error, SafePipError) else str(error)
        finally:
            self.stage.close(keeps=not is_done, is_committed=bool(is_committed))
        if why:
            messages.say(
                f"warning: the change was made, and the next one in `{self.stage.home}` has to finish it: {why}"
            )
        for each in self._remains:
            each.delete()

    def _merged(
        self, going: set[str], kept: set[str], ownership: Ownership, entered: frozenset[str]
    ) -> tuple[Plan, list[Entry]]:
        parts = self.stage.volumes()
        trees = tuple(each for each in self._trees if each not in going)  # an egg on `sys.path` is a tree, and may go
        while True:
            staged = [(part, tree.scan(root)) for part, root in enumerate(self.stage.roots)]
            own = [path for _, entry in staged for path in tree.own(entry, "/", kept)]
            if own:
                self.stage.take_out(own)
                continue
            situation = merge.Situation(
                roots=tuple(self._roots),
                trees=trees,
                parts=parts,
                entered=entered,
                can_exchange=self.stage.can_exchange(),
                uid=user(),
                foreign=lambda path: ownership.owner(path) is not None,
                order=tuple(os.path.basename(os.path.dirname(record)) for record in self._staged.values()),
                exactly=self._terms.exact,
            )
            live = [(part, entry, tree.look("/", entry, going, trees)) for part, entry in staged]
            try:
                return merge.merge(live, going, situation), [entry for _, entry in staged]
            except merge.NeedsPart as need:
                if need.volume not in parts:
                    is_tree = need.directory in self._trees
                    parts = {**parts, need.volume: self.stage.add_part(need.directory, is_tree=is_tree)}
                if need.staged:
                    self.stage.move_to_part(need.staged, parts[need.volume])

    def _journal(self, plan: Plan, staged: Sequence[Entry]) -> Journal:
        changed = [os.path.join(plan.roots[each.root], each.path) for each in plan.operations]

        def is_touched(directory: str) -> bool:
            return any(path.startswith(os.path.join(directory, "")) for path in changed)

        home = str(self.stage.home)
        trees = tuple(dict.fromkeys((home, *filter(is_touched, self._trees))))
        directories = tuple(filter(is_touched, map(os.path.realpath, self.target.directories)))
        for directory in (*trees, *directories):
            if directory != home:
                self.stage.mark(directory, is_tree=directory in trees)
        parts = tuple(self.stage.parts)
        operations = tuple(
            each._replace(proof=self._proof(each, path, staged[each.part], plan.links))
            if each.staged and each.new is not None and stat.S_ISDIR(each.new.mode)
            else each
            for each, path in zip(plan.operations, changed, strict=True)
        )
        found = os.stat(home)
        identity = found.st_dev, found.st_ino
        directories += tuple(filter(changed.__contains__, self._terms.exact.unread if self._terms.exact else ()))
        return Journal(self.stage.identifier, home, trees, directories, plan.roots, parts, operations, identity)

    def _proof(self, operation: Operation, live: str, entry: Entry, links: Iterable[Link]) -> str:
        """The proof of a staged directory that is to be at `live`; `entry` is the stage as it was scanned."""
        for name in operation.staged.split("/"):
            entry = entry.children[name]
        found = dict(tree.states(entry))
        place = os.path.join(self.stage.roots[operation.part], operation.staged, "")
        for link in links:
            if link.staged.startswith(place):
                path = link.staged.removeprefix(place)
                with suppress(FileNotFoundError, NotADirectoryError):
                    status = os.lstat(link.staged)
                    if status.st_nlink == 1 or not _is_file(os.path.join(live, path), status):
                        found[path] = status
        return proof(found.items())[0]


def _is_file(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), status)
    except (FileNotFoundError, NotADirectoryError):
        return False


def sweep_target(environment: Environment, target: Target) -> None:
    """Finish and delete what dead processes have left in the target, as a commit does, if this user may."""
    directories = [each for each in (*target.trees, *target.directories) if state_directory.exists(each)]
    if any(state_directory.has_more(each) or each in target.stateless_trees for each in directories):
        with suppress(UnusableEnvironment):
            with environment.adding(target):
                remains = [sweep.find(directory) for directory in directories]
            for each in remains:
                each.delete()
