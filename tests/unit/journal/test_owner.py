"""The owner file: locked while its process lives, and complete about what it has elsewhere."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import proc
from safe_pip.journal.owner import Owner, OwnerNote, read
from safe_pip.locking import flock
from tests.support.faults import disk
from tests.support.processes.forks import in_child, killed_at, need_user, reachable


@pytest.fixture
def owner(tmp_path: Path):
    made = Owner.make(tmp_path)
    yield made
    made.close()


def test_the_owner_file_has_the_name_of_the_transaction_and_describes_its_process(tmp_path: Path, owner: Owner) -> None:
    assert owner.path == tmp_path / f"{owner.identifier}.owner"
    assert len(owner.identifier) == 16
    assert os.listdir(tmp_path) == [owner.path.name]
    first = json.loads(owner.path.read_text().splitlines()[0])
    assert first.keys() == {"pid", "command", "since"}
    note = read(owner.path)
    assert note.pid == os.getpid()
    assert note.command == proc.command(os.getpid())
    assert note.since > 0
    assert note.parts == note.marks == ()


def test_an_owner_file_is_not_adopted_while_its_process_lives(owner: Owner) -> None:
    assert Owner.adopt(owner.path) is None
    in_child(lambda: check(Owner.adopt(owner.path) is None))
    assert flock.is_locked(owner.path)


def check(is_true: bool) -> None:
    assert is_true


def test_one_of_a_dead_process_is_adopted_by_one(tmp_path: Path) -> None:
    in_child(lambda: Owner.make(tmp_path))
    (path,) = tmp_path.iterdir()
    adopted = Owner.adopt(path)
    assert adopted is not None
    assert adopted.identifier == path.name.removesuffix(".owner")
    assert Owner.adopt(path) is None
    path.unlink()
    adopted.close()
    assert Owner.adopt(path) is None


def test_released_it_stays_for_the_next_one(owner: Owner) -> None:
    owner.close()
    adopted = Owner.adopt(owner.path)
    assert adopted is not None
    adopted.close()
    assert owner.path.exists()


def test_a_forked_child_neither_has_it_nor_lets_it_go(owner: Owner) -> None:
    def act() -> None:
        assert not owner.is_ours
        owner.close()

    in_child(act)
    assert owner.path.exists()
    assert flock.is_locked(owner.path)


def test_what_it_has_elsewhere_is_appended_in_place(owner: Owner) -> None:
    inode = owner.path.stat().st_ino
    owner.append("part", "/a/.safe-pip/x")
    owner.append("mark", "/b/.safe-pip")
    owner.append("part", "/c/\udcff\n/.safe-pip/x")
    note = read(owner.path)
    assert note.parts == ("/a/.safe-pip/x", "/c/\udcff\n/.safe-pip/x")
    assert note.marks == ("/b/.safe-pip",)
    assert owner.path.stat().st_ino == inode
    assert flock.is_locked(owner.path)


def test_each_note_is_one_write(owner: Owner) -> None:
    with disk.record() as changes:
        owner.append("part", "/a/.safe-pip/x")
    assert [change.operation for change in changes] == ["write"]


def test_every_torn_end_of_it_is_read_without_what_was_torn(tmp_path: Path, owner: Owner) -> None:
    owner.append("part", "/a/.safe-pip/x")
    owner.append("mark", "/b/.safe-pip")
    whole, content = read(owner.path), owner.path.read_bytes()
    copy = tmp_path / "copy"
    for length in range(len(content)):
        copy.write_bytes(content[:length])
        note = read(copy)
        assert note.pid in (whole.pid, 0)
        assert whole.parts[: len(note.parts)] == note.parts
        assert whole.marks[: len(note.marks)] == note.marks
    assert note == whole._replace(marks=whole.marks)


def test_a_note_that_a_full_disk_tore_spoils_no_later_one(owner: Owner) -> None:
    with pytest.raises(OSError), disk.error_at(0, 28, torn=True):
        owner.append("part", "/a/.safe-pip/x")
    owner.append("part", "/b/.safe-pip/x")
    assert read(owner.path).parts == ("/b/.safe-pip/x",)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"1\n", b'{"pid": "x", "command": 1}', b'{"part": "/a"', b"{}"]
)
def test_what_is_no_note_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.owner"
    path.write_bytes(content)
    assert read(path) == OwnerNote()


def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "secret").write_text(json.dumps({"part": "/a"}))
    (tmp_path / "link").symlink_to("secret")
    for name in ("pipe", "link", "nothing"):
        assert read(tmp_path / name) == OwnerNote()
        assert Owner.adopt(tmp_path / name) is None


def test_a_command_line_cannot_send_control_characters_to_the_terminal_of_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.owner"
    path.write_text(json.dumps({"pid": 1, "command": "\033[2J" + "x" * 999, "since": 1.5}))
    note = read(path)
    assert note.command.startswith("?[2Jxx")
    assert len(note.command) <= 200


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2775])
def test_every_user_who_can_read_the_state_directory_can_read_the_owner_file(
    tmp_path: Path, mask: int, mode: int
) -> None:
    tmp_path.chmod(mode)
    before = os.umask(mask)
    try:
        made = Owner.make(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.path.stat().st_mode) == mode & 0o666 | 0o444
    made.close()


def test_another_user_can_adopt_a_read_only_owner_file(tmp_path: Path) -> None:
    need_user()
    in_child(lambda: Owner.make(reachable(tmp_path)))
    (path,) = tmp_path.iterdir()
    in_child(lambda: check(Owner.adopt(path) is not None), user="nobody")


def test_it_belongs_to_the_group_of_the_tree(tmp_path: Path) -> None:
    group = need_user().pw_gid
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(0o775)
    made = Owner.make(tmp_path)
    assert made.path.stat().st_gid == group
    assert made.path.stat().st_mode & 0o777 == 0o664
    made.close()


def test_an_owner_file_that_is_inspected_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_lock, tried = flock.try_lock, []

    def looked_at(descriptor: flock.Descriptor, *, exclusive: bool) -> bool:
        tried.append(descriptor.path.name)
        return try_lock(descriptor, exclusive=exclusive) if len(tried) > 1 else False

    monkeypatch.setattr(flock, "try_lock", looked_at)
    made = Owner.make(tmp_path)
    assert len(set(tried)) == 2
    assert os.listdir(tmp_path) == [made.path.name] == tried[1:]
    made.close()


def test_an_owner_file_that_is_replaced_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inode would be locked, and no other process would ever find it."""
    try_lock, first = flock.try_lock, []

    def replaced(descriptor: flock.Descriptor, *, exclusive: bool) -> bool:
        if not first:
            first.append(descriptor.path)
            (tmp_path / "other").touch()
            os.replace(tmp_path / "other", descriptor.path)
        return try_lock(descriptor, exclusive=exclusive)

    monkeypatch.setattr(flock, "try_lock", replaced)
    made = Owner.make(tmp_path)
    assert [made.path] != first
    assert flock.is_locked(made.path)
    assert os.listdir(tmp_path) == [made.path.name]
    made.close()


def test_an_error_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    with disk.record() as changes:
        made = Owner.make(tmp_path)
    made.close()
    made.path.unlink()
    for k in range(len(changes)):
        with pytest.raises(OSError), disk.error_at(k, 5):
            Owner.make(tmp_path)
        assert os.listdir(tmp_path) == []
    assert not flock.own_descriptors()


def test_where_there_are_no_locks_it_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: flock.Descriptor, *, exclusive: bool) -> bool:
        raise UnusableEnvironment("no locks")

    monkeypatch.setattr(flock, "try_lock", refuse)
    with pytest.raises(UnusableEnvironment):
        Owner.make(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_kill_while_it_is_made_leaves_at_most_a_file_that_is_dead(tmp_path: Path) -> None:
    k = 0
    while killed_at(k, lambda: Owner.make(tmp_path).append("part", "/a/.safe-pip/x")):
        for path in tmp_path.iterdir():
            adopted = Owner.adopt(path)
            assert adopted is not None
            assert read(adopted.path).parts == ()
            adopted.close()
            path.unlink()
        k += 1
    assert k >= 3


def test_threads_make_their_own(tmp_path: Path) -> None:
    made: list[Owner] = []
    threads = [threading.Thread(target=lambda: made.append(Owner.make(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.identifier for each in made}) == 8
    assert all(flock.is_locked(each.path) for each in made)
    for each in made:
        each.close()


def test_its_descriptor_is_closed_before_those_of_the_locks_if_the_process_is_killed(owner: Owner) -> None:
    """The kernel closes the highest descriptor first, so the next holder of the commit lock finds the owner dead."""
    assert max(flock.own_descriptors()) > 100
