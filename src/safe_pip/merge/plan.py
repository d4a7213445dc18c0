"""What one commit does to the target: operations on paths, as pure data, and what they are made from.

The paths of the operations are disjoint: none lies below another. So each operation can be done, and undone, whatever
the others did.
"""

import enum
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Kind(enum.Enum):
    """What an operation does with `live`, its path in the target; S is its name in the stage, T in the trash."""

    NEW = "new"
    """A file or directory is new: S to live."""
    FILE = "file"
    """A file replaces a file: live linked to T, S over live."""
    EXCHANGE = "exchange"
    """A directory replaces a directory in one step: S and live are exchanged."""
    SWAP = "swap"
    """A file or directory replaces another in two renames: live to T, S to live."""
    REMOVE = "remove"
    """A file or directory goes: live to T."""
    MODE = "mode"
    """A directory gets other permissions, so that it, or an entry of it, can be moved."""
    TIDY = "tidy"
    """After the commit point: a directory that could not be moved goes if it is empty."""
    SEAL = "seal"
    """After the commit point: a directory gets its final permissions and, if it is new, its time."""

    @property
    def is_late(self) -> bool:
        """Whether it is done after the commit point, so that there is nothing to undo."""
        return self in (Kind.TIDY, Kind.SEAL)


class Seen(NamedTuple):
    """What is, or was, at a path: enough to tell it from what another program puts there.

    `mode`, `size` (bytes) and `mtime_ns` as lstat(2) gives them. Directories change while they are used: their `size`
    is 0, and so is their `mtime_ns` except in the `new` of a `SEAL`.
    """

    mode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Seen":
        """What lstat(2) found."""
        if stat.S_ISDIR(status.st_mode):
            return cls(status.st_mode, 0, 0)
        return cls(status.st_mode, status.st_size, status.st_mtime_ns)


class Operation(NamedTuple):
    """One step of a commit: `path` below `roots[root]` of the plan, with S and T below `parts[part]`.

    `staged` is below the part's `stage/`, `trash` a single name in its `trash/`; each is empty where the kind has
    none. `old` is what is there before and `new` what is there after, None for nothing. For a directory that leaves its
    place, `known` lists the files (relative to it) that may be deleted with it. `proof` identifies what a new directory
    holds.
    """

    kind: Kind
    root: int
    path: str
    part: int = 0
    staged: str = ""
    trash: str = ""
    old: Seen | None = None
    new: Seen | None = None
    known: tuple[str, ...] = ()
    proof: str = ""


class Link(NamedTuple):
    """A file that has to be in a staged directory as well before that moves; both paths are absolute.

    `linked` is what was linked: inode, size and mtime.
    """

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
    """What a commit does, in this order, and what has to be true for it.

    `adds`: every operation creates a path, and none hides a module or makes a package of a namespace. `links`: to be
    made in the stage first. `overwritten`: files of other owners, or of none, that are replaced. `entered`: path,
    device and inode of each directory in which something is changed; `moved`: each that leaves its place, and all that
    lie below it. `same_second`: staged sources (absolute paths) and the mtime of the live ones that they replace in the
    same second.
    """

    operations: tuple[Operation, ...]
    roots: tuple[str, ...]
    adds: bool
    links: tuple[Link, ...]
    overwritten: tuple[str, ...]
    entered: tuple[tuple[str, int, int], ...]
    moved: tuple["Listed", ...]
    same_second: tuple[tuple[str, int], ...]


class Journal(NamedTuple):
    """A plan as it stands in the journal, with where it belongs.

    `identifier` names the transaction, `home` the tree whose state directory holds the journal. The commit locks of
    `trees` and the locks of the shared `directories` protect what is changed. `roots` are the absolute paths, with no
    symbolic link in them, below which everything lies; `parts` the private directories
    `<directory>/.safe-pip/<identifier>`, one for each filesystem, the first one in `home`. `identity` is device and
    inode of `home`, which may have another path when the journal is found.
    """

    identifier: str
    home: str
    trees: tuple[str, ...]
    directories: tuple[str, ...]
    roots: tuple[str, ...]
    parts: tuple[str, ...]
    operations: tuple[Operation, ...]
    identity: tuple[int, int] = (0, 0)

    def path(self, operation: Operation) -> str:
        """The absolute path of the operation's place in the target."""
        return os.path.join(self.roots[operation.root], operation.path)


class Removal(NamedTuple):
    """The files of a distribution that is uninstalled or replaced, as pip lists them; of an egg, its directory.

    The paths are absolute, their parents resolved. `tree` holds the metadata; `edits` is the new content of files that
    lose only some of their lines (`easy-install.pth`).
    """

    project: str
    tree: Path
    files: frozenset[str]
    edits: Mapping[str, bytes] = MappingProxyType({})


class ExactTree(NamedTuple):
    """How a tree is put in, or taken out, as it is: with empty directories, and directories that are read-only.

    `modes` gives for each staged directory (its path in the stage) its final permissions and time: while it is staged
    its owner may write in it. `opened` are read-only live directories in which something may be changed; `made` are
    those that may go with what is in them, None for any that is left empty.
    """

    modes: Mapping[str, Seen]
    opened: Collection[str]
    made: Collection[str] | None = None
