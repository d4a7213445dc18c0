"""One command on one environment: a snapshot, what was read of it, and a commit that is validated under the locks.

The protocol, in the order in which a command passes through it:

1. `take_snapshot` reads what is installed, under the shared commit lock, and lets go.
2. pip resolves, downloads and builds with no lock held; `asked` notes what it asked for, `reading_build` what a build
   without isolation could see.
3. `committing` takes the locks and shows what is installed now; the caller compares, by `changed`, and either carries
   its plan out or raises `StalePlan`.

Nothing here knows pip.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from safe_pip.environment import Environment, Target
from safe_pip.errors import NestingRefused, SafePipError, StalePlan, UnusableEnvironment
from safe_pip.snapshot import ReadSet, Snapshot

T = TypeVar("T")


class Transaction:
    """What one command has seen of the environment, and the one commit that it makes.

    Once an error was raised here it is raised again by whatever is asked for next: pip catches every `Exception` in
    some places and goes on.
    """

    def __init__(self, environments: Callable[[Sequence[str]], Environment], path: Sequence[str]) -> None:
        self._environments = environments
        self.environment = environments(path)
        self.path = tuple(path)
        self.snapshot: Snapshot | None = None
        self.read_set = ReadSet()
        self.error: SafePipError | None = None
        self.noticed: list[str] = []
        """What the user is to be told when no lock is held any more."""
        self._locked = False
        self._building = False
        self._recording = True

    def take_snapshot(self, also: Callable[[], T]) -> T:
        """Take the snapshot and call `also` at the same instant; on return no lock is held."""
        snapshot, value = self.read(lambda: (Snapshot.take(self.path), also()))
        self.snapshot = snapshot
        return value

    def read(self, take: Callable[[], T]) -> T:
        """Call `take`, which only reads, at one instant of the environment; it may be called more than once."""
        if self._locked:
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
        return Transaction(self._environments, path)

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
    def committing(
        self, target: Target, also: Iterable[Path] = (), *, adds: Callable[[], bool] | None = None
    ) -> Iterator[Snapshot]:
        """Within, this command alone changes `target` and the trees `also`; yields what is installed now.

        A command that only adds may do so below a holder of the shared environment lock, who forbids the rest: `adds`
        is asked then, when nobody changes what is there.
        On return, and on error, every lock is let go. Raises `UnusableEnvironment` before anything is locked where a
        tree cannot be written: who may only read can take every lock there is.
        """
        also = tuple(also)
        with ExitStack() as locks:
            with self._failing():
                for tree in (*target.trees, *also):
                    _check_writable(tree)
                try:
                    held = locks.enter_context(self.environment.replacing(target, also))
                except NestingRefused:
                    if adds is None:
                        raise
                    held = locks.enter_context(self.environment.adding(target, also))
                    if not adds():
                        raise
            self._locked = True
            try:
                now = Snapshot.take(self.path)
                with self._failing():
                    held.check()
                yield now
            finally:
                self._locked = False

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
