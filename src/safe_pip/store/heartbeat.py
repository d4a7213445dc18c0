"""Whether the process that holds a mutex of the store still works, asked once in each second in which others wait.

It shows that itself, by the time of the mutex, after each file or distribution. But some modules take longer than a
second to compile, some wheels to copy, and everything takes longer on a busy machine. So it also counts if the kernel
saw the process compute, or finds it ready to run. That does not count for ever: the process might compute nothing of
use, and every wait has to end. One idle second is not enough: a machine that is suspended stops the process and those
that wait alike, and these may go on first.
"""

import os
import time

from safe_pip import fs
from safe_pip.locking import flock, holders
from safe_pip.locking.holders import Work
from safe_pip.store.wheels import Store

LONGEST = 60
"""So many times in a row computing is believed, when the process shows nothing itself."""

IDLE = 2
"""After so many times in a row in which nothing happened the process is not waited for any longer."""

_BEAT = 0.1
"""Seconds between two signs of life."""


class Beat:
    """Shows those who wait for the mutex `held` that its process works."""

    def __init__(self, held: flock.Descriptor | None) -> None:
        self._held = held
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if self._held is not None and now - self._last >= _BEAT:
            self._last = now
            fs.touch(self._held.path)


class Heartbeat:
    """One wait, from now on, for the process that has the mutex `key`."""

    def __init__(self, store: Store, key: str) -> None:
        self._place = store.making(key)
        self._silent = self._idle = 0
        self._seen = self._observe()

    def look(self) -> bool:
        """Look once more; on return whether the process has stopped working. A new holder of the mutex has not."""
        (shown, before), self._seen = self._seen, self._observe()
        now, work = self._seen
        if now != shown:
            self._silent = self._idle = 0
            return False
        self._silent += 1
        is_idle = work == before and not any(each.is_busy for each in work)
        self._idle = self._idle + 1 if is_idle else 0
        return now != -1 and (self._silent > LONGEST or self._idle >= IDLE)

    def _observe(self) -> tuple[int, tuple[Work, ...]]:
        """The time of the mutex in nanoseconds, -1 if there is none, and what its holders do."""
        try:
            shown = os.stat(self._place).st_mtime_ns
        except OSError:
            shown = -1
        return shown, holders.work_at(self._place)
