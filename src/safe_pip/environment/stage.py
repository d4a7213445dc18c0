"""The private tree in which a change is made before any of it is put into place. No lock is held meanwhile.

What is to be at `/v/lib/x` lies at `<root>/v/lib/x`. On each filesystem that the change touches it has a part, with
`stage/` for what comes and, if something goes, `trash/` for that. After a crash, a sweep finds the unlocked owner file.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from safe_pip import fs
from safe_pip.errors import CommitFailed, TakenOver, UnusableEnvironment
from safe_pip.fs import Directory, attributes, proc, trust
from safe_pip.fs.space import staging
from safe_pip.journal import parts
from safe_pip.journal.codec import marker
from safe_pip.journal.directories import STAGE, TRASH, Refused
from safe_pip.journal.owner import Owner, give_access
from safe_pip.locking import state_directory
from safe_pip.merge.plan import Kind, Link, Operation
from safe_pip.merge.tree import Entry, ancestors
from safe_pip.records import listed

_SPARE = "spare"
_PARTED = ".safe-pip-parted"
_SECOND = 1_000_000_000

_Linked = MutableMapping[tuple[int, int], tuple[str, int]]
"""Where the first of several links to a file was copied to, and how many are left, by the file's device and inode."""


class Stage:
    """The private tree of one transaction, gone after `close`. What the disk refuses in it is an error of ours."""

    def __init__(self, home: Path) -> None:
        """Make it in the state directory of `home`, whose commit lock is held, shared; on error nothing is left."""
        self.home = Path(os.path.realpath(home))
        self.parts: list[str] = []
        """The private directories, the one in `home` first."""
        self.roots: list[str] = []
        """What is put before an absolute path to get its path in each part; all is staged in the first one, `root`."""
        self._anchors: list[Directory | None] = []  # those that other users may rename, open
        self._marks: set[str] = set()
        self._mirrored = {"/"}
        self._linked: defaultdict[int, _Linked] = defaultdict(dict)
        self._exchanging: list[bool] = []
        self._extra: list[str] = []  # what `link` and `add_markers` have put into the stage
        self._spares: list[tuple[str, str]] = []
        self._trashing: set[int] = set()  # the parts that have a trash
        self._has_journal = False
        self._emptied: set[str] = set()  # the directories that the operations move something out of
        with staging(str(self.home)):
            try:
                self._owner = Owner.make(state_directory.path_of(self.home))
                self.identifier = self._owner.identifier
                try:
                    self.add_part(str(self.home), is_tree=True)
                except BaseException:
                    self.close()
                    raise
            except (FileNotFoundError, CommitFailed) as error:
                if isinstance(error.__cause__ or error, FileNotFoundError) and os.path.lexists(self.home):
                    raise TakenOver from error
                raise

    @property
    def root(self) -> str:
        return self.roots[0]

    def volumes(self) -> dict[proc.Volume, int]:
        """The part on each volume: what is on a volume can be renamed within it."""
        return {proc.volume(root): number for number, root in reversed([*enumerate(self.roots)])}

    def can_exchange(self) -> frozenset[int]:
        """The parts in which one directory can take the place of another in one step."""
        for number in range(len(self._exchanging), len(self.parts)):
            with self._private(number) as private:
                self._exchanging.append(fs.can_exchange(private))
        return frozenset(number for number, can in enumerate(self._exchanging) if can)

    def mirror(self, live: str) -> None:
        """Make the directory that stands for `live` in the stage: what is made in it is as if made there."""
        live = os.path.abspath(live)
        made = next(
            (path for path in ancestors(live) if path in self._mirrored and os.path.isdir(self.root + path)), "/"
        )
        with staging(live):
            _mirror(self.root, live, made)
        self._mirrored.add(live)

    def mirror_below(self, live: str, directories: Iterable[str]) -> None:
        """Mirror those of the `directories` below `live` that exist and hand on other access than their parents do."""
        with staging(live):
            found = {live: attributes.handed_on(live)} if fs.is_directory(live) else {}
            for relative in sorted({str(above) for each in directories for above in (Path(each), *Path(each).parents)}):
                path = os.path.join(live, relative)
                parent = os.path.dirname(path)
                if parent in found and fs.is_directory(path):
                    with suppress(FileNotFoundError):
                        found[path] = attributes.handed_on(path)
                        if found[path] != found[parent]:
                            _mirror(self.root, path, is_moved=True)

    def write(self, live: str, content: bytes) -> str:
        """Stage the file `live` in a mirrored directory, for all users of that; on return its path in the stage."""
        with staging(live), _parent_of(self.root + live) as (directory, name):
            mode = stat.S_IMODE(os.stat(os.path.dirname(live)).st_mode) & 0o666
            fs.write_new(directory, name, content)
            fs.set_mode(directory, name, mode)
        return self.root + live

    def write_like(self, live: str, content: bytes) -> None:
        """Stage the file `live`, which exists, with another content, and with its owner and permissions."""
        self.mirror(os.path.dirname(live))
        with staging(live), _parent_of(live) as (target, name), _parent_of(self.root + live) as (directory, _):
            fs.remove(directory, name)
            fs.write_new(directory, name, content)
            attributes.copy_status(target, name, directory, name)
            attributes.set_time(directory, name, time.time_ns())

    def drop(self, record: str, others: Iterable[str]) -> None:
        """Take the distribution with this staged RECORD out of the stage, except what the RECORDs `others` list."""
        self.take_out(self._files_of(record).difference(*map(self._files_of, others)))

    def take_out(self, files: Collection[str]) -> None:
        """Remove `files`, absolute paths in the target, from the stage, with directories that are empty then."""
        with staging(self.root):
            for root in self.roots:
                emptied = {os.path.dirname(path) for path in files if _remove(root + path)}
                for path in sorted(emptied, key=len, reverse=True):
                    _prune(root, path, self._mirrored)

    def prune(self, staged: Iterable[str]) -> None:
        """Take directories out of the stage that nothing was staged in: they would go in with what lies beside them.

        `staged` are paths in the stage at which there is something: what they lie in is not looked at.
        """
        with staging(self.root):
            kept = {above for path in staged for above in ancestors(path.removeprefix(self.root))}
            for path in sorted(self._mirrored, key=len, reverse=True):
                last = _prune(self.root, path, kept)
                kept.update((last, *ancestors(last)))
        self._mirrored.clear()

    def add_part(self, directory: str, *, is_tree: bool = False) -> int:
        """Make a part in `directory`, which is on another filesystem than the other parts; on return its number."""
        directory = os.path.realpath(directory)
        with staging(directory):
            part = parts.make_part(self._owner, str(self.home), directory, is_tree=is_tree)
            self.parts.append(part)
            self._anchors.append(None)
            # pip writes by path, and so does the store. In a directory that another user may rename, or replace with a
            # symbolic link, they and child processes are given a path through a descriptor.
            if not trust.is_trusted(Path(part)) and os.path.isdir("/proc/self/fd"):
                self._anchors[-1] = anchor = Directory.open(part)
                part = f"/proc/{os.getpid()}/fd/{anchor.fd}"
            self.roots.append(f"{part}/{STAGE}")
        return len(self.parts) - 1

    def _private(self, part: int) -> Directory:
        anchor = self._anchors[part]
        return Directory.open(self.parts[part]) if anchor is None else anchor.again()

    def move_to_part(self, path: str, part: int) -> None:
        """Move what is staged at the absolute `path` to another part; modes and times stay."""
        with staging(path):
            number, live = self._located(path)
            if number != part:
                root = self.roots[part]
                _mirror(root, os.path.dirname(live))
                with _parent_of(path) as (source, name), _parent_of(root + live) as (destination, _):
                    _copy_below(source, name, destination, self._linked[part])
                    fs.remove_below(source, name)

    def mark(self, directory: str, *, is_tree: bool = False) -> None:
        """Leave a mark in `directory` that leads to `home`: a process that locks only it finds the journal."""
        directory = os.path.realpath(directory)
        if directory not in self._marks:
            with staging(directory):
                parts.make_mark(self._owner, str(self.home), directory, is_tree=is_tree)
            self._marks.add(directory)

    def bump_mtime(self, same_second: Iterable[tuple[str, int]]) -> None:
        """Give each staged source (absolute path) a whole second of its own, later than all times beside it.

        Bytecode that goes by the time of its source is told. After a crash it may not have been.
        """
        seconds: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for path, mtime_ns in same_second:
            directory, name = os.path.split(path)
            seconds[directory][name] = max(mtime_ns // _SECOND + 1, seconds[directory].get(name, 0))
        for directory, new in seconds.items():
            with staging(directory), Directory.open(directory) as opened:
                for name, second in new.items():
                    if opened.stat(name).st_nlink > 1:  # `merge --move` links what it stages
                        fs.copy(opened, name, opened, f"{name}{_PARTED}")
                        fs.move_over(opened, f"{name}{_PARTED}", opened, name)
                    attributes.set_time(opened, name, second * _SECOND)
                with suppress(FileNotFoundError, NotADirectoryError), opened.child("__pycache__") as cache:
                    for pyc in cache.names():
                        source = f"{pyc.partition('.')[0]}.py"
                        if pyc.endswith(".pyc") and source in new:
                            attributes.date_bytecode(cache, pyc, new[source])

    def link(self, links: Iterable[Link]) -> tuple[Link, ...]:
        """Let each of these files be in the stage too; on return what was linked.

        Directories that are missing are made like those that the file is in. A file that has gone is left out.
        """
        linked = []
        for each in links:
            with staging(each.staged):
                if fs.look(each.source, follows=False):
                    self._make_parents(each.staged, each.source)
                    with _parent_of(each.staged) as (directory, name), _parent_of(each.source) as (live, live_name):
                        found = live.stat(live_name)
                        fs.link(live, live_name, directory, name)
                    self._extra.append(each.staged)
                    each = each._replace(linked=(found.st_ino, found.st_size, found.st_mtime_ns))
                linked.append(each)
        return tuple(linked)

    def add_markers(self, operations: Iterable[Operation], roots: Iterable[str] = ()) -> None:
        """Mark the staged directories that move, and keep what moves over a file: it can be planned again then.

        `roots` are those of the plan: where a group shares them all, it may undo the plan.
        """
        inside: defaultdict[str, list[Operation]] = defaultdict(list)
        operations = tuple(operations)
        for each in filter(lambda operation: operation.staged, operations):
            inside[os.path.dirname(os.path.join(self.roots[each.part], each.staged))].append(each)
        with staging(self.parts[0]):
            with ExitStack() as stack:
                opened = {root: stack.enter_context(self._private(part)) for part, root in enumerate(self.roots)}
                for part in {each.part for each in operations if each.trash} - self._trashing:
                    parts.make_private(opened[self.roots[part]], TRASH)
                    self._trashing.add(part)
                parts.share(opened, str(self.home), roots, inside)
            stages = tuple(f"{part}/{STAGE}" for part in self.parts)
            levels = (each for path in inside for each in (path, *ancestors(path)) if each.startswith(stages))
            self._emptied.update(levels)
            for above, moved in inside.items():
                with Directory.open(above) as directory:
                    for operation in moved:
                        name = os.path.basename(operation.staged)
                        path = os.path.join(above, name)
                        if operation.kind is Kind.FILE:
                            self._spare(operation.part, path, directory, name)
                        elif stat.S_ISDIR(directory.stat(name).st_mode):
                            with directory.child(name) as moving:
                                fs.write_new(moving, marker(self.identifier), b"")
                            self._extra.append(os.path.join(path, marker(self.identifier)))

    def reset(self) -> None:
        """Have the stage as it was before `link` and `add_markers`, also after an operation was done and undone."""
        with staging(self.parts[0]):
            for path, spare in reversed(self._spares):
                with _parent_of(spare) as (spares, number), _parent_of(path) as (directory, name):
                    if not directory.exists(name):
                        fs.link(spares, number, directory, name)
                    fs.remove(spares, number)
            self._spares.clear()
            for path in reversed(self._extra):
                _remove(path)
            self._extra.clear()

    def write_journal(self, content: bytes) -> None:
        """Write the journal into the private directory, from where a rename publishes it."""
        with staging(self.parts[0]), self._private(0) as private:
            if self._has_journal:  # of another plan
                fs.remove(private, parts.JOURNAL)
            self._has_journal = True
            fs.write_new(private, parts.JOURNAL, content, 0o644)
            give_access(private, parts.JOURNAL)

    def sync(self, staged: Iterable[Entry]) -> None:
        """Have the disk hold all that is staged, then the journal, and the way to it; an undo will be synced too.

        `staged` is what was found in each part, before `link` and `add_markers`.
        """
        with staging(self.parts[0]):
            if not proc.is_shared(str(self.home)):  # where every undo is synced
                with self._private(0) as private, suppress(FileExistsError):
                    fs.write_new(private, parts.DURABLE, b"")
            # A marker is empty: its directory is synced.
            for path in (each for each in self._extra if not each.endswith(f"/{marker(self.identifier)}")):
                with _parent_of(path) as (directory, name):
                    fs.sync(directory, name)
            for root, entry in zip(self.roots, staged, strict=True):
                with Directory.open(root) as opened:
                    _sync_found(opened, entry)
            parts.sync(self.parts, self._owner, self._marks)

    def is_taken_over(self) -> bool:
        """Whether another command took this one for dead: its private directory is gone."""
        with suppress(UnusableEnvironment):
            names = fs.names(state_directory.path_of(self.home))
            return self.identifier not in names and os.path.lexists(self.home)
        return False

    def close(self, *, keeps: bool = False, is_committed: bool = False) -> None:
        """Delete all that is private, unless a journal needs it, or the stage `keeps` it for the next sweep.

        With `is_committed` no journal is there. What cannot be deleted is left to that too. Never raises. In a forked
        child it does nothing.
        """
        if not self._owner.is_ours:
            return
        for anchor in filter(None, self._anchors):
            anchor.close()
        with closing(self._owner), suppress(OSError, Refused, UnusableEnvironment):
            journals = {f"{self.identifier}{suffix}" for suffix in state_directory.JOURNALS}
            if not keeps and (is_committed or journals.isdisjoint(fs.names(self._owner.path.parent))):
                if len(self.parts) == 1:
                    # After a commit they are empty. To list each of them takes calls to a file server.
                    trash = [f"{self.parts[0]}/{TRASH}" for _ in self._trashing]
                    fs.remove_empty_directories([*map(Path, (self.parts[0], *sorted(self._emptied), *trash))])
                parts.delete(str(self.home), self.identifier, self._owner.note)

    def _located(self, path: str) -> tuple[int, str]:
        for number, root in enumerate(self.roots):
            if path.startswith(f"{root}/"):
                return number, path[len(root) :]
        raise ValueError(f"not in the stage: {path!r}")

    def _files_of(self, record: str) -> set[str]:
        """The absolute paths in the target of the files that a staged RECORD lists, and of all beside it."""
        live = self._located(record)[1]
        root = next((root for root in self.roots if os.path.lexists(root + live)), self.root)
        info = os.path.dirname(root + live)
        found = {os.path.join(where, name).removeprefix(root) for where, _, names in os.walk(info) for name in names}
        lib_dir = os.path.dirname(os.path.dirname(live))
        return found | {os.path.normpath(os.path.join(lib_dir, path)) for path in listed(root + live)}

    def _make_parents(self, path: str, like: str) -> None:
        """Make the missing directories of the staged `path` like those that the live file `like` is in."""
        above, like = os.path.dirname(path), os.path.dirname(like)
        if not os.path.isdir(above):
            self._make_parents(above, like)
            with _parent_of(above) as (directory, name), _parent_of(like) as (live, live_name):
                fs.make_directory(directory, name, 0o700)
                attributes.copy_status(live, live_name, directory, name)
            self._extra.append(above)

    def _spare(self, part: int, path: str, directory: Directory, name: str) -> None:
        """Keep a link of a staged file that is to be moved over another: undone, the move leaves nothing of it."""
        with self._private(part) as private:
            if not private.exists(_SPARE):
                fs.make_directory(private, _SPARE, 0o700)
            with private.child(_SPARE) as spares:
                number = str(len(self._spares))
                fs.link(directory, name, spares, number)
                self._spares.append((path, f"{os.path.dirname(self.roots[part])}/{_SPARE}/{number}"))


@contextmanager
def _parent_of(path: str) -> Iterator[tuple[Directory, str]]:
    directory, name = os.path.split(path)
    with Directory.open(directory) as opened:
        yield opened, name


def _remove(path: str) -> bool:
    """Remove a private path with all below it; False if nothing was there."""
    with suppress(FileNotFoundError, NotADirectoryError), _parent_of(path) as (directory, name):
        if directory.exists(name):
            fs.remove_below(directory, name)
            return True
    return False


def _mirror(root: str, live: str, made: str = "/", *, is_moved: bool = False) -> None:
    """Make `root` + `live`, a directory, with all below `made`, so that what is made there is as if made in `live`.

    What exists in the target gives group, set-group-ID bit and default access list to its mirror, which only this user
    can read unless it may be moved to the target; what does not is made as any directory is.
    """
    for path in reversed([*takewhile(made.__ne__, (live, *ancestors(live)))]):
        is_there = fs.is_directory(path)
        with suppress(FileExistsError), _parent_of(root + path) as (here, name):
            fs.make_directory(here, name, 0o700 if is_there else 0o777)
            try:
                if is_there:
                    mode = 0o700 | (stat.S_IMODE(os.stat(path).st_mode) & 0o777 if is_moved else 0)
                    attributes.pass_on(path, here, name, mode)
            except FileNotFoundError:  # gone meanwhile: made as if it had never been there
                fs.remove_directory(here, name)
                fs.make_directory(here, name)


def _sync_found(directory: Directory, entry: Entry) -> None:
    """Sync a directory with all in it, as it was found: to list it once more takes calls to a file server."""
    if not entry.is_whole:
        fs.sync_tree(directory)
        return
    for name, child in entry.children.items():
        if child.is_directory:
            with directory.child(name) as below:
                _sync_found(below, child)
        else:
            fs.sync(directory, name)
    fs.sync(directory)


def _copy_below(source: Directory, name: str, destination: Directory, linked: _Linked) -> None:
    """Copy `name` and all below it, with modes, times and symbolic links, into a directory of another filesystem.

    Links to one file stay that, by `linked`. With its last link a file is forgotten: another may get its inode then.
    """
    status = source.stat(name)
    if not stat.S_ISDIR(status.st_mode):
        inode = status.st_dev, status.st_ino
        first, left = linked.pop(inode, ("", status.st_nlink))
        if first:
            with _parent_of(first) as (directory, first_name):
                fs.link(directory, first_name, destination, name)
        else:
            fs.copy(source, name, destination, name)
        if left > 1:
            linked[inode] = first or destination.join(name), left - 1
        return
    is_new = not destination.exists(name)
    if is_new:
        fs.make_directory(destination, name, 0o700)
    with source.child(name) as below, destination.child(name) as copied:
        for inner in below.names():
            _copy_below(below, inner, copied, linked)
    if is_new:
        attributes.copy_status(source, name, destination, name)


def _prune(root: str, path: str, kept: Collection[str]) -> str:
    """Remove a directory of the target from the stage if it is empty, with those above it that are empty then.

    On return the first of them that stays.
    """
    while path not in kept and path != "/":
        try:
            with suppress(FileNotFoundError, NotADirectoryError), _parent_of(root + path) as (directory, name):
                fs.remove_directory(directory, name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return path
        path = os.path.dirname(path)
    return path
