"""What the benchmarks of the commit share: an environment with safe-pip and pip, real wheels, statistics, tables.

It is made by what the tests make theirs with, from wheels alone; the index is asked once per user for what is upgraded.
No variable of this machine's that pip or Python would read reaches the commands that are timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.processes.traffic import SAFE_PIP
from tests.support.venvs.template import Venv, clean_environment, offline
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.wheelhouse import NEWEST_PIP, Wheelhouse, open_wheelhouse, user_cache

# No version of numpy has wheels for the oldest and the newest Python.
_NUMPYS = ("2.5.2", "2.5.5") if sys.version_info >= (3, 14) else ("2.1.3", "2.2.6")
# Two versions of each, old and new, that have wheels for this Python.
UPGRADES = {"six": ("1.16.0", "1.17.0"), "Django": ("5.1.4", "5.2.1"), "numpy": _NUMPYS}


class Bench:
    """An environment with both tools, and where its wheels come from."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.wheelhouse: Wheelhouse = open_wheelhouse()
        self.wheels = _fetched()
        self.index = scratch / "index"
        self.index.mkdir()
        self._laboratory = Workspace(self.wheelhouse, scratch, SAFE_PIP, NEWEST_PIP)
        links = offline(self.wheels, self.wheelhouse.path, self.index)
        self.variables = clean_environment(scratch / "home", cache=scratch / "cache", **links)

    def environment(self, name: str) -> Venv:
        """A new environment with pip and safe-pip, and a frozen pip for it."""
        made = self._laboratory.maker.make(self.scratch / name, self._laboratory.base)
        self.run(self.safe_pip(made), "--version")
        return made

    def safe_pip(self, environment: Venv) -> list[str]:
        return [str(environment.scripts / "safe-pip")]

    def pip(self, environment: Venv) -> list[str]:
        return [str(environment.scripts / "pip")]

    def run(self, command: Sequence[str | Path], *arguments: str | Path) -> str:
        """Run a command that has to succeed; on return what it printed."""
        whole = [*map(str, command), *map(str, arguments)]
        done = subprocess.run(
            whole, env=self.variables, cwd=self.scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"`{' '.join(whole)}` exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, command: Sequence[str | Path], *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a command and discard its output."""
        return subprocess.Popen(
            [*map(str, command), *map(str, arguments)],
            env=self.variables,
            cwd=self.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class Emptied:
    """An environment that is restored after each measurement, without an installer."""

    def __init__(self, environment: Venv) -> None:
        self.environment = environment
        self._there = {path: set(os.listdir(path)) for path in self._directories()}

    def _directories(self) -> list[Path]:
        root = self.environment.path
        return [root, self.environment.scripts, self.environment.purelib, *self._share()]

    def _share(self) -> list[Path]:
        share = self.environment.path / "share"
        return [share] if share.is_dir() else []

    def reset(self) -> None:
        """Remove every entry that was not there at first."""
        for path, names in self._there.items():
            for name in set(os.listdir(path)) - names:
                entry = path / name
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _fetched() -> Path:
    """The wheels of `UPGRADES`, from this user's cache or now from the index."""
    pins = [f"{name}=={version}" for name, versions in UPGRADES.items() for version in versions]
    directory = user_cache() / "safe-pip-tests" / f"benchmarks-{sys.implementation.cache_tag}"
    wanted = json.dumps(pins)
    with contextlib.suppress(FileNotFoundError):
        if (directory / "pins.json").read_text() == wanted:
            return directory
        shutil.rmtree(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix="fetching-"))
    for pin in pins:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", aside]
        subprocess.run([*command, pin], check=True)
    (aside / "pins.json").write_text(wanted)
    os.rename(aside, directory)
    return directory


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A bench in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="safe-pip-bench-") as scratch:
        yield Bench(Path(scratch))


def arguments(documentation: str | None, **defaults: int) -> argparse.ArgumentParser:
    """A parser with `--seed`, `--json` and a number for each of `defaults`."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"default: {number}")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which things are measured")
    parser.add_argument("--json", action="store_true", help="print the single measurements, not a table")
    return parser


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows that have the same columns, the first one as their title."""
    if not rows:
        return
    cells = [[*rows[0]], *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        rest = (cell.rjust(width + 3) for cell, width in zip(line[1:], widths[1:], strict=True))
        print(line[0].ljust(widths[0]) + "".join(rest))


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
