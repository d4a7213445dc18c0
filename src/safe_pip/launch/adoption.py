"""An adopted environment: in it `pip` and `python -m pip` are safe-pip, by a file in its tree that names the safe-pip.

The interpreter reads that file at every start (docs.python.org, `site`). Its one line looks at the last word that the
interpreter was started with; only if that may be pip's does it run the rest, which is the text of `_hook.py`. Python
3.18 and newer run the same line as a function of a module, which a `.start` file names. Without the first file nothing
happens.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment

NAME = "safe-pip-adopted.pth"
# The module's name makes a commit put it in before the file that names it, and take it away after that.
_MODULE, _START = "_safe_pip_adopted", "safe-pip-adopted.start"
_NAMES = (NAME, _START, f"{_MODULE}.py")
_RUNS_NO_LINE = (3, 18)  # and reads `.start` files, as 3.15 does
_HEAD = "# `pip` and `python -m pip` are safe-pip here. For plain pip: `safe-pip unadopt`, or delete this file."
_RUNNER = "_runner.py"
_PACKAGE = Path(os.path.abspath(__file__)).parents[1]


class Adoption(NamedTuple):
    """An adopted environment: the file NAME in `tree` names the safe-pip package at `home`.

    `pip` is the directory of the pip that this safe-pip runs, if that is neither in the tree nor beside safe-pip.
    """

    tree: Path
    home: Path
    pip: Path | None = None

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

    def content(self) -> dict[str, bytes]:
        """What each file contains. A safe-pip in the tree is named relative to it, so that the tree can be moved.

        A tree that serves several versions of Python has what each of them runs.
        """
        home = os.path.relpath(self.home, self.tree) if self.home.is_relative_to(self.tree) else str(self.home)
        hook = (_PACKAGE / "_hook.py").read_text(encoding="utf-8") + "\n\nbegin(TREE, HOME, NAME)\n"
        names = f"{{'TREE': sitedir, 'HOME': {home!a}, 'NAME': {NAME!a}}}"
        # Before Python 3.10 there is no `orig_argv`, so nothing happens.
        is_likely = "'pip' in str(getattr(sys, 'orig_argv', [])[-len(sys.argv):][:1])[-20:]"
        line = f"import sys; {is_likely} and exec({hook!a}, {names})"
        texts = (
            f"# {json.dumps({'format': 1, 'home': home, **({'pip': str(self.pip)} if self.pip else {})})}",
            f"{_MODULE}:start",
            f"import os\n\ndef start(sitedir=os.path.dirname(__file__)):\n    {line}",
        )
        found = dict(zip(_NAMES, texts, strict=True))
        if (python_of(self.tree) or (0, 0)) < _RUNS_NO_LINE:
            found[NAME] += f"\n{line}"
        return {name: f"{_HEAD}\n{found[name]}\n".encode("ascii") for name in _names(self.tree)}


def python_of(tree: Path) -> tuple[int, int] | None:
    """The version of Python that a tree serves; None if its path does not tell."""
    version = re.fullmatch(r"python(\d+)\.(\d+)t?", tree.parent.name)
    return version and (int(version[1]), int(version[2]))


def _names(tree: Path) -> tuple[str, ...]:
    return _NAMES if (python_of(tree) or _RUNS_NO_LINE) >= _RUNS_NO_LINE else _NAMES[:1]


def contents(tree: Path) -> dict[str, bytes]:
    """What the files of an adoption in `tree` contain, those of other programs left out.

    Raises `UnusableEnvironment` for a file that cannot be read.
    """
    found = {}
    for name in _NAMES:
        try:
            content = (tree / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            raise UnusableEnvironment(f"`{tree / name}` cannot be read: {error.strerror}") from error
        if content.startswith(_HEAD.encode("ascii")):
            found[name] = content
    return found


def find(tree: str | Path) -> Adoption | None:
    """The adoption of the environment with this tree; None if it is not adopted.

    Raises `UnusableEnvironment` for a file that cannot be read.
    """
    tree = Path(tree)
    found = contents(tree)
    try:
        facts = json.loads(found[NAME].splitlines()[1].removeprefix(b"# "))
        made = Adoption(tree, tree / facts["home"], Path(facts["pip"]) if "pip" in facts else None)
    except (ValueError, LookupError, TypeError):
        return None
    return made if found.keys() >= {*_names(tree)} else None


def wanted(tree: Path, pip: Path | None = None) -> Adoption:
    """The adoption that `adopt` makes: by the safe-pip that is installed in the tree, or else by this one.

    `pip` is the directory of the pip that this safe-pip runs; if there is none but in the tree, the one before stays.
    """
    own = tree / "safe_pip"
    is_own = fs.is_file(own / _RUNNER) or own == _PACKAGE
    home = own if is_own else _PACKAGE
    if pip in (None, tree):
        before = find(tree)
        pip = before and before.pip
    return Adoption(tree, home, None if pip == home.parent else pip)
