"""Who owns a file: the installed distributions' RECORDs, read when it matters.

https://packaging.python.org/en/latest/specifications/recording-installed-packages/
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable

from safe_pip.records import canonical


class Ownership:
    """The files of all distributions in `trees` but those whose metadata directory is one of `without`."""

    def __init__(self, trees: Iterable[str], without: Collection[str] = ()) -> None:
        self._trees = tuple(trees)
        self._without = frozenset(without)
        self._owners: dict[str, str] | None = None
        self._eggs: dict[str, str] = {}
        self._parents: dict[str, str] = {}

    def owner(self, path: str) -> str | None:
        """The normalized name of the project that `path` (absolute, its parents resolved) belongs to."""
        if self._owners is None:
            self._owners = {}
            for tree in self._trees:
                self._read(tree, self._owners)
        found = self._owners.get(path)
        if found is None and self._eggs:
            found = next((name for egg, name in self._eggs.items() if path.startswith(egg)), None)
        return found

    def _read(self, tree: str, owners: dict[str, str]) -> None:
        try:
            names = os.listdir(tree)
        except OSError:
            return
        for name in names:
            stem, suffix = os.path.splitext(name)
            path = os.path.join(tree, name)
            if path in self._without:
                continue
            project = canonical(stem.partition("-")[0])
            if suffix == ".dist-info":
                self._read_rows(tree, os.path.join(path, "RECORD"), project, owners)
            elif suffix == ".egg":
                self._eggs[os.path.join(path, "")] = project
            elif suffix == ".egg-info":
                self._eggs[os.path.join(path, "")] = project
                self._read_lines(path, os.path.join(path, "installed-files.txt"), project, owners)

    def _read_rows(self, tree: str, record: str, project: str, owners: dict[str, str]) -> None:
        try:
            with open(record, encoding="utf-8", errors="surrogateescape", newline="") as file:
                for row in csv.reader(file):
                    if row:
                        owners[self._resolved(tree, row[0])] = project
        except (OSError, csv.Error):
            return  # A damaged distribution owns what can be read of it.

    def _read_lines(self, folder: str, listing: str, project: str, owners: dict[str, str]) -> None:
        try:
            with open(listing, encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    owners[self._resolved(folder, line.rstrip("\r\n"))] = project
        except OSError:
            return

    def _resolved(self, base: str, name: str) -> str:
        """The path with its parent resolved: what is installed through a symbolic link lies where it leads to."""
        parent, _, last = os.path.normpath(os.path.join(base, name)).rpartition(os.sep)
        real = self._parents.get(parent)
        if real is None:
            real = self._parents[parent] = os.path.realpath(parent)
        return os.path.join(real, last)
