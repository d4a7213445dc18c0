"""Whether what an install adds would hide anything that is there, or be hidden by it: then it does not only add."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from safe_pip.environment.snapshot import Snapshot


def hides(staged: Mapping[Path, Collection[str]], looked_at: Iterable[Path], projects: Iterable[str]) -> bool:
    """Whether one of `projects` is there already, or a module of the name of one that is staged.

    Such a module, in its tree or in another one, would not be found any more, or hide the new one. `staged` is what
    each tree gets directly below it; `looked_at` are the trees as they are now.
    """
    trees = [tree for tree in dict.fromkeys(looked_at) if tree.is_dir()]
    there = Snapshot.take(map(str, trees))
    if any(map(there.identity, projects)):
        return True
    modules = {name.partition(".")[0] for names in staged.values() for name in names}
    return any(
        name.partition(".")[0] in modules and name not in staged.get(tree, ())
        for tree in trees
        for name in _names(tree)
    )


def _names(tree: Path) -> list[str]:
    """What is in a tree; nothing where nobody could import from it either: it is gone, or not to be read."""
    try:
        return os.listdir(tree)
    except OSError:
        return []
