"""Sixteen pipenvs at once on a machine that has never made a virtual environment: docs/how-to/pipenv.md."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pages import Page
from tests.support.venvs.checker import check, installed
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.template import Venv
from tests.support.venvs.tools import Toolbox
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow
MANY = 16
PROJECTS = (Project("example-alpha", "1", ("example-beta",)), Project("example-beta", "1"))

PIPFILE = """\
[[source]]
name = "index"
url = "https://index.invalid/simple"
verify_ssl = true

[packages]
example-alpha = "*"
"""


def lock_file(index: Path) -> str:
    """What pipenv would write: the versions, and the digests of their wheels."""
    source = {"name": "index", "url": "https://index.invalid/simple", "verify_ssl": True}
    pipfile = {"_meta": {"requires": {}, "sources": [source]}, "default": {"example-alpha": "*"}, "develop": {}}
    text = json.dumps(pipfile, sort_keys=True, separators=(",", ":"))
    default = {}
    for project in PROJECTS:
        digest = hashlib.sha256((index / project.wheel_name).read_bytes()).hexdigest()
        default[project.name] = {"hashes": [f"sha256:{digest}"], "index": "index", "version": "==1"}
    meta = {
        "hash": {"sha256": hashlib.sha256(text.encode()).hexdigest()},
        "pipfile-spec": 6,
        "requires": {},
        "sources": [source],
    }
    return json.dumps({"_meta": meta, "default": default, "develop": {}}, indent=4)


@pytest.fixture
def machine(env: PipEnvironment, toolbox: Toolbox) -> PipEnvironment:
    """A home with nothing in it, and a pipenv beside safe-pip on PATH."""
    program = toolbox.program("pipenv")
    env.add_to_index(*PROJECTS)
    programs = env.directory / "programs"
    programs.mkdir()
    (programs / "pipenv").symlink_to(program)
    (programs / "safe-pip").symlink_to(env.venv.scripts / "safe-pip")
    env.more |= {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PIPENV_NOSPIN": "1",
        "PIPENV_IGNORE_VIRTUALENVS": "1",
        "LANG": "C.UTF-8",
    }
    shutil.rmtree(env.directory / "home", ignore_errors=True)
    return env


def project(machine: PipEnvironment, name: str) -> Path:
    directory = machine.directory / name
    directory.mkdir()
    (directory / "Pipfile").write_text(PIPFILE)
    (directory / "Pipfile.lock").write_text(lock_file(machine.index))
    return directory


def start(machine: PipEnvironment, commands: str, directory: Path) -> subprocess.Popen[str]:
    """The commands of the page, as a reader runs them."""
    return subprocess.Popen(
        ["sh", "-e", "-c", commands],
        env=machine.variables,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(processes: list[subprocess.Popen[str]]) -> None:
    """All of them succeed."""
    for process in processes:
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0, out


def sound(machine: PipEnvironment, home: Path) -> bool:
    """Whether the environment has what the project asks for, whole."""
    environment = Venv(home, frozenset())
    found = {name: version for name, version in installed(environment).items() if name.startswith("example-")}
    # virtualenv has files of its own, which no RECORD names, and the RECORD of what it seeds is of its own making too.
    theirs = ("stray-script", "unowned-file")
    wrong = [
        each
        for each in check(environment, machine.variables)
        if each.name not in theirs and not each.detail.startswith(("pip", "setuptools"))
    ]
    return found == {"example-alpha": "1", "example-beta": "1"} and not wrong


def test_sixteen_at_once_in_one_project_all_succeed(machine: PipEnvironment) -> None:
    page, directory = Page.read("pipenv"), project(machine, "project")
    end([start(machine, page.command("safe-pip venv"), directory) for _ in range(MANY)])
    assert sound(machine, directory / ".venv")
    end([start(machine, page.command("--shared"), directory) for _ in range(2)])


def test_sixteen_at_once_of_four_projects_make_their_environments_where_pipenv_has_them(
    machine: PipEnvironment,
) -> None:
    page = Page.read("pipenv")
    directories = [project(machine, f"project{number}") for number in range(4)]
    end([start(machine, page.command("WORKON_HOME"), directories[number % 4]) for number in range(MANY)])
    homes = list((machine.directory / "home" / ".local" / "share" / "virtualenvs").iterdir())
    assert len(homes) == 4
    for home in homes:
        assert sound(machine, home)
