"""What a transaction keeps: its first error, and which projects the command asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from safe_pip.environment.snapshot import Snapshot
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


def test_more_of_a_project_is_read_without_a_lock_and_compared_afterwards(tmp_path: Path) -> None:
    """`list` and `inspect` read a file of each distribution: a lock for each costs more than pip's whole command."""
    prefix = DirectPrefix(tmp_path)
    put(prefix.site, "demo-1.dist-info", "1")
    transaction = prefix.transaction()
    transaction.take_snapshot(lambda: None)
    with prefix.transaction().environment.adding(prefix.target):
        assert transaction.read_later("demo", lambda: "read") == "read"

    def change() -> str:
        put(prefix.site, "demo-1.dist-info", "22")
        return "torn"

    with pytest.raises(StalePlan):
        transaction.read_later("demo", change)


def put(tree: Path, name: str, content: str) -> None:
    (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / name / "METADATA.new").write_text(content)
    os.replace(tree / name / "METADATA.new", tree / name / "METADATA")


@pytest.mark.parametrize("is_there", [True, False])
def test_metadata_that_a_build_of_the_command_itself_writes_outdates_nothing(tmp_path: Path, is_there: bool) -> None:
    """But that in a virtual environment inside the source tree, and that of the project elsewhere, does."""
    prefix = DirectPrefix(tmp_path)
    source, inside = tmp_path / "source" / "src", tmp_path / "source" / ".venv" / "site-packages"
    for tree in (source, inside):
        tree.mkdir(parents=True)
    if is_there:
        put(source, "demo.egg-info", "1")
    transaction = prefix.transaction().of_other(list(map(str, (prefix.site, source, inside))))

    def changed() -> tuple[str, ...]:
        return transaction.read_set.changed(Snapshot.take(transaction.path))

    transaction.take_snapshot(lambda: None)
    transaction.asked("demo")
    with transaction.writing(str(tmp_path / "source")):
        put(source, "demo.egg-info", "22")
    assert changed() == ()
    put(source, "demo.egg-info", "333")  # by a build of another command, which has the tree to itself now
    assert changed() == ()
    assert transaction.read_later("demo", lambda: "read") == "read"
    for tree in (prefix.site, inside):
        with transaction.writing(str(tmp_path / "source")):
            put(tree, "demo-1.dist-info", "1")
        assert changed() == ("demo",)
        shutil.rmtree(tree / "demo-1.dist-info")
        assert changed() == ()


def test_what_is_asked_for_without_a_record_is_not_in_the_read_set(transaction: Transaction) -> None:
    with transaction.unrecorded():
        transaction.asked("other")
    transaction.asked("demo")
    assert transaction.read_set.seen.keys() == {"demo"}
