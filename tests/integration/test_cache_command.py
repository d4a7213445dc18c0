"""`safe-pip cache` includes prepared wheels, and does not disturb commands that install."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.venvs.checker import check
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

ONE = Project("one", "1", files={"one/__init__.py": "value = 1\n", "one/data.txt": "x" * 5000})
ONE_NEW = Project("one", "2", files={"one/__init__.py": "value = 2\n"})
TWO = Project("twofold", "1", files={"two.py": "value = 2\n"})


@pytest.fixture
def cached(env: PipEnvironment) -> PipEnvironment:
    """An environment with its own cache, which holds `one 1` and `twofold 1` as prepared wheels."""
    env.more["PIP_CACHE_DIR"] = str(env.directory / "cache")
    env.add_to_index(ONE, TWO)
    env.run("install", "one", "twofold")
    env.run("uninstall", "-y", "one", "twofold")
    return env


@pytest.fixture
def alone(cached: PipEnvironment) -> PipEnvironment:
    """The environment, with copies of pip that no other test uses."""
    own = cached.directory / "own"
    own.mkdir()
    cached.more |= {"XDG_CACHE_HOME": str(own), "TMPDIR": str(own)}
    return cached


def entries(env: PipEnvironment) -> list[Path]:
    """The directories of the prepared wheels."""
    return sorted((env.directory / "cache" / "safe-pip").glob("prepared-*/wheels/*"))


def copies(env: PipEnvironment) -> list[Path]:
    """The copies of pip."""
    return sorted(Path(env.variables["XDG_CACHE_HOME"]).glob("safe-pip/pip/[!.]*"))


def said(env: PipEnvironment, *args: str) -> str:
    return env.run("cache", *args).stdout


@pytest.mark.oldest_pip
def test_info_counts_the_prepared_wheels(cached):
    found = said(cached, "info")
    assert "Number of locally built wheels: 0\nPrepared wheels location (safe-pip): " in found
    assert "Number of prepared wheels: 2\nLimit of prepared wheels: 10 GB\n" in found
    assert "Prepared wheels size: 0 bytes" not in found


def test_info_names_the_copies_of_pip_with_size_and_limit(alone):
    alone.more["SAFE_PIP_CACHE_LIMIT"] = "500M"
    found = said(alone, "info").splitlines()
    (place,) = (line.partition(": ")[2] for line in found if line.startswith("Copies of pip location"))
    size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    assert size > 1_000_000
    assert found[-4:] == [
        f"Copies of pip location (safe-pip): {place}",
        f"Copies of pip size: {size / 1e6:.1f} MB",
        f"Number of copies of pip: {len(copies(alone))}",
        "Limit of copies of pip: 30 days without use",
    ]
    assert "Limit of prepared wheels: 0.5 GB" in found


def test_info_of_an_empty_cache_makes_nothing(env):
    env.more["PIP_CACHE_DIR"] = str(env.directory / "cache")
    assert "Prepared wheels size: 0 bytes\nNumber of prepared wheels: 0\n" in said(env, "info")
    assert not (env.directory / "cache" / "safe-pip").exists()


@pytest.mark.oldest_pip
def test_list_names_the_prepared_wheels_that_match(cached):
    everything, some = said(cached, "list"), said(cached, "list", "two*")
    assert "No locally built wheels cached.\n\nPrepared wheels (safe-pip):\n\n - one-1-py3-none-any.whl (" in everything
    assert " - twofold-1-py3-none-any.whl (" in everything
    assert "one-1" not in some
    assert "twofold-1" in some


@pytest.mark.oldest_pip
def test_a_list_for_programs_has_nothing_that_is_not_a_wheel(cached):
    assert said(cached, "list", "--format=abspath") == ""


@pytest.mark.oldest_pip
def test_remove_deletes_matching_entries(cached):
    done = cached.run("cache", "remove", "one")
    assert "Prepared wheels removed: 1 (" in done.stdout
    assert "No matching packages" not in done.stdout + done.stderr
    assert [path.name for path in entries(cached)] != []
    assert "one-1" not in said(cached, "list")
    cached.run("install", "one", "twofold")


@pytest.mark.oldest_pip
def test_a_pattern_without_a_match_is_reported_like_pip(cached):
    done = cached.run("cache", "remove", "three")
    assert 'No matching packages for pattern "three"' in done.stdout + done.stderr
    assert "Prepared" not in done.stdout
    assert len(entries(cached)) == 2


@pytest.mark.oldest_pip
def test_purge_deletes_all_entries_even_damaged_ones(alone):
    (entries(alone)[0] / "listing").write_bytes(b"rubbish")
    assert "Prepared wheels removed: 1 (" in said(alone, "purge")
    assert not entries(alone)
    assert not list((alone.directory / "cache" / "safe-pip").glob("prepared-*/aside/*"))
    alone.run("install", "one", "twofold")
    assert len(entries(alone)) == 2


def test_purge_deletes_the_copies_of_pip_but_those_that_other_commands_run_from(alone):
    alone.run("list")
    script = f"exec 9<{shlex.quote(str(alone.site))}/.safe-pip/commit; flock -x 9; echo in; read line"
    with subprocess.Popen(["bash", "-c", script], stdin=-1, stdout=-1, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "in\n"
        listing = alone.start("list", "--format=freeze")
        assert "waiting for the shared lock" in listing.stderr.readline()
        assert "Copies of pip removed: 0 (0 bytes), in use: 1\n" in said(alone, "purge")
        assert len(copies(alone)) == 1
        shell.communicate("\n")
    output, errors = listing.communicate()
    assert listing.returncode == 0, errors
    assert "pip==" in output
    found = said(alone, "purge", "--log", alone.directory / "log")
    assert "Copies of pip removed: 1 (" in found
    assert "in use" not in found
    assert copies(alone) == []
    assert "pip" in alone.run("list").stdout
    assert len(copies(alone)) == 1
    assert "Copies of pip" not in said(alone, "remove", "*")


def test_an_entry_in_use_is_not_deleted(alone):
    held = entries(alone)[0]
    with subprocess.Popen(["flock", "-s", held, "sh", "-c", "echo; cat"], stdin=-1, stdout=-1) as user:
        assert user.stdout is not None
        user.stdout.readline()
        assert "Prepared wheels removed: 1 (" in (found := said(alone, "purge"))
        assert "in use: 1" in found
        assert entries(alone) == [held]
        user.communicate(b"")
    said(alone, "purge")
    assert not entries(alone)


def test_installs_do_not_notice_a_purge(alone):
    alone.add_to_index(ONE_NEW, *(Project(f"p{number}", "1", files={f"p{number}.py": ""}) for number in range(4)))
    names = [f"p{number}" for number in range(4)]
    for _ in range(2):
        purge = [alone.start("cache", "purge") for _ in range(2)]
        running = [alone.start("install", "one", "twofold", *names[: 1 + number]) for number in range(3)]
        for process in [*purge, *running]:
            output, errors = process.communicate()
            assert process.returncode == 0, output + errors
        assert not check(alone.venv, alone.variables)
        alone.run("uninstall", "-y", "one", "twofold", *names)
