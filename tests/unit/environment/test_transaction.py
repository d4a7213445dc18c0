"""What a transaction keeps: its first error, and which projects the command asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_pip.environment.transaction import Transaction
from safe_pip.errors import StalePlan
from tests.support.venvs.direct_installs import DirectPrefix


@pytest.fixture
def transaction(tmp_path: Path) -> Transaction:
    made = DirectPrefix(tmp_path).transaction()
    made.take_snapshot(lambda: None)
    return made


def stale() -> None:
    raise StalePlan(("demo",))


def test_an_error_is_raised_again_by_whatever_is_asked_for_next(transaction: Transaction) -> None:
    with pytest.raises(StalePlan) as first:
        transaction.read(stale)
    with pytest.raises(StalePlan) as second:
        transaction.read(lambda: None)
    assert second.value is first.value is transaction.error


def test_an_error_of_what_the_command_can_do_without_is_not_kept(transaction: Transaction) -> None:
    with pytest.raises(StalePlan), transaction.optional():
        transaction.read(stale)
    assert transaction.error is None
    assert transaction.read(lambda: 1) == 1


def test_what_is_asked_for_without_a_record_is_not_in_the_read_set(transaction: Transaction) -> None:
    with transaction.unrecorded():
        transaction.asked("other")
    transaction.asked("demo")
    assert transaction.read_set.seen.keys() == {"demo"}
