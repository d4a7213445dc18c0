"""What hosts cost that use one environment: namespaces of this machine, on a GlusterFS volume (`tests/hosts/bed.sh`).

    python benchmarks/hosts.py [--only NAME] [--quick] [--rounds N] [--json] [--before SRC]

Only root can run it. `wake-up`: from the release of a lock on one host to its grant on another. `calls`: to the
environment's filesystem under the exclusive lock, for an install that adds (needs strace). `commits`: per second, from
2, 4 and 8 hosts at once, and the longest wait for the locks. `set`: 8 hosts that install the same set, over one host.
`kills`, `cuts`: commits that are killed, or whose host loses its link, before a change drawn by lot. `local`:
processor time of commands on a local filesystem, over that of the sources in SRC, in turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _bench import arguments, table
from tests.hosts.bed import PROJECT, VOLUME, Bed, bed, obstacle
from tests.hosts.rounds import Rounds, Seen, check, installing, make_index
from tests.support.wheels.tiny import Project

HOSTS = "abcdefgh"
CHANGES = 18
"""A commit of `Rounds` makes no more changes after its journal."""
LARGE = 1000
Row = dict[str, object]
_LOCAL_CALLS = {"fcntl", "lseek", "close", "readlink"}

HOLD = """
import sys, time
from pathlib import Path
from safe_pip.locking import flock
for line in sys.stdin:
    with flock.Descriptor(Path(sys.argv[1]), writable=True) as lock:
        flock.try_lock(lock, exclusive=True)
        print("held", flush=True)
        sys.stdin.readline()
        time.sleep(0.2)
        began = time.monotonic()
    print(began, flush=True)
"""
WAIT = """
import sys, time
from pathlib import Path
from safe_pip.locking import flock
for line in sys.stdin:
    with flock.Descriptor(Path(sys.argv[1]), writable=True) as lock:
        flock.wait_lock(lock, exclusive=True, seconds=30)
        print(time.monotonic(), flush=True)
"""
COMMIT = """
import os, sys, time
from pathlib import Path
from safe_pip.environment.environment import Target
from safe_pip.locking.locker import Locker
from tests.support.venvs.direct_installs import DirectPrefix
waits, take = [], Locker.take
def timed(self, scope, **more):
    began = time.monotonic()
    take(self, scope, **more)
    waits.append(time.monotonic() - began)
Locker.take = timed
prefix, done = DirectPrefix(Path(sys.argv[1])), 0
prefix.site = prefix.root / "site-packages"
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    name, transaction = f"p{sys.argv[2]}{done}", prefix.transaction()
    with transaction.staging(Target((prefix.site,))) as change:
        change.mirror(str(prefix.site))
        staged = Path(change.staged(str(prefix.site)))
        info = staged / f"{name}-1.dist-info"
        info.mkdir()
        (staged / f"{name}.py").write_text("x")
        (info / "METADATA").write_text(f"Name: {name}\\n")
        (info / "RECORD").write_text(f"{name}.py,,\\n{info.name}/METADATA,,\\n{info.name}/RECORD,,\\n")
        change.add(name, str(info / "RECORD"))
        transaction.commit(change, lambda now: ())
    done += 1
print(done, max(waits), flush=True)
"""


def give(process: subprocess.Popen[str], text: str = "\n") -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def line(process: subprocess.Popen[str], given: str = "\n") -> str:
    give(process, given)
    assert process.stdout is not None
    return process.stdout.readline()


def wake_up(hosts: Bed, rounds: int) -> Row:
    path = VOLUME / "lock"
    hosts.run("a", "touch", path)
    holder, waiter = (hosts.start(host, sys.executable, "-c", code, path) for host, code in (("a", HOLD), ("b", WAIT)))
    times = []
    for _ in range(rounds):
        line(holder)
        give(waiter)
        began = float(line(holder))
        times.append((float(line(waiter, "")) - began) * 1000)
    holder.ended(given="")
    waiter.ended(given="")
    return {"what": "wake-up on another host, ms", "n": rounds, "median": statistics.median(times), "most": max(times)}


def calls(hosts: Bed, _: int) -> Row:
    venv, trace = VOLUME / "calls", hosts.directory / "trace"
    hosts.pip("a", "venv", venv, "--without-pip")
    hosts.pip("a", "--python", venv, *installing(hosts, "one==1"))
    command = [venv / "bin/python", "-m", "safe_pip", *installing(hosts, "two==1")]
    hosts.run("a", "strace", "-f", "-y", "-o", trace, *command, PYTHONPATH=os.environ["PYTHONPATH"])
    lock, found = "", 0
    for each in trace.read_text().splitlines():
        pid, _, call = each.partition(" ")
        if granted := re.match(r" *flock\((\d+)<[^>]*/\.safe-pip/commit>, LOCK_EX[^)]*\) += 0", call):
            lock, found = f"{pid} close({granted[1]}<", 0
        elif lock and f"{pid} {call.strip()}".startswith(lock):
            break
        elif lock and str(VOLUME) in call:
            found += call.strip().partition("(")[0] not in _LOCAL_CALLS
    return {"what": "calls under the exclusive lock of an install that adds", "n": 1, "median": found, "most": found}


def commits(hosts: Bed, seconds: int) -> list[Row]:
    rows = []
    for number in (2, 4, 8):
        code, root = [sys.executable, "-c", COMMIT], VOLUME / f"commits{number}"
        hosts.run("a", "mkdir", "-p", *(root / each for each in ("site", "bin", "site-packages")))
        running = [hosts.start(host, *code, root, host, str(seconds)) for host in HOSTS[:number]]
        for each in running:
            line(each, "")
        for each in running:
            give(each)
        done = [each.ended(given="").split() for each in running]
        rate = sum(int(each[0]) for each in done) / seconds
        longest = max(float(each[1]) for each in done)
        rows.append({"what": f"commits per second, {number} hosts; longest wait, s", "n": number, "median": rate})
        rows[-1]["most"] = longest
    return rows


def same_set(hosts: Bed, _: int) -> Row:
    files = {f"large/m{number}.py": f"x = {number}\n" for number in range(LARGE)}
    Project("large", "1", files={"large/__init__.py": "", **files}).write_wheel(hosts.directory / "index")
    times = []
    for number in (1, 8):
        venv = VOLUME / f"set{number}"
        hosts.pip("a", "venv", venv, "--without-pip")
        began = time.monotonic()
        command = [sys.executable, "-m", "safe_pip", "--python", venv]
        for each in [hosts.start(host, *command, *installing(hosts, "large", "one==1")) for host in HOSTS[:number]]:
            each.ended()
        times.append(time.monotonic() - began)
        check(hosts, venv)
    return {"what": "one set from 8 hosts, over one host", "n": 1, "median": times[1] / times[0], "most": times[1]}


def ended_badly(kind: str) -> Callable[[Bed, int], Row]:
    def rounds_of(hosts: Bed, seed: int, rounds: int) -> tuple[int, list[str]]:
        """The number of commits among so many rounds in one environment, and what went wrong."""
        made, chances, committed, faults = Rounds(hosts, f"{kind}{seed}", seed), random.Random(seed), 0, list[str]()
        act: Callable[[int, str, str], Seen] = made.killed if kind == "kills" else made.cut
        for number in range(rounds):
            try:
                seen = act(chances.randrange(CHANGES), *("ab" if number % 2 else "ba"))
                committed += seen.is_committed
                faults += [seen.words] if "Half-applied" in seen.words else []
            except AssertionError as error:
                faults.append(str(error))
            print(f"{kind}: {number + 1} of {rounds}, {len(faults)} faults", file=sys.stderr)
        made.finish()
        return committed, faults

    def measure(hosts: Bed, rounds: int) -> Row:
        lanes = 2 if kind == "kills" else 1  # a link that is cut would cut both
        with ThreadPoolExecutor(lanes) as pool:
            done = list(pool.map(lambda seed: rounds_of(hosts, seed, rounds // lanes), range(lanes)))
        print(*(fault for _, faults in done for fault in faults), sep="\n", file=sys.stderr)
        faults = sum(len(faults) for _, faults in done)
        row: Row = {"what": f"{kind}; of them committed; faults", "n": rounds}
        return {**row, "median": sum(committed for committed, _ in done), "most": faults}

    return measure


def local(sources: Path, rounds: int) -> Row:
    """The ratio of processor times, ours over that of `sources`: both once in each round, in turns."""

    def once(path: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "safe_pip", "install", "-q", "--target", directory, "--no-index"]
            command += ["--find-links", str(index), "one==1"]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch)
        Project("one", "1", files={f"one/m{number}.py": "" for number in range(20)}).write_wheel(index)
        paths = [str(PROJECT / "src"), str(sources)]
        for path in paths:
            subprocess.run([sys.executable, "-m", "compileall", "-q", path], check=True)
            once(path)
        ratios = []
        for number in range(rounds):
            times = {path: once(path) for path in (paths if number % 2 else paths[::-1])}
            ratios.append(times[paths[0]] / times[paths[1]])
    row: Row = {"what": "local install, over earlier sources", "n": rounds, "median": statistics.median(ratios)}
    return {**row, "most": max(ratios)}


FIGURES: dict[str, tuple[Callable[[Bed, int], Row | list[Row]], int, int]] = {
    "wake-up": (wake_up, 100, 20),
    "calls": (calls, 1, 1),
    "commits": (commits, 20, 5),
    "set": (same_set, 1, 1),
    "kills": (ended_badly("kills"), 200, 10),
    "cuts": (ended_badly("cuts"), 20, 2),
}


def main() -> None:
    parser = arguments(__doc__, rounds=0)
    parser.add_argument("--only", action="append", choices=[*FIGURES, "local"], help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each")
    parser.add_argument("--before", type=Path, metavar="SRC", help="the sources that `local` is compared with")
    options = parser.parse_args()
    if why := obstacle():
        sys.exit(why)
    chosen, rows = options.only or [*FIGURES, "local"], list[Row]()
    os.environ.setdefault("PYTHONPATH", str(PROJECT / "src"))
    with contextlib.ExitStack() as stack:
        if set(chosen) & set(FIGURES):
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="safe-pip-bench-"))
            hosts = stack.enter_context(bed(Path(scratch), HOSTS))
            make_index(hosts)
            probe = [sys.executable, "-m", "safe_pip", "doctor", "--filesystem", VOLUME]
            for each in [hosts.start(host, *probe) for host in HOSTS[:2]]:
                each.ended()
        for name in (name for name in FIGURES if name in chosen):
            measure, rounds, few = FIGURES[name]
            found = measure(hosts, options.rounds or (few if options.quick else rounds))
            rows += found if isinstance(found, list) else [found]
            print(rows[-1], file=sys.stderr)
    if "local" in chosen and options.before:
        rows.append(local(options.before, 5 if options.quick else 25))
    print(json.dumps(rows)) if options.json else table(rows)


if __name__ == "__main__":
    main()
