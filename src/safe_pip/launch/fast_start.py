"""What makes a start cheaper than pip's own; `docs/performance.md` says what each trick saves.

- The garbage collector rests until the command begins: until then modules are imported, and hardly anything is garbage.
- What importing pip compiles besides its modules, more than 200 regular expressions and the methods of 150 classes, is
  compiled once. The results are kept beside the frozen copy of pip for the very build of Python that made them. The
  matching engine checks each program that it is given; what is not kept is compiled as usual.
- pip's modules come from one file, the bundle: no directory and no source is looked at for any of 400 modules.
- At the end memory is left to the system. An interpreter takes its objects apart one by one, for nothing.

`SAFE_PIP_FAST_START=0` (`fast-start` in pip's configuration) switches all of it off.
"""

import atexit
import builtins
import collections
import dataclasses
import gc
import hashlib
import importlib
import marshal
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from safe_pip import fs

MOST = 5000  # are kept of each kind; pip and its libraries have some hundred
_WORD = 4  # bytes of the matching engine's code
_GARBAGE = 50_000  # new objects until the collector looks: a command of a second makes hardly any garbage
_UNREADABLE = (OSError, ValueError, EOFError, TypeError)

Expression = tuple[bool, str | bytes, int]
"""Whether it is of bytes (`python -bb` forbids comparing them with text), the expression, its flags."""
Program = tuple[int, bytes, int, dict[str, int], tuple[str | None, ...]]
"""What `_sre.compile` takes besides the expression: flags, the code as words of this machine, groups, their names."""

_is_on = False


class FastStart:
    """Between `attach` and `end` `re`, `collections` and `dataclasses` ask this object for what is kept in `file`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._programs: dict[Expression, Program] = {}
        self._sources: dict[tuple[str, str], CodeType] = {}  # by mode of `compile` and source
        self._is_new = False
        self._made: Program | None = None
        self._compiler: Any = None
        self._engine: Any = None
        self._compile: Any = None

    def attach(self) -> None:
        """Use what is kept; an interpreter that is not made as expected is left alone."""
        global _is_on
        _is_on = True
        with suppress(ImportError, AttributeError):
            compiler: Any = importlib.import_module("re._compiler" if sys.version_info >= (3, 11) else "sre_compile")
            engine, self._compile = compiler._sre, compiler.compile
            if engine.CODESIZE != _WORD:
                return
            with suppress(*_UNREADABLE):
                self._programs, self._sources = _unsealed(self._file.read_bytes())
            recording = SimpleNamespace(**vars(engine))
            recording.compile = self._record
            self._compiler, self._engine = compiler, engine
            compiler._sre, compiler.compile = recording, self._program
            # Both call the built-in function, always with the namespaces that they want.
            vars(collections)["eval"] = self._running("eval", builtins.eval)
            vars(dataclasses)["exec"] = self._running("exec", builtins.exec)

    def end(self) -> None:
        """The command begins: leave the standard library as it was, keep what was new, and wake the collector."""
        if self._compiler is not None:
            self._compiler._sre, self._compiler.compile = self._engine, self._compile
            del vars(collections)["eval"], vars(dataclasses)["exec"]
            self._compiler = None
            if self._is_new and max(len(self._programs), len(self._sources)) <= MOST:
                with suppress(OSError):
                    fs.replace(self._file, _sealed(self._programs, self._sources))
        if not gc.isenabled():
            gc.freeze()  # What was imported stays; the collector need not look at it again.
            gc.set_threshold(_GARBAGE)
            gc.enable()

    def _program(self, pattern: Any, flags: int = 0) -> Any:
        """In place of the function of `re` that compiles."""
        if pattern.__class__ is not str and pattern.__class__ is not bytes:
            return self._compile(pattern, flags)
        expression = (pattern.__class__ is bytes, pattern, int(flags))
        kept = self._programs.get(expression)
        if kept is not None:
            all_flags, code, *rest = kept
            return self._engine.compile(pattern, all_flags, memoryview(code).cast("I").tolist(), *rest)
        self._made = None
        found = self._compile(pattern, flags)
        if self._made is not None:
            self._programs[expression] = self._made
            self._is_new = True
        return found

    def _record(self, pattern: Any, flags: int, code: list[int], groups: int, names: Any, numbers: Any) -> Any:
        """In the engine's place while `re` compiles."""
        words = b"".join(int(word).to_bytes(_WORD, sys.byteorder) for word in code)
        self._made = (int(flags), words, groups, dict(names), numbers)
        return self._engine.compile(pattern, flags, code, groups, names, numbers)

    def _running(self, mode: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """In place of `eval` or `exec` of a text."""

        def running(source: Any, *namespaces: Any) -> Any:
            if source.__class__ is str:
                kept = self._sources.get((mode, source))
                if kept is None:
                    kept = compile(source, "<string>", mode, dont_inherit=True)
                    self._sources[mode, source] = kept
                    self._is_new = True
                source = kept
            return run(source, *namespaces)

        return running


def _sealed(*content: Any) -> bytes:
    return hashlib.sha256(data := marshal.dumps(content)).digest() + data


def _unsealed(data: bytes) -> Any:
    """What was sealed; raises one of `_UNREADABLE` if the data is damaged."""
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise ValueError("damaged")
    return marshal.loads(data[32:])


Place = tuple[str, bool, int, int]  # a module's source; whether it is a package; offset and size of its code


def make_bundle(copy: Path, file: Path) -> None:
    """Write the bytecode of the modules below `copy` to `file`, whole or not at all; or `OSError`."""
    table: dict[str, Place] = {}
    code = bytearray()
    for source in sorted(copy.glob("pip/**/*.py")):
        content = b""
        with suppress(FileNotFoundError):
            content = Path(cache_from_source(str(source))).read_bytes()
        if content.startswith(MAGIC_NUMBER):
            *parents, stem = source.relative_to(copy).with_suffix("").parts
            is_package = stem == "__init__"
            name = ".".join(parents if is_package else (*parents, stem))
            table[name] = (str(source), is_package, len(code), len(content) - 16)  # 16 bytes are not code (PEP 552)
            code += content[16:]
    head = _sealed(table)
    fs.replace(file, len(head).to_bytes(8, "little") + head + code)


def attach_bundle(file: Path) -> None:
    """Import modules from the bundle `file` from now on; a damaged one is removed, so that it is made anew."""
    if sys.platform == "win32":  # which cannot read at an offset
        return
    try:
        fd = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        length = min(int.from_bytes(os.pread(fd, 8, 0), "little"), os.fstat(fd).st_size)
        (table,) = _unsealed(os.pread(fd, length, 8))
        sys.meta_path.insert(0, _Finder(table, fd, 8 + length))
    except _UNREADABLE:
        os.close(fd)
        with suppress(OSError):
            fs.unlink(file)


class _Finder:
    """What `sys.meta_path` holds (docs.python.org, `importlib.abc.MetaPathFinder`)."""

    def __init__(self, table: dict[str, Place], fd: int, start: int) -> None:
        self._table, self._fd, self._start = table, fd, start

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self._table.get(name)
        if place is None:
            return None
        origin, is_package, offset, size = place
        loader = _Loader(name, origin)
        loader.place = self._fd, size, self._start + offset
        below = [os.path.dirname(origin)] if is_package else None
        return spec_from_file_location(name, origin, loader=loader, submodule_search_locations=below)


class _Loader(SourceFileLoader):
    """Imports a module as the interpreter does, with the code from the bundle, or else from beside its source."""

    place: tuple[int, int, int]

    def get_code(self, fullname: str) -> CodeType | None:
        if sys.platform != "win32":
            with suppress(*_UNREADABLE):
                code = marshal.loads(os.pread(*self.place))
                if isinstance(code, CodeType):
                    return code
        return super().get_code(fullname)


def leave(status: int) -> None:
    """End this process as the interpreter would, but leave its memory to the system. To be called by `main` alone.

    Returns, so that the interpreter ends the process, if `FastStart` is off, if a profiler, a debugger, `-i`, `-X dev`
    or a program that runs safe-pip in its own process sees the end, or if a stream cannot be flushed.
    """
    if not _is_on or _is_watched() or not _is_program(sys._getframe(2)):
        return
    try:
        vars(threading)["_shutdown"]()
        vars(atexit)["_run_exitfuncs"]()
        for stream in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        return
    os._exit(status & 0xFF)


def _is_watched() -> bool:
    flags = sys.flags
    if flags.inspect or flags.dev_mode or flags.verbose or sys.gettrace() or sys.getprofile():
        return True
    monitoring: Any = getattr(sys, "monitoring", None)
    return monitoring is not None and any(map(monitoring.get_tool, range(6)))


def _is_program(frame: Any) -> bool:
    """Whether this frame is the program that the interpreter was started for, with no other program below it."""
    found = []
    while frame:
        found.append((frame.f_globals.get("__name__"), frame.f_code.co_name))
        frame = frame.f_back
    below = {("runpy", "_run_module_as_main"), ("runpy", "_run_code")}  # what `python -m` has on the stack
    return found[0] == ("__main__", "<module>") and below.issuperset(found[1:])
