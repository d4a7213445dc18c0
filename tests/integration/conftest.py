"""What the tests of the whole command share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.tools import Toolbox
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.tiny import EVERYTHING, OTHER


@pytest.fixture
def env(workspace: Workspace, tmp_path: Path) -> PipEnvironment:
    """An environment of the test's own, with safe-pip and an empty index."""
    return PipEnvironment.open(workspace, tmp_path)


@pytest.fixture(scope="session")
def toolbox(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Toolbox:
    """Tools of others, fetched once per user; one that cannot be had skips the test that asks for it."""
    return Toolbox(workspace.wheelhouse, tmp_path_factory.mktemp("tools"))


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that everybody reaches, unlike those of the tests."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def cold_env(env: PipEnvironment, tmp_path: Path) -> PipEnvironment:
    """The same with a cache of its own, in which nothing is prepared yet."""
    env.more["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    frozen = env.workspace.scratch / "cache" / "safe-pip"
    if frozen.is_dir():  # the frozen pip, which is made anew for every cache
        shutil.copytree(frozen, tmp_path / "cache" / "safe-pip", symlinks=True)
    env.add_to_index(EVERYTHING, OTHER)
    return env
