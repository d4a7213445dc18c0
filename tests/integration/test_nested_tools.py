"""safe-pip below make, tox, `setup.py` and uv, with its variable and without: docs/how-to/nested.md."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.support.pages import PAGES, Page, shell
from tests.support.venvs.checker import Violation, check
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.tools import Toolbox
from tests.support.wheels.tiny import Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")]

PAGE = Page.read("nested")
PARTS = {f"example_{name}": "1" for name in ("alpha", "beta", "gamma", "delta")}
MAKE, DROPPED, SUDO, TOX = "-- make -j4", "-- env -i", "-- sudo", "-- tox"
ADD, REPLACE = "install example-common", "install --upgrade example-helper"
SETUP, UV = "safe-pip install --no-build-isolation", "uv pip install --no-build-isolation"
BARE = ["env", "-i"]


@pytest.fixture
def env(env: PipEnvironment) -> PipEnvironment:
    """With the page's files and projects; pip's settings come from a file, which no `env -i` drops."""
    env.activate()
    PAGE.save(env.directory)
    names = (*PARTS, "example_common", "example_helper")
    env.add_to_index(*(Project(name.replace("_", "-"), "1") for name in names))
    settings = env.directory / "home" / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    house = env.workspace.wheelhouse.path
    settings.write_text(f"[global]\nno-index = true\nfind-links =\n    {house}\n    {env.index}\n")
    env.run("install", "example-helper")
    env.add_to_index(Project("example-helper", "2"))
    return env


def variables(env: PipEnvironment) -> dict[str, str]:
    """The variables of the environment without those that pip reads: the file has them."""
    return {name: value for name, value in env.variables.items() if not name.startswith("PIP_")}


def below_nothing(command: str) -> str:
    """The page's command, with the inner one in an empty environment."""
    before, run, after = command.partition(" -- ")
    assert run
    return f'{before} -- env -i PATH="$PATH" HOME="$HOME" {after}'


def made(env: PipEnvironment, words: str, **more: str) -> None:
    """Run a page's command below which make makes all parts."""
    done = shell(PAGE.command(words), env.directory, variables(env) | more)
    assert "waiting for" not in done.stderr, done.stderr
    assert env.installed() == {"example_helper": "1", **PARTS}
    assert check(env.venv, env.variables) == []


@pytest.mark.parametrize("words", [MAKE, DROPPED])
def test_recipes_below_an_exclusive_holder_install_and_list_at_once(env: PipEnvironment, words: str) -> None:
    made(env, words)


def test_so_do_those_below_sudo(env: PipEnvironment) -> None:
    sudo = shutil.which("sudo")
    if sudo is None or subprocess.run([sudo, "-n", "true"], capture_output=True).returncode:
        pytest.skip("sudo is not installed, or asks for a password")
    made(env, SUDO)


def test_so_do_those_below_tox_which_drops_the_variable(env: PipEnvironment, toolbox: Toolbox) -> None:
    programs = os.pathsep.join([env.variables["PATH"], str(toolbox.program("tox").parent)])
    # tox passes neither; without them pip would read the settings of this machine.
    passed = "testenv:parts.pass_env=HOME,XDG_CACHE_HOME"
    made(env, TOX, PATH=programs, TOX_OVERRIDE=passed, VIRTUALENV_NO_PERIODIC_UPDATE="1")


@pytest.mark.parametrize("way", [str, below_nothing], ids=["variable", "dropped"])
def test_below_a_shared_holder_an_addition_goes_through_and_a_replacement_is_refused(env: PipEnvironment, way) -> None:
    shell(way(PAGE.command(ADD)), env.directory, variables(env))
    assert env.installed() == {"example_helper": "1", "example_common": "1"}
    refused = shell(way(PAGE.command(REPLACE)), env.directory, variables(env), status=75)
    # The page shows what is said, with `/venv` for the environment; without the variable the holder is named as well.
    shown = next(line for line in PAGES.joinpath("nested.md").read_text().splitlines() if "error: `/venv`" in line)
    for part in shown.replace("/venv", str(env.venv.path)).split(" for the command", 1):
        assert part in refused.stderr, refused.stderr
    assert env.installed() == {"example_helper": "1", "example_common": "1"}


@pytest.mark.parametrize("words", [SETUP, UV], ids=["safe-pip", "uv"])
@pytest.mark.parametrize("way", ["variable", "dropped"])
def test_a_setup_script_that_calls_safe_pip_adds_what_it_needs(
    env: PipEnvironment, toolbox: Toolbox, words, way
) -> None:
    more = {}
    if words == UV:
        programs = [env.variables["PATH"], str(toolbox.program("uv").parent)]
        more = {"PATH": os.pathsep.join(programs), "UV_NO_CONFIG": "1", "UV_NO_INDEX": "1"}
    env.run("install", "--no-deps", env.workspace.wheelhouse.wheel("setuptools", "80.9.0"))
    if way == "dropped":
        script = env.directory / "outer" / "setup.py"
        text = script.read_text()
        bare = [*BARE, f"PATH={env.variables['PATH']}", f"HOME={env.variables['HOME']}"]
        replaced = text.replace('["safe-pip"', f'[*{bare!r}, "safe-pip"')
        assert replaced != text
        script.write_text(replaced)
    shell(PAGE.command(words), env.directory, variables(env) | more)
    expected = {"example_helper": "1", "example_common": "1", "outer": "1", "setuptools": "80.9.0"}
    assert env.installed() == expected
    found = check(env.venv, env.variables)
    assert [each for each in found if each != Violation("unowned-file", ".lock")] == []
