"""`pip install`: what pip has prepared is staged, and committed as one change. `--target` too."""

import logging
import os
import types
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pip._internal.locations import get_scheme
from pip._internal.utils.logging import get_console
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip import fs
from safe_pip.environment.change import Change, Overwritten, Terms
from safe_pip.environment.environment import Target
from safe_pip.environment.snapshot import Snapshot, hides
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import Mismatch, SafePipError, StalePlan
from safe_pip.fs import space, watch
from safe_pip.launch.settings import Settings
from safe_pip.merge.plan import Removal
from safe_pip.pip_seams.installed import Installed
from safe_pip.pip_seams.output import KeptBack, kept_until_done
from safe_pip.pip_seams.scheme import scheme_target
from safe_pip.pip_seams.seam import Seam, SeamBroken, arguments
from safe_pip.pip_seams.uninstall import Removals
from safe_pip.pip_seams.wheels import WheelStaging, is_importable
from safe_pip.records import listed

_COMMAND = "pip._internal.commands.install"
INSTALL = Seam(_COMMAND, "install_given_reqs", ("requirements", "root", "home", "prefix", "use_user_site"))
SUMMARY = Seam(_COMMAND, "get_environment", ("paths",))
CONFLICTS = Seam(_COMMAND, "InstallCommand._warn_about_conflicts", ("conflict_details",))
DETERMINE = Seam(_COMMAND, "InstallCommand._determine_conflicts", ("to_install",))
CHECK = Seam(_COMMAND, "check_install_conflicts", ("to_install",))
MOVE = Seam(_COMMAND, "InstallCommand._handle_target_dir", ("target_dir", "target_temp_dir", "upgrade"))
#: How pip, from 26.1 on, imports nothing of what it installs; the last one is a context.
_GUARD = ("_eagerly_import_modules", "_reify_lazy_imports", "_prevent_further_imports")
BAR = Seam("pip._internal.req", "get_install_progress_renderer", ("bar_type", "total"))

_EXISTS = "Target directory %s already exists. Specify --upgrade to force replacement."
_IS_LINK = (
    "Target directory %s already exists and is a link. pip will not automatically replace links, "
    "please remove if replacement is desired."
)


def _allow_imports() -> None:
    """Have pip import nothing in advance, and forbid no import once it installs.

    What this process imports never comes from the environment, and its pip is a copy that no command changes.
    """
    with suppress(SeamBroken):  # pip only does more than it has to
        seams = [Seam(_COMMAND, name) for name in _GUARD]
        for seam in seams:
            seam.check()
        for seam in seams:
            seam.replace(lambda original, *args, **kw: nullcontext())


class TargetDirectory:
    """The directory that `--target` names, as it is now and as it is to be.

    pip's rules, for each entry of its library and data directories: what exists stays as it is, or with `--upgrade` is
    replaced whole; a symbolic link always stays. One rule is ours: a project that is there in another version is
    replaced, or stays, as a whole. pip would leave the metadata of both.
    """

    def __init__(self, directory: str, change: Change, *, upgrade: bool) -> None:
        self.home = os.path.join(change.stage.root, ".safe-pip-home")  # where pip installs, as into a home directory
        self._directory, self._tree = directory, os.path.realpath(directory)
        self._change, self._upgrade = change, upgrade
        self.warnings: list[tuple[str, str]] = []  # what pip says of what stayed
        self._seen: dict[str, bool] = {}
        self._removals: defaultdict[str, set[str]] = defaultdict(set)
        self._moved: set[str] = set()
        self._stayed: set[str] = set()
        change.mirror(directory)

    def arrange(self, staged: dict[str, str]) -> dict[str, str]:
        """Put what pip has installed into `home` in its place; on return `home` is gone. Returns the RECORDs there."""
        self._projects = {*staged}
        self._identities = self._identify()
        infos = {project: os.path.basename(os.path.dirname(record)) for project, record in staged.items()}
        old = {project: self._metadata(project) for project in self._projects}
        keeping = {
            project
            for project, found in old.items()
            if not self._upgrade and any(os.path.basename(path) != infos[project] for path in found)
        }
        owners: defaultdict[str, set[str]] = defaultdict(set)  # of each entry of the directory
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
        self.warnings += [(_EXISTS, old[project][0]) for project in sorted(keeping)]
        lib_dir = self._change.staged(self._directory)
        return {
            project: os.path.join(lib_dir, info, "RECORD") for project, info in infos.items() if info in self._moved
        }

    def top_level(self) -> set[str]:
        """What is staged directly in the directory, but for metadata and bytecode."""
        return set(filter(is_importable, self._moved))

    def check(self) -> None:
        """Raise `StalePlan` if the directory has changed since `arrange`; called under the locks."""
        is_changed = any(os.path.lexists(path) != was for path, was in self._seen.items())
        if is_changed or self._identify() != self._identities:
            raise StalePlan((), f"`{self._directory}` changed while this command was at work")

    def _place(self, source: str, name: str, owners: set[str], keeping: set[str]) -> None:
        live = os.path.join(self._directory, name)
        exists = self._seen[live] = os.path.lexists(live)
        if (exists or name in self._moved) and not self._upgrade:
            self.warnings.append((_EXISTS, live))
            return
        if os.path.islink(live):
            self.warnings.append((_IS_LINK, live))
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

    def _identify(self) -> dict[str, Any]:
        now = Snapshot.take([self._tree])
        return {project: now.identity(project) for project in self._projects}

    def _metadata(self, project: str) -> list[str]:
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


class Install:
    """One `pip install` at work."""

    def __init__(
        self, transaction: Transaction, installed: Installed, settings: Settings, passing: Collection[Path]
    ) -> None:
        """`passing`, when wheels are prepared: those that were built for this command alone."""
        self.transaction, self.installed = transaction, installed
        self.options: Any = None
        self.later = ExitStack()  # when it is closed, what was replaced is deleted
        self._passing = passing
        self._wheels = WheelStaging(settings)
        self._removals = Removals()
        self._planned: dict[str, Any] = {}  # pip's requirement for each project that it has decided to install
        self._there: dict[str, Any] = {}  # what others have installed meanwhile as planned, which is left out
        self._directory: TargetDirectory | None = None
        self._names: dict[Path, set[str]] = {}  # what is staged directly in each tree and may be a module
        self._bars: list[Any] = []

    def attach(self) -> None:
        """Have pip commit here."""
        self._wheels.attach()
        self._removals.attach(self._remove)
        INSTALL.replace(self._install)
        SUMMARY.replace(lambda original, paths: self._as_planned())
        # pip looks for conflicts before it installs. This looks for those that there are afterwards.
        self._determine = DETERMINE.replace(lambda original, command, to_install: ())
        CHECK.replace(self._check_conflicts)
        CONFLICTS.replace(self._warn_about_conflicts)
        MOVE.replace(self._say_moved)
        BAR.replace(self._progress)
        _allow_imports()

    def _install(self, original: Any, *args: Any, **kw: Any) -> Any:
        call = arguments(original, args, kw)
        if not call["requirements"]:
            return original(*args, **kw)
        self._planned = {str(canonicalize_name(each.name)): each for each in call["requirements"]}
        self._unneeded()
        self._wheels.attach_to_wheels()
        done = self._stage_and_commit(original, call) if self._wanted() else []
        if self._there:
            listed = ", ".join(f"`{project} {found.version}`" for project, found in self._there.items())
            was = "was" if len(self._there) == 1 else "were"
            self.transaction.noticed.append(f"{listed} {was} installed meanwhile by another command")
        self.installed.refresh()
        return [each for each in done if canonicalize_name(each.name) in self._wanted()]

    def _wanted(self) -> dict[str, Any]:
        """What is planned, less what other commands have installed meanwhile."""
        return {project: each for project, each in self._planned.items() if project not in self._there}

    def _unneeded(self) -> list[Path]:
        """Look again what others have installed; on return the wheels that are not needed any more."""
        path = self.transaction.path
        self._leave_out(self.transaction.read(lambda: self._installed_meanwhile(Snapshot.take(path))))
        return [Path(self._planned[project].local_file_path) for project in self._there]

    def _leave_out(self, there: dict[str, Any]) -> tuple[str, ...]:
        before, self._there = self._there, there
        if gone := before.keys() - there.keys():
            raise StalePlan(tuple(sorted(gone)))
        return tuple(project for project in there if project not in before)

    def _version(self, project: str) -> str:
        return str(self._planned[project].get_dist().version)

    def _installed_meanwhile(self, now: Snapshot) -> dict[str, Any]:
        """What others have installed as planned; raises `StalePlan` if the command depends on another change."""
        if self.options.ignore_installed:
            return {}
        for project in self._planned:
            self.transaction.asked(project)
        changed = self.transaction.read_set.changed(now)
        found = self.installed.distributions(project for project in changed if project in self._planned)
        stale = tuple(each for each in changed if each not in found or not self._would_keep(each, found[each]))
        if stale:
            raise StalePlan(stale)
        return {each: found[each] for each in changed}

    def _would_keep(self, project: str, found: Any) -> bool:
        """Whether pip, asked again, would leave `found` in place (as `should_reinstall` in its resolver decides)."""
        requirement = self._planned[project]
        if self.options.force_reinstall or requirement.editable or found.editable:
            return False
        if self._version(project) != str(found.version) or requirement.download_info is None:
            return False
        url = requirement.download_info.url
        return not url.startswith("file:") or url.endswith(".whl")

    def _stage_and_commit(self, original: Any, call: dict[str, Any]) -> list[Any]:
        options = {each: call[each] for each in ("root", "prefix", "use_user_site")}
        if call["home"] is not None:
            options = {"target_dir": Path(self.options.target_dir)}
        target = scheme_target(self.transaction.path, **options)
        with ExitStack() as closing:
            change = closing.enter_context(self.transaction.staging(target, Terms(partial(self._shadows, target))))
            with kept_until_done(first=True) as kept, self._wheels.turn:
                kept.hidden = change.stage.root
                done = self._stage(original, call, change, kept)
                overwritten = self.transaction.commit(change, self._validate)
            kept.say(leave_out=tuple(self._there))
            for bar in self._bars:
                list(bar(()))
            self._note(overwritten)
            self.later.push(closing.pop_all())
        return done

    def _stage(self, original: Any, call: dict[str, Any], change: Change, kept: KeptBack) -> list[Any]:
        """Have the wheels prepared, then have pip install into the stage; on return its results."""
        try:
            with space.unpacking(change.stage.root), watch.phase("stage"):
                self._prepare(change.target)
                call["requirements"] = [*self._wanted().values()]
                if not call["requirements"]:
                    return []
                if call["home"] is not None:
                    place = os.path.abspath(self.options.target_dir)
                    self._directory = TargetDirectory(place, change, upgrade=self.options.upgrade)
                    call["home"] = self._directory.home
                with self._wheels.into(change, kept, home=call["home"]):
                    done: list[Any] = original(**call)
        finally:
            self._wheels.close()
            if self._wheels.refused and self.options.verbose:
                said = f"prepared wheels are not used, or not all that could be: {self._wheels.refused}"
                self.transaction.noticed.append(said)
        for found in self._wheels.differences:
            if found.everything and self.transaction.verify == "record":
                raise Mismatch(found.everything)
            self.transaction.noticed += filter(None, [found.everything if self.options.verbose else found.contents])
        directory, staged = self._directory, self._wheels.staged
        for project, record in (directory.arrange(staged) if directory is not None else staged).items():
            change.add(project, record)
        for tree in change.target.trees:
            self._names[tree] = self._wheels.top_level(tree) if directory is None else directory.top_level()
        return done

    def _prepare(self, target: Target) -> None:
        # A wheel that is built anew each time has other bytes: its entry would only take the room of others.
        files = (Path(each.local_file_path) for each in self._wanted().values())
        wheels = [path for path in files if path not in self._passing]
        if wheels:
            self._wheels.make_ready(wheels, self.options, self._unneeded)
        # If another command installs all of it meanwhile, nothing has to be staged.
        if not (self.options.ignore_installed or self.options.force_reinstall):
            may_wait = self.transaction.environment.may_wait()
            self._wheels.take_turn(target, lambda: len(self._unneeded()) == len(self._planned), may_wait=may_wait)

    def _remove(self, original: Any, paths: Any, *args: Any, **kw: Any) -> None:
        """Have pip list what goes, and note it in the change."""
        if self._wheels.change is None:
            raise SeamBroken("pip removes a distribution at another time than while it installs one")
        original(paths, *args, **kw)
        self._removals.take(paths, self._wheels.change)

    def _validate(self, now: Snapshot) -> tuple[str, ...]:
        """The projects that are left out after all; raises `StalePlan` if the plan does not hold. Under the locks."""
        self._removals.check()
        if self._directory is not None:
            self._directory.check()
        return self._leave_out(self._installed_meanwhile(now))

    def _shadows(self, target: Target, gone: Collection[str]) -> bool:
        """Whether what is staged hides anything that is installed now, or is hidden by it."""
        # A tree that is packed and shipped is on no path.
        trees = () if target.stateless_trees else self.transaction.environment.trees()
        return hides(self._names, (*trees, *target.trees), self._wanted(), gone)

    def _progress(self, original: Any, *args: Any, **kw: Any) -> Any:
        """pip's bar while it stages. Without a terminal all it leaves is an empty line, which is drawn at the end."""
        renderer = original(*args, **kw)
        if self._wheels.change is None or get_console().is_terminal:
            return renderer
        self._bars.append(renderer)
        return iter

    def _note(self, overwritten: Overwritten) -> None:
        """Note what stayed, and with `-v` whose files were overwritten, of which pip says nothing."""
        self.transaction.noticed += self._removals.notices
        if self.options.verbose:
            for path, owner in overwritten:
                whose = f"`{path}` of `{owner}`" if owner else f"`{path}`, which no distribution owned,"
                self.transaction.noticed.append(f"{whose} was overwritten")

    def _say_moved(self, original: Any, *args: Any, **kw: Any) -> None:
        for words, path in self._directory.warnings if self._directory is not None else ():
            logging.getLogger(_COMMAND).warning(words, path)

    def _as_planned(self) -> Any:
        """What pip's summary reads versions from: the plan, not the disk."""
        found = [types.SimpleNamespace(canonical_name=each, version=self._version(each)) for each in self._planned]
        return types.SimpleNamespace(iter_all_distributions=lambda: iter(found))

    def _warn_about_conflicts(self, original: Any, command: Any, conflict_details: Any, *args: Any, **kw: Any) -> None:
        """Warn of the conflicts that there are now, unless the command had nothing to install."""
        found = self._determine(command, list(self._planned.values()))
        if found is not None:
            original(command, found, *args, **kw)

    def _check_conflicts(self, original: Any, to_install: list[Any]) -> Any:
        with suppress(SafePipError), self.transaction.optional():
            return original(to_install)
        return {}, ({}, {})  # Another command has changed something since: it warns.
