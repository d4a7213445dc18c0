"""What this process does and when, as lines of JSON in a file of its own, for `safe-pip trace`.

Only a command with `--trace` imports this module. Each line is one write at the end of the file, made at once: after a
kill only the last line may be cut off. docs/reference/trace.md describes the lines.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safe_pip import __version__, fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import proc, watch

if TYPE_CHECKING:
    from safe_pip.fs.watch import Details

FORMAT = 1
SUFFIX = ".jsonl"
VARIABLE = "SAFE_PIP_TRACE"

if sys.platform == "linux":
    # All processes of the machine share it, no change of the date moves it, and it counts while the machine sleeps: it
    # is the clock in which the kernel says when a process began.
    now = functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
else:
    now = time.monotonic_ns  # "system-wide" (the manual of `time`)


class Trace:
    """The file of this process (`watch.Timeline`)."""

    def __init__(self, fd: int, warn: Callable[[str], object]) -> None:
        self._fd, self._warn = fd, warn
        self._spans = 0

    def begin(self, phase: str, details: "Details") -> Callable[[], None]:
        self._spans += 1
        span = self._spans
        self._write({"event": "begin", "time": now(), "span": span, "phase": phase, **details()})
        return lambda: self._write({"event": "end", "time": now(), "span": span})

    def note(self, event: str, details: "Details") -> None:
        self._write({"event": event, "time": now(), **details()})

    def _write(self, line: dict[str, object]) -> None:
        content = json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n"
        try:
            is_whole = self._fd < 0 or os.write(self._fd, content) == len(content)
        except OSError:
            is_whole = False
        if not is_whole:  # a full disk: what came behind half a line could not be read
            os.close(self._fd)
            self._fd = -1
            self._warn("warning: the trace could not be written any further")


def begin(directory: str, attempt: int, warn: Callable[[str], object]) -> None:
    """Note from now on what this process does, in a new file in `directory`, which is made if it is missing.

    Processes that this one starts do the same. A trace that cannot be written is no reason to fail: `warn` is called.
    """
    if watch.timeline is not None:
        return
    time_ns, directory = now(), os.path.abspath(directory)
    os.environ[VARIABLE] = directory  # programs that this one starts may have another working directory
    try:
        fs.make_directories(Path(directory))
        fd = fs.open_log(os.path.join(directory, f"{os.getpid()}-{time_ns}{SUFFIX}"))
    except (OSError, UnusableEnvironment) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        warn(f"warning: no trace is written: `{directory}` cannot be written ({why})")
        return
    trace = watch.timeline = Trace(fd, warn)
    trace._write(
        {
            "event": "process",
            "format": FORMAT,
            "time": time_ns,
            "wall": time.time(),
            "boot": "".join(proc.lines("sys/kernel/random/boot_id")).strip(),
            "started": started(os.getpid()) if attempt == 1 else None,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "attempt": attempt,
            "command": proc.own_note()["command"],
            "directory": os.getcwd() if fs.has_working_directory() else None,
            "prefix": sys.prefix,
            "safe_pip": __version__,
        }
    )


def started(pid: int) -> int | None:
    """When a process began, by the same clock; None if that is not known."""
    ticks = proc.start_ticks(pid)
    if sys.platform != "linux" or ticks is None:
        return None
    return ticks * 10**9 // os.sysconf("SC_CLK_TCK")
