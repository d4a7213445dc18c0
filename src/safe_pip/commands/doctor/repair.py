"""Repairing what was found, by the same transactions as every other command's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safe_pip.commands.activity import State
from safe_pip.commands.doctor import remedy
from safe_pip.commands.doctor.checkup import Finding, Installed, Kind
from safe_pip.commands.doctor.examination import Report, examine, found_of
from safe_pip.commands.doctor.mending import Mending, Way, way
from safe_pip.commands.environments import Place
from safe_pip.environment.environment import Target
from safe_pip.environment.snapshot import Snapshot
from safe_pip.errors import SafePipError, StalePlan
from safe_pip.journal import sweep
from safe_pip.launch.restart import RUNNER
from safe_pip.merge.plan import Removal
from safe_pip.messages import say

_ROUNDS = 5
# What would send a reinstall elsewhere, or install something else with it.
_MISLEADING = ("TARGET", "PREFIX", "ROOT", "USER", "PYTHON", "REQUIREMENT", "EDITABLE", "GROUP", "DRY_RUN", "REPORT")
_NOT_UNINSTALLED = (Kind.MISSING_METADATA, Kind.WRONG_METADATA, Kind.MISSING_RECORD, Kind.UNREADABLE_RECORD)
"""What pip cannot uninstall, so that it has to be installed over."""


class Repair:
    """One `doctor --repair`: `done` is what was done, `failed` what was tried, a line each."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._timeout = place.context.settings.lock_timeout
        self._tried: set[tuple[Path, remedy.Requirement]] = set()
        self._removed: set[str] = set()
        self._is_reinstalled = True
        self.done: list[str] = []
        self.failed: list[str] = []

    def run(self) -> Report:
        """Repair what can be; on return what is left."""
        report = examine(self._place)
        if report.unfinished:
            self._finish(report)
            report = examine(self._place)
        for _ in range(_ROUNDS):
            if report.installed is None or not self._improve(report):
                break
            report = examine(self._place)
        return report

    def _improve(self, report: Report) -> bool:
        """Do the next part of the work; whether there was anything to do. What may be needed still is removed last."""
        findings = [finding for finding, repair in report.findings if repair]
        return (
            self._remove(report, _superfluous(findings, report.installed or ()))
            or self._reinstall(findings, report.installed or ())
            or self._remove(report, _strays(findings, is_all=self._is_reinstalled))
        )

    def _finish(self, report: Report) -> None:
        """Undo, finish or delete what dead processes have left; what is refused is put aside."""
        for each in report.unfinished:
            with self._telling():
                found = found_of(each)
                how = Way.USUAL if each.state is State.STAGING else way(found)
                if how in (Way.KEEPING, Way.ASIDE):
                    mending = Mending(found)
                    self._place.environment.carry_out(mending)
                    self.done += mending.told
                elif how is Way.USUAL and each.state is State.PREPARED:
                    self._place.context.environment([str(each.tree)]).read(lambda: None)
                    self.done.append(f"rolled back the unfinished transaction `{each.identifier}`")
        for tree in dict.fromkeys(each.tree for each in report.unfinished if each.state is not State.PREPARED):
            with self._telling():
                with self._place.environment.adding(Target((tree,))):
                    remains = sweep.find(tree)
                remains.delete()
                self.done.append(f"removed what killed commands had left in `{tree}`")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Within, an error of ours ends this part of the work alone, and is told."""
        try:
            yield
        except SafePipError as error:
            say(f"error: {error}")
            self.failed.append(error.message)

    def _remove(self, report: Report, removals: Iterable[Removal]) -> bool:
        """Remove these, a transaction for each tree; whether there were any to try."""
        by_tree: dict[Path, list[Removal]] = {}
        for each in removals:
            if each.project not in self._removed:
                by_tree.setdefault(each.tree, []).append(each)
        for tree, several in by_tree.items():
            with self._telling():
                self._removed |= {each.project for each in several}
                try:
                    self._commit(report.snapshot, tree, several)
                except StalePlan:
                    # Others were at work: it is looked at again.
                    self._removed -= {each.project for each in several}
                    continue
                self.done += [f"removed {each.project}" for each in several]
        return bool(by_tree)

    def _commit(self, seen: Snapshot | None, tree: Path, removals: list[Removal]) -> None:
        scripts = self._place.scripts()[tree]
        home = self._place.home(tree)
        is_shared = home is None and scripts.is_dir() and not scripts.is_relative_to(tree)
        uv_lock = (home or tree) / ".lock"
        target = Target((tree,), (scripts,) if is_shared else (), uv_lock)
        before = {path: _state(path) for each in removals for path in each.files}

        def validate(now: Snapshot) -> tuple[str, ...]:
            if now != seen or any(_state(path) != state for path, state in before.items()):
                raise StalePlan(())
            return ()

        transaction = self._place.transaction()
        with transaction.staging(target) as change:
            for directory in (scripts, home):
                if directory is not None:
                    change.allow(str(directory))
            for each in removals:
                change.remove(each)
            transaction.commit(change, validate)

    def _reinstall(self, findings: list[Finding], installed: Iterable[Installed]) -> bool:
        """Reinstall what is damaged, and what only a leftover is left of; whether there was any to try."""
        by_info = {each.info: each for each in installed}
        there = {(each.tree, each.project) for each in installed}
        wanted: dict[tuple[Path, remedy.Requirement], bool] = {}
        for finding in findings:
            about = by_info.get(finding.info)
            again = None
            if about is not None and remedy.needs_reinstalling(finding, about):
                again = remedy.requirement(about)
            elif finding.kind is Kind.LEFTOVER and finding.version and (finding.tree, finding.project) not in there:
                again = remedy.Requirement((f"{finding.project}=={finding.version}",))
            if again is not None:
                key = Path(finding.tree), again
                wanted[key] = wanted.get(key, False) or finding.kind in _NOT_UNINSTALLED
        new = {key: is_over for key, is_over in wanted.items() if key not in self._tried}
        for (tree, again), is_over in new.items():
            self._tried.add((tree, again))
            status = self._install(tree, again, is_over=is_over)
            self._is_reinstalled &= status == 0
            if status == 0:
                self.done.append(f"reinstalled `{again}`")
            else:
                self.failed.append(f"`{again}` could not be reinstalled in `{tree}`")
        return bool(new)

    def _install(self, tree: Path, wanted: remedy.Requirement, *, is_over: bool) -> int:
        """Run `safe-pip install`; on return its exit status. What it prints goes to standard error."""
        options = self._place.installing(tree)
        if options is None:
            return 1
        timeout = [] if self._timeout is None else [f"--lock-timeout={self._timeout}"]
        how = "--ignore-installed" if is_over else "--force-reinstall"
        command = [sys.executable, RUNNER, *timeout, *options[0]]
        command += ["install", "--no-deps", how, *options[1], *wanted.words]
        misleading = {f"PIP_{name}" for name in _MISLEADING}
        variables = {name: value for name, value in os.environ.items() if name not in misleading}
        sys.stdout.flush()
        return subprocess.run(command, stdout=2, env=variables, check=False).returncode


def _superfluous(findings: Iterable[Finding], installed: Sequence[Installed]) -> Iterator[Removal]:
    """What is in the way of a reinstall: all but one of several dist-infos, and those that say nothing."""
    hopeless = {each.info for each in installed if remedy.is_hopeless(each)}
    for finding in findings:
        if finding.kind is Kind.DOUBLED_PROJECT:
            for each in installed:
                if (each.tree, each.project) == (finding.tree, finding.project) and each.info != finding.info:
                    yield _removal(finding, each.info, _own_files(each, installed))
        elif finding.kind is Kind.MISSING_METADATA and finding.info in hopeless:
            yield _removal(finding, finding.info, (finding.info,))


def _strays(findings: Iterable[Finding], *, is_all: bool) -> Iterator[Removal]:
    """What nobody needs; leftovers only if `is_all`: as long as a reinstall failed they may be all there is."""
    for finding in findings:
        if finding.kind in (Kind.OWNERLESS_SCRIPT, Kind.ABANDONED) or (finding.kind is Kind.LEFTOVER and is_all):
            yield _removal(finding, finding.path, (finding.path,))


def _removal(finding: Finding, path: str, files: Iterable[str]) -> Removal:
    return Removal(f"`{path}`", Path(finding.tree), frozenset(files))


def _own_files(loser: Installed, installed: Iterable[Installed]) -> set[str]:
    """The files of a distribution that no other one has."""
    others = {row.path for each in installed if each.info != loser.info for row in each.rows or ()}
    files = {row.path for row in loser.rows or () if row.path not in others}
    return {*(path for path in files if not path.startswith(os.path.join(loser.info, ""))), loser.info}


def _state(path: str) -> tuple[int, ...] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mode, status.st_ctime_ns
