"""How long an install takes from start to end by safe-pip and by pip: alone, and sixteen at once.

    python benchmarks/wall.py [--runs N] [--rounds N] [--seed N] [--json]

Alone: six, Django and numpy into an environment without them, each tool `--runs` times by turns; what counts is the
median of the ratios within a pair. At once: 16 processes that install one distribution each, by safe-pip, by pip with
no protection and by pip behind one `flock -x`, `--rounds` times each, in an order shuffled anew; the time is that of
the last one to end. Wheels come from a directory, the cache is warm, modules are compiled as always. Between two
measurements the environment is set back and what is to be written is written.
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
from pathlib import Path

from _bench import UPGRADES, Bench, Emptied, arguments, bench, table
from tests.support.venvs.template import Venv

AT_ONCE = (
    *("attrs", "certifi", "charset-normalizer", "click", "flit_core", "idna", "jinja2", "markupsafe"),
    *("packaging", "pathspec", "pluggy", "requests", "six", "tomli", "urllib3", "wheel"),
)
UNCOUNTED = 1
Times = dict[tuple[str, str], list[float]]
"""By what was measured and tool, in seconds; the measurements at one index belong together."""


class Measuring:
    """Both tools in one environment that is empty before each measurement."""

    def __init__(self, shared: Bench) -> None:
        self.bench = shared
        self.environment: Venv = shared.environment("environment")
        # The directories of the locks are there from the first commit on.
        shared.run(shared.safe_pip(self.environment), "install", "--no-deps", "tomli")
        shared.run(shared.safe_pip(self.environment), "uninstall", "-y", "tomli")
        self._emptied = Emptied(self.environment)
        self.times: Times = defaultdict(list)
        self.failed: dict[str, int] = defaultdict(int)

    def alone(self, tool: str, project: str, *, is_counted: bool) -> None:
        """Install one distribution."""
        command = self._tools()[tool]
        self._clock((project, tool), lambda: self._finish(tool, [project], command), is_counted)

    def at_once(self, tool: str, *, is_counted: bool) -> None:
        """Install all of `AT_ONCE`, each by a process of its own."""
        command = self._tools()[tool]
        self._clock((f"{len(AT_ONCE)} at once", tool), lambda: self._finish(tool, AT_ONCE, command), is_counted)

    def _tools(self) -> dict[str, list[str]]:
        pip = self.bench.pip(self.environment)
        lock: Path = self.bench.scratch / "lock"
        return {"safe-pip": self.bench.safe_pip(self.environment), "pip": pip, "flock pip": ["flock", str(lock), *pip]}

    def _finish(self, tool: str, projects: Sequence[str], command: list[str]) -> None:
        running = [self.bench.start(command, "install", "--no-deps", project) for project in projects]
        for process in running:
            self.failed[tool] += process.wait() != 0

    def _clock(self, key: tuple[str, str], work: Callable[[], None], is_counted: bool) -> None:
        self._emptied.reset()
        os.sync()
        start = time.perf_counter()
        work()
        taken = time.perf_counter() - start
        if is_counted:
            self.times[key].append(taken)


def main() -> None:
    options = arguments(__doc__, runs=20, rounds=10).parse_args()
    chances = random.Random(options.seed)
    with bench() as shared:
        measuring = Measuring(shared)
        alone = [(project, tool) for project in UPGRADES for tool in ("safe-pip", "pip")]
        for number in range(-UNCOUNTED, options.runs):
            chances.shuffle(alone)
            for project, tool in sorted(alone, key=lambda each: each[0]):
                measuring.alone(tool, project, is_counted=number >= 0)
            print(f"run {number + 1} of {options.runs}", file=sys.stderr)
        tools = ["safe-pip", "pip", "flock pip"]
        for number in range(-UNCOUNTED, options.rounds):
            chances.shuffle(tools)
            for tool in tools:
                measuring.at_once(tool, is_counted=number >= 0)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    if options.json:
        print(json.dumps([[*key, values] for key, values in measuring.times.items()]))
    else:
        report(measuring.times)
    failed = {tool: number for tool, number in measuring.failed.items() if number}
    print(f"commands that failed: {failed or 'none'}", file=sys.stderr)


def report(times: Times) -> None:
    """Print seconds, and the medians of the ratios of paired measurements."""
    rows = []
    for what in dict.fromkeys(what for what, _ in times):
        row: dict[str, object] = {"install": what}
        ours = times[what, "safe-pip"]
        for tool in ("safe-pip", "pip", "flock pip"):
            values = times.get((what, tool))
            row[f"{tool} s"] = statistics.median(values) if values else "-"
        for tool in ("pip", "flock pip"):
            values = times.get((what, tool))
            ratios = [a / b for a, b in zip(ours, values, strict=True)] if values else []
            row[f"over {tool}"] = statistics.median(ratios) if ratios else "-"
        rows.append(row)
    table(rows)


if __name__ == "__main__":
    main()
