"""A whole prefix (`bin`, `include`, `lib`, `share` and the site-packages inside) as the target of a command."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip.environment.target import Target
from safe_pip.locking import state_directory

_PATTERNS = ("lib*/python*/*-packages", "lib*/pypy*/*-packages", "Lib/site-packages")
_NAMES = ("site-packages", "dist-packages")


class Prefix(NamedTuple):
    """A prefix as it is now: `path` has no symbolic link in it, `trees` are those below it that hold distributions.

    `environment` are all directories that who uses it finds distributions in, and where a journal may be: the prefix
    itself where it has no tree, or had none once and its locks are there still. `is_shipped`: whether it is no
    environment but a tree that is packed and shipped, so that nothing of ours stays in it.
    """

    path: Path
    trees: tuple[Path, ...]
    environment: tuple[str, ...]
    is_virtual: bool
    is_shipped: bool

    @classmethod
    def at(cls, path: Path, own: Sequence[Path] = (), environment: Sequence[str] = ()) -> "Prefix":
        """The prefix at `path`, which need not exist. Of this Python's: its `own` trees, and its environment path."""
        real = Path(os.path.realpath(path))
        inside = [tree for tree in own if tree.is_dir() and tree.is_relative_to(real)]
        trees = tuple(dict.fromkeys([*inside, *trees_below(real)]))
        is_virtual = (real / "pyvenv.cfg").is_file()
        is_used = is_virtual or bool(inside) or any(real.glob("bin/python3*"))
        read = tuple(environment) or tuple(map(str, trees))
        is_home = not trees or state_directory.has_locks(real)
        return cls(real, trees, (*read, str(real)) if is_home else read, is_virtual, not is_used)

    @property
    def target(self) -> Target:
        """What is locked: its trees, as for an install; and unless it is a virtual environment the prefix itself.

        Where there is no tree the prefix stands for one. As long as somebody's journal may be there it is a tree beside
        the others.
        """
        is_home = str(self.path) in self.environment
        trees = (*self.trees, self.path) if is_home else self.trees
        shared = () if self.is_virtual and self.trees else (self.path, self.path / "bin")
        return Target(
            trees,
            tuple(Path(each) for each in dict.fromkeys(map(os.path.realpath, shared)) if os.path.isdir(each)),
            self.path / ".lock",
            litter=self.is_shipped,
            bare=(self.path,) if is_home else (),
        )

    @property
    def litter(self) -> tuple[Path, ...]:
        """Where no state directory is to stay: the prefix too, which others may have had for one without a tree."""
        return (*(self.trees if self.is_shipped else ()), self.path)

    def is_tree(self, path: str) -> bool:
        """Whether a directory (its real path) is one of the trees, or will be once it is there."""
        if any(str(tree) == path for tree in self.trees):
            return True
        below = Path(path)
        return below.is_relative_to(self.path) and any(
            below.relative_to(self.path).match(pattern) and below.name in _NAMES for pattern in _PATTERNS
        )


def trees_below(prefix: Path) -> list[Path]:
    """The directories below a prefix that hold distributions, by the schemes of `sysconfig`; resolved, each once."""
    found = [path for pattern in _PATTERNS for path in sorted(prefix.glob(pattern))]
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in found if path.name in _NAMES))
