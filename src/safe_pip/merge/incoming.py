"""What is staged for one place. Several names may lead there, through symbolic links."""

from collections.abc import Sequence
from typing import NamedTuple

from safe_pip.merge.plan import Link
from safe_pip.merge.tree import Entry


class Source(NamedTuple):
    """Something staged: the number of its part, its path in that part's stage, its absolute path, and what it is."""

    part: int
    path: str
    real: str
    entry: Entry
    above: "Source | None" = None

    def child(self, name: str, entry: Entry) -> "Source":
        """What is staged as `name` in this directory."""
        return Source(self.part, f"{self.path}/{name}" if self.path else name, f"{self.real}/{name}", entry, self)


def children(sources: Sequence[Source], *, is_exact: bool = False) -> dict[str, list[Source]]:
    """What is staged for each name in a directory; directories without a file count only with `is_exact`."""
    staged: dict[str, list[Source]] = {}
    for source in sources:
        for name, child in (source.entry.entries or {}).items():
            if is_exact or child.entries is None or has_files(child):
                staged.setdefault(name, []).append(source.child(name, child))
    return staged


def has_files(directory: Entry) -> bool:
    """Whether there is a file in a directory, at whatever depth."""
    return any(child.entries is None or has_files(child) for child in (directory.entries or {}).values())


def combine(given: Sequence[Source], links: list[Link]) -> Source | None:
    """What moves into place: the last file, or the first directory, to which `links` add the files of the others.

    None if there is nothing. Raises `ValueError` if a file and a directory have the same place.
    """
    if not given:
        return None
    first, *rest = given
    if not first.entry.is_directory:
        if any(other.entry.is_directory for other in rest):
            raise ValueError(first.path)
        return given[-1]
    for other in rest:
        first = first._replace(entry=_combine_directories(first.entry, other.entry, first.real, other.real, links))
    return first


def _combine_directories(first: Entry, other: Entry, real: str, other_real: str, links: list[Link]) -> Entry:
    if other.entries is None:
        raise ValueError(other_real)
    entries = dict(first.entries or {})
    for name, child in other.entries.items():
        mine, path, other_path = entries.get(name), f"{real}/{name}", f"{other_real}/{name}"
        if mine is not None and mine.is_directory != child.is_directory:
            raise ValueError(other_path)
        if child.is_directory:
            entries[name] = _combine_directories(mine or child._replace(entries={}), child, path, other_path, links)
        elif mine is None:
            entries[name] = child
            links.append(Link(other_path, path))
    return first._replace(entries=entries)
