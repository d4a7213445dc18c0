"""Watch directories with inotify(7), and the end of a process, without another package."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_CREATE, _DELETE, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x40, 0x80
_HEADER = struct.Struct("iIII")
_NAMES = {_CREATE: "made", _DELETE: "removed", _MOVED_FROM: "moved out", _MOVED_TO: "moved in"}

Happened = tuple[str, str]
"""What, and the name of the entry."""


class Watch:
    """The entries that are made, removed or renamed in some directories from now on; Linux only."""

    def __init__(self, *directories: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending: list[Happened] = []
        for directory in directories:
            mask = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO
            if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        os.close(self._fd)

    def wait(
        self,
        process: subprocess.Popen[bytes],
        is_it: Callable[[Happened], bool],
        timeout: float,
        *,
        is_awake: bool = False,
    ) -> bool:
        """Return True when it has happened, False if the process has ended before. Raises if neither happens in time.

        Waking up takes as long as a dozen renames. With `is_awake` this process polls, and sees them one by one.
        """
        end = time.monotonic() + timeout
        pidfd = os.pidfd_open(process.pid)
        try:
            while True:
                while self._pending:
                    if is_it(self._pending.pop(0)):
                        return True
                left = max(0.0, end - time.monotonic())
                ready, _, _ = select.select([self._fd, pidfd], [], [], 0 if is_awake else left)
                if self._fd in ready:
                    self._read()
                elif ready:
                    return False
                elif not left:
                    raise AssertionError(f"process {process.pid} neither ended nor came to the moment waited for")
        finally:
            os.close(pidfd)

    def _read(self) -> None:
        events, place = os.read(self._fd, 65536), 0
        while place < len(events):
            _, mask, _, length = _HEADER.unpack_from(events, place)
            place += _HEADER.size
            name = os.fsdecode(events[place : place + length].rstrip(b"\0"))
            place += length
            self._pending += [(what, name) for bit, what in _NAMES.items() if mask & bit]


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ends within so many seconds; it is waited for in the kernel, the last bit is spun."""
    end = time.perf_counter() + seconds
    pidfd = os.pidfd_open(process.pid)
    try:
        if select.select([pidfd], [], [], max(0.0, seconds - 0.002))[0]:
            return True
        while time.perf_counter() < end:
            pass
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)
