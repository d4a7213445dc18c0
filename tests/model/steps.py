"""The steps that read or change the shared state, and the checks that go with them.

A step is one thing that the kernel does at once; what a step assumes beyond that is said in its docstring.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from .model import (
    EXCLUSIVE,
    GATED,
    LOCK_ORDER,
    Held,
    Lock,
    Mode,
    Patience,
    Reliance,
    Rules,
    Violation,
    World,
    is_own,
    owner_of,
)


class Machine(Protocol):
    """What a step may ask about the processes."""

    rules: Rules
    places: tuple[str, ...]
    trees: tuple[str, ...]
    has_late: bool

    def is_over(self, world: World, process: int) -> bool: ...
    def is_killed(self, world: World, process: int) -> bool: ...
    def is_waiting(self, world: World, process: int) -> bool: ...
    def is_at_work(self, world: World, process: int) -> bool: ...
    def is_in_the_way(self, world: World, holders: list[Held], waiter: int, patience: Patience) -> bool: ...
    def ancestors(self, world: World, process: int) -> Iterable[int]: ...
    def keeps_variable(self, process: int) -> bool: ...
    def trees_of(self, process: int) -> tuple[str, ...]: ...
    def start(self, process: int) -> int: ...
    def has_started(self, world: World, process: int) -> bool: ...


Outcomes = Iterator[tuple[Any, World]]


class Step(Protocol):
    """One atomic step: every outcome that it can have now; none while it is blocked."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes: ...


def in_the_way(world: World, lock: Lock, mode: Mode) -> list[Held]:
    return [h for h in world.held if h.lock == lock and (mode is EXCLUSIVE or h.mode is EXCLUSIVE)]


GATE, STALE = "holds the gate", "granted, but another file by now"


@dataclasses.dataclass(frozen=True)
class Take:
    """Take a lock, through its gate if it has one; kernel queues may wake takers in any order.

    The gate is skipped where the lock could be had at once, and let go with the grant: both only shorten the time
    that a process which can continue holds it. Comparing the inode is part of the step: a lock file that is gone does
    not come back, and one that is there cannot be removed under its lock.
    """

    lock: Lock
    mode: Mode
    patience: Patience = Patience.FOREVER
    gated: bool = False
    behind_gate: bool = False

    def blockers(self, world: World) -> list[Held]:
        if self.gated and (holders := in_the_way(world, self.lock.gate(), EXCLUSIVE)):
            return holders
        return [] if self.gated else in_the_way(world, self.lock, self.mode)

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        holders = self.blockers(world)
        if holders:
            if self.patience is Patience.NONE:
                yield False, world
            elif self.patience is Patience.SECOND:
                if any(machine.is_at_work(world, h.process) or machine.is_waiting(world, h.process) for h in holders):
                    yield False, world
            elif self.patience is not Patience.FOREVER and machine.is_in_the_way(world, holders, me, self.patience):
                yield False, world
        elif self.gated and in_the_way(world, self.lock, self.mode):
            yield GATE, world._replace(held=world.held | {Held(self.lock.gate(), EXCLUSIVE, me)})
        else:
            gate = Held(self.lock.gate(), EXCLUSIVE, me)
            held = world.held - {gate} if self.behind_gate else world.held
            if not self._is_current(world, machine):
                yield STALE, world._replace(held=held)
            else:
                yield True, world._replace(held=held | {Held(self.lock, self.mode, me)})

    def _is_current(self, world: World, machine: Machine) -> bool:
        if self.lock.rank == "owner":
            return not machine.rules.owner_compared or any(self.lock == owner_of(i) for i, _ in world.owners)
        generation = self.lock.generation
        if self.lock.rank == "distribution":
            is_there = world.data[machine.places.index(self.lock.name)] == generation
            return is_there or not machine.rules.compare_inode_of_distribution
        if not generation or not machine.rules.compare_inode:
            return True
        return world.state_directories[machine.trees.index(self.lock.name)] == generation


@dataclasses.dataclass(frozen=True)
class Release:
    """Close the descriptors of these locks; by default of all but that on our own owner file; `late`: after a wait."""

    locks: tuple[Lock, ...] | None = None
    late: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield None, self.released(world, me)

    def released(self, world: World, me: int) -> World:
        mine = {h for h in world.held if h.process == me}
        gone = {h for h in mine if (not is_own(h.lock, me) if self.locks is None else h.lock in self.locks)}
        return world._replace(held=world.held - gone)


@dataclasses.dataclass(frozen=True)
class Unlock:
    """LOCK_UN on every inherited descriptor: it releases the lock for all processes that share the open file."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        mine = {(h.lock, h.mode) for h in world.held if h.process == me}
        yield None, world._replace(held=frozenset(h for h in world.held if (h.lock, h.mode) not in mine))


@dataclasses.dataclass(frozen=True)
class Spawn:
    """Start a child; a forked one shares the open files of its parent."""

    child: int
    forked: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        at = list(world.at)
        at[self.child] = machine.start(self.child)
        shared = {h._replace(process=self.child) for h in world.held if h.process == me} if self.forked else set()
        yield None, world._replace(at=tuple(at), held=world.held | shared)


@dataclasses.dataclass(frozen=True)
class Await:
    """Wait until another process has ended."""

    process: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if machine.is_over(world, self.process):
            yield None, world


@dataclasses.dataclass(frozen=True)
class Idle:
    """Never ends: a daemon."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        return iter(())


class Inherited(NamedTuple):
    """A lock of an ancestor; `known` if its private directory is known too, which the variable names."""

    lock: Lock
    mode: Mode
    ancestor: int
    known: bool


@dataclasses.dataclass(frozen=True)
class LookAtAncestors:
    """What ancestors hold: by the variable while its `alive` is locked, else by /proc/locks.

    While an ancestor is being killed, its variable tells more than /proc/locks.
    """

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        found = set()
        for ancestor in machine.ancestors(world, me):
            alive = Held(Lock("alive", str(ancestor)), EXCLUSIVE, ancestor) in world.held
            known = alive and machine.keeps_variable(me)
            if machine.keeps_variable(me) and machine.is_killed(world, ancestor):
                continue
            if known or machine.rules.find_ancestors_without_variable:
                found |= {
                    Inherited(lock, h.mode, ancestor, known)
                    for h in world.held
                    if h.process == ancestor
                    for lock in self._meant(h.lock, machine.trees_of(ancestor))
                }
        yield tuple(sorted(found, key=lambda i: (i.ancestor, i.lock))), world

    @staticmethod
    def _meant(lock: Lock, trees: tuple[str, ...]) -> list[Lock]:
        """An owner file concerns no other process; one stand-in is held for all trees of its holder."""
        if lock.rank in LOCK_ORDER[:-1]:
            return [lock]
        nested, _, rank = lock.rank.partition(" ")
        return [Lock(rank, tree) for tree in trees] if nested == "nested" and rank in GATED else []


@dataclasses.dataclass(frozen=True)
class LookAlive:
    """Is the ancestor's `alive` still locked?"""

    ancestor: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield any(h.lock == Lock("alive", str(self.ancestor)) for h in world.held), world


@dataclasses.dataclass(frozen=True)
class Read:
    """Read one place of the tree."""

    place: int
    first: bool

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if self.first:
            windows = world.windows[:me] + ((world.truth,),) + world.windows[me + 1 :]
            yield world.data[self.place], world._replace(windows=windows)
        else:
            yield world.data[self.place], world


@dataclasses.dataclass(frozen=True)
class ReadAtOnce:
    """Read several places in one step: for what is read under a lock that the search examines elsewhere."""

    places: tuple[int, ...]

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield tuple(world.data[p] for p in self.places), world


@dataclasses.dataclass(frozen=True)
class Believe:
    """Act on what was read: it must be what was committed at one instant of the reading."""

    places: tuple[int, ...]
    values: tuple[int, ...]

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if not any(tuple(truth[p] for p in self.places) == self.values for truth in world.windows[me]):
            raise Violation("torn read")
        must_not_disturb(world, me, {machine.places[p].split(".")[0] for p in self.places}, machine, reading=True)
        yield None, world._replace(windows=world.windows[:me] + ((),) + world.windows[me + 1 :])


def part_of(name: str) -> set[str]:
    """A tree, or a place and the tree that it is in."""
    return {name, name.split(".")[0]}


def must_not_disturb(world: World, me: int, trees: Iterable[str], machine: Machine, reading: bool) -> None:
    family = {me, *machine.ancestors(world, me)}
    for r in world.relying:
        if r.tree in trees and r.process not in family and (r.mode is EXCLUSIVE or not reading):
            raise Violation("exclusive holder not alone" if r.mode is EXCLUSIVE else "shared holder saw a change")


def put(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return values[:place] + (value,) + values[place + 1 :]


@dataclasses.dataclass(frozen=True)
class BeginWork:
    """Begin a section that relies on a tree (shared), is alone with it (exclusive), or is alone in a directory."""

    names: tuple[str, ...]
    mode: Mode

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        family = {me, *machine.ancestors(world, me)}
        for r in world.relying:
            is_shared = any(name in part_of(r.tree) or r.tree in part_of(name) for name in self.names)
            if is_shared and r.process not in family and EXCLUSIVE in (r.mode, self.mode):
                raise Violation("exclusive holder not alone")
        for place, name in enumerate(machine.places):
            torn = world.truth[place] != world.data[place]
            # What was half added is no concern of a shared holder: it may go as it came.
            if torn and part_of(name) & {*self.names} and (world.truth[place] or self.mode is EXCLUSIVE):
                raise Violation("torn read")
        yield None, world._replace(relying=world.relying | {Reliance(me, n, self.mode) for n in self.names})


@dataclasses.dataclass(frozen=True)
class EndWork:
    """End every such section of ours."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield None, world._replace(relying=frozenset(r for r in world.relying if r.process != me))


@dataclasses.dataclass(frozen=True)
class OpenStateDirectory:
    """The generation of a tree's state directory, made if missing where `make` says so, else 0."""

    tree: str
    make: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        index = machine.trees.index(self.tree)
        generation = world.state_directories[index]
        if generation or not self.make:
            yield generation, world
        else:
            new = machine.unused_generation(world)
            yield new, world._replace(state_directories=put(world.state_directories, index, new))


@dataclasses.dataclass(frozen=True)
class RemoveStateDirectory:
    """Remove a tree's state directory, with its lock files, if nothing else is in it."""

    tree: str

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        homes = {h for _, h in world.owners} | {name for name, _ in world.marks} | {j.home for j in world.journals}
        if self.tree in homes:
            yield False, world
        else:
            gone = put(world.state_directories, machine.trees.index(self.tree), 0)
            yield True, world._replace(state_directories=gone)
