"""Whether whoever has a mutex of the store gets on, asked once in each second in which others wait for him.

He shows it himself, after each file or distribution. But some modules take longer than a second to compile, some wheels
to copy, and all of it takes longer where others want the cores or the disk: so it counts too if the kernel saw him
compute, or finds him ready to. That alone does not count for ever: he might compute nothing of use, and whoever is
waited for has to come to an end. One second is not enough: a machine that is suspended stops him and those who wait
alike, and they may be the first to go on.
"""

from safe_pip.locking import holders
from safe_pip.locking.holders import Work
from safe_pip.store.wheels import Store

LONGEST = 60
"""So many times what he computes is believed, when he shows nothing himself."""

IDLE = 2
"""So many times in a row nothing has happened when he is not waited for any longer."""


class Heartbeat:
    """One wait for whoever has the mutex `key`, from now on."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._silent = self._idle = 0
        self._seen = self._look()

    def is_lost(self) -> bool:
        """Whether nothing has happened, this time and before; not if somebody else, or nobody, has it now."""
        (shown, before), self._seen = self._seen, self._look()
        now, work = self._seen
        if now != shown:
            self._silent = self._idle = 0
            return False
        self._silent += 1
        is_idle = work == before and not any(each.is_busy for each in work)
        self._idle = self._idle + 1 if is_idle else 0
        return now != -1 and (self._silent > LONGEST or self._idle >= IDLE)

    def _look(self) -> tuple[int, tuple[Work, ...]]:
        return self._store.progress(self._key), holders.work_at(self._store.making(self._key))
