"""An install only adds where nothing of what it brings hides what is there, or is hidden by it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safe_pip.pip_seams.shadows import hides


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Where it is installed."""
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another directory that modules are found in."""
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


def test_where_nothing_is_there_nothing_is_hidden(tree: Path, other: Path) -> None:
    assert not hides({tree: {"demo", "demo.py"}}, (tree, other), ("demo",))


def test_what_has_other_names_hides_nothing(tree: Path, other: Path) -> None:
    for name in ("demo2.py", "dem.py", "other-1.dist-info", "Demo.py"):
        (tree / name).touch()
        (other / name).touch()
    assert not hides({tree: {"demo"}}, (tree, other), ("demo",))


@pytest.mark.parametrize("where", ["tree", "other"])
@pytest.mark.parametrize("name", ["Some.Demo-1.dist-info", "some_demo-2.egg-info", "some-demo.egg-link"])
def test_a_project_that_is_there_is_hidden_whatever_its_modules(tmp_path, tree, other, where, name) -> None:
    (tmp_path / where / name).mkdir()
    assert hides({tree: {"module.py"}}, (tree, other), iter(["another", "some-demo"]))
    assert not hides({tree: {"module.py"}}, (tree, other), ["another"])


@pytest.mark.parametrize("there", ["demo.py", "demo", "demo.cpython-313-x86_64-linux-gnu.so", "demo.pth"])
@pytest.mark.parametrize("staged", ["demo.py", "demo", "demo.abi3.so"])
def test_a_module_of_the_same_name_in_another_tree_counts_however_it_is_spelt(tree, other, there, staged) -> None:
    (other / there).touch()
    assert hides({tree: {staged}}, (tree, other), ())
    assert hides({tree: {staged}}, (other, tree), ()), "the other one may be looked at first"


def test_in_its_own_tree_what_has_the_very_same_name_is_not_hidden_by_it(tree: Path) -> None:
    (tree / "demo").mkdir()
    assert not hides({tree: {"demo"}}, (tree,), ())


def test_in_its_own_tree_a_module_hides_a_package_of_the_same_name(tree: Path) -> None:
    (tree / "demo").mkdir()
    assert hides({tree: {"demo.py"}}, (tree,), ())


def test_the_very_same_name_in_two_trees_of_the_target_counts(tree: Path, other: Path) -> None:
    (other / "demo").mkdir()
    assert hides({tree: {"demo"}, other: set()}, (tree, other), ())
    assert not hides({tree: set(), other: {"demo"}}, (tree, other), ())


def test_what_is_no_directory_holds_nothing(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "archive.zip").touch()
    assert not hides({tree: {"archive.zip", "demo"}}, (tmp_path / "missing", tmp_path / "archive.zip", tree), ("demo",))


def test_a_directory_that_is_gone_while_it_is_looked_at_holds_nothing(tree, other, monkeypatch) -> None:
    (other / "demo.py").touch()
    is_dir = Path.is_dir

    def is_there_still(path: Path) -> bool:
        found = is_dir(path)
        if path == other and found:
            (other / "demo.py").unlink()
            other.rmdir()
        return found

    monkeypatch.setattr(Path, "is_dir", is_there_still)
    assert not hides({tree: {"demo"}}, (tree, other), ())
    assert not os.path.lexists(other)
