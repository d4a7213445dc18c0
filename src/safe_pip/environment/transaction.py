"""One command on one environment: a snapshot, what was read of it, and one change that is validated under the locks.

1. `take_snapshot` reads what is installed. `asked` notes what the command asks of it, `building` what a build sees.
2. `staging` makes a private tree for what is new. No lock is held.
3. `commit` plans, locks, validates and carries out. If others changed something in between, it plans again. If they
   changed what the command depends on, it raises `StalePlan`.

Nothing here knows pip. `staging` and `_Commit.run` import what only a change needs: `pip list` starts without it.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safe_pip.environment.environment import PACKAGES, Environment, Target
from safe_pip.environment.snapshot import ReadSet, Snapshot, are_settled, listings
from safe_pip.errors import SafePipError, StalePlan, State, TakenOver
from safe_pip.fs import watch
from safe_pip.fs.directory import fresh
from safe_pip.locking import state_directory
from safe_pip.locking.locker import Scope

if TYPE_CHECKING:
    from safe_pip.environment.change import Change, Overwritten, ReadyPlan, Terms

T = TypeVar("T")

Validate = Callable[[Snapshot], Iterable[str]]
"""Is given what is installed now. Raises `StalePlan`, or returns the projects that are to stay as they are."""

_PLANS = 10
"""How often a change is planned before the command gives up."""
_OPTIMISTIC = 2
"""So many plans are made with no lock held; from then on a plan that is out of date is made anew under the locks."""
_LONG = 1.0
"""After so many seconds of waiting, a command keeps its locks and plans under them: it may have waited for a build."""


class Transaction:
    """What one command has seen of the environment, and the one change that it makes.

    An error of ours is kept and raised again by what is asked for next: pip catches every `Exception` in some places.
    """

    def __init__(
        self,
        environments: Callable[[Sequence[str]], Environment],
        path: Sequence[str],
        *,
        durable: bool = False,
        verify: str | None = None,
    ) -> None:
        """With `durable` a change survives a loss of power; `verify` is what is checked before, as in the settings."""
        self._environments = environments
        self._durable = durable
        self.verify = verify
        self.environment = environments(path)
        self.path = tuple(path)
        self.snapshot: Snapshot | None = None
        self._own: set[str] = set()
        """The real paths of the metadata that builds of this command have written into their source trees."""
        self.read_set = ReadSet(self._own)
        self.noticed: list[str] = []
        """What to tell the user when no lock is held any more."""
        self.error: SafePipError | None = None
        self.is_committed = False
        """Whether a change was made. No error says from then on that nothing was changed."""
        self._is_locked = False  # for a commit

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keep an error of ours that the body raises; raise the one that was kept before."""
        if self.error is not None:
            raise self.error
        try:
            yield
        except SafePipError as error:
            if self.is_committed and error.state is State.UNCHANGED:
                error.state = State.COMMITTED
            self.error = error
            raise

    @contextmanager
    def optional(self) -> Iterator[None]:
        """Within, no error is kept: the command can do without what it asks for."""
        before = self.error
        try:
            yield
        finally:
            self.error = before

    # What is installed.

    def take_snapshot(self, also: Callable[[], T]) -> T:
        """Take the snapshot and call `also` at the same instant; on return no lock is held."""
        self.snapshot, value = self.read(lambda: (Snapshot.take(self.path), also()))
        return value

    def read(self, take: Callable[[], T]) -> T:
        """Call `take`, which only reads, at one instant of the environment; it may be called more than once."""
        if self._is_locked:
            return take()
        with self.failing():
            return self.environment.read(take)

    def read_later(self, project: str, take: Callable[[], T]) -> T:
        """Read more of a project; raises `StalePlan` if it has changed since the snapshot.

        No lock is needed: what the project is afterwards, it was while `take` read it.
        """
        with self.failing():
            try:
                return take()
            finally:
                if self.snapshot is not None and not self.snapshot.is_current(project, self._own):
                    raise StalePlan((project,))

    def asked(self, project: str) -> None:
        """Note that the command asked whether, and how, `project` (a normalized name) is installed."""
        if self.snapshot is not None:
            self.read_set.add(project, self.snapshot)

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Within, what is asked for decides nothing: no change of it makes the plan stale."""
        before, self.read_set = self.read_set, ReadSet(self._own)
        try:
            yield
        finally:
            self.read_set = before

    def of_other(self, path: Sequence[str]) -> "Transaction":
        """A transaction on other directories, with locks of its own."""
        return Transaction(self._environments, path, durable=self._durable, verify=self.verify)

    # Builds.

    @contextmanager
    def building(self, projects: Collection[str] | None = None) -> Iterator[Callable[[], Snapshot]]:
        """Within, a build backend reads the environment: what is installed, or what of these projects, stays as it is.

        Raises `StalePlan` if what the command has seen before is changed. Yields this check, which returns what is
        installed now, for the body to repeat after each wait for a mutex.
        """
        with self._taking(self.environment.building(projects=projects)):
            self._check_build()
            yield self._check_build

    def mutex(self, *directories: Path) -> AbstractContextManager[object]:
        """Within, this command alone writes in these directories."""
        return self._taking(self.environment.mutex(*directories))

    @contextmanager
    def writing(self, source: str) -> Iterator[None]:
        """Within, a build of this command, or a checkout, writes in a source tree, whose mutex is held.

        It may rewrite the metadata there, which an editable install has put on the path. That outdates no plan.
        """
        real = os.path.realpath(source)
        # A virtual environment in a source tree is none of its build's business.
        trees = [
            str(each) for each in self.environment.trees() if each.is_relative_to(real) and each.name not in PACKAGES
        ]
        before = Snapshot.take(trees)
        try:
            yield
        finally:
            self._own |= Snapshot.take(trees).differences(before)

    def used(self, projects: Iterable[str], now: Snapshot) -> None:
        """Note that a build used these projects as they are `now`."""
        for project in projects:
            self.read_set.add(project, now)

    def compare(self, before: Snapshot) -> None:
        """Raise `StalePlan` if anything that was installed has been changed or removed."""
        seen = ReadSet(self._own)
        for project in before.projects:
            seen.add(project, before)
        with self.failing():
            if changed := seen.changed(self.environment.read(lambda: Snapshot.take(self.path))):
                raise StalePlan(changed)

    def _check_build(self) -> Snapshot:
        with self.failing():
            now = self.environment.read(lambda: Snapshot.take(self.path))
            stale = tuple(project for project in self.read_set.changed(now) if self.read_set.seen[project])
            if stale:
                raise StalePlan(stale)
        return now

    # One change.

    @contextmanager
    def staging(self, target: Target, terms: "Terms | None" = None) -> "Iterator[Change]":
        """Begin a change of `target`, private until `commit` and deleted at the end; holds no lock within.

        Raises `UnusableEnvironment` for a tree that cannot be written. Missing trees are made, and removed on error.
        """
        from safe_pip.environment import change
        from safe_pip.environment.stage import Stage
        from safe_pip.journal.commit import check_writable

        with self.failing():
            for tree in target.trees:
                check_writable(str(tree))
        with self._taking(self.environment.staging(target, Stage)) as stage:
            trees, terms = self.environment.trees(), terms or change.Terms()
            made = change.Change(stage, target, trees, terms, is_durable=self._durable)
            try:
                yield made
            except BaseException as error:
                is_ours = isinstance(error, (OSError, SafePipError)) and not isinstance(error, TakenOver)
                is_late = is_ours and not made.is_committed and stage.is_taken_over()
                made.close(None)
                if is_late:
                    raise TakenOver from error
                raise
            with watch.phase("clean"):
                made.close(lambda: self.environment.adding(target))

    def commit(self, change: "Change", validate: Validate) -> "Overwritten":
        """Put the change in place; on return it is, and no lock is held. On error nothing was changed.

        Returns the files of others that were replaced. `validate` is called under the locks.
        """
        with self.failing():
            if self.verify == "import":
                change.verify_imports(self.path)
            try:
                with watch.phase("commit"):
                    return _Commit(self, change, validate).run()
            finally:
                self.is_committed |= change.is_committed

    @contextmanager
    def _taking(self, locks: AbstractContextManager[T]) -> Iterator[T]:
        """Within `locks`; an error while they are taken is kept."""
        with ExitStack() as held:
            with self.failing():
                taken = held.enter_context(locks)
            yield taken


class _Commit:
    """One change on its way into the target: plan, lock, validate, carry out."""

    def __init__(self, transaction: Transaction, change: "Change", validate: Validate) -> None:
        self._transaction = transaction
        self._change = change
        self._check = validate
        self._seen = Snapshot()
        """What was installed when the plan was made."""
        self._listings: list[tuple[int, ...]] = []
        self._is_settled = self._adds = False
        self._locked: set[str] | None = None
        """The projects that the locks let change; None: any, or, if nothing is replaced, none."""
        self._was_rejected = False
        """Whether a plan was refused by the target, which was not what the plan was made for."""
        self._replaces = False
        """Whether a plan that only added turned out to replace something when it was made under the locks."""

    def run(self) -> "Overwritten":
        from safe_pip.journal.commit import Rejected

        for number in range(1, _PLANS + 1):
            if self._change.is_empty:
                return ()
            ready = self._plan()
            try:
                with self._lock(ready, is_patient=number > _OPTIMISTIC) as (held, now, is_patient):
                    valid = self._validate(ready, now, is_patient=is_patient)
                    if valid is not None:
                        try:
                            return self._change.carry_out(valid, held.check)
                        except Rejected:
                            valid = self._plan_again() if is_patient else None
                            if valid is None:
                                raise
                            return self._change.carry_out(valid, held.check)
            except Rejected:
                self._was_rejected = True
        raise StalePlan((), "what this command was to change did not stay the same while it was planned")

    def _plan(self) -> "ReadyPlan":
        """Plan with no lock held."""
        path, read = self._transaction.path, self._transaction.environment.read
        before, exactly = self._transaction.snapshot or Snapshot(), self._exactly()
        self._listings, self._seen = read(lambda: (listings(path), before.taken_again(path, exactly)))
        # There stat(2) may answer from a cache; listing a directory asks the server.
        is_shared = any(map(state_directory.is_shared, map(Path, path)))
        self._is_settled = are_settled(self._listings) and not is_shared
        ready = self._change.prepare()
        self._adds = ready.plan.adds and not self._change.shadows() and not self._replaces
        return ready

    @contextmanager
    def _lock(self, ready: "ReadyPlan", *, is_patient: bool) -> Iterator[tuple[Scope, Snapshot, bool]]:
        """Take the locks that the plan needs. Yields them, what is installed now, and whether to plan under them."""
        asked, environment, target = time.monotonic(), self._transaction.environment, self._change.target
        also = tuple(removal.tree for removal in self._change.removals.values())
        self._locked = None if self._adds else self._changed(ready)
        replacing = partial(environment.replacing, projects=self._locked)
        with (environment.adding if self._adds else replacing)(target, also) as held:
            self._transaction._is_locked = True
            try:
                path, exactly = self._transaction.path, self._exactly()
                is_unchanged = self._is_settled and self._listings == listings(path)
                now = self._seen.with_current(exactly) if is_unchanged else self._seen.taken_again(path, exactly)
                fresh.update(() if is_unchanged else map(os.path.realpath, path))
                yield held, now, is_patient or time.monotonic() - asked >= _LONG
            finally:
                fresh.clear()
                self._transaction._is_locked = False

    def _exactly(self) -> set[str]:
        """The projects of which each file counts."""
        return {*self._transaction.read_set.seen, *self._change.removals}

    def _changed(self, ready: "ReadyPlan") -> set[str] | None:
        """The projects of which the plan changes or removes something; None if it concerns any."""
        if ready.plan.hides or self._change.shadows():
            return None
        return {*self._change.removals, *(owner for _, owner in ready.overwritten if owner)}

    def _validate(self, ready: "ReadyPlan", now: Snapshot, *, is_patient: bool) -> "ReadyPlan | None":
        """The plan to carry out under these locks; None if it has to be made anew without them."""
        change = self._change
        dropped = tuple(self._check(now))
        if dropped:
            change.drop(dropped)
        is_changed = now != self._seen
        # Another distribution may have come into a directory that is to be moved as a whole.
        is_outdated = bool(dropped) or (is_changed and bool(ready.plan.moved))
        if (is_outdated and (change.is_empty or not is_patient)) or (is_changed and self._adds and change.shadows()):
            return None
        return self._plan_again() if is_patient and (self._was_rejected or is_outdated) else ready

    def _plan_again(self) -> "ReadyPlan | None":
        """Plan under the locks: no other safe-pip can outdate it again. None if it needs others than are held."""
        ready = self._change.prepare()
        self._replaces = self._replaces or (self._adds and not ready.plan.adds)
        if self._replaces and self._adds:
            return None
        changed = self._changed(ready) if self._locked is not None else ()
        return None if changed is None or not (self._locked or set()).issuperset(changed) else ready
