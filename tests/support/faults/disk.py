"""Faults of a disk: each change through `safe_pip.fs` can be recorded, refused, torn, or the last one.

Changes are counted from 0. A trial that is to meet every one of them records first:

    with faults.record() as changes:
        act()
    for k in range(len(changes)):
        with pytest.raises(faults.Crashed), faults.crash_at(k):
            act()
"""

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple
from unittest import mock

from safe_pip import fs

GROWING = frozenset({"create", "write", "copy", "link", "make_directory", "write_bytecode"})
"""The operations that a full disk refuses."""


class Crashed(BaseException):
    """The process died here: not even clean-up code can change anything any more."""


class Change(NamedTuple):
    """One change that was about to be made to `path`; `source` is the other path of a rename, exchange or link."""

    operation: str
    path: str
    source: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths of this change."""
        return (self.path, self.source) if self.source else (self.path,)


class Trial:
    """The changes of one trial, including refused ones; `struck` is the first change that the fault hit."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.struck: Change | None = None


@contextlib.contextmanager
def record() -> Iterator[list[Change]]:
    """The changes in the order in which they are made."""
    trial = Trial()
    with watching(trial.changes.append):
        yield trial.changes


@contextlib.contextmanager
def crash_at(k: int, *, torn: bool = False, only: Collection[str] | None = None) -> Iterator[Trial]:
    """Die before change `k`, counted among the operations `only`; `torn`: if that is a write, after half of it."""

    def die(change: Change) -> Exception | BaseException:
        return Crashed(f"before {change}")

    with _fault(k, die, forever=True, torn=torn, only=only, after=None) as trial:
        yield trial


@contextlib.contextmanager
def error_at(
    k: int, number: int, *, forever: bool = False, torn: bool = False, only: Collection[str] | None = None
) -> Iterator[Trial]:
    """Let change `k` fail with this errno, or all from there on, counted among the operations `only`."""

    def refuse(change: Change) -> BaseException:
        return OSError(number, os.strerror(number), change.path)

    with _fault(k, refuse, forever=forever, torn=torn, only=only, after=only) as trial:
        yield trial


@contextlib.contextmanager
def kill_at(k: int, *, torn: bool = False) -> Iterator[Trial]:
    """Have the kernel kill this process before change `k`: for a forked child, whose locks are then let go."""

    def kill(change: Change) -> BaseException:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    with _fault(k, kill, forever=True, torn=torn, only=None, after=None) as trial:
        yield trial


@contextlib.contextmanager
def _fault(
    k: int,
    strike: Callable[[Change], BaseException],
    *,
    forever: bool,
    torn: bool,
    only: Collection[str] | None,
    after: Collection[str] | None,
) -> Iterator[Trial]:
    """`after`: the operations that fail for ever after the first fault; None for all."""
    trial = Trial()
    counted = 0
    tearing: Change | None = None
    write = os.write

    def watch(change: Change) -> None:
        nonlocal counted, tearing
        trial.changes.append(change)
        if trial.struck is not None:
            if forever and (after is None or change.operation in after):
                raise strike(change)
        elif only is None or change.operation in only:
            counted += 1
            if counted > k:
                trial.struck = change
                if not (torn and change.operation == "write"):
                    raise strike(change)
                tearing = change

    def write_half(fd: int, content: bytes) -> int:
        nonlocal tearing
        if tearing is None:
            return write(fd, content)
        change, tearing = tearing, None
        write(fd, memoryview(content)[: len(content) // 2])
        raise strike(change)

    with contextlib.ExitStack() as patched:
        patched.enter_context(watching(watch))
        if torn:
            patched.enter_context(mock.patch("os.write", write_half))
            # What the kernel copies by itself is not torn here.
            patched.enter_context(mock.patch("os.copy_file_range", side_effect=OSError, create=True))
        yield trial


@contextlib.contextmanager
def watching(watch: Callable[[Change], None]) -> Iterator[None]:
    """Call `watch` before each change."""
    outer = fs.watch.observer

    def told(operation: str, path: str, source: str) -> None:
        if outer is not None:
            outer(operation, path, source)
        watch(Change(operation, path, source))

    fs.watch.observer = told
    try:
        yield
    finally:
        fs.watch.observer = outer
