"""What safe-pip says while it works: on standard error, one line each, without ever waiting for a reader.

Results of its own verbs go to standard output.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import signal
import sys
from pathlib import Path

from safe_pip.locking import order, terminal
from safe_pip.locking.holders import Holder
from safe_pip.locking.waiting import Wait

_PREFIX = "safe-pip: "
_CLEAR = "\r\x1b[K"
SILENT = 30.0
"""After so many seconds without a sign of a process on another host a message adds `DOUBT`. Its pid tells nothing."""
DOUBT = "its host may be gone"
_live = False  # whether the last line of the terminal is one that is rewritten


def say(message: str) -> None:
    """Print one line on standard error. It is left out if standard error cannot take it now: a lock may be held."""
    _write(f"{_PREFIX}{message}\n")


def _write(text: str, *, live: bool = False) -> None:
    global _live
    line = ((_CLEAR if _live else "") + text).encode(errors="backslashreplace")
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
        _live = live


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


def count(number: int, noun: str) -> str:
    """The number with its noun, `noun` being that of one: `1 file`, `2 directories`."""
    if number != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{number} {noun}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: `5 s`, `3 min`, `2 h`, `4 days`."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) // size:.0f} {unit}"
    return count(int(seconds // 86_400), "day")


class Reporter:
    """Tells the user which lock is waited for, which processes are in the way, and for how long (`Waiting`).

    On a terminal that no other safe-pip writes to, that is one line, which goes when the lock is granted. With `quiet`
    it is said in pip's log alone.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._unguarded: set[Path] = set()

    def waiting(self, event: Wait) -> bool:
        mode = "exclusive" if event.exclusive else "shared"
        is_gone = event.seconds >= SILENT and any(holder.host for holder in event.holders)
        by, seconds = _by(event.holders, may_be_gone=is_gone), f"{event.seconds:.0f} s"
        what = f"waiting for the {mode} lock on `{event.path}`{by}, {seconds} so far"
        is_live = not self._quiet and os.isatty(2) and os.environ.get("TERM") != "dumb" and not terminal.is_shared(2)
        if "logging" in sys.modules and not _live:
            sys.modules["logging"].getLogger("safe_pip").debug(what)
        if is_live:
            columns = shutil.get_terminal_size().columns
            doubt = f" ({DOUBT})" if is_gone else ""  # before the command, which may not fit
            line = f"{_PREFIX}waiting {seconds} for the {mode} lock{doubt}{_by(event.holders)}"
            _write(line[: columns - 1], live=True)
        elif not self._quiet:
            say(what)
        return is_live

    def waiting_for_turn(self, what: str, holders: tuple[Holder, ...]) -> None:
        """Say that another process does `what` this command was about to do, and that it is waited for."""
        say(f"waiting for the turn to {what}{_by(holders)}")

    def granted(self, event: Wait, seconds: float) -> None:
        if _live:
            _write("")
        elif not self._quiet:
            say(f"got the lock after {seconds:.1f} s")

    def interrupted(self) -> None:
        if _live:
            _write("\n")

    def unguarded(self, path: Path) -> None:
        """Say once that a tree is read without a lock that other hosts see."""
        if not self._quiet and path not in self._unguarded:
            what = f"warning: several hosts may use `{path}`, and it has no lock files, so it is read without them"
            say(f"{what}. A user that may write there makes them with `safe-pip list`")
        self._unguarded.add(path)

    def unprobed(self, path: Path) -> bool:
        """Say that a tree is on a filesystem that was never probed; False if nothing is said."""
        if not self._quiet:
            place = order.shown_name(path)
            what = f"warning: several hosts may use `{place}`, and it was never tried whether locks reach all of them"
            say(f"{what}. Run `safe-pip doctor --filesystem {place.parent}` on two hosts at once")
        return not self._quiet


def _by(holders: tuple[Holder, ...], *, may_be_gone: bool = False) -> str:
    parts = [_described(holder, may_be_gone=may_be_gone) for holder in holders]
    return ", " + " and ".join(parts) if parts else ""


def _described(holder: Holder, *, may_be_gone: bool) -> str:
    how = "asked for first by" if holder.is_waiting else "held by" if holder.exclusive else "shared by"
    facts = [holder.where] + ["stopped"] * holder.is_stopped + [DOUBT] * (may_be_gone and bool(holder.host))
    return f"{how} `{holder.command}` ({', '.join(facts)})" if holder.command else f"{how} {', '.join(facts)}"
