"""What dead processes left in the state directory of a tree: found under a lock, deleted with no lock held.

A transaction with a journal is not swept: it is undone.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import SafePipError
from safe_pip.fs import Directory, proc
from safe_pip.fs.proc import user
from safe_pip.journal import parts, recovery
from safe_pip.journal.codec import is_identifier
from safe_pip.journal.directories import Refused, is_accepted, open_state
from safe_pip.journal.owner import Owner
from safe_pip.journal.parts import HOME_NOTE, Dead, named_home
from safe_pip.journal.recovery import Unfinished
from safe_pip.locking import flock, state_directory
from safe_pip.locking.state_directory import COMMITTED, ENDED, JOURNALS, LOCKS, MARK, OWNER_FILE, REVOKED, TURN

# In seconds: what has no lock, though a process may be at work with it, is left alone for so long.
_OLD = 3600.0


class Remains(NamedTuple):
    """What is to be deleted: whole transactions, and private directories whose owner file is gone."""

    tree: str
    dead: tuple[Dead, ...] = ()
    orphans: tuple[str, ...] = ()

    def delete(self) -> None:
        """Delete it with no lock held; what cannot be deleted now is left to the next sweep. Never raises."""
        for each in self.dead:
            each.delete()
        for name in self.orphans:
            with suppress(OSError, Refused), open_state(self.tree) as state:
                parts.delete_private(state, name)
        # To list a tree of a thousand names takes calls to a file server: there one commit in sixteen does it.
        with suppress(OSError):
            if not proc.is_shared(self.tree) or os.urandom(1)[0] < 16:
                _delete_aside(self.tree)


def find(tree: Path, own: str = "") -> Remains:
    """Find what dead processes left there; the caller holds the commit lock exclusively, and calls `delete` later.

    What was committed is finished at once. `own` is the identifier of the caller's own transaction, which lives.
    """
    # Most of the time there is nothing, and one listing is all that happens under the lock, or just before.
    path = state_directory.path_of(tree)
    names = {*(flock.listed.names.pop(path, None) or fs.readable_names(path))}
    stems = {name.partition(".")[0] for name in names if not name.endswith(ENDED)}
    if not any(map(is_identifier, stems - {own})):
        return Remains(str(tree))
    real = os.path.realpath(tree)
    dead: list[Dead] = []
    orphans: list[str] = []
    with suppress(OSError, Refused), open_state(real) as state:
        names = set(state.names())
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix == TURN:
                _remove_turn(state, name)
            if not is_identifier(stem) or stem == own or not names.isdisjoint(stem + each for each in JOURNALS):
                continue
            with suppress(OSError, SafePipError):
                if suffix == COMMITTED:
                    dead += _finished(state, stem, f"{stem}{OWNER_FILE}" in names)
                elif suffix == MARK:
                    if _is_stale(named_home(state, name), stem, state.stat(name)):
                        fs.remove(state, name)
                elif f"{stem}{COMMITTED}" in names:
                    continue
                elif suffix == OWNER_FILE and is_accepted(state.stat(name), os.stat(real)):
                    dead.append(Dead(real, stem))
                elif suffix in ("", REVOKED) and f"{stem}{OWNER_FILE}" not in names:
                    orphans += [name] if _is_orphan(state, name, stem) else []
    return Remains(real, tuple(dead), tuple(orphans))


def _finished(state: Directory, identifier: str, has_owner: bool) -> Iterator[Dead]:
    owner = Owner.adopt(Path(state.join(f"{identifier}{OWNER_FILE}")))
    if owner is None and has_owner:
        return  # it lives, or another process has taken it over
    with closing(owner) if owner is not None else nullcontext():
        yield recovery.finish(Unfinished(Path(os.path.dirname(state.path)), identifier, f"{identifier}{COMMITTED}"))


def _remove_turn(state: Directory, name: str) -> None:
    """Remove the file of a turn that no process has."""
    with suppress(OSError, SafePipError), flock.Descriptor(Path(state.join(name)), writable=True) as held:
        if flock.try_lock(held, exclusive=True) and held.is_current():
            fs.remove(state, name)


def _is_orphan(state: Directory, name: str, identifier: str) -> bool:
    """Whether a private directory has no owner: not here, and not in the home of which it may be a part."""
    with state.child(name) as private:
        return _is_stale(named_home(private, HOME_NOTE), identifier, state.stat(name))


def _is_stale(home: str | None, identifier: str, found: os.stat_result) -> bool:
    # The lock comes first: a transaction that dies after that has left its journal by the time the names are read.
    if home is not None and flock.is_locked(Path(home, state_directory.NAME, f"{identifier}{OWNER_FILE}")):
        return False
    try:
        there = os.listdir(os.path.join(home, state_directory.NAME)) if home else None
    except (FileNotFoundError, NotADirectoryError):
        there = None
    if there is None:
        # It is not complete yet, or its environment was removed, or cannot be seen from here.
        return time.time() - found.st_mtime > _OLD
    return {f"{identifier}{suffix}" for suffix in (*JOURNALS, COMMITTED)}.isdisjoint(there)


def _delete_aside(tree: str) -> None:
    """Delete state directories of this user that a process was killed while making, or removing."""
    with Directory.open(tree) as opened:
        for name in opened.names():
            if name.startswith(f"{state_directory.NAME}-") and _is_left(opened, name):
                with suppress(OSError):
                    fs.remove_below(opened, name)


def _is_left(tree: Directory, name: str) -> bool:
    found = tree.stat(name)
    if not stat.S_ISDIR(found.st_mode) or user() not in (0, found.st_uid) or time.time() - found.st_mtime <= _OLD:
        return False
    with tree.child(name) as aside:
        return LOCKS.issuperset(aside.names())
