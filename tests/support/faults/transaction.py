"""A transaction on a small tree, staged and journaled by hand."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Union

from safe_pip import fs
from safe_pip.journal import codec as journal
from safe_pip.journal.directories import OpenDirectories
from safe_pip.journal.recovery import Unfinished
from safe_pip.journal.undo import proof
from safe_pip.merge import tree
from safe_pip.merge.plan import Journal, Kind, Operation, Seen

IDENTIFIER = "0123456789abcdef"


class Link(str):
    """The text of a symbolic link."""


Content = Union[str, Link, "Mapping[str, Content]"]
"""A file with this text, a link, or a directory with these entries."""


def put(path: Path, content: Content) -> None:
    """Make `path` and its parents, with this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Link):
        path.symlink_to(content)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.mkdir()
        for name, below in content.items():
            put(path / name, below)


def content_of(path: Path) -> Content | None:
    """The content of `path`, in the form that `put` takes."""
    if path.is_symlink():
        return Link(os.readlink(path))
    if path.is_dir():
        return {each.name: content for each in path.iterdir() if (content := content_of(each)) is not None}
    return path.read_text() if path.exists() else None


def seen(path: Path) -> Seen:
    """The state of `path`, in the form that the journal uses."""
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        return Seen(status.st_mode, 0, 0)
    return Seen(status.st_mode, status.st_size, status.st_mtime_ns)


class StagedTransaction:
    """The tree `home`, the shared directory `bin`, and one transaction that will change them."""

    def __init__(self, root: Path, identifier: str = IDENTIFIER) -> None:
        root = root.resolve()
        self.identifier = identifier
        self.home = root / "lib"
        self.bin = root / "bin"
        self.state = self.home / ".safe-pip"
        self.private = self.state / identifier
        for directory in (self.private / "stage", self.private / "trash", self.bin / ".safe-pip"):
            directory.mkdir(parents=True)
        (self.state / "commit").touch()
        (self.state / f"{identifier}.owner").touch()
        self.private.chmod(0o700)
        self.operations: list[Operation] = []

    @property
    def roots(self) -> tuple[Path, ...]:
        """The roots of the journal, by number."""
        return self.home, self.bin

    @property
    def unfinished(self) -> Unfinished:
        """Where the journal is."""
        name = f"{self.identifier}.undoing"
        return Unfinished(
            self.home, self.identifier, name if (self.state / name).exists() else f"{self.identifier}.journal"
        )

    @property
    def committed(self) -> Unfinished:
        """Where it is from the commit point on."""
        return Unfinished(self.home, self.identifier, f"{self.identifier}.committed")

    @property
    def journal(self) -> Journal:
        """The journal of all added operations."""
        home, shared = str(self.home), str(self.bin)
        roots = tuple(map(str, self.roots))
        found = self.home.stat()
        parts, identity = (str(self.private),), (found.st_dev, found.st_ino)
        return Journal(self.identifier, home, (home,), (shared,), roots, parts, tuple(self.operations), identity)

    def add(
        self,
        kind: Kind,
        path: str,
        old: Content | None = None,
        new: Content | None = None,
        *,
        root: int = 0,
        known: tuple[str, ...] = (),
    ) -> Operation:
        """Put the old object in its place and the new one in the stage."""
        live = self.roots[root] / path
        if old is not None and kind is not Kind.MODE:
            put(live, old)
        staged = trash = ""
        if new is not None and kind is not Kind.MODE:
            staged = f"spare/{len(self.operations)}" if kind is Kind.FILE else str(live)[1:]
            put(self.private / "stage" / staged, new)
            if not isinstance(new, str):
                (self.private / "stage" / staged / journal.marker(self.identifier)).touch()
        if kind in (Kind.FILE, Kind.SWAP, Kind.REMOVE):
            trash = str(len(self.operations))
        operation = Operation(
            kind,
            root,
            path,
            0,
            staged,
            trash,
            None if old is None else seen(live),
            None if new is None else seen(self.private / "stage" / staged),
            known,
        )
        self.operations.append(operation)
        return operation

    def add_mode(self, path: str, old: int, new: int) -> None:
        """Give the directory at `path` other permissions."""
        directory = stat.S_IFDIR
        operation = Operation(Kind.MODE, 0, path, old=Seen(directory | old, 0, 0), new=Seen(directory | new, 0, 0))
        self.operations.append(operation)

    def write_journal(self) -> None:
        """Prepared: the journal is in its place, and so is the mark in the shared directory."""
        for number, each in enumerate(self.operations):
            if each.staged and each.new is not None and stat.S_ISDIR(each.new.mode):
                found, _ = proof(tree.states(tree.scan(str(self.private / "stage" / each.staged))))
                self.operations[number] = each._replace(proof=found)
        (self.bin / ".safe-pip" / f"{self.identifier}.home").write_text(f"{self.home}\n")
        (self.state / f"{self.identifier}.journal").write_bytes(journal.encode(self.journal))

    def commit(self) -> None:
        """Go past the commit point."""
        (self.state / f"{self.identifier}.journal").rename(self.state / f"{self.identifier}.committed")

    def do(self) -> None:
        """Carry out all operations, through `fs`."""
        with OpenDirectories(self.journal) as places:
            for operation in self.operations:
                do(places, operation)

    def content(self) -> Content | None:
        """The content of the target, without the state directories."""
        return {
            str(number): {name: content for name, content in found.items() if name != ".safe-pip"}
            for number, root in enumerate(self.roots)
            if isinstance(found := content_of(root), dict)
        }

    def leftovers(self) -> list[Path]:
        """Remains of the transaction in state directories. The state directory of `bin` was made for it alone."""
        return self.leftovers_of_home() + [*self.bin.glob(".safe-pip")]

    def leftovers_of_home(self) -> list[Path]:
        """Remains of the transaction in the state directory of the tree."""
        return sorted(self.state.glob(f"{self.identifier}*"))


def do(places: OpenDirectories, operation: Operation) -> None:
    """Carry out one operation as the design describes it."""
    live, trash, staged = places.live(operation), places.trash(operation), places.staged(operation)
    if operation.kind is Kind.MODE:
        assert operation.new is not None
        fs.set_mode(live.parent, live.name, stat.S_IMODE(operation.new.mode))
    elif operation.kind is Kind.FILE:
        fs.link(live.parent, live.name, trash.parent, trash.name)
        fs.move_over(staged.parent, staged.name, live.parent, live.name)
    elif operation.kind is Kind.EXCHANGE:
        fs.exchange(staged.parent, staged.name, live.parent, live.name)
    else:
        if operation.trash:
            fs.move(live.parent, live.name, trash.parent, trash.name)
        if operation.staged:
            fs.move(staged.parent, staged.name, live.parent, live.name)


Build = Callable[[StagedTransaction], None]


@contextlib.contextmanager
def without_links() -> Iterator[None]:
    """Within, the filesystem refuses hard links."""
    from unittest import mock

    def refuse(*args: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with mock.patch("os.link", refuse):
        yield
