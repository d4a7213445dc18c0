"""Sources become bytecode: in this process and, where there is much of it and cores are idle, in child interpreters.

The result is what pip makes with compileall. Children change nothing on a disk. Each has a share of the sources and
begins with the largest; this process takes the smallest from the shares until all is done. So a killed, stopped or slow
child is not waited for. `py_compile` is imported where it is used: most wheels do not need it.
"""

import importlib.util
import marshal
import os
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs

# Bytes of sources that take much longer to compile (50 ms) than to start an interpreter for them (12 ms).
_WORTH = 400_000
_MOST = 8  # the quota of a container may be smaller than its number of cores
# In Python 3.10 bytecode also depends on which names a process has in memory.
_IS_REPRODUCIBLE = sys.version_info >= (3, 11)


class Source(NamedTuple):
    """One source: its absolute path, the name to compile into its bytecode (for tracebacks), its size in bytes."""

    path: str
    name: str
    size: int


def style() -> tuple[bytes, int, bool]:
    """How py_compile, and so pip, makes bytecode here: for which interpreter, how optimized, with a hash (PEP 552)?"""
    return MAGIC_NUMBER, sys.flags.optimize, bool(os.environ.get("SOURCE_DATE_EPOCH"))


def _has_ranges() -> bool:
    """Whether bytecode has the columns of each instruction (not with `-X no_debug_ranges`)."""
    positions = getattr(compile("a", "", "eval"), "co_positions", lambda: [(None,)])  # from Python 3.11 on
    return any(each[-1] is not None for each in positions())


def key() -> str | None:
    """A name for what bytecode depends on besides its source; None where pip would put none beside the sources."""
    if sys.pycache_prefix is not None or sys.implementation.cache_tag is None:
        return None
    magic, optimize, is_hashed = style()
    parts = [sys.implementation.cache_tag, magic.hex(), f"opt{optimize}"]
    return "-".join([*parts, *["hashed"] * is_hashed, *["ranges"] * _has_ranges()])


def idle_cores() -> int:
    """How many more processes can run at this moment without taking a core from another.

    At most the CPUs that this process may run on (sched_setaffinity(2)), less the tasks that run or want to run now
    (proc(5), `loadavg`), or the load average of the last minute.
    """
    if sys.platform == "win32":  # there is no pread(2) there
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

    On return every source has its bytecode but those in the result: by path, what py_compile said of it. If it raises
    `OSError`, and after a crash, that of some sources is there, that of one perhaps in part; no more is written.
    """
    messages: dict[str, str] = {}
    directories: set[str] = set()

    def write(source: Source, content: bytes | str) -> None:
        if isinstance(content, str):
            messages[source.path] = content
        else:
            cached = importlib.util.cache_from_source(source.path)
            directory = os.path.dirname(cached)
            if directory not in directories:
                directories.add(directory)
                fs.make_directories(Path(directory))
            fs.write(cached, content, mode=0o666)
        beat()

    worth = sum(each.size for each in files) // _WORTH - 1
    count = min(worth, _MOST, idle_cores()) if worth > 0 and _IS_REPRODUCIBLE else 0
    ordered = sorted(files, key=lambda each: each.size, reverse=True)
    shares = [deque(ordered[number :: max(count, 1)]) for number in range(max(count, 1))]
    children: list[Child] = []
    with warnings.catch_warnings(), ExitStack() as started:
        warnings.simplefilter("ignore")
        with suppress(OSError):  # this process does without one that cannot start
            for share in shares[:count]:
                children.append(started.enter_context(closing(Child(share))))
        while share := max(shares, key=len):
            source = share.pop()  # the child has hardly begun with it, even if it is the last one
            write(source, bytecode(source.path, source.name, *style()))
            for child in children:
                for content in child.receive():
                    write(child.share.popleft(), content)
    return messages


def bytecode(path: str, name: str, magic: bytes, optimize: int, is_hashed: bool) -> bytes | str:
    """The content of the `.pyc` of the source at `path`, or, where it cannot be compiled, what py_compile says of it.

    Raises `OSError` if the source cannot be read. A child runs it without this module: see `_PROGRAM`.
    """
    with open(path, "rb", buffering=0) as file:
        status, source = os.fstat(file.fileno()), file.readall()
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


def _serve() -> None:
    """In the child: compile its share, as long as its parent lives."""
    parent, style, share = marshal.load(sys.stdin.buffer)
    for path, name in share:
        if os.getppid() != parent:
            return
        content = marshal.dumps(bytecode(path, name, *style))
        sys.stdout.buffer.write(len(content).to_bytes(4, "little") + content)
        sys.stdout.buffer.flush()


# The functions come from the memory of this process: another command may have replaced our files meanwhile. Any other
# process that wants the core comes first.
_PROGRAM = """
import marshal, os, sys
try:
    os.nice(10)
    bytecode, serve = (type(lambda: 0)(code, globals()) for code in marshal.load(sys.stdin.buffer))
    serve()
finally:
    os._exit(0)
"""


class Child:
    """A child interpreter that compiles a share of the sources. Files without names are between it and this process."""

    def __init__(self, share: deque[Source]) -> None:
        """Start it; raises `OSError` if that cannot be done. The caller takes what is done out of `share`."""
        self.share = share
        self._at = 0
        tasks = os.getpid(), style(), [(each.path, each.name) for each in share]
        given = fs.unnamed_file(marshal.dumps((bytecode.__code__, _serve.__code__)) + marshal.dumps(tasks))
        self._made = fs.unnamed_file(b"")
        ranges = () if _has_ranges() else ("-X", "no_debug_ranges")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-W", "ignore", *ranges, "-c", _PROGRAM],
                stdin=given,
                stdout=self._made,
                stderr=subprocess.DEVNULL,
            )
        except BaseException:
            os.close(self._made)
            raise
        finally:
            os.close(given)

    def receive(self) -> Iterator[bytes | str]:
        """What it has made since the last call of the sources that are left in its share, in their order."""
        if sys.platform == "win32":
            return
        while self.share and len(head := os.pread(self._made, 4, self._at)) == 4:
            size = int.from_bytes(head, "little")
            content = os.pread(self._made, size, self._at + 4)
            if len(content) < size:
                return
            self._at += 4 + size
            yield marshal.loads(content)

    def close(self) -> None:
        """Kill it: it changes nothing and holds nothing."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        os.close(self._made)
