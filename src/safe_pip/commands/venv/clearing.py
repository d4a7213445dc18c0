"""`venv --clear`: a whole environment replaced by one that was made aside, in one transaction.

Its trees stay what they are, with their locks: who holds one, or waits for it, goes on in the new environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from safe_pip import fs
from safe_pip.fs import space
from safe_pip.locking import state_directory
from safe_pip.environment.environment import Environment, Target
from safe_pip.fs import Directory
from safe_pip.commands.venv.interpreter import Interpreter, python_of
from safe_pip.merge.plan import Removal
from safe_pip.environment.transaction import Transaction
from safe_pip.commands.venv.virtual import OURS

UV_LOCK = ".lock"


def exchange(aside: Path, home: Path, trees: Sequence[Path], environment: Callable[..., Environment]) -> None:
    """Replace all that is in `home`, whose trees these are, by what is in `aside`, a private directory in `home`.

    `environment` makes the environment of some trees. On return nothing else is in `home`, and no lock is held. If it
    raises nothing was changed; after a crash nothing was as soon as the next command has met the journal.
    """
    new = home / os.path.relpath(Interpreter.ask(python_of(aside)).purelib, os.path.realpath(aside))
    trees = tuple(trees) or (new,)
    own, empty = environment(*trees), list(_empty(aside))
    # Every step of the transaction finds the locks held that it asks for.
    transaction = Transaction(lambda path: own, tuple(map(str, trees)))
    target = Target(trees, uv_lock=home / UV_LOCK)
    with transaction.staging(target) as change:
        change.mirror(str(home))
        _stage(aside, Path(change.staged(str(home))))
        with own.replacing(target):
            # Listed now: nobody adds anything any more.
            change.remove(Removal("what was there", trees[0], frozenset(_contents(home, trees))))
            transaction.commit(change, lambda now: ())
    for path in empty:
        with suppress(OSError):  # nobody needs them
            fs.make_directories(home / path)
    for tree in trees:
        if tree != new:
            _remove_tree(tree, environment(tree))


def _empty(aside: Path) -> Iterator[str]:
    """The empty directories in `aside`, relative to it: a transaction is about files."""
    for path, directories, files in os.walk(aside):
        if not directories and not files:
            yield os.path.relpath(path, aside)


def _stage(aside: Path, stage: Path) -> None:
    with space.staging(str(aside)), Directory.open(aside) as made, Directory.open(stage) as staged:
        for name in made.names():
            fs.move(made, name, staged, name)


def _contents(home: Path, trees: Sequence[Path]) -> Iterator[str]:
    """Everything in `home` but the trees, what they lie in, and what is ours."""
    kept = {home, *trees, *(above for tree in trees for above in tree.parents)}
    waiting = [home]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = directory / entry.name
                if path in kept and entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif not (directory in (home, *trees) and entry.name.startswith(OURS)) and path != home / UV_LOCK:
                    yield str(path)


def _remove_tree(tree: Path, own: Environment) -> None:
    """Remove the empty tree of a Python that the environment is not of any more, with what it lies in."""
    with own.replacing(Target((tree,), stateless_trees=(tree,))):
        pass
    if not state_directory.exists(tree):
        fs.remove_empty_directories([tree.parent, tree])
