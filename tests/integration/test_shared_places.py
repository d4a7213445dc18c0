"""Places that concurrent pips share besides the environment: source trees, checkouts and caches."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.venvs.pip_environment import ended
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

ALONE_BACKEND = """
import os, time
from _copying import *
from _copying import build_wheel as copy

def build_wheel(directory, config_settings=None, metadata_directory=None):
    os.mkdir("being-built")   # fails if another build is in this tree
    try:
        for _ in range(200):
            assert os.path.isdir("being-built")
        return copy(directory)
    finally:
        os.rmdir("being-built")

build_editable = build_wheel
"""


def alone(project: Project, directory):
    """A source tree that notices if two builds are in it at once."""
    tree = project.write_source_tree(directory)
    (tree / "_backend.py").rename(tree / "_copying.py")
    (tree / "_backend.py").write_text(ALONE_BACKEND)
    return tree


def test_builds_of_one_source_tree_take_turns(env):
    tree = alone(Project("aproject", "1"), env.directory / "tree")
    processes = [env.start("wheel", "--no-deps", "-w", f"wheels{number}", tree) for number in range(6)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert status == 0, out + err


def test_editable_checkouts_into_one_directory_take_turns(env):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    tree = alone(Project("aproject", "1"), env.directory / "repository")
    git = ["git", "-C", tree, "-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *args], check=True, env=env.variables)
    url = f"git+file://{tree}#egg=aproject"
    processes = [env.start("install", "--src", "src", "--force-reinstall", "-e", url) for _ in range(4)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert status == 0, out + err
    assert env.installed() == {"aproject": "1"}


def test_a_purge_of_a_cold_cache_breaks_no_build(env):
    sdists = [Project(f"part{number}", "1") for number in range(3)]
    for project in sdists:
        project.write_sdist(env.index)
    more = {"PIP_CACHE_DIR": str(env.directory / "cold"), "PIP_FIND_LINKS": ""}
    links = [f"{project.name} @ {(env.index / project.sdist_name).as_uri()}" for project in sdists]
    for _ in range(2):
        builds = [env.start("wheel", "--no-deps", "-w", f"w{number}", *links, **more) for number in range(4)]
        purges = [env.start("cache", "purge", **more) for _ in range(6)]
        for process in builds:
            with ended(process) as (status, out, err):
                assert status == 0, out + err
                assert "WARNING" not in err
        for process in purges:
            with ended(process) as (status, out, err):
                assert "Traceback" not in err
    assert len(list((env.directory / "w0").iterdir())) == 3


def test_a_wheel_from_the_cache_is_shown_and_recorded_as_pip_would(env):
    project = Project("aproject", "1")
    project.write_sdist(env.index)
    url = f"aproject @ {(env.index / project.sdist_name).as_uri()}"
    more = {"PIP_CACHE_DIR": str(env.directory / "cache")}
    built = env.run("install", url, **more).stdout
    assert f"Stored in directory: {env.directory / 'cache' / 'wheels'}" in built
    env.run("uninstall", "-y", "aproject")
    cached = env.run("install", url, **more).stdout
    assert "Building wheel" not in cached
    assert url.split()[-1] in (env.site / "aproject-1.dist-info" / "direct_url.json").read_text()
    assert "aproject-1" in env.run("cache", "list", **more).stdout


def test_a_target_that_is_packed_and_shipped_is_left_without_a_state_directory(env):
    env.add_to_index(Project("aproject", "1"))
    for option, where in (("--target", "t"), ("--prefix", "p"), ("--root", "r")):
        env.run("install", option, where, "--ignore-installed", "aproject")
        assert list((env.directory / where).rglob("aproject.py"))
        assert not list((env.directory / where).rglob(".safe-pip*"))


def test_installs_into_one_target_at_once_leave_what_one_of_them_would(env):
    env.add_to_index(*(Project("aproject", str(number)) for number in range(4)), Project("other", "1"))
    processes = [
        env.start("install", "--upgrade", "--target", "there", f"aproject=={number % 4}", "other")
        for number in range(8)
    ]
    for process in processes:
        with ended(process) as (status, _, err):
            assert status == 0, err
    there = env.directory / "there"
    listed = env.run("list", "--path", there, "--format", "freeze").stdout.split()
    assert [line.partition("==")[0] for line in listed] == ["aproject", "other"]
    # pip leaves the metadata of the other versions there; the module is one of theirs, whole.
    versions = [info.stem.partition("-")[2] for info in there.glob("aproject-*.dist-info")]
    assert (there / "aproject.py").read_text() in [f"__version__ = {version!r}\n" for version in versions]
    assert not (there / ".safe-pip").exists()


@pytest.mark.parametrize("command", ["list", "freeze", "inspect"])
def test_a_target_is_listed_at_one_instant(env, command):
    env.add_to_index(Project("aproject", "1"))
    env.run("install", "--target", "there", "aproject")
    holder = env.start("run", "--exclusive", "--lock-dir", "there", "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    assert "is not free" in env.run("--lock-timeout", "0", command, "--path", "there", status=75).stderr
    with ended(holder, "") as (status, _, _):
        assert status == 0
    assert "aproject" in env.run(command, "--path", "there").stdout


@pytest.mark.parametrize("option", ["--target", "--prefix", "--root"])
def test_no_install_enters_a_directory_that_is_held_exclusively(env, option):
    env.add_to_index(Project("aproject", "1"))
    holder = env.start("run", "--exclusive", "--lock-dir", "there", "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    install = ("install", option, "there", "--ignore-installed", "--upgrade", "aproject")
    assert "is not free" in env.run("--lock-timeout", "0", *install, status=75).stderr
    assert not list((env.directory / "there").rglob("aproject*"))
    with ended(holder, "") as (status, _, _):
        assert status == 0
    env.run(*install)
    # The prefix has a tree now, and another Python would make one more.
    holder = env.start("run", "--exclusive", "--lock-dir", "there", "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    assert subprocess.run(["flock", "-n", "-s", env.directory / "there", "true"]).returncode == 1
    assert "is not free" in env.run("--lock-timeout", "0", *install, status=75).stderr
    with ended(holder, "") as (status, _, _):
        assert status == 0


def test_uvs_lock_is_waited_for_where_uv_has_left_one(env):
    if shutil.which("flock") is None:
        pytest.skip("flock(1) is not installed")
    env.add_to_index(Project("aproject", "1"))
    (env.venv.path / ".lock").touch()
    holder = subprocess.Popen(
        ["flock", "-x", env.venv.path / ".lock", "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    env.run("--lock-timeout", "0", "list")
    refused = env.run("--lock-timeout", "0", "install", "aproject", status=75)
    assert ".lock" in refused.stderr
    holder.communicate("")
    env.run("install", "aproject")
