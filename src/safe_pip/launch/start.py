"""How this process was started: what is needed to start the same command once more."""

import os
import signal
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

RUNNER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_runner.py")
"""safe-pip for any interpreter, run by its path: `-m safe_pip` needs a safe-pip in that interpreter's environment."""


class Start(NamedTuple):  # at every start: to make a frozen dataclass takes ten times as long
    """The command line, the working directory, the environment variables and the signal mask of the start.

    `executable` is None where the interpreter does not know itself; `directory` is None if the working directory had
    vanished. pip changes the variables later (PIP_BUILD_TRACKER and others), and a signal mask survives exec.
    """

    executable: str | None
    argv: tuple[str, ...]
    directory: str | None
    environ: Mapping[str, str]
    signal_mask: frozenset[int]

    @classmethod
    def now(cls) -> "Start":
        """Take down what is true of this process at present."""
        try:
            directory = os.getcwd()
        except OSError:
            directory = None
        mask: frozenset[int] = frozenset()
        if sys.platform != "win32":
            mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return cls(sys.executable or None, tuple(sys.orig_argv), directory, MappingProxyType(dict(os.environ)), mask)
