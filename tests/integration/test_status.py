"""`safe-pip status`: holders, waiting commands and unfinished transactions of real processes, read without a lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import safe_pip
from tests.support.processes.workers import LIMIT, workers

ID = "0123456789abcdef"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The site-packages of a virtual environment, as far as its directories go."""
    made = tmp_path / "venv" / "lib" / "python3" / "site-packages"
    made.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    return made


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that another user can reach."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    made = Path(tempfile.mkdtemp(prefix="safe-pip-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def variables() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_"))}
    return kept | {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)}


def status(*args: object, code: int = 0, **more: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "safe_pip", "status", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=variables(),
        check=False,
        **more,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def document(tree: Path, **more: Any) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(status("--json", "--env", tree, **more))
    return read


def lock(tree: Path, name: str) -> dict[str, Any]:
    (found,) = (each for each in document(tree)["locks"] if each["lock"] == name)
    assert isinstance(found, dict)
    return found


def test_a_quiet_environment_says_so(tree: Path) -> None:
    assert "not in use, and nothing is unfinished" in status("--env", tree.parents[2])
    read = document(tree)
    assert read["trees"] == [str(tree)]
    assert read["transactions"] == read["problems"] == []
    assert not (tree / ".safe-pip").exists()


def test_holder_and_waiters_are_named_with_their_modes(tree: Path) -> None:
    with workers(tree, count=3) as (replacing, building, reading):
        replacing.hold("replacing")
        building.start_to_wait("building")
        reading.start_to_wait("reading")
        environment, commit = lock(tree, "environment"), lock(tree, "commit")
        assert [(each["pid"], each["mode"], each["stopped"]) for each in environment["holders"]] == [
            (replacing.pid, "exclusive", False)
        ]
        assert [(each["pid"], each["mode"]) for each in environment["waiting"]] == [(building.pid, "shared")]
        assert [each["pid"] for each in commit["holders"]] == [replacing.pid]
        assert [(each["pid"], each["mode"]) for each in commit["waiting"]] == [(reading.pid, "shared")]
        assert "workers.py" in environment["holders"][0]["command"]
        text = status("--env", tree)
        assert f"`{environment['holders'][0]['command']}` (pid {replacing.pid}, for " in text
        assert ") has it to itself\n" in text
        assert ") waits to read what is installed" in text
        replacing.release()
        building.expect("held")
        assert [(each["pid"], each["mode"]) for each in lock(tree, "environment")["holders"]] == [
            (building.pid, "shared")
        ]


def test_a_stopped_holder_is_called_stopped(tree: Path) -> None:
    with workers(tree, count=1) as (building,):
        building.hold("building")
        building.signal(signal.SIGSTOP)
        building.wait_until_stopped()
        (holder,) = lock(tree, "environment")["holders"]
        assert (holder["pid"], holder["mode"], holder["stopped"]) == (building.pid, "shared", True)
        assert re.search(rf"\(pid {building.pid}, for [0-9]+ s, stopped\) uses it", status("--env", tree))
        building.signal(signal.SIGCONT)


def test_the_inheritor_of_a_lock_is_named_in_place_of_its_first_holder(tree: Path) -> None:
    script = f"exec 9<{tree}; flock -s 9; echo in; read line"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "in\n"
        holders = lock(tree, "environment")["holders"]
        assert [(each["pid"], each["mode"]) for each in holders] == [(shell.pid, "shared")]
        assert holders[0]["command"].startswith("bash -c ")
        shell.communicate("\n")


def test_a_holder_is_shown_without_the_secrets_of_its_command_line(tree: Path) -> None:
    program = ["sh", "-c", "echo in; read line", "-i", "https://me:s3cret@host/simple", "--password", "s3cret"]
    # A long command line is shown in part.
    command = [sys.executable, "-m", "safe_pip", "run", "--exclusive", "--env", ".", "--", *program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=tree, env=variables()) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        note = (tree / ".safe-pip" / "owner").read_text()
        for shown in (note, status("--env", tree), status("--json", "--env", tree)):
            assert "https://****@host" in shown
            assert "s3cret" not in shown
        holder.communicate(b"\n")


def test_a_command_that_builds_a_source_tree_is_shown(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    command = ["flock", str(tmp_path / "pyproject.toml"), "sh", "-c", "echo in; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        assert str(tmp_path / "pyproject.toml") not in status("--json", "--env", tree)
        everything = json.loads(status("--all", "--json"))["locks"]
        (found,) = (each for each in everything if each["path"] == str(tmp_path / "pyproject.toml"))
        assert (found["lock"], found["tree"], found["holders"][0]["mode"]) == ("mutex", None, "exclusive")
        assert re.search(rf"`flock .* works in `{tmp_path}/pyproject.toml`\n", status("--all"))
        holder.communicate(b"\n")


def test_status_waits_for_no_command_and_delays_none(tree: Path) -> None:
    with workers(tree, count=1, timeout=0) as (replacing,):
        for _ in range(3):
            before = document(tree)
            replacing.hold("replacing")
            replacing.release()
            assert before["locks"][0]["holders"] == []


def test_the_owner_of_an_exclusive_lock_says_since_when_it_has_it(tree: Path) -> None:
    with workers(tree, count=1) as (holder,):
        holder.hold("occupying")
        note = json.loads((tree / ".safe-pip" / "owner").read_bytes())
        assert lock(tree, "environment")["holders"][0]["since"] == note["since"]


def test_a_dead_transaction_is_shown_and_left_alone(tree: Path) -> None:
    state = tree / ".safe-pip"
    (state / ID / "stage").mkdir(parents=True)
    (state / f"{ID}.owner").write_text('{"pid": 4000000000, "command": "pip install x", "since": 5}\n')
    before = sorted(state.rglob("*"))
    (found,) = document(tree)["transactions"]
    assert (found["id"], found["tree"], found["state"], found["next"]) == (ID, str(tree), "staging", "delete")
    assert (found["alive"], found["pid"], found["command"]) == (False, 4000000000, "pip install x")
    said = status("--env", tree)
    assert re.search(r"  interrupted: `pip install x`, last at work \d+ s ago; nothing was changed\. The next ", said)
    assert ID not in said
    assert f"({ID})" in status("-v", "--env", tree)
    assert sorted(state.rglob("*")) == before


def test_every_environment_in_use_is_found_by_its_locks(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "target" / ".safe-pip").mkdir(parents=True)
    others = [tmp_path / "target", tmp_path / "quiet" / "site-packages"]
    others[1].mkdir(parents=True)
    with workers(tree, count=1) as (building,), workers(others[0], count=1) as (replacing,):
        building.hold("building")
        replacing.hold("replacing")
        trees = json.loads(status("--all", "--json"))["trees"]
        assert {str(tree), str(others[0])} <= {*trees}
        assert str(others[1]) not in trees
        assert re.search(rf"^{others[0]}\n  .* has it to itself$", status("--all"), re.MULTILINE)
    assert "unrecognized" not in status("--all", "--env", tree, code=2)


def test_another_user_counts_the_locks_that_it_cannot_name(common: Path) -> None:
    with workers(common, count=1) as (holder,):
        holder.hold("replacing")
        script = AS_NOBODY.replace('"--env", sys.argv[1]', '"--all"')
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=variables(), check=True
        )
        document = json.loads(done.stdout)
        assert document["hidden"] >= 1
        assert str(common) not in document["trees"]


def test_watching_ends_with_ctrl_c_and_each_line_is_a_document(tree: Path) -> None:
    command = [sys.executable, "-m", "safe_pip", "status", "--watch", "--json", "--env", str(tree)]
    with (
        workers(tree, count=1) as (holder,),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables()) as watch,
    ):
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["locks"][0]["holders"] == []
        holder.hold("building")
        assert json.loads(watch.stdout.readline())["locks"][0]["holders"][0]["pid"] == holder.pid
        watch.send_signal(signal.SIGINT)
        assert watch.communicate()[1] == ""
        assert watch.returncode == 130


AS_NOBODY = """
import os, shlex, sys  # before the user changes: the new user may not read the standard library
from safe_pip.launch import isolation
from safe_pip.commands import options, status
isolation.isolate()
from safe_pip.launch.settings import Settings
from safe_pip.messages import Reporter
options.parser("status")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(options.run("status", ["--json", "--env", sys.argv[1]], Settings(lock_timeout=0), Reporter()))
"""


def test_a_user_without_write_permission_sees_the_same(common: Path) -> None:
    with workers(common, count=1) as (holder,):
        holder.hold("replacing")
        # In this interpreter, which the other user may not be allowed to start.
        command = [sys.executable, "-c", AS_NOBODY, str(common)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=variables(), check=False)
        assert done.returncode == 0, done.stderr
        locks = json.loads(done.stdout)["locks"][:2]
        assert [[each["pid"] for each in one["holders"]] for one in locks] == [[holder.pid], [holder.pid]]


def test_untrusted_files_are_named(tree: Path) -> None:
    (tree / ".safe-pip").symlink_to(tree.parent)
    read = document(tree)
    assert read["problems"] == [f"`{tree / '.safe-pip'}` is a symbolic link"]


def test_a_path_without_environment_is_an_error(tmp_path: Path) -> None:
    assert "does not exist" in status("--env", tmp_path / "missing", code=78)
    assert "unrecognized arguments: --repair" in status("--repair", code=2)


def test_help_is_the_verbs_own() -> None:
    assert status("--help").startswith("usage: safe-pip status ")
