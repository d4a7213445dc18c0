"""The comparison of two directory trees finds every difference that a program can see, and no other."""

from __future__ import annotations

import os
import py_compile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees.listing import differences, tree_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("VERSION = 1\n")
    (tmp_path / "link").symlink_to("package")
    py_compile.compile(str(package / "module.py"), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    return tmp_path


def replaced(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda root: (root / "package" / "module.py").chmod(0o600), "package/module.py"),
        (lambda root: (root / "package" / "module.py").write_text("VERSION = 2\n"), "package/module.py"),
        (lambda root: (root / "package").chmod(0o700), "package"),
        (lambda root: (root / "package" / "new").mkdir(), "package/new"),
        (lambda root: (root / "package" / "new").write_text(""), "package/new"),
        (lambda root: os.mkfifo(root / "package" / "new"), "package/new"),
        (replaced, "link"),
    ],
)
def test_a_change_shows_at_its_path(root: Path, change: Callable[[Path], object], path: str) -> None:
    before = tree_of(root)
    change(root)
    assert path in [line.partition(":")[0] for line in differences(before, tree_of(root))]


def test_bytecode_is_the_same_in_another_installation_of_the_same_source(root: Path) -> None:
    before = tree_of(root)
    source = root / "package" / "module.py"
    os.utime(source, (1, 1))
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    assert differences(before, tree_of(root)) == []


def test_bytecode_of_another_source_is_stale_and_without_one_orphaned(root: Path) -> None:
    source = root / "package" / "module.py"
    os.utime(source, (1, 1))
    assert [value.split()[0] for path, value in tree_of(root).items() if path.endswith(".pyc")] == ["stale"]
    source.unlink()
    assert [value.split()[0] for path, value in tree_of(root).items() if path.endswith(".pyc")] == ["orphaned"]


def test_ignored_paths_are_left_out_with_all_below_them(root: Path) -> None:
    assert set(tree_of(root, lambda path: path == "package")) == {"link"}
