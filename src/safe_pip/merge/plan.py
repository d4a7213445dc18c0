"""What one commit does to the target: operations on paths, as pure data.

Operations are about disjoint paths: none lies below another's, so each is done, and undone, whatever the others did.
"""

import enum
from collections.abc import Collection, Mapping
from typing import NamedTuple


class Kind(enum.Enum):
    """What an operation does with `live`, its path in the target; S is its name in the stage, T in the trash."""

    NEW = "new"
    """A file or directory that was not there: S to live."""
    FILE = "file"
    """A file over a file: live linked to T, S over live."""
    EXCHANGE = "exchange"
    """A directory for a directory, in one step: S and live are exchanged."""
    SWAP = "swap"
    """The same, or a file for a directory and the reverse, in two renames: live to T, S to live."""
    REMOVE = "remove"
    """A file or directory goes: live to T."""
    MODE = "mode"
    """A directory gets other permissions, so that it can be moved, or entries of it can."""
    TIDY = "tidy"
    """Once all is committed: a directory goes if it is empty."""
    SEAL = "seal"
    """Once all is committed: a directory gets the permissions that it is to have, and, if it is new, its time."""

    @property
    def is_late(self) -> bool:
        """Whether it is done after the commit point, so that there is nothing to undo."""
        return self in (Kind.TIDY, Kind.SEAL)


class Seen(NamedTuple):
    """What is, or was, at a path: enough to tell it from what another program puts there.

    `size` in bytes and `mtime_ns` (0 for directories, which change while they are used; but for one that is sealed) as
    lstat(2) gives them; `mode` is the whole st_mode.
    """

    mode: int
    size: int
    mtime_ns: int


class ExactTree(NamedTuple):
    """How a tree is put in, or taken out, as it is: with empty directories, and directories that are read-only.

    `modes` says of each staged directory (its path in the stage) which permissions and time it is to have in its place:
    while it is staged its owner may write in it. `opened` are live directories in which something may be changed though
    they are read-only; `made` those that may go with what is in them, None for whatever is left empty.
    """

    modes: Mapping[str, Seen]
    opened: Collection[str]
    made: Collection[str] | None = None


class Operation(NamedTuple):
    """One step of a commit: `path` below `roots[root]` of the plan, with S and T below `parts[part]`.

    `staged` is below the part's `stage/`, `trash` a single name in its `trash/`; each is empty where the kind has
    none. `old` is what is there before and `new` what is there after, None for nothing. `known` lists, of a directory
    that leaves its place, the files in it that may be deleted with it, relative to it.
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


class Journal(NamedTuple):
    """A plan as it stands in the journal, with where it belongs.

    `identifier` names the transaction, `home` the tree whose state directory holds the journal; `trees` are all trees
    whose commit locks protect what is changed, `directories` the shared directories likewise. `roots` are the absolute
    paths, with no symbolic link in them, below which everything lies; `parts` the private directories
    `<directory>/.safe-pip/<identifier>`, the first one in `home`, one for each filesystem.
    """

    identifier: str
    home: str
    trees: tuple[str, ...]
    directories: tuple[str, ...]
    roots: tuple[str, ...]
    parts: tuple[str, ...]
    operations: tuple[Operation, ...]
