"""Real commands with a real pip: which modules they import, and which they do not need."""

import os
import subprocess
import sys

import pytest

from tests.support.processes.traffic import SAFE_PIP
from tests.support.venvs.template import clean_environment, offline
from tests.support.venvs.workspace import PIPS, Workspace
from tests.support.wheels.tiny import Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="virtual environments of POSIX")]

# Every module that is run, or loaded if it is an extension, from then on.
RECORDER = """
import atexit, os, sys

run = []

def record(event, arguments):
    if "safe_pip.launch.isolation" in sys.modules or os.environ.get("RECORD_ALL"):
        if event == "exec":
            run.append(arguments[0].co_filename)
        elif event == "import" and isinstance(arguments[1], str):
            run.append(arguments[1])

def write():
    with open(os.environ["RECORD"], "a") as file:
        file.writelines(name + "\\n" for name in run)

sys.addaudithook(record)
atexit.register(write)
"""


@pytest.fixture(scope="module", params=PIPS)
def world(request, wheelhouse, shared, tmp_path_factory):
    """An environment with safe-pip and the oldest or the newest pip, in which some command has run before."""
    workspace = Workspace(wheelhouse, tmp_path_factory.mktemp("isolated"), SAFE_PIP, PIPS[request.param], shared=shared)
    return World(workspace, tmp_path_factory.mktemp("world"))


class World:
    def __init__(self, workspace, directory):
        self.workspace, self.directory = workspace, directory
        tiny = Project("tiny", "1.0")
        (directory / "index").mkdir()
        tiny.write_wheel(directory / "index")
        (directory / "recorder").mkdir()
        (directory / "recorder" / "sitecustomize.py").write_text(RECORDER)
        self.environment = self.make("venv", *workspace.base)
        self.run("list")

    def make(self, name, *wheels):
        return self.workspace.maker.make(self.directory / name, wheels)

    def run(self, *arguments, environment=None, module="safe_pip", status=0, **variables):
        everything = clean_environment(
            self.directory / "home", cache=self.directory / "cache", **offline(self.directory / "index"), **variables
        )
        done = subprocess.run(
            [(environment or self.environment).python, "-m", module, *arguments],
            env=everything, cwd=self.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def imported(self, *arguments, **how):
        """The files below site-packages that a command imported, without safe-pip's own."""
        record = self.directory / "record"
        record.write_text("")
        path = {"PYTHONPATH": str(self.directory / "recorder"), "RECORD": str(record)}
        self.run(*arguments, **how, **path)
        purelib = str(self.environment.purelib)
        names = [line for line in record.read_text().splitlines() if line.startswith(purelib + os.sep)]
        return [name for name in names if not name.startswith(os.path.join(purelib, "safe_pip", ""))]


def test_the_record_shows_what_plain_pip_imports_from_the_environment(world):
    assert any("pip/_internal" in name for name in world.imported("list", module="pip", RECORD_ALL="1"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"], ["help"], ["help", "install"], ["list", "--format=json"], ["freeze"], ["check"], ["inspect"],
        ["show", "-f", "pip"], ["debug"], ["config", "list"], ["cache", "dir"], ["index", "versions", "tiny"],
        ["install", "--dry-run", "--report", "-", "tiny"], ["download", "tiny"], ["completion", "--bash"],
    ],
    ids=lambda arguments: "-".join(arguments),
)  # fmt: skip
def test_no_command_imports_anything_from_the_environment(world, arguments):
    assert world.imported(*arguments) == []


def test_neither_do_an_install_and_an_uninstall(world):
    assert world.imported("install", "tiny") == []
    assert world.imported("uninstall", "-y", "tiny") == []


def test_the_place_that_pip_was_frozen_from_is_what_version_shows(world):
    assert f" from {world.environment.purelib / 'pip'} (" in world.run("--version")


def test_an_environment_whose_pip_was_removed_is_served_by_the_newest_copy(world):
    environment = world.make("without-pip", *world.workspace.base)
    world.run("uninstall", "-y", "pip", environment=environment)
    assert not (environment.purelib / "pip").exists()
    world.run("install", "tiny", environment=environment)
    assert "tiny" in world.run("list", environment=environment)


def test_another_environment_needs_neither_pip_nor_safe_pip(world):
    bare = world.make("bare")
    for arguments in (["install", "tiny"], ["list"], ["uninstall", "-y", "tiny"]):
        world.run("--python", bare.python, *arguments)
        assert (bare.purelib / "tiny.py").exists() is ("uninstall" not in arguments)
    assert not (world.environment.purelib / "tiny.py").exists()
