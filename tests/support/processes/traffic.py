"""Many commands on one environment at once: a load, the outcome of each command, and unexplained outcomes.

A load is a list of lanes. A lane is a list of commands that run one after another. All lanes start together. Output
goes into files, so it survives a command that hangs, and a daemon that a command leaves behind delays no test.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.venvs.checker import Violation, normalize
from tests.support.venvs.template import Venv

TRACES = ("Traceback (most recent call last)", "Exception:")
TEMPORARY_FAILURE = 75
ATTEMPTS = 10
# No command takes that long unless it waits for ever.
PATIENCE = 300.0
HUNG = -1000


@dataclass(frozen=True)
class Tool:
    """A tool under test: the start of its command line for an environment."""

    name: str
    command: Callable[[Venv], list[str]]


PLAIN = Tool("plain", lambda environment: [str(environment.python), "-m", "pip"])
FLOCK = Tool("flock", lambda environment: ["flock", "-x", f"{environment.path}.lock", *PLAIN.command(environment)])
SAFE_PIP = Tool("safe-pip", lambda environment: [str(environment.scripts / "safe-pip")])
TOOLS = {tool.name: tool for tool in (PLAIN, FLOCK, SAFE_PIP)}


@dataclass(frozen=True)
class Command:
    """One command: what follows the tool's name, and the versions in which it leaves projects (None: removed).

    `reads` says what a command must have printed for having seen one instant; it returns a complaint or None.
    """

    arguments: tuple[str, ...]
    writes: Mapping[str, str | None] = field(default_factory=dict)
    reads: Callable[[str], str | None] | None = None
    statuses: tuple[int, ...] = (0,)


Lane = Sequence[Command]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one command."""

    lane: int
    command: Command
    line: str
    status: int
    stdout: str
    stderr: str
    started: float
    ended: float

    @property
    def label(self) -> str:
        return f"lane {self.lane}: `{' '.join(self.command.arguments)}` (exit {self.status})"


def install(*options: str, **versions: str) -> Command:
    """Install exactly these versions; an underscore in a keyword stands for a hyphen."""
    pins = {normalize(name): version for name, version in versions.items()}
    return Command(("install", *options, *(f"{name}=={version}" for name, version in pins.items())), pins)


def uninstall(*projects: str) -> Command:
    """Remove these projects; missing ones are skipped."""
    return Command(("uninstall", "-y", *projects), dict.fromkeys(map(normalize, projects)))


def run_traffic(
    tool: Tool, environment: Venv, lanes: Sequence[Lane], variables: Mapping[str, str], directory: Path
) -> list[Outcome]:
    """Run all lanes at once; on return every command has ended, or has been killed because it hung.

    The command lines and what was printed are kept in `directory`.
    """
    barrier = threading.Barrier(len(lanes))
    directory.mkdir(parents=True, exist_ok=True)

    def work(lane: int) -> list[Outcome]:
        outcomes = []
        barrier.wait()
        for index, command in enumerate(lanes[lane]):
            argv = [*tool.command(environment), *command.arguments]
            outcomes.append(_run(lane, command, argv, variables, directory / f"{lane:02}-{index:02}"))
        return outcomes

    with ThreadPoolExecutor(len(lanes)) as pool:
        done = [each for lane in pool.map(work, range(len(lanes))) for each in lane]
    outcomes = sorted(done, key=lambda outcome: outcome.started)
    zero = outcomes[0].started if outcomes else 0.0
    rows = [f"{o.started - zero:8.3f} {o.ended - zero:8.3f} {o.status:4} lane {o.lane:2} {o.line}\n" for o in outcomes]
    (directory / "commands.txt").write_text("".join(rows))
    return outcomes


def _run(lane: int, command: Command, argv: list[str], variables: Mapping[str, str], output: Path) -> Outcome:
    started = time.monotonic()
    out, err = output.with_suffix(".out"), output.with_suffix(".err")
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=dict(variables), cwd=output.parent
        )
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = HUNG
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
    return Outcome(lane, command, shlex.join(argv), status, *texts, started, time.monotonic())


def check_outcomes(outcomes: Sequence[Outcome]) -> list[Violation]:
    """Outcomes that no serial order explains: exit statuses, tracebacks, torn reads."""
    found = []
    for outcome in outcomes:
        tail = "\n".join(text.rstrip() for text in (outcome.stdout[-300:], outcome.stderr[-1500:]) if text)
        if outcome.status == HUNG:
            found.append(Violation("hung", f"{outcome.label}\n{tail}"))
        elif outcome.status not in outcome.command.statuses and not _gave_up(outcome, outcomes):
            found.append(Violation("unexplained-status", f"{outcome.label}\n{tail}"))
        if any(trace in text for trace in TRACES for text in (outcome.stdout, outcome.stderr)):
            found.append(Violation("traceback", f"{outcome.label}\n{tail}"))
        if outcome.status == 0 and outcome.command.reads:
            complaint = outcome.command.reads(outcome.stdout)
            found += [Violation("torn-read", f"{outcome.label}: {complaint}")] if complaint else []
    return found


def _gave_up(outcome: Outcome, others: Sequence[Outcome]) -> bool:
    """Whether a command may exit 75: only after as many stale plans as other commands really could give it."""
    changed = [
        other
        for other in others
        if other is not outcome and other.status == 0 and other.command.writes and other.ended >= outcome.started
    ]
    said = "safe-pip: error: " in outcome.stderr and "Nothing was changed" in outcome.stderr
    return outcome.status == TEMPORARY_FAILURE and said and len(changed) >= ATTEMPTS


def one_instant(families: Sequence[Sequence[Mapping[str, str]]]) -> list[Command]:
    """Reading commands: each must see one generation of every family, or none of it.

    A family is a list of generations; a generation gives the version of each project that is installed together.
    """

    def complaint(listed: Mapping[str, str]) -> str | None:
        for generations in families:
            projects = {project for generation in generations for project in generation}
            seen = {project: listed[project] for project in sorted(projects) if project in listed}
            if seen and seen not in generations:
                return f"saw {seen}, of {list(generations)}"
        return None

    def freeze(text: str) -> str | None:
        return complaint({normalize(name): version for name, version in re.findall(r"^(\S+)==(\S+)$", text, re.M)})

    def listing(text: str) -> str | None:
        return complaint({normalize(row["name"]): row["version"] for row in json.loads(text)})

    def inspect(text: str) -> str | None:
        rows = [row["metadata"] for row in json.loads(text)["installed"]]
        return complaint({normalize(row["name"]): row["version"] for row in rows})

    return [
        Command(("freeze", "--all"), reads=freeze),
        Command(("list", "--format=json"), reads=listing),
        Command(("list", "--format=freeze"), reads=freeze),
        Command(("check",), reads=lambda text: None if "No broken requirements" in text else text),
        Command(("inspect",), reads=inspect),
    ]
