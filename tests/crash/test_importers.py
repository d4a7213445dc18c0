"""Programs that import a distribution, with no lock and with one, while it is upgraded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes.importers import MISSING, NAME, ONE_VERSION, import_during, import_once, wares
from tests.support.venvs.environment import Shop
from tests.support.venvs.workspace import Laboratory

pytestmark = pytest.mark.slow
VERSIONS = "2121212121"
"""To which it is upgraded, one after the other."""


@pytest.fixture
def shop(laboratory: Laboratory, tmp_path: Path) -> Shop:
    """An environment with version 1 of what is imported."""
    shop = Shop.open(laboratory, tmp_path)
    shop.stock(*wares())
    shop.run("install", f"{NAME}==1")
    return shop


def upgrade_to_and_fro(shop: Shop) -> None:
    for version in VERSIONS:
        shop.run("install", f"{NAME}=={version}")


def test_an_importer_without_any_lock_misses_no_module_during_upgrades(shop: Shop) -> None:
    python = [shop.environment.python]
    met, details = import_during(lambda: upgrade_to_and_fro(shop), [python, python], shop.variables)
    assert met[MISSING] == met["other error"] == 0, details
    assert met[ONE_VERSION] > 0


def test_an_importer_that_holds_the_environment_lock_sees_one_version_during_upgrades(shop: Shop) -> None:
    locked = ["flock", "-s", shop.site, shop.environment.python]
    met, details = import_during(lambda: upgrade_to_and_fro(shop), [locked], shop.variables)
    assert set(met) == {ONE_VERSION}, details


def test_what_importers_compiled_during_upgrades_belongs_to_the_source_that_is_there(shop: Shop) -> None:
    python = [shop.environment.python]

    def upgrade_without_bytecode() -> None:
        for version in VERSIONS:
            shop.run("install", "--no-compile", f"{NAME}=={version}")
            assert import_once(python, shop.variables) == (ONE_VERSION, repr(version))

    import_during(upgrade_without_bytecode, [python, python], shop.variables)
