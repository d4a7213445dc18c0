"""Programs that import a distribution, with no lock and with one, while it is upgraded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes.importers import MISSING, NAME, ONE_VERSION, both_versions, import_during, import_once
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.workspace import Workspace

pytestmark = pytest.mark.slow
VERSIONS = "2121"
"""To which it is upgraded, one after the other."""


@pytest.fixture
def env(workspace: Workspace, tmp_path: Path) -> PipEnvironment:
    """An environment with version 1 of the imported distribution."""
    env = PipEnvironment.open(workspace, tmp_path)
    env.add_to_index(*both_versions())
    env.run("install", f"{NAME}==1")
    return env


def upgrade_to_and_fro(env: PipEnvironment) -> None:
    for version in VERSIONS:
        env.run("install", f"{NAME}=={version}")


def test_an_importer_without_any_lock_misses_no_module_during_upgrades(env: PipEnvironment) -> None:
    python = [env.venv.python]
    met, details = import_during(lambda: upgrade_to_and_fro(env), [python], env.variables)
    assert met[MISSING] == met["other error"] == 0, details
    assert met[ONE_VERSION] > 0


def test_an_importer_that_holds_the_environment_lock_sees_one_version_during_upgrades(env: PipEnvironment) -> None:
    locked = ["flock", "-s", env.site, env.venv.python]
    met, details = import_during(lambda: upgrade_to_and_fro(env), [locked], env.variables)
    assert set(met) == {ONE_VERSION}, details


def test_bytecode_that_importers_write_during_upgrades_matches_the_installed_source(env: PipEnvironment) -> None:
    python = [env.venv.python]

    def upgrade_without_bytecode() -> None:
        for version in VERSIONS:
            env.run("install", "--no-compile", f"{NAME}=={version}")
            assert import_once(python, env.variables) == (ONE_VERSION, repr(version))

    import_during(upgrade_without_bytecode, [python], env.variables)
