"""What is installed in some trees, as `importlib_metadata` reads it: texts under the lock, meaning afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safe_pip._vendor import importlib_metadata
from safe_pip.commands.doctor.checkup import Installed, RealPaths, named
from safe_pip.records import canonical

_FILES = ("METADATA", "PKG-INFO", "RECORD", "INSTALLER", "entry_points.txt", "direct_url.json")
_UNREADABLE = "\0"
_finder: Any = importlib_metadata.MetadataPathFinder
_context: Any = importlib_metadata.DistributionFinder.Context


class Texts(importlib_metadata.Distribution):
    """The metadata of one distribution, as it was when it was read."""

    def __init__(self, tree: str, found: Any) -> None:
        self.tree = tree
        self.info = str(found._path)
        self._texts = {name: _read(found, name) for name in _FILES}
        if self._texts["METADATA"] is self._texts["PKG-INFO"] is None and os.path.isfile(self.info):
            self._texts[""] = _read(found, "")  # an egg-info that is a file

    def read_text(self, filename: Any) -> str | None:
        """The text of a file; None if it is not there or is no text."""
        text = self._texts.get(str(filename))
        return None if text == _UNREADABLE else text

    def locate_file(self, path: Any) -> Any:
        """Where a file of it is."""
        return Path(self.tree, path)

    def meaning(self, paths: RealPaths) -> Installed:
        """What the texts say."""
        name, version = named(self.info)
        metadata = self.identity()
        rows, problem = None, ""
        text = self.read_text("RECORD")
        if text is not None:
            try:
                rows = paths.rows(self.tree, text)
            except (ValueError, OSError) as error:
                problem = str(error)
        elif self._texts["RECORD"] is not None:
            problem = "it cannot be read"
        is_same = metadata is not None and canonical(metadata[0]) == canonical(name)
        if metadata is not None and (is_same or not version):
            name, version = metadata
        return Installed(
            tree=self.tree,
            info=self.info,
            name=name,
            version=version,
            metadata=metadata,
            rows=rows,
            problem=problem,
            installer=(self.read_text("INSTALLER") or "").strip(),
            scripts=self._scripts(),
            origin=self.read_text("direct_url.json") or "",
        )

    def identity(self) -> tuple[str, str] | None:
        """Name and version in METADATA."""
        try:
            name, version = self.metadata["Name"], self.metadata["Version"]
        except (importlib_metadata.MetadataNotFound, KeyError, ValueError):
            return None
        return (str(name), str(version)) if name and version else None

    def _scripts(self) -> frozenset[str]:
        try:
            points = self.entry_points
        except ValueError:
            return frozenset()
        return frozenset(point.name for point in points if point.group in ("console_scripts", "gui_scripts"))


def _read(found: Any, name: str) -> str | None:
    try:
        text: str | None = found.read_text(name)
    except (OSError, ValueError):
        return _UNREADABLE
    if text is None and name and os.path.lexists(os.path.join(found._path, name)):
        return _UNREADABLE
    return text


def identity(info: Path) -> tuple[str, str] | None:
    """Name and version in a metadata directory, whatever it is called."""
    return Texts(str(info.parent), importlib_metadata.PathDistribution(info)).identity()


def take(trees: Iterable[Path]) -> list[Texts]:
    """The metadata of every distribution in `trees`; quick, for the caller keeps others from changing anything."""
    _finder.invalidate_caches()
    found = []
    for tree in map(str, trees):
        for each in _finder.find_distributions(_context(path=[tree])):
            if not each._path.name.startswith("~"):
                found.append(Texts(tree, each))
    return found
