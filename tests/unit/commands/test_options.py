"""The command lines of safe-pip's own verbs."""

from __future__ import annotations

import pytest

from safe_pip.commands import MODULES, VERBS, options
from safe_pip.commands.options import Namespace
from safe_pip.errors import UsageError


def parse(verb: str, *words: str) -> Namespace:
    return options.parser(verb).parse_args(words)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_and_a_row_in_the_table(verb: str) -> None:
    assert set(VERBS) == set(MODULES) == set(options.TABLE)
    names = [name for option in options.listed(verb) for name in option[0]]
    assert len(names) == len(set(names))
    assert all(text for _, _, text in options.listed(verb))
    assert ("--json" in names) == (verb in ("doctor", "merge", "status", "unmerge"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_say_less_or_more_and_each_that_changes_something_can_say_what_it_would_do(verb: str) -> None:
    names = [name for option in options.listed(verb) for name in option[0]]
    assert {"-q", "--quiet", "-v", "--verbose"} <= {*names}
    assert ("-n" in names) == ("--dry-run" in names) == (verb not in ("run", "status", "trace"))


def test_how_much_is_said_is_counted_and_ends_at_the_command_of_run() -> None:
    assert (parse("doctor", "-qq", "-v").quiet, parse("doctor", "-q", "--quiet").quiet) == (2, 2)
    found = parse("run", "-q", "make", "-vv")
    assert (found.quiet, found.verbose) == (1, 0)


def test_an_option_that_takes_a_value_says_so() -> None:
    found = {names[-1]: value for names, value, _ in options.listed("run")}
    assert found.items() >= {"--shared": None, "--env": "DIR", "--lock-timeout": "SECONDS", "--durable": None}.items()
    assert found.items() >= {"--lock-dir": "DIR", "--conflict-exit-code": "N"}.items()


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns_and_shows_what_each_command_takes(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = options.parser(verb).format_help()
    assert all(f"  {name}" in text for name in ("--lock-timeout SECONDS", "--durable", "--verify"))
    assert text.startswith(f"usage: safe-pip {verb} ")
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("run", ["--env"]),
        ("run", ["--lock-timeout"]),
        ("run", ["--lock-timeout", "x"]),
        ("run", ["--dry-run", "make"]),
        ("run", ["-x"]),
        ("run", ["--excl", "make"]),
        ("run", ["--exclusive", "--shared", "make"]),
        ("run", ["--env", "a", "--lock-dir", "b", "make"]),
        ("run", ["-E", "256", "make"]),
        ("run", ["-E", "-1", "make"]),
        ("merge", ["a", "--into", "b", "--env", "c"]),
        ("status", ["--env="]),
        ("status", ["word"]),
        ("venv", []),
        ("venv", [""]),
        ("venv", ["a", "b"]),
        ("venv", ["a", "-r"]),
        ("venv", ["a", "--python"]),
        ("venv", ["a", "--upgrade"]),
        ("venv", ["a", "--lock-timeout", "x"]),
        ("merge", ["a", "--on-conflict", "ask"]),
    ],
)
def test_a_mistake_is_a_usage_error_in_one_line_that_names_the_help(verb: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(verb, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "words", "meant"),
    [
        ("run", ["--exclusiv", "make"], "--exclusive"),
        ("run", ["--lock-timeot=5", "make"], "--lock-timeout"),
        ("venv", ["dir", "--cleer"], "--clear"),
        ("doctor", ["--repairs"], "--repair"),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_meant(verb: str, words: list[str], meant: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean `{meant}`"):
        parse(verb, *words)


def test_the_options_of_run_end_at_the_command() -> None:
    found = parse("run", "make", "--exclusive", "--env", "x")
    assert (found.command, found.exclusive, found.env) == (["make", "--exclusive", "--env", "x"], False, None)
    found = parse("run", "--exclusive", "--", "--shared")
    assert (found.command, found.exclusive) == (["--", "--shared"], True)
    assert parse("run", "make", "--", "-j").command == ["make", "--", "-j"]


def test_values_may_stand_alone_or_behind_an_equals_sign() -> None:
    for words in (("--env", "dir", "--lock-timeout", "1.5", "make"), ("--env=dir", "--lock-timeout=1.5", "make")):
        found = parse("run", *words)
        assert (found.command, found.env, found.lock_timeout) == (["make"], "dir", 1.5)


def test_options_of_venv_stand_before_and_behind_the_directory() -> None:
    words = ["-r", "a", "--clear", "dir", "-rb", "--requirement=c", "--requirement", "d", "--python", "python3"]
    found = parse("venv", *words, "--lock-timeout=1.5")
    assert (found.directory, found.clear, found.requirements) == ("dir", True, ["a", "b", "c", "d"])
    assert (found.python, found.lock_timeout) == ("python3", 1.5)
    assert parse("venv", "--", "-dir").directory == "-dir"


def test_options_of_the_venv_module_are_passed_on() -> None:
    found = parse("venv", "--without-pip", "dir", "--system-site-packages", "--prompt=x y")
    assert (found.passed_on, found.prompt) == (["--without-pip", "--system-site-packages"], "x y")
