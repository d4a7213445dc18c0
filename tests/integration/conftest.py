"""What the tests of the whole command share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.laboratory import Laboratory
from tests.support.shop import Shop


@pytest.fixture
def shop(laboratory: Laboratory, tmp_path: Path) -> Shop:
    """An environment of the test's own, with safe-pip and an empty index."""
    return Shop.open(laboratory, tmp_path)
