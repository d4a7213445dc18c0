"""Any number of commands at once on one environment leave what some serial order of them would have left.

Every load of `tests.support.rounds`, seeded; `python -m tests.chaos` runs hundreds of them.
"""

from __future__ import annotations

import pytest

from tests.support.laboratory import Laboratory
from tests.support.rounds import ROUNDS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("load", ROUNDS)
def test_traffic_leaves_a_sound_environment_and_a_serial_result(laboratory: Laboratory, load: str, seed: int) -> None:
    laboratory.perform(load, ROUNDS[load], seed)
