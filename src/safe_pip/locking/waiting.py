"""One wait: how long it may last, when the user is told of it, and what ends it."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from safe_pip.errors import LockTimeout
from safe_pip.fs import watch
from safe_pip.locking import flock, holders, inheritance, state_directory
from safe_pip.locking.flock import Descriptor
from safe_pip.locking.holders import Holder
from safe_pip.locking.inheritance import Ancestry
from safe_pip.locking.order import Rank, Request

# How long one lock may be waited for, in seconds: while another one is held that can be let go, or that cannot.
WHILE_HOLDING = 1.0
OUT_OF_ORDER = 60.0
# The limit for an environment lock, or that of a distribution, after so many rounds: a replacement of what is never all
# free would wait for ever. It is shorter than OUT_OF_ORDER, for the commands that wait meanwhile.
PATIENT, ROUNDS = 15.0, 3
# A gate is held for an instant unless a process waits behind it. Even a command that does not wait, waits so long.
AT_GATE = 0.1
FIRST_MESSAGE, LATER_MESSAGES, RAREST_MESSAGES = 1.0, (10.0, 60.0), 300.0


class Wait(NamedTuple):
    """A wait as the user is told of it."""

    path: Path
    exclusive: bool
    holders: tuple[Holder, ...]
    seconds: float


class Waiting(Protocol):
    """Tells the user of a wait, and does not wait until that is read."""

    def waiting(self, event: Wait) -> object:
        """Called after 1, 10 and 60 seconds of waiting for a lock, then every five minutes; if true, each second."""

    def granted(self, event: Wait, seconds: float) -> None:
        """Called when the lock is granted, if `waiting` was called."""

    def interrupted(self) -> None:
        """Called when the user interrupts a wait."""

    def unguarded(self, path: Path) -> None:
        """Called when a tree is read that commands on other hosts may change meanwhile."""

    def unprobed(self, path: Path) -> bool:
        """Called for a tree on a filesystem of several hosts that was never probed, until it returns True."""


class StartOver(Exception):
    """What was opened or granted is not what the path leads to now, or not what the step needs now."""


class Interrupted(Exception):
    """A change was left unfinished in these directories: it is undone before anything is read or written."""


class NotInTime(Exception):
    """This request was not granted within a second while something else is held."""


class WaitBudget:
    """How long a step may wait in all, and when the user is told of it."""

    def __init__(self, waiting: Waiting, timeout: float | None) -> None:
        self._waiting, self.timeout = waiting, timeout
        self.begun = time.monotonic()
        self.deadline = math.inf if timeout is None else self.begun + timeout
        self.next_message = self.begun + FIRST_MESSAGE
        self.rounds = 0  # in which everything was let go because an environment lock was not granted in time
        self._told: Wait | None = None

    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def tell(self, event: Wait) -> None:
        self._told, passed = event, self.elapsed()
        later = next((moment - passed for moment in LATER_MESSAGES if passed < moment), RAREST_MESSAGES)
        self.next_message = time.monotonic() + (FIRST_MESSAGE if self._waiting.waiting(event) else later)

    def interrupt(self) -> None:
        if self._told is not None:
            self._waiting.interrupted()

    def end(self) -> None:
        if self._told is not None:
            self._waiting.granted(self._told, self.elapsed())


class LockWait(NamedTuple):
    """Waiting for one lock and what belongs to it, for at most `limit` seconds: then `NotInTime`, or `LockTimeout`."""

    ancestry: Ancestry
    budget: WaitBudget
    request: Request
    descriptor: Descriptor
    wanted: Sequence[tuple[Request, Descriptor]]
    limit: float

    def wait(self, descriptor: Descriptor, *, exclusive: bool, gate: Descriptor | None = None) -> None:
        """Return when `descriptor` is locked and its path still leads to it; else raise."""
        if not flock.try_lock(descriptor, exclusive=exclusive):
            try:
                with watch.phase("wait", lambda: self._noted(gate)):
                    self._wait(descriptor, exclusive, gate)
            except KeyboardInterrupt:
                self.budget.interrupt()
                raise
        if not descriptor.is_current(asks=descriptor is not gate):
            raise StartOver

    def _wait(self, descriptor: Descriptor, exclusive: bool, gate: Descriptor | None) -> None:
        begun = time.monotonic()
        deadline = self.budget.deadline if gate is None else max(self.budget.deadline, begun + AT_GATE)
        until = min(deadline, begun + self.limit)
        while True:
            if self.ancestry.learn(self.wanted):
                raise StartOver  # an ancestor turns out to hold one of the locks
            if (now := time.monotonic()) >= self.budget.next_message:
                self.budget.tell(self._event(gate))
            if now >= until:
                self._give_up(gate, is_limit=until < deadline)
            wake = min(self.budget.next_message, until)
            if wake > now and flock.wait_lock(descriptor, exclusive=exclusive, seconds=wake - now):
                return

    def _event(self, gate: Descriptor | None) -> Wait:
        lock = self.descriptor.beside or self.descriptor
        found = holders.holders(lock.fd, None if gate is None else gate.fd)
        # None may be seen from this pid namespace, and those on other hosts never are: but holders leave notes.
        if not found or self.request.needs_writing:
            gate_file = self.request.gate or state_directory.path_of(self.request.path) / state_directory.OWNER
            notes = inheritance.notes(gate_file.parent, commits=self.request.rank is Rank.COMMIT)
            found = (*found, *(note for note in notes if note.host or not found))
        return Wait(self.request.shown, self.request.exclusive, found, self.budget.elapsed())

    def _noted(self, gate: Descriptor | None) -> dict[str, object]:
        return {"lock": self.request.noted(), "for": [each.noted() for each in self._event(gate).holders]}

    def _give_up(self, gate: Descriptor | None, *, is_limit: bool) -> None:
        if is_limit and self.limit != OUT_OF_ORDER:
            raise NotInTime(self.request)
        event = self._event(gate)
        what = f"the {'exclusive' if event.exclusive else 'shared'} lock on `{event.path}`"
        names = [f"`{holder.command}` ({holder.where})" for holder in event.holders if not holder.is_waiting]
        how = "held" if all(holder.exclusive for holder in event.holders) else "shared"
        by = f", {how} by {' and '.join(names)}" if names else ""
        seconds = OUT_OF_ORDER if is_limit else self.budget.timeout
        if not seconds:
            raise LockTimeout(f"{what} is not free{by}")
        text = f"gave up after {seconds:g} s waiting for {what}{by}"
        if is_limit:
            raise LockTimeout(f"{text}: what runs this command holds a lock that the other one may be waiting for")
        raise LockTimeout(text, hint="Set SAFE_PIP_LOCK_TIMEOUT to wait longer")
