"""The probe of a filesystem: two processes stand for two hosts, one of which may see something else than the other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import safe_pip
from safe_pip.commands import options
from safe_pip.commands.doctor import filesystem
from safe_pip.errors import LockTimeout, UnusableEnvironment, UsageError
from safe_pip.fs import proc
from safe_pip.launch.settings import Settings
from safe_pip.locking import shared_files
from tests.support.processes.proc import fake_mount
from tests.support.venvs.direct_installs import SilentReporter

HOST = """
import errno, fcntl, os, sys, time, types
from safe_pip import fs
from safe_pip.commands import options
from safe_pip.commands.doctor import filesystem
from safe_pip.errors import SafePipError
from safe_pip.fs import Directory, proc
from safe_pip.launch.settings import Settings
from safe_pip.locking import flock

name, place, *faults = sys.argv[1:]
proc._LOCAL, proc.host = frozenset(), lambda: (name, "1")
filesystem._sleep = lambda seconds: time.sleep(min(seconds, 0.002))
real, children = fcntl.flock, []

def no_locks(fd, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

def as_on_nfs(fd, operation):
    if operation & fcntl.LOCK_EX and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    real(fd, operation)

if "local locks" in faults:
    fcntl.flock = lambda fd, operation: None
if "no locks" in faults:
    fcntl.flock = no_locks
if "writable" in faults:
    fcntl.flock = as_on_nfs
if "no wake-up" in faults:
    flock.wait_lock = lambda *args, **more: False
if "old names" in faults:
    Directory.exists = lambda self, name: True
if "two winners" in faults:
    fs.move_over = lambda *args: None  # the other host still finds each file, whichever host comes first
patched = types.SimpleNamespace(**vars(os))
if "other inodes" in faults:
    patched.stat = lambda path: types.SimpleNamespace(st_ino=os.stat(path).st_ino + 1)
if "no verdict" in faults:
    fs.replace_in = lambda *args, mode: no_locks(0, 0)
if "kept after kill" in faults:
    patched.kill, patched.waitpid = lambda pid, number: children.append(pid), lambda pid, flags: None
if "dies" in faults:
    filesystem._CHECKS["a lock on a file keeps the other host out"] = lambda pair: os._exit(9)
if "short" in faults:
    filesystem._GRANTED, filesystem._ANSWERS = 1.0, 3.0
filesystem.os = patched
try:
    sys.exit(options.run("doctor", ["--filesystem", place, "--json"], Settings()))
except SafePipError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
finally:
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
"""
LOCK, WAKES, KILLED, RENAMED, WINNER = filesystem._CHECKS
GENERIC = "Choose a directory on a filesystem with locks, or mount this one so that it has them"
SCHEMA = json.loads((Path(safe_pip.__file__).parent / "schemas/doctor-filesystem.json").read_text())


def start(name: str, place: Path, *faults: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOST, name, place, *faults]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def probe(place: Path, *faults: str) -> list[tuple[int, str, str]]:
    """Status, output and errors of two hosts that probe `place`; the second one has the faults."""
    first = start("node18", place, *({*faults} & {"short", "no verdict"}))
    assert first.stderr is not None
    told = first.stderr.readline()
    assert told == "safe-pip: run the same command on another host within 60 s\n"
    done = []
    for each in (start("node17", place, *faults), first):
        output, errors = each.communicate(timeout=60)
        done.append((each.returncode, output, errors))
    return done[::-1]


@pytest.mark.parametrize(
    ("faults", "failed", "remedies"),
    [
        (["writable"], {}, []),
        (["local locks"], {LOCK: "both hosts had it", **dict.fromkeys((WAKES, KILLED), "other host out")}, [GENERIC]),
        (["no locks"], dict.fromkeys((LOCK, WAKES, KILLED), "node17: .* cannot lock it"), [GENERIC]),
        (
            ["old names", "two winners"],
            {RENAMED: "sees old names", WINNER: "both hosts renamed the same file"},
            [filesystem._OTHER],
        ),
        (
            ["other inodes", "kept after kill", "short"],
            {RENAMED: "another inode number", KILLED: "not granted within 1 s"},
            [GENERIC, filesystem._OTHER],
        ),
        (["no wake-up"], dict.fromkeys((WAKES, KILLED), "not granted within"), [GENERIC]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value and value[0][0].islower() else "",
)
def test_two_hosts_come_to_one_verdict(
    tmp_path: Path, faults: list[str], failed: dict[str, str], remedies: list[str]
) -> None:
    (status, output, _), (other_status, other_output, _) = probe(tmp_path, *faults)
    assert status == other_status == bool(failed)
    assert output == other_output
    document = json.loads(output)
    Draft202012Validator(SCHEMA).validate(document)
    assert document["hosts"] == ["node17", "node18"]
    assert document["passed"] == (not failed)
    found = {each["check"]: each["detail"] or "" for each in document["checks"] if not each["passed"]}
    assert {*found} == {*failed}
    for name, detail in failed.items():
        assert re.search(detail, found[name])
    assert document["remedies"] == remedies
    details = {each["check"]: each["detail"] for each in document["checks"]}
    if "writable" in faults:
        assert details[LOCK] == "also if it is opened for reading only"  # as the first host has it
    assert os.listdir(tmp_path) == [shared_files.VERDICT]
    verdict = shared_files.verdict(tmp_path)
    assert verdict is not None
    assert (verdict.passed, verdict.hosts, verdict.failed) == (not failed, ("node17", "node18"), tuple(found))


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that several hosts may use, and a clock that only waits move."""
    place = tmp_path / "shared"
    place.mkdir()
    (tmp_path / "proc").mkdir()
    fake_mount(tmp_path / "proc", monkeypatch, place, "nfs4 server:/export rw")
    clock = [0.0]
    monkeypatch.setattr(filesystem, "_now", lambda: clock[0])
    monkeypatch.setattr(filesystem, "_sleep", lambda seconds: clock.append(clock.pop() + seconds))
    return place


def run(*words: str | Path) -> int:
    return options.run("doctor", ["--filesystem", *map(str, words)], Settings(), SilentReporter())


def test_without_another_host_there_is_no_verdict(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LockTimeout, match="no other host came within 60 s: nothing is known about") as caught:
        run(shared)
    assert caught.value.exit_status == 75
    assert capfd.readouterr() == ("", "safe-pip: run the same command on another host within 60 s\n")
    with pytest.raises(LockTimeout):
        run(shared, "-q")
    assert capfd.readouterr() == ("", "")
    assert os.listdir(shared) == []


def test_an_interrupted_probe_leaves_nothing(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filesystem, "_sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(shared)
    assert os.listdir(shared) == []


def test_a_second_probe_on_the_same_host_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "stat", lambda pid: ["S"])
    meeting = shared / ".safe-pip-probe"
    meeting.mkdir()
    (meeting / "waiting").write_text(json.dumps(proc.own_note(str(shared))))
    with pytest.raises(UnusableEnvironment, match=rf"a probe of this host \(pid {os.getpid()}\) waits there already"):
        run(shared)


def test_what_a_killed_probe_left_is_removed(shared: Path) -> None:
    meeting = shared / ".safe-pip-probe"
    meeting.mkdir()
    (meeting / "waiting").write_text(json.dumps({**proc.own_note(str(shared)), "pid": 4_000_000_000}))
    with pytest.raises(LockTimeout, match="no other host came"):
        run(shared)
    meeting.mkdir()
    (meeting / "5-first").touch()
    os.utime(meeting, (5, 5))
    with pytest.raises(LockTimeout, match="no other host came"):
        run(shared)
    assert os.listdir(shared) == []


def test_a_host_whose_other_one_dies_has_no_verdict(tmp_path: Path) -> None:
    (status, output, errors), (other, _, _) = probe(tmp_path, "dies", "short")
    assert (status, output, other) == (75, "", 9)
    assert "`node17` answers no more: nothing is known about" in errors
    assert os.listdir(tmp_path) == []


def test_a_verdict_that_cannot_be_written_is_an_error_on_both_hosts(tmp_path: Path) -> None:
    done = probe(tmp_path, "no verdict")
    assert [each[:2] for each in done] == [(78, "")] * 2
    assert all(re.search("cannot be probed: node18: .*No locks available", each[2]) for each in done)
    assert os.listdir(tmp_path) == []


def test_on_a_filesystem_of_this_host_there_is_nothing_to_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proc").mkdir()
    fake_mount(tmp_path / "proc", monkeypatch, tmp_path, "xfs /dev/a rw")
    assert run(tmp_path) == 0
    said = f"`{tmp_path}` (xfs) is on a filesystem of this host alone: there is nothing to probe\n"
    assert capfd.readouterr() == (said, "")
    assert run(tmp_path, "--json") == 0
    document = json.loads(capfd.readouterr().out)
    Draft202012Validator(SCHEMA).validate(document)
    assert (document["shared"], document["passed"], document["filesystem"]) == (False, None, "xfs")


def test_what_cannot_be_probed_is_refused(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnusableEnvironment, match="cannot be probed: No such file"):
        run(shared / "missing")
    with pytest.raises(UsageError):
        run(shared, "--repair")
    with pytest.raises(UsageError):
        run(shared, "--env", shared)
    fake_mount(tmp_path / "proc", monkeypatch, shared, "lustre scratch rw,localflock")
    with pytest.raises(UnusableEnvironment, match="mounted with `localflock`"):
        run(shared)
