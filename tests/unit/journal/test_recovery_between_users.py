"""Root, owners, group members and strangers: which transactions they undo, and what root never does for others."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.errors import RecoveryNeeded, State
from safe_pip.journal import codec as journal
from safe_pip.journal import recovery
from safe_pip.merge.plan import Kind, Operation, Seen
from tests.support.faults import disk
from tests.support.faults.transaction import IDENTIFIER, StagedTransaction, put, seen

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="needs root, to become other users"
)

USER, OTHER, GROUP = 54321, 54322, 54323
MARKER = f".safe-pip-{IDENTIFIER}"


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that every user can reach."""
    made = Path(tempfile.mkdtemp(prefix="safe-pip-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def victim(common: Path) -> Path:
    """What only root may change."""
    directory = common / "victim"
    put(directory, {"file": "precious", "directory": {"file": "precious"}})
    return directory


@contextlib.contextmanager
def user(uid: int, *groups: int) -> Iterator[None]:
    """Within, this process is another user's."""
    before = os.getgroups()
    os.setgroups(groups)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setgroups(before)


def give(root: Path, uid: int, gid: int = 0) -> None:
    """Make everything at `root` this user's."""
    for path in (root, *root.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)


def upgrade(root: Path) -> StagedTransaction:
    transaction = StagedTransaction(root)
    transaction.add(Kind.EXCHANGE, "pkg", {"a.py": "old"}, {"a.py": "newer"})
    transaction.add(Kind.FILE, "tool", "old", "newer", root=1)
    transaction.add(Kind.REMOVE, "gone.py", "old")
    return transaction


def of_user(root: Path, uid: int = USER) -> StagedTransaction:
    """An upgrade of a user's own environment that was killed."""
    transaction = upgrade(root)
    transaction.write_journal()
    for directory in transaction.roots:
        give(directory, uid)
    transaction.do()
    return transaction


def assert_nothing_happens(transaction: StagedTransaction, match: str, *kept: Path) -> RecoveryNeeded:
    """Neither in the environment nor in what is to be `kept`."""
    paths = sorted(path for root in (*transaction.roots, *kept) for path in (root, *root.rglob("*")))
    before = [(path, path.lstat().st_mode, path.lstat().st_ino) for path in paths]
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match=match) as caught:
        recovery.roll_back(transaction.unfinished).delete()
    assert changes == []
    paths = sorted(path for root in (*transaction.roots, *kept) for path in (root, *root.rglob("*")))
    assert [(path, path.lstat().st_mode, path.lstat().st_ino) for path in paths] == before
    return caught.value


OLD_TREE = {"0": {"pkg": {"a.py": "old"}, "gone.py": "old"}, "1": {"tool": "old"}}


def test_root_undoes_the_transaction_of_a_user_in_the_users_own_environment(common):
    transaction = of_user(common)
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == OLD_TREE
    assert transaction.leftovers() == []
    assert {path.lstat().st_uid for root in transaction.roots for path in (root, *root.rglob("*"))} == {USER}


def test_a_user_undoes_an_own_transaction(common):
    transaction = of_user(common)
    with user(USER):
        recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == OLD_TREE
    assert transaction.leftovers() == []


def test_a_reader_without_permission_names_the_user_with_permission_to_undo(common):
    transaction = upgrade(common)
    transaction.write_journal()
    transaction.do()
    with user(USER):
        assert recovery.find(transaction.home) == (transaction.unfinished,)
        error = assert_nothing_happens(transaction, "is not this user's to change")
    assert error.exit_status == 76
    assert error.state is State.UNFINISHED
    assert "Run it as `root`" in str(error)
    assert "\n" not in str(error)
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == OLD_TREE


def test_one_directory_that_this_user_may_not_change_is_enough_to_change_nothing(common):
    transaction = upgrade(common)
    transaction.write_journal()
    give(transaction.home, USER)
    transaction.do()
    with user(USER):
        assert_nothing_happens(transaction, "is not this user's to change")


def test_the_owner_of_an_environment_is_told_that_root_has_to_undo_what_root_left(common):
    transaction = upgrade(common)
    transaction.write_journal()
    transaction.do()
    for path in (transaction.home, transaction.state, transaction.bin):
        os.chown(path, USER, 0)
    with user(USER):
        assert "Run it as `root`" in str(assert_nothing_happens(transaction, "is not this user's"))


def shared(root: Path, uid: int = USER) -> StagedTransaction:
    """An upgrade by a member of the group that shares the environment, which is another one's."""
    transaction = upgrade(root)
    transaction.write_journal()
    for directory in transaction.roots:
        give(directory, OTHER, GROUP)
        directory.chmod(0o2775)
        (directory / ".safe-pip").chmod(0o2775)
    for path in (transaction.unfinished.path, transaction.unfinished.owner_file, transaction.private):
        give(path, uid, GROUP)
    (transaction.home / "pkg").chmod(0o2775)
    transaction.private.chmod(0o2770)
    for path in transaction.private.rglob("*"):
        if path.is_dir():
            path.chmod(0o2775)
    transaction.do()
    return transaction


@pytest.mark.parametrize("who", [0, USER, OTHER, 54324], ids=["root", "himself", "the owner", "another member"])
def test_any_member_of_the_group_undoes_the_transaction_of_another_member(common, who):
    transaction = shared(common)
    with user(who, GROUP):
        recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == OLD_TREE
    assert transaction.leftovers() == []


def test_a_members_journal_is_refused_where_a_root_is_not_shared(common):
    transaction = shared(common)
    transaction.bin.chmod(0o2755)
    assert_nothing_happens(transaction, "a user that may not change ")


def test_a_strangers_journal_is_refused(common):
    transaction = of_user(common)
    for path in (transaction.unfinished.path, transaction.private):
        give(path, OTHER)
    assert_nothing_happens(transaction, "a user that may not change ")


def test_a_strangers_state_directory_is_refused(common):
    transaction = of_user(common)
    give(transaction.state, OTHER)
    assert_nothing_happens(transaction, "a user that may not change ")


def test_a_private_directory_of_another_user_is_refused(common):
    transaction = of_user(common)
    for uid in (0, OTHER):
        os.chown(transaction.private, uid, 0)
        assert_nothing_happens(transaction, "does not belong to")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_private_directory_that_others_can_write_is_refused(common, mode):
    transaction = of_user(common)
    transaction.private.chmod(mode)
    assert_nothing_happens(transaction, "does not belong to")


# Journals that a user writes and root reads.


def crafted(common: Path, victim: Path, *operations: Operation) -> StagedTransaction:
    """A user's journal with one root more, number 2, which is root's."""
    transaction = StagedTransaction(common)
    put(transaction.private / "trash" / "0", "evil")
    put(transaction.private / "stage" / "directory", {"file": "evil", MARKER: ""})
    written = transaction.journal._replace(roots=(*transaction.journal.roots, str(victim)), operations=operations)
    transaction.unfinished.path.write_bytes(journal.encode(written))
    for directory in transaction.roots:
        give(directory, USER)
    return transaction


FILE, DIRECTORY = Seen(stat.S_IFREG | 0o644, 4, 0), Seen(stat.S_IFDIR | 0o755, 0, 0)
ATTACKS: dict[str, Callable[[Path], Operation]] = {
    "put a file somewhere": lambda victim: Operation(Kind.REMOVE, 2, "new", 0, "", "0", FILE),
    "put a file below a directory": lambda victim: Operation(Kind.REMOVE, 2, "directory/new", 0, "", "0", FILE),
    "delete a file": lambda victim: Operation(Kind.NEW, 2, "file", 0, "gone", "", None, seen(victim / "file")),
    "replace a file": lambda victim: Operation(Kind.FILE, 2, "file", 0, "gone", "0", FILE, seen(victim / "file")),
    "swap a file": lambda victim: Operation(Kind.SWAP, 2, "file", 0, "gone", "0", FILE, seen(victim / "file")),
    "set a mode": lambda victim: Operation(
        Kind.MODE, 2, "directory", old=Seen(stat.S_IFDIR | 0o777, 0, 0), new=seen(victim / "directory")
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_root_does_nothing_for_a_user_beyond_the_rights_of_that_user(common, victim, attack):
    operation = attack(victim)
    if operation.trash:
        operation = operation._replace(old=operation.old)
    transaction = crafted(common, victim, operation)
    if operation.trash:
        operation = operation._replace(old=seen(transaction.private / "trash" / "0"))
        transaction = recrafted(transaction, victim, operation)
    assert_nothing_happens(transaction, "is not for `user 54321` to change", victim)


def recrafted(transaction: StagedTransaction, victim: Path, operation: Operation) -> StagedTransaction:
    written = transaction.journal._replace(roots=(*transaction.journal.roots, str(victim)), operations=(operation,))
    transaction.unfinished.path.write_bytes(journal.encode(written))
    return transaction


def test_an_exchange_needs_a_marker_that_only_the_directorys_people_can_have_made(common, victim):
    operation = Operation(Kind.EXCHANGE, 2, "directory", 0, "directory", "", DIRECTORY, DIRECTORY)
    transaction = crafted(common, victim, operation)
    (transaction.private / "stage" / "directory" / MARKER).unlink()
    assert_nothing_happens(transaction, "was changed by another program", victim)
    (victim / "directory" / MARKER).touch()
    assert_nothing_happens(transaction, "is not for `user 54321` to change", victim)


def test_a_directory_of_roots_below_a_users_own_is_not_moved(common, victim):
    """The user may rename it, but not move it into another directory, where it would be deleted."""
    transaction = StagedTransaction(common)
    transaction.add(Kind.NEW, "roots", None, {"file": "precious"})
    transaction.write_journal()
    transaction.do()
    for directory in transaction.roots:
        give(directory, USER)
    give(transaction.home / "roots", 0)
    assert_nothing_happens(transaction, "is not for `user 54321` to change")


def test_the_mode_of_a_directory_of_roots_below_a_users_own_is_not_set(common):
    transaction = StagedTransaction(common)
    put(transaction.home / "roots", {})
    transaction.add_mode("roots", 0o777, 0o755)
    transaction.write_journal()
    for directory in transaction.roots:
        give(directory, USER)
    give(transaction.home / "roots", 0)
    assert_nothing_happens(transaction, "is not for `user 54321` to change")


def test_a_users_part_in_another_ones_directory_is_refused(common, victim):
    """Neither what lies there is moved, nor is it deleted afterwards."""
    private = victim / ".safe-pip" / IDENTIFIER
    put(private, {"stage": {}, "trash": {"0": "precious"}})
    transaction = crafted(common, victim)
    operation = Operation(Kind.REMOVE, 0, "stolen", 1, "", "0", seen(private / "trash" / "0"))
    written = transaction.journal._replace(parts=(*transaction.journal.parts, str(private)), operations=(operation,))
    transaction.unfinished.path.write_bytes(journal.encode(written))
    assert_nothing_happens(transaction, "does not belong to", victim)


def test_a_part_behind_a_symbolic_link_is_refused(common, victim):
    private = victim / ".safe-pip" / IDENTIFIER
    put(private, {"stage": {}, "trash": {}})
    link = common / "lib" / "link"
    transaction = crafted(common, victim)
    link.symlink_to(victim)
    written = transaction.journal._replace(parts=(*transaction.journal.parts, str(link / ".safe-pip" / IDENTIFIER)))
    transaction.unfinished.path.write_bytes(journal.encode(written))
    assert_nothing_happens(transaction, "is no directory any more", victim)


@pytest.mark.parametrize("path", ["../victim/file", "/etc/passwd", "pkg/../../victim/file", ""])
def test_a_journal_with_paths_that_lead_out_of_its_roots_is_damaged(common, victim, path, monkeypatch):
    transaction = crafted(common, victim)
    operation = Operation(Kind.NEW, 0, path, 0, "gone", "", None, seen(victim / "file"))
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_check", lambda journal: None)
        content = journal.encode(transaction.journal._replace(operations=(operation,)))
    transaction.unfinished.path.write_bytes(content)
    assert_nothing_happens(transaction, "damaged", victim)


def test_a_symbolic_link_on_the_way_leads_root_nowhere(common, victim):
    transaction = crafted(common, victim)
    (transaction.home / "link").symlink_to(victim)
    operations = [
        Operation(Kind.NEW, 0, "link/file", 0, "gone", "", None, seen(victim / "file")),
        Operation(Kind.REMOVE, 0, "link/new", 0, "", "0", seen(transaction.private / "trash" / "0")),
    ]
    for operation in operations:
        written = transaction.journal._replace(operations=(operation,))
        transaction.unfinished.path.write_bytes(journal.encode(written))
        assert_nothing_happens(transaction, "changed by another program", victim)


def test_a_root_that_is_reached_through_a_symbolic_link_is_refused(common, victim):
    transaction = crafted(common, victim)
    (transaction.home / "link").symlink_to(victim)
    operation = Operation(Kind.NEW, 0, "file", 0, "gone", "", None, seen(victim / "file"))
    written = transaction.journal._replace(roots=(str(transaction.home / "link"),), operations=(operation,))
    transaction.unfinished.path.write_bytes(journal.encode(written))
    assert_nothing_happens(transaction, "is no directory any more", victim)


def test_what_a_user_puts_into_a_private_directory_is_deleted_and_what_it_leads_to_is_not(common, victim):
    transaction = of_user(common)
    (transaction.private / "stage" / "link").symlink_to(victim)
    (transaction.private / "trash" / "link").symlink_to(victim / "file")
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.leftovers() == []
    assert (victim / "file").read_text() == "precious"


def test_a_mark_makes_root_look_at_a_journal_and_do_no_more(common, victim):
    """A user who can make a mark in a shared directory can name any home in it."""
    operation = Operation(Kind.NEW, 2, "file", 0, "gone", "", None, seen(victim / "file"))
    transaction = crafted(common, victim, operation)
    (victim / ".safe-pip").mkdir()
    (victim / ".safe-pip" / f"{IDENTIFIER}.home").write_text(f"{transaction.home}\n")
    assert recovery.find(victim) == (transaction.unfinished,)
    assert_nothing_happens(transaction, "is not for `user 54321` to change", victim)


def test_a_mark_of_another_user_is_not_removed_for_a_journal(common, victim):
    (victim / ".safe-pip").mkdir()
    mark = victim / ".safe-pip" / f"{IDENTIFIER}.home"
    mark.write_text(f"{victim}\n")
    transaction = crafted(common, victim)
    written = transaction.journal._replace(trees=(*transaction.journal.trees, str(victim)))
    transaction.unfinished.path.write_bytes(journal.encode(written))
    recovery.roll_back(transaction.unfinished).delete()
    assert mark.exists()


@pytest.mark.parametrize("where", ["new", "directory/new"])
def test_root_restores_no_file_where_the_user_has_no_rights(common, victim, where):
    transaction = crafted(common, victim)
    put(transaction.private / "trash" / "1", {"new": "evil", "directory": {"new": "evil"}})
    give(transaction.private, USER)
    operation = Operation(Kind.REMOVE, 2, "directory", 0, "", "1", DIRECTORY)
    if where == "new":
        put(transaction.home / "own", {})
        os.rename(victim / "directory", victim / "aside")
    written = transaction.journal._replace(roots=(*transaction.journal.roots, str(victim)), operations=(operation,))
    transaction.unfinished.path.write_bytes(journal.encode(written))
    transaction.commit()
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match="is not for `user 54321` to change"):
        recovery.finish(transaction.committed).delete()
    assert changes == []


def test_root_puts_nothing_back_into_a_directory_of_roots_below_a_users_own(common):
    transaction = StagedTransaction(common)
    transaction.add(Kind.REMOVE, "pkg", {"late": "evil"})
    transaction.write_journal()
    transaction.do()
    put(transaction.home / "pkg", {})
    for directory in transaction.roots:
        give(directory, USER)
    give(transaction.home / "pkg", 0)
    transaction.commit()
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match="is not for `user 54321` to change"):
        recovery.finish(transaction.committed).delete()
    assert changes == []


def test_root_removes_no_marker_where_the_user_has_no_rights(common, victim):
    (victim / "directory" / MARKER).touch()
    operation = Operation(Kind.NEW, 2, "directory", 0, "gone", "", None, DIRECTORY)
    transaction = crafted(common, victim, operation)
    transaction.commit()
    with disk.record() as changes, pytest.raises(RecoveryNeeded):
        recovery.finish(transaction.committed).delete()
    assert changes == []
    assert (victim / "directory" / MARKER).exists()


def test_directories_that_root_makes_for_an_unplanned_file_keep_their_owner(common):
    transaction = StagedTransaction(common)
    transaction.add(Kind.REMOVE, "pkg", {"a.py": "1", "sub": {"late": "late"}}, known=("a.py",))
    transaction.write_journal()
    for directory in transaction.roots:
        give(directory, USER)
    transaction.do()
    transaction.commit()
    recovery.finish(transaction.committed).delete()
    for path in ("pkg", "pkg/sub", "pkg/sub/late"):
        assert (transaction.home / path).stat().st_uid == USER


def test_a_user_may_undo_where_directories_had_to_be_made_writable(common):
    """As an unprivileged user: read-only directories are exchanged, and it is undone, wherever it stops."""
    k, happened = 0, True
    while happened:
        directory = common / str(k)
        directory.mkdir()
        transaction = StagedTransaction(directory)
        transaction.add_mode("x", 0o555, 0o755)
        transaction.add(Kind.EXCHANGE, "x", {"a.py": "old"}, {"a.py": "newer"})
        transaction.add_mode("x", 0o775, 0o555)
        (transaction.private / "stage" / transaction.operations[1].staged).chmod(0o775)
        (transaction.home / "x").chmod(0o555)
        transaction.write_journal()
        give(directory, USER)
        happened = False
        with user(USER):
            try:
                with disk.crash_at(k):
                    transaction.do()
            except disk.Crashed:
                happened = True
            recovery.roll_back(transaction.unfinished).delete()
        assert (transaction.home / "x").stat().st_mode & 0o777 == 0o555
        assert transaction.content()["0"] == {"x": {"a.py": "old"}}
        k += 1
    assert k == 4
    assert fs.watch.observer is None
