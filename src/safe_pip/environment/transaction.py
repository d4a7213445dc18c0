"""One command on one environment: a snapshot, what was read of it, and a commit that is validated under the locks.

The protocol, in the order in which a command passes through it:

1. `take_snapshot` reads what is installed, under the shared commit lock, and lets go.
2. pip resolves, downloads and builds with no lock held; `asked` notes what it asked for, `reading_build` what a build
   without isolation could see.
3. What is new is made in a private tree (`staging`), where no lock is held either.
4. `commit` plans, takes the locks, has what is installed now compared with what the plan depends on, and carries the
   plan out; or it plans again; or it raises `StalePlan`.

Nothing here knows pip.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safe_pip.environment.environment import Environment, Held, Target
from safe_pip.environment.snapshot import ReadSet, Snapshot
from safe_pip.errors import SafePipError, StalePlan, UnusableEnvironment

if TYPE_CHECKING:
    from safe_pip.environment.change import Change, Outcome, ReadyPlan

T = TypeVar("T")

_PLANS, _PATIENT = 10, 2
"""How often a change is planned, and how often of these with no lock held whatever others do meanwhile."""
_LONG = 1.0
"""After so many seconds of waiting for the locks, for a build perhaps, they are not let go to plan once more."""


class Transaction:
    """What one command has seen of the environment, and the one commit that it makes.

    Once an error was raised here it is raised again by whatever is asked for next: pip catches every `Exception` in
    some places and goes on.
    """

    def __init__(
        self,
        environments: Callable[[Sequence[str]], Environment],
        path: Sequence[str],
        *,
        durable: bool = False,
        verify: str | None = None,
    ) -> None:
        """`durable`: a commit survives a loss of power. `verify`: `import` imports what is new before it is put in."""
        self._environments = environments
        self._durable = durable
        self._verify = verify
        self.environment = environments(path)
        self.path = tuple(path)
        self.snapshot: Snapshot | None = None
        self.read_set = ReadSet()
        self.error: SafePipError | None = None
        self.noticed: list[str] = []
        """What the user is to be told when no lock is held any more."""
        self._locked_now = False
        self._building = False
        self._recording = True

    def take_snapshot(self, also: Callable[[], T]) -> T:
        """Take the snapshot and call `also` at the same instant; on return no lock is held."""
        snapshot, value = self.read(lambda: (Snapshot.take(self.path), also()))
        self.snapshot = snapshot
        return value

    def read(self, take: Callable[[], T]) -> T:
        """Call `take`, which only reads, at one instant of the environment; it may be called more than once."""
        if self._locked_now:
            return take()
        with self._failing():
            return self.environment.read(take)

    def read_later(self, project: str, take: Callable[[], T]) -> T:
        """Read more of a project, as it was when the snapshot was taken.

        Raises `StalePlan` if it has changed since.
        """

        def unchanged() -> T:
            if self.snapshot is not None and not self.snapshot.is_current(project):
                raise StalePlan((project,))
            return take()

        with self._failing():
            return self.read(unchanged)

    def asked(self, project: str) -> None:
        """Note that the command asked whether, and how, `project` (a normalized name) is installed."""
        if self._recording and self.snapshot is not None:
            self.read_set.add(project, self.snapshot)

    def of_other(self, path: Sequence[str]) -> Transaction:
        """A transaction on other directories, with locks of its own."""
        return Transaction(self._environments, path, durable=self._durable, verify=self._verify)

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Within, what is asked for decides nothing: no change of it makes the plan stale."""
        before, self._recording = self._recording, False
        try:
            yield
        finally:
            self._recording = before

    @contextmanager
    def building(self) -> Iterator[None]:
        """Within, a build reads the environment: what is installed stays as it is (one call of a build backend).

        Everything that is installed at the first call belongs to the read set; raises `StalePlan` if any of it was
        changed or removed by a later call.
        """
        with ExitStack() as locks:
            with self._failing():
                locks.enter_context(self.environment.building())
            self._building = True
            try:
                self.still_building()
                yield
            finally:
                self._building = False

    @contextmanager
    def mutex(self, *directories: Path) -> Iterator[None]:
        """Within, this command alone writes in these directories."""
        with ExitStack() as locks:
            with self._failing():
                locks.enter_context(self.environment.mutex(*directories))
            yield

    def still_building(self) -> None:
        """Compare what is installed once more: while a build waits for a mutex, its other locks may be let go."""
        if not self._building:
            return
        with self._failing():
            now = self.environment.read(lambda: Snapshot.take(self.path))
            stale = self.read_set.changed_or_removed(now)
            if stale:
                raise StalePlan(stale)
        self.read_set.add_all(now)

    @contextmanager
    def staging(self, target: Target) -> Iterator[Change]:
        """Begin a change of `target`: private until `commit`, deleted on return. No lock is held within.

        Makes trees that are missing; if the body raises, exactly those that were made are removed. Raises
        `UnusableEnvironment` where a tree cannot be written.
        """
        from safe_pip.environment.change import Change
        from safe_pip.environment.stage import Stage

        with ExitStack() as cleaning:
            with self._failing():
                for tree in target.trees:
                    _check_writable(tree)
                stage = cleaning.enter_context(self.environment.staging(target, Stage.open))
            change = Change(stage, target, self.environment.trees())
            try:
                yield change
                self._put_back(change)
            finally:
                change.close()

    def commit(self, change: Change, validate: Callable[[Snapshot], Iterable[str]]) -> Outcome:
        """Put the change in: on return it is in place and no lock is held; on error nothing was changed.

        `validate` is given what is installed now, under the locks; it raises `StalePlan`, or returns the projects that
        are to be left as they are after all. A change that only adds takes the commit lock alone.
        """
        from safe_pip.environment.change import Outcome
        from safe_pip.journal import commit, sweep

        with ExitStack() as cleaning, self._failing():
            if self._verify == "import":
                change.verify_imports(self.path)
            rejected = needs_all = False
            for attempt in range(_PLANS):
                if change.is_empty:
                    return Outcome()
                planned_for = self.environment.read(lambda: Snapshot.take(self.path))
                prepared = self._prepare(change)
                adds = prepared.plan.adds and not change.shadows() and not needs_all
                asked = time.monotonic()
                try:
                    with self._locked(change, adds=adds) as (held, now):
                        # Who waited long is next: he keeps the locks, whatever was added meanwhile.
                        is_patient = attempt >= _PATIENT or time.monotonic() - asked >= _LONG
                        dropped = tuple(validate(now))
                        if dropped:
                            change.drop(dropped)
                        # Another distribution may have come into a directory that is to be moved as a whole.
                        is_outdated = bool(dropped) or (now != planned_for and bool(prepared.plan.moved))
                        if is_outdated and (change.is_empty or not is_patient):
                            continue
                        if now != planned_for and adds and change.shadows():
                            continue
                        # What is planned under the locks is not overtaken by another safe-pip again.
                        if is_patient and (rejected or is_outdated):
                            prepared = self._prepare(change)
                            if adds and not prepared.plan.adds:
                                needs_all = True
                                continue
                        outcome = self._carry_out(change, prepared, held)
                        for directory in (*change.target.trees, *change.target.directories):
                            cleaning.callback(sweep.find(directory).delete)
                        return outcome
                except commit.Rejected:
                    rejected = True
        raise StalePlan((), "what this command was to change did not stay the same while it was planned")

    def _prepare(self, change: Change, entered: frozenset[str] = frozenset()) -> ReadyPlan:
        """Plan against what is there now; on return all that the plan needs lies ready."""
        from safe_pip.journal import commit

        prepared = change.prepare(entered)
        commit.check_permissions(prepared.journal)
        if self._durable:
            change.sync()
        return prepared

    def sweep(self, target: Target) -> None:
        """Finish and delete what dead processes have left in the target, if anything, as a commit does.

        Where this user may not, it stays for another one.
        """
        from safe_pip.journal import sweep
        from safe_pip.locking import state_directory

        directories = [each for each in (*target.trees, *target.directories) if state_directory.exists(each)]
        left = [each for each in directories if state_directory.has_more(each)]
        if not left and not any(each in target.stateless_trees for each in directories):
            return
        with suppress(UnusableEnvironment):
            with self.environment.adding(target):
                remains = [sweep.find(directory) for directory in directories]
            for each in remains:
                each.delete()

    @contextmanager
    def tidying(self, trees: Iterable[Path]) -> Iterator[None]:
        """Within, whatever happens, this command may lock these; after it nothing of ours stays, unless others do."""
        try:
            yield
        finally:
            self.environment.tidy(trees)

    def _carry_out(self, change: Change, prepared: ReadyPlan, held: Held) -> Outcome:
        """Do what was prepared; where the filesystem does not move directories as a whole, by entering them.

        Then it is planned again with the locks held: what was done and undone has left times that look like a change
        of somebody else's.
        """
        from safe_pip.journal import commit

        entered: frozenset[str] = frozenset()
        while True:
            try:
                return change.carry_out(prepared, durable=self._durable, check=held.check)
            except commit.Rejected as rejected:
                if rejected.entered <= entered:
                    raise
                entered |= rejected.entered
            prepared = self._prepare(change, entered)

    @contextmanager
    def _locked(self, change: Change, *, adds: bool) -> Iterator[tuple[Held, Snapshot]]:
        """Within, this command alone changes the target; yields what is installed now."""
        also = tuple(removal.tree for removal in change.removals)
        take = self.environment.adding if adds else self.environment.replacing
        with take(change.target, also) as held:
            self._locked_now = True
            try:
                yield held, Snapshot.take(self.path)
            finally:
                self._locked_now = False

    def _put_back(self, change: Change) -> None:
        """Put back what was put into a directory after its replacement had been planned."""
        if change.latecomers():
            with self._failing(), self.environment.adding(change.target):
                change.put_back()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        if self.error is not None:
            raise self.error
        try:
            yield
        except SafePipError as error:
            self.error = error
            raise


def _check_writable(tree: Path) -> None:
    if not tree.is_dir() or os.access(tree, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        return
    reason = os.strerror(errno.EACCES)
    if sys.platform != "win32" and os.statvfs(tree).f_flag & os.ST_RDONLY:
        reason = os.strerror(errno.EROFS)
    raise UnusableEnvironment(f"`{tree}` is not writable: {reason}")
