"""`safe-pip venv`: an environment that is there when the command ends, however many ask for it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safe_pip.launch.start import RUNNER
from safe_pip.commands import child
from safe_pip.commands.venv import clearing, virtual
from safe_pip.locking import state_directory
from safe_pip.commands.run import located
from safe_pip.environment.environment import Environment, Waiting
from safe_pip.errors import NotMade, OtherPython, UnusableEnvironment, UsageError
from safe_pip.commands.venv.interpreter import Interpreter, Wanted, python_of
from safe_pip.messages import say
from safe_pip.launch.settings import seconds

HELP = """\
Usage:
  safe-pip venv DIR [--clear] [-r FILE ...] [--python PATH] [options of `python -m venv`]

Description:
  Make the virtual environment DIR, with whatever directories are missing above it, unless it is there. However many
  ask at once, one makes it and the others wait until it is complete. A program can see it only when it is complete;
  if the one who makes it is killed, the next one makes it anew.

  An environment that is there is taken as it is, whatever made it, if its Python runs and it has its site-packages.
  One that does not work is refused, unless it is to be cleared; so is a directory with anything else in it.

Options:
  --clear                 Make the environment anew if it is there: everything in DIR goes, what is new comes, in one
                          transaction. Commands that use the environment keep their locks, and see the old one or the
                          new one.
  -r, --requirement FILE  When it is there, run `safe-pip install -r FILE` for it; may be repeated. The exit status is
                          then pip's. If that fails the environment stays, without what could not be installed.
  --python PATH           The Python of the environment: its path, its environment, its name on PATH, or its version
                          (`3.12`, looked up on PATH as `python3.12`). One that is there has to be of this Python.
                          (default: the Python that safe-pip runs in, or that of the environment that is there)
  --lock-timeout SECONDS  Exit with status 75 when somebody else is still at it by then; 0 does not wait.
                          (default: wait)
  --system-site-packages, --without-pip, --copies, --symlinks, --prompt PROMPT
                          As for `python -m venv`; only for an environment that is made now.

Without `-r` the exit status is 0 if the environment is there; 1 if the Python could not make it, or what is there is
of another Python; 2 for a command line that cannot be run; 74 if the disk is full; 75 if the lock was not free in time;
78 if DIR cannot be used.
"""

_FLAGS = ("--system-site-packages", "--without-pip", "--copies", "--symlinks")
_WITH_VALUE = ("--python", "--requirement", "--prompt", "--lock-timeout")
# What would send what is installed elsewhere, or install nothing.
_MISLEADING = ("TARGET", "PREFIX", "ROOT", "USER", "PYTHON", "DRY_RUN", "REPORT")


@dataclass(frozen=True)
class Options:
    """What stands on the command line; `passed_on` is for the `venv` module."""

    directory: str = ""
    clear: bool = False
    requirements: tuple[str, ...] = ()
    python: Wanted | None = None
    prompt: str | None = None
    passed_on: tuple[str, ...] = ()
    timeout: float | None = None
    is_help: bool = False

    @classmethod
    def parse(cls, args: list[str], timeout: float | None) -> Options:
        """Take the options, which may stand before and behind DIR; raises `UsageError`."""
        options, words, named = cls(timeout=timeout), list(args), list[str]()
        while words:
            word = words.pop(0)
            name, has_value, value = word.partition("=")
            if word.startswith("-r") and not word.startswith("--"):
                name, has_value, value = "--requirement", word[2:], word[2:]
            if name in _WITH_VALUE:
                if not has_value and not words:
                    raise _usage(f"`{word}` needs a value")
                options = options._with(name, value if has_value else words.pop(0))
            elif word in ("--help", "-h"):
                return replace(options, is_help=True)
            elif word == "--clear":
                options = replace(options, clear=True)
            elif word in _FLAGS:
                options = replace(options, passed_on=(*options.passed_on, word))
            elif word == "--":
                named += words
                break
            elif word.startswith("-"):
                raise _usage(f"`safe-pip venv` has no option `{word}`")
            else:
                named.append(word)
        if len(named) != 1 or not named[0]:
            raise _usage("`safe-pip venv` needs one directory" + (f", not {len(named)}" if named[1:] else ""))
        return replace(options, directory=named[0])

    def _with(self, name: str, value: str) -> Options:
        if name == "--python":
            return replace(self, python=Wanted(value))
        if name == "--requirement":
            return replace(self, requirements=(*self.requirements, value))
        if name == "--prompt":
            return replace(self, prompt=value)
        return replace(self, timeout=seconds(value, name))


def _usage(message: str) -> UsageError:
    return UsageError(message, hint="See `safe-pip venv --help`")


def main(args: list[str], *, waiting: Waiting, timeout: float | None) -> int:
    """Run the verb; on return its exit status."""
    options = Options.parse(args, timeout)
    if options.is_help:
        print(HELP, end="")
        return 0
    for name in options.requirements:
        if "://" not in name and not os.path.exists(name):
            raise UsageError(f"there is no requirements file `{name}`")
    try:
        _Making(options, waiting).run()
    except NotMade as error:
        if error.output:
            print(error.output, file=sys.stderr)
        raise
    return _install(options) if options.requirements else 0


class _Making:
    """One command, until the environment is there."""

    def __init__(self, options: Options, waiting: Waiting) -> None:
        self._options = options
        self._waiting = waiting
        # With the user's spelling, as `venv` writes it into scripts; the locks and all that is moved go by the other.
        self._shown = Path(os.path.abspath(options.directory))
        self._home = Path(os.path.realpath(options.directory))
        self._python: Interpreter | None = None

    def run(self) -> None:
        """On return it is there."""
        while not self._is_done():
            self._python = self._python or self._chosen()
            with suppress(FileNotFoundError):  # it was removed, by a command that had made it and failed
                self._make()

    def _is_done(self) -> bool:
        """Whether nothing is left to do but, with `--clear`, what is done now; raises what makes it impossible."""
        self._recover()
        if virtual.is_moving(self._home) or not virtual.is_configured(self._home):
            return False
        found = virtual.look(self._home)
        if self._options.clear:
            self._python = self._chosen()
            self._clear(self._python)
        elif found is None:
            raise UnusableEnvironment(
                f"`{self._shown}` is a virtual environment that does not work", hint="Make it anew with `--clear`"
            )
        elif self._options.python is not None and not self._options.python.is_met_by(found):
            raise OtherPython(
                f"`{self._shown}` is an environment of {found}, not of `{self._options.python.text}`",
                hint="Make it anew with `--clear`",
            )
        virtual.sweep(self._home)
        return True

    def _recover(self) -> None:
        """Have a change of the environment undone whose process was killed: it is as it was before."""
        for tree in self._trees():
            if state_directory.has_journal(tree):
                self._environment(tree).read(lambda: None)

    def _make(self) -> None:
        """Make it, or wait until somebody else has."""
        with self._environment().making(self._home):
            virtual.finish(self._home)
            virtual.sweep(self._home)
            if virtual.is_configured(self._home):
                return
            if not virtual.is_empty(self._home):
                raise UnusableEnvironment(
                    f"`{self._shown}` is not a virtual environment, and not empty", hint="Choose another directory"
                )
            assert self._python is not None
            with virtual.made_aside(self._home, self._python.executable, self._passed_on()) as aside:
                virtual.put(aside, self._home)

    def _clear(self, python: Interpreter) -> None:
        if os.path.realpath(sys.prefix) == str(self._home):
            raise UsageError(f"`{self._shown}` is the environment that this safe-pip runs from: clear it from another")
        with virtual.made_aside(self._home, python.executable, self._passed_on()) as aside:
            clearing.exchange(aside, self._home, self._trees(), self._environment)

    def _chosen(self) -> Interpreter:
        wanted = self._options.python
        return wanted.find() if wanted is not None else Interpreter.ask(sys.executable)

    def _passed_on(self) -> list[str]:
        prompt = self._shown.name if self._options.prompt is None else self._options.prompt
        return [*self._options.passed_on, "--prompt", prompt]

    def _trees(self) -> list[Path]:
        return located(str(self._home)) if self._home.is_dir() else []

    def _environment(self, *trees: Path) -> Environment:
        return Environment([*map(str, trees)], waiting=self._waiting, timeout=self._options.timeout)


def _install(options: Options) -> int:
    """Run `safe-pip install` for the environment; on return its exit status."""
    timeout = [] if options.timeout is None else [f"--lock-timeout={options.timeout}"]
    command = [sys.executable, RUNNER, *timeout, "--python", str(python_of(Path(options.directory)))]
    command += ["install", *(word for name in options.requirements for word in ("-r", name))]
    misleading = {f"PIP_{name}" for name in _MISLEADING}
    variables = {name: value for name, value in os.environ.items() if name not in misleading}
    sys.stdout.flush()
    status = subprocess.run(command, env=variables, check=False).returncode
    if status != 0:
        say(f"error: the environment `{options.directory}` is there, without what could not be installed")
    return status if status >= 0 else 128 - status
