"""Whether another safe-pip writes to a terminal: each that does shares a lock on the terminal's device file.

No file is made for it, and the kernel lets the lock go with its process. Commands of different users know of each other
if both may open the terminal, as root may.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from safe_pip.errors import UnusableEnvironment
from safe_pip.locking import flock
from safe_pip.locking.flock import Descriptor


class Terminal:
    """The terminal that a descriptor leads to; this process counts there as long as the object exists."""

    def __init__(self, fd: int) -> None:
        self._lock: Descriptor | None = None
        if sys.platform == "win32":
            return
        with suppress(OSError, UnusableEnvironment):  # it cannot be opened, or not be locked
            lock = Descriptor(Path(os.ttyname(fd)), is_device=True)
            flock.try_lock(lock, exclusive=False)
            self._lock = lock

    def is_shared(self) -> bool:
        """Whether another safe-pip writes there. Also where this one cannot count, so that others do not see it."""
        if self._lock is None:
            return True
        is_alone = flock.try_lock(self._lock, exclusive=True)
        flock.try_lock(self._lock, exclusive=False)  # what was tried has let go the shared lock, granted or not
        return not is_alone
