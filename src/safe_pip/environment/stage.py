"""The private tree in which a change is made before any of it is put into place: nobody sees it, no lock is held.

It mirrors absolute paths: what is to be at `/v/lib/x` lies at `<root>/v/lib/x`. On each filesystem that the change
touches it has a part with `stage/` for what comes and `trash/` for what goes. All of it is deleted at the end; after a
crash, by whoever finds the owner file with nobody holding it.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from safe_pip import fs
from safe_pip.environment import staged
from safe_pip.fs import Directory, proc
from safe_pip.fs.space import check_room, staging, unpacking
from safe_pip.journal import parts
from safe_pip.journal.codec import marker
from safe_pip.journal.directories import DURABLE, STAGE, Refused
from safe_pip.journal.owner import Owner, give_access
from safe_pip.locking import state_directory
from safe_pip.merge.plan import Kind, Operation

_SPARE = "spare"


class Stage:
    """The private tree of one transaction; made by `open`, gone after `close`."""

    def __init__(self, home: Path, owner: Owner) -> None:
        self.home = home
        self.identifier = owner.identifier
        self._owner = owner
        self._parts: list[str] = []
        self._marks: set[str] = set()
        self._mirrored = {"/"}
        self._exchanging: dict[int, bool] = {}
        self._extra: list[str] = []
        """What `link` and `prepare` have put into the stage, for `unprepare`."""
        self._spares: list[tuple[str, str]] = []
        self._linked: defaultdict[int, dict[tuple[int, int], tuple[str, int]]] = defaultdict(dict)

    @classmethod
    def open(cls, home: Path) -> Stage:
        """Make one in the state directory of the tree `home`, whose commit lock the caller holds, shared.

        Raises an error of ours, with nothing left behind.
        """
        home = Path(os.path.realpath(home))
        with staging(str(home)):
            stage = cls(home, Owner.make(state_directory.path_of(home)))
            try:
                stage._parts.append(parts.make_first(str(home), stage.identifier))
            except BaseException:
                stage.close()
                raise
        return stage

    @property
    def parts(self) -> tuple[str, ...]:
        """The private directories, the one in `home` first."""
        return tuple(self._parts)

    @property
    def root(self) -> str:
        """What the absolute path of a file is put behind, to get its path in the stage."""
        return self._root(0)

    def roots(self) -> tuple[tuple[int, str], ...]:
        """The same of every part, with its number."""
        return tuple((number, self._root(number)) for number in range(len(self._parts)))

    def volumes(self) -> dict[proc.Volume, int]:
        """The part on each volume: what is on a volume can be renamed within it."""
        return {proc.volume(root): number for number, root in reversed(self.roots())}

    def can_exchange(self) -> frozenset[int]:
        """The parts in which one directory can take the place of another in one step."""
        for number, part in enumerate(self._parts):
            if number not in self._exchanging:
                with Directory.open(part) as private:
                    self._exchanging[number] = fs.can_exchange(private)
        return frozenset(number for number, can in self._exchanging.items() if can)

    # What is made in it.

    def check_room(self, wheels: Iterable[Path]) -> None:
        """Raise `CommitFailed`, with nothing changed, if there is no room for these wheels, unpacked."""
        check_room(self._parts[0], wheels)

    def unpacking(self) -> AbstractContextManager[None]:
        """Within, a full disk raises `CommitFailed`, with nothing changed; any other `OSError` stays what it is."""
        return unpacking(self._parts[0])

    def mirror(self, live: str) -> None:
        """Make the directory that stands for `live` in the stage: what is made in it is as if made there."""
        live = os.path.abspath(live)
        with staging(live):
            staged.mirror(self.root, live)
        self._mirrored.add(live)

    def mirror_below(self, live: str, directories: Iterable[str]) -> None:
        """Do the same for directories below it (relative paths) that exist, where it makes a difference."""
        with staging(live):
            staged.mirror_below(self.root, live, directories)

    def write(self, live: str, content: bytes) -> str:
        """Stage a file with this content, in a directory that is mirrored; on return its path in the stage."""
        with staging(live):
            return staged.write(self.root, live, content)

    def write_like(self, live: str, content: bytes) -> None:
        """Stage the file `live`, which exists, with another content."""
        self.mirror(os.path.dirname(live))
        with staging(live):
            staged.write_like(self.root, live, content)

    def forget(self, live: str) -> None:
        """Take one file out of the stage."""
        with staging(live):
            staged.take_out(self._roots(), [live], self._mirrored)

    def drop(self, record: str, others: Iterable[str]) -> None:
        """Take the distribution with this staged RECORD out of the stage, but for what the RECORDs `others` list."""
        with staging(record):
            going = staged.files_of(*self._found(record))
            for other in others:
                going -= staged.files_of(*self._found(other))
            staged.take_out(self._roots(), going, self._mirrored)

    def prune(self) -> None:
        """Take directories out of the stage that nothing was staged in: they would go in with what lies beside them."""
        with staging(self.root):
            staged.prune(self.root, self._mirrored)
        self._mirrored.clear()

    def add_part(self, directory: str, *, is_tree: bool = False) -> int:
        """Make a part in `directory`, which is on another filesystem; on return its number."""
        with staging(directory):
            self._parts.append(
                parts.make_part(self._owner, str(self.home), os.path.realpath(directory), is_tree=is_tree)
            )
        return len(self._parts) - 1

    def move_to_part(self, path: str, part: int) -> None:
        """Move what is staged at the absolute `path` to another part; modes and times stay."""
        with staging(path):
            number, live = self._located(path)
            if number == part:
                return
            root = self._root(part)
            staged.mirror(root, os.path.dirname(live))
            with staged.parent_of(path) as (source, name), staged.parent_of(root + live) as (destination, _):
                staged.copy_below(source, name, destination, self._linked[part])
                fs.remove_below(source, name)

    def mark(self, directory: str, *, is_tree: bool = False) -> None:
        """Have who locks only `directory` find the journal: leave a mark there that leads to `home`."""
        directory = os.path.realpath(directory)
        if directory not in self._marks:
            with staging(directory):
                parts.make_mark(self._owner, str(self.home), directory, is_tree=is_tree)
            self._marks.add(directory)

    # What a plan needs.

    def freshen(self, same_second: Iterable[tuple[str, int]]) -> None:
        """Give each staged source (absolute path) a whole second of its own, other than that of the time beside it."""
        avoid: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
        for path, mtime_ns in same_second:
            directory, name = os.path.split(path)
            avoid[directory].setdefault(name, []).append(mtime_ns)
        for directory, times in avoid.items():
            with staging(directory):
                staged.bump_mtime(directory, times)

    def link(self, links: Iterable[tuple[str, str]]) -> None:
        """Let each of these files (absolute path) be in the stage too, at the absolute path beside it."""
        for source, path in links:
            with staging(path):
                self._extra += staged.link(source, path)

    def prepare(self, operations: Iterable[Operation], roots: Iterable[str] = ()) -> None:
        """Mark the staged directories that move, and keep what moves over a file: it can be planned again then.

        `roots` are those of the plan: where a group shares them all, it may undo the plan.
        """
        operations = tuple(operations)
        with staging(self._parts[0]):
            inside = {os.path.join(self._root(each.part), os.path.dirname(each.staged)) for each in operations}
            parts.share(self._parts, str(self.home), roots, inside)
            for operation in operations:
                if not operation.staged:
                    continue
                path = os.path.join(self._root(operation.part), operation.staged)
                with staged.parent_of(path) as (directory, name):
                    if operation.kind is Kind.FILE:
                        self._spare(operation.part, path, directory, name)
                    elif stat.S_ISDIR(directory.stat(name).st_mode):
                        with directory.child(name) as moving:
                            fs.write_new(moving, marker(self.identifier), b"")
                        self._extra.append(os.path.join(path, marker(self.identifier)))

    def unprepare(self) -> None:
        """Have the stage as it was before `link` and `prepare`, also after an operation was done and undone."""
        with staging(self._parts[0]):
            for path, spare in reversed(self._spares):
                with staged.parent_of(spare) as (spares, number), staged.parent_of(path) as (directory, name):
                    if not directory.exists(name):
                        fs.link(spares, number, directory, name)
                    fs.remove(spares, number)
            self._spares.clear()
            for path in reversed(self._extra):
                with suppress(FileNotFoundError, NotADirectoryError), staged.parent_of(path) as (directory, name):
                    fs.remove_below(directory, name)
            self._extra.clear()

    def write_journal(self, content: bytes) -> None:
        """Write the journal into the private directory, from where a rename publishes it."""
        path = Path(self._parts[0], "journal")
        with staging(self._parts[0]):
            fs.unlink(path)
            fs.write(path, content)
            give_access(path)

    def sync(self) -> None:
        """Have the disk hold all that is staged, then the journal, and the way to it.

        Who undoes it is told to have the disk hold that too.
        """
        with staging(self._parts[0]):
            with Directory.open(self._parts[0]) as private:
                if not private.exists(DURABLE):
                    fs.write_new(private, DURABLE, b"")
            for root in self._roots():
                with Directory.open(root) as opened:
                    fs.sync_tree(opened)
            parts.sync(self._parts, str(self._owner.path), self._marks)

    # The end of it.

    def close(self) -> None:
        """Delete all that is private; never raises: what cannot be deleted now is left to whoever sweeps next.

        What a journal still needs to undo the change is kept. In a forked child it does nothing.
        """
        if not self._owner.is_ours:
            return
        if os.path.lexists(state_directory.path_of(self.home) / f"{self.identifier}{parts.JOURNAL}"):
            self._owner.release()
            return
        with suppress(OSError, Refused):
            parts.delete(self._owner, str(self.home))

    def leave(self) -> None:
        """Keep all as it is, for whoever sweeps next."""
        self._owner.release()

    def _roots(self) -> list[str]:
        return [root for _, root in self.roots()]

    def _root(self, part: int) -> str:
        return os.path.join(self._parts[part], STAGE)

    def _located(self, path: str) -> tuple[int, str]:
        """The part in which a staged path is, and its path in the target."""
        for number, root in self.roots():
            if path.startswith(f"{root}/"):
                return number, path[len(root) :]
        raise ValueError(f"not in the stage: {path!r}")

    def _found(self, path: str) -> tuple[str, str]:
        """The root in which something staged is by now, and its path there."""
        _, live = self._located(path)
        root = next((root for _, root in self.roots() if os.path.lexists(root + live)), self.root)
        return root, root + live

    def _spare(self, part: int, path: str, directory: Directory, name: str) -> None:
        """Keep a link of a staged file that is to be moved over another: undone, the move leaves nothing of it."""
        where = os.path.join(self._parts[part], _SPARE)
        with Directory.open(self._parts[part]) as private:
            if not private.exists(_SPARE):
                fs.make_directory(private, _SPARE, 0o700)
            with private.child(_SPARE) as spares:
                number = str(len(self._spares))
                fs.link(directory, name, spares, number)
        self._spares.append((path, os.path.join(where, number)))
