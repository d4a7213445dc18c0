"""`safe-pip venv`: its options, and which Python is meant."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from safe_pip.commands.venv import Options
from safe_pip.errors import UnusableEnvironment, UsageError
from safe_pip.commands.venv.interpreter import Interpreter, Wanted

VERSION = ".".join(map(str, sys.version_info[:3]))


def test_options_stand_before_and_behind_the_directory() -> None:
    expected = Options("dir", clear=True, requirements=("a", "b", "c", "d"), python=Wanted("3.12"), timeout=1.5)
    words = ["-r", "a", "--clear", "dir", "-rb", "--requirement=c", "--requirement", "d"]
    assert Options.parse([*words, "--python", "3.12", "--lock-timeout=1.5"], 7) == expected
    assert Options.parse(["--", "-dir"], None) == Options("-dir")


def test_what_is_for_the_venv_module_is_passed_on() -> None:
    options = Options.parse(["--without-pip", "dir", "--system-site-packages", "--prompt=x y"], None)
    assert options == Options("dir", prompt="x y", passed_on=("--without-pip", "--system-site-packages"))


@pytest.mark.parametrize(
    "words", [[], [""], ["a", "b"], ["a", "-r"], ["a", "--python"], ["a", "--upgrade"], ["a", "--lock-timeout", "x"]]
)
def test_a_mistake_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        Options.parse(words, None)


def test_an_interpreter_is_found_by_path_by_environment_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Interpreter.ask(sys.executable)
    assert (own.version, own.implementation) == (sys.version_info[:3], sys.implementation.name)
    assert Wanted(sys.executable).find() == own
    assert os.path.samefile(Wanted(sys.prefix).find().prefix, sys.prefix)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert Wanted("python").find().version == own.version


def test_a_version_is_looked_up_on_path_beyond_what_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for number, text in enumerate(("#!/bin/sh\nexit 127\n", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(text)
        (tmp_path / str(number) / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / '0'}{os.pathsep}{tmp_path / '1'}")
    for text in (name, name.removeprefix("python"), VERSION):
        assert Wanted(text).find().executable == str(tmp_path / "1" / name)
    for text in ("2.7", "3.99", f"{VERSION}9", "python3.99"):
        with pytest.raises(UnusableEnvironment, match="there is no Python"):
            Wanted(text).find()


def test_a_version_is_met_by_all_that_begin_with_it() -> None:
    own = Interpreter.ask(sys.executable)
    major, minor, micro = sys.version_info[:3]
    for text in (f"{major}", f"{major}.{minor}", f"{major}.{minor}.{micro}", f"python{major}.{minor}"):
        assert Wanted(text).is_met_by(own)
    for text in (f"{major}.{minor + 1}", f"{major}.{minor}.{micro + 1}", f"{major}.{minor}t", "2"):
        assert not Wanted(text).is_met_by(own)


def test_a_path_is_met_by_the_same_installation_alone() -> None:
    from dataclasses import replace

    own = Interpreter.ask(sys.executable)
    assert Wanted(sys.executable).is_met_by(own)
    assert not Wanted(sys.executable).is_met_by(replace(own, base="/elsewhere"))
    assert not Wanted(sys.executable).is_met_by(replace(own, version=(3, 1, 0)))


@pytest.mark.parametrize("text", ["/nowhere/python", "./nothing", "no-such-python", shutil.which("true") or "true"])
def test_what_is_no_interpreter_is_said_to_be_none(text: str) -> None:
    with pytest.raises(UnusableEnvironment, match=text):
        Wanted(text).find()
