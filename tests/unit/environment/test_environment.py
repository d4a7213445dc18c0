"""What each kind of access takes, makes and leaves behind; two environments in one process exclude each other."""

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safe_pip.environment.environment import Changing, Environment, Target
from safe_pip.errors import CannotLock, LockTimeout, NestingRefused, RecoveryNeeded, StalePlan, UnusableEnvironment
from safe_pip.journal.owner import Owner
from safe_pip.locking import flock, holders, inheritance, state_directory, waiting
from safe_pip.locking.order import Rank
from safe_pip.locking.waiting import Wait
from tests.support.faults import disk
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution

ONE = SmallDistribution("one", "1", {"site/one.py": "1", "site/ns/one.py": "1"})
TWO = SmallDistribution("two", "1", {"site/two.py": "1", "site/ns/two.py": "1"})


class SilentReporter:
    def waiting(self, event: Wait) -> None: ...

    def granted(self, event: Wait, seconds: float) -> None: ...

    def unguarded(self, path: Path) -> None: ...

    def unprobed(self, path: Path) -> bool:
        return False


def environment(*path: Path, timeout: float | None = 0, **more: Any) -> Environment:
    return Environment([str(each) for each in path], waiting=SilentReporter(), timeout=timeout, **more)


@pytest.fixture(autouse=True)
def no_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(inheritance.VARIABLE, raising=False)


def test_the_trees_are_the_directories_of_the_path_each_once(tmp_path: Path) -> None:
    for name in ("a", "stdlib"):
        (tmp_path / name).mkdir()
    (tmp_path / "alias").symlink_to("a")
    (tmp_path / "file.zip").touch()
    found = environment(
        *(tmp_path / name for name in ("a", "alias", "file.zip", "missing", "stdlib")),
        stdlib=[str(tmp_path / "stdlib")],
    ).trees()
    assert found == [tmp_path / "a"]


def test_reading_makes_nothing(tmp_path: Path) -> None:
    assert environment(tmp_path).read(lambda: "read") == "read"
    assert os.listdir(tmp_path) == []


def test_reading_an_environment_with_no_tree_is_just_reading(tmp_path: Path) -> None:
    assert environment(tmp_path / "missing").read(lambda: "read") == "read"


@pytest.mark.parametrize("missing", ["commit", "commit.gate", "environment.gate", "keep", "keep.gate"])
def test_a_state_directory_that_is_not_complete_holds_no_reader_up_and_is_completed_by_a_commit(
    tmp_path: Path, missing: str
) -> None:
    state_directory.make(tmp_path)
    (tmp_path / ".safe-pip" / missing).unlink()
    assert environment(tmp_path).read(lambda: "read") == "read"
    with environment(tmp_path).adding(Target((tmp_path,))):
        assert (tmp_path / ".safe-pip" / missing).exists()


@pytest.fixture
def no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on a filesystem that has no locks to give."""
    made, lock = tmp_path / "cluster", flock._flock
    made.mkdir()

    def refuse(descriptor: flock.Descriptor, **more: Any) -> None:
        if descriptor.path.is_relative_to(made):
            raise CannotLock(f"`{descriptor.path}` is on a filesystem that cannot lock it")
        lock(descriptor, **more)

    monkeypatch.setattr(flock, "_flock", refuse)
    return made


def test_what_cannot_be_locked_is_not_read_or_used(tmp_path: Path, no_locks: Path) -> None:
    here = environment(tmp_path, no_locks)
    for use in (lambda: here.read(lambda: None), here.keeping().__enter__, here.building().__enter__):
        with pytest.raises(CannotLock):
            use()
    with pytest.raises(CannotLock), here.mutex(no_locks / "source"):
        pass


def test_what_cannot_be_locked_is_not_changed_and_keeps_nothing(no_locks: Path) -> None:
    new = Target((no_locks / "a" / "b",))
    for target in (Target((no_locks,)), new, new._replace(stateless_trees=new.trees)):
        for access in (environment().adding, environment().replacing, lambda to: environment().staging(to, str)):
            with pytest.raises(CannotLock), access(target):
                pass
            assert os.listdir(no_locks) == []


def test_an_error_of_the_reading_function_is_passed_on_and_the_lock_is_released(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        environment(tmp_path).read(lambda: 1 // 0)
    with environment().replacing(Target((tmp_path,))):
        pass


def test_a_commit_makes_what_is_missing_and_holds_both_locks(tmp_path: Path) -> None:
    tree, scripts = tmp_path / "lib" / "site-packages", tmp_path / "bin"
    with environment().replacing(Target((tree,), (scripts,))) as held:
        held.check()
        assert scripts.is_dir()
        with pytest.raises(LockTimeout):
            environment(tree).read(lambda: None)
    assert environment(tree).read(lambda: "free") == "free"


def test_a_commit_that_fails_removes_exactly_the_directories_it_made(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(ZeroDivisionError),
        environment().replacing(Target((tmp_path / "a" / "b" / "c",), (tmp_path / "d" / "e",))),
    ):
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["a"]
    assert os.listdir(tmp_path / "a") == []


def test_a_commit_that_fails_leaves_a_directory_that_is_in_use(tmp_path: Path) -> None:
    def install_and_fail() -> None:
        with environment().replacing(Target((tmp_path / "a",))):
            (tmp_path / "a" / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        install_and_fail()
    assert os.listdir(tmp_path / "a") == ["file"]


def test_the_state_directory_of_a_tree_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), environment().replacing(Target((tmp_path,))):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [".safe-pip"]


def test_if_two_processes_leave_a_stateless_tree_at_once_the_last_removes_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process comes when the first, which holds both locks, has just seen that the tree is in use."""
    state_directory.make(tmp_path)
    remove, waits = state_directory.remove, threading.Event()
    second = threading.Thread(target=lambda: (environment().tidy([tmp_path]), waits.set()))
    pause, looks = flock._sleep, 0

    def come(seconds: float) -> None:
        waits.set()
        pause(seconds)

    def look(tree: Path) -> bool:
        nonlocal looks
        looks += 1
        if looks > 1:
            return remove(tree)
        second.start()
        assert waits.wait(60)
        return False

    monkeypatch.setattr(flock, "_sleep", come)
    monkeypatch.setattr(state_directory, "remove", look)
    environment().tidy([tmp_path])
    second.join()
    assert os.listdir(tmp_path) == []


def test_a_process_that_removes_a_state_directory_looks_again_for_processes_that_met_its_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_directory.make(tmp_path)
    remove = state_directory.remove

    def meanwhile(tree: Path) -> bool:
        removed = remove(tree)
        monkeypatch.setattr(state_directory, "remove", remove)
        state_directory.make(tree)
        environment().tidy([tmp_path])
        assert state_directory.exists(tree)
        return removed

    monkeypatch.setattr(state_directory, "remove", meanwhile)
    environment().tidy([tmp_path])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("held", [".", ".safe-pip/commit"])
def test_the_state_directory_of_a_stateless_tree_in_use_stays(tmp_path: Path, held: str) -> None:
    state_directory.make(tmp_path)
    user = flock.Descriptor(tmp_path / held)
    assert flock.try_lock(user, exclusive=False)
    environment().tidy([tmp_path])
    assert state_directory.has_locks(tmp_path)
    user.close()
    environment().tidy([tmp_path])
    assert os.listdir(tmp_path) == []


def test_litter_is_no_matter_where_it_cannot_be_looked_at(tmp_path: Path) -> None:
    environment().tidy([tmp_path])
    (tmp_path / ".safe-pip").symlink_to("elsewhere")
    environment().tidy([tmp_path])
    assert (tmp_path / ".safe-pip").is_symlink()


def test_litter_is_removed_after_success_and_failure(tmp_path: Path) -> None:
    for fails in (False, True):
        try:
            with environment().replacing(Target((tmp_path,), stateless_trees=(tmp_path,))):
                assert os.listdir(tmp_path) == [".safe-pip"]
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert os.listdir(tmp_path) == []


def test_the_other_trees_of_the_environment_stay_as_they_are_during_a_commit(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    other.mkdir()
    for state in (False, True):
        if state:
            state_directory.make(other)
        with environment(mine, other).adding(Target((mine,))):
            with pytest.raises(LockTimeout), environment().replacing(Target((other,))):
                pass
            assert environment(other).read(lambda: "beside") == "beside"


def test_inside_a_commit_reading_needs_no_more_locks(tmp_path: Path) -> None:
    here = environment(tmp_path)
    with here.replacing(Target((tmp_path,))):
        assert here.read(lambda: "inside") == "inside"


def test_a_reservation_lets_others_add_and_the_reserver_replace(tmp_path: Path) -> None:
    here = environment(tmp_path)
    with here.reserving(Target((tmp_path,))):
        with environment_of_a_stranger(tmp_path).adding(Target((tmp_path,))):
            pass
        with pytest.raises(LockTimeout), environment_of_a_stranger(tmp_path).replacing(Target((tmp_path,))):
            pass
        with here.replacing(Target((tmp_path,))), here.building():
            pass


def environment_of_a_stranger(*path: Path) -> Environment:
    """One that inherits nothing from this process."""
    variable = os.environ.pop(inheritance.VARIABLE, None)
    try:
        return environment(*path)
    finally:
        if variable is not None:
            os.environ[inheritance.VARIABLE] = variable


def test_everything_is_granted_inside_an_exclusive_hold_and_nothing_to_others(tmp_path: Path) -> None:
    here = environment(tmp_path)
    with here.exclusively(None):
        with (
            here.replacing(Target((tmp_path,))),
            here.building(tmp_path / "source"),
            here.reserving(Target((tmp_path,))),
        ):
            assert here.read(lambda: "inside") == "inside"
        with pytest.raises(LockTimeout):
            environment_of_a_stranger(tmp_path).read(lambda: None)


@pytest.mark.parametrize("way", ["exclusively", "reserving", "replacing", "adding"])
def test_a_directory_of_sources_on_the_path_keeps_no_state_directory(tmp_path: Path, way: str) -> None:
    site, sources = tmp_path / "site-packages", tmp_path / "checkout"
    for path in (site, sources):
        path.mkdir()
    here = environment(site, sources)
    with here.exclusively(None) if way == "exclusively" else getattr(here, way)(Target((site,)), [sources]):
        assert state_directory.exists(sources)
    assert state_directory.exists(site)
    assert not state_directory.exists(sources)


@pytest.mark.parametrize("way", ["adding", "replacing"])
@pytest.mark.parametrize("is_tree", [True, False])
def test_a_directory_that_is_locked_by_itself_keeps_out_what_changes_a_tree_in_it(
    tmp_path: Path, way: str, is_tree: bool
) -> None:
    tree = tmp_path if is_tree else tmp_path / "lib/python3/site-packages"
    target = Target((tree,), stateless_trees=(tree,), containers=(tmp_path,))
    other = environment_of_a_stranger()
    with environment().directory(tmp_path, exclusive=True):
        with pytest.raises(LockTimeout), getattr(other, way)(target):
            pass
        state_directory.make(tmp_path)  # as a command leaves it that waits
        with pytest.raises(LockTimeout):
            environment_of_a_stranger(tmp_path).read(lambda: None)
    with environment().directory(tmp_path, exclusive=False):
        with environment_of_a_stranger().adding(target):
            pass
        with pytest.raises(LockTimeout), other.replacing(target):
            pass
    with getattr(other, way)(target):
        pass


@pytest.mark.parametrize("is_added", [True, False])
def test_a_container_is_locked_in_the_place_that_the_order_has_for_it(tmp_path: Path, is_added: bool) -> None:
    """A container that is a tree is locked as a tree, before all directories; any other one as a directory."""
    tree, container = tmp_path / "container" / "tree", tmp_path / "container"
    step = Changing(Target((tree, container), containers=(container, tmp_path)), environment=not is_added)
    found = [each for each in step.requests() if each.path in (container, tmp_path)]
    assert [(each.path, each.rank, each.exclusive) for each in found] == [
        (container, Rank.ENVIRONMENT, not is_added),
        (tmp_path, Rank.DIRECTORY, not is_added),
    ]


def test_a_container_or_a_lock_of_uv_that_cannot_be_looked_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    for name in ("containers", "uv_lock"):
        unseen = tmp_path / ("n" * 300)
        target = Target((tmp_path,), **{name: (unseen,) if name == "containers" else unseen})
        with pytest.raises(UnusableEnvironment, match="cannot be looked at"), environment().adding(target):
            pass


def test_two_additions_in_one_prefix_do_not_wait_for_each_other(tmp_path: Path) -> None:
    one, two = (Target((tmp_path / name,), containers=(tmp_path,)) for name in ("one", "two"))
    with environment().adding(one), environment_of_a_stranger().adding(two):
        pass


KEPT = [
    (["one"], Target, {"projects": {"two"}}, True),
    (["one"], Target, {"projects": {"one"}}, False),
    (["one"], Target, {"projects": {"third", "one"}}, False),
    (["one"], Target, {}, False),
    (["two"], Target, {"projects": {"third"}}, False),
    (["two"], Target, {"projects": {"one"}}, True),
    (["one"], Target, {"projects": {"two", *map(str, range(16))}}, False),  # each would take a descriptor
]


@pytest.mark.parametrize(("kept", "target", "changed", "is_granted"), KEPT)
def test_what_is_kept_is_not_replaced_nor_is_what_shares_a_file_with_it_and_all_else_is(
    tmp_path: Path, kept: list[str], target: Any, changed: dict[str, Any], is_granted: bool
) -> None:
    prefix = DirectPrefix(tmp_path)
    prefix.change([ONE, TWO, SmallDistribution("third", "1", {"site/third.py": "1"})])
    record = prefix.site / "third-1.dist-info" / "RECORD"
    record.write_text(record.read_text() + "two.py,,\n")
    with environment(prefix.site).keeping(kept):
        for way in (environment_of_a_stranger(prefix.site), environment(prefix.site)):  # the second as if below it
            refused = contextlib.nullcontext() if is_granted else pytest.raises((LockTimeout, NestingRefused))
            with refused, way.replacing(prefix.target, **changed):
                pass
        with environment_of_a_stranger(prefix.site).adding(prefix.target):
            pass
        with pytest.raises(LockTimeout), environment_of_a_stranger(prefix.site).occupying(prefix.target):
            pass
    for holds in (environment(prefix.site).occupying(prefix.target), environment(prefix.site).replacing(prefix.target)):
        with holds, pytest.raises(LockTimeout), environment_of_a_stranger(prefix.site).keeping(kept):
            pass


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_tree_without_lock_files_gets_them_or_is_kept_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_writable: bool
) -> None:
    prefix = DirectPrefix(tmp_path)
    prefix.write({f"site/{name}-1.dist-info/METADATA": "" for name in ("one", "two")})
    make = state_directory.make

    def made_by_others(tree: Path) -> bool:
        raise UnusableEnvironment(f"`{tree}` cannot be written")

    with monkeypatch.context() as patched:
        if not is_writable:
            patched.setattr(state_directory, "make", made_by_others)
        holder = environment(prefix.site).keeping(["one"])
        holder.__enter__()
    assert make(prefix.site) != is_writable
    stranger = environment_of_a_stranger(prefix.site)
    with contextlib.nullcontext() if is_writable else pytest.raises(LockTimeout):
        stranger.replacing(prefix.target, projects={"two"}).__enter__()
    holder.__exit__(None, None, None)


def test_a_version_that_replaces_a_kept_one_while_its_lock_is_waited_for_is_locked_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = DirectPrefix(tmp_path)
    prefix.change([ONE])
    old, new = (prefix.site / f"one-{number}.dist-info" for number in (1, 2))
    flock_of: Any = flock._flock

    def exchange(descriptor: flock.Descriptor, **how: bool) -> None:
        if descriptor.path == old:
            old.rename(new)
        flock_of(descriptor, **how)

    monkeypatch.setattr(flock, "_flock", exchange)
    with environment(prefix.site).keeping(["one"]) as scope:
        assert [each.path for each, _ in scope.granted if each.rank is Rank.DISTRIBUTION] == [new]


@pytest.mark.parametrize("marks", [[".git/"], ["pyproject.toml"], ["setup.py"], [".git", "pyproject.toml", "setup.py"]])
def test_the_mutex_of_a_source_tree_that_is_on_the_path_is_not_its_lock_as_a_tree(
    tmp_path: Path, marks: list[str]
) -> None:
    for name in marks:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    here = environment(tmp_path)
    with here.building(tmp_path), here.mutex(tmp_path):
        other = environment_of_a_stranger(tmp_path)
        with other.keeping():
            other.read(lambda: None)
            with pytest.raises(LockTimeout), other.mutex(tmp_path):
                pass
    with here.occupying(Target((tmp_path,))), environment_of_a_stranger().mutex(tmp_path):
        pass


def test_the_mutex_of_a_source_tree_stays_the_same_when_its_files_are_replaced(tmp_path: Path) -> None:
    for name in (".git", "source"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    with environment().mutex(tmp_path):
        (tmp_path / "new").touch()
        (tmp_path / "new").replace(tmp_path / "pyproject.toml")
        with pytest.raises(LockTimeout), environment_of_a_stranger().mutex(tmp_path):
            pass


def test_without_a_temporary_directory_the_environment_can_be_used_and_changed_by_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    here = environment(tmp_path)
    for scope in (here.keeping(), here.building(), here.exclusively(None)):
        with scope:
            assert inheritance.VARIABLE not in os.environ
            with pytest.raises(LockTimeout), environment_of_a_stranger(tmp_path).replacing(Target((tmp_path,))):
                pass
    # Child programs could not join the holder.
    with pytest.raises(UnusableEnvironment, match="temporary directory"), here.occupying(Target((tmp_path,))):
        pass


def test_a_mutex_is_held_once_at_a_time_and_again_by_its_holder(tmp_path: Path) -> None:
    here = environment()
    with here.mutex(tmp_path / "source"):
        with here.mutex(tmp_path / "source"):
            pass
        with pytest.raises(LockTimeout), environment_of_a_stranger().mutex(tmp_path / "source"):
            pass


@pytest.mark.parametrize("way", ["building", "reserving", "exclusively", "mutex", "keeping", "occupying"])
def test_child_programs_are_told_what_is_held_as_long_as_it_is(tmp_path: Path, way: str) -> None:
    here, target = environment(tmp_path), Target((tmp_path,))
    scope = {
        "building": here.building,
        "reserving": lambda: here.reserving(target),
        "exclusively": lambda: here.exclusively(target),
        "mutex": lambda: here.mutex(tmp_path / "source"),
        "keeping": here.keeping,
        "occupying": lambda: here.occupying(target),
    }[way]
    with scope():
        directory = Path(os.environ[inheritance.VARIABLE])
        assert directory.stat().st_mode & 0o7777 == 0o700
        assert flock.is_locked(directory / "alive")
    assert inheritance.VARIABLE not in os.environ
    assert not directory.exists()


@pytest.mark.parametrize("way", ["replacing", "adding"])
def test_a_commit_tells_child_programs_nothing_for_it_has_none(tmp_path: Path, way: str) -> None:
    with getattr(environment(), way)(Target((tmp_path,))):
        assert inheritance.VARIABLE not in os.environ


def test_below_a_build_one_may_add_and_not_replace(tmp_path: Path) -> None:
    with environment(tmp_path).building():
        child = environment(tmp_path)
        with child.adding(Target((tmp_path,))):
            pass
        with child.building():
            pass
        with pytest.raises(NestingRefused) as caught, child.replacing(Target((tmp_path,))):
            pass
        assert caught.value.exit_status == 75


def test_a_build_below_a_reservation_forbids_to_replace_as_any_build_does(tmp_path: Path) -> None:
    here = environment(tmp_path)
    with here.reserving(Target((tmp_path,))):
        with environment(tmp_path).replacing(Target((tmp_path,))):
            pass
        with here.building():
            child = environment(tmp_path)
            with child.building():
                pass
            with pytest.raises(NestingRefused), child.replacing(Target((tmp_path,))):
                pass


def test_below_an_exclusive_holder_siblings_exclude_each_other(tmp_path: Path) -> None:
    target = Target((tmp_path,))
    with environment(tmp_path).occupying(target):
        one, other = environment(tmp_path), environment(tmp_path)
        with one.replacing(target):
            with pytest.raises(LockTimeout):
                other.read(lambda: None)
            with pytest.raises(LockTimeout), other.adding(target):
                pass
        assert other.read(lambda: "free") == "free"


def test_a_commit_whose_lender_died_ends_before_its_first_change(tmp_path: Path) -> None:
    target = Target((tmp_path,))
    lender = environment(tmp_path).occupying(target)
    lender.__enter__()
    borrower = environment(tmp_path)
    with borrower.replacing(target) as held:
        held.check()
        lender.__exit__(None, None, None)
        with pytest.raises(StalePlan):
            held.check()


def test_a_reader_whose_lender_died_reads_again_under_the_real_lock(tmp_path: Path) -> None:
    lender = environment(tmp_path).occupying(Target((tmp_path,)))
    lender.__enter__()
    borrower = environment(tmp_path)
    seen = []

    def take() -> None:
        seen.append(flock.own_descriptors())
        if len(seen) == 1:
            lender.__exit__(None, None, None)

    borrower.read(take)
    assert len(seen) == 2


@pytest.mark.parametrize("way", ["reading", "building", "adding", "replacing", "reserving"])
def test_an_unfinished_change_stops_every_access(tmp_path: Path, way: str) -> None:
    state_directory.make(tmp_path)
    (tmp_path / ".safe-pip" / f"{16 * '0'}.journal").touch()
    here, target = environment(tmp_path), Target((tmp_path,))

    def come() -> None:
        if way == "reading":
            here.read(lambda: pytest.fail("read a torn environment"))
        with here.building() if way == "building" else getattr(here, way)(target):
            pytest.fail("went on")

    with pytest.raises(RecoveryNeeded, match="cannot be undone: the journal is damaged") as caught:
        come()
    assert caught.value.exit_status == 76
    (tmp_path / ".safe-pip" / f"{16 * '0'}.journal").unlink()
    with environment().replacing(target):
        pass


class Telling(SilentReporter):
    """Calls a function as soon as a process waits that publishes no lock to child programs."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def waiting(self, event: Wait) -> None:
        if self._act is not None and inheritance.VARIABLE not in os.environ:
            act, self._act = self._act, None
            act()


def die_installing(prefix: DirectPrefix, moved: int) -> None:
    """Begin to install a distribution, and be killed when so many of its files and directories have moved."""
    with disk.crash_at(1 + moved, only={"move"}), contextlib.suppress(disk.Crashed):
        prefix.change([ONE])
    assert journals(prefix)


def journals(prefix: DirectPrefix) -> list[Path]:
    return list(prefix.site.glob(".safe-pip/*.journal"))


def test_half_a_change_that_comes_while_the_first_reader_ever_reads_is_undone_and_it_reads_again(
    tmp_path: Path,
) -> None:
    """With no state directory there is no commit lock to read under."""
    prefix, seen = DirectPrefix(tmp_path), []
    before = prefix.content()

    def take() -> None:
        if not seen:
            die_installing(prefix, 1)
        seen.append(prefix.content())

    environment(prefix.site).read(take)
    assert seen[0] != before
    assert seen[1:] == [before]
    assert not journals(prefix)


@pytest.mark.parametrize("missing", ["commit", "commit.gate", "environment.gate", "keep", "keep.gate"])
def test_half_a_change_is_undone_though_a_lock_file_is_missing(tmp_path: Path, missing: str) -> None:
    prefix = DirectPrefix(tmp_path)
    before = prefix.content()
    die_installing(prefix, 1)
    assert prefix.content() != before
    (prefix.site / ".safe-pip" / missing).unlink()
    assert environment(prefix.site).read(prefix.content) == before
    assert not journals(prefix)
    assert (prefix.site / ".safe-pip" / missing).exists()


def test_half_a_change_that_comes_while_a_build_had_to_let_go_is_undone_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is undone is undone with no other locks than it needs: those of the build would be met by it again."""
    prefix, source = DirectPrefix(tmp_path / "prefix"), tmp_path / "source"
    source.mkdir()
    prefix.change([TWO])
    before = prefix.content()
    mutex = flock.Descriptor(source)
    flock.try_lock(mutex, exclusive=True)

    def die() -> None:
        die_installing(prefix, 1)
        mutex.close()

    monkeypatch.setattr(waiting, "WHILE_HOLDING", 0.05)
    monkeypatch.setattr(waiting, "FIRST_MESSAGE", 0.0)
    here = Environment([str(prefix.site)], waiting=Telling(die), timeout=None)
    with here.building(), here.mutex(source):
        assert prefix.content() == before
        assert not journals(prefix)
        assert flock.is_locked(source)
        with pytest.raises(LockTimeout), environment_of_a_stranger(prefix.site).replacing(prefix.target):
            pass


def test_a_living_owner_without_a_journal_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner may wait for the program that runs this command."""
    prefix = DirectPrefix(tmp_path)
    before = prefix.content()
    die_installing(prefix, 0)
    (journal,) = journals(prefix)
    owner = Owner.adopt(journal.with_suffix(".owner"))
    assert owner is not None
    monkeypatch.setattr(waiting, "WHILE_HOLDING", 0.05)
    monkeypatch.setattr(waiting, "FIRST_MESSAGE", 0.0)
    here = Environment([str(prefix.site)], waiting=Telling(journal.unlink), timeout=20)
    assert here.read(prefix.content) == before
    assert flock.is_locked(owner.path)
    owner.close()


def test_a_file_where_a_tree_is_expected_is_an_error_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnusableEnvironment, match="not a directory"), environment().replacing(Target((path,))):
            pass


def test_a_gate_is_waited_for_briefly_even_with_a_timeout_of_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_directory.make(tmp_path)
    gate = flock.Descriptor(tmp_path / ".safe-pip" / "environment.gate")
    flock.try_lock(gate, exclusive=True)
    with pytest.raises(LockTimeout), environment(tmp_path).building():
        pass
    assert 0 < waiting.AT_GATE <= 0.1
    monkeypatch.setattr(waiting, "AT_GATE", 60.0)
    timer = threading.Timer(0.01, gate.close)
    timer.start()
    with environment(tmp_path).building():
        timer.join()


def test_a_holder_in_another_pid_namespace_is_known_by_its_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with environment(tmp_path).occupying(Target((tmp_path,))):
        stranger = environment_of_a_stranger(tmp_path)
        monkeypatch.setattr(holders, "entries", list)
        with pytest.raises(LockTimeout) as caught:
            stranger.read(lambda: None)
        assert f"(pid {os.getpid()})" in caught.value.message


def test_a_forked_child_that_ends_as_its_parent_would_takes_nothing_away(tmp_path: Path) -> None:
    with environment(tmp_path).occupying(Target((tmp_path,), stateless_trees=(tmp_path,))) as _:
        directory = Path(os.environ[inheritance.VARIABLE])
        pid = os.fork()
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert flock.is_locked(directory / "alive")
            assert sorted(os.listdir(tmp_path / ".safe-pip")) == [
                "commit",
                "commit.gate",
                "environment.gate",
                "keep",
                "keep.gate",
                "owner",
            ]
            assert directory.exists()
    if not pid:
        os._exit(0)


def test_on_a_file_server_a_file_is_locked_beside_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_directory, "is_shared", lambda tree: True)
    with environment().replacing(Target((tmp_path,))):
        assert flock.is_locked(tmp_path / ".safe-pip" / "environment")
    monkeypatch.undo()
    monkeypatch.delenv(inheritance.VARIABLE, raising=False)
    with environment().replacing(Target((tmp_path,))):  # by every process from then on
        assert flock.is_locked(tmp_path / ".safe-pip" / "environment")
    assert not flock.is_locked(tmp_path / ".safe-pip" / "environment")


def test_on_a_file_server_lock_files_are_opened_for_writing_or_else_gates_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flock on NFS is a byte-range lock: an exclusive one needs a writable descriptor (EBADF, flock(2))."""
    import fcntl

    real = fcntl.flock

    def nfs(fd: int, operation: int) -> None:
        is_file = not os.path.isdir(f"/proc/self/fd/{fd}")
        is_writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        if is_file and operation & fcntl.LOCK_EX and not is_writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd, operation)

    monkeypatch.setattr(state_directory, "is_shared", lambda tree: True)
    monkeypatch.setattr(flock.fcntl, "flock", nfs)
    with environment().replacing(Target((tmp_path,))):
        pass
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert environment(tmp_path).read(lambda: "read") == "read"
    with environment(tmp_path).building():
        pass
    with pytest.raises(UnusableEnvironment, match="cannot lock it"), environment().replacing(Target((tmp_path,))):
        pass
