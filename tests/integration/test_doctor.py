"""`safe-pip doctor` on real environments: it agrees with the checker on everything that is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import safe_pip
from tests.support.processes.workers import LIMIT, workers
from tests.support.tests import test_checker
from tests.support.tests.test_checker import LEFT, RIGHT, install
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project

ID = "0123456789abcdef"


def doctor(*args: object, code: int | None = None) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "safe_pip", "doctor", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=kept | {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)},
        check=False,
    )
    assert done.returncode in ((0, 1) if code is None else (code,)), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def document(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(doctor("--json", "--env", path))
    return read


@pytest.fixture
def environment(tmp_path: Path) -> Venv:
    """An environment that was filled by hand, and looks like a virtual one."""
    made = Venv(tmp_path / "env", frozenset({"bin/python", "pyvenv.cfg"}))
    made.scripts.mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    (made.path / "pyvenv.cfg").touch()
    for project in (LEFT, RIGHT):
        install(project, made)
    return made


def test_a_sound_environment_is_called_sound(environment: Venv) -> None:
    assert doctor("--env", environment.path, code=0) == "Sound: 2 distributions\n"
    read = document(environment.path)
    assert (read["sound"], read["distributions"]) == (True, 2)
    assert read["trees"] == [str(environment.purelib)]
    assert read["findings"] == read["notes"] == []
    assert not (environment.purelib / ".safe-pip").exists()


def complete(state: Path) -> None:
    """Make the lock files of a state directory: it is never there without them."""
    state.mkdir(exist_ok=True)
    for name in ("commit", "commit.gate", "environment.gate", "keep", "keep.gate"):
        (state / name).touch()


SAME = {
    "doubled-project": {"doubled-project"},
    "damaged-dist-info": {"missing-metadata", "wrong-metadata", "missing-record", "unreadable-record"},
    "missing-file": {"missing-file"},
    "wrong-digest": {"changed-file"},
    "missing-script": {"missing-file"},
    "wrong-shebang": {"changed-file"},
    "leftover": {"leftover"},
    "unfinished-transaction": {"unfinished-transaction"},
}
"""What the doctor calls what the checker finds."""
OTHERWISE = {
    # A private directory has a name of sixteen digits.
    test_checker.plant_stage: (True, set()),
    # pip stashes single files elsewhere, so below the top this may be a user's file.
    test_checker.plant_stashed_file: (True, set()),
    test_checker.plant_unowned_module: (True, set()),
    # A dist-info belongs to its distribution, whatever is in it.
    test_checker.plant_unrecorded_requested: (True, set()),
    # Beside the trees users may keep data and programs of their own.
    test_checker.plant_unowned_data: (True, set()),
    test_checker.plant_stray_script: (True, set()),
    # Bytecode is not data.
    test_checker.plant_orphaned_bytecode: (True, set()),
}
PLANTED = test_checker.test_a_planted_violation_is_named.pytestmark[0].args[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("plant", "name"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_doctor_and_checker_agree_on_what_is_planted(
    environment: Venv, plant: Callable[[Venv], None], name: str
) -> None:
    plant(environment)
    if (environment.purelib / ".safe-pip").exists():
        complete(environment.purelib / ".safe-pip")
    read = document(environment.path)
    kinds = {each["kind"] for each in read["findings"] + read["notes"]}
    is_sound, expected = OTHERWISE.get(plant, (False, SAME.get(name, set())))
    assert read["sound"] is is_sound
    assert kinds & expected if expected else not kinds


def test_every_finding_is_a_line_with_its_repair_and_they_are_sorted(environment: Venv) -> None:
    test_checker.plant_missing_file(environment)
    (environment.purelib / "left.py").write_text("")
    assert doctor("--env", environment.path, code=1).splitlines() == [
        "left 1: 1 file changed; repair: reinstall `left==1`",
        "right 1: 1 file missing; repair: reinstall `right==1`",
        "2 faults in 2 of 2 distributions (`-v` shows each)",
    ]
    assert doctor("--env", environment.path, "-v", code=1).splitlines() == [
        f"changed-file: left 1: {environment.purelib}/left.py: "
        f"0 bytes, not {len(LEFT.modules['left.py'])}; repair: reinstall `left==1`",
        f"missing-file: right 1: {environment.purelib}/right/deep/a.py; repair: reinstall `right==1`",
        "2 faults in 2 of 2 distributions",
    ]


def test_notes_alone_leave_it_sound(environment: Venv) -> None:
    kept = environment.purelib / ".safe-pip" / f"kept-{ID}"
    kept.mkdir(parents=True)
    complete(kept.parent)
    out = doctor("--env", environment.path, code=0)
    assert out.startswith(f"note: put-aside: {kept}: ")
    assert out.endswith("\nSound: 2 distributions\n")


def test_a_prepared_transaction_comes_before_everything_else_and_is_left_alone(environment: Venv) -> None:
    state = environment.purelib / ".safe-pip"
    state.mkdir()
    (state / f"{ID}.journal").write_text("no journal")
    (state / f"{ID}.owner").write_text('{"pid": 4000000000, "command": "pip install x", "since": 5}\n')
    test_checker.plant_missing_file(environment)
    read = document(environment.path)
    (finding,) = read["findings"]
    assert (finding["kind"], finding["detail"]) == (
        "unfinished-transaction",
        "prepared by `pip install x`, which is dead",
    )
    assert finding["repair"] == "put it aside, then reinstall what is damaged"
    assert (read["distributions"], read["sound"]) == (None, False)
    assert (state / f"{ID}.journal").read_text() == "no journal"


def test_a_stage_of_the_dead_is_found_beside_everything_else(environment: Venv) -> None:
    complete(environment.purelib / ".safe-pip")
    (environment.purelib / ".safe-pip" / ID / "stage").mkdir(parents=True)
    test_checker.plant_missing_file(environment)
    assert [each["kind"] for each in document(environment.path)["findings"]] == [
        "unfinished-transaction",
        "missing-file",
    ]


def test_it_reads_what_is_installed_under_the_lock(environment: Venv) -> None:
    with workers(environment.purelib, count=1) as (replacing,):
        replacing.hold("replacing")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_"))}
        command = [sys.executable, "-m", "safe_pip", "--lock-timeout", "0", "doctor", "--env", str(environment.path)]
        variables = kept | {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=variables, check=False)
        assert done.returncode == 75
        assert "is not free, held by" in done.stderr
        replacing.release()
        assert "Sound" in doctor("--env", environment.path, code=0)


def test_a_path_without_environment_and_an_unknown_option_are_errors(tmp_path: Path) -> None:
    assert "does not exist" in doctor("--env", tmp_path / "missing", code=78)
    assert "unrecognized arguments: --fix" in doctor("--fix", code=2)
    assert doctor("--help", code=0).startswith("usage: safe-pip doctor ")


TOOL = Project("tool", "1", console_scripts={"tool": "tool:main"}, data={"share/tool.txt": "data"})


def test_an_environment_that_pip_and_safe_pip_filled_is_sound(env: PipEnvironment) -> None:
    env.add_to_index(TOOL, Project("plain", "1"))
    env.run("install", "tool")
    env.plain("install", "plain")
    assert env.run("doctor").stdout.startswith("Sound: 4 distributions")
    target = env.directory / "target"
    env.run("install", "--target", target, "tool")
    assert env.run("doctor", "--env", target).stdout == "Sound: 1 distribution\n"


def test_what_pip_check_finds_is_not_sound(env: PipEnvironment) -> None:
    env.add_to_index(Project("base", "1"), Project("top", "1", requires=("base>=1", "other")), Project("other", "1"))
    env.run("install", "top")
    assert env.run("doctor", "-q").stdout == ""
    env.run("uninstall", "-y", "other")
    env.add_to_index(Project("base", "0.5"))
    env.plain("install", "base==0.5")
    env.more["PIP_QUIET"] = "3"
    read = json.loads(env.run("doctor", "--json", status=1).stdout)
    found = [(each["kind"], each["project"], each["detail"], each["repair"]) for each in read["findings"]]
    assert found == [
        ("unmet-requirement", "top", "has requirement base>=1, but you have base 0.5", "install `base>=1`"),
        ("unmet-requirement", "top", "requires other, which is not installed", "install `other`"),
    ]
    told = "has requirement base>=1, but you have base 0.5, requires other, which is not installed"
    line = f"top 1: {told}; repair: install `base>=1` and install `other`"
    assert env.run("doctor", "--env", env.venv.python, status=1).stdout.splitlines()[0] == line


def test_leftovers_of_a_killed_uninstall_of_plain_pip_are_found(env: PipEnvironment) -> None:
    env.add_to_index(TOOL)
    env.run("install", "tool")
    (env.site / "tool-1.dist-info").rename(env.site / "~ool-1.dist-info")
    read = json.loads(env.run("doctor", "--json", status=1).stdout)
    found = {(each["kind"], Path(each["path"]).name): each["repair"] for each in read["findings"]}
    assert found["leftover", "~ool-1.dist-info"] == "reinstall `tool==1`, then remove it"


def test_changes_by_other_commands_meanwhile_are_no_finding(env: PipEnvironment) -> None:
    big = {f"tool/m{number}.py": f"x = {number}\n" for number in range(300)}
    for version in ("1", "2"):
        files = big | {"tool/__init__.py": f"def main():\n    print({version})\n", f"tool/v{version}.py": ""}
        env.add_to_index(Project("tool", version, files=files, console_scripts={"tool": "tool:main"}))
    env.run("install", "tool==1")
    for version in ("2", "1", "2"):
        changing = env.start("install", f"tool=={version}")
        while changing.poll() is None:
            assert "Sound" in env.run("doctor").stdout
        changing.communicate()
        assert changing.returncode == 0
