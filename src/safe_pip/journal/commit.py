"""Carrying out a journaled plan under the locks: the operations, the commit point, and the way back.

The journal is renamed into place before the first operation and renamed to `committed` after the last: at that instant
the transaction is committed. Whatever stops this process before it, the next command undoes what was done.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from safe_pip import fs
from safe_pip.errors import CommitFailed, State, UnusableEnvironment
from safe_pip.journal import finish
from safe_pip.journal.directories import Location, OpenDirectories, Refused
from safe_pip.journal.undo import undo
from safe_pip.merge.plan import Journal, Kind, Operation, Plan

JOURNAL, COMMITTED = ".journal", ".committed"
# What the filesystem answers when the target is not what was planned for; anything else is a failure.
_CHANGED = {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ESTALE}


class Rejected(Exception):
    """The target is not what was planned for, and is as it was: plan again.

    `entered` are directories that are to be entered then, as their filesystem does not move them as a whole.
    """

    def __init__(self, entered: frozenset[str] = frozenset()) -> None:
        super().__init__(*entered)
        self.entered = entered


def check_permissions(journal: Journal) -> None:
    """Raise `UnusableEnvironment` for a directory in which this process may not change anything; locks nothing.

    One that is not there any more was replaced meanwhile: the plan is stale, which is told under the locks.
    """
    effective = os.access in os.supports_effective_ids
    opened = {_live(journal, each) for each in journal.operations if each.kind is Kind.MODE}
    changed = (os.path.dirname(_live(journal, each)) for each in journal.operations if not each.kind.is_late)
    for path in dict.fromkeys(changed):
        if (
            path not in opened
            and not os.access(path, os.W_OK | os.X_OK, effective_ids=effective)
            and os.path.isdir(path)
        ):
            reason = os.strerror(errno.EACCES)
            with suppress(FileNotFoundError):
                if sys.platform != "win32" and os.statvfs(path).f_flag & os.ST_RDONLY:
                    reason = os.strerror(errno.EROFS)
            raise UnusableEnvironment(f"`{path}` is not writable: {reason}")


def carry_out(journal: Journal, plan: Plan, *, durable: bool, check: Callable[[], None]) -> None:
    """Change the target as planned; the caller holds the locks, and the journal lies in the private directory.

    On return it is committed. Raises `Rejected`, or `CommitFailed` if the disk refused an operation: the target is as
    it was. After a crash it is that as well as soon as the next command has met the journal. `check` is called between
    the journal and the first operation; what it raises is raised, and nothing was changed. A `CommitFailed` of the
    state `COMMITTED` says that it is committed, and that the disk may not hold it yet: nothing may be deleted.
    """
    with _held_back(), _places(journal) as places:
        _validate(journal, plan)
        try:
            _rename(places, "journal", JOURNAL)
            _sync_state(places, durable=durable)
        except OSError as error:
            raise _failed(error, State.UNCHANGED) from error
        done = 0
        try:
            check()
            for operation in journal.operations:
                done += 1
                _do(places, operation)
            if durable:
                places.sync()
            _rename(places, JOURNAL, COMMITTED)
        except BaseException as error:
            _undo(places, done, durable=durable)
            if isinstance(error, OSError):
                raise _translated(error, journal, done - 1) from error
            raise
        # It is committed. What fails from here on is tried again by `finish`, or by who sweeps.
        try:
            _sync_state(places, durable=durable)
        except OSError as error:
            raise _failed(error, State.COMMITTED) from error
        new: Collection[str] = ()
        with suppress(OSError):
            new = finish.take_markers(places)
        for path in plan.emptied:
            with suppress(OSError), fs.Directory.open(os.path.dirname(path)) as holder:
                fs.remove_directory(holder, os.path.basename(path))
        with suppress(OSError):  # who closes the stage tries it again
            finish.seal(places, new)
            if durable and any(operation.kind.is_late for operation in journal.operations):
                places.sync()


@contextmanager
def _places(journal: Journal) -> Iterator[OpenDirectories]:
    try:
        places = OpenDirectories(journal)
    except Refused:
        raise Rejected from None
    with places:
        yield places


def _rename(places: OpenDirectories, old: str, new: str) -> None:
    """Rename the journal, in the state directory or from the private directory into it."""
    state, private = places.parts[0].state, places.parts[0].private
    assert state is not None
    assert private is not None
    source, name = (private, old) if old == "journal" else (state, places.journal.identifier + old)
    fs.move(source, name, state, places.journal.identifier + new)


def _sync_state(places: OpenDirectories, *, durable: bool) -> None:
    """Have the disk hold the name that the journal has by now."""
    state = places.parts[0].state
    if durable and state is not None:
        fs.sync(state)


def _validate(journal: Journal, plan: Plan) -> None:
    """Compare what the plan is about with what is there; raises `Rejected`."""
    try:
        for path, device, inode in plan.entered:
            found = os.stat(path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != (device, inode) or not stat.S_ISDIR(found.st_mode):
                raise Rejected
        for path, inode, changed in plan.moved:
            found = os.stat(path, follow_symlinks=False)
            if (found.st_ino, found.st_ctime_ns) != (inode, changed):
                raise Rejected
        for operation in journal.operations:
            if operation.old is not None and not stat.S_ISDIR(operation.old.mode):
                found = os.stat(_live(journal, operation), follow_symlinks=False)
                if (found.st_mode, found.st_size, found.st_mtime_ns) != operation.old:
                    raise Rejected
    except OSError:
        raise Rejected from None


def _do(places: OpenDirectories, operation: Operation) -> None:
    if operation.kind.is_late:
        return
    live = places.live(operation)
    if operation.kind is Kind.MODE:
        assert operation.new is not None
        fs.set_mode(live.parent, live.name, stat.S_IMODE(operation.new.mode))
        return
    trash = places.trash(operation)
    if operation.kind in (Kind.REMOVE, Kind.SWAP):
        _move(live, trash)
    if operation.kind is Kind.REMOVE:
        return
    staged = places.staged(operation)
    if operation.kind is Kind.FILE:
        fs.link(live.parent, live.name, trash.parent, trash.name)
        fs.move_over(staged.parent, staged.name, live.parent, live.name)
    elif operation.kind is Kind.EXCHANGE:
        fs.exchange(staged.parent, staged.name, live.parent, live.name)
    else:
        _move(staged, live)


def _move(source: Location, destination: Location) -> None:
    fs.move(source.parent, source.name, destination.parent, destination.name)


def _undo(places: OpenDirectories, done: int, *, durable: bool) -> None:
    """Undo the first `done` operations, of which the last may have failed half way, and withdraw the journal."""
    state = places.parts[0].state
    assert state is not None
    try:
        for operation in reversed(places.journal.operations[:done]):
            undo(places, operation)
        if durable:
            places.sync()
        fs.remove(state, places.journal.identifier + JOURNAL)
    except OSError as error:
        raise _failed(error, State.UNFINISHED) from error
    with suppress(OSError):  # the disk has told already, and to undo it once more does no harm
        _sync_state(places, durable=durable)


def _translated(error: OSError, journal: Journal, at: int) -> Exception:
    """What an operation's failure means, the operation being undone."""
    operation = journal.operations[at]
    is_directory = any(seen is not None and stat.S_ISDIR(seen.mode) for seen in (operation.old, operation.new))
    if error.errno == errno.EXDEV and is_directory and operation.old is not None:
        return Rejected(_unmoved(journal, operation.part))
    if error.errno in _CHANGED:
        return Rejected()
    return _failed(error, State.RESTORED)


def _unmoved(journal: Journal, part: int) -> frozenset[str]:
    """The directories that were to leave their places on a filesystem that refused it to one, with all below them.

    An overlayfs refuses it to each that has a lower layer; to try them one by one would take as many plans.
    """
    leaving = (Kind.EXCHANGE, Kind.SWAP, Kind.REMOVE)
    paths = (_live(journal, each) for each in journal.operations if each.part == part and each.kind in leaving)
    return frozenset(directory for path in paths if not os.path.islink(path) for directory, _, _ in os.walk(path))


def _failed(error: OSError, state: State) -> CommitFailed:
    where = f"`{error.filename}`" if error.filename else "the environment"
    return CommitFailed(f"{where} could not be changed: {error.strerror}", state=state)


def _live(journal: Journal, operation: Operation) -> str:
    return os.path.join(journal.roots[operation.root], operation.path)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what would end or stop this process, for the milliseconds of a commit."""
    if sys.platform == "win32":
        yield
        return
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
