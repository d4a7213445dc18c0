"""What of a command line is ours, and what pip is given."""

import pytest

from safe_pip.cli import CommandLine
from safe_pip.errors import UsageError


@pytest.mark.parametrize(
    ("argv", "for_pip", "command"),
    [
        (["install", "six"], ["install", "six"], "install"),
        (["--lock-timeout", "5", "install", "six"], ["install", "six"], "install"),
        (["--lock-timeout=5", "-v", "install"], ["-v", "install"], "install"),
        (["--log", "install", "list"], ["--log", "install", "list"], "list"),
        (["--log=install", "list"], ["--log=install", "list"], "list"),
        (
            ["--python", "/venv", "--proxy", "list", "freeze"],
            ["--python", "/venv", "--proxy", "list", "freeze"],
            "freeze",
        ),
        (["install", "--lock-timeout", "5"], ["install", "--lock-timeout", "5"], "install"),
        (["--version"], ["--version"], None),
        (["--python"], ["--python"], None),
        ([], [], None),
    ],
)
def test_pip_is_given_everything_but_our_own_options(argv, for_pip, command):
    line = CommandLine.parse(argv)
    assert list(line.for_pip) == for_pip
    assert line.command == command


def test_options_before_the_command_are_understood():
    line = CommandLine.parse(["--isolated", "-vv", "--python", "x", "--proxy=socks5://y", "run", "--", "make", "-v"])
    assert line.options == {"--isolated": "", "--verbose": "", "--python": "x", "--proxy": "socks5://y"}
    assert line.rest == ("--", "make", "-v")


def test_a_lock_timeout_without_a_value_is_refused():
    with pytest.raises(UsageError):
        CommandLine.parse(["--lock-timeout"])
