"""What one commit does to the target, as data. No operation's path lies below another's: each is undone by itself."""

import enum
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Kind(enum.Enum):
    """What an operation does with `live`, its path in the target; S is its name in the stage, T in the trash."""

    NEW = "new"  # a file or directory is new: S to live
    FILE = "file"  # a file replaces a file: live linked to T, S over live
    EXCHANGE = "exchange"  # a directory replaces a directory in one step: S and live are exchanged
    SWAP = "swap"  # a file or directory replaces another in two renames: live to T, S to live
    REMOVE = "remove"  # a file or directory goes: live to T
    MODE = "mode"  # a directory gets other permissions, so that it, or an entry of it, can be moved
    TIDY = "tidy"  # after the commit point: a directory that could not be moved goes if it is empty
    SEAL = "seal"  # after the commit point: a directory gets its final permissions and, if it is new, its time

    @property
    def is_late(self) -> bool:
        """Whether it is done after the commit point, so that there is nothing to undo."""
        return self in (Kind.TIDY, Kind.SEAL)


class Seen(NamedTuple):
    """What lstat(2) says, or said, of a path: enough to tell it from what another program puts there."""

    mode: int
    size: int  # 0 for a directory: it changes while it is used
    mtime_ns: int  # 0 for a directory, except in the `new` of a `SEAL`

    @classmethod
    def of(cls, status: os.stat_result) -> "Seen":
        size, mtime_ns = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
        return cls(status.st_mode, size, mtime_ns)


class Operation(NamedTuple):
    """One step of a commit: `path` below `roots[root]` of the plan, with S and T below `parts[part]`."""

    kind: Kind
    root: int
    path: str
    part: int = 0
    staged: str = ""  # below the part's `stage/`; empty where the kind has none
    trash: str = ""  # a name in the part's `trash/`; empty where the kind has none
    old: Seen | None = None  # what is there before; None for nothing
    new: Seen | None = None  # what is there after; None for nothing
    known: tuple[str, ...] = ()  # files in a directory that leaves its place, relative to it, to be deleted with it
    proof: str = ""  # identifies what a new directory holds


class Link(NamedTuple):
    """A file that has to be in a staged directory as well before that moves, and the inode, size and mtime linked."""

    source: str
    staged: str
    linked: tuple[int, int, int] = (0, 0, 0)


class Listed(NamedTuple):
    """A directory as it was planned for; `names` tells of each name in it, caches apart, whether it is a directory."""

    path: str
    mode: int
    inode: int
    ctime_ns: int
    names: Mapping[str, bool]


class Plan(NamedTuple):
    """What a commit does, in this order, and what has to be true for it."""

    operations: tuple[Operation, ...]
    roots: tuple[str, ...]
    adds: bool  # every operation creates a path, and none hides a module or makes a package of a namespace
    links: tuple[Link, ...]  # to be made in the stage first
    overwritten: tuple[str, ...]  # files of other owners, or of none, that are replaced
    entered: tuple[tuple[str, int, int], ...]  # path, device, inode of each directory in which something is changed
    moved: tuple["Listed", ...]  # each directory that leaves its place, and all below it
    same_second: tuple[tuple[str, int], ...]  # staged sources, and the mtime of live ones replaced in that second
    hides: bool = False  # some operation hides a module or makes a package of a namespace


class Journal(NamedTuple):
    """A plan as it stands in the journal, with where it belongs."""

    identifier: str  # of the transaction
    home: str  # the tree whose state directory holds the journal
    trees: tuple[str, ...]  # their commit locks, and the locks of `directories`, protect what is changed
    directories: tuple[str, ...]  # or a file (a manifest) that is left as it is if it was changed, or is gone
    roots: tuple[str, ...]  # absolute, without symbolic links; everything lies below them
    parts: tuple[str, ...]  # private, `<directory>/.safe-pip/<identifier>`: one a filesystem, the first one in `home`
    operations: tuple[Operation, ...]
    identity: tuple[int, int] = (0, 0)  # device and inode of `home`, whose path may change

    def path(self, operation: Operation) -> str:
        """The absolute path of the operation's place in the target."""
        return os.path.join(self.roots[operation.root], operation.path)


class Removal(NamedTuple):
    """The files of a distribution that is uninstalled or replaced, as pip lists them; of an egg, its directory."""

    project: str
    tree: Path  # holds the metadata
    files: frozenset[str]  # absolute, their parents resolved
    edits: Mapping[str, bytes] = MappingProxyType({})  # new content of files that lose some lines (`easy-install.pth`)


class ExactTree(NamedTuple):
    """How a tree is put in, or taken out, as it is: with empty directories, and directories that are read-only."""

    modes: Mapping[str, Seen]  # final permissions and time of each directory in the stage, where its owner may write
    opened: Collection[str]  # read-only live directories in which something may be changed
    made: Collection[str] | None = None  # directories that may go with what is in them; None: any that is left empty
    entered: Collection[str] = ()  # directories that stay as they are, whatever changes in them
    unread: Collection[str] = ()  # files that no program in the environment reads: a new content is no replacement
