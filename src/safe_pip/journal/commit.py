"""Carrying out a journaled plan under the locks: the operations, the commit point, and the way back.

The journal is renamed into place before the first operation, and to `committed` after the last one: at that instant the
transaction is committed.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safe_pip import fs
from safe_pip.errors import CommitFailed, State, TakenOver, UnusableEnvironment
from safe_pip.fs.directory import fresh_names
from safe_pip.journal import finish, parts, takeover
from safe_pip.journal.directories import OpenDirectories, Refused
from safe_pip.journal.undo import undo
from safe_pip.locking import flock
from safe_pip.locking.state_directory import COMMITTED, JOURNAL, JOURNALS, OWNER_FILE, REVOKED, UNDOING
from safe_pip.merge.plan import Journal, Kind, Link, Listed, Operation, Plan, Seen
from safe_pip.merge.tree import hides

# What the filesystem answers when the target is not what was planned for; anything else is a failure.
_CHANGED = {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ESTALE}


class Rejected(Exception):
    """The target is not what was planned for, and is as it was: plan again.

    `entered` are the directories that the next plan has to enter: their filesystem does not move them as a whole.
    """

    def __init__(self, entered: frozenset[str] = frozenset()) -> None:
        super().__init__(*entered)
        self.entered = entered


def check_permissions(journal: Journal) -> None:
    """Raise `UnusableEnvironment` for a directory in which this process may not change anything; locks nothing.

    A directory that is gone was replaced meanwhile: the plan is stale, which is found under the locks.
    """
    opened = {journal.path(each) for each in journal.operations if each.kind is Kind.MODE}
    changed = (os.path.dirname(journal.path(each)) for each in journal.operations if not each.kind.is_late)
    for path in dict.fromkeys(changed):
        if path not in opened:
            check_writable(path)


def check_writable(path: str) -> None:
    """Raise `UnusableEnvironment` for a directory in which this process may not change anything."""
    if os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return
    with suppress(OSError):  # it is gone
        if stat.S_ISDIR(os.stat(path).st_mode):
            is_read_only = sys.platform != "win32" and os.statvfs(path).f_flag & os.ST_RDONLY
            reason = os.strerror(errno.EROFS if is_read_only else errno.EACCES)
            raise UnusableEnvironment(f"`{path}` is not writable: {reason}")


def carry_out(journal: Journal, plan: Plan, *, durable: bool, check: Callable[[], None]) -> bool:
    """Change the target as planned; the caller holds the locks, and the journal lies in the private directory.

    On return it is committed; True: there is nothing to finish. Raises `Rejected`, or `CommitFailed` if the disk
    refused an operation: the target is as it was. After a crash before the commit point, it is so again once the next
    command has met the journal. `check` is called between the journal and the first operation; if it raises, nothing
    was changed. `CommitFailed` with the state `COMMITTED` means that it is committed, and that the disk may not hold it
    yet: nothing may be deleted.
    """
    with _held_back(), _opened(journal) as directories:
        _validate(journal, plan)
        published = f"{journal.identifier}{JOURNAL}"
        try:
            directories.check_spare()
            fs.move_fresh(*directories.private(parts.JOURNAL).to(directories.state(published)))
            if durable:
                fs.sync(directories.state("").parent)
        except FileNotFoundError as error:
            raise TakenOver from error
        except OSError as error:
            raise takeover.lost(error, journal.home) or _failed(error, State.UNCHANGED) from error
        done, is_decided = 0, True
        try:
            check()
            _look_again(directories)
            for operation in journal.operations:
                done += 1
                if not operation.kind.is_late:
                    _do(directories, operation)
            if durable:
                directories.sync()
            is_decided = False
            fs.move_fresh(*directories.state(published).to(directories.state(f"{journal.identifier}{COMMITTED}")))
        except BaseException as error:
            if _claim_to_undo(directories, error, is_decided=is_decided):
                _undo(directories, done, durable=durable)
                if isinstance(error, OSError):
                    raise _translated(error, journal, done - 1) from error
                raise
        # It is committed. What fails from here on is tried again when the stage is closed, or by a sweep.
        try:
            if durable:
                fs.sync(directories.state("").parent)
        except OSError as error:
            raise _failed(error, State.COMMITTED) from error
        new: Collection[str] = ()
        is_left = any(each.trash or each.kind is Kind.EXCHANGE for each in journal.operations)
        try:
            new = finish.remove_markers(directories)
        except OSError:
            is_left = True
        finish.remove_emptied(directories)
        with suppress(OSError):
            finish.seal(directories, new)
            if durable and any(operation.kind.is_late for operation in journal.operations):
                directories.sync()
            return not is_left
        return False


def _look_again(directories: OpenDirectories) -> None:
    """Raise `TakenOver` if another process has taken the private directory away before the journal was published."""
    state, identifier = directories.state("").parent, directories.journal.identifier
    names = flock.listed.names.get(Path(state.path)) or fresh_names(state.path, state.fd)  # `check` may have listed it
    if not {identifier, f"{identifier}{OWNER_FILE}"} <= {*names} or f"{identifier}{REVOKED}" in names:
        raise TakenOver


def _claim_to_undo(directories: OpenDirectories, error: BaseException, *, is_decided: bool) -> bool:
    """Rename the journal, to undo what was done; False if it was committed, whatever the filesystem said.

    Raises `TakenOver` if another process has it, or will have it. `is_decided`: it was not renamed to `committed` yet.
    """
    identifier = directories.journal.identifier
    try:
        takeover.claim(directories.state("").parent, identifier)
    except OSError as failed:
        lost = takeover.lost(failed, directories.journal.home)
        names = takeover.names(os.path.dirname(directories.journal.parts[0]), waits=bool(lost) and not is_decided)
        if names is not None:
            there = {name.removeprefix(identifier) for name in names if name.startswith(identifier)}
            is_made: bool | None = COMMITTED in there
            if lost and not is_decided and there.isdisjoint((COMMITTED, *JOURNALS)):
                is_made = _is_made(directories.journal)  # another process has finished it, or undone it
            if is_made:
                return False
            is_decided |= is_made is False
            if is_decided and JOURNAL not in there:
                raise TakenOver from error
        if lost and is_decided:
            raise lost from error
        raise _failed(failed, State.UNKNOWN if lost else State.UNFINISHED) from error
    return True


def _is_made(journal: Journal) -> bool | None:
    """Whether the target is as the operations leave it; None if that cannot be told."""
    as_new = set[bool]()
    for operation in journal.operations:
        if operation.old == operation.new or operation.kind is Kind.MODE or operation.kind.is_late:
            continue
        try:
            as_new.add(Seen.of(os.lstat(journal.path(operation))) == operation.new)
        except (FileNotFoundError, NotADirectoryError):
            as_new.add(operation.new is None)
        except OSError:
            return None
    return as_new.pop() if len(as_new) == 1 else None


def _opened(journal: Journal) -> OpenDirectories:
    try:
        return OpenDirectories(journal)
    except Refused:
        if not os.path.lexists(journal.parts[0]) and os.path.lexists(journal.home):
            raise TakenOver from None
        raise Rejected from None
    except OSError as error:
        raise takeover.lost(error, journal.home) or _failed(error, State.UNCHANGED) from error


def _validate(journal: Journal, plan: Plan) -> None:
    try:
        for path, device, inode in plan.entered:
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) != (device, inode) or not stat.S_ISDIR(found.st_mode):
                raise Rejected
        if not all(map(_is_as_listed, plan.moved)) or not all(map(_is_as_linked, plan.links)):
            raise Rejected
        if plan.adds and any(hides(names, os.listdir(path)) for path, names in _new_below_trees(journal).items()):
            raise Rejected
        for operation in journal.operations:
            is_file = operation.old is not None and not stat.S_ISDIR(operation.old.mode)
            if is_file and Seen.of(os.lstat(journal.path(operation))) != operation.old:
                raise Rejected
    except OSError as error:
        if error.errno not in _CHANGED:
            raise _failed(error, State.UNCHANGED) from error
        raise Rejected from None


def _new_below_trees(journal: Journal) -> dict[str, set[str]]:
    """The new names in each directory below a tree; those in a tree itself are compared with all trees."""
    inside, found = tuple(os.path.join(tree, "") for tree in journal.trees), defaultdict[str, set[str]](set)
    for operation in journal.operations:
        directory, name = os.path.split(journal.path(operation))
        is_below = directory.startswith(inside) and not directory.endswith("/__pycache__")
        if operation.kind is Kind.NEW and is_below:
            found[directory].add(name)
    return found


def _is_as_listed(directory: Listed) -> bool:
    """Whether a directory has the names that it was planned for. Importers may have written their caches meanwhile."""
    found = os.lstat(directory.path)
    if (found.st_mode, found.st_ino) != (directory.mode, directory.inode):
        return False
    if found.st_ctime_ns == directory.ctime_ns:
        return True
    with os.scandir(directory.path) as entries:
        names = {each.name: each.is_dir(follow_symlinks=False) for each in entries if each.name != "__pycache__"}
    return names == directory.names


def _is_as_linked(link: Link) -> bool:
    """Whether a file that is carried over is still the one in the stage, or like it where links are refused."""
    found = os.lstat(link.source)
    is_same = (found.st_ino, found.st_size, found.st_mtime_ns) == link.linked
    return is_same or os.path.samestat(found, os.lstat(link.staged))


def _do(directories: OpenDirectories, operation: Operation) -> None:
    kind, live = operation.kind, directories.live(operation)
    if kind is Kind.MODE:
        assert operation.new is not None
        fs.set_mode(live.parent, live.name, stat.S_IMODE(operation.new.mode))
        # Nothing that is private is in its way: after a takeover it would succeed.
        if operation.old is not None and takeover.is_taken_over(directories):
            fs.set_mode(live.parent, live.name, stat.S_IMODE(operation.old.mode))
            raise TakenOver
        return
    staged, trash = directories.staged(operation), directories.trash(operation)
    if kind is Kind.FILE:
        fs.link(live.parent, live.name, trash.parent, trash.name)
        fs.move_over(*staged.to(live))
    elif kind is Kind.EXCHANGE:
        fs.exchange(*staged.to(live))
    if kind in (Kind.REMOVE, Kind.SWAP):
        fs.move(*live.to(trash))
    if kind in (Kind.NEW, Kind.SWAP):
        fs.move(*staged.to(live))


def _undo(directories: OpenDirectories, done: int, *, durable: bool) -> None:
    try:
        for operation in reversed(directories.journal.operations[:done]):
            undo(directories, operation)
        if durable:
            directories.sync()
        state = directories.state("").parent
        parts.end(state, directories.journal.identifier, UNDOING)
    except OSError as error:
        if takeover.is_taken_over(directories):
            raise TakenOver from error
        lost = takeover.lost(error, directories.journal.home)
        raise lost or _failed(error, State.UNFINISHED) from error
    with suppress(OSError):  # undoing it once more does no harm
        if durable:
            fs.sync(state)


def _translated(error: OSError, journal: Journal, at: int) -> Exception:
    operation = journal.operations[at]
    is_directory = any(seen is not None and stat.S_ISDIR(seen.mode) for seen in (operation.old, operation.new))
    if error.errno == errno.EXDEV and is_directory and operation.old is not None:
        return Rejected(_unmoved(journal, operation.part))
    # A disk that fails is told as it is: what was done has been undone.
    lost = takeover.lost(error, journal.home) if error.errno != errno.EIO else None
    return lost or (Rejected() if error.errno in _CHANGED else _failed(error, State.RESTORED))


def _unmoved(journal: Journal, part: int) -> frozenset[str]:
    """The directories that were to move on a filesystem that refused to move one, with all below them.

    An overlayfs refuses to move each that has a lower layer; trying them one by one would take as many plans.
    """
    leaving = (Kind.EXCHANGE, Kind.SWAP, Kind.REMOVE)
    paths = (journal.path(each) for each in journal.operations if each.part == part and each.kind in leaving)
    return frozenset(directory for path in paths if not os.path.islink(path) for directory, _, _ in os.walk(path))


def _failed(error: OSError, state: State) -> CommitFailed:
    where = f"`{error.filename}`" if error.filename else "the environment"
    return CommitFailed(f"{where} could not be changed: {error.strerror}", state=state)


@contextmanager
def _held_back() -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
