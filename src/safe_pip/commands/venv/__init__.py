"""`safe-pip venv`: create a virtual environment. Safe to run many times at once."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from safe_pip.commands.environments import MISLEADING, Context, Interpreter, python_of, trees_of
from safe_pip.commands.options import Namespace, Parser, text
from safe_pip.commands.venv import virtual
from safe_pip.errors import NotMade, OtherPython, UnusableEnvironment, UsageError
from safe_pip.launch.restart import RUNNER
from safe_pip.locking import state_directory
from safe_pip.messages import say


def describe(parser: Parser) -> None:
    """Add the verb's arguments to its parser."""
    parser.description = """\
Create the virtual environment DIR, with all directories that are missing above it, unless it exists. If many commands
ask for it at once, one creates it and the others wait until it is complete. A program sees it only when it is complete.
If the command that creates it is killed, the next one starts anew.

An existing environment is taken as it is, whatever tool made it, if its Python runs and it has its site-packages. One
that does not work is refused, unless it is to be cleared. A directory with anything else in it is refused too.
"""
    parser.epilog = """\
Without `-r` the exit status is 0 if the environment exists; 1 if the Python could not make it, or the existing one is
of another Python; 2 for a mistake on the command line; 74 if the disk is full; 75 if the lock was not free in time; 78
if DIR cannot be used.
"""
    parser.add_argument("directory", type=text, metavar="DIR", help="where the environment is to be")
    parser.add_argument(
        "--clear",
        action="store_true",
        help="make an existing environment anew, in one transaction: everything in DIR goes, and what is new comes."
        " Commands that use the environment keep their locks, and see the old one or the new one",
    )
    parser.add_argument(
        "-r",
        "--requirement",
        dest="requirements",
        action="append",
        default=[],
        metavar="FILE",
        help="then run `safe-pip install -r FILE` for the environment; may be repeated. The exit status is pip's. If"
        " the install fails the environment stays",
    )
    parser.add_argument(
        "--python",
        type=text,
        metavar="PATH",
        help="the Python of the environment: its path, its environment, or its name on PATH. An existing environment"
        " has to be of this Python (default: the Python that safe-pip runs in, or that of the existing environment)",
    )
    parser.add_lock_timeout()
    passed_on = parser.add_argument_group("options of `python -m venv`, for a new environment")
    for flag in ("--system-site-packages", "--without-pip", "--copies", "--symlinks"):
        passed_on.add_argument(flag, dest="passed_on", action="append_const", const=flag, default=[])
    passed_on.add_argument("--prompt")


def main(options: Namespace, context: Context) -> int:
    """Run the verb; on return its exit status."""
    for name in options.requirements:
        if "://" not in name and not os.path.exists(name):
            raise UsageError(f"there is no requirements file `{name}`")
    command = _Command(options, context)
    try:
        while not command.is_complete():
            command.chosen()  # before a lock is taken
            with suppress(FileNotFoundError):  # another command had made the directory, failed, and removed it
                command.make()
    except NotMade as error:
        if error.output and sys.stderr is not None:
            with suppress(OSError):
                print(error.output, file=sys.stderr, flush=True)
        raise
    return _install(options, context) if options.requirements else 0


class _Command:
    """One command, until the environment exists."""

    def __init__(self, options: Namespace, context: Context) -> None:
        self._context = context
        # Scripts name the directory as the user does, like those of `venv`; locks and moves go by the real path.
        self._shown = Path(os.path.abspath(options.directory))
        self._home = Path(os.path.realpath(options.directory))
        self._is_cleared: bool = options.clear
        self._named: str | None = options.python
        prompt = self._shown.name if options.prompt is None else options.prompt
        self._passed_on = [*options.passed_on, "--prompt", prompt]
        self._python: Interpreter | None = None

    def chosen(self) -> Interpreter:
        """The Python of a new environment; it is asked once."""
        if self._python is None:
            self._python = Interpreter.ask(sys.executable) if self._named is None else Interpreter.find(self._named)
        return self._python

    def is_complete(self) -> bool:
        """Whether the environment exists, cleared if that is asked for; raises an error if it never can."""
        trees = trees_of(str(self._home)) if self._home.is_dir() else []
        for tree in filter(state_directory.has_journal, trees):
            # Undo a change of the environment whose process was killed.
            self._context.environment([str(tree)]).read(lambda: None)
        if virtual.is_moving(self._home) or not virtual.is_configured(self._home):
            return False
        found, again = virtual.look(self._home), "Make it anew with `--clear`"
        if self._is_cleared:
            if os.path.realpath(sys.prefix) == str(self._home):
                mine = f"`{self._shown}` is the environment that this safe-pip runs from"
                raise UsageError(f"{mine}: clear it from another")
            with virtual.made_aside(self._home, self.chosen().executable, self._passed_on) as aside:
                virtual.exchange(aside, self._home, trees_of(str(self._home)), self._context)
        elif found is None:
            raise UnusableEnvironment(f"`{self._shown}` is a virtual environment that does not work", hint=again)
        elif self._named is not None and found.installation != self.chosen().installation:
            raise OtherPython(f"`{self._shown}` is an environment of {found.label}, not of `{self._named}`", hint=again)
        virtual.sweep(self._home)
        return True

    def make(self) -> None:
        """Make the environment, or wait until another command has."""
        with self._context.environment([]).making(self._home):
            virtual.finish(self._home)
            virtual.sweep(self._home)
            if virtual.is_configured(self._home):
                return
            if not all(name.startswith(virtual.OURS) for name in os.listdir(self._home)):
                raise UnusableEnvironment(
                    f"`{self._shown}` is not a virtual environment, and not empty", hint="Choose another directory"
                )
            with virtual.made_aside(self._home, self.chosen().executable, self._passed_on) as aside:
                virtual.put(aside, self._home)


def _install(options: Namespace, context: Context) -> int:
    """Run `safe-pip install` for the environment; on return its exit status."""
    command = [sys.executable, RUNNER, "--python", str(python_of(Path(options.directory))), "install"]
    command += [word for name in options.requirements for word in ("-r", name)]
    misleading = {f"PIP_{name}" for name in MISLEADING}
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    status = subprocess.run(command, env=kept | context.settings.for_child(), check=False).returncode
    if status != 0:
        say(f"error: the environment `{options.directory}` exists, without what could not be installed")
    return status if status >= 0 else 128 - status
