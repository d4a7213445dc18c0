"""`safe-pip unmerge`: remove what a manifest lists and what is still as the merge put it, in one transaction."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder, state_of, until_current
from safe_pip.commands.merge import Attempt, Owned, Transactions, is_closed, named
from safe_pip.commands.merge.manifest import Manifest
from safe_pip.commands.options import Namespace, tell, warn
from safe_pip.environment.change import Terms, sweep_target
from safe_pip.environment.environment import Prefix
from safe_pip.environment.snapshot import Ownership, Snapshot
from safe_pip.errors import StalePlan
from safe_pip.locking import state_directory
from safe_pip.merge.plan import ExactTree, Removal
from safe_pip.messages import count


class Unmerged(NamedTuple):
    """What was done; all paths are absolute; `docs/json.md` says what each list has."""

    prefix: Path
    removed: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    owned: tuple[Owned, ...] = ()
    elsewhere: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def main(options: Namespace, context: Context) -> int:
    path = Path(os.path.realpath(options.manifest))
    manifest = Manifest.read(path)
    is_trial: bool = options.dry_run
    unmerged = unmerge(manifest, prefix_finder(manifest.prefix), context.transaction, is_trial=is_trial)
    was = "would be" if is_trial else "was"
    told = [(kept, f"was changed since, and {was} kept") for kept in unmerged.changed]
    told += [(kept, f"belongs to `{owner}` by now, and {was} kept") for kept, owner in unmerged.owned]
    told += [(kept, f"leads through a symbolic link by now, and {was} left alone") for kept in unmerged.elsewhere]
    for kept, why in told:
        warn(options, f"`{kept}` {why}")
    try:
        if not is_trial:
            fs.unlink(path)
    except OSError as error:
        warn(options, f"`{path}` could not be deleted: {error.strerror}")
    if options.json:
        tell(json.dumps({**_document(unmerged), "dry_run": is_trial}, indent=2))
    elif not options.quiet:
        gone = (*unmerged.removed, *unmerged.directories) if options.verbose else ()
        what = f"{count(len(unmerged.removed), 'file')} and {count(len(unmerged.directories), 'directory')}"
        said = f"{'Would remove' if is_trial else 'Removed'} {what} from `{unmerged.prefix}`"
        tell("\n".join((*(f"removed: {each}" for each in gone), said)))
    return 0


def _document(unmerged: Unmerged) -> dict[str, Any]:
    kept = named(tuple((path, None) for path in unmerged.changed), "changed") + named(unmerged.owned, "owned")
    kept += named(tuple((path, None) for path in unmerged.elsewhere), "symbolic-link")
    return {
        "format": 1,
        "prefix": str(unmerged.prefix),
        **{name: getattr(unmerged, name) for name in ("removed", "directories", "gone", "left")},
        "kept": kept,
        "changed": bool(unmerged.removed or unmerged.directories),
    }


def unmerge(
    manifest: Manifest, find: Callable[[], Prefix], transactions: Transactions, *, is_trial: bool = False
) -> Unmerged:
    """Take away what the manifest lists; on return it is gone, on error nothing was changed."""

    def attempt() -> Unmerged:
        made = _Unmerge(find, transactions)
        return made.foresee(manifest) if is_trial else made.carry_out(manifest)

    return until_current(attempt)


class _Unmerge(Attempt):
    def carry_out(self, manifest: Manifest) -> Unmerged:
        prefix = self._prefix.path
        if not fs.is_directory(prefix):
            return Unmerged(prefix, gone=tuple(os.path.join(prefix, name) for name in manifest.entries))
        with self._tidying():
            found = self._sorted(manifest)
            made, read_only = (self._directories(names) for names in (manifest.made, manifest.read_only))
            if found.removed or made:
                closed = frozenset(path for path in (*made, *read_only) if is_closed(os.lstat(path)))
                self._commit(found.removed, made, closed)
            else:
                sweep_target(self._transaction.environment, self._prefix.target)
        # Directories that held a lock or a journal of this command until now.
        fs.remove_empty_directories(sorted(map(Path, made)))
        return found._replace(
            changed=tuple(filter(os.path.lexists, found.changed)),
            directories=tuple(path for path in made if not os.path.lexists(path)),
            left=tuple(path for path in made if os.path.lexists(path)),
        )

    def foresee(self, manifest: Manifest) -> Unmerged:
        """What would be done."""
        if not fs.is_directory(self._prefix.path):
            return self.carry_out(manifest)
        with self._looking():
            found, made = self._sorted(manifest), self._directories(manifest.made)
        gone = set(found.removed)
        for path in sorted(made, reverse=True):  # what is in a directory comes before it
            below = (os.path.join(path, name) for name in os.listdir(path))
            if all(each in gone or os.path.basename(each) in ("__pycache__", state_directory.NAME) for each in below):
                gone.add(path)
        directories = tuple(path for path in made if path in gone)
        return found._replace(directories=directories, left=tuple(path for path in made if path not in gone))

    def _directories(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(filter(_is_directory, (os.path.join(self._prefix.path, name) for name in names)))

    def _sorted(self, manifest: Manifest) -> Unmerged:
        """What is to be removed, and what is kept and why."""
        removed, changed, elsewhere, gone = list[str](), list[str](), list[str](), list[str]()
        for name, put in manifest.entries.items():
            path = os.path.join(self._prefix.path, name)
            if put.was_there:
                pass
            elif fs.look(path, follows=False) is None:
                gone.append(path)
            elif os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
                elsewhere.append(path)
            else:
                (removed if put.is_at(path) else changed).append(path)
        # A distribution goes if its RECORD is as it was put: else it came later, or is no more what it was.
        going = {os.path.dirname(path) for path in removed if path.endswith(".dist-info/RECORD")}
        ownership = Ownership(map(str, self._prefix.trees), going)
        owners = {path: ownership.owner(path) for path in removed}
        free = tuple(path for path in removed if owners[path] is None)
        owned = tuple((path, owner) for path, owner in owners.items() if owner is not None)
        return Unmerged(self._prefix.path, free, (), tuple(changed), owned, tuple(elsewhere), tuple(gone))

    def _commit(self, removed: tuple[str, ...], made: tuple[str, ...], closed: frozenset[str]) -> None:
        target = self._prefix.target
        before = {path: state_of(path) for path in removed}

        def validate(now: Snapshot) -> tuple[str, ...]:
            self._check_trees()
            if now != self._transaction.snapshot or any(state_of(path) != state for path, state in before.items()):
                raise StalePlan((), f"`{self._prefix.path}` changed while this command was at work")
            return ()

        with self._transaction.staging(target, Terms(exact=ExactTree({}, closed, frozenset(made)))) as change:
            change.allow(str(self._prefix.path))
            if removed:
                change.remove(Removal("the manifest", target.trees[0], frozenset(removed)))
            self._transaction.commit(change, validate)


def _is_directory(path: str) -> bool:
    return fs.is_directory(path) and os.path.realpath(path) == path
