"""Many commands at once on one environment leave the result of some serial order.

The loads of `tests.support.processes.loads`, seeded; `python -m tests.chaos` runs hundreds of them.
"""

from __future__ import annotations

import pytest

from tests.support.processes.loads import LOADS
from tests.support.venvs.workspace import Workspace

pytestmark = pytest.mark.slow


SMALLER = {"same-set-8", "same-upgrade-8"}
"""These are tried with sixteen processes."""


@pytest.mark.parametrize("load", [name for name in LOADS if name not in SMALLER])
def test_traffic_leaves_a_sound_environment_and_a_serial_result(workspace: Workspace, load: str, seed: int) -> None:
    workspace.perform(load, LOADS[load], seed)
