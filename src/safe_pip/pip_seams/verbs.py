"""safe-pip's own verbs as pip's help and completion know them; they are run before pip is imported."""

from __future__ import annotations

import importlib
from optparse import Values

from pip._internal.cli.base_command import Command

from safe_pip.errors import UsageError


class OwnVerb(Command):
    """A verb of safe-pip's own."""

    ignore_require_venv = True

    def add_options(self) -> None:
        """Add the options that the verb's own parser has."""
        for names, value, text in importlib.import_module("safe_pip.commands.options").listed(self.name):
            known = [name for name in names if self.parser.has_option(name)]
            if not known:
                action = "store" if value else "store_true"
                self.cmd_opts.add_option(*names, metavar=value, action=action, help=text)
        self.parser.insert_option_group(0, self.cmd_opts)

    def run(self, options: Values, args: list[str]) -> int:
        """Refuse: `cli` runs the verb itself, but for one that it took for the value of an option."""
        raise UsageError(f"`{self.name}` stands behind an option that is not written out, or not known here")
