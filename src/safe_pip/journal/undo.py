"""What undoes the operations of a transaction, and doing it: last operation first.

Names alone tell what happened (S in the stage, T in the trash, `live` in its place); inode numbers do not stay.

| kind     | do                         | undo                                                 |
|----------|----------------------------|------------------------------------------------------|
| NEW      | S to live                  | S gone, live there: live to S                        |
| FILE     | live linked to T; S over it| T there: S there too: remove T; S gone: T over live  |
| EXCHANGE | exchange S and live        | marker in live: exchange S and live                  |
| SWAP     | live to T; S to live       | T there: (S gone, live there: live to S,) T to live  |
| REMOVE   | live to T                  | T there: T to live                                   |
| MODE     | set the new mode           | live has it: set the old one                         |

What is done only after the commit point (`Kind.is_late`) is never undone.

Each action leads to a state that `do` can leave as well, or from which nothing more is undone: so all of it may be
interrupted anywhere, and begun again.
"""

import enum
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from safe_pip import fs
from safe_pip.journal.directories import OpenDirectories, Refused
from safe_pip.journal.observed import Observed, look
from safe_pip.merge.plan import Journal, Kind, Operation, Seen
from safe_pip.records import is_bytecode


class Action(enum.Enum):
    """One change that undoes an operation, or a part of it."""

    LIVE_TO_STAGE = "live to S"
    TRASH_OVER_LIVE = "T over live"
    DROP_TRASH = "remove T"
    TRASH_TO_LIVE = "T to live"
    EXCHANGE = "exchange S and live"
    MODE = "set the old mode"
    LEAVE = "leave it as it is, and say so"


class Step(NamedTuple):
    """One action of a recovery."""

    operation: Operation
    action: Action


def decide(
    journal: Journal, see: Callable[[Operation], Observed], *, keep: Callable[[str], bool] | None = None
) -> tuple[Step, ...]:
    """What undoes the transaction, in this order, given what is to `see` at each operation; changes nothing.

    Raises `Refused`, with all reasons, if anything was changed by another program since, unless `keep` says of its path
    that it is left as it is: those are the ones in directories that serve other environments too.
    """
    is_kept = keep or (lambda path: is_shared(journal, path))
    steps: list[Step] = []
    refused: list[str] = []
    sights = [(each, see(each)) for each in reversed(journal.operations) if not each.kind.is_late]
    if not any(has_begun(*each) for each in sights):
        # Nothing has moved: there is nothing to undo, whatever others did there since.
        return tuple(step for each in sights for step in steps_of(*each))
    for operation, sight in sights:
        path = os.path.join(journal.roots[operation.root], operation.path)
        if is_bytecode(operation.path) or is_as_left(operation, sight):
            steps += steps_of(operation, sight)
        elif is_kept(path):
            steps.append(Step(operation, Action.LEAVE))
        else:
            refused.append(f"`{path}` was changed by another program since")
    if refused:
        raise Refused(*refused)
    return tuple(steps)


def steps_of(operation: Operation, sight: Observed) -> Iterator[Step]:
    """What undoes one operation, as far as it happened."""
    staged, trash, live = (each is not None for each in (sight.staged, sight.trash, sight.live))
    kind = operation.kind
    actions: list[Action] = []
    if kind is Kind.NEW and live and not staged:
        actions = [Action.LIVE_TO_STAGE]
    elif kind is Kind.FILE and trash:
        actions = [Action.DROP_TRASH if staged else Action.TRASH_OVER_LIVE]
    elif kind is Kind.EXCHANGE and sight.is_marked:
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
        actions = []  # an importer was faster, and what he made is as good
    return (Step(operation, action) for action in actions if sight.is_reachable)


def has_begun(operation: Operation, sight: Observed) -> bool:
    """Whether anything may have moved for this operation; told by its own stage and trash, which are private."""
    if not sight.is_reachable:
        return True  # what is above it has been replaced: nothing is taken for granted
    if operation.trash and sight.trash is not None:
        return True
    if operation.kind is Kind.EXCHANGE:
        return sight.staged is None or not sight.is_staged_marked
    return bool(operation.staged) and sight.staged is None


def is_as_left(operation: Operation, sight: Observed) -> bool:
    """Whether the transaction, or a recovery of it, can have left this: `live` is the old object or the new one."""
    if not sight.is_reachable or sight.is_changed:
        return False
    staged, trash = sight.staged is not None, sight.trash is not None
    is_old = is_same(sight.live, operation.old) and not sight.is_marked
    is_new = is_same(sight.live, operation.new) and sight.is_marked == _is_directory(operation.new)
    if operation.kind is Kind.NEW:
        return is_old if staged or sight.live is None else is_new
    if operation.kind is Kind.EXCHANGE:
        return staged and (is_old if sight.is_staged_marked else is_new)
    if operation.kind is Kind.MODE:
        return True  # whose mode it is shows once what lies there now has moved
    if not trash:
        return is_old and (staged or operation.kind is not Kind.SWAP)
    if operation.kind is Kind.FILE and staged:
        return is_old  # perhaps a part of a copy in the trash
    if not is_same(sight.trash, operation.old):
        return False
    if operation.kind is Kind.REMOVE or staged:
        return sight.live is None
    return is_new


def is_same(seen: Seen | None, expected: Seen | None) -> bool:
    """Whether that can be the object that was seen before; of directories only the kind is compared."""
    if seen is None or expected is None:
        return seen is expected
    if stat.S_IFMT(seen.mode) != stat.S_IFMT(expected.mode):
        return False
    if stat.S_ISREG(seen.mode):
        return (seen.size, seen.mtime_ns) == (expected.size, expected.mtime_ns)
    # A symbolic link that was copied, where links to it are refused, has a time of its own.
    return stat.S_ISDIR(seen.mode) or seen.size == expected.size


def is_shared(journal: Journal, path: str) -> bool:
    """Whether `path` lies in a directory that serves other environments as well."""

    def inside(directories: Sequence[str]) -> bool:
        return any(path.startswith(os.path.join(directory, "")) for directory in directories)

    return inside(journal.directories) and not inside(journal.trees)


def carry_out(places: OpenDirectories, steps: Sequence[Step]) -> tuple[str, ...]:
    """Do these steps; on return the paths that were left as they are. Raises `OSError` at the first that fails."""
    for step in steps:
        _act(places, *step)
    return tuple(places.path(operation) for operation, action in steps if action is Action.LEAVE)


def undo(places: OpenDirectories, operation: Operation) -> None:
    """Undo what happened of one of this process's own operations; raises `OSError`, and may then be called again.

    What other programs did is not looked for: no time has passed. Of a `FILE` operation S may be used up.
    """
    carry_out(places, tuple(steps_of(operation, look(places, operation))))


def _act(places: OpenDirectories, operation: Operation, action: Action) -> None:
    if action is Action.LEAVE:
        return
    live = places.live(operation)
    if action is Action.MODE:
        _set_old_mode(places, operation)
    elif action is Action.LIVE_TO_STAGE:
        staged = places.staged(operation)
        fs.move(live.parent, live.name, staged.parent, staged.name)
    elif action is Action.EXCHANGE:
        staged = places.staged(operation)
        fs.exchange(staged.parent, staged.name, live.parent, live.name)
    else:
        trash = places.trash(operation)
        if action is Action.DROP_TRASH:
            fs.remove(trash.parent, trash.name)
        elif action is Action.TRASH_OVER_LIVE:
            fs.move_over(trash.parent, trash.name, live.parent, live.name)
        else:
            fs.move(trash.parent, trash.name, live.parent, live.name)


def _set_old_mode(places: OpenDirectories, operation: Operation) -> None:
    """Set the old mode if the directory is there that was given the new one: the one before an exchange, or after."""
    live, status = places.live(operation), places.live(operation).status()
    if status is None or operation.old is None or operation.new is None or not stat.S_ISDIR(status.st_mode):
        return
    before = places.journal.operations[: places.journal.operations.index(operation)]
    is_of_new = any(
        each.path == operation.path
        and each.root == operation.root
        and each.kind in (Kind.NEW, Kind.EXCHANGE, Kind.SWAP)
        for each in before
    )
    if places.is_marked(live) != is_of_new or stat.S_IMODE(status.st_mode) != stat.S_IMODE(operation.new.mode):
        return
    if places.writer is None or places.writer.could_set_mode(status):
        fs.set_mode(live.parent, live.name, stat.S_IMODE(operation.old.mode))


def _is_directory(seen: Seen | None) -> bool:
    return seen is not None and stat.S_ISDIR(seen.mode)
