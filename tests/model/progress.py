"""Starvation: fair cycles of a search in which a process never ends, although every single state is correct."""

from collections.abc import Iterable, Iterator

from .explore import Found


def components(edges: dict[int, list[int]]) -> Iterator[list[int]]:
    """The strongly connected components (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            state, rest = work[-1]
            for after in rest:
                if after not in index:
                    index[after] = low[after] = len(index)
                    stack.append(after)
                    on_stack.add(after)
                    work.append((after, iter(edges[after])))
                    break
                if after in on_stack:
                    low[state] = min(low[state], index[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[state])
                if low[state] == index[state]:
                    component = []
                    while True:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                        if component[-1] == state:
                            break
                    yield component


def starves(found: Found, victim: int) -> bool:
    """Whether the others can run for ever while `victim` is blocked in every state, so that no fair kernel helps it."""
    blocked = {s for s, out in found.edges.items() if all(p != victim for p, _ in out)}
    blocked = {s for s in blocked if found.nodes.status(found.worlds[s], victim) is None}
    inside = {s: [(p, t) for p, t in found.edges[s] if t in blocked] for s in blocked}
    return any(True for _ in _fair_cycles(found, inside, {victim}))


def goes_round(found: Found, victims: Iterable[int]) -> bool:
    """Whether all of `victims` can take steps for ever without an end."""
    return any(set(victims) <= moving for moving in _fair_cycles(found, found.edges, set()))


def _fair_cycles(found: Found, edges: dict[int, list[tuple[int, int]]], blocked: set[int]) -> Iterator[set[int]]:
    """The processes that move, for each set of states that can be gone round in without leaving a process behind."""
    for component in components({s: [t for _, t in out] for s, out in edges.items()}):
        members = set(component)
        moving = {p for s in component for p, t in edges[s] if t in members}
        if not moving:
            continue
        able = [{p for p, _ in found.edges[s]} for s in component]
        always = set.intersection(*able) - blocked
        if always <= moving:
            yield moving
