"""What safe-pip says while it works: on standard error, one line each, without ever waiting for a reader.

Results of its own verbs go to standard output.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import time
from pathlib import Path

from safe_pip.locking.holders import Holder
from safe_pip.locking.waiting import Wait

_PREFIX = "safe-pip: "


def say(message: str) -> None:
    """Print one line on standard error. It is left out if standard error cannot take it now: a lock may be held."""
    line = (_PREFIX + message + "\n").encode(errors="backslashreplace")
    with contextlib.suppress(OSError), contextlib.ExitStack() as masked:  # standard error may be closed
        if sys.platform != "win32":
            poll = select.poll()
            poll.register(2, select.POLLOUT)
            if not any(event & select.POLLOUT for _, event in poll.poll(0)):
                return
            # A background process that writes to its terminal may be stopped for it, with all its locks.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            masked.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        os.write(2, line)


def output(text: str = "") -> OSError | None:
    """Print a result, or only what is still in the buffer, and empty that; backslashes for what cannot be encoded.

    Returns the error if standard output cannot be written, which then is dropped.
    """
    if sys.stdout is None:
        return None
    try:
        if text and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(f"{text}\n" if text else "")
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return error
    return None


class Reporter:
    """Tells the user which lock is waited for, which processes are in the way, and how long it took (`Waiting`)."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._unlocked: set[Path] = set()

    def waiting(self, event: Wait) -> None:
        mode = "exclusive" if event.exclusive else "shared"
        say(f"waiting for the {mode} lock on `{event.path}`{_by(event.holders)}")

    def waiting_for_turn(self, what: str, holders: tuple[Holder, ...]) -> None:
        """Say that another process does `what` this command was about to do, and that it is waited for."""
        say(f"waiting for the turn to {what}{_by(holders)}")

    def granted(self, event: Wait, seconds: float) -> None:
        say(f"got the lock after {seconds:.1f} s")

    def unlocked(self, path: Path) -> None:
        """Say once that something is used without a lock; only with `-v`."""
        if self._verbose and path not in self._unlocked:
            say(f"`{path}` is on a filesystem that cannot lock it, so it is used without a lock")
        self._unlocked.add(path)


def _by(holders: tuple[Holder, ...]) -> str:
    parts = [_described(holder) for holder in holders]
    return ", " + " and ".join(parts) if parts else ""


def _described(holder: Holder) -> str:
    how = "asked for first by" if holder.is_waiting else "held by" if holder.exclusive else "shared by"
    since = f" for {max(time.time() - holder.since, 0):.0f} s" if holder.since is not None else ""
    if not holder.command:
        return f"{how} pid {holder.pid}{since}"
    return f"{how} `{holder.command}` (pid {holder.pid}{', stopped' if holder.is_stopped else ''}){since}"
