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
from tests.support.processes.importers import wares as importable
from tests.support.venvs.checker import check, installed
from tests.support.venvs.environment import Shop
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

PAGE = Page.read("sage")
ALIAS, WHEEL, AGAIN = "./sage -pip", "pip install --no-deps", "--force-reinstall"
MAKES = 8


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """With the page's `sage` script, and its wheel."""
    shop.activate()
    PAGE.save(shop.directory)
    shop.more["SAGE_VENV"] = str(shop.environment.path)
    Project("thing", "1").write_wheel(shop.directory / "wheels")
    return shop


def test_the_alias_works_many_times_at_once_whether_safe_pip_is_in_that_environment_or_not(shop: Shop) -> None:
    shop.stock(Project("extra", "1"))
    elsewhere: Venv = shop.laboratory.maker.make(shop.directory / "elsewhere")
    for environment in (shop.environment, elsewhere):
        variables = shop.variables | {"SAGE_VENV": str(environment.path)}
        processes = [
            subprocess.Popen(
                ["sh", "-e", "-c", PAGE.command(ALIAS)],
                cwd=shop.directory,
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
            assert "extra" in out.splitlines()[-1] or "\nextra" in out, out
        assert installed(environment)["extra"] == "1"


def test_a_wheel_is_installed_from_many_makes_at_once_and_so_are_others(shop: Shop) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = PAGE.command(WHEEL).strip()
    makes = []
    for number in range(MAKES):
        own = Project(f"own-{number}", "1", files={f"shared/own{number}.py": "", f"own{number}.py": ""})
        own.write_wheel(shop.directory / "wheels")
        makefile = shop.directory / f"Makefile.{number}"
        other = command.replace("thing-1", own.stem)
        assert other != command
        makefile.write_text(f".PHONY: all thing own\nall: thing own\nthing:\n\t{command}\nown:\n\t{other}\n")
        makes.append(["make", "-j2", "-f", str(makefile)])
    processes = [
        subprocess.Popen(make, cwd=shop.directory, env=shop.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for make in makes
    ]
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0, os.fsdecode(out)
    assert shop.installed() == {"thing": "1", **{f"own_{number}": "1" for number in range(MAKES)}}
    assert check(shop.environment, shop.variables) == []


def wheel_of(project: Project, directory: Path) -> str:
    """The page's command for another wheel."""
    path = project.write_wheel(directory / "wheels")
    return PAGE.command(AGAIN).replace("thing-1-py3-none-any.whl", path.name)


@pytest.mark.parametrize("versions", ["111111", "212121"], ids=["rebuilt", "another version"])
def test_a_reinstallation_leaves_no_instant_in_which_a_module_is_missing(shop: Shop, versions: str) -> None:
    commands = dict(zip("12", (wheel_of(project, shop.directory) for project in importable()), strict=True))
    shell(commands["1"], shop.directory, shop.variables)

    def reinstall() -> None:
        for version in versions:
            done = shell(commands[version], shop.directory, shop.variables)
            assert f"Successfully installed {WANTED}-{version}" in done.stdout

    python = [shop.environment.python]
    met, details = import_during(reinstall, [python, python], shop.variables)
    assert met[MISSING] == met["other error"] == 0, details
    assert met[ONE_VERSION] > 0
    if len(set(versions)) == 1:
        assert set(met) == {ONE_VERSION}, details
    assert check(shop.environment, shop.variables) == []


def test_a_reinstallation_that_fails_leaves_what_was_there(shop: Shop) -> None:
    command = PAGE.command(AGAIN)
    shell(command, shop.directory, shop.variables)
    (shop.directory / "wheels" / "thing-1-py3-none-any.whl").write_bytes(b"half a wheel")
    shell(command, shop.directory, shop.variables, status=None)
    assert shop.installed() == {"thing": "1"}
    assert check(shop.environment, shop.variables) == []
