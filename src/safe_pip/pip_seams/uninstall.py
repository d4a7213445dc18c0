"""`pip uninstall`: the question is asked with no lock held; its answer is validated under the locks.

The commit itself is still pip's own: it moves the files away in place, so both locks are held exclusively meanwhile.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from pip._internal.utils.logging import indent_log
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.errors import CommitFailed, StalePlan
from safe_pip.pip_seams.installed import Installed
from safe_pip.pip_seams.output import kept_back
from safe_pip.pip_seams.scheme import tree_of, uninstall_target
from safe_pip.pip_seams.seam import Seam
from safe_pip.transaction import Transaction

REMOVE = Seam("pip._internal.req.req_uninstall", "UninstallPathSet.remove", ("auto_confirm", "verbose"))
COMMIT = Seam("pip._internal.req.req_uninstall", "UninstallPathSet.commit", ("self",))
PROCEED = Seam("pip._internal.req.req_uninstall", "UninstallPathSet._allowed_to_proceed", ("verbose",))
SEAMS = (REMOVE, COMMIT, PROCEED)

_logger = logging.getLogger("pip._internal.req.req_uninstall")


class Uninstall:
    """One `pip uninstall` at work."""

    def __init__(self, transaction: Transaction, installed: Installed, answered: frozenset[str]) -> None:
        self.transaction = transaction
        self.installed = installed
        self.answered = set(answered)
        """The projects that the user has agreed to remove where nobody can be asked again, for the next attempt."""
        self._agreed: list[tuple[Any, bool]] = []

    def attach(self) -> None:
        """Collect what pip wants to remove; nothing is removed before `commit`."""
        for seam in SEAMS:
            seam.check()
        self._remove = REMOVE.replace(self._ask)
        self._commit = COMMIT.replace(lambda original, paths: None)

    def commit(self) -> None:
        """Remove what was agreed to, all of it under one locking.

        Raises `StalePlan` if one of the projects was replaced meanwhile; then nothing was removed.
        """
        if not self._agreed:
            return
        trees = [tree_of(paths._dist) for paths, _ in self._agreed]
        with kept_back() as kept, self.transaction.committing(uninstall_target(trees)) as now:
            kept.left_out = self._was_said
            changed = self.transaction.read_set.changed(now)
            projects = {canonicalize_name(paths._dist.raw_name) for paths, _ in self._agreed}
            stale = [project for project in changed if project in projects and now.identity(project)]
            if stale:
                raise StalePlan(tuple(stale))
            try:
                self._carry_out(set(changed))
            except OSError as error:
                raise _refused(error) from error

    def _carry_out(self, gone: set[str]) -> None:
        done = []
        try:
            for paths, _ in self._agreed:
                name = canonicalize_name(paths._dist.raw_name)
                if name in gone:
                    logging.getLogger("pip._internal.req.req_install").warning(
                        "Skipping %s as it is not installed.", name
                    )
                    continue
                self._remove(paths, auto_confirm=True, verbose=False)
                done.append(paths)
        except BaseException:
            for paths in reversed(done):
                paths.rollback()
            raise
        for paths in done:
            self._commit(paths)

    def _ask(self, original: Any, paths: Any, auto_confirm: bool = False, verbose: bool = False) -> None:
        name = canonicalize_name(paths._dist.raw_name)
        if not paths._paths or auto_confirm or name in self.answered:
            self._agreed.append((paths, False))
            return
        _logger.info("Uninstalling %s:", _described(paths))
        with indent_log():
            agreed = paths._allowed_to_proceed(verbose)
        if agreed:
            self._agreed.append((paths, True))
            if not sys.stdin.isatty():
                self.answered.add(name)

    def _was_said(self, record: logging.LogRecord) -> bool:
        asked = {f"Uninstalling {_described(paths)}:" for paths, asked in self._agreed if asked}
        return record.getMessage() in asked


def _described(paths: Any) -> str:
    return f"{paths._dist.raw_name}-{paths._dist.raw_version}"


def _refused(error: OSError) -> CommitFailed:
    where = f"`{error.filename}`" if error.filename else "the environment"
    return CommitFailed(f"{where} could not be removed: {error.strerror}")
