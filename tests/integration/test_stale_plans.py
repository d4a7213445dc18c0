"""Changes by other commands meanwhile are kept, noticed or resolved again; never torn or silently overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment, ended
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

A1, A2 = Project("aproject", "1"), Project("aproject", "2")
SLOW = Project("slow", "1")


def meanwhile(env: PipEnvironment, *args, project: Project = SLOW, do=()):
    """Run `install *args` of a build that waits, and the commands `do` while it does."""
    waiting = env.waiting(project)
    process = env.start("install", waiting.tree, *args)
    waiting.begun(process)
    for command in do:
        env.run(*command)
    waiting.release()
    return ended(process)


def test_a_project_installed_meanwhile_as_planned_is_dropped_from_the_plan_and_said(env):
    env.add_to_index(A1)
    with meanwhile(env, "aproject", do=[("install", "aproject")]) as (status, out, err):
        assert status == 0, err
        assert "`aproject 1` was installed meanwhile by another command" in err
        assert "Successfully installed slow-1\n" in out
    assert env.installed() == {"aproject": "1", "slow": "1"}


def test_a_project_installed_meanwhile_in_another_version_is_resolved_again(env):
    env.add_to_index(A1, A2)
    with meanwhile(env, "aproject==1", do=[("install", "aproject==2")]) as (status, out, err):
        assert status == 0, err
        assert "`aproject` changed while this command was at work: trying again" in err
        assert "Found existing installation: aproject 2" in out
    assert env.installed() == {"aproject": "1", "slow": "1"}


@pytest.mark.parametrize("options", [(), ("-e",)], ids=["plain", "editable"])
def test_a_wheel_that_was_built_is_not_built_again_because_the_plan_was_stale(env, options):
    env.add_to_index(A1, A2)
    waiting = env.waiting(SLOW)
    process = env.start("install", "aproject==1", *options, waiting.tree)
    waiting.begun(process)
    env.run("install", "aproject==2")
    waiting.release()
    with ended(process) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully installed aproject-1 slow-1" in out
    assert env.installed() == {"aproject": "1", "slow": "1"}
    assert waiting.builds() == 1


@pytest.mark.parametrize(
    ("is_used", "requires", "imports"), [(False, "[]", ""), (True, "['helper']", ""), (True, "[]", "import helper\n")]
)
def test_without_isolation_it_is_built_again_only_because_of_what_it_used(env, is_used, requires, imports):
    """What the build did not use may change under it, and what makes the plan stale does not cost the wheel."""
    helpers = Project("helper", "1"), Project("helper", "2")
    env.add_to_index(*helpers, A1, A2)
    env.run("install", "helper==1")
    waiting = env.waiting(SLOW)
    backend = waiting.tree / "_backend.py"
    backend.write_text(imports + backend.read_text())
    project = waiting.tree / "pyproject.toml"
    project.write_text(project.read_text().replace("requires = []", f"requires = {requires}"))
    process = env.start("install", "--no-build-isolation", "aproject==1", waiting.tree)
    waiting.begun(process)
    env.run("install", "aproject==2")
    env.plain("install", "--upgrade", "helper")  # it takes no lock
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
        assert f"`{'helper' if is_used else 'aproject'}` changed while this command was at work: trying again" in err
    assert env.installed() == {"aproject": "1", "helper": "2", "slow": "1"}
    assert waiting.builds() == (2 if is_used else 1)


REWRITING_BACKEND = """
from _copying import *
from _copying import build_wheel as copy

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open("builds.log", "a") as log:
        log.write("built\\n")
    os.makedirs("src/rewritten.egg-info", exist_ok=True)
    with open("src/rewritten.egg-info/PKG-INFO.new", "w") as file:
        file.write("Metadata-Version: 2.1\\nName: rewritten\\nVersion: 1\\n")
    os.replace("src/rewritten.egg-info/PKG-INFO.new", "src/rewritten.egg-info/PKG-INFO")
    return copy(directory)

build_editable = build_wheel
"""


def test_a_build_that_rewrites_its_own_metadata_on_the_path_makes_no_plan_stale(env):
    """setuptools does so in a src layout: an editable install puts `src`, with its egg-info, on the path."""
    tree = env.directory / "tree"
    Project("rewritten", files={"rewritten.pth": f"{tree / 'src'}\n"}).write_source_tree(tree)
    (tree / "_backend.py").rename(tree / "_copying.py")
    (tree / "_backend.py").write_text("import os\n" + REWRITING_BACKEND)
    (env.directory / "requirements.txt").write_text(f"-e {tree}\n")
    commands = [("-e", tree), ("-e", tree), (tree,), ("-r", env.directory / "requirements.txt")]
    for count, words in enumerate((*commands, (tree, "--no-build-isolation")), start=1):
        assert "trying again" not in env.run("install", *words).stderr
        assert (tree / "builds.log").read_text().count("built") == count
    env.more["PYTHONPATH"] = str(tree / "src")
    assert "trying again" not in env.run("install", tree).stderr
    env.run("uninstall", "-y", "rewritten")


def test_a_satisfied_requirement_that_is_removed_meanwhile_is_installed_again(env):
    env.add_to_index(A1)
    env.run("install", "aproject")
    needing = Project("slow", "1", requires=("aproject",))
    with meanwhile(env, project=needing, do=[("uninstall", "-y", "aproject")]) as (status, _, err):
        assert status == 0, err
        assert "trying again" in err
    assert env.installed() == {"aproject": "1", "slow": "1"}


def test_an_unrelated_change_makes_no_plan_stale(env):
    env.add_to_index(A1)
    with meanwhile(env, do=[("install", "aproject")]) as (status, _, err):
        assert (status, "trying again" in err) == (0, False)


def test_force_reinstall_installs_again_a_project_that_came_meanwhile(env):
    env.add_to_index(A1)
    do = [("install", "aproject")]
    with meanwhile(env, "--force-reinstall", "aproject", do=do) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully uninstalled aproject-1" in out


def test_ignore_installed_ignores_a_project_that_came_meanwhile(env):
    env.add_to_index(A1)
    do = [("install", "aproject")]
    with meanwhile(env, "--ignore-installed", "aproject", do=do) as (status, out, err):
        assert (status, "trying again" in err) == (0, False)
        assert "Successfully installed aproject-1 slow-1" in out


def test_a_local_source_tree_is_installed_again_as_pip_would(env):
    tree = A1.write_source_tree(env.directory / "tree")
    with meanwhile(env, tree, do=[("install", tree)]) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully uninstalled aproject-1" in out


def test_an_upgrade_that_another_command_made_meanwhile_is_not_made_twice(env):
    env.add_to_index(A1)
    env.run("install", "aproject")
    env.add_to_index(A2)
    do = [("install", "--upgrade", "aproject")]
    with meanwhile(env, "--upgrade", "aproject", do=do) as (status, out, err):
        assert status == 0, err
        assert "`aproject 2` was installed meanwhile" in err
        assert "Successfully installed slow-1\n" in out


def test_a_user_site_that_another_command_made_meanwhile_is_looked_at(env):
    """The directory did not exist when the first command began."""
    env.add_to_index(A1, A2)
    python = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
    arguments = ["-m", "safe_pip", "install", "--user", "--break-system-packages"]
    variables = env.variables | {"PYTHONPATH": str(env.site), "PYTHONUSERBASE": str(env.directory / "base")}
    waiting = env.waiting(SLOW)
    process = subprocess.Popen(
        [python, *arguments, waiting.tree, "aproject==1"],
        env=variables,
        cwd=env.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    waiting.begun(process)
    subprocess.run([python, *arguments, "aproject==2"], env=variables, check=True, cwd=env.directory)
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
    (info,) = (env.directory / "base").rglob("aproject-*.dist-info")
    assert info.name == "aproject-1.dist-info"


def test_a_plain_pip_is_noticed_as_well(env):
    env.add_to_index(A1, A2)
    waiting = env.waiting(SLOW)
    process = env.start("install", waiting.tree, "aproject==1")
    waiting.begun(process)
    env.plain("install", "aproject==2")
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
        assert "`aproject` changed" in err
    assert env.installed()["aproject"] == "1"


def test_requirements_from_a_pipe_are_there_at_the_second_attempt_too(env):
    env.add_to_index(A1, A2)
    waiting = env.waiting(SLOW)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        env.command("install", "-r", f"/dev/fd/{reading}"),
        env=env.variables,
        cwd=env.directory,
        pass_fds=[reading],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    with open(writing, "w") as pipe:
        pipe.write(f"aproject==1\n{waiting.tree}\n")
    waiting.begun(process)
    env.run("install", "aproject==2")
    waiting.release()
    with ended(process) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully installed aproject-1 slow-1" in out


@pytest.mark.parametrize("times", range(3))
def test_two_commands_whose_resolves_rejected_a_version_end_as_one_of_the_serial_orders(env, times):
    needs_b, needs_a = Project("aaa", "2", requires=("bbb==1",)), Project("bbb", "2", requires=("aaa==1",))
    env.add_to_index(Project("aaa", "1"), needs_b, Project("bbb", "1"), needs_a)
    processes = [env.start("install", "--find-links", env.index, name) for name in ("aaa", "bbb")]
    readers = [threading.Thread(target=process.communicate) for process in processes]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [process.returncode for process in processes] == [0, 0]
    assert env.installed() in ({"aaa": "2", "bbb": "1"}, {"aaa": "1", "bbb": "2"})


def test_versions_that_backtracking_rejected_belong_to_the_read_set(env):
    """`slow` needs `bbb`; its newest version needs `aaa==1`, and `aaa 2` is there; then `aaa` becomes 1 meanwhile."""
    env.add_to_index(Project("aaa", "1"), Project("aaa", "2"))
    env.add_to_index(Project("bbb", "1"), Project("bbb", "2", requires=("aaa==1",)))
    env.run("install", "aaa==2")
    (env.directory / "constraints").write_text("aaa==2\n")
    waiting = env.waiting(Project("slow", "1", requires=("bbb",)))
    process = env.start("install", waiting.tree, "-c", "constraints")
    waiting.begun(process)
    env.run("uninstall", "-y", "aaa")
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
        assert "`aaa` changed while this command was at work" in err
    assert env.installed()["bbb"] == "1"


def test_conflicts_are_those_with_what_is_installed_at_the_end(env):
    env.add_to_index(A1, A2, Project("needing", "1", requires=("aproject==1",)))
    with meanwhile(env, "aproject==2", do=[("install", "--no-deps", "needing")]) as (status, _, err):
        assert status == 0, err
        assert "needing 1 requires aproject==1, but you have aproject 2 which is incompatible." in err
        assert "Please file an issue" not in err


def test_a_report_on_standard_output_is_printed_once(env):
    env.add_to_index(A1)
    waiting = env.waiting(SLOW)
    process = env.start("install", "-q", "--report", "-", waiting.tree, "aproject")
    waiting.begun(process)
    refused = env.run("--lock-timeout", "0", "install", "aproject", status=75)
    assert "Nothing was changed" in refused.stderr
    waiting.release()
    with ended(process) as (status, out, err):
        assert status == 0, err
        assert out.count('"pip_version"') == 1
    assert env.installed() == {"aproject": "1", "slow": "1"}


def prompted(process) -> str:
    """What is printed up to the question."""
    seen = ""
    while "Proceed (Y/n)?" not in seen:
        letter = process.stdout.read(1)
        assert letter, process.stderr.read()
        seen += letter
    return seen


def test_no_lock_is_held_while_the_question_is_asked(env):
    env.add_to_index(A1, Project("other", "1"))
    env.run("install", "aproject")
    process = env.start("uninstall", "aproject")
    prompted(process)
    env.run("--lock-timeout", "0", "install", "other")
    with ended(process, "y\n") as (status, out, err):
        assert status == 0, err
        assert "Successfully uninstalled aproject-1" in out
    assert env.installed() == {"other": "1"}


def test_a_project_that_was_removed_during_the_question_is_skipped_in_pips_words(env):
    env.add_to_index(A1, Project("other", "1"))
    env.run("install", "aproject", "other")
    process = env.start("uninstall", "aproject")
    prompted(process)
    env.run("uninstall", "-y", "aproject")
    with ended(process, "y\n") as (status, _, err):
        assert status == 0
        assert "WARNING: Skipping aproject as it is not installed." in err
    assert env.installed() == {"other": "1"}


def test_a_project_that_was_replaced_during_the_question_is_removed_on_the_answer_from_a_pipe(env):
    env.add_to_index(A1, A2)
    env.run("install", "aproject==1")
    process = env.start("uninstall", "aproject")
    prompted(process)
    env.run("install", "aproject==2")
    with ended(process, "y\n") as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully uninstalled aproject-2" in out
    assert env.installed() == {}


def test_a_refusal_at_the_question_removes_nothing(env):
    env.add_to_index(A1)
    env.run("install", "aproject")
    done = env.run("uninstall", "aproject", given="n\n")
    assert "uninstalled" not in done.stdout
    assert env.installed() == {"aproject": "1"}


def test_all_names_of_one_uninstall_are_one_change(env):
    env.add_to_index(A1, Project("other", "1"))
    env.run("install", "aproject", "other")
    done = env.run("uninstall", "-y", "aproject", "other", "missing")
    assert env.installed() == {}
    assert "Successfully uninstalled aproject-1" in done.stdout
    assert "Successfully uninstalled other-1" in done.stdout
    assert "Skipping missing as it is not installed" in done.stderr
