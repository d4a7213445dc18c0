"""Allowed outputs and exit statuses of a load's commands, without running them."""

from __future__ import annotations

import json

from tests.support.processes.traffic import Command, Outcome, check_outcomes, install, one_instant, uninstall

REFUSED = "safe-pip: error: `idna` changed while this command was at work. Nothing was changed\n"


def outcome(command: Command, status: int = 0, stdout: str = "", stderr: str = "") -> Outcome:
    return Outcome(0, command, "", status, stdout, stderr, 0.0, 1.0)


def names(*outcomes: Outcome) -> list[str]:
    return [violation.name for violation in check_outcomes(outcomes)]


def test_commands_state_the_versions_that_they_leave() -> None:
    assert install("-U", idna="3.6", flit_core="3.9.0") == Command(
        ("install", "-U", "idna==3.6", "flit-core==3.9.0"), {"idna": "3.6", "flit-core": "3.9.0"}
    )
    assert uninstall("idna").writes == {"idna": None}


def test_success_needs_no_explanation() -> None:
    assert names(outcome(install(idna="3.6"))) == []


def test_a_failure_is_not_explained_by_itself() -> None:
    assert names(outcome(install(idna="3.6"), 1)) == ["unexplained-status"]


def test_a_refusal_that_a_serial_order_could_give_is_explained() -> None:
    assert names(outcome(Command(("install", "x"), statuses=(0, 1)), 1)) == []


def test_a_traceback_is_a_violation_even_with_success() -> None:
    assert names(outcome(install(idna="3.6"), stderr="Traceback (most recent call last)\n")) == ["traceback"]
    assert names(outcome(install(idna="3.6"), stdout="ERROR: Exception:\n")) == ["traceback"]


def test_giving_up_is_explained_by_ten_commands_that_changed_something_meanwhile() -> None:
    gave_up = outcome(install(idna="3.6"), 75, stderr=REFUSED)
    others = [outcome(install(six="1.16.0"))] * 10
    assert names(gave_up, *others) == []
    assert names(gave_up, *others[:9]) == ["unexplained-status"]
    assert names(outcome(install(idna="3.6"), 75), *others) == ["unexplained-status"]


def test_readers_must_have_seen_one_generation_or_none() -> None:
    families = [[{"a": "1", "b": "1"}, {"a": "2", "b": "2"}]]
    for command in one_instant(families):
        if command.arguments[0] == "check":
            continue
        assert names(outcome(command, stdout=printed(command, {"a": "2", "b": "2", "c": "1"}))) == []
        assert names(outcome(command, stdout=printed(command, {"c": "1"}))) == []
        assert names(outcome(command, stdout=printed(command, {"a": "1"}))) == ["torn-read"]
        assert names(outcome(command, stdout=printed(command, {"a": "1", "b": "2"}))) == ["torn-read"]


def test_a_check_must_find_nothing_broken() -> None:
    (command,) = (command for command in one_instant([]) if command.arguments[0] == "check")
    assert names(outcome(command, stdout="No broken requirements found.\n")) == []
    assert names(outcome(command, stdout="left 1 requires right, which is not installed.\n")) == ["torn-read"]


def printed(command: Command, listed: dict[str, str]) -> str:
    rows = [{"name": name, "version": version} for name, version in listed.items()]
    if command.arguments[0] == "inspect":
        return json.dumps({"installed": [{"metadata": row} for row in rows]})
    if command.arguments[-1] == "--format=json":
        return json.dumps(rows)
    return "".join(f"{name}=={version}\n" for name, version in listed.items())
