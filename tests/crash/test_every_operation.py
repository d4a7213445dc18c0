"""A crash, or an error of the disk, at every change that a command makes: the old environment, or the new one."""

import contextlib
import errno
import itertools
import os
import resource
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from safe_pip.errors import SafePipError, State
from safe_pip.locking import flock
from tests.support.faults import disk
from tests.support.faults.chosen import EVERY, some, step
from tests.support.processes.forks import in_child
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution, without_exchange

ONE = SmallDistribution(
    "one", "1", {"site/one/__init__.py": "1", "site/one/gone.py": "", "bin/one": "1", "site/ns/one.py": "1"}
)
ONE_2 = SmallDistribution(
    "one", "2", {"site/one/__init__.py": "22", "site/one/come/x.py": "", "bin/one": "22", "site/ns/one.py": "22"}
)
TWO = SmallDistribution("two", "1", {"site/two.py": "1", "site/ns/two.py": "1", "bin/two": "1", "share/two/data": "1"})
TWO_2 = SmallDistribution(
    "two", "2", {"site/two.py": "22", "site/ns/deep/two.py": "22", "bin/two": "22", "share/two/more": "22"}
)
DATA = SmallDistribution("data", "1", {"site/data.py": "1", "share/data/a": "1", "share/data/gone/b": "1"})
DATA_2 = SmallDistribution("data", "2", {"site/data.py": "22", "share/data/a": "22", "share/data/deep/c": "22"})
NEXT = SmallDistribution("next", "1", {"site/next.py": ""})
TURNED = SmallDistribution("one", "3", {"site/one.py": "333", "bin/one/inner": "333"})


LONG_AGO = 1_600_000_000


class Case(NamedTuple):
    """What is installed before, what is added, what is removed."""

    before: tuple[SmallDistribution, ...]
    new: tuple[SmallDistribution, ...] = ()
    old: tuple[SmallDistribution, ...] = ()
    exchange: bool = True
    shared_bin: bool = False
    unowned: bool = False


CASES = {
    "install": Case((), (ONE, TWO)),
    "install beside another": Case((TWO,), (ONE,)),
    "upgrade in two renames": Case((ONE, TWO), (ONE_2,), (ONE,), exchange=False),
    "upgrade of two": Case((ONE, TWO), (ONE_2, TWO_2), (ONE, TWO)),
    "upgrade with unowned data": Case((ONE,), (ONE_2,), (ONE,), unowned=True),
    "upgrade with a shared directory": Case((ONE, TWO), (ONE_2, TWO_2), (ONE, TWO), shared_bin=True),
    "reinstall": Case((ONE,), (ONE,), (ONE,)),
    "a file for a directory": Case((ONE,), (TURNED,), (ONE,)),
    "a directory outside the tree": Case((DATA,), (DATA_2,), (DATA,)),
    "a directory outside the tree in two renames": Case((DATA,), (DATA_2,), (DATA,), exchange=False),
    "uninstall": Case((ONE, TWO), (), (ONE,)),
    "uninstall of two": Case((ONE, TWO), (), (ONE, TWO)),
    "uninstall beside unowned data": Case((ONE, TWO), (), (ONE,), unowned=True),
}


WITH_FEW_DESCRIPTORS = ("install", "upgrade of two", "upgrade with a shared directory", "uninstall")
"""Descriptors are one for each directory and each lock, whatever the operations are."""


class Scenario:
    """A prefix in its initial state, made again for every trial, and the command."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case = case
        self._directory = directory
        self._template = DirectPrefix(directory / "template", shared_bin=case.shared_bin)
        if case.before:
            self._template.change(case.before)
        if case.unowned:
            self._template.write({"site/one/mine/data.txt": "mine", "site/one/note.txt": "mine"})
        # What is staged in the second of what it replaces gets another time: all trials shall make the same changes.
        for path in self._template.root.rglob("*"):
            os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        self.old = self._template.content()
        done = self.fresh()
        self.run(done)
        assert done.private() == []
        self.new = done.content()
        assert self.new != self.old or case.new == case.old

    def fresh(self) -> DirectPrefix:
        """The environment as it is before the command."""
        root = self._directory / "trial"
        if root.exists():
            shutil.rmtree(root)
        shutil.copytree(self._template.root, root, symlinks=True)
        return DirectPrefix(root, shared_bin=self.case.shared_bin)

    def run(self, prefix: DirectPrefix) -> None:
        """The command."""
        with contextlib.nullcontext() if self.case.exchange else without_exchange():
            prefix.change(self.case.new, self.case.old)

    def changes(self) -> list[disk.Change]:
        """Every change that the undisturbed command makes."""
        prefix = self.fresh()
        with disk.record() as changes:
            self.run(prefix)
        return changes

    def check(self, prefix: DirectPrefix, why: object) -> None:
        """Check that the next command sees the old or the new environment, and that a writer leaves no remains."""
        prefix.read()
        found = prefix.content()
        assert found in (self.old, self.new), why
        for aside in prefix.site.glob(".safe-pip-*"):
            os.utime(aside, (0, time.time() - 7200))  # A process may be at work in a younger one.
        if found == self.old:
            self.run(prefix)
            assert prefix.content() == self.new, why
        else:
            prefix.change([NEXT])
        assert prefix.private() == [], why


@pytest.fixture(params=CASES)
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Scenario:
    return Scenario(CASES[request.param], tmp_path)


def test_a_command_killed_before_any_change_leaves_the_old_environment_or_the_new_one(scenario: Scenario) -> None:
    for number, change in enumerate(scenario.changes()):
        for torn in {False, change.operation == "write"}:
            prefix = scenario.fresh()
            with disk.crash_at(number, torn=torn), contextlib.suppress(disk.Crashed):
                scenario.run(prefix)
            scenario.check(prefix, change)


@pytest.mark.slow
def test_a_recovery_may_be_killed_before_any_change_as_well(scenario: Scenario) -> None:
    recovered = 0
    changes = scenario.changes()
    paths = [change.path.rpartition(".")[2] for change in changes]
    first, last = paths.index("journal"), paths.index("committed")
    during = list(enumerate(changes))[first + 1 : last + 1]
    for number, change in {*some(during, 1), during[len(during) // 2]}:
        (again, further), is_killed = step(2), True
        while is_killed:
            prefix = scenario.fresh()
            with disk.crash_at(number), contextlib.suppress(disk.Crashed):
                scenario.run(prefix)
            with disk.crash_at(again) as trial, contextlib.suppress(disk.Crashed):
                prefix.read()
            is_killed = trial.struck is not None
            recovered += is_killed
            scenario.check(prefix, (change, again))
            again += further
    assert recovered


def test_a_directory_outside_the_tree_is_replaced_as_a_whole(tmp_path: Path) -> None:
    changes = Scenario(CASES["a directory outside the tree"], tmp_path).changes()
    assert [change for change in changes if change.operation == "exchange" and change.path.endswith("/share/data")]


def killed_after(scenario: Scenario, suffix: str) -> DirectPrefix:
    """The environment after a process that was killed as soon as its journal had this name."""
    names = [change.path.rpartition(".")[2] for change in scenario.changes()]
    prefix = scenario.fresh()
    with disk.crash_at(names.index(suffix) + 1), contextlib.suppress(disk.Crashed):
        scenario.run(prefix)
    return prefix


@pytest.mark.slow
def test_a_command_that_finishes_another_one_may_be_killed_before_any_change(scenario: Scenario) -> None:
    number, is_killed = 0, True
    while is_killed:
        prefix = killed_after(scenario, "committed")
        with disk.crash_at(number) as trial, contextlib.suppress(disk.Crashed):
            prefix.change([NEXT])
        is_killed = trial.struck is not None
        prefix.read()
        prefix.change([], [NEXT] if (prefix.site / "next.py").exists() else [])
        scenario.check(prefix, trial.struck)
        number += 1 if EVERY else 7
    assert number > 7


@pytest.mark.parametrize("suffix", ["journal", "committed"])
def test_what_a_killed_process_left_is_deleted_with_no_commit_lock_held(scenario: Scenario, suffix: str) -> None:
    prefix = killed_after(scenario, suffix)
    (private,) = (path for path in prefix.site.glob(".safe-pip/*") if path.is_dir())
    deleted: dict[disk.Change, bool] = {}

    def look(change: disk.Change) -> None:
        if change.operation.startswith("remove") and change.path.startswith(f"{private}/"):
            deleted[change] = flock.is_locked(prefix.site / ".safe-pip/commit")

    with disk.watching(look):
        prefix.change([NEXT])
    assert False in deleted.values()
    for change in (change for change, is_locked in deleted.items() if is_locked):
        # Under the lock only directories go, empty ones, to which a process that lives could still move something.
        assert suffix == "journal"
        assert change.operation == "remove_directory"
        assert change.path.startswith((f"{private}/stage", f"{private}/trash"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_a_change_that_the_disk_refuses_leaves_the_old_environment_or_the_new_one(
    scenario: Scenario, number: int, forever: bool
) -> None:
    for at, change in some(list(enumerate(scenario.changes())), 6):
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


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors cannot be counted here")
@pytest.mark.parametrize("scenario", WITH_FEW_DESCRIPTORS, indirect=True)
def test_with_few_descriptors_a_commit_is_refused_made_or_undone(scenario: Scenario) -> None:
    """Each operation fails while the process has as few descriptors as a commit needs, or fewer."""
    paths = [change.path.rpartition(".")[2] for change in scenario.changes()]
    for most, refused in itertools.product(range(8, 16), (None, paths.index("journal") + 1, paths.index("committed"))):
        prefix = scenario.fresh()

        def act(most: int = most, refused: int | None = refused, prefix: DirectPrefix = prefix) -> None:
            os.closerange(3, 1000)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            with contextlib.suppress(SafePipError), disk.error_at(10**6 if refused is None else refused, errno.EIO):
                scenario.run(prefix)
                assert refused is None
                return
            assert refused is not None or most < 14 + scenario.case.shared_bin  # which has a lock of its own
            assert prefix.content() == scenario.old

        in_child(act)
        assert not [*prefix.site.glob(".safe-pip/*.journal")]
        scenario.check(prefix, (most, refused))


def test_nothing_in_the_target_is_changed_that_is_not_in_a_journal_first(scenario: Scenario) -> None:
    prefix = scenario.fresh()
    with disk.record() as changes:
        scenario.run(prefix)
    journaled = [change.path.endswith(".journal") for change in changes].index(True)
    for change in changes[:journaled]:
        changed = change.paths if change.operation in ("move", "move_over", "exchange") else (change.path,)
        assert all("/.safe-pip" in path for path in changed), change
    assert any("/.safe-pip" not in path for change in changes[journaled:] for path in change.paths)


@pytest.mark.parametrize("is_removed", [False, True], ids=["moved", "removed"])
def test_an_environment_that_goes_away_is_changed_or_not_as_the_command_says(tmp_path, is_removed):
    """`mv` or `rm -rf` of all of it before each change of a commit."""
    number, is_over = 0, False
    while not is_over:
        prefix, elsewhere = DirectPrefix(tmp_path / f"{number}"), tmp_path / f"{number}-moved"
        prefix.change([ONE])
        before, state, changes = prefix.content(), None, list[disk.Change]()

        def go(
            change: disk.Change,
            root: Path = prefix.root,
            elsewhere: Path = elsewhere,
            changes: list[disk.Change] = changes,
            number: int = number,
        ) -> None:
            changes.append(change)
            if len(changes) == number + 1:
                shutil.rmtree(root) if is_removed else root.rename(elsewhere)

        transaction = prefix.transaction()
        try:
            with contextlib.ExitStack() as watching, transaction.staging(prefix.target) as change:
                prefix.stage(change, [ONE_2], [ONE])
                watching.enter_context(disk.watching(go))
                transaction.commit(change, lambda now: ())
        except SafePipError as error:
            state = error.state
        is_over = len(changes) <= number
        assert state in (None, State.UNCHANGED, State.RESTORED), number
        if elsewhere.exists():
            shutil.rmtree(prefix.root, ignore_errors=True)
            elsewhere.rename(prefix.root)
            prefix.read()
            assert (prefix.content() == before) is (state is not None), number
        number += 1
