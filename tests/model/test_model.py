"""With all rules the protocol is clean in every interleaving; without any one of them it is not.

A rule may be needed so that nothing bad ever happens (a violation is found in some state), or so that everybody comes
to his end (a way is found to go on for ever without him). Two rules are not shown to be needed, see `NOT_NEEDED`.
"""

import dataclasses
from typing import Any

import pytest

from .explore import explore
from .machine import Scenario
from .model import LOCK_ORDER, Rules
from .progress import goes_round, starves
from .scenarios import ENDLESS, SCENARIOS, UNSOLVED

# Left out of the quick selection: no version of Python or pip makes a difference to it.
pytestmark = pytest.mark.slow

UV_FIRST = ("uv", "environment", "mutex", "commit", "directory")
MUTEX_FIRST = ("mutex", "environment", "commit", "directory", "uv")
COMMIT_FIRST = ("commit", "environment", "mutex", "directory", "uv")
COMMIT_BEFORE_MUTEX = ("environment", "commit", "mutex", "directory", "uv")
DIRECTORY_BEFORE_COMMIT = ("environment", "mutex", "directory", "commit", "uv")

ABOVE_EXCLUSIVE = "a reader and a replacement below an exclusive holder"
KILLED_ABOVE = "a replacement below an exclusive holder that is killed"
TORN, LOST, ORDER = "torn read", "lost update", "no serial order"
ALONE, CHANGED = "exclusive holder not alone", "shared holder saw a change"
DEADLOCK, FAILED, NEITHER = "deadlock", "failed for nothing", "neither old nor new"

# What is left out (with what else would make up for it), where that is missed, and what comes of it.
NEEDED: list[tuple[dict[str, Any], str, str]] = [
    # who takes what
    ({"snapshot_takes_commit_lock": False}, "a reader beside a replacement", TORN),
    ({"adding_takes_commit_lock": False}, "a reader beside an addition", TORN),
    ({"replacing_takes_environment_lock": False}, "a build beside a replacement", CHANGED),
    ({"replacing_takes_commit_lock": False}, "a reader beside a replacement", TORN),
    ({"build_takes_environment_lock": False}, "a build beside a replacement", CHANGED),
    ({"build_takes_mutex": False}, "two builds of one source tree", ALONE),
    ({"changing_takes_directory_lock": False}, "two environments with one directory of scripts", LOST),
    ({"changing_takes_uv_lock": False}, "uv installs beside two commands", LOST),
    # in which order
    ({"order": UV_FIRST}, "uv below an exclusive holder, a command below uv", DEADLOCK),
    ({"order": MUTEX_FIRST}, "a build below a shared holder, beside a build of the same source tree", FAILED),
    ({"order": COMMIT_FIRST, "let_go_and_start_over": False}, "an addition below a shared holder", FAILED),
    ({"order_of_others": COMMIT_FIRST, "let_go_and_start_over": False}, "two upgrades of one project", DEADLOCK),
    (
        {"order_of_others": DIRECTORY_BEFORE_COMMIT, "let_go_and_start_over": False},
        "two additions with one directory of scripts",
        DEADLOCK,
    ),
    ({"trees_in_order": False, "let_go_and_start_over": False}, "two replacements over two trees", DEADLOCK),
    # how
    ({"let_go_and_start_over": False}, "uv builds with a command below, beside another", FAILED),
    (
        {"let_go_and_start_over": False, "give_up_out_of_order": False},
        "uv builds with a command below, beside another",
        DEADLOCK,
    ),
    ({"let_go_and_start_over": False}, "a replacement over two trees, one of them in use for ever", DEADLOCK),
    ({"never_upgrade": False}, "two installs that rejected a version for each other", ORDER),
    ({"compare_inode": False}, "a reader and a writer beside the removal of a state directory", TORN),
    ({"close_in_forked_child": False}, "an exclusive holder that leaves a daemon", DEADLOCK),
    ({"release_by_closing": False}, "an exclusive holder and its forked child", ALONE),
    # what is looked at, and when
    ({"journal_after_grant": False}, "a reader beside a replacement that is killed", TORN),
    ({"journal_after_environment_grant": False}, "a shared holder beside a replacement that is killed", TORN),
    ({"wait_for_living_owner": False}, KILLED_ABOVE, TORN),
    ({"recoverer_owns_journal": False}, "a recovery below an exclusive holder that is killed", TORN),
    (
        {"recover_under_commit_lock": False, "recoverer_owns_journal": False},
        "an addition and a recovery that are killed",
        NEITHER,
    ),
    ({"validate": False}, "two upgrades of one project", ORDER),
    ({"validate_what_was_rejected": False}, "two installs that rejected a version for each other", ORDER),
    ({"hold_what_was_read": False}, "each reads the tree that the other changes", ORDER),
    # trees without a state directory
    ({"look_again": False}, "a reader before the first writer", TORN),
    ({"look_again_before_validating": False}, "first writers of two trees, each of which reads the other", ORDER),
    ({"hold_environment_while_unguarded": False}, "a reader before the first writer", TORN),
    ({"removal_takes_environment_lock": False}, "a reader before the first writer", TORN),
    ({"removal_takes_commit_lock": False}, "a reader and a writer beside the removal of a state directory", TORN),
    # below a holder
    ({"shared_without_gate": False}, "a build below a shared holder", DEADLOCK),
    ({"refuse_replacing_below_shared": False}, "a replacement below a shared holder", DEADLOCK),
    ({"siblings_exclude_each_other": False}, ABOVE_EXCLUSIVE, TORN),
    ({"refuse_without_variable": False}, f"{ABOVE_EXCLUSIVE}, the variable dropped", TORN),
    ({"find_ancestors_without_variable": False}, "a build below a shared holder, the variable dropped", DEADLOCK),
    (
        {"find_ancestors_without_variable": False},
        "a replacement below a shared holder, the variable dropped",
        DEADLOCK,
    ),
    ({"alive_before_first_operation": False}, KILLED_ABOVE, TORN),
    ({"alive_after_reading": False}, "a reader below an exclusive holder that is killed", TORN),
    ({"alive_closed_first": False}, KILLED_ABOVE, TORN),
    ({"give_up_out_of_order": False}, "uv below an exclusive holder, a command below uv", DEADLOCK),
    (
        {"give_up_out_of_order": False, "give_up_commit_below_mutex": False},
        "a build below an exclusive holder, a command below a build",
        DEADLOCK,
    ),
    (
        {"give_up_out_of_order": False},
        "two shared holders, each with a replacement of the other's tree below",
        DEADLOCK,
    ),
]

# Left out alone, these are not missed in any scenario.
NOT_NEEDED = {
    "recover_under_commit_lock": "whoever has the place of the journal's owner is alone with it already",
    "give_up_commit_below_mutex": "who wants a mutex below a holder of a commit lock gives up, so the cycle is broken",
}

# Whose absence shows in endless runs only.
FOR_PROGRESS = {"gate", "reserve_on_third_attempt"}


def without(rules: dict[str, Any]) -> Rules:
    return dataclasses.replace(Rules(), **rules)


@pytest.mark.parametrize("name", SCENARIOS)
def test_with_all_rules_no_interleaving_violates_anything(name: str) -> None:
    found = explore(SCENARIOS[name], Rules())
    assert found.violation is None, str(found)


@pytest.mark.parametrize(("rules", "name", "violation"), NEEDED, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_rule_that_is_left_out_is_missed(rules: dict[str, Any], name: str, violation: str) -> None:
    found = explore(SCENARIOS[name], without(rules))
    assert found.violation == violation, str(found)


def test_each_rule_is_either_shown_to_be_needed_or_said_not_to_be() -> None:
    shown = {rule for rules, _, _ in NEEDED for rule in rules}
    assert {field.name for field in dataclasses.fields(Rules)} == shown | FOR_PROGRESS | set(NOT_NEEDED)


@pytest.mark.parametrize("rule", NOT_NEEDED)
def test_these_rules_alone_are_not_missed(rule: str) -> None:
    """Tried where they could be: where somebody is killed, or holds a mutex, as the case may be."""
    for name, scenario in SCENARIOS.items():
        kills, mutex = bool(scenario.kills), any("mutex" in process.arguments for process in scenario.processes)
        if kills if rule == "recover_under_commit_lock" else mutex:
            found = explore(scenario, without({rule: False}))
            assert found.violation is None, f"{name}: {found}"


def test_giving_up_a_commit_lock_below_a_mutex_fails_commands_that_had_only_to_wait() -> None:
    scenario = SCENARIOS["a build whose setup.py installs, beside an exclusive holder of the other tree"]
    patient = without({"give_up_commit_below_mutex": False})
    assert explore(scenario, patient).ends == {("0", "0", "0")}
    assert ("0", "75: gave up", "0") in explore(scenario, Rules()).ends
    swapped = dataclasses.replace(patient, order=COMMIT_BEFORE_MUTEX)
    assert ("0", "75: gave up", "0") in explore(scenario, swapped).ends


@pytest.mark.parametrize(
    "name", ["overlapping shared holders and a replacement", "overlapping readers and an addition"]
)
def test_behind_a_gate_nobody_starves_and_without_one_the_writer_does(name: str) -> None:
    writer = 2
    assert not starves(explore(ENDLESS[name], Rules()), writer)
    assert starves(explore(ENDLESS[name], without({"gate": False})), writer)


def test_a_replacement_that_reserves_ends_and_one_that_does_not_may_be_stale_for_ever() -> None:
    scenario, victim = ENDLESS["a replacement that others make stale"], 1
    assert not goes_round(explore(scenario, Rules()), {victim})
    assert goes_round(explore(scenario, without({"reserve_on_third_attempt": False})), {victim})


def test_in_one_order_of_trees_both_end_and_in_two_orders_both_may_let_go_for_ever() -> None:
    scenario = ENDLESS["two replacements over two trees"]
    assert not goes_round(explore(scenario, Rules()), {0, 1})
    assert goes_round(explore(scenario, without({"trees_in_order": False})), {0, 1})


def test_letting_go_may_keep_a_replacement_over_two_busy_trees_from_its_end() -> None:
    """A limit of the design: each time the wait for one tree is over, the other is in use again."""
    scenario, victim = ENDLESS["shared holders of two trees and a replacement over both"], 2
    assert goes_round(explore(scenario, Rules()), {victim})
    assert not goes_round(explore(scenario, without({"let_go_and_start_over": False})), {victim})


@pytest.mark.parametrize("scenario", UNSOLVED.values(), ids=UNSOLVED)
def test_a_journal_is_found_only_by_those_who_read_the_tree_it_is_in(scenario: Scenario) -> None:
    """A limit of the design: a case leaves this list when recovery has its answer."""
    assert explore(scenario, Rules()).violation in {NEITHER, TORN}


def test_every_order_tried_names_every_lock_once() -> None:
    for order in (UV_FIRST, MUTEX_FIRST, COMMIT_FIRST, COMMIT_BEFORE_MUTEX, DIRECTORY_BEFORE_COMMIT):
        assert sorted(order) == sorted(LOCK_ORDER)
