"""Adopting an environment and taking that back: one file comes or goes, by the same transactions as every other."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from safe_pip.commands.environments import Place
from safe_pip.commands.run import located
from safe_pip.environment.environment import Target, Waiting
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import StalePlan, UnusableEnvironment
from safe_pip.launch import adoption
from safe_pip.locking import order, state_directory
from safe_pip.merge.plan import Removal

_TRIES = 10
_OLDEST = (3, 10)
_MARK = "EXTERNALLY-MANAGED"


class Adopting:
    """One environment that is to be adopted, or no longer to be."""

    def __init__(self, named: str | None, waiting: Waiting, timeout: float | None) -> None:
        """`named` is what `--env` says; raises `UnusableEnvironment` where no interpreter would read the file."""
        self._place = Place.find(named, waiting, timeout)
        own = [Path(os.path.realpath(sysconfig.get_path("purelib")))]
        self.trees = tuple(own if named is None else located(named))
        if not self.trees or any(tree.name not in ("site-packages", "dist-packages") for tree in self.trees):
            raise UnusableEnvironment(f"`{named}` is no environment: no Python looks into it when it starts")

    def check(self) -> None:
        """Raise `UnusableEnvironment` where an adoption would do nothing, or another tool looks after the pip."""
        for tree in self.trees:
            version = re.fullmatch(r"python(\d+)\.(\d+)t?", tree.parent.name)
            if version and (int(version[1]), int(version[2])) < _OLDEST:
                raise UnusableEnvironment(f"`{tree}` is of a Python older than {'.'.join(map(str, _OLDEST))}")
            if self._place.home(tree) is None:
                for directory in self._libraries(tree):
                    if (directory / _MARK).is_file():
                        raise UnusableEnvironment(
                            f"`{tree}` is managed by the system (`{directory / _MARK}`)",
                            hint="Adopt a virtual environment",
                        )

    def _libraries(self, tree: Path) -> Iterator[Path]:
        """Where the mark of an interpreter that uses `tree` would be: beside its standard library (PEP 668)."""
        if self._place.named is None:
            yield Path(sysconfig.get_path("stdlib"))
        yield tree.parent
        yield Path(sys.base_prefix, "lib", tree.parent.name)
        yield Path("/usr/lib", tree.parent.name)
        if tree.parent.name == "python3":  # Debian's, which all its Pythons use
            yield from sorted(tree.parent.parent.glob("python3.*"))

    def adopt(self, tree: Path) -> adoption.Adoption | None:
        """Adopt the environment of `tree`; on return it is. None: it was already."""
        for _ in range(_TRIES):
            found, wanted = adoption.find(tree), adoption.wanted(tree)
            if found == wanted and found.file.read_bytes() == wanted.content():
                return None
            if found is None and os.path.lexists(wanted.file):
                raise UnusableEnvironment(f"`{wanted.file}` was not made by safe-pip", hint="Remove it, then try again")
            if self._commit(tree, wanted.content()):
                return wanted
        raise StalePlan((), f"`{wanted.file}` did not stay the same while it was written")

    def unadopt(self, tree: Path) -> adoption.Adoption | None:
        """Take the adoption back; on return the environment of `tree` is not adopted. None: it was not before."""
        for _ in range(_TRIES):
            found = adoption.find(tree)
            if found is None or self._commit(tree, None):
                return found
        raise StalePlan((), f"`{tree / adoption.NAME}` did not stay the same while it was removed")

    def _commit(self, tree: Path, content: bytes | None) -> bool:
        """Give the file this content, or remove it; False if somebody else was faster: look again."""
        file = tree / adoption.NAME
        before = _content(file)
        # Who brings `.safe-pip` takes it away again, if nobody uses it by then: unadopted, all is as it was.
        target = Target((tree,), stateless_trees=() if state_directory.exists(tree) else (tree,))
        transaction = Transaction(self._place.environments, tuple(map(str, self._place.trees)))
        was_other = False  # by the time of a look after that it may be the same again

        def validate(now: object) -> Iterable[str]:
            nonlocal was_other
            if _content(file) != before:
                was_other = True
                raise StalePlan(())
            return ()

        try:
            with transaction.staging(target) as change:
                if content is not None:
                    change.put(str(file), content)
                elif before is not None:
                    change.remove(Removal(f"`{file}`", tree, frozenset((str(file),))))
                transaction.commit(change, validate)
        except StalePlan:
            if not was_other and _content(file) == before:
                raise
            return False
        return True


def shown(tree: Path) -> str:
    """What to call the environment of a tree."""
    return f"`{order.shown_name(tree)}`"


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
