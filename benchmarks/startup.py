"""What safe-pip costs over pip at the start of a command, both measured side by side in one run.

    python benchmarks/startup.py [--rounds N] [--python PYTHON] [--fill N]

A new environment is made in a temporary directory and safe-pip is installed into it from this tree, compiled; the
console scripts of both are compared there. In every round each command runs once by each of them, in an order shuffled
anew, so that a busy moment of the machine hits both alike. What counts is the median of the differences within a round.
The first rounds (frozen pip, disk cache) are run but not counted. Processor time is shown as well: a machine that is
busy with other things disturbs it less. Nothing is taken from pip's configuration, and no index is asked.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
COMMANDS = (["--version"], ["list"], ["freeze"], ["config", "list"], ["check"], ["install", "pip"])
UNCOUNTED = 2


def without(*prefixes: str) -> dict[str, str]:
    """The variables of this process without those that start with these prefixes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def new_environment(directory: Path, python: str, distributions: int) -> Path:
    """Make an environment with safe-pip and as many empty distributions; on return the directory of its scripts."""
    environ = without("PYTHON", "SAFE_PIP_")
    subprocess.run([python, "-m", "venv", directory], env=environ, check=True)
    scripts = directory / ("Scripts" if os.name == "nt" else "bin")
    # One call upgrades pip as well, to the newest.
    install = ["-m", "pip", "install", "--quiet", "--upgrade", "--compile", "pip", PROJECT]
    subprocess.run([scripts / "python", *install], env=environ, check=True)
    where = [scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    for number in range(distributions):
        dist_info = purelib / f"filler_{number}-1.0.dist-info"
        dist_info.mkdir()
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: filler_{number}\nVersion: 1.0\n")
        (dist_info / "RECORD").write_text(f"{dist_info.name}/METADATA,,\n{dist_info.name}/RECORD,,\n")
    return scripts


def milliseconds(command: list[str], environ: dict[str, str], directory: Path) -> tuple[float, float]:
    """How long `command` takes, and how much of a processor's time; it has to succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environ, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` exited {done.returncode}:\n{done.stdout}{done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return taken * 1000, used * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment")
    parser.add_argument("--fill", type=int, default=0, metavar="N", help="install N empty distributions as well")
    arguments = parser.parse_args()

    environ = without("PIP_", "PYTHON", "SAFE_PIP_")
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        scripts = new_environment(directory / "environment", arguments.python, arguments.fill)
        environ["XDG_CACHE_HOME"] = str(directory / "cache")
        starters = {
            "safe-pip": [str(scripts / "safe-pip")],
            "pip": [str(scripts / "pip")],
        }
        times = measure(starters, arguments.rounds, environ, directory)
    for number, title in enumerate(("elapsed ms", "processor ms")):
        report(title, {run: [taken[number] for taken in rounds] for run, rounds in times.items()}, list(starters))


def measure(
    starters: dict[str, list[str]], rounds: int, environ: dict[str, str], directory: Path
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The times of each command by each starter, a pair for each counted round."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    runs = [(starter, command) for command in COMMANDS for starter in starters]
    for number in range(-UNCOUNTED, rounds):
        random.shuffle(runs)
        for starter, command in runs:
            taken = milliseconds(starters[starter] + command, environ, directory)
            if number >= 0:
                times.setdefault((starter, " ".join(command)), []).append(taken)
    return times


def report(title: str, times: dict[tuple[str, str], list[float]], starters: list[str]) -> None:
    """Print the medians, and what the first takes over the others: median difference, that of the minima, ratio."""
    first, *others = starters
    print(f"\n{title}".ljust(15) + "".join(name.rjust(15) for name in starters), end="")
    print("".join(f"over {name}: median, minimum, ratio".rjust(42) for name in others))
    for command in dict.fromkeys(command for _, command in times):
        ours = times[first, command]
        row = command.ljust(14) + "".join(f"{statistics.median(times[name, command]):15.1f}" for name in starters)
        for name in others:
            theirs = times[name, command]
            over = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
            ratio = statistics.median(ours) / statistics.median(theirs)
            row += f"{over:+20.1f} {min(ours) - min(theirs):+10.1f} {ratio:8.2f} x"
        print(row)


if __name__ == "__main__":
    main()
