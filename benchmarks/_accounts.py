"""Where the time of an install goes with prepared wheels, and what their store takes on the disk."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from _bench import UPGRADES
from _supplies import HUNDRED, SET, batches_of, forget, hundred, size_of, stores

if TYPE_CHECKING:
    from prepared import Measuring

STEPS = (10, 20, 30, 50, HUNDRED)


def measure_space(measuring: Measuring) -> list[dict[str, object]]:
    """What the store takes on the disk for more and more distributions, and what their wheels take."""
    forget(measuring.bench)
    environment, emptied = measuring.environments[0], measuring.emptied[0]
    wheels = list(hundred(measuring.bench, measuring.set))
    rows = []
    done = 0
    for step in STEPS:
        for batch in batches_of(wheels[done:step]):
            emptied.reset()
            options = ("--no-deps", "--ignore-installed")
            measuring.bench.run(measuring.install("safe-pip", environment, *options, *map(str, batch)))
        done = step
        archives = sum(wheel.stat().st_size for wheel in wheels[:done]) / 2**20
        stored = sum(size_of(store) for store in stores(measuring.bench)) / 2**20
        row: dict[str, object] = {"distributions": done, "wheels MiB": archives, "store MiB": stored}
        rows.append({**row, "store over wheels": stored / archives})
    return rows


def measure_phases(measuring: Measuring, runs: int) -> list[dict[str, object]]:
    """Where the time of one command goes, medians in milliseconds."""
    pins = {project: ["--no-deps", f"{project}=={UPGRADES[project][1]}"] for project in ("Django", "numpy")}
    whats = {**pins, f"the set of {len(SET)}": ["-r", str(measuring.requirements)]}
    environment, file = measuring.environments[0], measuring.bench.scratch / "phases.json"
    program = [str(environment.python), str(Path(__file__).with_name("_phases.py")), str(file)]
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for what, arguments_ in whats.items():
        for cold in (False, True):
            noted: dict[str, list[float]] = defaultdict(list)
            for number in range(-1, runs):
                measuring.emptied[0].reset()
                if cold:
                    forget(measuring.bench)
                os.sync()
                start = time.perf_counter()
                measuring.bench.run([*program, repr(start), "install", *arguments_])
                whole = time.perf_counter() - start
                phases = json.loads(file.read_text())
                phases["exit"] = whole - sum(phases.values())
                for phase, seconds in {**phases, "all": whole}.items():
                    noted[phase] += [seconds * 1000] if number >= 0 else []
            for phase, values in noted.items():
                values += [0.0] * (runs - len(values))
                rows[phase][f"{what}, cold" if cold else what] = statistics.median(values)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return [{"ms": phase, **{column: row.get(column, 0.0) for column in columns}} for phase, row in rows.items()]
