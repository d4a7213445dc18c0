"""Whether another safe-pip writes to a terminal: each that does shares a lock on the terminal's device file.

No file is made for it, and the kernel lets the lock go with its process. Commands of different users know of each other
if both may open the terminal, as root may.
"""

import functools
import os
import sys
from contextlib import suppress
from pathlib import Path

from safe_pip.errors import UnusableEnvironment
from safe_pip.locking import flock
from safe_pip.locking.flock import Descriptor


def is_shared(fd: int) -> bool:
    """Whether another safe-pip writes to the terminal that `fd` leads to. From now on this process counts there.

    Also where it cannot, because it may not open the terminal: others would not see it. A terminal without a name, as
    in a container that was entered from outside, counts as its own.
    """
    if sys.platform == "win32":
        return False
    try:
        path = os.ttyname(fd)
    except OSError:
        return False
    with suppress(OSError, UnusableEnvironment):
        lock = _opened(path, os.getpid())
        is_alone = flock.try_lock(lock, exclusive=True)
        flock.try_lock(lock, exclusive=False)  # what was tried has let go the shared lock, granted or not
        return not is_alone
    return True


@functools.cache
def _opened(path: str, process: int) -> Descriptor:
    return Descriptor(Path(path), is_device=True)
