"""An install from the store of prepared wheels gives the same bytes as an install without it."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.faults.mounts import as_root, sharing
from tests.support.venvs.store import entries, installed, store
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

VARIANTS = [
    pytest.param((), {}, id="plain"),
    pytest.param(("--no-compile",), {}, id="no-compile"),
    pytest.param((), {"PYTHONOPTIMIZE": "1"}, id="optimized"),
    pytest.param((), {"SOURCE_DATE_EPOCH": "1700000000"}, id="reproducible"),
]


@pytest.mark.parametrize(("options", "variables"), VARIANTS)
@pytest.mark.oldest_pip
def test_with_and_without_the_store_the_same_is_installed(cold_env, options, variables):
    without = installed(cold_env, "--no-cache-dir", *options, **variables)
    assert installed(cold_env, *options, **variables) == without
    used = {name: (entry.stat().st_mtime_ns, entry.stat().st_ino) for name, entry in entries(cold_env).items()}
    assert used.keys() == {"every_thing", "other"}
    assert installed(cold_env, *options, **variables) == without
    for name, entry in entries(cold_env).items():
        assert entry.stat().st_mtime_ns > used[name][0], "it was not used"
        assert entry.stat().st_ino == used[name][1]


@pytest.mark.oldest_pip
def test_the_output_is_the_same_too(cold_env):
    cold_env.more["PATH"] = os.defpath
    said = []
    for options in (("--no-cache-dir",), (), ()):
        done = cold_env.run(
            "install", "-v", "--prefix", cold_env.directory / "prefix", *options, "every-thing", "other"
        )
        shutil.rmtree(cold_env.directory / "prefix")
        said.append((done.stdout, done.stderr))
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("options", [(), ("--no-cache-dir",)], ids=["store", "none"])
def test_bytecode_with_another_prefix_is_left_to_the_importing_program(cold_env, tmp_path, options):
    elsewhere = tmp_path / "elsewhere"
    found = installed(cold_env, *options, PYTHONPYCACHEPREFIX=str(elsewhere))
    assert found
    assert not any(name.endswith(".pyc") for name in found)
    assert not [path for path in elsewhere.rglob("*") if ".safe-pip" in path.parts]


def test_levels_of_optimisation_have_bytecode_of_their_own(cold_env):
    installed(cold_env)
    found = installed(cold_env, PYTHONOPTIMIZE="2")
    assert any(name.endswith(".opt-2.pyc") for name in found)
    assert len(list(store(cold_env).glob("wheels/*"))) == 4


@pytest.mark.oldest_pip
def test_nothing_is_stored_where_there_is_to_be_no_cache(cold_env):
    for options, more in (
        (("--no-cache-dir",), {}),
        ((), {"PIP_NO_CACHE_DIR": "1"}),
        ((), {"SAFE_PIP_CACHE_LIMIT": "0"}),
    ):
        installed(cold_env, *options, **more)
    assert not store(cold_env).exists()


def test_the_store_is_where_pip_is_told_to_have_its_cache(cold_env, tmp_path):
    installed(cold_env, "--cache-dir", str(tmp_path / "option"))
    installed(cold_env, PIP_CACHE_DIR=str(tmp_path / "variable"))
    for name in ("option", "variable"):
        assert list((tmp_path / name / "safe-pip" / "prepared-v1" / "wheels").iterdir())
    assert not store(cold_env).exists()


@pytest.mark.parametrize("options", [(), ("-e",)], ids=["directory", "editable"])
@pytest.mark.oldest_pip
def test_a_wheel_that_is_built_each_time_is_not_prepared(cold_env, options):
    tree = Project("local").write_source_tree(cold_env.directory / "source")
    for _ in range(2):
        cold_env.run("install", *options, tree)
        assert cold_env.installed() == {"local": "1"}
    assert entries(cold_env) == {}
    cold_env.run("install", "--upgrade", *options, tree, "other")
    assert entries(cold_env).keys() == {"other"}


@pytest.mark.oldest_pip
def test_a_built_wheel_in_pips_cache_is_prepared_and_so_is_any_other_wheel(cold_env):
    sdist = Project("built").write_sdist(cold_env.index)
    wheel = Project("given").write_wheel(cold_env.directory)
    cold_env.run("install", "built", wheel, "other")
    first = entries(cold_env)
    assert first.keys() == {"built", "given", "other"}
    used = {name: entry.stat().st_mtime_ns for name, entry in first.items()}
    sdist.touch()
    done = cold_env.run("install", "--force-reinstall", "built", wheel, "other")
    assert "Building wheel" not in done.stdout
    assert entries(cold_env) == first
    assert all(entry.stat().st_mtime_ns > used[name] for name, entry in first.items())


def test_an_edited_file_changes_no_other_environment(cold_env):
    without = installed(cold_env)
    cold_env.run("install", "other")
    (cold_env.site / "other.py").write_text("edited = 1\n")
    assert installed(cold_env) == without


@pytest.mark.oldest_pip
def test_two_wheels_with_one_file_leave_what_the_later_one_has(cold_env):
    one = Project("one", "1", files={"both.py": "one = 1\n", "one.py": ""})
    two = Project("two", "1", files={"both.py": "two = 22\n", "two.py": ""}, requires=("one",))
    cold_env.add_to_index(one, two)
    for _ in range(2):
        cold_env.run("install", "--force-reinstall", "two")
        assert (cold_env.site / "both.py").read_text() == "two = 22\n"
        code = "import both; print(both.two, both.__spec__.loader.get_code('both').co_consts[0])"
        done = subprocess.run([cold_env.venv.python, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["22", "22"]


def blocks(path: Path) -> list[tuple[int, int]]:
    """Where on its disk a file lies (the kernel's Documentation/filesystems/fiemap.rst): the first block, and flags."""
    header, extent = "=QQIIII", "=QQQQQIIII"
    room = bytearray(struct.pack(header, 0, 2**64 - 1, 1, 0, 16, 0) + bytes(16 * struct.calcsize(extent)))
    with open(path, "rb") as file:
        fcntl.ioctl(file, 0xC020660B, room)
    count = struct.unpack_from(header, room)[3]
    found = [
        struct.unpack_from(extent, room, struct.calcsize(header) + number * struct.calcsize(extent))
        for number in range(count)
    ]
    return [(each[1], each[5]) for each in found]


@as_root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_where_files_can_share_blocks_they_do_unless_a_copy_is_asked_for(cold_env, tmp_path, kind):
    big = Project("big", "1", files={"big/data.bin": os.urandom(300_000), "big/code.py": "x = 1\n" * 5_000})
    cold_env.add_to_index(big)
    disk, shared = tmp_path / "disk", 0x2000
    disk.mkdir()
    with sharing(kind, disk, tmp_path / "image"):
        for mode in ("clone", "copy", "clone"):
            prefix = disk / "prefix"
            options = ("--ignore-installed", "--prefix", prefix, "--cache-dir", disk / "cache")
            cold_env.run("install", *options, "big", SAFE_PIP_LINK_MODE=mode)
            (entry,) = (disk / "cache").glob("safe-pip/prepared-v1/wheels/*/files")
            (site,) = prefix.glob("lib/python3*/site-packages")
            for name in ("big/data.bin", "big/code.py"):
                here, there = blocks(entry / name), blocks(site / name)
                assert (here == there) == (mode != "copy"), (mode, name, here, there)
                assert all(flags & shared for _, flags in there) == (mode == "clone"), (mode, name, there)
                assert (site / name).read_bytes() == (entry / name).read_bytes()
            if mode == "clone":
                (site / "big" / "data.bin").write_bytes(b"edited")
                assert (entry / "big" / "data.bin").stat().st_size == 300_000
            shutil.rmtree(prefix)
