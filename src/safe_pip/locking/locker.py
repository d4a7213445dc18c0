"""What this process holds, and the one way to get more: in order, visibly, and never waiting while others wait for it.

**Order.** All requests of a scope are opened, sorted by rank, device and inode, each file once, and locked one after
the other: gate, then lock, then the gate is let go. Never a lock past a held gate, never an upgrade.

**Let go and start over.** What is not granted within a second while something else is held: everything is let go, that
one alone is waited for and let go, and the scope starts over. So does it whenever a path leads to another file than
the one that was locked, an ancestor turns out to hold something, or the process was stopped and continued.
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
from safe_pip.locking import flock, state_directory
from safe_pip.locking.flock import Descriptor, Identity
from safe_pip.locking.inheritance import Ancestry, Claim, ClaimsDirectory, ClaimSource
from safe_pip.locking.order import Rank, Request
from safe_pip.locking.waiting import ROUNDS, Interrupted, Limit, LockWait, NotInTime, StartOver, WaitBudget, Waiting


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
        """What child programs are to respect: what is granted, and what an outer scope or an ancestor holds already."""
        self.witnesses: list[ClaimSource] = []
        self.is_held = False
        self._directory: ClaimsDirectory | None = None
        self._noted: list[Path] = []

    def is_inheritance_alive(self) -> bool:
        """Whether the ancestors whose locks stand in for ours still hold them."""
        return all(witness.is_alive() for witness in self.witnesses)

    def make_claims_directory(self) -> None:
        """Make what child programs will need. Called before the first lock, so that it is let go before any lock."""
        if self.is_published and self._directory is None:
            self._directory = ClaimsDirectory()

    def publish(self) -> None:
        """Tell child programs, and whoever may have to wait, what is held."""
        if self._directory is not None:
            self._directory.publish(self.claims)
            for path in {note for request, _ in self.granted if (note := _note(request)) is not None}:
                with contextlib.suppress(OSError):  # who only reads the state directory leaves none
                    fs.replace(path, self._directory.note(), mode=0o644)
                    self._noted.append(path)

    def let_go(self) -> None:
        """Let all locks go, last first; what child programs believe ends before."""
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
        self.witnesses.clear()


def _note(request: Request) -> Path | None:
    """Where to say who has this lock, for who may not see it in /proc: beside the lock file, or its gate."""
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
        """Take all locks of `scope`; waits at most the timeout. If it raises, none of them is held.

        What outer scopes had to let go is taken again with them, unless this is to be done `alone`, before that.

        Raises `LockTimeout`, `NestingRefused`, `UnusableEnvironment`; `StalePlan` if what an outer scope had reserved
        had to be let go.
        """
        patience = WaitBudget(self._waiting, self._timeout)
        late: Request | None = None
        while True:
            try:
                if late is not None:
                    self._wait_alone(late, patience)
                    late = None
                if not alone and any(outer.keep is Keep.RESERVED and not outer.is_held for outer in self._scopes):
                    raise StalePlan((), "what this command had reserved had to be let go for another one")
                self._attempt([scope] if alone else [*self._without_locks(), scope], patience)
            except StartOver:
                continue
            except NotInTime as error:
                late = error.request
                patience.rounds += late.rank is Rank.ENVIRONMENT
                self._let_go()
            except Interrupted as found:
                self._recover(found)
            except flock.Suspended:
                self._let_go()
                flock.stop()
            else:
                self._scopes.append(scope)
                patience.end()
                return

    def _recover(self, found: Interrupted) -> None:
        """Undo what was left unfinished, with none of the locks of the step that found it."""
        for directory in found.directories:
            scope = Scope(self._recovering(directory))
            self.take(scope, alone=True)
            self.close(scope)

    def close(self, scope: Scope) -> None:
        """Let the locks of `scope` go."""
        scope.let_go()
        self._scopes.remove(scope)

    def holds(self, identity: Identity, *, exclusive: bool) -> bool:
        """Whether this process itself, no ancestor, holds the lock on this file in such a mode."""
        return any(
            descriptor.identity == identity and descriptor.fd >= 0 and (request.exclusive or not exclusive)
            for scope in self._scopes
            for request, descriptor in scope.granted
        )

    def _let_go(self) -> None:
        for scope in self._scopes:
            if scope.keep is not Keep.FIRMLY:
                scope.let_go()

    def _wait_alone(self, request: Request, patience: WaitBudget) -> None:
        descriptors: list[tuple[Request, Descriptor]] = []
        try:
            descriptors.append((request, Descriptor(request.path, writable=_can_write(request))))
            self._grant(*descriptors[0], descriptors, patience, is_first=request.rank is not Rank.OWNER)
        except NotInTime:
            if request.rank is not Rank.OWNER:
                raise
            # Its journal may be gone though it lives, and it may wait for what runs this command.
        except (FileNotFoundError, StartOver):
            pass  # what was waited for is another file by now
        finally:
            _close(descriptors)

    def _without_locks(self) -> list[Scope]:
        """The outer scopes that had to let go."""
        return [outer for outer in self._scopes if not outer.is_held]

    def _attempt(self, scopes: Sequence[Scope], patience: WaitBudget) -> None:
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
                self._grant(request, descriptor, wanted, patience, is_first=number == 0)
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
        """Open what is to be locked; what is held already, by us or by an ancestor, needs none."""
        descriptor = Descriptor(request.path, writable=_can_write(request))
        left, witness = request, None
        try:
            scope.claims.append(Claim(request.rank, request.exclusive, descriptor.identity, request.path))
            if not self._is_ours(request, descriptor.identity):
                resolved, witness = self._ancestry.resolve(request, descriptor.identity)
                if witness is not None:
                    scope.witnesses.append(witness)
                if resolved is not None:
                    left = resolved
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
        patience: WaitBudget,
        *,
        is_first: bool,
    ) -> None:
        """Lock one file, through its gate, together with the file that stands in for it on a file server."""
        limit = Limit.NONE
        if self._ancestry.breaks_order(request.rank, descriptor.identity) or self._is_kept_firmly():
            limit = Limit.OUT_OF_ORDER
        elif not is_first or self._is_anything_held():
            limit = Limit.WHILE_HOLDING
            if request.rank is Rank.ENVIRONMENT and patience.rounds >= ROUNDS:
                limit = Limit.PATIENT
        turn = LockWait(self._ancestry, patience, request, descriptor, wanted, limit)
        with_gate: list[Descriptor] = []
        try:
            if request.gate is not None:
                writable = not request.needs_writing or os.access(request.gate, os.W_OK)
                gate = Descriptor(request.gate, writable=request.needs_writing and writable)
                with_gate.append(gate)
                turn.wait(gate, exclusive=writable, gate=gate)
            turn.wait(descriptor, exclusive=request.exclusive)
            if request.also is not None:
                beside = Descriptor(request.also, writable=_can_write(request._replace(path=request.also)))
                descriptor.close_with(beside)
                turn.wait(beside, exclusive=request.exclusive)
        finally:
            for gate in with_gate:
                gate.close()

    def _is_kept_firmly(self) -> bool:
        return any(scope.is_held and scope.granted and scope.keep is Keep.FIRMLY for scope in self._scopes)

    def _is_anything_held(self) -> bool:
        return any(scope.is_held and scope.granted for scope in self._scopes)


def _can_write(request: Request) -> bool:
    return request.needs_writing and os.path.isfile(request.path) and os.access(request.path, os.W_OK)


def _merge(
    request: Request, descriptor: Descriptor, scope: Scope, opened: list[tuple[Request, Descriptor, Scope]]
) -> None:
    """Add a request to the opened ones: a file that two of them name is locked once, in the stronger mode."""
    for number, (other, kept, owner) in enumerate(opened):
        if kept.identity == descriptor.identity:
            rank, exclusive = min(other.rank, request.rank), other.exclusive or request.exclusive
            opened[number] = (other._replace(rank=Rank(rank), exclusive=exclusive), kept, owner)
            return
    opened.append((request, descriptor, scope))


def _close(descriptors: Iterable[tuple[Request, Descriptor]]) -> None:
    for _, descriptor in descriptors:
        descriptor.close()
