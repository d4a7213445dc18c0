"""safe-pip, killed just before the change number AT (an environment variable) that follows its journal."""

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
    elif _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        _left -= 1


fs.watch.observer = _observe
sys.argv[0] = "safe-pip"
sys.exit(main())
