"""What interrupted commands have left is found; what a distribution owns and a user's data are left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safe_pip.commands.doctor import examination
from safe_pip.commands.doctor.examination import Kind

ID = "0123456789abcdef"
NOW = 10_000_000.0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one distribution."""
    made = tmp_path / "site-packages"
    for path in ("demo/a.py", "demo/deep/b.py", "demo-1.dist-info/RECORD"):
        put(made / path)
    return made


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def owned(tree: Path, *more: str) -> set[str]:
    paths = ("demo/a.py", "demo/deep/b.py", "demo-1.dist-info", "demo-1.dist-info/RECORD", *more)
    return {str(tree / path) for path in paths}


def found(tree: Path, by: set[str] | None = None, unfinished: tuple[str, ...] = ()) -> list[tuple[Kind, str]]:
    findings = examination.strays(str(tree), owned(tree) if by is None else by, unfinished, NOW - 1000)
    return sorted(
        ((finding.kind, os.path.relpath(finding.path, tree)) for finding in findings), key=lambda each: each[1]
    )


def test_files_of_a_distribution_of_the_interpreter_and_of_users_are_no_strays(tree: Path) -> None:
    put(tree / "demo" / "__pycache__" / "a.cpython-310.pyc")
    put(tree / "demo" / "__pycache__" / "gone.cpython-310.pyc")
    put(tree / "demo-1.dist-info" / "more.json")
    put(tree / ".safe-pip" / "commit")
    for name in ("README.txt", "_virtualenv.py", "own.py", "demo/cache.db", "demo/~backup", "plugins/~old/x.py"):
        put(tree / name)
    (tree / "demo" / "empty").mkdir()
    assert found(tree) == []


def test_leftovers_of_a_plain_pip_are_found_at_any_depth(tree: Path) -> None:
    put(tree / "~emo" / "a.py")
    put(tree / "~mo-1.dist-info" / "METADATA")
    put(tree / "~ngle.py")
    put(tree / "demo" / "~eep" / "b.py")
    assert found(tree) == [
        (Kind.LEFTOVER, "demo/~eep"),
        (Kind.LEFTOVER, "~emo"),
        (Kind.LEFTOVER, "~mo-1.dist-info"),
        (Kind.LEFTOVER, "~ngle.py"),
    ]


@pytest.mark.parametrize(
    ("metadata", "repair"),
    [
        ("Name: Other\nVersion: 2\n", "reinstall `other==2`, then remove it"),
        ("Name: demo\nVersion: 2\n", "remove it"),
        ("", "remove it"),
    ],
)
def test_a_leftover_that_is_all_there_is_of_a_project_brings_it_back(tree: Path, metadata: str, repair: str) -> None:
    put(tree / "~x-1.dist-info" / "METADATA").write_text(metadata)
    (finding,) = examination.strays(str(tree), owned(tree), (), NOW - 1000)
    assert (finding.repair, bool(finding.again)) == (repair, "reinstall" in repair)


def test_a_name_that_a_record_has_is_no_leftover(tree: Path) -> None:
    put(tree / "~own" / "a.py")
    assert found(tree, owned(tree, "~own/a.py")) == []


def test_a_directory_on_the_path_without_distributions_has_no_strays(tmp_path: Path) -> None:
    put(tmp_path / "home" / "~backup" / "x")
    below = {str(tmp_path / "home/lib/site-packages" / name) for name in ("a-1.dist-info", "a.py")}
    assert list(examination.strays(str(tmp_path / "home"), below, (), NOW)) == []


@pytest.mark.parametrize("name", [".safe-pip-abcdefgh", f".safe-pip-{ID}"])
def test_a_private_directory_that_was_not_used_for_long_is_abandoned(tree: Path, name: str) -> None:
    private = tree / name
    private.mkdir()
    os.utime(private, (NOW - 5, NOW - 5))
    assert found(tree) == []
    os.utime(private, (NOW - 5000, NOW - 5000))
    assert found(tree) == [(Kind.ABANDONED, name)]


def test_a_marker_is_abandoned_when_its_transaction_is_gone(tree: Path) -> None:
    marker = put(tree / "demo" / "deep" / f".safe-pip-{ID}")
    os.utime(marker, (NOW - 5000, NOW - 5000))
    assert found(tree, unfinished=(ID,)) == []
    assert found(tree) == [(Kind.ABANDONED, f"demo/deep/.safe-pip-{ID}")]
