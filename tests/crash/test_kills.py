"""Commands that are killed while they change an environment: a sample of `python -m tests.crash`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.faults.kills import INTERRUPT, KILL, TERMINATE, Outcome, Victim, campaign
from tests.support.venvs.workspace import Workspace

pytestmark = pytest.mark.slow
# The campaign has more; here most of the time would go into compiling them.
FILES = 40


@pytest.fixture
def victim(workspace: Workspace, tmp_path: Path) -> Victim:
    victim = Victim(workspace, tmp_path / "victim", workspace.wrecks, FILES)
    victim.prepare()
    return victim


def complaints(outcomes: Sequence[Outcome]) -> list[str]:
    return [
        f"{each.signal.name}, round {each.number}, {each.moment}, {each.wreck}: {line[:1000]}"
        for each in outcomes
        for line in each.complaints[:5]
    ]


def test_a_killed_upgrade_leaves_the_old_or_the_new_environment_to_the_next_command(victim: Victim, seed: int) -> None:
    outcomes = list(campaign([victim], [(number, (KILL,)) for number in range(8)], seed))
    assert complaints(outcomes) == []
    assert {each.at_death for each in outcomes} - {"old"}, "none came far enough to change anything"


def test_an_interrupted_upgrade_is_undone_or_done_before_it_ends(victim: Victim, seed: int) -> None:
    outcomes = list(campaign([victim], [(number, (INTERRUPT, TERMINATE)) for number in range(4)], seed))
    assert complaints(outcomes) == []
    assert any(each.was_killed for each in outcomes)
