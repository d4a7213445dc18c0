"""Whether whoever has a mutex of the store gets on, asked once in each second in which others wait for him.

He shows it himself, after each file or distribution. But some modules take longer than a second to compile, some wheels
to copy, and all of it takes longer where others want the cores: so what the kernel saw him compute counts too. That
alone does not count for ever: he might compute nothing of use, and whoever is waited for has to come to an end.
"""

from safe_pip import holders
from safe_pip.prepared import Store

LONGEST = 60
"""So many times what he computes is believed, when he shows nothing himself."""


class Patience:
    """One wait for whoever has the mutex `key`, from now on."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._silent = 0
        self._seen = self._look()

    def is_lost(self) -> bool:
        """Whether nothing has happened since it was asked before; not if somebody else, or nobody, has it now."""
        (shown, computed), self._seen = self._seen, self._look()
        now = self._seen[0]
        if now != shown:
            self._silent = 0
            return False
        self._silent += 1
        return now != -1 and (self._silent > LONGEST or self._seen[1] == computed)

    def _look(self) -> tuple[int, tuple[tuple[int, str], ...]]:
        return self._store.progress(self._key), holders.work_at(self._store.making(self._key))
