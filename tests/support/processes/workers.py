"""Processes that take and release locks on request, and report what happens.

A worker is a real process. It is told what to do by lines of JSON and answers with events; whether it is blocked in
the kernel is read from /proc/locks. Nothing here sleeps: waiting is for a pipe, with a limit.
"""

from __future__ import annotations

import importlib
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import safe_pip

LIMIT = 60.0
"""Seconds after which something that must happen has not happened: a failure, never a measurement."""

Event = dict[str, Any]


class Worker:
    """A process that holds and waits for locks of the environment `trees`."""

    def __init__(
        self, *trees: Path, variables: dict[str, str] | None = None, below: Sequence[object] = (), **settings: Any
    ) -> None:
        source = str(Path(safe_pip.__file__).parent.parent)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SAFE_PIP_")}
        # What a killed worker leaves behind goes with it; another user may have to write there.
        self._temporary = tempfile.mkdtemp(prefix="safe-pip-test-")
        os.chmod(self._temporary, 0o1777)
        environment |= {"PYTHONPATH": source, "TMPDIR": self._temporary} | (variables or {})
        self._process = subprocess.Popen(
            [*map(str, below), sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Of its own, and yet not orphaned: the kernel lets only such a group be stopped by SIGTSTP.
            preexec_fn=os.setpgrp,
        )
        self.pid = self._process.pid
        self._rest = b""
        self.events: list[Event] = []
        self.tell(do="begin", trees=[str(tree) for tree in trees], **settings)
        self.pid = self.expect("ready")["pid"]

    def tell(self, **order: Any) -> None:
        """Give an order and do not wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def hold(self, how: str, **more: Any) -> Event:
        """Take the locks of `how`; on return they are held."""
        self.tell(do="hold", how=how, **more)
        return self.expect("held")

    def start_to_wait(self, how: str, **more: Any) -> None:
        """Ask for the locks of `how`; on return it is blocked in the kernel."""
        self.tell(do="hold", how=how, **more)
        self.expect_blocked()

    def release(self) -> None:
        """Let all locks go."""
        self.tell(do="release")
        self.expect("released")

    def next_event(self, timeout: float = LIMIT) -> Event | None:
        """The next event; None if no event comes in time, or the worker has ended."""
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                return None
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        event: Event = json.loads(line)
        self.events.append(event)
        return event

    def expect(self, name: str) -> Event:
        """Wait for this event; messages about waiting may come before it."""
        while (event := self.next_event()) is not None:
            if event["event"] == name:
                return event
            assert event["event"] in ("waiting", "granted"), event
        raise AssertionError(f"no {name!r} from {self.pid}, only {self.events}")

    def expect_blocked(self) -> None:
        """Return when it stands as a waiter in /proc/locks; nothing but messages may come from it before."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            event = self.next_event(timeout=0.01)
            assert event is None or event["event"] in ("waiting", "granted"), event
            if is_waiter(self.pid):
                return
        raise AssertionError(f"{self.pid} is not blocked")

    def is_blocked(self) -> bool:
        """Whether it waits in the kernel; False as soon as it reports that it holds the locks."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            if is_waiter(self.pid):
                return True
            event = self.next_event(timeout=0.01)
            if event is not None and event["event"] == "held":
                return False
            assert event is None or event["event"] in ("waiting", "granted"), event
        raise AssertionError(f"{self.pid} is neither blocked nor does it hold anything")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and wait until it is dead."""
        self._process.kill()
        self._process.wait(LIMIT)

    def wait_until_stopped(self) -> None:
        """Return when it is stopped."""

        def is_stopped() -> bool:
            pid, status = os.waitpid(self.pid, os.WUNTRACED | os.WNOHANG)
            return bool(pid) and os.WIFSTOPPED(status)

        wait_until(is_stopped)

    def close(self) -> None:
        """Kill the worker and delete its files."""
        self.kill()
        shutil.rmtree(self._temporary)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def flocks() -> Iterator[tuple[bool, int, str]]:
    """Every flock on this machine: whether it is waited for, the pid, and the inode."""
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()[1:]
        is_waiting = fields[0] == "->"
        if is_waiting:
            fields = fields[1:]
        if fields[0] == "FLOCK":
            yield is_waiting, int(fields[3]), fields[4].rpartition(":")[2]


def is_waiter(pid: int) -> bool:
    """Whether this process is blocked in flock."""
    return any(is_waiting and owner == pid for is_waiting, owner, _ in flocks())


def holds(pid: int, path: Path) -> bool:
    """Whether this process holds a lock on this file."""
    inode = str(path.stat().st_ino)
    return any(not is_waiting and owner == pid and found == inode for is_waiting, owner, found in flocks())


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when it is so."""
    end = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < end
        select.select([], [], [], 0.01)


@contextmanager
def workers(*all_trees: Path, count: int, **settings: Any) -> Iterator[list[Worker]]:
    """So many workers on one environment."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            worker = Worker(*all_trees, **settings)
            stack.callback(worker.close)
            made.append(worker)
        yield made


# -- the other side: what runs in the worker ---------------------------------------------------------------------------


def say(**event: Any) -> None:
    """Answer the test."""
    os.write(1, json.dumps(event).encode() + b"\n")


class Reporter:
    """Reports what the user would be told."""

    def waiting(self, event: Any) -> None:
        fields = ("pid", "command", "exclusive", "is_stopped", "is_waiting")
        people = [{name: getattr(holder, name) for name in fields} for holder in event.holders]
        say(event="waiting", path=str(event.path), exclusive=event.exclusive, seconds=event.seconds, holders=people)

    def granted(self, event: Any, seconds: float) -> None:
        say(event="granted", seconds=seconds)


def orders() -> Iterator[Event]:
    """The orders of the test, without reading ahead."""
    while True:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)
            if not byte:
                return
            line += byte
        yield json.loads(line)


def serve() -> None:
    """Carry out the orders of the test."""
    given = orders()
    begin = next(given)
    if begin.get("without_flock"):
        importlib.import_module("safe_pip._vendor.filelock")  # which knows another way on Windows
        sys.modules["fcntl"] = None  # type: ignore[assignment]
    importlib.import_module("shlex")  # another user may not be able to read the standard library
    from safe_pip.environment.environment import Environment, Target
    from safe_pip.errors import SafePipError
    from safe_pip.locking import waiting

    trees = [Path(tree) for tree in begin["trees"]]
    target = Target(
        tuple(trees[:1]) if "target" not in begin else tuple(map(Path, begin["target"])),
        tuple(map(Path, begin.get("directories", ()))),
        Path(begin["uv_lock"]) if "uv_lock" in begin else None,
        tuple(map(Path, begin.get("stateless_trees", ()))),
    )
    if "first_message" in begin:
        waiting.FIRST_MESSAGE = first = begin["first_message"]
        waiting.LATER_MESSAGES = (2 * first, 3 * first)
    if "out_of_order" in begin:
        waiting.OUT_OF_ORDER = begin["out_of_order"]
    if begin.get("user"):
        user = pwd.getpwnam(begin["user"])
        importlib.import_module("shlex")  # that user may not be able to read this interpreter's library
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    environment = Environment([str(tree) for tree in trees], waiting=Reporter(), timeout=begin.get("timeout"))
    say(event="ready", pid=os.getpid())
    stack = ExitStack()
    for order in given:
        try:
            if order["do"] == "hold" and order["how"] == "reading":
                environment.read(lambda: (say(event="held"), next(given)))
                say(event="released")
            elif order["do"] == "hold":
                stack.enter_context(scope(environment, target, order))
                say(event="held", variable=os.environ.get("SAFE_PIP_HELD"))
            elif order["do"] == "release":
                stack.close()
                say(event="released")
            elif order["do"] == "hammer":
                hammer(environment, target, order)
                say(event="hammered")
            elif order["do"] == "fork":
                fork()
            elif order["do"] == "exec":
                child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, start_new_session=True)
                say(event="child", pid=child.pid)
        except SafePipError as error:
            say(event="error", code=error.code, message=str(error))
        except KeyboardInterrupt:
            say(event="interrupted")


def scope(environment: Any, target: Any, order: Event) -> Any:
    """The context manager of one kind of access."""
    if order["how"] == "building":
        return environment.building(*map(Path, order.get("sources", ())))
    if order["how"] == "mutex":
        return environment.mutex(*map(Path, order["sources"]))
    if order["how"] == "keeping":
        return environment.keeping()
    return getattr(environment, order["how"])(target)


def hammer(environment: Any, target: Any, order: Event) -> None:
    """Enter and leave again and again; two detectors of overlap: a file that only one can make, a lost increment."""
    inside, counter = Path(order["inside"]), Path(order["counter"])
    for _ in range(order["times"]):
        with scope(environment, target, order):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            counter.write_text(str(int(counter.read_text()) + 1))
            inside.unlink()


def fork() -> None:
    """Leave a forked child that lives until it is killed."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    say(event="child", pid=pid)


if __name__ == "__main__":
    serve()
