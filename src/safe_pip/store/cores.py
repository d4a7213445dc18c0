"""How many cores are idle at this moment, and whether one of them may be used: what is started there disturbs nobody.

The bounds are the CPUs that this process may run on (sched_setaffinity(2)) and the quota of its control groups. Within
them it is the number of tasks that run or want to run now (proc(5), `loadavg`) that decides: a load average says what
was true a minute ago, when a parallel build had not begun or had not ended. Below a GNU make whose jobserver can be
reached ("POSIX Jobserver Interaction" in its manual) a token is taken as well.
"""

import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

_AUTH = re.compile(r"--jobserver-(?:auth|fds)=(?:fifo:(\S+)|(\d+),(\d+))(?=\s|$)")


class Permit(NamedTuple):
    """What allows one more process: a token of the jobserver, or nothing where there is none."""

    token: bytes = b""


class Jobserver(NamedTuple):
    """A jobserver that was reached: `read` never blocks, and nobody else's descriptor became non-blocking by it."""

    read: int
    write: int

    @classmethod
    def of(cls, makeflags: str) -> "Jobserver | None":
        """The one that make announces in MAKEFLAGS; None if there is none, or none that a recipe like ours can use.

        make gives the descriptors to recipes only that it takes for another make; in others the numbers may be those of
        any file. They are believed if both are ends of one pipe.
        """
        announced = _AUTH.findall(makeflags)
        if not announced or sys.platform == "win32":
            return None
        fifo, read, write = announced[-1]
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        try:
            if fifo:
                if not stat.S_ISFIFO(os.stat(fifo).st_mode):
                    return None
                both = os.open(fifo, os.O_RDWR | flags)
                return cls(both, both)
            ends = [os.fstat(int(fd)) for fd in (read, write)]
            if not all(stat.S_ISFIFO(end.st_mode) for end in ends) or not os.path.samestat(*ends):
                return None
            # A description of our own, where there is /proc: O_NONBLOCK belongs to all who share one.
            return cls(os.open(f"/proc/self/fd/{read}", os.O_RDONLY | flags), int(write))
        except OSError:
            return None

    def take(self) -> bytes:
        """One token, without waiting; nothing if there is none."""
        try:
            return os.read(self.read, 1)
        except OSError:
            return b""

    def give(self, token: bytes) -> None:
        """Give a token back."""
        with suppress(OSError):
            os.write(self.write, token)


class Cores:
    """The cores as this process finds them; to make one costs nothing, each answer a look at a file or two."""

    def __init__(self, environ: Mapping[str, str], root: str = "/") -> None:
        self._makeflags = environ.get("MAKEFLAGS", "")
        self._root = root
        self._limit = 0
        self._jobserver: Jobserver | None = None
        self._is_jobserver_known = False

    @property
    def limit(self) -> int:
        """How many processes of ours can run at once at all, this one included."""
        if not self._limit:
            allowed = os.cpu_count() or 1
            if sys.platform == "linux":
                allowed = len(os.sched_getaffinity(0))
            elif sys.platform == "win32":
                allowed = 1
            self._limit = max(1, min([allowed, *map(int, self._quotas())]))
        return self._limit

    def spare(self) -> int:
        """How many cores are idle; negative: how many tasks more than cores want to run. This process runs, too."""
        online = os.cpu_count() or 1
        running = self._running()
        return online - running if running is not None else 0

    def take(self) -> Permit | None:
        """A permit to run one more process, to be given back when that has ended; None where make has no token left."""
        if self.jobserver is None:
            return Permit()
        token = self.jobserver.take()
        return Permit(token) if token else None

    def give(self, permit: Permit) -> None:
        """Give a permit back."""
        if permit.token and self.jobserver is not None:
            self.jobserver.give(permit.token)

    @property
    def jobserver(self) -> Jobserver | None:
        """The jobserver of the make that this process is a recipe of; None if there is none to be reached."""
        if not self._is_jobserver_known:
            self._is_jobserver_known = True
            self._jobserver = Jobserver.of(self._makeflags)
        return self._jobserver

    def _running(self) -> int | None:
        """The tasks that run or want to, on all cores; where the system does not say, its load average."""
        fields = self._read("proc/loadavg").split()
        if len(fields) > 3 and fields[3].partition("/")[0].isdigit():
            return max(1, int(fields[3].partition("/")[0]))
        if sys.platform == "win32":
            return None
        with suppress(OSError):
            return max(1, math.ceil(os.getloadavg()[0]))
        return None

    def _quotas(self) -> Iterator[float]:
        """What each control group of this process, or one above, lets all that is in it use together, in cores."""
        for line in self._read("proc/self/cgroup").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controllers and "cpu" not in controllers.split(","):
                continue
            names = [name for name in path.split("/") if name not in ("", "..")]
            for depth in range(len(names), -1, -1):
                group = "/".join(["sys/fs/cgroup", *(["cpu"] if controllers else []), *names[:depth]])
                if controllers:
                    time, period = self._read(f"{group}/cpu.cfs_quota_us"), self._read(f"{group}/cpu.cfs_period_us")
                else:
                    time, _, period = self._read(f"{group}/cpu.max").partition(" ")
                with suppress(ValueError, ZeroDivisionError):  # "max", or no such file
                    if float(time) > 0:
                        yield float(time) / float(period)

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self._root, name), encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeError):
            return ""
