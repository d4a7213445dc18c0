"""safe-pip's own verbs as pip's help and completion know them; they are run before pip is imported."""

from __future__ import annotations

import importlib
from optparse import Values

from pip._internal.cli.base_command import Command


class OwnVerb(Command):
    """A verb of safe-pip's own."""

    ignore_require_venv = True

    def add_options(self) -> None:
        """Take usage and options from the verb's own module."""
        verb = importlib.import_module(f"safe_pip.commands.{self.name}")
        self.parser.usage = f"\n  {verb.USAGE}"
        self.parser.description = verb.__doc__
        for option, text in verb.OPTIONS.items():
            metavar = text.partition("|")[0] if "|" in text else None
            self.cmd_opts.add_option(
                option, help=text.rpartition("|")[2], metavar=metavar, action="store" if metavar else "store_true"
            )
        self.parser.insert_option_group(0, self.cmd_opts)

    def run(self, options: Values, args: list[str]) -> int:
        """Never called: `cli` runs the verb itself."""
        raise AssertionError(f"`{self.name}` was given to pip")
