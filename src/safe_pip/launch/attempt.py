"""The state that one command carries from an attempt to the next: a stale plan is tried again in a fresh process."""

import json
import os
import signal
import stat
import sys
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.launch.start import Start

LAST = 10
RESERVING = 3
"""From this attempt on the environment lock is taken before the snapshot, so that this one is the last."""
_VARIABLE = "SAFE_PIP_ATTEMPT"


class Attempt(NamedTuple):
    """One attempt at a command."""

    number: int = 1
    is_fallback: bool = False
    """Whether all of pip is to run under one exclusive lock, because a seam was not as expected."""
    answered: frozenset[str] = frozenset()
    """The projects whose removal was agreed to where nobody can be asked again."""
    inputs: Mapping[str, str] = MappingProxyType({})
    """What was read from pipes: they are empty the second time."""

    @classmethod
    def taken_from(cls, environ: MutableMapping[str, str]) -> "Attempt":
        """This attempt; its variable is taken out of the environment before anything is spawned.

        It names the descriptor of a file without a name, so nothing is left behind whenever the process is killed.
        """
        named = environ.pop(_VARIABLE, None)
        if named is None:
            return cls()
        try:
            status = os.fstat(int(named))
            if not stat.S_ISREG(status.st_mode) or status.st_nlink:
                return cls()
            with open(int(named), encoding="utf-8") as file:
                state = json.load(file)
            answered, inputs = frozenset(map(str, state["answered"])), dict(state["inputs"])
            return cls(int(state["number"]), bool(state["is_fallback"]), answered, inputs)
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def begin(self, start: Start) -> NoReturn:
        """Begin this attempt in place of the running process, with all as it was at the start of the first one."""
        if start.executable is None:
            raise UnusableEnvironment("this interpreter does not know its own path, so the command cannot start again")
        state = {**self._asdict(), "answered": sorted(self.answered), "inputs": dict(self.inputs)}
        descriptor = fs.unnamed_file(json.dumps(state).encode())
        os.set_inheritable(descriptor, True)
        if start.directory is not None:
            os.chdir(start.directory)
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, start.signal_mask)
        try:
            os.execve(
                start.executable, [start.executable, *start.argv[1:]], {**start.environ, _VARIABLE: str(descriptor)}
            )
        except OSError as error:
            raise UnusableEnvironment(f"`{start.executable}` could not be started again: {error.strerror}") from error
