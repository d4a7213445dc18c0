"""Holders of a lock, as /proc shows them."""

import os
from pathlib import Path

import pytest

from safe_pip.fs import proc
from safe_pip.locking import holders
from safe_pip.locking.flock import Descriptor, try_lock
from tests.support.processes.proc import fake_proc

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="there is no /proc/locks")


def test_holders_and_waiters_of_flocks_are_read_and_other_locks_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_proc(
        tmp_path,
        monkeypatch,
        locks="1: FLOCK  ADVISORY  WRITE 12 fe:00:131 0 EOF\n"
        "1: -> FLOCK  ADVISORY  READ 13 fe:00:131 0 EOF\n"
        "2: POSIX  ADVISORY  WRITE 14 fe:00:132 0 EOF\n"
        "3: LEASE  ACTIVE    READ 15 fe:00:133 0 EOF\n"
        "\n",
    )
    assert holders.entries() == [
        holders.Entry("fe:00:131", 12, exclusive=True, is_waiting=False),
        holders.Entry("fe:00:131", 13, exclusive=False, is_waiting=True),
    ]


def test_a_lock_that_the_kernel_leaves_out_between_two_pages_is_found(tmp_path, monkeypatch) -> None:
    fake_proc(tmp_path, monkeypatch, locks="")
    lines = [f"{number}: FLOCK ADVISORY WRITE {number} 00:01:{number} 0 EOF\n".encode() for number in range(5)]
    pages = iter([b"".join(lines[:2]), b"".join(lines[3:]), b"", b"".join(lines[1:3]), b"".join(lines[3:]), b""])
    monkeypatch.setattr(os, "read", lambda fd, size: next(pages))
    assert [entry.pid for entry in holders.entries()] == [0, 1, 3, 4, 2]


def test_what_fits_into_one_page_is_read_once(tmp_path, monkeypatch) -> None:
    fake_proc(tmp_path, monkeypatch, locks="")
    pages = iter([b"0: FLOCK ADVISORY WRITE 7 00:01:7 0 EOF\n", b""])
    monkeypatch.setattr(os, "read", lambda fd, size: next(pages))
    assert [entry.pid for entry in holders.entries()] == [7]


def test_a_holder_that_waits_for_no_other_lock_shows_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {11: "R", 12: "S", 13: "R", 14: "R", 15: "T", 16: "D", os.getpid(): "R"}
    for pid, state in states.items():
        files = {f"{pid}__schedstat": f"{pid} 7 1\n", f"{pid}__stat": f"{pid} (a R b) {state} 1 2"}
        fake_proc(tmp_path, monkeypatch, **files)
    file = proc.kernel_name_at(tmp_path)

    def work_of(*pids: int) -> tuple[list[str], bool]:
        listed = [f"FLOCK ADVISORY WRITE {pid} {file} 0 EOF" for pid in (*pids, os.getpid())]
        listed += ["-> FLOCK ADVISORY WRITE 13 00:01:1 0 EOF", "FLOCK ADVISORY WRITE 14 00:01:1 0 EOF"]
        fake_proc(tmp_path, monkeypatch, locks="".join(f"{number}: {each}\n" for number, each in enumerate(listed)))
        return holders.work_at(tmp_path)

    assert work_of(11) == (["11 7 1"], True)
    assert work_of(12, 13, 15) == (["12 7 1", "15 7 1"], False)
    assert work_of(12, 16) == (["12 7 1", "16 7 1"], True)
    assert holders.work_at(tmp_path / "nothing") == ([], False)


def test_the_kernel_calls_a_file_by_this_name(tmp_path: Path) -> None:
    descriptor = Descriptor(tmp_path)
    assert try_lock(descriptor, exclusive=False)
    mine = [entry for entry in holders.entries() if entry.pid == os.getpid()]
    assert holders.Entry(proc.kernel_name(descriptor.fd), os.getpid(), False, False) in mine
    descriptor.close()


def test_without_proc_no_holder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_PROC", tmp_path / "missing")
    descriptor = Descriptor(tmp_path)
    assert holders.entries() == []
    assert holders.holders(descriptor.fd) == ()
    assert list(holders.held_by_ancestors()) == []
    descriptor.close()


def test_a_lock_of_an_inherited_descriptor_counts_and_an_own_one_does_not(tmp_path: Path) -> None:
    own = Descriptor(tmp_path)
    try_lock(own, exclusive=False)
    name = proc.kernel_name(own.fd)
    assert name not in [entry.file for entry in holders.held_by_ancestors()]
    inherited = os.dup(own.fd)
    assert name in [entry.file for entry in holders.held_by_ancestors()]
    os.close(inherited)
    own.close()
