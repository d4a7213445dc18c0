"""What `safe-pip adopt` costs the start of any other Python program of that environment.

    python benchmarks/adopted_start.py [--pairs N] [--python PYTHON] [--seed N] [--limit MS]

Two virtual environments are made alike, and one of them is adopted. In each pair both start Python with nothing to do,
one right after the other, in an order that is drawn anew; halfway the adoption moves to the other environment, so that
nothing else tells them apart. What counts is the median of the differences within the pairs, of elapsed and of
processor time. The second line compares the unadopted environment with itself in the same pairs' way: the noise. Ends
with status 1 if an adopted environment starts slower by more than the limit (default: 0.5 ms).
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
UNCOUNTED = 20


def started(python: Path, environ: dict[str, str]) -> tuple[float, float]:
    """The milliseconds, elapsed and of a processor, that Python takes to start and end."""
    command = [str(python), "-c", "pass"]
    begun = time.perf_counter()
    process = os.posix_spawn(command[0], command, environ)
    _, status, usage = os.wait4(process, 0)
    taken = time.perf_counter() - begun
    if status:
        sys.exit(f"`{' '.join(command)}` ended with status {status}")
    return taken * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def differences(first: Callable[[], tuple[float, float]], second: Callable[[], tuple[float, float]], pairs: int):
    """First less second of each pair, elapsed and processor; and all times of the second."""
    found, times = [], []
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
    """The median, and between what it lies with 95 % confidence (order statistics of the binomial distribution)."""
    ordered = sorted(values)
    reach = round(0.98 * len(ordered) ** 0.5)
    middle = len(ordered) // 2
    return statistics.median(ordered), ordered[max(middle - reach, 0)], ordered[min(middle + reach, len(ordered) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.5, metavar="MS")
    options = parser.parse_args()
    random.seed(options.seed)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "SAFE_PIP_"))
    }

    def safe_pip(verb: str, home: Path) -> None:
        command = [sys.executable, PROJECT / "src/safe_pip/_runner.py", verb, "--env", home]
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory(prefix="safe-pip-bench-") as scratch:
        homes = [Path(scratch, name) for name in ("one", "two")]
        for home in homes:
            subprocess.run([options.python, "-m", "venv", "--without-pip", home], env=environ, check=True)
        pythons = [home / "bin" / "python" for home in homes]
        adopted, noise, plain = [], [], []
        for mine, other in ((0, 1), (1, 0)):
            safe_pip("adopt", homes[mine])
            more, times = differences(
                lambda mine=mine: started(pythons[mine], environ),
                lambda other=other: started(pythons[other], environ),
                options.pairs // 2,
            )
            adopted, plain = adopted + more, plain + times
            safe_pip("unadopt", homes[mine])
            more, _ = differences(
                lambda mine=mine: started(pythons[mine], environ),
                lambda other=other: started(pythons[other], environ),
                options.pairs // 2,
            )
            noise += more
    print(f"{options.pairs} pairs".ljust(26) + "median ms, and its 95 % interval")
    worst = 0.0
    for column, title in enumerate(("elapsed", "processor")):
        print(f"{title}, plain".ljust(26) + f"{statistics.median(each[column] for each in plain):8.3f}")
        for name, values in (("adopted", adopted), ("noise", noise)):
            median, low, high = interval([each[column] for each in values])
            print(f"{title}, {name} - plain".ljust(26) + f"{median:+8.3f}   {low:+.3f} to {high:+.3f}")
            worst = max(worst, median) if name == "adopted" and not column else worst
    if worst > options.limit:
        print(f"slower by more than {options.limit} ms")
    return int(worst > options.limit)


if __name__ == "__main__":
    sys.exit(main())
