"""What is installed from the store of prepared wheels is, to the byte, what is installed without it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.support.store import entries, installed, store
from tests.support.wheels import Project

pytestmark = pytest.mark.slow

VARIANTS = [
    pytest.param((), {}, id="plain"),
    pytest.param(("--no-compile",), {}, id="no-compile"),
    pytest.param((), {"PYTHONOPTIMIZE": "1"}, id="optimized"),
    pytest.param((), {"SOURCE_DATE_EPOCH": "1700000000"}, id="reproducible"),
    pytest.param((), {"SAFE_PIP_LINK_MODE": "hardlink"}, id="linked"),
]


@pytest.mark.parametrize(("options", "variables"), VARIANTS)
def test_with_and_without_the_store_the_same_is_installed(fresh, options, variables):
    without = installed(fresh, "--no-cache-dir", *options, **variables)
    assert installed(fresh, *options, **variables) == without
    used = {name: (entry.stat().st_mtime_ns, entry.stat().st_ino) for name, entry in entries(fresh).items()}
    assert used.keys() == {"every_thing", "other"}
    assert installed(fresh, *options, **variables) == without
    for name, entry in entries(fresh).items():
        assert entry.stat().st_mtime_ns > used[name][0], "it was not used"
        assert entry.stat().st_ino == used[name][1]


def test_what_is_said_is_the_same_too(fresh):
    fresh.more["PATH"] = os.defpath
    said = []
    for options in (("--no-cache-dir",), (), ()):
        done = fresh.run("install", "-v", "--prefix", fresh.directory / "prefix", *options, "every-thing", "other")
        shutil.rmtree(fresh.directory / "prefix")
        said.append((done.stdout, done.stderr))
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("options", [(), ("--no-cache-dir",)], ids=["store", "none"])
def test_bytecode_that_is_wanted_elsewhere_is_left_to_who_imports(fresh, tmp_path, options):
    elsewhere = tmp_path / "elsewhere"
    found = installed(fresh, *options, PYTHONPYCACHEPREFIX=str(elsewhere))
    assert found
    assert not any(name.endswith(".pyc") for name in found)
    assert not [path for path in elsewhere.rglob("*") if ".safe-pip" in path.parts]


def test_levels_of_optimisation_have_bytecode_of_their_own(fresh):
    installed(fresh)
    found = installed(fresh, PYTHONOPTIMIZE="2")
    assert any(name.endswith(".opt-2.pyc") for name in found)
    assert len(list(store(fresh).glob("wheels/*"))) == 4


def test_nothing_is_stored_where_there_is_to_be_no_cache(fresh):
    for options, more in (
        (("--no-cache-dir",), {}),
        ((), {"PIP_NO_CACHE_DIR": "1"}),
        ((), {"SAFE_PIP_CACHE_LIMIT": "0"}),
    ):
        installed(fresh, *options, **more)
    assert not store(fresh).exists()


def test_the_store_is_where_pip_is_told_to_have_its_cache(fresh, tmp_path):
    installed(fresh, "--cache-dir", str(tmp_path / "option"))
    installed(fresh, PIP_CACHE_DIR=str(tmp_path / "variable"))
    for name in ("option", "variable"):
        assert list((tmp_path / name / "safe-pip" / "prepared-v1" / "wheels").iterdir())
    assert not store(fresh).exists()


def test_an_edited_file_changes_no_other_environment(fresh):
    without = installed(fresh)
    fresh.run("install", "other")
    (fresh.site / "other.py").write_text("edited = 1\n")
    assert installed(fresh) == without


def test_with_hard_links_it_is_noticed_and_made_again(fresh):
    fresh.more["SAFE_PIP_LINK_MODE"] = "hardlink"
    fresh.run("install", "other")
    entry = entries(fresh)["other"]
    assert (fresh.site / "other.py").samefile(entry / "files" / "other.py")
    (fresh.site / "other.py").write_text("edited = 1\n")
    without = installed(fresh, "--no-cache-dir")
    assert installed(fresh) == without
    assert not (fresh.site / "other.py").samefile(entries(fresh)["other"] / "files" / "other.py")


def test_with_hard_links_an_upgrade_in_the_same_second_changes_only_its_own(fresh):
    fresh.more["SAFE_PIP_LINK_MODE"] = "hardlink"
    fresh.run("install", "other")
    kept = entries(fresh)["other"] / "files" / "other.py"
    before = kept.stat().st_mtime_ns
    fresh.run("install", "--force-reinstall", "other")
    assert kept.stat().st_mtime_ns == before
    assert (fresh.site / "other.py").stat().st_mtime_ns != before


def test_two_wheels_with_one_file_leave_what_the_later_one_has(fresh):
    one = Project("one", "1", files={"both.py": "one = 1\n", "one.py": ""})
    two = Project("two", "1", files={"both.py": "two = 22\n", "two.py": ""}, requires=("one",))
    fresh.stock(one, two)
    for _ in range(2):
        fresh.run("install", "--force-reinstall", "two")
        assert (fresh.site / "both.py").read_text() == "two = 22\n"
        code = "import both; print(both.two, both.__spec__.loader.get_code('both').co_consts[0])"
        done = subprocess.run([fresh.environment.python, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["22", "22"]
