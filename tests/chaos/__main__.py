"""A campaign of seeded traffic on one environment per round: `python -m tests.chaos --rounds 300 --seed 7`.

Round after round of the loads in `tests.support.processes.loads`, each with the next seed; every wreck is kept (in
./wrecks, or where SAFE_PIP_WRECKS says) and named, with the command that runs the same load again. `--only NAME`
(repeatable) chooses loads, `--tool` runs them with `plain` pip or with `flock` around it instead of safe-pip, `--pip
oldest` with the oldest supported pip. Exits 1 if a round ended with violations. Needs the package index once per
machine.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.support.processes.loads import LOADS
from tests.support.processes.traffic import SAFE_PIP, TOOLS
from tests.support.venvs.workspace import PIPS, Workspace, Wrecked
from tests.support.wheels.wheelhouse import open_wheelhouse


def main() -> int:
    """Run the campaign; on return the number of rounds with violations, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="how many rounds of each load (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="the first round's seed (default: 1)")
    parser.add_argument("--only", action="append", choices=sorted(LOADS), help="this load alone; may be repeated")
    parser.add_argument("--tool", choices=sorted(TOOLS), default=SAFE_PIP.name)
    parser.add_argument("--pip", choices=sorted(PIPS), default="newest")
    options = parser.parse_args()
    wrecked = []
    names = options.only or list(LOADS)
    seeds = range(options.seed, options.seed + options.rounds)
    with tempfile.TemporaryDirectory(prefix="safe-pip-chaos-") as scratch:
        workspace = Workspace(open_wheelhouse(), Path(scratch), TOOLS[options.tool], PIPS[options.pip])
        for seed, name in itertools.product(seeds, names):
            started = time.monotonic()
            try:
                workspace.perform(name, LOADS[name], seed)
            except Wrecked as error:
                wrecked.append(f"{name} {seed}")
                print(error)
            print(f"{name} seed {seed}: {time.monotonic() - started:.1f} s", flush=True)
    total = len(names) * options.rounds
    print(f"{total - len(wrecked)} passed, {len(wrecked)} failed" + "".join(f"\n  {each}" for each in wrecked))
    return min(len(wrecked), 1)


if __name__ == "__main__":
    sys.exit(main())
