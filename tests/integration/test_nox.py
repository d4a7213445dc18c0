"""nox with safe-pip, and nox as it is in adopted environments: docs/how-to/nox.md; and docs/how-to/adopt.md."""

from __future__ import annotations

import os
import re

import pytest

from tests.support.pages import Page, shell
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.tools import Toolbox
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow
PAGE, ADOPT = Page.read("nox"), Page.read("adopt")
PROJECTS = ("example_alpha", "example_beta", "example_gamma")


@pytest.fixture
def env(env: PipEnvironment) -> PipEnvironment:
    """With safe-pip on PATH, and what is to be installed."""
    env.activate()
    env.add_to_index(*(Project(name.replace("_", "-")) for name in PROJECTS))
    env.add_to_index(*(Project("example-common", version) for version in "12"))
    return env


@pytest.fixture
def with_nox(env: PipEnvironment, toolbox: Toolbox) -> PipEnvironment:
    """The same with nox, and the files of its page."""
    env.more["PATH"] += os.pathsep + str(toolbox.program("nox").parent)
    PAGE.save(env.directory)
    return env


def test_sessions_that_run_at_once_share_one_environment(with_nox: PipEnvironment) -> None:
    shell(PAGE.command("nox --parallel 3\n"), with_nox.directory, with_nox.variables)
    (site,) = with_nox.directory.glob(".venv/lib/python*/site-packages")
    there = {path.name for path in site.glob("*.dist-info") if not path.name.startswith(("pip-", "setuptools-"))}
    assert there == {f"{project}-1.dist-info" for project in (*PROJECTS, "example_common")}
    with_nox.run("doctor", "--env", with_nox.directory / ".venv")


def test_nox_as_it_is_runs_safe_pip_in_environments_that_are_adopted(with_nox: PipEnvironment) -> None:
    done = shell(PAGE.command("unchanged.py"), with_nox.directory, with_nox.variables)
    assert done.stdout.count("Adopted") == len(PROJECTS)
    assert (done.stdout + done.stderr).count("safe-pip: safe-pip ") == len(PROJECTS)
    assert len(list(with_nox.directory.glob(".nox/*/lib/python*/site-packages/example_alpha.py"))) == 1


def test_the_commands_of_the_page_on_adopting_do_what_it_says(env: PipEnvironment) -> None:
    pip = env.workspace.wheelhouse.wheel("pip", env.workspace.pip_version)
    made = env.workspace.maker.make(env.directory / ".venv", [pip])
    for commands in ADOPT.commands[:2]:
        done = shell(commands, env.directory, env.variables)
    assert "nothing is unfinished" in done.stdout
    assert {"example_alpha.py", "example_beta.py"} <= set(os.listdir(made.purelib))
    done = shell(ADOPT.commands[2], env.directory, env.variables)
    assert re.search("`pip` is pip .+ again", done.stdout)
