"""What makes a start cheaper than pip's own; `docs/performance.md` says what each trick saves.

- The garbage collector rests until the command begins: until then modules are imported, and hardly anything is garbage.
- What importing pip compiles besides its modules is compiled once. Libraries compile more than 200 regular expressions
  while they are imported, and `collections` and `dataclasses` the source of methods for 150 classes. The results, the
  programs of expressions and code objects, are kept beside the frozen copy of pip for the very build of Python that
  made them. The matching engine checks each program that it is given; what is not kept is compiled as usual.
- pip's modules come from one file, the bundle. To import a module the interpreter asks for the times of a directory and
  of a source, and opens and reads a file. A command imports 400 modules of a pip that never changes.
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
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from safe_pip import fs

_FORMAT = 1
MOST = 5000
"""So many are kept of each kind; pip and its libraries have some hundred."""
_DIGEST = hashlib.sha256().digest_size
_WORD = 4
"""The size of a word of the matching engine's code, in bytes."""
_GARBAGE = 50_000
"""The collector looks after so many new objects: a command that lasts a second makes hardly any garbage."""

Expression = tuple[bool, str | bytes, int]
"""Whether it is of bytes (`python -bb` forbids comparing them with text), the expression, its flags."""


class Program(NamedTuple):
    """What `_sre.compile` takes besides the expression; the code as words of this machine."""

    flags: int
    code: bytes
    groups: int
    group_index: dict[str, int]
    index_group: tuple[str | None, ...]


class Kept(NamedTuple):
    """What was compiled: of each expression, and of each source in each mode of `compile`."""

    programs: dict[Expression, Program]
    sources: dict[tuple[str, str], CodeType]


_is_on = False
"""Whether this process uses what makes a start cheaper."""


class FastStart:
    """The tricks of one process: between `attach` and `end` `re`, `collections` and `dataclasses` ask this object."""

    def __init__(self, file: Path | None, *, copy: Path | None = None, bundle: Path | None = None) -> None:
        """`file` is where the results are kept; None switches everything off. `bundle` is made of the pip in `copy`."""
        self._copy, self._bundle = copy, bundle
        self._file = file
        self._kept = Kept({}, {})
        self._is_new = False
        self._made: Program | None = None
        self._compiler: Any = None
        self._engine: Any = None
        self._compile: Any = None

    def attach(self) -> None:
        """Use what is kept; an interpreter that is not made as expected is left alone."""
        if self._file is None or sys.implementation.name != "cpython":
            return
        global _is_on
        _is_on = True
        if self._copy is not None and self._bundle is not None:
            attach_bundle(self._copy, self._bundle)
        with suppress(ImportError, AttributeError):
            compiler: Any = importlib.import_module("re._compiler" if sys.version_info >= (3, 11) else "sre_compile")
            engine, self._compile = compiler._sre, compiler.compile
            if engine.CODESIZE != _WORD:
                return
            self._kept = _read(self._file, _identity(engine))
            recording = SimpleNamespace(**vars(engine))
            recording.compile = self._record
            self._compiler, self._engine = compiler, engine
            compiler._sre, compiler.compile = recording, self._program
            # Both call the built-in function, always with the namespaces that they want.
            vars(collections)["eval"] = self._running("eval", builtins.eval)
            vars(dataclasses)["exec"] = self._running("exec", builtins.exec)

    def end(self) -> None:
        """The command begins: leave the standard library as it was, keep what was new, and wake the collector.

        Of several processes that keep something at once, the last one's is kept. Where nothing can be written nothing
        is kept.
        """
        if self._compiler is not None:
            self._compiler._sre, self._compiler.compile = self._engine, self._compile
            del vars(collections)["eval"], vars(dataclasses)["exec"]
            self._compiler = None
            if self._is_new and all(len(kept) <= MOST for kept in self._kept):
                programs = {expression: tuple(program) for expression, program in self._kept.programs.items()}
                kept: Any = (_identity(self._engine), programs, self._kept.sources)
                content = marshal.dumps(kept)
                with suppress(OSError):
                    assert self._file is not None
                    fs.replace(self._file, hashlib.sha256(content).digest() + content)
        if not gc.isenabled():
            gc.freeze()  # What was imported stays; the collector need not look at it again.
            gc.set_threshold(_GARBAGE)
            gc.enable()

    def _program(self, pattern: Any, flags: int = 0) -> Any:
        """In place of the function of `re` that compiles."""
        if pattern.__class__ is not str and pattern.__class__ is not bytes:
            return self._compile(pattern, flags)
        expression = (pattern.__class__ is bytes, pattern, int(flags))
        kept = self._kept.programs.get(expression)
        if kept is not None:
            all_flags, code, *rest = kept
            return self._engine.compile(pattern, all_flags, memoryview(code).cast("I").tolist(), *rest)
        self._made = None
        found = self._compile(pattern, flags)
        if self._made is not None:
            self._kept.programs[expression] = self._made
            self._is_new = True
        return found

    def _record(
        self,
        pattern: Any,
        flags: int,
        code: list[int],
        groups: int,
        group_index: dict[str, int],
        index_group: tuple[str | None, ...],
    ) -> Any:
        """In the engine's place while `re` compiles."""
        words = b"".join(int(word).to_bytes(_WORD, sys.byteorder) for word in code)
        self._made = Program(int(flags), words, groups, dict(group_index), index_group)
        return self._engine.compile(pattern, flags, code, groups, group_index, index_group)

    def _running(self, mode: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """In place of `eval` or `exec` of a text."""

        def running(source: Any, *namespaces: Any) -> Any:
            if source.__class__ is str:
                kept = self._kept.sources.get((mode, source))
                if kept is None:
                    kept = compile(source, "<string>", mode, dont_inherit=True)
                    self._kept.sources[mode, source] = kept
                    self._is_new = True
                source = kept
            return run(source, *namespaces)

        return running


def _identity(engine: Any) -> tuple[object, ...]:
    """What the results are made for: no other interpreter uses them."""
    return (_FORMAT, sys.version, sys.byteorder, engine.MAGIC, sys.flags.optimize)


def _read(file: Path, identity: tuple[object, ...]) -> Kept:
    """What is kept; nothing if the file is damaged, or another interpreter's."""
    with suppress(OSError, ValueError, EOFError, TypeError):
        content = file.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            made_for, programs, sources = marshal.loads(content[_DIGEST:])
            if made_for == identity:
                return Kept(programs, sources)
    return Kept({}, {})


# pip's modules from one file.

_BUNDLE_FORMAT = 1
_BEFORE_CODE = 16
"""So many bytes of a file of bytecode are not code (PEP 552)."""
_LENGTH = 8
_DIGEST = hashlib.sha256().digest_size
"""A bundle is the length of its table in so many bytes, the table's digest, the table, and the code."""

Place = tuple[str, bool, int, int]
"""Of one module: its source, relative to the copy; whether it is a package; offset and size of its code, in bytes."""


def make_bundle(copy: Path, file: Path) -> None:
    """Write the bytecode of all modules below `copy` to `file`; a module without bytecode is left out.

    Readers see the old file, none, or the new one. Raises `OSError` if something cannot be read or written.
    """
    table: dict[str, Place] = {}
    code = bytearray()
    for source in sorted(copy.glob("pip/**/*.py")):
        content = b""
        with suppress(FileNotFoundError):
            content = Path(cache_from_source(str(source))).read_bytes()
        if content.startswith(MAGIC_NUMBER):
            relative = source.relative_to(copy)
            is_package = relative.name == "__init__.py"
            name = ".".join(relative.parent.parts if is_package else relative.with_suffix("").parts)
            table[name] = (str(relative), is_package, len(code), len(content) - _BEFORE_CODE)
            code += content[_BEFORE_CODE:]
    head = marshal.dumps((_bundle_identity(copy), len(code), table))
    fs.replace(file, len(head).to_bytes(_LENGTH, "little") + hashlib.sha256(head).digest() + head + code)


def attach_bundle(copy: Path, file: Path) -> None:
    """Import modules from the bundle `file` from now on, if it was made of `copy`.

    It stays open while this process lives. A damaged bundle is removed, so that it is made anew.
    """
    if sys.platform == "win32":  # which cannot read at an offset
        return
    try:
        fd = os.open(file, os.O_RDONLY)
    except OSError:
        return
    head = _head(fd)
    if head is not None and head.identity == _bundle_identity(copy):
        sys.meta_path.insert(0, _Finder(str(copy), head.table, _Code(fd, head.end)))
        return
    os.close(fd)
    if head is None:
        with suppress(OSError):
            fs.unlink(file)


class _Head(NamedTuple):
    identity: tuple[int, bytes, int, str]
    table: dict[str, Place]
    end: int
    """Where the code begins."""


def _head(fd: int) -> _Head | None:
    """What a bundle begins with; None if it is damaged, or has another length or format."""
    if sys.platform != "win32":
        with suppress(OSError, ValueError, EOFError, TypeError):
            whole = os.fstat(fd).st_size
            length = int.from_bytes(os.pread(fd, _LENGTH, 0), "little")
            digest = os.pread(fd, _DIGEST, _LENGTH)
            end = _LENGTH + _DIGEST + length
            content = os.pread(fd, length, end - length) if end <= whole else b""
            if content and hashlib.sha256(content).digest() == digest:
                identity, size, table = marshal.loads(content)
                if end + size == whole:
                    return _Head(identity, table, end)
    return None


def _bundle_identity(copy: Path) -> tuple[int, bytes, int, str]:
    """What a bundle is made for; no other copy uses it. Code objects carry the names of their sources."""
    return (_BUNDLE_FORMAT, MAGIC_NUMBER, sys.flags.optimize, str(copy))


class _Code(NamedTuple):
    """The code in an open bundle."""

    fd: int
    start: int

    def read(self, offset: int, size: int) -> CodeType | None:
        """One module's; None if it is damaged."""
        if sys.platform != "win32":
            with suppress(OSError, ValueError, EOFError, TypeError):
                code = marshal.loads(os.pread(self.fd, size, self.start + offset))
                if isinstance(code, CodeType):
                    return code
        return None


class _Finder:
    """What `sys.meta_path` holds (docs.python.org, `importlib.abc.MetaPathFinder`)."""

    def __init__(self, copy: str, table: dict[str, Place], code: _Code) -> None:
        self._prefix = copy + os.sep
        self._table = table
        self._code = code

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self._table.get(name)
        if place is None:
            return None
        source, is_package, offset, size = place
        origin = self._prefix + source
        spec = ModuleSpec(name, _Loader(name, origin, self._code, offset, size), origin=origin)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec


class _Loader(SourceFileLoader):
    """Imports a module as the interpreter does, with the code from the bundle."""

    def __init__(self, name: str, path: str, code: _Code, offset: int, size: int) -> None:
        super().__init__(name, path)
        self._code = code
        self._offset = offset
        self._size = size

    def get_code(self, fullname: str) -> CodeType | None:
        return self._code.read(self._offset, self._size) or super().get_code(fullname)


# The end of the process.

# What `python -m` has on the stack below the module that it runs.
_OF_RUNPY = {"_run_module_as_main", "_run_code"}
_TOOLS = range(6)  # docs.python.org, `sys.monitoring`, "Tool identifiers"


def leave(status: int) -> None:
    """End this process as the interpreter would, but leave its memory to the system. To be called by `main` alone.

    Threads are waited for, exit functions called, streams flushed. Returns, so that the interpreter ends the process,
    if `FastStart` is off, if a profiler, a debugger, `-i`, `-X dev` or a program that runs safe-pip in its own process
    sees the end, or if a stream cannot be flushed: the interpreter says so then.
    """
    wait = getattr(threading, "_shutdown", None)
    call = getattr(atexit, "_run_exitfuncs", None)
    if not _is_on or wait is None or call is None or _is_watched() or not _is_all(sys._getframe(2)):
        return
    try:
        wait()
        call()
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
    return monitoring is not None and any(monitoring.get_tool(tool) is not None for tool in _TOOLS)


def _is_all(frame: Any) -> bool:
    """Whether this frame is the program that the interpreter was started for, with no other program below it."""
    if frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") != "__main__":
        return False
    while frame := frame.f_back:
        if frame.f_globals.get("__name__") != "runpy" or frame.f_code.co_name not in _OF_RUNPY:
            return False
    return True
