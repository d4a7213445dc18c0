"""Which processes hold a lock, as far as /proc/locks and /proc/PID/fdinfo show them: for messages and for nesting."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from safe_pip.fs import proc
from safe_pip.locking import flock


class Holder(NamedTuple):
    """A process that holds a lock, or stands before this one at its gate; not `is_seen`: only a note tells of it."""

    pid: int
    exclusive: bool
    command: str
    since: float | None = None
    is_stopped: bool = False
    is_waiting: bool = False
    is_seen: bool = True
    host: str = ""  # another one than this

    @property
    def where(self) -> str:
        return f"pid {self.pid} on {self.host}" if self.host else f"pid {self.pid}"

    def noted(self) -> dict[str, object]:
        """This process in a trace."""
        return {"pid": self.pid, "command": self.command} | ({"host": self.host} if self.host else {})


class Entry(NamedTuple):
    """One flock in /proc/locks; `file` is the kernel's name for what is locked (`proc.kernel_name`)."""

    file: str
    pid: int
    exclusive: bool
    is_waiting: bool


class View(NamedTuple):
    """All flocks of this machine at one look. `is_complete`: those of other pid namespaces are among them."""

    entries: tuple[Entry, ...]
    is_complete: bool

    @classmethod
    def take(cls) -> "View":
        return cls(tuple(entries()), proc.sees_all_processes())

    def at(self, path: Path) -> tuple[list[Entry], list[Entry]]:
        """The holders of the lock on the file at `path`, and the processes that wait for it in the kernel, in order."""
        file = proc.kernel_name_at(path)
        found = [entry for entry in self.entries if entry.file == file]
        return [each for each in found if not each.is_waiting], [each for each in found if each.is_waiting]


def entries() -> list[Entry]:
    """Every flock that is held or waited for on this machine."""
    pages = proc.pages("locks")
    if len(pages) > 1:  # if a lock is let go between two, the kernel leaves out another one
        pages += proc.pages("locks")
    lines = b"".join(pages).decode(errors="replace").splitlines()
    return list(dict.fromkeys(entry for line in lines if (entry := _parse(line.split())) is not None))


def _parse(fields: list[str]) -> Entry | None:
    """A line: number, `->` for a waiter, FLOCK, ADVISORY, READ or WRITE, pid, device:inode, first and last byte."""
    is_waiting = fields[1:2] == ["->"]
    fields = fields[2 if is_waiting else 1 :]
    if len(fields) < 5 or fields[0] != "FLOCK":
        return None
    return Entry(file=fields[4], pid=int(fields[3]), exclusive=fields[2] == "WRITE", is_waiting=is_waiting)


def holders(fd: int, gate: int | None = None) -> tuple[Holder, ...]:
    """The holders of the lock on this descriptor's file, then those of the `gate`, which wait before this process."""
    listed = entries()
    before = _others(proc.kernel_name(gate), listed) if gate is not None else []
    found = [*_others(proc.kernel_name(fd), listed), *(entry._replace(is_waiting=True) for entry in before)]
    return tuple(map(describe, found))


def holders_at(path: Path) -> tuple[Holder, ...]:
    return tuple(map(describe, _others(proc.kernel_name_at(path), entries())))


def _others(file: str | None, listed: list[Entry]) -> list[Entry]:
    return [each for each in listed if each.file == file and not each.is_waiting and each.pid != os.getpid()]


def describe(entry: Entry) -> Holder:
    pid = entry.pid
    return Holder(pid, entry.exclusive, proc.command(pid), proc.started(pid), proc.state(pid) == "T", entry.is_waiting)


def work_at(path: Path) -> tuple[list[str], bool]:
    """What other holders that wait for no lock have computed; whether one runs, or waits for a core or the disk."""
    listed = entries()
    waiting = {entry.pid for entry in listed if entry.is_waiting}
    pids = [each.pid for each in _others(proc.kernel_name_at(path), listed) if each.pid not in waiting]
    # Time on a core and waiting for one, in ns ("Scheduler Statistics", Documentation/scheduler of the kernel).
    computed = [line for pid in pids for line in proc.lines(f"{pid}/schedstat")]
    return computed, any(proc.state(pid) in ("R", "D") for pid in pids)


def held_by_ancestors() -> Iterator[Entry]:
    """Every flock that an ancestor holds, or that is on a descriptor which it passed on (`flock 9` in a shell)."""
    family = proc.ancestors()
    yield from (entry for entry in entries() if not entry.is_waiting and entry.pid in family)
    yield from _of_descriptors(os.getpid(), flock.own_descriptors())
    for pid in family:
        yield from _of_descriptors(pid, ())


def inheritors(file: str) -> list[int]:
    """The processes that have a locked file open, as far as this user may look: its taker may have ended."""
    pids = sorted(map(int, proc.names("")))
    return [pid for pid in pids if any(entry.file == file for entry in _of_descriptors(pid, ()))]


def locked_path(entry: Entry) -> Path | None:
    """Where the file lies that the process of an entry has locked, as far as this user may look."""
    found = (name for name in proc.names(f"{entry.pid}/fdinfo") if entry.file in _locked_by(entry.pid, name))
    return next((Path(path) for name in found if (path := proc.link(f"{entry.pid}/fd/{name}"))), None)


def _of_descriptors(pid: int, own: Collection[int]) -> Iterator[Entry]:
    """The flocks on the descriptors of a process, which holds them whatever process took them."""
    for name in proc.names(f"{pid}/fdinfo"):
        if int(name) not in own:
            yield from _locked_by(pid, name).values()


def _locked_by(pid: int, descriptor: str) -> dict[str, Entry]:
    lines = (line.split()[1:] for line in proc.lines(f"{pid}/fdinfo/{descriptor}") if line.startswith("lock:"))
    return {entry.file: entry._replace(pid=pid, is_waiting=False) for each in lines if (entry := _parse(each))}
