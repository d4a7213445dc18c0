"""pip and safe-pip are upgraded and removed like other distributions, by themselves and during other commands."""

from __future__ import annotations

import json
import subprocess
import zipfile

import pytest

from tests.support.venvs.pip_environment import ended
from tests.support.wheels.tiny import Project
from tests.support.wheels.wheelhouse import NEWEST_PIP, OLDEST_PIP

pytestmark = pytest.mark.slow

SLOW, A1 = Project("slow", "1"), Project("aproject", "1")


def safe_pip_wheel(env):
    """The wheel of safe-pip that the workspace built."""
    (wheel,) = [path for path in env.workspace.base if path.name.startswith("parallel_safe_pip-")]
    return wheel


def other_pip(env):
    """The version of pip that the environment does not have."""
    return OLDEST_PIP if env.workspace.pip_version == NEWEST_PIP else NEWEST_PIP


def test_one_command_replaces_pip_and_safe_pip(env):
    version = other_pip(env)
    env.run("install", f"pip=={version}", "--force-reinstall", "--no-deps", safe_pip_wheel(env))
    assert env.run("--version").stdout.startswith(f"pip {version} from ")


def test_it_upgrades_itself_by_the_name_of_its_distribution(env):
    with zipfile.ZipFile(safe_pip_wheel(env)) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name.startswith("safe_pip/")}
    program = {"safe-pip": "safe_pip.__main__:main"}
    env.add_to_index(Project("parallel-safe-pip", "99", files=files, console_scripts=program))
    env.run("install", "--upgrade", "parallel-safe-pip")
    assert {"name": "parallel-safe-pip", "version": "99"} in json.loads(env.run("list", "--format", "json").stdout)
    assert len(list(env.site.glob("*safe_pip*.dist-info"))) == 1
    env.run("doctor")


@pytest.mark.parametrize("act", ["upgrade both", "remove parallel-safe-pip", "remove pip"])
def test_commands_at_work_are_not_disturbed(env, act):
    env.add_to_index(A1)
    waiting = env.waiting(SLOW)
    process = env.start("install", waiting.tree, "aproject")
    waiting.begun(process)
    if act == "upgrade both":
        env.run("install", f"pip=={other_pip(env)}", "--force-reinstall", "--no-deps", safe_pip_wheel(env))
    else:
        env.run("uninstall", "-y", act.split()[1])
    waiting.release()
    with ended(process) as (status, out, err):
        assert status == 0, err
        assert "Successfully installed aproject-1 slow-1" in out
        assert "import of" not in out + err
    assert env.installed() == {"aproject": "1", "slow": "1"}


def test_safe_pip_removes_itself_whole(env):
    env.run("uninstall", "-y", "parallel-safe-pip")
    assert not (env.site / "safe_pip").exists()
    assert not (env.venv.scripts / "safe-pip").exists()
    left = {path.name for path in env.site.iterdir() if "safe" in path.name}
    assert left <= {".safe-pip"}


def test_without_pip_in_the_environment_the_newest_copy_serves(env):
    env.add_to_index(A1)
    env.run("uninstall", "-y", "pip")
    env.run("install", "aproject")
    assert env.installed() == {"aproject": "1"}


def test_nothing_of_a_safe_pip_that_was_just_installed_is_imported(env):
    with zipfile.ZipFile(safe_pip_wheel(env)) as archive:
        modules = [name for name in archive.namelist() if name.startswith("safe_pip/")]
    files = dict.fromkeys(modules, "raise SystemExit('harm')")
    env.add_to_index(Project("parallel-safe-pip", "99", files=files), A1)
    env.run("install", "--upgrade", "parallel-safe-pip", "aproject")
    assert (env.site / "safe_pip" / "cli.py").read_text() == "raise SystemExit('harm')"


def test_a_wheel_that_brings_a_module_pip_would_import_is_not_run(env):
    names = ("socks", "keyring", "shlex", "netrc", "difflib", "_colorize", "filelock", "zipp", "readline")
    harm = dict.fromkeys((f"{name}.py" for name in names), "raise SystemExit('harm')")
    env.add_to_index(Project("harmful", "1", files=harm), Project("harmful", "2", files=harm))
    env.run("install", "harmful==1")
    env.run("install", "harmful==2")
    env.run("list")
    env.run("uninstall", "-y", "harmful")


def test_python_m_safe_pip_runs_nothing_of_the_working_directory(env):
    for name in ("pip", "filelock", "json", "safe_pip_helper", "importlib_metadata", "typing_extensions"):
        (env.directory / f"{name}.py").write_text("raise SystemExit('harm')")
    done = subprocess.run(
        [env.venv.python, "-m", "safe_pip", "list"],
        env=env.variables,
        cwd=env.directory,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "harm" in done.stdout + done.stderr) == (0, False)


REPLACED_WHILE_IT_STARTS = """
import os, shutil, sys
from safe_pip.launch import isolation
isolation.isolate()
import safe_pip
package = safe_pip.__path__[0]
if "SAFE_PIP_ATTEMPT" not in os.environ:
    os.rename(package, package + ".old")
    shutil.copytree(package + ".old", package)
    if "--broken" in sys.argv:
        os.unlink(os.path.join(package, "pip_seams", "__init__.py"))
        open(os.path.join(package, "pip_seams", "seam.py"), "w").write("import nothing_of_that_name")
elif os.path.exists(package + ".old"):
    shutil.rmtree(package)
    os.rename(package + ".old", package)
from safe_pip.cli import main
sys.exit(main(["list"]))
"""


@pytest.mark.parametrize("how", ["--whole", "--broken"])
def test_a_command_under_which_safe_pip_is_replaced_while_it_starts_begins_again(env, how):
    done = subprocess.run(
        [env.venv.python, "-c", REPLACED_WHILE_IT_STARTS, how],
        env=env.variables,
        cwd=env.directory,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "safe-pip" in done.stdout
