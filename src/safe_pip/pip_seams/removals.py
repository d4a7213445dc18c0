"""What pip would uninstall: it lists and tells everything as ever, and moves nothing."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pip._internal.utils._log import VERBOSE
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.environment.change import Change
from safe_pip.errors import StalePlan
from safe_pip.merge.plan import Removal
from safe_pip.pip_seams.scheme import reachable, tree_of
from safe_pip.pip_seams.seam import Seam

_MODULE = "pip._internal.req.req_uninstall"
REMOVE = Seam(_MODULE, "UninstallPathSet.remove", ("auto_confirm", "verbose"))
COMMIT = Seam(_MODULE, "UninstallPathSet.commit", ("self",))
ROLLBACK = Seam(_MODULE, "UninstallPathSet.rollback", ("self",))
STASH = Seam(_MODULE, "StashedUninstallPathSet.stash", ("path",))
UNLIST = Seam(_MODULE, "UninstallPthEntries.remove", ("self",))
SEAMS = (REMOVE, COMMIT, ROLLBACK, STASH, UNLIST)

_logger = logging.getLogger(_MODULE)


class Removals:
    """Everything that one command wants to take away."""

    def __init__(self) -> None:
        self._left_alone: list[str] = []
        self._before: dict[str, bytes] = {}
        self._after: dict[str, bytes] = {}

    def attach(self, remove: Callable[..., Any]) -> None:
        """Have pip call `remove(original, paths, ...)`, whose original lists what goes; nothing is touched."""
        for seam in SEAMS:
            seam.check()
        STASH.replace(lambda original, stash, path: path)
        UNLIST.replace(self._unlist)
        # There is nothing to take back either: until the change is committed nothing has happened.
        for seam in (COMMIT, ROLLBACK):
            seam.replace(lambda original, paths: None)
        REMOVE.replace(remove)

    def take(self, paths: Any, change: Change) -> None:
        """Add to `change` what pip's `UninstallPathSet` would have taken away; to be called when it has told so.

        What it refuses, because it lies outside the environment, is left alone.
        """
        if not paths._paths:
            return
        edits = {file: self._after[file] for file in paths._pth if file in self._after}
        removal = Removal(project_of(paths), tree_of(paths._dist), frozenset(paths._paths), edits)
        directories = (*reachable(), str(removal.tree))
        for directory in directories:
            change.allow(directory)
        below = tuple(os.path.join(os.path.realpath(directory), "") for directory in directories)
        self._left_alone += sorted(path for path in removal.files if not path.startswith(below))
        change.remove(removal)

    def check(self) -> None:
        """Raise `StalePlan` if a file that loses some lines has others by now; to be called under the locks."""
        for file, before in self._before.items():
            if _content(file) != before:
                raise StalePlan((), f"`{file}` changed while this command was at work")

    def notices(self) -> list[str]:
        """What the user is to be told of the removal."""
        return [f"`{path}` lies outside the environment and was left alone" for path in self._left_alone]

    def _unlist(self, original: Any, entries: Any) -> None:
        """Take lines off a `.pth` file in memory; two distributions may each have theirs in one file."""
        _logger.log(VERBOSE, "Removing pth entries from %s:", entries.file)
        if not os.path.isfile(entries.file):
            _logger.warning("Cannot remove entries from nonexistent file %s", entries.file)
            return
        if entries.file not in self._before:
            self._before[entries.file] = self._after[entries.file] = _content(entries.file)
        lines = io.BytesIO(self._after[entries.file]).readlines()
        ending = b"\r\n" if any(line.endswith(b"\r\n") for line in lines) else b"\n"
        if lines and not lines[-1].endswith(ending):
            lines[-1] += ending
        for entry in sorted(entries.entries):
            _logger.log(VERBOSE, "Removing entry: %s", entry)
            if (line := entry.encode() + ending) in lines:
                lines.remove(line)
        self._after[entries.file] = b"".join(lines)


def project_of(paths: Any) -> str:
    """The normalized name of the project that pip's `UninstallPathSet` is about."""
    return str(canonicalize_name(paths._dist.raw_name))


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        return b""
