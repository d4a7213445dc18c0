"""`safe-pip adopt` and `safe-pip unadopt`: the `pip` of an environment becomes safe-pip, or pip again.

One file comes or goes, by a transaction like every other change.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from safe_pip import fs
from safe_pip.commands.environments import Context, Place, own_trees, trees_of
from safe_pip.commands.options import Namespace, Parser, tell
from safe_pip.environment.environment import PACKAGES, Target
from safe_pip.errors import StalePlan, UnusableEnvironment
from safe_pip.launch import adoption
from safe_pip.locking import order, state_directory
from safe_pip.merge.plan import Removal

_TRIES = 10
_OLDEST = (3, 10)


def describe(parser: Parser) -> None:
    parser.add_env()
    if parser.prog.endswith(" unadopt"):
        parser.description = """\
Take `safe-pip adopt` back: `pip` and `python -m pip` of the environment are what they were, byte for byte. The command
waits until no build, and no command under `safe-pip run`, uses the environment.
"""
        return
    parser.description = """\
From now on `pip`, `pip3`, `pip3.X` and `python -m pip` of the environment are safe-pip, for programs that call pip
themselves: tox, nox, Makefiles. It stays so when any tool upgrades or reinstalls pip there, and `python -m pip` works
without any pip in the environment. What is installed stays as it is, and so does `import pip`.

The command writes one file, `safe-pip-adopted.pth`, where the environment's distributions are. It starts the safe-pip
that is installed there, or else the one that you run now, which has to stay where it is. If that is uninstalled or
moved, pip is plain pip again, and says so. If it is damaged, pip refuses to run, with status 78, and says what to do.
"""


def main(options: Namespace, context: Context) -> int:
    adopter = Adopter(options.env, context)
    is_adopted = options.verb == "adopt"
    if is_adopted:
        adopter.check()
    for tree in adopter.trees:
        name, found = f"`{order.shown_name(tree)}`", adopter.change(tree, is_adopted=is_adopted)
        if is_adopted:
            tell(f"{name} is adopted already" if found is None else f"Adopted {name}: {found.told()}")
        else:
            tell(f"{name} was not adopted" if found is None else f"{name}: `pip` is pip again")
    return 0


class Adopter:
    def __init__(self, named: str | None, context: Context) -> None:
        """`named` is what `--env` says; raises `UnusableEnvironment` where no interpreter would read the file."""
        self._place = Place.find(named, context)
        self.trees = tuple(own_trees()[:1] if named is None else trees_of(named))
        if not self.trees or any(tree.name not in PACKAGES for tree in self.trees):
            raise UnusableEnvironment(f"`{named}` is not an environment: no Python looks into it when it starts")

    def check(self) -> None:
        """Raise `UnusableEnvironment` where an adoption would do nothing, or another tool looks after the pip."""
        for tree in self.trees:
            version = re.fullmatch(r"python(\d+)\.(\d+)t?", tree.parent.name)
            if version and (int(version[1]), int(version[2])) < _OLDEST:
                raise UnusableEnvironment(f"`{tree}` is of a Python older than {'.'.join(map(str, _OLDEST))}")
            for mark in () if self._place.home(tree) is not None else self._marks(tree):
                if fs.is_file(mark):
                    hint = "Adopt a virtual environment"
                    raise UnusableEnvironment(f"`{tree}` is managed by the system (`{mark}`)", hint=hint)

    def _marks(self, tree: Path) -> Iterator[Path]:
        """Where the mark of an interpreter that uses `tree` would be: beside its standard library (PEP 668)."""
        library = tree.parent
        found = [Path(sysconfig.get_path("stdlib"))] if self._place.named is None else []
        found += [library, Path(sys.base_prefix, "lib", library.name), Path("/usr/lib", library.name)]
        if library.name == "python3":  # all Pythons of Debian use this one
            found += sorted(library.parent.glob("python3.*"))
        return (each / "EXTERNALLY-MANAGED" for each in found)

    def change(self, tree: Path, *, is_adopted: bool) -> adoption.Adoption | None:
        """Adopt the environment of `tree`, or take that back; on return it is so. None: it was so before."""
        for _ in range(_TRIES):
            found, wanted = adoption.find(tree), adoption.wanted(tree)
            is_there = found == wanted and _content(wanted.file) == wanted.content()
            if is_there if is_adopted else found is None:
                return None
            if found is None and os.path.lexists(wanted.file):
                raise UnusableEnvironment(f"`{wanted.file}` was not made by safe-pip", hint="Remove it, then try again")
            if self._commit(tree, wanted.content() if is_adopted else None):
                return wanted if is_adopted else found
        raise StalePlan((), f"`{tree / adoption.NAME}` did not stay the same while this command was at work")

    def _commit(self, tree: Path, content: bytes | None) -> bool:
        """Give the file this content, or remove it; False if another command was faster: look again."""
        file = tree / adoption.NAME
        before = _content(file)
        # A command that makes `.safe-pip` removes it if it is free afterwards: unadopted, all is as it was.
        target = Target((tree,), stateless_trees=() if state_directory.exists(tree) else (tree,))
        transaction = self._place.transaction()
        was_other = False  # by the next look it may be the same again

        def validate(now: object) -> tuple[str, ...]:
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


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
