"""A search of every scenario, the large ones too, for minutes: `python -m tests.model`.

`--only TEXT` searches those with TEXT in their names. Exits 1 if something was violated, and prints the way there.
"""

import argparse
import sys

from .explore import explore
from .model import Rules
from .scenarios import LARGE, SCENARIOS

LIMIT = 5_000_000


def main() -> int:
    """Run the search; on return 1 if something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="search the scenarios with this text in their names")
    only = parser.parse_args().only
    states = moves = 0
    is_clean = True
    for name, scenario in {**SCENARIOS, **LARGE}.items():
        if only in name:
            found = explore(scenario, Rules(), LIMIT)
            states, moves = states + found.states, moves + found.moves
            is_clean = is_clean and found.violation is None
            print(f"{name}: {found}", flush=True)
    print(f"{states} states, {moves} steps")
    return not is_clean


if __name__ == "__main__":
    sys.exit(main())
