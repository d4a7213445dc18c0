"""What programs that import a distribution meet while it is upgraded: by safe-pip, by pip and by uv.

    python benchmarks/importers.py [--upgrades N] [--loops N] [--only TOOL] [--json]

A package of 41 modules goes from version 1 to version 2 and back, while loops of fresh interpreters import all of it
and ask for its version. They hold no lock; in the last row each of them, in one loop, holds the environment lock shared
(`flock -s` on site-packages: overlapping ones would keep safe-pip out, which is what `safe-pip run --shared` is for).
uv is fetched from the index; where there is none its row is left out. 500 upgrades take a quarter of an hour for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from _bench import Bench, arguments, bench, table
from tests.support.processes.importers import KINDS, NAME, both_versions, import_during, import_once

TOOLS = ("safe-pip", "pip", "uv", "safe-pip, importers locked")


def main() -> None:
    parser = arguments(__doc__, upgrades=500, loops=2)
    parser.add_argument("--only", action="append", choices=TOOLS, help="may be repeated")
    options = parser.parse_args()
    rows = []
    with bench() as shared:
        for project in both_versions():
            project.write_wheel(shared.index)
        chosen = options.only or TOOLS
        uv = fetch_uv(shared.scratch / "uv") if "uv" in chosen else None
        for number, tool in enumerate(tool for tool in chosen if tool != "uv" or uv is not None):
            print(f"{tool} ...", file=sys.stderr)
            rows.append(measure(shared, f"environment-{number}", tool, uv, options.upgrades, options.loops))
    print(json.dumps(rows)) if options.json else table(rows)


def measure(shared: Bench, name: str, tool: str, uv: Path | None, upgrades: int, loops: int) -> dict[str, object]:
    """One row of the table: the results during a number of upgrades by one tool."""
    environment = shared.environment(name)
    commands: dict[str, Sequence[str | Path]] = {
        "safe-pip": [*shared.safe_pip(environment), "install"],
        "pip": [*shared.pip(environment), "install"],
        "uv": [uv or "", "pip", "install", "-q", "--no-config", "--no-index", "--compile-bytecode"],
    }
    command = [*commands[tool.partition(",")[0]]]
    if tool == "uv":
        command += ["--find-links", shared.index, "--python", environment.python]
    python: list[str | Path] = [environment.python]
    if tool.endswith("locked"):
        python, loops = ["flock", "-s", environment.purelib, *python], 1

    def upgrade() -> None:
        for number in range(upgrades):
            shared.run(command, f"{NAME}=={2 - number % 2}")

    shared.run(command, f"{NAME}==1")
    met, details = import_during(upgrade, [python] * loops, shared.variables)
    for detail in sorted(set(details))[:10]:
        print(f"  {detail}", file=sys.stderr)
    kind, detail = import_once(python, shared.variables)
    row: dict[str, object] = {"upgrades by": tool, "upgrades": upgrades, "imports": sum(met.values())}
    return {**row, **{kind: met[kind] for kind in KINDS}, "afterwards": f"{kind} ({detail})"}


def fetch_uv(directory: Path) -> Path | None:
    """uv from the index, with pip's configuration of this machine; None if that fails."""
    venv.EnvBuilder(with_pip=True).create(directory)
    command = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", "uv"]
    done = subprocess.run(command, check=False)
    return directory / "bin" / "uv" if done.returncode == 0 else None


if __name__ == "__main__":
    main()
