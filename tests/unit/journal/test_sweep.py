"""Remains of dead processes are deleted, living and unfinished transactions are not, and no claim is trusted."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_pip.environment.stage import Stage
from safe_pip.journal import parts, sweep
from safe_pip.journal.owner import Owner, read
from safe_pip.locking import flock, state_directory
from safe_pip.merge.plan import Kind, Operation
from tests.support.faults import disk
from tests.support.faults.filesystems import another_filesystem
from tests.support.faults.transaction import StagedTransaction
from tests.support.processes.forks import in_child, killed_at, need_user, reachable

LOCKS = ["commit", "commit.gate", "environment.gate", "keep", "keep.gate"]
OTHER = "fedcba9876543210"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "lib"
    made.mkdir()
    state_directory.make(made)
    return made


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another filesystem, or at least another directory."""
    made = Path(tempfile.mkdtemp(prefix="safe-pip-test-", dir=another_filesystem(tmp_path) or tmp_path))
    yield made
    shutil.rmtree(made)


def clean(tree: Path) -> None:
    sweep.find(tree).delete()


def left_in(tree: Path) -> list[str]:
    return sorted(os.listdir(tree / ".safe-pip"))


def live(home: Path, elsewhere: Path) -> Stage:
    """Everything that a stage does, but for its end."""
    stage = Stage(home)
    stage.mirror(str(home))
    for name in ("a.py", "b.py"):
        Path(f"{stage.root}{home}/{name}").write_text("x")
    number = stage.add_part(str(elsewhere))
    stage.move_to_part(f"{stage.root}{home}/b.py", number)
    (elsewhere / "bin").mkdir(exist_ok=True)
    stage.mark(str(elsewhere / "bin"))
    stage.add_markers([Operation(Kind.FILE, 0, "a.py", staged=f"{home}/a.py"[1:])])
    stage.write_journal(b"x")
    return stage


def check_nothing_is_left(home: Path, elsewhere: Path) -> None:
    assert left_in(home) == LOCKS
    assert {path.name for path in elsewhere.rglob("*")} <= {"bin"}
    assert not flock.own_descriptors()


@pytest.mark.slow
def test_whenever_it_is_killed_nothing_is_left(home: Path, elsewhere: Path) -> None:
    k = 0
    while killed_at(k, lambda: live(home, elsewhere).close()):
        clean(home)
        check_nothing_is_left(home, elsewhere)
        k += 1
    assert k > 50


@pytest.mark.slow
def test_a_sweep_that_is_killed_is_continued_by_the_next_one(home: Path, elsewhere: Path) -> None:
    k, is_killed = 0, True
    while is_killed:
        in_child(lambda: live(home, elsewhere))
        is_killed = killed_at(k, lambda: clean(home))
        clean(home)
        check_nothing_is_left(home, elsewhere)
        k += 1
    assert k > 10


def test_what_cannot_be_deleted_now_is_deleted_later(home: Path, elsewhere: Path) -> None:
    in_child(lambda: live(home, elsewhere))
    with disk.record() as changes:
        clean(home)
    for k in range(len(changes)):
        in_child(lambda: live(home, elsewhere))
        with disk.error_at(k, 5):
            clean(home)
        clean(home)
        if os.path.isdir(elsewhere / ".safe-pip"):
            assert os.listdir(elsewhere / ".safe-pip") == []  # only its own removal failed, which is tried once
            (elsewhere / ".safe-pip").rmdir()
        shutil.rmtree(elsewhere / "bin")
        check_nothing_is_left(home, elsewhere)


def test_one_that_lives_is_left_alone(home: Path, elsewhere: Path) -> None:
    stage = live(home, elsewhere)
    before = [left_in(home), sorted(elsewhere.rglob("*"))]
    for tree in (home, elsewhere, elsewhere / "bin"):
        clean(tree)
        in_child(lambda tree=tree: clean(tree))
    assert [left_in(home), sorted(elsewhere.rglob("*"))] == before
    stage.close()
    check_nothing_is_left(home, elsewhere)


def test_nothing_is_deleted_before_delete_is_called(home: Path, elsewhere: Path) -> None:
    in_child(lambda: live(home, elsewhere))
    before = left_in(home)
    with disk.record() as changes:
        remains = sweep.find(home)
    assert changes == []
    assert left_in(home) == before
    remains.delete()
    check_nothing_is_left(home, elsewhere)


def test_what_another_process_deletes_is_left_to_it(home: Path, elsewhere: Path) -> None:
    in_child(lambda: live(home, elsewhere))
    before, remains = left_in(home), sweep.find(home)
    owner = Owner.adopt(home / ".safe-pip" / f"{remains.dead[0].identifier}.owner")
    assert owner is not None
    remains.delete()
    assert left_in(home) == before
    owner.close()
    clean(home)
    remains.delete()
    check_nothing_is_left(home, elsewhere)


def test_a_tree_where_there_is_nothing_to_do_is_listed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    names = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or names(path))
    assert sweep.find(home) == sweep.Remains(str(home))
    assert listed == [f"{home}/.safe-pip"]
    assert sweep.find(home.parent) == sweep.Remains(str(home.parent))


def test_the_file_of_a_turn_goes_when_no_process_has_it(home: Path) -> None:
    held, dead = (state_directory.make_turn(home, name) for name in ("held", "dead"))
    (home / ".safe-pip" / "0123456789abcdef.owner").touch()  # of the killed process
    with flock.Descriptor(held, writable=True) as lock:
        assert flock.try_lock(lock, exclusive=True)
        sweep.find(home)
        assert (held.exists(), dead.exists()) == (True, False)
    sweep.find(home)
    assert not held.exists()


def test_what_has_a_journal_is_left_to_recovery(tmp_path: Path) -> None:
    transaction = StagedTransaction(tmp_path)
    transaction.add(Kind.NEW, "new.py", new="x")
    transaction.write_journal()
    for without_owner in (False, True):
        if without_owner:
            (transaction.state / f"{transaction.identifier}.owner").unlink()
        before = sorted(tmp_path.rglob("*"))
        for tree in (transaction.home, transaction.bin):
            clean(tree)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".journal", ".committed"])
def test_what_got_a_journal_and_died_after_the_sweeper_had_looked_is_left_to_recovery(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    in_child(lambda: live(home, elsewhere))
    adopt, before = Owner.adopt, sorted((home / ".safe-pip").rglob("*"))

    def adopt_later(path: Path) -> Owner | None:
        path.with_suffix(suffix).touch()
        return adopt(path)

    monkeypatch.setattr(Owner, "adopt", adopt_later)
    clean(home)
    (unfinished,) = (home / ".safe-pip").glob(f"*{suffix}")
    assert sorted((home / ".safe-pip").rglob("*")) == sorted([*before, unfinished])
    assert not flock.is_locked(unfinished.with_suffix(".owner"))
    unfinished.unlink()
    monkeypatch.undo()
    clean(home)
    check_nothing_is_left(home, elsewhere)


@pytest.mark.parametrize("has_owner", [True, False])
def test_what_was_committed_is_finished(tmp_path: Path, has_owner: bool) -> None:
    transaction = StagedTransaction(tmp_path)
    transaction.add(Kind.NEW, "new", new={"a.py": "x"})
    transaction.add(Kind.REMOVE, "old", old={"b.py": "y", "late": "data"}, known=("b.py",))
    transaction.write_journal()
    transaction.do()
    transaction.commit()
    if not has_owner:
        (transaction.state / f"{transaction.identifier}.owner").unlink()
    clean(transaction.bin)
    clean(transaction.home)
    assert transaction.content() == {"0": {"new": {"a.py": "x"}, "old": {"late": "data"}}, "1": {}}
    assert transaction.leftovers() == []


def test_what_was_committed_by_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    transaction = StagedTransaction(tmp_path)
    transaction.add(Kind.NEW, "new", new={"a.py": "x"})
    transaction.write_journal()
    transaction.do()
    transaction.commit()
    owner = Owner.adopt(transaction.state / f"{transaction.identifier}.owner")
    assert owner is not None
    clean(transaction.home)
    assert transaction.committed.path.exists()
    assert (transaction.home / "new" / f".safe-pip-{transaction.identifier}").exists()
    owner.close()
    clean(transaction.home)
    assert transaction.leftovers_of_home() == []


@pytest.mark.parametrize("suffix", [".journal", ".committed"])
def test_a_part_is_no_orphan_as_long_as_its_home_knows_of_it(home: Path, elsewhere: Path, suffix: str) -> None:
    in_child(lambda: live(home, elsewhere))
    (owner,) = (home / ".safe-pip").glob("*.owner")
    (part,) = (each for each in (elsewhere / ".safe-pip").iterdir() if each.is_dir())
    os.utime(part, (0, 0))
    unfinished = owner.with_suffix(suffix)
    unfinished.touch()
    clean(elsewhere)
    assert (part / "stage").is_dir()
    unfinished.unlink()
    clean(elsewhere)
    assert not part.exists()
    clean(home)
    check_nothing_is_left(home, elsewhere)


def test_a_private_directory_whose_owner_file_is_gone_is_deleted_when_it_is_old_and_nothing_else(home: Path) -> None:
    state = home / ".safe-pip"
    (state / OTHER / "stage").mkdir(parents=True)
    (state / "mine").mkdir()
    (state / "0123").mkdir()
    clean(home)
    assert (state / OTHER / "stage").exists()  # of a process that is about to write its owner file
    for name in (OTHER, "mine", "0123"):
        os.utime(state / name, (0, 0))
    (state / f"{OTHER}.txt").touch()
    (home / OTHER).mkdir()
    clean(home)
    assert left_in(home) == sorted([*LOCKS, "mine", "0123", f"{OTHER}.txt"])
    assert (home / OTHER).is_dir()


# Marks


def mark(directory: Path, content: str, age: float = 0.0) -> Path:
    path = directory / ".safe-pip" / f"{OTHER}.home"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("suffix", [".journal", ".committed"])
def test_a_mark_stays_as_long_as_what_it_leads_to_is_unfinished(home: Path, elsewhere: Path, suffix: str) -> None:
    path = mark(elsewhere, f"{home}\n", age=1e6)
    unfinished = home / ".safe-pip" / f"{OTHER}{suffix}"
    unfinished.touch()
    clean(elsewhere)
    assert path.exists()
    unfinished.unlink()
    clean(elsewhere)
    assert not path.exists()


def test_a_mark_stays_if_what_it_leads_to_becomes_unfinished_while_it_is_looked_at(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two looks its process leaves a journal, and dies."""
    owner, state = Owner.make(home / ".safe-pip"), home / ".safe-pip"
    path = mark(elsewhere, f"{home}\n", age=1e6)
    path = path.rename(path.with_stem(owner.identifier))
    is_locked, listdir = flock.is_locked, os.listdir

    def die() -> None:
        (state / f"{owner.identifier}.journal").touch()
        owner.close()

    def look_and_die(path: Path) -> bool:
        found = is_locked(path)
        die()
        return found

    def list_and_die(path: Any = ".") -> list[str]:
        found = listdir(path)
        if str(path) == str(state):
            die()
        return found

    monkeypatch.setattr(flock, "is_locked", look_and_die)
    monkeypatch.setattr(os, "listdir", list_and_die)
    clean(elsewhere)
    assert path.exists()
    assert not flock.own_descriptors()


def test_a_mark_that_leads_nowhere_stays_for_a_while(tmp_path: Path, elsewhere: Path) -> None:
    """Its environment may be one that is not to be seen from here: of a container, on a disk that comes back."""
    path = mark(elsewhere, f"{tmp_path}/gone\n")
    clean(elsewhere)
    assert path.exists()
    mark(elsewhere, f"{tmp_path}/gone\n", age=7200)
    clean(elsewhere)
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "no path\n", "/no/end"])
def test_a_mark_that_is_none_stays_for_a_while(elsewhere: Path, content: str) -> None:
    path = mark(elsewhere, content)
    clean(elsewhere)
    assert path.exists()
    mark(elsewhere, content, age=7200)
    clean(elsewhere)
    assert not path.exists()


# State directories that were being made


def aside(tree: Path, name: str = ".safe-pip-abcdefgh", age: float = 7200.0, content: str = "commit") -> Path:
    path = tree / name
    path.mkdir()
    if content:
        (path / content).touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_state_directory_that_was_left_aside_is_deleted_when_it_is_old(home: Path) -> None:
    old, empty = aside(home), aside(home, ".safe-pip-12345678", content="")
    kept = [
        aside(home, ".safe-pip-younger_", age=60.0),
        aside(home, ".safe-pip-somedata", content="data"),
        aside(home, "safe-pip-abcdefgh"),
    ]
    (home / ".safe-pip-link").symlink_to(old)
    clean(home)
    assert not old.exists()
    assert not empty.exists()
    assert all(path.exists() for path in kept)
    assert (home / ".safe-pip-link").is_symlink()


def test_that_of_another_user_is_left_alone(tmp_path: Path) -> None:
    user = need_user()
    home = reachable(tmp_path) / "lib"
    home.mkdir()
    state_directory.make(home)
    home.chmod(0o777)
    path = aside(home)
    os.chown(path, 0, 0)
    in_child(lambda: clean(home), user=user.pw_name)
    assert path.exists()


# Other users


def forge(home: Path, *lines: str) -> Path:
    path = home / ".safe-pip" / f"{OTHER}.owner"
    path.write_text('{"pid": 1, "command": "x", "since": 1}\n' + "".join(f"\n{line}\n" for line in lines))
    return path


def test_a_note_deletes_nothing_that_belongs_to_another_home(tmp_path: Path, home: Path, elsewhere: Path) -> None:
    """A user with write access to one environment names the private directory of a transaction of another."""
    other = tmp_path / "other"
    other.mkdir()
    state_directory.make(other)
    owner = Owner.make(other / ".safe-pip")
    part = parts.make_part(owner, str(other), str(elsewhere), is_tree=False)
    parts.make_mark(owner, str(other), str(elsewhere), is_tree=False)
    Path(part, "stage", "data").write_text("precious")
    state = elsewhere / ".safe-pip"
    victim = forge(home, f'{{"part": "{part}"}}', f'{{"mark": "{state}"}}')
    victim.rename(victim.with_name(f"{owner.identifier}.owner"))
    clean(home)
    assert Path(part, "stage", "data").read_text() == "precious"
    assert (state / f"{owner.identifier}.home").exists()
    parts.delete(str(other), owner.identifier, read(owner.path))
    owner.close()


def test_a_note_deletes_nothing_of_another_transaction_of_the_same_home(home: Path, elsewhere: Path) -> None:
    stage = Stage(home)
    stage.add_part(str(elsewhere))
    stage.mark(str(elsewhere))
    before = sorted(elsewhere.rglob("*"))
    forge(home, f'{{"part": "{stage.parts[1]}"}}', f'{{"mark": "{elsewhere}/.safe-pip"}}')
    clean(home)
    assert sorted(elsewhere.rglob("*")) == before
    stage.close()
    check_nothing_is_left(home, elsewhere)


@pytest.mark.parametrize("name", ["data", ".safe-pip", f".safe-pip/../data/{OTHER}", f"x/.safe-pip/{OTHER}"])
def test_a_note_deletes_nothing_but_private_directories(home: Path, elsewhere: Path, name: str) -> None:
    (elsewhere / "data" / OTHER / "stage").mkdir(parents=True)
    (elsewhere / "data" / OTHER / "home").write_text(f"{home}\n")
    (elsewhere / ".safe-pip" / "mine").mkdir(parents=True)
    (elsewhere / "real" / ".safe-pip" / OTHER).mkdir(parents=True)
    (elsewhere / "real" / ".safe-pip" / OTHER / "home").write_text(f"{home}\n")
    (elsewhere / "x").symlink_to("real")
    before = sorted(elsewhere.rglob("*"))
    forge(home, f'{{"part": "{elsewhere}/{name}"}}', f'{{"mark": "{elsewhere}/{name}"}}')
    clean(home)
    assert sorted(elsewhere.rglob("*")) == before


def test_symbolic_links_are_not_followed(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / OTHER / "stage").mkdir(parents=True)
    (target / "data").write_text("precious")
    state = home / ".safe-pip"
    (state / OTHER).symlink_to(target)
    (state / "0123456789abcdef").mkdir()
    (state / "0123456789abcdef" / "stage").symlink_to(target)
    os.utime(state / "0123456789abcdef", (0, 0))
    (state / "1111111111111111.owner").symlink_to(target / "data")
    (state / "2222222222222222.home").symlink_to(target / "data")
    clean(home)
    assert (target / "data").read_text() == "precious"
    assert (target / OTHER / "stage").is_dir()
    assert not (state / "0123456789abcdef").exists()
    shutil.rmtree(state)
    state.symlink_to(target)
    (target / "1111111111111111").mkdir()
    os.utime(target / "1111111111111111", (0, 0))
    clean(home)
    assert (target / "1111111111111111").is_dir()


def test_what_a_stranger_put_there_is_not_believed(tmp_path: Path) -> None:
    user = need_user()
    home = tmp_path / "lib"
    home.mkdir()
    state_directory.make(home)
    elsewhere = tmp_path / "bin"
    part = elsewhere / ".safe-pip" / OTHER
    part.mkdir(parents=True)
    (part / "home").write_text(f"{home}\n")
    forged = forge(home, f'{{"part": "{part}"}}')
    os.chown(forged, user.pw_uid, user.pw_gid)
    clean(home)
    assert part.is_dir()
    assert forged.exists()
    os.chown(home / ".safe-pip", user.pw_uid, user.pw_gid)
    (home / ".safe-pip" / "1111111111111111").mkdir()
    os.utime(home / ".safe-pip" / "1111111111111111", (0, 0))
    clean(home)
    assert (home / ".safe-pip" / "1111111111111111").is_dir()


def test_remains_that_this_user_may_not_delete_are_left(tmp_path: Path) -> None:
    user = need_user()
    home, elsewhere = reachable(tmp_path) / "lib", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    state_directory.make(home)
    in_child(lambda: live(home, elsewhere))
    before = left_in(home)
    in_child(lambda: clean(home), user=user.pw_name)
    assert left_in(home) == before
    clean(home)
    check_nothing_is_left(home, elsewhere)


def test_root_cleans_up_after_the_owner_of_an_environment(tmp_path: Path) -> None:
    user = need_user()
    home, elsewhere = reachable(tmp_path) / "lib", tmp_path / "elsewhere"
    for path in (home, elsewhere):
        path.mkdir()
        os.chown(path, user.pw_uid, user.pw_gid)
    state_directory.make(home)
    in_child(lambda: live(home, elsewhere), user=user.pw_name)
    clean(home)
    check_nothing_is_left(home, elsewhere)
