"""Which processes hold a lock, and which of them are ancestors of this process: for messages and for nesting.

Everything comes from /proc/locks (proc_locks(5)) and the descriptors of processes (proc_pid_fdinfo(5)). In another pid
namespace holders cannot be seen. Nothing is locked to find out: that would get in the way of others.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from safe_pip.fs import proc


class Holder(NamedTuple):
    """One process that holds a lock, or stands before this one at its gate (`is_waiting`); `since`: see `Process`.

    `is_seen` is False if only a note tells of it.
    """

    pid: int
    exclusive: bool
    command: str
    since: float | None = None
    is_stopped: bool = False
    is_waiting: bool = False
    is_seen: bool = True


class Work(NamedTuple):
    """What one process does; `computed` is another text than before if it has computed anything since.

    `is_busy`: it runs, waits for a core, or waits for a disk.
    """

    pid: int
    computed: str
    is_busy: bool


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
        """Look once."""
        return cls(tuple(entries()), proc.sees_all_processes())

    def at(self, path: Path) -> tuple[list[Entry], list[Entry]]:
        """The holders of the lock on the file at `path`, and the processes that wait for it in the kernel, in order."""
        file = proc.kernel_name_at(path)
        found = [entry for entry in self.entries if entry.file == file]
        return [each for each in found if not each.is_waiting], [each for each in found if each.is_waiting]


def entries() -> list[Entry]:
    """Every flock that is held or waited for on this machine.

    The kernel gives a page of them at a time and goes on by number. If a lock was let go in between, it leaves out the
    first one of the next page. So more than one page is read twice. (Measured while two other processes took and let
    go of twenty locks every millisecond: one of 5,000 was missed, and none of 450,000 when read twice.)
    """
    pages = proc.pages("locks")
    if len(pages) > 1:
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
    found = [describe(entry) for entry in _others(proc.kernel_name(fd), listed)]
    if gate is not None:
        found += [describe(entry)._replace(is_waiting=True) for entry in _others(proc.kernel_name(gate), listed)]
    return tuple(found)


def holders_at(path: Path) -> tuple[Holder, ...]:
    """The other processes that hold the lock on the file at a path."""
    return tuple(describe(entry) for entry in _others(proc.kernel_name_at(path), entries()))


def _others(file: str | None, listed: list[Entry]) -> list[Entry]:
    return [each for each in listed if each.file == file and not each.is_waiting and each.pid != os.getpid()]


def describe(entry: Entry) -> Holder:
    """The process of an entry, as far as it can be looked at."""
    _, command, since = proc.process(entry.pid)
    return Holder(entry.pid, entry.exclusive, command, since, proc.state(entry.pid) == "T", entry.is_waiting)


def work_at(path: Path) -> tuple[Work, ...]:
    """What the other holders of the lock on the file at a path do; nothing where that cannot be known.

    Processes that wait for another lock are left out.
    """
    listed = entries()
    waiting = {entry.pid for entry in listed if entry.is_waiting}
    pids = [each.pid for each in _others(proc.kernel_name_at(path), listed) if each.pid not in waiting]
    # Time on a core and waiting for one, in ns ("Scheduler Statistics", Documentation/scheduler of the kernel).
    return tuple(Work(pid, "".join(proc.lines(f"{pid}/schedstat")), proc.state(pid) in ("R", "D")) for pid in pids)


def held_by_ancestors(own: Collection[int]) -> Iterator[Entry]:
    """Every flock that an ancestor holds, or that came to this process or an ancestor with an inherited descriptor.

    `own` are the descriptors that this process opened itself. After `flock 9` in a shell, the process that took the
    lock has ended: the lock belongs to descriptor 9, which the processes below the shell inherit.
    """
    family = proc.ancestors()
    known = set(family)
    for entry in entries():
        if not entry.is_waiting and entry.pid in known:
            yield entry
    yield from _of_descriptors(os.getpid(), own)
    for pid in family:
        yield from _of_descriptors(pid, ())


def inheritors(file: str) -> list[int]:
    """The processes that have a locked file open, as far as this user may look: its taker may have ended."""
    pids = sorted(map(int, proc.names("")))
    return [pid for pid in pids if any(entry.file == file for entry in _of_descriptors(pid, ()))]


def _of_descriptors(pid: int, own: Collection[int]) -> Iterator[Entry]:
    """The flocks on the descriptors of a process, which holds them whatever process took them."""
    for name in proc.names(f"{pid}/fdinfo"):
        if int(name) not in own:
            for line in proc.lines(f"{pid}/fdinfo/{name}"):
                if line.startswith("lock:") and (entry := _parse(line.split()[1:])) is not None:
                    yield entry._replace(pid=pid, is_waiting=False)
