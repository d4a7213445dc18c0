"""What dead processes left in the state directory of a tree: found under a lock, deleted without.

A journal is none of it: that is undone, not deleted.
"""

import os
import stat
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import SafePipError
from safe_pip.fs import Directory
from safe_pip.journal import parts
from safe_pip.journal.codec import is_identifier
from safe_pip.journal.directories import Refused, open_state
from safe_pip.journal.finish import HOME_NOTE, named_home
from safe_pip.journal.owner import SUFFIX, Owner
from safe_pip.journal.writer import is_accepted
from safe_pip.locking import flock, state_directory

# What nobody has locked though somebody may be at it is let alone for so long, in seconds.
_OLD = 3600.0
_LOCKS = {
    state_directory.COMMIT,
    state_directory.COMMIT_GATE,
    state_directory.ENVIRONMENT,
    state_directory.ENVIRONMENT_GATE,
    state_directory.OWNER,
}


class Remains(NamedTuple):
    """What is to be deleted: all of these transactions, and private directories whose owner file is gone."""

    tree: str
    owners: tuple[Owner, ...] = ()
    orphans: tuple[str, ...] = ()

    def delete(self) -> None:
        """Delete it, with no lock held but those of the dead owners: it may take its time.

        What cannot be deleted now is left to the next one who sweeps. Never raises.
        """
        for owner in self.owners:
            with suppress(OSError, Refused):
                parts.delete(owner, self.tree)
        with suppress(OSError, Refused), open_state(self.tree) as state:
            for name in self.orphans:
                with suppress(OSError):
                    parts.delete_private(state, name)
        with suppress(OSError):
            _delete_aside(self.tree)


def find(tree: Path) -> Remains:
    """Take over what dead processes left there; the caller holds the commit lock exclusively, and calls `delete` later.

    What was committed is finished at once.
    """
    real = os.path.realpath(tree)
    owners: list[Owner] = []
    orphans: list[str] = []
    with suppress(OSError, Refused), open_state(real) as state:
        names = set(state.names())
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if not is_identifier(stem) or f"{stem}{parts.JOURNAL}" in names:
                continue
            with suppress(OSError, SafePipError):
                if suffix == parts.COMMITTED:
                    _finish(state, stem, f"{stem}{SUFFIX}" in names)
                elif suffix == parts.MARK:
                    if _is_stale(named_home(state, name), stem, state.stat(name)):
                        fs.remove(state, name)
                elif f"{stem}{parts.COMMITTED}" in names:
                    continue
                elif suffix == SUFFIX and is_accepted(state.stat(name), os.stat(real)):
                    owner = Owner.adopt(Path(state.join(name)))
                    if owner is None:
                        continue
                    if _is_unfinished(state.names(), stem):  # It came this far, and died, since the names were read.
                        owner.release()
                    else:
                        owners.append(owner)
                elif not suffix and f"{stem}{SUFFIX}" not in names:
                    orphans += [name] if _is_orphan(state, name) else []
    return Remains(real, tuple(owners), tuple(orphans))


def _is_unfinished(names: Collection[str], identifier: str) -> bool:
    return not {f"{identifier}{parts.JOURNAL}", f"{identifier}{parts.COMMITTED}"}.isdisjoint(names)


def _finish(state: Directory, identifier: str, has_owner: bool) -> None:
    from safe_pip.journal import recovery

    owner = Owner.adopt(Path(state.join(f"{identifier}{SUFFIX}")))
    if owner is None and has_owner:
        return
    try:
        home = Path(os.path.dirname(state.path))
        recovery.finish(recovery.Unfinished(home, identifier, f"{identifier}{parts.COMMITTED}"))
    finally:
        if owner is not None:
            owner.release()


def _is_orphan(state: Directory, identifier: str) -> bool:
    """Whether a private directory has no owner: here there is none, it may be a part of one elsewhere."""
    with state.child(identifier) as private:
        return _is_stale(named_home(private, HOME_NOTE), identifier, state.stat(identifier))


def _is_stale(home: str | None, identifier: str, found: os.stat_result) -> bool:
    """Whether the transaction is neither alive nor unfinished that what was `found` belongs to."""
    # Whether it lives comes first: what dies after that has left its journal by the time the names are read.
    if home is not None and flock.is_locked(Path(home, state_directory.NAME, f"{identifier}{SUFFIX}")):
        return False
    try:
        there = os.listdir(os.path.join(home, state_directory.NAME)) if home else None
    except (FileNotFoundError, NotADirectoryError):
        there = None
    if there is None:
        # Not complete yet, or of an environment that was removed, or that is not to be seen from here.
        return time.time() - found.st_mtime > _OLD
    return not _is_unfinished(there, identifier)


def _delete_aside(tree: str) -> None:
    """Delete state directories of this user's that were made, or removed, by a process that was killed at it."""
    with Directory.open(tree) as opened:
        for name in opened.names():
            if name.startswith(f"{state_directory.NAME}-") and _is_left(opened, name):
                with suppress(OSError):
                    fs.remove_below(opened, name)


def _is_left(tree: Directory, name: str) -> bool:
    found = tree.stat(name)
    is_ours = sys.platform == "win32" or found.st_uid == os.geteuid() or os.geteuid() == 0
    if not stat.S_ISDIR(found.st_mode) or not is_ours or time.time() - found.st_mtime <= _OLD:
        return False
    with tree.child(name) as aside:
        return _LOCKS.issuperset(aside.names())
