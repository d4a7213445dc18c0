"""All locks of this process, and the one way to get more: in order, visibly, and without blocking others meanwhile.

**Order.** All requests of a scope are opened, sorted by rank, device and inode, each file once, and locked one after
the other: gate, then lock, then the gate is let go. A lock is never taken past a held gate, and never upgraded.

**Let go and start over.** If a lock is not granted within a second while another is held, everything is let go. That
lock alone is waited for and let go, and the scope starts over. It also does when a path leads to another file than the
locked one, when an ancestor turns out to hold something, and when the process was stopped and continued.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from safe_pip.errors import NestingRefused, StalePlan
from safe_pip.fs import watch
from safe_pip.locking import flock, inheritance, waiting
from safe_pip.locking.flock import Descriptor, Identity
from safe_pip.locking.inheritance import Ancestor, Ancestry, Claim, ClaimsDirectory
from safe_pip.locking.order import Rank, Request
from safe_pip.locking.waiting import Interrupted, LockWait, NotInTime, StartOver, WaitBudget, Waiting

Opened = tuple[Request, Descriptor]


class Keep(enum.Enum):
    """What may happen to a scope's locks when another lock has to be waited for."""

    RENEWED = "let go and taken again"
    RESERVED = "let go, and the command starts over"
    FIRMLY = "kept: the wait is short or refused"


class Step(Protocol):
    """One step of a command, as far as locks go."""

    directories: Sequence[Path] = ()
    """What it locks beside the environment's trees where each directory has one lock for everything."""

    def requests(self) -> Iterable[Request]:
        """The locks that the step needs, asked each time it starts over. It makes what is missing on disk."""

    def on_grant(self) -> None:
        """Called when all locks are granted, before anything is read or written; may recover or raise `Interrupted`."""
        return

    def on_release(self) -> None:
        """Called when the locks are let go for good, for what may take its time. Never raises."""
        return

    def is_current(self) -> bool:
        """Whether the granted locks are still the ones that the step needs."""
        return True


class Scope:
    """The locks that one step needs and, between `Locker.take` and `Locker.close`, has."""

    def __init__(self, step: Step, *, keep: Keep = Keep.FIRMLY, is_published: bool = False) -> None:
        self.step, self.keep, self.is_published = step, keep, is_published
        self.granted: list[Opened] = []
        # What child programs must respect: what is granted, and what an outer scope or an ancestor holds already.
        self.claims: list[Claim] = []
        self.sources: list[Ancestor] = []
        self.is_held = False
        self.directory: ClaimsDirectory | None = None
        self._noted: Callable[[], None] | None = None  # ends this in the timeline, if there is one

    def is_inheritance_alive(self) -> bool:
        return all(source.is_alive() for source in self.sources)

    def check(self) -> None:
        """Raise `StalePlan` if an ancestor whose locks are used has died, or a locked file has left its path."""
        if not self.is_inheritance_alive():
            raise StalePlan((), "the command that held the locks for this one has ended")
        if not all(descriptor.is_current() for _, descriptor in self.granted):
            raise StalePlan((), "the environment was made anew while this command was at work")

    def hold(self) -> None:
        """Tell child programs, and processes that have to wait, what is held."""
        self.is_held = True
        if watch.timeline is not None and self.granted:
            locks = [request.noted() for request, _ in self.granted]
            self._noted = watch.timeline.begin("hold", lambda: {"locks": locks})
        if self.directory is not None:
            gated = (each for each, _ in self.granted if each.rank is not Rank.DISTRIBUTION)
            queued = [(request, request.gate.parent) for request in gated if request.gate is not None]
            exclusive = {state for request, state in queued if request.exclusive}
            shared = {state for request, state in queued if request.also is not None and request.needs_writing}
            self.directory.publish(self.claims, exclusive, shared - exclusive)

    def let_go(self) -> None:
        """Let all locks go, last first; before that, end what child programs rely on."""
        self.is_held = False
        if self.directory is not None:
            self.directory.close()
            self.directory = None
        for _, descriptor in reversed(self.granted):
            descriptor.close()
        if self._noted is not None:
            self._noted()
            self._noted = None
        self.granted.clear()
        self.claims.clear()
        self.sources.clear()


class Locker:
    """All that this process holds."""

    def __init__(
        self, waiting: Waiting, timeout: float | None, ancestry: Ancestry, recovering: Callable[[Path], Step]
    ) -> None:
        """`recovering` makes the step that undoes what was left unfinished in a directory."""
        self._waiting, self._timeout = waiting, timeout
        self._ancestry, self._recovering = ancestry, recovering
        self._scopes: list[Scope] = []

    def take(self, scope: Scope, *, alone: bool = False) -> None:
        """Take all locks of `scope`, and unless `alone` those that outer scopes let go. If it raises, it holds none.

        Raises `LockTimeout`, `NestingRefused`, `UnusableEnvironment`; `StalePlan` if an outer reservation was lost.
        """
        budget = WaitBudget(self._waiting, self._timeout)
        late: Request | None = None
        while True:
            try:
                if late is not None:
                    self._wait_alone(late, budget)
                    late = None
                if not alone and any(outer.keep is Keep.RESERVED and not outer.is_held for outer in self._scopes):
                    raise StalePlan((), "what this command had reserved had to be let go for another one")
                self._attempt([*(outer for outer in self._scopes if not outer.is_held and not alone), scope], budget)
            except StartOver:
                continue
            except NotInTime as error:
                (late,) = error.args
                budget.rounds += late.rank <= Rank.DISTRIBUTION
                self._let_go()
            except Interrupted as found:
                for directory in found.args:
                    recovery = Scope(self._recovering(directory))
                    self.take(recovery, alone=True)
                    self.close(recovery)
            except flock.Suspended:
                self._let_go()
                flock.stop()
            else:
                self._scopes.append(scope)
                budget.end()
                return

    def close(self, scope: Scope) -> None:
        scope.let_go()
        self._scopes.remove(scope)
        scope.step.on_release()

    def holds(self, identity: Identity, *, exclusive: bool) -> bool:
        """Whether this process, not an ancestor, holds the lock on this file in such a mode."""
        held = (each for scope in self._scopes for each in scope.granted if each[1].fd >= 0)
        return any(identity in lock.identities() and (request.exclusive or not exclusive) for request, lock in held)

    @property
    def is_idle(self) -> bool:
        """Whether this process holds, and wants back, nothing, and knows of no command above it that does."""
        return not self._scopes and inheritance.VARIABLE not in os.environ

    def _let_go(self) -> None:
        for scope in reversed(self._scopes):
            if scope.keep is not Keep.FIRMLY:
                scope.let_go()

    def _wait_alone(self, request: Request, budget: WaitBudget) -> None:
        # The path may lead to another file by now, or an owner's journal be gone. An owner may wait for what runs this.
        ends = (FileNotFoundError, StartOver) + ((NotInTime,) if request.rank is Rank.OWNER else ())
        with contextlib.suppress(*ends), _open(request) as descriptor:
            self._grant(request, descriptor, [(request, descriptor)], budget, is_first=NotInTime not in ends)

    def _attempt(self, scopes: Sequence[Scope], budget: WaitBudget) -> None:
        opened: dict[Identity, tuple[Request, Descriptor, Scope]] = {}
        flock.listed.names.clear()
        try:
            self._ancestry.refresh()
            for each in scopes:
                for request in each.step.requests():
                    self._open(request, each, opened)
                # Where nothing can be written, child programs find a shared lock in /proc/locks.
                if each.is_published and (inheritance.can_publish() or any(claim.exclusive for claim in each.claims)):
                    each.directory = ClaimsDirectory()  # before the first lock, so that it is let go before any lock
            ordered = sorted(opened.values(), key=lambda item: (item[0].rank, item[1].identity))
            wanted = [item[:2] for item in ordered]
            for request, descriptor, each in ordered:
                is_first = not any(scope.granted for scope in scopes)
                self._grant(request, descriptor, wanted, budget, is_first=is_first)
                each.granted.append((request, descriptor))
            if not all(descriptor.is_current() for _, descriptor in wanted[:-1]):
                raise StartOver  # while the later ones were waited for; the last one was looked at when it was granted
            for each in scopes:
                each.step.on_grant()
                if not (each.step.is_current() and each.is_inheritance_alive()):
                    raise StartOver
            flock.listed.names.clear()
            for each in scopes:
                each.hold()
        except BaseException as error:
            for each in reversed(scopes):
                each.let_go()
            for _, descriptor, _ in opened.values():
                descriptor.close()
            if isinstance(error, FileNotFoundError):
                raise StartOver from None  # removed since the plan was made
            raise

    def _open(self, request: Request, scope: Scope, opened: dict[Identity, tuple[Request, Descriptor, Scope]]) -> None:
        """Open what this process and its ancestors do not hold; a file of two requests once, for the stronger mode."""
        descriptor = _open(request)
        try:
            scope.claims.append(Claim(request.rank, request.exclusive, descriptor.identity, request.path))
            while True:
                if self.holds(descriptor.identity, exclusive=request.exclusive):
                    return
                if request.exclusive and self.holds(descriptor.identity, exclusive=False):
                    raise NestingRefused(f"`{request.shown}` is kept as it is by another step of this command")
                left, source = self._ancestry.resolve(request, descriptor.identity)
                if source is not None:
                    scope.sources.append(source)
                if left is None:
                    return
                path, request = request.path, left
                if request.path == path:
                    break
                descriptor.close()
                descriptor = _open(request)  # the stand-in, which an ancestor may hold in its turn
            other, kept, owner = opened.get(descriptor.identity, (request, descriptor, scope))
            stronger = other._replace(
                rank=min(other.rank, request.rank),
                exclusive=other.exclusive or request.exclusive,
                also=other.also or request.also,
            )
            opened[kept.identity] = (stronger, kept, owner)
        finally:
            if all(descriptor is not kept for _, kept, _ in opened.values()):
                descriptor.close()

    def _grant(
        self, request: Request, descriptor: Descriptor, wanted: Sequence[Opened], budget: WaitBudget, *, is_first: bool
    ) -> None:
        """Lock one file, through its gate, together with the file that other hosts see."""
        kept = {scope.keep for scope in self._scopes if scope.is_held and scope.granted}
        limit = math.inf
        if self._ancestry.breaks_order(request, descriptor.identity) or Keep.FIRMLY in kept:
            limit = waiting.OUT_OF_ORDER
        elif not is_first or kept:
            is_patient = request.rank <= Rank.DISTRIBUTION and budget.rounds >= waiting.ROUNDS
            limit = waiting.PATIENT if is_patient else waiting.WHILE_HOLDING
        wait = LockWait(self._ancestry, budget, request, descriptor, wanted, limit)
        with contextlib.ExitStack() as gates:
            if request.gate is not None:
                writable = not request.needs_writing or os.access(request.gate, os.W_OK)
                gate = gates.enter_context(Descriptor(request.gate, writable=request.needs_writing and writable))
                wait.wait(gate, exclusive=writable, gate=gate)
            wait.wait(descriptor, exclusive=request.exclusive)
            if request.also is not None:
                descriptor.beside = _open(request, request.also)
                wait.wait(descriptor.beside, exclusive=request.exclusive)


def _open(request: Request, path: Path | None = None) -> Descriptor:
    """Open what is to be locked, or `path` that is locked like it, to write if that is needed and allowed."""
    path = path or request.path
    return Descriptor(path, writable=request.needs_writing and os.path.isfile(path) and os.access(path, os.W_OK))
