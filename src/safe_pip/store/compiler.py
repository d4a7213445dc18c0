"""A child interpreter that compiles sources and sends their bytecode back; it changes nothing on any disk.

So nothing is written after its parent has died, and nobody need wait for it: what a child does not send, because it was
killed or stopped, its parent makes himself. Its program is taken from the memory of this process, not from our files,
which another command may have replaced meanwhile.
"""

import contextlib
import marshal
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import MAGIC_NUMBER
from typing import NamedTuple

from safe_pip.store.cores import Cores, Permit

Task = tuple[int, str, str]
"""A number, the path of a source, and the name to compile into its bytecode."""
Result = tuple[int, bytes | str]
"""The number of a task, and bytecode, or what the compiler said that made none."""


class Settings(NamedTuple):
    """What decides how bytecode looks: `is_hashed` is PEP 552's choice between the source's hash and its time."""

    magic: bytes
    optimize: int
    is_hashed: bool
    has_ranges: bool

    @classmethod
    def of_this_process(cls) -> "Settings":
        """As py_compile, and so pip, would have them here."""
        positions = getattr(compile("a", "", "eval"), "co_positions", lambda: [(None,)])  # from Python 3.11 on
        has_ranges = any(each[-1] is not None for each in positions())
        return cls(MAGIC_NUMBER, sys.flags.optimize, bool(os.environ.get("SOURCE_DATE_EPOCH")), has_ranges)

    @property
    def key(self) -> str:
        """A name that two of them share only if they make the same bytecode of a source."""
        parts = [str(sys.implementation.cache_tag), self.magic.hex(), f"opt{self.optimize}"]
        return "-".join([*parts, *["hashed"] * self.is_hashed, *["ranges"] * self.has_ranges])


def bytecode(path: str, name: str, magic: bytes, optimize: int, is_hashed: bool) -> bytes | str:
    """The content of the `.pyc` of the source at `path`, or, where it cannot be compiled, what py_compile says of it.

    Raises `OSError` if the source cannot be read. A child runs it without this module: see `_PROGRAM`.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(fd)
        source = os.read(fd, status.st_size + 1)
        while len(source) < status.st_size and (chunk := os.read(fd, status.st_size)):
            source += chunk
    finally:
        os.close(fd)
    try:
        code = compile(source, name, "exec", 0, True, optimize)
    except Exception as error:
        import py_compile

        return str(py_compile.PyCompileError(type(error), error, name).msg)
    if is_hashed:
        import importlib.util

        return magic + b"\3\0\0\0" + importlib.util.source_hash(source) + marshal.dumps(code)
    # No flags, then the low 32 bits of the source's time and size.
    time, size = int(status.st_mtime) & 0xFFFF_FFFF, status.st_size & 0xFFFF_FFFF
    return magic + b"\0\0\0\0" + time.to_bytes(4, "little") + size.to_bytes(4, "little") + marshal.dumps(code)


def _serve(settings: tuple[bytes, int, bool]) -> None:
    """In the child: compile what comes; raises `EOFError` or `OSError` when there is nobody to compile for."""
    while True:
        for number, path, name in marshal.load(sys.stdin.buffer):
            content = marshal.dumps((number, bytecode(path, name, *settings)))
            sys.stdout.buffer.write(len(content).to_bytes(4, "little") + content)
            sys.stdout.buffer.flush()


# The idle cores are meant: whoever else wants one comes first. A living parent kills the child before it closes its end
# of the pipe, and gives the token back: the pipe ends by the parent's death only, also while getppid(2) still names it.
_PROGRAM = """
import marshal, os, sys
write, token = map(int, sys.argv[1:])
try:
    os.nice(10)
    bytecode, serve = (type(lambda: 0)(code, globals()) for code in marshal.load(sys.stdin.buffer))
    serve(marshal.load(sys.stdin.buffer))
finally:
    if token >= 0:
        os.close(1)
        while os.read(0, 1 << 16):
            pass
        os.write(write, bytes([token]))
    os._exit(0)
"""
_ROOM = 1 << 20


class Compiler:
    """One child at work; `close` ends it, whatever it is doing, and gives its permit back."""

    def __init__(self, settings: Settings, cores: Cores, permit: Permit) -> None:
        """Start it; raises `OSError`, with the permit given back, if that cannot be done."""
        self._cores = cores
        self._permit = permit
        self._received = b""
        self.tasks: dict[int, Task] = {}
        """What it was given and has not sent back; what somebody else is to do can be taken out."""
        write, token = -1, -1
        if permit.token and cores.jobserver is not None:
            write, token = cores.jobserver.write, permit.token[0]
        ranges = () if settings.has_ranges else ("-X", "no_debug_ranges")
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-W", "ignore", *ranges, "-c", _PROGRAM, str(write), str(token)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=() if write < 0 else (write,),
            )
        except BaseException:
            cores.give(permit)
            raise
        try:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            self._in, self.out = self._child.stdin.fileno(), self._child.stdout.fileno()
            for fd in (self._in, self.out):
                _prepare(fd)
            chosen = (settings.magic, settings.optimize, settings.is_hashed)
            self._send(marshal.dumps((bytecode.__code__, _serve.__code__)))
            self._send(marshal.dumps(chosen))
        except BaseException:
            self.close()
            raise

    def give(self, tasks: Iterable[Task]) -> None:
        """Give it more to do; raises `OSError` if it is dead, or takes nothing because it is stopped."""
        given = list(tasks)
        self._send(marshal.dumps(given))
        self.tasks.update((task[0], task) for task in given)

    def receive(self) -> list[Result]:
        """What it has sent of `tasks` since the last time, without waiting; raises `OSError` if it is dead."""
        while True:
            try:
                chunk = os.read(self.out, _ROOM)
            except BlockingIOError:
                break
            if not chunk:
                raise BrokenPipeError
            self._received += chunk
        results: list[Result] = []
        at = 0
        while len(self._received) >= at + 4:
            end = at + 4 + int.from_bytes(self._received[at : at + 4], "little")
            if len(self._received) < end:
                break
            number, content = marshal.loads(self._received[at + 4 : end])
            if self.tasks.pop(number, None) is not None:
                results.append((number, content))
            at = end
        self._received = self._received[at:]
        return results

    def close(self) -> None:
        """Kill it: it changes nothing, and holds nothing but a permit, that of a living parent, who gives it back."""
        with contextlib.suppress(OSError):
            self._child.kill()
        self._child.wait()
        for file in (self._child.stdin, self._child.stdout):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._cores.give(self._permit)

    def _send(self, content: bytes) -> None:
        if os.write(self._in, content) != len(content):
            raise BlockingIOError


def _prepare(pipe: int) -> None:
    """Have nobody wait at this end, and let the pipe hold a few batches, so that the child need not wait either."""
    if sys.platform != "win32":  # there `Cores.limit` is 1: a pipe cannot be looked into
        os.set_blocking(pipe, False)
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _ROOM)
