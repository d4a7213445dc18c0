"""`--prefix-output NAME`: each line of a command's output begins with a name, as `docker compose` has it.

A process of its own reads what the command and its child programs write. It writes whole lines, one call for each. The
command keeps its pid, its signals and its standard input. This module is imported only if the option is given.
"""

import atexit
import os
import select
import signal
import sys
from contextlib import suppress

from safe_pip.errors import UsageError
from safe_pip.launch.restart import Attempt
from safe_pip.launch.settings import Settings
from safe_pip.locking import terminal

_PROMPT_ENDS = b":?>)]"
# So many milliseconds a line has to be silent before it is shown without its end: a question, whose answer ends it.
_SILENCE = 100
_LONGEST = 1 << 16
_READ = 1 << 16


def begin(chosen: Settings, attempt: Attempt | None = None) -> Settings:
    """Have all that this process writes begin with the name; the settings on return are those of child programs.

    An `attempt` that follows another one in this process finds its output prefixed already.
    """
    if chosen.prefix_output is None:
        return chosen
    if sys.platform == "win32":
        raise UsageError("`--prefix-output` needs a system with `fork`")
    attempt = attempt or Attempt()
    if not attempt.prefixing:
        has_colour = int(os.isatty(1))
        attempt.prefixing = [*_start(os.fsencode(f"{chosen.prefix_output} | ")), has_colour]
    pid, control, has_colour = attempt.prefixing
    atexit.register(_finish, os.getpid(), pid, control)
    os.environ.pop("SAFE_PIP_PREFIX_OUTPUT", None)
    os.environ["PIP_PROGRESS_BAR"] = "off"
    if has_colour and "NO_COLOR" not in os.environ:
        os.environ.setdefault("FORCE_COLOR", "1")
    return chosen._replace(prefix_output=None)


def _start(prefix: bytes) -> tuple[int, int]:
    """Start the process that writes; its pid, and the descriptor whose end tells it that this process has ended."""
    if sys.platform == "win32":
        raise NotImplementedError
    streams = [fd for fd in (1, 2) if _is_open(fd)]
    is_one = len(streams) == 2 and os.path.sameopenfile(1, 2)  # then the lines of both keep their order
    pipes = {fd: os.pipe() for fd in streams[: 1 if is_one else None]}
    ended, control = os.pipe()
    answers = os.isatty(0)
    ignored = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
    if not (pid := os.fork()):
        try:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for fd in (0, control, *(writer for _, writer in pipes.values())):
                with suppress(OSError):
                    os.close(fd)
            _write_lines(prefix, {reader: fd for fd, (reader, _) in pipes.items()}, ended, answers=answers)
        finally:
            os._exit(0)
    for fd in streams:
        os.dup2(pipes.get(fd, pipes[streams[0]])[1], fd)
    for fd in (ended, *(fd for pipe in pipes.values() for fd in pipe)):
        os.close(fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid, control


def _is_open(fd: int) -> bool:
    with suppress(OSError):
        os.fstat(fd)
        return True
    return False


def _finish(process: int, pid: int, control: int) -> None:
    """Wait until all is written, so that it stands before what the next command writes."""
    if os.getpid() != process:
        return  # a forked child
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with suppress(OSError, KeyboardInterrupt):
        os.close(control)
        os.waitpid(pid, 0)


def _write_lines(prefix: bytes, streams: dict[int, int], ended: int, *, answers: bool) -> None:
    """Write what the readers of `streams` give to the descriptors there, until no process can write to them.

    When the command has `ended` all that it has written is there. If it left programs behind, a child process goes on
    for them, and this one ends. With `answers` the user is asked questions, which are lines without an end.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    for fd in filter(os.isatty, streams.values()):
        terminal.is_shared(fd)  # other commands draw no bars there
    rest = dict.fromkeys(streams, b"")
    polled = select.poll()
    for reader in (ended, *streams):
        os.set_blocking(reader, False)
        polled.register(reader, select.POLLIN)
    has_ended = False

    def put(reader: int, text: bytes) -> None:
        text = prefix + text
        try:
            while text:
                try:
                    text = text[os.write(streams[reader], text) :]
                except BlockingIOError:
                    select.select([], [streams[reader]], [])
        except OSError:
            close(reader)  # the command then gets the error that it would have got

    def close(reader: int) -> None:
        polled.unregister(reader)
        os.close(reader)
        del streams[reader], rest[reader]

    def is_question(reader: int) -> bool:
        return answers and rest[reader].rstrip(b" ")[-1:] in {bytes([end]) for end in _PROMPT_ENDS}

    def read(reader: int) -> None:
        chunk = b""
        with suppress(OSError):
            chunk = os.read(reader, _READ)
        *lines, rest[reader] = (rest[reader] + chunk).split(b"\n")
        if rest[reader] and (not chunk or len(rest[reader]) > _LONGEST):
            lines, rest[reader] = [*lines, rest[reader]], b""
        for line in lines:
            if reader in streams:
                # What a bar has rewritten by a carriage return is gone from a terminal too.
                put(reader, line.removesuffix(b"\r").rpartition(b"\r")[2] + b"\n")
        if not chunk and reader in streams:
            close(reader)

    while streams:
        events = polled.poll(0 if has_ended else _SILENCE if any(map(is_question, streams)) else None)
        for reader, _ in events:
            if reader == ended:
                polled.unregister(ended)
                has_ended = True
            else:
                read(reader)
        if not events:
            for reader in list(streams):
                if rest[reader] and (has_ended or is_question(reader)):
                    text, rest[reader] = rest[reader], b""
                    put(reader, text + (b"\n" if has_ended else b""))
            if has_ended:
                _leave_to_a_child()
                has_ended = False


def _leave_to_a_child() -> None:
    if sys.platform != "win32" and os.fork():
        os._exit(0)
    return
