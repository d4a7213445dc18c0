"""safe-pip never runs code that another user placed where it looks for a copy of pip, not even as root."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.wheels.tiny_pip import install_tiny_pip

NOBODY = 65534
PLANTED = "raise SystemExit('the planted code was run')\n"

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can play the part of two users"
)


@pytest.fixture
def shared():
    """A directory that every user can reach, unlike those of the tests."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def give(path):
    """Make `path`, and all below it, the other user's."""
    for entry in (path, *path.rglob("*")):
        os.chown(entry, NOBODY, NOBODY, follow_symlinks=False)


def plant(store, name):
    """A copy with the right name, in which everything is the other user's."""
    install_tiny_pip(store / name, more={"pip/__init__.py": PLANTED, "pip/_internal/__init__.py": PLANTED})
    give(store)


def assert_elsewhere(report, cache):
    """The copy is in a directory of this user alone, below a temporary one."""
    copy = Path(report["copy"][0])
    assert not copy.is_relative_to(cache)
    assert {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in (copy, copy.parent)} == {(0, 0)}


@pytest.fixture
def name(installed, probe, tmp_path):
    """The name of the copy: any user who has the same wheel can compute it."""
    copy, _, _ = probe.report([installed.script], tmp_path)["copy"]
    return Path(copy).name


@pytest.mark.parametrize(
    ("mode", "owner"), [(0o755, NOBODY), (0o777, 0), (0o1777, 0), (0o775, 0)],
    ids=["owned", "world-writable", "sticky", "group-writable"],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "safe-pip", "safe-pip/pip"])
def test_a_copy_planted_in_a_cache_that_others_can_write_is_not_used(
    mode, owner, below, shared, installed, probe, name, tmp_path
):
    plant(shared / "cache" / "safe-pip" / "pip", name)
    for directory in ("", "safe-pip", "safe-pip/pip"):
        os.chown(shared / "cache" / directory, 0, 0)
    os.chown(shared / "cache" / below, owner, NOBODY)
    (shared / "cache" / below).chmod(mode)
    before = sorted(path.name for path in shared.rglob("*"))
    report = probe.report([installed.script], tmp_path, XDG_CACHE_HOME=str(shared / "cache"), TMPDIR=str(tmp_path))
    if mode == 0o1777 and below != "safe-pip/pip":
        # Others may make entries there, but not exchange this user's: the copy is what decides.
        assert Path(report["copy"][0]).stat().st_uid == 0
    else:
        assert_elsewhere(report, shared)
        assert sorted(path.name for path in shared.rglob("*")) == before


def test_a_copy_of_another_user_in_the_own_cache_is_replaced(shared, installed, probe, name, tmp_path):
    plant(shared / "cache" / "safe-pip" / "pip", name)
    for directory in ("", "safe-pip", "safe-pip/pip"):
        os.chown(shared / "cache" / directory, 0, 0)
    report = probe.report([installed.script], tmp_path, XDG_CACHE_HOME=str(shared / "cache"))
    copy = Path(report["copy"][0])
    assert {path.stat().st_uid for path in (copy, *copy.rglob("*"))} == {0}


@pytest.mark.parametrize("link", ["cache", "cache/safe-pip", "cache/safe-pip/pip", "copy"])
def test_a_symbolic_link_to_code_of_another_user_is_not_followed(link, shared, installed, probe, name, tmp_path):
    plant(shared / "theirs" / "safe-pip" / "pip", name)
    relative = f"cache/safe-pip/pip/{name}" if link == "copy" else link
    (shared / relative).parent.mkdir(parents=True, exist_ok=True)
    (shared / relative).symlink_to(shared / Path(relative.replace("cache", "theirs", 1)))
    give(shared / "theirs")
    report = probe.report([installed.script], tmp_path, XDG_CACHE_HOME=str(shared / "cache"), TMPDIR=str(tmp_path))
    copy = Path(report["copy"][0])
    assert copy.is_relative_to(tmp_path) or link == "copy", "only a link in a cache of its own is replaced"
    assert not Path(os.path.realpath(copy)).is_relative_to(shared / "theirs")


def test_root_leaves_nothing_in_the_home_of_another_user(shared, installed, probe, tmp_path):
    (shared / "home").mkdir()
    give(shared / "home")
    environment = {"HOME": str(shared / "home"), "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)}
    assert_elsewhere(probe.report([installed.script], tmp_path, **environment), shared)
    assert not list((shared / "home").iterdir())


def test_a_temporary_directory_of_the_other_user_is_not_used(shared, installed, probe, tmp_path):
    (shared / "tmp").mkdir(mode=0o777)
    give(shared / "tmp")
    environment = {"XDG_CACHE_HOME": str(shared / "tmp"), "TMPDIR": str(shared / "tmp")}
    report = probe.report([installed.script], tmp_path, **environment)
    assert_elsewhere(report, shared)
    shutil.rmtree(report["copy"][0])  # not the real pip, and other commands of this user look there


@pytest.mark.parametrize("runner", [True, False])
def test_a_copy_that_the_other_user_gives_is_refused(runner, shared, installed, probe, name, tmp_path):
    plant(shared / "theirs", name)
    command = [installed.python, installed.runner] if runner else [installed.script]
    done = probe.run(command, tmp_path, SAFE_PIP_FROZEN=str(shared / "theirs" / name), PROBE="error")
    assert (done.returncode, done.stdout) == (78, "")
    assert "planted" not in done.stderr
    assert "is not a copy of pip that this user alone can change" in done.stderr


def test_a_user_without_a_home_has_copies_below_the_temporary_directory(shared, probe, tmp_path):
    """With the interpreter of the tests if another user can run it, else with the system's."""
    package = shared / "package" / "safe_pip"
    shutil.copytree(probe.package, package, ignore=shutil.ignore_patterns("__pycache__"))
    install_tiny_pip(shared / "site")
    interpreter = next(filter(usable, (os.path.realpath(sys.executable), "/usr/bin/python3")), None)
    if interpreter is None:
        pytest.skip("no interpreter on this machine is for all users to run")
    (shared / "tmp").mkdir()
    (shared / "tmp").chmod(0o1777)
    environment = {"PATH": os.defpath, "HOME": str(shared), "PYTHONPATH": str(shared / "site"), "PROBE": "error"}
    environment["TMPDIR"] = str(shared / "tmp")
    done = subprocess.run(
        [interpreter, package / "_runner.py"], env=environment, cwd=shared, user=NOBODY, group=NOBODY, extra_groups=[],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (copies,) = (shared / "tmp").iterdir()
    assert f'"copy": ["{copies}' in done.stdout
    assert copies.stat().st_uid == NOBODY
    assert not (shared / ".cache").exists()


def usable(interpreter):
    question = [interpreter, "-c", "import sys, json; sys.exit(sys.version_info < (3, 10))"]
    try:
        return not subprocess.run(
            question, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False
        ).returncode
    except OSError:
        return False
