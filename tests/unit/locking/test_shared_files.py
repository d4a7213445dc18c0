"""The verdict of a probe: where it is found, whose it is, and what it forbids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from safe_pip.commands import options
from safe_pip.errors import CannotLock
from safe_pip.fs import proc
from safe_pip.launch.settings import Settings
from safe_pip.locking import shared_files
from safe_pip.locking.shared_files import VERDICT
from tests.support.processes.proc import fake_mount
from tests.support.venvs.direct_installs import SilentReporter

CHECKS = [{"check": "a lock keeps others out", "passed": False}, {"check": "a name is seen", "passed": True}]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that several hosts may use."""
    (tmp_path / "proc").mkdir()
    fake_mount(tmp_path / "proc", monkeypatch, tmp_path, "fuse.glusterfs server:/bed rw")
    monkeypatch.setattr(shared_files, "_known", {})
    made = tmp_path / "a" / "b"
    made.mkdir(parents=True)
    return made


def write(directory: Path, *, passed: bool, **more: Any) -> None:
    facts = {"passed": passed, "date": 5.0, "hosts": ["node17", "node18"], "checks": CHECKS, "remedies": ["Mend it"]}
    (directory / VERDICT).write_text(json.dumps({**facts, **more}))


def test_the_nearest_verdict_holds_also_for_what_does_not_exist_yet(shared: Path) -> None:
    assert shared_files.verdict(shared) is None
    write(shared.parent, passed=False)
    for directory in (shared, shared / "not" / "there"):
        found = shared_files.verdict(directory)
        assert found is not None
        assert (found.directory, found.passed, found.failed) == (
            str(shared.parent),
            False,
            ("a lock keeps others out",),
        )
    write(shared, passed=True)
    found = shared_files.verdict(shared / "not" / "there")
    assert found is not None
    assert found.passed


def test_a_verdict_of_another_filesystem_does_not_count(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(shared.parent, passed=False)
    stat = os.stat

    def other(path: Any, **more: Any) -> Any:
        found = stat(path, **more)
        if path != shared.parent:
            return found
        return os.stat_result([*found[:2], found.st_dev + 1, *found[3:10]])

    monkeypatch.setattr(shared_files.os, "stat", other)
    assert shared_files.verdict(shared) is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"passed": false}', b"\xff"])
def test_a_damaged_verdict_is_none(shared: Path, content: bytes) -> None:
    (shared / VERDICT).write_bytes(content)
    assert shared_files.verdict(shared) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(("mode", "counts"), [(0o755, False), (0o777, True), (0o1777, False)])
def test_a_verdict_of_a_user_that_may_not_change_the_directory_does_not_count(
    shared: Path, mode: int, counts: bool
) -> None:
    write(shared, passed=False)
    shared.chmod(mode)
    os.chown(shared / VERDICT, 12345, 12345)
    assert (shared_files.verdict(shared) is not None) == counts


def test_a_link_is_no_verdict(shared: Path) -> None:
    write(shared, passed=False)
    (shared / VERDICT).rename(shared / "other")
    (shared / VERDICT).symlink_to("other")
    assert shared_files.verdict(shared) is None


def test_after_a_failed_probe_all_is_refused_until_one_passes(shared: Path) -> None:
    shared_files.check(shared / "before")
    write(shared, passed=False)
    with pytest.raises(CannotLock) as caught:
        shared_files.check(shared)
    assert caught.value.exit_status == 78
    told = f"the probe of `{shared}` between node17 and node18 failed (a lock keeps others out) on 1970-01-01"
    assert caught.value.message == f"`{shared}` cannot be used: {told}"
    assert caught.value.hint == f"Mend it. Then run `safe-pip doctor --filesystem {shared}` again on two hosts"
    write(shared, passed=True)
    shared_files.check(shared)


def test_on_a_filesystem_of_this_host_no_verdict_counts(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(shared, passed=False)
    monkeypatch.setattr(proc, "is_shared", lambda path: False)
    shared_files.check(shared)


WORDS = {
    "run": ["--env", "{tree}", "--", "true"],
    "run --lock-dir": ["--lock-dir", "{tree}", "--", "true"],
    "merge": ["{staged}", "--into", "{tree}"],
    "venv": ["{tree}/venv"],
    "adopt": ["--env", "{tree}"],
    "doctor": ["--env", "{tree}"],
}


@pytest.mark.parametrize("verb", WORDS)
def test_every_verb_refuses_it_with_the_reason_and_the_remedy(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    tree, staged = shared / "site-packages", tmp_path / "staged"
    for each in (tree / "pip-1.dist-info", staged):
        each.mkdir(parents=True)
    (staged / "file").touch()
    before = sorted(shared.rglob("*"))
    words = [word.format(tree=tree, staged=staged) for word in WORDS[verb]]
    fake_mount(tmp_path / "proc", monkeypatch, tmp_path, "lustre scratch rw,localflock")
    with pytest.raises(CannotLock, match="is mounted with `localflock`: commands on other hosts") as caught:
        options.run(verb.partition(" ")[0], words, Settings(), SilentReporter())
    assert (caught.value.exit_status, caught.value.hint) == (78, "Mount it with the option `flock`")
    assert sorted(shared.rglob("*")) == before


PIP = """
from safe_pip.launch import isolation
isolation.isolate()
import sys
from pathlib import Path
from safe_pip import cli
from safe_pip.fs import proc
proc._PROC = Path(sys.argv.pop(1))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [["list"], ["install", "--no-index", "safe-pip-no-such-project"]])
def test_every_command_of_pip_refuses_it(tmp_path: Path, words: list[str]) -> None:
    status = os.stat(sysconfig.get_path("purelib"))
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(f"77 76 {device} / / rw - nfs server:/export rw,nolock\n")
    command = [sys.executable, "-c", PIP, str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert (
        "is mounted with `nolock`: commands on other hosts would not see its locks. Nothing was changed" in done.stderr
    )
    assert "Mount it without `nolock` and `local_lock`" in done.stderr
