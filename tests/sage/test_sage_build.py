"""Sage's own scripts build some packages, as shipped and as docs/how-to/sage.md edits them, with users at work.

Half of the packages are built again, and a recipe is killed. As shipped they are only built, once, to compare the
result; if SAFE_PIP_TEST_COMPARE is set, the rest is done there as well, and what users meet is printed and not judged.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sage.bed import PACKAGES, REBUILT, USERS_OWN, Sage, fetch, obstacle
from tests.support.pages import Page
from tests.support.venvs.checker import check_files, check_imports, installed
from tests.support.venvs.template import build_safe_pip
from tests.support.wheels.wheelhouse import IndexOutOfReach, Wheelhouse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
]
KILLED = "ptyprocess"


@pytest.fixture
def fetched() -> Path:
    try:
        return fetch()
    except IndexOutOfReach as error:
        pytest.skip(str(error))


def test_the_edited_scripts_build_the_same_and_users_meet_no_error(
    fetched: Path, wheelhouse: Wheelhouse, tmp_path: Path
) -> None:
    shipped, edited = (Sage.copy(fetched, tmp_path / name / "sage") for name in ("shipped", "edited"))
    edited.edit(Page.read("sage"), build_safe_pip(wheelhouse, tmp_path / "build"), wheelhouse.path)
    if os.environ.get("SAFE_PIP_TEST_COMPARE"):
        print(f"after the kill, as shipped: {build(shipped)}")
        print(*(f"as shipped: {fault}" for fault in check_files(shipped.venv)), sep="\n")
    else:
        shipped.raise_versions(REBUILT)
        assert shipped.make() == 0, shipped.log.read_text()
    kept = build(edited)
    print(f"as shipped: {shipped.told()}\nas edited: {edited.told()}")

    assert edited.errors == []
    assert kept == "0.7.0"
    assert edited.stamps() == shipped.stamps()
    assert len(edited.stamps()) == len(PACKAGES)
    there = installed(edited.venv)
    assert there == installed(shipped.venv) | {USERS_OWN: "1"}
    assert edited.files() == shipped.files()
    assert check_files(edited.venv) == []
    assert check_imports(edited.venv, edited.variables()) == []

    check_refused(edited)
    assert installed(edited.venv) == there
    assert edited.make("six-uninstall") == 0, edited.log.read_text()
    assert there.keys() - installed(edited.venv) == {"six"}
    assert not [name for name in edited.files() if "six" in name and "_vendor" not in name]


def build(sage: Sage) -> str:
    """Build all, then half of it again with a recipe killed; returns what the kill left of its package."""
    assert sage.make() == 0, sage.log.read_text()
    sage.raise_versions(REBUILT)
    with sage.users():
        with sage.killed(KILLED):
            assert sage.make() != 0
        assert not [stamp for stamp in sage.stamps() if stamp.startswith(KILLED)]
        left = installed(sage.venv).get(KILLED, "nothing")
        assert sage.make() == 0, sage.log.read_text()
    return left


def check_refused(sage: Sage) -> None:
    """An error of safe-pip's own ends the recipe, without another attempt."""
    wheel = "-r $SAGE_VENV/var/lib/sage/scripts/attrs/spkg-requirements.txt"
    done = sage.in_shell(f"safe-pip run --env $SAGE_VENV -- sage-pip-install {wheel}")
    assert done.returncode == 75, done.stdout + done.stderr
    assert done.stderr.count("Nothing was changed") == 1
