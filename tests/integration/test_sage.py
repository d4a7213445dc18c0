"""Commands that docs/how-to/sage.md has for the wheel of a recipe; its edits of Sage's scripts: tests/sage."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pages import Page, shell
from tests.support.processes.importers import MISSING, ONE_VERSION, import_during
from tests.support.processes.importers import NAME as WANTED
from tests.support.processes.importers import both_versions as importable
from tests.support.venvs.checker import check
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

PAGE = Page.read("sage")
WHEEL, AGAIN = "safe-pip install --no-deps", "safe-pip install --force-reinstall"
MAKES = 8


@pytest.fixture
def env(env: PipEnvironment) -> PipEnvironment:
    """With the page's wheel."""
    env.activate()
    Project("thing", "1").write_wheel(env.directory / "wheels")
    return env


def test_a_wheel_is_installed_from_many_makes_at_once_and_so_are_others(env: PipEnvironment) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = PAGE.command(WHEEL).strip()
    makes = []
    for number in range(MAKES):
        own = Project(f"own-{number}", "1", files={f"shared/own{number}.py": "", f"own{number}.py": ""})
        own.write_wheel(env.directory / "wheels")
        makefile = env.directory / f"Makefile.{number}"
        other = command.replace("thing-1", own.stem)
        assert other != command
        makefile.write_text(f".PHONY: all thing own\nall: thing own\nthing:\n\t{command}\nown:\n\t{other}\n")
        makes.append(["make", "-j2", "-f", str(makefile)])
    processes = [
        subprocess.Popen(make, cwd=env.directory, env=env.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for make in makes
    ]
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0, os.fsdecode(out)
    assert env.installed() == {"thing": "1", **{f"own_{number}": "1" for number in range(MAKES)}}
    assert check(env.venv, env.variables) == []


def wheel_of(project: Project, directory: Path) -> str:
    """The page's command for another wheel."""
    path = project.write_wheel(directory / "wheels")
    return PAGE.command(AGAIN).replace("thing-1-py3-none-any.whl", path.name)


@pytest.mark.parametrize("versions", ["111111", "212121"], ids=["rebuilt", "another version"])
def test_a_reinstallation_leaves_no_instant_in_which_a_module_is_missing(env: PipEnvironment, versions: str) -> None:
    commands = dict(zip("12", (wheel_of(project, env.directory) for project in importable()), strict=True))
    shell(commands["1"], env.directory, env.variables)

    def reinstall() -> None:
        for version in versions:
            done = shell(commands[version], env.directory, env.variables)
            assert f"Successfully installed {WANTED}-{version}" in done.stdout

    python = [env.venv.python]
    met, details = import_during(reinstall, [python, python], env.variables)
    assert met[MISSING] == met["other error"] == 0, details
    assert met[ONE_VERSION] > 0
    if len(set(versions)) == 1:
        assert set(met) == {ONE_VERSION}, details
    assert check(env.venv, env.variables) == []


def test_a_reinstallation_that_fails_leaves_what_was_there(env: PipEnvironment) -> None:
    command = PAGE.command(AGAIN)
    shell(command, env.directory, env.variables)
    (env.directory / "wheels" / "thing-1-py3-none-any.whl").write_bytes(b"half a wheel")
    shell(command, env.directory, env.variables, status=None)
    assert env.installed() == {"thing": "1"}
    assert check(env.venv, env.variables) == []
