"""`safe-pip doctor`: what is wrong with the environment, and its repair.

What can be undone of a transaction that recovery refuses is undone. What it has of the rest is never deleted: `<id>`
becomes `kept-<id>` in each state directory that has one, and an unreadable journal goes in there too. All of it may be
killed at any step, and done again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands import environments
from safe_pip.commands.doctor import filesystem, requirements
from safe_pip.commands.doctor.examination import KEPT, NOT_UNINSTALLABLE, Finding, Kind, Report, Way, examine, way
from safe_pip.commands.environments import Context, Place, own_trees, state_of, until_current
from safe_pip.commands.options import Namespace, tell
from safe_pip.commands.status import State, next_action
from safe_pip.environment.environment import PACKAGES, Target
from safe_pip.environment.snapshot import Snapshot
from safe_pip.errors import RecoveryNeeded, SafePipError, StalePlan, UsageError
from safe_pip.fs import Directory
from safe_pip.journal import codec, owner, recovery, sweep
from safe_pip.journal.directories import OpenDirectories, Refused, open_state
from safe_pip.journal.parts import Dead
from safe_pip.journal.recovery import Unfinished
from safe_pip.launch.restart import RUNNER
from safe_pip.locking import state_directory
from safe_pip.locking.locker import Step
from safe_pip.locking.order import Request, commit_lock, owner_lock, shared_directory
from safe_pip.merge.plan import Removal
from safe_pip.messages import count, say

_SUMMARY = {
    Kind.MISSING_FILE: "# missing",
    Kind.CHANGED_FILE: "# changed",
    Kind.OVERWRITTEN_FILE: "# overwritten by another distribution",
    Kind.UNREADABLE_FILE: "# unreadable",
    Kind.MISSING_METADATA: "METADATA missing",
    Kind.WRONG_METADATA: "METADATA of something else",
    Kind.MISSING_RECORD: "RECORD missing",
    Kind.UNREADABLE_RECORD: "RECORD unreadable",
}
"""Findings of one distribution in few words, `#` for the number of files; of the others the detail is told."""


def main(options: Namespace, context: Context) -> int:
    if options.filesystem is not None:
        if options.repair or options.dry_run:
            raise UsageError("`--filesystem` changes nothing that `--repair` or `-n` is about")
        return filesystem.main(options)
    place = Place.find(options.env, context)
    repair = Repair(place)
    report = repair.run(is_trial=options.dry_run) if options.repair else examine(place)
    report = requirements.check(place, report)
    document = _document(place.trees, report, repair) | {"dry_run": options.dry_run}
    said = json.dumps(document, indent=2) if options.json else "\n".join(_lines(report, repair, options))
    is_told = tell(said) if said else True
    return 0 if is_told and report.is_sound else 1


def _lines(report: Report, repair: Repair, options: Namespace) -> Iterator[str]:
    yield from (f"{'would ' if options.dry_run else 'repaired: '}{each}" for each in repair.done)
    yield from (f"failed: {each}" for each in repair.failed)
    faults, notes = ([each for each in report.findings if each.kind.is_note == is_note] for is_note in (False, True))
    yield from map(_detailed, faults) if options.verbose else _by_distribution(faults)
    yield from map(_detailed, notes) if not options.quiet else ()
    if report.installed is None:
        yield "The distributions were not looked at: an unfinished transaction comes first"
    elif faults:
        number, among = len({each.info for each in faults if each.info}), count(len(report.installed), "distribution")
        more = "" if options.verbose else " (`-v` shows each)"
        yield f"{count(len(faults), 'fault')} {f'in {number} of' if number else 'beside'} {among}{more}"
    elif not options.quiet:
        yield f"Sound: {count(len(report.installed), 'distribution')}"
    if repair.commands:
        yield "To reinstall what is damaged, run:"
        yield from repair.commands


def _detailed(each: Finding) -> str:
    named = f"{each.project} {each.version}".strip()
    told = ": ".join(part for part in (each.kind.value, named, each.path, each.detail) if part)
    return f"note: {told}" if each.kind.is_note else f"{told}; repair: {each.repair or 'none here'}"


def _by_distribution(faults: Iterable[Finding]) -> Iterator[str]:
    """A line for each distribution, and for each finding that is about none; these are in their order."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for each in faults:
        groups.setdefault((each.tree, each.project, each.info or each.path), []).append(each)
    for (_, project, _), found in groups.items():
        if not found[0].info:
            yield from map(_detailed, found)
            continue
        numbers = Counter(_SUMMARY.get(each.kind, each.detail) for each in found)
        phrases = [count(n, "file") + what[1:] if what.startswith("#") else what for what, n in numbers.items()]
        repairs = dict.fromkeys(each.repair for each in found if each.repair)
        told = f"{project} {found[0].version}: {', '.join(phrases)}"
        yield f"{told}; repair: {' and '.join(repairs) or 'none here'}"


def _document(trees: Iterable[Path], report: Report, repair: Repair) -> dict[str, Any]:
    names = ("project", "version", "tree", "path", "detail", "repair")
    told: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for each in report.findings:
        facts = {name: getattr(each, name) or None for name in names}
        told[each.kind.is_note].append({"kind": each.kind.value, **facts})
    return {
        "format": 1,
        "sound": report.is_sound,
        "trees": [os.fspath(tree) for tree in trees],
        "distributions": None if report.installed is None else len(report.installed),
        "repaired": repair.done,
        "failed": repair.failed,
        "reinstall": repair.commands,
        "findings": told[False],
        "notes": told[True],
    }


class Repair:
    """One `doctor --repair`: what was done, what failed, and the commands that reinstall, one for each tree."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.done: list[str] = []
        self.failed: list[str] = []
        self.commands: list[str] = []

    def run(self, *, is_trial: bool = False) -> Report:
        """Repair what can be; on return what is left. In a trial `done` is what would be done."""
        report = examine(self._place)
        if is_trial:
            self.done += self._foreseen(report)
            self.commands = list(self._reinstalls(report))
            return report
        if report.unfinished:
            self._settle(report)
            report = examine(self._place)
        if trees := dict.fromkeys(each.tree for each in _superfluous(report)):
            for tree in trees:
                with self._telling():
                    until_current(partial(self._remove, tree))
            report = examine(self._place)
        self.commands = list(self._reinstalls(report))
        return report

    def _foreseen(self, report: Report) -> Iterator[str]:
        for each in report.unfinished:
            how = Way.USUAL if each.state is State.STAGING else way(each.unfinished)
            then = next_action(each._replace(is_alive=False)) if how is Way.USUAL else how.value
            if then:
                yield f"{then}: transaction `{each.identifier}`"
        yield from (f"remove: {each.project}" for each in _superfluous(report))

    def _settle(self, report: Report) -> None:
        """Undo, finish or delete what dead processes have left; what is refused is put aside."""
        for each in report.unfinished:
            with self._telling():
                how = Way.USUAL if each.state is State.STAGING else way(each.unfinished)
                if how in (Way.KEEPING, Way.ASIDE):
                    step = PutAside(each.unfinished)
                    self._place.environment.carry_out(step)
                    self.done += step.told
                elif how is Way.USUAL and each.state is State.PREPARED:
                    self._place.context.environment([str(each.tree)]).read(lambda: None)
                    self.done.append(f"rolled back the unfinished transaction `{each.identifier}`")
        for tree in dict.fromkeys(each.tree for each in report.unfinished if each.state is not State.PREPARED):
            with self._telling():
                with self._place.environment.adding(Target((tree,))):
                    remains = sweep.find(tree)
                remains.delete()
                self.done.append(f"removed what killed commands had left in `{tree}`")

    def _reinstalls(self, report: Report) -> Iterator[str]:
        """For each tree, the command for a POSIX shell that reinstalls what is damaged, in its recorded version."""
        for tree in self._place.trees:
            damaged = [finding for finding in report.findings if finding.again and finding.tree == str(tree)]
            words = _installing(self._place, tree)
            if damaged and words is None:
                self.failed.append(f"no Python is known that installs into `{tree}`: name its environment with `--env`")
            elif damaged and words is not None:
                is_whole = not any(finding.kind in NOT_UNINSTALLABLE for finding in damaged)
                words += ["--force-reinstall", "--no-deps", *([] if is_whole else ["--ignore-installed"])]
                # Each is one word, or `-e` and a directory.
                yield shlex.join([*words, *chain(*dict.fromkeys(finding.again for finding in damaged))])

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except SafePipError as error:
            say(f"error: {error}")
            self.failed.append(error.message)

    def _remove(self, tree: Path) -> None:
        """Remove what is superfluous in a tree; raises `StalePlan` if other commands were at work."""
        report = examine(self._place)
        removals = [each for each in _superfluous(report) if each.tree == tree]
        scripts, home = self._place.scripts()[tree], self._place.home(tree)
        is_shared = home is None and fs.is_directory(scripts) and not scripts.is_relative_to(tree)
        target = Target((tree,), (scripts,) if is_shared else (), (home or tree) / ".lock")
        before = {path: state_of(path) for each in removals for path in each.files}

        trees = [*map(str, self._place.trees)]

        def validate(_: Snapshot) -> tuple[str, ...]:
            # The snapshot of a commit has all files of the projects alone that the command asked for.
            is_as_seen = Snapshot.take(trees) == report.snapshot
            if not is_as_seen or any(state_of(path) != state for path, state in before.items()):
                raise StalePlan(())
            return ()

        transaction = self._place.context.transaction(trees)
        with transaction.staging(target) as change:
            for directory in (scripts, home):
                if directory is not None:
                    change.allow(str(directory))
            for each in removals:
                change.remove(each)
            transaction.commit(change, validate)
        self.done += [f"removed {each.project}" for each in removals]


def _superfluous(report: Report) -> Iterator[Removal]:
    """What may go: all but one of several dist-infos, empty ones, leftovers if none is all there is of a project."""
    installed = report.installed or ()
    needed = {finding.tree for finding in report.findings if finding.kind is Kind.LEFTOVER and finding.again}
    hopeless = {each.info for each in installed if each.is_hopeless}
    for finding in report.findings:
        if finding.kind is Kind.DOUBLED_PROJECT:
            for each in installed:
                if (each.tree, each.project) == (finding.tree, finding.project) and each.info != finding.info:
                    others = {row.path for other in installed if other is not each for row in other.rows or ()}
                    files = {row.path for row in each.rows or () if not row.path.startswith(f"{each.info}{os.sep}")}
                    yield _removal(finding, each.info, files - others)
        elif finding.kind is Kind.MISSING_METADATA and finding.info in hopeless:
            yield _removal(finding, finding.info)
        elif finding.kind is Kind.ABANDONED or (finding.kind is Kind.LEFTOVER and finding.tree not in needed):
            yield _removal(finding, finding.path)


def _removal(finding: Finding, path: str, files: Iterable[str] = ()) -> Removal:
    return Removal(f"`{path}`", Path(finding.tree), frozenset((path, *files)))


def _installing(place: Place, tree: Path) -> list[str] | None:
    """The words of a shell that install into `tree`; None if no Python is known that does."""
    # These would lead an install elsewhere.
    unset = [f"--unset={name}" for name in map("PIP_{}".format, environments.MISLEADING) if name in os.environ]
    program = [*(["env", *unset] if unset else []), *_program()]
    if place.named is None:
        if tree in own_trees():
            return [*program, "install", "--no-user"]
        is_user = tree == Path(os.path.realpath(sysconfig.get_path("purelib", f"{os.name}_user")))
        return [*program, "install", "--user"] if is_user else None
    if tree.name not in PACKAGES:
        return [*program, "install", "--target", str(tree), "--upgrade"]
    python = requirements.python_in(place, tree)
    return [*program, "--python", str(python), "install"] if python else None


def _program() -> list[str]:
    """safe-pip as the user called it."""
    script, found = os.path.abspath(sys.argv[0]), shutil.which("safe-pip")
    if os.path.basename(script) == "safe-pip":
        return ["safe-pip" if found and os.path.realpath(found) == os.path.realpath(script) else script]
    is_module = ("-m", "safe_pip") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return [sys.executable, *(["-m", "safe_pip"] if is_module else [RUNNER])]


class PutAside(Step):
    """Gets a transaction out of the way, under the commit locks that it names. `told` is what was done, a line each."""

    def __init__(self, found: Unfinished) -> None:
        self._found = found
        self.told: list[str] = []
        self._dead: list[Dead] = []

    def requests(self) -> Iterator[Request]:
        trees, directories = [str(self._found.home)], list[str]()
        try:
            journal = recovery.read(self._found)
            trees, directories = [*journal.trees], [*journal.directories]
        except FileNotFoundError:
            return  # another command has undone it
        except RecoveryNeeded:
            pass  # nothing in it is believed; its home is where it lies
        for tree in map(Path, trees):
            if fs.is_directory(tree) and state_directory.exists(tree):
                yield commit_lock(tree, exclusive=True)
        yield from (shared_directory(Path(each)) for each in directories if fs.is_directory(each))
        path = self._found.owner_file
        if fs.is_file(path):
            yield owner_lock(path, self._found.home)

    def on_grant(self) -> None:
        how, kept, left = way(self._found), list[str](), list[str]()

        def put_parts_aside(places: OpenDirectories, paths: tuple[str, ...]) -> None:
            left.extend(paths)
            for part in places.journal.parts:
                if (state := places.base(os.path.dirname(part))) is not None:
                    kept.extend(_moved(state, self._found.identifier))

        try:
            if how is Way.KEEPING:
                self._dead.append(recovery.roll_back(self._found, keep=True, aside=put_parts_aside))
                self.told.append(f"rolled back `{self._found.identifier}`, but for what other programs have changed")
                self.told += [f"left `{path}` as it is" for path in left]
            elif how is Way.ASIDE:
                self._put_aside(kept)
            self.told += [f"put aside `{path}`" for path in kept]
        except FileNotFoundError:
            pass
        except Refused as refused:
            raise recovery.refused(self._found, refused.reasons) from refused
        except OSError as error:
            raise recovery.refused(self._found, (f"`{error.filename}`: {error.strerror}",)) from error

    def on_release(self) -> None:
        for each in self._dead:
            each.delete()

    def _put_aside(self, kept: list[str]) -> None:
        """Put aside all that the transaction has, its journal last; `kept` gets the paths."""
        found, identifier, name = self._found, self._found.identifier, f"{KEPT}{self._found.identifier}"
        for part in owner.read(found.owner_file).parts if codec.is_identifier(identifier) else ():
            # On another filesystem. A forged note leads to nothing with another name.
            other = os.path.dirname(os.path.dirname(part))
            if part == os.path.join(other, state_directory.NAME, identifier) and other != str(found.home):
                with suppress(FileNotFoundError, NotADirectoryError, Refused), open_state(other) as state:
                    kept += _moved(state, identifier)
        with open_state(str(found.home)) as state:
            kept += _moved(state, identifier)
            if not state.exists(name):
                fs.make_directory(state, name, 0o700)
                kept.append(state.join(name))
            with state.child(name) as directory:
                fs.move(state, found.name, directory, "refused-journal")
            fs.remove(state, found.owner_file.name)


def _moved(state: Directory, identifier: str) -> Iterator[str]:
    if state.exists(identifier):
        fs.move(state, identifier, state, f"{KEPT}{identifier}")
        yield state.join(f"{KEPT}{identifier}")
