"""Getting a transaction out of the way that recovery refuses: nothing of it is deleted.

What can be undone is undone. What cannot, because another program changed it since or because the journal cannot be
read, stays as it is, and what the transaction had of it is put aside: `<id>` becomes `kept-<id>` in each state
directory that has one, in which a journal that cannot be read lies as well. Then the journal is gone, and whatever is
damaged is found by comparing it with the RECORDs. It may be killed anywhere, and done again.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safe_pip import fs
from safe_pip.errors import RecoveryNeeded, State
from safe_pip.fs import Directory
from safe_pip.journal import codec as codec
from safe_pip.journal import owner, pending, recovery
from safe_pip.journal.directories import OpenDirectories, Refused, is_accepted, open_state
from safe_pip.journal.pending import Unfinished
from safe_pip.locking import state_directory
from safe_pip.locking.locker import Step
from safe_pip.locking.order import Request, commit_lock, owner_lock, shared_directory

KEPT = "kept-"
"""What the name of what was put aside begins with."""
_REFUSED_BY_DISK = (errno.EACCES, errno.EPERM, errno.EROFS)


class Way(enum.Enum):
    """What can be done about an unfinished transaction."""

    USUAL = "as the next command does"
    KEEPING = "undo what can be undone, put aside what it has of the rest"
    ASIDE = "put it aside"
    NONE = ""
    """Nothing, by this user and this version: it is another one's to undo."""


def way(found: Unfinished) -> Way:
    """What can be done about it; changes nothing."""
    try:
        recovery.check(found)
    except FileNotFoundError:
        return Way.USUAL  # somebody was faster
    except RecoveryNeeded as error:
        if not _is_ours(found) or isinstance(error.__cause__, codec.Newer) or _is_refused_by_disk(error.__cause__):
            return Way.NONE
        if isinstance(error.__cause__, Refused) and found.state is not State.COMMITTED:
            return Way.KEEPING if _can_keep(found) else Way.ASIDE
        return Way.ASIDE
    return Way.USUAL


def _is_ours(found: Unfinished) -> bool:
    """Whether its journal may be moved: it was made by one who has a say there, so root does nothing for a stranger."""
    try:
        return is_accepted(os.lstat(found.path), os.stat(found.home))
    except OSError:
        return False


def _is_refused_by_disk(cause: BaseException | None) -> bool:
    return isinstance(cause, OSError) and cause.errno in _REFUSED_BY_DISK


def _can_keep(found: Unfinished) -> bool:
    try:
        recovery.check(found, keep=True)
    except (RecoveryNeeded, FileNotFoundError):
        return False
    return True


class Mending(Step):
    """A step that mends what is unfinished and named `name` in the state directory of `home`, under its commit locks.

    `told` is what was done, a line each.
    """

    def __init__(self, found: Unfinished) -> None:
        self._found = found
        self.told: list[str] = []

    def requests(self) -> Iterator[Request]:
        trees: Iterable[str] = (str(self._found.home),)
        directories: Iterable[str] = ()
        try:
            journal = pending.read(self._found)
            trees, directories = journal.trees, journal.directories
        except FileNotFoundError:
            return  # Somebody else has undone it.
        except RecoveryNeeded:
            pass  # It is believed in nothing; its home is where it lies.
        for tree in map(Path, trees):
            if tree.is_dir() and state_directory.exists(tree):
                yield commit_lock(tree, exclusive=True)
        yield from (shared_directory(Path(each)) for each in directories if os.path.isdir(each))
        path = pending.owner_file(self._found)
        if path.is_file():
            yield owner_lock(path, self._found.home)

    def on_grant(self) -> None:
        how = way(self._found)
        try:
            if how is Way.KEEPING:
                kept: list[str] = []
                left = recovery.roll_back(self._found, keep=True, aside=lambda places: kept.extend(_aside(places)))
                self.told.append(f"rolled back `{self._found.identifier}`, but for what other programs have changed")
                self.told += [f"left `{path}` as it is" for path in left]
                self.told += [f"put aside `{path}`" for path in kept]
            elif how is Way.ASIDE:
                self.told += [f"put aside `{path}`" for path in put_aside(self._found)]
        except FileNotFoundError:
            pass
        except Refused as refused:
            raise pending.refused(self._found, refused.reasons) from refused
        except OSError as error:
            raise pending.refused(self._found, (f"`{error.filename}`: {error.strerror}",)) from error


def _aside(places: OpenDirectories) -> Iterator[str]:
    """Put the private directories aside before the rest of the transaction is deleted."""
    for part in places.parts:
        if part.state is not None:
            yield from _moved(part.state, places.journal.identifier)


def put_aside(found: Unfinished) -> list[str]:
    """Put aside all that a transaction has, its journal last; the caller holds the commit lock of its home.

    On return: the paths of what is kept. Raises `OSError` and `Refused`.
    """
    kept: list[str] = []
    identifier = found.identifier
    for part in _noted_parts(found):
        holder = os.path.dirname(os.path.dirname(part))
        _within(holder, lambda state: kept.extend(_moved(state, identifier)))
    with open_state(str(found.home)) as state:
        kept += _moved(state, identifier)
        name = f"{KEPT}{identifier}"
        if not state.exists(name):
            fs.make_directory(state, name, 0o700)
            kept.append(state.join(name))
        with state.child(name) as directory:
            fs.move(state, found.name, directory, "refused-journal")
        fs.remove(state, f"{identifier}{state_directory.OWNER_FILE}")
    return kept


def _noted_parts(found: Unfinished) -> tuple[str, ...]:
    """The parts on other filesystems; a forged note leads nowhere: what is moved is called as the transaction is."""
    if not codec.is_identifier(found.identifier):
        return ()
    parts = owner.read(pending.owner_file(found)).parts
    return tuple(
        part
        for part in parts
        if os.path.basename(part) == found.identifier
        and os.path.basename(os.path.dirname(part)) == state_directory.NAME
        and os.path.dirname(os.path.dirname(part)) != str(found.home)
    )


def _within(directory: str, act: Callable[[Directory], None]) -> None:
    try:
        with open_state(directory) as state:
            act(state)
    except (FileNotFoundError, NotADirectoryError, Refused):
        return  # It is gone, or a stranger's.


def _moved(state: Directory, identifier: str) -> Iterator[str]:
    if state.exists(identifier):
        fs.move(state, identifier, state, f"{KEPT}{identifier}")
        yield state.join(f"{KEPT}{identifier}")
