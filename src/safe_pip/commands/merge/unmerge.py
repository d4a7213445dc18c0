"""`safe-pip unmerge`: remove what a manifest lists and what is still as the merge put it, in one transaction."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder
from safe_pip.commands.merge import tell
from safe_pip.commands.merge.manifest import Manifest
from safe_pip.commands.merge.transfer import Owned, Transactions, is_closed, recover, state_of, until_current
from safe_pip.commands.options import Namespace, Parser, text
from safe_pip.environment.access import Prefix
from safe_pip.environment.change import Terms, sweep_target
from safe_pip.environment.snapshot import Ownership, Snapshot
from safe_pip.errors import StalePlan
from safe_pip.merge.plan import ExactTree, Removal
from safe_pip.messages import say


class Unmerged(NamedTuple):
    """What was done; all paths are absolute.

    `changed` has other content, `owned` belongs to a distribution, `elsewhere` would be reached through a
    symbolic link: all of that was kept. `gone` was not there any more; `left` are directories with something else in.
    """

    prefix: Path
    removed: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    owned: tuple[Owned, ...] = ()
    elsewhere: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def describe(parser: Parser) -> None:
    """Add the verb's arguments to its parser."""
    parser.description = """\
Remove what `safe-pip merge --manifest MANIFEST` has put into a prefix, in one step that happens whole or not at all.
It removes each file that still has the content (or, a symbolic link, the target) that the manifest lists, with the
bytecode made of it, and the directories that the merge made and that are empty then. It keeps and names each file that
was changed since, that belongs to a distribution that came later, or that would be reached through a symbolic link.
What was there before the merge stays. At the end the manifest is deleted. The exit status is 0; 1 if MANIFEST is none.
"""
    parser.epilog = """\
The JSON document has:
  format       1; a later number means that the meaning of a key changed
  prefix       the prefix
  removed, directories
               lists of paths that are gone now: files and links, and directories
  changed, elsewhere
               lists of paths that were kept
  owned        a list of: path, owner (the distribution); kept as well
  gone         a list of paths that were gone already
  left         a list of directories with something else in them
"""
    parser.add_argument("manifest", type=text, metavar="MANIFEST", help="what `safe-pip merge --manifest` wrote")
    parser.add_json()


def main(options: Namespace, context: Context) -> int:
    """Run the verb; on return its exit status."""
    path = Path(os.path.realpath(options.manifest))
    manifest = Manifest.read(path)
    unmerged = unmerge(manifest, prefix_finder(manifest.prefix), context.transaction)
    for line in _warnings(unmerged):
        say(line)
    try:
        fs.unlink(path)
    except OSError as error:
        say(f"warning: `{path}` could not be deleted: {error.strerror}")
    if options.json:
        tell(json.dumps(_document(unmerged), indent=2))
    else:
        removed = f"Removed {len(unmerged.removed)} files and {len(unmerged.directories)} directories"
        tell(f"{removed} from `{unmerged.prefix}`")
    return 0


def _warnings(unmerged: Unmerged) -> Iterator[str]:
    for path in unmerged.changed:
        yield f"warning: `{path}` was changed since, and kept"
    for path, owner in unmerged.owned:
        yield f"warning: `{path}` belongs to `{owner}` by now, and was kept"
    for path in unmerged.elsewhere:
        yield f"warning: `{path}` leads through a symbolic link by now, and was left alone"


def _document(unmerged: Unmerged) -> dict[str, Any]:
    owned = [{"path": path, "owner": owner} for path, owner in unmerged.owned]
    return {"format": 1, **unmerged._asdict(), "prefix": str(unmerged.prefix), "owned": owned}


def unmerge(manifest: Manifest, find: Callable[[], Prefix], transactions: Transactions) -> Unmerged:
    """Take away what the manifest lists; on return it is gone, on error nothing was changed."""
    return until_current(lambda: _Unmerge(manifest, find, transactions).carry_out())


class _Unmerge:
    """One attempt."""

    def __init__(self, manifest: Manifest, find: Callable[[], Prefix], transactions: Transactions) -> None:
        self._manifest = manifest
        self._find = find
        self._prefix = find()
        self._transaction = transactions(self._prefix.environment)

    def carry_out(self) -> Unmerged:
        """Unmerge, or raise `StalePlan`."""
        if not self._prefix.path.is_dir():
            return Unmerged(self._prefix.path, gone=tuple(map(self._path, self._manifest.entries)))
        try:
            recover(self._transaction, self._find, self._prefix)
            found = self._sorted()
            made = tuple(path for path in map(self._path, self._manifest.made) if _is_directory(path))
            if found.removed or made:
                self._commit(found.removed, made)
            else:
                sweep_target(self._transaction.environment, self._prefix.target)
        finally:
            self._transaction.environment.tidy(self._prefix.stateless_trees)
        # Directories that held a lock or a journal of this command until now.
        fs.remove_empty_directories(sorted(map(Path, made)))
        return found._replace(
            changed=tuple(filter(os.path.lexists, found.changed)),
            directories=tuple(path for path in made if not os.path.lexists(path)),
            left=tuple(path for path in made if os.path.lexists(path)),
        )

    def _sorted(self) -> Unmerged:
        """What is to be removed, and what is kept and why."""
        removed, changed, elsewhere, gone = list[str](), list[str](), list[str](), list[str]()
        for name, put in self._manifest.entries.items():
            path = self._path(name)
            if put.was_there:
                continue
            if not os.path.lexists(path):
                gone.append(path)
            elif os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
                elsewhere.append(path)
            else:
                (removed if put.is_at(path) else changed).append(path)
        # A distribution goes if its RECORD is as it was put: else it came later, or is no more what it was.
        going = {os.path.dirname(path) for path in removed if path.endswith(".dist-info/RECORD")}
        ownership = Ownership(map(str, self._prefix.trees), going)
        owners = {path: ownership.owner(path) for path in removed}
        return Unmerged(
            self._prefix.path,
            tuple(path for path in removed if owners[path] is None),
            changed=tuple(changed),
            owned=tuple((path, owner) for path, owner in owners.items() if owner is not None),
            elsewhere=tuple(elsewhere),
            gone=tuple(gone),
        )

    def _commit(self, removed: tuple[str, ...], made: tuple[str, ...]) -> None:
        target = self._prefix.target
        before = {path: state_of(path) for path in removed}

        def validate(now: Snapshot) -> tuple[str, ...]:
            is_same = now == self._transaction.snapshot and self._find().trees == self._prefix.trees
            if not is_same or any(state_of(path) != state for path, state in before.items()):
                raise StalePlan((), f"`{self._prefix.path}` changed while this command was at work")
            return ()

        read_only = filter(_is_directory, map(self._path, self._manifest.read_only))
        exact = ExactTree({}, frozenset(filter(_is_opened, (*made, *read_only))), frozenset(made))
        with self._transaction.staging(target, Terms(exact=exact)) as change:
            change.allow(str(self._prefix.path))
            if removed:
                change.remove(Removal("the manifest", target.trees[0], frozenset(removed)))
            self._transaction.commit(change, validate)

    def _path(self, name: str) -> str:
        return os.path.join(self._prefix.path, name)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and os.path.realpath(path) == path


def _is_opened(path: str) -> bool:
    return is_closed(os.lstat(path))
