"""Several hosts use one environment: a lock on a directory stays on its host, a lock on a file reaches the others.

Two environments in one process stand for two hosts. Locks on directories are granted to both of them.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from safe_pip.environment.environment import Environment, Prefix, Target
from safe_pip.errors import LockTimeout, StalePlan, UnusableEnvironment
from safe_pip.fs import proc
from safe_pip.journal.owner import Owner
from safe_pip.locking import flock, inheritance, order, shared_files, state_directory
from safe_pip.locking.waiting import Wait
from tests.support.processes.proc import fake_mount

Access = Callable[[Environment, Path], AbstractContextManager[object]]
LOCKS = ["commit", "commit.gate", "environment", "environment.gate", "keep", "keep.gate"]


class Reporter:
    def __init__(self, *, says: bool = False) -> None:
        self.unguarded_trees: list[Path] = []
        self.unprobed_trees: list[Path] = []
        self._says = says

    def waiting(self, event: Wait) -> None: ...

    def granted(self, event: Wait, seconds: float) -> None: ...

    def unguarded(self, path: Path) -> None:
        self.unguarded_trees.append(path)

    def unprobed(self, path: Path) -> bool:
        self.unprobed_trees.append(path)
        return self._says


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that several hosts use; an exclusive lock needs a writable descriptor there, as on NFS."""
    import fcntl

    monkeypatch.delenv(inheritance.VARIABLE, raising=False)
    place, real = tmp_path / "shared", fcntl.flock
    place.mkdir()
    monkeypatch.setattr(proc, "is_shared", lambda path: Path(path).is_relative_to(place))

    def nfs(fd: int, operation: int) -> None:
        is_writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return
        if operation & fcntl.LOCK_EX and not is_writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd, operation)

    monkeypatch.setattr(flock.fcntl, "flock", nfs)
    return place


@pytest.fixture
def site(shared: Path) -> Path:
    (shared / "site-packages").mkdir()
    return shared / "site-packages"


def on_a_host(*path: Path, reporter: Reporter | None = None) -> Environment:
    os.environ.pop(inheritance.VARIABLE, None)  # a command on another host inherits nothing
    return Environment([str(each) for each in path], waiting=reporter or Reporter(), timeout=0)


def lock_files(tree: Path) -> list[str]:
    names = os.listdir(tree / ".safe-pip")
    return sorted(name for name in names if not name.endswith(state_directory.SHARED_NOTE))


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let this user change nothing in a directory; root may."""

    def forbid(place: Path) -> None:
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))

        def refuse(tree: Path) -> bool:
            if tree == place:
                raise UnusableEnvironment(f"`{tree}` cannot be written: Permission denied")
            return False

        monkeypatch.setattr(state_directory, "make", refuse)

    return forbid


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("use", [Environment.keeping, Environment.building])
def test_a_program_keeps_other_hosts_from_replacing_what_it_uses(
    site: Path, use: Callable[[Environment], AbstractContextManager[object]], has_state: bool
) -> None:
    if has_state:
        state_directory.make(site)
    with use(on_a_host(site)):
        assert lock_files(site) == LOCKS
        with pytest.raises(LockTimeout), on_a_host(site).replacing(Target((site,))):
            pass
        with on_a_host(site).adding(Target((site,))):
            pass
        with use(on_a_host(site)):
            pass
    with on_a_host(site).replacing(Target((site,))), pytest.raises(LockTimeout), use(on_a_host(site)):
        pass


def test_where_lock_files_cannot_be_made_programs_are_refused_and_readers_say_so(
    site: Path, forbidden: Callable[[Path], None]
) -> None:
    forbidden(site)
    for use in (on_a_host(site).keeping, on_a_host(site).building):
        with pytest.raises(UnusableEnvironment, match=r"several hosts may use .* Permission denied") as caught, use():
            pass
        assert caught.value.exit_status == 78
        assert caught.value.hint == "A user that may write there makes them with `safe-pip list`"
    reporter = Reporter()
    assert on_a_host(site, reporter=reporter).read(lambda: "read") == "read"
    assert reporter.unguarded_trees == [site]


def test_what_is_read_without_lock_files_is_read_again_if_it_changed_meanwhile(
    site: Path, forbidden: Callable[[Path], None]
) -> None:
    forbidden(site)
    seen: list[list[str]] = []

    def read() -> list[str]:
        seen.append(os.listdir(site))
        if len(seen) == 1:
            (site / "one-1.dist-info").mkdir()
        return seen[-1]

    assert on_a_host(site).read(read) == ["one-1.dist-info"]
    with pytest.raises(StalePlan, match="what is installed changed whenever this command read it"):
        on_a_host(site).read(lambda: (site / f"{len(seen)}-1.dist-info").mkdir() or read())


def test_a_reader_makes_lock_files_where_distributions_are_and_nowhere_else(site: Path, shared: Path) -> None:
    (shared / "bin").mkdir()
    reporter = Reporter()
    on_a_host(site, shared / "bin", reporter=reporter).read(lambda: None)
    assert sorted(os.listdir(site / ".safe-pip")) == LOCKS
    assert os.listdir(shared / "bin") == []
    assert reporter.unguarded_trees == []


def test_a_program_leaves_no_lock_files_in_other_directories_of_its_path(site: Path, shared: Path) -> None:
    (shared / "sources").mkdir()
    with on_a_host(site, shared / "sources").keeping():
        assert lock_files(shared / "sources") == LOCKS
    assert os.listdir(shared / "sources") == []
    assert os.listdir(site) == [".safe-pip"]


def make_nothing(place: Path) -> None: ...


def make_git(place: Path) -> None:
    (place / ".git").mkdir()


def make_project(place: Path) -> None:
    (place / "pyproject.toml").touch()


@pytest.mark.parametrize(
    ("make", "left"),
    [(make_nothing, [".safe-pip"]), (make_git, [".git"]), (make_project, ["pyproject.toml"])],
)
def test_a_mutex_reaches_other_hosts_and_leaves_nothing_in_a_source_tree(
    shared: Path, make: Callable[[Path], None], left: list[str]
) -> None:
    source = shared / "source"
    source.mkdir()
    make(source)
    with on_a_host().mutex(source), pytest.raises(LockTimeout), on_a_host().mutex(source):
        pass
    assert os.listdir(source) == left


ACCESSES: list[Access] = [
    lambda host, place: host.directory(place, exclusive=True),
    lambda host, place: host.making(place),
    lambda host, place: host.adding(Target((place.parent / "site-packages",), directories=(place,))),
    lambda host, place: host.replacing(Target((place.parent / "site-packages",), containers=(place,))),
]


@pytest.mark.parametrize("access", ACCESSES)
def test_the_lock_of_a_directory_that_is_no_tree_reaches_other_hosts(shared: Path, access: Access) -> None:
    (shared / "other").mkdir()
    with access(on_a_host(), shared / "other"):
        for exclusive in (False, True):
            with pytest.raises(LockTimeout), on_a_host().directory(shared / "other", exclusive=exclusive):
                pass
    with on_a_host().directory(shared / "other", exclusive=False):
        with on_a_host().directory(shared / "other", exclusive=False):
            pass
        with pytest.raises(LockTimeout), access(on_a_host(), shared / "other"):
            pass


@pytest.mark.parametrize("number", [0, 1, 3])
def test_lock_files_in_what_is_packed_and_shipped_are_removed(shared: Path, number: int) -> None:
    (shared / "other").mkdir()
    with ACCESSES[number](on_a_host(), shared / "other"):
        pass
    assert os.listdir(shared / "other") == []
    target = Prefix.at(shared / "prefix").target
    with on_a_host().adding(target):
        pass
    assert [each for each in (shared / "prefix").rglob("*") if each.name == ".safe-pip"] == []


@pytest.mark.parametrize("access", ACCESSES[1:])
def test_of_a_failed_command_neither_directories_nor_lock_files_stay(shared: Path, access: Access) -> None:
    with pytest.raises(ZeroDivisionError), access(on_a_host(), shared / "other"):
        raise ZeroDivisionError
    assert os.listdir(shared) == []


def test_a_stateless_tree_keeps_no_lock_files_unless_another_host_uses_it(site: Path) -> None:
    target = Target((site,), stateless_trees=(site,))
    with on_a_host(site).keeping():
        with on_a_host().adding(target):
            pass
        assert lock_files(site) == LOCKS
    with on_a_host().adding(target):
        pass
    assert os.listdir(site) == []


def test_a_missing_file_for_other_hosts_is_made_before_anything_is_locked(site: Path) -> None:
    state_directory.make(site)
    (site / ".safe-pip" / "environment").unlink()
    with on_a_host(site).keeping(), pytest.raises(LockTimeout), on_a_host(site).replacing(Target((site,))):
        pass


def test_the_lock_of_a_shell_is_inherited_and_its_file_is_taken(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flock site-packages make` locks the directory: commands on other hosts do not see that."""
    state_directory.make(site)
    ancestry = inheritance.Ancestry(None)
    request = order.environment_lock(site, exclusive=True)
    identity = os.stat(site).st_dev, os.stat(site).st_ino
    claim = inheritance.Claim(order.Rank.ENVIRONMENT, True, identity, site)
    monkeypatch.setattr(ancestry, "_known", [inheritance.Ancestor(1, (claim,), file="shell")])
    left, source = ancestry.resolve(request, identity)
    assert left is not None
    assert source is not None
    assert (left.path, left.also, left.exclusive) == (site / ".safe-pip" / "environment", None, True)


def uses(host: Environment, place: Path) -> list[Callable[[], object]]:
    """Every kind of use of a tree, each of which needs a lock."""
    target = Target((place,))
    accesses = [host.keeping(), host.building(), host.mutex(place), host.directory(place, exclusive=False)]
    changes = [host.adding(target), host.replacing(target), host.occupying(target), host.making(place / "venv")]
    return [lambda: host.read(lambda: None), *(access.__enter__ for access in (*accesses, *changes))]


@pytest.mark.parametrize(
    ("after", "option", "remedy"),
    [
        ("lustre 10.0.0.1@tcp:/scratch rw,localflock", "localflock", "Mount it with the option `flock`"),
        ("nfs server:/export rw,vers=3,nolock", "nolock", "Mount it without `nolock`"),
        ("nfs4 server:/export rw,local_lock=all", "local_lock=all", "Mount it without `local_lock`"),
        ("nfs4 server:/export rw,local_lock=flock", "local_lock=flock", "Mount it without `local_lock`"),
        ("cifs //server/share rw,nobrl", "nobrl", "Mount it without `nobrl`"),
    ],
)
@pytest.mark.parametrize("has_state", [False, True])
def test_a_mount_whose_locks_stay_on_their_host_is_refused_for_everything(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, option: str, remedy: str, has_state: bool
) -> None:
    if has_state:
        state_directory.make(site)
    before = sorted(site.rglob("*"))
    (tmp_path / "proc").mkdir()
    fake_mount(tmp_path / "proc", monkeypatch, site, after)
    for use in uses(on_a_host(site), site):
        with pytest.raises(UnusableEnvironment, match=f"mounted with `{option}`: commands on other hosts") as caught:
            use()
        assert caught.value.exit_status == 78
        assert str(caught.value.hint).startswith(remedy)
    assert sorted(site.rglob("*")) == before


@pytest.mark.parametrize("has_state", [False, True])
def test_after_a_failed_probe_everything_is_refused(site: Path, has_state: bool) -> None:
    if has_state:
        state_directory.make(site)
    before = sorted(site.rglob("*"))
    facts = {"passed": False, "date": 5.0, "hosts": ["node17", "node18"], "remedies": ["Mend it"]}
    verdict = {**facts, "checks": [{"check": "a lock keeps others out", "passed": False}]}
    (site.parent / shared_files.VERDICT).write_text(json.dumps(verdict))
    shared_files._known.clear()
    for use in uses(on_a_host(site), site):
        with pytest.raises(UnusableEnvironment, match=r"node17 and node18 failed \(a lock keeps") as caught:
            use()
        assert caught.value.exit_status == 78
        assert str(caught.value.hint).startswith("Mend it. Then run `safe-pip doctor --filesystem")
    assert sorted(site.rglob("*")) == before


def test_a_filesystem_that_was_never_probed_is_warned_of_until_that_was_said(site: Path, shared: Path) -> None:
    (shared / "bin").mkdir()
    for says, asked in ((False, 2), (True, 1), (True, 0)):
        reporter = Reporter(says=says)
        host = on_a_host(site, shared / "bin", reporter=reporter)
        host.read(lambda: None)
        with host.keeping():
            pass
        assert reporter.unprobed_trees == [site] * asked
    with on_a_host().adding(Target((site,), stateless_trees=(site,))):
        pass
    assert os.listdir(site) == []


def test_a_mount_whose_locks_reach_all_hosts_is_not_refused(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    for after in ("nfs4 server:/export rw,local_lock=none", "lustre scratch rw,flock"):
        fake_mount(tmp_path / "proc", monkeypatch, site, after)
        with on_a_host(site).keeping():
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, 524])
@pytest.mark.parametrize("has_state", [False, True])
def test_where_lock_calls_fail_everything_is_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, number: int, has_state: bool
) -> None:
    if has_state:
        state_directory.make(site)
    before = sorted(site.rglob("*"))

    def fail(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(flock.fcntl, "flock", fail)
    for use in uses(on_a_host(site), site):
        with pytest.raises(UnusableEnvironment, match="is on a filesystem that cannot lock it") as caught:
            use()
        assert caught.value.exit_status == 78
        assert ".safe-pip-" not in caught.value.message
        assert str(caught.value.hint).startswith("Choose a directory on a filesystem with locks")
    assert sorted(site.rglob("*")) == before
    assert not flock.own_descriptors()


@contextmanager
def running_on(name: str, boot: str = "1") -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proc, "host", lambda: (name, boot))
        yield


@pytest.mark.parametrize(("where", "shown"), [(("node18", "1"), " on node17"), (("node17", "2"), " on node17")])
@pytest.mark.parametrize("use", [Environment.keeping, lambda host: host.occupying(Target((*host.trees(),)))])
def test_a_wait_names_the_host_of_the_holder(
    site: Path, where: tuple[str, str], shown: str, use: Callable[[Environment], AbstractContextManager[object]]
) -> None:
    with running_on("node17"):
        holder = use(on_a_host(site))
        holder.__enter__()
    with running_on(*where):
        there = rf"by `.*` \(pid {os.getpid()}{shown}\)"
        with pytest.raises(LockTimeout, match=there), on_a_host(site).replacing(Target((site,))):
            pass
        holder.__exit__(None, None, None)
    assert sorted(os.listdir(site / ".safe-pip")) == LOCKS


def test_a_holder_on_this_host_is_named_without_it(site: Path) -> None:
    here = rf"by `.*` \(pid {os.getpid()}\)"
    with on_a_host(site).keeping(), pytest.raises(LockTimeout, match=here), on_a_host().replacing(Target((site,))):
        pass


def test_of_killed_programs_no_notes_stay(site: Path) -> None:
    state_directory.make(site)
    dead = site / ".safe-pip" / f"1{state_directory.SHARED_NOTE}"
    dead.write_text(json.dumps({"pid": 1, "command": "make", "since": 5.0, "host": "node17", "boot": "1"}))
    assert [*inheritance.notes(site / ".safe-pip")] == []
    with on_a_host(site).keeping(), on_a_host(site).keeping():
        names = set(os.listdir(site / ".safe-pip")) - {*LOCKS}
        assert len(names) == 2
        assert dead.name not in names
        assert {note.exclusive for note in inheritance.notes(site / ".safe-pip")} == {False}
    dead.touch()
    with on_a_host().adding(Target((site,), stateless_trees=(site,))):
        pass
    assert os.listdir(site) == []


def test_a_commit_on_another_host_is_named_by_its_owner_file(site: Path) -> None:
    state_directory.make(site)
    state = site / ".safe-pip"
    with running_on("node17"):
        owner, idle = Owner.make(state), Owner.make(state)
    (state / owner.identifier).with_suffix(".journal").touch()
    with running_on("node18"):
        (holder,) = inheritance.notes(state, commits=True)
        assert (holder.where, holder.exclusive) == (f"pid {os.getpid()} on node17", True)
        owner.close()
        assert [*inheritance.notes(state, commits=True)] == []
    idle.close()


def test_a_pid_of_another_host_proves_no_ancestor(site: Path) -> None:
    with running_on("node17"), on_a_host(site).occupying(Target((site,))):
        note = json.loads((site / ".safe-pip" / "owner").read_bytes())
        assert (note["host"], note["boot"]) == ("node17", "1")
        assert proc.read_note(note).host == ""
        with running_on("node18"):
            assert proc.read_note(note).host == "node17"


def test_on_a_filesystem_of_this_host_no_note_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "host", None)
    note = proc.own_note(str(tmp_path))
    assert sorted(note) == ["command", "pid", "since"]
    assert proc.read_note(note).host == ""


def test_a_command_that_holds_a_lock_or_runs_below_one_that_does_waits_for_no_turn(site: Path) -> None:
    here = on_a_host(site)
    assert here.may_wait()
    with here.keeping():
        assert not here.may_wait()
        below = Environment([str(site)], waiting=Reporter(), timeout=0)
        assert not below.may_wait()
    assert here.may_wait()
