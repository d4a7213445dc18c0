"""The state directory `.safe-pip` of a tree: the lock files, and which users it is accepted from.

It is complete or absent: the first writer makes it under a name that cannot be guessed, with the lock files in it, and
renames it into place. A symbolic link is refused, and so is a directory of a user that may not change the tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from safe_pip import fs
from safe_pip.errors import CannotLock, UnusableEnvironment
from safe_pip.fs import Directory, attributes, proc, space, trust
from safe_pip.fs.directory import refresh
from safe_pip.locking import flock, shared_files

NAME = ".safe-pip"
COMMIT = "commit"
COMMIT_GATE = "commit.gate"
ENVIRONMENT = "environment"
ENVIRONMENT_GATE = "environment.gate"
KEEP = "keep"
KEEP_GATE = "keep.gate"
OWNER = "owner"
UNPROBED = "unprobed"  # on a shared filesystem: that it was never probed was said
SHARED_NOTE = ".shared"  # how the note of a process ends that holds the environment lock shared, and this file locked
TURN = ".making"  # how the file ends that the process locks which stages some wheels for a tree that others stage too
# What a transaction has here: the names begin with its identifier, and end with one of these.
OWNER_FILE = ".owner"  # locked as long as the process of the transaction lives
JOURNAL = ".journal"  # a change that is not committed
UNDOING = ".undoing"  # the journal of a change that is undone
JOURNALS = (JOURNAL, UNDOING)
COMMITTED = ".committed"  # the journal from the commit point on, until nothing is left to do
ENDED = ".ended"  # what the last journal leaves in a tree that several hosts may read: a reader sees that there was one
REVOKED = ".revoked"  # the private directory of a change that has no journal, and may get none any more
MARK = ".home"  # leads to the state directory with the journal of a change of this directory

_ALWAYS = (COMMIT, COMMIT_GATE, ENVIRONMENT_GATE, KEEP, KEEP_GATE)
# All that is in the state directory of a tree at which no command is at work.
LOCKS = frozenset({*_ALWAYS, ENVIRONMENT, OWNER, UNPROBED})
_TRIES = 10


def path_of(tree: Path) -> Path:
    return tree / NAME


def is_shared(directory: Path) -> bool:
    """Whether several hosts may use this directory. They see only locks on files: flock on a directory stays local."""
    return proc.is_shared(os.fspath(directory))


def exists(tree: Path) -> bool:
    """Whether `tree` has a state directory; raises `UnusableEnvironment` if what lies there must not be trusted."""
    path = path_of(tree)
    try:
        try:
            status = os.stat(path, follow_symlinks=False)  # what has gone is not found any more when it is opened
        except FileNotFoundError:
            if not is_shared(tree):
                raise
            refresh(os.fspath(tree))
            status = os.stat(path, follow_symlinks=False)
        of_tree = os.stat(tree)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnusableEnvironment(f"`{path}` cannot be looked at: {error.strerror}") from error
    why = f"belongs to user {status.st_uid}, which may not change `{tree}`"
    if not stat.S_ISDIR(status.st_mode):
        why = f"is {'a symbolic link' if stat.S_ISLNK(status.st_mode) else 'not a directory'}"
    elif trust.may_change(status, tree, of_tree):
        return True
    raise UnusableEnvironment(f"`{path}` {why}", hint="Remove it, then try again")


def has_locks(tree: Path) -> bool:
    """Whether `tree` has a state directory with all lock files; a part or a mark of a transaction is not enough."""
    return exists(tree) and not _missing(tree)


def _missing(tree: Path) -> list[str]:
    state, wanted = path_of(tree), _names(tree)
    if (missing := [name for name in wanted if fs.look(state / name) is None]) and is_shared(tree):
        refresh(os.fspath(state))
        missing = [name for name in missing if fs.look(state / name) is None]
    return missing


def make(tree: Path) -> bool:
    """Make the state directory of `tree`, or what is missing in it. On return it is complete; True: this call made it.

    Any number of processes may do so at once. Raises `FileNotFoundError` if it, or the tree, is removed meanwhile,
    `CannotLock` where it would be of no use. After a crash an unused `.safe-pip-` directory may stay.
    """
    shared_files.check(tree)
    try:
        if not exists(tree) and _make_aside(tree):
            return True
        if missing := _missing(tree):
            with Directory.open(os.path.realpath(tree)) as opened, opened.child(NAME) as state:
                for name in missing:
                    _make_file(state, name, opened)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise space.not_writable(tree, error) from error
    return False


def _make_aside(tree: Path) -> bool:
    with Directory.open(os.path.realpath(tree)) as opened:
        aside = f"{NAME}-{os.urandom(8).hex()}"
        fs.make_directory(opened, aside, 0o700)
        try:
            with opened.child(aside) as state:
                for name in _names(tree):
                    _make_file(state, name, opened)
            if flock.supported:
                with flock.Descriptor(Path(opened.join(aside), COMMIT)) as lock:
                    flock.try_lock(lock, exclusive=False)  # where nothing can be locked nothing is left
            _give_access(opened, aside, opened, 0o6777)
            fs.move_over(opened, aside, opened, NAME)
            return True
        except CannotLock as error:
            raise CannotLock(error.message.replace(aside, NAME), hint=error.hint) from error
        except OSError as error:
            if exists(tree):
                return False  # another process was first
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # it was, and its directory has gone again
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), NAME) from error
            raise
        finally:
            with contextlib.suppress(OSError):
                fs.remove_below(opened, aside)


def _make_file(state: Directory, name: str, tree: Directory) -> None:
    with contextlib.suppress(FileExistsError):
        fs.write_new(state, name, b"")
        _give_access(state, name, tree, 0o666)


def _give_access(directory: Directory, name: str, tree: Directory, bits: int) -> None:
    like = tree.status()
    owner = like.st_uid if proc.user() == 0 else None
    attributes.set_access(directory, name, like.st_mode & bits, group=like.st_gid, owner=owner, like=tree)


def _names(tree: Path) -> tuple[str, ...]:
    return (*_ALWAYS, ENVIRONMENT) if is_shared(tree) else _ALWAYS


def has_journal(directory: Path) -> bool:
    """Whether `directory` has a state directory that holds the journal of a change or leads to one."""
    return are_journals(names_on_grant(directory))


def names_on_grant(directory: Path) -> list[str]:
    """What is in the state directory of `directory`: of one listing for each lock that is granted there, or new."""
    path = path_of(directory)
    return flock.listed.names.pop(path, None) or fs.names(path)


def are_journals(names: Iterable[str]) -> bool:
    """Whether one of the names in a state directory is that of a journal, or of a mark."""
    return any(name.endswith((*JOURNALS, MARK)) for name in names)


def is_of_another(name: str) -> bool:
    """Whether a name in a state directory is an owner file, or a mark, of a transaction of another process."""
    identifier, suffix = os.path.splitext(name)
    return suffix in (OWNER_FILE, MARK) and not flock.has_open(f"{identifier}{OWNER_FILE}")


def _but_notes(names: Iterable[str]) -> set[str]:
    """All but the notes of shared holders, which under the exclusive lock are of dead processes, turns, ended journals.

    A process that has a turn, or waits for one, has an owner file as well.
    """
    return {name for name in names if not name.endswith((SHARED_NOTE, TURN, ENDED))}


def turn(tree: Path, key: str) -> Path:
    """Where the file is that the process locks which stages what has this key for `tree`, if there is one."""
    return path_of(tree) / f"{key}{TURN}"


def changes(tree: Path, names: Iterable[str]) -> frozenset[str]:
    """Of a tree that several hosts may use the last changes, by identifiers; `names` are in its state directory."""
    names = names if is_shared(tree) else ()
    return frozenset(os.path.splitext(name)[0] for name in names if name.endswith((COMMITTED, ENDED)))


def make_turn(tree: Path, key: str) -> Path:
    """Make that file, if need be; the users that may change the tree may lock it. Raises `OSError`."""
    with Directory.open(os.path.realpath(tree)) as opened, opened.child(NAME) as state:
        _make_file(state, f"{key}{TURN}", opened)
    return turn(tree, key)


def has_more(directory: Path) -> bool:
    """Whether anything but lock files is in the state directory: a command is at work, or has died."""
    return not LOCKS.issuperset(_but_notes(fs.readable_names(path_of(directory))))


def remove(tree: Path) -> bool:
    """Remove the state directory if only lock files are in it, in one step; True if it did. Never raises."""
    aside = f"{NAME}-{os.urandom(8).hex()}"
    with contextlib.suppress(OSError, UnusableEnvironment), Directory.open(os.path.realpath(tree)) as opened:
        with opened.child(NAME) as state:
            if not exists(tree) or not LOCKS.issuperset(_but_notes(state.names())):
                return False
        fs.move_over(opened, NAME, opened, aside)
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):  # a process that had opened it before makes a lock file in it
                fs.remove_below(opened, aside)
                break
        return True
    return False
