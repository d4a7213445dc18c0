"""What `--durable` promises: before each step of a commit the disk holds what the step relies on."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.environment import change
from safe_pip.environment.snapshot import Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import CommitFailed, State
from safe_pip.journal import owner
from tests.support.faults import disk as faults
from tests.support.faults.disk import Change
from tests.support.faults.filesystems import another_filesystem
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution, without_exchange

FILES = {"site/one/__init__.py": "1", "site/one/deep/er.py": "", "site/ns/one.py": "1", "bin/one": "1"}
ONE = SmallDistribution("one", "1", FILES)
ONE_2 = SmallDistribution(
    "one", "2", {"site/one/__init__.py": "22", "site/ns/one.py": "22", "bin/one": "22", "site/two.py": "2"}
)
OTHER = SmallDistribution("other", "1", {"site/ns/other.py": "1"})
RENAMES = frozenset({"move", "move_over", "exchange"})


class Disk:
    """What a disk that loses its power at any instant may not hold, as `fs` tells of changes and syncs.

    `unsynced` are the directories whose entries, and the files whose content or mode, have changed since.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.synced: set[str] = set()
        self.unsynced: set[str] = set()

    def note(self, change: Change) -> None:
        """Take down a change that is about to be made."""
        self.changes.append(change)
        operation, path = change.operation, change.path
        if operation == "sync":
            self.unsynced.discard(path)
            self.synced.add(path)
            return
        changed = {os.path.dirname(each) for each in change.paths}
        if operation in ("create", "write", "copy", "make_directory", "set_mode", "set_owner", "set_time"):
            changed.add(path)
        for gone in change.paths if operation in RENAMES | {"remove", "remove_directory"} else ():
            self.unsynced -= {each for each in self.unsynced if each == gone or each.startswith(f"{gone}/")}
        self.unsynced |= changed
        self.synced -= changed


class Watched:
    """A durable change, with what is true of the disk at its journal and at its commit point."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.staged: dict[str, bool] = {}
        """At the journal: whether the disk holds each thing that the transaction has made, by its path."""
        self.journaled = self.committed = -1
        self.pending: set[str] = set()
        """At the commit point: what the disk does not hold yet."""

    def note(self, change: Change) -> None:
        """Take down what is true before the journal, and the commit point, and go on."""
        number = len(self.disk.changes)
        if change.operation == "move" and change.path.endswith(".journal"):
            self.journaled = number
            self.staged = {path: path in self.disk.synced for path in private(change.path)}
            self.disk.unsynced.clear()
        elif change.operation == "move" and change.path.endswith(".committed"):
            self.committed = number
            # A rename is one change: from where the journal came it cannot come back.
            self.pending = self.disk.unsynced - {os.path.dirname(self.disk.changes[self.journaled].source)}
        self.disk.note(change)

    def next_after(self, number: int) -> tuple[str, str]:
        """What is done next."""
        change = self.disk.changes[number + 1]
        return change.operation, change.path


def private(journal: str) -> Iterator[str]:
    """All that the transaction of `journal` has made by then, but for what may be lost.

    That are links that only planning again needs, empty files, and an owner file that leads nowhere.
    """
    state = os.path.dirname(journal)
    identifier = os.path.basename(journal).removesuffix(".journal")
    for top in {os.path.realpath(each) for each in (Path(state).parents[1], Path(state).parents[1] / "bin")}:
        for where, directories, names in os.walk(top):
            here = Path(where)
            if here.name != ".safe-pip":
                continue
            directories[:] = [name for name in directories if name == identifier]
            yield from (where, str(here.parent))
            owners = [name for name in names if name.endswith(".owner") and not any(owner.read(here / name)[-2:])]
            yield from (str(here / name) for name in names if name.startswith(identifier) and name not in owners)
            for name in directories:
                yield from of_part(here / name)
            directories.clear()


def of_part(part: Path) -> Iterator[str]:
    """The same of one private directory."""
    for where, directories, names in os.walk(part):
        yield where
        if "spare" in directories:
            directories.remove("spare")
        yield from (path for path in (os.path.join(where, name) for name in names) if os.path.getsize(path))


@pytest.fixture(params=["one filesystem", "two filesystems"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DirectPrefix]:
    """A prefix whose `bin` is on its own filesystem or, behind a symbolic link, on another one."""
    if request.param == "one filesystem":
        yield DirectPrefix(tmp_path / "prefix", shared_bin=True)
        return
    other = another_filesystem(tmp_path)
    if other is None:
        pytest.skip("there is no other filesystem")
    (tmp_path / "prefix").mkdir()
    with tempfile.TemporaryDirectory(dir=other) as name:
        (tmp_path / "prefix" / "bin").symlink_to(name)
        yield DirectPrefix(tmp_path / "prefix", shared_bin=True)


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Note every change that is made within."""
    watched, outer = Watched(), fs.watch.observer

    def told(operation: str, path: str, source: str) -> None:
        if outer is not None:
            outer(operation, path, source)
        watched.note(Change(operation, path, source))

    fs.watch.observer = told
    try:
        yield watched
    finally:
        fs.watch.observer = outer


CHANGES: dict[str, Callable[[DirectPrefix], None]] = {
    "install": lambda prefix: prefix.change([ONE], durable=True),
    "upgrade": lambda prefix: prefix.change([ONE_2], [ONE], durable=True),
    "uninstall": lambda prefix: prefix.change((), [ONE], durable=True),
}


@pytest.fixture(params=["exchange", "two renames"])
def renames(request: pytest.FixtureRequest) -> Iterator[None]:
    """With and without a filesystem that can exchange two directories."""
    with without_exchange() if request.param == "two renames" else contextlib.nullcontext():
        yield


@pytest.fixture(params=CHANGES)
def durable(request: pytest.FixtureRequest, prefix: DirectPrefix, renames: None) -> Watched:
    """One change, watched, of an environment that is as it has to be before."""
    prefix.change([OTHER] if request.param == "install" else [ONE, OTHER])
    prefix.write({"site/one/mine.txt": "unowned"} if request.param != "install" else {})
    with watching() as watched:
        CHANGES[request.param](prefix)
    assert prefix.private() == []
    return watched


def test_all_that_is_staged_and_the_journal_and_the_way_to_it_are_synced_before_the_journal_is_in_place(durable):
    kinds = {os.path.basename(path).partition(".")[2] or os.path.basename(path) for path in durable.staged}
    assert {"journal", "owner", "stage", "safe-pip", "home"} <= kinds
    assert ("trash" in kinds) == any("/trash/" in change.path for change in durable.disk.changes)
    assert [path for path, is_synced in durable.staged.items() if not is_synced] == []


def test_the_journal_is_in_place_for_sure_before_the_first_operation(durable):
    state = os.path.dirname(durable.disk.changes[durable.journaled].path)
    assert durable.next_after(durable.journaled) == ("sync", state)


def test_all_that_was_changed_is_synced_before_the_commit_point(durable):
    operations = durable.disk.changes[durable.journaled + 2 : durable.committed]
    renamed = [change for change in operations if change.operation in RENAMES]
    assert renamed
    assert durable.pending == set()


def test_the_commit_is_synced_before_anything_is_deleted(durable):
    state = os.path.dirname(durable.disk.changes[durable.committed].path)
    assert durable.next_after(durable.committed) == ("sync", state)
    earlier = durable.disk.changes[durable.journaled : durable.committed]
    assert not [change for change in earlier if change.operation in ("remove", "remove_directory")]


def test_without_it_nothing_is_synced(prefix):
    with watching() as watched:
        prefix.change([ONE, OTHER])
        prefix.change([ONE_2], [ONE])
        prefix.change((), [ONE_2])
    assert "sync" not in {change.operation for change in watched.disk.changes}


def test_what_was_planned_again_under_the_lock_is_synced_as_well(prefix, monkeypatch):
    prefix.change([ONE])
    transaction: Transaction = prefix.transaction(durable=True)
    with watching() as watched, transaction.staging(prefix.target) as change:
        prefix.stage(change, [ONE_2], [ONE])
        # As if others installed something each time between the plan and the locks.
        monkeypatch.setattr(transaction.environment, "read", lambda take: ([], Snapshot()))
        transaction.commit(change, lambda now: ())
    written = [each.path for each in watched.disk.changes if each.operation == "create"]
    assert len([path for path in written if path.endswith("/journal")]) == 4
    assert [path for path, is_synced in watched.staged.items() if not is_synced] == []


def not_held_when_the_journal_went(watched: Watched) -> set[str]:
    """What was changed since the journal was in place, and was not synced when it was removed; that is, at once."""
    changes = watched.disk.changes
    gone = [each.operation == "remove" and each.path.endswith(".undoing") for each in changes].index(True)
    assert watched.next_after(gone) == ("sync", os.path.dirname(changes[gone].path))
    disk = Disk()
    for each in changes[watched.journaled + 1 : gone]:
        disk.note(each)
    # Before it goes, the journal gets another name; it is undone under either.
    return disk.unsynced - {os.path.dirname(changes[gone].path)}


def test_what_the_disk_refuses_is_undone_on_the_disk_before_the_journal_goes(prefix):
    prefix.change([ONE, OTHER])
    before = prefix.content()
    with watching() as watched:
        prefix.change([ONE_2], [ONE], durable=True)
    renames = [number for number, each in enumerate(watched.disk.changes) if each.operation in RENAMES]
    prefix.change([ONE], [ONE_2])
    for number in range(renames.index(watched.journaled) + 1, renames.index(watched.committed) + 1):
        with (
            faults.error_at(number, errno.EIO, only=RENAMES),
            watching() as watched,
            pytest.raises(CommitFailed) as failed,
        ):
            prefix.change([ONE_2], [ONE], durable=True)
        assert failed.value.state is State.RESTORED
        assert prefix.content() == before
        assert not_held_when_the_journal_went(watched) == set(), number


def test_a_commit_that_the_disk_may_not_hold_is_told_and_kept_for_the_next_command(prefix):
    prefix.change([ONE, OTHER])
    undisturbed = DirectPrefix(prefix.root.parent / "twin", shared_bin=True)
    undisturbed.change([ONE, OTHER])
    undisturbed.change([ONE_2], [ONE])
    with watching() as watched:
        prefix.change([ONE_2], [ONE], durable=True)
    synced = [each.operation for each in watched.disk.changes[: watched.committed]].count("sync")
    prefix.change([ONE], [ONE_2])
    with faults.error_at(synced, errno.EIO, only={"sync"}) as trial, pytest.raises(CommitFailed) as failed:
        prefix.change([ONE_2], [ONE], durable=True)
    assert trial.struck is not None
    assert failed.value.state is State.COMMITTED
    assert any(path.endswith(".committed") for path in prefix.private())
    prefix.read()
    prefix.change([SmallDistribution("next", "1", {"site/next.py": ""})])
    undisturbed.change([SmallDistribution("next", "1", {"site/next.py": ""})])
    assert prefix.private() == []
    assert files(prefix) == files(undisturbed)


def files(prefix: DirectPrefix) -> dict[str, str]:
    """What is installed; `bin` is a link in one and a directory in the other."""
    scripts = {name: (prefix.bin / name).read_text() for name in os.listdir(prefix.bin) if name != ".safe-pip"}
    return {name: text for name, text in prefix.content().items() if not name.startswith("bin")} | scripts


def test_what_a_killed_command_had_promised_to_be_durable_is_undone_so(prefix):
    prefix.change([ONE, OTHER])
    before = prefix.content()
    with watching() as watched:
        prefix.change([ONE_2], [ONE], durable=True)
    renames = [each.operation in RENAMES for each in watched.disk.changes[: watched.committed]]
    prefix.change([ONE], [ONE_2])
    with faults.crash_at(sum(renames), only=RENAMES), contextlib.suppress(faults.Crashed):
        prefix.change([ONE_2], [ONE], durable=True)
    with watching() as recovered:
        prefix.read()
    assert prefix.content() == before
    assert not_held_when_the_journal_went(recovered) == set()


def test_the_mode_that_a_directory_gets_back_is_undone_on_the_disk_too(empty, as_a_user):
    prefix = DirectPrefix(empty / "prefix")
    prefix.change([ONE])
    (prefix.site / "one").chmod(0o555)
    before = prefix.content()
    with watching() as watched:
        prefix.change([ONE_2], [ONE], durable=True)
    assert "set_mode" in {each.operation for each in watched.disk.changes[watched.journaled : watched.committed]}
    renames = [each.operation in RENAMES for each in watched.disk.changes[: watched.committed]]
    prefix.change([ONE], [ONE_2])
    (prefix.site / "one").chmod(0o555)
    with faults.error_at(sum(renames), errno.EIO, only=RENAMES), watching() as watched, pytest.raises(CommitFailed):
        prefix.change([ONE_2], [ONE], durable=True)
    assert prefix.content() == before
    assert not_held_when_the_journal_went(watched) == set()


@pytest.mark.parametrize("is_shared", [False, True])
def test_where_another_host_may_finish_a_change_it_is_durable_without_being_asked(
    prefix: DirectPrefix, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    monkeypatch.setattr(change, "is_shared", lambda path: is_shared)
    with watching() as watched:
        prefix.change([ONE])
    assert all(watched.staged.values()) == is_shared
