"""A file server frees the locks of a command that is alive; another command goes on; then the first one does."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from safe_pip import fs
from safe_pip.errors import SafePipError, StalePlan, State, TakenOver
from safe_pip.fs import Directory, proc
from safe_pip.journal import takeover
from safe_pip.locking import flock
from tests.crash import test_merging
from tests.crash.test_every_operation import CASES as EVERY_CASE
from tests.crash.test_every_operation import NEXT, ONE, ONE_2, TURNED, TWO, Case, Scenario
from tests.support.faults import disk
from tests.support.faults.chosen import some
from tests.support.processes.forks import in_child, killed_at
from tests.support.trees.prefixes import MergePrefix, stage
from tests.support.venvs.direct_installs import DirectPrefix

pytestmark = pytest.mark.skipif(not flock.supported, reason="no flock here")

CASES = {
    "upgrade and uninstall": Case((ONE, TWO), (ONE_2,), (ONE, TWO)),
    **{name: EVERY_CASE[name] for name in ("install", "upgrade in two renames", "upgrade with a shared directory")},
    **{name: EVERY_CASE[name] for name in ("a file for a directory", "a directory outside the tree")},
}
P = TypeVar("P", DirectPrefix, MergePrefix)


def free_locks() -> None:
    """What a file server does: the descriptors stay open, and no lock is on them any more."""
    import fcntl

    for fd in flock.own_descriptors():
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)


class Seen(NamedTuple):
    is_taken_over: bool
    is_killed: bool  # the process that took it over
    is_same: bool  # as that one left it


def install_next(prefix: DirectPrefix) -> None:
    prefix.change([NEXT])


def late(
    prefix: P, number: int, act: Callable[[P], object], other: Callable[[P], object], kill: int = sys.maxsize
) -> Seen | None:
    """Call `act`, which loses its locks at its change `number`; then `other`, up to its change `kill`; `act` goes on.

    None if there is no such change.
    """
    seen, killed, between, errors = itertools.count(), list[bool](), dict[str, str](), list[SafePipError]()

    def stop(change: disk.Change) -> None:
        if next(seen) == number:
            free_locks()
            killed.append(killed_at(kill, lambda: other(prefix)))
            between.update(prefix.content())

    with disk.watching(stop):
        try:
            act(prefix)
        except (TakenOver, StalePlan) as error:
            errors.append(error)
    assert all((error.exit_status, "Nothing was changed" in str(error)) == (75, True) for error in errors)
    return Seen(bool(errors), killed[0], prefix.content() == between) if killed else None


def check(prefix: DirectPrefix, expected: dict[str, str], why: object) -> None:
    """Check that commands find what is expected, with or without `NEXT`, and that they leave nothing else."""
    prefix.read()
    for private in prefix.site.glob(".safe-pip/*"):
        if private.is_dir():  # its owner file may have been deleted before it was made; a young one stays
            os.utime(private, (0, 0))
    if not (prefix.site / "next.py").exists():
        install_next(prefix)
    prefix.change([], [NEXT])
    assert prefix.content() == expected, why
    assert prefix.private() == [], why


def positions(scenario: Scenario) -> tuple[int, int]:
    """At which changes a journal is published and committed."""
    names = [change.path.rpartition(".")[2] for change in scenario.changes()]
    return names.index("journal"), names.index("committed")


def begun(scenario: Scenario, committed: int) -> DirectPrefix:
    """The environment after a command that was killed just before it was committed."""
    prefix = scenario.fresh()
    with disk.crash_at(committed), contextlib.suppress(disk.Crashed):
        scenario.run(prefix)
    return prefix


@pytest.mark.parametrize("case", CASES)
def test_a_late_holder_changes_nothing_and_says_so(case: str, tmp_path: Path) -> None:
    scenario = Scenario(CASES[case], tmp_path)
    published, committed = positions(scenario)
    outcomes = []
    for number in range(committed + 1):
        prefix = scenario.fresh()
        seen = late(prefix, number, scenario.run, install_next)
        assert seen is not None
        assert not seen.is_taken_over or seen.is_same, number
        check(prefix, scenario.old if seen.is_taken_over else scenario.new, number)
        outcomes.append(seen.is_taken_over)
    assert any(outcomes[:published])
    assert all(outcomes[published:])


@pytest.mark.parametrize("case", ["upgrade and uninstall", "a directory outside the tree"])
def test_a_late_taker_changes_nothing(case: str, tmp_path: Path) -> None:
    """The holder was killed, and the process that undoes its change loses its locks as well."""
    scenario = Scenario(CASES[case], tmp_path)
    committed, number = positions(scenario)[1], 0
    while (seen := late(prefix := begun(scenario, committed), number, DirectPrefix.read, install_next)) is not None:
        assert seen.is_same, number
        check(prefix, scenario.old, number)
        number += 1
    assert number > 3  # the journal gets another name, a directory is made, and filled


@pytest.mark.parametrize("case", ["upgrade and uninstall", "a file for a directory"])
def test_a_late_holder_changes_nothing_for_good_if_the_next_process_dies(case: str, tmp_path: Path) -> None:
    """It goes on in the middle of what that one did to take its transaction over."""
    scenario = Scenario(CASES[case], tmp_path)
    published, committed = positions(scenario)
    changes = [*enumerate(scenario.changes())]
    for number, change in (*some(changes[:published], 3), *some(changes[published + 1 : committed + 1], 3)):
        # Before there is a journal, a reader finds nothing.
        other, kills = (install_next, range(80)) if number < published else (DirectPrefix.read, range(99))
        for kill, _ in some([(kill, change) for kill in kills], 12) if number < published else enumerate(kills):
            seen = late(prefix := scenario.fresh(), number, scenario.run, other, kill)
            assert seen is not None
            check(prefix, scenario.old if seen.is_taken_over else scenario.new, (change, kill))
            if not seen.is_killed:
                break


def test_a_late_taker_changes_nothing_for_good_if_the_next_process_dies(tmp_path: Path) -> None:
    scenario = Scenario(CASES["upgrade and uninstall"], tmp_path)
    committed = positions(scenario)[1]
    prefix = begun(scenario, committed)
    with disk.record() as changes:
        prefix.read()
    for number, change in some([*enumerate(changes)], 4):
        for kill in itertools.count():
            seen = late(prefix := begun(scenario, committed), number, DirectPrefix.read, DirectPrefix.read, kill)
            assert seen is not None
            check(prefix, scenario.old, (change, kill))
            if not seen.is_killed:
                break


def test_a_late_holder_leaves_what_was_changed_since_it_looked(tmp_path: Path) -> None:
    """The next process was killed after its commit, before it would have deleted what the late one had staged."""
    scenario = Scenario(Case((ONE, TWO), (ONE_2,), (ONE,)), tmp_path)
    published = positions(scenario)[0]

    def other(prefix: DirectPrefix) -> None:
        prefix.change([TURNED], [ONE])

    with disk.record() as changes:
        other(scenario.fresh())
    committed = [change.path.rpartition(".")[2] for change in changes].index("committed")
    # Before that it gives the private directory another name, and removes the journal in it.
    for kill in range(committed + 3, len(changes)):
        seen = late(scenario.fresh(), published, scenario.run, other, kill)
        assert seen == (True, True, True), kill


@pytest.mark.parametrize("case", ["taken away", "rebuilt"])
def test_a_late_merge_changes_nothing(case: str, tmp_path: Path) -> None:
    """It opens read-only directories as well: nothing private is in the way of that."""
    scenario = test_merging.Scenario(test_merging.CASES[case], tmp_path)
    following = stage(tmp_path / "next", {"next": ""})
    changes = scenario.changes()
    committed = [change.path.rpartition(".")[2] for change in changes].index("committed")
    for number, change in enumerate(changes[: committed + 1]):
        prefix = scenario.fresh()
        seen = late(prefix, number, scenario.run, lambda prefix: prefix.merge(following))
        assert seen is not None
        assert not seen.is_taken_over or seen.is_same, change
        found = prefix.content()
        assert found.pop("next")
        expected = (scenario.old, scenario.old_noted) if seen.is_taken_over else (scenario.new, scenario.new_noted)
        assert (found, scenario.noted()) == expected, change


RENAMES = {"move", "move_over", "exchange"}


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectPrefix:
    """With one distribution, on a filesystem that several hosts may use."""
    monkeypatch.setattr(proc, "is_shared", lambda path: True)
    monkeypatch.setattr(proc, "is_shared_device", lambda device, path: True)
    found = DirectPrefix(tmp_path / "prefix")
    found.change([ONE])
    return found


def replaced(prefix: DirectPrefix) -> None:
    prefix.change([ONE_2], [ONE])


def undone(prefix: DirectPrefix) -> None:
    """What the first operations did was there for a moment."""
    with disk.error_at(2, errno.ENOSPC, only=RENAMES) as trial, contextlib.suppress(SafePipError):
        replaced(prefix)
    assert trial.struck is not None


@pytest.mark.parametrize("happens", [replaced, undone])
def test_a_late_reader_reads_again(prefix: DirectPrefix, happens: Callable[[DirectPrefix], None]) -> None:
    """The change begins and ends while it reads: no journal is there before or after."""
    found: list[str] = []

    def take() -> None:
        found.append((prefix.site / "one/__init__.py").read_text())
        if len(found) == 1:
            free_locks()
            in_child(lambda: happens(prefix))

    prefix.transaction().read(take)
    assert len(found) == 2
    names = [path.name for path in (prefix.site / ".safe-pip").iterdir()]
    assert len([name for name in names if name.endswith(".ended")]) == 1


@pytest.mark.parametrize("is_blind", [False, True], ids=["then it answers", "it answers nothing"])
@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EBADFD, errno.ESTALE, errno.EIO], ids=errno.errorcode.get)
def test_a_host_that_is_cut_off_says_that_nothing_was_changed(
    prefix: DirectPrefix, number: int, is_blind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir, trials = os.listdir, [disk.Trial()]

    def refused(path: Any = ".") -> list[str]:
        if is_blind and trials[-1].struck is not None:
            raise OSError(number, os.strerror(number))
        return listdir(path)

    before = prefix.content()
    with disk.record() as changes:
        replaced(prefix)
    renames = [each.path.rpartition(".")[2] for each in changes if each.operation in RENAMES]
    prefix.change([ONE], [ONE_2])
    for at in range(renames.index("journal"), renames.index("committed") + 1):
        with disk.error_at(at, number, forever=True, only=RENAMES) as trial, monkeypatch.context() as patched:
            trials.append(trial)
            patched.setattr(os, "listdir", refused)
            patched.setattr(takeover, "_now", itertools.count(step=30).__next__)
            patched.setattr(takeover, "_sleep", lambda seconds: None)
            with pytest.raises(SafePipError) as raised:
                replaced(prefix)
        if is_blind and at == renames.index("committed"):
            assert raised.value.state is State.UNKNOWN  # the last rename may have been carried out
        else:
            assert isinstance(raised.value, TakenOver)
            assert raised.value.state is State.UNCHANGED
            assert "could not be reached" in str(raised.value)
        prefix.read()
        assert prefix.content() == before, at


@pytest.mark.parametrize("is_carried_out", [False, True], ids=["not carried out", "carried out"])
@pytest.mark.parametrize("is_gone_on", [False, True], ids=["alone", "another one goes on"])
def test_a_host_that_is_cut_off_in_its_last_rename_finds_out_when_the_server_answers(
    prefix: DirectPrefix, monkeypatch: pytest.MonkeyPatch, is_carried_out: bool, is_gone_on: bool
) -> None:
    move, listdir, cut = fs.move_fresh, os.listdir, [False]

    def moved(source: Directory, name: str, destination: Directory, new_name: str) -> None:
        is_last = new_name.endswith(".committed")
        if not (cut[0] or is_last) or (is_last and is_carried_out):
            move(source, name, destination, new_name)
        cut[0] |= is_last
        if cut[0]:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def listed(path: Any = ".") -> list[str]:
        if cut[0]:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return listdir(path)

    def mend(seconds: float) -> None:
        cut[0] = False
        monkeypatch.setattr(fs, "move_fresh", move)
        if is_gone_on:
            free_locks()
            in_child(lambda: install_next(prefix))

    monkeypatch.setattr(fs, "move_fresh", moved)
    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(takeover, "_sleep", mend)
    with contextlib.nullcontext() if is_carried_out else pytest.raises(TakenOver, match="Nothing was changed"):
        replaced(prefix)
    prefix.read()
    assert (prefix.site / "one/__init__.py").read_text() == ("22" if is_carried_out else "1")
    assert (prefix.site / "next.py").exists() == is_gone_on
