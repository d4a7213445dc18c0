"""What importing pip compiles besides its modules is compiled once: a fifth of what a small install computes.

Libraries compile more than 200 regular expressions while they are imported, and `collections` and `dataclasses` the
source of methods for 150 classes. What comes of it, the program of an expression or a code object, is kept beside the
frozen copy of pip, as the bytecode of its modules is, for the very build of Python that made it. From then on it is
taken as it is. The matching engine checks each program it is given; what is not kept is compiled as ever.
"""

import builtins
import collections
import dataclasses
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

Expression = tuple[bool, str | bytes, int]
"""Whether it is of bytes (`python -bb` forbids to compare them with text), the expression, its flags."""


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


class Compiled:
    """What `re`, `collections` and `dataclasses` ask in this process, from `attach` on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept = Kept({}, {})
        self._is_learning = False
        self._is_new = False
        self._made: Program | None = None
        self._compiler: Any = None
        self._engine: Any = None
        self._compile: Any = None

    def attach(self) -> None:
        """Have taken what is kept; with an interpreter that is not made as expected all stays as it is."""
        if sys.implementation.name != "cpython":
            return
        with suppress(ImportError, AttributeError):
            compiler: Any = importlib.import_module("re._compiler" if sys.version_info >= (3, 11) else "sre_compile")
            engine, self._compile = compiler._sre, compiler.compile
            if engine.CODESIZE != _WORD:
                return
            self._kept = _read(self._file, _identity(engine))
            recording = SimpleNamespace(**vars(engine))
            recording.compile = self._record
            self._compiler, self._engine, self._is_learning = compiler, engine, True
            compiler._sre, compiler.compile = recording, self._program
            # Both call the built-in function, always with the namespaces that they want.
            vars(collections)["eval"] = self._running("eval", builtins.eval)
            vars(dataclasses)["exec"] = self._running("exec", builtins.exec)

    def keep(self) -> None:
        """Learn no more, and keep what was new: what comes from now on is made of what users write.

        Of several processes that do so at once the last one's is kept. Where nothing can be written nothing is.
        """
        if not self._is_learning:
            return
        self._is_learning = False
        self._compiler._sre = self._engine
        if self._is_new and all(len(kept) <= MOST for kept in self._kept):
            programs = {expression: tuple(program) for expression, program in self._kept.programs.items()}
            kept: Any = (_identity(self._engine), programs, self._kept.sources)
            content = marshal.dumps(kept)
            with suppress(OSError):
                fs.replace(self._file, hashlib.sha256(content).digest() + content)

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
        if self._is_learning and self._made is not None:
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
                    if self._is_learning:
                        self._kept.sources[mode, source] = kept
                        self._is_new = True
                source = kept
            return run(source, *namespaces)

        return running


_WORD = 4
"""The size of a word of the engine's code, in bytes."""


def _identity(engine: Any) -> tuple[object, ...]:
    """What it is made for: nobody else takes it."""
    return (_FORMAT, sys.version, sys.byteorder, engine.MAGIC, sys.flags.optimize)


def _read(file: Path, identity: tuple[object, ...]) -> Kept:
    """What is kept; nothing if that is damaged, or of another interpreter."""
    with suppress(OSError, ValueError, EOFError, TypeError):
        content = file.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            made_for, programs, sources = marshal.loads(content[_DIGEST:])
            if made_for == identity:
                return Kept(programs, sources)
    return Kept({}, {})
