"""Fixtures of the tests that run the whole command."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.probe import Probe, ProbeVenv
from tests.support.venvs.tools import Toolbox
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.tiny import EVERYTHING, OTHER


@pytest.fixture
def env(workspace: Workspace, tmp_path: Path) -> PipEnvironment:
    """An environment of the test's own, with safe-pip and an empty index."""
    return PipEnvironment.open(workspace, tmp_path)


@pytest.fixture(scope="session")
def toolbox(workspace: Workspace, shared: Path) -> Toolbox:
    """Other tools, fetched once per user. If a tool is not available, the test that asks for it is skipped."""
    return Toolbox(workspace.wheelhouse, shared / "tools")


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that every user can reach, unlike those of the tests."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def cold_env(env: PipEnvironment, tmp_path: Path) -> PipEnvironment:
    """An environment with its own cache, which has no prepared wheel yet."""
    env.more["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    frozen = env.workspace.scratch / "cache" / "safe-pip"
    if frozen.is_dir():  # the frozen pip, which would be made again for every cache
        shutil.copytree(frozen, tmp_path / "cache" / "safe-pip", symlinks=True)
    env.add_to_index(EVERYTHING, OTHER)
    return env


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """A safe-pip that reports what its process is like."""
    return Probe.make(tmp_path_factory.mktemp("probe"))


@pytest.fixture
def installed(tmp_path: Path, probe: Probe) -> ProbeVenv:
    """A virtual environment with the probe in it."""
    return ProbeVenv.make(tmp_path / "venv", probe)
