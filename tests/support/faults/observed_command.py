"""Runs safe-pip and records what it changes, or kills it during a change.

`observed_command.py note FILE ARGS...` appends one line of JSON to FILE for each change: the operation, the path, the
other path. `locked` and `unlocked` mark where the command takes and releases the locks for a change.

`observed_command.py kill SUFFIX TIME NUMBER ARGS...` waits for rename number TIME (from 1) to a path that ends with
SUFFIX. The kernel then kills the process before change number NUMBER (from 1) after that rename.
"""

from __future__ import annotations

import sys


def note(file: str) -> None:
    """Write down every change."""
    import contextlib
    import json
    import os

    from safe_pip import fs
    from safe_pip.environment.environment import Environment

    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def told(operation: str, path: str = "", source: str = "") -> None:
        os.write(descriptor, json.dumps([operation, path, source]).encode() + b"\n")

    def watched(method):
        @contextlib.contextmanager
        def taking(*args, **more):
            with method(*args, **more) as held:
                told("locked")
                try:
                    yield held
                finally:
                    told("unlocked")

        return taking

    fs.watch.observer = told
    Environment.replacing = watched(Environment.replacing)
    Environment.adding = watched(Environment.adding)


def kill(suffix: str, time: str, number: str) -> None:
    """Die there."""
    import os
    import signal

    from safe_pip import fs

    seen, left = 0, int(number)

    def told(operation: str, path: str, source: str) -> None:
        nonlocal seen, left
        if seen >= int(time):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if operation == "move" and path.endswith(suffix):
            seen += 1

    fs.watch.observer = told


def main() -> int:
    how, *rest = sys.argv[1:]
    count = 1 if how == "note" else 3
    sys.argv[1:] = rest[count:]
    sys.argv[0] = "safe-pip"
    from safe_pip.launch import isolation

    isolation.isolate()
    note(*rest[:count]) if how == "note" else kill(*rest[:count])
    from safe_pip.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
