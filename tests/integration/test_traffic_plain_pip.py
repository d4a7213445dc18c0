"""The checks detect environments that plain pip breaks, and accept commands that take turns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.processes.loads import LOADS
from tests.support.processes.traffic import FLOCK, PLAIN
from tests.support.venvs.workspace import Workspace, Wrecked
from tests.support.wheels.wheelhouse import NEWEST_PIP

pytestmark = pytest.mark.slow
LOAD = "same-upgrade-8"
# Of ten such rounds seven leave the environment broken, and in all of them commands fail.
ROUNDS_AT_MOST = 12
ENVIRONMENT_BROKEN = {
    "damaged-dist-info",
    "doubled-project",
    "import-failed",
    "leftover",
    "missing-file",
    "missing-script",
    "no-serial-order",
    "pip-check",
    "stray-script",
    "unowned-file",
    "wrong-digest",
}


def test_eight_plain_pips_that_upgrade_the_same_set_are_found_out(workspace: Workspace, tmp_path: Path) -> None:
    # The oldest pip fails as often, but undoes more of it.
    plain = dataclasses.replace(workspace.with_tool(PLAIN, tmp_path / "wrecks"), pip_version=NEWEST_PIP)
    errors: list[Wrecked] = []
    found: set[str] = set()
    for seed in range(ROUNDS_AT_MOST):
        try:
            plain.perform(LOAD, LOADS[LOAD], seed)
        except Wrecked as error:
            errors.append(error)
            found |= {violation.name for violation in error.violations}
        if found >= {"unexplained-status"} and found & ENVIRONMENT_BROKEN:
            break
    assert "unexplained-status" in found
    assert found & ENVIRONMENT_BROKEN
    assert_all_is_kept(errors[0], tmp_path / "wrecks")


def assert_all_is_kept(error: Wrecked, wrecks: Path) -> None:
    """The environment is kept, and what each command printed."""
    wreck = error.wreck
    assert wreck.parent == wrecks
    assert str(wreck) in str(error)
    assert "--seed" in (wreck / "violations.txt").read_text()
    assert (wreck / "venv" / "bin" / "python").is_symlink()
    assert len(list((wreck / "load").glob("*.err"))) == 8


def test_plain_pips_behind_one_lock_are_not_accused(workspace: Workspace, tmp_path: Path) -> None:
    workspace.with_tool(FLOCK, tmp_path / "wrecks").perform(LOAD, LOADS[LOAD], 0)
