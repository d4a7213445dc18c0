"""Builds that import from the environment delay only commands that change it: docs/how-to/builds.md."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.support.pages import Page, shell
from tests.support.processes.workers import is_waiter, wait_until
from tests.support.venvs.checker import check_wheel
from tests.support.venvs.pip_environment import PipEnvironment, Waiting, ended
from tests.support.wheels.tiny import Project

pytestmark = [pytest.mark.slow, pytest.mark.oldest_pip]
Start = Callable[[str], "subprocess.Popen[str]"]

PAGE = Page.read("builds")
SLOW, FRESH = "install --no-build-isolation ./slow", "install example-alpha"
UPGRADE = "install --upgrade example-helper"
OTHERS = ["build --no-isolation", "pip wheel", "build --wheel"]


@pytest.fixture
def slow(env: PipEnvironment) -> Waiting:
    """The page's source tree, in whose build we can wait; `example-helper` 1 is there, and 2 in the index."""
    env.activate()
    env.add_to_index(Project("example-helper", "1"), Project("example-alpha", "1"))
    env.run("install", "example-helper")
    env.add_to_index(Project("example-helper", "2"))
    waiting = env.waiting(Project("slow", "1"))
    (env.directory / "slow").symlink_to(waiting.tree)
    return waiting


@pytest.fixture
def start(env: PipEnvironment) -> Iterator[Start]:
    """Start a command, by its words; neither it nor its build outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(command: str) -> subprocess.Popen[str]:
        words = shlex.split(command)
        assert words[0] == "safe-pip"
        started.append(env.start(*words[1:], in_a_session_of_its_own=True))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    """The message that the command waits."""
    assert process.stderr is not None
    lines: list[str] = []
    while not (lines and "waiting for" in lines[-1]):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    return lines[-1]


def test_during_a_build_new_installs_complete_and_an_upgrade_waits_names_the_holder_and_is_next(env, slow, start):
    others = [env.waiting(Project(f"later-{number}", "1")) for number in range(2)]
    build = start(PAGE.command(SLOW))
    slow.begun(build)
    at_once = env.variables | {"SAFE_PIP_LOCK_TIMEOUT": "0"}
    shell(PAGE.command(FRESH), env.directory, at_once)
    upgrade = start(PAGE.command(UPGRADE))
    line = told(upgrade)
    assert "waiting for the exclusive lock" in line
    assert f"shared by `safe-pip install --no-build-isolation ./slow` (pid {build.pid})" in line
    later = [start(f"safe-pip install --no-build-isolation {other.tree}") for other in others]
    for process in later:
        wait_until(lambda process=process: is_waiter(process.pid))
    # A command that queues for the environment lock holds nothing that a reader or an addition needs.
    env.add_to_index(Project("example-alpha", "2"), Project("also-fresh", "1"))
    env.run("install", "also-fresh", SAFE_PIP_LOCK_TIMEOUT="0")
    assert ["example-helper", "1"] in map(str.split, env.run("list", SAFE_PIP_LOCK_TIMEOUT="0").stdout.splitlines())
    slow.release()
    with ended(upgrade) as (status, _, err):
        assert status == 0, err
        assert "safe-pip: got the lock after" in err
    for other, process in zip(others, later, strict=True):
        other.begun(process)
    # They stand in their builds, so the upgrade was before them: not at their end.
    assert env.installed()["example_helper"] == "2"
    for other in others:
        other.release()
    for process in (build, *later):
        with ended(process) as (status, _, err):
            assert status == 0, err
    names = ("example-alpha", "also-fresh", "slow", "later-0", "later-1")
    assert env.installed() == {"example_helper": "2", **{name.replace("-", "_"): "1" for name in names}}


def test_a_build_that_declares_what_it_needs_delays_only_the_upgrades_of_that(env, slow, start):
    env.add_to_index(Project("example-alpha", "2"))
    env.run("install", "example-alpha==1")
    project = slow.tree / "pyproject.toml"
    project.write_text(project.read_text().replace("requires = []", "requires = ['example-helper']"))
    build = start(f"safe-pip {SLOW}")
    slow.begun(build)
    env.run("install", "--upgrade", "example-alpha")
    upgrade = start(f"safe-pip {UPGRADE}")
    line = told(upgrade)
    assert "the exclusive lock on `example-helper`" in line
    assert f"shared by `safe-pip {SLOW}` (pid {build.pid})" in line
    slow.release()
    for process in (build, upgrade):
        with ended(process) as (status, _, err):
            assert status == 0, err
    assert env.installed() == {"example_alpha": "2", "example_helper": "2", "slow": "1"}


def test_a_build_that_fails_because_something_undeclared_was_changed_is_tried_again(env, slow, start):
    """The second time everything that is installed stays as it is."""
    backend, project = slow.tree / "_backend.py", slow.tree / "pyproject.toml"
    project.write_text(project.read_text().replace("requires = []", "requires = ['example-helper']"))
    env.run("install", "example-alpha==1")
    backend.write_text(backend.read_text().replace("    return copy", "    import example_alpha\n    return copy"))
    build = start(f"safe-pip {SLOW}")
    slow.begun(build)
    env.run("uninstall", "-y", "example-alpha")
    with suppress(OSError):  # the build goes on, and fails
        slow.release()
    with ended(build) as (status, _, err):
        assert status == 1
        assert "`example-alpha` changed while this command was at work: trying again" in err
    assert slow.builds() == 2


def test_an_upgrade_of_which_another_command_installs_a_part_meanwhile_keeps_its_turn(env, slow, start):
    other = env.waiting(Project("later", "1"))
    build = start(PAGE.command(SLOW))
    slow.begun(build)
    upgrade = start(f"{PAGE.command(UPGRADE).strip()} example-alpha")
    told(upgrade)
    shell(PAGE.command(FRESH), env.directory, env.variables)
    later = start(f"safe-pip install --no-build-isolation {other.tree}")
    wait_until(lambda: is_waiter(later.pid))
    slow.release()
    with ended(upgrade) as (status, out, err):
        assert status == 0, err
        assert "`example-alpha 1` was installed meanwhile by another command" in err
        assert "Successfully installed example-helper-2\n" in out
    other.begun(later)
    assert env.installed()["example_helper"] == "2"
    other.release()
    for process in (build, later):
        with ended(process) as (status, _, err):
            assert status == 0, err
    assert env.installed() == {"example_helper": "2", "example_alpha": "1", "slow": "1", "later": "1"}


@pytest.mark.parametrize("words", OTHERS)
def test_another_front_end_under_run_builds_while_other_commands_only_add(env, slow, toolbox, start, words):
    env.run("install", "--no-deps", *toolbox.wheels("build"))
    build = start(PAGE.command(words))
    slow.begun(build)
    at_once = env.variables | {"SAFE_PIP_LOCK_TIMEOUT": "0"}
    shell(PAGE.command(FRESH), env.directory, at_once)
    refused = shell(PAGE.command(UPGRADE), env.directory, at_once, status=75)
    assert f"shared by `{PAGE.command(words).strip()}` (pid {build.pid})" in refused.stderr
    assert "Nothing was changed" in refused.stderr
    slow.release()
    with ended(build) as (status, out, err):
        assert status == 0, out + err
    (wheel,) = (env.directory / "dist").iterdir()
    assert check_wheel(wheel, ["slow.py"]) == []
    shell(PAGE.command(UPGRADE), env.directory, at_once)
    assert env.installed()["example_helper"] == "2"


def test_another_front_end_builds_with_setuptools_while_it_goes_up_and_down(env, toolbox, start):
    env.activate()
    house = env.workspace.wheelhouse
    env.run("install", "--no-deps", *toolbox.wheels("build"), house.wheel("setuptools", "75.8.0"))
    Project("slow", "1").write_source_tree(env.directory / "slow", backend="setuptools")
    build = start(PAGE.command(OTHERS[0]))
    for version in ("80.9.0", "75.8.0"):
        env.run("install", "--no-deps", f"setuptools=={version}")
    with ended(build) as (status, out, err):
        assert status == 0, out + err
    (wheel,) = (env.directory / "dist").iterdir()
    assert check_wheel(wheel, ["slow.py"]) == []
