"""`pip install`: what pip has prepared is validated and put in under the locks.

The commit itself is still pip's own: it uninstalls and unpacks in place, so both locks are held exclusively meanwhile.
"""

from __future__ import annotations

import logging
import os
import types
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.environment import Target
from safe_pip.errors import SafePipError, StalePlan
from safe_pip.pip_seams.installed import Installed
from safe_pip.pip_seams.output import KeptBack, kept_back
from safe_pip.pip_seams.scheme import scheme_target, scripts_directory, tree_of
from safe_pip.pip_seams.seam import Seam, arguments
from safe_pip.snapshot import Snapshot
from safe_pip.transaction import Transaction

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

    def __init__(self, transaction: Transaction, installed: Installed) -> None:
        self.transaction = transaction
        self.installed = installed
        self.command: Any = None
        self.options: Any = None
        self._requirements: list[Any] = []
        self._said: KeptBack | None = None

    def attach(self) -> None:
        """Have pip commit here."""
        for seam in SEAMS:
            seam.check()
        INSTALL.replace(self._install)
        SUMMARY.replace(lambda original, paths: self._planned())
        # pip looks for conflicts before it installs, among what it knew then; they are told of afterwards.
        self._determine = DETERMINE.replace(lambda original, command, to_install: ())
        CHECK.replace(self._check_conflicts)
        CONFLICTS.replace(self._warn_about_conflicts)
        self._move = MOVE.check()
        MOVE.replace(self._say_moved)

    def _install(self, original: Any, *args: Any, **kw: Any) -> Any:
        call = arguments(original, args, kw)
        self._requirements = list(call["requirements"])
        if not self._requirements:
            return original(*args, **kw)
        if call["home"] is not None:
            return self._install_into_target(original, call)
        where = {key: call[key] for key in ("root", "prefix", "use_user_site")}
        target = scheme_target(self.transaction.path, **where)
        trees = [tree_of(found) for found in self._replaced() if found.local]

        def adds() -> bool:
            return not self._shadows(target) and not self._overwrites(target.trees, scripts_directory(**where))

        with kept_back(), self.transaction.committing(target, trees, adds=None if trees else adds) as now:
            call["requirements"] = self._validated(now)
            done = original(**{**call, "progress_bar": "off"})
        self._end_bar(call["progress_bar"], len(call["requirements"]))
        self.installed.refresh()
        return done

    @staticmethod
    def _end_bar(kind: str, total: int) -> None:
        """Print what pip's progress bar leaves behind where it cannot be drawn: an empty line."""
        if total > 1 and logging.getLogger("pip._internal.req").isEnabledFor(logging.INFO):
            for _ in BAR.check()(bar_type=kind, total=total)([]):
                pass

    def _install_into_target(self, original: Any, call: dict[str, Any]) -> Any:
        """`--target`: pip unpacks into a private directory, then moves each entry; only the moves need the locks."""
        done = original(**call)
        target_dir = Path(self.options.target_dir)
        target = scheme_target(self.transaction.path, target_dir=target_dir)
        with kept_back(say=False) as self._said, self.transaction.committing(target):
            private = types.SimpleNamespace(path=call["home"])
            self._move(self.command, str(target_dir), private, self.options.upgrade)
        return done

    def _say_moved(self, original: Any, *args: Any, **kw: Any) -> None:
        if self._said is not None:
            self._said.say()

    def _validated(self, now: Snapshot) -> list[Any]:
        """The requirements that are still to be installed; raises `StalePlan` where the plan does not hold any more."""
        transaction = self.transaction
        if self.options.ignore_installed:
            return self._requirements
        for requirement in self._requirements:
            transaction.asked(canonicalize_name(requirement.name))
        planned: dict[str, Any] = {
            canonicalize_name(requirement.name): requirement for requirement in self._requirements
        }
        kept, stale = {}, []
        for project in transaction.read_set.changed(now):
            found = self.installed.distribution(project) if project in planned else None
            if found is not None and self._would_keep(planned[project], found):
                kept[project] = found
            else:
                stale.append(project)
        if stale:
            raise StalePlan(tuple(stale))
        if kept:
            listed = ", ".join(f"`{project} {found.version}`" for project, found in kept.items())
            transaction.noticed.append(
                f"{listed} {'was' if len(kept) == 1 else 'were'} installed meanwhile by another command"
            )
        return [requirement for project, requirement in planned.items() if project not in kept]

    def _would_keep(self, requirement: Any, found: Any) -> bool:
        """Whether pip, asked again, would leave `found` in place (as `should_reinstall` in its resolver decides)."""
        if self.options.force_reinstall or requirement.editable or found.editable:
            return False
        if str(requirement.get_dist().version) != str(found.version) or requirement.download_info is None:
            return False
        url = requirement.download_info.url
        return not url.startswith("file:") or url.endswith(".whl")

    def _replaced(self) -> Iterable[Any]:
        """The distributions that pip's commit will uninstall."""
        names = [requirement.name for requirement in self._requirements if requirement.should_reinstall]
        served = self.installed.served()
        return [found for found in map(served.find, names) if found is not None and found.location]

    def _shadows(self, target: Target) -> bool:
        """Whether a project is there already, or what is to be installed comes before a module of the same name.

        A module that is found later, in its tree or in another one, would not be found any more.
        """
        served, trees = self.installed.served(), self.transaction.environment.trees()
        if any(served.find(requirement.name) is not None for requirement in self._requirements):
            return True
        new = {name.partition("/")[0] for name in self._files()}
        modules = {name.partition(".")[0] for name in new if not name.endswith(".dist-info")}
        there = [(tree, name) for tree in {*trees, *target.trees} if tree.is_dir() for name in os.listdir(tree)]
        return any(
            name.partition(".")[0] in modules and (tree not in target.trees or name not in new) for tree, name in there
        )

    def _overwrites(self, trees: Iterable[Path], scripts: Path) -> bool:
        """Whether a file of what is to be installed exists already, or a portion of a namespace becomes a package."""
        for name in self._files():
            parent, _, base = name.rpartition("/")
            is_init = base.partition(".")[0] == "__init__" and parent
            if name.partition("/")[0].endswith(".data") or any(
                os.path.lexists(tree / name) or (is_init and (tree / parent).is_dir()) for tree in trees
            ):
                return True
        points = [point for each in self._requirements for point in each.get_dist().iter_entry_points()]
        kinds = ("console_scripts", "gui_scripts")
        return any(point.group in kinds and os.path.lexists(scripts / point.name) for point in points)

    def _files(self) -> list[str]:
        """The paths of all files in the wheels to be installed."""
        found = []
        for requirement in self._requirements:
            with zipfile.ZipFile(requirement.local_file_path) as wheel:
                found += [name for name in wheel.namelist() if not name.endswith("/")]
        return found

    def _planned(self) -> Any:
        """What pip's summary reads versions from: the plan, not the disk."""
        found = [
            types.SimpleNamespace(
                canonical_name=canonicalize_name(requirement.name), version=requirement.get_dist().version
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
        try:
            return original(to_install)
        except SafePipError:  # Somebody changes it again: his command will warn.
            self.transaction.error = None
            return {}, ({}, {})
