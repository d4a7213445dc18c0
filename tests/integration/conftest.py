"""What the tests of the whole command share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.laboratory import Laboratory
from tests.support.shop import Shop


@pytest.fixture
def shop(laboratory: Laboratory, tmp_path: Path) -> Shop:
    """An environment of the test's own, with safe-pip and an empty index."""
    return Shop.open(laboratory, tmp_path)


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that everybody reaches, unlike those of the tests."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)
