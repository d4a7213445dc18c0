"""`safe-pip unmerge`: remove what a manifest lists and what is still as the merge put it, in one transaction."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder, until_current
from safe_pip.commands.merge.earlier import Attempt, Transactions, Unmerged, forget
from safe_pip.commands.merge.manifest import Manifest
from safe_pip.commands.options import Namespace, tell
from safe_pip.environment.change import Terms
from safe_pip.environment.environment import Prefix
from safe_pip.environment.snapshot import Snapshot
from safe_pip.merge.plan import ExactTree
from safe_pip.messages import count


def main(options: Namespace, context: Context) -> int:
    path = Path(os.path.realpath(options.manifest))
    is_trial: bool = options.dry_run
    unmerged = unmerge(path, prefix_finder(Manifest.read(path).prefix), context.transaction, is_trial=is_trial)
    unmerged.tell_kept(options)
    if options.json:
        document = {"format": 1, "prefix": str(unmerged.prefix), "removed": unmerged.removed, **unmerged.document()}
        is_changed = bool(unmerged.removed or unmerged.directories)
        tell(json.dumps({**document, "changed": is_changed, "dry_run": is_trial}, indent=2))
    elif not options.quiet:
        gone = (*unmerged.removed, *unmerged.directories) if options.verbose else ()
        what = f"{count(len(unmerged.removed), 'file')} and {count(len(unmerged.directories), 'directory')}"
        said = f"{'Would remove' if is_trial else 'Removed'} {what} from `{unmerged.prefix}`"
        tell("\n".join((*(f"removed: {each}" for each in gone), said)))
    return 0


def unmerge(
    manifest: Path, find: Callable[[], Prefix], transactions: Transactions, *, is_trial: bool = False
) -> Unmerged:
    """Take away what the manifest lists, and then the manifest; on error all is as it was.

    The change empties the manifest; it is deleted later. So it is there, and says what to recover, after every kill.
    """
    return until_current(lambda: _Unmerge(find, transactions).carry_out(manifest, is_trial=is_trial))


class _Unmerge(Attempt):
    def carry_out(self, manifest: Path, *, is_trial: bool) -> Unmerged:
        prefix = self._prefix.path
        if not fs.is_directory(prefix):
            found = Unmerged(prefix, gone=tuple(os.path.join(prefix, name) for name in Manifest.read(manifest).entries))
            if not is_trial:
                forget(manifest)
            return found
        with self._looking() if is_trial else self._tidying():
            self._read([manifest], [])
            found, made = self._sorted(), self._made()
            if is_trial:
                found = self._foreseen(found, found.removed)
                return found._replace(left=tuple(path for path in made if path not in found.directories))
            self._commit(manifest, found)
        found = found._replace(changed=tuple(filter(os.path.lexists, found.changed)))
        return self._with_left(found, made, [manifest])

    def _commit(self, manifest: Path, found: Unmerged) -> None:
        def validate(now: Snapshot) -> tuple[str, ...]:
            self._check_trees()
            self._check_old()
            if now != self._transaction.snapshot:
                raise self._stale()
            return ()

        made = frozenset(found.directories) - {str(self._prefix.path)}  # which has the locks, and goes afterwards
        exact = ExactTree({}, self._closed(), made, unread=[str(manifest)])
        with self._transaction.staging(self._prefix.target, Terms(exact=exact)) as change:
            change.allow(str(self._prefix.path))
            self._replace(change, {manifest: self._emptied(manifest)}, found.removed)
            self._transaction.commit(change, validate)
