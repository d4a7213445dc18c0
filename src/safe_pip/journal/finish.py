"""What is left to do once a transaction is committed: take markers off, restore unplanned files, remove what is empty.

The process that committed does it; if it dies, the next command does. All of it may be interrupted and done again.
"""

import contextlib
import os
import stat
from collections.abc import Collection

from safe_pip import fs
from safe_pip.fs import Directory, attributes
from safe_pip.fs.proc import user
from safe_pip.journal.directories import Location, OpenDirectories, Refused, user_name, walk
from safe_pip.journal.undo import status_below
from safe_pip.merge.plan import Kind, Operation
from safe_pip.records import is_bytecode

_MADE = ".safe-pip-made"


UnplannedFile = tuple[Operation, str]
"""A file that came into a directory between planning and the moment when the directory left its place.

The path is relative to the directory.
"""


def remove_markers(directories: OpenDirectories) -> frozenset[str]:
    """Take the markers off the directories that came to their places; on return the paths of those that had one.

    The caller holds the commit locks. Raises the first `OSError`, after it has gone on to the others.
    """
    new = set[str]()
    error: OSError | None = None
    for operation in directories.journal.operations:
        if operation.kind in (Kind.MODE, Kind.SEAL) or operation.new is None or not stat.S_ISDIR(operation.new.mode):
            continue
        try:
            live = directories.live(operation)
            with live.parent.child(live.name) as marked:
                if directories.writer is not None and not marked.exists(directories.marker):
                    continue
                _check(directories, marked)
                if fs.remove(marked, directories.marker):
                    new.add(directories.journal.path(operation))
        except (FileNotFoundError, NotADirectoryError):
            continue  # not there any more
        except OSError as failed:
            error = error or failed
    if error is not None:
        raise error
    return frozenset(new)


def seal(directories: OpenDirectories, new: Collection[str]) -> None:
    """Give directories their final permissions, and those of them that are `new` their times.

    To be called last: a directory may become read-only. One whose permissions another program has changed keeps them.
    """
    for operation in directories.journal.operations:
        if operation.kind is not Kind.SEAL or operation.old is None or operation.new is None:
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            live = directories.live(operation)
            found = live.status()
            if found is None or not stat.S_ISDIR(found.st_mode):
                continue
            was, wanted = stat.S_IMODE(operation.old.mode), stat.S_IMODE(operation.new.mode)
            is_ours = directories.writer is None or directories.writer.could_set_mode(found)
            if is_ours and was != wanted and stat.S_IMODE(found.st_mode) == was:
                fs.set_mode(live.parent, live.name, wanted)
            if is_ours and directories.journal.path(operation) in new:
                attributes.set_time(live.parent, live.name, operation.new.mtime_ns)


def remove_emptied(directories: OpenDirectories) -> None:
    """Remove the directories that are empty now and could not be moved; what the disk refuses stays."""
    for operation in directories.journal.operations:
        if operation.kind is Kind.TIDY:
            with contextlib.suppress(OSError, Refused):  # not empty, most of all
                live = directories.live(operation)
                _check(directories, live.parent)
                fs.remove_directory(live.parent, live.name)


def find_unplanned(directories: OpenDirectories) -> list[UnplannedFile]:
    """The files, bytecode apart, that the plan did not know of when their directory left its place."""
    found = []
    for operation in directories.journal.operations:
        old = _old_directory(directories, operation)
        # The metadata directory of a distribution belongs to it as a whole.
        if old is None or operation.path.endswith((".dist-info", ".egg-info")) or is_bytecode(operation.path):
            continue
        try:
            directory = old.parent.child(old.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        known = set(operation.known)
        with directory:
            names = (path for path, _ in walk(directory) if path not in known and not is_bytecode(path))
            found += [(operation, path) for path in names]
    return found


def restore_unplanned(directories: OpenDirectories, unplanned: list[UnplannedFile]) -> None:
    """Put these files where they were, never over anything; the caller holds the commit locks."""
    for operation, path in unplanned:
        old = _old_directory(directories, operation)
        if old is None:
            continue
        try:
            with contextlib.ExitStack() as opened:
                _restore(directories, operation, path, old, opened)
        except (FileExistsError, NotADirectoryError):
            continue  # there is something else by now, or another link to it
        except FileNotFoundError:
            if status_below(old, path) is not None:
                raise
            # It is back already, or its own program has taken it away.


def _restore(
    directories: OpenDirectories, operation: Operation, path: str, old: Location, opened: contextlib.ExitStack
) -> None:
    *above, last = operation.path.split("/")
    *below, name = path.split("/")
    source, target = old.parent, directories.base(directories.journal.roots[operation.root])
    likes: list[os.stat_result | None] = [None] * len(above)
    for each in (old.name, *below):
        likes.append(source.stat(each))
        source = opened.enter_context(source.child(each))
    source.stat(name)
    if target is None:
        return  # the root is gone, with all that was in it
    for each, like in zip((*above, last, *below), likes, strict=True):
        if not target.exists(each):
            _check(directories, target)
            _make_like(like or target.status(), old.parent, target, each)
        target = opened.enter_context(target.child(each))
    _check(directories, target)
    fs.move(source, name, target, name)


def _make_like(like: os.stat_result, private: Directory, target: Directory, name: str) -> None:
    """Make a directory with these permissions from the start: it is made in a private directory, then moved."""
    with contextlib.suppress(FileExistsError):  # a process died here
        fs.make_directory(private, _MADE, 0o700)
    if user() == 0:
        fs.set_owner(private, _MADE, like.st_uid, like.st_gid)
    fs.set_mode(private, _MADE, stat.S_IMODE(like.st_mode))
    fs.move(private, _MADE, target, name)


def _old_directory(directories: OpenDirectories, operation: Operation) -> Location | None:
    is_moved = operation.kind in (Kind.EXCHANGE, Kind.SWAP, Kind.REMOVE)
    if not is_moved or operation.old is None or not stat.S_ISDIR(operation.old.mode):
        return None
    return directories.staged(operation) if operation.kind is Kind.EXCHANGE else directories.trash(operation)


def _check(directories: OpenDirectories, directory: Directory) -> None:
    if directories.writer is not None and not directories.writer.could_change(directory.status()):
        raise Refused(
            f"`{directory.path}` is not for `{user_name(directories.writer.uid)}` to change, the journal's writer"
        )
