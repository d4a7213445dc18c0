"""What a dead process left: undone, or finished if it was committed.

As long as the journal is there the transaction is not committed: whatever happened of it is undone, and then the
journal is removed. What is named `committed` is finished instead. Before anything is changed every operation is looked
at, and nothing is changed if another program changed any of it in between, or if the journal's writer could not have
done himself what it asks for.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence

from safe_pip import fs
from safe_pip.errors import State
from safe_pip.fs import Directory
from safe_pip.journal.directories import DURABLE, OpenDirectories, Refused, may_change, status
from safe_pip.journal.finish import (
    clean_up,
    find_latecomers,
    latecomers,
    put_back,
    remove_emptied,
    remove_markers,
    restore_unplanned,
    seal,
    take_markers,
)
from safe_pip.journal.observed import look
from safe_pip.journal.pending import Opened, Unfinished, find, opened, owner_file, read, refused
from safe_pip.journal.undo import Action, Step, carry_out, decide, undo
from safe_pip.journal.writer import Writer

__all__ = [
    "Unfinished",
    "check",
    "decide",
    "find",
    "finish",
    "latecomers",
    "owner_file",
    "put_back",
    "read",
    "remove_markers",
    "roll_back",
    "undo",
]


def roll_back(
    unfinished: Unfinished,
    *,
    keep: bool = False,
    aside: Callable[[OpenDirectories], None] | None = None,
) -> tuple[str, ...]:
    """Undo a dead process's transaction; the caller holds the commit locks that it names, and its owner file.

    On return the environment is as it was before, but for the returned paths, which other programs have changed: those
    in directories that serve other environments too, and with `keep` all of them. If there are any, `aside` may take
    what the transaction has of them before it is deleted, and before the journal is removed. Raises `RecoveryNeeded`,
    with nothing changed unless the disk failed, and `FileNotFoundError` if somebody else was faster.
    """
    with _opened(unfinished) as (found, places):
        steps = _checked_steps(found, places, keep)
        private = places.parts[0].private
        # Whoever made it was promised that it survives a loss of power, whole or not at all.
        durable = private is not None and private.exists(DURABLE)
        left = carry_out(places, steps)
        if durable:
            places.sync()
        if left and aside is not None:
            aside(places)
        fs.remove(found.state, unfinished.name)
        if durable:
            fs.sync(found.state)
        if left:
            with contextlib.suppress(OSError, Refused):  # `doctor` finds what stays
                take_markers(places)
        with contextlib.suppress(OSError):  # what is left is for the next command that can
            clean_up(places, None)
        return left


def finish(unfinished: Unfinished) -> tuple[str, ...]:
    """Do what is left of a dead process's transaction after its commit point; locks as for `roll_back`.

    On return the paths of late-comers that could not be put back, as there is something else by now. Raises
    `RecoveryNeeded`, and `FileNotFoundError` if somebody else was faster; then all is kept for the next command.
    """
    with _opened(unfinished) as (found, places):
        _check_permission(places, (), found.state)
        new = take_markers(places)
        left = restore_unplanned(places, find_latecomers(places))
        remove_emptied(places)
        seal(places, new)
        clean_up(places, unfinished.name)
        return left


def check(unfinished: Unfinished, *, keep: bool = False) -> None:
    """Raise what `roll_back`, or `finish`, would raise before its first change; changes nothing, and needs no lock."""
    with _opened(unfinished) as (found, places):
        if unfinished.state is State.COMMITTED:
            _check_permission(places, (), found.state)
        else:
            _checked_steps(found, places, keep)


@contextlib.contextmanager
def _opened(unfinished: Unfinished) -> Iterator[tuple[Opened, OpenDirectories]]:
    is_over = unfinished.state is State.COMMITTED
    with (
        opened(unfinished) as found,
        _explained(unfinished, found.writer),
        OpenDirectories(found.journal, found.writer, is_over=is_over) as places,
    ):
        yield found, places


def _checked_steps(found: Opened, places: OpenDirectories, keep: bool) -> tuple[Step, ...]:
    """What undoes it; raises `Refused` and `PermissionError` where that is not to be done, or not by this user."""
    kept = (lambda path: True) if keep else None
    steps = decide(found.journal, lambda operation: look(places, operation, found.made), keep=kept)
    _check_writer(places, steps)
    _check_permission(places, steps, found.state)
    return steps


def _check_writer(places: OpenDirectories, steps: Sequence[Step]) -> None:
    """Raise `Refused` if a step changes what the journal's writer could not have changed himself."""
    writer, refused = places.writer, []
    for operation, action in steps:
        if writer is None or writer.is_trusted or action in (Action.LEAVE, Action.DROP_TRASH):
            continue
        live = places.live(operation)
        found = live.status()
        is_his = live.directory is not None and writer.could_change(status(live.directory), found)
        if not is_his or (action is Action.MODE and found is not None and not writer.could_set_mode(found)):
            refused.append(f"`{places.path(operation)}` is not for `{writer.name}` to change, who wrote the journal")
    if refused:
        raise Refused(*refused)


def _check_permission(places: OpenDirectories, steps: Sequence[Step], state: Directory) -> None:
    """Raise `PermissionError` if this user may not do all of this: a part of it is worse than nothing."""
    needed = [state, *(each for part in places.parts for each in part[1:] if each is not None)]
    for operation, action in steps:
        if action is Action.LEAVE:
            continue
        spots = [places.live(operation)]
        if action in (Action.LIVE_TO_STAGE, Action.EXCHANGE):
            spots.append(places.staged(operation))
        for spot in spots:
            if spot.directory is None or not may_change(spot.directory):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), places.path(operation))
            _check_entry(spot.directory, spot.status())
    for directory in needed:
        if not may_change(directory):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory.path)


def _check_entry(directory: Directory, entry: os.stat_result | None) -> None:
    """rename(2): in a directory with the sticky bit only what is one's own; a directory only if one may write in it."""
    if sys.platform == "win32" or entry is None or os.geteuid() in (0, entry.st_uid):
        return
    above = status(directory)
    is_sticky = above.st_mode & stat.S_ISVTX and above.st_uid != os.geteuid()
    if is_sticky or (stat.S_ISDIR(entry.st_mode) and not entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory.path)


@contextlib.contextmanager
def _explained(unfinished: Unfinished, writer: Writer) -> Iterator[None]:
    """Make errors of the disk, and what is not as the journal says, errors that say what to do."""
    try:
        yield
    except Refused as error:
        raise refused(unfinished, error.reasons) from error
    except FileNotFoundError as error:
        raise refused(unfinished, (f"`{error.filename}` is gone",)) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise refused(unfinished, (f"`{error.filename}`: {error.strerror}",)) from error
        mine = sys.platform == "win32" or writer.uid == os.geteuid()
        hint = "Run it where it may be written" if mine else f"Run it as `{writer.name}`"
        raise refused(unfinished, (f"`{error.filename}` is not this user's to change",), hint) from error
