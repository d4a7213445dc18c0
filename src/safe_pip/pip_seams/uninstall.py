"""`pip uninstall`: the question is asked with no lock held; its answer is validated under the locks."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from typing import Any

from pip._internal.utils.logging import indent_log

from safe_pip.environment.snapshot import Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import CommitFailed, StalePlan, State
from safe_pip.launch import adoption
from safe_pip.pip_seams.installed import Installed
from safe_pip.pip_seams.output import KeptBack, kept_until_done
from safe_pip.pip_seams.removals import REMOVE, Removals, project_of
from safe_pip.pip_seams.scheme import tree_of, uninstall_target
from safe_pip.pip_seams.seam import Seam

PROCEED = Seam("pip._internal.req.req_uninstall", "UninstallPathSet._allowed_to_proceed", ("verbose",))
SEAMS = (PROCEED,)

_logger = logging.getLogger("pip._internal.req.req_uninstall")


class Uninstall:
    """One `pip uninstall` at work."""

    def __init__(self, transaction: Transaction, installed: Installed, answered: frozenset[str]) -> None:
        self.transaction = transaction
        self.installed = installed
        self.answered = set(answered)
        """The projects that the user has agreed to remove where nobody can be asked again, for the next attempt."""
        self.closing = ExitStack()
        """What is left to do when all has been said: deleting what was removed."""
        self._agreed: list[tuple[Any, bool]] = []
        self._gone: set[str] = set()
        self._removals = Removals()

    def attach(self) -> None:
        """Collect what pip wants to remove; nothing is removed before `commit`."""
        for seam in SEAMS:
            seam.check()
        self._list = REMOVE.check()
        self._removals.attach(self._ask)

    def commit(self) -> None:
        """Remove what was agreed to, all of it or nothing.

        Raises `StalePlan` if one of the projects was replaced meanwhile; then nothing was removed.
        """
        if not self._agreed:
            return
        target = uninstall_target(tree_of(paths._dist) for paths, _ in self._agreed)
        with ExitStack() as closing:
            change = closing.enter_context(self.transaction.staging(target))
            with kept_until_done(first=False) as kept:
                kept.left_out = self._was_said
                for paths, _ in self._agreed:
                    self._collect(paths, change)
                    kept.mark(project_of(paths))
                self.transaction.commit(change, self._validate)
            self._say(kept)
            self.transaction.noticed += self._removals.notices()
            adopted = filter(None, map(adoption.find, target.trees))
            self.transaction.noticed += [each.told() for each in adopted if not each.works]
            self.closing.push(closing.pop_all())

    def _collect(self, paths: Any, change: Any) -> None:
        try:
            self._list(paths, auto_confirm=True, verbose=False)
            self._removals.take(paths, change)
        except OSError as error:
            where = f"`{error.filename}`" if error.filename else "the environment"
            raise CommitFailed(f"{where} could not be read: {error.strerror}", state=State.UNCHANGED) from error

    def _validate(self, now: Snapshot) -> tuple[str, ...]:
        """More projects that are gone already; raises `StalePlan` for those that were replaced. Under the locks."""
        self._removals.check()
        changed = self.transaction.read_set.changed(now)
        projects = {project_of(paths) for paths, _ in self._agreed}
        stale = [project for project in changed if project in projects and now.identity(project)]
        if stale:
            raise StalePlan(tuple(stale))
        gone = projects.intersection(changed) - self._gone
        self._gone |= gone
        return tuple(sorted(gone))

    def _say(self, kept: KeptBack) -> None:
        for paths, _ in self._agreed:
            if project_of(paths) in self._gone:
                logging.getLogger("pip._internal.req.req_install").warning(
                    "Skipping %s as it is not installed.", project_of(paths)
                )
            else:
                kept.say(project_of(paths))

    def _ask(self, original: Any, paths: Any, auto_confirm: bool = False, verbose: bool = False) -> None:
        project = project_of(paths)
        if not paths._paths or auto_confirm or project in self.answered:
            self._agreed.append((paths, False))
            return
        _logger.info("Uninstalling %s:", _described(paths))
        with indent_log():
            agreed = paths._allowed_to_proceed(verbose)
        if agreed:
            self._agreed.append((paths, True))
            if not sys.stdin.isatty():
                self.answered.add(project)

    def _was_said(self, record: logging.LogRecord) -> bool:
        asked = {f"Uninstalling {_described(paths)}:" for paths, asked in self._agreed if asked}
        return record.getMessage() in asked


def _described(paths: Any) -> str:
    return f"{paths._dist.raw_name}-{paths._dist.raw_version}"
