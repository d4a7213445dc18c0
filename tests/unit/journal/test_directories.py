"""Which journals are acted on, and what they may ask for, by what fstat(2) tells."""

import contextlib
import errno
import os
import stat
import sys

import pytest

from safe_pip.fs import space
from safe_pip.journal.directories import OpenDirectories, Writer, is_accepted
from safe_pip.merge.plan import Kind
from tests.support.faults.transaction import StagedTransaction

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists")

ME, ROOT, OWNER, MEMBER, STRANGER = 1000, 0, 2000, 3000, 4000
GROUP, OTHER_GROUP = 50, 60


@pytest.fixture(autouse=True)
def _me(monkeypatch, request):
    if "tmp_path" not in request.fixturenames:
        monkeypatch.setattr(os, "geteuid", lambda: ME)


def status(uid: int, mode: int = 0o755, gid: int = GROUP, *, kind: int = stat.S_IFDIR) -> os.stat_result:
    return os.stat_result((kind | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def file(uid: int, gid: int = GROUP) -> os.stat_result:
    return status(uid, 0o644, gid, kind=stat.S_IFREG)


SHARED = status(OWNER, 0o2775)


@pytest.mark.parametrize("uid", [ME, ROOT, OWNER])
def test_accepted_are_this_user_root_and_the_environments_owner(uid):
    assert Writer.of(file(uid), status(OWNER), [status(STRANGER)]) is not None


@pytest.mark.parametrize("uid", [MEMBER, STRANGER])
def test_no_other_user_is_accepted_if_no_group_shares_the_environment(uid):
    assert Writer.of(file(uid), status(OWNER), []) is None


def test_a_member_is_accepted_where_the_group_may_write_the_tree_and_all_roots():
    assert Writer.of(file(MEMBER), SHARED, [SHARED, status(ROOT, 0o775)]) == Writer(MEMBER, GROUP, False)


@pytest.mark.parametrize(
    ("made", "home", "root"),
    [
        (file(MEMBER, OTHER_GROUP), SHARED, SHARED),
        (file(MEMBER), status(OWNER, 0o2755), SHARED),
        (file(MEMBER), status(OWNER, 0o2777), SHARED),
        (file(MEMBER), SHARED, status(OWNER, 0o755)),
        (file(MEMBER), SHARED, status(OWNER, 0o777)),
        (file(MEMBER), SHARED, status(OWNER, 0o775, OTHER_GROUP)),
    ],
    ids=[
        "another group",
        "a tree not shared",
        "a tree for all",
        "a root not shared",
        "a root for all",
        "another's root",
    ],
)
def test_a_member_is_not_accepted_anywhere_else(made, home, root):
    assert Writer.of(made, home, [SHARED, root]) is None


def test_only_this_user_and_root_are_believed_without_a_look():
    trusted = {uid: Writer.of(file(uid), SHARED, [SHARED]).is_trusted for uid in (ME, ROOT, OWNER, MEMBER)}
    assert trusted == {ME: True, ROOT: True, OWNER: False, MEMBER: False}


OWNERS = Writer(OWNER, None, False)
MEMBERS = Writer(MEMBER, GROUP, False)
STICKY = stat.S_ISVTX


@pytest.mark.parametrize(
    ("writer", "directory", "entry", "expected"),
    [
        (OWNERS, status(OWNER), None, True),
        (OWNERS, status(ROOT), None, False),
        (OWNERS, status(ROOT, 0o777), None, False),
        (OWNERS, status(ROOT, 0o775), None, False),
        (OWNERS, status(OWNER), file(ROOT), True),
        (OWNERS, status(OWNER), status(OWNER), True),
        (OWNERS, status(OWNER), status(ROOT), False),
        (OWNERS, status(OWNER, 0o1755), file(ROOT), True),
        (MEMBERS, status(OWNER, 0o775), file(OWNER), True),
        (MEMBERS, status(OWNER, 0o755), file(OWNER), False),
        (MEMBERS, status(OWNER, 0o775, OTHER_GROUP), file(OWNER), False),
        (MEMBERS, status(OWNER, 0o775), status(OWNER, 0o775), True),
        (MEMBERS, status(OWNER, 0o775), status(OWNER, 0o755), False),
        (MEMBERS, status(OWNER, 0o775 | STICKY), file(OWNER), False),
        (MEMBERS, status(OWNER, 0o775 | STICKY), file(MEMBER), True),
        (Writer(ROOT, None, True), status(OWNER), status(OWNER), True),
    ],
)
def test_a_writer_could_change_what_the_kernel_would_have_let_him(writer, directory, entry, expected):
    assert writer.could_change(directory, entry) is expected


def test_only_its_owner_changes_the_mode_of_a_directory():
    assert OWNERS.could_set_mode(status(OWNER))
    assert not MEMBERS.could_set_mode(status(OWNER, 0o775))


@pytest.mark.parametrize(
    ("writer", "private", "expected"),
    [
        (OWNERS, status(OWNER, 0o700), True),
        (OWNERS, status(ROOT, 0o700), False),
        (OWNERS, status(ME, 0o700), False),
        (OWNERS, status(OWNER, 0o770), False),
        (OWNERS, status(OWNER, 0o702), False),
        (MEMBERS, status(MEMBER, 0o770), True),
        (MEMBERS, status(MEMBER, 0o770, OTHER_GROUP), False),
        (MEMBERS, status(OWNER, 0o770), False),
        (Writer(ROOT, None, True), status(ROOT, 0o770), False),
        (Writer(ROOT, None, True), status(OWNER, 0o700), False),
    ],
)
def test_a_private_directory_belongs_to_its_writer_and_no_other_user_writes_in_it(writer, private, expected):
    assert writer.made(private) is expected


def test_a_state_directory_is_made_by_a_user_with_rights_in_its_tree():
    assert [is_accepted(status(uid), SHARED) for uid in (ME, ROOT, OWNER, MEMBER)] == [True] * 4
    assert not is_accepted(status(STRANGER), status(OWNER))
    assert not is_accepted(status(STRANGER, 0o755, OTHER_GROUP), SHARED)


@pytest.mark.parametrize("scarce", [False, True])
def test_directories_stay_open_unless_descriptors_are_scarce(tmp_path, monkeypatch, scarce):
    if scarce:
        monkeypatch.setattr(space, "descriptor_limit", lambda: 0)
    transaction = StagedTransaction(tmp_path)
    for number in range(5):
        transaction.add(Kind.FILE, f"d{number}/old", "old", "new")
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with OpenDirectories(transaction.journal) as directories:
        for operation in transaction.operations:
            live, trash, staged = (
                directories.live(operation),
                directories.trash(operation),
                directories.staged(operation),
            )
            assert [each.status() is not None for each in (live, trash, staged)] == [True, False, True]
        if sys.platform == "linux":
            assert (len(os.listdir("/proc/self/fd")) - before <= 4) is scarce


@pytest.mark.parametrize("name", ["lib", "lib/.safe-pip", "lib/.safe-pip/0123456789abcdef/stage"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_directory_that_was_closed_meanwhile_is_not_taken_for_another_one(tmp_path, monkeypatch, name, is_linked):
    monkeypatch.setattr(space, "descriptor_limit", lambda: 0)
    transaction = StagedTransaction(tmp_path, "0123456789abcdef")
    transaction.add(Kind.FILE, "old", "old", "new")
    transaction.add(Kind.FILE, "script", "old", "new", root=1)
    with OpenDirectories(transaction.journal) as directories:
        directories.trash(transaction.operations[0])
        directories.base(str(transaction.bin))
        directories.private("x")
        moved = tmp_path / name
        moved.rename(tmp_path / "aside")
        moved.symlink_to(tmp_path / "aside") if is_linked else moved.mkdir()
        for other in {str(transaction.bin), str(transaction.home), f"{transaction.private}/stage"} - {str(moved)}:
            with contextlib.suppress(OSError):
                directories.base(other)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            directories.base(str(moved))
