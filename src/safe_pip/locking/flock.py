"""One kernel lock: flock(2) on a descriptor, waited for in the kernel.

The only module that calls flock, and the only one that waits. Three rules of it hold everywhere:

- A lock is let go by closing its descriptor, never by LOCK_UN: a forked child that unlocks releases its parent's lock.
- Descriptors are not inherited by child programs and are closed in forked children, so that nothing that outlives
  this process keeps its locks. The kernel drops them when it dies, however it dies.
- A wait blocks in the kernel, where the queue is first come, first served. Polling destroys that. What ends a wait is
  a signal of ITIMER_REAL, and each one costs the place in the queue: so there are few.

flock(2), setitimer(2); "Interruption of system calls" in signal(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from safe_pip.errors import UnusableEnvironment

try:
    import fcntl
except ImportError:
    supported = False
else:
    supported = True

# What a kernel or a file server answers that has no locks to give (EBADF: NFS wants a writable descriptor).
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL}
# Behind a tick that came just before the system call began, so that it is not lost.
_SECOND_TICK = 0.1
_POLL = 0.05
_TURN = 0.001

Identity = tuple[int, int]
"""Device and inode."""


class Suspended(BaseException):
    """The user asked this process to stop (SIGTSTP) while it waited: let everything go, then call `stop`."""


class _Tick(BaseException):
    """The timer ended the system call."""


class Descriptor:
    """An open file or directory that can be locked; closing it lets the lock go.

    Opening raises `FileNotFoundError` for what is not there; through a symbolic link at the end of `path`, or of its
    directory, it never goes.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self.fd = -1
        self._beside: Descriptor | None = None
        try:
            self.fd = _open(path, writable)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        except PermissionError:
            raise UnusableEnvironment(f"`{path}` cannot be opened to lock it: permission denied") from None
        except OSError as error:
            reason = "it is a symbolic link" if error.errno in (errno.ELOOP, errno.EMLINK) else error.strerror
            raise UnusableEnvironment(f"`{path}` cannot be opened to lock it: {reason}") from error
        status = os.fstat(self.fd)
        self.identity: Identity = (status.st_dev, status.st_ino)
        _descriptors.add(self)

    def close(self) -> None:
        """Close, which lets the lock go; again, or in a forked child, it does nothing."""
        fd, self.fd = self.fd, -1
        _descriptors.discard(self)
        if fd >= 0:
            os.close(fd)
        if self._beside is not None:
            self._beside.close()

    def close_with(self, other: Descriptor) -> None:
        """Close `other` when this one is closed: it stands in for this one on a file server."""
        self._beside = other

    def is_current(self) -> bool:
        """Whether the path still leads to what this descriptor has open: a lock on anything else is worth nothing."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def raise_to(self, number: int) -> None:
        """Move to about this number, or as high as is allowed: of a killed process the highest one is closed first."""
        if sys.platform == "win32":
            raise NotImplementedError
        while number > self.fd:
            try:
                fd = fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, number)
            except OSError:  # beyond the limit on open files
                number //= 2
            else:
                self.fd, low = fd, self.fd
                os.close(low)
                return


_descriptors: set[Descriptor] = set()


def own_descriptors() -> set[int]:
    """The descriptors that this process opened to lock, unlike those that it inherited."""
    return {descriptor.fd for descriptor in _descriptors}


def _close_in_child() -> None:
    for descriptor in list(_descriptors):
        descriptor.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


def _open(path: Path, writable: bool) -> int:
    if sys.platform == "win32":
        raise NotImplementedError
    # NONBLOCK: opening a FIFO that somebody put there would wait for ever.
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    if path.parent == path:
        return os.open(path, flags | os.O_RDONLY | os.O_DIRECTORY)
    parent = os.open(path.parent, flags | os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = os.open(path.name, flags | (os.O_RDWR if writable else os.O_RDONLY), dir_fd=parent)
    finally:
        os.close(parent)
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        os.close(fd)
        raise UnusableEnvironment(f"`{path}` is neither a file nor a directory")
    return fd


def try_lock(descriptor: Descriptor, *, exclusive: bool) -> bool:
    """Take the lock if nobody is in the way; raises `UnusableEnvironment` where there are no locks to take."""
    if sys.platform == "win32":
        raise NotImplementedError
    try:
        _flock(descriptor, fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH))
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody holds the file `path` exclusively; nothing there to lock is not locked."""
    try:
        descriptor = Descriptor(path)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, exclusive=False)
    finally:
        descriptor.close()


def wait_lock(descriptor: Descriptor, *, exclusive: bool, seconds: float) -> bool:
    """Block until the lock is granted, or `seconds` are over (False).

    In the main thread it blocks in the kernel; a timer cannot end the wait of another thread, so that one polls. If it
    raises (`KeyboardInterrupt`, `Suspended`) the lock may have been granted: close the descriptor.
    """
    if try_lock(descriptor, exclusive=exclusive):
        return True
    if seconds <= 0:
        return False
    if threading.current_thread() is not threading.main_thread():
        return _poll_lock(descriptor, exclusive, seconds)
    with _ticking(seconds) as ticker:
        ticker.block(lambda: _block(descriptor, exclusive))
    # The tick may have come just after the grant; to ask again for what one has is granted at once.
    return try_lock(descriptor, exclusive=exclusive)


def wait_turn(descriptor: Descriptor, *, seconds: float) -> bool:
    """Take exclusively what each taker holds for a moment only; False if one does so for longer than `seconds`.

    There is no queue, and no signal is handled: it can be called with other locks held.
    """
    return _poll_lock(descriptor, True, seconds, pause=_TURN)


def stop() -> None:
    """Stop this process as SIGTSTP would have done without us; returns when it is continued."""
    if sys.platform == "win32":
        raise NotImplementedError
    signal.raise_signal(signal.SIGTSTP)


def _block(descriptor: Descriptor, exclusive: bool) -> None:
    if sys.platform == "win32":
        raise NotImplementedError
    _flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def _flock(descriptor: Descriptor, operation: int) -> None:
    if sys.platform == "win32":
        raise NotImplementedError
    try:
        fcntl.flock(descriptor.fd, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        known = error.errno in _CANNOT_LOCK
        why = "is on a filesystem that cannot lock it" if known else "cannot be locked"
        raise UnusableEnvironment(f"`{descriptor.path}` {why} ({error.strerror})") from error


def _poll_lock(descriptor: Descriptor, exclusive: bool, seconds: float, pause: float = _POLL) -> bool:
    end = time.monotonic() + seconds
    while not try_lock(descriptor, exclusive=exclusive):
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
    return True


class _Ticker:
    """The handlers of SIGALRM and SIGTSTP while one wait lasts; each raises once, and only out of `block`."""

    def __init__(self) -> None:
        self._armed = False
        self._suspended = False

    def tick(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise _Tick

    def suspend(self, number: int, frame: FrameType | None) -> None:
        self._suspended = True
        if self._armed:
            self._armed = False
            raise Suspended

    def block(self, call: Callable[[], None]) -> None:
        """Call until it returns or a tick ends it; raises `Suspended` if the user asked for it at any time."""
        handled = sys.exc_info()[1]
        try:
            self._armed = True
            if not self._suspended:
                call()
            self._armed = False
        except _Tick as tick:
            if tick.__context__ not in (None, handled):  # it came on top of a Ctrl-C, which must not be lost
                raise tick.__context__ from None
        if self._suspended:
            raise Suspended


@contextlib.contextmanager
def _ticking(seconds: float) -> Iterator[_Ticker]:
    """Let ITIMER_REAL tick after `seconds`; timer, handlers and mask are the caller's again afterwards.

    A Ctrl-C that comes while they are changed is held back until they are complete.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    ticker = _Ticker()
    held_back = {signal.SIGINT, signal.SIGTSTP}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    begun = time.monotonic()
    alarm = signal.signal(signal.SIGALRM, ticker.tick)
    suspend = signal.getsignal(signal.SIGTSTP)
    if suspend is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, ticker.suspend)
    timer, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), _SECOND_TICK)
    try:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask - {signal.SIGALRM})
            yield ticker
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    finally:
        # Timer first, while SIGALRM is not blocked and its handler is ours: a tick that is kept back until the
        # default action is in place again would kill the process.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if alarm is None else alarm)
        if suspend is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL if suspend is None else suspend)
        if timer:
            left = timer - (time.monotonic() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001), interval)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
