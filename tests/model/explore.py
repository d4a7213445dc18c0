"""Search of every interleaving: each state that can be reached, once, the shortest way first."""

import dataclasses
from collections import deque

from .machine import Nodes, Scenario
from .model import Rules, Violation, World


@dataclasses.dataclass
class Found:
    """What a search found: the states and moves between them, or the way to the first violation."""

    violation: str | None
    trace: list[str]
    states: int
    moves: int
    ends: frozenset[tuple[str | None, ...]]
    edges: dict[int, list[tuple[int, int]]]  # state -> (process, state), without kills
    worlds: list[World]
    nodes: Nodes

    def __str__(self) -> str:
        return "\n".join([f"{self.violation or 'clean'} ({self.states} states)", *self.trace])


def explore(scenario: Scenario, rules: Rules, limit: int = 400_000) -> Found:
    """Visit every state, and stop at the first that violates a property."""
    machine = Nodes(scenario, rules)
    first = machine.beginning()
    number = {first: 0}
    worlds, came = [first], [(0, -1, "")]
    edges: dict[int, list[tuple[int, int]]] = {}
    ends: set[tuple[str | None, ...]] = set()
    queue = deque([0])
    moves = 0

    def found(violation: str | None, state: int) -> Found:
        trace = []
        while violation and state:
            state, process, text = came[state]
            trace.append(f"  {process} {scenario.processes[process].name}: {text}")
        return Found(violation, trace[::-1], len(worlds), moves, frozenset(ends), edges, worlds, machine)

    while queue:
        state = queue.popleft()
        world = worlds[state]
        out = edges[state] = []
        machine.acting = None
        try:
            for kill, successors in enumerate((machine.successors(world), machine.kills(world))):
                for process, text, after in successors:
                    moves += 1
                    if after not in number:
                        number[after] = len(worlds)
                        worlds.append(after)
                        came.append((state, process, text))
                        queue.append(number[after])
                    if not kill:
                        out.append((process, number[after]))
            if not out:
                _check_stop(machine, world)
                ends.add(tuple(machine.status(world, p) for p in range(len(world.at))))
        except Violation as violation:
            result = found(str(violation), state)
            if machine.acting:
                process, step = machine.acting
                result.trace.append(f"  {process} {scenario.processes[process].name}: {step}")
            return result
        if len(worlds) > limit:
            raise RuntimeError(f"more than {limit} states")
    stuck = _first_stuck(edges, machine, worlds)
    return found(None, 0) if stuck is None else found("no way to an end", stuck)


def _check_stop(machine: Nodes, world: World) -> None:
    """No process can step: all must have ended, but for daemons and those that were never started."""
    for process, spec in enumerate(machine.scenario.processes):
        if machine.status(world, process) is None and not spec.daemon:
            raise Violation("deadlock")
    machine.check_end(world)


def _first_stuck(edges: dict[int, list[tuple[int, int]]], machine: Nodes, worlds: list[World]) -> int | None:
    """The first state from which no end can be reached; a scenario with a process that never ends has none."""
    before: dict[int, list[int]] = {state: [] for state in edges}
    for state, out in edges.items():
        for _, after in out:
            before[after].append(state)
    good = {state for state, out in edges.items() if not out}
    if not good:
        return None
    queue = list(good)
    while queue:
        for state in before[queue.pop()]:
            if state not in good:
                good.add(state)
                queue.append(state)
    return next((state for state in edges if state not in good), None)
