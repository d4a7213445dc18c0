"""Programs under `safe-pip run --shared` during upgrades and downgrades of what they import: docs/how-to/importers.md.

`python -m tests.integration importers --rounds 500` does it five hundred times.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter

import pytest

from tests.support.pages import Page, shell
from tests.support.processes.importers import (
    IMPORTER,
    MISSING,
    MODULE,
    NAME,
    ONE_VERSION,
    both_versions,
    import_during,
)
from tests.support.venvs.checker import check
from tests.support.venvs.pip_environment import PipEnvironment

pytestmark = pytest.mark.slow
LOOPS = 2
"""Loops overlap: when one program ends, another is running. An upgrade must still get its turn."""


def prepare(env: PipEnvironment) -> Page:
    """Version 1 is installed, and the page's program is there."""
    env.activate()
    env.add_to_index(*both_versions())
    env.run("install", f"{NAME}==1")
    (env.directory / "program.py").write_text(IMPORTER)
    return Page.read("importers")


def perform(env: PipEnvironment, changes: int) -> Counter[str]:
    """Move up and down so often; on return what the programs met, which is one version and nothing else."""
    page = prepare(env)
    upgrade, downgrade = page.command("--upgrade"), page.command("==1")

    def move() -> None:
        for command in itertools.islice(itertools.cycle((upgrade, downgrade)), changes):
            shell(command, env.directory, env.variables)

    locked = shlex.split(page.command("run --shared").partition(" python ")[0])
    assert locked == ["safe-pip", "run", "--shared", "--"]
    locked[0] = str(env.venv.scripts / locked[0])
    met, details = import_during(move, [[*locked, env.venv.python]] * LOOPS, env.variables)
    assert set(met) == {ONE_VERSION}, details
    assert check(env.venv, env.variables) == []
    return met


def test_programs_under_the_shared_lock_meet_one_version_and_hold_no_upgrade_up_for_ever(env: PipEnvironment) -> None:
    assert perform(env, 4)[ONE_VERSION] > 0


def test_the_page_s_commands_work_one_after_the_other(env: PipEnvironment) -> None:
    page = prepare(env)
    done = [shell(command, env.directory, env.variables) for command in (*page.commands, page.commands[0])]
    assert done[0].stdout == f'["{ONE_VERSION}", "\'1\'"]\n'
    assert env.installed() == {MODULE: "1"}
    assert MISSING not in done[-1].stdout
