"""`safe-pip run`: any command under the environment's lock, as a child whose signals and terminal pass through.

This process stays beside the child: it holds locks that background programs of the child must not keep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from safe_pip.commands.environments import Context, locked
from safe_pip.commands.options import Namespace
from safe_pip.errors import LockTimeout, NestingRefused, UsageError
from safe_pip.fs import watch
from safe_pip.messages import say


def main(options: Namespace, context: Context) -> int:
    if options.keep and options.lock_dir is not None:
        raise UsageError("safe-pip run: argument --keep: not allowed with argument --lock-dir")
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        with locked(context, options.env, options.lock_dir, exclusive=options.exclusive, keep=options.keep):
            return _run(command, context)
    except (LockTimeout, NestingRefused) as error:
        error.exit_status = options.conflict_exit_code
        raise


def _run(command: list[str], context: Context) -> int:
    try:
        with watch.phase("run"):
            return stand_for(command, durable=context.settings.durable)
    except FileNotFoundError as error:
        say(f"error: `{command[0]}` was not found ({error.strerror})")
        return 127
    except OSError as error:
        say(f"error: `{command[0]}` cannot be executed ({error.strerror})")
        return 126


def stand_for(command: Sequence[str], *, durable: bool) -> int:
    """Run a program, which inherits descriptors, to its end; on return its exit status, 128 + n if signal n killed it.

    Raises `OSError` if it cannot be started. `durable` holds for every safe-pip that the program starts.
    """
    variables = {**os.environ, "SAFE_PIP_DURABLE": "1"} if durable else None
    if sys.platform == "win32":
        return subprocess.call(command, env=variables)
    terminal = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP}
    others = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGCHLD}
    # A SIGCHLD that our parent told us to ignore would make the kernel forget the child's exit status. A signal with a
    # handler is not ignored; this one interrupts nothing.
    before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, terminal | others)
    try:
        child = subprocess.Popen(
            command,
            close_fds=False,
            env=variables,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
        )
        while child.returncode is None:
            if sys.platform == "linux":
                received = signal.sigwaitinfo(terminal | others)
                number, is_for_both = received.si_signo, received.si_code > 0  # the terminal's own (sigaction(2))
            else:
                number = signal.sigwait(terminal | others)
                is_for_both = number in terminal
            if number == signal.SIGCHLD:
                child.returncode = _status(child.pid)
            elif not is_for_both:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _status(pid: int) -> int | None:
    """The exit status of a child, negative for a signal; None if it goes on."""
    if sys.platform == "win32":
        raise NotImplementedError
    found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
    if found and os.WIFSTOPPED(status) and os.WSTOPSIG(status) != signal.SIGSTOP:
        # The terminal stopped the child, and the shell waits until this process stops too. When it continues, this
        # process gets a SIGCONT, which is passed on.
        os.kill(os.getpid(), signal.SIGSTOP)
    return os.waitstatus_to_exitcode(status) if found and not os.WIFSTOPPED(status) else None
