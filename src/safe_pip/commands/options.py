"""The command line of safe-pip's own verbs: one parser for all, from which help and completion come.

`argparse` takes milliseconds to import, so only a command that runs a verb, or shows its options, imports this module.
The module of a verb is imported by its name in `MODULES`, when that verb is asked for.
"""

import argparse
import importlib
from argparse import Namespace
from functools import partial
from typing import NoReturn

from safe_pip.commands import MODULES, VERBS
from safe_pip.commands.environments import Context
from safe_pip.errors import UsageError
from safe_pip.launch.settings import Settings, seconds
from safe_pip.locking.waiting import Waiting
from safe_pip.messages import output, say

__all__ = ["Namespace", "Parser", "listed", "parser", "run", "tell", "text"]


class Parser(argparse.ArgumentParser):
    """The arguments of one verb. A mistake on the command line raises `UsageError`."""

    def __init__(self, verb: str) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"safe-pip {verb}", formatter_class=layout, allow_abbrev=False)
        self.set_defaults(verb=verb, lock_timeout=None)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", hint=f"See `{self.prog} --help`")

    def add_env(self, more: str = "") -> None:
        what = f"the environment: a virtual environment, its Python, or a prefix{more} (default: this Python's)"
        self.add_argument("--env", type=text, metavar="DIR", help=what)

    def add_json(self) -> None:
        self.add_argument("--json", action="store_true", help="print one JSON document")

    def add_lock_timeout(self) -> None:
        self.add_argument(
            "--lock-timeout",
            type=partial(seconds, source="--lock-timeout"),
            metavar="SECONDS",
            help="exit with status 75 if a lock is not free by then; 0 does not wait (default: wait)",
        )


def text(value: str) -> str:
    """A value that is not empty. The empty one comes from a variable that is not set, and would mean this directory."""
    if not value:
        raise argparse.ArgumentTypeError("it is empty")
    return value


def tell(text: str) -> bool:
    """Print the result of a verb. False: it could not be written, which is said; not if a reader ended (`| head`)."""
    error = output(text)
    if error is not None:
        say(f"warning: standard output could not be written: {error.strerror}")
    return error is None or isinstance(error, BrokenPipeError)


def parser(verb: str) -> Parser:
    """The parser of a verb; imports the verb's module."""
    made = Parser(verb)
    importlib.import_module(MODULES[verb]).describe(made)
    made.description = made.description or VERBS[verb]
    return made


def listed(verb: str) -> list[tuple[tuple[str, ...], str | None, str]]:
    """The options of a verb, for completion: names, what the value is called (None: it takes none), help."""
    actions = [action for action in parser(verb)._actions if action.option_strings and action.dest != "help"]
    return [
        (
            tuple(each.option_strings),
            None if each.nargs == 0 else str(each.metavar or each.dest).upper(),
            each.help or "",
        )
        for each in actions
    ]


def run(verb: str, args: list[str], settings: Settings, waiting: Waiting, python: str | None = None) -> int:
    """Run a verb, or print its help; on return the exit status.

    `python` is what `--python` before the verb says: the environment, or the Python that `venv` is to use.
    """
    made = parser(verb)
    made.set_defaults(**{"python" if verb == "venv" else "env": python})
    try:
        options = made.parse_args(args)
    except SystemExit:  # after the help
        output()
        return 0
    if options.lock_timeout is not None:
        settings = settings._replace(lock_timeout=options.lock_timeout)
    return int(importlib.import_module(MODULES[verb]).main(options, Context(settings, waiting)))
