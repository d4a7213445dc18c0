"""A journal that a dead process left: found, believed or not, undone.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import fs, state_directory
from . import journal as codec
from .errors import RecoveryNeeded, State, UnusableEnvironment
from .finishing import (
    OWNER,
    bring_back,
    clean_up,
    find_latecomers,
    latecomers,
    named_home,
    put_back,
    remove_markers,
    take_markers,
)
from .fs import Directory
from .places import Places, Refused, may_change, open_state, reach, status
from .plan import Journal
from .undoing import Action, Step, carry_out, decide, undo
from .writer import Writer, user_name

__all__ = [
    "Unfinished",
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

JOURNAL = ".journal"
COMMITTED = ".committed"
HOME = ".home"
_MOST_NAMED = 3


class Unfinished(NamedTuple):
    """A journal, `name` in the state directory of `home`: of a transaction that may still be at work."""

    home: Path
    identifier: str
    name: str

    @property
    def path(self) -> Path:
        """Where the journal is."""
        return state_directory.path_of(self.home) / self.name

    @property
    def state(self) -> State:
        """The state of the environment while it is there."""
        return State.COMMITTED if self.name.endswith(COMMITTED) else State.UNFINISHED


class _Opened(NamedTuple):
    """A journal that may be acted on, and the state directory it is in."""

    state: Directory
    made: os.stat_result
    journal: Journal
    writer: Writer


def owner_file(unfinished: Unfinished) -> Path:
    """The file that the process whose transaction it is keeps locked."""
    return state_directory.path_of(unfinished.home) / f"{unfinished.identifier}{OWNER}"


def find(directory: Path) -> tuple[Unfinished, ...]:
    """The journals that concern `directory`, of living processes too: its own, and those that a `.home` mark leads to.

    A mark is believed if the journal names `directory`. Raises `UnusableEnvironment`.
    """
    if not state_directory.exists(directory):
        return ()
    real = os.path.realpath(directory)
    found: list[Unfinished] = []
    try:
        with open_state(real) as state:
            for name in sorted(state.names()):
                stem, dot, suffix = name.rpartition(".")
                if dot + suffix == JOURNAL:
                    found.append(Unfinished(Path(real), stem, name))
                elif dot + suffix == HOME and codec.is_identifier(stem):
                    found += _marked(real, stem, named_home(state, name))
    except (FileNotFoundError, NotADirectoryError, Refused):
        return ()
    except OSError as error:
        path = state_directory.path_of(directory)
        raise UnusableEnvironment(f"`{path}` cannot be read: {error.strerror}") from error
    return tuple(found)


def read(unfinished: Unfinished) -> Journal:
    """What the journal says; raises `RecoveryNeeded` if it may not be acted on, `FileNotFoundError` if it is gone."""
    with _opened(unfinished) as opened:
        return opened.journal


def roll_back(unfinished: Unfinished, *, durable: bool = False, keep: bool = False) -> tuple[str, ...]:
    """Undo a dead process's transaction; the caller holds the commit locks that it names, and its owner file.

    On return the environment is as it was before, but for the returned paths, which other programs have changed: those
    in directories that serve other environments too, and with `keep` all of them. Raises `RecoveryNeeded`, with nothing
    changed unless the disk failed, and `FileNotFoundError` if somebody else was faster.
    """
    with _opened(unfinished) as opened, _explained(unfinished, opened.writer), _places(opened) as places:
        steps = decide(
            opened.journal,
            lambda operation: places.look(operation, opened.made),
            keep=(lambda path: True) if keep else None,
        )
        _check_writer(places, steps)
        _check_permission(places, steps, opened.state)
        left = carry_out(places, steps)
        if durable:
            _sync(places, steps)
        fs.remove(opened.state, unfinished.name)
        if durable:
            fs.sync(opened.state)
        with contextlib.suppress(OSError):  # what is left is for the next command that can
            clean_up(places, None)
        return left


def finish(unfinished: Unfinished) -> tuple[str, ...]:
    """Do what is left of a dead process's transaction after its commit point; locks as for `roll_back`.

    On return the paths of late-comers that could not be put back, as there is something else by now. Raises
    `RecoveryNeeded`, and `FileNotFoundError` if somebody else was faster; then all is kept for the next command.
    """
    with _opened(unfinished) as opened, _explained(unfinished, opened.writer), _places(opened, is_over=True) as places:
        _check_permission(places, (), opened.state)
        take_markers(places)
        left = bring_back(places, find_latecomers(places))
        clean_up(places, unfinished.name)
        return left


def _places(opened: _Opened, *, is_over: bool = False) -> Places:
    return Places(opened.journal, opened.writer, is_over=is_over)


def _marked(directory: str, identifier: str, home: str | None) -> Iterator[Unfinished]:
    """The journal that a mark in `directory` leads to."""
    if home is None or os.path.realpath(home) != home:
        return
    unfinished = Unfinished(Path(home), identifier, f"{identifier}{JOURNAL}")
    try:
        with open_state(home) as state:
            journal = _load(state, unfinished)[1]
    except (OSError, Refused):
        return  # there is none, or its home is closed to this user
    except RecoveryNeeded:
        yield unfinished  # `read` says what is wrong with it
    else:
        if directory in (*journal.trees, *journal.directories, *journal.roots):
            yield unfinished


@contextlib.contextmanager
def _opened(unfinished: Unfinished) -> Iterator[_Opened]:
    try:
        state = open_state(str(unfinished.home))
    except Refused as error:
        if not os.path.lexists(unfinished.path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(unfinished.path)) from None
        raise _refused(unfinished, error.reasons) from error
    with state:
        try:
            made, journal = _load(state, unfinished)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _refused(unfinished, (f"it cannot be read ({error.strerror})",)) from error
        if journal.identifier != unfinished.identifier or journal.home != str(unfinished.home):
            raise _refused(unfinished, (f"it belongs to `{journal.home}`",))
        writer = _writer(made, journal)
        if writer is None:
            name, hint = user_name(made.st_uid), "Remove it, if that was not right"
            raise _refused(unfinished, (f"`{name}` wrote it, who has no say there",), hint)
        if not state.exists(f"{unfinished.identifier}{OWNER}"):
            state.stat(unfinished.name)
            raise _refused(unfinished, ("its owner file is gone",))
        yield _Opened(state, made, journal, writer)


def _load(state: Directory, unfinished: Unfinished) -> tuple[os.stat_result, Journal]:
    with open(state.open_file(unfinished.name), "rb") as file:
        made = os.fstat(file.fileno())
        content = file.read(codec.LIMIT + 1)
    if made.st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), unfinished.name)
    try:
        if made.st_nlink > 1:  # a link to what somebody else, perhaps root, has written elsewhere
            raise codec.Damaged("it has another name as well")
        return made, codec.decode(content)
    except codec.Newer as error:
        hint = "Use the version of safe-pip that wrote it"
        raise _refused(unfinished, (str(error),), hint) from error
    except codec.Damaged as error:
        raise _refused(unfinished, (f"the journal is damaged, {error}",)) from error


def _writer(made: os.stat_result, journal: Journal) -> Writer | None:
    roots = []
    for root in journal.roots:
        with contextlib.suppress(Refused, OSError), reach(root) as directory:
            roots.append(status(directory))
    with reach(journal.home) as home:
        return Writer.of(made, status(home), roots)


def _check_writer(places: Places, steps: Sequence[Step]) -> None:
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


def _check_permission(places: Places, steps: Sequence[Step], state: Directory) -> None:
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


def _sync(places: Places, steps: Sequence[Step]) -> None:
    """Have the disk hold what was undone, before the journal goes."""
    for operation, _ in steps:
        for spot in (places.live(operation), places.staged(operation), places.trash(operation)):
            if spot.name and spot.directory is not None:
                fs.sync(spot.directory)


@contextlib.contextmanager
def _explained(unfinished: Unfinished, writer: Writer) -> Iterator[None]:
    """Make errors of the disk, and what is not as the journal says, errors that say what to do."""
    try:
        yield
    except Refused as error:
        raise _refused(unfinished, error.reasons) from error
    except FileNotFoundError as error:
        raise _refused(unfinished, (f"`{error.filename}` is gone",)) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _refused(unfinished, (f"`{error.filename}`: {error.strerror}",)) from error
        mine = sys.platform == "win32" or writer.uid == os.geteuid()
        hint = "Run it where it may be written" if mine else f"Run it as `{writer.name}`"
        raise _refused(unfinished, (f"`{error.filename}` is not this user's to change",), hint) from error


def _refused(unfinished: Unfinished, reasons: Sequence[str], hint: str | None = None) -> RecoveryNeeded:
    named = ", ".join(reasons[:_MOST_NAMED])
    more = f" and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
    what = "be finished" if unfinished.state is State.COMMITTED else "be undone"
    message = f"the unfinished change in `{unfinished.path}` cannot {what}: {named}{more}"
    return RecoveryNeeded(message, hint=hint, state=unfinished.state)
