"""One lock that a command needs: which file, in which mode, and its place in the order of all locks."""

import enum
import os
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.locking import shared_files, state_directory

# A command of git replaces the files of a checkout, and not these.
SOURCE_MARKS = (".git", ".hg", "pyproject.toml", "setup.py")


class Rank(enum.IntEnum):
    """The order in which locks are taken; within a rank by device and inode. No command waits for an earlier one."""

    ENVIRONMENT = 1
    KEEP = 2
    DISTRIBUTION = 3
    MUTEX = 4
    COMMIT = 5
    DIRECTORY = 6
    UV = 7
    OWNER = 8


class Request(NamedTuple):
    """What to lock: `path`, queueing at `gate` if there is one; messages call it `shown`."""

    rank: Rank
    path: Path
    exclusive: bool
    shown: Path
    gate: Path | None = None
    also: Path | None = None  # a file locked before the gate is let go: other hosts see no lock on a directory
    needs_writing: bool = False  # NFS grants an exclusive lock only on a writable descriptor

    def noted(self) -> dict[str, object]:
        """This lock in a trace."""
        mode = "exclusive" if self.exclusive else "shared"
        return {"kind": self.rank.name.lower(), "path": str(self.path), "of": str(self.shown), "mode": mode}


def keep_lock(tree: Path, *, exclusive: bool) -> Request:
    """What keeps processes that keep some distributions of `tree` apart from those that may change any of them."""
    path, gate = (state_directory.path_of(tree) / each for each in (state_directory.KEEP, state_directory.KEEP_GATE))
    return Request(Rank.KEEP, path, exclusive, shown_name(tree), gate)


def distribution_lock(project: str, info: str, *, exclusive: bool) -> Request:
    """The lock of one installed distribution: its metadata itself, which another version has anew."""
    gate = Path(info, "METADATA")
    return Request(Rank.DISTRIBUTION, Path(info), exclusive, Path(project), gate if fs.is_file(gate) else None)


def environment_lock(tree: Path, *, exclusive: bool) -> Request:
    """The environment lock of `tree`: flock on the directory itself, with a gate if there is a state directory."""
    if not state_directory.has_locks(tree):
        return Request(Rank.ENVIRONMENT, tree, exclusive, shown_name(tree), needs_writing=_is_shared(tree))
    gate = state_directory.path_of(tree) / state_directory.ENVIRONMENT_GATE
    also = gate.with_name(state_directory.ENVIRONMENT)
    beside = also if os.path.lexists(also) else None
    return Request(Rank.ENVIRONMENT, tree, exclusive, shown_name(tree), gate, beside, _is_shared(tree))


def commit_lock(tree: Path, *, exclusive: bool) -> Request:
    state = state_directory.path_of(tree)
    path, gate = state / state_directory.COMMIT, state / state_directory.COMMIT_GATE
    return Request(Rank.COMMIT, path, exclusive, shown_name(tree), gate, None, _is_shared(tree))


def mutex(directory: Path) -> Request:
    """The mutex of a directory in which one process at a time writes; in a source tree, of a file that stays."""
    is_shared = _is_shared(directory)
    marks = (os.path.realpath(directory / name) for name in SOURCE_MARKS)
    mark = Path(next((mark for mark in marks if os.access(mark, os.W_OK if is_shared else os.R_OK)), directory))
    return _directory_lock(Rank.MUTEX, mark, directory, exclusive=True)


def shared_directory(directory: Path, *, exclusive: bool = True) -> Request:
    return _directory_lock(Rank.DIRECTORY, directory, directory, exclusive=exclusive)


def plain_directory(directory: Path, *, exclusive: bool) -> Request:
    """The lock of a directory that is no environment, in the place of an environment lock."""
    return _directory_lock(Rank.ENVIRONMENT, directory, directory, exclusive=exclusive)


def file_lock(path: Path, shown: Path) -> Request:
    """The lock of a file that a command makes `shown` under, in the place of an environment lock."""
    return Request(Rank.ENVIRONMENT, path, True, shown, needs_writing=_is_shared(path.parent))


def _directory_lock(rank: Rank, path: Path, shown: Path, *, exclusive: bool) -> Request:
    """A lock on `path` itself; if several hosts may use that directory, also on a file in it, which is made."""
    if not _is_shared(path):
        return Request(rank, path, exclusive, shown)
    if not os.path.isdir(path):
        return Request(rank, path, exclusive, shown, needs_writing=True)
    state_directory.make(path)
    beside = state_directory.path_of(path) / state_directory.ENVIRONMENT
    return Request(rank, path, exclusive, shown, also=beside, needs_writing=True)


def uv_lock(path: Path) -> Request:
    return Request(Rank.UV, path, True, path, needs_writing=_is_shared(path.parent))


def owner_lock(path: Path, tree: Path) -> Request:
    """The owner file of a transaction on `tree`, which its process holds as long as it lives."""
    return Request(Rank.OWNER, path, True, shown_name(tree), needs_writing=_is_shared(tree))


def _is_shared(directory: Path) -> bool:
    """Whether several hosts may use it; raises `CannotLock` if their locks do not reach each other."""
    shared_files.check(directory)
    return state_directory.is_shared(directory)


def shown_name(tree: Path) -> Path:
    """What messages call a tree: the virtual environment that it belongs to (PEP 405), or its own path."""
    # Only `lib/python3.13/site-packages` and `Lib/site-packages` are parts of a virtual environment.
    homes = tuple(tree.parents)[1:3] if tree.name == "site-packages" else ()
    return next((home for home in homes if os.path.isfile(home / "pyvenv.cfg")), tree)
