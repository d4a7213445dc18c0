"""The state directory: complete or absent, with the access rights of the tree, and made only by permitted users."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import Directory, attributes, watch
from safe_pip.locking import state_directory

FILES = ["commit", "commit.gate", "environment.gate", "keep", "keep.gate"]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o2775])
def test_it_has_the_trees_mode_whatever_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    tmp_path.chmod(mode)
    before = os.umask(mask)
    try:
        assert state_directory.make(tmp_path)
    finally:
        os.umask(before)
    state = tmp_path / ".safe-pip"
    assert sorted(os.listdir(state)) == FILES
    assert state.stat().st_mode & 0o7777 == mode
    assert {path.stat().st_mode & 0o7777 for path in state.iterdir()} == {mode & 0o666}


def test_it_is_made_once_and_completed_if_a_file_is_missing(tmp_path: Path) -> None:
    assert state_directory.make(tmp_path)
    assert not state_directory.make(tmp_path)
    inode = (tmp_path / ".safe-pip" / "commit").stat().st_ino
    (tmp_path / ".safe-pip" / "commit.gate").unlink()
    assert not state_directory.make(tmp_path)
    assert sorted(os.listdir(tmp_path / ".safe-pip")) == FILES
    assert (tmp_path / ".safe-pip" / "commit").stat().st_ino == inode


def test_the_loser_of_the_race_uses_the_state_directory_of_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = fs.move_over

    def late(source: Directory, name: str, destination: Directory, new_name: str) -> None:
        (tmp_path / ".safe-pip" / "stage").mkdir(parents=True)
        rename(source, name, destination, new_name)

    monkeypatch.setattr(fs, "move_over", late)
    assert not state_directory.make(tmp_path)
    assert os.listdir(tmp_path) == [".safe-pip"]
    assert state_directory.has_locks(tmp_path)


@pytest.mark.parametrize(
    ("module", "failing"), [(fs, "make_directory"), (fs, "write_new"), (fs, "move_over"), (attributes, "set_access")]
)
def test_a_failure_while_it_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, failing: str
) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(UnusableEnvironment, match="No space left"):
        state_directory.make(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exchanges_tree", [True, False])
def test_a_link_that_another_user_puts_there_while_it_is_made_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges_tree: bool
) -> None:
    """Before each change in turn, the tree, or what is made in it, is exchanged for a link."""
    changes: list[str] = []
    for number in range(50):
        base = tmp_path / str(number)
        tree, other = base / "tree", base / "other"
        tree.mkdir(parents=True)
        other.mkdir(mode=0o700)
        changes.clear()

        def exchange(*change: str, number: int = number, tree: Path = tree, other: Path = other) -> None:
            changes.append(change[0])
            if len(changes) == number:
                for path in [tree] if exchanges_tree else list(tree.iterdir()):
                    path.rename(tree.with_name("moved"))
                    path.symlink_to(other)

        monkeypatch.setattr(watch, "observer", exchange)
        with suppress(UnusableEnvironment, FileNotFoundError):
            state_directory.make(tree)
        monkeypatch.setattr(watch, "observer", None)
        assert os.listdir(other) == []
        assert other.stat().st_mode & 0o777 == 0o700
    assert len(changes) < 50, "there are more changes than rounds"


def test_a_symbolic_link_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    state = tmp_path / ".safe-pip"
    state.symlink_to(tmp_path)
    with pytest.raises(UnusableEnvironment, match="symbolic link"):
        state_directory.make(tmp_path)
    state.unlink()
    state.touch()
    with pytest.raises(UnusableEnvironment, match="not a directory"):
        state_directory.exists(tmp_path)


def test_a_tree_that_is_read_only_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(fs, "make_directory", fail)
    with pytest.raises(UnusableEnvironment, match="is not writable") as caught:
        state_directory.make(tmp_path)
    assert caught.value.exit_status == 78


def test_one_that_another_process_made_and_removed_meanwhile_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_empty(*args: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(fs, "move_over", not_empty)
    with pytest.raises(FileNotFoundError):
        state_directory.make(tmp_path)
    assert os.listdir(tmp_path) == []


def test_it_is_removed_though_another_process_makes_a_lock_file_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_directory.make(tmp_path)
    opened = Directory.open(str(state_directory.path_of(tmp_path)))
    remove, tried = os.rmdir, list[object]()

    def racing(name: str, *, dir_fd: int | None = None) -> None:
        tried.append(name)
        if len(tried) == 1:
            fs.write_new(opened, "commit", b"")
        remove(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", racing)
    assert state_directory.remove(tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(tried) == 3, "twice with a look between, then it was listed anew"
    opened.close()


def test_only_lock_files_are_removed(tmp_path: Path) -> None:
    state_directory.make(tmp_path)
    (tmp_path / ".safe-pip" / "owner").touch()
    assert state_directory.remove(tmp_path)
    assert os.listdir(tmp_path) == []
    assert not state_directory.remove(tmp_path)
    state_directory.make(tmp_path)
    (tmp_path / ".safe-pip" / "1.journal").touch()
    assert not state_directory.remove(tmp_path)
    assert (tmp_path / ".safe-pip" / "commit").exists()


@pytest.mark.parametrize("name", ["x.journal", "x.undoing", "x.home"])
def test_a_journal_and_what_leads_to_one_are_found(tmp_path: Path, name: str) -> None:
    assert not state_directory.has_journal(tmp_path)
    state_directory.make(tmp_path)
    assert not state_directory.has_journal(tmp_path)
    (tmp_path / ".safe-pip" / name).touch()
    assert state_directory.has_journal(tmp_path)


def test_on_a_file_server_there_is_one_lock_file_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "is_shared", lambda tree: True)
    state_directory.make(tmp_path)
    assert sorted(os.listdir(tmp_path / ".safe-pip")) == [
        "commit",
        "commit.gate",
        "environment",
        "environment.gate",
        "keep",
        "keep.gate",
    ]
