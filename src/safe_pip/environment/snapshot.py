"""What is installed at one instant: the identity of every project, to find out later whether it has changed.

Nothing here knows pip. Names are those of the files that the PyPA specifications let an installer write
(https://packaging.python.org/en/latest/specifications/recording-installed-packages/) and of setuptools' older ones.
"""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from safe_pip.fs import readable_names
from safe_pip.records import RealPaths, canonical, project_of

_WHOLE = (".dist-info", ".egg-info")  # directories whose status tells that a file came or went
_SUFFIXES = (*_WHOLE, ".egg-link", ".egg")
_FILES = ("RECORD", "METADATA", "PKG-INFO", "direct_url.json")

Fingerprint = tuple[object, ...]
"""What stat(2) says of one project's metadata; equal fingerprints mean unchanged metadata."""


class Snapshot(NamedTuple):
    """The identity of every project in some directories; of one instant if it is taken under their commit locks."""

    projects: Mapping[str, tuple[Fingerprint, ...]] = MappingProxyType({})

    @classmethod
    def take(cls, directories: Iterable[str]) -> "Snapshot":
        """Read the directories; one that is missing or unreadable holds nothing."""
        return cls().taken_again(directories)

    def taken_again(self, directories: Iterable[str], exactly: Collection[str] | None = None) -> "Snapshot":
        """A new snapshot, at the cost of one lstat(2) for metadata whose directory is as it was in this one.

        Of the projects in `exactly`, if they are given, all files are looked at; of others only such a directory.
        """
        known = {each[0]: (project, each) for project, seen in self.projects.items() for each in seen}
        found: dict[str, list[Fingerprint]] = {}
        for directory in directories:
            for name in sorted(readable_names(directory)):
                path = os.path.join(directory, name)
                project, before = known.get(path, ("", ()))
                is_known = before and name.endswith(_WHOLE) and project not in (exactly or ())
                if not is_known or _status(path) != before[1:4]:
                    if not name.endswith(_SUFFIXES):
                        continue
                    project = _project(name)
                    is_short = exactly is not None and name.endswith(_WHOLE) and project not in exactly
                    before = (path, *_status(path)) if is_short else _fingerprint(path)
                found.setdefault(project, []).append(before)
        return Snapshot({project: tuple(fingerprints) for project, fingerprints in found.items()})

    def with_current(self, projects: Iterable[str]) -> "Snapshot":
        """This snapshot, with the files of these projects as they are now."""
        known = [project for project in projects if self.identity(project)]
        return Snapshot({**self.projects, **{project: tuple(self._now(project)) for project in known}})

    def identity(self, project: str) -> tuple[Fingerprint, ...]:
        """The identity of `project`, empty where it is not installed; `project` is a normalized name."""
        return self.projects.get(project, ())

    def is_current(self, project: str, own: Collection[str] = ()) -> bool:
        """Whether the metadata of `project` that the snapshot found, but for that in `own`, is unchanged now."""
        before, now = self.identity(project), tuple(self._now(project))
        return now == before or bool(own and _of_others(now, own) == _of_others(before, own))

    def _now(self, project: str) -> Iterator[Fingerprint]:
        return (_fingerprint(str(seen[0])) for seen in self.identity(project))

    def differences(self, other: "Snapshot") -> set[str]:
        """The real paths of the metadata that is not the same in another snapshot."""
        one, two = ({each for found in of.projects.values() for each in found} for of in (self, other))
        return {os.path.realpath(str(each[0])) for each in one ^ two}


class ReadSet:
    """The projects that a command has asked for, each with the identity that it was shown.

    `own` are the real paths of metadata that the command's own builds write: what changes there does not count.
    """

    def __init__(self, own: Collection[str] = ()) -> None:
        self.seen: dict[str, tuple[Fingerprint, ...]] = {}
        self._own = own

    def add(self, project: str, snapshot: Snapshot) -> None:
        """Note that `project` was asked for; the first note stays."""
        self.seen.setdefault(project, snapshot.identity(project))

    def changed(self, now: Snapshot) -> tuple[str, ...]:
        """The projects that are not what this command was shown, in alphabetical order."""
        own, found = self._own, [project for project, seen in self.seen.items() if now.identity(project) != seen]
        if own:
            found = [each for each in found if _of_others(now.identity(each), own) != _of_others(self.seen[each], own)]
        return tuple(sorted(found))


def metadata_of(projects: Collection[str], directories: Iterable[str]) -> list[tuple[str, str]]:
    """The metadata of these projects in the directories: each with its project."""
    found = ((directory, name) for directory in directories for name in sorted(readable_names(directory)))
    infos = ((_project(name), os.path.join(directory, name)) for directory, name in found if name.endswith(_SUFFIXES))
    return [each for each in infos if each[0] in projects]


def hides(
    staged: Mapping[Path, Collection[str]],
    looked_at: Iterable[Path],
    projects: Iterable[str],
    gone: Collection[str] = (),
) -> bool:
    """Whether one of `projects`, or a module with the name of a staged one, is in one of the trees `looked_at`.

    One of the two modules would not be found. `staged` is what each tree gets directly below it; `gone` are paths that
    do not count.
    """
    found = [(tree, name) for tree in dict.fromkeys(looked_at) for name in readable_names(tree)]
    found = [each for each in found if os.path.join(*each) not in gone] if gone else found
    if not {_project(name) for _, name in found if name.endswith(_SUFFIXES)}.isdisjoint(projects):
        return True
    modules = {name.partition(".")[0] for names in staged.values() for name in names}
    return any(name.partition(".")[0] in modules and name not in staged.get(tree, ()) for tree, name in found)


def listings(directories: Iterable[str]) -> list[tuple[int, ...]]:
    """What tells whether anything comes to or leaves these directories."""
    return [_status(os.path.realpath(each)) for each in directories]


def seen(directories: Iterable[str]) -> tuple[list[tuple[int, ...]], Snapshot]:
    """What tells whether anything is installed, changed or removed in these directories."""
    directories = tuple(directories)
    return listings(directories), Snapshot.take(directories)


def are_settled(found: Iterable[tuple[int, ...]]) -> bool:
    """Whether a change from now on shows in these `listings`: the steps of a clock may be as coarse as a second."""
    return all(not each or each[2] < time.time_ns() - 2_000_000_000 for each in found)


def _project(name: str) -> str:
    # An egg-link is named after the project alone, which may have a dash in its name.
    return canonical(name.removesuffix(".egg-link")) if name.endswith(".egg-link") else project_of(name)


def _of_others(fingerprints: Iterable[Fingerprint], own: Collection[str]) -> list[Fingerprint]:
    """The fingerprints without those of metadata in `own`; of an egg-link to such metadata, that of the link alone."""
    found = []
    for each in fingerprints:
        *link, place = (part for part in each if isinstance(part, str))
        if (is_other := os.path.realpath(place) not in own) or link:
            found.append(each if is_other else each[:4])
    return found


def _status(path: str) -> tuple[int, ...]:
    try:
        entry = os.stat(path, follow_symlinks=False)
    except OSError:
        return ()
    return entry.st_dev, entry.st_ino, entry.st_ctime_ns


def _fingerprint(path: str) -> Fingerprint:
    entry = _status(path)
    if not entry:
        return (path,)
    parts: list[object] = [path, *entry]
    folder = os.path.join(path, "EGG-INFO") if path.endswith(".egg") else path
    if path.endswith(".egg-link"):
        folder = _target(path)
        parts.append(folder)
    for file in _FILES:
        if file == "PKG-INFO" and parts[-1] is not None:  # METADATA stands for it: to look costs a call
            parts.append(None)
            continue
        try:
            found = os.stat(os.path.join(folder, file))
        except OSError:
            parts.append(None)
        else:
            parts.append((found.st_size, found.st_ino, found.st_ctime_ns))
    return tuple(parts)


def _target(egg_link: str) -> str:
    """Where an egg-link points to: its first line, which is the folder that holds the project's egg-info."""
    try:
        with open(egg_link, encoding="utf-8", errors="replace") as file:
            target = os.path.join(os.path.dirname(egg_link), file.readline().strip())
        infos = sorted(name for name in os.listdir(target) if name.endswith(".egg-info"))
    except OSError:
        return egg_link
    return os.path.join(target, infos[0]) if infos else target


class Ownership:
    """The files of all distributions in `trees` but those whose metadata directory is one of `without`."""

    def __init__(self, trees: Iterable[str], without: Iterable[str] = ()) -> None:
        self._trees = tuple(trees)
        self._without = frozenset(without)
        self._eggs: dict[str, str] = {}

    def owner(self, path: str) -> str | None:
        """The normalized name of the project that `path` (absolute, its parents resolved) belongs to by a RECORD."""
        found = self._owners.get(path)  # first: it finds the eggs
        return found or next((name for egg, name in self._eggs.items() if path.startswith(egg)), None)

    @cached_property
    def _owners(self) -> dict[str, str]:
        owners: dict[str, str] = {}
        paths = RealPaths()
        for tree in self._trees:
            for name in readable_names(tree):
                info = os.path.join(tree, name)
                if info in self._without:
                    continue
                if name.endswith((".egg", ".egg-info")):
                    self._eggs[os.path.join(info, "")] = project_of(name)
                if name.endswith((".dist-info", ".egg-info")):
                    owners.update(dict.fromkeys(paths.files_of(info), project_of(name)))
        return owners
