"""A process that wants work which another does now waits while the other makes progress, and then has nothing to do."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.fs import space
from safe_pip.locking import flock, holders, state_directory
from safe_pip.store import prepare
from safe_pip.store.prepare import Preparing
from safe_pip.store.wheels import Store
from tests.support.faults import disk

pytestmark = pytest.mark.skipif(not flock.supported, reason="there are no locks here, and so there is no store")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "cache").mkdir(mode=0o700)
    found = Store.below(tmp_path / "cache")
    assert found is not None
    return found


def tool(store: Store, waiting: Callable[..., None] = lambda what, holders: None) -> Preparing:
    return Preparing(store, None, limit=10**9, waiting=waiting)


def take_turn(tool: Preparing, what: str, is_over: Callable[[], bool]) -> ExitStack:
    """What the turn of a process lasts until it is closed, if it has one."""
    turn = ExitStack()
    tool.take_turn(what, is_over, turn)
    return turn


def not_yet() -> bool:
    return False


def is_free(store: Store) -> bool:
    return not os.path.exists(store.path / "making") or not os.listdir(store.path / "making")


def test_a_process_without_competitors_gets_its_turn_at_once_and_leaves_nothing(store: Store) -> None:
    process = tool(store)
    turn = take_turn(process, "this", not_yet)
    process.show_progress()
    assert not is_free(store)
    turn.close()
    process.show_progress()
    assert is_free(store)


def test_the_limit_of_descriptors_is_known_where_python_has_no_module_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert space.descriptor_limit() > 0


def test_an_install_of_something_else_is_not_waited_for(store: Store) -> None:
    first, second = take_turn(tool(store), "this", not_yet), take_turn(tool(store), "that", not_yet)
    first.close()
    second.close()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a process has found that it must wait; it waits without limit."""
    event, wait_lock = threading.Event(), flock.wait_lock

    def note(descriptor: flock.Descriptor, *, exclusive: bool, seconds: float) -> bool:
        if seconds:
            event.set()
        return wait_lock(descriptor, exclusive=exclusive, seconds=seconds)

    monkeypatch.setattr(flock, "wait_lock", note)
    monkeypatch.setattr(prepare, "_PATIENCE", 1000.0)
    return event


def test_a_process_that_finds_the_work_done_after_waiting_has_no_turn(store: Store, begun: threading.Event) -> None:
    first = take_turn(tool(store), "this", not_yet)
    found: list[ExitStack] = []
    waiting = threading.Thread(target=lambda: found.append(take_turn(tool(store), "this", lambda: True)))
    waiting.start()
    begun.wait()
    first.close()
    waiting.join()
    assert len(found) == 1
    assert is_free(store)


def test_a_process_that_finds_the_work_not_done_has_the_next_turn(store: Store, begun: threading.Event) -> None:
    first = take_turn(tool(store), "this", not_yet)
    found: list[ExitStack] = []
    waiting = threading.Thread(target=lambda: found.append(take_turn(tool(store), "this", not_yet)))
    waiting.start()
    begun.wait()
    first.close()
    waiting.join()
    (turn,) = found
    assert not is_free(store)
    turn.close()
    assert is_free(store)


def test_an_idle_process_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_PATIENCE", 0.0)
    first, process = take_turn(tool(store), "this", not_yet), tool(store)
    turn = take_turn(process, "this", not_yet)
    process.show_progress()
    turn.close()
    assert not is_free(store)
    first.close()


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param("111", id="nothing, twice"),
        pytest.param("1234555", id="something, for a while"),
        pytest.param("11233455666", id="something in every other second"),
        pytest.param("1RRRRRR111", id="ready to run"),
    ],
)
def test_a_working_process_is_waited_for_until_it_stops_working(store, monkeypatch, seen: str) -> None:
    first, looks = take_turn(tool(store), "this", not_yet), iter(seen)
    waits(monkeypatch)
    monkeypatch.setattr(holders, "work_at", lambda path: work(next(looks)))
    turn = take_turn(tool(store), "this", not_yet)
    assert [*looks] == []
    turn.close()
    first.close()


def work(seen: str) -> tuple[list[str], bool]:
    """The work of a process that has used this CPU time; with R none yet, but it is ready to run."""
    return ["1" if seen == "R" else seen], seen == "R"


def test_a_process_without_a_result_for_a_minute_is_not_waited_for(store, monkeypatch) -> None:
    first, count = take_turn(tool(store), "this", not_yet), itertools.count()
    waits(monkeypatch)
    monkeypatch.setattr(holders, "work_at", lambda path: ([f"{next(count)}"], False))
    turn = take_turn(tool(store), "this", not_yet)
    assert next(count) == prepare.LONGEST + 2
    turn.close()
    first.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that several hosts use; each has a store of its own."""
    (tmp_path / "site-packages").mkdir()
    state_directory.make(tmp_path / "site-packages")
    return tmp_path / "site-packages"


def on_a_host(tmp_path: Path, name: str) -> Preparing:
    (tmp_path / name).mkdir(mode=0o700)
    store = Store.below(tmp_path / name)
    assert store is not None
    return tool(store)


def take_shared(tool: Preparing, is_over: Callable[[], bool], tree: Path) -> ExitStack:
    turn = ExitStack()
    tool.take_turn("this", is_over, turn, tree)
    return turn


def turns(tree: Path) -> list[str]:
    return [name for name in os.listdir(tree / ".safe-pip") if name.endswith(".making")]


@pytest.mark.parametrize("is_done", [True, False], ids=["done", "not done"])
def test_a_process_on_another_host_waits_and_looks_once(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    first, other = on_a_host(tmp_path, "one"), on_a_host(tmp_path, "two")
    turn = take_shared(first, not_yet, tree)
    assert len(turns(tree)) == 1
    answers = iter([False, is_done])  # when it has its turn on its own host, and when the other host is done
    waits(monkeypatch, lambda: None, lambda: None, turn.close)
    later = take_shared(other, lambda: next(answers), tree)
    assert list(answers) == []
    assert len(turns(tree)) == (0 if is_done else 1)
    later.close()
    assert turns(tree) == []


def test_the_file_of_a_turn_that_a_killed_process_has_left_stops_no_other(tmp_path: Path, tree: Path) -> None:
    one = on_a_host(tmp_path, "one")
    turn = take_shared(one, not_yet, tree)
    (name,) = turns(tree)
    turn.close()
    (tree / ".safe-pip" / name).touch()
    turn = take_shared(one, not_yet, tree)
    assert flock.is_locked(tree / ".safe-pip" / name)
    turn.close()
    assert turns(tree) == []


HOLDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from safe_pip.store.prepare import Preparing
from safe_pip.store.wheels import Store
from tests.support.faults import disk

turn = ExitStack()
Preparing(Store.below(Path(sys.argv[1])), None, limit=1).take_turn("this", lambda: False, turn, Path(sys.argv[2]))
print(flush=True)
sys.stdin.read()
"""


def test_when_the_process_of_another_host_is_killed_the_one_that_waits_takes_over(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir(mode=0o700)
    command, pipe = [sys.executable, "-c", HOLDER, tmp_path / "one", tree], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        (name,) = turns(tree)

        def kill() -> None:
            holder.kill()
            holder.wait()

        waits(monkeypatch, lambda: None, kill)
        turn = take_shared(on_a_host(tmp_path, "two"), not_yet, tree)
        assert flock.is_locked(tree / ".safe-pip" / name)
    turn.close()
    assert turns(tree) == []


def test_a_process_on_another_host_that_shows_nothing_for_a_minute_is_not_waited_for(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = on_a_host(tmp_path, "one"), on_a_host(tmp_path, "two")
    turn = take_shared(first, not_yet, tree)
    looks: list[Path] = []
    shows = [lambda: None, lambda: os.utime(tree / ".safe-pip" / turns(tree)[0], (1, 1))]
    waits(monkeypatch, *shows)
    monkeypatch.setattr(holders, "work_at", lambda place: looks.append(place) or ([], False))
    later = take_shared(other, not_yet, tree)
    assert len(looks) == prepare.LONGEST + 4
    later.close()
    turn.close()


def test_while_a_process_waits_for_another_host_those_on_its_own_host_see_it_at_work(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = on_a_host(tmp_path, "one"), on_a_host(tmp_path, "two")
    turn = take_shared(first, not_yet, tree)
    touched: list[Path] = []
    monkeypatch.setattr(fs, "touch", touched.append)
    waits(monkeypatch, lambda: None, turn.close)
    take_shared(other, not_yet, tree).close()
    assert {path.parents[3] for path in touched} == {tmp_path / "two"}
    assert len(touched) >= 2


def test_where_no_file_of_a_turn_can_be_made_every_host_continues(tmp_path: Path, tree: Path) -> None:
    one = on_a_host(tmp_path, "one")
    shutil.rmtree(tree / ".safe-pip")
    take_shared(one, not_yet, tree).close()
    assert one.refused is None


def test_without_a_place_for_turns_every_process_continues(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, key: str) -> Path:
        raise PermissionError(13, "Permission denied", key)

    monkeypatch.setattr(Store, "mutex", refuse)
    tools = tool(store)
    turn = take_turn(tools, "this", lambda: True)
    turn.close()
    assert isinstance(tools.refused, PermissionError)


def test_a_turn_whose_file_cannot_be_removed_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = take_turn(tool(store), "this", not_yet)
    with disk.error_at(0, errno.ENOTCONN, forever=True):  # the file server is gone, when the change is made
        turn.close()
    assert len([*(store.path / "making").iterdir()]) == 1
    take_turn(tool(store), "this", not_yet).close()
    assert [*(store.path / "making").iterdir()] == []


def test_a_process_that_comes_just_after_the_work_was_done_has_no_turn(store: Store) -> None:
    asked = []

    def is_over() -> bool:
        asked.append(is_free(store))
        return True

    take_turn(tool(store), "this", is_over)
    assert asked == [False], "another one could have begun while it was asked"
    assert is_free(store)


def test_a_process_whose_question_fails_has_no_turn(store: Store) -> None:
    def fail() -> bool:
        raise RuntimeError("what was planned cannot be done any more")

    with pytest.raises(RuntimeError):
        take_turn(tool(store), "this", fail)
    assert is_free(store)


def test_a_turn_that_ends_just_when_another_one_begins_to_wait_is_followed_by_his(store, monkeypatch) -> None:
    first, wait_lock = take_turn(tool(store), "this", not_yet), flock.wait_lock

    def refuse(descriptor: flock.Descriptor, *, exclusive: bool, seconds: float) -> bool:
        monkeypatch.setattr(flock, "wait_lock", wait_lock)
        first.close()
        return False

    monkeypatch.setattr(flock, "wait_lock", refuse)
    turn = take_turn(tool(store), "this", not_yet)
    assert not is_free(store)
    turn.close()
    assert is_free(store)


def waits(monkeypatch: pytest.MonkeyPatch, *meanwhile: Callable[[], None]) -> None:
    """Make each second of a wait pass at once; one event after the other happens in these seconds."""
    wait_lock, seconds_to_come = flock.wait_lock, [*meanwhile]

    def wait(descriptor: flock.Descriptor, *, exclusive: bool, seconds: float) -> bool:
        if seconds and seconds_to_come:
            seconds_to_come.pop(0)()
        return wait_lock(descriptor, exclusive=exclusive, seconds=0)

    monkeypatch.setattr(flock, "wait_lock", wait)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def telling(store: Store, told: list[str]) -> Preparing:
    return tool(store, lambda what, holders: told.append(what))


def test_a_wait_of_more_than_a_second_for_a_turn_is_reported_once(store, telling, told, monkeypatch) -> None:
    first = take_turn(tool(store), "this", not_yet)
    times = iter(range(1, 9))

    def show_progress() -> None:
        os.utime(store.path / "making" / os.listdir(store.path / "making")[0], (next(times),) * 2)

    waits(monkeypatch, show_progress, show_progress, show_progress, first.close)
    turn = take_turn(telling, "this", not_yet)
    assert told == ["install the same"]
    turn.close()


def test_a_wait_of_at_most_a_second_is_not_reported(store, telling, told, monkeypatch) -> None:
    first = take_turn(tool(store), "this", not_yet)
    waits(monkeypatch, first.close)
    turn = take_turn(telling, "this", not_yet)
    assert not is_free(store)
    turn.close()
    assert told == []


def test_a_process_that_continues_alone_has_named_the_process_it_waited_for(store, telling, told, monkeypatch) -> None:
    first = take_turn(tool(store), "this", not_yet)
    waits(monkeypatch)
    turn = take_turn(telling, "this", not_yet)
    assert told == ["install the same"]
    first.close()
    turn.close()
