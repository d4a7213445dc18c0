"""What pip says while a lock is held is kept back until it is let go: a full pipe would hold the lock for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pip._internal.utils import logging as pip_logging

_STORY = "pip._internal.req"
"""Who tells of the distributions that go and come; that it is told says nothing of whether it happened."""


class KeptBack(logging.Handler):
    """Keeps every record with the indentation that pip had when it was made, and the project that it is about."""

    def __init__(self) -> None:
        super().__init__(level=0)
        self.kept: list[tuple[int, logging.LogRecord, str | None]] = []
        self.left_out: Callable[[logging.LogRecord], bool] = lambda record: False
        self.hidden = ""
        """What stands before a path that is not to be seen: the root of the stage."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep `record`, with its arguments as they are now."""
        record.msg, record.args = record.getMessage() if record.args else record.msg, None
        if self.hidden and isinstance(record.msg, str):
            record.msg = record.msg.replace(self.hidden, "")
        self.kept.append((pip_logging.get_indentation(), record, None))

    def mark(self, project: str) -> None:
        """What was kept since the last mark is about `project`."""
        self.kept = [(indentation, record, about or project) for indentation, record, about in self.kept]

    def say(self, about: str | None = None, *, leave_out: tuple[str, ...] = ()) -> None:
        """Give what was kept to the handlers that are in force now: all of it, or what is about one project."""
        kept, self.kept = self.kept, []
        before = pip_logging.get_indentation()
        try:
            for indentation, record, project in kept:
                if about is not None and project != about:
                    self.kept.append((indentation, record, project))
                elif project not in leave_out and not self.left_out(record):
                    pip_logging._log_state.indentation = indentation
                    logging.getLogger(record.name).callHandlers(record)
        finally:
            pip_logging._log_state.indentation = before


class AfterTheFirst(KeptBack):
    """Lets through what announces the work, which is true whatever becomes of it."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._has_begun = False

    def emit(self, record: logging.LogRecord) -> None:
        """Show the first record; keep the others."""
        if self._has_begun or record.name != _STORY:
            super().emit(record)
            return
        self._has_begun = True
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


@contextmanager
def kept_back(*, say: bool = True) -> Iterator[KeptBack]:
    """Within, nothing that is logged is shown; afterwards it is, unless the caller wants to `say` it himself."""
    kept = KeptBack()
    try:
        with _handled_by(kept):
            yield kept
    finally:
        if say:
            kept.say()


@contextmanager
def kept_until_done(*, first: bool) -> Iterator[KeptBack]:
    """Within, nothing is shown, but with `first` what announces the work; the caller says the rest when it is done.

    If the body raises, nothing of it was done: only warnings, and what is logged for those who look for errors, are
    shown then.
    """
    kept = AfterTheFirst(logging.getLogger().handlers[:]) if first else KeptBack()
    try:
        with _handled_by(kept):
            yield kept
    except BaseException:
        kept.left_out = lambda record: record.name.startswith(_STORY) and record.levelno <= logging.INFO
        kept.say()
        raise


@contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = handlers
