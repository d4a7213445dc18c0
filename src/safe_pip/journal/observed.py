"""What is at the places of an operation, and whether another program had a hand in it."""

import os
import stat
from typing import NamedTuple

from safe_pip.journal.directories import Location, OpenDirectories, walk
from safe_pip.locking.state_directory import LOCKS, NAME
from safe_pip.merge.plan import Kind, Operation, Seen


class Observed(NamedTuple):
    """What is at the three places of an operation."""

    live: Seen | None = None
    staged: Seen | None = None
    trash: Seen | None = None
    is_marked: bool = False
    """Whether the directory at `live` carries the marker, so that it is the new one."""
    is_staged_marked: bool = False
    is_changed: bool = False
    """Whether anybody else has written in the new directory since it came to `live`."""
    is_reachable: bool = True
    """False: there is something else than a directory above `live`."""


def look(places: OpenDirectories, operation: Operation, since: os.stat_result | None = None) -> Observed:
    """What is at the places of this operation; `since` is the journal's status: who wrote later is noticed."""
    sight = Observed()
    if operation.staged:
        spot = places.staged(operation)
        sight = sight._replace(staged=_seen(spot.status()), is_staged_marked=places.is_marked(spot))
    if operation.trash:
        sight = sight._replace(trash=_seen(places.trash(operation).status()))
    try:
        live = places.live(operation)
    except NotADirectoryError:
        return sight._replace(is_reachable=False)
    marked = places.is_marked(live)
    changed = marked and since is not None and _is_changed(places, live, since, operation)
    return sight._replace(live=_seen(live.status()), is_marked=marked, is_changed=changed)


def is_same_file(directory: Location, path: str, other: os.stat_result) -> bool:
    """Whether what is at `path` below the directory at a spot is another link to the same file."""
    above, _, name = f"{directory.name}/{path}".rpartition("/")
    try:
        with directory.parent.child(above) as opened:
            return os.path.samestat(opened.stat(name), other)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_changed(places: OpenDirectories, live: Location, since: os.stat_result, operation: Operation) -> bool:
    """Whether another program wrote in a new directory since the journal was written, caches of importers apart.

    Both times of a file have to be later: a copied environment has new times of change, and what is staged may have
    been given any time of modification. A file that the old directory holds as well is lost to nobody.
    """
    with live.parent.child(live.name) as new:
        if live.name.endswith(".dist-info") and not new.exists("METADATA"):
            return True  # uninstalled: what is left is our marker
        changed = max(since.st_ctime_ns, new.stat(places.marker).st_ctime_ns)
        old = places.staged(operation) if operation.kind is Kind.EXCHANGE else places.trash(operation)
        return any(
            found.st_mtime_ns > since.st_mtime_ns
            and found.st_ctime_ns > changed
            and "__pycache__" not in path.split("/")
            and not _is_lock(path)
            and not (found.st_nlink > 1 and old.name and is_same_file(old, path, found))
            for path, found in walk(new)
        )


def _is_lock(path: str) -> bool:
    """Whether it is a lock file of a tree: made by who wanted its lock, before he found the journal."""
    return os.path.basename(os.path.dirname(path)) == NAME and os.path.basename(path) in LOCKS


def _seen(found: os.stat_result | None) -> Seen | None:
    if found is None:
        return None
    if stat.S_ISDIR(found.st_mode):
        return Seen(found.st_mode, 0, 0)
    return Seen(found.st_mode, found.st_size, found.st_mtime_ns)
