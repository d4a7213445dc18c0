"""`--target`: what pip would move into the directory at the end, entry by entry, is committed with the rest."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pip._internal.locations import get_scheme

from safe_pip import fs
from safe_pip.environment.change import Change
from safe_pip.environment.snapshot import Snapshot
from safe_pip.errors import StalePlan
from safe_pip.merge.plan import Removal
from safe_pip.pip_seams.wheels import is_importable
from safe_pip.records import listed

_HOME = ".safe-pip-home"
_EXISTS = "Target directory %s already exists. Specify --upgrade to force replacement."
_IS_LINK = (
    "Target directory %s already exists and is a link. pip will not automatically replace links, "
    "please remove if replacement is desired."
)


class TargetDirectory:
    """The directory that `--target` names, as it is now and as it is to be.

    pip's rules, for each entry of its library and data directories: what exists stays as it is, or with `--upgrade` is
    replaced whole; a symbolic link always stays. One rule is ours: a project that is there in another version is
    replaced, or stays, as a whole. pip would leave the metadata of both.
    """

    def __init__(self, directory: str, change: Change, *, upgrade: bool) -> None:
        self.home = os.path.join(change.root, _HOME)
        """Where pip is to install, as it would into a home directory; it lies in the stage."""
        self._directory = directory
        self._tree = os.path.realpath(directory)
        self._change = change
        self._upgrade = upgrade
        self._warnings: list[tuple[str, str]] = []
        self._seen: dict[str, bool] = {}
        self._removals: defaultdict[str, set[str]] = defaultdict(set)
        self._moved: set[str] = set()
        self._stayed: set[str] = set()
        change.mirror(directory)

    def arrange(self, staged: dict[str, str]) -> dict[str, str]:
        """Put what pip has installed into `home` in its place; on return the RECORDs that are staged there.

        `home` is gone then, with what may not replace anything.
        """
        self._projects = {*staged}
        self._identities = self._identify()
        infos = {project: os.path.basename(os.path.dirname(record)) for project, record in staged.items()}
        old = {project: self._metadata(project) for project in self._projects}
        keeping = {
            project
            for project, found in old.items()
            if not self._upgrade and any(os.path.basename(path) != infos[project] for path in found)
        }
        owners: defaultdict[str, set[str]] = defaultdict(set)
        """For each entry of the directory, the projects that install something in it."""
        for project, record in staged.items():
            for row in listed(record):
                owners[_below(row).split(os.sep)[0]].add(project)
        scheme: Any = get_scheme("", home=self.home)
        sources = [each for each in dict.fromkeys((scheme.purelib, scheme.platlib, scheme.data)) if os.path.isdir(each)]
        for source in sources:
            for name in os.listdir(source):
                if not any(each.startswith(os.path.join(source, name)) for each in sources):
                    self._place(source, name, owners[name], keeping)
        fs.remove_tree(Path(self.home))
        for project, found in old.items():
            if project not in keeping and (self._upgrade or infos[project] in self._moved):
                self._removals[project].update(path for info in found for path in self._files(info))
        for project, files in self._removals.items():
            if files:
                self._change.remove(Removal(project, Path(self._tree), frozenset(files)))
        self._warnings += [(_EXISTS, old[project][0]) for project in sorted(keeping)]
        lib_dir = self._change.staged(self._directory)
        return {
            project: os.path.join(lib_dir, info, "RECORD") for project, info in infos.items() if info in self._moved
        }

    def top_level(self) -> set[str]:
        """What is staged directly in the directory, but for metadata and bytecode."""
        return set(filter(is_importable, self._moved))

    def check(self) -> None:
        """Raise `StalePlan` if the directory has changed since `arrange`; called under the locks."""
        changed = {name for name, was in self._seen.items() if self._occupied(name) != was}
        if changed or self._identify() != self._identities:
            raise StalePlan((), f"`{self._directory}` changed while this command was at work")

    def say(self) -> None:
        """Warn, as pip does, of what stayed."""
        logger = logging.getLogger("pip._internal.commands.install")
        for words, path in self._warnings:
            logger.warning(words, path)

    def _place(self, source: str, name: str, owners: set[str], keeping: set[str]) -> None:
        live = os.path.join(self._directory, name)
        exists = self._seen[name] = self._occupied(name)
        if (exists or name in self._moved) and not self._upgrade:
            self._warnings.append((_EXISTS, live))
            return
        if os.path.islink(live):
            self._warnings.append((_IS_LINK, live))
            self._stayed.add(name)
            return
        if owners and owners <= keeping:
            return
        staged = Path(self._change.staged(live))
        if name in self._moved:
            fs.remove_tree(staged)
            fs.unlink(staged)
        if exists and name != "__pycache__":  # bytecode stays with its source
            self._removals[min(owners or self._projects)].add(os.path.join(self._tree, name))
        fs.rename_path(Path(source, name), staged)
        self._moved.add(name)

    def _occupied(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._directory, name))

    def _identify(self) -> dict[str, Any]:
        now = Snapshot.take([self._tree])
        return {project: now.identity(project) for project in self._projects}

    def _metadata(self, project: str) -> list[str]:
        """The dist-info directories of a project that are there."""
        found = (str(fingerprint[0]) for fingerprint in self._identities[project])
        return [path for path in found if path.endswith(".dist-info")]

    def _files(self, info: str) -> Iterator[str]:
        """What the RECORD of an installed distribution lists, as far as it lies in the directory."""
        for row in listed(os.path.join(info, "RECORD")):
            below = _below(row)
            parent = os.path.realpath(os.path.join(self._tree, os.path.dirname(below)))
            path = os.path.join(parent, os.path.basename(below))
            stayed = below.split(os.sep)[0] in self._stayed
            if below and not stayed and os.path.lexists(path) and path.startswith(os.path.join(self._tree, "")):
                yield path


def _below(row: str) -> str:
    """A RECORD's row as a path below the directory.

    pip writes rows relative to `lib/python` of the home directory that it installed into; others, as they are.
    """
    path = os.path.normpath(row).removeprefix(os.path.join(os.pardir, os.pardir, ""))
    return "" if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir else path
