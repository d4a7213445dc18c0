"""Upgrades of two distributions that are killed, and what the next commands do about it.

A victim is an environment that goes from version 1 to version 2 and back, again and again. Its content in each version
is recorded without any kill. After a kill and one more command it must have one of these contents again.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tests.support.processes.watching import Happened, Watch, wait_for_end
from tests.support.trees.listing import Tree, differences, tree_of
from tests.support.venvs.template import Venv, clean_environment, offline
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.upgrades import PROBE, PROJECTS, upgrade_projects

FILES = 200
STATE_DIRECTORY = ".safe-pip"
LOCK_FILES = {"commit", "commit.gate", "environment", "environment.gate", "keep", "keep.gate", "owner"}
# No command takes that long unless it waits for ever.
PATIENCE = 120.0
KILL, INTERRUPT, TERMINATE = signal.SIGKILL, signal.SIGINT, signal.SIGTERM
# pip says 1 when it is interrupted; before it is ready to say anything the interpreter dies of the signal.
STATUSES = {
    KILL: {-KILL},
    INTERRUPT: {1, -INTERRUPT, 128 + INTERRUPT},
    TERMINATE: {-TERMINATE, 128 + TERMINATE},
}


class Moment(NamedTuple):
    """A stretch of a command's life: from an entry of the state directory that ends so (the start) to another's."""

    name: str
    since: str
    until: str


ANYWHERE = Moment("anywhere", "", "")
STAGING = Moment("staging", ".owner", ".journal")
COMMIT = Moment("commit", ".journal", ".committed")
CLEANING = Moment("cleaning", ".committed", "")
MOMENTS = (ANYWHERE, ANYWHERE, ANYWHERE, STAGING, COMMIT, COMMIT, CLEANING)
"""Half at any time, because most of a command's life is spent elsewhere, and half where something changes."""


@dataclass(frozen=True)
class Outcome:
    """What became of one round."""

    number: int
    signal: signal.Signals
    moment: str
    was_killed: bool
    """False: it was done before."""
    at_death: str
    """`old`, `new` or `neither`, before anything else ran."""
    has_journal: bool = False
    """Whether it died between its journal and its commit point."""
    afterwards: str = "old"
    was_next_killed: bool = False
    """Whether the command that found a journal was killed as well."""
    left_to_the_next_writer: int = 0
    temporary: int = 0
    """Entries of TMPDIR that stay for ever: pip removes its own when it ends, not when it is killed."""
    complaints: tuple[str, ...] = ()
    wreck: Path | None = None


@dataclass
class Victim:
    """One environment, and the upgrades in it that are killed."""

    workspace: Workspace
    directory: Path
    wrecks: Path
    files: int = FILES
    environment: Venv = field(init=False)
    variables: dict[str, str] = field(init=False)
    version: str = "1"
    trees: dict[str, Tree] = field(default_factory=dict)
    _spans: dict[tuple[str, Moment], float] = field(default_factory=dict)
    """How long each stretch of an upgrade to a version takes, as far as it was seen."""
    _changes: dict[str, int] = field(default_factory=dict)
    """How many changes of its directories a commit of a version makes."""
    _has_probe: bool = False

    def prepare(self) -> None:
        """Make the environment in version 1, and write down what both versions look like and how long it takes."""
        index, self._temporary = self.directory / "index", self.directory / "tmp"
        for path in (index, self._temporary):
            path.mkdir(parents=True)
        for project in upgrade_projects(self.files):
            project.write_wheel(index)
        self.environment = self.workspace.maker.make(self.directory / "venv", self.workspace.base)
        cache, temporary = self.directory / "cache", str(self._temporary)
        self.variables = clean_environment(self.directory / "home", cache=cache, TMPDIR=temporary, **offline(index))
        self._finish("install", *_pins("1"))
        for kept in ("alpha/kept.txt", "space/kept.txt"):
            (self.environment.purelib / kept).write_text("no distribution owns this")
        self.trees["1"] = self._tree()
        for version in ("2", "1", "2", "1"):
            self._measure(version)
            tree = self.trees.setdefault(version, self._tree())
            if found := differences(tree, self._tree()):
                raise AssertionError(f"version {version} is not the same twice, with no kill at all: {found[:20]}")
        self._pristine = self.directory / "pristine"
        shutil.copytree(self.environment.path, self._pristine, symlinks=True)

    @property
    def state_directory(self) -> Path:
        return self.environment.purelib / STATE_DIRECTORY

    @property
    def moments(self) -> Sequence[Moment]:
        """The stretches that were seen: without a journal there is no commit to aim at."""
        return [moment for moment in MOMENTS if all((version, moment) in self._spans for version in self.trees)]

    def stretches(self) -> list[str]:
        """How long each stretch takes, as lines of text."""
        seen = dict.fromkeys(self.moments)
        return [
            f"{each.name} {self._spans['1', each] * 1000:.1f}, {self._spans['2', each] * 1000:.1f}" for each in seen
        ]

    def round(self, number: int, chances: random.Random, signals: Sequence[signal.Signals]) -> Outcome:
        """Kill one upgrade and check what the next commands do. On return the environment is sound or new."""
        old, new = self.version, "2" if self.version == "1" else "1"
        moment, chosen = chances.choice(self.moments), chances.choice(signals)
        delay = chances.uniform(0, 1.1) * self._spans[new, moment]
        changes = chances.randint(0, self._changes[new]) if moment == COMMIT else 0
        status = self._kill(moment, delay if not changes else 0.0, changes, chosen, "install", *_pins(new))
        outcome = Outcome(number, chosen, moment.name, status != 0, self._look(old, new), self._has_journal())
        complaints = list(self._first_complaints(outcome, status))
        evidence = self._evidence()
        if outcome.has_journal and chances.random() < 1 / 3:
            outcome = replace(outcome, was_next_killed=self._kill_recovery(chances.randint(1, 12)))
        complaints += self._next_complaints()
        outcome = replace(outcome, afterwards=self._look(old, new))
        if outcome.afterwards == "neither":
            complaints += [f"broken: {line}" for line in self._closest_differences()]
        elif outcome.afterwards == "new":
            self.version = new
        left = self._left()
        if not complaints and left:
            outcome = replace(outcome, left_to_the_next_writer=len(left))
            self._toggle_probe()
            complaints += [f"left behind: {path}" for path in self._left()]
            complaints += [f"changed by the next writer: {line}" for line in self._own_differences()]
        outcome = replace(outcome, temporary=self._empty_temporary(), complaints=tuple(complaints))
        if complaints:
            outcome = replace(
                outcome,
                wreck=self._keep(outcome, f"{old} -> {new}, {delay * 1000:.3f} ms, {changes} changes", evidence),
            )
            self._make_new()
        return outcome

    # -- commands ------------------------------------------------------------------------------------------------------

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "output.txt", "wb") as output:
            return subprocess.Popen(
                [*self.workspace.tool.command(self.environment), *arguments],
                env=self.variables,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _output(self) -> str:
        return (self.directory / "output.txt").read_text(errors="replace")

    def _finish(self, *arguments: str) -> str:
        """Run a command that must succeed; on return what it printed."""
        status = self._start(*arguments).wait(PATIENCE)
        if status:
            raise AssertionError(f"`{' '.join(arguments)}` exited {status}:\n{self._output()}")
        return self._output()

    def _measure(self, version: str) -> None:
        """Upgrade with no kill, and note how long each stretch takes, and how many changes are between two of them."""
        times: dict[str, float] = {}
        changes: dict[str, int] = {}
        numbers = itertools.count()

        def note(happened: Happened) -> bool:
            number, suffix = next(numbers), Path(happened[1]).suffix
            if _is_made(happened) and suffix not in times:
                times[suffix], changes[suffix] = time.perf_counter(), number
            return suffix == STAGING.since

        with self._watch() as watch:
            times["start"] = time.perf_counter()
            process = self._start("install", *_pins(version))
            while watch.wait(process, note, PATIENCE, is_awake=STAGING.since in times):
                pass
            times["end"] = time.perf_counter()
            assert process.wait() == 0, self._output()
        for moment in MOMENTS:
            since, until = times.get(moment.since or "start"), times.get(moment.until or "end")
            if since is not None and until is not None:
                self._spans[version, moment] = until - since
        self._changes[version] = changes.get(COMMIT.until, 0) - changes.get(COMMIT.since, 0)

    def _watch(self) -> Watch:
        directories = (self.state_directory, self.environment.purelib, self.environment.scripts)
        return Watch(*(path for path in directories if path.is_dir()))

    def _kill(self, moment: Moment, delay: float, changes: int, number: signal.Signals, *arguments: str) -> int:
        """Start a command and kill it there, so many changes or seconds later; on return its status."""
        left = itertools.count(changes, -1)

        with self._watch() as watch:
            process = self._start(*arguments)
            came = True
            if moment == COMMIT:
                came = watch.wait(process, lambda happened: _is_made(happened, STAGING.since), PATIENCE)
            if came and moment.since:
                is_awake = moment == COMMIT
                came = watch.wait(
                    process, lambda happened: _is_made(happened, moment.since), PATIENCE, is_awake=is_awake
                )
            if came and changes:
                came = watch.wait(process, lambda happened: next(left) <= 1, PATIENCE, is_awake=True)
            if came and not wait_for_end(process, delay):
                process.send_signal(number)
            return process.wait(PATIENCE)

    def _kill_recovery(self, changes: int) -> bool:
        """Kill the next command when it has made so many changes; on return whether it was killed."""
        left = itertools.count(changes, -1)
        with Watch(self.environment.purelib, self.environment.scripts, self.state_directory) as watch:
            process = self._start("list")
            if watch.wait(process, lambda happened: next(left) <= 1, PATIENCE):
                process.kill()
            return process.wait(PATIENCE) == -KILL

    def _toggle_probe(self) -> None:
        """Run a command that writes, because readers delete only journals."""
        self._finish("uninstall", "-y", PROBE) if self._has_probe else self._finish("install", PROBE)
        self._has_probe = not self._has_probe

    # -- what became of it ---------------------------------------------------------------------------------------------

    def _tree(self) -> Tree:
        return tree_of(self.environment.path, _is_ours)

    def _look(self, old: str, new: str) -> str:
        tree = self._tree()
        return "old" if tree == self.trees[old] else "new" if tree == self.trees[new] else "neither"

    def _own_differences(self) -> list[str]:
        return differences(self.trees[self.version], self._tree())

    def _closest_differences(self) -> list[str]:
        tree = self._tree()
        return min((differences(known, tree) for known in self.trees.values()), key=len)

    def _has_journal(self) -> bool:
        return any(each.suffix in (".journal", ".undoing") for each in self.state_directory.glob("*"))

    def _first_complaints(self, outcome: Outcome, status: int) -> Iterator[str]:
        if status == 0 and outcome.at_death != "new":
            yield "status: it succeeded and its change is not there"
        if status != 0 and status not in STATUSES[outcome.signal]:
            yield f"status: {status} after {outcome.signal.name}: {self._output()[-2000:]}"
        if outcome.signal != KILL and (outcome.at_death == "neither" or outcome.has_journal):
            yield f"unfinished: {outcome.signal.name} was not held back until the commit was done"

    def _next_complaints(self) -> Iterator[str]:
        status = self._start("list", "--format", "json").wait(PATIENCE)
        output = self._output()
        if status:
            yield f"next command: exit {status}: {output[-2000:]}"
            return
        try:
            line = next(line for line in output.splitlines() if line.startswith("["))
            listed = {each["name"]: each["version"] for each in json.loads(line)}
        except (StopIteration, ValueError):
            yield f"next command: it printed {output[-2000:]}"
            return
        versions = {listed.get(name) for name in PROJECTS}
        if len(versions) != 1 or not versions <= {"1", "2"}:
            yield f"next command: it lists versions {versions}"

    def _left(self) -> list[str]:
        """Files in the environment that are neither installed nor lock files."""
        found = []
        for directory, directories, files in os.walk(self.environment.path):
            here = Path(directory)
            if here == self.state_directory:
                names = [name for name in files + directories if name not in LOCK_FILES]
                directories.clear()
            else:
                names = [name for name in files + directories if name.startswith((f"{STATE_DIRECTORY}-", "~"))]
                if STATE_DIRECTORY in directories and here / STATE_DIRECTORY != self.state_directory:
                    names.append(STATE_DIRECTORY)
            found += [os.path.relpath(here / name, self.environment.path) for name in names]
        return sorted(found)

    def _empty_temporary(self) -> int:
        entries = list(self._temporary.iterdir())
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return len(entries)

    def _evidence(self) -> dict[str, bytes]:
        """What the killed command left in the state directory: names, and the content of the files."""
        state = self.state_directory
        listing = [os.path.relpath(path, state) for path in sorted(state.rglob("*"))] if state.is_dir() else []
        found = {"listing.txt": "\n".join(listing).encode(), "output.txt": self._output().encode()}
        return found | {path.name: path.read_bytes() for path in state.glob("*") if path.is_file()}

    def _keep(self, outcome: Outcome, note: str, evidence: dict[str, bytes]) -> Path:
        """Copy the environment, and what there was when the command had died, to a place where it stays."""
        self.wrecks.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            wreck = self.wrecks / f"kill-{outcome.number}-{number}"
            if not wreck.exists():
                break
        shutil.copytree(self.environment.path, wreck / "venv", symlinks=True)
        (wreck / "at-death").mkdir()
        for name, content in evidence.items():
            (wreck / "at-death" / name).write_bytes(content)
        lines = [f"{outcome.signal.name} in round {outcome.number}, {outcome.moment}, {note}", *outcome.complaints]
        (wreck / "complaints.txt").write_text("\n".join(lines) + "\n")
        return wreck

    def _make_new(self) -> None:
        shutil.rmtree(self.environment.path)
        shutil.copytree(self._pristine, self.environment.path, symlinks=True)
        self.version, self._has_probe = "1", False


def _pins(version: str) -> list[str]:
    return [f"{name}=={version}" for name in PROJECTS]


def _is_made(happened: Happened, suffix: str = "") -> bool:
    """Whether an entry whose name ends so has come."""
    return happened[0] in ("made", "moved in") and happened[1].endswith(suffix)


def _is_ours(path: str) -> bool:
    """Whether a path belongs to safe-pip's bookkeeping, or to the project that is there only now and then."""
    name = os.path.basename(path)
    is_probe = name.startswith((f"{PROBE}.", f"{PROBE}-"))
    return name == STATE_DIRECTORY or name.startswith(f"{STATE_DIRECTORY}-") or is_probe


def campaign(
    victims: Sequence[Victim], rounds: Sequence[tuple[int, Sequence[signal.Signals]]], seed: int
) -> Iterator[Outcome]:
    """Run all rounds, one after the other on each victim and all victims at once; yields as they end."""
    turns: queue.SimpleQueue[tuple[int, Sequence[signal.Signals]]] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    for turn in rounds:
        turns.put(turn)

    def work(victim: Victim) -> None:
        try:
            while True:
                number, signals = turns.get_nowait()
                outcomes.put(victim.round(number, random.Random(f"{seed} {number}"), signals))
        except queue.Empty:
            pass
        except BaseException as error:
            outcomes.put(error)

    for victim in victims:
        threading.Thread(target=work, args=(victim,), daemon=True).start()
    for _ in rounds:
        outcome = outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome
