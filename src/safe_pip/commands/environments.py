"""Which environment an own verb looks at: this Python's, or the one that `--env` names."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safe_pip.commands.run import located
from safe_pip.environment.environment import Environment, Waiting
from safe_pip.errors import UnusableEnvironment, UsageError
from safe_pip.launch import isolation
from safe_pip.locking import order

_LIBRARY = re.compile(r"(python|pypy)[\d.]*t?")


@dataclass(frozen=True)
class Options:
    """What stands on the command line of a verb that looks at one environment."""

    env: str | None = None
    flags: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, verb: str, args: list[str], known: frozenset[str]) -> Options:
        """Take the options; `known` are those without a value. Raises `UsageError`."""
        env, flags, words = None, set[str](), list(args)
        while words:
            word = words.pop(0)
            name, has_value, value = word.partition("=")
            if name == "--env":
                if not has_value and not words:
                    raise UsageError("`--env` needs a value", hint=f"See `safe-pip {verb} --help`")
                env = value if has_value else words.pop(0)
            elif word in ("--help", "-h"):
                flags.add("--help")
            elif word in known:
                flags.add(word)
            else:
                what = "option" if word.startswith("-") else "argument"
                raise UsageError(f"`safe-pip {verb}` has no {what} `{word}`", hint=f"See `safe-pip {verb} --help`")
        return cls(env, frozenset(flags))


@dataclass(frozen=True)
class Place:
    """One environment: its trees, those of this user's Python first."""

    environments: Callable[[Sequence[str]], Environment]
    environment: Environment
    trees: tuple[Path, ...]
    named: str | None = None

    @classmethod
    def find(cls, named: str | None, waiting: Waiting, timeout: float | None) -> Place:
        """The environment that `--env` names, or this Python's; raises `UnusableEnvironment` if there is none."""
        path = isolation.environment_path
        if named is not None:
            trees = located(named) or [Path(os.path.realpath(named))]
            if not trees[0].is_dir():
                raise UnusableEnvironment(f"`{named}` does not exist")
            path = tuple(map(str, trees))
        environments = partial(Environment, stdlib=isolation.standard_library(), waiting=waiting, timeout=timeout)
        environment = environments(path)
        return cls(environments, environment, tuple(environment.trees()), named)

    def scripts(self) -> dict[Path, Path]:
        """The directory that the scripts of each tree are in."""
        own = set[Path]() if self.named is not None else _own()
        return {tree: Path(sysconfig.get_path("scripts")) if tree in own else scripts_of(tree) for tree in self.trees}

    def home(self, tree: Path) -> Path | None:
        """The virtual environment that a tree belongs to (PEP 405)."""
        shown = order.shown_name(tree)
        return None if shown == tree else shown

    def interpreters(self, scripts: Path) -> list[str]:
        """The Pythons of this environment, as far as they are known; no link is followed."""
        names = ["python.exe"] if sys.platform == "win32" else ["python", "python3"]
        found = [os.path.join(scripts, name) for name in names]
        if self.named is None:
            found.append(sys.executable)
        else:
            found.append(os.path.abspath(self.named))
        return [path for path in found if path and os.path.isfile(path)]

    def installing(self, tree: Path) -> tuple[list[str], list[str]] | None:
        """The options of pip, before and behind `install`, that install into `tree`; None where it does not."""
        if self.named is None:
            if tree in _own():
                return [], ["--no-user"]
            return ([], ["--user"]) if tree == _user_site() else None
        home, path = self.home(tree), Path(os.path.abspath(self.named))
        if home is not None or path.is_file():
            return ["--python", str(home or path)], []
        if tree.name not in ("site-packages", "dist-packages"):
            return [], ["--target", str(tree), "--upgrade"]
        python = self.interpreters(scripts_of(tree))[:1]
        return (["--python", *python], []) if python and os.path.isfile(python[0]) and path != tree else None


def _own() -> set[Path]:
    """The trees that this Python's pip installs into."""
    return {Path(os.path.realpath(sysconfig.get_path(name))) for name in ("purelib", "platlib")}


def _user_site() -> Path | None:
    site: Any = sys.modules.get("site")
    user = getattr(site, "USER_SITE", None)
    return Path(os.path.realpath(user)) if user else None


def scripts_of(tree: Path) -> Path:
    """Where the scripts of a tree are, by the schemes of `sysconfig`; of a `--target` directory, in it."""
    name = "Scripts" if sys.platform == "win32" else "bin"
    if tree.name not in ("site-packages", "dist-packages"):
        return tree / name
    library = tree.parent
    return (library.parent.parent if _LIBRARY.fullmatch(library.name) else library.parent) / name
