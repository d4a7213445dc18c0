"""Where loads run: environments, caches, the tool under test, and the files that are kept of a failed run."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.support.processes.serial import Writing, explains
from tests.support.processes.traffic import PLAIN, SAFE_PIP, TOOLS, Lane, Outcome, Tool, check_outcomes, run_traffic
from tests.support.venvs.checker import Violation, check, installed
from tests.support.venvs.template import Venv, VenvMaker, build_safe_pip, clean_environment, offline, run
from tests.support.wheels.wheelhouse import NEWEST_PIP, OLDEST_PIP, Wheelhouse

TOOL_VARIABLE = "SAFE_PIP_TEST_TOOL"
PIP_VARIABLE = "SAFE_PIP_TEST_PIP"
SEED_VARIABLE = "SAFE_PIP_TEST_SEED"
WRECKS_VARIABLE = "SAFE_PIP_WRECKS"
PIPS = {"oldest": OLDEST_PIP, "newest": NEWEST_PIP}


class Wrecked(AssertionError):
    """A round ended with violations; what is left of it lies in `wreck`."""

    def __init__(self, message: str, violations: Sequence[Violation], wreck: Path) -> None:
        super().__init__(message)
        self.violations = violations
        self.wreck = wreck


@dataclass(frozen=True)
class Workspace:
    """What all runs of one session share."""

    wheelhouse: Wheelhouse
    scratch: Path
    tool: Tool = field(default_factory=lambda: TOOLS[os.environ.get(TOOL_VARIABLE, SAFE_PIP.name)])
    pip_version: str = field(default_factory=lambda: PIPS[os.environ.get(PIP_VARIABLE, "newest")])
    wrecks: Path = field(default_factory=lambda: Path(os.environ.get(WRECKS_VARIABLE, "wrecks")).absolute())
    shared: Path | None = None
    """A directory of several sessions at once, for what is made once."""

    @cached_property
    def maker(self) -> VenvMaker:
        return VenvMaker(self.wheelhouse, self.shared or self.scratch)

    @cached_property
    def base(self) -> tuple[Path, ...]:
        """The wheels that every environment has: pip, and safe-pip if that is the tool."""
        pip = self.wheelhouse.wheel("pip", self.pip_version)
        if self.tool is not SAFE_PIP:
            return (pip,)
        return pip, build_safe_pip(self.wheelhouse, (self.shared or self.scratch) / "build")

    def with_tool(self, tool: Tool, wrecks: Path) -> Workspace:
        """A workspace for another tool that keeps its wrecks elsewhere."""
        return Workspace(self.wheelhouse, self.scratch / tool.name, tool, self.pip_version, wrecks, self.shared)

    def perform(self, name: str, load: Load, seed: int) -> None:
        """Run one round; on return nothing is left of it. Raises `Wrecked`."""
        directory = self.scratch / f"{name}-{seed}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        load_run = LoadRun(self, directory, random.Random(f"{name} {seed}"))
        try:
            violations = load(load_run)
        except BaseException:
            self._keep(directory)
            raise
        if violations:
            raise self._wrecked(f"{name} {seed}", violations, self._keep(directory), load_run)
        shutil.rmtree(directory, ignore_errors=True)

    def _keep(self, directory: Path) -> Path:
        self.wrecks.mkdir(parents=True, exist_ok=True)
        number = 0
        while (wreck := self.wrecks / f"{directory.name}-{self.tool.name}-{number}").exists():
            number += 1
        return Path(shutil.move(directory, wreck))

    def _wrecked(self, round_name: str, violations: Sequence[Violation], wreck: Path, load_run: LoadRun) -> Wrecked:
        name, seed = round_name.rsplit(" ", 1)
        again = f"again: python -m tests.chaos --only {name} --seed {seed} --rounds 1 --tool {self.tool.name}"
        again += "" if self.pip_version == NEWEST_PIP else " --pip oldest"
        head = f"{len(violations)} violations in round {name} with seed {seed}, tool {self.tool.name}"
        lines = [f"{head}, pip {self.pip_version}", *map(str, violations), again]
        (wreck / "violations.txt").write_text("\n".join(lines) + "\n")
        shown = [line[:1200] for line in lines[:-1]]
        shown = [*shown[:12], *(["..."] if len(shown) > 12 else []), again]
        return Wrecked("\n".join([*shown, f"the wreck: {wreck}"]), violations, wreck)


@dataclass
class LoadRun:
    """One run of a load: its directory and its random numbers."""

    workspace: Workspace
    directory: Path
    random: random.Random

    @cached_property
    def variables(self) -> dict[str, str]:
        """The environment variables of all commands; the cache is the session's."""
        return self._variables(self.workspace.scratch / "cache")

    @cached_property
    def variables_with_empty_cache(self) -> dict[str, str]:
        """The environment variables of all commands, with an empty cache."""
        return self._variables(self.directory / "cache")

    def _variables(self, cache: Path) -> dict[str, str]:
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        links = offline(self.workspace.wheelhouse.path, *self._indexes())
        return clean_environment(self.directory / "home", cache=cache, TMPDIR=str(temporary), **links)

    def _indexes(self) -> list[Path]:
        return [path for path in [self.directory / "index"] if path.is_dir()]

    @property
    def index(self) -> Path:
        """A directory for tiny distributions of this run. Fill it before the first use of `variables`."""
        path = self.directory / "index"
        path.mkdir(exist_ok=True)
        return path

    def environment(self, *wheels: Path) -> Venv:
        """A venv with the tool and `wheels`."""
        return self.workspace.maker.make(self.directory / "venv", [*self.workspace.base, *wheels])

    def preinstall(self, environment: Venv, wheels: Sequence[Path]) -> None:
        """Put wheels into an environment with plain pip, alone, before a load."""
        if wheels:
            run([*PLAIN.command(environment), "install", "-q", "--no-deps", *wheels], self.variables, self.directory)

    def run(self, environment: Venv, lanes: Sequence[Lane], variables: dict[str, str] | None = None) -> list[Outcome]:
        """Run a load with the tool."""
        chosen = self.variables if variables is None else variables
        return run_traffic(self.workspace.tool, environment, lanes, chosen, self.directory / "load")

    def check_all(
        self, environment: Venv, initial: dict[str, str], outcomes: Sequence[Outcome], *, pip_check: bool = True
    ) -> list[Violation]:
        """All violations after a load whose commands are blind writes."""
        return self.check(environment, outcomes, pip_check=pip_check) + unexplained(initial, environment, outcomes)

    def check(self, environment: Venv, outcomes: Sequence[Outcome], *, pip_check: bool = True) -> list[Violation]:
        """All violations after a load, without a check of the installed versions."""
        return check_outcomes(outcomes) + check(environment, self.variables, pip_check=pip_check)


Load = Callable[[LoadRun], list[Violation]]


def unexplained(initial: dict[str, str], environment: Venv, outcomes: Iterable[Outcome]) -> list[Violation]:
    """A violation if no serial order of the successful commands leads to what is installed."""
    final = installed(environment)
    succeeded = [
        Writing(each.command.writes, each.started, each.ended)
        for each in outcomes
        if each.status == 0 and each.command.writes
    ]
    if explains(initial, succeeded, final):
        return []
    return [Violation("no-serial-order", f"gives {final}, from {initial}")]
