"""What `safe-pip adopt` costs the start of any other Python program of that environment.

    python benchmarks/adopted_start.py [--pairs N] [--python PYTHON] [--seed N] [--limit MS]

Two virtual environments are made alike, and one of them is adopted. In each pair both run a program, one right after
the other, in an order that is drawn anew; halfway the adoption moves to the other environment, so that nothing else
tells them apart. What counts is the median of the differences within the pairs, of elapsed and of processor time; on a
machine that is busy the latter says more. "noise" is a pair without any adoption. Programs: one that does nothing, and
one that imports argparse and json, as most do in some way. Environments: one that has no other `.pth` file, so that the
adoption also pays for what Python does for the first one (3.13 imports a codec), and one that has, as every environment
does that virtualenv made, or that has setuptools. Nothing at all is the harshest: it ends before the collector has run
for the first time, unless a `.pth` file makes it run. Ends with status 1 if any of these starts slower by more than the
limit (default: 0.5 ms of processor time).
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[1]
UNCOUNTED = 10
PROGRAMS = {"nothing": "pass", "imports": "import argparse, json"}
Times = list[tuple[float, float]]


def started(python: Path, code: str, environ: dict[str, str]) -> tuple[float, float]:
    """The milliseconds, elapsed and of a processor, that this program takes."""
    command = [str(python), "-c", code]
    begun = time.perf_counter()
    process = os.posix_spawn(command[0], command, environ)
    _, status, usage = os.wait4(process, 0)
    taken = time.perf_counter() - begun
    if status:
        sys.exit(f"`{' '.join(command)}` ended with status {status}")
    return taken * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def differences(
    first: Callable[[], tuple[float, float]], second: Callable[[], tuple[float, float]], pairs: int
) -> tuple[Times, Times]:
    """First less second of each pair, elapsed and processor; and all times of the second."""
    found: Times = []
    times: Times = []
    for number in range(-UNCOUNTED, pairs):
        if random.random() < 0.5:
            one, other = first(), second()
        else:
            other, one = second(), first()
        if number >= 0:
            found.append((one[0] - other[0], one[1] - other[1]))
            times.append(other)
    return found, times


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median and its 95 % confidence interval (order statistics of the binomial distribution)."""
    ordered = sorted(values)
    reach = round(0.98 * len(ordered) ** 0.5)
    middle = len(ordered) // 2
    return statistics.median(ordered), ordered[max(middle - reach, 0)], ordered[min(middle + reach, len(ordered) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="of each kind (default: 400)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.5, metavar="MS")
    options = parser.parse_args()
    random.seed(options.seed)
    foreign = ("PIP_", "PYTHON", "SAFE_PIP_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

    def safe_pip(verb: str, home: Path) -> None:
        command = [sys.executable, PROJECT / "src/safe_pip/_runner.py", verb, "--env", home]
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)

    def compare(homes: list[Path], code: str, *, is_adopted: bool) -> tuple[Times, Times]:
        found: Times = []
        times: Times = []
        for mine, other in (homes, homes[::-1]):
            if is_adopted:
                safe_pip("adopt", mine)
            more, plain = differences(
                lambda home=mine: started(home / "bin" / "python", code, environ),
                lambda home=other: started(home / "bin" / "python", code, environ),
                options.pairs // 2,
            )
            if is_adopted:
                safe_pip("unadopt", mine)
            found, times = found + more, times + plain
        return found, times

    print(f"ms, {options.pairs} pairs".ljust(36) + "plain".rjust(8) + "more".rjust(8) + "   95 % interval")
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="safe-pip-bench-") as scratch:
        for kind in ("no other .pth", "another .pth"):
            homes = [Path(scratch, kind, name) for name in ("one", "two")]
            for home in homes:
                subprocess.run([options.python, "-m", "venv", "--without-pip", home], env=environ, check=True)
                if kind == "another .pth":
                    (site,) = home.glob("lib/python*/site-packages")
                    (site / "another.pth").write_text("import sys\n")
            for program, code in PROGRAMS.items():
                for is_adopted in (True, False):
                    found, times = compare(homes, code, is_adopted=is_adopted)
                    for column, unit in enumerate(("elapsed", "processor")):
                        median, low, high = interval([each[column] for each in found])
                        plain = statistics.median(each[column] for each in times)
                        title = f"{program}, {kind if is_adopted else 'noise'}, {unit}"
                        print(f"{title:36}{plain:8.2f}{median:+8.3f}   {low:+.3f} to {high:+.3f}", flush=True)
                        if is_adopted and unit == "processor":
                            worst = max(worst, median)
    if worst > options.limit:
        print(f"slower by more than {options.limit} ms")
    return int(worst > options.limit)


if __name__ == "__main__":
    sys.exit(main())
