"""safe-pip's own verbs as pip's help and completion know them; they are run before pip is imported."""

from __future__ import annotations

import importlib
import re
from optparse import Values

from pip._internal.cli.base_command import Command


class OwnVerb(Command):
    """A verb of safe-pip's own."""

    ignore_require_venv = True

    def add_options(self) -> None:
        """Take the options from the verb's own help."""
        text: str = importlib.import_module(f"safe_pip.commands.{self.name}").HELP
        for option, value in re.findall(r"^  (--[a-z-]+)(?: ([A-Z]+))?  ", text, re.MULTILINE):
            self.cmd_opts.add_option(option, metavar=value or None, action="store" if value else "store_true")
        self.parser.insert_option_group(0, self.cmd_opts)

    def run(self, options: Values, args: list[str]) -> int:
        """Never called: `cli` runs the verb itself."""
        raise AssertionError(f"`{self.name}` was given to pip")
