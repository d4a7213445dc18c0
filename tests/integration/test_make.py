"""`make -j8` whose recipes install, upgrade, build, remove and list in one environment: docs/how-to/make.md.

`python -m tests.integration make --rounds 20` runs it again and again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.pages import Page, shell
from tests.support.venvs.checker import check, installed
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Content, Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")]
DIGITS = range(10)
MODULES = 20

# A build backend in the environment, which refuses to build with the modules of two versions.
BACKEND = """\
import importlib.metadata, os, shutil
from builder import {modules}

VERSION = {version!r}

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    versions = {{VERSION, importlib.metadata.version("builder"), {attributes}}}
    assert versions == {{{version!r}}}, versions
    (name,) = os.listdir("prebuilt")
    shutil.copy(os.path.join("prebuilt", name), wheel_directory)
    return name
"""
WITH_BUILDER = '[build-system]\nrequires = ["builder"]\nbuild-backend = "builder"\n'


def builder(version: str) -> Project:
    """The tool that the builds use."""
    names = [f"module{number}" for number in range(MODULES)]
    attributes = ", ".join(f"{name}.VERSION" for name in names)
    files: dict[str, Content] = {f"builder/{name}.py": f"VERSION = {version!r}\n" for name in names}
    files["builder/__init__.py"] = BACKEND.format(modules=", ".join(names), attributes=attributes, version=version)
    return Project("builder", version, files=files)


def distribution(name: str, version: str) -> Project:
    """One of the forty: a package, a portion of a namespace that all share, a script, and data beside the others'."""
    module = name.replace("-", "_")
    files = {
        f"{module}/__init__.py": f"VERSION = {version!r}\ndef main(): print(VERSION)\n",
        f"{module}/only{version}.py": "",
        f"forty/{module}.py": f"VERSION = {version!r}\n",
    }
    data = {f"share/forty/{name}.txt": version}
    return Project(name, version, files=files, data=data, console_scripts={name: f"{module}:main"})


def stock(directory: Path) -> None:
    """Make the wheelhouse and the source trees that the Makefile names."""
    names = [f"{kind}-{digit}" for kind in ("fresh", "moving", "passing") for digit in DIGITS]
    versions = [(name, version) for name in names for version in ("1", "2") if version == "1" or "moving" in name]
    for project in (builder("1"), builder("2"), *(distribution(*each) for each in versions)):
        project.write_wheel(directory / "wheelhouse")
    for digit in DIGITS:
        tree = distribution(f"source-{digit}", "1").write_source_tree(directory / "sources" / f"source-{digit}")
        (tree / "_backend.py").unlink()
        (tree / "pyproject.toml").write_text(WITH_BUILDER)


def perform(env: PipEnvironment) -> None:
    """Run the page's commands once; on return everything that they made has been verified."""
    page = Page.read("make")
    stock(env.directory)
    page.save(env.directory)
    env.activate()
    before = installed(env.venv)
    shell("".join(page.commands), env.directory, env.variables)
    assert installed(env.venv) == before | {
        "builder": "2",
        **{f"{kind}-{digit}": "1" for kind in ("fresh", "source") for digit in DIGITS},
        **{f"moving-{digit}": "2" for digit in DIGITS},
    }
    assert check(env.venv, env.variables) == []
    # A recipe that lists after its own change finds that change, and the changes before it.
    listed = {path.name: path.read_text() for path in env.directory.glob("*-?.*") if path.suffix != ".installed"}
    assert len(listed) == 3 * len(DIGITS)
    for name, text in listed.items():
        project, _, change = name.partition(".")
        assert (project in text) is (change != "removed"), (name, text)
        assert change != "upgraded" or f"{project}==2" in text, (name, text)


def test_forty_distributions_are_made_by_eight_recipes_at_once_and_all_of_them_verify(env: PipEnvironment) -> None:
    perform(env)
