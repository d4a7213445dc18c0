"""What each kind of process does, step by step, in the words of the protocol.

A program is a generator of steps, which gets the outcome of each one back. It must depend on nothing else, because
the search runs it again from its start, with the outcomes it had, to get to a later step. `Again` and `Ended` leave it
from any depth: the first starts it over with other arguments, the second ends it.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

from .model import EXCLUSIVE, GATED, SHARED, Lock, Mode, Patience, Rules
from .steps import (
    GATE,
    STALE,
    Await,
    BeginWork,
    Believe,
    CarryOut,
    Commit,
    EndWork,
    ForeignChange,
    Idle,
    Inherited,
    LookAlive,
    LookAtAncestors,
    LookForJournal,
    OpenJournal,
    OpenStateDirectory,
    Prepare,
    Read,
    ReadAtOnce,
    Release,
    RemoveStateDirectory,
    Spawn,
    Step,
    Take,
    TakeBack,
    Undo,
    Unlock,
)

Steps = Generator[Step, Any, Any]
View = Mapping[str, int]


class Again(Exception):
    """Start over, with what is to be done first."""

    def __init__(self, **carry: Any) -> None:
        self.carry = carry


class Ended(Exception):
    """End with this status."""

    def __init__(self, status: str) -> None:
        self.status = status


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a command wants: `changes` of a view, having asked for `reads`, of which `resolved` are in the result."""

    changes: Callable[[View], Mapping[str, int]]
    reads: tuple[str, ...]
    resolved: tuple[str, ...]


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
    carry: dict[str, Any] = dataclasses.field(default_factory=dict)
    own: list[Lock] = dataclasses.field(default_factory=list)
    inherited: tuple[Inherited, ...] = ()
    recovers: bool = False
    below: int | None = None  # the ancestor whose private commit lock is used

    def numbers(self, places: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.places.index(p) for p in places)

    def position(self, lock: Lock) -> tuple[int, str]:
        order = self.rules.order_of_others if self.process % 2 else None
        return (order or self.rules.order).index(lock.rank), lock.name

    def in_order(self, locks: list[tuple[Lock, Mode]]) -> list[tuple[Lock, Mode]]:
        ranked = sorted(locks, key=lambda wanted: self.position(wanted[0]))
        if self.rules.trees_in_order or self.process % 2 == 0:
            return ranked
        return sorted(locks, key=lambda wanted: self.position(wanted[0])[1], reverse=True)

    def from_ancestor(self, lock: Lock) -> Inherited | None:
        found = [i for i in self.inherited if i.lock[:2] == lock[:2]]
        return max(found, key=lambda i: i.mode is EXCLUSIVE) if found else None

    def patience(self, lock: Lock) -> Patience:
        # What an ancestor holds counts as ours, but we cannot let it go.
        breaks_order = any(self.position(i.lock) > self.position(lock) for i in self.inherited)
        below_mutex = lock.rank == "commit" and any(i.lock.rank == "mutex" for i in self.inherited)
        if breaks_order and self.rules.give_up_out_of_order:
            return Patience.MINUTE
        if below_mutex and self.rules.give_up_commit_below_mutex:
            return Patience.MINUTE
        return Patience.SECOND if self.own and self.rules.let_go_and_start_over else Patience.FOREVER


def begin(
    me: Me,
    alone: tuple[Lock, Mode] | None = None,
    recover: tuple[int, tuple[str, ...]] | None = None,
    owner: int | None = None,
) -> Steps:
    """What comes before every start and new start of a program."""
    if me.nested:
        me.inherited = yield LookAtAncestors()
    if alone:
        yield from take(me, *alone)
        yield from let_go(me)
    if recover is not None:
        yield from recovering(me, *recover)
    if owner is not None:
        yield Await(owner, journal=True)


def let_go(me: Me, late: bool = False) -> Steps:
    yield Release(late=late)
    me.own.clear()


def take(me: Me, lock: Lock, mode: Mode, patience: Patience | None = None) -> Steps:
    """Take one lock as the protocol says, or start over, or end with 75; false only if it was not to be waited for."""
    real, gated = lock, lock.rank in GATED and me.rules.gate
    if held := me.from_ancestor(lock):
        if held.mode is EXCLUSIVE and not held.known and me.rules.refuse_without_variable and lock.rank in GATED:
            raise Ended("75: inside an exclusive holder that cannot be joined")
        if held.mode is EXCLUSIVE and lock.rank != "commit":
            return True
        if held.mode is EXCLUSIVE:
            if not me.rules.siblings_exclude_each_other or not held.known:
                return True
            me.below, lock, gated = held.ancestor, Lock("nested commit", str(held.ancestor)), False
        elif mode is EXCLUSIVE and me.rules.refuse_replacing_below_shared:
            raise Ended("75: inside a shared holder")
        elif mode is SHARED and me.rules.shared_without_gate:
            gated = False
    if me.litter and lock.rank == "commit":
        generation = yield OpenStateDirectory(lock.name, make=mode is EXCLUSIVE)
        if not generation:
            yield from let_go(me)
            raise Again()
        lock = lock._replace(generation=generation)
    step = Take(lock, mode, patience or me.patience(real), gated)
    if not me.rules.journal_after_grant:
        yield from look_for_journal(me, lock)
    granted = yield step
    if granted == GATE:
        me.own.append(lock.gate())
        granted = yield dataclasses.replace(step, gated=False, behind_gate=True)
        me.own.remove(lock.gate()) if granted is not False else None
    if granted is False and step.patience is Patience.NONE:
        return False
    if granted is True:
        me.own.append(lock)
        if me.rules.journal_after_grant and (lock.rank != "environment" or me.rules.journal_after_environment_grant):
            yield from look_for_journal(me, real)
        return True
    yield from let_go(me, late=granted is False)
    if granted == STALE:
        raise Again()
    if step.patience is Patience.MINUTE:
        raise Ended("75: gave up")
    raise Again(alone=(real._replace(generation=0), mode))


def look_for_journal(me: Me, lock: Lock) -> Steps:
    if lock.rank not in GATED or me.recovers:
        return
    found = yield LookForJournal((lock.name,))
    if found:
        owner, lives, names = found
        if lives and not me.rules.wait_for_living_owner:
            return
        yield from let_go(me)
        raise Again(owner=owner) if lives else Again(recover=(owner, names))


def recovering(me: Me, owner: int, names: tuple[str, ...]) -> Steps:
    """Undo what a dead process left, in reverse, under the commit locks and directories that its journal names."""
    if me.rules.recover_under_commit_lock:
        ranks = {name: "commit" if name in me.all_trees else "directory" for name in names}
        for lock, mode in me.in_order([(Lock(rank, name), EXCLUSIVE) for name, rank in ranks.items()]):
            yield from take_to_recover(me, lock, mode)
    journal = yield OpenJournal(owner)
    if journal is not None:
        for index in reversed(range(journal.done)):
            yield Undo(owner, journal.changes[index], index)
        yield TakeBack(owner)
    yield from let_go(me)


def take_to_recover(me: Me, lock: Lock, mode: Mode) -> Steps:
    """As `take`, but what a journal would lead to is being done already."""
    me.recovers = True
    yield from take(me, lock, mode)
    me.recovers = False


def snapshot(me: Me, places: tuple[str, ...]) -> Steps:
    """What is installed at one instant."""
    if me.rules.snapshot_takes_commit_lock:
        unguarded = []
        wanted = []
        for tree in me.trees:
            there = (yield OpenStateDirectory(tree)) if me.litter else 1
            wanted.append((Lock("commit", tree, there if me.litter else 0), SHARED))
            if not there:
                wanted.pop()
                unguarded.append(tree)
        if me.rules.hold_environment_while_unguarded:
            wanted += [(Lock("environment", tree), SHARED) for tree in unguarded]
        for lock, mode in me.in_order(wanted):
            yield from take_to_read(me, lock, mode)
    values = []
    numbers = me.numbers(places)
    for index, number in enumerate(numbers):
        values.append((yield Read(number, first=index == 0)))
    if me.rules.snapshot_takes_commit_lock and me.rules.look_again:
        for tree in unguarded:
            if (yield OpenStateDirectory(tree)):
                yield from let_go(me)
                raise Again()
    if me.below is not None and me.rules.alive_after_reading and not (yield LookAlive(me.below)):
        yield from let_go(me)
        raise Again()
    yield Believe(numbers, tuple(values))
    return tuple(values)


def take_to_read(me: Me, lock: Lock, mode: Mode) -> Steps:
    """As `take`, of a lock file that is open already: a reader makes none; where none is there, neither is a gate."""
    if not me.litter:
        yield from take(me, lock, mode)
        return
    granted = yield Take(lock, mode, gated=me.rules.gate and lock.rank == "commit")
    if granted == GATE:
        granted = yield Take(lock, mode, behind_gate=True)
    if granted == STALE:
        yield Release()
        raise Again()
    me.own.append(lock)
    yield from look_for_journal(me, lock)


def reader(me: Me, places: tuple[str, ...], forever: bool = False, **again: Any) -> Steps:
    """`list`, `freeze`, `show`, `check`, `inspect`."""
    yield from begin(me, **again)
    yield from snapshot(me, places)
    yield from let_go(me)
    if forever:
        raise Again()
    return "0"


def command(
    me: Me,
    goal: Goal,
    attempt: int = 1,
    replaces: bool = False,
    known: tuple[int, ...] | None = None,
    forever: bool = False,
    builds: bool = False,
    mutex: str | None = None,
    child: int | None = None,
    **again: Any,
) -> Steps:
    """`install` or `uninstall`: snapshot, resolve, build, lock, validate, commit."""
    me.carry = {"attempt": attempt, "replaces": replaces, "known": known}
    yield from begin(me, **again)
    reserved = False
    if me.rules.reserve_on_third_attempt and attempt >= 3 and replaces:
        # What was held since the snapshot goes with it: started over from there.
        known = me.carry["known"] = None
        reserved = True
        yield from take(me, Lock("environment", me.trees[0]), EXCLUSIVE)
    if known is None:
        known = yield from snapshot(me, goal.reads)
        if reserved:
            yield Release(tuple(me.own[1:]))
            del me.own[1:]
        else:
            yield from let_go(me)
            me.carry["known"] = known
    if builds:
        yield from building(me, mutex, child, reserved)
    there = dict(zip(goal.reads, known, strict=True))
    plan = {p: v for p, v in goal.changes(there).items() if there.get(p) != v}
    if plan:
        yield from committing(me, goal, known, plan, attempt, reserved)
    yield from let_go(me)
    if plan and me.litter:
        yield from removing_state_directory(me, me.trees[0])
    if forever:
        raise Again(attempt=1, known=None)
    return "0"


def wanted_for(me: Me, plan: Mapping[str, int], replaces: bool, reserved: bool) -> Steps:
    """The locks that a plan needs, in their order."""
    changed = {place.split(".")[0] for place in plan}
    wanted = []
    for tree in me.trees:
        if tree not in changed:
            there = (yield OpenStateDirectory(tree)) if me.litter else True
            if me.rules.hold_what_was_read:
                wanted.append((Lock("commit" if there else "environment", tree), SHARED))
            continue
        if replaces and not reserved and me.rules.replacing_takes_environment_lock:
            wanted.append((Lock("environment", tree), EXCLUSIVE))
        if me.rules.replacing_takes_commit_lock if replaces else me.rules.adding_takes_commit_lock:
            wanted.append((Lock("commit", tree), EXCLUSIVE if me.rules.never_upgrade else SHARED))
    if me.rules.changing_takes_directory_lock:
        wanted += [(Lock("directory", name), EXCLUSIVE) for name in changed - set(me.trees)]
    if me.uv and me.rules.changing_takes_uv_lock:
        wanted.append((Lock("uv", me.uv), EXCLUSIVE))
    return me.in_order(wanted)


def committing(
    me: Me, goal: Goal, known: tuple[int, ...], plan: Mapping[str, int], attempt: int, reserved: bool
) -> Steps:
    """Steps 7 to 9: lock, validate, journal, carry out, commit."""
    before = dict(zip(goal.reads, known, strict=True))
    replaces = any(before.get(place, 0) for place in plan)
    wanted = yield from wanted_for(me, plan, replaces, reserved)
    for lock, mode in wanted:
        yield from take(me, lock, mode)
    if me.rules.look_again_before_validating:
        for lock, mode in wanted:
            if lock.rank == "environment" and mode is SHARED and (yield OpenStateDirectory(lock.name)):
                yield from let_go(me)
                raise Again()
    if me.rules.validate:
        asked = goal.reads if me.rules.validate_what_was_rejected else goal.resolved
        now = yield ReadAtOnce(me.numbers(asked))
        if now != tuple(before[p] for p in asked):
            yield from let_go(me)
            raise Again(attempt=min(attempt + 1, 3), replaces=replaces, known=None)
    if not me.rules.never_upgrade:
        for lock in [lock for lock in me.own if lock.rank == "commit"]:
            yield Release((lock,))
            yield Take(lock, EXCLUSIVE)
    if not (yield Prepare(me.trees[0], tuple((me.places.index(p), v) for p, v in sorted(plan.items())))):
        yield from let_go(me)
        raise Ended("74")
    if me.below is not None and me.rules.alive_before_first_operation and not (yield LookAlive(me.below)):
        yield TakeBack(me.process)
        yield from let_go(me)
        raise Again()
    for _ in plan:
        yield CarryOut()
    yield Commit()


def remover(me: Me) -> Steps:
    """The end of a command that has changed a packed tree before: only what may disturb others is left of it."""
    yield from removing_state_directory(me, me.trees[0])
    return "0"


def removing_state_directory(me: Me, tree: str) -> Steps:
    generation = yield OpenStateDirectory(tree)
    wanted = []
    if me.rules.removal_takes_environment_lock:
        wanted.append(Lock("environment", tree))
    if me.rules.removal_takes_commit_lock:
        wanted.append(Lock("commit", tree, generation))
    granted = generation != 0
    for lock in wanted:
        if granted:
            granted = (yield Take(lock, EXCLUSIVE, Patience.NONE)) is True
            me.own += [lock] if granted else []
    if granted:
        yield RemoveStateDirectory(tree)
    yield from let_go(me)


def building(me: Me, mutex: str | None, child: int | None, reserved: bool = False) -> Steps:
    """One call of a backend that imports from the environment; `child` is a command that its `setup.py` runs."""
    wanted = []
    if me.rules.build_takes_environment_lock and not reserved:
        wanted += [(Lock("environment", tree), SHARED) for tree in me.trees]
    if mutex and me.rules.build_takes_mutex:
        wanted.append((Lock("mutex", mutex), EXCLUSIVE))
    kept = len(me.own)
    for lock, mode in me.in_order(wanted):
        yield from take(me, lock, mode)
    yield BeginWork(me.trees, SHARED)
    if mutex:
        yield BeginWork((mutex,), EXCLUSIVE)
    if child is not None:
        yield Take(Lock("alive", str(me.process)), EXCLUSIVE)
        me.own.append(Lock("alive", str(me.process)))
        yield Spawn(child)
        yield Await(child)
    yield EndWork()
    yield Release(tuple(me.own[kept:]))
    del me.own[kept:]


def run(
    me: Me,
    mode: Mode,
    children: tuple[int, ...] = (),
    forked: bool = False,
    forever: bool = False,
    outlives: bool = False,
    lasts: bool = False,
    **again: Any,
) -> Steps:
    """`safe-pip run --shared` or `--exclusive`, of a command that starts `children`, all at once."""
    yield from begin(me, **again)
    wanted = [(Lock("environment", tree), mode) for tree in me.trees]
    if mode is EXCLUSIVE:
        wanted += [(Lock("commit", tree), mode) for tree in me.trees]
    for lock, how in me.in_order(wanted):
        yield from take(me, lock, how)
    alive = Lock("alive", str(me.process))
    if children and not forked:
        yield Take(alive, EXCLUSIVE)
        me.own.append(alive)
    yield BeginWork(me.trees, mode)
    if lasts:
        yield Idle()
    for child in children:
        yield Spawn(child, forked)
    if not outlives:
        for child in children:
            yield Await(child)
    yield EndWork()
    yield from let_go(me)
    if forever:
        raise Again()
    return "0"


def forked_child(me: Me, daemon: bool = False) -> Steps:
    """A child that its parent forked: it gives up what it inherited, and may live on."""
    if me.rules.close_in_forked_child:
        yield Release() if me.rules.release_by_closing else Unlock()
    if daemon:
        yield Idle()
    return "0"


def uv(me: Me, child: int | None = None, place: str | None = None, value: int = 0, fails_open: bool = True) -> Steps:
    """uv: its lock from before the resolve to the end, a build inside; when it waits too long, it goes on without."""
    lock = Lock("uv", me.trees[0])
    granted = yield Take(lock, EXCLUSIVE, Patience.MINUTE if fails_open else Patience.FOREVER)
    if granted:
        yield BeginWork((f"uv of {lock.name}",), EXCLUSIVE)
    if child is not None:
        yield Spawn(child)
        yield Await(child)
    if place is not None:
        yield ForeignChange(me.places.index(place), value)
    yield EndWork()
    return "0"
