"""What each kind of process does, step by step, in the words of the protocol."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .locking import (
    Again,
    Ended,
    Me,
    Steps,
    begin,
    deleting,
    let_go,
    look_for_journal,
    revoking_all,
    start_over,
    take_all,
)
from .model import EXCLUSIVE, SHARED, Lock, Mode, Patience, owner_of
from .steps import (
    GATE,
    STALE,
    Await,
    BeginWork,
    Believe,
    EndWork,
    Idle,
    LookAlive,
    OpenStateDirectory,
    Read,
    ReadAtOnce,
    Release,
    RemoveStateDirectory,
    Spawn,
    Take,
    Unlock,
)
from .transactions import (
    TAKEN_OVER,
    CarryOut,
    Claim,
    Clean,
    Commit,
    ForeignChange,
    ListCommits,
    ListLeftovers,
    LookPrivate,
    MakeOwner,
    MakePrivate,
    Mark,
    Prepare,
    TakeBack,
    Undo,
    Unmark,
)

TAKEN_OVER_STATUS = "75: taken over"
View = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a command wants: `changes` of a view, having asked for `reads`, of which `resolved` are in the result."""

    changes: Callable[[View], Mapping[str, int]]
    reads: tuple[str, ...]
    resolved: tuple[str, ...]


def snapshot(me: Me, places: tuple[str, ...]) -> Steps:
    """The installed versions at one instant."""
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
        yield from take_to_read(me, me.in_order(wanted))
    values = []
    numbers = me.numbers(places)
    lists = me.late and me.rules.reader_lists_again
    before = (yield ListCommits(me.trees)) if lists else None
    for index, number in enumerate(numbers):
        values.append((yield Read(number, first=index == 0)))
    if me.rules.snapshot_takes_commit_lock and me.rules.look_again:
        for tree in unguarded:
            if (yield OpenStateDirectory(tree)):
                yield from start_over(me)
    if lists:
        is_published, commits = yield ListCommits(me.trees)
        if is_published or (me.rules.reader_compares_names and (False, commits) != before):
            yield from start_over(me)
    if me.below is not None and me.rules.alive_after_reading and not (yield LookAlive(me.below)):
        yield from start_over(me)
    yield Believe(numbers, tuple(values))
    return tuple(values)


def take_to_read(me: Me, wanted: list[tuple[Lock, Mode]]) -> Steps:
    """Take locks whose files are open already. A reader makes no lock file; a missing file has no gate."""
    if not me.litter:
        yield from take_all(me, wanted)
        return
    for lock, mode in wanted:
        granted = yield Take(lock, mode, gated=me.rules.gate and lock.rank == "commit")
        if granted == GATE:
            granted = yield Take(lock, mode, behind_gate=True)
        if granted == STALE:
            yield Release()
            raise Again()
        me.own.append(lock)
    yield from look_for_journal(me, tuple(sorted(lock.name for lock, _ in wanted)))


def reader(
    me: Me, places: tuple[str, ...], forever: bool = False, tidies: bool = False, leaves: bool = False, **again: Any
) -> Steps:
    """`list`, `freeze`, `show`, `check`, `inspect`; one that `tidies`: a merge that finds that it must not be made."""
    if leaves:
        yield from removing_state_directory(me, me.trees[0])
        return "0"
    yield from begin(me, **again)
    yield from snapshot(me, places)
    yield from let_go(me)
    if tidies:
        yield from removing_state_directory(me, me.trees[0])
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
    uses: tuple[str, ...] = (),
    mutex: str | None = None,
    child: int | None = None,
    stages: bool = False,
    staged: bool = False,
    number: int = 0,
    dies: int | None = None,
    rejects: bool = False,
    rejected: bool = False,
    leaves: bool = False,
    **again: Any,
) -> Steps:
    """`install` or `uninstall`: snapshot, resolve, build, stage, lock, validate, commit, clean up.

    With `stages`, making and deleting the stage are steps of their own; else they come with journal and unlocking.
    With `dies`, it is killed when it has carried out so many operations; below 0 as soon as it has journaled.
    With `rejects`, the filesystem refuses its second operation once; the new plan replaces whatever the first one did.
    """
    if leaves:
        yield from removing_state_directory(me, me.trees[0])
        return "0"
    me.carry = {
        "attempt": attempt,
        "replaces": replaces,
        "known": known,
        "staged": staged,
        "number": number,
        "rejected": rejected,
    }
    me.number = number
    yield from begin(me, **again)
    reserved = False
    if me.rules.reserve_on_third_attempt and attempt >= 3 and replaces:
        # What was held since the snapshot goes with it: started over from there.
        known = me.carry["known"] = None
        reserved = True
        yield from take_all(me, [(Lock("environment", me.trees[0]), EXCLUSIVE)])
    if known is None:
        known = yield from snapshot(me, goal.reads)
        if reserved:
            yield Release(tuple(me.own[1:]))
            del me.own[1:]
        else:
            yield from let_go(me)
            me.carry["known"] = known
    if builds:
        yield from building(me, mutex, child, reserved, uses)
    there = dict(zip(goal.reads, known, strict=True))
    plan = {p: v for p, v in goal.changes(there).items() if there.get(p) != v}
    if plan and stages and not staged:
        yield from staging(me, plan)
    if plan:
        try:
            yield from committing(me, goal, known, plan, attempt, reserved, stages, dies, rejects)
        except Ended as end:
            if stages and end.status not in (TAKEN_OVER_STATUS, "killed"):
                yield from ending_transaction(me, plan)
            raise
    if plan and not stages and not elsewhere(me, plan):
        yield Clean(me.identifier, releases=True)
        me.own.clear()
    else:
        yield from let_go(me)
        if plan:
            yield from ending_transaction(me, plan)
    if plan and me.litter:
        yield from removing_state_directory(me, me.trees[0])
    if forever:
        raise Again(attempt=1, known=None)
    return "0"


def elsewhere(me: Me, plan: Mapping[str, int]) -> list[str]:
    """The trees and directories that a plan changes outside its home."""
    return sorted({place.split(".")[0] for place in plan} - {me.trees[0]})


def staging(me: Me, plan: Mapping[str, int]) -> Steps:
    """Step 4: the owner file, made and locked under the shared commit lock, and the marks elsewhere."""
    home = me.trees[0]
    if me.litter:
        yield OpenStateDirectory(home, make=True)
    if me.rules.owner_made_under_commit_lock:
        yield from take_all(me, [(Lock("commit", home), SHARED)])
    made = yield MakeOwner(me.identifier, home)
    # What looks whether it is locked has it for an instant.
    patience = Patience.NONE if me.late else Patience.FOREVER
    granted = made and (yield Take(owner_of(me.identifier), EXCLUSIVE, patience))
    if granted is not True:
        if made and granted is False:
            yield Clean(me.identifier)
            yield from start_over(me, number=me.number + 1)
        yield from start_over(me)
    if me.late:
        yield MakePrivate(me.identifier)
    yield from let_go(me)
    me.carry["staged"] = True
    if me.rules.marks and me.rules.marks_before_journal:
        for name in elsewhere(me, plan):
            yield Mark(me.identifier, name)


def ending_transaction(me: Me, plan: Mapping[str, int]) -> Steps:
    if elsewhere(me, plan):
        yield Unmark(me.identifier)
    yield Clean(me.identifier)
    me.carry["staged"] = False


def distributions(me: Me, places: Iterable[str], mode: Mode) -> Steps:
    """The locks on the distributions that are installed at these places."""
    there = yield ReadAtOnce(me.numbers(tuple(sorted(places))))
    return [(Lock("distribution", p, v), mode) for p, v in zip(sorted(places), there, strict=True) if v]


def keeping(me: Me, places: tuple[str, ...]) -> Steps:
    """The locks of a process that wants some distributions to stay as they are."""
    wanted = []
    for tree in me.trees:
        if not me.litter or (yield OpenStateDirectory(tree)):
            wanted += [(Lock("keep", tree), SHARED)] if me.rules.keeping_takes_keep_lock else []
        else:
            wanted.append((Lock("environment", tree), SHARED))
    if me.rules.keeping_takes_distribution_locks:
        wanted += yield from distributions(me, places, SHARED)
    return wanted


def wanted_for(me: Me, plan: Mapping[str, int], before: Iterable[str], replaces: bool, reserved: bool) -> Steps:
    """The locks that a plan needs, in their order; what is at the places in `before` has a version."""
    changed = {place.split(".")[0] for place in plan}
    wanted = []
    if replaces and me.rules.replacing_takes_distribution_locks:
        wanted += yield from distributions(me, [place for place in plan if place in before], EXCLUSIVE)
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
    me: Me,
    goal: Goal,
    known: tuple[int, ...],
    plan: Mapping[str, int],
    attempt: int,
    reserved: bool,
    stages: bool,
    dies: int | None,
    rejects: bool,
) -> Steps:
    """Steps 7 to 9: lock, validate, journal, carry out, commit."""
    before = dict(zip(goal.reads, known, strict=True))
    rejected = me.carry["rejected"]
    replaces = rejected or any(before.get(place, 0) for place in plan)
    wanted = yield from wanted_for(me, plan, before, replaces, reserved)
    yield from take_all(me, wanted)
    if me.late and me.rules.committers_revoke:
        yield from revoking_all(me, sorted({lock.name for lock, _ in wanted}))
    if me.rules.look_again_before_validating:
        for lock, mode in wanted:
            if lock.rank == "environment" and mode is SHARED and (yield OpenStateDirectory(lock.name)):
                yield from start_over(me)
    if me.rules.validate:
        asked = goal.reads if me.rules.validate_what_was_rejected else goal.resolved
        now = yield ReadAtOnce(me.numbers(asked))
        if now != tuple(before[p] for p in asked):
            yield from let_go(me)
            if stages:
                yield from ending_transaction(me, plan)
            raise Again(attempt=min(attempt + 1, 3), replaces=replaces, known=None)
    if not me.rules.never_upgrade:
        for lock in [lock for lock in me.own if lock.rank == "commit"]:
            yield Release((lock,))
            yield Take(lock, EXCLUSIVE)
    changes = yield from preparing(me, plan, stages)
    if dies is not None and dies < 0:
        raise Ended("killed")
    if me.below is not None and me.rules.alive_before_first_operation and not (yield LookAlive(me.below)):
        yield TakeBack(me.identifier)
        if me.rules.taking_back_ends_transaction or not stages:
            yield from ending_transaction(me, plan)
            yield from start_over(me, number=me.number + 1)
        yield from start_over(me)
    if me.late and stages and me.rules.holder_lists_again and not (yield LookPrivate(me.identifier)):
        yield TakeBack(me.identifier)
        raise Ended(TAKEN_OVER_STATUS)
    if rejects and not rejected:
        if (yield CarryOut(me.identifier, 0, changes[0])) is False:
            raise Ended(TAKEN_OVER_STATUS)
        if me.late and not (yield Claim(me.identifier)):
            raise Ended(TAKEN_OVER_STATUS)
        if (yield Undo(me.identifier, changes[0], 0)) is False:
            raise Ended(TAKEN_OVER_STATUS)
        yield TakeBack(me.identifier)
        yield from start_over(me, rejected=True)
    for done in range(len(plan) + 1):
        if done == dies:
            raise Ended("killed")
        if done < len(plan) and (yield CarryOut(me.identifier, done, changes[done])) is False:
            raise Ended(TAKEN_OVER_STATUS)
    if elsewhere(me, plan) and not me.rules.marks_outlive_journal:
        yield Unmark(me.identifier)
    if not (yield Commit(me.identifier)):
        raise Ended(TAKEN_OVER_STATUS)


def preparing(me: Me, plan: Mapping[str, int], stages: bool) -> Steps:
    """Marks, where they are not made yet, then the journal."""
    home, marked = me.trees[0], elsewhere(me, plan) if me.rules.marks else []
    if marked and not stages:
        yield MakeOwner(me.identifier, home, locked=True)
    if not stages and me.rules.marks_before_journal:
        for name in marked:
            yield Mark(me.identifier, name)
    places = tuple((me.places.index(p), v) for p, v in sorted(plan.items()))
    changes = yield Prepare(me.identifier, home, places, stages)
    if changes == TAKEN_OVER:
        raise Ended(TAKEN_OVER_STATUS)
    if not changes:
        yield from let_go(me)
        raise Ended("74")
    if not me.rules.marks_before_journal:
        for name in marked:
            yield Mark(me.identifier, name)
    return changes


def sweeper(me: Me, name: str, **again: Any) -> Steps:
    """What dead processes left in the state directory of a tree, or of a directory outside all trees, is deleted."""
    yield from begin(me, **again)
    rank = "commit" if name in me.all_trees else "directory"
    if me.rules.sweeper_takes_commit_lock:
        yield from take_all(me, [(Lock(rank, name), EXCLUSIVE)])
    found = yield ListLeftovers(name)
    yield from let_go(me)
    for identifier in found:
        yield from deleting(me, identifier, name)
    return "0"


def remover(me: Me, leaves: bool = False) -> Steps:
    """The end of a command that has changed a packed tree before: only what may disturb others is left of it."""
    yield from removing_state_directory(me, me.trees[0])
    return "0"


def removing_state_directory(me: Me, tree: str) -> Steps:
    generation = yield OpenStateDirectory(tree)
    if me.rules.removers_take_turns and generation:
        turn = Lock("turn", tree, generation)
        if (yield Take(turn, EXCLUSIVE)) == STALE:
            return
        me.own.append(turn)
    wanted = []
    if me.rules.removal_takes_environment_lock:
        wanted.append(Lock("environment", tree))
    if me.rules.removal_takes_commit_lock:
        wanted.append(Lock("commit", tree, generation))
    if me.rules.removal_takes_keep_lock:
        wanted.append(Lock("keep", tree, generation))
    granted = generation != 0
    for lock in wanted:
        if granted:
            granted = (yield Take(lock, EXCLUSIVE, Patience.NONE)) is True
            me.own += [lock] if granted else []
    removed = granted and (yield RemoveStateDirectory(tree))
    yield from let_go(me)
    # A process that made another state directory meanwhile, and left, has met our lock on the tree.
    if removed and me.rules.removers_look_again:
        me.carry = {}
        raise Again(leaves=True)


def building(me: Me, mutex: str | None, child: int | None, reserved: bool = False, uses: tuple[str, ...] = ()) -> Steps:
    """One call of a backend that imports from the environment; `child` is a command that its `setup.py` runs.

    What it `uses` stays as it is; if that is not known, everything.
    """
    wanted = []
    if uses and not reserved:
        wanted += yield from keeping(me, uses)
    elif me.rules.build_takes_environment_lock and not reserved:
        wanted += [(Lock("environment", tree), SHARED) for tree in me.trees]
    if mutex and me.rules.build_takes_mutex:
        wanted.append((Lock("mutex", mutex), EXCLUSIVE))
    kept = len(me.own)
    yield from take_all(me, me.in_order(wanted))
    yield BeginWork(uses or me.trees, SHARED)
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
    keeps: tuple[str, ...] = (),
    **again: Any,
) -> Steps:
    """`safe-pip run --shared`, `--exclusive` or, if it `keeps` places, `--keep`, of a command that starts `children`.

    They start all at once.
    """
    yield from begin(me, **again)
    if keeps:
        wanted = yield from keeping(me, keeps)
    else:
        wanted = [(Lock("environment", tree), mode) for tree in me.trees]
    if mode is EXCLUSIVE:
        wanted += [(Lock("commit", tree), mode) for tree in me.trees]
        wanted += [(Lock("keep", tree), mode) for tree in me.trees if me.rules.exclusive_takes_keep_lock]
    yield from take_all(me, me.in_order(wanted))
    alive = Lock("alive", str(me.process))
    if children and not forked:
        yield Take(alive, EXCLUSIVE)
        me.own.append(alive)
    if me.late and me.rules.shared_holders_revoke:
        yield from revoking_all(me, me.trees)
    yield BeginWork(keeps or me.trees, mode)
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
