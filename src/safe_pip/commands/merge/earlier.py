"""What earlier merges have put into a prefix, by their manifests: what of it may go now, and what belongs to others."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.commands.environments import state_of
from safe_pip.commands.merge.manifest import Manifest, Neighbours, Put
from safe_pip.commands.options import Namespace, warn
from safe_pip.environment.change import Change
from safe_pip.environment.environment import Prefix
from safe_pip.environment.snapshot import Ownership
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import StalePlan, Unmergeable
from safe_pip.fs.proc import user
from safe_pip.locking import state_directory
from safe_pip.merge.plan import Removal
from safe_pip.messages import say

Transactions = Callable[[Sequence[str]], Transaction]
"""Makes the transaction of an environment whose distributions lie in these directories."""
Owned = tuple[str, "str | None"]
"""A path and its owner: a distribution, or the manifest (an absolute path) that lists it; None if there is none."""


class Unmerged(NamedTuple):
    """What became of the files of a manifest; all paths are absolute; `docs/json.md` says what each list has."""

    prefix: Path
    removed: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    owned: tuple[Owned, ...] = ()
    elsewhere: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """What the JSON documents of `merge` and `unmerge` have of it."""
        kept = named(((path, None) for path in self.changed), "changed") + named(self.owned, "owned")
        kept += named(((path, None) for path in self.elsewhere), "symbolic-link")
        return {"directories": self.directories, "kept": kept, "gone": self.gone, "left": self.left}

    def tell_kept(self, options: Namespace) -> None:
        """Name on standard error what was kept, or would be, and why."""
        was = "would be" if options.dry_run else "was"
        told = [(kept, f"was changed since, and {was} kept") for kept in self.changed]
        told += [(kept, f"belongs to `{owner}` by now, and {was} kept") for kept, owner in self.owned]
        told += [(kept, f"leads through a symbolic link by now, and {was} left alone") for kept in self.elsewhere]
        for kept, why in told:
            warn(options, f"`{kept}` {why}")


def named(found: Iterable[Owned], reason: str = "") -> list[dict[str, str | None]]:
    """Paths with their owners, for the JSON document; if they are kept, with the reason."""
    more = {"reason": reason} if reason else {}
    return [
        {"path": path, "owner": None if is_manifest else owner, "manifest": owner if is_manifest else None, **more}
        for path, owner, is_manifest in ((path, owner, os.path.isabs(owner or "")) for path, owner in found)
    ]


class Attempt:
    """One attempt to change the prefix that `find` finds, and what manifests list there."""

    def __init__(self, find: Callable[[], Prefix], transactions: Transactions) -> None:
        self._find = find
        self._prefix = find()
        self._transaction = transactions(self._prefix.environment)
        self._old: dict[Path, Manifest] = {}
        self._neighbours = Neighbours("", ())
        self._before: dict[str, tuple[int, ...] | None] = {}  # the states of manifests, and of files that may go
        self._claims: dict[tuple[str, Put | None], bool] = {}  # whether a neighbour lists what may go, too

    @contextmanager
    def _tidying(self) -> Iterator[None]:
        """Take the snapshot, which undoes what a killed command left, perhaps a tree (`StalePlan`); tidy at the end."""
        try:
            with self._looking():
                yield
        finally:
            self._transaction.environment.tidy(self._prefix.stateless_trees)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        self._transaction.take_snapshot(lambda: None)
        self._check_trees()
        yield

    def _check_trees(self) -> None:
        if self._find().trees != self._prefix.trees:
            raise self._stale()

    def _stale(self) -> StalePlan:
        return StalePlan((), f"`{self._prefix.path}` changed while this command was at work")

    def _read(self, manifests: Collection[Path], written: Collection[Path]) -> None:
        """Read the manifests whose files may go, and look at those beside them, and beside those to be written."""
        for path in {*manifests, *written}:
            self._before[str(path)] = state_of(str(path))
        for path, old in ((path, Manifest.read(path)) for path in manifests):
            if os.path.realpath(old.prefix) == str(self._prefix.path):
                self._old[path] = old
            elif fs.is_directory(old.prefix):  # else that was moved or removed, with all that is listed
                raise Unmergeable(f"`{path}` is the manifest of a merge into `{old.prefix}`")
        self._neighbours = Neighbours(str(self._prefix.path), {*manifests, *written})

    def _sorted(self, staying: Collection[str] = (), going: Collection[str] = (), *, links: bool = False) -> Unmerged:
        """What the manifests list, `staying` apart: what may go, and what is kept and why. With `links` those alone.

        `going` has the metadata directories of distributions that go.
        """
        prefix = str(self._prefix.path)
        listed, changed, elsewhere, gone = dict[str, str | None](), list[str](), list[str](), list[str]()
        for name, put in ((name, put) for old in self._old.values() for name, put in old.entries.items()):
            path = os.path.join(prefix, name)
            if put.was_there or path in staying or (links and not put.target):
                continue
            before = state_of(path)
            if fs.look(path, follows=False) is None:
                gone.append(path)
            elif os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
                elsewhere.append(path)
            elif put.is_at(path):
                listed[path], self._before[path] = self._claimant(name, put), before
            else:
                changed.append(path)
        # A distribution goes if its RECORD is as it was put: else it came later, or is no more what it was.
        infos = {os.path.dirname(path) for path in listed if path.endswith(".dist-info/RECORD")}
        ownership = Ownership(map(str, self._prefix.trees), {*infos, *going})
        owners = {path: ownership.owner(path) or claimant for path, claimant in listed.items()}
        return Unmerged(
            self._prefix.path,
            tuple(path for path, owner in owners.items() if owner is None),
            tuple(path for path in self._made() if path not in staying and self._is_free(path)),
            tuple(path for path in changed if path not in listed),
            tuple((path, owner) for path, owner in owners.items() if owner is not None),
            tuple(elsewhere),
            tuple(gone),
        )

    def _made(self) -> list[str]:
        """The directories that merges with the old manifests have made, and that are there."""
        names = dict.fromkeys(name for old in self._old.values() for name in old.made)
        return [*filter(_is_real_directory, (os.path.normpath(self._prefix.path / name) for name in names))]

    def _foreseen(self, found: Unmerged, going: Iterable[str]) -> Unmerged:
        """The same, with the directories that will be empty once the files `going` are gone, and those that will not.

        A cache of bytecode, and what is safe-pip's own, is not counted.
        """
        gone = {*going}
        for path in sorted(found.directories, reverse=True):  # what is in a directory comes before it
            names = (name for name in fs.names(path) if name not in ("__pycache__", state_directory.NAME))
            if all(os.path.join(path, name) in gone for name in names):
                gone.add(path)
        left = tuple(path for path in found.directories if path not in gone)
        return found._replace(directories=tuple(path for path in found.directories if path in gone), left=left)

    def _is_free(self, directory: str) -> bool:
        return self._claimant(os.path.relpath(directory, self._prefix.path)) is None

    def _claimant(self, name: str, put: Put | None = None) -> str | None:
        """The neighbour that lists a file, or a directory, as well."""
        found = self._neighbours.owner(name, put) if put is not None else self._neighbours.maker(name)
        self._claims[name, put] = found is not None
        return found

    def _emptied(self, manifest: Path) -> bytes:
        """What is left of it until it is deleted: the directories, the last of which may have to be removed then."""
        return replace(self._old.get(manifest, Manifest(str(self._prefix.path), {})), entries={}).encode()

    def _closed(self) -> frozenset[str]:
        """The read-only directories of this user that what goes may be in."""
        found = (os.path.join(self._prefix.path, name) for old in self._old.values() for name in old.read_only)
        real = (*filter(_is_real_directory, found), *self._made())
        return frozenset(path for path in real if is_closed(os.lstat(path)))

    def _check_old(self) -> None:
        """Raise `StalePlan` if a manifest or a file that goes, or what neighbours list of it, has changed."""
        is_stale = any(state_of(path) != state for path, state in self._before.items())
        if not is_stale and self._neighbours.look():
            before = dict(self._claims)
            is_stale = any((self._claimant(*each) is not None) != was for each, was in before.items())
        if is_stale:
            raise self._stale()

    def _replace(self, change: Change, manifests: Mapping[Path, bytes], files: Iterable[str] = ()) -> None:
        """Have manifests replaced, and files of the old ones removed, by the change."""
        for path, content in manifests.items():
            change.put(str(path), content)
        if going := frozenset((*map(str, manifests), *files)):
            change.remove(Removal("the manifest", self._prefix.target.trees[0], going))

    def _with_left(self, found: Unmerged, made: Sequence[str], manifests: Iterable[Path]) -> Unmerged:
        """Remove the directories `made` that are empty now, and then the manifests; say which of them are left.

        Such a directory held a lock or a journal. Of several commands that leave at once, the last one removes it.
        """
        for each in (*manifests, None):
            self._neighbours.look()
            fs.remove_empty_directories(sorted(Path(path) for path in made if self._is_free(path)))
            if each is not None:
                forget(each)
        there = tuple(filter(os.path.lexists, made))
        return found._replace(directories=tuple(path for path in made if path not in there), left=there)


def forget(manifest: Path) -> None:
    """Delete a manifest that lists nothing any more."""
    try:
        fs.unlink(manifest)
    except OSError as error:
        say(f"warning: `{manifest}` could not be deleted: {error.strerror}")


def is_closed(status: os.stat_result) -> bool:
    """Whether it is a read-only directory of this user, and this user is not root."""
    return user() == status.st_uid != 0 and not status.st_mode & 0o200


def _is_real_directory(path: str) -> bool:
    return fs.is_directory(path) and os.path.realpath(path) == path
