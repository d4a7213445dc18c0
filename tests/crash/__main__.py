"""A campaign of kills: `python -m tests.crash --kills 1000 --signals 200 --seed 7`.

One upgrade of two distributions after the other is killed (SIGKILL; SIGINT or SIGTERM) at a random moment, half of them
aimed at the stretch in which something changes; then it is looked at what the next commands make of it: is the
environment byte for byte the old one or the new one, does the next command work, is anything left behind. A round that
ends with a complaint keeps its wreck (in ./wrecks, or where --keep says). About 2.5 seconds a round: 1,200 rounds take
50 minutes, or less with --jobs. `--tool plain` does the same to pip. Exits 1 after any complaint. Needs the package
index once per machine.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.support.faults.kills import FILES, INTERRUPT, KILL, TERMINATE, Outcome, Victim, campaign
from tests.support.processes.traffic import FLOCK, SAFE_PIP, TOOLS
from tests.support.venvs.workspace import PIPS, Workspace
from tests.support.wheels.wheelhouse import open_wheelhouse

SHOWN = 6


def main() -> int:
    """Run the campaign; on return 1 if there was any complaint."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="rounds that end with SIGKILL (default: 1000)")
    parser.add_argument("--signals", type=int, default=200, help="with SIGINT or SIGTERM (default: 200)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a new one, printed")
    parser.add_argument("--files", type=int, default=FILES, help=f"files in each distribution (default: {FILES})")
    parser.add_argument("--jobs", type=int, default=1, help="environments to do it to at once (default: 1)")
    parser.add_argument("--keep", type=Path, default=Path("wrecks"), metavar="DIR", help="where wrecks go")
    parser.add_argument("--tool", choices=sorted({*TOOLS} - {FLOCK.name}), default=SAFE_PIP.name)
    parser.add_argument("--pip", choices=sorted(PIPS), default="newest")
    options = parser.parse_args()
    # A shell starts what it puts into the background with this ignored, and the commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"seed {options.seed}", flush=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="safe-pip-crash-") as scratch:
        workspace = Workspace(open_wheelhouse(), Path(scratch), TOOLS[options.tool], PIPS[options.pip])
        victims = [
            Victim(workspace, Path(scratch) / f"victim-{number}", options.keep.absolute(), options.files)
            for number in range(options.jobs)
        ]
        for victim in victims:
            victim.prepare()
        print("stretches of an upgrade, in ms: " + ", ".join(victims[0].stretches()), flush=True)
        rounds = [(number, (KILL,)) for number in range(options.kills)]
        rounds += [(options.kills + number, (INTERRUPT, TERMINATE)) for number in range(options.signals)]
        random.Random(options.seed).shuffle(rounds)
        started = time.monotonic()
        for outcome in campaign(victims, rounds, options.seed):
            outcomes.append(outcome)
            if outcome.complaints:
                print(f"round {outcome.number}, {outcome.signal.name}, {outcome.moment}, wreck: {outcome.wreck}")
                print("".join(f"  {line}\n" for line in outcome.complaints[:SHOWN]), end="", flush=True)
            if len(outcomes) % 100 == 0:
                failed = sum(bool(each.complaints) for each in outcomes)
                print(f"{len(outcomes)} rounds, {time.monotonic() - started:.0f} s, {failed} failed", flush=True)
    report(outcomes)
    return 1 if any(outcome.complaints for outcome in outcomes) else 0


def report(outcomes: Sequence[Outcome]) -> None:
    """Print what became of all rounds, by signal and by the moment of the kill."""
    columns = (
        *("rounds", "killed", "old", "new", "neither", "journal", "healed", "healer killed"),
        *("broken", "next fails", "left", "swept", "temporary"),
    )
    print("\n" + "signal".ljust(10) + "moment".ljust(10) + "".join(name.rjust(len(name) + 2) for name in columns))
    for key in sorted({(outcome.signal.name, outcome.moment) for outcome in outcomes}):
        row = counted([each for each in outcomes if (each.signal.name, each.moment) == key])
        print(key[0].ljust(10) + key[1].ljust(10) + "".join(str(row[name]).rjust(len(name) + 2) for name in columns))
    row = counted(outcomes)
    print("all".ljust(20) + "".join(str(row[name]).rjust(len(name) + 2) for name in columns))
    print(
        "\nold, new, neither: the environment when the command had died; journal: between journal and commit point;"
        "\nhealed: neither, until the next command had run; healer killed: that one was killed as well, and the one"
        "\nafter it healed; broken: neither, after that; next fails: the next command did not work; left: something"
        "\nstayed behind for ever; swept: until the next command that writes; temporary: entries of TMPDIR that stay"
    )


def counted(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many rounds ended how."""
    row: Counter[str] = Counter(rounds=len(outcomes))
    for each in outcomes:
        row["killed"] += each.was_killed
        row[each.at_death] += 1
        row["journal"] += each.has_journal
        row["healed"] += each.at_death == "neither" and each.afterwards != "neither"
        row["healer killed"] += each.was_next_killed
        row["broken"] += each.afterwards == "neither"
        row["next fails"] += any(line.startswith("next command") for line in each.complaints)
        row["left"] += any(line.startswith("left behind") for line in each.complaints)
        row["swept"] += bool(each.left_to_the_next_writer)
        row["temporary"] += each.temporary
    return row


if __name__ == "__main__":
    sys.exit(main())
