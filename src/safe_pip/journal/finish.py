"""What is left to do once a transaction is committed: markers off, late-comers back, the private directories away.

The process that committed does it; if it dies, whoever comes next. Nothing here undoes anything, and all of it may be
interrupted and done again.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Collection
from typing import NamedTuple

from safe_pip import fs
from safe_pip.fs import Directory, attributes
from safe_pip.journal.directories import Location, OpenDirectories, Refused, open_state, reach, status, walk
from safe_pip.journal.observed import is_same_file
from safe_pip.locking.state_directory import NAME
from safe_pip.merge.plan import Journal, Kind, Operation
from safe_pip.records import is_bytecode

OWNER = ".owner"
HOME_NOTE = "home"
"""The file in a private directory outside the home that says which home it belongs to."""


_MADE = ".safe-pip-made"


class UnplannedFile(NamedTuple):
    """A file that came into a directory between planning and the moment when the directory left its place."""

    operation: Operation
    path: str
    """Relative to the directory."""


def remove_markers(journal: Journal) -> None:
    """Take the markers off the directories that came to their places, and seal them; the caller holds the commit locks.

    Raises the first `OSError`, but goes on to the others before.
    """
    with OpenDirectories(journal, is_over=True) as places:
        seal(places, take_markers(places))


def latecomers(journal: Journal) -> list[UnplannedFile]:
    """The files that nobody knew of when their directory left its place, bytecode apart: they are somebody's data."""
    with OpenDirectories(journal, is_over=True) as places:
        return find_latecomers(places)


def put_back(journal: Journal, late: list[UnplannedFile] | None = None) -> tuple[str, ...]:
    """Put late-comers where they were, never over anything; the caller holds the commit locks.

    On return: the paths at which there is something else by now.
    """
    with OpenDirectories(journal, is_over=True) as places:
        return restore_unplanned(places, find_latecomers(places) if late is None else late)


def take_markers(places: OpenDirectories) -> frozenset[str]:
    """As `remove_markers`; on return the paths of the directories that had one."""
    taken = set[str]()
    error: OSError | None = None
    for operation in places.journal.operations:
        if operation.kind in (Kind.MODE, Kind.SEAL) or operation.new is None or not stat.S_ISDIR(operation.new.mode):
            continue
        try:
            spot = places.live(operation)
            if places.is_marked(spot):
                with spot.parent.child(spot.name) as new:
                    _check(places, new)
                    fs.remove(new, places.marker)
                taken.add(places.path(operation))
        except NotADirectoryError:
            continue  # not there any more
        except OSError as failed:
            error = error or failed
    if error is not None:
        raise error
    return frozenset(taken)


def seal(places: OpenDirectories, new: Collection[str]) -> None:
    """Give directories the permissions that they are to have, and those of them that are `new` their times.

    To be called once their markers are off. One whose permissions somebody has changed since keeps them.
    """
    for operation in places.journal.operations:
        if operation.kind is not Kind.SEAL or operation.old is None or operation.new is None:
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            live = places.live(operation)
            found = live.status()
            if found is None or not stat.S_ISDIR(found.st_mode):
                continue
            was, wanted = stat.S_IMODE(operation.old.mode), stat.S_IMODE(operation.new.mode)
            is_ours = places.writer is None or places.writer.could_set_mode(found)
            if is_ours and was != wanted and stat.S_IMODE(found.st_mode) == was:
                fs.set_mode(live.parent, live.name, wanted)
            if is_ours and places.path(operation) in new:
                attributes.set_time(live.parent, live.name, operation.new.mtime_ns)


def remove_emptied(places: OpenDirectories) -> None:
    """Remove the directories that could not be moved, and that what went has left empty.

    An empty dist-info would pass for a distribution. What the disk refuses stays. Where the journal says which
    directories may go, it is those alone.
    """
    named = [each for each in places.journal.operations if each.kind is Kind.TIDY]
    for operation in named:
        with contextlib.suppress(OSError, Refused):
            live = places.live(operation)
            _check(places, live.parent)
            fs.remove_directory(live.parent, live.name)
    if named:
        return
    for operation in places.journal.operations:
        root = places.roots[operation.root]
        above = os.path.dirname(operation.path) if operation.kind is Kind.REMOVE else ""
        with contextlib.suppress(OSError, Refused):  # not empty, most of all
            while above and root is not None:
                above, name = os.path.split(above)
                with contextlib.ExitStack() as opened:
                    holder = opened.enter_context(root.child(above)) if above else root
                    _check(places, holder)
                    fs.remove_directory(holder, name)


def find_latecomers(places: OpenDirectories) -> list[UnplannedFile]:
    """As `latecomers`."""
    found = []
    for operation in places.journal.operations:
        old = _left(places, operation)
        # The metadata of a distribution belongs to it wholly, whatever is in it.
        if old is None or operation.path.endswith((".dist-info", ".egg-info")) or is_bytecode(operation.path):
            continue
        try:
            directory = old.parent.child(old.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        known = set(operation.known)
        with directory:
            names = (path for path, _ in walk(directory) if path not in known and not is_bytecode(path))
            found += [UnplannedFile(operation, path) for path in names]
    return found


def restore_unplanned(places: OpenDirectories, late: list[UnplannedFile]) -> tuple[str, ...]:
    """As `put_back`."""
    refused = []
    for each in late:
        old = _left(places, each.operation)
        if old is None:
            continue
        target = os.path.join(places.path(each.operation), each.path)
        try:
            with contextlib.ExitStack() as opened:
                _bring_back(places, each, old, opened)
        except (FileExistsError, NotADirectoryError):
            if not _is_there_too(old, each.path, target):
                refused.append(target)
        except FileNotFoundError:
            continue  # it is back already, or its own program has taken it away
    return tuple(refused)


def _bring_back(places: OpenDirectories, late: UnplannedFile, old: Location, opened: contextlib.ExitStack) -> None:
    """Move one to where it was; what it was in is made if it is not there any more, from the root down."""
    *above, last = late.operation.path.split("/")
    *below, name = late.path.split("/")
    source, target = old.parent, places.roots[late.operation.root]
    likes: list[os.stat_result | None] = [None] * len(above)
    for place in (old.name, *below):
        likes.append(source.stat(place))
        source = opened.enter_context(source.child(place))
    source.stat(name)
    if target is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), places.path(late.operation))
    for each, like in zip((*above, last, *below), likes, strict=True):
        if not target.exists(each):
            _check(places, target)
            _make_like(like or status(target), old.parent, target, each)
        target = opened.enter_context(target.child(each))
    _check(places, target)
    fs.move(source, name, target, name)


def _make_like(like: os.stat_result, private: Directory, target: Directory, name: str) -> None:
    """Make a directory that nobody sees with other permissions: it is made where only this process is."""
    with contextlib.suppress(FileExistsError):  # of one that died here
        fs.make_directory(private, _MADE, 0o700)
    if sys.platform != "win32" and os.geteuid() == 0:
        fs.set_owner(private, _MADE, like.st_uid, like.st_gid)
    fs.set_mode(private, _MADE, stat.S_IMODE(like.st_mode))
    fs.move(private, _MADE, target, name)


def clean_up(places: OpenDirectories, committed: str | None) -> None:
    """Delete what the transaction kept for itself: parts, marks, then the file `committed`, and its owner file last.

    Raises the first `OSError`; then the owner file is still there, and somebody else goes on.
    """
    journal, home = places.journal, places.parts[0].state
    for path, part in zip(journal.parts, places.parts, strict=True):
        if part.state is not None:
            _delete_part(part.state, journal.identifier)
            _remove_state(os.path.dirname(os.path.dirname(path)))
    for directory in (*journal.trees, *journal.directories):
        if directory != journal.home:
            _remove_mark(places, directory)
            _remove_state(directory)
    if home is not None:
        if committed is not None:
            fs.remove(home, committed)
        fs.remove(home, journal.identifier + OWNER)


def _delete_part(state: Directory, identifier: str) -> None:
    """The note of whose it is goes last, so that after a crash it is known."""
    try:
        with state.child(identifier) as private:
            for name in sorted(private.names(), key=lambda name: name == HOME_NOTE):
                fs.remove_below(private, name)
        fs.remove_directory(state, identifier)
    except FileNotFoundError:
        pass


def _remove_mark(places: OpenDirectories, directory: str) -> None:
    name = f"{places.journal.identifier}.home"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused), open_state(directory) as state:
        if named_home(state, name) == places.journal.home:
            fs.remove(state, name)


def _remove_state(directory: str) -> None:
    """Remove a state directory that was made for a part or a mark alone: there is nothing in it any more."""
    with contextlib.suppress(OSError, Refused), reach(directory) as holder:
        with holder.child(NAME) as state:
            is_empty = not state.names()
        if is_empty:
            fs.remove_directory(holder, NAME)


def named_home(state: Directory, name: str) -> str | None:
    """The home that a `.home` mark names; None if it is none, or gone."""
    try:
        if not 0 < state.stat(name).st_size <= 1 << 16:
            return None
        content = os.fsdecode(state.read(name))
    except OSError:
        return None
    return content[:-1] if content.endswith("\n") and os.path.isabs(content) else None


def _left(places: OpenDirectories, operation: Operation) -> Location | None:
    """Where the directory is that the operation took from its place."""
    if operation.kind not in (Kind.EXCHANGE, Kind.SWAP, Kind.REMOVE):
        return None
    if operation.old is None or not stat.S_ISDIR(operation.old.mode):
        return None
    return places.staged(operation) if operation.kind is Kind.EXCHANGE else places.trash(operation)


def _is_there_too(old: Location, path: str, target: str) -> bool:
    """Whether the file in the way is the late-comer itself, by another link."""
    try:
        return is_same_file(old, path, os.lstat(target))
    except OSError:
        return False


def _check(places: OpenDirectories, directory: Directory) -> None:
    if places.writer is not None and not places.writer.could_change(status(directory)):
        raise Refused(f"`{directory.path}` is not for `{places.writer.name}` to change, who wrote the journal")
