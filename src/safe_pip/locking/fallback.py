"""Where there is no flock (Windows): one exclusive lock for a whole command, by `filelock`. Untested on Windows.

It is slower, and as safe. Readers hold it too, so a user who cannot write a tree cannot lock it, and the command fails.
A file's existence never means "locked": if `filelock` has no other lock to offer, the environment is unusable.

`filelock` is imported when a lock is made: a Python with flock never needs it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safe_pip import fs
from safe_pip.errors import LockTimeout, UnusableEnvironment
from safe_pip.locking import state_directory
from safe_pip.locking.inheritance import VARIABLE
from safe_pip.locking.order import shown_name
from safe_pip.locking.waiting import Wait, WaitBudget, Waiting

if TYPE_CHECKING:
    from safe_pip._vendor.filelock import BaseFileLock


class Sole:
    """All locks of this process where there is no flock: one for each tree."""

    def __init__(self, waiting: Waiting, timeout: float | None) -> None:
        self._waiting = waiting
        self._timeout = timeout
        self._held: set[Path] = set()

    @contextmanager
    def holding(self, directories: Iterable[Path]) -> Iterator[None]:
        """Lock these directories, but for those that this process or an ancestor holds already."""
        missing = sorted(set(directories) - self._held)
        with ExitStack() as stack:
            for directory in missing:
                stack.enter_context(self._locked(self._file(directory), shown_name(directory)))
            if missing:
                stack.enter_context(_published(missing))
            self._held.update(missing)
            stack.callback(self._held.difference_update, missing)
            yield

    @staticmethod
    def _file(directory: Path) -> Path:
        inherited = _inherited()
        if inherited is not None and str(directory) in inherited[1]:
            return inherited[0] / "commit"
        fs.make_directories(directory)
        state_directory.make(directory)
        return state_directory.path_of(directory) / state_directory.COMMIT

    @contextmanager
    def _locked(self, path: Path, shown: Path) -> Iterator[None]:
        file_lock, budget = _file_lock(path), WaitBudget(self._waiting, self._timeout)
        end = math.inf if budget.deadline is None else budget.deadline
        while not _acquire(file_lock, max(0.0, min(end, budget.next_message) - time.monotonic())):
            if time.monotonic() >= end:
                raise LockTimeout(f"gave up after {self._timeout:g} s waiting for the exclusive lock on `{shown}`")
            budget.tell(Wait(shown, True, (), budget.elapsed()))
        budget.end()
        try:
            yield
        finally:
            file_lock.release()


def _file_lock(path: Path) -> BaseFileLock:
    from safe_pip._vendor import filelock

    if issubclass(filelock.FileLock, filelock.SoftFileLock):
        raise UnusableEnvironment("this Python can lock no files: it has neither `fcntl` nor `msvcrt`")
    return filelock.FileLock(path, fallback_to_soft=False, preserve_lock_file=True)


def _acquire(file_lock: BaseFileLock, seconds: float) -> bool:
    from safe_pip._vendor import filelock

    try:
        file_lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise UnusableEnvironment(f"`{file_lock.lock_file}` cannot be locked: {error}") from error
    return True


@contextmanager
def _published(directories: Iterable[Path]) -> Iterator[None]:
    """Tell child programs what is held: in a private directory whose file `alive` is locked as long as that is true."""
    inherited = _inherited()
    before = os.environ.get(VARIABLE)
    directory = fs.make_private_directory(prefix="safe-pip-held-")
    alive = _file_lock(directory / "alive")
    if not _acquire(alive, 0):
        raise UnusableEnvironment(f"`{directory}` cannot be locked")
    listed = [*map(str, directories), *(inherited[1] if inherited else ())]
    fs.write(directory / "trees", json.dumps(listed).encode())
    os.environ[VARIABLE] = str(directory)
    try:
        yield
    finally:
        alive.release()
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
        fs.remove_tree(directory)


def _inherited() -> tuple[Path, list[str]] | None:
    """The private directory of an ancestor that is alive, and the trees that it holds."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        listed = json.loads((Path(name) / "trees").read_bytes())
    except (OSError, ValueError):
        return None
    alive = _file_lock(Path(name) / "alive")
    if _acquire(alive, 0):
        alive.release()
        return None
    return Path(name), [str(tree) for tree in listed]
