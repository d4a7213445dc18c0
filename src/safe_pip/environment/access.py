"""Which locks each kind of access to an environment needs, and what must be on the disk before they can be taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safe_pip import fs
from safe_pip.environment.target import Target
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import space
from safe_pip.locking import flock, state_directory
from safe_pip.locking.flock import Descriptor
from safe_pip.locking.order import (
    Rank,
    Request,
    commit_lock,
    environment_lock,
    mutex,
    owner_lock,
    shared_directory,
    uv_lock,
)
from safe_pip.locking.waiting import Interrupted

if TYPE_CHECKING:
    from safe_pip.journal.recovery import Unfinished

# How long somebody who was stopped while he looked, in a moment of some microseconds, holds up others, in seconds.
_TURN = 10.0

Trees = Callable[[], "list[Path]"]
"""The trees of the environment, as they are now."""


def make_directory(path: Path) -> list[Path]:
    """Make a directory and its parents; on return those that this call made."""
    try:
        return fs.make_directories(path)
    except OSError as error:
        raise space.not_writable(path, error) from error


def look_for_journals(directories: Iterable[Path]) -> None:
    """Raise `Interrupted` where a change was left unfinished: nothing may be read or written before it is undone."""
    found = tuple(directory for directory in directories if _is_unfinished(directory))
    if found:
        raise Interrupted(found)


def _is_unfinished(directory: Path) -> bool:
    if not state_directory.has_journal(directory):
        return False
    from safe_pip.journal import recovery

    return bool(recovery.find(directory))


class Reading:
    """Reading what is installed: the commit lock shared; in its place, where there is none, the environment lock."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._without: list[Path] = []
        self._all: list[Path] = []

    def requests(self) -> Iterator[Request]:
        self._all = self._trees()
        self._without = [tree for tree in self._all if not state_directory.has_locks(tree)]
        for tree in self._all:
            if tree in self._without:
                yield environment_lock(tree, exclusive=False)
            else:
                yield commit_lock(tree, exclusive=False)

    def is_valid(self) -> bool:
        look_for_journals(self._all)
        return not any(state_directory.has_locks(tree) for tree in self._without)

    def directories(self) -> Iterable[Path]:
        return ()


class SharedUse:
    """Something that needs what is installed to stay as it is: the environment lock shared; mutexes of `sources`."""

    def __init__(self, trees: Trees, sources: Iterable[Path] = ()) -> None:
        self._trees = trees
        self._sources = tuple(resolved(sources))
        self._all: list[Path] = []

    def requests(self) -> Iterator[Request]:
        self._all = self._trees()
        for tree in self._all:
            yield environment_lock(tree, exclusive=False)
        for source in self._sources:
            make_directory(source)
            yield mutex(source)

    def is_valid(self) -> bool:
        look_for_journals(self._all)
        return True

    def directories(self) -> Iterable[Path]:
        return self._sources


class Recovering:
    """Undoing what a dead process left unfinished: the commit locks that its journal names, then its owner file.

    Who holds the owner file alone may touch what it owns; he keeps it until the journal is gone. `recovery` is loaded
    when there is something to recover, under a lock that keeps safe-pip itself as it is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unfinished: Unfinished | None = None

    def requests(self) -> Iterator[Request]:
        from safe_pip.journal import recovery

        self._unfinished = None
        for unfinished in recovery.find(self._directory):
            try:
                journal = recovery.read(unfinished)
            except FileNotFoundError:
                continue  # Somebody else has undone it.
            self._unfinished = unfinished
            for tree in map(Path, journal.trees):
                if tree.is_dir() and state_directory.exists(tree):
                    yield commit_lock(tree, exclusive=True)
            for directory in map(Path, journal.directories):
                if directory.is_dir():
                    yield shared_directory(directory)
            yield owner_lock(recovery.owner_file(unfinished), unfinished.home)
            return

    def is_valid(self) -> bool:
        if self._unfinished is not None:
            from safe_pip.journal import recovery

            with contextlib.suppress(FileNotFoundError):
                recovery.roll_back(self._unfinished)
        return True

    def directories(self) -> Iterable[Path]:
        return ()


class Locking:
    """One directory that is no environment: flock on the directory itself, in either mode."""

    def __init__(self, path: Path, *, exclusive: bool) -> None:
        (self._path,) = resolved([path])
        self._exclusive = exclusive

    def requests(self) -> Iterator[Request]:
        make_directory(self._path)
        yield Request(Rank.ENVIRONMENT, self._path, self._exclusive, self._path)

    def is_valid(self) -> bool:
        return True

    def directories(self) -> Iterable[Path]:
        return (self._path,)


class Making:
    """Making an environment in a directory: flock on the directory itself, which is made if it is missing."""

    def __init__(self, path: Path) -> None:
        (self._path,) = resolved([path])
        self._made: list[Path] = []

    def requests(self) -> Iterator[Request]:
        try:
            with space.unpacking(str(self._path)):
                self._made += fs.make_directories(self._path)
        except OSError as error:
            raise space.not_writable(self._path, error) from error
        yield Request(Rank.ENVIRONMENT, self._path, True, self._path)

    def is_valid(self) -> bool:
        return True

    def directories(self) -> Iterable[Path]:
        return (self._path,)

    def tidy(self) -> None:
        """After a failure, remove exactly the directories that were made, unless something is in them."""
        fs.remove_empty_directories(self._made)


class Changing:
    """A change of the target: its trees exclusively, the others' commit locks shared, the directories, uv's lock.

    `environment` and `commit` say which of the target's two locks are taken.
    """

    def __init__(
        self,
        target: Target,
        also: Iterable[Path] = (),
        *,
        others: Trees = list,
        environment: bool = True,
        commit: bool = True,
    ) -> None:
        self.trees = tuple(resolved((*target.trees, *also)))
        self._target = target
        self._others = Reading(lambda: [tree for tree in others() if tree not in self.trees])
        self._environment = environment
        self._commit = commit
        self._uv_lock: Path | None = None
        self._made: list[Path] = []

    def requests(self) -> Iterator[Request]:
        for tree in self.trees:
            self._made += make_directory(tree)
            state_directory.make(tree)
            if self._environment:
                yield environment_lock(tree, exclusive=True)
            if self._commit:
                yield commit_lock(tree, exclusive=True)
        if not self._commit:
            return
        yield from self._others.requests()
        for directory in resolved(self._target.directories):
            self._made += make_directory(directory)
            yield shared_directory(directory)
        self._uv_lock = self._found_uv_lock()
        if self._uv_lock is not None:
            yield uv_lock(self._uv_lock)

    def _found_uv_lock(self) -> Path | None:
        uv = self._target.uv_lock
        return Path(os.path.realpath(uv)) if uv is not None and os.path.isfile(uv) else None

    def is_valid(self) -> bool:
        look_for_journals(self.directories() if self._commit else self.trees)
        if not self._commit:
            return True
        # uv makes the file when it first works there, which may be while we wait for another lock.
        return self._found_uv_lock() == self._uv_lock and self._others.is_valid()

    def directories(self) -> Iterable[Path]:
        return (*self.trees, *resolved(self._target.directories))

    def tidy(self, holds: Callable[[flock.Identity], bool], *, failed: bool) -> None:
        """Remove what is not to stay: the state directories of litter, and after a failure the directories made.

        `holds` says which files this process has locked exclusively.
        """
        _tidy(self.trees, self._made, holds, litter=_litter(self._target), failed=failed)


class Opening:
    """Making a private tree in the home of a target: its commit lock shared, so that no sweeper is at work there."""

    def __init__(self, target: Target) -> None:
        self.trees = tuple(resolved(target.trees))
        self._litter = _litter(target)
        self._made: list[Path] = []

    def requests(self) -> Iterator[Request]:
        for tree in self.trees:
            self._made += make_directory(tree)
            state_directory.make(tree)
        yield commit_lock(self.trees[0], exclusive=False)

    def is_valid(self) -> bool:
        look_for_journals(self.trees)
        return True

    def directories(self) -> Iterable[Path]:
        return self.trees

    def tidy(self, holds: Callable[[flock.Identity], bool], *, failed: bool) -> None:
        """As for a change."""
        _tidy(self.trees, self._made, holds, litter=self._litter, failed=failed)


def _litter(target: Target) -> tuple[Path, ...]:
    """The trees in which no state directory is to stay."""
    return tuple(resolved(target.trees if target.litter else target.bare))


def _tidy(
    trees: Iterable[Path],
    made: list[Path],
    holds: Callable[[flock.Identity], bool],
    *,
    litter: Collection[Path],
    failed: bool,
) -> None:
    for tree in dict.fromkeys((*litter, *(tree for tree in trees if failed and tree in made))):
        remove_state_directory(tree, holds)
    if failed:
        fs.remove_empty_directories(made)


def remove_state_directory(tree: Path, holds: Callable[[flock.Identity], bool]) -> None:
    """Remove `.safe-pip` if both locks are ours, or can be taken without waiting; a reader may be using them.

    Of several who leave the last one removes it. So they look one after another (each would take the other, who only
    looks, for one who is at work, and none would remove it), and who has removed it looks again: somebody may have made
    another one, and left, and met our lock on the tree.
    """
    with contextlib.suppress(FileNotFoundError, UnusableEnvironment):
        while flock.supported and _is_removed(tree, holds):
            pass


def _is_removed(tree: Path, holds: Callable[[flock.Identity], bool]) -> bool:
    state = state_directory.path_of(tree)
    opened = [Descriptor(state)]
    try:
        # Taken by nothing else, and held until the others were tried.
        if not flock.wait_turn(opened[0], seconds=_TURN) or not opened[0].is_current():
            return False
        for path in (tree, state / state_directory.COMMIT):
            descriptor = Descriptor(path)
            opened.append(descriptor)
            if not holds(descriptor.identity) and not flock.try_lock(descriptor, exclusive=True):
                return False
            if not descriptor.is_current():
                return False
        return state_directory.remove(tree)
    finally:
        for descriptor in opened:
            descriptor.close()


def resolved(paths: Iterable[Path]) -> list[Path]:
    """Each path with no symbolic link in it, once."""
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in paths))
