"""What goes on in a tree, seen from outside: who holds or waits for its locks, which transactions are unfinished.

Nothing is locked for it, not for an instant: to test a lock by taking it gets in the way of others. Linux shows all
locks in /proc/locks; from within another pid namespace only its own processes', and elsewhere there is none. Then the
notes that holders leave are all there is, and what is not known is None.
"""

import enum
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from safe_pip.errors import RecoveryNeeded
from safe_pip.journal import owner
from safe_pip.locking import holders, inheritance, order, state_directory
from safe_pip.locking.holders import Entry, Holder, View
from safe_pip.locking.state_directory import COMMITTED, JOURNAL, OWNER_FILE

_NAME = re.compile(r"([0-9a-f]{16})(?:\.(owner|committed|home))?|(.+)\.journal")
_LONGEST = 64 * 1024


class Party(NamedTuple):
    """One process at a lock; `exclusive` is None if it stands at the gate, where nobody sees which mode it wants.

    `since` is when it took the lock where it left a note of that, or else when it began (epoch); `is_seen` is False if
    there is nothing but the note.
    """

    pid: int
    exclusive: bool | None
    command: str = ""
    since: float | None = None
    is_stopped: bool = False
    is_seen: bool = True


class Lock(NamedTuple):
    """One lock: `path` is what is locked; who waits is listed in the order in which it will be granted."""

    name: str
    tree: Path
    path: Path
    holders: tuple[Party, ...] = ()
    waiting: tuple[Party, ...] = ()


class State(enum.Enum):
    """How far a transaction got: before its journal, before its commit point, after it."""

    STAGING = "staging"
    PREPARED = "prepared"
    COMMITTED = "committed"


class Transaction(NamedTuple):
    """One transaction that is at work, or was left unfinished; `is_alive` is None where that cannot be seen."""

    identifier: str
    tree: Path
    state: State
    is_alive: bool | None
    pid: int | None = None
    command: str = ""
    since: float | None = None


def locks(tree: Path, view: View, directories: Iterable[Path] = ()) -> Iterator[Lock]:
    """The locks of `tree`, then those of shared `directories` and the mutexes and uv's lock of its environment."""
    state = state_directory.path_of(tree)
    note = inheritance.noted(state / state_directory.OWNER)
    beside = [state / state_directory.ENVIRONMENT]
    environment = _lock("environment", tree, [tree, *beside], state / state_directory.ENVIRONMENT_GATE, view)
    commit = _lock("commit", tree, [state / state_directory.COMMIT], state / state_directory.COMMIT_GATE, view)
    if note is not None:
        environment, commit = (_with_since(each, note) for each in (environment, commit))
        known = {party.pid for each in (environment, commit) for party in each.holders}
        if note.pid not in known and not view.is_complete:
            unseen = Party(note.pid, True, note.command, note.since, is_seen=False)
            environment = environment._replace(holders=(*environment.holders, unseen))
    yield environment
    yield commit
    home = order.shown_name(tree)
    others = {"source directory": home / "src", "uv": home / ".lock"}
    others |= {f"shared directory {path}": path for path in directories if not path.is_relative_to(home)}
    for name, path in others.items():
        if os.path.lexists(path):
            yield _lock(name.partition(" /")[0], tree, [path], None, view)


def _lock(name: str, tree: Path, paths: list[Path], gate: Path | None, view: View) -> Lock:
    holding: dict[int, Party] = {}
    waiting: dict[int, Party] = {}
    for path in paths:
        held, blocked = view.at(path)
        holding |= {party.pid: party for entry in held for party in _parties(entry)}
        waiting |= {entry.pid: _party(entry) for entry in blocked}
    if gate is not None:
        # Who holds the gate is the next in turn, and stands in the wait for the lock itself already or at once.
        held, blocked = view.at(gate)
        for entry in held + blocked:
            waiting.setdefault(entry.pid, _party(entry)._replace(exclusive=None))
    return Lock(name, tree, paths[0], tuple(holding.values()), tuple(waiting.values()))


def _parties(entry: Entry) -> list[Party]:
    """Who holds a lock: who took it, or, if he has ended, those who have inherited his descriptor (`flock 9; make`)."""
    party = _party(entry)
    if party.command or party.since is not None:
        return [party]
    inheritors = [_party(entry._replace(pid=pid)) for pid in holders.inheritors(entry.file)]
    return inheritors or [party]


def _party(entry: Entry) -> Party:
    holder = holders.describe(entry)
    return Party(holder.pid, holder.exclusive, holder.command, holder.since, holder.is_stopped)


def _with_since(lock: Lock, note: Holder) -> Lock:
    """The note says since when its process has the lock; `/proc` only when that process began."""
    changed = (each._replace(since=note.since) if each.pid == note.pid else each for each in lock.holders)
    return lock._replace(holders=tuple(changed))


def transactions(trees: Iterable[Path]) -> list[Transaction]:
    """The transactions that changed `trees`, or are about to: at home in one of them, or with a mark there."""
    wanted: dict[tuple[Path, str], State] = {}
    for tree in trees:
        for home, identifier in _named(tree):
            state = _state(home, identifier)
            if state is not None:
                wanted[home, identifier] = state
    if not wanted:
        return []
    # Looked at later than the names were listed: what has begun in between is seen alive, never dead.
    view = View.take()
    found = [_transaction(identifier, home, state, view) for (home, identifier), state in sorted(wanted.items())]
    return [each for each in found if each.is_alive or _state(each.tree, each.identifier) is not None]


def _named(tree: Path) -> Iterator[tuple[Path, str]]:
    """Which transactions the state directory of `tree` tells of, each with its home."""
    directory = state_directory.path_of(tree)
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        if match[2] != "home":
            yield tree, match[1] or match[3]
            continue
        try:
            with open(directory / name, "rb") as file:
                home = os.fsdecode(file.read(_LONGEST).partition(b"\n")[0])
        except OSError:
            continue
        if os.path.isabs(home):
            yield Path(home), match[1]


def _state(home: Path, identifier: str) -> State | None:
    """How far it got; None if nothing is left of it."""
    path = state_directory.path_of(home) / identifier
    for suffix, state in ((JOURNAL, State.PREPARED), (COMMITTED, State.COMMITTED)):
        if os.path.lexists(f"{path}{suffix}"):
            return state
    return State.STAGING if os.path.lexists(path) or os.path.lexists(f"{path}{OWNER_FILE}") else None


def _transaction(identifier: str, tree: Path, state: State, view: View) -> Transaction:
    path = state_directory.path_of(tree) / f"{identifier}{OWNER_FILE}"
    found, note = Transaction(identifier, tree, state, _is_alive(path, view)), owner.read(path)
    return found._replace(pid=note.pid, command=note.command, since=note.since) if note.pid else found


def _is_alive(path: Path, view: View) -> bool | None:
    """Whether somebody has locked the owner file; who was killed has not."""
    if not os.path.lexists(path):
        return False
    if view.at(path)[0]:
        return True
    return False if view.is_complete or sys.platform == "win32" else None


def outlook(transaction: Transaction) -> str:
    """What the next command of this user does about it."""
    if transaction.is_alive:
        return "wait"
    then = {State.STAGING: "delete", State.PREPARED: "roll back", State.COMMITTED: "finish"}[transaction.state]
    if transaction.state is not State.STAGING:
        from safe_pip.journal import recovery
        from safe_pip.journal.pending import Unfinished

        is_prepared = transaction.state is State.PREPARED
        name = transaction.identifier + (JOURNAL if is_prepared else COMMITTED)
        try:
            recovery.check(Unfinished(transaction.tree, transaction.identifier, name))
        except RecoveryNeeded as error:
            hint = f" ({error.hint})" if error.hint else ""
            then = f"refuse: {error.message}{hint}"
        except FileNotFoundError:
            pass  # somebody was faster
    return then if transaction.is_alive is False else f"wait, or {then} if it is dead"
