"""Results that the commands of a load could have one after another, in any order.

Two ways to know. Commands that pin everything they touch are blind writes, and whether a serial order explains what
is installed can be decided from the end backwards. For commands that resolve, plain pip really runs every order.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes.traffic import PLAIN
from tests.support.venvs.checker import installed
from tests.support.venvs.template import Venv, VenvMaker

Installed = frozenset[tuple[str, str]]
Writes = Mapping[str, str | None]


@dataclass(frozen=True)
class Writing:
    """A command that succeeded: the versions it leaves projects in (None: removed), and from when to when it ran."""

    writes: Writes
    started: float
    ended: float


def explains(initial: Mapping[str, str], commands: Sequence[Writing], final: Mapping[str, str]) -> bool:
    """Whether some order of these commands leads from `initial` to `final`; one that ended before another began
    comes before it.

    From the end backwards: a command can be the last of all if what it wrote is there, as far as no later one
    overwrote it. Taking it off only ever lets more commands be taken off, so the first that fits will do.
    """
    left = list(commands)
    explained: set[str] = set()
    while left:
        latest_start = max(each.started for each in left)
        for each in left:
            fits = all(final.get(name) == version for name, version in each.writes.items() if name not in explained)
            if fits and (each.ended >= latest_start or each.started == latest_start):
                break
        else:
            return False
        left.remove(each)
        explained |= each.writes.keys()
    untouched = (initial.keys() | final.keys()) - explained
    return all(initial.get(name) == final.get(name) for name in untouched)


@dataclass(frozen=True)
class Result:
    """What is installed at the end, and the exit status of each command in the given order."""

    installed: Installed
    statuses: tuple[int, ...]

    def __str__(self) -> str:
        return f"{dict(sorted(self.installed))} with exit statuses {self.statuses}"


@dataclass
class SerialOrders:
    """Runs commands one after another with plain pip. A known step is not run again."""

    maker: VenvMaker
    variables: Mapping[str, str]
    scratch: Path
    _reached: dict[Installed, Venv] = field(default_factory=dict)
    _steps: dict[tuple[Installed, tuple[str, ...]], tuple[Installed, int]] = field(default_factory=dict)

    def results(self, initial: Venv, commands: Sequence[tuple[str, ...]]) -> frozenset[Result]:
        """The result of every order of `commands`, starting from what `initial` has."""
        start = frozenset(installed(initial).items())
        self._reached.setdefault(start, initial)
        found = set()
        for order in itertools.permutations(range(len(commands))):
            there, statuses = start, {}
            for index in order:
                there, statuses[index] = self._step(there, commands[index])
            found.add(Result(there, tuple(statuses[index] for index in range(len(commands)))))
        return frozenset(found)

    def _step(self, there: Installed, command: tuple[str, ...]) -> tuple[Installed, int]:
        if (there, command) not in self._steps:
            environment = self.maker.copy(self._reached[there], self.scratch / f"step-{len(self._steps)}")
            argv = [*PLAIN.command(environment), *command]
            done = subprocess.run(argv, env=dict(self.variables), cwd=self.scratch, capture_output=True, check=False)
            result = frozenset(installed(environment).items())
            self._reached.setdefault(result, environment)
            self._steps[there, command] = result, done.returncode
        return self._steps[there, command]
