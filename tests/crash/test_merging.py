"""A crash, or an error of the disk, at every change that a merge makes: the prefix as it was, or the whole merge."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from safe_pip.errors import SafePipError, State
from tests.support.faults import disk
from tests.support.faults.chosen import some, step
from tests.support.faults.transaction import Link
from tests.support.trees.prefixes import SITE, MergePrefix, distribution, stage

Files = Mapping[str, "str | Link | None"]

ONE = {f"{SITE}/dist/__init__.py": "1\n", f"{SITE}/dist/gone.py": "\n", "bin/dist": "one\n", "share/dist/old": "\n"}
TWO = {f"{SITE}/dist/__init__.py": "22\n", f"{SITE}/dist/come.py": "\n", "bin/dist": "two\n", "share/dist/new": "\n"}
DESTDIR: Files = {
    "bin/tool": "1",
    "include/a.h": "a",
    "lib/libtool.so": Link("libtool.so.1"),
    "lib/libtool.so.1": "so",
    "share/ro/x": "x",
    "var/empty": None,
}


REBUILT: Files = {
    "bin/tool": "22",
    "include/a.h/part.h": "a",
    "lib/libtool.so": Link("libtool.so.2"),
    "lib/libtool.so.2": "so",
    "share/ro/x": "x",
    "etc/deep": "a file",
}


class Case(NamedTuple):
    """What the prefix holds and what is merged. With `is_taken_away` it was merged before and is now unmerged.

    With `again` this is merged after it, in place of it, with a manifest that is called `name` then.
    """

    before: Files
    staged: Files
    read_only: tuple[str, ...] = ()
    is_taken_away: bool = False
    again: Files | None = None
    name: str = "manifest"


CASES = {
    "into nothing": Case({}, DESTDIR, ("share/ro",)),
    "beside others": Case({"bin/x": "", "lib/x": "", "share/x": "", f"{SITE}/x.py": ""}, DESTDIR, ("share/ro",)),
    "over others": Case({"bin/tool": "2", "lib/libtool.so": Link("other"), "share/ro/y": ""}, DESTDIR, ("share/ro",)),
    "through a link": Case({"lib/x": "", "lib64": Link("lib")}, {"lib64/y": "", "lib64/new/z": ""}),
    "an upgrade": Case(distribution("dist", "1", ONE), distribution("dist", "2", TWO) | {"bin/more": ""}),
    "what brings the first site-packages": Case({"bin/x": ""}, distribution("dist", "1", ONE)),
    "taken away": Case({"bin/x": "", "var": None}, DESTDIR, ("share/ro",), is_taken_away=True),
    "a distribution taken away": Case({f"{SITE}/x.py": ""}, distribution("dist", "1", ONE), is_taken_away=True),
    "rebuilt": Case({"lib/mine": ""}, {**DESTDIR, "etc/deep/conf": "1"}, ("share/ro",), again=REBUILT),
    "rebuilt under another name": Case(
        {f"{SITE}/x.py": ""},
        {**DESTDIR, **distribution("dist", "1", ONE)},
        again={**REBUILT, **distribution("dist", "2", TWO)},
        name="manifest-2",
    ),
}


class Scenario:
    """A prefix in its initial state, made again for every trial, and the command."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case = case
        self._directory = directory
        self._manifests = directory / "manifests"
        self._manifests.mkdir()
        self._template = stage(directory / "template", case.before)
        self._staged = stage(directory / "staged", case.staged)
        for name in case.read_only:
            (self._staged / name).chmod(0o555)
        self._noted = directory / "noted"
        self._noted.mkdir()
        if case.is_taken_away or case.again is not None:
            trial = self.fresh()
            trial.merge(self._staged, manifest=self._manifests / "manifest")
            shutil.copytree(self._manifests, self._noted, dirs_exist_ok=True)
            shutil.rmtree(self._template)
            trial.path.rename(self._template)
        if case.again is not None:
            self._staged = stage(directory / "again", case.again)
        self.old, self.old_noted = self.fresh().content(), self.noted()
        done = self.fresh()
        self.run(done)
        assert done.private() == []
        self.new, self.new_noted = done.content(), self.noted()
        assert self.new != self.old

    def fresh(self) -> MergePrefix:
        """The prefix as it is before the command, with the manifests."""
        trial = self._directory / "trial"
        if trial.exists():
            shutil.rmtree(trial)
        shutil.copytree(self._template, trial, symlinks=True)
        self._restore(self._noted)
        return MergePrefix(trial)

    def noted(self) -> dict[str, bytes]:
        """The manifests, by name."""
        return {path.name: path.read_bytes() for path in self._manifests.iterdir()}

    def _restore(self, noted: Path) -> None:
        shutil.rmtree(self._manifests)
        shutil.copytree(noted, self._manifests)

    def run(self, prefix: MergePrefix) -> None:
        """The command."""
        manifest = self._manifests / "manifest"
        if self.case.again is not None:
            named = self._manifests / self.case.name
            prefix.merge(self._staged, "fail", manifest=named, replaces=manifest if named != manifest else None)
        elif not self.case.is_taken_away:
            prefix.merge(self._staged)
        elif manifest.exists():  # else it was done
            prefix.unmerge(manifest)

    def changes(self) -> list[disk.Change]:
        """Every change that the undisturbed command makes."""
        prefix = self.fresh()
        with disk.record() as changes:
            self.run(prefix)
        return changes

    def check(self, prefix: MergePrefix, why: object) -> None:
        """Check that the same command succeeds with any remains, and that another command does too."""
        let_asides_age(prefix)
        copy, noted = Path(f"{prefix.path}-next"), Path(f"{self._manifests}-next")
        shutil.copytree(prefix.path, copy, symlinks=True)
        shutil.copytree(self._manifests, noted)
        self.run(prefix)
        assert (prefix.content(), self.noted()) == (self.new, self.new_noted), why
        shutil.rmtree(prefix.path)
        copy.rename(prefix.path)
        self._restore(noted)
        shutil.rmtree(noted)
        prefix.merge(stage(self._directory / "next", {"next": ""}))
        after = {path: said for path, said in prefix.content().items() if path != "next"}
        is_done = self.essential(after) == self.essential(self.new)
        assert is_done or self.essential(after) == self.essential(self.old), why
        # A manifest that has gone with the change may still be there, without an entry.
        found = {name: content for name, content in self.noted().items() if b'"entries": {}' not in content}
        assert found == (self.new_noted if is_done else self.old_noted), why
        assert prefix.private() == [], why

    def essential(self, content: dict[str, str]) -> dict[str, str]:
        """The content; without directories if some are removed, because a directory of a journal may stay empty."""
        removes = self.case.is_taken_away or self.case.again is not None
        return {path: said for path, said in content.items() if said[0] != "d" or not removes}


def let_asides_age(prefix: MergePrefix) -> None:
    """Make state directories that were made aside so old that no process can be at work in them."""
    for aside in prefix.path.rglob(".safe-pip-*"):
        if aside.is_dir():
            os.utime(aside, (0, time.time() - 7200))


@pytest.fixture(params=CASES)
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Scenario:
    return Scenario(CASES[request.param], tmp_path)


def at_each(
    scenario: Scenario, count: int, crash: Callable[[int], contextlib.AbstractContextManager[disk.Trial]]
) -> None:
    for number, change in some(list(enumerate(scenario.changes())), count):
        prefix = scenario.fresh()
        with crash(number), contextlib.suppress(disk.Crashed, SafePipError):
            scenario.run(prefix)
        scenario.check(prefix, change)


@pytest.mark.parametrize("count", [4, pytest.param(25, marks=pytest.mark.slow)], ids=["some", "many"])
def test_killed_before_any_change_the_prefix_is_as_it_was_or_all_of_it_is_done(scenario: Scenario, count: int) -> None:
    at_each(scenario, count, disk.crash_at)


@pytest.mark.slow
def test_a_recovery_may_be_killed_before_any_change_as_well(scenario: Scenario) -> None:
    changes = scenario.changes()
    endings = [change.path.rpartition(".")[2] for change in changes]
    first, last = endings.index("journal"), endings.index("committed")
    recovered = 0
    for number, change in some(list(enumerate(changes))[first + 1 : last + 2], 1):
        (again, further), is_killed = step(3), True
        while is_killed:
            prefix = scenario.fresh()
            with disk.crash_at(number), contextlib.suppress(disk.Crashed):
                scenario.run(prefix)
            with disk.crash_at(again) as trial, contextlib.suppress(disk.Crashed):
                prefix.merge(stage(prefix.path.parent / "other", {"bin/other": "other"}), "keep")
            is_killed = trial.struck is not None
            recovered += is_killed
            if again % 2 == 0 or not is_killed:
                scene_check_with_other(scenario, prefix, (change, again))
            again += further
    assert recovered


def scene_check_with_other(scenario: Scenario, prefix: MergePrefix, why: object) -> None:
    """Check a trial in which another file may already have been merged."""
    let_asides_age(prefix)
    prefix.merge(prefix.path.parent / "other", "keep")
    prefix.merge(
        stage(prefix.path.parent / "next", {"next": ""})
    )  # a command without changes sweeps only its own remains
    found = prefix.content()
    assert "bin/other" in found
    rest = {path: said for path, said in found.items() if path not in ("bin/other", "bin", "next")}
    states = [{path: said for path, said in state.items() if path != "bin"} for state in (scenario.old, scenario.new)]
    assert scenario.essential(rest) in [*map(scenario.essential, states)], why
    assert prefix.private() == [], why


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_a_change_that_the_disk_refuses_leaves_the_prefix_as_it_was_or_all_of_it_done(
    scenario: Scenario, number: int, forever: bool
) -> None:
    for at, change in some(list(enumerate(scenario.changes())), 3):
        prefix = scenario.fresh()
        state = None
        with disk.error_at(at, number, forever=forever):
            try:
                scenario.run(prefix)
            except SafePipError as error:
                state = error.state
        if state in (State.UNCHANGED, State.RESTORED):
            assert prefix.content() == scenario.old, (change, state)
        assert forever or state is not State.UNFINISHED, change
        scenario.check(prefix, change)
