"""The steps of a transaction: owner file, marks, journal, commit point; and of undoing and sweeping."""

import dataclasses

from .model import EXCLUSIVE, PROCESSES, Change, Held, Journal, Violation, World, owner_of
from .steps import Machine, Outcomes, Release, must_not_disturb, part_of, put

TAKEN_OVER = "taken over"
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
        if self.identifier in world.revoked:
            yield TAKEN_OVER, world
            return
        if self.staged and (self.identifier, self.home) not in world.owners and not machine.has_late:
            raise Violation("the stage of a living process was deleted")
        changes = tuple(Change(place, world.data[place], new) for place, new in self.plan)
        by = (0,) * len(changes) if machine.has_late else ()
        yield (
            changes,
            world._replace(
                owners=world.owners if self.staged else world.owners | {(self.identifier, self.home)},
                held=world.held if machine.has_late else world.held | {Held(owner_of(self.identifier), EXCLUSIVE, me)},
                journals=world.journals | {Journal(self.home, self.identifier, changes, 0, by=by)},
            ),
        )


@dataclasses.dataclass(frozen=True)
class CarryOut:
    """An operation of our journal; False if what it would move has been taken away, or what it would move to."""

    identifier: int
    index: int
    change: Change

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal, change = _journal(world, self.identifier), self.change
        if self.identifier in world.revoked or (journal is not None and journal.by and journal.by[self.index]):
            yield False, world
            return
        if journal is None or journal.done != self.index:
            raise Violation("a change without a journal")
        if world.data[change.place] != change.old:
            raise Violation("lost update")
        changed = part_of(machine.places[change.place])
        must_not_disturb(world, me, changed, machine, reading=not change.old)
        yield (
            True,
            world._replace(
                data=put(world.data, change.place, change.new),
                journals=world.journals - {journal} | {journal._replace(done=journal.done + 1)},
            ),
        )


@dataclasses.dataclass(frozen=True)
class Commit:
    """Rename the journal to `committed`: the commit point. False if it has that name no more."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = _journal(world, self.identifier)
        if machine.has_late and (journal is None or journal.undoing):
            yield False, world
            return
        if journal is None or journal.done < len(journal.changes):
            raise Violation("a change without a journal")
        truth = world.truth
        for change in journal.changes:
            truth = put(truth, change.place, change.new)
        final = journal._replace(committed=True)
        yield True, committed(world, me, truth)._replace(journals=world.journals - {journal} | {final})


def _journal(world: World, identifier: int) -> Journal | None:
    return next((j for j in world.journals if j.identifier == identifier and not j.committed), None)


def committed(world: World, me: int, truth: tuple[int, ...]) -> World:
    windows = tuple(w + (truth,) if w and truth not in w else w for w in world.windows)
    return world._replace(truth=truth, windows=windows, committed=world.committed | {me})


@dataclasses.dataclass(frozen=True)
class TakeBack:
    """Unlink a journal none of whose operations is left to undo."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journals = frozenset(j for j in world.journals if j.identifier != self.identifier)
        is_other = machine.has_late and self.identifier % PROCESSES != me and journals != world.journals
        revoked = world.revoked | {self.identifier} if is_other else world.revoked
        if not machine.rules.takeover_revokes_stage:
            revoked = world.revoked
        ended = _ended(world, self.identifier, machine)
        yield None, world._replace(journals=journals, revoked=revoked, ended=ended)


def _ended(world: World, identifier: int, machine: Machine) -> int:
    is_there = any(journal.identifier == identifier for journal in world.journals)
    return world.ended + (machine.has_late and is_there and machine.rules.ended_journal_leaves_a_name)


@dataclasses.dataclass(frozen=True)
class MakePrivate:
    """Make the private directory; its owner file is locked."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield None, world._replace(private=world.private | {self.identifier})


@dataclasses.dataclass(frozen=True)
class Claim:
    """Rename the journal to `undoing`, which the holder's commit needs as well; True if it has that name now.

    A recovery goes on with one that has the name already; a holder that finds it so has been taken over.
    """

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal, is_mine = _journal(world, self.identifier), self.identifier % PROCESSES == me
        rule = machine.rules.holder_renames_to_undo if is_mine else machine.rules.takeover_renames_journal
        if not rule:
            yield journal is not None, world
        elif journal is None or (is_mine and journal.undoing):
            yield False, world
        else:
            yield True, world._replace(journals=world.journals - {journal} | {journal._replace(undoing=True)})


def _is_filled(journal: Journal, index: int) -> bool:
    """Whether anything lies in stage or trash for an operation: what comes, before it, and what has gone, after it."""
    change = journal.changes[index]
    return bool(change.old if index < journal.done else change.new)


@dataclasses.dataclass(frozen=True)
class MakeAside:
    """Make a directory for what lies in stage and trash; its number is one more than those that are there."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = _journal(world, self.identifier)
        if journal is None:
            yield 0, world
        else:
            more = journal._replace(takers=journal.takers + 1)
            yield more.takers, world._replace(journals=world.journals - {journal} | {more})


@dataclasses.dataclass(frozen=True)
class Revoke:
    """Rename what lies in stage and trash for one operation into our directory."""

    identifier: int
    index: int
    taker: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = _journal(world, self.identifier)
        if journal is not None and _is_filled(journal, self.index) and journal.by[self.index] < self.taker:
            by = put(journal.by, self.index, self.taker)
            world = world._replace(journals=world.journals - {journal} | {journal._replace(by=by)})
        yield None, world


@dataclasses.dataclass(frozen=True)
class RemoveStage:
    """Remove stage and trash, and what a recovery before used in their place; False if they are not empty.

    A process that finds a directory with a higher number has been taken over itself.
    """

    identifier: int
    taker: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journal = _journal(world, self.identifier)
        if journal is None or journal.takers != self.taker:
            yield TAKEN_OVER, world
        elif any(by < self.taker and _is_filled(journal, index) for index, by in enumerate(journal.by)):
            yield False, world
        else:
            by = (self.taker,) * len(journal.by)
            yield True, world._replace(journals=world.journals - {journal} | {journal._replace(by=by)})


@dataclasses.dataclass(frozen=True)
class RenamePrivate:
    """Give the private directory of a transaction another name. If there is none, it `makes` one with that name."""

    identifier: int
    makes: bool

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        if self.makes or self.identifier in world.private:
            yield True, world._replace(renamed=world.renamed | {self.identifier})
        else:
            yield self.identifier in world.renamed, world


@dataclasses.dataclass(frozen=True)
class PutBack:
    """Give the private directory its name again."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        is_there = not machine.has_late or _journal(world, self.identifier) is not None
        yield None, world._replace(renamed=world.renamed - {self.identifier}) if is_there else world


@dataclasses.dataclass(frozen=True)
class TakeUnpublished:
    """Remove the journal in the private directory: a holder that was about to publish it finds none."""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        is_published = any(j.identifier == self.identifier for j in world.journals)
        is_there = self.identifier in world.private and not is_published
        yield None, world._replace(revoked=world.revoked | {self.identifier}) if is_there else world


@dataclasses.dataclass(frozen=True)
class IsPublished:
    """List the state directory: is the journal there?"""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        yield _journal(world, self.identifier) is not None, world


@dataclasses.dataclass(frozen=True)
class LookPrivate:
    """List the state directory: are our private directory and our owner file there, and none with the other name?"""

    identifier: int

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        has_owner = any(identifier == self.identifier for identifier, _ in world.owners)
        yield has_owner and self.identifier in world.private - world.renamed, world


@dataclasses.dataclass(frozen=True)
class ListCommits:
    """List the state directories: is there a journal, and which commits have left a name?"""

    trees: tuple[str, ...]

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        here = [j for j in world.journals if j.home in self.trees]
        names = (world.ended, *sorted(j.identifier for j in here if j.committed))
        yield (any(not j.committed for j in here), names), world


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
        # A holder whose private directory has another name does nothing with a journal that it publishes after all.
        journal = _journal(world, self.identifier)
        if journal is not None and (journal.done or self.identifier not in world.renamed):
            raise Violation("a journal was deleted that was to be undone")
        if machine.has_late:
            is_other = self.identifier % PROCESSES != me and self.identifier in world.private
            world = world._replace(
                ended=_ended(world, self.identifier, machine),
                revoked=world.revoked | {self.identifier} if is_other else world.revoked,
                private=world.private - {self.identifier},
                renamed=world.renamed - {self.identifier},
            )
        yield (
            None,
            world._replace(
                owners=frozenset(o for o in world.owners if o[0] != self.identifier),
                journals=frozenset(j for j in world.journals if j.identifier != self.identifier or not j.committed),
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
    if (journal.committed and machine.rules.committed_is_final) or (
        journal.undoing and not machine.rules.undoing_is_found
    ):
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
    taker: int = 0

    def outcomes(self, world: World, me: int, machine: Machine) -> Outcomes:
        journals, mine = world.journals, _journal(world, self.identifier)
        place, old, new = self.change
        if self.identifier in world.revoked or (mine is not None and mine.by and mine.by[self.index] != self.taker):
            yield False, world  # another process has moved what lies in stage and trash
            return
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
