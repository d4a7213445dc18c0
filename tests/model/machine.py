"""A scenario as one machine: its processes, each somewhere in its program, and what can happen next."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .locking import Again, Ended, Me, Steps
from .model import EXCLUSIVE, Held, Lock, Patience, Rules, Violation, World
from .programs import Goal
from .steps import Await, Release, Step, Take

NOT_STARTED, DEAD = 0, 1


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of a scenario; one with a parent runs when that starts it."""

    name: str
    program: Callable[..., Steps]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    trees: tuple[str, ...] = ("A",)
    parent: int | None = None
    keeps_variable: bool = True
    killable: bool = False
    late: bool = False  # its locks may be freed while it lives
    daemon: bool = False
    brief: bool = False  # its work takes longer than a second, but no longer than patience goes
    uv: str | None = None
    litter: bool = False


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What there is at the beginning; `kills` is how many processes may be killed, at any step of theirs."""

    processes: tuple[Process, ...]
    places: tuple[str, ...] = ("A.a", "A.b")
    data: tuple[int, ...] = (0, 0)
    kills: int = 0
    frees: int = 0  # how often a file server frees the locks of a process that it takes for dead
    no_state_directory: tuple[str, ...] = ()
    may_fail: tuple[int, ...] = ()  # processes that may end with 75; no other may
    shipped: tuple[str, ...] = ()  # trees in which no state directory may be in the end

    @property
    def trees(self) -> tuple[str, ...]:
        return tuple(sorted({t for p in self.processes for t in p.trees}))


@dataclasses.dataclass(frozen=True)
class Node:
    """A place in a program: its next step, or its exit status."""

    step: Step | None
    status: str | None = None


class Nodes:
    """The processes of a scenario under some rules, each as the graph of the places its program can be at."""

    def __init__(self, scenario: Scenario, rules: Rules) -> None:
        self.scenario, self.rules = scenario, rules
        self.places, self.trees = scenario.places, scenario.trees
        self.has_late = bool(scenario.frees)
        self.nodes = [Node(None, "not started"), Node(None, "killed")]
        self._numbers: dict[Any, int] = {}
        self._runs: list[Any] = [None, None]
        self._next: dict[tuple[int, Any], int] = {}
        self.acting: tuple[int, Step] | None = None

    def _number(self, key: Any, node: Node) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(node)
            self._runs.append(key)
        return self._numbers[key]

    def _run(self, process: int, carry: tuple[tuple[str, Any], ...], outcomes: tuple[Any, ...]) -> int:
        spec = self.scenario.processes[process]
        nested = spec.parent is not None
        late = self.has_late
        me = Me(process, self.rules, self.places, spec.trees, self.trees, nested, spec.uv, spec.litter, late)
        program = spec.program(me, **{**spec.arguments, **dict(carry)})
        try:
            step = next(program)
            for outcome in outcomes:
                step = program.send(outcome)
        except StopIteration as end:
            return self._number(end.value, Node(None, end.value))
        except Ended as end:
            return self._number(end.status, Node(None, end.status))
        except Again as again:
            changed = {**me.carry, **again.carry}
            return self._run(process, tuple(sorted(changed.items())), ())
        return self._number((process, carry, outcomes), Node(step))

    def start(self, process: int) -> int:
        return self._run(process, (), ())

    def after(self, node: int, outcome: Any) -> int:
        if (node, outcome) not in self._next:
            process, carry, outcomes = self._runs[node]
            self._next[node, outcome] = self._run(process, carry, (*outcomes, outcome))
        return self._next[node, outcome]

    def beginning(self) -> World:
        there = tuple(int(tree not in self.scenario.no_state_directory) for tree in self.trees)
        at = tuple(self.start(i) if p.parent is None else 0 for i, p in enumerate(self.scenario.processes))
        windows = ((),) * len(at)
        data, kills = self.scenario.data, self.scenario.kills
        none: frozenset[Any] = frozenset()
        return World(at, none, data, data, there, none, none, none, windows, none, none, kills, self.scenario.frees)

    # what steps ask

    def status(self, world: World, process: int) -> str | None:
        return self.nodes[world.at[process]].status

    def has_started(self, world: World, process: int) -> bool:
        return world.at[process] != NOT_STARTED

    def is_over(self, world: World, process: int) -> bool:
        dying = any(h.process == process for h in world.held) and world.at[process] == DEAD
        return self.status(world, process) is not None and not dying

    def is_killed(self, world: World, process: int) -> bool:
        return world.at[process] == DEAD

    def is_waiting(self, world: World, process: int) -> bool:
        """Does it wait for a lock, or has it just given a wait up? (The seconds of two may end together.)"""
        step = self.nodes[world.at[process]].step
        return bool(step.blockers(world)) if isinstance(step, Take) else isinstance(step, Release) and step.late

    def is_at_work(self, world: World, process: int) -> bool:
        """Is it in a section that may last for hours, or at least for seconds?"""
        return any(r.process == process for r in world.relying)

    def is_in_the_way(self, world: World, holders: Iterable[Held], waiter: int, patience: Patience) -> bool:
        """Whether a holder keeps its lock for longer than seconds.

        It does if its work is not brief, or if it waits, without letting go in time, for such a holder or for the
        waiter itself.
        """
        lets_go = {Patience.SECOND} if patience is Patience.LONGER else {Patience.SECOND, Patience.LONGER}
        seen: set[int] = set()
        queue = [h.process for h in holders]
        while queue:
            process = queue.pop()
            step = self.nodes[world.at[process]].step
            if process == waiter:
                return True
            if self.is_at_work(world, process) and not self.scenario.processes[process].brief:
                return True
            if process in seen:
                continue
            seen.add(process)
            if isinstance(step, Take) and step.patience not in lets_go:
                queue += [h.process for h in step.blockers(world)]
            elif isinstance(step, Await):
                queue.append(step.process)
        return False

    def ancestors(self, world: World, process: int) -> Iterable[int]:
        parent = self.scenario.processes[process].parent
        while parent is not None and not self.is_over(world, parent):
            yield parent
            parent = self.scenario.processes[parent].parent

    def unused_generation(self, world: World) -> int:
        """A number for a new state directory that no process uses for another one; reuse keeps the states few."""
        known = {1, *world.state_directories, *(held.lock.generation for held in world.held)}
        for number in world.at:
            if (run := self._runs[number]) is not None and isinstance(run, tuple):
                known.update(outcome for outcome in run[2] if isinstance(outcome, int))
        return next(number for number in itertools.count(2) if number not in known)

    def keeps_variable(self, process: int) -> bool:
        return self.scenario.processes[process].keeps_variable

    def trees_of(self, process: int) -> tuple[str, ...]:
        return self.scenario.processes[process].trees

    # what can happen next

    def successors(self, world: World) -> Iterator[tuple[int, str, World]]:
        """(process, what it did, the state after it) of every step that is possible."""
        for process, number in enumerate(world.at):
            step = self.nodes[number].step
            if number == DEAD and (rest := {h for h in world.held if h.process == process}):
                for gone in _in_parts(rest):
                    yield process, "its descriptors are closed", world._replace(held=world.held - gone)
            if step is None:
                continue
            self.acting = process, step
            for outcome, after in step.outcomes(world, process, self):
                at = list(after.at)
                at[process] = self.after(number, outcome)
                after = after._replace(at=tuple(at))
                if self.nodes[at[process]].step is None:
                    after = after._replace(held=frozenset(h for h in after.held if h.process != process))
                yield process, f"{step} -> {outcome}", after

    def kills(self, world: World) -> Iterator[tuple[int, str, World]]:
        for process, spec in enumerate(self.scenario.processes):
            if world.kills and spec.killable and self.nodes[world.at[process]].step is not None:
                yield process, "is killed", self._killed(world, process)
            has_locks = spec.late and any(h.process == process for h in world.held)
            if world.frees and has_locks and self.nodes[world.at[process]].step is not None:
                held = frozenset(h for h in world.held if h.process != process)
                relying = frozenset(r for r in world.relying if r.process != process)
                yield process, "loses its locks", world._replace(held=held, relying=relying, frees=world.frees - 1)

    def _killed(self, world: World, process: int) -> World:
        """The kernel closes descriptors one by one, in the order of their numbers: `alive` is the first."""
        mine = {h for h in world.held if h.process == process}
        alive = Held(Lock("alive", str(process)), EXCLUSIVE, process)
        first = mine
        if alive in mine:
            first = {alive} if self.rules.alive_closed_first else mine - {alive}
        return world._replace(
            at=tuple(DEAD if i == process else n for i, n in enumerate(world.at)),
            held=world.held - first,
            windows=tuple(() if i == process else w for i, w in enumerate(world.windows)),
            relying=frozenset(r for r in world.relying if r.process != process),
            kills=world.kills - 1,
        )

    def check_end(self, world: World) -> None:
        """The conditions when all processes have ended: nothing is half-applied or lost, and a serial order exists."""
        data = world.data
        killed = self.scenario.kills or self.has_late or any("dies" in p.arguments for p in self.scenario.processes)
        if not killed and (world.owners or world.marks or world.journals):
            raise Violation("something left behind")
        if any(world.state_directories[self.trees.index(tree)] for tree in self.scenario.shipped):
            raise Violation("a state directory left behind")
        for journal in (j for j in world.journals if not j.committed):
            for change in reversed(journal.changes[: journal.done]):
                if data[change.place] == change.new:
                    data = tuple(change.old if i == change.place else v for i, v in enumerate(data))
        if data != world.truth:
            raise Violation("neither old nor new")
        succeeded = []
        for process, spec in enumerate(self.scenario.processes):
            status = self.status(world, process) or "0"
            if status[0].isdigit() and status != "0" and process not in self.scenario.may_fail:
                raise Violation("failed for nothing")
            if process in world.committed or self.status(world, process) == "0":
                if isinstance(goal := spec.arguments.get("goal"), Goal):
                    succeeded.append(goal)
                elif spec.arguments.get("place"):
                    place, value = spec.arguments["place"], spec.arguments["value"]
                    succeeded.append(Goal(lambda _, p=place, v=value: {p: v}, (), ()))  # type: ignore[misc]
        if not any(self._serially(order) == data for order in itertools.permutations(succeeded)):
            raise Violation("no serial order")

    def _serially(self, goals: Iterable[Goal]) -> tuple[int, ...]:
        view = dict(zip(self.places, self.scenario.data, strict=True))
        for goal in goals:
            view.update(goal.changes(view))
        return tuple(view[p] for p in self.places)


def _in_parts(held: set[Held]) -> list[set[Held]]:
    """What the kernel may close next of a killed process: its owner files, or the rest."""
    owners = {h for h in held if h.lock.rank == "owner"}
    return [part for part in (owners, held - owners) if part]
