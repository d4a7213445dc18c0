"""Sage's uses of pip, as docs/how-to/sage.md has them."""

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
from tests.support.venvs.checker import check, installed
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

PAGE = Page.read("sage")
ALIAS, WHEEL, AGAIN = "./sage -pip", "pip install --no-deps", "--force-reinstall"
MAKES = 8


@pytest.fixture
def env(env: PipEnvironment) -> PipEnvironment:
    """With the page's `sage` script, and its wheel."""
    env.activate()
    PAGE.save(env.directory)
    env.more["SAGE_VENV"] = str(env.venv.path)
    Project("thing", "1").write_wheel(env.directory / "wheels")
    return env


def test_the_alias_works_many_times_at_once_whether_safe_pip_is_in_that_environment_or_not(env: PipEnvironment) -> None:
    env.add_to_index(Project("example-alpha", "1"))
    elsewhere: Venv = env.workspace.maker.make(env.directory / "elsewhere")
    for environment in (env.venv, elsewhere):
        variables = env.variables | {"SAGE_VENV": str(environment.path)}
        processes = [
            subprocess.Popen(
                ["sh", "-e", "-c", PAGE.command(ALIAS)],
                cwd=env.directory,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in processes:
            out, err = process.communicate()
            assert process.returncode == 0, out + err
            assert "example-alpha" in out.splitlines()[-1] or "\nexample-alpha" in out, out
        assert installed(environment)["example-alpha"] == "1"


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
