"""Which environment a command is about, where its command line names none."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="virtual environments of POSIX")]


@pytest.fixture
def tool(env: PipEnvironment) -> PipEnvironment:
    """safe-pip as a tool of its own, as pipx installs it; below `work` nothing is an environment."""
    (env.venv.path / "pipx_metadata.json").touch()
    (env.directory / "work/below").mkdir(parents=True)
    env.add_to_index(Project("one", "1"))
    return env


def other(env: PipEnvironment, path: str) -> Venv:
    return env.workspace.maker.make(env.directory / path, ())


def run(env: PipEnvironment, *args: str, status: int = 0, cwd: str = "work/below", **more: str) -> str:
    """Run safe-pip somewhere else; on return what it printed on standard error."""
    variables = env.variables | more
    where = env.directory / cwd
    done = subprocess.run(
        env.command(*args), env=variables, cwd=where, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def of(venv: Venv) -> set[str]:
    return {path.name for path in venv.purelib.glob("one-*")}


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_a_tool_of_its_own_acts_on_the_active_environment(tool, variable):
    active, near = other(tool, "active"), other(tool, "work/.venv")
    told = run(tool, "install", "one", **{variable: str(active.path)})
    assert told.splitlines()[0] == f"safe-pip: using `{active.path}` ({variable})"
    assert of(active) == {"one-1.dist-info"}
    assert not of(tool.venv) | of(near)
    assert str(active.purelib) in tool_status(tool, **{variable: str(active.path)})


def tool_status(tool: PipEnvironment, **more: str) -> str:
    done = subprocess.run(
        tool.command("status"), env=tool.variables | more, cwd=tool.directory, capture_output=True, text=True
    )
    return done.stdout


def test_else_on_the_nearest_venv(tool):
    near = other(tool, "work/.venv")
    told = run(tool, "install", "one")
    assert told.splitlines()[0] == "safe-pip: using `../.venv`"
    assert of(near) == {"one-1.dist-info"}
    assert not of(tool.venv)
    assert run(tool, "uninstall", "-y", "-q", "one") == ""
    assert not of(near)


def test_else_it_says_what_to_give_and_makes_nothing(tool):
    before = sorted(tool.venv.path.rglob("*"))
    for args in (["install", "one"], ["list"], ["status"], ["doctor"], ["adopt"], ["run", "true"], ["merge", "."]):
        told = run(tool, *args, status=78)
        assert "there is no environment to use" in told
        assert "--python" in told
    assert [path for path in sorted(tool.venv.path.rglob("*")) if "__pycache__" not in path.parts] == [
        path for path in before if "__pycache__" not in path.parts
    ]
    for args in (["--version"], ["install", "--help"], ["cache", "dir"], ["config", "list"], ["help"]):
        assert run(tool, *args) == ""


def test_what_is_active_has_to_be_an_environment(tool):
    missing = tool.directory / "missing"
    assert f"`{missing}` (VIRTUAL_ENV) is not an environment" in run(tool, "list", status=78, VIRTUAL_ENV=str(missing))


def test_what_is_named_wins_in_silence(tool):
    active, named = other(tool, "active"), other(tool, "named")
    told = run(tool, "--python", str(named.path), "install", "-q", "one", VIRTUAL_ENV=str(active.path))
    assert told == ""
    assert of(named) == {"one-1.dist-info"}
    run(tool, "install", "-q", "one", VIRTUAL_ENV=str(tool.venv.path))
    assert of(tool.venv) == {"one-1.dist-info"}, "its own environment was named, by being active"
    into = tool.directory / "prefix"
    (tool.directory / "staged").mkdir()
    run(tool, "merge", str(tool.directory / "staged"), "--into", str(into))


def test_in_an_environment_it_acts_on_that_one_and_says_so_if_another_is_active(env):
    env.add_to_index(Project("one", "1"))
    (env.directory / "work/below").mkdir(parents=True)
    active = other(env, "active")
    told = run(env, "install", "one", VIRTUAL_ENV=str(active.path))
    assert told.splitlines()[0] == (
        f"safe-pip: using `{env.venv.path}`, where safe-pip is installed, not the active `{active.path}`"
    )
    assert of(env.venv) == {"one-1.dist-info"}
    assert not of(active)
    for args in (["list", "-q"], ["--python", str(env.venv.path), "list"], ["cache", "dir"]):
        assert run(env, *args, VIRTUAL_ENV=str(active.path)) == ""
    assert run(env, "list", VIRTUAL_ENV=str(env.venv.path)) == ""
    env.run("adopt")
    done = subprocess.run(
        [env.venv.scripts / "pip", "list"],
        env=env.variables | {"VIRTUAL_ENV": str(active.path)},
        capture_output=True,
        text=True,
        cwd=env.directory,
    )
    assert done.stderr == "", "an adopted pip says what pip says"


def test_its_version_follows_pips(env):
    first, second = env.run("--version").stdout.splitlines()
    assert first == env.plain("--version").stdout.strip()
    assert second.startswith("safe-pip ")
    env.run("adopt")
    done = subprocess.run(
        [env.venv.python, "-m", "pip", "--version"], env=env.variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [first]


def test_from_an_archive_it_is_refused(env, tmp_path):
    archive = tmp_path / "app.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", "import sys\nfrom safe_pip.__main__ import main\nsys.exit(main())\n")
        for path in sorted(Path(env.site / "safe_pip").rglob("*.py")):
            file.write(path, os.path.relpath(path, env.site))
    done = subprocess.run(
        [env.venv.python, "-P" if sys.version_info >= (3, 11) else "-s", archive, "list"],
        env=env.variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert done.stderr == (
        f"safe-pip: error: safe-pip cannot run from the archive `{archive}`. Nothing was changed. Install it\n"
    )
