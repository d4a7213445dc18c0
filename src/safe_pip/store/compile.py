"""Sources become bytecode: in this process and, where there is much of it and cores are idle, in child interpreters.

The result is what pip makes with the standard library's compileall, header included.

Children change nothing on a disk: they get paths and send bytecode back. This process compiles small sources while the
children begin with large ones; at the end it compiles itself what a killed, stopped or slow child has not sent.

`py_compile` and `fcntl` are imported where they are used: most wheels need neither.
"""

import contextlib
import importlib.util
import marshal
import os
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs

_WORTH = 400_000
"""Bytes of sources that take much longer to compile (50 ms) than to start an interpreter for them (12 ms)."""
_BATCH = 60_000
_AHEAD = 3 * _BATCH
_FILES = 100
_MOST = 8
"""No more children than this: the quota of a container may be smaller than its number of cores."""
_PIPE = 1 << 20

_IS_REPRODUCIBLE = sys.version_info >= (3, 11)
"""Whether bytecode is the same in every process: in Python 3.10 it also depends on which names it has in memory."""


class Source(NamedTuple):
    """One source: its absolute path, the name to compile into its bytecode (for tracebacks), its size in bytes."""

    path: str
    name: str
    size: int


class Style(NamedTuple):
    """What decides how bytecode looks; `is_hashed`: its header has the source's hash, not its time (PEP 552)."""

    magic: bytes
    optimize: int
    is_hashed: bool
    has_ranges: bool

    @classmethod
    def of_this_process(cls) -> "Style":
        """What py_compile, and so pip, uses here."""
        positions = getattr(compile("a", "", "eval"), "co_positions", lambda: [(None,)])  # from Python 3.11 on
        has_ranges = any(each[-1] is not None for each in positions())
        return cls(MAGIC_NUMBER, sys.flags.optimize, bool(os.environ.get("SOURCE_DATE_EPOCH")), has_ranges)


def key() -> str | None:
    """A name for what bytecode depends on besides its source: cache tag, magic number, optimisation, kind of header.

    None where pip would not put bytecode beside the sources (PYTHONPYCACHEPREFIX), or would make none.
    """
    if sys.pycache_prefix is not None or sys.implementation.cache_tag is None:
        return None
    style = Style.of_this_process()
    parts = [sys.implementation.cache_tag, style.magic.hex(), f"opt{style.optimize}"]
    return "-".join([*parts, *["hashed"] * style.is_hashed, *["ranges"] * style.has_ranges])


def idle_cores() -> int:
    """How many more processes can run at this moment without taking a core from another.

    The bounds are the CPUs that this process may run on (sched_setaffinity(2)). What counts against them are the tasks
    that run or want to run now (proc(5), `loadavg`), or the load average, which is of the last minute.
    """
    if sys.platform == "win32":  # a pipe cannot be looked into there
        return 0
    online = allowed = os.cpu_count() or 1
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
    try:
        with open("/proc/loadavg", encoding="utf-8") as file:
            running = float(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        try:
            running = os.getloadavg()[0]
        except OSError:
            return 0
    return max(0, min(allowed - 1, int(online - max(1.0, running))))


def compile_sources(files: Sequence[Source], *, beat: Callable[[], None]) -> dict[str, str]:
    """Write the bytecode of each source, none of which has any; `beat` is called after each.

    On return every source has its bytecode but those in the result: by path, what py_compile said of it. Raises
    `OSError` if a source cannot be read or bytecode cannot be written. Then, and after a crash, that of some sources is
    there, that of one perhaps in part; nothing is written any more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Work(files, beat).run()


class _Work:
    def __init__(self, files: Sequence[Source], beat: Callable[[], None]) -> None:
        self._files = sorted(files, key=lambda each: each.size)
        self._beat = beat
        self._style = Style.of_this_process()
        self._todo = deque(range(len(self._files)))
        """The numbers of those that no process has taken: this one takes the smallest, a child the largest."""
        self._children: list[Child] = []
        self._directories: set[str] = set()
        self._messages: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        try:
            self._start_children()
            while (number := self._next()) is not None:
                source = self._files[number]
                self._write(number, bytecode(source.path, source.name, *self._style[:3]))
        finally:
            for child in self._children:
                child.close()
        return self._messages

    def _start_children(self) -> None:
        worth = sum(each.size for each in self._files) // _WORTH - 1
        if worth > 0 and _IS_REPRODUCIBLE:
            with contextlib.suppress(OSError):  # this process does without one that cannot start
                for _ in range(min(worth, _MOST, idle_cores())):
                    self._children.append(Child(self._style))

    def _next(self) -> int | None:
        """What this process does next; in the end what the children have and have not sent."""
        for child in self._children[:]:
            self._exchange(child)
        if self._todo:
            return self._todo.popleft()
        for child in self._children:
            if child.tasks:
                return child.tasks.popitem()[0]  # the last one, which the child has hardly begun
        return None

    def _exchange(self, child: "Child") -> None:
        """Write what a child has sent, and give it more to do; drop it if it is dead or stopped."""
        try:
            for number, content in child.receive():
                self._write(number, content)
            if self._todo and sum(child.tasks.values()) < _AHEAD:
                batch: dict[int, Source] = {}
                while self._todo and len(batch) < _FILES and sum(each.size for each in batch.values()) < _BATCH:
                    number = self._todo.pop()
                    batch[number] = self._files[number]
                child.give(batch)
        except OSError:
            self._children.remove(child)
            self._todo.extend(child.tasks)
            child.close()

    def _write(self, number: int, content: bytes | str) -> None:
        path = self._files[number].path
        if isinstance(content, str):
            self._messages[path] = content
        else:
            cached = importlib.util.cache_from_source(path)
            directory = os.path.dirname(cached)
            if directory not in self._directories:
                self._directories.add(directory)
                fs.make_directories(Path(directory))
            fs.write(cached, content, mode=0o666)
        self._beat()


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


def _serve(style: tuple[bytes, int, bool]) -> None:
    """In the child: compile what comes; raises `EOFError` or `OSError` when its parent has gone."""
    while True:
        for number, path, name in marshal.load(sys.stdin.buffer):
            content = marshal.dumps((number, bytecode(path, name, *style)))
            sys.stdout.buffer.write(len(content).to_bytes(4, "little") + content)
            sys.stdout.buffer.flush()


# The functions come from the memory of this process: another command may have replaced our files meanwhile. Any other
# process that wants the core comes first.
_PROGRAM = """
import marshal, os, sys
try:
    os.nice(10)
    bytecode, serve = (type(lambda: 0)(code, globals()) for code in marshal.load(sys.stdin.buffer))
    serve(marshal.load(sys.stdin.buffer))
finally:
    os._exit(0)
"""


class Child:
    """A child interpreter at work; `close` ends it, whatever it is doing."""

    def __init__(self, style: Style) -> None:
        """Start it; raises `OSError` if that cannot be done."""
        self._received = b""
        self.tasks: dict[int, int] = {}
        """The numbers, and sizes, of the sources that it was given and has not sent back."""
        ranges = () if style.has_ranges else ("-X", "no_debug_ranges")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-W", "ignore", *ranges, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._in, self.out = self._process.stdin.fileno(), self._process.stdout.fileno()
            for fd in (self._in, self.out):
                _widen(fd)
            self._send((bytecode.__code__, _serve.__code__))
            self._send(tuple(style[:3]))
        except BaseException:
            self.close()
            raise

    def give(self, batch: dict[int, Source]) -> None:
        """Give it more to do; raises `OSError` if it is dead, or takes nothing because it is stopped."""
        self.tasks.update((number, source.size) for number, source in batch.items())
        self._send([(number, source.path, source.name) for number, source in batch.items()])

    def receive(self) -> Iterable[tuple[int, bytes | str]]:
        """What it has sent of `tasks` since the last call, without waiting; raises `OSError` if it is dead."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.out, _PIPE):
                self._received += chunk
            raise BrokenPipeError
        results: list[tuple[int, bytes | str]] = []
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
        """Kill it: it changes nothing and holds nothing."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _send(self, value: Any) -> None:
        content = marshal.dumps(value)
        if os.write(self._in, content) != len(content):
            raise BlockingIOError


def _widen(pipe: int) -> None:
    """Let neither end wait: this one never blocks, and the pipe holds a few batches for the child."""
    if sys.platform != "win32":
        os.set_blocking(pipe, False)
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
