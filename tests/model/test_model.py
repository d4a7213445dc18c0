"""With all rules the protocol is correct in every interleaving. Without any one of them it is not.

Without some rules a violation appears in some state. Without others a process never ends while the rest goes on for
ever. Some rules are not missed alone, see `NOT_NEEDED`.
"""

import dataclasses
from typing import Any

import pytest

from .explore import explore
from .machine import Scenario
from .model import LOCK_ORDER, Rules
from .progress import goes_round, starves
from .scenarios import ENDLESS, SCENARIOS
from .transactions import CHANGED_BY_ANOTHER

# Left out of the quick selection: no version of Python or pip makes a difference to it.
pytestmark = pytest.mark.slow

KEEP_FIRST = ("keep", "distribution", "environment", "mutex", "commit", "directory", "uv", "owner")
UV_FIRST = ("uv", "environment", "keep", "distribution", "mutex", "commit", "directory", "owner")
MUTEX_FIRST = ("mutex", "environment", "keep", "distribution", "commit", "directory", "uv", "owner")
COMMIT_FIRST = ("commit", "environment", "keep", "distribution", "mutex", "directory", "uv", "owner")
COMMIT_BEFORE_MUTEX = ("environment", "keep", "distribution", "commit", "mutex", "directory", "uv", "owner")
DIRECTORY_BEFORE_COMMIT = ("environment", "keep", "distribution", "mutex", "directory", "commit", "uv", "owner")

ABOVE_EXCLUSIVE = "a reader and a replacement below an exclusive holder"
SIBLINGS = "a shared holder and a replacement below an exclusive holder"
KILLED_ABOVE = "a replacement below an exclusive holder that is killed"
TORN, LOST, ORDER = "torn read", "lost update", "no serial order"
ALONE, CHANGED = "exclusive holder not alone", "shared holder saw a change"
DEADLOCK, FAILED, NEITHER, ENDLESSLY = "deadlock", "failed for nothing", "neither old nor new", "no way to an end"
LITTER = "a state directory left behind"
SWEPT, UNDONE_NO_MORE = "the stage of a living process was deleted", "a journal was deleted that was to be undone"

LATE_REMOVAL, NO_JOURNAL = "a late removal beside a reader", "a change without a journal"
LATE_UNDO, LATE_READER = "a late holder that undoes, beside another", "a late reader beside a replacement"
KEPT = "a distribution that is kept"
SAME_SCRIPT = "a killed and a finished change of one script, with the same content"
SECOND_TREE = "a killed change of two trees and a reader of the second alone"
TWO_SCRIPTS = "two killed changes of one script"
HOLDER_OF_SECOND = "a killed change of two trees below a holder of the second"
RECOVERY_BELOW = "a recovery below an exclusive holder that is killed"
SWEEPER = "two stages and a sweeper"
SWEEPER_BELOW = "a stage below an exclusive holder that is killed, beside a sweeper"
IN_USE_FOR_EVER = "a replacement over two trees, one of them in use for ever"

# What is left out (with what else would make up for it), where that is missed, and what comes of it.
NEEDED: list[tuple[dict[str, Any], str, str]] = [
    # which process takes which lock
    ({"snapshot_takes_commit_lock": False}, "a reader beside a replacement", TORN),
    ({"adding_takes_commit_lock": False}, "a reader beside an addition", TORN),
    ({"replacing_takes_environment_lock": False}, "a build beside a replacement", CHANGED),
    ({"replacing_takes_commit_lock": False}, "a reader beside a replacement", TORN),
    ({"build_takes_environment_lock": False}, "a build beside a replacement", CHANGED),
    ({"build_takes_mutex": False}, "two builds of one source tree", ALONE),
    ({"changing_takes_directory_lock": False}, "two environments with one directory of scripts", LOST),
    ({"changing_takes_uv_lock": False}, "uv installs beside two commands", LOST),
    ({"keeping_takes_keep_lock": False}, f"{KEPT}, beside an exclusive holder", ALONE),
    ({"exclusive_takes_keep_lock": False}, f"{KEPT}, beside an exclusive holder", ALONE),
    ({"keeping_takes_distribution_locks": False}, f"{KEPT}, beside replacements of it and of another", CHANGED),
    ({"replacing_takes_distribution_locks": False}, f"{KEPT}, beside replacements of it and of another", CHANGED),
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
    ({"let_go_and_start_over": False}, IN_USE_FOR_EVER, DEADLOCK),
    ({"patience_ends": False}, IN_USE_FOR_EVER, DEADLOCK),
    (
        {"patience_ends": False},
        "a replacement over two trees beside a holder of the second that builds in the first",
        FAILED,
    ),
    (
        {"patience_ends": False, "patient_for_environment_only": False},
        "a command that reads the tree of a holder, below which its own tree is read",
        FAILED,
    ),
    ({"never_upgrade": False}, "two installs that rejected a version for each other", ORDER),
    ({"compare_inode": False}, "a reader and a writer beside the removal of a state directory", TORN),
    ({"compare_inode_of_distribution": False}, f"{KEPT}, beside two replacements of it", CHANGED),
    ({"close_in_forked_child": False}, "an exclusive holder that leaves a daemon", DEADLOCK),
    ({"release_by_closing": False}, "an exclusive holder and its forked child", ALONE),
    # what is looked at, and when
    ({"journal_after_grant": False}, "a reader beside a replacement that is killed", TORN),
    ({"journal_after_environment_grant": False}, "a shared holder beside a replacement that is killed", TORN),
    ({"journal_after_keep_grant": False}, f"{KEPT}, beside a replacement that is killed", TORN),
    ({"journal_after_directory_grant": False}, SAME_SCRIPT, NEITHER),
    ({"wait_for_living_owner": False}, KILLED_ABOVE, TORN),
    ({"validate": False}, "two upgrades of one project", ORDER),
    ({"validate_what_was_rejected": False}, "two installs that rejected a version for each other", ORDER),
    ({"hold_what_was_read": False}, "each reads the tree that the other changes", ORDER),
    # the transaction
    ({"marks": False}, SAME_SCRIPT, NEITHER),
    ({"marks": False}, SECOND_TREE, TORN),
    ({"marks": False}, TWO_SCRIPTS, CHANGED_BY_ANOTHER),
    ({"marks_outlive_journal": False}, SAME_SCRIPT, NEITHER),
    ({"marks_outlive_journal": False}, SECOND_TREE, TORN),
    ({"committed_is_final": False}, "a reader beside a replacement that is killed", TORN),
    (
        {"taking_back_ends_transaction": False, "owner_waited_for_by_the_second": False},
        "a journal that is taken back, met below a shared holder",
        DEADLOCK,
    ),
    (
        {"owner_waited_for_by_the_second": False},
        "a journal that is taken back for another plan, met by a build below a shared holder",
        DEADLOCK,
    ),
    ({"owner_compared": False}, SWEEPER_BELOW, SWEPT),
    ({"owner_compared": False, "owner_made_under_commit_lock": False}, SWEEPER, SWEPT),
    ({"owner_made_under_commit_lock": False}, "a late addition beside another", FAILED),
    ({"owner_compared": False, "sweeper_takes_commit_lock": False}, SWEEPER, SWEPT),
    ({"sweeper_owns_leftovers": False}, SWEEPER_BELOW, UNDONE_NO_MORE),
    ({"sweeper_looks_for_journal": False}, SWEEPER_BELOW, UNDONE_NO_MORE),
    ({"sweeper_owns_before_it_looks": False}, SWEEPER_BELOW, UNDONE_NO_MORE),
    # recovery
    ({"let_go_before_recovering": False}, "a reader beside a replacement that is killed", ENDLESSLY),
    ({"recover_under_commit_lock": False}, HOLDER_OF_SECOND, ALONE),
    ({"recover_under_all_commit_locks": False}, HOLDER_OF_SECOND, ALONE),
    (
        {"recover_under_commit_lock": False, "recoverer_owns_journal": False},
        "an addition and a recovery that are killed",
        NEITHER,
    ),
    ({"recoverer_owns_journal": False}, RECOVERY_BELOW, TORN),
    ({"journal_read_by_its_owner": False}, RECOVERY_BELOW, TORN),
    (
        {"journal_with_nothing_done_is_not_checked": False},
        "a journal below an exclusive holder that is killed, beside an addition",
        CHANGED_BY_ANOTHER,
    ),
    # processes whose locks are freed while they live
    ({"takeover_renames_journal": False}, LATE_REMOVAL, NO_JOURNAL),
    ({"takeover_revokes_stage": False}, LATE_REMOVAL, NO_JOURNAL),
    ({"takeover_lists_again": False}, LATE_REMOVAL, NO_JOURNAL),
    ({"committers_revoke": False}, LATE_UNDO, LOST),
    ({"shared_holders_revoke": False}, "a late replacement beside a shared holder", TORN),
    ({"undoing_is_found": False}, "a late holder and a recovery that is killed", ENDLESSLY),
    ({"revoker_looks_for_journal": False}, LATE_UNDO, LOST),
    ({"revoker_renames_private": False, "revoker_takes_unpublished": False}, LATE_UNDO, LOST),
    ({"revoker_takes_unpublished": False, "holder_lists_again": False}, LATE_UNDO, LOST),
    ({"holder_lists_again": False}, "a late holder beside a sweeper", UNDONE_NO_MORE),
    ({"reader_lists_again": False}, LATE_READER, TORN),
    ({"reader_compares_names": False}, LATE_READER, TORN),
    ({"ended_journal_leaves_a_name": False}, LATE_READER, TORN),
    # trees without a state directory
    ({"look_again": False}, "a reader before the first writer", TORN),
    ({"look_again_before_validating": False}, "first writers of two trees, each of which reads the other", ORDER),
    ({"hold_environment_while_unguarded": False}, "a reader before the first writer", TORN),
    ({"removal_takes_environment_lock": False}, "a reader before the first writer", TORN),
    ({"removers_take_turns": False}, "two stages in a tree that is packed", LITTER),
    ({"removers_look_again": False}, "two stages in a tree that is packed", LITTER),
    ({"removal_takes_commit_lock": False}, "a reader and a writer beside the removal of a state directory", TORN),
    (
        {"removal_takes_keep_lock": False},
        f"{KEPT} in a tree that is packed, beside an exclusive holder",
        ALONE,
    ),
    # below a holder
    ({"shared_without_gate": False}, "a build below a shared holder", DEADLOCK),
    ({"refuse_replacing_below_shared": False}, "a replacement below a shared holder", DEADLOCK),
    ({"siblings_exclude_each_other": False}, ABOVE_EXCLUSIVE, TORN),
    ({"stand_in_for_environment_lock": False}, SIBLINGS, CHANGED),
    ({"stand_in_for_keep_lock": False}, f"{KEPT} and an exclusive holder, below an exclusive holder", ALONE),
    ({"stand_in_counts_what_is_below": False}, SIBLINGS, FAILED),
    (
        {"shared_without_gate": False},
        "a build below a shared holder and a replacement, below an exclusive holder",
        DEADLOCK,
    ),
    ({"stand_in_taken_in_stronger_mode": False}, "a change of one of two trees below a holder of both", TORN),
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
    "give_up_commit_below_mutex": "a taker of a mutex below a holder of a commit lock gives up, so the cycle is broken",
    "taking_back_ends_transaction": "a process that waits for the owner looks for the journal each second",
    "marks_before_journal": "before the first operation would do: of a journal with nothing done nothing is undone",
    "sweeper_takes_commit_lock": "the maker of an owner file notices when it was deleted before it was locked",
    "holder_renames_to_undo": "what lies in stage and trash is taken away first; but the holder learns what to report",
    "revoker_renames_private": "the journal in it is taken away, and a new one is not written without the directory",
    "revoker_takes_unpublished": "a holder that publishes late lists again; but it may be killed before it does",
    "patient_for_environment_only": "patience ends; but commit locks are to be held for milliseconds",
}

# Whose absence shows in endless runs only.
FOR_PROGRESS = {"gate", "reserve_on_third_attempt", "patient_from_round"}


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


def is_about(rule: str, scenario: Scenario) -> bool:
    """Is it tried here what a rule may be needed for?"""
    arguments = {name for process in scenario.processes for name in process.arguments}
    return {
        "give_up_commit_below_mutex": "mutex" in arguments,
        "taking_back_ends_transaction": "stages" in arguments
        and any(process.parent == 0 for process in scenario.processes),
        "marks_before_journal": bool(scenario.kills) and len({place.split(".")[0] for place in scenario.places}) > 1,
        "sweeper_takes_commit_lock": "stages" in arguments,
        "holder_renames_to_undo": scenario.frees > 0 and "rejects" in arguments,
        "revoker_renames_private": scenario.frees > 0 and "rejects" in arguments,
        "revoker_takes_unpublished": scenario.frees > 0 and "rejects" in arguments,
        "patient_for_environment_only": "rounds" in arguments,
    }[rule]


@pytest.mark.parametrize("rule", NOT_NEEDED)
def test_these_rules_alone_are_not_missed(rule: str) -> None:
    tried = {name: scenario for name, scenario in SCENARIOS.items() if is_about(rule, scenario)}
    assert tried
    for name, scenario in tried.items():
        found = explore(scenario, without({rule: False}))
        assert found.violation is None, f"{name}: {found}"


def test_giving_up_a_commit_lock_below_a_mutex_fails_commands_that_had_only_to_wait() -> None:
    scenario = SCENARIOS["a build whose setup.py installs, beside an exclusive holder of the other tree"]
    patient = without({"give_up_commit_below_mutex": False})
    assert explore(scenario, patient).ends == {("0", "0", "0")}
    assert ("0", "75: gave up", "0") in explore(scenario, Rules()).ends
    swapped = dataclasses.replace(patient, order=COMMIT_BEFORE_MUTEX)
    assert ("0", "75: gave up", "0") in explore(scenario, swapped).ends


STREAMS = ["overlapping shared holders and a replacement", "overlapping readers and an addition"]


@pytest.mark.parametrize("name", STREAMS)
def test_with_a_gate_no_process_starves_and_without_it_the_writer_does(name: str) -> None:
    writer = 2
    assert not starves(explore(ENDLESS[name], Rules()), writer)
    assert starves(explore(ENDLESS[name], without({"gate": False})), writer)


def test_a_replacement_ends_beside_a_stream_of_programs_unless_they_keep_what_it_replaces() -> None:
    programs, replacement = ENDLESS[STREAMS[0]], 2
    assert not goes_round(explore(programs, Rules()), {replacement})
    assert goes_round(explore(programs, Rules(order=KEEP_FIRST)), {replacement})
    keeping = ENDLESS["overlapping holders of a distribution and a replacement of it"]
    assert not starves(explore(keeping, Rules()), replacement)
    assert goes_round(explore(keeping, Rules()), {replacement})


def test_a_replacement_that_reserves_ends_and_one_that_does_not_may_be_stale_for_ever() -> None:
    scenario, victim = ENDLESS["a replacement that others make stale"], 1
    assert not goes_round(explore(scenario, Rules()), {victim})
    assert goes_round(explore(scenario, without({"reserve_on_third_attempt": False})), {victim})


def test_in_one_order_of_trees_both_end_and_in_two_orders_both_may_let_go_for_ever() -> None:
    scenario = ENDLESS["two replacements over two trees"]
    assert not goes_round(explore(scenario, Rules()), {0, 1})
    assert goes_round(explore(scenario, without({"trees_in_order": False})), {0, 1})


def test_a_replacement_over_two_busy_trees_ends_if_it_waits_longer_after_some_rounds() -> None:
    """Else each time the wait for one tree is over, the other is in use again."""
    scenario, victim = ENDLESS["brief shared holders of two trees and a replacement over both"], 2
    assert not goes_round(explore(scenario, Rules()), {victim})
    assert goes_round(explore(scenario, without({"patient_from_round": None})), {victim})


def test_a_replacement_may_starve_behind_longer_uses_of_both_trees() -> None:
    """A limit of the design: without an end to patience it would, and what it holds meanwhile would be missed."""
    scenario, victim = ENDLESS["shared holders of two trees and a replacement over both"], 2
    assert goes_round(explore(scenario, Rules()), {victim})
    assert not goes_round(explore(scenario, without({"patience_ends": False})), {victim})


def test_every_order_tried_names_every_lock_once() -> None:
    for order in (UV_FIRST, MUTEX_FIRST, COMMIT_FIRST, COMMIT_BEFORE_MUTEX, DIRECTORY_BEFORE_COMMIT):
        assert sorted(order) == sorted(LOCK_ORDER)
