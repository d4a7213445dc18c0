"""How this process was started, and starting the command again in a fresh process in its place.

A stale plan is tried again that way. What the next attempt has to know travels in a file without a name.
"""

import json
import os
import signal
import stat
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment

RUNNER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_runner.py")
"""safe-pip for any interpreter, run by its path: `-m safe_pip` needs a safe-pip in that interpreter's environment."""
LAST = 10
RESERVING = 3
"""From this attempt on the environment lock is taken before the snapshot, so that the attempt is the last one."""
_VARIABLE = "SAFE_PIP_ATTEMPT"


class Start(NamedTuple):  # at every start: to make a frozen dataclass takes ten times as long
    """What this process was started with; pip changes the variables later, and a signal mask survives exec.

    `executable` is None where the interpreter does not know itself, `directory` if the working directory had vanished.
    """

    executable: str | None
    argv: tuple[str, ...]
    directory: str | None
    environ: Mapping[str, str]
    signal_mask: frozenset[int]

    @classmethod
    def now(cls) -> "Start":
        try:
            directory = os.getcwd()
        except OSError:
            directory = None
        mask: frozenset[int] = frozenset()
        if sys.platform != "win32":
            mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return cls(sys.executable or None, tuple(sys.orig_argv), directory, MappingProxyType(dict(os.environ)), mask)


class Attempt:
    """One attempt at a command; what it learns for the next one is added to it."""

    def __init__(self) -> None:
        self.number = 1
        self.is_fallback = False
        """Whether all of pip runs under one exclusive lock, because a seam was not as expected."""
        self.answered: list[str] = []
        """The projects whose removal was agreed to by an answer from a pipe."""
        self.inputs: dict[str, str] = {}
        """What was read from pipes: they are empty the second time."""
        self.built: dict[str, tuple[str, int]] = {}
        """Name and open descriptor of what was built and is kept nowhere else, by what it was built of."""
        self.used: dict[str, dict[str, str]] = {}
        """What a build without isolation used of the environment, by the same: the identity of each project."""
        self.prefixing: list[int] = []
        """The process that writes the output (`prefix`), the descriptor that tells it of our end, whether in colour."""

    @classmethod
    def taken_from(cls, environ: MutableMapping[str, str]) -> "Attempt":
        """This attempt; its variable is taken out. It names the descriptor of a file that has no name."""
        attempt = cls()
        with suppress(OSError, ValueError, TypeError):
            descriptor = int(environ.pop(_VARIABLE, ""))
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                with open(descriptor, encoding="utf-8") as file:
                    vars(attempt).update(json.load(file))
                for fd in attempt._descriptors():
                    os.set_inheritable(fd, False)
        return attempt

    def _descriptors(self) -> list[int]:
        return [*(fd for _, fd in self.built.values()), *self.prefixing[1:2]]

    def reexec(self, start: Start) -> NoReturn:
        """Begin this attempt in place of the running process, as the first one began; or `UnusableEnvironment`."""
        if start.executable is None:
            raise UnusableEnvironment("this interpreter does not know its own path, so the command cannot start again")
        try:
            descriptor = fs.unnamed_file(json.dumps(vars(self)).encode())
            for fd in (descriptor, *self._descriptors()):
                os.set_inheritable(fd, True)
            if start.directory is not None:
                os.chdir(start.directory)
            if sys.platform != "win32":
                signal.pthread_sigmask(signal.SIG_SETMASK, start.signal_mask)
            variables = {**start.environ, _VARIABLE: str(descriptor)}
            os.execve(start.executable, [start.executable, *start.argv[1:]], variables)
        except OSError as error:
            raise UnusableEnvironment(f"`{start.executable}` could not be started again: {error.strerror}") from error
