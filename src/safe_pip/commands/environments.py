"""What `--env`, `--into`, `--python` and VIRTUAL_ENV mean: the environment, prefix or Python that a verb is about."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from safe_pip import fs
from safe_pip.environment.environment import PACKAGES, Environment, Prefix, Target, resolved, trees_below
from safe_pip.environment.required import required
from safe_pip.environment.snapshot import Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import StalePlan, UnusableEnvironment
from safe_pip.launch import isolation
from safe_pip.launch.settings import Settings
from safe_pip.locking import order, state_directory
from safe_pip.locking.waiting import Waiting
from safe_pip.records import canonical

MISLEADING = ("TARGET", "PREFIX", "ROOT", "USER", "PYTHON", "DRY_RUN", "REPORT", "REQUIREMENT", "EDITABLE", "GROUP")
"""The variables of pip (after `PIP_`) that send an install elsewhere, or let it install something else or nothing."""

T = TypeVar("T")
_ATTEMPTS = 10
_LIBRARY = re.compile(r"(python|pypy)[\d.]*t?")
_SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
_PYTHON = "python.exe" if sys.platform == "win32" else "python"
_QUESTION = """
import json, os, sys, sysconfig
name, version = sys.implementation.name, ".".join(map(str, sys.version_info[:3]))
print(json.dumps([
    ("Python" if name == "cpython" else name) + " " + version,
    [name, version, getattr(sys, "abiflags", ""), os.path.realpath(sys.base_prefix)],
    *(sysconfig.get_path(name) for name in ("data", "purelib", "platlib")),
]))
"""


@dataclass(frozen=True)
class Context:
    """What a verb runs with. `waiting` shows a wait for a lock."""

    settings: Settings
    waiting: Waiting

    def environment(self, path: Sequence[str]) -> Environment:
        """The environment whose distributions lie in the directories of `path`."""
        timeout = self.settings.lock_timeout
        return Environment(path, stdlib=isolation.standard_library(), waiting=self.waiting, timeout=timeout)

    def transaction(self, path: Sequence[str]) -> Transaction:
        return Transaction(self.environment, tuple(path), durable=self.settings.durable)


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter says of itself; `installation` tells whether two are of one installation, in one version."""

    executable: str
    label: str
    installation: list[str]
    prefix: str
    purelib: str
    platlib: str

    @classmethod
    def ask(cls, executable: str | os.PathLike[str]) -> Interpreter:
        """Start it and ask; raises `UnusableEnvironment` if it gives no answer."""
        command = [os.fspath(executable), "-I", "-c", _QUESTION]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            return cls(command[0], *json.loads(done.stdout))
        except (OSError, ValueError, TypeError) as error:
            raise UnusableEnvironment(f"`{command[0]}` is not a Python interpreter that runs") from error

    @classmethod
    def find(cls, named: str) -> Interpreter:
        """The interpreter with this path, environment, or name on PATH; raises `UnusableEnvironment` for none."""
        if fs.is_directory(named):
            return cls.ask(python_of(Path(named)))
        path = os.path.abspath(named) if os.path.dirname(named) else shutil.which(named)
        if path is None:
            raise UnusableEnvironment(f"`{named}` is neither a Python interpreter nor the name of one on PATH")
        return cls.ask(path)


@dataclass(frozen=True)
class Place:
    """One environment: its trees, those of this Python first. `named` is what `--env` says; None: this Python's."""

    context: Context
    environment: Environment
    trees: tuple[Path, ...]
    named: str | None = None

    @classmethod
    def find(cls, named: str | None, context: Context) -> Place:
        """The environment that `--env` names, or this Python's; raises `UnusableEnvironment` if there is none."""
        trees = [] if named is None else environment_of(named)
        environment = context.environment([*map(str, trees)] or own_path())
        return cls(context, environment, tuple(environment.trees()), named)

    def scripts(self) -> dict[Path, Path]:
        """The directory that the scripts of each tree are in."""
        own = set[Path]() if self.named is not None else {*own_trees()}
        return {tree: Path(sysconfig.get_path("scripts")) if tree in own else scripts_of(tree) for tree in self.trees}

    def home(self, tree: Path) -> Path | None:
        """The virtual environment that a tree belongs to (PEP 405)."""
        shown = order.shown_name(tree)
        return None if shown == tree else shown


def locked(
    context: Context, env: str | None, lock_dir: str | None = None, *, exclusive: bool, keep: Collection[str] = ()
) -> AbstractContextManager[object]:
    """Hold the lock of an environment, None for this Python's, or of any directory while something else works there.

    With `keep` only the locks of these projects, and of those that they require.
    """
    named = lock_dir or env
    if lock_dir is not None:
        own = trees_of(lock_dir)
    else:
        own = own_trees() if env is None else environment_of(env, "`--lock-dir DIR` locks any directory")
    environment = context.environment(own_path() if named is None else tuple(map(str, own)))
    if named is not None and not own:
        return environment.directory(Path(named), exclusive=exclusive)
    if not exclusive:
        found = Snapshot.take(map(str, environment.trees()) if keep else ())
        for name in keep:
            if not found.identity(canonical(name)):
                where = order.shown_name(own[0]) if own else "this environment"
                raise UnusableEnvironment(f"`{name}` is not installed in `{where}`, so it cannot be kept")
        return environment.keeping(required(keep, found))
    if named is None and not any(os.access(tree, os.W_OK) for tree in own):
        # What this user installs goes to a tree that the user can write: the user site.
        own = [tree for tree in environment.trees() if os.access(tree, os.W_OK)] or own
    # A command may be about to make another tree in a prefix that is named.
    containers = (Path(named),) if named is not None and os.path.isdir(named) else ()
    return environment.occupying(Target(tuple(own), containers=containers))


def own_path() -> Sequence[str]:
    """Where this Python finds distributions. A program that imports safe-pip may have put anything on `sys.path`."""
    found = (entry for entry in sys.path if os.path.basename(entry) in PACKAGES)
    return isolation.environment_path or (*map(str, own_trees()), *found)


def own_trees() -> list[Path]:
    """The trees that this Python's pip installs into."""
    return resolved(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))


def environment_of(named: str, hint: str = "Name a virtual environment, its Python, or a prefix") -> list[Path]:
    """The trees of the environment that `named` means; raises `UnusableEnvironment` if it is none."""
    if found := trees_of(named):
        return found
    what = "does not exist" if fs.look(named) is None else "is not an environment: it has no site-packages"
    raise UnusableEnvironment(f"`{named}` {what}", hint=hint)


def trees_of(named: str) -> list[Path]:
    """The trees of the environment that `named` means, none for just a directory. Raises `UnusableEnvironment`."""
    path = Path(os.path.abspath(named))  # an interpreter in a venv is a symbolic link that must not be followed
    if fs.is_directory(path):
        if path.name in PACKAGES:
            return resolved([path])
        # A prefix may have a state directory beside those of its trees, while a merge is at work or unfinished.
        if below := trees_below(path):
            return resolved([*below, path] if state_directory.has_locks(path) else below)
        # Without flock the directory of a virtual environment is locked by a file too, while that is made.
        is_tree = state_directory.exists(path) or any(name.endswith(".dist-info") for name in fs.names(path))
        return resolved([path]) if is_tree and not fs.is_file(path / "pyvenv.cfg") else []
    if fs.is_file(path) and os.access(path, os.X_OK):
        prefix = path.parent.parent
        if fs.is_file(prefix / "pyvenv.cfg") and (below := trees_below(prefix)):
            return below
        found = Interpreter.ask(path)
        return resolved([Path(found.purelib), Path(found.platlib)])
    if fs.is_no_directory(path):
        raise UnusableEnvironment(f"`{named}` is neither a directory nor an interpreter")
    return []


def prefix_finder(into: str | None, env: str | None = None) -> Callable[[], Prefix]:
    """A function that finds the prefix of `--into`, of `--env` or of this Python. Raises `UnusableEnvironment`."""
    path = Path(os.path.abspath(into or env or sysconfig.get_path("data")))
    if into is None and not fs.is_directory(path):
        path = Path(Interpreter.find(str(path)).prefix)
    elif into is None and env is not None and not trees_below(path):
        raise UnusableEnvironment(f"`{env}` is not an environment", hint="`--into PREFIX` takes any directory")
    if fs.is_no_directory(path):
        raise UnusableEnvironment(f"`{path}` is not a directory")
    real = Path(os.path.realpath(path))
    inside = [tree for tree in own_trees() if tree.is_relative_to(real)]
    return partial(Prefix.at, real, inside, isolation.environment_path if inside else ())


def scripts_of(tree: Path) -> Path:
    """Where the scripts of a tree are, by the schemes of `sysconfig`; of a `--target` directory, in it."""
    if tree.name not in PACKAGES:
        return tree / _SCRIPTS
    library = tree.parent
    return scripts_below(library.parent.parent if _LIBRARY.fullmatch(library.name) else library.parent)


def scripts_below(prefix: Path) -> Path:
    return prefix / _SCRIPTS


def python_of(prefix: Path) -> Path:
    return scripts_below(prefix) / _PYTHON


def until_current(attempt: Callable[[], T]) -> T:
    """Call `attempt`, again whenever the environment changes meanwhile; at last raises `StalePlan`."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(StalePlan):
            return attempt()
    return attempt()


def state_of(path: str) -> tuple[int, ...] | None:
    """What tells whether a file was changed or replaced; None if there is none."""
    try:
        return state(os.lstat(path))
    except OSError:
        return None


def state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns
