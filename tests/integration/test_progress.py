"""pip's progress bar over the wheels that are prepared: where pip would draw one, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
# A clock by which everything takes long.
PROGRAM = """
import sys, time
clock = time.monotonic
time.monotonic = lambda: 1000 * clock()
from safe_pip.launch import isolation
isolation.isolate()
from safe_pip.cli import main
sys.argv[:1] = ["safe-pip"]
sys.exit(main(sys.argv[1:]))
"""
BIG = Project("big", "1", files={f"big/module{number}.py": "value = 1\n" * 2000 for number in range(40)})
SMALL = Project("small", "1", files={f"small/module{number}.py": "value = 1\n" * 500 for number in range(40)})


@pytest.fixture
def env_with_two(env: PipEnvironment) -> PipEnvironment:
    env.more |= {"PIP_CACHE_DIR": str(env.directory / "cache"), "TERM": "xterm", "COLUMNS": "100"}
    env.add_to_index(BIG, SMALL)
    return env


def shown(env: PipEnvironment, *args: str) -> str:
    """What a command, by that clock, shows on a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [env.venv.python, "-c", PROGRAM, *args],
            env=env.variables,
            cwd=env.directory,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    output = b""
    with open(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                output += terminal.read(1 << 16)
            except OSError:  # EIO: nobody has it open any more
                break
    assert process.wait() == 0, output
    return output.decode()


def test_one_wheel_has_a_bar_with_its_share(env_with_two):
    found = shown(env_with_two, "install", "big")
    assert BAR in found
    assert "/100" in found
    assert "[big]" in found


def test_several_wheels_have_one_bar_over_all(env_with_two):
    found = shown(env_with_two, "install", "big", "small")
    assert BAR in found
    assert "/2" in found
    assert "/100" not in found


def test_there_is_no_bar_for_what_is_prepared(env_with_two):
    env_with_two.run("install", "big")
    env_with_two.run("uninstall", "-y", "big")
    assert BAR not in shown(env_with_two, "install", "big")


@pytest.mark.parametrize(
    "options", [["-q"], ["--progress-bar", "off"], ["--progress-bar", "raw"], ["-q", "--progress-bar=on"]]
)
def test_who_wants_no_bar_sees_none(env_with_two, options):
    assert BAR not in shown(env_with_two, "install", *options, "big")


def test_what_is_no_terminal_gets_what_it_gets_without_a_store(env_with_two):
    found = []
    for options in ([], ["--no-cache-dir"]):
        done = subprocess.run(
            [env_with_two.venv.python, "-c", PROGRAM, "install", *options, "big", "small"],
            env=env_with_two.variables,
            cwd=env_with_two.directory,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append((done.stdout, done.stderr))
        env_with_two.run("uninstall", "-y", "big", "small")
    assert found[0] == found[1]
    assert BAR not in found[0][0]
