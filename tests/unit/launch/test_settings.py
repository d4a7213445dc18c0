"""Where safe-pip's own settings come from, and which of them wins."""

import os
import sys

import pytest

from safe_pip.errors import UsageError
from safe_pip.launch import settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the files lie elsewhere on Windows")


@pytest.fixture
def environ(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".config" / "pip").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    return {"HOME": str(home), "XDG_CONFIG_DIRS": str(tmp_path / "xdg"), "XDG_CONFIG_HOME": str(home / ".config")}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_any_setting_locks_are_waited_for_for_ever(environ):
    assert settings.load(environ).lock_timeout is None


def test_the_option_wins_over_the_variable_and_the_variable_over_the_files(environ, tmp_path):
    write(tmp_path / "home/.config/pip/pip.conf", "[safe-pip]\nlock-timeout = 3\n")
    assert settings.load(environ).lock_timeout == 3
    environ["SAFE_PIP_LOCK_TIMEOUT"] = "2"
    assert settings.load(environ).lock_timeout == 2
    assert settings.load(environ, lock_timeout="0").lock_timeout == 0


def test_the_file_of_the_environment_wins_over_the_users_file_and_that_over_the_systems(environ, tmp_path):
    write(tmp_path / "xdg/pip/pip.conf", "[safe-pip]\nlock-timeout = 1\n")
    assert settings.load(environ).lock_timeout == 1
    write(tmp_path / "home/.pip/pip.conf", "[safe-pip]\nlock-timeout = 2\n")
    assert settings.load(environ).lock_timeout == 2
    write(tmp_path / "prefix/pip.conf", "[safe-pip]\nlock-timeout = 3\n")
    assert settings.load(environ).lock_timeout == 3


def test_the_named_file_replaces_the_users_and_the_null_device_all(environ, tmp_path):
    write(tmp_path / "home/.config/pip/pip.conf", "[safe-pip]\nlock-timeout = 2\n")
    write(tmp_path / "named", "[safe-pip]\nlock-timeout = 3\n")
    environ["PIP_CONFIG_FILE"] = str(tmp_path / "named")
    assert settings.load(environ) == settings.Settings(3)
    environ["PIP_CONFIG_FILE"] = os.devnull
    assert settings.load(environ) == settings.Settings()


def test_a_name_that_is_no_setting_is_warned_of(environ, tmp_path):
    write(tmp_path / "home/.pip/pip.conf", "[DEFAULT]\nall = 1\n[safe-pip]\nlock-timeot = 2\nother = 1\ndurable = no\n")
    # A variable that resembles none may be another program's.
    environ |= {"SAFE_PIP_LOCK_TIMOUT": "1", "SAFE_PIP_TEST_SEED": "1", "SAFE_PIP_HELD": "x", "SAFE_PIP_VERIFY": ""}
    said = []
    assert settings.load(environ, warn=said.append) == settings.Settings()
    assert [(line.split("`")[1], "Did you mean `" in line) for line in said] == [
        ("SAFE_PIP_LOCK_TIMOUT", True),
        ("lock-timeot", True),
        ("other", False),
    ]
    assert said[0].endswith("Did you mean `SAFE_PIP_LOCK_TIMEOUT`?")
    said.clear()
    settings.load({**environ, "PIP_CONFIG_FILE": os.devnull}, isolated=True, warn=said.append)
    assert said == []


def test_isolated_leaves_out_the_users_file_and_variable(environ, tmp_path):
    write(tmp_path / "home/.config/pip/pip.conf", "[safe-pip]\nlock-timeout = 2\n")
    environ["SAFE_PIP_LOCK_TIMEOUT"] = "1"
    assert settings.load(environ, isolated=True).lock_timeout is None


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_a_time_that_is_none_is_refused(environ, text):
    with pytest.raises(UsageError):
        settings.load(environ, lock_timeout=text)


@pytest.mark.parametrize("content", [b"no section", b"\xff\xfe[", b"[safe-pip]\nlock-timeout"])
def test_a_damaged_file_is_left_to_pip(environ, tmp_path, content):
    (tmp_path / "home/.config/pip/pip.conf").write_bytes(content)
    assert settings.load(environ).lock_timeout is None


def test_the_files_are_those_that_pip_reads(environ):
    pip_configuration = pytest.importorskip("pip._internal.configuration")
    kinds = pip_configuration.get_configuration_files()
    theirs = [file for kind in ("global", "user", "site") for file in kinds[kind]]
    ours = settings.configuration_files({"HOME": environ["HOME"]})
    assert [file for file in ours if "xdg" not in file] == [file for file in theirs if "xdg" not in file]


def test_every_setting_has_an_option_or_a_variable_and_a_key(environ, tmp_path):
    values = {"lock_timeout": "2", "durable": "yes", "verify": "import", "link_mode": "copy", "cache_limit": "1k"}
    values |= {"fast_start": "off", "trace": str(tmp_path), "prefix_output": "name"}
    assert values.keys() == {each.name for each in settings.TABLE}
    expected = settings.Settings(2, True, "import", "copy", 1000, False, str(tmp_path), "name")
    variables = {f"SAFE_PIP_{name.upper()}": value for name, value in values.items()}
    assert settings.load(environ | variables) == expected
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in values.items()]
    write(tmp_path / "home/.config/pip/pip.conf", "\n".join(["[safe-pip]", *lines]))
    assert settings.load(environ) == expected


def test_another_interpreter_is_told_what_is_in_force(environ):
    chosen = settings.Settings(2.5, True, "import", "copy", 1000, fast_start=False, trace="/traces", prefix_output="n")
    assert settings.load(environ | chosen.for_child()) == chosen
    assert settings.load(environ | settings.Settings().for_child()) == settings.Settings()
