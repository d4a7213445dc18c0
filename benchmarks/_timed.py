"""Run one command in this process and note for how long it held what: `python _timed.py FILE TOOL ARGUMENTS`.

TOOL is `safe-pip`: the time between the grant of each exclusive flock and its end, nothing else of it is touched; or
`pip`: the time of its own install or uninstall step, around which one would have to hold a lock. FILE gets a line of
JSON for each: the kind, the path, the seconds. It is run by the interpreter of the environment.
"""

import atexit
import json
import os
import sys
from time import perf_counter

FILE, TOOL, *ARGUMENTS = sys.argv[1:]
noted: list[tuple[str, str, float]] = []


def safe_pip() -> int:
    """Run safe-pip with its locks timed."""
    from safe_pip.launch import isolation

    isolation.isolate()
    import fcntl
    from typing import Any

    from safe_pip.locking import flock as lock

    granted: dict[int, tuple[int, float]] = {}
    flock, close = lock._flock, lock.Descriptor.close

    def timed_flock(descriptor: Any, operation: int) -> None:
        flock(descriptor, operation)
        if operation & fcntl.LOCK_EX:
            granted.setdefault(id(descriptor), (os.getpid(), perf_counter()))

    def timed_close(descriptor: Any) -> None:
        was_open = descriptor.fd >= 0
        close(descriptor)
        pid, since = granted.pop(id(descriptor), (0, 0.0))
        if was_open and pid == os.getpid():
            noted.append((_kind(descriptor.path), str(descriptor.path), perf_counter() - since))

    lock._flock = timed_flock
    lock.Descriptor.close = timed_close  # type: ignore[method-assign]

    from safe_pip.cli import main

    sys.argv[:] = ["safe-pip", *ARGUMENTS]
    return main(ARGUMENTS)


def _kind(path: "os.PathLike[str]") -> str:
    """Which lock it is: `commit`, a gate, the owner of a transaction, or a directory itself."""
    name = os.path.basename(path)
    if os.path.basename(os.path.dirname(path)) != ".safe-pip":
        return "environment" if name == "site-packages" else "directory"
    return "owner" if name.endswith(".owner") else name


def pip() -> int:
    """Run pip with its install or uninstall step timed."""
    import pip._internal.commands.install as install
    from pip._internal.cli.main import main
    from pip._internal.req.req_uninstall import UninstallPathSet

    original, remove, commit = install.install_given_reqs, UninstallPathSet.remove, UninstallPathSet.commit
    begun = []

    def timed_install(*arguments, **keywords):
        since = perf_counter()
        try:
            return original(*arguments, **keywords)
        finally:
            noted.append(("step", "", perf_counter() - since))

    def timed_remove(*arguments, **keywords):
        begun.append(perf_counter())
        return remove(*arguments, **keywords)

    def timed_commit(paths):
        commit(paths)
        if ARGUMENTS[0] == "uninstall":
            noted.append(("step", "", perf_counter() - begun[0]))

    install.install_given_reqs = timed_install
    UninstallPathSet.remove, UninstallPathSet.commit = timed_remove, timed_commit
    return main(ARGUMENTS)


def write() -> None:
    """Write the recorded times."""
    with open(FILE, "w") as file:
        for kind, path, seconds in noted:
            print(json.dumps({"kind": kind, "path": path, "seconds": seconds}), file=file)


atexit.register(write)

if __name__ == "__main__":
    sys.exit({"safe-pip": safe_pip, "pip": pip}[TOOL]())
