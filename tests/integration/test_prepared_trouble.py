"""With any fault of the store of prepared wheels, an install gives the same result as without the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults.mounts import as_root, read_only, tmpfs
from tests.support.venvs.store import entries, installed, store
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", ["every/__init__.py", "every/data.txt", "bytecode", "listing"])
def test_a_damaged_entry_is_thrown_away_and_made_again(cold_env, what):
    without = installed(cold_env)
    entry = entries(cold_env)["every_thing"]
    name = f"files/every/__pycache__/__init__.{sys.implementation.cache_tag}.pyc" if what == "bytecode" else what
    path = entry / (name if what in ("bytecode", "listing") else f"files/{name}")
    made = (entry / "listing").stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert installed(cold_env) == without
    assert (entry / "listing").stat().st_mtime_ns != made, "it was not made again"
    assert path.read_bytes()[-1:] != b"?"


def test_a_store_that_others_could_change_is_not_used_and_v_says_so(cold_env):
    without = installed(cold_env, "--no-cache-dir")
    store(cold_env).mkdir(parents=True)
    store(cold_env).chmod(0o777)
    assert installed(cold_env) == without
    assert list(store(cold_env).iterdir()) == []
    done = cold_env.run("install", "-v", "other")
    assert "safe-pip: prepared wheels are not used" in done.stderr
    assert "prepared" not in cold_env.run("install", "--force-reinstall", "other").stderr


@as_root
def test_a_read_only_store_serves_its_entries_and_the_rest_is_installed_without_it(cold_env):
    without = installed(cold_env, "--no-cache-dir")
    cold_env.run("install", "other")
    with read_only(Path(cold_env.more["XDG_CACHE_HOME"])):
        assert installed(cold_env) == without
        new = Project("new")
        cold_env.add_to_index(new)
        done = cold_env.run("install", "-v", "new")
        assert "safe-pip: prepared wheels are not used" in done.stderr
    assert entries(cold_env).keys() == {"other"}


@as_root
def test_where_the_disk_of_the_store_is_full_it_is_done_as_without(cold_env, tmp_path):
    without = installed(cold_env, "--no-cache-dir")
    small = tmp_path / "small"
    small.mkdir()
    with tmpfs(small, "-o", "size=64k"):
        assert installed(cold_env, "--cache-dir", str(small)) == without
        assert not list((small / "safe-pip" / "prepared-v1" / "aside").glob("*"))


@as_root
def test_the_store_may_be_on_another_filesystem(cold_env, tmp_path):
    without = installed(cold_env, "--no-cache-dir")
    other = tmp_path / "other-filesystem"
    other.mkdir()
    with tmpfs(other):
        for mode in ("clone", "copy"):
            for _ in range(2):
                assert installed(cold_env, "--cache-dir", str(other), SAFE_PIP_LINK_MODE=mode) == without
        assert len(list((other / "safe-pip" / "prepared-v1" / "wheels").iterdir())) == 2


def test_a_wheel_that_only_an_installer_can_judge_is_refused_in_its_words(cold_env):
    cold_env.add_to_index(Project("evil", "1", files={"../../outside.py": "", "evil.py": ""}))
    for _ in range(2):
        assert "trying to install outside the target directory" in cold_env.run("install", "evil", status=1).stderr
    assert entries(cold_env) == {}


def test_a_link_mode_that_there_is_not_is_refused_before_anything_is_done(cold_env):
    done = cold_env.run("install", "other", status=None, SAFE_PIP_LINK_MODE="symlink")
    assert done.returncode != 0
    assert "`symlink` is neither `clone` nor `copy` (SAFE_PIP_LINK_MODE)" in done.stderr


def test_more_wheels_than_a_process_may_open_files_are_all_taken_from_the_store(cold_env):
    names = [f"p{number}" for number in range(80)]
    cold_env.add_to_index(*(Project(name, "1") for name in names))
    command = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *cold_env.command("install", "-v", *names)]
    for _ in range(2):
        done = subprocess.run(command, env=cold_env.variables, cwd=cold_env.directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "safe-pip: prepared wheels are not used" not in done.stderr
        assert cold_env.installed().keys() >= {*names}
        cold_env.run("uninstall", "-y", *names)
    assert entries(cold_env).keys() >= {*names}
