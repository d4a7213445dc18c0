"""tox with safe-pip, and tox as it is in adopted environments: docs/how-to/tox.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from safe_pip.launch import adoption
from tests.support.pages import Page, shell
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.tools import Toolbox
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow
PAGE = Page.read("tox")
OWN = {"unit": "example_alpha", "docs": "example_beta", "style": "example_gamma"}


@pytest.fixture
def env(env: PipEnvironment, toolbox: Toolbox) -> PipEnvironment:
    """With the page's files, tox and safe-pip on PATH, and what tox is to install."""
    env.activate()
    env.more["PATH"] += os.pathsep + str(toolbox.program("tox").parent)
    env.more["TOX_OVERRIDE"] = "testenv.pass_env=XDG_CACHE_HOME,PIP_*"  # the cache of this session
    env.add_to_index(*(Project(name.replace("_", "-")) for name in OWN.values()))
    env.add_to_index(*(Project("example-common", version) for version in "12"))
    PAGE.save(env.directory)
    (env.directory / "toxfile.py").rename(env.directory / "toxfile.later")
    return env


def site(home: Path) -> Path:
    (found,) = home.glob("lib/python*/site-packages")
    return found


def test_tox_installs_by_safe_pip_in_all_its_environments_at_once(env: PipEnvironment) -> None:
    shell(PAGE.command("tox -p\n"), env.directory, env.variables)
    for name, project in OWN.items():
        tree = site(env.directory / ".tox" / name)
        assert (tree / f"{project}.py").exists()
        assert (tree / ".safe-pip").is_dir()


def test_several_tox_environments_share_one(env: PipEnvironment) -> None:
    shell(PAGE.command("shared.ini"), env.directory, env.variables)
    home = env.directory / ".venv"
    there = {path.name for path in site(home).glob("*.dist-info") if not path.name.startswith(("pip-", "setuptools-"))}
    assert there == {f"{project}-1.dist-info" for project in (*OWN.values(), "example_common")}
    env.run("doctor", "--env", home)


def test_tox_as_it_is_runs_safe_pip_in_environments_that_are_adopted(env: PipEnvironment) -> None:
    done = shell(PAGE.command("unchanged.ini"), env.directory, env.variables | {"TOX_PARALLEL_NO_SPINNER": "1"})
    assert done.stdout.count("Adopted") == len(OWN)
    for name in OWN:
        tree = site(env.directory / ".tox" / name)
        assert (tree / "example_alpha.py").exists()
        assert (tree / ".safe-pip").is_dir()
        (log,) = (env.directory / ".tox" / name / "log").glob("*-commands[[]1[]].log")
        assert "safe-pip: safe-pip " in log.read_text()


def test_a_tox_plugin_adopts_each_environment_before_anything_is_installed(env: PipEnvironment) -> None:
    (env.directory / "toxfile.later").rename(env.directory / "toxfile.py")
    text = (env.directory / "tox.ini").read_text()
    (env.directory / "tox.ini").write_text(re.sub(r"(install_command|allowlist_externals).*\n", "", text))
    shell(PAGE.command("tox -p -r"), env.directory, env.variables)
    for name, project in OWN.items():
        tree = site(env.directory / ".tox" / name)
        assert adoption.find(tree) is not None
        assert (tree / f"{project}.py").exists()
        assert (tree / ".safe-pip").is_dir()
