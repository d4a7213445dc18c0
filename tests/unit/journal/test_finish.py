"""After the commit point: markers go, unplanned files come back, nothing is undone and nothing is left."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from safe_pip.errors import RecoveryNeeded, State
from safe_pip.journal import codec, recovery
from safe_pip.journal.directories import OpenDirectories
from safe_pip.journal.finish import find_unplanned, remove_markers, restore_unplanned
from safe_pip.merge.plan import Kind, Operation, Seen
from tests.support.faults import disk
from tests.support.faults.transaction import IDENTIFIER, Link, StagedTransaction, put

MARKER = f".safe-pip-{IDENTIFIER}"
METADATA = {"METADATA": "1", "RECORD": "1"}


def committed(root) -> StagedTransaction:
    """An upgrade that is committed, with files that came into directories when they were about to leave."""
    transaction = StagedTransaction(root)
    known = ("a.py", "sub/b.py")
    transaction.add(Kind.EXCHANGE, "pkg", {"a.py": "1", "sub": {"b.py": "1"}}, {"a.py": "2", "c.py": "2"}, known=known)
    transaction.add(Kind.SWAP, "swapped", {"a.py": "1"}, {"a.py": "2"}, known=("a.py",))
    transaction.add(Kind.NEW, "x-2.dist-info", None, METADATA)
    transaction.add(Kind.FILE, "mod.py", "1", "2.")
    transaction.add(Kind.REMOVE, "x-1.dist-info", METADATA, known=())
    transaction.add(Kind.REMOVE, "gone", {"a.py": "1"}, known=("a.py",))
    transaction.add(Kind.REMOVE, "old.py", "1")
    transaction.write_journal()
    return transaction


AFTER = {
    "pkg": {"a.py": "2", "c.py": "2"},
    "swapped": {"a.py": "2"},
    "x-2.dist-info": METADATA,
    "mod.py": "2.",
}


def opened(transaction: StagedTransaction) -> OpenDirectories:
    return OpenDirectories(transaction.journal, is_over=True)


def late(transaction: StagedTransaction) -> None:
    """Write where a program would that has no lock, between planning and the first operation."""
    for path, text in {
        "pkg/data": "late",
        "pkg/sub/deep/data": "late",
        "pkg/c.py": "in the way",
        "pkg/__pycache__/a.cpython-313.pyc": "bytecode",
        "pkg/__pycache__/a.cpython-313.pyc.139872": "half of it",
        "pkg/__pycache__/a.cache": "late",
        "swapped/data": "late",
        "gone/data": "late",
        "x-1.dist-info/INSTALLER": "belongs to it",
    }.items():
        (transaction.home / path).parent.mkdir(parents=True, exist_ok=True)
        (transaction.home / path).write_text(text)
    (transaction.home / "gone" / "link").symlink_to("/nowhere")


WITH_LATE = {
    "pkg": {
        "a.py": "2",
        "c.py": "2",
        "data": "late",
        "sub": {"deep": {"data": "late"}},
        "__pycache__": {"a.cache": "late"},
    },
    "swapped": {"a.py": "2", "data": "late"},
    "gone": {"data": "late", "link": Link("/nowhere")},
    "x-2.dist-info": METADATA,
    "mod.py": "2.",
}


def test_a_committed_transaction_is_finished_by_the_next_command(tmp_path):
    transaction = committed(tmp_path)
    transaction.do()
    transaction.commit()
    assert recovery.find(transaction.home) == ()
    recovery.finish(transaction.committed).delete()
    assert transaction.content()["0"] == AFTER
    assert transaction.leftovers() == []
    with pytest.raises(FileNotFoundError):
        recovery.finish(transaction.committed).delete()


def test_directories_that_were_emptied_and_could_not_be_moved_are_removed(tmp_path):
    transaction = StagedTransaction(tmp_path)
    for path in ("x-1.dist-info/METADATA", "ns/deep/er/gone.py", "ns/shared/gone.py"):
        transaction.add(Kind.REMOVE, path, "old")
    transaction.add(Kind.REMOVE, "share/gone", "old", root=1)
    tidied = ((1, "share"), *((0, each) for each in ("x-1.dist-info", "ns/deep/er", "ns/deep", "ns/shared", "ns")))
    for root, path in tidied:
        old = Seen(stat.S_IFDIR | 0o755, 0, 0)
        transaction.operations.append(Operation(Kind.TIDY, root, path, old=old))
    for path in ("ns/shared/stays.py", "ns/empty/"):
        put(transaction.home / path, {} if path.endswith("/") else "")
    transaction.write_journal()
    transaction.do()
    transaction.commit()
    recovery.finish(transaction.committed).delete()
    assert transaction.content() == {"0": {"ns": {"shared": {"stays.py": ""}, "empty": {}}}, "1": {}}
    assert transaction.leftovers() == []


def test_unplanned_files_are_put_back_but_never_over_anything(tmp_path):
    transaction = committed(tmp_path)
    late(transaction)
    transaction.do()
    transaction.commit()
    recovery.finish(transaction.committed).delete()
    assert transaction.content()["0"] == WITH_LATE
    assert transaction.leftovers() == []


def test_every_crash_of_finishing_is_finished_by_the_next_one(tmp_path):
    k, happened = 0, True
    while happened:
        directory = tmp_path / str(k)
        directory.mkdir()
        transaction = committed(directory)
        late(transaction)
        transaction.do()
        transaction.commit()
        happened = False
        try:
            with disk.crash_at(k):
                recovery.finish(transaction.committed).delete()
        except disk.Crashed:
            happened = True
        if transaction.committed.path.exists():
            recovery.finish(transaction.committed).delete()
            assert transaction.leftovers() == []
        assert transaction.content()["0"] == WITH_LATE
        k += 1
    assert k > 20


def test_an_error_while_finishing_keeps_what_is_needed_for_the_next_one(tmp_path):
    k, is_over = 0, False
    while not is_over:
        directory = tmp_path / str(k)
        directory.mkdir()
        transaction = committed(directory)
        late(transaction)
        transaction.do()
        transaction.commit()
        with disk.error_at(k, errno.EIO) as trial:
            try:
                recovery.finish(transaction.committed).delete()
            except RecoveryNeeded as error:
                state = error.state
            else:
                state = None
        is_over = trial.struck is None
        assert state in ((None,) if is_over else (None, State.COMMITTED))
        if transaction.committed.path.exists():
            recovery.finish(transaction.committed).delete()
        assert transaction.content()["0"] == WITH_LATE
        k += 1
    assert k > 20


def test_the_process_that_committed_does_the_same_in_three_steps(tmp_path):
    transaction = committed(tmp_path)
    late(transaction)
    transaction.do()
    transaction.commit()
    with opened(transaction) as directories, disk.record() as changes:
        assert len(remove_markers(directories)) == 3
    assert {(change.operation, os.path.basename(change.path)) for change in changes} == {("remove", MARKER)}
    assert len(changes) == 3
    assert not [path for path in transaction.home.rglob(MARKER) if ".safe-pip" not in path.parts]
    with opened(transaction) as directories:
        found = find_unplanned(directories)
        assert len(found) == 7
        restore_unplanned(directories, found)
        restore_unplanned(directories, found)
    assert transaction.content()["0"] == WITH_LATE


def test_without_unplanned_files_there_is_nothing_to_put_back(tmp_path):
    transaction = committed(tmp_path)
    transaction.do()
    transaction.commit()
    with opened(transaction) as directories:
        assert find_unplanned(directories) == []


def test_a_file_that_both_directories_hold_is_not_lost(tmp_path):
    transaction = committed(tmp_path)
    (transaction.home / "pkg" / "data").write_text("unowned")
    os.link(
        transaction.home / "pkg" / "data", transaction.private / "stage" / transaction.operations[0].staged / "data"
    )
    transaction.do()
    transaction.commit()
    recovery.finish(transaction.committed).delete()
    assert (transaction.home / "pkg" / "data").read_text() == "unowned"


def test_a_directory_that_is_made_again_for_an_unplanned_file_has_its_mode(tmp_path):
    transaction = committed(tmp_path)
    late(transaction)
    (transaction.home / "gone").chmod(0o2750)
    transaction.do()
    transaction.commit()
    recovery.finish(transaction.committed).delete()
    assert (transaction.home / "gone").stat().st_mode & 0o7777 == 0o2750


def test_a_directory_that_is_made_again_has_its_mode_wherever_that_is_killed(tmp_path):
    k, happened = 0, True
    while happened:
        directory = tmp_path / str(k)
        directory.mkdir()
        transaction = committed(directory)
        late(transaction)
        (transaction.home / "gone").chmod(0o2750)
        transaction.do()
        transaction.commit()
        with disk.crash_at(k) as trial, contextlib.suppress(disk.Crashed):
            recovery.finish(transaction.committed).delete()
        happened = trial.struck is not None
        if transaction.committed.path.exists():
            recovery.finish(transaction.committed).delete()
        assert (transaction.home / "gone").stat().st_mode & 0o7777 == 0o2750, trial.struck
        assert transaction.content()["0"] == WITH_LATE
        k += 1


def test_an_unplanned_file_is_put_back_though_all_that_its_directory_lay_in_is_gone(tmp_path):
    """Another command has removed it since: the last distribution of a namespace, perhaps."""
    transaction = StagedTransaction(tmp_path)
    transaction.add(Kind.REMOVE, "ns/deep/er", {"a.py": "1"}, known=("a.py",))
    transaction.write_journal()
    put(transaction.home / "ns" / "deep" / "er" / "sub" / "data", "late")
    transaction.do()
    transaction.commit()
    (transaction.home / "ns" / "deep").rmdir()
    (transaction.home / "ns").rmdir()
    recovery.finish(transaction.committed).delete()
    assert transaction.content() == {"0": {"ns": {"deep": {"er": {"sub": {"data": "late"}}}}}, "1": {}}
    assert transaction.leftovers() == []


def test_an_unplanned_file_that_its_program_has_taken_away_leaves_no_directory(tmp_path):
    transaction = committed(tmp_path)
    late(transaction)
    transaction.do()
    transaction.commit()
    with opened(transaction) as directories:
        found = [each for each in find_unplanned(directories) if each[0].path == "gone"]
    for path in (transaction.private / "trash" / operation.trash / path for operation, path in found):
        path.unlink()
    with opened(transaction) as directories:
        restore_unplanned(directories, found)
    assert not (transaction.home / "gone").exists()


def test_an_unplanned_file_is_never_put_through_a_symbolic_link(tmp_path):
    transaction = committed(tmp_path)
    late(transaction)
    transaction.do()
    transaction.commit()
    victim = tmp_path / "victim"
    victim.mkdir()
    (transaction.home / "gone").symlink_to(victim)
    recovery.finish(transaction.committed).delete()
    assert list(victim.iterdir()) == []


def test_what_was_removed_since_is_no_obstacle(tmp_path):
    """Another command may have taken away, since the commit, what this one put in."""
    transaction = committed(tmp_path)
    transaction.do()
    transaction.commit()
    (transaction.home / "pkg").rename(tmp_path / "aside")
    (transaction.bin / ".safe-pip" / f"{IDENTIFIER}.home").unlink()
    (transaction.bin / ".safe-pip").rmdir()
    transaction.bin.rmdir()
    recovery.finish(transaction.committed).delete()
    assert transaction.leftovers_of_home() == []


def test_the_journal_and_then_the_owner_file_go_last(tmp_path):
    transaction = committed(tmp_path)
    transaction.do()
    transaction.commit()
    with disk.record() as changes:
        recovery.finish(transaction.committed).delete()
    names = [os.path.basename(change.path) for change in changes]
    assert names[-2:] == [f"{IDENTIFIER}.committed", f"{IDENTIFIER}.owner"]
    assert f"{IDENTIFIER}.home" in names


def test_the_note_of_its_home_is_removed_last_from_a_private_directory_elsewhere(tmp_path):
    transaction = committed(tmp_path)
    elsewhere = transaction.bin / ".safe-pip" / IDENTIFIER
    put(elsewhere, {"home": f"{transaction.home}\n", "stage": {"more": "1"}, "trash": {"0": "old"}})
    transaction.unfinished.path.write_bytes(
        codec.encode(transaction.journal._replace(parts=(*transaction.journal.parts, str(elsewhere))))
    )
    transaction.do()
    transaction.commit()
    with disk.record() as changes:
        recovery.finish(transaction.committed).delete()
    inside = [change.path for change in changes if elsewhere in (Path(change.path), *Path(change.path).parents)]
    assert inside[-2:] == [str(elsewhere / "home"), str(elsewhere)]
    assert not (transaction.bin / ".safe-pip").exists()


def test_a_state_directory_in_which_anything_else_is_stays(tmp_path):
    transaction = committed(tmp_path)
    (transaction.bin / ".safe-pip" / "commit").touch()
    transaction.do()
    transaction.commit()
    recovery.finish(transaction.committed).delete()
    assert os.listdir(transaction.bin / ".safe-pip") == ["commit"]


def test_it_is_finished_though_its_owner_file_is_gone(tmp_path):
    transaction = committed(tmp_path)
    transaction.do()
    transaction.commit()
    transaction.committed.owner_file.unlink()
    recovery.finish(transaction.committed).delete()
    assert transaction.leftovers() == []
