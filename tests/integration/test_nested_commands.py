"""safe-pip below safe-pip: the inner command inherits the locks of the outer one and never waits for them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest

from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

A1, A2, B1 = Project("aproject", "1"), Project("aproject", "2"), Project("bproject", "1")


def dropping(env, how: str) -> str:
    """A prefix for shell commands: nothing, or what runs them with none of our variables but what the tests need."""
    if how == "variable":
        return ""
    kept = {name: value for name, value in env.variables.items() if name.startswith(("PIP_", "XDG_", "HOME", "PATH"))}
    return shlex.join(["env", "-i", *(f"{name}={value}" for name, value in kept.items())]) + " "


both_ways = pytest.mark.parametrize("how", ["variable", "dropped"])


@both_ways
def test_recipes_below_an_exclusive_holder_install_and_list_at_once(env, how):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    projects = [Project(f"part{number}", "1") for number in range(4)]
    env.add_to_index(*projects)
    command = dropping(env, how) + shlex.join(env.command())
    recipes = "".join(f"{p.name}:\n\t{command} install {p.name}\n\t{command} list\n" for p in projects)
    names = " ".join(p.name for p in projects)
    (env.directory / "Makefile").write_text(f".PHONY: all {names}\nall: {names}\n{recipes}")
    done = env.run("run", "--exclusive", "--", "make", "-j4")
    assert env.installed() == {p.name: "1" for p in projects}, done.stderr
    assert env.run("check").returncode == 0


@both_ways
def test_below_a_shared_holder_an_addition_goes_through_and_a_replacement_is_refused_at_once(env, how):
    env.add_to_index(A1, A2, B1)
    env.run("install", "aproject==1")
    command = dropping(env, how) + shlex.join(env.command())

    def below(text: str, status: int) -> subprocess.CompletedProcess[str]:
        return env.run("run", "--shared", "--", "sh", "-c", f"exec {command} {text}", status=status)

    below("install bproject", 0)
    for replacement in ("install --upgrade aproject", "uninstall -y aproject"):
        refused = below(replacement, 75)
        assert "nothing there can be replaced or removed" in refused.stderr
        assert "Nothing was changed" in refused.stderr
        assert "safe-pip run --exclusive" in refused.stderr
    below("list", 0)
    assert env.installed() == {"aproject": "1", "bproject": "1"}


NAMESPACE = Project("portion", "1", files={"space/portion.py": ""})
HIDING = {
    "a package over a namespace portion": Project("hiding", "1", files={"space/__init__.py": ""}),
    "a package before a module": Project("hiding", "1", files={"aproject/other.py": "", "aproject/__init__.py": ""}),
    "a script": Project("hiding", "1", console_scripts={"aproject": "hiding:main"}),
}


@pytest.mark.parametrize("hiding", HIDING)
def test_below_a_shared_holder_a_module_that_hides_another_is_no_addition(env, hiding):
    env.add_to_index(Project("aproject", "1", console_scripts={"aproject": "aproject:main"}), NAMESPACE, HIDING[hiding])
    env.run("install", "aproject", "portion")
    refused = env.run("run", "--shared", "--", *env.command("install", "hiding"), status=75)
    assert "nothing there can be replaced or removed" in refused.stderr
    assert env.installed() == {"aproject": "1", "portion": "1"}


def test_below_a_shared_holder_a_version_that_shadows_another_is_no_addition(env):
    env.add_to_index(A1, A2)
    tree = env.directory / "other tree"
    env.run("install", "--target", tree, "aproject==1")
    for how in (("aproject==2",), ("--ignore-installed", "aproject")):
        words = ("run", "--shared", "--", *env.command("install", *how))
        refused = env.run(*words, status=75, PYTHONPATH=str(tree))
        assert "nothing there can be replaced or removed" in refused.stderr
    assert env.installed() == {}


def test_a_lock_that_the_shell_took_counts_as_well(env):
    if shutil.which("flock") is None:
        pytest.skip("flock(1) is not installed")
    env.add_to_index(A1, A2)
    env.run("install", "aproject==1")
    for script in ("flock -s {site} {command}", "exec 9<{site}; flock -s 9; {command}"):
        text = script.format(site=env.site, command=shlex.join(env.command("install", "-U", "aproject")))
        done = subprocess.run(
            ["sh", "-c", text], env=env.variables, cwd=env.directory, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 75, done.stderr
        assert "nothing there can be replaced" in done.stderr


NESTED_BACKEND = """
import os, subprocess
from _copying import *
from _copying import build_wheel as copy

def build_wheel(directory, config_settings=None, metadata_directory=None):
    for args, status in {calls!r}:
        # An isolated build hides the environment from its programs.
        variables = {{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}}
        done = subprocess.run({command!r} + args, capture_output=True, text=True, env=variables)
        assert done.returncode == status, (args, done.returncode, done.stdout, done.stderr)
    return copy(directory)

build_editable = build_wheel
"""


@pytest.mark.parametrize("isolation", [(), ("--no-build-isolation",)], ids=["isolated", "not isolated"])
def test_a_build_that_calls_safe_pip_does_not_wait_for_its_own_ancestor(env, isolation):
    env.add_to_index(A1, B1)
    env.run("install", "aproject")
    tree = Project("outer", "1").write_source_tree(env.directory / "outer")
    (tree / "_backend.py").rename(tree / "_copying.py")
    refused = 75 if isolation else 0
    calls = [(["list"], 0), (["install", "bproject"], 0), (["install", "--force-reinstall", "aproject"], refused)]
    (tree / "_backend.py").write_text(NESTED_BACKEND.format(calls=calls, command=env.command()))
    env.run("install", *isolation, tree)
    assert env.installed() == {"aproject": "1", "bproject": "1", "outer": "1"}


def test_locks_are_free_when_the_command_ends_though_it_left_a_daemon(env):
    env.add_to_index(A1)
    reading, writing = os.pipe()
    script = f"sleep 1000 >/dev/null 2>&1 </dev/null & echo $! >/dev/fd/{writing}"
    done = subprocess.run(
        env.command("run", "--exclusive", "--", "sh", "-c", script),
        env=env.variables,
        cwd=env.directory,
        pass_fds=[writing],
    )
    os.close(writing)
    assert done.returncode == 0
    with open(reading) as pipe:
        daemon = int(pipe.readline())
    try:
        env.run("--lock-timeout", "0", "install", "aproject")
    finally:
        os.kill(daemon, 9)
