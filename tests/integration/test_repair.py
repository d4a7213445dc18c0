"""`safe-pip doctor --repair` in real environments: it does what it says, and prints the command that does the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest

from safe_pip.journal import codec
from safe_pip.merge.plan import Journal, Kind, Operation
from tests.support.faults.transaction import seen
from tests.support.venvs.checker import Violation, check_files
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.tiny import Content, Project

TOOL = Project(
    "tool",
    "1",
    files={"tool/__init__.py": "def main():\n    print(1)\n", "tool/data.txt": "one"},
    console_scripts={"tool": "tool:main"},
    data={"share/tool.txt": "data"},
)
NEWER = Project(
    "tool", "2", files={"tool/__init__.py": "def main():\n    print(2)\n"}, console_scripts={"tool": "tool:main"}
)
OTHER = Project("other", "1")


@pytest.fixture(scope="module")
def stock(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> PipEnvironment:
    """`tool` is installed, in a version that is not the newest one."""
    env = PipEnvironment.open(workspace, tmp_path_factory.mktemp("stock"))
    env.add_to_index(TOOL, NEWER, OTHER)
    env.run("install", "tool==1", "other")
    assert violations(env) == []
    return env


@pytest.fixture
def stocked(stock: PipEnvironment, tmp_path: Path) -> PipEnvironment:
    """A copy of it."""
    env = stock.copy(tmp_path)
    shutil.copytree(stock.site / ".safe-pip", env.site / ".safe-pip")
    return env


def violations(env: PipEnvironment) -> list[Violation]:
    return check_files(env.venv)


def doctor(env: PipEnvironment, *more: str, status: int, **variables: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(env.run("doctor", "--json", *more, status=status, **variables).stdout)
    return read


def repair(env: PipEnvironment, *more: str, **variables: str) -> dict[str, Any]:
    """Repair, and run what is printed to reinstall the rest; on return the report of the repair."""
    done = env.run("doctor", "--json", "--repair", *more, status=None, **variables)
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if report["findings"] else 0)
    assert bool(report["reinstall"]) == any("reinstall" in (each["repair"] or "") for each in report["findings"])
    for command in report["reinstall"]:
        subprocess.run(command, shell=True, check=True, cwd=env.directory, env=env.variables | variables)
    return report


def info(env: PipEnvironment) -> Path:
    return env.site / "tool-1.dist-info"


DAMAGE: tuple[Callable[[Path, str], object], ...] = (
    lambda site, name: (site / name / "data.txt").unlink(),
    lambda site, name: (site / name / "data.txt").write_text("two"),
    lambda site, name: shutil.rmtree(site / name),
    lambda site, name: (site / "../../../bin" / name).unlink(),
    lambda site, name: (site / "../../../share" / f"{name}.txt").unlink(),
    lambda site, name: (site / f"{name}-1.dist-info" / "METADATA").unlink(),
    lambda site, name: (site / f"{name}-1.dist-info" / "METADATA").write_text(numbered(name, "2").metadata()),
    lambda site, name: (site / f"{name}-1.dist-info" / "RECORD").unlink(),
    lambda site, name: (site / f"{name}-1.dist-info" / "RECORD").write_text(""),
    lambda site, name: (site / f"{name}-1.dist-info" / "RECORD").write_bytes(b"\xff\xfe"),
    lambda site, name: (site / f"{name}-0.egg-info").write_text(f"Name: {name}\nVersion: 0\n"),
    lambda site, name: (site / f"{name}nothing-1.dist-info").mkdir(),
    lambda site, name: shutil.copytree(site / f"{name}-1.dist-info", site / f"~{name[1:]}-1.dist-info"),
    lambda site, name: shutil.copytree(site / f"{name}-1.dist-info", site / name / "~a"),
)


def numbered(name: str, version: str) -> Project:
    files: dict[str, Content] = {f"{name}/__init__.py": f"def main():\n    print({version})\n"}
    files |= {f"{name}/data.txt": "one"} if version == "1" else {}
    data = {f"share/{name}.txt": "data"} if version == "1" else {}
    return Project(name, version, files=files, console_scripts={name: f"{name}:main"}, data=data)


def test_damage_of_every_kind_is_repaired_in_the_recorded_version(env: PipEnvironment) -> None:
    names = [f"tool{letter}" for letter, _ in zip(ascii_lowercase, DAMAGE, strict=False)]
    env.add_to_index(*(numbered(name, version) for name in names for version in "12"))
    env.run("install", *(f"{name}==1" for name in names))
    assert violations(env) == []
    for name, damage in zip(names, DAMAGE, strict=True):
        damage(env.site, name)
    found = doctor(env, status=1)["findings"]
    assert all(each["repair"] for each in found)
    told = [f"{each['path']} {each['project']}" for each in found]
    assert [name for name in names if not any(name[1:] in line for line in told)] == []
    repaired = repair(env)
    assert repaired["repaired"]
    assert repaired["reinstall"]
    assert repaired["failed"] == []
    assert env.installed() == dict.fromkeys(names, "1")
    assert violations(env) == []
    assert env.run("doctor").stdout.startswith(f"Sound: {len(names) + 2} distributions")


def test_the_command_is_the_last_line_and_reinstalls_all_that_is_damaged(stocked: PipEnvironment) -> None:
    (stocked.site / "tool" / "data.txt").unlink()
    (stocked.site / "other-1.dist-info" / "RECORD").unlink()
    before, told, command = stocked.run("doctor", "--repair", status=1).stdout.rstrip().rsplit("\n", 2)
    assert "other 1: RECORD missing" in before
    assert told == "To reinstall what is damaged, run:"
    assert command.endswith(" install --no-user --force-reinstall --no-deps --ignore-installed other==1 tool==1")
    assert stocked.installed() == {"tool": "1", "other": "1"}
    subprocess.run(command, shell=True, check=True, env=stocked.variables)
    assert violations(stocked) == []
    assert stocked.run("doctor").stdout.startswith("Sound: ")


def test_in_an_active_environment_the_command_begins_with_safe_pip(stocked: PipEnvironment) -> None:
    (stocked.site / "tool" / "data.txt").unlink()
    stocked.activate()
    (command,) = repair(stocked)["reinstall"]
    assert command == "safe-pip install --no-user --force-reinstall --no-deps tool==1"
    assert violations(stocked) == []


def test_two_versions_become_the_complete_one(stocked: PipEnvironment) -> None:
    saved = stocked.directory / "saved"
    shutil.copytree(info(stocked), saved)
    stocked.run("install", "tool==2")
    shutil.copytree(saved, info(stocked))
    (finding,) = doctor(stocked, status=1)["findings"]
    assert finding["kind"] == "doubled-project"
    assert doctor(stocked, "--repair", status=0)["repaired"] == [f"removed `{info(stocked)}`"]
    assert stocked.installed() == {"tool": "2", "other": "1"}
    assert violations(stocked) == []


def test_two_incomplete_versions_are_reduced_to_the_less_damaged_version(stocked: PipEnvironment) -> None:
    saved = stocked.directory / "saved"
    shutil.copytree(info(stocked), saved)
    stocked.run("install", "tool==2")
    shutil.copytree(saved, info(stocked))
    (stocked.site / "tool" / "__init__.py").write_text("")
    repair(stocked)
    assert stocked.installed() in ({"tool": "1", "other": "1"}, {"tool": "2", "other": "1"})
    assert violations(stocked) == []


def test_a_killed_uninstall_of_plain_pip_is_taken_back(stocked: PipEnvironment) -> None:
    info(stocked).rename(stocked.site / "~ool-1.dist-info")
    (stocked.site / "tool").rename(stocked.site / "~ool")
    report = repair(stocked)
    assert {each["kind"] for each in report["findings"]} == {"leftover"}
    assert stocked.installed()["tool"] == "1"
    repair(stocked)
    assert stocked.installed() == {"tool": "1", "other": "1"}
    assert violations(stocked) == []


def test_a_leftover_stays_as_long_as_it_is_all_there_is_of_a_project(stocked: PipEnvironment) -> None:
    (stocked.site / "other-1.dist-info").rename(stocked.site / "~ther-1.dist-info")
    another = stocked.site / "~ool-1.dist-info"
    shutil.copytree(info(stocked), another)
    for _ in range(2):
        done = doctor(stocked, "--repair", status=1)
        assert (done["repaired"], done["failed"], len(done["reinstall"])) == ([], [], 1)
        assert another.is_dir()
    repair(stocked)
    assert doctor(stocked, "--repair", status=0)["repaired"]
    assert not another.exists()
    assert stocked.installed() == {"tool": "1", "other": "1"}


def test_variables_of_pip_do_not_lead_the_command_elsewhere(stocked: PipEnvironment) -> None:
    (stocked.site / "tool" / "data.txt").unlink()
    elsewhere = stocked.directory / "elsewhere"
    repair(stocked, PIP_TARGET=str(elsewhere), PIP_DRY_RUN="1")
    assert not elsewhere.exists()
    assert violations(stocked) == []


def test_a_distribution_is_reinstalled_from_where_it_came_from(env: PipEnvironment) -> None:
    away = env.directory / "away"
    away.mkdir()
    wheel = TOOL.write_wheel(away)
    tree = OTHER.write_source_tree(env.directory / "checkout")
    env.run("install", wheel, "--editable", tree)
    assert violations(env) == []
    before = (info(env) / "direct_url.json").read_text()
    (env.site / "tool" / "data.txt").unlink()
    (finding,) = doctor(env, status=1)["findings"]
    assert finding["repair"].startswith("reinstall `tool @ file://")
    repair(env)
    assert json.loads((info(env) / "direct_url.json").read_text())["url"] == json.loads(before)["url"]
    (env.site / "other-1.dist-info" / "METADATA").unlink()
    repair(env)
    assert "editable" in (env.site / "other-1.dist-info" / "direct_url.json").read_text()
    assert violations(env) == []


def test_other_environments_and_targets_are_repaired_where_they_are(stocked: PipEnvironment) -> None:
    target = stocked.directory / "target"
    stocked.run("install", "--target", target, "tool==1")
    (target / "tool" / "data.txt").unlink()
    assert "--target" in repair(stocked, "--env", str(target))["reinstall"][0]
    assert (target / "tool" / "data.txt").read_text() == "one"
    other = PipEnvironment(
        stocked.workspace, stocked.directory, stocked.workspace.maker.make(stocked.directory / "other-venv")
    )
    stocked.run("--python", other.venv.python, "install", "tool==1")
    (other.site / "tool" / "data.txt").unlink()
    assert "--python" in repair(stocked, "--env", str(other.venv.path))["reinstall"][0]
    assert (other.site / "tool" / "data.txt").read_text() == "one"
    assert stocked.installed() == {"tool": "1", "other": "1"}


def test_a_repair_changes_nothing_where_nothing_is_wrong(stocked: PipEnvironment) -> None:
    (stocked.site / "tool" / "own.txt").write_text("mine")
    before = {path: path.stat().st_ino for path in stocked.site.rglob("*") if ".safe-pip" not in path.parts}
    report = doctor(stocked, "--repair", status=0)
    assert report["repaired"] == report["findings"] == []
    assert report["notes"] == []
    assert {path: path.stat().st_ino for path in stocked.site.rglob("*") if ".safe-pip" not in path.parts} == before


def test_unowned_files_survive_the_reinstall(stocked: PipEnvironment) -> None:
    (stocked.site / "tool" / "own.txt").write_text("mine")
    (stocked.site / "tool" / "data.txt").unlink()
    repair(stocked)
    assert (stocked.site / "tool" / "own.txt").read_text() == "mine"


ID = "0123456789abcdef"


def crashed(env: PipEnvironment, *, changed: bool) -> Path:
    """An upgrade of `tool/data.txt` that was killed before its commit point; on return its journal."""
    state, live = env.site / ".safe-pip", env.site / "tool" / "data.txt"
    private = state / ID
    for path in (private, private / "stage", private / "trash"):
        path.mkdir(mode=0o700)
    old = seen(live)
    live.rename(private / "trash" / "0")
    live.write_text("two, new")
    operation = Operation(Kind.FILE, 0, "tool/data.txt", 0, "swap/0", "0", old, seen(live))
    if changed:
        live.write_text("by a plain pip")
    home = str(env.site)
    written = Journal(ID, home, (home,), (), (home,), (str(private),), (operation,))
    (state / f"{ID}.owner").write_text('{"pid": 4000000000, "command": "pip install tool", "since": 5}\n')
    (state / f"{ID}.journal").write_bytes(codec.encode(written))
    return state / f"{ID}.journal"


def test_an_unfinished_transaction_is_told_and_then_rolled_back(stocked: PipEnvironment) -> None:
    path = crashed(stocked, changed=False)
    (finding,) = doctor(stocked, status=1)["findings"]
    assert (finding["kind"], finding["repair"]) == ("unfinished-transaction", "roll back")
    assert path.exists()
    assert "The next safe-pip command undoes it" in stocked.run("status").stdout
    assert doctor(stocked, "--repair", status=0)["repaired"] == [f"rolled back the unfinished transaction `{ID}`"]
    assert (stocked.site / "tool" / "data.txt").read_text() == "one"
    assert violations(stocked) == []


def test_a_refused_transaction_is_put_aside_and_what_it_damaged_is_reinstalled(stocked: PipEnvironment) -> None:
    path = crashed(stocked, changed=True)
    assert "safe-pip doctor --repair" in stocked.run("list", status=76).stderr
    assert "refuses to go on: " in stocked.run("status").stdout
    (finding,) = doctor(stocked, status=1)["findings"]
    assert finding["repair"].startswith("undo what can be undone, put aside")
    report = repair(stocked)
    kept = path.with_name(f"kept-{ID}")
    assert f"put aside `{kept}`" in report["repaired"]
    assert (kept / "undo-1" / "t0").read_text() == "one"  # where the takeover has put what lay in the trash
    assert [(each["kind"], each["path"]) for each in report["notes"]] == [("put-aside", str(kept))]
    assert (stocked.site / "tool" / "data.txt").read_text() == "one"
    shutil.rmtree(kept)
    assert violations(stocked) == []


def test_a_damaged_journal_is_put_aside_whole(stocked: PipEnvironment) -> None:
    path = crashed(stocked, changed=False)
    path.write_bytes(path.read_bytes()[:-1])
    repair(stocked)
    kept = path.with_name(f"kept-{ID}")
    assert (kept / "refused-journal").exists()
    assert (kept / "trash" / "0").read_text() == "one"
    assert (stocked.site / "tool" / "data.txt").read_text() == "one"
    stocked.run("list")


def test_the_stage_of_a_killed_command_is_deleted(stocked: PipEnvironment) -> None:
    crashed(stocked, changed=False).rename(stocked.site / ".safe-pip" / ID / "journal")
    (stocked.site / "tool" / "data.txt").write_text("one")
    (finding,) = (each for each in doctor(stocked, status=1)["findings"] if each["kind"] != "changed-file")
    assert (finding["kind"], finding["repair"]) == ("unfinished-transaction", "delete")
    doctor(stocked, "--repair", status=0)
    assert violations(stocked) == []
