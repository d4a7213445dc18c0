"""A child program that stands for this process: signals, terminal and exit status pass through.

This process stays alive beside the child, because it holds locks that the child must not inherit: programs that the
child leaves in the background would keep them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence


def run(command: Sequence[str], *, durable: bool = False) -> int:
    """Run a program to its end; on return its exit status, 128 + n if signal n killed it.

    Raises `OSError` if it cannot be started. Inherited descriptors are passed on. `durable` holds for every safe-pip
    that the program starts.
    """
    variables = {**os.environ, "SAFE_PIP_DURABLE": "1"} if durable else None
    if sys.platform == "win32":
        return subprocess.call(command, env=variables)
    passed_on = {
        *(signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
    }
    # A SIGCHLD that our parent told us to ignore would make the kernel forget the child's exit status. A signal with a
    # handler is not ignored; this one interrupts nothing.
    before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed_on, signal.SIGCHLD})
    try:
        child = subprocess.Popen(
            command,
            close_fds=False,
            env=variables,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
        )
        child.returncode = status = _pass_on(child.pid, {*passed_on, signal.SIGCHLD})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
    return status if status >= 0 else 128 - status


def _pass_on(pid: int, signals: set[signal.Signals]) -> int:
    """Pass signals on until the child ends; on return its status, negative for a signal."""
    if sys.platform == "win32":
        raise NotImplementedError
    while True:
        number, is_for_both = _next(signals)
        if number != signal.SIGCHLD:
            if not is_for_both:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            continue
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) != signal.SIGSTOP:
                # The terminal stopped the child, and the shell waits until this process stops too. When it continues,
                # this process gets a SIGCONT, which is passed on.
                os.kill(os.getpid(), signal.SIGSTOP)
        elif found:
            return os.waitstatus_to_exitcode(status)


def _next(signals: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a signal; on return its number, and whether it went to the whole process group, the child included."""
    if sys.platform == "win32":
        raise NotImplementedError
    if sys.platform == "linux":
        received = signal.sigwaitinfo(signals)
        return received.si_signo, received.si_code > 0  # the kernel's own, so the terminal's (sigaction(2))
    number = signal.sigwait(signals)
    return number, number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP) and _is_in_foreground()


def _is_in_foreground() -> bool:
    if sys.platform == "win32":
        raise NotImplementedError
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(fd) == os.getpgrp()
    return False
