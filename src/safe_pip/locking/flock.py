"""One kernel lock: flock(2) on a descriptor, waited for in the kernel. Nothing else calls flock or waits for it.

- A lock is let go by closing its descriptor, never by LOCK_UN: a forked child that unlocks releases its parent's lock.
- Child programs do not inherit descriptors, and forked children close them: they keep none of the locks.
- A wait blocks in the kernel, where the queue is first come, first served. A signal of ITIMER_REAL ends a wait, and
  each one costs the place in the queue: so there are few.
- On NFS a wait tries again by the clock. The client polls there as well, with pauses of up to half a minute.

Where there is no flock (Windows), `locking.fallback` is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from safe_pip.errors import CannotLock, UnusableEnvironment
from safe_pip.fs import proc
from safe_pip.fs.directory import READ, Directory

try:
    import fcntl
except ImportError:
    supported = False
else:
    supported = True

# What a kernel or a file server answers that has no locks to give. EBADF: NFS wants a writable descriptor. 524 is the
# kernel's own ENOTSUPP, which it should not show.
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL, 524}
_LOCKABLE = {stat.S_IFREG, stat.S_IFDIR}
_REMEDIES = {
    "lustre": "Mount it with the option `flock`",
    "nfs": "Mount it without `nolock` and `local_lock`, with its lock service (`rpc.statd`) running, or as NFS 4.2",
    "nfs4": "Mount it without `local_lock`",
    "cifs": "Mount it without `nobrl`",
    "beegfs": "Set `tuneUseGlobalFileLocks = true` in the client's configuration",
}
_POLLED = {"nfs", "nfs4"}
_PAUSES = 0.25, 1.0  # seconds, with jitter: many waiting processes do not ask the server at the same time
_SHORT = 0.05, 0.05
# The timer may fire just before the system call begins; it fires again after this time, in seconds.
_SECOND_TICK = 0.1

Identity = tuple[int, int]
"""Device and inode."""


class Suspended(BaseException):
    """The user asked this process to stop (SIGTSTP) while it waited: let everything go, then call `stop`."""


class _Tick(BaseException):
    """The timer ended the system call."""


class Descriptor:
    """An open file or directory that can be locked. No link at the end of `path` or of its directory is followed.

    Nothing else is opened unless `is_device`.
    """

    def __init__(self, path: Path, *, writable: bool = False, is_device: bool = False) -> None:
        self.path, self.fd = path, -1
        self.beside: Descriptor | None = None  # closed together with this one: the lock that other hosts see
        try:
            if path.parent == path or is_device:
                self.fd = os.open(path, READ)
            else:
                self.fd = _open(path, READ | (os.O_RDWR if writable else 0))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        except PermissionError:
            raise UnusableEnvironment(f"`{path}` cannot be opened to lock it: permission denied") from None
        except OSError as error:
            reason = "it is a symbolic link" if error.errno in (errno.ELOOP, errno.EMLINK) else error.strerror
            raise UnusableEnvironment(f"`{path}` cannot be opened to lock it: {reason}") from error
        self.identity: Identity = _identity(os.fstat(self.fd))
        _descriptors.add(self)

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def identities(self) -> tuple[Identity, ...]:
        return (self.identity, *(() if self.beside is None else (self.beside.identity,)))

    def close(self) -> None:
        """Let the lock go; again, or in a forked child, it does nothing."""
        fd, self.fd = self.fd, -1
        _descriptors.discard(self)
        if fd >= 0:
            with contextlib.suppress(OSError):  # EBADFD: a file server that could not be reached; it is closed
                os.close(fd)
        if self.beside is not None:
            self.beside.close()

    def is_current(self, *, asks: bool = True) -> bool:
        """Whether the path still leads to the file that is open: a lock on any other file is worth nothing.

        Without `asks` a file server is not asked. That is enough for a gate, which only keeps an order.
        """
        with contextlib.suppress(OSError):
            if asks and proc.is_shared_device(self.identity[0], str(self.path)) and self.path.parent != self.path:
                with Directory.open(self.path.parent) as parent:
                    with contextlib.suppress(PermissionError):
                        # Through a new descriptor, so this asks the server.
                        listed.names[self.path.parent] = parent.names()
                        if self.path.name not in listed.names[self.path.parent]:
                            return False
                    return _identity(os.stat(self.path.name, dir_fd=parent.fd, follow_symlinks=False)) == self.identity
            return _identity(os.stat(self.path, follow_symlinks=False)) == self.identity
        return False

    def raise_to(self, number: int) -> None:
        """Move to about this number, or as high as is allowed: of a killed process the highest one is closed first."""
        while number > self.fd:
            if sys.platform == "win32":
                return
            try:
                fd = fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, number)
            except OSError:  # beyond the limit on open files
                number //= 2
            else:
                self.fd, low = fd, self.fd
                os.close(low)


def _open(path: Path, flags: int) -> int:
    if sys.platform == "linux":
        # One call, if the kernel says that no link was on the way: each call may have to ask a file server.
        with contextlib.suppress(OSError):
            fd = os.open(path, flags)
            if proc.link(f"self/fd/{fd}") == str(path) and stat.S_IFMT(os.fstat(fd).st_mode) in _LOCKABLE:
                return fd
            os.close(fd)
    with Directory.open(path.parent) as parent:
        return parent.open_file(path.name, flags)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


_descriptors: set[Descriptor] = set()


class _Listed(threading.local):
    """What was in each directory when this thread got a lock in it, on a filesystem that several hosts may use."""

    def __init__(self) -> None:
        self.names: dict[Path, list[str]] = {}


listed = _Listed()


def own_descriptors() -> set[int]:
    """The descriptors that this process opened to lock, without those that it inherited."""
    return {descriptor.fd for descriptor in _descriptors}


def has_open(name: str) -> bool:
    """Whether this process has opened a file of this name to lock it."""
    return any(descriptor.path.name == name for descriptor in _descriptors)


def _close_in_child() -> None:
    for descriptor in list(_descriptors):
        descriptor.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


def try_lock(descriptor: Descriptor, *, exclusive: bool) -> bool:
    """Take the lock if no other process is in the way. Raises `UnusableEnvironment` if the file cannot be locked."""
    with contextlib.suppress(BlockingIOError):
        _flock(descriptor, exclusive=exclusive, blocks=False)
        return True
    return False


def is_locked(path: Path) -> bool:
    """Whether a process holds the file `path` exclusively; False if it does not exist."""
    with contextlib.suppress(FileNotFoundError), Descriptor(path) as descriptor:
        return not try_lock(descriptor, exclusive=False)
    return False


def wait_lock(descriptor: Descriptor, *, exclusive: bool, seconds: float) -> bool:
    """Block until the lock is granted, or `seconds` are over (False). Outside the main thread it polls.

    If it raises (`KeyboardInterrupt`, `Suspended`) the lock may have been granted: close the descriptor.
    """
    if try_lock(descriptor, exclusive=exclusive):
        return True
    pauses = _PAUSES if proc.kind_of_device(descriptor.identity[0], str(descriptor.path)) in _POLLED else None
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        return poll_lock(descriptor, exclusive=exclusive, seconds=seconds, pauses=pauses or _SHORT)
    with _ticking(seconds) as ticker:
        if pauses is None:
            ticker.block(lambda: _flock(descriptor, exclusive=exclusive, blocks=True))
        else:
            ticker.block(lambda: poll_lock(descriptor, exclusive=exclusive, seconds=seconds, pauses=pauses))
    # The tick may have come just after the grant. A lock that is held is granted again at once.
    return try_lock(descriptor, exclusive=exclusive)


def stop() -> None:
    """Stop this process as SIGTSTP does by default; returns when it is continued."""
    if sys.platform != "win32":
        signal.raise_signal(signal.SIGTSTP)


def _flock(descriptor: Descriptor, *, exclusive: bool, blocks: bool) -> None:
    if sys.platform == "win32":
        raise NotImplementedError
    path = descriptor.path
    try:
        fcntl.flock(descriptor.fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if blocks else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _CANNOT_LOCK:
            raise CannotLock(
                f"`{path}` is on a filesystem that cannot lock it ({error.strerror})", hint=remedy(path)
            ) from error
        raise UnusableEnvironment(f"`{path}` cannot be locked ({error.strerror})") from error


def remedy(path: Path) -> str:
    """What helps where a filesystem has no locks to give."""
    kind = ""
    with contextlib.suppress(OSError):
        kind = proc.filesystem(str(path)).kind
    return _REMEDIES.get(kind, "Choose a directory on a filesystem with locks, or mount this one so that it has them")


def poll_lock(descriptor: Descriptor, *, exclusive: bool, seconds: float, pauses: tuple[float, float] = _SHORT) -> bool:
    """Try again after a pause, the shortest to the longest of `pauses`; False after `seconds`. There is no queue."""
    end = _now() + seconds
    while not try_lock(descriptor, exclusive=exclusive):
        if (left := end - _now()) <= 0:
            return False
        _sleep(min(random.uniform(*pauses), left))
    return True


_now, _sleep = time.monotonic, time.sleep  # tests have a clock of their own


class _Ticker:
    """The handlers of SIGALRM and SIGTSTP during one wait; each raises once, and only inside `block`."""

    _armed = _suspended = False

    def tick(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise _Tick

    def suspend(self, number: int, frame: FrameType | None) -> None:
        self._suspended = True
        if self._armed:
            self._armed = False
            raise Suspended

    def block(self, call: Callable[[], object]) -> None:
        """Call until it returns or a tick ends it; raises `Suspended` if the user asked for it at any time."""
        handled = sys.exc_info()[1]
        try:
            self._armed = True
            if not self._suspended:
                call()
            self._armed = False
        except _Tick as tick:
            if tick.__context__ not in (None, handled):  # the tick interrupted a Ctrl-C, which must not be lost
                raise tick.__context__ from None
        if self._suspended:
            raise Suspended


@contextlib.contextmanager
def _ticking(seconds: float) -> Iterator[_Ticker]:
    """Let ITIMER_REAL tick after `seconds`; timer, handlers and mask are restored. Meanwhile Ctrl-C is held back."""
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
        # The timer first, while SIGALRM is not blocked and the handler is this one: a tick that arrives after the
        # default action is back would kill the process.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if alarm is None else alarm)
        if suspend is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL if suspend is None else suspend)
        if timer:
            left = timer - (time.monotonic() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001), interval)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
