"""Who holds a lock, and which of them are ancestors of this process: for messages and for nesting.

Everything is read from /proc (proc_locks(5), proc_pid_fdinfo(5), proc_pid_stat(5)); where there is none, nothing is
known and every question here has an empty answer. In another pid namespace holders cannot be seen.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_LONGEST_COMMAND = 200
_MOST = 1 << 20
# PROC_PID_INIT_INO of the kernel's sources.
_FIRST_NAMESPACE = "pid:[4026531836]"


class Holder(NamedTuple):
    """One process that holds a lock, or stands before us at its gate (`is_waiting`); `since`: its start (epoch)."""

    pid: int
    exclusive: bool
    command: str
    since: float | None = None
    is_stopped: bool = False
    is_waiting: bool = False


class Work(NamedTuple):
    """What one process does; `computed` is another text than before if it has computed anything since."""

    pid: int
    computed: str
    is_busy: bool
    """Whether it runs, waits for a core, or for a disk."""


class Entry(NamedTuple):
    """One flock in /proc/locks; `file` is the kernel's name for what is locked, as `kernel_name` gives it."""

    file: str
    pid: int
    exclusive: bool
    is_waiting: bool


def kernel_name(fd: int) -> str:
    """What /proc/locks calls the file behind a descriptor: device and inode.

    On btrfs the device of stat(2) is another one than the superblock's; the mount knows it.
    """
    status = os.fstat(fd)
    device = "{:02x}:{:02x}".format(*_major_minor(status.st_dev))
    for line in _lines(_PROC / "self" / "fdinfo" / str(fd)):
        name, _, value = line.partition(":")
        if name == "mnt_id":
            device = _device_of_mount(value.strip()) or device
    return f"{device}:{status.st_ino}"


def kernel_name_at(path: Path) -> str | None:
    """The same of what lies at a path; None if nothing does. Nothing is read for it, so no permission is needed."""
    if sys.platform != "linux":
        return None
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return kernel_name(fd)
    finally:
        os.close(fd)


def sees_everybody() -> bool:
    """Whether /proc/locks shows every holder on this machine: it does only in the first pid namespace."""
    try:
        return os.readlink(_PROC / "self" / "ns" / "pid") == _FIRST_NAMESPACE and (_PROC / "locks").exists()
    except OSError:
        return False


def _major_minor(device: int) -> tuple[int, int]:
    if sys.platform == "win32":
        return 0, device
    return os.major(device), os.minor(device)


def _device_of_mount(mount: str) -> str | None:
    for line in _lines(_PROC / "self" / "mountinfo"):
        fields = line.split()
        if fields[0] == mount:
            major, _, minor = fields[2].partition(":")
            return f"{int(major):02x}:{int(minor):02x}"
    return None


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that `path` is on, as mountinfo spells it; empty if unknown."""
    try:
        return _type_on(os.stat(path).st_dev)
    except OSError:
        return ""


@functools.lru_cache
def _type_on(device: int) -> str:
    number = "{}:{}".format(*_major_minor(device))
    for line in _lines(_PROC / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        if before.split()[2] == number and after:
            return after.split()[0]
    return ""


def entries() -> list[Entry]:
    """Every flock that is held or waited for on this machine.

    The kernel gives a page of them at a time, and goes on by number: where a lock was let go in between, it leaves out
    the next page's first. So more than one page is read twice: while two others took and let go of twenty every
    millisecond, one of 5,000 was missed, and none of 450,000 so.
    """
    pages = _pages(_PROC / "locks")
    if len(pages) > 1:
        pages += _pages(_PROC / "locks")
    lines = b"".join(pages).decode(errors="replace").splitlines()
    return list(dict.fromkeys(entry for line in lines if (entry := _parse(line.split())) is not None))


def _parse(fields: list[str]) -> Entry | None:
    """A line: number, `->` for who waits, FLOCK, ADVISORY, READ or WRITE, pid, device:inode, first and last byte."""
    if len(fields) < 2:
        return None
    fields = fields[1:]
    is_waiting = fields[0] == "->"
    if is_waiting:
        fields = fields[1:]
    if len(fields) < 5 or fields[0] != "FLOCK":
        return None
    return Entry(file=fields[4], pid=int(fields[3]), exclusive=fields[2] == "WRITE", is_waiting=is_waiting)


def holders(fd: int, gate: int | None = None) -> tuple[Holder, ...]:
    """Who holds the lock on this descriptor's file; with `gate`, then who holds that one and so waits before us."""
    found: list[Holder] = []
    listed = entries()
    for descriptor, is_waiting in ((fd, False), (gate, True)):
        if descriptor is None:
            continue
        file = kernel_name(descriptor)
        for entry in listed:
            if entry.file == file and not entry.is_waiting and entry.pid != os.getpid():
                found.append(describe(entry, is_waiting))
    return tuple(found)


def holders_at(path: Path) -> tuple[Holder, ...]:
    """Who else holds the lock on the file at a path."""
    file, own = kernel_name_at(path), os.getpid()
    found = (entry for entry in entries() if entry.file == file and not entry.is_waiting and entry.pid != own)
    return tuple(describe(entry, is_waiting=False) for entry in found)


def work_at(path: Path) -> tuple[Work, ...]:
    """What whoever else holds the lock on the file at a path does; nothing where that cannot be known.

    Who waits for another lock is left out.
    """
    file, own, listed = kernel_name_at(path), os.getpid(), entries()
    waiting = {entry.pid for entry in listed if entry.is_waiting}
    pids = [entry.pid for entry in listed if entry.file == file and not entry.is_waiting and entry.pid != own]
    # Time on a core and waiting for one, in ns ("Scheduler Statistics", Documentation/scheduler of the kernel).
    return tuple(
        Work(pid, "".join(_lines(_PROC / str(pid) / "schedstat")), _stat(pid)[:1] in (["R"], ["D"]))
        for pid in pids
        if pid not in waiting
    )


def describe(entry: Entry, is_waiting: bool) -> Holder:
    """The process that an entry is of, as far as it can be looked at."""
    return Holder(
        pid=entry.pid,
        exclusive=entry.exclusive,
        command=command(entry.pid),
        since=started(entry.pid),
        is_stopped=_stat(entry.pid)[:1] == ["T"],
        is_waiting=is_waiting,
    )


def ancestors(pid: int | None = None) -> list[int]:
    """The pids of the parent, its parent and so on."""
    found: list[int] = []
    pid = os.getpid() if pid is None else pid
    while (fields := _stat(pid)) and (pid := int(fields[1])) > 0 and pid not in found:
        found.append(pid)
    return found


def held_by_ancestors(own: Collection[int]) -> Iterator[Entry]:
    """Every flock that an ancestor holds, or that came to us or to an ancestor with an inherited descriptor.

    `own` are the descriptors that this process opened itself. A shell that ran `flock 9` has no such process any
    more: the lock belongs to descriptor 9, which we or the processes between inherited.
    """
    family = ancestors()
    known = set(family)
    for entry in entries():
        if not entry.is_waiting and entry.pid in known:
            yield entry
    yield from _of_descriptors(os.getpid(), own)
    for pid in family:
        yield from _of_descriptors(pid, ())


def heirs(file: str) -> list[int]:
    """The processes that have a locked file open, as far as this user may look at them: who took it may have ended."""
    try:
        pids = [int(name) for name in os.listdir(_PROC) if name.isdecimal()]
    except OSError:
        return []
    return [pid for pid in sorted(pids) if any(entry.file == file for entry in _of_descriptors(pid, ()))]


def _of_descriptors(pid: int, own: Collection[int]) -> Iterator[Entry]:
    directory = _PROC / str(pid) / "fdinfo"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if int(name) in own:
            continue
        for line in _lines(directory / name):
            if line.startswith("lock:"):
                entry = _parse(line.split()[1:])
                if entry is not None:
                    # Who took it may have exited; the family is who has it.
                    yield Entry(entry.file, pid, entry.exclusive, is_waiting=False)


def command(pid: int) -> str:
    """The command line of a process as one would type it, shortened; empty if there is no such process."""
    try:
        content = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    import shlex  # only for messages; `pip_seams.PRELOADED` names it

    words = [word.decode(errors="replace") for word in content.split(b"\0")[:-1]]
    return printable(shlex.join(_typed(words)))


def _typed(words: list[str]) -> list[str]:
    """The name of a script alone, where the kernel has put the interpreter from its first line before it."""
    if len(words) > 1 and os.path.isabs(words[1]) and os.path.basename(words[0]).startswith("python"):
        directory, name = os.path.split(words[1])
        if directory == os.path.dirname(words[0]):
            return [name, *words[2:]]
    return words


def printable(line: str) -> str:
    """What may be shown on a terminal of a line that somebody else wrote."""
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _LONGEST_COMMAND else line[: _LONGEST_COMMAND - 1] + "…"


def started(pid: int) -> float | None:
    """When a process began, in seconds of the epoch."""
    fields = _stat(pid)
    booted = [line.split()[1] for line in _lines(_PROC / "stat") if line.startswith("btime ")]
    if sys.platform == "win32" or not fields or not booted:
        return None
    return float(booted[0]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with the pid it names one process and no later one."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def owner_of(pid: int) -> int | None:
    """The user whose process this is."""
    try:
        return os.stat(_PROC / str(pid)).st_uid
    except OSError:
        return None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: the name before it may contain anything."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def _pages(path: Path) -> list[bytes]:
    """The content of a file of /proc, as the kernel gave it: whole lines, a page at a time."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return []
    try:
        return list(iter(lambda: os.read(fd, _MOST), b""))
    except OSError:
        return []
    finally:
        os.close(fd)


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return ()
