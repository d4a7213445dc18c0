"""Where an install is told to go is found without pip, as pip finds it."""

import os
import sysconfig
from pathlib import Path

import pytest

from safe_pip.launch import settings
from safe_pip.pip_seams.named_target import named_target


def trees(*words: str, **configured: str) -> list[str] | None:
    found = named_target((), "install", words, configured)
    return None if found is None else [str(tree) for tree in found.trees]


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "{}"],
        ["-t{}"],
        ["-Ut", "{}"],
        ["-qqUt{}"],
        ["--target", "{}"],
        ["--target={}"],
        ["--targ", "{}"],
        ["-t", "elsewhere", "six", "--pre", "-r", "-t", "-t", "{}"],
        ["--unknown", "x", "--root-user-action", "ignore", "-t", "{}", "--prefer-binary"],
    ],
    ids=" ".join,
)
def test_a_target_directory_is_found_however_it_is_written(tmp_path: Path, words: list[str]) -> None:
    assert trees(*(word.format(tmp_path / "there") for word in words)) == [str(tmp_path / "there")]


def test_a_prefix_and_a_root_have_the_libraries_of_this_python(tmp_path: Path) -> None:
    scheme = sysconfig.get_preferred_scheme("prefix")
    below = os.path.relpath(sysconfig.get_path("purelib", scheme, {"base": "/x"}), "/x")
    assert trees("--prefix", str(tmp_path)) == [str(tmp_path / below)]
    assert trees("--root", str(tmp_path), "--prefix", "/usr") == [str(tmp_path / "usr" / below)]
    here = os.path.relpath(sysconfig.get_path("purelib"), "/")
    assert trees("--root", str(tmp_path)) == [str(tmp_path / here)]


@pytest.mark.parametrize(
    "words", [["-t", "{}"], ["--prefix", "{}"], ["--root", "{}", "--prefix", "/usr"]], ids=" ".join
)
def test_what_is_named_is_locked_by_itself_too(tmp_path: Path, words: list[str]) -> None:
    found = named_target((), "install", [word.format(tmp_path) for word in words], {})
    assert found is not None
    assert found.containers == (tmp_path,)


@pytest.mark.parametrize("words", [["six"], ["--pre", "six"], ["-t"], ["--user", "six"], ["-r", "-t"]], ids=" ".join)
def test_without_such_an_option_it_is_the_environment(words: list[str]) -> None:
    assert trees(*words) is None


@pytest.mark.parametrize(
    "words", [["-t", "{}"], ["-t", "{}/below"], ["--prefix", "{}"], ["--root", "{}"]], ids=" ".join
)
def test_what_is_no_directory_is_left_to_pip(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    assert trees(*(word.format(tmp_path / "file") for word in words)) is None


def test_other_commands_change_the_environment_alone() -> None:
    assert named_target((), "wheel", ["-t", "x"], {}) is None
    assert named_target((), None, [], {"target": "x"}) is None


def test_an_option_wins_over_what_is_configured(tmp_path: Path) -> None:
    assert trees(target=str(tmp_path)) == [str(tmp_path)]
    assert trees("-t", str(tmp_path / "other"), target=str(tmp_path)) == [str(tmp_path / "other")]


def test_no_state_stays_in_a_tree_that_is_not_on_the_path(tmp_path: Path) -> None:
    found = named_target([str(tmp_path)], "install", ["-t", str(tmp_path)], {})
    assert found is not None
    assert found.stateless_trees == ()
    found = named_target([], "install", ["-t", str(tmp_path)], {})
    assert found is not None
    assert found.stateless_trees == found.trees


def test_files_and_variables_are_read_as_by_pip(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\ntarget = everywhere\nroot = r\n[install]\ntarget = here\n[wheel]\ntarget = never\n")
    environ = {"PIP_CONFIG_FILE": str(file), "PIP_PREFIX": "p", "PIP_ROOT": "", "PIP_ROOT_USER_ACTION": "ignore"}
    found = settings.of_install(environ, isolated=False)
    assert {name: found.get(name) for name in ("target", "prefix", "root")} == {
        "target": "here",
        "prefix": "p",
        "root": "r",
    }
    assert found["root-user-action"] == "ignore"
    assert "prefix" not in settings.of_install(environ, isolated=True)
