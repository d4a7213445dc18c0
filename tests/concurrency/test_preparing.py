"""Many processes want one prepared wheel: one of them prepares it, the others wait, and never for a dead process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import safe_pip
from safe_pip.fs import proc
from safe_pip.locking import flock
from safe_pip.store import compile
from safe_pip.store.wheels import FILES, Store
from tests.support.processes.workers import is_waiter, wait_until
from tests.support.wheels.tiny import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not flock.supported, reason="there are no locks here, and so there is no store"),
]

PROGRAM = """
import json, os, select, sys
from pathlib import Path
from safe_pip.store import compile, prepare, unpack
from safe_pip.store.wheels import Store

cache, seconds, stays, *wheels = sys.argv[1:]
prepare._PATIENCE = float(seconds)
prepare.LONGEST = sys.maxsize
compile_sources = unpack.compile_sources

def compile_and_stay(files, **more):
    print(json.dumps({"event": "preparing", "what": [each.name for each in files]}), flush=True)
    sys.stdin.readline()
    return compile_sources(files, **more)

def compile_and_work(files, **more):
    print(json.dumps({"event": "preparing", "what": [each.name for each in files]}), flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        pass
    return compile_sources(files, **more)

def compile_and_store(files, **more):
    # Until it runs a program, a child keeps its parent from being woken up by anything, as a slow disk does.
    print(json.dumps({"event": "preparing", "what": [each.name for each in files]}), flush=True)
    gate = sys.stdin.readline().strip()
    os.posix_spawn("/bin/true", ["true"], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 9, gate, os.O_RDONLY, 0)])
    return compile_sources(files, **more)

def look(self, ask=prepare.Heartbeat.look):
    found = ask(self)
    print(json.dumps({"event": "looked"}), flush=True)
    return found

def waiting(what, holders):
    print(json.dumps({"event": "waiting", "for": [holder.pid for holder in holders]}), flush=True)

prepare.Heartbeat.look = look
if stays != "goes":
    unpack.compile_sources = {
        "stays": compile_and_stay, "works": compile_and_work, "stores": compile_and_store
    }[stays]
tool = prepare.Preparing(Store.below(Path(cache)), compile.key(), limit=10**9, waiting=waiting)
waited = []
def unneeded():
    waited.append(1)
    return ()
found = tool.prepare(map(Path, wheels), unneeded)
names = [Path(entry.path).name for entry in found.values()]
print(json.dumps({"event": "done", "names": names, "made": tool._has_made, "waited": len(waited)}), flush=True)
sys.stdin.readline()
"""
LONG = 1000.0


class Preparer:
    """A process that prepares wheels, and holds them until it is told to end."""

    def __init__(self, cache: Path, *wheels: Path, patience: float = LONG, does: str = "goes") -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)}
        words = [cache, patience, does, *wheels]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self.process.pid

    def next(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        while found["event"] == "looked" != event:
            found = json.loads(self.process.stdout.readline())
        assert found["event"] == event
        return found

    def go_on(self, word: object = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def preparers(*all_words: tuple[Any, ...], **more: Any) -> Iterator[list[Preparer]]:
    with ExitStack() as stack:
        made = []
        for words in all_words:
            made.append(Preparer(*words, **more))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return Project("demo", "1", files={f"demo/module{number}.py": "" for number in range(50)}).write_wheel(tmp_path)


def is_whole(cache: Path, count: int) -> bool:
    store = Store.existing(cache)
    assert store is not None
    entries = [store.find(entry.path.name) for entry in store.entries()]
    for entry in entries:
        assert entry is not None
        compiled = [path for path in (entry.path / FILES).rglob("*.pyc") if compile.key()]
        assert len(compiled) == sum(file[0].endswith(".py") for file in entry.listing.files[""])
        entry.close()
    assert not list((store.path / "making").iterdir())
    return len(entries) == count


def test_one_of_eight_processes_prepares_a_wheel_and_all_use_it(cache, wheel):
    with preparers(*[(cache, wheel)] * 8) as all_eight:
        done = [each.next("done") for each in all_eight]
    assert [each["made"] for each in done].count(True) == 1
    assert {*map(tuple, (each["names"] for each in done))} == {tuple(done[0]["names"])}
    assert is_whole(cache, 1)


def test_if_the_preparing_process_is_killed_one_of_seven_waiting_processes_continues(cache, wheel):
    with preparers((cache, wheel), does="stays") as (first,):
        first.next("preparing")
        with preparers(*[(cache, wheel)] * 7) as seven:
            for each in seven:
                wait_until(lambda each=each: is_waiter(each.pid))
            first.kill()
            done = [each.next("done") for each in seven]
            assert [each["made"] for each in done].count(True) == 1
            assert all(each["names"] for each in done)
            assert not list(Path(cache, "safe-pip", "prepared-v1", "aside").iterdir())
    assert is_whole(cache, 1)


def test_if_the_preparing_process_is_stopped_another_process_prepares_the_wheel(cache, wheel):
    with preparers((cache, wheel), does="stays") as (first,):
        first.next("preparing")
        os.kill(first.pid, signal.SIGSTOP)
        with preparers((cache, wheel), patience=0.01) as (second,):
            assert second.next("waiting")["for"] == [first.pid]
            assert second.next("done")["made"]
        os.kill(first.pid, signal.SIGCONT)
        first.go_on()
        assert first.next("done")["names"]
    assert is_whole(cache, 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not tell which process works")
def test_a_process_that_compiles_one_module_for_long_is_waited_for(cache, wheel):
    with preparers((cache, wheel), does="works") as (first,):
        first.next("preparing")
        with preparers(*[(cache, wheel)] * 3, patience=1.0) as three:
            for each in three:
                assert each.next("waiting")["for"] == [first.pid]
                each.next("looked")
                each.next("looked")
            first.go_on()
            assert first.next("done")["made"]
            assert [each.next("done")["made"] for each in three] == [False] * 3
    assert is_whole(cache, 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the kernel does not tell which process works")
def test_a_process_that_waits_long_for_the_disk_is_waited_for(cache, wheel, tmp_path):
    os.mkfifo(tmp_path / "gate")
    with preparers((cache, wheel), does="stores") as (first,):
        first.next("preparing")
        first.go_on(tmp_path / "gate")
        wait_until(lambda: proc.state(first.pid) == "D")
        with preparers((cache, wheel), patience=0.01) as (second,):
            assert second.next("waiting")["for"] == [first.pid]
            second.next("looked")
            second.next("looked")
            with open(tmp_path / "gate", "wb"):
                assert first.next("done")["made"]
            assert not second.next("done")["made"]
    assert is_whole(cache, 1)


def test_a_process_that_finds_a_wheel_being_prepared_first_prepares_its_other_wheels(cache, wheel, tmp_path):
    others = [Project(f"other{number}").write_wheel(tmp_path) for number in range(3)]
    with preparers((cache, wheel), does="stays") as (first,):
        first.next("preparing")
        with preparers((cache, wheel, *others)) as (second,):
            wait_until(lambda: is_waiter(second.pid))
            store = Store.existing(cache)
            assert store is not None
            assert {entry.listing.wheel for entry in store.entries()} == {other.name for other in others}
            first.go_on()
            assert first.next("done")["made"]
            done = second.next("done")
            assert (len(done["names"]), done["waited"]) == (4, 1)
    assert is_whole(cache, 4)


def test_two_processes_that_want_the_same_wheels_in_another_order_both_end(cache, wheel, tmp_path):
    other = Project("other", "1").write_wheel(tmp_path)
    with preparers((cache, wheel, other), (cache, other, wheel), does="stays") as both:
        # Each process has one wheel, and holds nothing more while it waits for the other.
        assert {*both[0].next("preparing")["what"]}.isdisjoint(both[1].next("preparing")["what"])
        for each in both:
            each.go_on()
        assert [each.next("done")["made"] for each in both] == [True, True]
    assert is_whole(cache, 2)
