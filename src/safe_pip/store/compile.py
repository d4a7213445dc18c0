"""Sources become bytecode: in this process and, where there is much of it and cores are idle, in child interpreters.

What is written is what pip has the standard library's compileall write, header included; only `.pyc` files of this
interpreter, at its level of optimisation, in `__pycache__` beside their sources.
"""

import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.store.compiler import Compiler, Result, Settings, Task, bytecode
from safe_pip.store.cores import Cores

_WORTH = 400_000
"""Bytes of sources that take much longer (50 ms) than to start an interpreter (12 ms) and to talk to it."""
_BATCH = 60_000
_AHEAD = 3 * _BATCH
_FILES = 100
_LOOK = 0.03
"""Seconds between two looks at how many cores are idle."""

_IS_REPRODUCIBLE = sys.version_info >= (3, 11)
"""Whether bytecode is the same in every process: in Python 3.10 it also depends on which names it has in memory."""


class Source(NamedTuple):
    """One source: its absolute path, the name to compile into its bytecode (for tracebacks), its size in bytes."""

    path: str
    name: str
    size: int


def key() -> str | None:
    """What bytecode depends on besides its source, as a name: cache tag, magic number, optimisation, kind of header.

    None where pip would not put it beside the sources (PYTHONPYCACHEPREFIX), or would make none.
    """
    if sys.pycache_prefix is not None or sys.implementation.cache_tag is None:
        return None
    return Settings.of_this_process().key


def compile_sources(files: Sequence[Source], *, cores: Cores, progress: Callable[[int], None]) -> dict[str, str]:
    """Write the bytecode of each source, none of which has any; `progress` is told how many more are done.

    On return every source has its bytecode but those in the result: by path, what py_compile said of it (compileall
    prints it below the line "*** Error compiling '<path>'..."). The headers have the time and size that the sources
    have now. Raises `OSError` if a source cannot be read or bytecode cannot be written. Then, and after a crash, that
    of some sources is there, that of one perhaps in part; nobody writes any more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Work(files, cores, progress).run()


class _Work:
    """Small sources first, by this process, which in between takes what the children send; they begin at the end."""

    def __init__(self, files: Sequence[Source], cores: Cores, progress: Callable[[int], None]) -> None:
        self._files = sorted(files, key=lambda each: each.size)
        self._cores = cores
        self._progress = progress
        self._settings = Settings.of_this_process()
        self._first, self._end = 0, len(self._files)
        self._left = sum(each.size for each in self._files)
        """The bytes of those that nobody has taken, which stand from `_first` to `_end`."""
        self._children: list[Compiler] = []
        self._undone: list[Task] = []
        self._looked = 0.0
        self._may_start = _IS_REPRODUCIBLE
        self._directories: set[str] = set()
        self._messages: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        try:
            while (task := self._next()) is not None:
                number, path, name = task
                self._write((number, bytecode(path, name, *self._settings[:3])))
                if self._children or self._left > 2 * _WORTH:
                    self._look_after_children()
        finally:
            for child in self._children:
                child.close()
        return self._messages

    def _next(self) -> Task | None:
        """What this process does next: what nobody has, then what was given to a child and has not come back."""
        if self._undone:
            return self._undone.pop()
        if self._first < self._end:
            self._first += 1
            self._left -= self._files[self._first - 1].size
            return self._task(self._first - 1)
        self._receive()
        for child in self._children:
            if child.tasks:
                return child.tasks.popitem()[1]  # the last one, which it has hardly begun
        return self._undone.pop() if self._undone else None

    def _task(self, number: int) -> Task:
        source = self._files[number]
        return number, source.path, source.name

    def _write(self, result: Result) -> None:
        number, content = result
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
        self._progress(1)

    def _look_after_children(self) -> None:
        now = time.monotonic()
        if now >= self._looked + _LOOK:
            self._looked = now
            self._adjust()
        self._receive()
        for child in self._children[:]:
            if self._first < self._end and sum(self._files[number].size for number in child.tasks) < _AHEAD:
                self._supply(child)

    def _adjust(self) -> None:
        """Have as many children as cores are idle and as there is work for; fewer when others want the cores."""
        spare = self._cores.spare()
        if spare < 0 and self._children:
            self._dismiss(self._children[-1])
        while self._may_start and spare > 0 and self._left > _WORTH * (len(self._children) + 2):
            if len(self._children) + 1 >= self._cores.limit or (permit := self._cores.take()) is None:
                return
            try:
                self._children.append(Compiler(self._settings, self._cores, permit))
            except OSError:
                self._may_start = False
                return
            spare -= 1

    def _supply(self, child: Compiler) -> None:
        """Give it a batch of the largest sources."""
        batch: list[Task] = []
        size = 0
        while self._first < self._end and size < _BATCH and len(batch) < _FILES:
            self._end -= 1
            batch.append(self._task(self._end))
            size += self._files[self._end].size
        self._left -= size
        try:
            child.give(batch)
        except OSError:
            self._undone += batch
            self._dismiss(child)

    def _receive(self) -> None:
        for child in self._children[:]:
            try:
                results = child.receive()
            except OSError:
                self._dismiss(child)
                continue
            for result in results:
                self._write(result)

    def _dismiss(self, child: Compiler) -> None:
        self._children.remove(child)
        self._undone += child.tasks.values()
        child.close()
