"""`safe-pip unadopt`: the `pip` of an environment is pip again."""

from __future__ import annotations

from safe_pip.commands.adopting import Adopting, shown
from safe_pip.commands.environments import Options
from safe_pip.environment.environment import Waiting

HELP = """\
Usage:
  safe-pip unadopt [--env DIR]

Description:
  Take `safe-pip adopt` back: `pip` and `python -m pip` of the environment are what they were, byte for byte. It waits
  until nobody builds, or runs a command under `safe-pip run`, in the environment.

Options:
  --env DIR               The environment: a virtual environment, its Python, or a prefix. (default: this Python's
                          environment)
"""


def main(args: list[str], *, waiting: Waiting, timeout: float | None) -> int:
    """Run the verb; on return its exit status."""
    options = Options.parse("unadopt", args, frozenset())
    if "--help" in options.flags:
        print(HELP, end="")
        return 0
    adopting = Adopting(options.env, waiting, timeout)
    for tree in adopting.trees:
        found = adopting.unadopt(tree)
        print(f"{shown(tree)} was not adopted" if found is None else f"{shown(tree)}: `pip` is pip again")
    return 0
