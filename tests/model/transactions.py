"""The steps of a transaction: owner file, marks, journal, commit point; and of undoing and sweeping."""

import dataclasses

from .model import EXCLUSIVE, PROCESSES, Change, Held, Journal, Violation, World, owner_of
from .steps import Machine, Outcomes, Release, must_not_disturb, part_of, put

CHANGED_BY_ANOTHER = "what is to be undone was changed by another"


@dataclasses.dataclass(frozen=True)
class MakeOwner:
    """Make the owner file, and lock it in the same step where that is searched elsewhere."""

    identifier: int
    home: str
    locked: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if not world.state_directories[machine.trees.index(self.home)]:
            yield False, world
        else:
            held = world.held | {Held(owner_of(self.identifier), EXCLUSIVE, me)} if self.locked else world.held
            yield True, world._replace(owners=world.owners | {(self.identifier, self.home)}, held=held)


@dataclasses.dataclass(frozen=True)
class Mark:
    """Say in another tree or directory where the journal is."""

    identifier: int
    name: str

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if self.name in machine.trees and not world.state_directories[machine.trees.index(self.name)]:
            yield False, world
        else:
            yield True, world._replace(marks=world.marks | {(self.name, self.identifier)})


@dataclasses.dataclass(frozen=True)
class Unmark:
    """Remove all marks of a transaction, or that in one place."""

    identifier: int
    name: str | None = None

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        gone = {m for m in world.marks if m[1] == self.identifier and self.name in (None, m[0])}
        yield None, world._replace(marks=world.marks - gone)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write the journal of a plan; with the state directory gone there is nowhere to write it.

    The owner file is made and locked with it where the process has none yet.
    """

    identifier: int
    home: str
    plan: tuple[tuple[int, int], ...]
    staged: bool

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if not world.state_directories[machine.trees.index(self.home)]:
            yield False, world
            return
        if self.staged and (self.identifier, self.home) not in world.owners:
            raise Violation("the stage of a living process was deleted")
        changes = tuple(Change(place, world.data[place], new) for place, new in self.plan)
        yield (
            True,
            world._replace(
                owners=world.owners | {(self.identifier, self.home)},
                held=world.held | {Held(owner_of(self.identifier), EXCLUSIVE, me)},
                journals=world.journals | {Journal(self.home, self.identifier, changes, 0)},
            ),
        )


@dataclasses.dataclass(frozen=True)
class CarryOut:
    """The next operation of our journal."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = next((j for j in world.journals if j.identifier == self.identifier), None)
        if journal is None:
            raise Violation("a change without a journal")
        change = journal.changes[journal.done]
        if world.data[change.place] != change.old:
            raise Violation("lost update")
        changed = part_of(machine.places[change.place])
        must_not_disturb(world, me, changed, machine, reading=not change.old)
        yield (
            None,
            world._replace(
                data=put(world.data, change.place, change.new),
                journals=world.journals - {journal} | {journal._replace(done=journal.done + 1)},
            ),
        )


@dataclasses.dataclass(frozen=True)
class Commit:
    """Rename the journal to `committed`: the commit point."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = next((j for j in world.journals if j.identifier == self.identifier), None)
        if journal is None or journal.done < len(journal.changes):
            raise Violation("a change without a journal")
        truth = world.truth
        for change in journal.changes:
            truth = put(truth, change.place, change.new)
        final = journal._replace(committed=True)
        yield None, committed(world, me, truth)._replace(journals=world.journals - {journal} | {final})


def committed(world: World, me: int, truth: tuple[int, ...]) -> World:
    windows = tuple(w + (truth,) if w and truth not in w else w for w in world.windows)
    return world._replace(truth=truth, windows=windows, committed=world.committed | {me})


@dataclasses.dataclass(frozen=True)
class TakeBack:
    """Unlink a journal none of whose operations is left to undo."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield None, world._replace(journals=frozenset(j for j in world.journals if j.identifier != self.identifier))


@dataclasses.dataclass(frozen=True)
class Clean:
    """Delete the rest of a transaction that is not prepared, its owner file last, and let that go.

    In the same step let all else go, where what is between them is searched elsewhere.
    """

    identifier: int
    releases: bool = False

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if self.releases:
            world = Release().released(world, me)
        if any(j.identifier == self.identifier and not j.committed for j in world.journals):
            raise Violation("a journal was deleted that was to be undone")
        yield (
            None,
            world._replace(
                owners=frozenset(o for o in world.owners if o[0] != self.identifier),
                journals=frozenset(j for j in world.journals if j.identifier != self.identifier),
                held=world.held - {Held(owner_of(self.identifier), EXCLUSIVE, me)},
            ),
        )


@dataclasses.dataclass(frozen=True)
class LookForJournal:
    """List state directories: the journals and the marks of other processes in them.

    A journal comes with its identifier, whether its owner file is locked, and the trees and directories that it names.
    """

    names: tuple[str, ...]

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        found = [
            _seen(world, j, machine)
            for j in sorted(world.journals)
            if j.home in self.names and j.identifier % PROCESSES != me
        ]
        marks = sorted({i for name, i in world.marks if name in self.names and i % PROCESSES != me})
        yield (tuple(f for f in found if f), tuple(marks)), world


@dataclasses.dataclass(frozen=True)
class FollowMark:
    """The journal that a mark leads to, if it is there."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        found = [_seen(world, j, machine) for j in world.journals if j.identifier == self.identifier]
        yield (found[0] if found else None), world


def _seen(world: World, journal: Journal, machine: Machine) -> tuple[int, bool, tuple[str, ...]] | None:
    if journal.committed and machine.rules.committed_is_final:
        return None
    names = sorted({machine.places[c.place].split(".")[0] for c in journal.changes} | {journal.home})
    return journal.identifier, any(h.lock == owner_of(journal.identifier) for h in world.held), tuple(names)


@dataclasses.dataclass(frozen=True)
class OpenJournal:
    """Read the journal of another, to undo it: each place must be as it was before or as it was to be.

    Where nothing was done, nothing is to be undone, and others may have changed all of it since.
    """

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        rules = machine.rules
        for journal in world.journals:
            if journal.identifier == self.identifier and not (journal.committed and rules.committed_is_final):
                is_checked = journal.done or not rules.journal_with_nothing_done_is_not_checked
                if is_checked and any(world.data[c.place] not in (c.old, c.new) for c in journal.changes):
                    raise Violation(CHANGED_BY_ANOTHER)
                yield journal, world
                return
        yield None, world


@dataclasses.dataclass(frozen=True)
class Undo:
    """Undo one operation of a journal that was read before; names on disk tell whether it is still to be undone."""

    identifier: int
    change: Change
    index: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journals = world.journals
        place, old, new = self.change
        for journal in [j for j in journals if j.identifier == self.identifier and j.done > self.index]:
            journals = journals - {journal} | {journal._replace(done=self.index)}
        if world.data[place] == new:
            must_not_disturb(world, me, part_of(machine.places[place]), machine, reading=not old)
            yield None, world._replace(data=put(world.data, place, old), journals=journals)
        elif world.data[place] == old:
            yield None, world._replace(journals=journals)
        else:
            raise Violation(CHANGED_BY_ANOTHER)


@dataclasses.dataclass(frozen=True)
class ListLeftovers:
    """The transactions of others that have their home here, or a mark."""

    name: str

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        here = {o for o, home in world.owners if home == self.name}
        marked = {o for name, o in world.marks if name == self.name}
        yield tuple(sorted((here | marked) - {me})), world


@dataclasses.dataclass(frozen=True)
class LookOwner:
    """Is the owner file locked? Asked without taking its place."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield any(h.lock == owner_of(self.identifier) and h.process != me for h in world.held), world


@dataclasses.dataclass(frozen=True)
class ForeignChange:
    """Another tool changes one place, all at once, and without a lock of ours."""

    place: int
    value: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if any(c.place == self.place for j in world.journals if not j.committed for c in j.changes):
            raise Violation("lost update")
        truth = put(world.truth, self.place, self.value)
        yield None, committed(world, me, truth)._replace(data=put(world.data, self.place, self.value))
