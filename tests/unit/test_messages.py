"""What a command says while it works."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from safe_pip import messages
from safe_pip.locking import flock
from safe_pip.locking.holders import Holder
from safe_pip.locking.waiting import Wait, WaitBudget
from safe_pip.messages import Reporter


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_read_without_lock_files_is_said_once_with_what_to_do(
    capfd: pytest.CaptureFixture[str], quiet: bool
) -> None:
    reporter = Reporter(quiet=quiet)
    for path in (Path("/cluster/one"), Path("/cluster/two"), Path("/cluster/one")):
        reporter.unguarded(path)
    said = capfd.readouterr().err.splitlines()
    assert [line.split("`")[1] for line in said] == ([] if quiet else ["/cluster/one", "/cluster/two"])
    assert all("makes them with `safe-pip list`" in line for line in said)


@pytest.mark.parametrize("quiet", [False, True])
def test_that_a_filesystem_was_never_probed_is_said_with_the_command_that_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], quiet: bool
) -> None:
    site = tmp_path / "venv" / "lib" / "python3.13" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert Reporter(quiet=quiet).unprobed(site) is not quiet
    said = capfd.readouterr().err
    assert (f"several hosts may use `{tmp_path / 'venv'}`" in said) is not quiet
    assert (f"Run `safe-pip doctor --filesystem {tmp_path}` on two hosts" in said) is not quiet


def wait(seconds: float) -> Wait:
    holder = Holder(4242, exclusive=True, command="safe-pip install one")
    return Wait(Path("/venv"), True, (holder,), seconds)


TOLD = "waiting for the exclusive lock on `/venv`, held by `safe-pip install one` (pid 4242), 12 s so far"


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within, standard error is a terminal; afterwards the list holds what was written there."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    other, end = os.openpty()
    before, said = os.dup(2), list[str]()
    os.dup2(end, 2)
    lock = flock.Descriptor(Path(os.ttyname(end)), is_device=True)
    monkeypatch.setattr("safe_pip.locking.terminal._opened", lambda path, process: lock)
    try:
        yield said
    finally:
        lock.close()
        os.dup2(before, 2)
        os.set_blocking(other, False)
        with suppress(BlockingIOError):
            while True:
                said.append(os.read(other, 10000).decode())
        for fd in (other, end, before):
            os.close(fd)


def test_a_wait_is_told_with_its_holder_and_its_length(capfd: pytest.CaptureFixture[str]) -> None:
    assert not Reporter().waiting(wait(12.3))
    Reporter().granted(wait(12.3), 12.5)
    assert capfd.readouterr().err == f"safe-pip: {TOLD}\nsafe-pip: got the lock after 12.5 s\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_on_a_terminal_it_is_one_line_that_goes_when_the_lock_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reporter()
    with terminal(monkeypatch) as said:
        assert reporter.waiting(wait(1))
        assert reporter.waiting(wait(12.3))
        reporter.granted(wait(12.3), 12.5)
        messages.say("after")
    first, second, last = "".join(said).split("\r\x1b[K")
    assert first == "safe-pip: waiting 1 s for the exclusive lock, held by `safe-pip install one` (pid 4242)"
    assert (second, last) == (first.replace("1 s", "12 s"), "safe-pip: after\r\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_what_else_is_said_does_not_stand_behind_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reporter()
    with terminal(monkeypatch) as said:
        reporter.waiting(wait(12.3))
        messages.say("gave up")
        reporter.waiting(wait(12.3))
        reporter.interrupted()
        messages.say("stopped")
    assert "\r\x1b[Ksafe-pip: gave up\r\n" in "".join(said)
    assert "".join(said).endswith("\r\nsafe-pip: stopped\r\n")


FOREIGN = Holder(4242, exclusive=True, command="safe-pip install one", host="node17")


@pytest.mark.parametrize(("seconds", "more"), [(29, ""), (30, ", its host may be gone")])
def test_after_half_a_minute_the_host_of_the_holder_is_doubted(
    capfd: pytest.CaptureFixture[str], seconds: float, more: str
) -> None:
    here = FOREIGN._replace(pid=1, host="")
    Reporter().waiting(wait(seconds)._replace(holders=(FOREIGN, here)))
    assert f"(pid 4242 on node17{more}) and held by `safe-pip install one` (pid 1), " in capfd.readouterr().err


def test_on_a_terminal_of_eighty_columns_the_doubt_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as said:
        monkeypatch.setenv("COLUMNS", "80")
        Reporter().waiting(wait(31)._replace(holders=(FOREIGN,)))
        Reporter().granted(wait(31), 31.5)
    assert "waiting 31 s for the exclusive lock (its host may be gone), held by" in "".join(said)


def test_quiet_it_is_in_the_log_alone(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Reporter(quiet=True).waiting(wait(12.3))
    Reporter(quiet=True).granted(wait(12.3), 12.5)
    assert capfd.readouterr().err == ""
    assert caplog.messages == [TOLD]


@pytest.mark.parametrize(("passed", "later"), [(1, 9), (10, 50), (60, 300), (400, 300)])
def test_elsewhere_it_is_told_more_and_more_rarely(
    passed: float, later: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    budget = WaitBudget(Reporter(quiet=True), None)
    monkeypatch.setattr("time.monotonic", lambda: 100.0 + passed)
    budget.tell(wait(passed))
    assert budget.next_message == 100.0 + passed + later


def test_a_number_stands_with_the_singular_or_the_plural_of_its_noun() -> None:
    assert [messages.count(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [messages.count(number, "directory") for number in (1, 3)] == ["1 directory", "3 directories"]
