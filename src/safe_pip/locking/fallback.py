"""Where there is no flock (Windows): one exclusive lock for a whole command, by `filelock`. Untested on Windows.

Readers hold it too: a user that cannot write a tree cannot read it. `filelock` is imported when a lock is taken.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safe_pip import fs
from safe_pip.errors import LockTimeout, UnusableEnvironment
from safe_pip.locking import state_directory
from safe_pip.locking.inheritance import VARIABLE
from safe_pip.locking.order import shown_name
from safe_pip.locking.waiting import Wait, WaitBudget, Waiting


class Sole:
    """All locks of this process where there is no flock: one for each tree."""

    def __init__(self, waiting: Waiting, timeout: float | None) -> None:
        self._waiting, self._timeout = waiting, timeout
        self._held: set[Path] = set()

    @contextmanager
    def holding(self, directories: Iterable[Path]) -> Iterator[None]:
        """Lock these directories, but for those that this process holds already. An ancestor's have a stand-in."""
        missing = sorted(set(directories) - self._held)
        with ExitStack() as stack:
            for directory in missing:
                stack.callback(self._acquire(directory))
            if missing:
                stack.enter_context(_published(missing))
            self._held.update(missing)
            stack.callback(self._held.difference_update, missing)
            yield

    def _acquire(self, directory: Path) -> Callable[[], object]:
        inherited, shown = _inherited(), shown_name(directory)
        if inherited is not None and str(directory) in inherited[1]:
            path = inherited[0] / f"commit-{inherited[1].index(str(directory))}"
        else:
            fs.make_directories(directory)
            state_directory.make(directory)
            path = state_directory.path_of(directory) / state_directory.COMMIT
        budget = WaitBudget(self._waiting, self._timeout)
        while (release := _lock(path, max(0.0, min(budget.deadline, budget.next_message) - time.monotonic()))) is None:
            if time.monotonic() >= budget.deadline:
                raise LockTimeout(f"gave up after {self._timeout:g} s waiting for the exclusive lock on `{shown}`")
            budget.tell(Wait(shown, True, (), budget.elapsed()))
        budget.end()
        return release


def _lock(path: Path, seconds: float) -> Callable[[], object] | None:
    """Lock a file; on return what lets it go, or None if the time was over."""
    from safe_pip._vendor import filelock

    if issubclass(filelock.FileLock, filelock.SoftFileLock):  # there a file's existence would mean "locked"
        raise UnusableEnvironment("this Python can lock no files: it has neither `fcntl` nor `msvcrt`")
    lock = filelock.FileLock(path, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise UnusableEnvironment(f"`{path}` cannot be locked: {error}") from error
    return lock.release


@contextmanager
def _published(directories: Iterable[Path]) -> Iterator[None]:
    """Tell child programs what is held, in a private directory whose file `alive` is locked as long as that is true."""
    inherited, before = _inherited(), os.environ.get(VARIABLE)
    directory = fs.make_private_directory(prefix="safe-pip-held-")
    release = _lock(directory / "alive", 0)
    if release is None:
        raise UnusableEnvironment(f"`{directory}` cannot be locked")
    listed = [*map(str, directories), *(inherited[1] if inherited else ())]
    fs.write(directory / "trees", json.dumps(listed).encode())
    os.environ[VARIABLE] = str(directory)
    try:
        yield
    finally:
        release()
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        fs.remove_tree(directory)


def _inherited() -> tuple[Path, list[str]] | None:
    directory = Path(os.environ.get(VARIABLE, ""))
    try:
        listed = json.loads((directory / "trees").read_bytes())
    except (OSError, ValueError):
        return None
    if release := _lock(directory / "alive", 0):
        release()
        return None
    return directory, [str(tree) for tree in listed]
