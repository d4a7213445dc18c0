"""Errors that users can cause give one sentence. Nothing is lost, and readers still work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess

import pytest

from tests.support.faults.mounts import as_root, tmpfs
from tests.support.venvs.readonly import ReadOnlyEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

A1 = Project("aproject", "1", console_scripts={"aproject": "aproject:main"})


@as_root
def test_an_environment_that_may_only_be_read_is_read_and_its_change_refused(env, common):
    env.add_to_index(A1)
    env.run("install", "aproject")
    readable = ReadOnlyEnvironment(env, common)
    for _ in ("without a state directory", "with one"):
        listed = readable.run("list", "--format", "freeze")
        assert (listed.returncode, "aproject==1" in listed.stdout) == (0, True), listed.stderr
        for args in (("install", "--force-reinstall", "aproject"), ("uninstall", "-y", "aproject")):
            refused = readable.run(*args)
            assert refused.returncode == 78, refused.stderr
            assert "is not writable" in refused.stderr
            assert "Nothing was changed" in refused.stderr
            assert "Traceback" not in refused.stderr
        assert readable.run("check").returncode == 0
        assert readable.run("install", "--force-reinstall", "aproject", user=0).returncode == 0
    assert (readable.site / ".safe-pip").is_dir()


@as_root
def test_a_read_only_filesystem_is_read_and_its_change_refused(env):
    env.add_to_index(A1)
    before = env.directory / "before"
    shutil.copytree(env.venv.path, before, symlinks=True)
    with tmpfs(env.venv.path):
        shutil.copytree(before, env.venv.path, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", env.venv.path], check=True)
        env.run("list")
        env.run("check")
        refused = env.run("install", "aproject", status=78)
        assert "is not writable: Read-only file system. Nothing was changed" in refused.stderr


@as_root
def test_a_full_disk_loses_nothing(env):
    big = Project("big", "1", files={f"big/part{number}.py": "#" + "x" * 400_000 for number in range(20)})
    env.add_to_index(A1, big)
    before = env.directory / "before"
    shutil.copytree(env.venv.path, before, symlinks=True)
    size = sum(file.lstat().st_blocks * 512 for file in before.rglob("*")) + 4_000_000
    with tmpfs(env.venv.path, "-o", f"size={size}"):
        shutil.copytree(before, env.venv.path, symlinks=True, dirs_exist_ok=True)
        env.run("install", "aproject")
        failed = env.run("install", "big", status=74)
        assert "there is not enough space in" in failed.stderr
        assert "Nothing was changed" in failed.stderr
        assert env.installed()["aproject"] == "1"
        env.run("list")
        env.run("check")


@pytest.mark.oldest_pip
def test_a_target_that_is_a_file_is_refused_in_pips_words(env):
    env.add_to_index(A1)
    (env.directory / "file").write_text("")
    assert "is not a directory" in env.run("install", "--target", "file", "aproject", status=1).stderr


@pytest.mark.parametrize("option", ["--prefix", "--root", "--target"])
def test_a_file_on_the_way_to_where_it_is_to_go_is_named(env, option):
    env.add_to_index(A1)
    (env.directory / "file").write_text("")
    refused = env.run("install", option, "file/below", "aproject", status=None)
    assert refused.returncode in (1, 78)
    assert "directory" in refused.stderr


def test_a_state_directory_that_is_a_file_is_named(env):
    env.add_to_index(A1)
    (env.site / ".safe-pip").write_text("")
    refused = env.run("install", "aproject", status=78)
    assert f"`{env.site}/.safe-pip` is not a directory" in refused.stderr


def test_a_missing_environment_is_named(env):
    missing = env.run("--python", str(env.directory / "missing"), "list", status=1)
    assert "Could not locate Python interpreter" in missing.stderr


def test_a_working_directory_that_vanished_is_no_obstacle(env):
    env.add_to_index(A1)
    gone = env.directory / "gone"
    command = f"mkdir {gone} && cd {gone} && rmdir {gone} && exec {' '.join(env.command('list'))}"
    done = subprocess.run(["sh", "-c", command], env=env.variables, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    "args",
    ["uninstall -y aproject", "merge x --into y", "unmerge m", "venv x", "doctor --env x", "run --env x -- true"],
)
def test_a_working_directory_that_vanished_is_named_where_a_path_needs_it(env, args):
    env.add_to_index(A1)
    gone = env.directory / "gone"
    command = f"mkdir {gone} && cd {gone} && rmdir {gone} && exec {' '.join(env.command(*args.split()))}"
    done = subprocess.run(["sh", "-c", command], env=env.variables, capture_output=True, text=True)
    refused = "safe-pip: error: the working directory was removed. Nothing was changed\n"
    assert (done.returncode, done.stderr) == (78, refused)


@pytest.mark.oldest_pip
def test_no_text_is_read_in_an_encoding_that_depends_on_the_locale(env):
    env.add_to_index(A1)
    variables = {**env.variables, "PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "always::EncodingWarning"}
    for args in (
        *("install aproject", "list", "freeze", "check", "status", "doctor", "adopt", "unadopt", "run -- true"),
        *("venv made", "install --force-reinstall aproject", "uninstall -y aproject"),
    ):
        done = subprocess.run(
            env.command(*args.split()), env=variables, cwd=env.directory, capture_output=True, text=True
        )
        ours = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and "safe_pip" in line]
        assert (done.returncode, ours) == (0, []), done.stderr


DAMAGES = {
    "no METADATA": lambda info: (info / "METADATA").unlink(),
    "no RECORD": lambda info: (info / "RECORD").unlink(),
    "an empty dist-info": lambda info: (shutil.rmtree(info), info.mkdir()),
    "a leftover of an interrupted pip": lambda info: info.rename(info.with_name("~" + info.name[1:])),
    "a binary METADATA": lambda info: (info / "METADATA").write_bytes(b"\xff\xfe\x00"),
    "a dist-info without a name": lambda info: (shutil.rmtree(info), info.with_name("aproject.dist-info").mkdir()),
    "a dist-info that is a file": lambda info: (shutil.rmtree(info), info.write_text("")),
}


def told(text: str) -> object:
    """What a command printed: lines, or the JSON of `inspect` with its distributions in the order of their places."""
    if not text.startswith("{"):
        return text.splitlines()
    found = json.loads(text)
    found["installed"].sort(key=lambda each: each["metadata_location"])
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.oldest_pip
def test_a_damaged_distribution_is_reported_as_pip_reports_it_and_holds_up_nothing(env, damage):
    env.add_to_index(A1, Project("other", "1"))
    env.run("install", "aproject")
    DAMAGES[damage](env.site / "aproject-1.dist-info")
    commands = (("list",), ("freeze",), ("check",), ("show", "aproject"), ("inspect",))
    # safe-pip has this backend on Python 3.10 too, where it is not pip's default.
    env.more["_PIP_USE_IMPORTLIB_METADATA"] = "1"
    for args, pip in zip(commands, env.read_with_plain_pip(*commands), strict=True):
        ours = subprocess.run(env.command(*args), env=env.variables, cwd=env.directory, capture_output=True, text=True)
        if "No package metadata" in pip.stderr:  # from Python 3.15 on pip fails
            assert ours.returncode == (1 if "without a name" in damage and "show" in args else 0), ours.stderr
            assert f"`{env.site}/aproject" in ours.stderr
            assert "has no METADATA" in ours.stderr
            assert "Run `safe-pip doctor --repair`" in ours.stderr
            continue
        # `freeze` leaves safe-pip out, as it leaves pip out.
        lines = [
            line for line in pip.stdout.splitlines() if args != ("freeze",) or not line.startswith("parallel-safe-pip ")
        ]
        assert (ours.returncode, told(ours.stdout)) == (pip.returncode, told("\n".join(lines))), ours.stderr
        if "Traceback" not in pip.stderr:
            assert "Traceback" not in ours.stderr
    env.run("install", "other")
    assert (env.site / "other.py").exists()
    env.run("uninstall", "-y", "other")


def test_a_damaged_journal_is_never_guessed_at(env):
    env.add_to_index(A1)
    env.run("install", "aproject")
    (env.site / ".safe-pip" / "1.journal").write_text("?")
    for args in (("list",), ("install", "--force-reinstall", "aproject"), ("uninstall", "-y", "aproject")):
        refused = env.run(*args, status=76)
        assert "the journal is damaged" in refused.stderr
        assert "safe-pip doctor --repair" in refused.stderr
    assert env.installed() == {"aproject": "1"}


@pytest.mark.parametrize("value", ["soon", "-1"])
def test_a_lock_timeout_that_is_none_is_refused(env, value):
    assert "is not a number of seconds" in env.run("--lock-timeout", value, "list", status=2).stderr


def test_an_interrupt_while_waiting_for_a_lock_changes_nothing_and_shows_no_traceback(env):
    env.add_to_index(A1)
    holder = env.start("run", "--exclusive", "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    waiting = env.start("install", "aproject")
    assert "waiting for the" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode in (1, 130)
    assert "Traceback" not in err
    holder.communicate("", timeout=60)
    assert env.installed() == {}


def test_a_verb_behind_an_option_that_was_cut_short_is_refused(env):
    refused = env.run("--timeou", "5", "run", "--", "true", status=2)
    assert "safe-pip: error: `run` stands behind an option" in refused.stderr


VANISHING_BACKEND = """
import os
import zipfile
from _copying import *

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    (name,) = os.listdir("prebuilt")
    with zipfile.ZipFile(os.path.join("prebuilt", name)) as wheel:
        wheel.extractall(directory, [member for member in wheel.namelist() if ".dist-info/" in member])
    tree = os.getcwd()
    os.rename(tree, tree + "-away")
    open(tree, "w").close()
    return next(name for name in os.listdir(directory) if name.endswith(".dist-info"))
"""


@pytest.mark.oldest_pip
def test_an_error_of_ours_during_a_build_is_not_taken_for_a_failed_build(env):
    tree = A1.write_source_tree(env.directory / "tree")
    (tree / "_backend.py").rename(tree / "_copying.py")
    (tree / "_backend.py").write_text(VANISHING_BACKEND)
    failed = env.run("install", tree, status=78)
    assert f"safe-pip: error: `{tree}` is not a directory. Nothing was changed" in failed.stderr


@pytest.mark.oldest_pip
def test_an_upgrade_that_fails_tells_what_it_found_as_pip_does(env):
    env.add_to_index(Project("aproject", "1"), Project("aproject", "2", console_scripts={"tool": "aproject"}))
    env.run("install", "aproject==1")

    def found(done):
        return [line for line in done.stdout.splitlines() if "Attempting" in line or "Found existing" in line]

    ours = env.run("install", "aproject==2", status=1)
    assert env.installed() == {"aproject": "1"}
    assert "Uninstalling" not in ours.stdout
    assert len(found(ours)) == 2
    assert found(ours) == found(env.plain("install", "aproject==2", status=1))


@pytest.mark.parametrize("most", [12, 16, 18, 80])
def test_with_few_descriptors_an_upgrade_is_made_whole_or_not_at_all(env, most):
    files = {f"share/d{number}/file": "{}" for number in range(90)}
    versions = [
        Project("wide", version, data={path: text.format(version) for path, text in files.items()})
        for version in ("1", "2")
    ]
    env.add_to_index(*versions)
    env.run("install", "wide==1")
    command = env.command("install", "wide==2")
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {most}; exec "$@"', "sh", *command],
        env=env.variables,
        cwd=env.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    version = env.installed()["wide"]
    assert version == ("2" if done.returncode == 0 else "1"), done.stderr
    assert done.returncode == 0 or most < 18, done.stderr
    assert {(env.venv.path / path).read_text() for path in files} == {version}
    left = {path.name for path in (env.site / ".safe-pip").iterdir()}
    assert left <= {"commit", "commit.gate", "environment.gate", "keep", "keep.gate"}
