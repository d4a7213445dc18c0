"""What pip says while a lock is held is kept until the lock is let go: a full pipe would hold the lock for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pip._internal.utils import logging as pip_logging

from safe_pip.errors import StalePlan

_STORY = "pip._internal.req"  # the loggers that tell which distributions go and come, before it is known


class KeptBack(logging.Handler):
    """Keeps every record with the indentation that pip had when it was made, and the project that it is about."""

    def __init__(self, announced_by: Iterable[logging.Handler] = ()) -> None:
        """The handlers `announced_by` show the first record, which announces the work and is true in any case."""
        super().__init__(level=0)
        self.kept: list[tuple[int, logging.LogRecord, str | None]] = []
        self.left_out: Callable[[logging.LogRecord], bool] = lambda record: False
        self.hidden = ""  # is taken out of messages: the root of the stage
        self._announced_by = tuple(announced_by)

    def emit(self, record: logging.LogRecord) -> None:
        if self._announced_by and record.name == _STORY:
            handlers, self._announced_by = self._announced_by, ()
            for handler in handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)
            return
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


@contextmanager
def kept_back() -> Iterator[None]:
    """Within, nothing that is logged is shown; afterwards it is."""
    kept = KeptBack()
    try:
        with handled_by(kept):
            yield
    finally:
        kept.say()


@contextmanager
def kept_until_done(*, first: bool) -> Iterator[KeptBack]:
    """Within, nothing is shown, but with `first` the message that announces the work. The caller shows the rest.

    If the body raises, nothing was done: warnings, debugging and, unless the command begins again, what was found
    installed are shown.
    """
    kept = KeptBack(logging.getLogger().handlers[:] if first else ())
    try:
        with handled_by(kept):
            yield kept
    except BaseException as error:
        found = () if isinstance(error, StalePlan) else ("Attempting uninstall", "Found existing installation")
        kept.left_out = lambda record: (
            record.name.startswith(_STORY)
            and record.levelno <= logging.INFO
            and not record.getMessage().startswith(found)
        )
        kept.say()
        raise


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = handlers
