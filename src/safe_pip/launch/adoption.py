"""An adopted environment: in it `pip` and `python -m pip` are safe-pip, by one `.pth` file in its tree.

The interpreter reads that file at every start (docs.python.org, `site`). Its one line looks at the last word that the
interpreter was started with; only if that may be pip's does it run the rest, which is the text of `_hook.py`.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment

NAME = "safe-pip-adopted.pth"
_HEAD = "# `pip` and `python -m pip` are safe-pip here. For plain pip: `safe-pip unadopt`, or delete this file."
_RUNNER = "_runner.py"
_PACKAGE = Path(os.path.abspath(__file__)).parents[1]


class Adoption(NamedTuple):
    """An adopted environment: the file NAME in `tree` names the safe-pip package at `home`."""

    tree: Path
    home: Path

    @property
    def file(self) -> Path:
        return self.tree / NAME

    @property
    def works(self) -> bool:
        """Whether safe-pip is there; see `_hook.py` for what pip does if not."""
        return os.access(self.home / _RUNNER, os.R_OK)

    def told(self) -> str:
        """A phrase for the user."""
        where = f"`pip` is safe-pip, of `{self.home}`"
        if self.works:
            return where
        is_damaged = any(self.home.parent.glob("parallel_safe_pip-*.dist-info"))
        then = f"pip refuses to run until `{self.file}` is deleted" if is_damaged else "`pip` is plain pip"
        return f"{where}, which is gone: {then}"

    def content(self) -> bytes:
        """What the file contains. A safe-pip in the tree is named relative to it, so that the tree can be moved."""
        home = os.path.relpath(self.home, self.tree) if self.home.is_relative_to(self.tree) else str(self.home)
        hook = (_PACKAGE / "_hook.py").read_text(encoding="utf-8") + "\n\nbegin(TREE, HOME, NAME)\n"
        names = f"{{'TREE': sitedir, 'HOME': {home!a}, 'NAME': {NAME!a}}}"
        # Before Python 3.10 there is no `orig_argv`, so nothing happens.
        is_likely = "'pip' in str(getattr(sys, 'orig_argv', [])[-len(sys.argv):][:1])[-20:]"
        line = f"import sys; {is_likely} and exec({hook!a}, {names})"
        return f"{_HEAD}\n# {json.dumps({'format': 1, 'home': home})}\n{line}\n".encode("ascii")


def find(tree: str | Path) -> Adoption | None:
    """The adoption of the environment with this tree; None if it is not adopted.

    Raises `UnusableEnvironment` for a file that cannot be read.
    """
    tree = Path(tree)
    try:
        head, facts, *_ = (tree / NAME).read_text(encoding="utf-8").splitlines()
        home = json.loads(facts.removeprefix("# "))["home"]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, LookupError, TypeError):
        return None
    except OSError as error:
        raise UnusableEnvironment(f"`{tree / NAME}` cannot be read: {error.strerror}") from error
    return Adoption(tree, tree / home) if head == _HEAD else None


def wanted(tree: Path) -> Adoption:
    """The adoption that `adopt` makes: by the safe-pip that is installed in the tree, or else by this one."""
    own = tree / "safe_pip"
    is_own = fs.is_file(own / _RUNNER) or own == _PACKAGE
    return Adoption(tree, own if is_own else _PACKAGE)
