"""For how long a command holds the exclusive commit lock, side by side with the step that pip would need one around.

    python benchmarks/commit.py [--runs N] [--every N] [--fill N] [--only NAME] [--seed N] [--json]

Upgrades (up and down by turns) of Django, numpy and six, an uninstall of Django, and of a package with 100 and with
20,000 files below one top-level entry: all of them in every round, in an order shuffled anew. The commands run as
always but for a clock at each lock (`_timed.py`). Milliseconds; the 99th percentile is by nearest rank, so the maximum
up to 100 runs. pip has its turn in every round, or in one of so many (`--every`). `--fill` puts more distributions
beside them: what is validated under the lock grows with their number.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from _bench import UPGRADES, Bench, arguments, bench, percentile, table
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project

TIMED = Path(__file__).with_name("_timed.py")
FEW, MANY = 100, 20_000
UNCOUNTED = 1
Times = dict[tuple[str, str, str], list[float]]
"""By scenario, tool and lock (or pip's step), in seconds."""


class Scenario(NamedTuple):
    """Something that is timed: `project` goes from one of `versions` to the other, or goes away."""

    name: str
    project: str
    versions: tuple[str, str]
    options: tuple[str, ...] = ()
    is_uninstall: bool = False


SCENARIOS = (
    *(Scenario(f"upgrade {name}", name, versions) for name, versions in UPGRADES.items()),
    Scenario("uninstall Django", "Django", UPGRADES["Django"], is_uninstall=True),
    # To compile them would take most of the time, and not under the lock.
    *(Scenario(f"{files:,} files", f"files{files}", ("1", "2"), ("--no-compile",)) for files in (FEW, MANY)),
)


class Measuring:
    """The scenarios in one environment for each tool."""

    def __init__(self, shared: Bench, fill: int, scenarios: Sequence[Scenario]) -> None:
        self.bench = shared
        self.times: Times = defaultdict(list)
        self._turn: dict[tuple[str, str], int] = defaultdict(int)
        for files in {int(each.project[5:]) for each in scenarios if each.project.startswith("files")}:
            for version in ("1", "2"):
                content = {f"files{files}/f{number}.py": f"{version}\n" for number in range(files)}
                Project(f"files{files}", version, files=content).write_wheel(shared.index)
        self.environments: dict[str, Venv] = {tool: shared.environment(tool) for tool in ("safe-pip", "pip")}
        for environment in self.environments.values():
            for number in range(fill):
                info = environment.purelib / f"filler_{number}-1.0.dist-info"
                info.mkdir()
                (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: filler_{number}\nVersion: 1.0\n")
                (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n")

    def measure(self, scenario: Scenario, tool: str, *, is_counted: bool) -> None:
        """Run a scenario once more by a tool."""
        turn = self._turn[scenario.project, tool]
        self._turn[scenario.project, tool] += 1
        before, after = scenario.versions[turn % 2], scenario.versions[(turn + 1) % 2]
        self._run(tool, "install", "--no-deps", *scenario.options, f"{scenario.project}=={before}")
        change = ["install", "--no-deps", *scenario.options, f"{scenario.project}=={after}"]
        noted = self._run(tool, *(["uninstall", "-y", scenario.project] if scenario.is_uninstall else change))
        # Several files of one kind may be locked: of them all the longest counts.
        held: dict[str, float] = {}
        for each in noted:
            held[each["kind"]] = max(held.get(each["kind"], 0.0), each["seconds"])
        for kind, seconds in held.items():
            if is_counted:
                self.times[scenario.name, tool, kind].append(seconds)

    def _run(self, tool: str, *command: str) -> list[dict[str, object]]:
        file = self.bench.scratch / "noted.jsonl"
        file.unlink(missing_ok=True)
        self.bench.run([self.environments[tool].python], TIMED, file, tool, *command)
        return [json.loads(line) for line in file.read_text().splitlines()]


def main() -> None:
    parser = arguments(__doc__, runs=50, every=1, fill=0)
    parser.add_argument("--only", action="append", choices=[each.name for each in SCENARIOS], help="may be repeated")
    options = parser.parse_args()
    chances = random.Random(options.seed)
    chosen = [each for each in SCENARIOS if each.name in (options.only or each.name)]
    with bench() as shared:
        measuring = Measuring(shared, options.fill, chosen)
        turns = [(scenario, tool) for scenario in chosen for tool in measuring.environments]
        for number in range(-UNCOUNTED, options.runs):
            chances.shuffle(turns)
            for scenario, tool in turns:
                if tool == "pip" and number % options.every:
                    continue
                measuring.measure(scenario, tool, is_counted=number >= 0)
            print(f"round {number + 1} of {options.runs}", file=sys.stderr)
    if options.json:
        print(json.dumps([[*key, values] for key, values in measuring.times.items()]))
    else:
        report(measuring.times, chosen)


def report(times: Times, scenarios: Sequence[Scenario]) -> None:
    """Print how long each lock was held, pip's step beside it, and what the number of files does."""
    rows = []
    for scenario in scenarios:
        for tool, kind in (("safe-pip", "commit"), ("safe-pip", "environment"), ("pip", "step")):
            values = [seconds * 1000 for seconds in times.get((scenario.name, tool, kind), ())]
            if values:
                median, most = statistics.median(values), percentile(values, 0.99)
                row = {"scenario": scenario.name, "held by": tool, "what": kind, "runs": len(values)}
                rows.append({**row, "median ms": median, "p99 ms": most, "maximum ms": max(values)})
    table(rows)
    few, many = (times.get((f"{files:,} files", "safe-pip", "commit")) for files in (FEW, MANY))
    if few and many:
        ratio = statistics.median(many) / statistics.median(few)
        print(f"\nthe commit lock of {MANY:,} files over that of {FEW}: {ratio:.2f} x")


if __name__ == "__main__":
    main()
