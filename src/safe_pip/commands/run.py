"""`safe-pip run`: any command under the environment's lock."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from safe_pip import fs
from safe_pip.commands import child
from safe_pip.environment.access import trees_below
from safe_pip.environment.environment import Environment, Target, Waiting
from safe_pip.errors import UnusableEnvironment, UsageError
from safe_pip.launch import isolation
from safe_pip.launch.settings import seconds
from safe_pip.locking import state_directory
from safe_pip.messages import say

HELP = """\
Usage:
  safe-pip run [--shared | --exclusive] [--env DIR] [--lock-timeout SECONDS] [--] COMMAND ...

Description:
  Run any command under the environment's lock.

Options:
  --shared                What is installed stays as it is while COMMAND runs; others may add to it. For test runs, and
                          for builds that import from the environment. (default)
  --exclusive             Nobody else reads or changes the environment while COMMAND runs. For other tools that change
                          it: plain pip, conda, make install.
  --env DIR               The environment: a virtual environment, its Python, or a prefix. Any other directory is locked
                          by itself, and made if it does not exist. (default: this Python's environment)
  --lock-timeout SECONDS  Exit with status 75 when the lock is not free by then; 0 does not wait. (default: wait)

The exit status is COMMAND's; 128 + n if signal n killed it; 127 if it was not found, 126 if it cannot be executed.
"""


@dataclass(frozen=True)
class Options:
    """What stands on the command line."""

    command: tuple[str, ...] = ()
    exclusive: bool = False
    env: str | None = None
    timeout: float | None = None
    is_help: bool = False

    @classmethod
    def parse(cls, args: list[str], timeout: float | None) -> Options:
        """Take the options, which end at `--` or at the first word that is none; raises `UsageError`."""
        options, words = cls(timeout=timeout), list(args)
        while words:
            word = words.pop(0)
            name, has_value, value = word.partition("=")
            if name in ("--env", "--lock-timeout"):
                if not has_value and not words:
                    raise UsageError(f"`{name}` needs a value", hint="See `safe-pip run --help`")
                value = value if has_value else words.pop(0)
                changed = {"env": value} if name == "--env" else {"timeout": seconds(value, "--lock-timeout")}
                options = replace(options, **changed)
            elif word in ("--shared", "--exclusive"):
                options = replace(options, exclusive=word == "--exclusive")
            elif word in ("--help", "-h"):
                return replace(options, is_help=True)
            elif word == "--" or not word.startswith("-"):
                return replace(options, command=tuple(words if word == "--" else (word, *words)))
            else:
                raise UsageError(f"`safe-pip run` has no option `{word}`", hint="See `safe-pip run --help`")
        return options


def main(args: list[str], *, waiting: Waiting, timeout: float | None) -> int:
    """Run the verb; on return its exit status."""
    options = Options.parse(args, timeout)
    if options.is_help:
        print(HELP, end="")
        return 0
    if not options.command:
        raise UsageError("`safe-pip run` needs a command to run", hint="See `safe-pip run --help`")
    with _locked(options, waiting):
        try:
            return child.run(options.command)
        except FileNotFoundError as error:
            say(f"error: `{options.command[0]}` was not found ({error.strerror})")
            return 127
        except OSError as error:
            say(f"error: `{options.command[0]}` cannot be executed ({error.strerror})")
            return 126


def _locked(options: Options, waiting: Waiting) -> AbstractContextManager[object]:
    """The lock that the command is to run under."""
    if options.env is None:
        path, own = isolation.environment_path, _own_trees()
    else:
        own = located(options.env)
        path = tuple(map(str, own))
    environment = Environment(path, stdlib=isolation.standard_library(), waiting=waiting, timeout=options.timeout)
    if options.env is not None and not own:
        return environment.directory(Path(options.env), exclusive=options.exclusive)
    if not options.exclusive:
        return environment.keeping()
    if options.env is None and not any(os.access(tree, os.W_OK) for tree in own):
        # What this user installs goes elsewhere: to wherever he can write (the user site).
        writable = [tree for tree in environment.trees() if os.access(tree, os.W_OK)]
        own = writable or own
    return environment.occupying(Target(tuple(own)))


def _own_trees() -> list[Path]:
    return _distinct([Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))])


def located(name: str) -> list[Path]:
    """The trees of the environment that `name` means: a prefix, an interpreter or a tree; none: just a directory."""
    path = Path(os.path.abspath(name))  # an interpreter in a venv is a symbolic link that must not be followed
    if path.is_dir():
        if path.name in ("site-packages", "dist-packages"):
            return _distinct([path])
        # A prefix may have a state directory beside those of its trees, while a merge is at work or unfinished.
        if below := trees_below(path):
            return _distinct([*below, path] if state_directory.has_locks(path) else below)
        # Without flock the directory of a virtual environment is locked by a file too, while that is made.
        is_tree = state_directory.exists(path) and not (path / "pyvenv.cfg").is_file()
        return _distinct([path]) if is_tree else []
    if path.is_file() and os.access(path, os.X_OK):
        prefix = path.parent.parent
        return (trees_below(prefix) if (prefix / "pyvenv.cfg").is_file() else []) or _asked(path)
    if fs.is_no_directory(path):
        raise UnusableEnvironment(f"`{name}` is neither a directory nor an interpreter")
    return []


def _asked(python: Path) -> list[Path]:
    """What an interpreter says itself."""
    question = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('platlib'))"
    try:
        answer = subprocess.run(
            [python, "-I", "-c", question], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError:
        answer = None
    if answer is None or answer.returncode != 0 or not answer.stdout.strip():
        raise UnusableEnvironment(f"`{python}` is not a Python interpreter")
    return _distinct([Path(line) for line in answer.stdout.splitlines()])


def _distinct(paths: list[Path]) -> list[Path]:
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in paths))
