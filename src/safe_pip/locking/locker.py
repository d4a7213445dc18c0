"""All locks of this process, and the one way to get more: in order, visibly, and without blocking others meanwhile.

**Order.** All requests of a scope are opened, sorted by rank, device and inode, each file once, and locked one after
the other: gate, then lock, then the gate is let go. A lock is never taken past a held gate, and never upgraded.

**Let go and start over.** If a lock is not granted within a second while another is held, everything is let go. That
lock alone is waited for and let go, and the scope starts over. The scope also starts over when a path leads to another
file than the one that was locked, when an ancestor turns out to hold something, and when the process was stopped and
continued.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from safe_pip import fs
from safe_pip.errors import NestingRefused, StalePlan
from safe_pip.locking import flock, state_directory, waiting
from safe_pip.locking.flock import Descriptor, Identity
from safe_pip.locking.inheritance import Ancestry, Claim, ClaimsDirectory, ClaimSource
from safe_pip.locking.order import Rank, Request
from safe_pip.locking.waiting import Interrupted, LockWait, NotInTime, StartOver, WaitBudget, Waiting


class Keep(enum.Enum):
    """What may happen to a scope's locks when another lock has to be waited for."""

    RENEWED = "let go and taken again"
    RESERVED = "let go, and the command starts over"
    FIRMLY = "kept: the wait is short or refused"


class Step(Protocol):
    """One step of a command, as far as locks go."""

    def requests(self) -> Iterable[Request]:
        """The locks that the step needs, asked each time it starts over. It makes what is missing on disk."""

    def on_grant(self) -> None:
        """Called when all locks are granted, before anything is read or written. It may recover.

        Raises `Interrupted` if a change was left unfinished that must be undone first.
        """
        return

    def is_current(self) -> bool:
        """Whether the granted locks are still the ones that the step needs."""
        return True

    def directories(self) -> Iterable[Path]:
        """What it locks beside the environment's trees where each directory has one lock for everything."""
        return ()


class Scope:
    """The locks that one step needs and, between `Locker.take` and `Locker.close`, has."""

    def __init__(self, step: Step, *, keep: Keep = Keep.FIRMLY, is_published: bool = False) -> None:
        self.step = step
        self.keep = keep
        self.is_published = is_published
        self.granted: list[tuple[Request, Descriptor]] = []
        self.claims: list[Claim] = []
        """What child programs must respect: what is granted, and what an outer scope or an ancestor holds already."""
        self.sources: list[ClaimSource] = []
        self.is_held = False
        self._directory: ClaimsDirectory | None = None
        self._noted: list[Path] = []

    def is_inheritance_alive(self) -> bool:
        """Whether the ancestors whose locks this scope uses still hold them."""
        return all(source.is_alive() for source in self.sources)

    def make_claims_directory(self) -> None:
        """Make what child programs will need. Called before the first lock, so that it is let go before any lock."""
        if self.is_published and self._directory is None:
            self._directory = ClaimsDirectory()

    def publish(self) -> None:
        """Tell child programs, and processes that have to wait, what is held."""
        if self._directory is not None:
            self._directory.publish(self.claims)
            for path in {note for request, _ in self.granted if (note := _note(request)) is not None}:
                with contextlib.suppress(OSError):  # this user may only read the state directory
                    fs.replace(path, self._directory.note(), mode=0o644)
                    self._noted.append(path)

    def let_go(self) -> None:
        """Let all locks go, last first; before that, end what child programs rely on."""
        self.is_held = False
        if self._directory is not None:
            if self._directory.close():
                for path in self._noted:
                    fs.unlink(path)
            self._directory = None
        self._noted.clear()
        for _, descriptor in reversed(self.granted):
            descriptor.close()
        self.granted.clear()
        self.claims.clear()
        self.sources.clear()


def _note(request: Request) -> Path | None:
    """Where to note the holder of this lock for processes that cannot see it in /proc: beside the lock file or gate."""
    if not request.exclusive or request.gate is None:
        return None
    return request.gate.with_name(state_directory.OWNER)


class Locker:
    """All that this process holds."""

    def __init__(
        self, waiting: Waiting, timeout: float | None, ancestry: Ancestry, recovering: Callable[[Path], Step]
    ) -> None:
        """`recovering` makes the step that undoes what was left unfinished in a directory."""
        self._waiting = waiting
        self._recovering = recovering
        self._timeout = timeout
        self._ancestry = ancestry
        self._scopes: list[Scope] = []

    def take(self, scope: Scope, *, alone: bool = False) -> None:
        """Take all locks of `scope`; wait at most the timeout. If it raises, none of them is held.

        Locks that outer scopes had to let go are taken again with them, unless `scope` is to be taken `alone`.

        Raises `LockTimeout`, `NestingRefused`, `UnusableEnvironment`; `StalePlan` if what an outer scope had reserved
        had to be let go.
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
                late = error.request
                budget.rounds += late.rank is Rank.ENVIRONMENT
                self._let_go()
            except Interrupted as found:
                self._recover(found)
            except flock.Suspended:
                self._let_go()
                flock.stop()
            else:
                self._scopes.append(scope)
                budget.end()
                return

    def _recover(self, found: Interrupted) -> None:
        """Undo what was left unfinished, without the locks of the step that found it."""
        for directory in found.directories:
            scope = Scope(self._recovering(directory))
            self.take(scope, alone=True)
            self.close(scope)

    def close(self, scope: Scope) -> None:
        """Let the locks of `scope` go."""
        scope.let_go()
        self._scopes.remove(scope)

    def holds(self, identity: Identity, *, exclusive: bool) -> bool:
        """Whether this process, not an ancestor, holds the lock on this file in such a mode."""
        return any(
            descriptor.identity == identity and descriptor.fd >= 0 and (request.exclusive or not exclusive)
            for scope in self._scopes
            for request, descriptor in scope.granted
        )

    def _let_go(self) -> None:
        for scope in self._scopes:
            if scope.keep is not Keep.FIRMLY:
                scope.let_go()

    def _wait_alone(self, request: Request, budget: WaitBudget) -> None:
        descriptors: list[tuple[Request, Descriptor]] = []
        try:
            descriptors.append((request, Descriptor(request.path, writable=_can_write(request))))
            self._grant(*descriptors[0], descriptors, budget, is_first=request.rank is not Rank.OWNER)
        except NotInTime:
            if request.rank is not Rank.OWNER:
                raise
            # The owner lives, but its journal may be gone. It may wait for the program that runs this command.
        except (FileNotFoundError, StartOver):
            pass  # the path leads to another file now
        finally:
            _close(descriptors)

    def _attempt(self, scopes: Sequence[Scope], budget: WaitBudget) -> None:
        opened: list[tuple[Request, Descriptor, Scope]] = []
        try:
            self._ancestry.refresh()
            for each in scopes:
                each.make_claims_directory()
                for request in each.step.requests():
                    self._open(request, each, opened)
            ordered = sorted(opened, key=lambda item: (item[0].rank, item[1].identity))
            wanted = [item[:2] for item in ordered]
            for number, (request, descriptor, each) in enumerate(ordered):
                self._grant(request, descriptor, wanted, budget, is_first=number == 0)
                each.granted.append((request, descriptor))
            if not all(descriptor.is_current() for _, descriptor in wanted):
                raise StartOver  # while the later ones were waited for
            for each in scopes:
                each.step.on_grant()
                if not (each.step.is_current() and each.is_inheritance_alive()):
                    raise StartOver
            for each in scopes:
                each.publish()
                each.is_held = True
        except BaseException as error:
            for each in scopes:
                each.let_go()
            _close(item[:2] for item in opened)
            if isinstance(error, FileNotFoundError):
                raise StartOver from None  # removed since the plan was made
            raise

    def _open(self, request: Request, scope: Scope, opened: list[tuple[Request, Descriptor, Scope]]) -> None:
        """Open what has to be locked: not what this process or an ancestor holds already."""
        descriptor = Descriptor(request.path, writable=_can_write(request))
        try:
            scope.claims.append(Claim(request.rank, request.exclusive, descriptor.identity, request.path))
            if self._is_ours(request, descriptor.identity):
                return
            left, source = self._ancestry.resolve(request, descriptor.identity)
            if source is not None:
                scope.sources.append(source)
            if left is None:
                return
            if left.path != request.path:
                descriptor.close()
                descriptor = Descriptor(left.path, writable=_can_write(left))
                if self._is_ours(left, descriptor.identity):
                    return
                self._ancestry.refuse_if_held(left, descriptor.identity)
            _merge(left, descriptor, scope, opened)
        finally:
            if all(descriptor is not kept for _, kept, _ in opened):
                descriptor.close()

    def _is_ours(self, request: Request, identity: Identity) -> bool:
        if self.holds(identity, exclusive=request.exclusive):
            return True
        if request.exclusive and self.holds(identity, exclusive=False):
            raise NestingRefused(f"`{request.shown}` is kept as it is by another step of this command")
        return False

    def _grant(
        self,
        request: Request,
        descriptor: Descriptor,
        wanted: Sequence[tuple[Request, Descriptor]],
        budget: WaitBudget,
        *,
        is_first: bool,
    ) -> None:
        """Lock one file, through its gate, together with the file that other hosts see."""
        wait = LockWait(self._ancestry, budget, request, descriptor, wanted)
        kept = {scope.keep for scope in self._scopes if scope.is_held and scope.granted}
        if self._ancestry.breaks_order(request.rank, descriptor.identity) or Keep.FIRMLY in kept:
            wait = wait._replace(limit=waiting.OUT_OF_ORDER)
        elif not is_first or kept:
            is_patient = request.rank is Rank.ENVIRONMENT and budget.rounds >= waiting.ROUNDS
            limit = waiting.PATIENT if is_patient else waiting.WHILE_HOLDING
            wait = wait._replace(limit=limit, starts_over=True)
        with contextlib.ExitStack() as gates:
            if request.gate is not None:
                writable = not request.needs_writing or os.access(request.gate, os.W_OK)
                gate = Descriptor(request.gate, writable=request.needs_writing and writable)
                gates.callback(gate.close)
                wait.wait(gate, exclusive=writable, gate=gate)
            wait.wait(descriptor, exclusive=request.exclusive)
            if request.also is not None:
                beside = Descriptor(request.also, writable=_can_write(request._replace(path=request.also)))
                descriptor.close_with(beside)
                wait.wait(beside, exclusive=request.exclusive)


def _can_write(request: Request) -> bool:
    return request.needs_writing and os.path.isfile(request.path) and os.access(request.path, os.W_OK)


def _merge(
    request: Request, descriptor: Descriptor, scope: Scope, opened: list[tuple[Request, Descriptor, Scope]]
) -> None:
    """Add a request to the opened ones. A file that two of them name is locked once, in the stronger mode."""
    for number, (other, kept, owner) in enumerate(opened):
        if kept.identity == descriptor.identity:
            rank, exclusive = min(other.rank, request.rank), other.exclusive or request.exclusive
            opened[number] = (other._replace(rank=Rank(rank), exclusive=exclusive), kept, owner)
            return
    opened.append((request, descriptor, scope))


def _close(descriptors: Iterable[tuple[Request, Descriptor]]) -> None:
    for _, descriptor in descriptors:
        descriptor.close()
