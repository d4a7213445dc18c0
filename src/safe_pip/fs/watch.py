"""Tells tests of each change before it is made, and the timeline that a user asked for of each phase of the command.

Both are off unless they are set: `observer` by tests, `timeline` by `safe_pip.trace`, which only `--trace` imports.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # at every start: to make a protocol takes as long as to import a module
    Details = Callable[[], dict[str, object]]
    """What there is to say of a phase or an event; asked only if there is a timeline."""

    class Timeline(Protocol):
        """Notes what this process does, and when."""

        def begin(self, phase: str, details: Details) -> Callable[[], None]:
            """Note that a phase begins; call what is returned when it ends."""

        def note(self, event: str, details: Details) -> None:
            """Note what happens at one instant."""


observer: Callable[[str, str, str], None] | None = None
"""Called with the operation's name, the absolute path that changes, and, of a rename, an exchange or a link, the other
path (else ""). What it raises is raised in place of the change."""
timeline: Timeline | None = None
_NOTHING = contextlib.nullcontext()


def phase(name: str, details: Details = dict) -> contextlib.AbstractContextManager[object]:
    """Within, the process is in this phase."""
    if timeline is None:
        return _NOTHING
    within = contextlib.ExitStack()
    within.callback(timeline.begin(name, details))
    return within


def note(event: str, details: Details = dict) -> None:
    if timeline is not None:
        timeline.note(event, details)


class Changing:
    """Around one change: `observer` is told before it, and an error of it names the whole paths."""

    __slots__ = ("_path", "_source")

    def __init__(self, operation: str, path: str | os.PathLike[str], source: str | os.PathLike[str] = "") -> None:
        self._path, self._source = os.fspath(path), os.fspath(source)
        if observer is not None:
            observer(operation, os.path.abspath(path), os.path.abspath(source) if source else "")

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = self._source or self._path
            if self._source:  # a second name that is None would be shown
                error.filename2 = self._path
