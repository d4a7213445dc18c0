"""Commands that want the same wheels at once: each wheel is unpacked once, and one command stages the set."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.store import entries, store
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

COMMANDS = 8
# Reports when it has planned, waits until all have, and records what it unpacks and what pip installs into its stage.
# The limits of waiting for a process without progress do not count here: the machine may be busy.
PROGRAM = """
import os, sys
from safe_pip.launch import isolation
isolation.isolate()
from safe_pip.fs import proc
from safe_pip.store import prepare as store_prepare, unpack
from safe_pip.cli import main

notes, planned, go = map(int, sys.argv[1:4])
shared = os.environ.get("SHARED")
store_prepare._PATIENCE = 1000.0
if shared:  # several hosts use this directory
    proc.is_shared = lambda path: os.fspath(path).startswith(shared)
    proc.is_shared_device = lambda device, path: proc.is_shared(path)

def note(*words):
    os.write(notes, (" ".join(words) + "\\n").encode())

def noting(original, word, named):
    def replacement(*args, **kw):
        note(word, named(*args, **kw))
        return original(*args, **kw)
    return replacement

def prepare(*args, original=store_prepare.Preparing.prepare, **kw):
    os.write(planned, b"x")
    os.read(go, 1)
    wheels = sys.modules["pip._internal.operations.install.wheel"]
    wheels._install_wheel = noting(wheels._install_wheel, "installed", lambda name, *args, **kw: name)
    return original(*args, **kw)

store_prepare.Preparing.prepare = prepare
unpack.Unpacking.run = noting(unpack.Unpacking.run, "unpacked", lambda self, wheel, **how: wheel)
sys.argv[:4] = ["safe-pip"]
sys.exit(main(sys.argv[1:]))
"""
# A process whose first second is over at once, so that it prints its message. It sees progress in all others.
WAITER = """
import os, sys
from safe_pip.launch import isolation
isolation.isolate()
from safe_pip.locking import flock
from safe_pip.store import prepare
from safe_pip.cli import main

told, go = map(int, sys.argv[1:3])
prepare.Heartbeat.look = lambda self: False

def wait(descriptor, *, exclusive, seconds, original=flock.wait_lock):
    if seconds != prepare._PATIENCE:
        return original(descriptor, exclusive=exclusive, seconds=seconds)
    os.write(told, b"x")
    os.read(go, 1)
    return original(descriptor, exclusive=exclusive, seconds=0)

flock.wait_lock = wait
sys.argv[:3] = ["safe-pip"]
sys.exit(main(sys.argv[1:]))
"""
PROJECTS = [
    Project(name, "1", files={f"{name}/module{number}.py": f"value = {number}\n" * 50 for number in range(30)})
    for name in ("one", "two", "three", "four")
]


@pytest.fixture
def together(cold_env: PipEnvironment) -> PipEnvironment:
    cold_env.add_to_index(*PROJECTS)
    cold_env.more["PATH"] = os.defpath
    return cold_env


class Crowd:
    """Commands that have all planned before the first of them goes on."""

    def __init__(self, env: PipEnvironment, notes: Path) -> None:
        self._env = env
        self._notes = notes

    def run(self, *args: str, hosts: int = 0) -> list[tuple[int, str, str]]:
        """Status, output and messages of each; with `hosts` of so many, each with a cache of its own."""
        notes = os.open(self._notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        (ready, planned), (wait, go) = os.pipe(), os.pipe()
        command = [self._env.venv.python, "-c", PROGRAM, *map(str, (notes, planned, wait)), *args]
        started = []
        try:
            for number in range(COMMANDS):
                host = {}
                if hosts:
                    host = {"SHARED": str(self._env.venv.path), "PIP_CACHE_DIR": f"{self._notes}{number % hosts}"}
                started.append(
                    subprocess.Popen(
                        command,
                        env=self._env.variables | host,
                        cwd=self._env.directory,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        pass_fds=(notes, planned, wait),
                    )
                )
            there = 0
            while there < COMMANDS:
                if select.select([ready], [], [], 0.1)[0]:
                    there += len(os.read(ready, COMMANDS))
                for process in started:
                    assert process.poll() is None, process.communicate()
            os.close(go)
            go = -1
            return [(process.returncode, out, err) for process in started for out, err in [process.communicate()]]
        finally:
            for process in started:
                process.kill()
                process.wait()
            for descriptor in (notes, ready, planned, wait, go):
                if descriptor >= 0:
                    os.close(descriptor)

    def noted(self) -> Counter[str]:
        return Counter(self._notes.read_text().splitlines())


def test_eight_installs_of_one_set_unpack_each_wheel_once_and_stage_once(together, tmp_path):
    names = [project.name for project in PROJECTS]
    expected = together.plain("install", *names).stdout
    together.plain("uninstall", "-y", *names)
    crowd = Crowd(together, tmp_path / "notes")
    done = crowd.run("install", *names)
    assert [status for status, _, _ in done] == [0] * COMMANDS
    wheels = {f"unpacked {project.wheel_name}" for project in PROJECTS}
    assert crowd.noted() == Counter([*wheels, *(f"installed {name}" for name in names)])
    one, *others = sorted(done, key=lambda each: "Successfully installed" not in each[1])
    assert one[1:] == (expected, "")
    announced = re.sub(
        r"^(Installing collected packages|Successfully installed).*\n+", "", expected, flags=re.MULTILINE
    )
    listed = ", ".join(f"`{name} 1`" for name in sorted(names))
    told = f"safe-pip: {listed} were installed meanwhile by another command\n"
    assert {(out, err) for _, out, err in others} == {(announced, told)}
    assert together.installed() == dict.fromkeys(names, "1")


def test_two_hosts_that_install_one_set_stage_it_once(together: PipEnvironment, tmp_path: Path) -> None:
    names = [project.name for project in PROJECTS]
    crowd = Crowd(together, tmp_path / "notes")
    done = crowd.run("install", *names, hosts=2)
    assert [status for status, _, _ in done] == [0] * COMMANDS, done
    wheels = {f"unpacked {project.wheel_name}": 2 for project in PROJECTS}  # each host has a store
    assert crowd.noted() == Counter(wheels) + Counter(f"installed {name}" for name in names)
    assert sum("were installed meanwhile by another command" in err for _, _, err in done) == COMMANDS - 1
    assert together.installed() == dict.fromkeys(names, "1")
    assert not list(together.site.glob(".safe-pip/*.making"))


class Neighbour:
    """This process, as another one that prepares the wheel of this key."""

    def __init__(self, env: PipEnvironment, key: str) -> None:
        (store(env) / "making").mkdir(exist_ok=True)
        self._held = os.open(store(env) / "making" / key, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def let_go(self) -> None:
        os.close(self._held)


def waited(env: PipEnvironment, neighbour: Neighbour, *args: str) -> tuple[str, str]:
    """What a command says that waits three seconds, by its own clock, for the neighbour."""
    (told, tell), (wait, go) = os.pipe(), os.pipe()
    command = [env.venv.python, "-c", WAITER, str(tell), str(wait), *args]
    with subprocess.Popen(
        command,
        env=env.variables,
        cwd=env.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(tell, wait),
    ) as process:
        os.close(tell)
        os.close(wait)
        try:
            for _ in range(3):
                assert os.read(told, 1), process.communicate()
                os.write(go, b"x")
            assert os.read(told, 1), process.communicate()
            neighbour.let_go()
            os.close(go)
            out, err = process.communicate()
        finally:
            process.kill()
            os.close(told)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.parametrize("general", [(), ("-q",), ("--lock-timeout", "0")], ids=" ".join)
def test_a_command_that_waits_for_a_wheel_says_so_once_unless_it_is_quiet(together, general):
    together.run("install", "one")
    together.run("uninstall", "-y", "one")
    entry = entries(together)["one"]
    shutil.rmtree(entry)
    out, err = waited(together, Neighbour(together, entry.name), *general, "install", "one")
    if general == ("-q",):
        assert (out, err) == ("", "")
        return
    assert "Successfully installed one-1\n" in out
    who = rf"held by `.*` \(pid {os.getpid()}\)"
    assert re.fullmatch(rf"safe-pip: waiting for the turn to prepare `{PROJECTS[0].wheel_name}`, {who}\n", err), err
