"""A transaction that recovery refuses gets out of the way, and nothing that it has is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_pip.commands import doctor, options
from safe_pip.commands.doctor import PutAside
from safe_pip.commands.doctor.examination import Way, way
from safe_pip.environment.environment import Environment
from safe_pip.errors import RecoveryNeeded
from safe_pip.journal import recovery
from safe_pip.launch.restart import RUNNER
from safe_pip.launch.settings import Settings
from safe_pip.locking import flock, inheritance
from safe_pip.merge.plan import Kind
from tests.support.faults import disk
from tests.support.faults.transaction import IDENTIFIER, StagedTransaction, content_of

pytestmark = pytest.mark.skipif(not flock.supported, reason="there are no journals without flock")
KEPT = f"kept-{IDENTIFIER}"


class SilentReporter:
    """Fails if a command waits."""

    def waiting(self, event: object) -> None:
        raise AssertionError(event)

    def granted(self, event: object, seconds: float) -> None:
        raise AssertionError(event)


@pytest.fixture(autouse=True)
def _no_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(inheritance.VARIABLE, raising=False)


def made(root: Path) -> StagedTransaction:
    """An upgrade that a dead process carried out and did not commit."""
    transaction = StagedTransaction(root)
    for name in ("commit.gate", "environment.gate", "keep", "keep.gate"):
        (transaction.state / name).touch()
    transaction.add(Kind.FILE, "first.py", "old first", "new first")
    transaction.add(Kind.FILE, "second.py", "old second", "new second")
    transaction.add(Kind.EXCHANGE, "pkg", {"a.py": "old a"}, {"a.py": "new a"})
    transaction.add(Kind.REMOVE, "gone.py", "old gone")
    transaction.write_journal()
    transaction.do()
    return transaction


@pytest.fixture
def transaction(tmp_path: Path) -> StagedTransaction:
    return made(tmp_path)


def mend(transaction: StagedTransaction) -> list[str]:
    step = PutAside(transaction.unfinished)
    Environment([str(transaction.home)], waiting=SilentReporter(), timeout=0).carry_out(step)
    return step.told


def journal_path(transaction: StagedTransaction) -> Path:
    return transaction.unfinished.path


def texts(path: Path) -> set[str]:
    """What stands in the files below a directory."""
    return {file.read_text() for file in path.rglob("*") if file.is_file() and file.stat().st_size < 100}


def change_second(transaction: StagedTransaction) -> None:
    (transaction.home / "second.py").write_text("by another program")


def damage(transaction: StagedTransaction) -> None:
    journal_path(transaction).write_bytes(journal_path(transaction).read_bytes()[:-1])


def lose_owner(transaction: StagedTransaction) -> None:
    (transaction.state / f"{IDENTIFIER}.owner").unlink()


def test_a_transaction_that_the_next_command_undoes_is_left_to_it(transaction: StagedTransaction) -> None:
    assert way(transaction.unfinished) is Way.USUAL
    assert mend(transaction) == []
    assert journal_path(transaction).exists()


def test_a_transaction_that_is_gone_is_left_alone(transaction: StagedTransaction) -> None:
    journal_path(transaction).unlink()
    assert way(transaction.unfinished) is Way.USUAL
    assert mend(transaction) == []


def test_files_that_another_program_changed_stay_and_the_rest_is_undone(transaction: StagedTransaction) -> None:
    change_second(transaction)
    with pytest.raises(RecoveryNeeded):
        recovery.check(transaction.unfinished)
    assert way(transaction.unfinished) is Way.KEEPING
    told = mend(transaction)
    assert f"left `{transaction.home / 'second.py'}` as it is" in told
    assert f"put aside `{transaction.state / KEPT}`" in told
    assert transaction.content() == {
        "0": {
            "first.py": "old first",
            "second.py": "by another program",
            "pkg": {"a.py": "old a"},
            "gone.py": "old gone",
        },
        "1": {},
    }
    assert transaction.leftovers() == []
    assert "old second" in texts(transaction.state / KEPT)


@pytest.mark.parametrize("break_it", [damage, lose_owner])
def test_a_journal_that_cannot_be_believed_is_put_aside_with_its_private_directories(
    transaction: StagedTransaction, break_it: Callable[[StagedTransaction], None]
) -> None:
    break_it(transaction)
    before, had, written = transaction.content(), texts(transaction.private), journal_path(transaction).read_bytes()
    assert way(transaction.unfinished) is Way.ASIDE
    assert mend(transaction) == [f"put aside `{transaction.state / KEPT}`"]
    assert transaction.content() == before
    assert texts(transaction.state / KEPT) == had
    assert (transaction.state / KEPT / "refused-journal").read_bytes() == written
    assert transaction.leftovers_of_home() == []
    assert recovery.find(transaction.home) == ()


def test_a_journal_without_a_private_directory_is_put_aside_too(tmp_path: Path) -> None:
    transaction = StagedTransaction(tmp_path)
    for name in ("commit.gate", "environment.gate", "keep", "keep.gate"):
        (transaction.state / name).touch()
    journal_path(transaction).write_text("")
    (transaction.private / "stage").rmdir()
    (transaction.private / "trash").rmdir()
    transaction.private.rmdir()
    mend(transaction)
    assert [path.name for path in (transaction.state / KEPT).iterdir()] == ["refused-journal"]


def test_parts_on_other_filesystems_are_put_aside_as_well(transaction: StagedTransaction, tmp_path: Path) -> None:
    part = tmp_path / "data" / ".safe-pip" / IDENTIFIER
    (part / "trash").mkdir(parents=True)
    (part / "trash" / "0").write_text("old data")
    stranger = tmp_path / "data" / "private"
    stranger.mkdir()
    notes = f'{{"part": "{part}"}}\n{{"part": "{stranger}"}}\n{{"part": "{transaction.private}"}}\n'
    (transaction.state / f"{IDENTIFIER}.owner").write_text(notes)
    damage(transaction)
    mend(transaction)
    assert (part.parent / KEPT / "trash" / "0").read_text() == "old data"
    assert not part.exists()
    assert stranger.exists()


def test_a_committed_transaction_that_cannot_be_finished_is_put_aside(transaction: StagedTransaction) -> None:
    damage(transaction)
    transaction.commit()
    assert way(transaction.committed) is Way.ASIDE
    step = PutAside(transaction.committed)
    Environment([str(transaction.home)], waiting=SilentReporter(), timeout=0).carry_out(step)
    assert step.told == [f"put aside `{transaction.state / KEPT}`"]
    assert transaction.leftovers_of_home() == []


def test_the_journal_of_a_newer_version_is_left_to_that_version(transaction: StagedTransaction) -> None:
    content = journal_path(transaction).read_bytes()
    journal_path(transaction).write_bytes(content.replace(b"safe-pip-journal 1 ", b"safe-pip-journal 2 ", 1))
    with pytest.raises(RecoveryNeeded, match="newer"):
        recovery.read(transaction.unfinished)
    assert way(transaction.unfinished) is Way.NONE
    assert mend(transaction) == []
    assert journal_path(transaction).exists()


def test_the_journal_of_a_user_that_may_not_change_the_tree_is_left_alone(transaction: StagedTransaction) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as another user")
    damage(transaction)
    os.chown(journal_path(transaction), 65534, 65534)
    assert way(transaction.unfinished) is Way.NONE
    assert mend(transaction) == []
    assert journal_path(transaction).exists()


@pytest.mark.parametrize("break_it", [change_second, damage])
def test_a_repair_killed_at_any_step_is_done_again_and_loses_nothing(
    tmp_path: Path, break_it: Callable[[StagedTransaction], None]
) -> None:
    for k in itertools.count():
        transaction = made(tmp_path / str(k))
        break_it(transaction)
        with disk.crash_at(k) as trial, contextlib.suppress(disk.Crashed):
            mend(transaction)
        if way(transaction.unfinished) is not Way.USUAL or journal_path(transaction).exists():
            mend(transaction)
        assert not journal_path(transaction).exists()
        everything = texts(transaction.home) | texts(transaction.state)
        assert {"old first", "old second", "old gone", "old a"} <= everything
        if break_it is change_second:
            assert "by another program" in content_of(transaction.home)["second.py"]  # type: ignore[index, operator]
        if trial.struck is None:
            break
    assert k >= 3


def test_a_tree_that_no_known_python_installs_into_is_named_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "site-packages" / "demo-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: demo\nVersion: 1\n")
    (info / "RECORD").write_text("demo.py,,\n")
    words = ["--repair", "--json", "--env", str(info.parent)]
    assert options.run("doctor", words, Settings(lock_timeout=0), SilentReporter()) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["reinstall"] == []
    assert report["failed"] == [
        f"no Python is known that installs into `{info.parent}`: name its environment with `--env`"
    ]


@pytest.mark.parametrize(
    ("argv", "path", "said"),
    [
        (["{bin}/safe-pip"], "{bin}", ["safe-pip"]),
        (["{link}/safe-pip"], "{link}", ["safe-pip"]),
        (["{bin}/safe-pip"], "/nonexistent", ["{bin}/safe-pip"]),
        ([sys.executable, "-m", "safe_pip", "doctor"], "{bin}", [sys.executable, "-m", "safe_pip"]),
        ([sys.executable, RUNNER], "{bin}", [sys.executable, RUNNER]),
    ],
)
def test_the_command_to_run_next_begins_as_this_one_was_called(
    argv: list[str], path: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"bin": tmp_path / "bin", "link": tmp_path / "link"}
    places["bin"].mkdir()
    places["link"].mkdir()
    (places["bin"] / "safe-pip").touch(0o755)
    (places["link"] / "safe-pip").symlink_to(places["bin"] / "safe-pip")
    words = [word.format(**places) for word in argv]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", [words[0] if len(words) == 1 else "/safe_pip/__main__.py"])
    monkeypatch.setenv("PATH", path.format(**places))
    assert doctor._program() == [word.format(**places) for word in said]
