"""What of a prefix is locked, and what of safe-pip stays in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_pip.commands.environments import trees_of
from safe_pip.environment.environment import Prefix, Target
from safe_pip.locking import state_directory
from tests.support.trees.prefixes import SITE, MergePrefix, stage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return (tmp_path / "prefix").resolve()


def test_a_virtual_environment_is_locked_by_its_trees_alone_as_for_an_install(path: Path) -> None:
    stage(path, {"pyvenv.cfg": "", "bin/python": "", f"{SITE}/x.py": "", "lib64": None})
    found = Prefix.at(path)
    assert found.target == Target((path / SITE,), uv_lock=path / ".lock")
    assert not found.is_shipped


def test_a_prefix_that_serves_several_is_locked_too(path: Path) -> None:
    stage(path, {"bin/python3.13": "", f"{SITE}/x.py": "", "lib/python3.12/dist-packages/x.py": ""})
    target = Prefix.at(path).target
    assert {*target.trees} == {path / SITE, path / "lib/python3.12/dist-packages"}
    assert target.directories == (path, path / "bin")
    assert not target.stateless_trees


def test_a_prefix_without_a_tree_stands_for_one_and_nothing_stays_in_it(path: Path) -> None:
    stage(path, {"bin/tool": ""})
    target = Prefix.at(path).target
    assert (target.trees, target.directories) == ((path,), (path, path / "bin"))
    assert target.stateless_trees == (path,)


def test_one_in_which_such_a_merge_has_died_is_a_tree_beside_the_others(path: Path) -> None:
    locks = dict.fromkeys((f".safe-pip/{name}" for name in state_directory.LOCKS), "")
    stage(path, {"pyvenv.cfg": "", f"{SITE}/x.py": "", **locks})
    target = Prefix.at(path).target
    assert target.trees == (path / SITE, path)
    assert target.stateless_trees == (path,)
    assert trees_of(str(path)) == [path / SITE, path]
    MergePrefix(path).merge(stage(path.parent / "nothing", {}))
    assert not (path / ".safe-pip").exists()


def test_whatever_was_found_nothing_stays_in_the_prefix_itself(path: Path) -> None:
    """Another merge may have found no tree in it yet, and met our lock on it when it left."""
    stage(path, {"bin/python3.13": "", f"{SITE}/x.py": ""})
    assert (Prefix.at(path).target.stateless_trees, Prefix.at(path).stateless_trees) == ((), (path,))
    (path / "bin/python3.13").unlink()
    assert Prefix.at(path).stateless_trees == (path / SITE, path)


def test_two_names_of_a_tree_are_one(path: Path) -> None:
    stage(path, {f"{SITE}/x.py": ""})
    (path / "lib64").symlink_to("lib")
    assert Prefix.at(path).trees == (path / SITE,)
    (path.parent / "link").symlink_to(path)
    assert Prefix.at(path.parent / "link") == Prefix.at(path)


def test_this_pythons_own_trees_come_first(path: Path) -> None:
    stage(path, {"lib/python3.12/site-packages/x.py": "", f"{SITE}/x.py": ""})
    found = Prefix.at(path, [path / SITE], ["/elsewhere", str(path / SITE)])
    assert found.trees == (path / SITE, path / "lib/python3.12/site-packages")
    assert found.environment == ("/elsewhere", str(path / SITE))
    assert not found.is_shipped


@pytest.mark.parametrize(
    ("name", "is_tree"),
    [(SITE, True), ("lib/pypy3.10/site-packages", True), ("lib/python3/dist-packages", True), ("lib/x", False)],
)
def test_a_tree_that_is_not_there_yet_is_known(path: Path, name: str, is_tree: bool) -> None:
    path.mkdir()
    assert Prefix.at(path).is_tree(str(path / name)) is is_tree
