"""How locks are taken, and what a process does if it finds a journal: the part that all programs share.

A program is a generator of steps, which gets the outcome of each one back. It must depend on nothing else, because
the search runs it again from its start, with the outcomes it had, to get to a later step. `Again` and `Ended` leave it
from any depth: the first starts it over with other arguments, the second ends it.
"""

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any

from .model import EXCLUSIVE, GATED, PROCESSES, SHARED, Lock, Mode, Patience, Rules, owner_of
from .steps import GATE, STALE, Inherited, LookAtAncestors, OpenStateDirectory, Release, Step, Take
from .transactions import (
    TAKEN_OVER,
    Claim,
    Clean,
    FollowMark,
    IsPublished,
    ListLeftovers,
    LookForJournal,
    LookOwner,
    MakeAside,
    OpenJournal,
    PutBack,
    RemoveStage,
    RenamePrivate,
    Revoke,
    TakeBack,
    TakeUnpublished,
    Undo,
    Unmark,
)

Steps = Generator[Step, Any, Any]


class Again(Exception):
    """Start over; the argument states what to do first."""

    def __init__(self, **carry: Any) -> None:
        self.carry = carry


class Ended(Exception):
    """End with this status."""

    def __init__(self, status: str) -> None:
        self.status = status


@dataclasses.dataclass
class Me:
    """One run of one process: its place in the scenario, and what it remembers."""

    process: int
    rules: Rules
    places: tuple[str, ...]
    trees: tuple[str, ...]  # the trees of its environment, in the order of (device, inode); it changes the first
    all_trees: tuple[str, ...]
    nested: bool = False
    uv: str | None = None  # the tree whose uv lock a commit takes
    litter: bool = False  # the state directory is made when needed, and removed again
    late: bool = False  # a process of the scenario may live on without its locks
    carry: dict[str, Any] = dataclasses.field(default_factory=dict)
    own: list[Lock] = dataclasses.field(default_factory=list)
    inherited: tuple[Inherited, ...] = ()
    recovers: bool = False
    rounds: int = 0  # in which an environment lock was not granted within a second
    number: int = 0  # of its transaction
    below: int | None = None  # the ancestor whose private commit lock is used

    @property
    def identifier(self) -> int:
        return self.process + PROCESSES * self.number

    def numbers(self, places: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.places.index(p) for p in places)

    def position(self, lock: Lock) -> tuple[int, str]:
        order = self.rules.order_of_others if self.process % 2 else None
        return (order or self.rules.order).index(lock.rank), lock.name

    def in_order(self, locks: Iterable[tuple[Lock, Mode]]) -> list[tuple[Lock, Mode]]:
        ranked = sorted(locks, key=lambda wanted: self.position(wanted[0]))
        if self.rules.trees_in_order or self.process % 2 == 0:
            return ranked
        return sorted(locks, key=lambda wanted: self.position(wanted[0])[1], reverse=True)

    def from_ancestors(self, lock: Lock) -> list[Inherited]:
        """What ancestors hold of it, the nearest one first: it has the higher number."""
        return [i for i in reversed(self.inherited) if i.lock[:2] == lock[:2]]

    def joined(self, lock: Lock) -> Inherited | None:
        """The nearest ancestor's exclusive lock, which a stand-in may represent."""
        return next((i for i in self.from_ancestors(lock) if i.mode is EXCLUSIVE), None)

    def patience(self, lock: Lock, below: int | None) -> Patience:
        """For a stand-in, `below` is its owner: what that one and those above it hold does not count."""
        if not self.rules.stand_in_counts_what_is_below:
            below = None
        # What an ancestor holds counts as ours, but we cannot let it go.
        counted = [i for i in self.inherited if below is None or i.ancestor > below or not i.known]
        breaks_order = any(self.position(i.lock) > self.position(lock) for i in counted)
        below_mutex = lock.rank == "commit" and any(i.lock.rank == "mutex" for i in counted)
        if breaks_order and self.rules.give_up_out_of_order:
            return Patience.MINUTE
        if below_mutex and self.rules.give_up_commit_below_mutex:
            return Patience.MINUTE
        if not self.own or not self.rules.let_go_and_start_over:
            return Patience.FOREVER
        if self.may_be_patient(lock) and self.rounds == self.rules.patient_from_round:
            return Patience.LONGER if self.rules.patience_ends else Patience.FOREVER
        return Patience.SECOND

    def may_be_patient(self, lock: Lock) -> bool:
        """Never for uv's lock; for an environment lock nothing that milliseconds should do is held meanwhile."""
        is_first = lock.rank in ("keep", "distribution", "environment")
        return is_first or (lock.rank != "uv" and not self.rules.patient_for_environment_only)

    def vain(self, lock: Lock) -> dict[str, Any]:
        """What to start over with when `lock` was not granted in time."""
        last = self.rules.patient_from_round
        if last is None or not self.may_be_patient(lock):
            return {}
        return {"rounds": min(self.rounds + 1, last)}


def begin(
    me: Me,
    alone: tuple[Lock, Mode] | None = None,
    recover: tuple[int, tuple[str, ...]] | None = None,
    rounds: int = 0,
) -> Steps:
    """The steps before every start and every new start of a program."""
    me.rounds = rounds
    if rounds:
        me.carry["rounds"] = rounds
    if me.nested:
        me.inherited = yield LookAtAncestors()
    if alone:
        yield from take(me, *alone, is_alone=True)
        yield from start_over(me)
    if recover is not None:
        yield from recovering(me, *recover)
        yield from start_over(me)


def let_go(me: Me, late: bool = False) -> Steps:
    yield Release(late=late)
    me.own.clear()


def start_over(me: Me, **carry: Any) -> Steps:
    yield from let_go(me)
    raise Again(**carry)


def take(me: Me, lock: Lock, mode: Mode, is_alone: bool = False) -> Steps:
    """Take one lock as the protocol says, or start over, or end with 75."""
    real, gated, below = lock, lock.rank in GATED and me.rules.gate, None
    held = me.joined(lock)
    if held and not held.known and me.rules.refuse_without_variable and lock.rank in GATED:
        raise Ended("75: inside an exclusive holder that cannot be joined")
    if (nearest := me.from_ancestors(lock)) and nearest[0].mode is SHARED:
        if mode is EXCLUSIVE and me.rules.refuse_replacing_below_shared:
            raise Ended("75: inside a shared holder")
        gated = gated and not (mode is SHARED and me.rules.shared_without_gate)
    if held:
        if not stands_in(me, lock, held):
            return
        me.below = below = held.ancestor
        gated = gated and lock.rank != "commit"  # the others are held for long; that queue only makes more states
        lock = Lock(f"nested {lock.rank}", str(held.ancestor))
        if lock in me.own:  # one stands in for the locks of all trees
            return
    if me.litter and lock.rank in ("keep", "commit"):
        generation = yield OpenStateDirectory(lock.name, make=mode is EXCLUSIVE and not me.recovers)
        if not generation:
            yield from start_over(me)
        lock = lock._replace(generation=generation)
    # Its owner may have withdrawn the journal, and may wait for the very process that waits here.
    by_the_second = is_alone and lock.rank == "owner" and me.rules.owner_waited_for_by_the_second
    step = Take(lock, mode, Patience.SECOND if by_the_second else me.patience(real, below), gated)
    granted = yield step
    if granted == GATE:
        me.own.append(lock.gate())
        granted = yield dataclasses.replace(step, gated=False, behind_gate=True)
        me.own.remove(lock.gate()) if granted is not False else None
    if granted is True:
        me.own.append(lock)
        return
    yield from let_go(me, late=granted is False)
    if granted == STALE or by_the_second:
        raise Again()
    if step.patience is Patience.MINUTE:
        raise Ended("75: gave up")
    raise Again(alone=(real._replace(generation=0), mode), **me.vain(real))


def stands_in(me: Me, lock: Lock, held: Inherited) -> bool:
    """Whether a lock in the ancestor's private directory is taken in place of one that it holds exclusively."""
    if lock.rank == "environment" and not me.rules.stand_in_for_environment_lock:
        return False
    if lock.rank == "keep" and not me.rules.stand_in_for_keep_lock:
        return False
    return lock.rank in GATED and held.known and me.rules.siblings_exclude_each_other


def take_all(me: Me, wanted: Iterable[tuple[Lock, Mode]]) -> Steps:
    """Take these locks one after the other, then look for journals in all that they protect."""
    names = tuple(sorted({lock.name for lock, _ in wanted if _is_looked_at(me.rules, lock)}))
    if not me.rules.journal_after_grant:
        yield from look_for_journal(me, names)
    for lock, mode in merged(me, wanted):
        yield from take(me, lock, mode)
    if me.rules.journal_after_grant:
        yield from look_for_journal(me, names)


def merged(me: Me, wanted: Iterable[tuple[Lock, Mode]]) -> list[tuple[Lock, Mode]]:
    """Where one lock of an ancestor stands in for those of several trees it is taken once, in the stronger mode."""
    stand_ins = {
        lock: (lock.rank, held.ancestor)
        for lock, _ in wanted
        if (held := me.joined(lock)) and stands_in(me, lock, held)
    }
    stronger = {stand_ins[lock] for lock, mode in wanted if mode is EXCLUSIVE and lock in stand_ins}
    if not me.rules.stand_in_taken_in_stronger_mode:
        stronger = set()
    return [(lock, EXCLUSIVE if stand_ins.get(lock) in stronger else mode) for lock, mode in wanted]


def _is_looked_at(rules: Rules, lock: Lock) -> bool:
    return {
        "environment": rules.journal_after_environment_grant,
        "keep": rules.journal_after_keep_grant,
        "commit": True,
        "directory": rules.journal_after_directory_grant,
    }.get(lock.rank, False)


def look_for_journal(me: Me, names: tuple[str, ...]) -> Steps:
    """If a journal is found, let go and start over with its recovery. No process recovers while it holds locks."""
    if not names:
        return
    found, marks = yield LookForJournal(names)
    for identifier in marks:
        if (journal := (yield FollowMark(identifier))) is not None:
            found = (*found, journal)
    for identifier, lives, protected in found:
        if lives and not me.rules.wait_for_living_owner:
            continue
        if me.rules.let_go_before_recovering:
            yield from start_over(me, recover=(identifier, protected))
        yield from recovering(me, identifier, protected)
        yield from start_over(me)


def recovering(me: Me, identifier: int, names: tuple[str, ...]) -> Steps:
    """Undo what a dead process left, in reverse, under the commit locks and directories that its journal names.

    Then, in its place: with its owner file locked. While it lives that lock is waited for as any other: for a second,
    then alone. With the journal gone all is let go, then the process that gets the owner file deletes what is left.
    """
    me.recovers = True
    wanted = [(Lock("commit" if name in me.all_trees else "directory", name), EXCLUSIVE) for name in names]
    if not me.rules.recover_under_all_commit_locks:
        del wanted[1:]
    if me.rules.recover_under_commit_lock:
        for lock, mode in me.in_order(wanted):
            yield from take(me, lock, mode)
    journal, taker = None, 0
    if not me.rules.journal_read_by_its_owner:
        journal = yield OpenJournal(identifier)
    if me.rules.recoverer_owns_journal:
        yield from take(me, owner_of(identifier), EXCLUSIVE)
    elif (yield LookOwner(identifier)):
        yield from let_go(me)
        raise Again(alone=(owner_of(identifier), EXCLUSIVE))
    if me.rules.journal_read_by_its_owner:
        journal = yield OpenJournal(identifier)
    if journal is not None and me.late:
        journal, taker = yield from taking_over(me, identifier)
    if journal is not None:
        for index in reversed(range(journal.done)):
            if (yield Undo(identifier, journal.changes[index], index, taker)) is False:
                yield from start_over(me)
        if len(names) > 1 and not me.rules.marks_outlive_journal:
            yield Unmark(identifier)
        yield TakeBack(identifier)
        yield from let_go(me)
        yield from deleting(me, identifier)
    me.recovers = False


def taking_over(me: Me, identifier: int) -> Steps:
    """Leave a holder that may live on nothing that it could still move.

    On return the journal as it is then, and the number of this takeover.
    """
    yield PutBack(identifier)
    if not (yield Claim(identifier)):
        yield from start_over(me)
    taker, is_empty = 0, not me.rules.takeover_revokes_stage
    if not is_empty:
        taker = yield MakeAside(identifier)
    while not is_empty:
        journal = yield OpenJournal(identifier)
        if journal is None:
            yield from start_over(me)
        for index in range(len(journal.changes)):
            yield Revoke(identifier, index, taker)
        is_empty = not me.rules.takeover_lists_again or (yield RemoveStage(identifier, taker))
        if is_empty == TAKEN_OVER:
            yield from start_over(me)
    return (yield OpenJournal(identifier)), taker


def revoking(me: Me, identifier: int, makes: bool = False) -> Steps:
    """Keep a holder that may live on from publishing a journal; True if it has: then it is to be undone.

    The owner file is locked.
    """
    if me.rules.revoker_renames_private and not (yield RenamePrivate(identifier, makes)):
        return False
    if me.rules.revoker_takes_unpublished:
        yield TakeUnpublished(identifier)
    if me.rules.revoker_looks_for_journal and (yield IsPublished(identifier)):
        yield PutBack(identifier)
        return True
    return False


def revoking_all(me: Me, names: Iterable[str]) -> Steps:
    """Before anything is validated: of every transaction without a journal whose process may only seem to be dead."""
    found: set[int] = set()
    for name in names:
        found.update((yield ListLeftovers(name)))
    for identifier in sorted(found):
        if (yield Take(owner_of(identifier), EXCLUSIVE, Patience.NONE)) is True:
            is_published = yield from revoking(me, identifier)
            yield Release((owner_of(identifier),))
            if is_published:
                yield from start_over(me)


def deleting(me: Me, identifier: int, name: str | None = None) -> Steps:
    """Delete what a dead process left, unless another process is at it; no other lock is held.

    With its owner file gone, what led there from `name` is deleted.
    """
    looks = me.rules.sweeper_looks_for_journal
    if looks and not me.rules.sweeper_owns_before_it_looks:
        looks = False
        if (yield OpenJournal(identifier)):
            return
    granted: Any
    if not me.rules.sweeper_owns_leftovers:
        granted = not (yield LookOwner(identifier))
    else:
        granted = yield Take(owner_of(identifier), EXCLUSIVE, Patience.NONE)
    if granted == STALE:
        if name is not None:
            yield Unmark(identifier, name)
    elif granted:
        is_published = me.late and (yield from revoking(me, identifier, makes=True))
        if is_published or (looks and (yield OpenJournal(identifier))):
            yield Release((owner_of(identifier),))
        else:
            yield Unmark(identifier)
            yield Clean(identifier)
