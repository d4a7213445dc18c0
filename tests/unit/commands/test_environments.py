"""Which environment, prefix or Python is meant."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.commands.environments import Interpreter, environment_of, prefix_finder, trees_of
from safe_pip.errors import UnusableEnvironment


def site_packages(prefix: Path, *parts: str) -> Path:
    made = prefix.joinpath(*(parts or ("lib", "python3.12", "site-packages")))
    made.mkdir(parents=True)
    return made


def test_a_prefix_means_its_trees_each_once(tmp_path: Path) -> None:
    purelib = site_packages(tmp_path)
    (tmp_path / "lib64").symlink_to("lib")
    assert trees_of(str(tmp_path)) == [purelib]
    platlib = site_packages(tmp_path, "lib32", "python3.12", "site-packages")
    debian = site_packages(tmp_path, "lib", "python3", "dist-packages")
    assert set(trees_of(str(tmp_path))) == {purelib, platlib, debian}


def test_an_interpreter_in_a_venv_means_that_venv_and_not_the_one_it_links_to(tmp_path: Path) -> None:
    purelib = site_packages(tmp_path)
    (tmp_path / "pyvenv.cfg").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert trees_of(str(tmp_path / "bin" / "python")) == [purelib]


def test_another_interpreter_is_asked() -> None:
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    assert any(path.name in ("site-packages", "dist-packages") for path in trees_of(str(base)))


def test_a_path_without_an_environment_is_just_a_directory(tmp_path: Path) -> None:
    assert trees_of(str(tmp_path)) == []
    assert trees_of(str(tmp_path / "missing")) == []


def test_a_directory_with_distributions_is_a_tree_and_any_other_is_no_environment(tmp_path: Path) -> None:
    for name in ("missing", "."):
        with pytest.raises(UnusableEnvironment, match="Name a virtual environment"):
            environment_of(str(tmp_path / name))
    with pytest.raises(UnusableEnvironment, match="--into PREFIX"):
        prefix_finder(None, str(tmp_path))
    assert os.listdir(tmp_path) == []
    (tmp_path / "demo-1.dist-info").mkdir()
    assert environment_of(str(tmp_path)) == [tmp_path]


def test_a_directory_that_is_made_meanwhile_is_just_a_directory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    is_file = fs.is_file

    def make_and_look(path: Path) -> bool:
        made.mkdir()
        return is_file(path)

    monkeypatch.setattr(fs, "is_file", make_and_look)
    assert trees_of(str(made)) == []


def test_a_tree_means_itself(tmp_path: Path) -> None:
    assert trees_of(str(site_packages(tmp_path))) == [tmp_path / "lib" / "python3.12" / "site-packages"]
    (tmp_path / "target" / ".safe-pip").mkdir(parents=True)
    assert trees_of(str(tmp_path / "target")) == [tmp_path / "target"]


def test_a_file_that_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "program").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "program").chmod(0o755)
    for name in ("file", "program"):
        with pytest.raises(UnusableEnvironment):
            trees_of(str(tmp_path / name))


def test_an_interpreter_is_found_by_path_by_environment_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Interpreter.ask(sys.executable)
    assert own.label == f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    assert Interpreter.find(sys.executable) == own
    assert os.path.samefile(Interpreter.find(sys.prefix).prefix, sys.prefix)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert Interpreter.find("python").label == own.label


def test_the_interpreters_of_one_installation_are_told_by_it(tmp_path: Path) -> None:
    own = Interpreter.ask(sys.executable)
    (tmp_path / "python").symlink_to(os.path.realpath(sys.executable))
    assert Interpreter.ask(tmp_path / "python").installation == own.installation
    (tmp_path / "other").write_text(f"#!/bin/sh\n'{sys.executable}' \"$@\" | sed 's/3\\.1/3.2/g'\n")
    (tmp_path / "other").chmod(0o755)
    assert Interpreter.ask(tmp_path / "other").installation != own.installation


@pytest.mark.parametrize(
    "text", ["/nowhere/python", "./nothing", "no-such-python", "3.99", shutil.which("true") or "true"]
)
def test_a_name_of_no_interpreter_is_refused(text: str) -> None:
    with pytest.raises(UnusableEnvironment, match=text):
        Interpreter.find(text)
