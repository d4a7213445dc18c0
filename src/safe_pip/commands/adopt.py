"""`safe-pip adopt`: from now on the `pip` of an environment is safe-pip."""

from __future__ import annotations

from safe_pip.commands.adopting import Adopting, shown
from safe_pip.commands.environments import Options
from safe_pip.environment.environment import Waiting

HELP = """\
Usage:
  safe-pip adopt [--env DIR]

Description:
  From now on `pip`, `pip3`, `pip3.X` and `python -m pip` of the environment are safe-pip, for programs that call pip
  themselves: tox, nox, Makefiles. It stays so when pip is upgraded or reinstalled there, by whatever means, and
  `python -m pip` works without any pip in the environment. What is installed stays as it is, and so does `import pip`.

  One file is written, `safe-pip-adopted.pth`, where the environment's distributions are. The safe-pip that is run is
  the one that is installed there, or else the one that you are running now: it has to stay where it is. If it goes,
  pip refuses to run, with status 78, and says what to do.

Options:
  --env DIR               The environment: a virtual environment, its Python, or a prefix. (default: this Python's
                          environment)
"""


def main(args: list[str], *, waiting: Waiting, timeout: float | None) -> int:
    """Run the verb; on return its exit status."""
    options = Options.parse("adopt", args, frozenset())
    if "--help" in options.flags:
        print(HELP, end="")
        return 0
    adopting = Adopting(options.env, waiting, timeout)
    adopting.check()
    for tree in adopting.trees:
        found = adopting.adopt(tree)
        print(f"{shown(tree)} is adopted already" if found is None else f"Adopted {shown(tree)}: {found.told()}")
    return 0
