"""The state that processes share while they follow the protocol, and the rules that they follow.

Everything is immutable, so that a search may hold on to every state it has met.
"""

import dataclasses
import enum
from typing import NamedTuple

LOCK_ORDER = ("environment", "mutex", "commit", "directory", "uv")
GATED = ("environment", "commit")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of the protocol, each of which can be left out."""

    # who takes what
    snapshot_takes_commit_lock: bool = True
    adding_takes_commit_lock: bool = True
    replacing_takes_environment_lock: bool = True
    replacing_takes_commit_lock: bool = True
    build_takes_environment_lock: bool = True
    build_takes_mutex: bool = True
    changing_takes_directory_lock: bool = True
    changing_takes_uv_lock: bool = True
    # how it is taken
    gate: bool = True
    order: tuple[str, ...] = LOCK_ORDER
    order_of_others: tuple[str, ...] | None = None  # of every second process, if it keeps another
    trees_in_order: bool = True
    let_go_and_start_over: bool = True
    never_upgrade: bool = True
    compare_inode: bool = True
    close_in_forked_child: bool = True
    release_by_closing: bool = True
    # what is looked at, and when
    journal_after_grant: bool = True
    journal_after_environment_grant: bool = True
    wait_for_living_owner: bool = True
    recover_under_commit_lock: bool = True
    recoverer_owns_journal: bool = True
    validate: bool = True
    validate_what_was_rejected: bool = True
    hold_what_was_read: bool = True
    reserve_on_third_attempt: bool = True
    # trees without a state directory
    look_again: bool = True
    look_again_before_validating: bool = True
    hold_environment_while_unguarded: bool = True
    removal_takes_environment_lock: bool = True
    removal_takes_commit_lock: bool = True
    # below a holder
    shared_without_gate: bool = True
    refuse_replacing_below_shared: bool = True
    siblings_exclude_each_other: bool = True
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
    """How long a taker waits. Times are abstract: a wait is long when whoever is in the way is at work or waits too."""

    NONE = "does not wait"
    SECOND = "a second, then lets everything go"
    MINUTE = "a minute, then gives up"
    FOREVER = "for ever"


class Lock(NamedTuple):
    """One lock file or locked directory; `generation` tells files of one name apart (0: never made anew)."""

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
    """A prepared transaction, kept in the state directory of `home`; the first `done` changes are carried out."""

    home: str
    owner: int
    changes: tuple[Change, ...]
    done: int


class Reliance(NamedTuple):
    """A process at work in a section during which a tree must stay as it is, or which must be alone with it."""

    process: int
    tree: str
    mode: Mode


class World(NamedTuple):
    """All of the shared state, and, for the checks, what it ought to be."""

    at: tuple[int, ...]  # the node of its program that each process has reached
    held: frozenset[Held]
    data: tuple[int, ...]  # what is on disk
    truth: tuple[int, ...]  # what was committed: data without the half-applied
    state_directories: tuple[int, ...]  # by tree: the generation, 0 where there is none
    generations: int
    journals: frozenset[Journal]
    recoverers: frozenset[tuple[int, int]]  # (owner of the journal, process that took its place)
    windows: tuple[tuple[tuple[int, ...], ...], ...]  # by process: every truth since it began to read
    relying: frozenset[Reliance]
    committed: frozenset[int]
    kills: int


class Violation(Exception):
    """A property does not hold."""
