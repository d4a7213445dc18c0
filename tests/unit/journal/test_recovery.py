"""Recovery on a real tree: everything that a crash can leave is undone, nothing else is touched."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_pip.errors import RecoveryNeeded, State, UnusableEnvironment
from safe_pip.journal import codec, recovery
from safe_pip.merge.plan import Kind
from tests.support.faults import disk
from tests.support.faults.chosen import step
from tests.support.faults.transaction import IDENTIFIER, Link, StagedTransaction, without_links

MARKER = f".safe-pip-{IDENTIFIER}"
OLD, NEW = {"a.py": "old", "sub": {"b.py": "old"}}, {"a.py": "newer", "c.py": "newer"}

Build = Callable[[StagedTransaction], object]
BUILDS: dict[str, Build] = {
    "a new file": lambda transaction: transaction.add(Kind.NEW, "x.py", None, "new"),
    "a new directory": lambda transaction: transaction.add(Kind.NEW, "x", None, NEW),
    "a file over a file": lambda transaction: transaction.add(Kind.FILE, "x.py", "old", "newer"),
    "a link over a file": lambda transaction: transaction.add(Kind.FILE, "x.py", "old", Link("somewhere")),
    "a file over a link": lambda transaction: transaction.add(Kind.FILE, "x.py", Link("nowhere"), "new"),
    "a file over an equal one": lambda transaction: transaction.add(Kind.FILE, "x.py", "old", "old"),
    "an exchange": lambda transaction: transaction.add(Kind.EXCHANGE, "x", OLD, NEW),
    "a directory for a directory": lambda transaction: transaction.add(Kind.SWAP, "x", OLD, NEW),
    "a directory for a file": lambda transaction: transaction.add(Kind.SWAP, "x", "old", NEW),
    "a file for a directory": lambda transaction: transaction.add(Kind.SWAP, "x", OLD, "new"),
    "a link for a directory": lambda transaction: transaction.add(Kind.SWAP, "x", OLD, Link("y")),
    "a removed file": lambda transaction: transaction.add(Kind.REMOVE, "x.py", "old"),
    "a removed directory": lambda transaction: transaction.add(Kind.REMOVE, "x", OLD),
    "a file in a shared directory": lambda transaction: transaction.add(Kind.FILE, "x", "old", "newer", root=1),
}
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def exchange_of_read_only_directories(transaction: StagedTransaction) -> None:
    """Directories that may not be written are made writable, exchanged, and get their modes back."""
    transaction.add_mode("x", 0o555, 0o755)
    transaction.add(Kind.EXCHANGE, "x", OLD, NEW)
    transaction.add_mode("x", 0o775, 0o555)
    (transaction.private / "stage" / transaction.operations[1].staged).chmod(0o775)
    (transaction.home / "x").chmod(0o555)


def several(transaction: StagedTransaction) -> None:
    """An upgrade as it is: payload in, new metadata in, old metadata out, old payload out."""
    transaction.add(Kind.EXCHANGE, "pkg", OLD, NEW)
    transaction.add(Kind.FILE, "mod.py", "old", "newer")
    transaction.add(Kind.FILE, "tool", "old", "newer", root=1)
    transaction.add(Kind.NEW, "sub/dir/new.py", None, "new")
    transaction.add(Kind.NEW, "x-2.dist-info", None, {"METADATA": "2", "RECORD": "2"})
    transaction.add(Kind.REMOVE, "x-1.dist-info", {"METADATA": "1", "RECORD": "1"})
    transaction.add(Kind.REMOVE, "extra", {"old.py": "old"})
    (transaction.home / "sub" / "dir").mkdir(parents=True)


def prepared(root: Path, build: Build) -> StagedTransaction:
    transaction = StagedTransaction(root)
    build(transaction)
    transaction.write_journal()
    return transaction


def modes(transaction: StagedTransaction) -> dict[str, int]:
    return {
        str(path): path.lstat().st_mode for root in transaction.roots for path in root.rglob("*") if not in_state(path)
    }


@pytest.mark.parametrize("unit", [1, 100, 10**3, 10**6, 10**9], ids=lambda unit: f"{unit} ns")
@pytest.mark.parametrize("build", [several, *BUILDS.values()], ids=["several", *BUILDS])
def test_a_restored_archive_that_has_lost_fractions_of_times_is_rolled_back(
    tmp_path: Path, build: Build, unit: int
) -> None:
    transaction = prepared(tmp_path, build)
    before = transaction.content()
    transaction.do()
    for path in [*tmp_path.rglob("*")]:
        status = path.lstat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns // unit * unit), follow_symlinks=False)
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == before


def settled(place: Path, k: int, moved: str, *, is_committed: bool) -> tuple[bool, object]:
    """Whether the change was killed before step `k`, and what is there once it is settled after a move."""
    root = place / "above" / "environment"
    root.mkdir(parents=True)
    transaction = prepared(root, several)
    is_killed = crashed(transaction.do, 10**9 if is_committed else k)
    if is_committed:
        transaction.commit()
    if moved:
        old = {"environment": root, "home": transaction.home, "above": root.parent}[moved]
        new = old.rename(old.with_name("moved"))
        transaction.home, transaction.bin = (
            new / path.relative_to(old) if path.is_relative_to(old) else path for path in transaction.roots
        )
    if is_committed:
        recovery.finish(transaction.committed._replace(home=transaction.home)).delete()
    else:
        (found,) = recovery.find(transaction.home)
        recovery.roll_back(found).delete()
    left = [*transaction.home.glob(".safe-pip/0*"), *transaction.bin.glob(".safe-pip")]
    assert left == []
    return is_killed, transaction.content()


@pytest.mark.parametrize("is_committed", [False, True], ids=["undone", "finished"])
@pytest.mark.parametrize("moved", ["environment", "home", "above"])
def test_an_unfinished_change_is_settled_where_its_environment_was_moved_to(
    place: Callable[[], Path], moved: str, is_committed: bool
) -> None:
    k, is_killed = 0, True
    while is_killed:
        is_killed, found = settled(place(), k, moved, is_committed=is_committed)
        assert found == settled(place(), k, "", is_committed=is_committed)[1], k
        k += 1
    assert is_committed or k > 7


def test_a_copied_environment_is_not_taken_for_a_moved_one(place: Callable[[], Path]) -> None:
    """What lies outside of it would be undone twice."""
    transaction = prepared(place(), several)
    transaction.do()
    copy = transaction.home.parent.with_name("copy")
    shutil.copytree(transaction.home.parent, copy, symlinks=True)
    (found,) = recovery.find(copy / "lib")
    with pytest.raises(RecoveryNeeded, match="belongs to"):
        recovery.roll_back(found).delete()


def in_state(path: Path) -> bool:
    return ".safe-pip" in path.parts


def crashed(act: Callable[[], object], k: int, *, torn: bool = False) -> bool:
    """Run until just before change `k`; False if it came to its end."""
    try:
        with disk.crash_at(k, torn=torn):
            act()
    except disk.Crashed:
        return True
    return False


def every_crash(
    place: Callable[[], Path],
    build: Build,
    *,
    rounds: int,
    do: Callable[[StagedTransaction], None] = StagedTransaction.do,
    torn: bool = False,
) -> int:
    """Crash everywhere in doing, then in undoing, `rounds` times; on return how many runs that were.

    If SAFE_PIP_TEST_QUICK is set, the second of these rounds is tried at every sixth of its changes only.
    """
    runs = 0

    def run(points: tuple[int, ...]) -> bool:
        """Whether the last crash of `points` happened; the tree is as it was in any case, in the end."""
        nonlocal runs
        runs += 1
        transaction = prepared(place(), build)
        before = transaction.content(), modes(transaction)
        happened = crashed(lambda: do(transaction), points[0], torn=torn)
        for point in points[1:]:
            if not transaction.unfinished.path.exists():
                return False
            happened = crashed(lambda: recovery.roll_back(transaction.unfinished).delete(), point)
        if transaction.unfinished.path.exists():
            recovery.roll_back(transaction.unfinished).delete()
            assert transaction.leftovers() == []
        assert (transaction.content(), modes(transaction)) == before, points
        return happened

    def deeper(points: tuple[int, ...]) -> None:
        if len(points) <= rounds:
            k, further = step(6) if len(points) > 1 and os.environ.get("SAFE_PIP_TEST_QUICK") else (0, 1)
            while run((*points, k)):
                deeper((*points, k))
                k += further
            deeper((*points, 10**9)) if not points else None

    deeper(())
    return runs


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Path]:
    """A new directory at each call."""
    numbers = iter(range(10**9))

    def make() -> Path:
        path = tmp_path / str(next(numbers))
        path.mkdir()
        return path

    return make


@every_build
@pytest.mark.slow
def test_every_crash_of_an_operation_of_its_undoing_and_of_undoing_that_gives_the_old_tree(place, build):
    assert every_crash(place, build, rounds=2) > 3


@pytest.mark.parametrize("name", [name for name, build in BUILDS.items() if "over" in name])
@pytest.mark.slow
def test_every_crash_does_where_links_are_refused_and_files_are_copied(place, name):
    def do(transaction: StagedTransaction) -> None:
        with without_links():
            transaction.do()

    assert every_crash(place, BUILDS[name], rounds=2, do=do, torn=True) > 3


@pytest.mark.slow
def test_every_crash_does_where_directories_have_to_be_made_writable(place):
    assert every_crash(place, exchange_of_read_only_directories, rounds=2) > 3


@pytest.mark.slow
def test_every_crash_of_an_upgrade_and_of_its_undoing_gives_the_old_tree(place):
    assert every_crash(place, several, rounds=1) > 100


@every_build
def test_an_error_at_any_change_of_the_undoing_keeps_what_is_needed_for_the_next(place, build):
    k, is_over = 0, False
    while not is_over:
        transaction = prepared(place(), build)
        before = transaction.content()
        transaction.do()
        with disk.error_at(k, errno.EIO, forever=True) as trial:
            error = None
            try:
                recovery.roll_back(transaction.unfinished).delete()
            except RecoveryNeeded as raised:
                error = raised
        if error is not None:
            assert (error.state, error.exit_status) == (State.UNFINISHED, 76)
            recovery.roll_back(transaction.unfinished).delete()
        assert not transaction.unfinished.path.exists()
        assert transaction.content() == before
        is_over, k = trial.struck is None, k + 1
    assert k > 2


def test_after_the_undoing_nothing_is_left(place):
    transaction = prepared(place(), several)
    transaction.do()
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.leftovers() == []
    with pytest.raises(FileNotFoundError):
        recovery.roll_back(transaction.unfinished).delete()


def test_what_was_to_be_durable_is_undone_on_the_disk_before_the_journal_goes(place):
    transaction = prepared(place(), several)
    (transaction.private / "durable").touch()
    transaction.do()
    with disk.record() as changes:
        recovery.roll_back(transaction.unfinished).delete()
    operations = [(change.operation, change.path) for change in changes]
    gone = operations.index(("remove", str(transaction.state / f"{IDENTIFIER}.undoing")))
    synced = {path for operation, path in operations[:gone] if operation == "sync"}
    moved = {os.path.dirname(path) for change in changes[:gone] if change.operation != "sync" for path in change.paths}
    there = {
        path for path in moved if os.path.relpath(path, transaction.private).split("/")[0] not in ("stage", "trash")
    }
    assert synced >= there - {str(transaction.state)}  # whose journal is undone under either name
    assert operations[gone + 1] == ("sync", str(transaction.state))
    assert not [operation for operation, _ in operations[gone:] if operation in ("move", "move_over", "exchange")]


# What another program did between the crash and the recovery.


def rewritten(path: Path, text: str = "by another program") -> None:
    """As another program writes a file: with a new time, whatever the clock's resolution."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    os.utime(path, ns=(2**61, 2**61))


FOREIGN: dict[str, tuple[Build, Callable[[StagedTransaction], object]]] = {
    "a replaced file": (BUILDS["a file over a file"], lambda transaction: rewritten(transaction.home / "x.py")),
    "a replaced file of the same size": (
        BUILDS["a file over a file"],
        lambda transaction: rewritten(transaction.home / "x.py", "later"),
    ),
    "a deleted file": (BUILDS["a file over a file"], lambda transaction: (transaction.home / "x.py").unlink()),
    "a replaced new file": (BUILDS["a new file"], lambda transaction: rewritten(transaction.home / "x.py")),
    "a removed file that is there again": (
        BUILDS["a removed file"],
        lambda transaction: rewritten(transaction.home / "x.py"),
    ),
    "a removed directory that is there again": (
        BUILDS["a removed directory"],
        lambda transaction: rewritten(transaction.home / "x" / "a.py"),
    ),
    "a file written into a new directory": (
        BUILDS["a new directory"],
        lambda transaction: rewritten(transaction.home / "x" / "d.py"),
    ),
    "a file changed in an exchanged directory": (
        BUILDS["an exchange"],
        lambda transaction: rewritten(transaction.home / "x" / "a.py"),
    ),
    "a file changed in a swapped directory": (
        BUILDS["a directory for a file"],
        lambda transaction: rewritten(transaction.home / "x" / "c.py"),
    ),
    "an exchanged directory without its marker": (
        BUILDS["an exchange"],
        lambda transaction: (transaction.home / "x" / MARKER).unlink(),
    ),
    "metadata of which only the marker is left": (
        lambda transaction: transaction.add(Kind.NEW, "x-1.dist-info", None, {"METADATA": "1"}),
        lambda transaction: (transaction.home / "x-1.dist-info" / "METADATA").unlink(),
    ),
}


def installed_over(transaction: StagedTransaction, name: str, text: str, *, mtime_ns: int) -> None:
    """As another installer does it that keeps the times of its archive: uv, conda, tar, `cp -a`."""
    path = transaction.home / "x" / name
    path.with_name("aside").write_text(text)
    os.utime(path.with_name("aside"), ns=(mtime_ns, mtime_ns))
    os.replace(path.with_name("aside"), path)


for _build in ("a new directory", "an exchange", "a directory for a directory", "a directory for a file"):
    for _what, _name, _text, _time in (
        ("another size and an old time", "a.py", "of another size", 10**18),
        ("the same size and an old time", "a.py", "NEWER", 10**18),
        ("a new name and an old time", "b.py", "x", 10**18),
        ("the same size and whole seconds", "a.py", "NEWER", 2 * 10**18),
    ):
        FOREIGN[f"{_build}, installed over with {_what}"] = (
            BUILDS[_build],
            lambda transaction, name=_name, text=_text, time=_time: installed_over(
                transaction, name, text, mtime_ns=time
            ),
        )


every_foreign = pytest.mark.parametrize(("build", "change"), FOREIGN.values(), ids=FOREIGN.keys())


@every_foreign
def test_after_another_program_changed_something_nothing_is_undone(place, build, change):
    def both(transaction: StagedTransaction) -> None:
        transaction.add(Kind.FILE, "innocent.py", "old", "newer")
        build(transaction)

    transaction = prepared(place(), both)
    transaction.do()
    change(transaction)
    before = transaction.content()
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match="changed by another program") as caught:
        recovery.roll_back(transaction.unfinished).delete()
    assert changes == []
    assert transaction.content() == before
    assert caught.value.state is State.UNFINISHED
    assert "`safe-pip doctor --repair`" in str(caught.value)


def without_markers(content):
    if not isinstance(content, dict):
        return content
    return {name: without_markers(inner) for name, inner in content.items() if name != MARKER}


@every_foreign
def test_what_another_program_changed_is_kept_if_that_is_asked_for_and_the_rest_is_undone(place, build, change):
    def both(transaction: StagedTransaction) -> None:
        transaction.add(Kind.FILE, "innocent.py", "old", "newer")
        build(transaction)

    transaction = prepared(place(), both)
    transaction.do()
    change(transaction)
    kept = transaction.operations[1].path
    expected = without_markers({**transaction.content()["0"], "innocent.py": "old"})
    left: list[str] = []
    recovery.roll_back(transaction.unfinished, keep=True, aside=lambda _, paths: left.extend(paths)).delete()
    assert left == [str(transaction.home / kept)]
    assert transaction.content()["0"] == expected
    assert transaction.leftovers() == []


def test_what_changed_in_a_shared_directory_is_left_and_reported(place):
    transaction = prepared(place(), several)
    transaction.do()
    rewritten(transaction.bin / "tool")
    left: list[str] = []
    recovery.roll_back(transaction.unfinished, aside=lambda _, paths: left.extend(paths)).delete()
    assert left == [str(transaction.bin / "tool")]
    assert (transaction.bin / "tool").read_text() == "by another program"
    assert (transaction.home / "mod.py").read_text() == "old"


def test_bytecode_that_was_written_meanwhile_does_not_stop_a_recovery(place):
    def build(transaction: StagedTransaction) -> None:
        transaction.add(Kind.EXCHANGE, "x", OLD, NEW)
        transaction.add(Kind.REMOVE, "y/__pycache__/m.pyc", "old")
        transaction.add(Kind.FILE, "y/__pycache__/n.pyc", "old", "newer")

    transaction = prepared(place(), build)
    transaction.do()
    for path in ("x/__pycache__/a.pyc", "x/__pycache__/a.cache", "y/__pycache__/m.pyc", "y/__pycache__/n.pyc"):
        rewritten(transaction.home / path)
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content()["0"]["x"] == OLD


def test_permissions_that_another_program_set_meanwhile_stay(place):
    transaction = prepared(place(), exchange_of_read_only_directories)
    crashed(transaction.do, 1)
    (transaction.home / "x").chmod(0o711)
    recovery.roll_back(transaction.unfinished).delete()
    assert (transaction.home / "x").stat().st_mode & 0o777 == 0o711


def test_data_that_both_directories_hold_may_be_written_meanwhile(place):
    transaction = prepared(place(), BUILDS["an exchange"])
    staged = transaction.private / "stage" / transaction.operations[0].staged
    (transaction.home / "x" / "data").write_text("unowned")
    os.link(transaction.home / "x" / "data", staged / "data")
    transaction.do()
    rewritten(transaction.home / "x" / "data", "written on")
    recovery.roll_back(transaction.unfinished).delete()
    assert (transaction.home / "x" / "data").read_text() == "written on"


def test_a_staged_file_may_have_any_time(place):
    """A source that is to be told from the one that it replaces may be dated ahead."""
    transaction = StagedTransaction(place())
    transaction.add(Kind.EXCHANGE, "x", OLD, NEW)
    os.utime(transaction.private / "stage" / transaction.operations[0].staged / "a.py", ns=(2**61, 2**61))
    transaction.write_journal()
    transaction.do()
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content()["0"] == {"x": OLD}


def test_a_copied_environment_is_recovered(place):
    """All times of change are new, and in another order."""
    transaction = prepared(place(), several)
    before = transaction.content()
    transaction.do()
    for path in sorted(transaction.home.parent.rglob("*"), reverse=True):
        if path.is_file():
            path.chmod(path.stat().st_mode)
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == before


def test_inode_numbers_tell_nothing(place):
    """A container that was started anew has other ones."""
    transaction = prepared(place(), several)
    before = transaction.content()
    transaction.do()
    for path in [path for path in transaction.home.parent.rglob("*") if path.is_file()]:
        status, content = path.stat(), path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    recovery.roll_back(transaction.unfinished).delete()
    assert transaction.content() == before


# Journals that are not to be acted on.


def assert_refused(transaction: StagedTransaction, match: str) -> RecoveryNeeded:
    before = transaction.content(), transaction.leftovers()
    with disk.record() as changes, pytest.raises(RecoveryNeeded, match=match) as caught:
        recovery.roll_back(transaction.unfinished).delete()
    assert changes == []
    assert (transaction.content(), transaction.leftovers()) == before
    with pytest.raises(RecoveryNeeded):
        recovery.read(transaction.unfinished)
    return caught.value


def test_a_damaged_journal_is_kept_and_refused(place):
    transaction = prepared(place(), several)
    transaction.do()
    content = transaction.unfinished.path.read_bytes()
    for damaged in (b"", content[:-1], content + b"\n", content.replace(b"new", b"old", 1)):
        transaction.unfinished.path.write_bytes(damaged)
        assert_refused(transaction, "damaged")


def test_a_journal_of_a_newer_version_is_kept_and_refused(place):
    transaction = prepared(place(), several)
    transaction.do()
    content = transaction.unfinished.path.read_bytes()
    transaction.unfinished.path.write_bytes(content.replace(b"journal 1 ", b"journal 2 ", 1))
    assert "version" in (assert_refused(transaction, "its format is 2").hint or "")


def test_a_journal_that_was_copied_from_another_environment_is_refused(place):
    transaction, other = (prepared(place(), several) for _ in range(2))
    transaction.unfinished.path.write_bytes(other.unfinished.path.read_bytes())
    assert_refused(transaction, "belongs to")


def test_a_journal_under_another_name_is_refused(place):
    transaction = prepared(place(), several)
    for identifier in ("f" * 16, "x", ""):
        wrong = transaction.unfinished._replace(identifier=identifier, name=f"{identifier}.journal")
        transaction.unfinished.path.rename(wrong.path)
        with pytest.raises(RecoveryNeeded):
            recovery.roll_back(wrong).delete()
        assert wrong in recovery.find(transaction.home)
        wrong.path.rename(transaction.unfinished.path)


def test_a_journal_that_is_a_link_of_either_kind_is_refused(place):
    transaction = prepared(place(), several)
    elsewhere = transaction.home.parent / "elsewhere"
    os.link(transaction.unfinished.path, elsewhere)
    assert_refused(transaction, "another name")
    transaction.unfinished.path.unlink()
    transaction.unfinished.path.symlink_to(elsewhere)
    assert_refused(transaction, "cannot be read")


def test_a_journal_without_its_owner_file_is_refused(place):
    transaction = prepared(place(), several)
    (transaction.state / f"{IDENTIFIER}.owner").unlink()
    assert_refused(transaction, "owner file")


@pytest.mark.parametrize("name", ["", "stage", "trash"])
def test_a_private_directory_that_is_gone_or_a_link_is_refused(place, name):
    transaction = prepared(place(), several)
    transaction.do()
    directory = transaction.private / name
    aside = transaction.home.parent / "aside"
    directory.rename(aside)
    before = transaction.content()
    for link in (False, True):
        if link:
            directory.symlink_to(aside)
        with disk.record() as changes, pytest.raises(RecoveryNeeded, match="not as it was left"):
            recovery.roll_back(transaction.unfinished).delete()
        assert changes == []
        assert transaction.content() == before


@pytest.mark.parametrize("where", ["root", "parent"])
def test_nothing_is_moved_through_a_symbolic_link(place, where):
    """`lib/sub` of the journal leads elsewhere by now."""
    transaction = prepared(place(), lambda transaction: transaction.add(Kind.REMOVE, "sub/precious", "old"))
    transaction.do()
    victim = transaction.home.parent / "victim"
    replaced = transaction.home / "sub" if where == "parent" else transaction.bin
    if where == "root":
        transaction.add(Kind.NEW, "x", None, "new", root=1)
        transaction.write_journal()
    replaced.rename(victim)
    replaced.symlink_to(victim)
    with disk.record() as changes, pytest.raises(RecoveryNeeded):
        recovery.roll_back(transaction.unfinished).delete()
    assert changes == []
    assert not (victim / "precious").exists()


def test_a_home_that_is_reached_through_a_symbolic_link_is_refused(place):
    """In the middle of the path, not at its end."""
    transaction = prepared(place(), several)
    transaction.do()
    aside = transaction.home.parent.with_name("aside")
    transaction.home.parent.rename(aside)
    transaction.home.parent.symlink_to(aside)
    assert_refused(transaction, "is no directory any more")


def test_a_state_directory_that_is_a_symbolic_link_is_refused(place):
    transaction = prepared(place(), several)
    aside = transaction.home.parent / "aside"
    transaction.state.rename(aside)
    transaction.state.symlink_to(aside)
    with pytest.raises(UnusableEnvironment, match="symbolic link"):
        recovery.find(transaction.home)
    with pytest.raises(RecoveryNeeded):
        recovery.roll_back(transaction.unfinished).delete()


# Which journals concern a directory.


def test_where_nothing_is_unfinished_nothing_is_found(tmp_path):
    assert recovery.find(tmp_path) == ()
    assert recovery.find(tmp_path / "missing") == ()
    (tmp_path / ".safe-pip").mkdir()
    assert recovery.find(tmp_path) == ()


def test_a_journal_is_found_from_every_directory_that_it_changes(place):
    transaction = prepared(place(), several)
    assert recovery.find(transaction.home) == (transaction.unfinished,)
    assert recovery.find(transaction.bin) == (transaction.unfinished,)
    (transaction.home.parent / "link").symlink_to(transaction.home)
    assert recovery.find(transaction.home.parent / "link") == (transaction.unfinished,)
    assert recovery.read(transaction.unfinished) == transaction.journal
    recovery.roll_back(transaction.unfinished).delete()
    assert recovery.find(transaction.home) == recovery.find(transaction.bin) == ()


def test_a_mark_without_a_journal_means_nothing(place):
    transaction = prepared(place(), several)
    transaction.unfinished.path.unlink()
    assert recovery.find(transaction.bin) == ()


def test_a_mark_may_name_anything_and_is_believed_only_if_the_journal_names_its_directory(place):
    transaction, other = prepared(place(), several), prepared(place(), several)
    mark = transaction.bin / ".safe-pip" / f"{IDENTIFIER}.home"
    for named in (
        b"",
        b"\n",
        b"relative\n",
        b"/missing\n",
        b"\0\n",
        b"\xff\n",
        f"{other.home}\n".encode(),
        b"/" * 10**6,
    ):
        mark.write_bytes(named)
        assert recovery.find(transaction.bin) == ()
    mark.unlink()
    mark.symlink_to(other.bin / ".safe-pip" / f"{IDENTIFIER}.home")
    assert recovery.find(transaction.bin) == ()
    mark.unlink()
    os.mkfifo(mark)
    assert recovery.find(transaction.bin) == ()


def test_a_mark_that_leads_to_a_damaged_journal_is_not_passed_over(place):
    transaction = prepared(place(), several)
    transaction.unfinished.path.write_bytes(b"")
    assert recovery.find(transaction.bin) == (transaction.unfinished,)
    with pytest.raises(RecoveryNeeded, match="damaged"):
        recovery.read(transaction.unfinished)


def test_only_a_mark_of_the_same_home_is_removed(place):
    transaction = prepared(place(), several)
    mark = transaction.bin / ".safe-pip" / f"{IDENTIFIER}.home"
    mark.write_text("/elsewhere\n")
    recovery.roll_back(transaction.unfinished).delete()
    assert mark.exists()


def test_the_owner_file_is_beside_the_journal(place):
    transaction = prepared(place(), several)
    assert transaction.unfinished.owner_file == transaction.state / f"{IDENTIFIER}.owner"


def test_a_recovery_cleans_up_in_an_order_that_leaves_every_remainder_findable(place):
    """The journal first, for it is undone; the owner file last, for it leads to the rest."""
    transaction = prepared(place(), several)
    transaction.do()
    with disk.record() as changes:
        recovery.roll_back(transaction.unfinished).delete()
    emptied = tuple(f"{transaction.private}/{name}" for name in ("stage", "trash"))
    removed = [change for change in changes if change.operation.startswith("remove")]
    # Before anything is undone: its process, if it lives, has no directory any more to move something to.
    paths = [each.path for each in removed if each.operation == "remove" or not each.path.startswith(emptied)]
    assert paths[0] == str(transaction.state / f"{IDENTIFIER}.undoing")
    assert paths[-1] == str(transaction.state / f"{IDENTIFIER}.owner")


def test_a_reader_finds_the_same_journal_as_was_written(place):
    transaction = prepared(place(), several)
    assert codec.decode(transaction.unfinished.path.read_bytes()) == recovery.read(transaction.unfinished)
