"""`safe-pip run`: its options, and which environment is meant."""

import sys
from pathlib import Path

import pytest

from safe_pip.commands.run import Options, located
from safe_pip.errors import UnusableEnvironment, UsageError


def test_options_end_at_the_first_word_that_is_none() -> None:
    assert Options.parse(["make", "--exclusive", "--env", "x"], 5) == Options(
        ("make", "--exclusive", "--env", "x"), timeout=5
    )
    assert Options.parse(["--exclusive", "--", "--shared"], None) == Options(("--shared",), exclusive=True)
    assert Options.parse(["--exclusive", "--shared", "make"], None) == Options(("make",))


def test_values_may_stand_alone_or_behind_an_equals_sign() -> None:
    expected = Options(("make",), env="dir", timeout=1.5)
    assert Options.parse(["--env", "dir", "--lock-timeout", "1.5", "make"], None) == expected
    assert Options.parse(["--env=dir", "--lock-timeout=1.5", "make"], 7) == expected


@pytest.mark.parametrize(
    "words", [["--env"], ["--lock-timeout"], ["--lock-timeout", "x"], ["--verbose", "make"], ["-x"]]
)
def test_a_mistake_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        Options.parse(words, None)


def site_packages(prefix: Path, *parts: str) -> Path:
    made = prefix.joinpath(*(parts or ("lib", "python3.12", "site-packages")))
    made.mkdir(parents=True)
    return made


def test_a_prefix_means_its_trees_each_once(tmp_path: Path) -> None:
    purelib = site_packages(tmp_path)
    (tmp_path / "lib64").symlink_to("lib")
    assert located(str(tmp_path)) == [purelib]
    platlib = site_packages(tmp_path, "lib32", "python3.12", "site-packages")
    debian = site_packages(tmp_path, "lib", "python3", "dist-packages")
    assert set(located(str(tmp_path))) == {purelib, platlib, debian}


def test_an_interpreter_in_a_venv_means_that_venv_and_not_the_one_it_links_to(tmp_path: Path) -> None:
    purelib = site_packages(tmp_path)
    (tmp_path / "pyvenv.cfg").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert located(str(tmp_path / "bin" / "python")) == [purelib]


def test_another_interpreter_is_asked() -> None:
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    assert any(path.name in ("site-packages", "dist-packages") for path in located(str(base)))


def test_what_is_no_environment_is_just_a_directory(tmp_path: Path) -> None:
    assert located(str(tmp_path)) == []
    assert located(str(tmp_path / "missing")) == []


def test_a_directory_that_somebody_makes_meanwhile_is_just_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    is_file = Path.is_file

    def make_and_look(self: Path) -> bool:
        made.mkdir()
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", make_and_look)
    assert located(str(made)) == []


def test_a_tree_means_itself(tmp_path: Path) -> None:
    assert located(str(site_packages(tmp_path))) == [tmp_path / "lib" / "python3.12" / "site-packages"]
    (tmp_path / "target" / ".safe-pip").mkdir(parents=True)
    assert located(str(tmp_path / "target")) == [tmp_path / "target"]


def test_a_file_that_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "program").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "program").chmod(0o755)
    for name in ("file", "program"):
        with pytest.raises(UnusableEnvironment):
            located(str(tmp_path / name))
