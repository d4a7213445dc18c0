"""`pip install`: what pip has prepared is staged, and committed as one change."""

from __future__ import annotations

import os
import types
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pip._internal.utils.logging import get_console
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.environment.change import Change, Overwritten, Terms
from safe_pip.environment.environment import Target
from safe_pip.environment.snapshot import Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import SafePipError, StalePlan
from safe_pip.pip_seams.installed import Installed
from safe_pip.pip_seams.output import kept_until_done
from safe_pip.pip_seams.removals import Removals
from safe_pip.pip_seams.scheme import scheme_target
from safe_pip.pip_seams.seam import Seam, SeamBroken, arguments
from safe_pip.pip_seams.shadows import hides
from safe_pip.pip_seams.store import Prepared
from safe_pip.pip_seams.target_directory import TargetDirectory
from safe_pip.pip_seams.wheels import Staging

INSTALL = Seam(
    "pip._internal.commands.install",
    "install_given_reqs",
    ("requirements", "root", "home", "prefix", "use_user_site", "progress_bar"),
)
SUMMARY = Seam("pip._internal.commands.install", "get_environment", ("paths",))
CONFLICTS = Seam("pip._internal.commands.install", "InstallCommand._warn_about_conflicts", ("conflict_details",))
DETERMINE = Seam("pip._internal.commands.install", "InstallCommand._determine_conflicts", ("to_install",))
CHECK = Seam("pip._internal.commands.install", "check_install_conflicts", ("to_install",))
MOVE = Seam(
    "pip._internal.commands.install",
    "InstallCommand._handle_target_dir",
    ("target_dir", "target_temp_dir", "upgrade"),
)
BAR = Seam("pip._internal.req", "get_install_progress_renderer", ("bar_type", "total"))
SEAMS = (INSTALL, SUMMARY, CONFLICTS, DETERMINE, CHECK, MOVE, BAR)


class Install:
    """One `pip install` at work."""

    def __init__(
        self, transaction: Transaction, installed: Installed, prepared: Prepared, passing: Collection[Path]
    ) -> None:
        """`passing`, when wheels are prepared: those that were built for this command alone."""
        self.transaction = transaction
        self.installed = installed
        self.command: Any = None
        self.options: Any = None
        self.closing = ExitStack()
        """What is left to do when pip has said that all is done: deleting what was replaced."""
        self._requirements: list[Any] = []
        self._versions: dict[Any, str] = {}
        self._kept: dict[str, Any] = {}
        self._dropped: set[str] = set()
        self._prepared = prepared
        self._passing = passing
        self._is_prepared = False
        self._skipped: set[str] = set()
        self._staging = Staging(self._prepared, self._prepare, self._is_skipped)
        self._removals = Removals()
        self._change: Change | None = None
        self._in: Target | None = None
        self._top_level: dict[Path, set[str]] = {}
        self._there: TargetDirectory | None = None
        self._bar: Any = None

    def attach(self) -> None:
        """Have pip commit here."""
        for seam in SEAMS:
            seam.check()
        self._staging.attach()
        self._removals.attach(self._remove)
        INSTALL.replace(self._install)
        SUMMARY.replace(lambda original, paths: self._planned())
        # pip looks for conflicts before it installs, among what it knew then; they are told of afterwards.
        self._determine = DETERMINE.replace(lambda original, command, to_install: ())
        CHECK.replace(self._check_conflicts)
        CONFLICTS.replace(self._warn_about_conflicts)
        MOVE.replace(self._say_moved)
        BAR.replace(self._progress)

    def _install(self, original: Any, *args: Any, **kw: Any) -> Any:
        call = arguments(original, args, kw)
        self._requirements = list(call["requirements"])
        if not self._requirements:
            return original(*args, **kw)
        self._kept = self.transaction.read(lambda: self._installed_meanwhile(Snapshot.take(self.transaction.path)))
        self._dropped = set(self._kept)
        call["requirements"] = self._wanted(self._requirements)
        self._staging.attach_to_wheels()
        done = self._wanted(self._stage_and_commit(original, call) if call["requirements"] else [])
        if self._kept:
            listed = ", ".join(f"`{project} {found.version}`" for project, found in self._kept.items())
            was = "was" if len(self._kept) == 1 else "were"
            self.transaction.noticed.append(f"{listed} {was} installed meanwhile by another command")
        self.installed.refresh()
        return done

    def _stage_and_commit(self, original: Any, call: dict[str, Any]) -> list[Any]:
        """Have pip install into the stage, then commit that; on return the target is as pip would have left it."""
        self._in = self._target(call)
        with ExitStack() as closing:
            closing.callback(self._prepared.end_turn)
            change = closing.enter_context(self.transaction.staging(self._in, Terms(self._shadows)))
            with kept_until_done(first=True) as kept:
                kept.hidden = change.root
                done = list(self._stage(original, call, change, kept))
                self._top_level = self._staged_names(self._in)
                overwritten = self.transaction.commit(change, self._validate)
                self._prepared.end_turn()
            kept.say(leave_out=tuple(self._kept))
            self._end_bar()
            self._note(overwritten)
            self.closing.push(closing.pop_all())
        return done

    def _target(self, call: dict[str, Any]) -> Target:
        if call["home"] is not None:
            return scheme_target(self.transaction.path, target_dir=Path(self.options.target_dir))
        return scheme_target(
            self.transaction.path, root=call["root"], prefix=call["prefix"], use_user_site=call["use_user_site"]
        )

    def _stage(self, original: Any, call: dict[str, Any], change: Change, kept: Any) -> list[Any]:
        if call["home"] is not None:
            upgrade = self.options.upgrade
            self._there = TargetDirectory(os.path.abspath(self.options.target_dir), change, upgrade=upgrade)
            call["home"] = self._there.home
        self._change = change
        try:
            wheels = [Path(each.local_file_path) for each in call["requirements"]]
            with change.unpacking(wheels), self._staging.into(change, kept, home=call["home"]):
                done: list[Any] = original(**call)
        finally:
            self._change = None
            self._prepared.close()
            self.transaction.noticed += self._prepared.notices(self.options)
        staged = self._staging.staged
        if self._there is not None:
            staged = self._there.arrange(staged)
        for each in staged:
            change.add(each.project, each.record)
        change.drop(self._skipped)
        return done

    def _prepare(self) -> None:
        """Have all wheels ready before the first one is staged."""
        if not self._is_prepared:
            self._is_prepared = True
            wanted = {Path(each.local_file_path): each.name for each in self._wanted(self._requirements)}
            # What is built anew each time has other bytes: its entry would only take the room of others.
            wheels = {wheel: name for wheel, name in wanted.items() if wheel not in self._passing}
            if wheels:
                self._prepared.make_ready(wheels, self.options, self._unneeded)
            # Who finds all of it there in the end need not have staged it.
            if self._in is not None and not (self.options.ignore_installed or self.options.force_reinstall):
                self._prepared.take_turn(self._in, lambda: len(self._unneeded()) == len(wanted))

    def _unneeded(self) -> list[Path]:
        """The wheels of what the environment has by now, put there by others; their projects are not staged."""
        kept = self.transaction.read(lambda: self._installed_meanwhile(Snapshot.take(self.transaction.path)))
        self._kept = kept
        self._skipped |= kept.keys() - self._dropped
        self._dropped |= self._skipped
        return [
            Path(each.local_file_path) for each in self._requirements if canonicalize_name(each.name) in self._skipped
        ]

    def _is_skipped(self, requirement: Any) -> bool:
        return canonicalize_name(requirement.name) in self._skipped

    def _remove(self, original: Any, paths: Any, *args: Any, **kw: Any) -> None:
        """Have pip list what goes, and note it in the change."""
        if self._change is None:
            raise SeamBroken("pip removes a distribution at another time than while it installs one")
        original(paths, *args, **kw)
        self._removals.take(paths, self._change)

    def _wanted(self, requirements: Iterable[Any]) -> list[Any]:
        """Those that another command has not installed meanwhile."""
        return [each for each in requirements if canonicalize_name(each.name) not in self._kept]

    def _validate(self, now: Snapshot) -> tuple[str, ...]:
        """More projects that are not to be changed after all; raises `StalePlan` where the plan does not hold any more.

        To be called under the locks.
        """
        self._removals.check()
        if self._there is not None:
            self._there.check()
        self._kept = self._installed_meanwhile(now)
        gone = self._skipped - self._kept.keys()
        if gone:
            raise StalePlan(tuple(gone))
        dropped = tuple(project for project in self._kept if project not in self._dropped)
        self._dropped.update(dropped)
        return dropped

    def _installed_meanwhile(self, now: Snapshot) -> dict[str, Any]:
        """What is there `now` as planned, put there by somebody else; raises `StalePlan` if anything else changed."""
        transaction = self.transaction
        if self.options.ignore_installed:
            return {}
        for requirement in self._requirements:
            transaction.asked(canonicalize_name(requirement.name))
        planned: dict[str, Any] = {
            canonicalize_name(requirement.name): requirement for requirement in self._requirements
        }
        kept, stale = {}, []
        changed = transaction.read_set.changed(now)
        there = self.installed.distributions(project for project in changed if project in planned)
        for project in changed:
            found = there.get(project)
            if found is not None and self._would_keep(planned[project], found):
                kept[project] = found
            else:
                stale.append(project)
        if stale:
            raise StalePlan(tuple(stale))
        return kept

    def _would_keep(self, requirement: Any, found: Any) -> bool:
        """Whether pip, asked again, would leave `found` in place (as `should_reinstall` in its resolver decides)."""
        if self.options.force_reinstall or requirement.editable or found.editable:
            return False
        if self._version(requirement) != str(found.version) or requirement.download_info is None:
            return False
        url = requirement.download_info.url
        return not url.startswith("file:") or url.endswith(".whl")

    def _version(self, requirement: Any) -> str:
        if requirement not in self._versions:
            self._versions[requirement] = str(requirement.get_dist().version)
        return self._versions[requirement]

    def _staged_names(self, target: Target) -> dict[Path, set[str]]:
        """What is staged directly below each tree of the target."""
        if self._there is not None:
            return {tree: self._there.top_level() for tree in target.trees}
        return self._staging.top_level(target.trees)

    def _shadows(self) -> bool:
        """Whether what is staged hides anything that is installed now, or is hidden by it."""
        assert self._in is not None
        # A tree that is packed and shipped is on no path.
        trees = () if self._in.stateless_trees else self.transaction.environment.trees()
        wanted = self._wanted(self._requirements)
        return hides(self._top_level, (*trees, *self._in.trees), (canonicalize_name(each.name) for each in wanted))

    def _progress(self, original: Any, *args: Any, **kw: Any) -> Any:
        """pip's bar while it stages; where it cannot be drawn, what it leaves behind, an empty line, comes last."""
        if self._staging.is_at_work:
            self._prepare()
        renderer = original(*args, **kw)
        if not self._staging.is_at_work or get_console().is_terminal:
            return renderer
        self._bar = renderer
        return iter

    def _end_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            for _ in bar([]):
                pass

    def _note(self, overwritten: Overwritten) -> None:
        """Say what stayed, and to who wants to know more whose files were overwritten; pip does so without a word."""
        self.transaction.noticed += self._removals.notices()
        if self.options.verbose:
            for path, owner in overwritten:
                whose = f"`{path}` of `{owner}`" if owner else f"`{path}`, which no distribution owned,"
                self.transaction.noticed.append(f"{whose} was overwritten")

    def _say_moved(self, original: Any, *args: Any, **kw: Any) -> None:
        if self._there is not None:
            self._there.say()

    def _planned(self) -> Any:
        """What pip's summary reads versions from: the plan, not the disk."""
        found = [
            types.SimpleNamespace(
                canonical_name=canonicalize_name(requirement.name), version=self._version(requirement)
            )
            for requirement in self._requirements
        ]
        return types.SimpleNamespace(iter_all_distributions=lambda: iter(found))

    def _warn_about_conflicts(self, original: Any, command: Any, conflict_details: Any, *args: Any, **kw: Any) -> None:
        """Warn of the conflicts there are now; a command that has only satisfied requirements changed nothing."""
        found = self._determine(command, self._requirements)
        if found is not None:
            original(command, found, *args, **kw)

    def _check_conflicts(self, original: Any, to_install: list[Any]) -> Any:
        with suppress(SafePipError), self.transaction.optional():
            return original(to_install)
        return {}, ({}, {})  # Another command has changed something since: it warns.
