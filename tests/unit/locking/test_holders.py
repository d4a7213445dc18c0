"""Who holds a lock, as /proc tells it."""

import os
from pathlib import Path

import pytest

from safe_pip.locking import holders
from safe_pip.locking.flock import Descriptor, try_lock

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="there is no /proc/locks")


def proc(directory: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let the module read these files in place of /proc; `__` in a name stands for `/`."""
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(holders, "_PROC", directory)


def test_holders_and_waiters_of_flocks_are_read_and_other_locks_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc(
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
    proc(tmp_path, monkeypatch, locks="")
    lines = [f"{number}: FLOCK ADVISORY WRITE {number} 00:01:{number} 0 EOF\n".encode() for number in range(5)]
    pages = iter([b"".join(lines[:2]), b"".join(lines[3:]), b"", b"".join(lines[1:3]), b"".join(lines[3:]), b""])
    monkeypatch.setattr(os, "read", lambda fd, size: next(pages))
    assert [entry.pid for entry in holders.entries()] == [0, 1, 3, 4, 2]


def test_what_fits_into_one_page_is_read_once(tmp_path, monkeypatch) -> None:
    proc(tmp_path, monkeypatch, locks="")
    pages = iter([b"0: FLOCK ADVISORY WRITE 7 00:01:7 0 EOF\n", b""])
    monkeypatch.setattr(os, "read", lambda fd, size: next(pages))
    assert [entry.pid for entry in holders.entries()] == [7]


def test_who_holds_a_lock_and_waits_for_no_other_shows_what_he_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {11: "R", 12: "S", 13: "R", 14: "R", 15: "T", 16: "D"}
    for pid, state in states.items():
        files = {f"{pid}__schedstat": f"{pid} 7 1\n", f"{pid}__stat": f"{pid} (a R b) {state} 1 2"}
        proc(tmp_path, monkeypatch, **files)
    file = holders.kernel_name_at(tmp_path)
    listed = [f"FLOCK ADVISORY WRITE {pid} {file} 0 EOF" for pid in (11, 12, 13, 15, 16, os.getpid())]
    listed += ["-> FLOCK ADVISORY WRITE 13 00:01:1 0 EOF", "FLOCK ADVISORY WRITE 14 00:01:1 0 EOF"]
    proc(tmp_path, monkeypatch, locks="".join(f"{number}: {each}\n" for number, each in enumerate(listed)))
    busy = {work.pid: work.is_busy for work in holders.work_at(tmp_path)}
    assert busy == {11: True, 12: False, 15: False, 16: True}
    assert [work.computed for work in holders.work_at(tmp_path)][1] == "12 7 1"
    assert holders.work_at(tmp_path / "nothing") == ()


def test_the_device_is_the_superblocks_where_stat_gives_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    proc(
        tmp_path,
        monkeypatch,
        **{
            f"self__fdinfo__{descriptor}": "pos:\t0\nflags:\t0100000\nmnt_id:\t77\n",
            "self__mountinfo": "76 1 0:1 / / rw - ext4 /dev/a rw\n77 76 0:44 /home /home rw - btrfs /dev/b rw\n",
        },
    )
    assert holders.kernel_name(descriptor) == f"00:2c:{os.fstat(descriptor).st_ino}"
    os.close(descriptor)


def test_the_kernel_calls_a_file_by_this_name(tmp_path: Path) -> None:
    descriptor = Descriptor(tmp_path)
    assert try_lock(descriptor, exclusive=False)
    mine = [entry for entry in holders.entries() if entry.pid == os.getpid()]
    assert holders.Entry(holders.kernel_name(descriptor.fd), os.getpid(), False, False) in mine
    descriptor.close()


def test_the_filesystems_type_is_found_by_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.stat(tmp_path).st_dev
    line = f"77 76 {os.major(device)}:{os.minor(device)} / / rw shared:1 - nfs4 server:/export rw\n"
    proc(tmp_path, monkeypatch, self__mountinfo=line)
    holders._type_on.cache_clear()
    assert holders.filesystem_type(tmp_path) == "nfs4"
    assert holders.filesystem_type(tmp_path / "missing") == ""
    holders._type_on.cache_clear()


def test_a_name_with_blanks_and_parentheses_hides_no_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = " ".join(str(number) for number in range(5, 40))
    proc(
        tmp_path,
        monkeypatch,
        **{
            "9__stat": f"9 (a ) T (b) T 8 {fields}\n",
            "8__stat": f"8 (sh) S 0 {fields}\n",
            "9__cmdline": "make\0-j\0two words\0\n\0",
            "stat": "cpu 1\nbtime 1000\n",
        },
    )
    assert holders.ancestors(9) == [8]
    assert holders._stat(9)[0] == "T"
    assert holders.command(9) == "make -j 'two words' '?'"
    assert holders.start_ticks(9) == 22


def test_what_is_not_there_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "_PROC", tmp_path / "missing")
    descriptor = Descriptor(tmp_path)
    assert holders.entries() == []
    assert holders.holders(descriptor.fd) == ()
    assert holders.ancestors() == []
    assert list(holders.held_by_ancestors(())) == []
    assert holders.command(1) == ""
    assert holders.started(1) is None
    assert holders.filesystem_type(tmp_path) == ""
    descriptor.close()


def test_this_process_descends_from_the_one_that_started_it() -> None:
    assert holders.ancestors()[0] == os.getppid()
    assert holders.command(os.getpid())


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("/venv/bin/python3.13 /venv/bin/safe-pip install six", "safe-pip install six"),
        ("/venv/bin/python -m pip list", "/venv/bin/python -m pip list"),
        ("/usr/bin/python3 /venv/bin/safe-pip list", "/usr/bin/python3 /venv/bin/safe-pip list"),
        ("python3 script.py", "python3 script.py"),
        ("/bin/sh /bin/thing", "/bin/sh /bin/thing"),
    ],
)
def test_a_script_is_shown_as_it_was_typed_without_the_interpreter_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, shown: str
) -> None:
    proc(tmp_path, monkeypatch, **{"9__cmdline": words.replace(" ", "\0") + "\0"})
    assert holders.command(9) == shown


def test_a_lock_of_an_inherited_descriptor_counts_and_an_own_one_does_not(tmp_path: Path) -> None:
    own = Descriptor(tmp_path)
    try_lock(own, exclusive=False)
    name = holders.kernel_name(own.fd)
    assert name not in [entry.file for entry in holders.held_by_ancestors([own.fd])]
    assert name in [entry.file for entry in holders.held_by_ancestors([])]
    own.close()
