"""What the tests of real tools do once, many times over: `python -m tests.integration make --rounds 20`.

`make` is `make -j8` over forty distributions, each round in a new environment; `importers` is so many up- and
downgrades (`--rounds 500`) under the eyes of importers below `safe-pip run --shared`; `uv` is four loops of so many
commands, two of uv and two of safe-pip, on the same projects; `store` is so many crowds of commands with one new store
of prepared wheels each, of which some are killed. Exits 1 after the first failure, and leaves what it failed on behind,
in ./wrecks or where --keep says. Needs the package index once per machine.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration import test_importers, test_make, test_store_kills, test_uv
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.tools import Toolbox
from tests.support.venvs.workspace import PIPS, Workspace
from tests.support.wheels.wheelhouse import open_wheelhouse


def make(workspace: Workspace, scratch: Path, rounds: int) -> None:
    """Every round in an environment of its own."""
    for number in range(rounds):
        started = time.monotonic()
        directory = scratch / f"round-{number}"
        test_make.perform(PipEnvironment.open(workspace, directory))
        shutil.rmtree(directory)
        print(f"round {number + 1}: {time.monotonic() - started:.1f} s", flush=True)


def importers(workspace: Workspace, scratch: Path, rounds: int) -> None:
    """All up- and downgrades in one environment."""
    env = PipEnvironment.open(workspace, scratch / "importers")
    met = test_importers.perform(env, rounds)
    print(f"{rounds} up- and downgrades, {sum(met.values())} programs met: {dict(met)}", flush=True)


def uv(workspace: Workspace, scratch: Path, rounds: int) -> None:
    """All commands in one environment."""
    toolbox = Toolbox(workspace.wheelhouse, scratch / "tools")
    toolbox.scratch.mkdir()
    test_uv.perform(test_uv.prepared(PipEnvironment.open(workspace, scratch / "uv"), toolbox), rounds)
    print(f"{4 * rounds} commands, none failed", flush=True)


def store(workspace: Workspace, scratch: Path, rounds: int) -> None:
    """Every round with a store of its own; what is installed goes into targets."""
    env, killed = PipEnvironment.open(workspace, scratch / "store"), 0
    seed = random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    for number in range(0, rounds, 10):
        killed += test_store_kills.perform(env, range(number, min(number + 10, rounds)), seed)
        print(f"{min(number + 10, rounds)} rounds, {killed} commands killed", flush=True)


CAMPAIGNS: dict[str, tuple[Callable[[Workspace, Path, int], None], int]] = {
    "make": (make, 20),
    "importers": (importers, 500),
    "uv": (uv, 50),
    "store": (store, 100),
}


def main() -> int:
    """Run one campaign; on return 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=sorted(CAMPAIGNS))
    parser.add_argument("--rounds", type=int, help="default: 20 for make, 500 for importers, 50 for uv, 100 for store")
    parser.add_argument("--keep", type=Path, default=Path("wrecks"), metavar="DIR", help="where a wreck goes")
    parser.add_argument("--pip", choices=sorted(PIPS), default="newest")
    options = parser.parse_args()
    campaign, rounds = CAMPAIGNS[options.campaign]
    scratch = Path(tempfile.mkdtemp(prefix="safe-pip-tools-"))
    try:
        workspace = Workspace(open_wheelhouse(), scratch / "workspace", pip_version=PIPS[options.pip])
        workspace.scratch.mkdir()
        campaign(workspace, scratch, options.rounds or rounds)
    except AssertionError as error:
        options.keep.mkdir(parents=True, exist_ok=True)
        wreck = shutil.move(scratch, options.keep / scratch.name)
        print(f"{error}\nthe wreck: {wreck}")
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
