"""docs/architecture.md names only packages, modules, classes and functions that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCE = PROJECT / "src" / "safe_pip"
PAGE = (PROJECT / "docs" / "architecture.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", PAGE)))
HIDDEN = {"_vendor", "__pycache__"}


def names(body: list[ast.stmt], outer: str = "") -> Iterator[str]:
    """The names that a module or a class defines, with the classes that they stand in."""
    for each in body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield outer + each.name
            if isinstance(each, ast.ClassDef):
                yield from names(each.body, f"{outer}{each.name}.")
        elif isinstance(each, ast.Assign):
            yield from (outer + target.id for target in each.targets if isinstance(target, ast.Name))
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield outer + each.target.id


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_module_and_a_name_on_the_page_exist(path: str, name: str) -> None:
    file = PROJECT / path if path.startswith("tests/") else SOURCE / path
    assert file.is_file()
    if name:
        assert name in set(names(ast.parse(file.read_text()).body))


def test_every_package_is_on_the_page() -> None:
    packages = {path.name for path in SOURCE.iterdir() if any(path.glob("*.py"))} - HIDDEN
    table = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert table == packages


def test_the_page_answers_at_least_ten_questions() -> None:
    assert PAGE.count("? |") >= 10
