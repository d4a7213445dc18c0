"""One kernel lock, in one process: flock belongs to a descriptor, so two of them exclude each other as processes do."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_pip.errors import UnusableEnvironment
from safe_pip.locking import flock
from safe_pip.locking.flock import Descriptor, is_locked, own_descriptors, poll_lock, try_lock, wait_lock
from tests.support.processes.proc import fake_mount


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "lock"
    made.touch()
    return made


@contextlib.contextmanager
def opened(*paths: Path) -> Iterator[list[Descriptor]]:
    descriptors = [Descriptor(path) for path in paths]
    yield descriptors
    for descriptor in descriptors:
        descriptor.close()


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_two_locks_go_together_only_if_both_are_shared(file: Path, one: bool, other: bool) -> None:
    with opened(file, file) as (first, second):
        assert try_lock(first, exclusive=one)
        assert try_lock(second, exclusive=other) is not (one or other)


def test_closing_lets_go_and_closing_again_does_nothing(file: Path) -> None:
    with opened(file, file) as (first, second):
        assert try_lock(first, exclusive=True)
        first.close()
        first.close()
        assert try_lock(second, exclusive=True)


def test_a_directory_can_be_locked(tmp_path: Path) -> None:
    with opened(tmp_path, tmp_path) as (first, second):
        assert try_lock(first, exclusive=True)
        assert not try_lock(second, exclusive=False)


def test_a_descriptor_is_not_inherited(file: Path) -> None:
    with opened(file) as (descriptor,):
        assert not os.get_inheritable(descriptor.fd)
        assert descriptor.fd in own_descriptors()
        descriptor.raise_to(100)
        assert descriptor.fd >= 100
        assert not os.get_inheritable(descriptor.fd)
    assert descriptor.fd not in own_descriptors()


def test_a_descriptor_keeps_its_lock_when_its_number_is_raised(file: Path) -> None:
    with opened(file, file) as (first, second):
        assert try_lock(first, exclusive=True)
        first.raise_to(100)
        assert not try_lock(second, exclusive=True)


def test_a_forked_child_has_no_lock_of_its_parent(file: Path) -> None:
    with opened(file) as (descriptor,):
        fd = descriptor.fd
        pid = os.fork()
        if pid == 0:
            try:
                os.fstat(fd)
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert try_lock(descriptor, exclusive=True)


def test_a_file_that_was_replaced_is_not_current(file: Path) -> None:
    with opened(file) as (descriptor,):
        assert descriptor.is_current()
        file.rename(file.with_name("old"))
        assert not descriptor.is_current()
        file.touch()
        assert not descriptor.is_current()


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "lock", tmp_path / "directory" / "lock"):
        with pytest.raises(FileNotFoundError):
            Descriptor(path)
        assert not is_locked(path)


def test_no_symbolic_link_is_followed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "directory").symlink_to(tmp_path)
    with pytest.raises(UnusableEnvironment, match="symbolic link"):
        Descriptor(tmp_path / "link")
    with pytest.raises((UnusableEnvironment, FileNotFoundError)):
        Descriptor(tmp_path / "directory" / "lock")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnusableEnvironment, match="Neither a file nor a directory"):
        Descriptor(tmp_path / "pipe")


def test_whether_a_file_is_locked_can_be_asked_without_locking_it(file: Path) -> None:
    assert not is_locked(file)
    with opened(file) as (descriptor,):
        try_lock(descriptor, exclusive=True)
        assert is_locked(file)
    assert not is_locked(file)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_filesystem_that_cannot_lock_makes_the_environment_unusable(
    file: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    with opened(file) as (descriptor,):
        monkeypatch.setattr(flock.fcntl, "flock", refuse)
        for call in (
            lambda: try_lock(descriptor, exclusive=True),
            lambda: wait_lock(descriptor, exclusive=True, seconds=1),
        ):
            with pytest.raises(UnusableEnvironment, match="cannot lock it") as caught:
                call()
            assert caught.value.exit_status == 78


def test_a_wait_ends_when_its_time_is_over(file: Path) -> None:
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        assert not wait_lock(second, exclusive=True, seconds=0.01)
        assert not wait_lock(second, exclusive=True, seconds=0)
        first.close()
        assert wait_lock(second, exclusive=True, seconds=0)


def test_a_wait_ends_when_the_lock_is_let_go(file: Path) -> None:
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        threading.Timer(0.05, first.close).start()
        assert wait_lock(second, exclusive=True, seconds=60)


def test_a_turn_comes_when_it_is_let_go_or_not_in_time(file: Path) -> None:
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        assert not poll_lock(second, exclusive=True, seconds=0.01)
        threading.Timer(0.05, first.close).start()
        assert poll_lock(second, exclusive=True, seconds=60)


def test_another_thread_than_the_main_one_can_wait_too(file: Path) -> None:
    answers: list[bool] = []
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)

        def wait() -> None:
            answers.append(wait_lock(second, exclusive=True, seconds=0.01))
            first.close()
            answers.append(wait_lock(second, exclusive=True, seconds=60))

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert answers == [False, True]


@pytest.fixture
def on_nfs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A file on NFS, and a clock that stands still but for the pauses, which the list holds."""
    (tmp_path / "proc").mkdir()
    fake_mount(tmp_path / "proc", monkeypatch, file, "nfs4 server:/export rw,vers=4.2")
    pauses: list[float] = []
    monkeypatch.setattr(flock, "_now", lambda: sum(pauses))
    monkeypatch.setattr(flock, "_sleep", pauses.append)
    return pauses


def test_on_nfs_a_wait_tries_again_after_pauses_that_differ(file: Path, on_nfs: list[float]) -> None:
    with opened(file, file) as (first, second):
        assert try_lock(first, exclusive=True)
        assert not wait_lock(second, exclusive=True, seconds=100)
        assert len(on_nfs) > 100
        assert len({*on_nfs}) > 90
        assert all(0.25 <= pause <= 1 for pause in on_nfs[:-1])


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_on_nfs_a_wait_ends_with_the_first_try_after_the_lock_is_let_go(
    file: Path, on_nfs: list[float], monkeypatch: pytest.MonkeyPatch, in_main_thread: bool
) -> None:
    answers: list[bool] = []
    with opened(file, file) as (first, second):
        assert try_lock(first, exclusive=True)

        def pause(seconds: float) -> None:
            on_nfs.append(seconds)
            if len(on_nfs) == 3:
                first.close()

        monkeypatch.setattr(flock, "_sleep", pause)
        thread = threading.Thread(target=lambda: answers.append(wait_lock(second, exclusive=True, seconds=100)))
        (thread.run if in_main_thread else thread.start)()
        if not in_main_thread:
            thread.join()
    assert answers == [True]
    assert len(on_nfs) == 3
    assert all(0.25 <= pause <= 1 for pause in on_nfs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTSTP])
def test_on_nfs_signals_end_a_wait_as_elsewhere(
    file: Path, on_nfs: list[float], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(flock, "_sleep", lambda seconds: os.kill(os.getpid(), number))
    with opened(file, file) as (first, second):
        assert try_lock(first, exclusive=True)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else flock.Suspended):
            wait_lock(second, exclusive=True, seconds=100)


def test_handlers_timer_and_mask_are_the_callers_again_after_a_wait(file: Path) -> None:
    def handler(*args: Any) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGALRM, handler), signal.signal(signal.SIGTSTP, handler)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 1000, 7)
    try:
        with opened(file, file) as (first, second):
            try_lock(first, exclusive=True)
            assert not wait_lock(second, exclusive=True, seconds=0.01)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 1000
        assert interval == 7
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getsignal(signal.SIGTSTP) is handler
        assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGTSTP, before[1])
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_no_timer_is_left_that_would_survive_exec(file: Path) -> None:
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        wait_lock(second, exclusive=True, seconds=0.01)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_ctrl_c_ends_a_wait(file: Path) -> None:
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            wait_lock(second, exclusive=True, seconds=60)
        timer.join()
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_ctrl_z_ends_a_wait_so_that_everything_can_be_let_go(file: Path) -> None:
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGTSTP))
        timer.start()
        with pytest.raises(flock.Suspended):
            wait_lock(second, exclusive=True, seconds=60)
        timer.join()


def test_a_ctrl_c_under_which_the_time_runs_out_is_not_lost() -> None:
    ticker = flock._Ticker()

    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            ticker.tick(0, None)

    with pytest.raises(KeyboardInterrupt):
        ticker.block(interrupted)


def test_a_tick_outside_the_wait_raises_nothing() -> None:
    ticker = flock._Ticker()
    ticker.tick(0, None)
    ticker.block(lambda: None)
    ticker.tick(0, None)


def test_a_tick_that_comes_just_before_the_wait_is_followed_by_another(file: Path) -> None:
    with opened(file, file) as (first, second), flock._ticking(0.001) as ticker:
        try_lock(first, exclusive=True)
        signal.pause()  # ends with the first tick, which finds no waiter yet
        ticker.block(lambda: flock._flock(second, exclusive=True, blocks=True))
        assert not try_lock(second, exclusive=True)


def test_a_stop_just_before_the_wait_is_not_lost() -> None:
    ticker = flock._Ticker()
    ticker.suspend(0, None)
    with pytest.raises(flock.Suspended):
        ticker.block(lambda: pytest.fail("waited"))


def test_a_wait_while_an_error_is_handled_ends_as_any_other(file: Path) -> None:
    """What is being handled is the context of all that is raised meanwhile, of the tick too."""
    with opened(file, file) as (first, second):
        try_lock(first, exclusive=True)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            assert not wait_lock(second, exclusive=True, seconds=0.01)
