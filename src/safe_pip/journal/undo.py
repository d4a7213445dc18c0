"""What undoes the operations of a transaction, last operation first, and what lies at their places now.

Names alone tell what happened (S in the stage, T in the trash, `live` in its place). Inode numbers do not stay.

| kind     | do                         | undo                                                 |
|----------|----------------------------|------------------------------------------------------|
| NEW      | S to live                  | S gone, live there: live to S                        |
| FILE     | live linked to T; S over it| T there: S there too: remove T; S gone: T over live  |
| EXCHANGE | exchange S and live        | marker in live: exchange S and live                  |
| SWAP     | live to T; S to live       | T there: (S gone, live there: live to S,) T to live  |
| REMOVE   | live to T                  | T there: T to live                                   |
| MODE     | set the new mode           | live has it: set the old one                         |

What is done only after the commit point (`Kind.is_late`) is never undone.

Each action leads to a state that the transaction itself can leave, or from which nothing more is undone. So an undo may
be interrupted anywhere and begun again.
"""

import enum
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from safe_pip import fs
from safe_pip.journal.directories import Location, OpenDirectories, Refused, walk
from safe_pip.merge.plan import Journal, Kind, Operation, Seen
from safe_pip.records import is_bytecode, is_own


class Observed(NamedTuple):
    """What is at the three places of an operation.

    `is_marked`: the directory at `live` carries the marker, so it is the new one; `is_changed`: another program has
    written in it since it came there. `is_reachable` is False if something above `live` is no directory.
    """

    live: Seen | None = None
    staged: Seen | None = None
    trash: Seen | None = None
    is_marked: bool = False
    is_staged_marked: bool = False
    is_changed: bool = False
    is_reachable: bool = True


class Action(enum.Enum):
    """One change that undoes an operation, or a part of it."""

    LIVE_TO_STAGE = "live to S"
    TRASH_OVER_LIVE = "T over live"
    DROP_TRASH = "remove T"
    TRASH_TO_LIVE = "T to live"
    EXCHANGE = "exchange S and live"
    MODE = "set the old mode"
    LEAVE = "leave it as it is, and say so"


Step = tuple[Operation, Action]
"""One action of a recovery."""


def decide(journal: Journal, see: Callable[[Operation], Observed], *, keep: bool = False) -> tuple[Step, ...]:
    """What undoes the transaction, in this order, given what is to `see` at each operation; changes nothing.

    Paths that another program has changed since are left as they are in directories that serve other environments too,
    and with `keep` everywhere. Raises `Refused`, with all reasons, if there are any others.
    """
    steps: list[Step] = []
    refused: list[str] = []
    observations = [(each, see(each)) for each in reversed(journal.operations) if not each.kind.is_late]
    if not any(has_begun(*each) for each in observations):
        # Nothing has moved: there is nothing to undo, whatever other programs did there since.
        return tuple(step for each in observations for step in steps_of(*each))
    for operation, observed in observations:
        path = journal.path(operation)
        if is_bytecode(operation.path) or is_as_left(operation, observed):
            steps += steps_of(operation, observed)
        elif keep or is_shared(journal, path):
            steps.append((operation, Action.LEAVE))
        else:
            refused.append(f"`{path}` was changed by another program since")
    if refused:
        raise Refused(*refused)
    return tuple(steps)


def steps_of(operation: Operation, observed: Observed) -> Iterator[Step]:
    """What undoes one operation, as far as it happened."""
    staged, trash, live = (each is not None for each in (observed.staged, observed.trash, observed.live))
    kind = operation.kind
    actions: list[Action] = []
    if kind is Kind.NEW and live and not staged:
        actions = [Action.LIVE_TO_STAGE]
    elif kind is Kind.FILE and trash:
        actions = [Action.DROP_TRASH if staged else Action.TRASH_OVER_LIVE]
    elif kind is Kind.EXCHANGE and observed.is_marked:
        actions = [Action.EXCHANGE]
    elif kind is Kind.SWAP and trash:
        actions = [Action.LIVE_TO_STAGE, Action.TRASH_TO_LIVE] if live and not staged else [Action.TRASH_TO_LIVE]
    elif kind is Kind.REMOVE and trash:
        actions = [Action.TRASH_TO_LIVE]
    elif kind is Kind.MODE:
        actions = [Action.MODE]
    if is_bytecode(operation.path) and (
        (actions == [Action.TRASH_TO_LIVE] and live) or (actions == [Action.EXCHANGE] and not staged)
    ):
        actions = []  # an importer was faster, and what it made is as good
    return ((operation, action) for action in actions if observed.is_reachable)


def has_begun(operation: Operation, observed: Observed) -> bool:
    """Whether anything may have moved for this operation, by its stage and trash, which are private."""
    if not observed.is_reachable:
        return True  # what is above it has been replaced
    if operation.trash and observed.trash is not None:
        return True
    if operation.kind is Kind.EXCHANGE:
        return observed.staged is None or not observed.is_staged_marked
    return bool(operation.staged) and observed.staged is None


def is_as_left(operation: Operation, observed: Observed) -> bool:
    """Whether the transaction, or a recovery of it, can have left this: `live` is the old object or the new one."""
    if not observed.is_reachable or observed.is_changed:
        return False
    staged, trash = observed.staged is not None, observed.trash is not None
    is_old = is_same(observed.live, operation.old) and not observed.is_marked
    is_directory = operation.new is not None and stat.S_ISDIR(operation.new.mode)
    is_new = is_same(observed.live, operation.new) and observed.is_marked == is_directory
    if operation.kind is Kind.NEW:
        return is_old if staged or observed.live is None else is_new
    if operation.kind is Kind.EXCHANGE:
        return staged and (is_old if observed.is_staged_marked else is_new)
    if operation.kind is Kind.MODE:
        return True  # `_set_old_mode` compares it, once what lies there now has moved
    if not trash:
        return is_old and (staged or operation.kind is not Kind.SWAP)
    if operation.kind is Kind.FILE and staged:
        return is_old  # perhaps a part of a copy in the trash
    if not is_same(observed.trash, operation.old):
        return False
    if operation.kind is Kind.REMOVE or staged:
        return observed.live is None
    return is_new


def is_same(seen: Seen | None, expected: Seen | None) -> bool:
    """Whether that can be the object that was seen before; of directories only the kind is compared."""
    if seen is None or expected is None:
        return seen is expected
    if stat.S_IFMT(seen.mode) != stat.S_IFMT(expected.mode):
        return False
    if stat.S_ISREG(seen.mode):
        # An archive keeps whole seconds, some filesystems a few digits: a copy has lost the rest of the time.
        units = (1, 100, 10**3, 10**6, 10**9)
        is_same_time = any(seen.mtime_ns == expected.mtime_ns // unit * unit for unit in units)
        return seen.size == expected.size and is_same_time
    # A symbolic link that was copied, where links to it are refused, has a time of its own.
    return stat.S_ISDIR(seen.mode) or seen.size == expected.size


def is_shared(journal: Journal, path: str) -> bool:
    """Whether `path` lies in a directory that serves other environments as well, or is a file that may be left."""
    shared, own = (tuple(os.path.join(each, "") for each in found) for found in (journal.directories, journal.trees))
    return path in journal.directories or (path.startswith(shared) and not path.startswith(own))


def perform(directories: OpenDirectories, steps: Sequence[Step]) -> tuple[str, ...]:
    """Do these steps; on return the paths that were left as they are. Raises `OSError` at the first that fails."""
    for step in steps:
        _act(directories, *step)
    return tuple(directories.journal.path(operation) for operation, action in steps if action is Action.LEAVE)


def undo(directories: OpenDirectories, operation: Operation) -> None:
    """Undo what happened of one of this process's own operations; raises `OSError`, and may then be called again."""
    perform(directories, tuple(steps_of(operation, observe(directories, operation))))


def _act(directories: OpenDirectories, operation: Operation, action: Action) -> None:
    if action is Action.MODE:
        _set_old_mode(directories, operation)
    elif action is not Action.LEAVE:
        live, trash = directories.live(operation), directories.trash(operation)
        if action is Action.LIVE_TO_STAGE:
            fs.move(*live.to(directories.staged(operation)))
        elif action is Action.EXCHANGE:
            fs.exchange(*directories.staged(operation).to(live))
        elif action is Action.DROP_TRASH:
            fs.remove(trash.parent, trash.name)
        elif action is Action.TRASH_OVER_LIVE:
            fs.move_over(*trash.to(live))
        else:
            fs.move(*trash.to(live))


def _set_old_mode(directories: OpenDirectories, operation: Operation) -> None:
    """Set the old mode if the directory that was given the new one is there: an exchange may have moved it."""
    live, status = directories.live(operation), directories.live(operation).status()
    if status is None or operation.old is None or operation.new is None or not stat.S_ISDIR(status.st_mode):
        return
    before = directories.journal.operations[: directories.journal.operations.index(operation)]
    of_new = [(operation.root, operation.path, kind) for kind in (Kind.NEW, Kind.EXCHANGE, Kind.SWAP)]
    is_of_new = any((each.root, each.path, each.kind) in of_new for each in before)
    if directories.is_marked(live) != is_of_new or stat.S_IMODE(status.st_mode) != stat.S_IMODE(operation.new.mode):
        return
    if directories.writer is None or directories.writer.could_set_mode(status):
        fs.set_mode(live.parent, live.name, stat.S_IMODE(operation.old.mode))


def observe(directories: OpenDirectories, operation: Operation, *, is_compared: bool = False) -> Observed:
    """What is at the places of this operation; with `is_compared` also whether another program has changed it."""
    staged = directories.staged(operation) if operation.staged else Location(None, "")
    trash = directories.trash(operation) if operation.trash else Location(None, "")
    observed = Observed(None, _seen(staged), _seen(trash), is_staged_marked=directories.is_marked(staged))
    try:
        live = directories.live(operation)
    except NotADirectoryError:
        return observed._replace(is_reachable=False)
    is_marked = directories.is_marked(live)
    old = staged if operation.kind is Kind.EXCHANGE else trash
    is_changed = is_marked and is_compared and _is_changed(operation, live, old)
    return observed._replace(live=_seen(live), is_marked=is_marked, is_changed=is_changed)


def status_below(directory: Location, path: str) -> os.stat_result | None:
    """What is at `path` below a directory, as lstat(2) has it; None for nothing."""
    above, _, name = f"{directory.name}/{path}".rpartition("/")
    try:
        with directory.parent.child(above) as opened:
            return opened.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _seen(location: Location) -> Seen | None:
    found = location.status()
    return Seen.of(found) if found is not None else None


def proof(files: Iterable[tuple[str, os.stat_result]]) -> tuple[str, bool]:
    """What identifies the files of a new directory by kind, size and mtime, and whether all times are rough.

    The proof is two digests, the second one with whole seconds. Rough times may have lost their fractions, as archives
    lose them. Caches of importers are left out, and what is safe-pip's own.
    """
    exact, coarse = [], []
    is_rough = True
    for path, status in sorted(files):
        if is_own(path) or "__pycache__" in path.split("/"):
            continue
        kind = stat.S_IFMT(status.st_mode)
        time = status.st_mtime_ns if kind == stat.S_IFREG else 0
        is_rough = is_rough and time % 100 == 0
        known = f"{path}\0{kind} {status.st_size} "
        exact.append(f"{known}{time}")
        coarse.append(f"{known}{time // 10**9}")
    digests = [hashlib.sha256(os.fsencode("\0".join(lines))).hexdigest() for lines in (exact, coarse)]
    return " ".join(digests), is_rough


def _is_changed(operation: Operation, live: Location, old: Location) -> bool:
    """Whether another program wrote in a new directory since the journal was written, whatever the times say.

    Links to files of the old directory are not part of the proof.
    """
    with live.parent.child(live.name) as new:
        found, is_rough = proof(
            (path, status)
            for path, status in walk(new)
            if status.st_nlink == 1 or (was := status_below(old, path)) is None or not os.path.samestat(was, status)
        )
    exact, _, coarse = operation.proof.partition(" ")
    return bool(exact) and not found.startswith(exact) and not (is_rough and found.endswith(coarse))
