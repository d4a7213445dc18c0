"""The state that processes share while they follow the protocol, and the rules that they follow.

Everything is immutable, so that a search may hold on to every state it has met.
"""

import dataclasses
import enum
from typing import NamedTuple

LOCK_ORDER = ("environment", "keep", "distribution", "mutex", "commit", "directory", "uv", "owner")
GATED = ("environment", "keep", "distribution", "commit")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of the protocol, each of which can be left out."""

    # which process takes which lock
    snapshot_takes_commit_lock: bool = True
    adding_takes_commit_lock: bool = True
    replacing_takes_environment_lock: bool = True
    replacing_takes_commit_lock: bool = True
    build_takes_environment_lock: bool = True
    build_takes_mutex: bool = True
    keeping_takes_keep_lock: bool = True
    keeping_takes_distribution_locks: bool = True
    replacing_takes_distribution_locks: bool = True
    exclusive_takes_keep_lock: bool = True
    changing_takes_directory_lock: bool = True
    changing_takes_uv_lock: bool = True
    # how it is taken
    gate: bool = True
    order: tuple[str, ...] = LOCK_ORDER
    order_of_others: tuple[str, ...] | None = None  # of every second process, if it keeps another
    trees_in_order: bool = True
    let_go_and_start_over: bool = True
    patient_from_round: int | None = (
        3  # from which vain round on an environment lock is waited for longer than a second
    )
    patience_ends: bool = True  # ... but for less than a minute
    patient_for_environment_only: bool = True
    never_upgrade: bool = True
    compare_inode: bool = True
    compare_inode_of_distribution: bool = True
    close_in_forked_child: bool = True
    release_by_closing: bool = True
    # what is looked at, and when
    journal_after_grant: bool = True
    journal_after_environment_grant: bool = True
    journal_after_keep_grant: bool = True
    journal_after_directory_grant: bool = True
    wait_for_living_owner: bool = True
    validate: bool = True
    validate_what_was_rejected: bool = True
    hold_what_was_read: bool = True
    reserve_on_third_attempt: bool = True
    # the transaction
    marks: bool = True
    marks_before_journal: bool = True
    marks_outlive_journal: bool = True
    committed_is_final: bool = True
    taking_back_ends_transaction: bool = True
    owner_made_under_commit_lock: bool = True
    owner_compared: bool = True
    sweeper_takes_commit_lock: bool = True
    sweeper_owns_leftovers: bool = True
    sweeper_looks_for_journal: bool = True
    sweeper_owns_before_it_looks: bool = True
    # recovery
    let_go_before_recovering: bool = True
    recover_under_commit_lock: bool = True
    recover_under_all_commit_locks: bool = True  # not only that of the tree with the journal
    recoverer_owns_journal: bool = True
    journal_read_by_its_owner: bool = True
    journal_with_nothing_done_is_not_checked: bool = True
    owner_waited_for_by_the_second: bool = True
    # processes that live on after another host has been given their locks
    takeover_renames_journal: bool = True
    takeover_revokes_stage: bool = True
    takeover_lists_again: bool = True
    holder_renames_to_undo: bool = True
    undoing_is_found: bool = True
    committers_revoke: bool = True
    shared_holders_revoke: bool = True
    revoker_renames_private: bool = True
    revoker_takes_unpublished: bool = True
    revoker_looks_for_journal: bool = True
    holder_lists_again: bool = True
    reader_lists_again: bool = True
    reader_compares_names: bool = True
    ended_journal_leaves_a_name: bool = True
    # trees without a state directory
    look_again: bool = True
    look_again_before_validating: bool = True
    hold_environment_while_unguarded: bool = True
    removal_takes_environment_lock: bool = True
    removal_takes_commit_lock: bool = True
    removal_takes_keep_lock: bool = True
    removers_take_turns: bool = True
    removers_look_again: bool = True
    # below a holder
    shared_without_gate: bool = True
    refuse_replacing_below_shared: bool = True
    siblings_exclude_each_other: bool = True
    stand_in_for_environment_lock: bool = True  # not only for the commit lock
    stand_in_for_keep_lock: bool = True
    stand_in_counts_what_is_below: bool = True  # for the order
    stand_in_taken_in_stronger_mode: bool = True
    refuse_without_variable: bool = True
    find_ancestors_without_variable: bool = True
    alive_before_first_operation: bool = True
    alive_after_reading: bool = True
    alive_closed_first: bool = True
    give_up_out_of_order: bool = True
    give_up_commit_below_mutex: bool = True


class Mode(enum.Enum):
    """How a lock is held."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


SHARED, EXCLUSIVE = Mode.SHARED, Mode.EXCLUSIVE


class Patience(enum.Enum):
    """How long a taker waits. Times are abstract: a wait is long if the blocking process works or waits."""

    NONE = "does not wait"
    SECOND = "a second, then lets everything go"
    LONGER = "as long as most work takes, but much less than a minute; then lets everything go"
    MINUTE = "a minute, then gives up"
    FOREVER = "for ever"


class Lock(NamedTuple):
    """One lock file or locked directory; `generation` tells files of one name apart (0: never made anew).

    That of a distribution is its version: to lock it is to lock its metadata, which each version has anew.
    """

    rank: str
    name: str
    generation: int = 0

    def gate(self) -> "Lock":
        return Lock(self.rank + ".gate", self.name, self.generation)


class Held(NamedTuple):
    lock: Lock
    mode: Mode
    process: int


class Change(NamedTuple):
    """One operation of a plan: the project at `place` goes from one version to another (0: not installed)."""

    place: int
    old: int
    new: int


class Journal(NamedTuple):
    """A prepared transaction, kept in the state directory of `home`; the first `done` changes are carried out.

    A committed one is what is left of it until it is cleaned up. In one that is `undoing` no operation begins any more
    but those of a late holder. `by` says, for each operation, which takeover can still move what lies in stage and
    trash: 0 is the holder; there were `takers` takeovers.
    """

    home: str
    identifier: int
    changes: tuple[Change, ...]
    done: int
    committed: bool = False
    undoing: bool = False
    by: tuple[int, ...] = ()
    takers: int = 0


class Reliance(NamedTuple):
    """A process at work in a section during which a tree must stay as it is, or which must be alone with it.

    `tree` may also be one place in a tree.
    """

    process: int
    tree: str
    mode: Mode


class World(NamedTuple):
    """All shared state, and the expected state for the checks."""

    at: tuple[int, ...]  # the node of its program that each process has reached
    held: frozenset[Held]
    data: tuple[int, ...]  # what is on disk
    truth: tuple[int, ...]  # what was committed: data without the half-applied
    state_directories: tuple[int, ...]  # by tree: the generation, 0 where there is none
    owners: frozenset[tuple[int, str]]  # the owner files: (identifier, home)
    marks: frozenset[tuple[str, int]]  # (tree or directory, identifier)
    journals: frozenset[Journal]
    windows: tuple[tuple[tuple[int, ...], ...], ...]  # by process: every truth since it began to read
    relying: frozenset[Reliance]
    committed: frozenset[int]
    kills: int
    frees: int = 0
    private: frozenset[int] = frozenset()  # the private directories
    renamed: frozenset[int] = frozenset()  # those that have another name
    revoked: frozenset[int] = frozenset()  # those that can publish and move nothing any more
    ended: int = 0  # the name that the last journal has left: how many there were before


PROCESSES = 10
"""The identifier of a transaction is the number of its process, plus this for each one that it has taken back."""


def owner_of(identifier: int) -> Lock:
    """The lock on the owner file of a transaction."""
    return Lock("owner", str(identifier))


def is_own(lock: Lock, process: int) -> bool:
    """Is it the owner file of a transaction of this very process?"""
    return lock.rank == "owner" and int(lock.name) % PROCESSES == process


class Violation(Exception):
    """A property does not hold."""
