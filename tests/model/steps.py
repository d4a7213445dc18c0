"""The steps that read or change the shared state, and the checks that go with them.

A step is one thing that the kernel does at once; what a step assumes beyond that is said in its docstring.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from .model import (
    EXCLUSIVE,
    LOCK_ORDER,
    Change,
    Held,
    Journal,
    Lock,
    Mode,
    Patience,
    Reliance,
    Rules,
    Violation,
    World,
)


class Machine(Protocol):
    """What a step may ask about the processes."""

    rules: Rules
    places: tuple[str, ...]
    trees: tuple[str, ...]

    def is_over(self, world: World, process: int) -> bool: ...
    def is_killed(self, world: World, process: int) -> bool: ...
    def is_waiting(self, world: World, process: int) -> bool: ...
    def is_in_the_way_for_long(self, world: World, holders: list[Held], waiter: int) -> bool: ...
    def ancestors(self, world: World, process: int) -> Iterable[int]: ...
    def keeps_variable(self, process: int) -> bool: ...
    def start(self, process: int) -> int: ...
    def has_started(self, world: World, process: int) -> bool: ...


Outcomes = Iterator[tuple[Any, World]]


class Step(Protocol):
    """One atomic step: every outcome that it can have now; none while it is blocked."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes: ...


def in_the_way(world: World, lock: Lock, mode: Mode) -> list[Held]:
    return [h for h in world.held if h.lock == lock and (mode is EXCLUSIVE or h.mode is EXCLUSIVE)]


def at_work(world: World, process: int) -> bool:
    """Is it in a section that may last for hours?"""
    return any(r.process == process for r in world.relying)


GATE, STALE = "holds the gate", "granted, but another file by now"


@dataclasses.dataclass(frozen=True)
class Take:
    """Take a lock, through its gate if it has one; kernel queues may wake takers in any order.

    The gate is skipped where the lock could be had at once, and let go with the grant: both only shorten the time
    that it is held by somebody who can go on. Comparing the inode is part of the step: a lock file that is gone does
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
                if any(at_work(world, h.process) or machine.is_waiting(world, h.process) for h in holders):
                    yield False, world
            elif self.patience is Patience.MINUTE and machine.is_in_the_way_for_long(world, holders, me):
                yield False, world
        elif self.gated and in_the_way(world, self.lock, self.mode):
            yield GATE, world._replace(held=world.held | {Held(self.lock.gate(), EXCLUSIVE, me)})
        else:
            gate = Held(self.lock.gate(), EXCLUSIVE, me)
            held = world.held - {gate} if self.behind_gate else world.held
            if machine.rules.compare_inode and not self._is_current(world, machine):
                yield STALE, world._replace(held=held)
            else:
                yield True, world._replace(held=held | {Held(self.lock, self.mode, me)})

    def _is_current(self, world: World, machine: Machine) -> bool:
        generation = self.lock.generation
        return not generation or world.state_directories[machine.trees.index(self.lock.name)] == generation


@dataclasses.dataclass(frozen=True)
class Release:
    """Close the descriptors of these locks, of all that the process holds by default; `late`: after a vain wait."""

    locks: tuple[Lock, ...] | None = None
    late: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        gone = {h for h in world.held if h.process == me and (self.locks is None or h.lock in self.locks)}
        yield None, world._replace(held=world.held - gone)


@dataclasses.dataclass(frozen=True)
class Unlock:
    """LOCK_UN on every inherited descriptor: it ends the lock for all who share the open file."""

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
    """Wait until another process has ended, or has taken a journal back or finished it."""

    process: int
    journal: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if self.journal:
            over = not any(j.owner == self.process and _lives(world, j, machine) for j in world.journals)
        else:
            over = machine.is_over(world, self.process)
        if over:
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

    Whoever has the variable of an ancestor that is being killed knows better than /proc/locks.
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
                    Inherited(h.lock, h.mode, ancestor, known)
                    for h in world.held
                    if h.process == ancestor and h.lock.rank in LOCK_ORDER
                }
        yield tuple(sorted(found, key=lambda i: (i.ancestor, i.lock))), world


@dataclasses.dataclass(frozen=True)
class LookAlive:
    """Is the ancestor's `alive` still locked?"""

    ancestor: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield any(h.lock == Lock("alive", str(self.ancestor)) for h in world.held), world


def _lives(world: World, journal: Journal, machine: Machine) -> bool:
    if not machine.is_over(world, journal.owner):
        return True
    return any(o == journal.owner and not machine.is_over(world, p) for o, p in world.recoverers)


@dataclasses.dataclass(frozen=True)
class LookForJournal:
    """(owner, whether it lives, the trees and directories it names) of a journal in these trees that is not ours."""

    trees: tuple[str, ...]

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        found = sorted(j for j in world.journals if j.home in self.trees and j.owner != me)
        if not found:
            yield None, world
        for journal in found[:1]:
            names = sorted({machine.places[c.place].split(".")[0] for c in journal.changes})
            yield (journal.owner, _lives(world, journal, machine), tuple(names)), world


@dataclasses.dataclass(frozen=True)
class OpenJournal:
    """Read the journal of a dead owner and, as a rule, take the owner's place (lock its `.owner`)."""

    owner: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = next((j for j in world.journals if j.owner == self.owner), None)
        if journal is None:
            yield None, world
        elif not machine.rules.recoverer_owns_journal:
            yield journal, world
        elif _lives(world, journal, machine):
            yield None, world
        else:
            yield journal, world._replace(recoverers=world.recoverers | {(self.owner, me)})


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
        _must_not_disturb(world, me, {machine.places[p].split(".")[0] for p in self.places}, machine, reading=True)
        yield None, world._replace(windows=world.windows[:me] + ((),) + world.windows[me + 1 :])


def _must_not_disturb(world: World, me: int, trees: Iterable[str], machine: Machine, reading: bool) -> None:
    family = {me, *machine.ancestors(world, me)}
    for r in world.relying:
        if r.tree in trees and r.process not in family and (r.mode is EXCLUSIVE or not reading):
            raise Violation("exclusive holder not alone" if r.mode is EXCLUSIVE else "shared holder saw a change")


def _set(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return values[:place] + (value,) + values[place + 1 :]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write the journal of a plan; with the state directory gone there is nowhere to write it."""

    home: str
    plan: tuple[tuple[int, int], ...]

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if not world.state_directories[machine.trees.index(self.home)]:
            yield False, world
            return
        changes = tuple(Change(place, world.data[place], new) for place, new in self.plan)
        yield True, world._replace(journals=world.journals | {Journal(self.home, me, changes, 0)})


@dataclasses.dataclass(frozen=True)
class CarryOut:
    """The next operation of our journal."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = next(j for j in world.journals if j.owner == me)
        change = journal.changes[journal.done]
        if world.data[change.place] != change.old:
            raise Violation("lost update")
        tree = {machine.places[change.place].split(".")[0]}
        _must_not_disturb(world, me, tree, machine, reading=not change.old)
        yield (
            None,
            world._replace(
                data=_set(world.data, change.place, change.new),
                journals=world.journals - {journal} | {journal._replace(done=journal.done + 1)},
            ),
        )


@dataclasses.dataclass(frozen=True)
class Commit:
    """Rename the journal to `committed`: the commit point."""

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = next(j for j in world.journals if j.owner == me)
        truth = world.truth
        for change in journal.changes:
            truth = _set(truth, change.place, change.new)
        yield None, committed(world, me, truth)._replace(journals=world.journals - {journal})


def committed(world: World, me: int, truth: tuple[int, ...]) -> World:
    windows = tuple(w + (truth,) if w and truth not in w else w for w in world.windows)
    return world._replace(truth=truth, windows=windows, committed=world.committed | {me})


@dataclasses.dataclass(frozen=True)
class TakeBack:
    """Unlink a journal none of whose operations is left to undo."""

    owner: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        gone = {j for j in world.journals if j.owner == self.owner}
        places = frozenset(r for r in world.recoverers if r[0] != self.owner)
        yield None, world._replace(journals=world.journals - gone, recoverers=places)


@dataclasses.dataclass(frozen=True)
class Undo:
    """Undo one operation of a journal that was read before; names on disk tell whether it is still to be undone."""

    owner: int
    change: Change
    index: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journals = world.journals
        for journal in [j for j in journals if j.owner == self.owner and j.done > self.index]:
            journals = journals - {journal} | {journal._replace(done=self.index)}
        if world.data[self.change.place] == self.change.new:
            yield None, world._replace(data=_set(world.data, self.change.place, self.change.old), journals=journals)
        else:
            yield None, world._replace(journals=journals)


@dataclasses.dataclass(frozen=True)
class ForeignChange:
    """Another tool changes one place, all at once, and without a lock of ours."""

    place: int
    value: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if any(c.place == self.place for j in world.journals for c in j.changes):
            raise Violation("lost update")
        truth = _set(world.truth, self.place, self.value)
        yield None, committed(world, me, truth)._replace(data=_set(world.data, self.place, self.value))


@dataclasses.dataclass(frozen=True)
class BeginWork:
    """Begin a section that relies on a tree (shared), is alone with it (exclusive), or is alone in a directory."""

    names: tuple[str, ...]
    mode: Mode

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        family = {me, *machine.ancestors(world, me)}
        for r in world.relying:
            if r.tree in self.names and r.process not in family and EXCLUSIVE in (r.mode, self.mode):
                raise Violation("exclusive holder not alone")
        for place, name in enumerate(machine.places):
            torn = world.truth[place] != world.data[place]
            # What was half added is no concern of a shared holder: it may go as it came.
            if torn and name.split(".")[0] in self.names and (world.truth[place] or self.mode is EXCLUSIVE):
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
            new = world.generations + 1
            yield new, world._replace(state_directories=_set(world.state_directories, index, new), generations=new)


@dataclasses.dataclass(frozen=True)
class RemoveStateDirectory:
    """Remove a tree's state directory, with its lock files, if nothing else is in it."""

    tree: str

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if any(j.home == self.tree for j in world.journals):
            yield False, world
        else:
            gone = _set(world.state_directories, machine.trees.index(self.tree), 0)
            yield True, world._replace(state_directories=gone)
