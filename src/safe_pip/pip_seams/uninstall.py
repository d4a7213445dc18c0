"""What pip would uninstall: pip lists it and says so, and moves nothing. And `pip uninstall` itself.

`pip uninstall` asks its question with no lock held; the answer is validated under the locks.
"""

import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pip._internal.utils._log import VERBOSE
from pip._internal.utils.logging import indent_log
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip import fs
from safe_pip.environment.change import Change
from safe_pip.environment.snapshot import Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import CommitFailed, StalePlan, State
from safe_pip.launch import adoption
from safe_pip.merge.plan import Removal
from safe_pip.pip_seams.output import kept_until_done
from safe_pip.pip_seams.scheme import reachable, tree_of, uninstall_target
from safe_pip.pip_seams.seam import Seam

_MODULE = "pip._internal.req.req_uninstall"
REMOVE = Seam(_MODULE, "UninstallPathSet.remove", ("auto_confirm", "verbose"))
COMMIT = Seam(_MODULE, "UninstallPathSet.commit", ("self",))
ROLLBACK = Seam(_MODULE, "UninstallPathSet.rollback", ("self",))
STASH = Seam(_MODULE, "StashedUninstallPathSet.stash", ("path",))
UNLIST = Seam(_MODULE, "UninstallPthEntries.remove", ("self",))
PROCEED = Seam(_MODULE, "UninstallPathSet._allowed_to_proceed", ("verbose",))

_logger = logging.getLogger(_MODULE)
_requirement_logger = logging.getLogger("pip._internal.req.req_install")


class Removals:
    """Everything that one command removes."""

    def __init__(self) -> None:
        self.notices: list[str] = []  # for the user
        self._before: dict[str, bytes] = {}
        self._after: dict[str, bytes] = {}

    def attach(self, remove: Callable[..., Any]) -> Any:
        """Have pip call `remove(original, paths, ...)`; returns the original, which only lists what goes."""
        STASH.replace(lambda original, stash, path: path)
        UNLIST.replace(self._unlist)
        # There is nothing to roll back: until the change is committed nothing has happened.
        for seam in (COMMIT, ROLLBACK):
            seam.replace(lambda original, paths: None)
        return REMOVE.replace(remove)

    def take(self, paths: Any, change: Change) -> None:
        """Add to `change` what pip's `UninstallPathSet` has listed, without what lies outside the environment."""
        if not paths._paths:
            return
        edits = {file: self._after[file] for file in paths._pth if file in self._after}
        files = frozenset(paths._paths)
        if paths._dist.installed_with_dist_info:
            # Some RECORDs list directories too. Files of no distribution in these stay.
            files = frozenset(path for path in files if os.path.islink(path) or not os.path.isdir(path))
        removal = Removal(project_of(paths), tree_of(paths._dist), files, edits)
        directories = (*reachable(), str(removal.tree))
        for directory in directories:
            change.allow(directory)
        below = tuple(os.path.join(os.path.realpath(directory), "") for directory in directories)
        left_alone = sorted(path for path in removal.files if not path.startswith(below))
        self.notices += [f"`{path}` lies outside the environment and was left alone" for path in left_alone]
        change.remove(removal)

    def check(self) -> None:
        """Raise `StalePlan` if a file that loses some lines has changed; called under the locks."""
        for file, before in self._before.items():
            if _content(file) != before:
                raise StalePlan((), f"`{file}` changed while this command was at work")

    def _unlist(self, original: Any, entries: Any) -> None:
        """Remove lines of a `.pth` file in memory; one file may have lines of several distributions."""
        _logger.log(VERBOSE, "Removing pth entries from %s:", entries.file)
        if not fs.is_file(entries.file):
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


class Uninstall:
    """One `pip uninstall` at work."""

    def __init__(self, transaction: Transaction, answered: list[str]) -> None:
        self.transaction, self._answered = transaction, answered
        self._agreed: list[tuple[Any, bool]] = []
        self._gone: set[str] = set()
        self._removals = Removals()

    def attach(self) -> None:
        """Collect what pip wants to remove; nothing is removed before `commit`."""
        PROCEED.check()
        self._list = self._removals.attach(self._ask)

    def commit(self, later: ExitStack) -> None:
        """Remove what was agreed to, all of it or nothing. It is deleted when `later` is closed.

        Raises `StalePlan` if one of the projects was replaced meanwhile; then nothing was removed.
        """
        if not self._agreed:
            return
        target = uninstall_target(tree_of(paths._dist) for paths, _ in self._agreed)
        with ExitStack() as closing:
            change = closing.enter_context(self.transaction.staging(target))
            with kept_until_done(first=False) as kept:
                asked = {f"Uninstalling {_described(paths)}:" for paths, asked in self._agreed if asked}
                kept.left_out = lambda record: record.getMessage() in asked  # the question has said it
                for paths, _ in self._agreed:
                    try:
                        self._list(paths, auto_confirm=True, verbose=False)
                        self._removals.take(paths, change)
                    except OSError as error:
                        where = f"`{error.filename}`" if error.filename else "the environment"
                        message = f"{where} could not be read: {error.strerror}"
                        raise CommitFailed(message, state=State.UNCHANGED) from error
                    kept.mark(project_of(paths))
                self.transaction.commit(change, self._validate)
            for paths, _ in self._agreed:
                if (project := project_of(paths)) in self._gone:
                    _requirement_logger.warning("Skipping %s as it is not installed.", project)
                else:
                    kept.say(project)
            self.transaction.noticed += self._removals.notices
            adopted = filter(None, map(adoption.find, target.trees))
            self.transaction.noticed += [each.told() for each in adopted if not each.works]
            later.push(closing.pop_all())

    def _validate(self, now: Snapshot) -> tuple[str, ...]:
        """The projects that are gone by now; raises `StalePlan` for one that was replaced. Called under the locks."""
        self._removals.check()
        changed = self.transaction.read_set.changed(now)
        projects = {project_of(paths) for paths, _ in self._agreed}
        stale = [project for project in changed if project in projects and now.identity(project)]
        if stale:
            raise StalePlan(tuple(stale))
        gone = projects.intersection(changed) - self._gone
        self._gone |= gone
        return tuple(sorted(gone))

    def _ask(self, original: Any, paths: Any, auto_confirm: bool = False, verbose: bool = False) -> None:
        project = project_of(paths)
        if not paths._paths or auto_confirm or project in self._answered:
            self._agreed.append((paths, False))
            return
        _logger.info("Uninstalling %s:", _described(paths))
        with indent_log():
            agreed = paths._allowed_to_proceed(verbose)
        if agreed:
            self._agreed.append((paths, True))
            if not sys.stdin.isatty():
                self._answered.append(project)


def project_of(paths: Any) -> str:
    """The normalized name of the project that pip's `UninstallPathSet` is about."""
    return str(canonicalize_name(paths._dist.raw_name))


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        return b""


def _described(paths: Any) -> str:
    return f"{paths._dist.raw_name}-{paths._dist.raw_version}"
