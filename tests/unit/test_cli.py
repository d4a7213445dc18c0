"""What of a command line is ours, and what pip is given."""

from unittest.mock import MagicMock

import pytest

from safe_pip import cli
from safe_pip.cli import CommandLine
from safe_pip.commands import options
from safe_pip.errors import UsageError
from safe_pip.launch import active, frozen_pip, isolation
from safe_pip.launch.restart import Attempt
from safe_pip.launch.settings import Settings


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
        (["install", "--lock-timeout", "5", "six", "--durable"], ["install", "six"], "install"),
        (["install", "--verify=record", "--", "--durable"], ["install", "--", "--durable"], "install"),
        (["run", "--lock-timeout", "5", "make"], ["run", "--lock-timeout", "5", "make"], "run"),
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


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--lock-timeot", "5", "list"], "--lock-timeot. Nothing was changed. Did you mean `--lock-timeout`?"),
        (["--durabel", "run", "--", "make"], "--durabel. Nothing was changed. Did you mean `--durable`?"),
        (["--verbos", "status"], "--verbos. Nothing was changed. Did you mean `--verbose`?"),
        (["--nonsense", "status"], "--nonsense. Nothing was changed"),
    ],
)
def test_an_option_before_the_command_that_there_is_not_is_refused_with_what_was_meant(argv, said):
    with pytest.raises(UsageError) as caught:
        CommandLine.parse(argv).check()
    assert str(caught.value) == f"no such option: {said}"


def test_how_much_is_said_stands_before_or_behind_a_verb_and_of_run_not_in_its_command(monkeypatch):
    given = []
    monkeypatch.setattr(options, "run", lambda verb, words, *rest, **more: given.append((verb, words)) or 0)
    for words in (["-q", "--isolated", "-vv", "run", "make", "-q"], ["status", "-q"], ["help", "run"]):
        assert cli.main(words) == 0
    assert given == [("run", ["-q", "-vv", "make", "-q"]), ("status", ["-q"]), ("run", ["--help"])]


def test_options_of_pip_are_left_to_pip():
    for argv in (["--verb", "list"], ["--nonsense", "list"], ["--timeout=5", "list"], ["-qq", "--no-color", "status"]):
        CommandLine.parse(argv).check()


def test_every_general_option_of_pip_is_known():
    from pip._internal.cli.cmdoptions import general_group

    names = {name for make in general_group["options"] for name in make()._long_opts}
    assert names <= {*cli._WITH_VALUE, *cli._FLAGS}


def test_a_lock_timeout_without_a_value_is_refused():
    with pytest.raises(UsageError):
        CommandLine.parse(["--lock-timeout"])


def test_a_command_that_safe_pip_was_replaced_under_tells_the_next_attempt_what_it_has_read(monkeypatch):
    begun = []

    def replaced(line, chosen, attempt, *rest):
        attempt.inputs["/dev/stdin"] = "six"
        attempt.answered.append("six")
        raise ImportError("a module of the next version")

    def reexec(attempt, start):
        begun.append(vars(attempt))
        raise SystemExit

    monkeypatch.setattr(cli, "Transaction", MagicMock())
    monkeypatch.setattr(cli, "_run_seams", replaced)
    monkeypatch.setattr(frozen_pip, "freeze", MagicMock())
    monkeypatch.setattr(isolation, "is_current", lambda: False)
    monkeypatch.setattr(isolation, "start", None, raising=False)
    monkeypatch.setattr(Attempt, "reexec", reexec)
    with pytest.raises(SystemExit):
        cli._run_pip(CommandLine.parse(["install", "six"]), Settings(), Attempt())
    (attempt,) = begun
    assert (attempt["number"], attempt["inputs"], attempt["answered"]) == (2, {"/dev/stdin": "six"}, ["six"])


@pytest.mark.parametrize(("number", "is_fallback"), [(1, False), (2, False), (1, True)])
def test_the_chosen_environment_is_said_once_and_counts_as_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, is_fallback: bool
) -> None:
    ran, transaction, attempt = list[CommandLine](), MagicMock(), Attempt()
    attempt.number, attempt.is_fallback = number, is_fallback

    def run(line: CommandLine, *args: object) -> int:
        ran.append(line)
        return 0

    monkeypatch.setattr(active, "environment", lambda environ, command: ("/venv", "using `/venv`"))
    monkeypatch.setattr(cli, "Transaction", transaction)
    monkeypatch.setattr(cli, "_run_seams", run)
    monkeypatch.setattr(cli, "_run_unchanged", run)
    monkeypatch.setattr(frozen_pip, "freeze", MagicMock())
    assert cli._run_pip(CommandLine.parse(["install", "six"]), Settings(), attempt) == 0
    assert (capfd.readouterr().err == "safe-pip: using `/venv`\n") == (number == 1 and not is_fallback)
    (line,) = ran
    assert line.for_pip == ("--python", "/venv", "install", "six")
    assert line.options["--python"] == "/venv", "plain pip must not be started for it without a lock"
    assert transaction.call_args.args[1] == ()
    if is_fallback:  # nothing is locked where safe-pip itself lies
        transaction.return_value.environment.exclusively.assert_called_once_with(None)
