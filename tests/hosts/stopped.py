"""safe-pip, stopped just before the change number AT (an environment variable) that follows its journal.

It is killed there or, if PAUSES is set, says so and goes on when it is given a line.
"""

import os
import signal
import sys

from safe_pip import fs
from safe_pip.__main__ import main

_left = -1


def _observe(operation: str, path: str, source: str) -> None:
    global _left
    if _left < 0:
        if operation == "move" and path.endswith(".journal"):
            _left = int(os.environ["AT"])
        return
    _left -= 1
    if _left == -1:
        fs.watch.observer = None
        if not os.environ.get("PAUSES"):
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(2, f"stopped before: {operation} {path}\n".encode())
        os.read(0, 1)


fs.watch.observer = _observe
sys.argv[0] = "safe-pip"
sys.exit(main())
