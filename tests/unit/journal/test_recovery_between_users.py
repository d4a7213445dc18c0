"""Root, owners, members of a group and strangers: who undoes whose transactions, and what nobody can make root do."""

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
from tests.support.faults.transaction import IDENTIFIER, Scene, put, seen

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="needs root, to become other users"
)

USER, OTHER, GROUP = 54321, 54322, 54323
MARKER = f".safe-pip-{IDENTIFIER}"


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that everybody can reach."""
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


def upgrade(root: Path) -> Scene:
    scene = Scene(root)
    scene.add(Kind.EXCHANGE, "pkg", {"a.py": "old"}, {"a.py": "newer"})
    scene.add(Kind.FILE, "tool", "old", "newer", root=1)
    scene.add(Kind.REMOVE, "gone.py", "old")
    return scene


def of_user(root: Path, uid: int = USER) -> Scene:
    """An upgrade of a user's own environment that was killed."""
    scene = upgrade(root)
    scene.write_journal()
    for directory in scene.roots:
        give(directory, uid)
    scene.do()
    return scene


def assert_nothing_happens(scene: Scene, match: str, *kept: Path) -> RecoveryNeeded:
    """Neither in the environment nor in what is to be `kept`."""
    paths = sorted(path for root in (*scene.roots, *kept) for path in (root, *root.rglob("*")))
    before = [(path, path.lstat().st_mode, path.lstat().st_ino) for path in paths]
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match=match) as caught:
        recovery.roll_back(scene.unfinished)
    assert changes == []
    paths = sorted(path for root in (*scene.roots, *kept) for path in (root, *root.rglob("*")))
    assert [(path, path.lstat().st_mode, path.lstat().st_ino) for path in paths] == before
    return caught.value


OLD_TREE = {"0": {"pkg": {"a.py": "old"}, "gone.py": "old"}, "1": {"tool": "old"}}


def test_root_undoes_what_a_user_left_in_his_own_environment(common):
    scene = of_user(common)
    recovery.roll_back(scene.unfinished)
    assert scene.content() == OLD_TREE
    assert scene.leftovers() == []
    assert {path.lstat().st_uid for root in scene.roots for path in (root, *root.rglob("*"))} == {USER}


def test_a_user_undoes_what_he_left_himself(common):
    scene = of_user(common)
    with user(USER):
        recovery.roll_back(scene.unfinished)
    assert scene.content() == OLD_TREE
    assert scene.leftovers() == []


def test_a_reader_who_may_not_undo_it_is_told_who_may(common):
    scene = upgrade(common)
    scene.write_journal()
    scene.do()
    with user(USER):
        assert recovery.find(scene.home) == (scene.unfinished,)
        error = assert_nothing_happens(scene, "is not this user's to change")
    assert error.exit_status == 76
    assert error.state is State.UNFINISHED
    assert "Run it as `root`" in str(error)
    assert "\n" not in str(error)
    recovery.roll_back(scene.unfinished)
    assert scene.content() == OLD_TREE


def test_one_directory_that_this_user_may_not_change_is_enough_to_change_nothing(common):
    scene = upgrade(common)
    scene.write_journal()
    give(scene.home, USER)
    scene.do()
    with user(USER):
        assert_nothing_happens(scene, "is not this user's to change")


def test_the_owner_of_an_environment_is_told_that_root_has_to_undo_what_root_left(common):
    scene = upgrade(common)
    scene.write_journal()
    scene.do()
    for path in (scene.home, scene.state, scene.bin):
        os.chown(path, USER, 0)
    with user(USER):
        assert "Run it as `root`" in str(assert_nothing_happens(scene, "is not this user's"))


def shared(root: Path, uid: int = USER) -> Scene:
    """An upgrade by a member of the group that shares the environment, which is another one's."""
    scene = upgrade(root)
    scene.write_journal()
    for directory in scene.roots:
        give(directory, OTHER, GROUP)
        directory.chmod(0o2775)
        (directory / ".safe-pip").chmod(0o2775)
    for path in (scene.unfinished.path, recovery.owner_file(scene.unfinished), scene.private):
        give(path, uid, GROUP)
    (scene.home / "pkg").chmod(0o2775)
    scene.private.chmod(0o2770)
    for path in scene.private.rglob("*"):
        if path.is_dir():
            path.chmod(0o2775)
    scene.do()
    return scene


@pytest.mark.parametrize("who", [0, USER, OTHER, 54324], ids=["root", "himself", "the owner", "another member"])
def test_everybody_of_the_group_undoes_what_a_member_left(common, who):
    scene = shared(common)
    with user(who, GROUP):
        recovery.roll_back(scene.unfinished)
    assert scene.content() == OLD_TREE
    assert scene.leftovers() == []


def test_a_members_journal_is_refused_where_a_root_is_not_shared(common):
    scene = shared(common)
    scene.bin.chmod(0o2755)
    assert_nothing_happens(scene, "has no say there")


def test_a_strangers_journal_is_refused(common):
    scene = of_user(common)
    for path in (scene.unfinished.path, scene.private):
        give(path, OTHER)
    assert_nothing_happens(scene, "has no say there")


def test_a_strangers_state_directory_is_refused(common):
    scene = of_user(common)
    give(scene.state, OTHER)
    assert_nothing_happens(scene, "has a say there")


def test_a_private_directory_of_another_user_is_refused(common):
    scene = of_user(common)
    for uid in (0, OTHER):
        os.chown(scene.private, uid, 0)
        assert_nothing_happens(scene, "does not belong to")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_private_directory_that_others_can_write_is_refused(common, mode):
    scene = of_user(common)
    scene.private.chmod(mode)
    assert_nothing_happens(scene, "does not belong to")


# What a user may write into his own journal, and root reads.


def crafted(common: Path, victim: Path, *operations: Operation) -> Scene:
    """A user's journal with one root more, number 2, which is root's."""
    scene = Scene(common)
    put(scene.private / "trash" / "0", "evil")
    put(scene.private / "stage" / "directory", {"file": "evil", MARKER: ""})
    written = scene.journal._replace(roots=(*scene.journal.roots, str(victim)), operations=operations)
    scene.unfinished.path.write_bytes(journal.encode(written))
    for directory in scene.roots:
        give(directory, USER)
    return scene


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
def test_root_does_nothing_for_a_user_that_he_could_not_do_himself(common, victim, attack):
    operation = attack(victim)
    if operation.trash:
        operation = operation._replace(old=operation.old)
    scene = crafted(common, victim, operation)
    if operation.trash:
        operation = operation._replace(old=seen(scene.private / "trash" / "0"))
        scene = recrafted(scene, victim, operation)
    assert_nothing_happens(scene, "is not for `user 54321` to change", victim)


def recrafted(scene: Scene, victim: Path, operation: Operation) -> Scene:
    written = scene.journal._replace(roots=(*scene.journal.roots, str(victim)), operations=(operation,))
    scene.unfinished.path.write_bytes(journal.encode(written))
    return scene


def test_an_exchange_needs_a_marker_that_only_the_directorys_people_can_have_made(common, victim):
    operation = Operation(Kind.EXCHANGE, 2, "directory", 0, "directory", "", DIRECTORY, DIRECTORY)
    scene = crafted(common, victim, operation)
    (scene.private / "stage" / "directory" / MARKER).unlink()
    assert_nothing_happens(scene, "was changed by another program", victim)
    (victim / "directory" / MARKER).touch()
    assert_nothing_happens(scene, "is not for `user 54321` to change", victim)


def test_a_directory_of_roots_below_a_users_own_is_not_moved(common, victim):
    """He may rename it, but not move it into another directory, where it would be deleted."""
    scene = Scene(common)
    scene.add(Kind.NEW, "roots", None, {"file": "precious"})
    scene.write_journal()
    scene.do()
    for directory in scene.roots:
        give(directory, USER)
    give(scene.home / "roots", 0)
    assert_nothing_happens(scene, "is not for `user 54321` to change")


def test_the_mode_of_a_directory_of_roots_below_a_users_own_is_not_set(common):
    scene = Scene(common)
    put(scene.home / "roots", {})
    scene.add_mode("roots", 0o777, 0o755)
    scene.write_journal()
    for directory in scene.roots:
        give(directory, USER)
    give(scene.home / "roots", 0)
    assert_nothing_happens(scene, "is not for `user 54321` to change")


def test_a_users_part_in_another_ones_directory_is_refused(common, victim):
    """Neither what lies there is moved, nor is it deleted afterwards."""
    private = victim / ".safe-pip" / IDENTIFIER
    put(private, {"stage": {}, "trash": {"0": "precious"}})
    scene = crafted(common, victim)
    operation = Operation(Kind.REMOVE, 0, "stolen", 1, "", "0", seen(private / "trash" / "0"))
    written = scene.journal._replace(parts=(*scene.journal.parts, str(private)), operations=(operation,))
    scene.unfinished.path.write_bytes(journal.encode(written))
    assert_nothing_happens(scene, "does not belong to", victim)


def test_a_part_behind_a_symbolic_link_is_refused(common, victim):
    private = victim / ".safe-pip" / IDENTIFIER
    put(private, {"stage": {}, "trash": {}})
    link = common / "lib" / "link"
    scene = crafted(common, victim)
    link.symlink_to(victim)
    written = scene.journal._replace(parts=(*scene.journal.parts, str(link / ".safe-pip" / IDENTIFIER)))
    scene.unfinished.path.write_bytes(journal.encode(written))
    assert_nothing_happens(scene, "is no directory any more", victim)


@pytest.mark.parametrize("path", ["../victim/file", "/etc/passwd", "pkg/../../victim/file", ""])
def test_a_journal_with_paths_that_lead_out_of_its_roots_is_damaged(common, victim, path, monkeypatch):
    scene = crafted(common, victim)
    operation = Operation(Kind.NEW, 0, path, 0, "gone", "", None, seen(victim / "file"))
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_check", lambda journal: None)
        content = journal.encode(scene.journal._replace(operations=(operation,)))
    scene.unfinished.path.write_bytes(content)
    assert_nothing_happens(scene, "damaged", victim)


def test_a_symbolic_link_on_the_way_leads_root_nowhere(common, victim):
    scene = crafted(common, victim)
    (scene.home / "link").symlink_to(victim)
    operations = [
        Operation(Kind.NEW, 0, "link/file", 0, "gone", "", None, seen(victim / "file")),
        Operation(Kind.REMOVE, 0, "link/new", 0, "", "0", seen(scene.private / "trash" / "0")),
    ]
    for operation in operations:
        written = scene.journal._replace(operations=(operation,))
        scene.unfinished.path.write_bytes(journal.encode(written))
        assert_nothing_happens(scene, "changed by another program", victim)


def test_a_root_that_is_reached_through_a_symbolic_link_is_refused(common, victim):
    scene = crafted(common, victim)
    (scene.home / "link").symlink_to(victim)
    operation = Operation(Kind.NEW, 0, "file", 0, "gone", "", None, seen(victim / "file"))
    written = scene.journal._replace(roots=(str(scene.home / "link"),), operations=(operation,))
    scene.unfinished.path.write_bytes(journal.encode(written))
    assert_nothing_happens(scene, "is no directory any more", victim)


def test_what_a_user_puts_into_a_private_directory_is_deleted_and_what_it_leads_to_is_not(common, victim):
    scene = of_user(common)
    (scene.private / "stage" / "link").symlink_to(victim)
    (scene.private / "trash" / "link").symlink_to(victim / "file")
    recovery.roll_back(scene.unfinished)
    assert scene.leftovers() == []
    assert (victim / "file").read_text() == "precious"


def test_a_mark_makes_root_look_at_a_journal_and_do_no_more(common, victim):
    """Whoever may make a mark in a shared directory can name his own home in it."""
    operation = Operation(Kind.NEW, 2, "file", 0, "gone", "", None, seen(victim / "file"))
    scene = crafted(common, victim, operation)
    (victim / ".safe-pip").mkdir()
    (victim / ".safe-pip" / f"{IDENTIFIER}.home").write_text(f"{scene.home}\n")
    assert recovery.find(victim) == (scene.unfinished,)
    assert_nothing_happens(scene, "is not for `user 54321` to change", victim)


def test_a_mark_of_another_user_is_not_removed_for_a_journal(common, victim):
    (victim / ".safe-pip").mkdir()
    mark = victim / ".safe-pip" / f"{IDENTIFIER}.home"
    mark.write_text(f"{victim}\n")
    scene = crafted(common, victim)
    written = scene.journal._replace(trees=(*scene.journal.trees, str(victim)))
    scene.unfinished.path.write_bytes(journal.encode(written))
    recovery.roll_back(scene.unfinished)
    assert mark.exists()


@pytest.mark.parametrize("where", ["new", "directory/new"])
def test_root_puts_nothing_back_for_a_user_where_he_could_not(common, victim, where):
    scene = crafted(common, victim)
    put(scene.private / "trash" / "1", {"new": "evil", "directory": {"new": "evil"}})
    give(scene.private, USER)
    operation = Operation(Kind.REMOVE, 2, "directory", 0, "", "1", DIRECTORY)
    if where == "new":
        put(scene.home / "own", {})
        os.rename(victim / "directory", victim / "aside")
    written = scene.journal._replace(roots=(*scene.journal.roots, str(victim)), operations=(operation,))
    scene.unfinished.path.write_bytes(journal.encode(written))
    scene.commit()
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match="is not for `user 54321` to change"):
        recovery.finish(scene.committed)
    assert changes == []


def test_root_puts_nothing_back_into_a_directory_of_roots_below_a_users_own(common):
    scene = Scene(common)
    scene.add(Kind.REMOVE, "pkg", {"late": "evil"})
    scene.write_journal()
    scene.do()
    put(scene.home / "pkg", {})
    for directory in scene.roots:
        give(directory, USER)
    give(scene.home / "pkg", 0)
    scene.commit()
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match="is not for `user 54321` to change"):
        recovery.finish(scene.committed)
    assert changes == []


def test_root_takes_no_marker_for_a_user_from_where_he_could_not(common, victim):
    (victim / "directory" / MARKER).touch()
    operation = Operation(Kind.NEW, 2, "directory", 0, "gone", "", None, DIRECTORY)
    scene = crafted(common, victim, operation)
    scene.commit()
    with disk.record() as changes, pytest.raises(RecoveryNeeded):
        recovery.finish(scene.committed)
    assert changes == []
    assert (victim / "directory" / MARKER).exists()


def test_directories_that_root_makes_for_a_late_comer_belong_to_whom_they_did(common):
    scene = Scene(common)
    scene.add(Kind.REMOVE, "pkg", {"a.py": "1", "sub": {"late": "late"}}, known=("a.py",))
    scene.write_journal()
    for directory in scene.roots:
        give(directory, USER)
    scene.do()
    scene.commit()
    recovery.finish(scene.committed)
    for path in ("pkg", "pkg/sub", "pkg/sub/late"):
        assert (scene.home / path).stat().st_uid == USER


def test_a_user_may_undo_where_directories_had_to_be_made_writable(common):
    """As an unprivileged user: read-only directories are exchanged, and it is undone, wherever it stops."""
    k, happened = 0, True
    while happened:
        directory = common / str(k)
        directory.mkdir()
        scene = Scene(directory)
        scene.add_mode("x", 0o555, 0o755)
        scene.add(Kind.EXCHANGE, "x", {"a.py": "old"}, {"a.py": "newer"})
        scene.add_mode("x", 0o775, 0o555)
        (scene.private / "stage" / scene.operations[1].staged).chmod(0o775)
        (scene.home / "x").chmod(0o555)
        scene.write_journal()
        give(directory, USER)
        happened = False
        with user(USER):
            try:
                with disk.crash_at(k):
                    scene.do()
            except disk.Crashed:
                happened = True
            recovery.roll_back(scene.unfinished)
        assert (scene.home / "x").stat().st_mode & 0o777 == 0o555
        assert scene.content()["0"] == {"x": {"a.py": "old"}}
        k += 1
    assert k == 4
    assert fs.watch.observer is None
