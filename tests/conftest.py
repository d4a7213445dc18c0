"""Fixtures of all tests: the wheelhouse, and the workspace in which the tool under test runs.

SAFE_PIP_TEST_TOOL=safe-pip|flock|plain chooses what is tested (default: safe-pip), SAFE_PIP_TEST_PIP=oldest|newest
the pip in the environments, SAFE_PIP_TEST_SEED the load, SAFE_PIP_WRECKS where the remains of a failed round go.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.venvs.workspace import SEED_VARIABLE, Workspace
from tests.support.wheels.wheelhouse import IndexOutOfReach, Wheelhouse, open_wheelhouse

SHARED = "shared"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: needs a package index or a wheelhouse")
    config.addinivalue_line("markers", "slow: real environments, many processes, or a crash at every change")
    # A shell ignores these signals in background jobs, and every program that a test starts inherits that.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use the wheelhouse, even indirectly: they need the network on a new machine."""
    for item in items:
        if "wheelhouse" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.network)


@pytest.fixture(scope="session", autouse=True)
def _leaves_nothing_where_all_passed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Delete at the end what was made once per session, because pytest keeps all of it below a `--basetemp`."""
    yield
    if not request.session.testsfailed:
        shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Delete what the processes of `pytest -n` shared."""
    basetemp = session.config.option.basetemp
    if basetemp and not exitstatus and not hasattr(session.config, "workerinput"):
        shutil.rmtree(Path(basetemp, SHARED), ignore_errors=True)


@pytest.fixture(scope="session")
def wheelhouse() -> Wheelhouse:
    """Real wheels and sdists from the package index; fetched once per user, not per run."""
    try:
        return open_wheelhouse()
    except IndexOutOfReach as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of all processes of this run."""
    basetemp = tmp_path_factory.getbasetemp()
    directory = (basetemp.parent if hasattr(request.config, "workerinput") else basetemp) / SHARED
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def workspace(wheelhouse: Wheelhouse, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Environments with the tool under test; the warm cache is made once per session, templates once per run."""
    return Workspace(wheelhouse, tmp_path_factory.mktemp("workspace"), shared=shared)


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of every load. Interleavings still differ between runs."""
    return int(os.environ.get(SEED_VARIABLE, "1"))
