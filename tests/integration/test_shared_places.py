"""What pips that work at once share besides the environment: source trees, checkouts, and caches."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.venvs.environment import ended
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


def test_builds_of_one_source_tree_take_turns(shop):
    tree = alone(Project("aproject", "1"), shop.directory / "tree")
    processes = [shop.start("wheel", "--no-deps", "-w", f"wheels{number}", tree) for number in range(6)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert status == 0, out + err


def test_editable_checkouts_into_one_directory_take_turns(shop):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    tree = alone(Project("aproject", "1"), shop.directory / "repository")
    git = ["git", "-C", tree, "-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *args], check=True, env=shop.variables)
    url = f"git+file://{tree}#egg=aproject"
    processes = [shop.start("install", "--src", "src", "--force-reinstall", "-e", url) for _ in range(4)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert status == 0, out + err
    assert shop.installed() == {"aproject": "1"}


def test_a_purge_of_a_cold_cache_disturbs_nobody_who_builds(shop):
    sdists = [Project(f"part{number}", "1") for number in range(3)]
    for project in sdists:
        project.write_sdist(shop.index)
    more = {"PIP_CACHE_DIR": str(shop.directory / "cold"), "PIP_FIND_LINKS": ""}
    links = [f"{project.name} @ {(shop.index / project.sdist_name).as_uri()}" for project in sdists]
    for _ in range(2):
        builds = [shop.start("wheel", "--no-deps", "-w", f"w{number}", *links, **more) for number in range(4)]
        purges = [shop.start("cache", "purge", **more) for _ in range(6)]
        for process in builds:
            with ended(process) as (status, out, err):
                assert status == 0, out + err
                assert "WARNING" not in err
        for process in purges:
            with ended(process) as (status, out, err):
                assert "Traceback" not in err
    assert len(list((shop.directory / "w0").iterdir())) == 3


def test_a_wheel_from_the_cache_is_shown_and_recorded_as_pip_would(shop):
    project = Project("aproject", "1")
    project.write_sdist(shop.index)
    url = f"aproject @ {(shop.index / project.sdist_name).as_uri()}"
    more = {"PIP_CACHE_DIR": str(shop.directory / "cache")}
    built = shop.run("install", url, **more).stdout
    assert f"Stored in directory: {shop.directory / 'cache' / 'wheels'}" in built
    shop.run("uninstall", "-y", "aproject")
    cached = shop.run("install", url, **more).stdout
    assert "Building wheel" not in cached
    assert url.split()[-1] in (shop.site / "aproject-1.dist-info" / "direct_url.json").read_text()
    assert "aproject-1" in shop.run("cache", "list", **more).stdout


def test_a_target_that_is_packed_and_shipped_is_left_without_a_state_directory(shop):
    shop.stock(Project("aproject", "1"))
    for option, where in (("--target", "t"), ("--prefix", "p"), ("--root", "r")):
        shop.run("install", option, where, "--ignore-installed", "aproject")
        assert list((shop.directory / where).rglob("aproject.py"))
        assert not list((shop.directory / where).rglob(".safe-pip*"))


def test_installs_into_one_target_at_once_leave_what_one_of_them_would(shop):
    shop.stock(*(Project("aproject", str(number)) for number in range(4)), Project("other", "1"))
    processes = [
        shop.start("install", "--upgrade", "--target", "there", f"aproject=={number % 4}", "other")
        for number in range(8)
    ]
    for process in processes:
        with ended(process) as (status, _, err):
            assert status == 0, err
    there = shop.directory / "there"
    listed = shop.run("list", "--path", there, "--format", "freeze").stdout.split()
    assert [line.partition("==")[0] for line in listed] == ["aproject", "other"]
    # pip leaves the metadata of the other versions there; the module is one of theirs, whole.
    versions = [info.stem.partition("-")[2] for info in there.glob("aproject-*.dist-info")]
    assert (there / "aproject.py").read_text() in [f"__version__ = {version!r}\n" for version in versions]
    assert not (there / ".safe-pip").exists()


@pytest.mark.parametrize("command", ["list", "freeze", "inspect"])
def test_a_target_is_listed_at_one_instant(shop, command):
    shop.stock(Project("aproject", "1"))
    shop.run("install", "--target", "there", "aproject")
    holder = shop.start("run", "--exclusive", "--env", "there", "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    assert "is not free" in shop.run("--lock-timeout", "0", command, "--path", "there", status=75).stderr
    with ended(holder, "") as (status, _, _):
        assert status == 0
    assert "aproject" in shop.run(command, "--path", "there").stdout


def test_uvs_lock_is_waited_for_where_uv_has_left_one(shop):
    if shutil.which("flock") is None:
        pytest.skip("flock(1) is not installed")
    shop.stock(Project("aproject", "1"))
    (shop.environment.path / ".lock").touch()
    holder = subprocess.Popen(
        ["flock", "-x", shop.environment.path / ".lock", "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    shop.run("--lock-timeout", "0", "list")
    refused = shop.run("--lock-timeout", "0", "install", "aproject", status=75)
    assert ".lock" in refused.stderr
    holder.communicate("")
    shop.run("install", "aproject")
