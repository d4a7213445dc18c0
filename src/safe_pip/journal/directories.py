"""Where the operations of a journal take place, and whose journals may change what lies there.

Every directory is opened with no symbolic link on the way, and all changes are relative to the open directories.

Root repairs what users leave behind, so a journal proves nothing. Accepted are the journals of this user, of root, of
the environment's owner and, where a group shares the environment, of that group. For other writers than this user and
root, only what the writer could have moved or deleted is moved or deleted.
"""

import contextlib
import errno
import functools
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from safe_pip import fs
from safe_pip.fs import Directory, proc, space, trust
from safe_pip.fs.proc import user
from safe_pip.journal import codec
from safe_pip.locking import state_directory
from safe_pip.merge.plan import Journal, Kind, Operation

if sys.platform != "win32":
    import pwd

STAGE = "stage"
TRASH = "trash"
ASIDE = "undo-"
"""The beginning of the name of a directory, in a part, into which a takeover moves what lies in stage and trash."""
# Open at once, besides roots and parts; a process may have 1,024 descriptors, often 256 on macOS. If only _SPARE are
# left, the last _LEAST that were asked for stay open: those of one operation, which opens at most as many more.
_MOST = 64
_LEAST = 3
_SPARE = 8


class Refused(Exception):
    """What the journal says is not what is there: nothing may be changed. `reasons` are phrases without a full stop."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.args


class Writer(NamedTuple):
    """The user that wrote a journal; `group` is the one that shares the environment, if one does."""

    uid: int
    group: int | None
    is_trusted: bool
    """Whether it is this user or root."""

    @classmethod
    def of(cls, made: os.stat_result, home: os.stat_result, roots: Iterable[os.stat_result]) -> "Writer | None":
        """The user that made a file in the state directory of `home`, about what is below `roots`.

        None if that user is not accepted.
        """
        is_shared = all(
            each.st_gid == home.st_gid and each.st_mode & stat.S_IWGRP and not each.st_mode & stat.S_IWOTH
            for each in (home, *roots)
        )
        group = home.st_gid if is_shared else None
        trusted = made.st_uid in (user(), 0)
        if not (trusted or made.st_uid == home.st_uid or (group is not None and made.st_gid == group)):
            return None
        return cls(made.st_uid, group, trusted)

    def made(self, private: os.stat_result) -> bool:
        """Whether the writer can have made a private directory, with no other user's files in it."""
        if sys.platform == "win32":
            return True
        if private.st_uid != self.uid or private.st_mode & stat.S_IWOTH:
            return False
        return not private.st_mode & stat.S_IWGRP or private.st_gid == self.group

    def could_change(self, directory: os.stat_result, entry: os.stat_result | None = None) -> bool:
        """Whether the writer could have moved `entry`, or made and removed entries, in this directory.

        Moving a directory to another one takes the right to write in it as well: rename(2).
        """
        if self.is_trusted:
            return True
        if not self._could_write(directory):
            return False
        if entry is not None and directory.st_mode & stat.S_ISVTX and self.uid not in (directory.st_uid, entry.st_uid):
            return False
        return entry is None or not stat.S_ISDIR(entry.st_mode) or self._could_write(entry)

    def could_set_mode(self, entry: os.stat_result) -> bool:
        """Whether the writer could have changed the permissions of this."""
        return self.is_trusted or entry.st_uid == self.uid

    def _could_write(self, directory: os.stat_result) -> bool:
        is_of_group = self.group is not None and directory.st_gid == self.group
        return directory.st_uid == self.uid or (is_of_group and bool(directory.st_mode & stat.S_IWGRP))


def is_accepted(made: os.stat_result, directory: os.stat_result) -> bool:
    """Whether the user that made something in `directory` is one of those that may change it."""
    return Writer.of(made, directory, ()) is not None


def user_name(uid: int) -> str:
    """The name of a user, or the number where there is no name."""
    if sys.platform != "win32":
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


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

    def to(self, other: "Location") -> tuple[Directory, str, Directory, str]:
        """What the moves of `fs` are given; raises `FileNotFoundError` where a directory is not there."""
        return self.parent, self.name, other.parent, other.name


class OpenDirectories(contextlib.ExitStack):
    """The directories of one transaction. They stay open; if descriptors are scarce, only those last asked for do."""

    def __init__(self, journal: Journal, writer: Writer | None = None, *, is_over: bool = False) -> None:
        """`writer` is None for this process's own transaction. `is_over`: it is committed, parts may be gone already.

        Raises `Refused` if a root or a part is not what it was, or not the writer's; `PermissionError`.
        """
        super().__init__()
        self.journal = journal
        self.writer = writer
        self.marker = codec.marker(journal.identifier)
        self._numbers: dict[tuple[int, str], int] = {}
        self._open: OrderedDict[tuple[str, str], Directory] = OrderedDict()
        self._known: dict[str, tuple[int, int]] = {}
        """Which directory each root and part is, and what is in the parts."""
        self._asides: dict[str, list[str]] = {}
        """The directories of takeovers, by part, the newest one first."""
        # A directory with nothing but a manifest may be gone, with its filesystem.
        needed = [each for each in journal.operations if journal.path(each) not in journal.directories]
        roots, parts = {each.root for each in needed}, {0, *(each.part for each in needed)}
        used = {each.root for each in journal.operations}
        try:
            for number, root in enumerate(journal.roots):
                if number not in used:
                    continue
                with contextlib.suppress(Refused) if is_over or number not in roots else contextlib.nullcontext():
                    self._kept(root, "", functools.partial(reach, root))
            for number, part in enumerate(journal.parts):
                self._check_part(part, is_needed=not is_over and number in parts)
        except BaseException:
            self.close()
            raise

    def base(self, path: str) -> Directory | None:
        """A root, a part or what is in one, open until three others were asked for; None if it was not there.

        Raises `OSError` (ESTALE) if another directory is there by now.
        """
        return self._kept(path, "", lambda: self._again(path)) if path in self._known else None

    def state(self, name: str) -> Location:
        """A name in the state directory of the home."""
        return Location(self.base(os.path.dirname(self.journal.parts[0])), name)

    def private(self, name: str) -> Location:
        """A name in the first part."""
        return Location(self.base(self.journal.parts[0]), name)

    def live(self, operation: Operation) -> Location:
        """Its place in the target; raises `NotADirectoryError` if a parent is a symbolic link or a file."""
        return self._location(self.journal.roots[operation.root], operation.path)

    def staged(self, operation: Operation) -> Location:
        """S, its place in the stage."""
        part = self.journal.parts[operation.part]
        return self._found(part, f"s{self._number(operation)}", self._location(f"{part}/{STAGE}", operation.staged))

    def trash(self, operation: Operation) -> Location:
        """T, its place in the trash."""
        part = self.journal.parts[operation.part]
        return self._found(part, f"t{operation.trash}", self._location(f"{part}/{TRASH}", operation.trash))

    def asides(self, part: str) -> tuple[str, ...]:
        """The names in a part of the directories of takeovers."""
        return tuple(self._asides.get(part, ()))

    def use_aside(self, part: str, name: str, older: Iterable[str] = ()) -> None:
        """From now on what lay in stage and trash of a part is in this directory, `name` in the part, or on its way."""
        self._asides[part] = [name, *older]
        self._kept(f"{part}/{name}", "", lambda: Location(self.base(part), name).parent.child(name))

    def forget(self, path: str) -> None:
        """Close what is open of a directory that is gone: a network filesystem answers nothing about it."""
        for key in [key for key in self._open if key[0] == path]:
            self._open.pop(key).close()
        self._known.pop(path, None)

    def _found(self, part: str, name: str, before: Location) -> Location:
        """Where a takeover, if there was one, has put it."""
        asides = [Location(self.base(f"{part}/{each}"), name) for each in self._asides.get(part, ())]
        if not asides or not name[1:]:
            return before
        return next((each for each in (*asides, before) if each.status() is not None), asides[0])

    def _number(self, operation: Operation) -> str:
        if not self._asides or not operation.staged:
            return ""
        if not self._numbers:
            self._numbers = {(each.part, each.staged): number for number, each in enumerate(self.journal.operations)}
        return str(self._numbers[operation.part, operation.staged])

    def is_marked(self, location: Location) -> bool:
        """Whether there is a directory with the transaction's marker in it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), location.parent.child(location.name) as below:
            return below.exists(self.marker)
        return False

    def sync(self) -> None:
        """Have the disk hold what was done, or undone."""
        synced: set[str] = set()
        for part in self._asides:
            fs.sync(Location(self.base(part), part).parent)
        for operation in self.journal.operations:
            with contextlib.suppress(NotADirectoryError):  # nothing was changed where another program replaced it
                live = self.live(operation)
                for each in (live, self.staged(operation), self.trash(operation)):
                    if each.name and each.directory is not None and each.directory.path not in synced:
                        synced.add(each.directory.path)
                        fs.sync(each.directory)
                if operation.kind in (Kind.MODE, Kind.SEAL) and live.status() is not None:
                    fs.sync(live.parent, live.name)

    def check_spare(self) -> None:
        """Raise `OSError` if this process has too few descriptors for an operation, or to undo it."""
        with contextlib.ExitStack() as spare:
            for _ in range(_LEAST):
                spare.enter_context(self._opened(lambda: Directory.open(os.path.abspath(os.sep))))

    def _check_part(self, path: str, *, is_needed: bool) -> None:
        state_path = os.path.dirname(path)
        above = os.path.dirname(state_path)
        checked = self.writer is not None
        number = self.journal.parts.index(path)
        is_trashed = any(each.trash and each.part == number for each in self.journal.operations)
        inside = (STAGE, TRASH) if is_trashed else (STAGE,)
        all_of_it = {state_path, path, *(f"{path}/{name}" for name in inside)}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            root = None if checked else self._open.get((above, ""))
            state = self._kept(
                state_path,
                "",
                lambda: root.child(state_directory.NAME) if root else open_state(above, checked=checked),
            )
            private = self._kept(path, "", lambda: state.child(self.journal.identifier))
            if self.writer is not None and not self.writer.made(private.status()):
                raise Refused(f"`{path}` does not belong to `{user_name(self.writer.uid)}`, the journal's writer")
            for name in (STAGE, TRASH) if checked else inside:
                with contextlib.suppress(FileNotFoundError):
                    self._kept(f"{path}/{name}", "", functools.partial(private.child, name))
            if self.writer is not None:
                names = (name for name in private.names() if name.startswith(ASIDE) and name[len(ASIDE) :].isdecimal())
                self._asides[path] = sorted(names, key=lambda name: -int(name.removeprefix(ASIDE)))
                for name in self._asides[path]:
                    self._kept(f"{path}/{name}", "", functools.partial(private.child, name))
                if self._asides[path]:
                    all_of_it = {state_path, path}
                else:
                    del self._asides[path]
        if is_needed and not all_of_it <= self._known.keys():
            raise Refused(f"`{path}` is not as it was left")

    def _again(self, path: str) -> Directory:
        with contextlib.suppress(Refused):
            directory = reach(path)
            if directory.identity == self._known[path]:
                return directory
            directory.close()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    def _location(self, path: str, below: str) -> Location:
        above, _, name = below.rpartition("/")
        if not above:
            return Location(self.base(path), name)
        with contextlib.suppress(FileNotFoundError):
            return Location(self._kept(path, above, lambda: Location(self.base(path), path).parent.child(above)), name)
        return Location(None, name)

    def _kept(self, path: str, above: str, opening: Callable[[], Directory]) -> Directory:
        key = path, above
        if key not in self._open:
            directory = self._opened(opening)
            is_scarce = directory.fd is not None and directory.fd >= space.descriptor_limit() - _SPARE
            self._close_others(_LEAST if is_scarce else _MOST, is_scarce=is_scarce)
            self._open[key] = self.enter_context(directory)
            if not above:
                self._known.setdefault(path, directory.identity)
        self._open.move_to_end(key)
        return self._open[key]

    def _opened(self, opening: Callable[[], Directory]) -> Directory:
        try:
            return opening()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._close_others(_LEAST, is_scarce=True)
        return opening()

    def _close_others(self, number: int, *, is_scarce: bool) -> None:
        """Keep open what was asked for last: an operation that is at work needs it."""
        for key in [*self._open][: max(0, len(self._open) - number)]:
            if is_scarce or key[1]:
                self._open.pop(key).close()


def reach(path: str) -> Directory:
    """Open the directory at `path`; raises `Refused` unless it is there, with no symbolic link in the path to it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        directory = Directory.open(path)
        # The kernel knows where it is; to look at each part of the path takes calls to a file server.
        if proc.link(f"self/fd/{directory.fd}") == path or os.path.realpath(path) == path:
            return directory
        directory.close()
    raise Refused(f"`{path}` is no directory any more")


def open_state(directory: str, *, checked: bool = True) -> Directory:
    """Open the state directory of `directory`; raises `FileNotFoundError`, `Refused` if a stranger made it."""
    with reach(directory) as holder:
        state = holder.child(state_directory.NAME)
        if checked and not trust.may_change(state.status(), directory, holder.status()):
            state.close()
            raise Refused(f"`{state.path}` belongs to a user that may not change `{directory}`")
        return state


def walk(directory: Directory, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """All files in `directory`, at whatever depth, with their paths relative to it; no symbolic link is followed."""
    for name in directory.names():
        try:
            found = directory.stat(name)
        except FileNotFoundError:
            continue  # an importer has renamed the bytecode that it wrote
        if stat.S_ISDIR(found.st_mode):
            with directory.child(name) as inner:
                yield from walk(inner, f"{below}{name}/")
        else:
            yield f"{below}{name}", found
