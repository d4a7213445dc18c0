"""tox with safe-pip, and tox as it is in adopted environments: docs/how-to/tox.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from safe_pip.launch import adoption
from tests.support.pages import Page, shell
from tests.support.venvs.environment import Shop
from tests.support.venvs.tools import Toolbox
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow
PAGE = Page.read("tox")
OWN = {"unit": "alpha", "docs": "beta", "style": "gamma"}


@pytest.fixture
def shop(shop: Shop, toolbox: Toolbox) -> Shop:
    """With the page's files, tox and safe-pip on PATH, and what tox is to install."""
    shop.activate()
    shop.more["PATH"] += os.pathsep + str(toolbox.program("tox").parent)
    shop.more["TOX_OVERRIDE"] = "testenv.pass_env=XDG_CACHE_HOME,PIP_*"  # the cache of this session
    shop.stock(*map(Project, OWN.values()), Project("common", "1"), Project("common", "2"))
    PAGE.save(shop.directory)
    (shop.directory / "toxfile.py").rename(shop.directory / "toxfile.later")
    return shop


def site(home: Path) -> Path:
    (found,) = home.glob("lib/python*/site-packages")
    return found


def test_tox_installs_by_safe_pip_in_all_its_environments_at_once(shop: Shop) -> None:
    shell(PAGE.command("tox -p\n"), shop.directory, shop.variables)
    for name, project in OWN.items():
        tree = site(shop.directory / ".tox" / name)
        assert (tree / f"{project}.py").exists()
        assert (tree / ".safe-pip").is_dir()


def test_several_tox_environments_share_one(shop: Shop) -> None:
    shell(PAGE.command("shared.ini"), shop.directory, shop.variables)
    home = shop.directory / ".venv"
    there = {path.name for path in site(home).glob("*.dist-info") if not path.name.startswith(("pip-", "setuptools-"))}
    assert there == {f"{project}-1.dist-info" for project in (*OWN.values(), "common")}
    shop.run("doctor", "--env", home)


def test_tox_as_it_is_runs_safe_pip_in_environments_that_are_adopted(shop: Shop) -> None:
    done = shell(PAGE.command("unchanged.ini"), shop.directory, shop.variables | {"TOX_PARALLEL_NO_SPINNER": "1"})
    assert done.stdout.count("Adopted") == len(OWN)
    for name in OWN:
        tree = site(shop.directory / ".tox" / name)
        assert (tree / "alpha.py").exists()
        assert (tree / ".safe-pip").is_dir()
        (log,) = (shop.directory / ".tox" / name / "log").glob("*-commands[[]1[]].log")
        assert "safe-pip: safe-pip " in log.read_text()


def test_a_tox_plugin_adopts_each_environment_before_anything_is_installed(shop: Shop) -> None:
    (shop.directory / "toxfile.later").rename(shop.directory / "toxfile.py")
    text = (shop.directory / "tox.ini").read_text()
    (shop.directory / "tox.ini").write_text(re.sub(r"(install_command|allowlist_externals).*\n", "", text))
    shell(PAGE.command("tox -p -r"), shop.directory, shop.variables)
    for name, project in OWN.items():
        tree = site(shop.directory / ".tox" / name)
        assert adoption.find(tree) is not None
        assert (tree / f"{project}.py").exists()
        assert (tree / ".safe-pip").is_dir()
