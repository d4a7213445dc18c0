"""The faults that tests put in the way of a change, themselves put to the test."""

import errno
import os
import signal
from pathlib import Path

import pytest

from safe_pip import fs
from tests.support.faults import disk


def act(path: Path) -> None:
    with fs.Directory.open(path) as directory:
        fs.make_directory(directory, "inner")
        fs.write_new(directory, "file", b"12345678")
        fs.move(directory, "file", directory, "moved")


def persist(path: Path) -> None:
    """Try everything, whatever fails, and clean up."""
    try:
        for name in ("a", "b", "c"):
            try:
                fs.write(path / name, b"content")
            except OSError:
                fs.write(path / f"{name}-again", b"content")
    finally:
        fs.unlink(path / "a")


def test_changes_are_recorded_in_order_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk.record() as changes:
        act(tmp_path)
    place = str(tmp_path)
    assert changes == [
        ("make_directory", f"{place}/inner", ""),
        ("create", f"{place}/file", ""),
        ("write", f"{place}/file", ""),
        ("move", f"{place}/moved", f"{place}/file"),
    ]
    monkeypatch.chdir(tmp_path)
    with disk.record() as changes:
        fs.rename_path(Path("moved"), Path("again"))
    assert changes == [("rename", f"{place}/again", f"{place}/moved")]
    assert changes[0].paths == (f"{place}/again", f"{place}/moved")


@pytest.mark.parametrize(
    ("k", "left"),
    [(0, []), (1, ["inner"]), (2, ["file", "inner"]), (3, ["file", "inner"])],
)
def test_a_crash_comes_before_its_change(tmp_path: Path, k: int, left: list[str]) -> None:
    with pytest.raises(disk.Crashed), disk.crash_at(k) as trial:
        act(tmp_path)
    assert sorted(os.listdir(tmp_path)) == left
    assert len(trial.changes) == k + 1
    assert trial.struck == trial.changes[-1]


def test_nothing_is_changed_after_a_crash(tmp_path: Path) -> None:
    with pytest.raises(disk.Crashed), disk.crash_at(2) as trial:
        persist(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert [change.operation for change in trial.changes] == ["create", "write", "create", "remove"]


def test_a_torn_write_leaves_half(tmp_path: Path) -> None:
    with pytest.raises(disk.Crashed), disk.crash_at(2, torn=True):
        act(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"1234"
    with pytest.raises(OSError) as caught, disk.error_at(1, errno.ENOSPC, torn=True):
        fs.write(tmp_path / "other", b"abcdef")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "other").read_bytes() == b"abc"


def test_an_error_comes_once_or_for_ever(tmp_path: Path) -> None:
    with disk.error_at(2, errno.EIO) as trial:
        persist(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["b-again", "c"]
    assert trial.struck is not None
    assert trial.struck.path == str(tmp_path / "b")
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(OSError) as caught, disk.error_at(2, errno.EIO, forever=True):
        persist(tmp_path)
    assert caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_still_lets_files_be_removed(tmp_path: Path) -> None:
    with pytest.raises(OSError), disk.error_at(2, errno.ENOSPC, forever=True, only=disk.GROWING) as trial:
        persist(tmp_path)
    assert os.listdir(tmp_path) == []
    assert [change.operation for change in trial.changes] == ["create", "write", "create", "create", "remove"]


def test_a_fault_beyond_the_last_change_does_nothing(tmp_path: Path) -> None:
    with disk.crash_at(4) as trial:
        act(tmp_path)
    assert trial.struck is None


def test_the_earlier_observer_is_restored_afterwards(tmp_path: Path) -> None:
    with disk.record() as outer:
        with pytest.raises(disk.Crashed), disk.crash_at(0):
            act(tmp_path)
        act(tmp_path)
    assert [change.operation for change in outer] == ["make_directory", "make_directory", "create", "write", "move"]
    assert fs.watch.observer is None


def test_a_killed_child_leaves_what_it_had_done(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            with disk.kill_at(2, torn=True):
                act(tmp_path)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"1234"
