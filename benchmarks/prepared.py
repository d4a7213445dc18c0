"""What prepared wheels save: installs by safe-pip, by pip, by pip behind one `flock -x` and by uv, side by side.

    python benchmarks/prepared.py [--runs N] [--imports N] [--only WHAT] [--quick] [--seed N] [--json]

Each round measures every tool once, in an order shuffled anew, in environments that are set back before; what counts
are the ratios of medians, of elapsed time and ("CPU") of the processor time of one command. "cold" is safe-pip with no
wheel in its store, everything else has seen all wheels before.
WHAT is `Django`, `numpy`: one install; `one environment`: 8 processes that install one set of 30 distributions into
it; `sixteen`, `sixty-four`, `one small`: so many processes that install one small distribution each; `environments`: 8
new ones, a process in each, the set of 30; `imports`: fresh interpreters import what safe-pip and what pip installed;
`space`: what the store takes; `phases`: where the time of an install goes. uv compiles nothing unless it is told to, so
it is measured both ways.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from _accounts import measure_phases, measure_space
from _bench import UPGRADES, Bench, Emptied, arguments, bench, table
from _supplies import SET, forgotten, set_of_wheels, uv_program
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project
from wall import AT_ONCE

TOOLS = ("safe-pip", "safe-pip cold", "pip", "flock pip", "uv", "uv compiling")
PROCESSES = 8
SMALL = tuple(f"small-{number}" for number in range(64))
IMPORTABLE = """
import importlib, pkgutil, sys
found, package = [], __import__(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + ".", lambda name: None):
    if not {"tests", "__main__", "distutils", "f2py"}.intersection(module.name.split(".")):
        try:
            importlib.import_module(module.name)
            found.append(module.name)
        except BaseException:
            pass
print(*found)
"""
IMPORT = "import sys\nfor name in sys.argv[1:]: __import__(name)"
# Of safe-pip's time over another tool's, both as named above.
TARGETS = {
    ("Django", "safe-pip", "pip"): 0.35,
    ("Django", "safe-pip cold", "pip"): 1.0,
    ("numpy", "safe-pip", "pip"): 0.35,
    ("numpy", "safe-pip cold", "pip"): 1.0,
    ("one environment", "safe-pip cold", "flock pip"): 0.8,
    ("one environment", "safe-pip cold", "pip"): 0.4,
    ("one environment", "safe-pip", "flock pip"): 0.5,
    ("sixteen", "safe-pip", "pip"): 0.55,
    ("sixty-four, CPU", "safe-pip", "pip"): 0.55,
    ("environments", "safe-pip", "pip"): 0.4,
    ("imports of Django", "safe-pip", "pip"): 1.01,
    ("imports of numpy", "safe-pip", "pip"): 1.01,
    ("imports of Django, CPU", "safe-pip", "pip"): 1.01,
    ("imports of numpy, CPU", "safe-pip", "pip"): 1.01,
}


@dataclass
class Measuring:
    """All tools and all environments; times by measurement and tool."""

    bench: Bench
    uv: Path | None
    chances: random.Random
    times: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.set = set_of_wheels(self.bench)
        self.bench.variables["PIP_FIND_LINKS"] = f"{self.bench.wheels} {self.set}"
        self.bench.variables |= {"UV_CACHE_DIR": str(self.bench.scratch / "uv-cache"), "UV_NO_CONFIG": "1"}
        pins = sorted(f"{wheel.name.split('-')[0]}=={wheel.name.split('-')[1]}" for wheel in self.set.iterdir())
        for project in SMALL:
            Project(project).write_wheel(self.set)
        self.requirements = self.bench.scratch / "requirements.txt"
        self.requirements.write_text("\n".join(pins) + "\n")
        self.environments = [_started(self.bench, f"environment-{number}") for number in range(PROCESSES)]
        self.emptied = [Emptied(environment) for environment in self.environments]

    def round(self, scenario: Scenario, *, is_counted: bool) -> None:
        """Measure every tool once; not counted are those that have a cache to fill."""
        tools = [tool for tool in scenario.tools if self.uv is not None or not tool.startswith("uv")]
        tools = [tool for tool in tools if is_counted or tool in ("safe-pip", "uv")]
        self.chances.shuffle(tools)
        for tool in tools:
            for emptied in self.emptied[: scenario.environments]:
                emptied.reset()
            commands = scenario.commands(self, tool)
            with forgotten(self.bench) if tool == "safe-pip cold" else nullcontext():
                os.sync()
                before, start = os.times(), time.perf_counter()
                running = [self.bench.start(command) for command in commands]
                statuses = [process.wait() for process in running]
                taken, after = time.perf_counter() - start, os.times()
            used = _children(after) - _children(before)
            self.failed[tool] += sum(status != 0 for status in statuses)
            self._check(scenario, tool)
            if is_counted:
                self.times[scenario.name, tool].append(taken)
                self.times[f"{scenario.name}, CPU", tool].append(used / len(commands))
                print(f"  {scenario.name}, {tool}: {taken:.2f} s", file=sys.stderr)

    def install(self, tool: str, environment: Venv, *what: str) -> list[str]:
        """The command that has a tool install `what`."""
        pip = [*self.bench.pip(environment), "install"]
        commands = {
            "safe-pip": [*self.bench.safe_pip(environment), "install"],
            "pip": pip,
            "flock pip": ["flock", "-x", f"{environment.path}.lock", *pip],
            "uv": [str(self.uv), "pip", "install", "-q", "--no-index", "--python", str(environment.python)],
        }
        command = commands[tool.removesuffix(" cold").removesuffix(" compiling")]
        if tool.startswith("uv"):
            for links in (self.bench.wheels, self.set):
                command += ["--find-links", str(links)]
        if tool == "uv compiling":
            command.append("--compile-bytecode")
        return [*command, *what]

    def _check(self, scenario: Scenario, tool: str) -> None:
        """Check that every tool installed everything. Unprotected pips may fail when several run at once."""
        for environment in self.environments[: scenario.environments]:
            found = len([*environment.purelib.glob("*.dist-info")])
            if found != scenario.installed + 2 and tool != "pip":
                sys.exit(f"{scenario.name}: {tool} left {found - 2} distributions, not {scenario.installed}")


@dataclass(frozen=True)
class Scenario:
    """Something to install, by one process or several; then so many distributions are there in each environment."""

    name: str
    tools: Sequence[str]
    commands: Callable[[Measuring, str], list[list[str]]]
    installed: int
    environments: int = 1


def _one(project: str) -> Callable[[Measuring, str], list[list[str]]]:
    pin = f"{project}=={UPGRADES[project][1]}"
    return lambda measuring, tool: [measuring.install(tool, measuring.environments[0], "--no-deps", pin)]


def _one_environment(measuring: Measuring, tool: str) -> list[list[str]]:
    command = measuring.install(tool, measuring.environments[0], "-r", str(measuring.requirements))
    return [command] * PROCESSES


def _each(*projects: str) -> Callable[[Measuring, str], list[list[str]]]:
    return lambda measuring, tool: [
        measuring.install(tool, measuring.environments[0], "--no-deps", project) for project in projects
    ]


def _environments(measuring: Measuring, tool: str) -> list[list[str]]:
    each = measuring.environments
    return [measuring.install(tool, environment, "-r", str(measuring.requirements)) for environment in each]


ALONE = tuple(tool for tool in TOOLS if tool != "flock pip")
SCENARIOS = (
    Scenario("Django", ALONE, _one("Django"), 1),
    Scenario("numpy", ALONE, _one("numpy"), 1),
    Scenario("one environment", TOOLS, _one_environment, len(SET)),
    Scenario("sixteen", TOOLS, _each(*AT_ONCE), len(AT_ONCE)),
    Scenario("sixty-four", ALONE, _each(*SMALL), len(SMALL)),
    Scenario("one small", ALONE, _each(SMALL[0]), 1),
    Scenario("environments", ALONE, _environments, len(SET), PROCESSES),
)
OTHERS = ("imports", "space", "phases")


def main() -> None:
    parser = arguments(__doc__, runs=7, imports=60)
    choices = [*[scenario.name for scenario in SCENARIOS], *OTHERS]
    parser.add_argument("--only", action="append", choices=choices, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="one round of each, to see that all works")
    options = parser.parse_args()
    runs, imports = (1, 4) if options.quick else (options.runs, options.imports)
    chosen = options.only or choices
    chances = random.Random(options.seed)
    with bench() as shared:
        measuring = Measuring(shared, uv_program(shared.scratch), chances)
        for number in range(-1, runs):
            for scenario in SCENARIOS:
                if scenario.name in chosen:
                    measuring.round(scenario, is_counted=number >= 0)
            print(f"round {number + 1} of {runs}", file=sys.stderr)
        if "imports" in chosen:
            measure_imports(measuring, imports)
        shown = {
            "times": report(measuring),
            "space": measure_space(measuring) if "space" in chosen else [],
            "phases": measure_phases(measuring, runs) if "phases" in chosen else [],
        }
    if options.json:
        print(json.dumps({"measured": [[*key, values] for key, values in measuring.times.items()], **shown}))
    else:
        for number, rows in enumerate(filter(None, shown.values())):
            print(end="\n" if number else "")
            table(rows)
    failed = {tool: number for tool, number in measuring.failed.items() if number}
    print(f"commands that failed: {failed or 'none'}", file=sys.stderr)


def report(measuring: Measuring) -> list[dict[str, object]]:
    """Medians in seconds, and safe-pip's over the others', with the target where there is one."""
    rows = []
    medians = {key: statistics.median(values) for key, values in measuring.times.items() if values}
    whats = list(dict.fromkeys(what for what, _ in medians))
    for what, tool in sorted(medians, key=lambda key: (whats.index(key[0]), TOOLS.index(key[1]))):
        row: dict[str, object] = {"what": what, "by": tool, "median s": medians[what, tool]}
        row["least s"] = min(measuring.times[what, tool])
        for ours in TOOLS[:2]:
            row[f"{ours} over it"] = "-"
            if (what, ours) in medians and not tool.startswith("safe-pip"):
                target = TARGETS.get((what, ours, tool))
                ratio = medians[what, ours] / medians[what, tool]
                row[f"{ours} over it"] = f"{ratio:.3f}" + (f" (at most {target})" if target else "")
        rows.append(row)
    return rows


def measure_imports(measuring: Measuring, runs: int) -> None:
    """Time fresh interpreters that import what safe-pip staged from its store, and what pip installed, by turns."""
    for project in ("Django", "numpy"):
        places = dict(zip(("safe-pip", "pip"), measuring.environments, strict=False))
        for emptied, (tool, environment) in zip(measuring.emptied, places.items(), strict=False):
            emptied.reset()
            pin = f"{project}=={UPGRADES[project][1]}"
            for turn in range(2 if tool == "safe-pip" else 1):  # the second time it is there prepared
                emptied.reset() if turn else None
                measuring.bench.run(measuring.install(tool, environment, "--no-deps", pin))
        names = measuring.bench.run([places["pip"].python, "-c", IMPORTABLE, project.lower()]).split()
        for number in range(-2, runs):
            for tool in measuring.chances.sample(sorted(places), 2):
                command = [places[tool].python, "-c", IMPORT, *names]
                before, start = os.times(), time.perf_counter()
                measuring.bench.run(command)
                taken, after = time.perf_counter() - start, os.times()
                if number >= 0:
                    measuring.times[f"imports of {project}", tool].append(taken)
                    measuring.times[f"imports of {project}, CPU", tool].append(_children(after) - _children(before))


def _children(times: os.times_result) -> float:
    return times.children_user + times.children_system


def _started(shared: Bench, name: str) -> Venv:
    """An environment whose directories of locks are there."""
    environment = shared.environment(name)
    shared.run(shared.safe_pip(environment), "install", "--no-deps", "tomli")
    shared.run(shared.safe_pip(environment), "uninstall", "-y", "tomli")
    return environment


if __name__ == "__main__":
    main()
