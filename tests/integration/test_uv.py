"""uv and safe-pip on one environment at once: docs/how-to/uv.md.

`python -m tests.integration uv --rounds 50` does more of it.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.support.pages import Page, shell
from tests.support.processes.workers import LIMIT
from tests.support.venvs.checker import Violation, check
from tests.support.venvs.pip_environment import PipEnvironment, Waiting
from tests.support.venvs.tools import Toolbox
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

PAGE = Page.read("uv")
UV, OURS, ALONE = (command.strip() for command in PAGE.commands)


def projects(version: str) -> Iterator[Project]:
    """Two projects that are always moved together, with all that a wheel can have."""
    for name in ("example_alpha", "example_beta"):
        files = {f"{name}/part{number}/module.py": f"VERSION = {version!r}\n" for number in range(8)}
        files |= {f"{name}/__init__.py": f"VERSION = {version!r}\ndef main(): pass\n", f"{name}/only{version}.py": ""}
        files |= {f"space/{name}.py": f"VERSION = {version!r}\n"}
        data = {f"share/space/{name}.txt": version}
        yield Project(name.replace("_", "-"), version, files=files, data=data, console_scripts={name: f"{name}:main"})


@pytest.fixture
def env(env: PipEnvironment, toolbox: Toolbox) -> PipEnvironment:
    """With uv on PATH, and the page's projects in the index."""
    return prepared(env, toolbox)


def prepared(env: PipEnvironment, toolbox: Toolbox) -> PipEnvironment:
    """The environment with uv on PATH and the projects of the page in its index."""
    env.activate()
    programs = [str(env.venv.scripts), str(toolbox.program("uv").parent), os.environ["PATH"]]
    env.more |= {"PATH": os.pathsep.join(programs), "UV_NO_CONFIG": "1", "UV_NO_INDEX": "1"}
    env.more |= {"UV_FIND_LINKS": str(env.index), "UV_PYTHON_DOWNLOADS": "never"}
    env.add_to_index(*projects("1"), *projects("2"))
    return env


def violations(env: PipEnvironment) -> list[Violation]:
    """What is wrong, but for the file that uv locks, which no distribution brought."""
    return [each for each in check(env.venv, env.variables) if each != Violation("unowned-file", ".lock")]


def perform(env: PipEnvironment, times: int) -> None:
    """Have four loops of so many commands move and remove the same projects; on return no command has failed."""
    removal = ["uv pip uninstall example-alpha example-beta", "safe-pip uninstall --yes example-alpha example-beta"]
    other = [command.replace("==1", "==3").replace("==2", "==1").replace("==3", "==2") for command in (UV, OURS)]
    lanes = [[UV, other[0]], [OURS, other[1]], [OURS, removal[0]], [UV, removal[1]]]

    def work(lane: list[str]) -> None:
        for command in itertools.islice(itertools.cycle(lane), times):
            shell(command, env.directory, env.variables)

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(work, lanes))
    assert env.installed() in (
        {},
        {"example_alpha": "1", "example_beta": "1"},
        {"example_alpha": "2", "example_beta": "2"},
    )
    assert violations(env) == []


def test_both_at_once_again_and_again_fail_never_and_leave_nothing_torn(env: PipEnvironment) -> None:
    perform(env, 5)


@pytest.fixture
def slow(env: PipEnvironment) -> Waiting:
    """A source tree in whose build uv waits."""
    return env.waiting(Project("slow", "1"))


@pytest.fixture
def uv(env: PipEnvironment, toolbox: Toolbox, slow: Waiting) -> Iterator[subprocess.Popen[str]]:
    """A uv that builds, and so holds its lock, until it is told to go on."""
    process = subprocess.Popen(
        [toolbox.program("uv"), "pip", "install", slow.tree],
        cwd=env.directory,
        env=env.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        slow.begun(process)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_commit_waits_for_a_uv_that_builds_and_says_so(
    env: PipEnvironment, slow: Waiting, uv: subprocess.Popen[str]
) -> None:
    refused = shell(OURS, env.directory, env.variables | {"SAFE_PIP_LOCK_TIMEOUT": "0"}, status=75)
    assert ".lock` is not free, held by `" in refused.stderr
    assert f"(pid {uv.pid})" in refused.stderr
    assert "Nothing was changed" in refused.stderr
    waiter = env.start("install", "example-alpha==1", "example-beta==1")
    assert waiter.stderr is not None
    while "waiting for the exclusive lock" not in (line := waiter.stderr.readline()):
        assert line
    assert f"(pid {uv.pid})" in line
    env.run("list", SAFE_PIP_LOCK_TIMEOUT="0")
    slow.release()
    _, err = uv.communicate(timeout=LIMIT)
    assert uv.returncode == 0, err
    _, err = waiter.communicate(timeout=LIMIT)
    assert waiter.returncode == 0, err
    assert env.installed() == {"slow": "1", "example_alpha": "1", "example_beta": "1"}
    assert violations(env) == []


def test_the_page_s_commands_work_one_after_the_other(env: PipEnvironment) -> None:
    for command, version in ((UV, "2"), (OURS, "1"), (ALONE, "2"), (OURS, "1")):
        shell(command, env.directory, env.variables)
        assert env.installed() == {"example_alpha": version, "example_beta": version}
    assert violations(env) == []
