"""Where the operations of a journal take place: every directory opened, with no symbolic link on the way.

All that a commit or a recovery changes is relative to these, so that what somebody exchanges meanwhile, a parent for a
symbolic link above all, leads nowhere else.
"""

import contextlib
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from safe_pip import fs
from safe_pip.fs import Directory
from safe_pip.journal import codec as codec
from safe_pip.journal.writer import Writer, is_accepted
from safe_pip.locking import state_directory
from safe_pip.merge.plan import Journal, Kind, Operation

STAGE = "stage"
TRASH = "trash"
DURABLE = "durable"
"""A file in the first private directory of a transaction that is to survive a loss of power."""
# Open at once, besides roots and parts; a process may have 1,024 descriptors, often 256 on macOS.
_MOST = 64


class Refused(Exception):
    """What the journal says is not what is there: nothing may be changed. `reasons` are phrases without a full stop."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons


class Location(NamedTuple):
    """A name in an open directory; `directory` is None where not even that is there."""

    directory: Directory | None
    name: str

    @property
    def parent(self) -> Directory:
        """The directory; raises `FileNotFoundError` where it is not there."""
        if self.directory is None:
            raise FileNotFoundError(2, os.strerror(2), self.name)
        return self.directory

    def status(self) -> os.stat_result | None:
        """What is there, as lstat(2) has it; None for nothing."""
        try:
            return None if self.directory is None else self.directory.stat(self.name)
        except FileNotFoundError:
            return None


class Part(NamedTuple):
    """One private directory of a transaction and what is in it; None for what is not there (any more)."""

    state: Directory | None
    private: Directory | None
    stage: Directory | None
    trash: Directory | None


class OpenDirectories:
    """The open directories of one transaction; closed by `close`, or at the end of a `with` statement."""

    def __init__(self, journal: Journal, writer: Writer | None = None, *, is_over: bool = False) -> None:
        """`writer` is None for this process's own transaction. `is_over`: parts of it may be deleted already.

        Raises `Refused` if a root or a part is not what it was, or not its writer's; `PermissionError`.
        """
        self.journal = journal
        self.writer = writer
        self.marker = codec.marker(journal.identifier)
        self.roots: list[Directory | None] = []
        self.parts: list[Part] = []
        self._open: OrderedDict[tuple[str, int, str], Directory] = OrderedDict()
        try:
            for root in journal.roots:
                self._open_root(root, is_over)
            for part in journal.parts:
                self._open_part(part, is_over)
        except BaseException:
            self.close()
            raise

    def live(self, operation: Operation) -> Location:
        """Its place in the target; raises `NotADirectoryError` if a parent is a symbolic link or a file."""
        return self._spot("live", operation.root, self.roots[operation.root], operation.path)

    def staged(self, operation: Operation) -> Location:
        """S, its place in the stage."""
        return self._spot("stage", operation.part, self.parts[operation.part].stage, operation.staged)

    def trash(self, operation: Operation) -> Location:
        """T, its place in the trash."""
        return Location(self.parts[operation.part].trash, operation.trash)

    def path(self, operation: Operation) -> str:
        """The absolute path of `live`."""
        return os.path.join(self.journal.roots[operation.root], operation.path)

    def is_marked(self, spot: Location) -> bool:
        """Whether there is a directory with the transaction's marker in it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), spot.parent.child(spot.name) as below:
            return below.exists(self.marker)
        return False

    def sync(self) -> None:
        """Have the disk hold what was done, or undone: all directories whose entries, or modes, may have changed."""
        synced: set[str] = set()
        for operation in self.journal.operations:
            with contextlib.suppress(NotADirectoryError):  # where another program was, nothing was changed
                live = self.live(operation)
                for spot in (live, self.staged(operation), self.trash(operation)):
                    if spot.name and spot.directory is not None and spot.directory.path not in synced:
                        synced.add(spot.directory.path)
                        fs.sync(spot.directory)
                if operation.kind in (Kind.MODE, Kind.SEAL) and live.status() is not None:
                    fs.sync(live.parent, live.name)

    def close(self) -> None:
        """Close all of them; again it does nothing."""
        for directory in (*self._open.values(), *self.roots, *(each for part in self.parts for each in part)):
            if directory is not None:
                directory.close()
        self._open.clear()

    def __enter__(self) -> "OpenDirectories":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_root(self, path: str, is_over: bool) -> None:
        try:
            self.roots.append(reach(path))
        except Refused:
            if not is_over:
                raise
            self.roots.append(None)

    def _open_part(self, path: str, is_over: bool) -> None:
        holder = os.path.dirname(os.path.dirname(path))
        opened: list[Directory | None] = []
        try:
            try:
                opened.append(open_state(holder, checked=self.writer is not None))
                for name in (self.journal.identifier, STAGE, TRASH):
                    above = opened[min(len(opened) - 1, 1)]
                    opened.append(_child(above, name))
            except (FileNotFoundError, NotADirectoryError):
                if not is_over:
                    raise Refused(f"`{path}` is not as it was left") from None
            part = Part(*opened, *[None] * (4 - len(opened)))
            if not is_over and None in part:
                raise Refused(f"`{path}` is not as it was left")
            private = part.private
            if private is not None and self.writer is not None and not self.writer.made(status(private)):
                raise Refused(f"`{path}` does not belong to `{self.writer.name}`, who wrote the journal")
        except BaseException:
            for directory in filter(None, opened):
                directory.close()
            raise
        self.parts.append(part)

    def _spot(self, kind: str, number: int, base: Directory | None, path: str) -> Location:
        above, _, name = path.rpartition("/")
        if not above or base is None:
            return Location(base, name)
        key = (kind, number, above)
        if key not in self._open:
            try:
                directory = base.child(above)
            except FileNotFoundError:
                return Location(None, name)
            while len(self._open) >= _MOST:
                self._open.popitem(last=False)[1].close()
            self._open[key] = directory
        self._open.move_to_end(key)
        return Location(self._open[key], name)


def reach(path: str) -> Directory:
    """Open the directory at `path`; raises `Refused` unless it is there, with no symbolic link in the path to it."""
    try:
        if os.path.realpath(path) == path:
            return Directory.open(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    raise Refused(f"`{path}` is no directory any more")


def open_state(directory: str, *, checked: bool = True) -> Directory:
    """Open the state directory of `directory`; raises `FileNotFoundError`, `Refused` if a stranger made it."""
    with reach(directory) as holder:
        state = holder.child(state_directory.NAME)
        if checked and not is_accepted(status(state), status(holder)):
            state.close()
            raise Refused(f"`{state.path}` was not made by anybody who has a say there")
        return state


def status(directory: Directory) -> os.stat_result:
    """What fstat(2) tells of an open directory."""
    return os.stat(directory.path) if directory.fd is None else os.fstat(directory.fd)


def walk(directory: Directory, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything in `directory` that is no directory, with its path relative to it; no symbolic link is followed."""
    for name in directory.names():
        found = directory.stat(name)
        if stat.S_ISDIR(found.st_mode):
            with directory.child(name) as inner:
                yield from walk(inner, f"{below}{name}/")
        else:
            yield f"{below}{name}", found


def may_change(directory: Directory) -> bool:
    """Whether this process may make and remove entries there."""
    if sys.platform == "win32" or directory.fd is None:
        return os.access(directory.path, os.W_OK)
    effective = os.access in os.supports_effective_ids
    return os.access(".", os.W_OK | os.X_OK, dir_fd=directory.fd, effective_ids=effective)


def _child(directory: Directory | None, name: str) -> Directory | None:
    try:
        return None if directory is None else directory.child(name)
    except FileNotFoundError:
        return None
