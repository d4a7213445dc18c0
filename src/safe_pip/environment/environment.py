"""The environment of one interpreter, and every kind of access to it: read, build, add, replace.

Each tree has two locks: the *environment lock*, flock on the directory itself (shared: what is installed stays as it
is), and the *commit lock* in its state directory (shared: a process reads what is installed; exclusive: a process
changes it). Nothing here knows pip. `locking.fallback` is imported only where there is no flock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safe_pip.environment import access
from safe_pip.environment.access import Changing, SharedUse, Target
from safe_pip.errors import StalePlan
from safe_pip.locking import flock, inheritance
from safe_pip.locking.locker import Keep, Locker, Scope, Step
from safe_pip.locking.waiting import Interrupted, Waiting

if TYPE_CHECKING:
    from safe_pip.locking.fallback import Sole

T = TypeVar("T")


class Held:
    """The proof that a commit may change `trees`. Only `Environment` makes it; it is valid only while it is open."""

    def __init__(self, trees: tuple[Path, ...], scope: Scope) -> None:
        self.trees = trees
        self._scope = scope

    def check(self) -> None:
        """Check the locks once more, before the first change.

        Raises `StalePlan` if the ancestor whose locks this command uses has died, or if a path now leads to another
        file than the one that is locked: a tree that was deleted and made anew has locks of its own.
        """
        if not self._scope.is_inheritance_alive():
            raise StalePlan((), "the command that held the locks for this one has ended")
        if not all(descriptor.is_current() for _, descriptor in self._scope.granted):
            raise StalePlan((), "the environment was made anew while this command was at work")


class Environment:
    """What one interpreter sees: the directories of `path` that exist, without those of the standard library."""

    def __init__(
        self, path: Sequence[str], *, stdlib: Collection[str] = (), waiting: Waiting, timeout: float | None
    ) -> None:
        self._path = tuple(path)
        self._stdlib = {os.path.realpath(name) for name in stdlib}
        ancestry = inheritance.Ancestry(os.environ.get(inheritance.VARIABLE))
        self._locker = Locker(waiting, timeout, ancestry, access.Recovering)
        self._sole: Sole | None = None
        if not flock.supported:
            from safe_pip.locking.fallback import Sole

            self._sole = Sole(waiting, timeout)
        self._has_all = False

    def trees(self) -> list[Path]:
        """The directories that may hold distributions now, resolved, each once; without those that cannot be listed."""
        found = (os.path.realpath(name or ".") for name in self._path)
        usable = (real for real in found if os.path.isdir(real) and os.access(real, os.R_OK | os.X_OK))
        return [Path(real) for real in dict.fromkeys(usable) if real not in self._stdlib]

    def read(self, take: Callable[[], T]) -> T:
        """Call `take` while no process changes what is installed; call it again if it may have seen half a change."""
        while True:
            step = access.Reading(self.trees)
            with self._taking(step) as scope:
                value = take()
                if self._has_all:
                    return value
                # Without a commit lock, a change may have begun meanwhile. It is dealt with when this starts over.
                with suppress(Interrupted):
                    access.look_for_journals(step.trees)
                    if step.is_current() and scope.is_inheritance_alive():
                        return value

    def building(self, *sources: Path) -> AbstractContextManager[Scope]:
        """Keep what is installed as it is, for a build that imports from it, and have each of `sources` to itself.

        Child programs may add to the environment, and may not replace. If a mutex inside has to be waited for, the
        environment is let go and taken again: compare what is installed after the last lock is granted.
        """
        trees = list if self._has_all else self.trees
        return self._taking(SharedUse(trees, sources), keep=Keep.RENEWED, is_published=True)

    def reserving(self, target: Target, also: Iterable[Path] = ()) -> AbstractContextManager[Held]:
        """Let other commands only add to the target until this ends.

        If another lock has to be waited for meanwhile, the reservation is let go, and taking that lock raises
        `StalePlan`.
        """
        return self._changing(Changing(target, also, commit=False), keep=Keep.RESERVED, is_published=True)

    def replacing(self, target: Target, also: Iterable[Path] = ()) -> AbstractContextManager[Held]:
        """Have the target to itself, to change or remove what is in it; the rest of the environment does not change.

        Makes trees and directories that are missing. If the body raises, exactly those that were made are removed,
        unless something is in them.
        """
        return self._changing(Changing(target, also, others=self.trees))

    def adding(self, target: Target, also: Iterable[Path] = ()) -> AbstractContextManager[Held]:
        """Like `replacing`, for additions alone: builds and programs that use the environment go on."""
        return self._changing(Changing(target, also, others=self.trees, environment=False))

    @contextmanager
    def staging(self, target: Target, make: Callable[[Path], T]) -> Iterator[T]:
        """Let `make` make what is private in the target's home (its first tree), while no sweeper is at work there.

        The body runs with no lock held. Missing trees are made, and removed if the body raises, like by `replacing`.
        """
        step = access.Opening(target)
        with self._tidying(step):
            with self._taking(step):
                made = make(step.trees[0])
            yield made

    def tidy(self, trees: Iterable[Path]) -> None:
        """Remove the state directories of `trees`, except those that another command uses. Never raises.

        Of several commands that leave, the last one removes them; none waits for a command that is at work.
        """
        for tree in trees:
            access.remove_state_directory(tree, self._holds)

    def carry_out(self, step: Step) -> None:
        """Take the locks of a step that does its work as soon as it has them, and let them go."""
        with self._taking(step):
            pass

    @contextmanager
    def exclusively(self, target: Target | None) -> Iterator[None]:
        """Have the target to itself for the whole body; every other access inside the body is granted.

        With no target: every tree of the environment that this user can write, while the others do not change.
        """
        chosen = target or Target(tuple(tree for tree in self.trees() if os.access(tree, os.W_OK)))
        with self._changing(Changing(chosen, others=self.trees), is_published=True):
            outer, self._has_all = self._has_all, True
            try:
                yield
            finally:
                self._has_all = outer

    def mutex(self, *directories: Path) -> AbstractContextManager[Scope]:
        """Be the only process that writes in these directories, which are made if they are missing."""
        return self._taking(SharedUse(list, directories), is_published=True)

    def keeping(self) -> AbstractContextManager[Scope]:
        """Keep what is installed as it is while another program runs; that program may add to it."""
        return self._taking(SharedUse(self.trees), is_published=True)

    def occupying(self, target: Target) -> AbstractContextManager[Held]:
        """Have the target to itself while another program runs."""
        return self._changing(Changing(target), is_published=True)

    def directory(self, path: Path, *, exclusive: bool) -> AbstractContextManager[Scope]:
        """Lock a directory that is no environment while another program runs; it is made if it is missing."""
        return self._taking(access.Locking(path, exclusive=exclusive), is_published=True)

    @contextmanager
    def making(self, path: Path) -> Iterator[None]:
        """Be the only process that makes an environment in this directory; missing ones are made as by `replacing`."""
        step = access.Locking(path, exclusive=True)
        # Removed under the lock: the next holder of the lock notices that it has another directory.
        with self._tidying(step), self._taking(step), self._tidying(step):
            yield

    @contextmanager
    def _changing(self, step: Changing, *, keep: Keep = Keep.FIRMLY, is_published: bool = False) -> Iterator[Held]:
        with self._tidying(step), self._taking(step, keep=keep, is_published=is_published) as scope:
            yield Held(step.trees, scope)

    @contextmanager
    def _tidying(self, step: access.Opening | access.Locking) -> Iterator[None]:
        failed, process = True, os.getpid()
        try:
            yield
            failed = False
        finally:
            if os.getpid() == process:  # a forked child that unwinds leaves everything to its parent
                step.tidy(self._holds, failed=failed)

    def _holds(self, identity: flock.Identity) -> bool:
        return self._locker.holds(identity, exclusive=True)

    @contextmanager
    def _taking(self, step: Step, *, keep: Keep = Keep.FIRMLY, is_published: bool = False) -> Iterator[Scope]:
        scope = Scope(step, keep=keep, is_published=is_published)
        if self._sole is not None:
            with self._sole.holding([*self.trees(), *step.directories()]):
                yield scope
            return
        if self._has_all and not isinstance(step, SharedUse):
            yield scope
            return
        self._locker.take(scope)
        try:
            yield scope
        finally:
            self._locker.close(scope)
