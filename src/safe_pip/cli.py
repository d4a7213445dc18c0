"""The command line: one of our own verbs, or pip; its errors and its exit status.

What runs a verb, or pip, is imported when the command line has said which of them runs; `trace`
and `prefix` only for their options.
"""

import errno
import gc
import os
import sys
from collections.abc import Collection
from functools import partial
from itertools import takewhile
from typing import NamedTuple, NoReturn

from safe_pip import __version__, fs
from safe_pip.commands import VERBS
from safe_pip.environment.environment import Environment, Target
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import NO_WORKING_DIRECTORY, Replaced, SafePipError, StalePlan, UnusableEnvironment, UsageError
from safe_pip.fs import watch
from safe_pip.launch import active, frozen_pip, isolation, settings
from safe_pip.launch.fast_start import FastStart, attach_bundle
from safe_pip.launch.frozen_pip import FrozenPip
from safe_pip.launch.restart import LAST, Attempt
from safe_pip.launch.settings import Settings
from safe_pip.locking import flock
from safe_pip.messages import Reporter, output, say

_WITH_VALUE = frozenset(
    (
        *("--cache-dir", "--cert", "--client-cert", "--default-timeout", "--exists-action", "--keyring-provider"),
        *("--local-log", "--log", "--log-file", "--proxy", "--python", "--resume-retries", "--retries", "--timeout"),
        *("--trusted-host", "--use-deprecated", "--use-feature"),
    )
)
"""pip's general options that take a value, which may be the next word."""

_FLAGS = frozenset(
    (
        *("--debug", "--disable-pip-version-check", "--help", "--isolated", "--no-cache-dir"),
        *("--no-color", "--no-input", "--no-proxy-env", "--no-python-version-warning", "--quiet", "--require-venv"),
        *("--require-virtualenv", "--verbose", "--version", "-q", "-qq", "-qqq"),
    )
)
"""pip's general options that take no value."""

_HOW_MUCH = ("-q", "-qq", "-qqq", "--quiet", "-v", "-vv", "-vvv", "--verbose")
"""Those that every verb of ours takes, too."""

_DRAWING = ("install", "download", "wheel", "lock")
"""The commands of pip that draw bars."""

_LONG = {"-v": "--verbose", "-V": "--version", "-h": "--help"}


class CommandLine(NamedTuple):
    """The arguments for pip; the command, if there is one, and what follows it; the options before it, by long name."""

    for_pip: tuple[str, ...]
    command: str | None
    rest: tuple[str, ...]
    options: dict[str, str]

    @property
    def is_verbose(self) -> bool:
        return "--verbose" in self.options or not {*_HOW_MUCH[4:]}.isdisjoint(self.rest)

    @property
    def is_quiet(self) -> bool:
        return not {*_HOW_MUCH[:4]}.isdisjoint((*self.options, *self.rest))

    @property
    def is_python_named(self) -> bool:
        """Whether the environment is named, perhaps by the process that started this one for it."""
        return "--python" in self.options or bool(os.environ.get("PIP_PYTHON") or os.environ.get(frozen_pip.GIVEN))

    @property
    def is_about_pip(self) -> bool:
        """Whether pip shows its version or help, whatever the command."""
        return "--version" in self.options or "--help" in self.options

    @classmethod
    def parse(cls, argv: list[str]) -> "CommandLine":
        """Take our own options, before or after a command of pip's; raises `UsageError` where a value is missing."""
        words, kept, rest, options = list(argv), list[str](), list[str](), dict[str, str]()
        while words and words[0].startswith("-") and words[0] != "-":
            name, value, taken = _pop_option(words, _WITH_VALUE)
            kept += taken
            options[_LONG.get(name[:2], name)] = value
        command = [words.pop(0)] if words else []
        while words and words[0] != "--" and command[0] not in VERBS:  # our own verbs have parsers
            name, value, taken = _pop_option(words)
            rest += taken
            if name in settings.OPTIONS:
                options[name] = value
        return cls((*kept, *command, *rest, *words), command[0] if command else None, (*rest, *words), options)

    def check(self) -> None:
        """Raise `UsageError` for an option that no verb has, or that is a slip of the pen; pip checks its own."""
        known = _FLAGS.union(_WITH_VALUE, settings.OPTIONS)
        for name in set(self.options).difference(known):
            meant = settings.suggestion(name, known if self.command in VERBS else settings.OPTIONS)
            if meant or self.command in VERBS:
                raise UsageError(f"no such option: {name}", hint=meant)


def _pop_option(words: list[str], with_value: Collection[str] = ()) -> tuple[str, str, list[str]]:
    """Take a word off, with the next one if that is its value: the name, the value, and the words if they are pip's."""
    taken = [words.pop(0)]
    name, equals, value = taken[0].partition("=")
    own = settings.OPTIONS.get(name)
    if not equals and words and (name in with_value or (own and own.option)):
        value = words.pop(0)
        taken.append(value)
    if own and own.option and not value:
        raise UsageError(f"{name} takes a value: {own.option}")
    return name, value, [] if own else taken


def main(argv: list[str]) -> int:
    """Run the command line; on return its exit status."""
    attempt = Attempt.taken_from(os.environ)
    try:
        if archive := getattr(sys.modules["safe_pip"].__loader__, "archive", None):
            raise UnusableEnvironment(f"safe-pip cannot run from the archive `{archive}`", hint="Install it")
        line = CommandLine.parse(argv)
        line.check()
        chosen = settings.load(
            os.environ,
            warn=say if attempt.number == 1 and not attempt.is_fallback else str,
            isolated="--isolated" in line.options,
            **{own.name: line.options[name] or True for name, own in settings.OPTIONS.items() if name in line.options},
        )
        if chosen.prefix_output is not None:
            from safe_pip.launch import prefix

            chosen = prefix.begin(chosen, attempt)
        if line.command is not None and line.command in VERBS and not line.is_about_pip:
            return _run_verb(line, line.command, line.rest, chosen)
        if line.command == "help" and line.rest and line.rest[0] in VERBS:
            return _run_verb(line, line.rest[0], ("--help",), chosen)
        return _run_pip(line, chosen, attempt)
    except SafePipError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def _run_verb(line: CommandLine, verb: str, rest: tuple[str, ...], chosen: Settings) -> int:
    from safe_pip.commands import options

    gc.enable()
    python = line.options.get("--python") or (None if verb == "venv" else os.environ.get("PIP_PYTHON"))
    before = takewhile(lambda word: word != verb, line.for_pip)
    how_much = [word for word in before if word in _HOW_MUCH]
    try:
        return options.run(verb, [*how_much, *rest], chosen, python=python)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UnusableEnvironment(f"`{error.filename}` cannot be used: {error.strerror}") from error
        if error.errno == errno.ENOENT and not fs.has_working_directory():
            raise UnusableEnvironment(NO_WORKING_DIRECTORY) from error
        raise


def _run_pip(line: CommandLine, chosen: Settings, attempt: Attempt) -> int:
    if chosen.trace is not None:
        from safe_pip import trace

        trace.begin(chosen.trace, attempt.number + attempt.is_fallback, say)
    path = isolation.environment_path
    is_free = line.is_about_pip or not line.command or not {"-h", "--help"}.isdisjoint(line.rest)
    if not is_free and not line.is_python_named:
        python, told = active.environment(os.environ, line.command or "")
        if told and not line.is_quiet and attempt.number == 1 and not attempt.is_fallback:
            say(told)
        if python is not None:
            options = {**line.options, "--python": python}
            line = line._replace(for_pip=("--python", python, *line.for_pip), options=options)
            path = ()  # Nothing is read or locked where a tool of its own lies.
    transaction = Transaction(
        partial(
            Environment,
            stdlib=isolation.standard_library(),
            waiting=Reporter(quiet=line.is_quiet),
            timeout=chosen.lock_timeout,
        ),
        path,
        durable=chosen.durable,
        verify=chosen.verify,
    )
    if attempt.is_fallback or not flock.supported:
        with transaction.environment.exclusively(_fallback_target(line)):
            return _run_unchanged(line, chosen, frozen_pip.freeze(path))
    copy = frozen_pip.freeze(path, read=transaction.read)
    if copy is None:
        _fall_back(line, attempt, "pip cannot be copied from where it is installed")
    try:
        return _run_seams(line, chosen, attempt, transaction, copy)
    except ImportError:
        if isolation.is_current() or attempt.number >= LAST:
            raise
        _try_again(attempt, transaction, "safe-pip was replaced while this command started")


def _run_seams(line: CommandLine, chosen: Settings, attempt: Attempt, transaction: Transaction, copy: FrozenPip) -> int:
    sys.path.append(str(copy.path))
    begin = gc.enable
    if not chosen.fast_start:
        gc.enable()
    elif sys.implementation.name == "cpython":
        attach_bundle(copy.bundle)
        start = FastStart(copy.programs)
        start.attach()
        begin = start.end
    from safe_pip.pip_seams.seam import SeamBroken
    from safe_pip.pip_seams.seams import Seams

    if "--version" in line.options and line.is_verbose:
        say(f"safe-pip {__version__}, with pip {copy.version} from {copy.path}")
    seams = Seams(transaction, attempt, chosen, copy, VERBS, begin)
    status = seams.run(list(line.for_pip))
    for notice in transaction.noticed:
        say(notice)
    if isinstance(seams.error, SeamBroken):
        _fall_back(line, attempt, seams.error.message)
    if isinstance(seams.error, StalePlan | Replaced) and attempt.number < LAST:
        say(f"{seams.error.message}: trying again")
        _try_again(attempt, transaction if isinstance(seams.error, Replaced) else None, seams.error.message)
    return _fail(seams.error) if seams.error is not None else status


def _try_again(attempt: Attempt, replaced: Transaction | None, why: str) -> NoReturn:
    """Start again; if safe-pip was `replaced` in the environment, when it is there again."""
    if replaced is not None:
        replaced.environment.read(lambda: None)
    attempt.number += 1
    watch.note("retry", lambda: {"why": why})
    attempt.reexec(isolation.start)


def _fall_back(line: CommandLine, attempt: Attempt, reason: str) -> NoReturn:
    """Start again with all of pip under one exclusive lock: slower, but as safe."""
    if line.is_verbose:
        say(f"{reason}, so all of it runs under one exclusive lock")
    attempt.is_fallback = True
    watch.note("retry", lambda: {"why": f"{reason}, so all of it runs under one exclusive lock"})
    attempt.reexec(isolation.start)


def _fallback_target(line: CommandLine) -> Target | None:
    from safe_pip.pip_seams.named_target import named_target

    if line.is_about_pip or "--python" in line.options or not {"-h", "--help"}.isdisjoint(line.rest):
        return None
    configured = settings.of_install(os.environ, isolated="--isolated" in line.options)
    return named_target(isolation.environment_path, line.command, line.rest, configured)


def _run_unchanged(line: CommandLine, chosen: Settings, copy: FrozenPip | None) -> int:
    gc.enable()
    from safe_pip.pip_seams.seam import SeamBroken
    from safe_pip.pip_seams.seams import hand_over, load_pip, run_unchanged

    if copy is not None:
        load_pip(copy.path)
    sys.path.extend(isolation.environment_path)
    # The locks are those of this environment. Another one, which `--python` names, needs a safe-pip of its own.
    try:
        hand_over({**(copy.for_child() if copy is not None else {}), **chosen.for_child()})
    except SeamBroken:
        if "--python" in line.options:
            raise
    if line.command in _DRAWING and flock.supported and os.isatty(1):
        from safe_pip.pip_seams import bars

        bars.attach()
    return run_unchanged(list(line.for_pip))


def _fail(error: SafePipError) -> int:
    output()
    say(f"error: {error}")
    return error.exit_status
