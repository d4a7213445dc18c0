"""Who owns a file: the installed distributions' RECORDs, read when a plan asks for the first time."""

import os
from collections.abc import Collection, Iterable

from safe_pip.records import RealPaths, project_of


class Ownership:
    """The files of all distributions in `trees` but those whose metadata directory is one of `without`."""

    def __init__(self, trees: Iterable[str], without: Collection[str] = ()) -> None:
        self._trees = tuple(trees)
        self._without = frozenset(without)
        self._owners: dict[str, str] | None = None
        self._eggs: dict[str, str] = {}

    def owner(self, path: str) -> str | None:
        """The normalized name of the project that `path` (absolute, its parents resolved) belongs to.

        What cannot be read of a RECORD belongs to no project.
        """
        if self._owners is None:
            self._owners = {}
            self._read(self._owners)
        found = self._owners.get(path)
        if found is None and self._eggs:
            found = next((name for egg, name in self._eggs.items() if path.startswith(egg)), None)
        return found

    def _read(self, owners: dict[str, str]) -> None:
        paths = RealPaths()
        for tree in self._trees:
            try:
                names = os.listdir(tree)
            except OSError:
                continue
            for name in names:
                info = os.path.join(tree, name)
                if info in self._without:
                    continue
                if name.endswith((".egg", ".egg-info")):
                    self._eggs[os.path.join(info, "")] = project_of(name)
                if name.endswith((".dist-info", ".egg-info")):
                    owners.update(dict.fromkeys(paths.files_of(info), project_of(name)))
