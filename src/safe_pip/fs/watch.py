"""Tells tests of each change before it is made, so that every change can be recorded or made to fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

observer: Callable[[str, str, str], None] | None = None
"""Called with the operation's name, the absolute path that changes, and, of a rename, an exchange or a link, the other
path (else ""). What it raises is raised in place of the change."""


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
