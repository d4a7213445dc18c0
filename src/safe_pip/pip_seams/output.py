"""What pip says while a lock is held is kept back until it is let go: a full pipe would hold the lock for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pip._internal.utils import logging as pip_logging


class KeptBack(logging.Handler):
    """Keeps every record with the indentation that pip had when it was made."""

    def __init__(self) -> None:
        super().__init__(level=0)
        self.kept: list[tuple[int, logging.LogRecord]] = []
        self.left_out: Callable[[logging.LogRecord], bool] = lambda record: False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep `record`, with its arguments as they are now."""
        record.msg, record.args = record.getMessage() if record.args else record.msg, None
        self.kept.append((pip_logging.get_indentation(), record))

    def say(self) -> None:
        """Give what was kept to the handlers that are in force now."""
        kept, self.kept = self.kept, []
        before = pip_logging.get_indentation()
        try:
            for indentation, record in kept:
                if not self.left_out(record):
                    pip_logging._log_state.indentation = indentation
                    logging.getLogger(record.name).callHandlers(record)
        finally:
            pip_logging._log_state.indentation = before


@contextmanager
def kept_back(*, say: bool = True) -> Iterator[KeptBack]:
    """Within, nothing that is logged is shown; afterwards it is, unless the caller wants to `say` it himself."""
    root = logging.getLogger()
    handlers, kept = root.handlers[:], KeptBack()
    root.handlers[:] = [kept]
    try:
        yield kept
    finally:
        root.handlers[:] = handlers
        if say:
            kept.say()
