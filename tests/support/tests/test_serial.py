"""Final states that some order of blind writes explains."""

from __future__ import annotations

import pytest

from tests.support.processes.serial import Writing, explains

A1B1 = {"a": "1", "b": "1"}
A2B2 = {"a": "2", "b": "2"}


def at_once(*writes: dict[str, str | None]) -> list[Writing]:
    return [Writing(each, 0.0, 1.0) for each in writes]


@pytest.mark.parametrize("final", [A1B1, A2B2])
def test_either_of_two_commands_may_be_the_last(final: dict[str, str]) -> None:
    assert explains({}, at_once(A1B1, A2B2), final)


def test_half_of_each_is_no_serial_order() -> None:
    assert not explains({}, at_once(A1B1, A2B2), {"a": "1", "b": "2"})


def test_a_lost_update_is_no_serial_order() -> None:
    assert not explains({}, at_once({"a": "1"}, {"b": "1"}), {"a": "1"})


def test_untouched_projects_must_stay_as_they_are() -> None:
    assert explains({"c": "1"}, at_once({"a": "1"}), {"a": "1", "c": "1"})
    assert not explains({"c": "1"}, at_once({"a": "1"}), {"a": "1"})
    assert not explains({}, at_once({"a": "1"}), {"a": "1", "c": "1"})


def test_a_removal_may_come_last_or_be_overwritten() -> None:
    removal: dict[str, str | None] = {"a": None, "b": None}
    assert explains({}, at_once(A1B1, removal), {})
    assert explains(A2B2, at_once(A1B1, removal), A1B1)
    assert not explains(A2B2, at_once(A1B1, removal), {"a": "1"})


def test_a_command_that_ended_before_another_began_comes_first() -> None:
    first, second = Writing(A1B1, 0.0, 1.0), Writing(A2B2, 2.0, 3.0)
    assert explains({}, [first, second], A2B2)
    assert not explains({}, [first, second], A1B1)


def test_an_overlap_allows_what_the_order_of_starting_would_not() -> None:
    assert explains({}, [Writing(A1B1, 0.0, 2.5), Writing(A2B2, 2.0, 3.0)], A1B1)


def test_three_commands_are_taken_off_from_the_end() -> None:
    commands = at_once({"a": "1", "b": "1"}, {"b": "2", "c": "2"}, {"c": "3", "a": "3"})
    assert explains({}, commands, {"a": "3", "b": "2", "c": "3"})
    assert not explains({}, commands, {"a": "1", "b": "2", "c": "3"})
