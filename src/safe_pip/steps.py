"""Which locks each kind of access to an environment needs, and what must be on the disk before they can be taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from . import fs, lock, state_directory
from .errors import RecoveryNeeded
from .lock import Descriptor
from .request import Rank, Request, commit_lock, environment_lock, mutex, shared_directory, uv_lock
from .target import Target

Trees = Callable[[], "list[Path]"]
"""The trees of the environment, as they are now."""


def make_directory(path: Path) -> list[Path]:
    """Make a directory and its parents; on return those that this call made."""
    try:
        return fs.make_directories(path)
    except OSError as error:
        raise state_directory.not_writable(path, error) from error


def refuse_journals(trees: Iterable[Path]) -> None:
    """Raise `RecoveryNeeded` where a change was left unfinished: nothing may be read or written before it is undone."""
    for tree in trees:
        journal = state_directory.journal(tree)
        if journal is not None:
            raise RecoveryNeeded(
                f"`{journal}` is the journal of an unfinished change, written by a newer safe-pip",
                hint="Run the `safe-pip doctor --repair` of that version",
            )


class Reading:
    """Reading what is installed: the commit lock shared; in its place, where there is none, the environment lock."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._without: list[Path] = []
        self._all: list[Path] = []

    def requests(self) -> Iterator[Request]:
        self._all = self._trees()
        self._without = [tree for tree in self._all if not state_directory.exists(tree)]
        for tree in self._all:
            if tree in self._without:
                yield environment_lock(tree, exclusive=False)
            else:
                yield commit_lock(tree, exclusive=False)

    def is_valid(self) -> bool:
        refuse_journals(self._all)
        return not any(state_directory.exists(tree) for tree in self._without)

    def directories(self) -> Iterable[Path]:
        return ()


class Keeping:
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
        refuse_journals(self._all)
        return True

    def directories(self) -> Iterable[Path]:
        return self._sources


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
        uv = self._target.uv_lock
        if uv is not None and os.path.isfile(uv):
            yield uv_lock(Path(os.path.realpath(uv)))

    def is_valid(self) -> bool:
        refuse_journals(self.trees)
        return not self._commit or self._others.is_valid()

    def directories(self) -> Iterable[Path]:
        return (*self.trees, *resolved(self._target.directories))

    def tidy(self, holds: Callable[[lock.Identity], bool], *, failed: bool) -> None:
        """Remove what is not to stay: the state directories of litter, and after a failure the directories made.

        `holds` says which files this process has locked exclusively.
        """
        made = set(self._made)
        for tree in self.trees:
            if self._target.litter or (failed and tree in made):
                _remove_state_directory(tree, holds)
        if failed:
            fs.remove_empty_directories(self._made)


def _remove_state_directory(tree: Path, holds: Callable[[lock.Identity], bool]) -> None:
    """Remove `.safe-pip` if both locks are ours, or can be taken without waiting; a reader may be using them."""
    opened: list[Descriptor] = []
    try:
        for path in (tree, state_directory.path_of(tree) / state_directory.COMMIT):
            descriptor = Descriptor(path)
            opened.append(descriptor)
            if not holds(descriptor.identity) and not lock.try_lock(descriptor, exclusive=True):
                return
            if not descriptor.is_current():
                return
        state_directory.remove(tree)
    except FileNotFoundError:
        return
    finally:
        for descriptor in opened:
            descriptor.close()


def resolved(paths: Iterable[Path]) -> list[Path]:
    """Each path with no symbolic link in it, once."""
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in paths))
