"""How pip presents itself: its name, its version, the list of commands, completion, and `--python`.

`own_verb` imports what it needs: `--version` and most commands do without.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip.errors import UsageError
from safe_pip.launch.restart import RUNNER
from safe_pip.pip_seams.seam import Seam

COMMANDS = Seam("pip._internal.commands", "commands_dict")
CREATE = Seam("pip._internal.commands", "create_command", ("name",))
RUNNABLE = Seam("pip._internal.cli.main_parser", "get_runnable_pip", ())
VERSIONS = {
    name: Seam(f"pip._internal.{name}", "get_pip_version", ())
    for name in ("cli.main_parser", "commands.install", "commands.debug", "commands.lock")
}
PROGS = {
    name: Seam(f"pip._internal.{name}", "get_prog", ())
    for name in ("cli.base_command", "cli.main_parser", "commands.configuration", "commands.completion")
}
COMPLETION = Seam("pip._internal.commands.completion", "COMPLETION_SCRIPTS")


class Shell(NamedTuple):
    """What the user sees of us in pip's output."""

    origin: Path
    """The `pip` package that the running one was frozen from."""
    prog: str
    verbs: dict[str, str]
    """safe-pip's own verbs, each with its summary."""
    python_variables: dict[str, str]
    """The environment variables of a safe-pip for another interpreter (`--python`)."""

    def attach(self) -> None:
        """Attach to what every command uses; `attach_to` attaches to what one command uses."""
        self._show_origin(VERSIONS["cli.main_parser"])
        PROGS["cli.main_parser"].replace(lambda original: self.prog)
        RUNNABLE.replace(self._runner)
        commands = COMMANDS.check()
        for verb, summary in self.verbs.items():
            commands[verb] = type(commands["install"])(__name__, "own_verb", summary)

    def attach_to_commands(self) -> None:
        """Attach to what every command shows. `--version`, `--help` and errors import none of it."""
        PROGS["cli.base_command"].replace(lambda original: self.prog)

    def attach_to(self, command: str) -> None:
        """Attach to what pip's `command` shows by itself."""
        module = f"commands.{'configuration' if command == 'config' else command}"
        if module in VERSIONS:
            self._show_origin(VERSIONS[module])
        if module in PROGS:
            PROGS[module].replace(lambda original: self.prog)
        if command == "completion":
            scripts = COMPLETION.check()
            for shell, script in scripts.items():
                scripts[shell] = _completing_us(script)

    def _show_origin(self, seam: Seam) -> None:
        def version(original: Any) -> str:
            line: str = original()
            head, _, tail = line.partition(" from ")
            return f"{head} from {self.origin} {tail[tail.rindex('(') :]}"

        seam.replace(version)

    def _runner(self, original: Any) -> str:
        os.environ.update(self.python_variables)
        return RUNNER


def own_verb(name: str, summary: str, **options: Any) -> Any:
    """One of safe-pip's own verbs as a command of pip, for help and completion. `cli` runs the verb itself."""
    from pip._internal.cli.base_command import Command

    class OwnVerb(Command):
        ignore_require_venv = True

        def add_options(self) -> None:
            for names, value, text in importlib.import_module("safe_pip.commands.options").listed(name):
                if not any(map(self.parser.has_option, names)):
                    action = "store" if value else "store_true"
                    self.cmd_opts.add_option(*names, metavar=value, action=action, help=text)
            self.parser.insert_option_group(0, self.cmd_opts)

        def run(self, options: Any, args: list[str]) -> int:
            # `cli` took the verb for the value of an option.
            raise UsageError(f"`{name}` stands behind an option that is not written out, or not known here")

    return OwnVerb(name, summary, **options)


def _completing_us(script: str) -> str:
    """pip's completion script, for the program `safe-pip` and with function names of our own."""
    for theirs, ours in (
        ("_pip_completion", "_safe_pip_completion"),
        ("__fish_complete_pip", "__fish_complete_safe_pip"),
        ("#compdef -P pip[0-9.]#", "#compdef safe-pip"),
        ("compdef __pip -P 'pip[0-9.]#'", "compdef __safe_pip safe-pip"),
        ("__pip ", "__safe_pip "),
        ("__pip()", "__safe_pip()"),
    ):
        script = script.replace(theirs, ours)
    return script


def program() -> str:
    """The name under which this program was called, derived as pip derives its own."""
    directory, name = os.path.split(sys.argv[0])
    if name not in ("__main__.py", "-c", "-m"):
        return name
    return f"{sys.executable} -m {'pip' if os.path.basename(directory) == 'pip' else 'safe_pip'}"
