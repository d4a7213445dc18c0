"""What makes a start cheaper than pip's own; `docs/performance.md` says what each trick saves.

- The garbage collector rests until the command begins: until then modules are imported, and hardly anything is garbage.
- What importing pip compiles besides its modules is compiled once. Libraries compile more than 200 regular expressions
  while they are imported, and `collections` and `dataclasses` the source of methods for 150 classes. The results, the
  programs of expressions and code objects, are kept beside the frozen copy of pip for the very build of Python that
  made them. The matching engine checks each program that it is given; what is not kept is compiled as usual.

`SAFE_PIP_FAST_START=0` (`fast-start` in pip's configuration) switches all of it off.
"""

import builtins
import collections
import dataclasses
import gc
import hashlib
import importlib
import marshal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, SimpleNamespace
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


class FastStart:
    """The tricks of one process: between `attach` and `end` `re`, `collections` and `dataclasses` ask this object."""

    def __init__(self, file: Path | None) -> None:
        """`file` is where the results are kept; None switches everything off."""
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
