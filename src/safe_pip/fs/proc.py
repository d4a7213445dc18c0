"""What Linux tells in /proc (proc(5)): processes, mounts and volumes. Nothing else reads /proc.

Without it every question has an empty answer. `shlex` is imported when a command line is shown, which is rare.
"""

import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_PROC = Path("/proc")
_LONGEST_COMMAND = 200
_HIDDEN = "****"
# A command line with none of these has no secret that is known by its form; most have none.
_SIGNS = ("@", "pass", "pwd", "secret", "token", "cred", "auth", "cookie", "key", "twine", "mysql", "-u")
# The name of an option, a variable, a parameter or a header whose value is a secret. `author` is none.
_NAME = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|(?<![a-z])pass|token|credential|auth(?:orization)?|cookie"
    r"|(?:api|access|account|private|signing)[-_]?key)s?(?![a-z])[\w.-]*"
)
_VALUE = r"""(?:(?:bearer|basic|digest|token)\s+)?(?:"[^"]*"|'[^']*'|[^\s&;,'"]+)"""
_IN_TEXT = (
    # Credentials in a URL, up to its last `@`: a password may have been typed with a `/`, which no port has.
    (r"(://)(?:[^/?#\s]*@|[^/?#\s:@]*:(?!\d*(?:[/?#\s]|$))[^\s@]*@)", rf"\1{_HIDDEN}@"),
    (rf"({_NAME}['\"]?\s*[=:]\s*){_VALUE}", rf"\1{_HIDDEN}"),
    (rf"((?<![\w-])--?{_NAME}\s+){_VALUE}", rf"\1{_HIDDEN}"),
    (r"((?<![\w-])(?:-u|--user|--proxy-user)[=\s]+)[^\s:]+:\S+", rf"\1{_HIDDEN}"),
    (r"(?<![\w/@.*-])[^\s/@:=?&'\"]+:[^\s/@]+@(?=[\w.-])", f"{_HIDDEN}@"),  # `user:password@host`, without scheme
)
_MOST = 1 << 20
# Filesystems of one host. Any other one may be mounted by several hosts at once, whatever it is called.
_LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs tmpfs overlay squashfs fuse.squashfuse fuse.squashfuse_ll erofs".split()
)

Volume = tuple[int, int]
"""Device and mount: what a rename has to stay within."""


def user() -> int:
    """The effective user of this process; 0 on Windows, which has none."""
    if sys.platform == "win32":
        return 0
    return os.geteuid()


class ProcessNote(NamedTuple):
    """A process as it is noted in a file; `host` is where it runs, empty if that is here: else its pid says nothing."""

    pid: int = 0
    command: str = ""
    since: float = 0.0
    host: str = ""


def own_note(place: str = "") -> dict[str, Any]:
    """This process as it is noted in a file (JSON) below `place` for other commands; `since` is now."""
    shown = command(os.getpid()) or printable(" ".join(_without_secrets(sys.argv)))
    where = dict(zip(("host", "boot"), host(), strict=True)) if is_shared(place) else {}
    return {"pid": os.getpid(), "command": shown, "since": time.time(), **where}


def read_note(content: dict[str, Any]) -> ProcessNote:
    """The process that such a file notes; or `LookupError`, `TypeError`, `ValueError` if it notes none."""
    name = content.get("host")
    where = "" if name is None or (name, content.get("boot")) == host() else printable(str(name))
    return ProcessNote(int(content["pid"]), printable(str(content["command"])), float(content["since"]), where)


@functools.cache
def host() -> tuple[str, str]:
    """The name of this host, and its boot: the pids of another one, or of an earlier boot, mean nothing here."""
    if sys.platform == "win32":
        return "", ""
    return os.uname().nodename, "".join(lines("sys/kernel/random/boot_id"))


def command(pid: int) -> str:
    """The command line of a process, safe to show, without secrets and shortened; empty if there is none."""
    import shlex

    words = [word.decode(errors="replace") for word in b"".join(pages(f"{pid}/cmdline")).split(b"\0")[:-1]]
    if len(words) > 1 and os.path.basename(words[0]).startswith("python"):
        # For a script the kernel puts the interpreter of its first line in front.
        directory, name = os.path.split(words[1])
        if name == "_runner.py":  # safe-pip for another interpreter
            words[:2] = ["safe-pip", *(() if "--python" in words else ("--python", words[0]))]
        elif name == "safe-pip" or (os.path.isabs(directory) and directory == os.path.dirname(words[0])):
            words[:2] = [name]
    return printable(shlex.join(_without_secrets(words)).replace(f"'{_HIDDEN}'", _HIDDEN))


def _without_secrets(words: list[str]) -> list[str]:
    """The words of a command line with `****` for credentials in URLs and for values of options that carry secrets."""
    if not any(sign in word.lower() for word in words for sign in _SIGNS):
        return words
    short = "-p" if {"twine", "sshpass", "mysql"} & {os.path.basename(word) for word in words} else None
    shown: list[str] = []
    before = ""
    for word in words:
        name, equals, value = word.partition("=")
        is_next = before == short or re.fullmatch(f"--?{_NAME}", before, re.IGNORECASE)
        if before and is_next and not word.startswith("--"):
            shown.append(_HIDDEN)
            word = ""
        elif ":" in (value or word) and (name if value else before) in ("-u", "-U", "--user", "--proxy-user"):
            shown.append(f"{name}={_HIDDEN}" if value else _HIDDEN)
        elif equals and re.fullmatch(f"-*{_NAME}", name, re.IGNORECASE):
            shown.append(f"{name}={_HIDDEN}")
        elif header := re.match(rf"{_NAME}:\s", word, re.IGNORECASE):
            shown.append(f"{header[0]}{_HIDDEN}")
        elif short and word.startswith(short) and word != short:
            shown.append(f"{short}{_HIDDEN}")
        else:
            shown.append(_without_secrets_inside(word))
        before = word
    return shown


def _without_secrets_inside(text: str) -> str:
    if any(sign in text.lower() for sign in _SIGNS):
        for pattern, instead in _IN_TEXT:
            text = re.sub(pattern, instead, text, flags=re.IGNORECASE)
    return text


def printable(line: str) -> str:
    """A line that another process wrote, safe to show on a terminal, without secrets and shortened."""
    line = _without_secrets_inside(line)
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _LONGEST_COMMAND else line[: _LONGEST_COMMAND - 1] + "…"


def started(pid: int) -> float | None:
    ticks = start_ticks(pid)
    booted = [line.split()[1] for line in lines("stat") if line.startswith("btime ")]
    if sys.platform == "win32" or ticks is None or not booted:
        return None
    return float(booted[0]) + ticks / os.sysconf("SC_CLK_TCK")


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: pid and start name one process and no later one."""
    return int(fields[19]) if (fields := stat(pid)) else None


def state(pid: int) -> str:
    """What the process does: R runs or waits for a core, D waits for a disk, T is stopped."""
    return "".join(stat(pid)[:1])


def owner_of(pid: int) -> int:
    return os.stat(_PROC / str(pid)).st_uid


def ancestors() -> list[int]:
    found: list[int] = []
    pid = os.getpid()
    while (fields := stat(pid)) and (pid := int(fields[1])) > 0 and pid not in found:
        found.append(pid)
    return found


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on. The name before it may contain anything."""
    return os.fsdecode(b"".join(pages(f"{pid}/stat"))).rpartition(")")[2].split()


class Filesystem(NamedTuple):
    """What a directory is on: its type and its mount options, as mountinfo spells them; empty where that is unknown."""

    kind: str = ""
    options: frozenset[str] = frozenset()


def is_shared(path: str) -> bool:
    """Whether several hosts may use what is at `path`, or will be: every filesystem that is not known to be local."""
    while True:
        try:
            return sys.platform == "linux" and filesystem(path).kind not in _LOCAL
        except OSError:
            path, below = os.path.dirname(path), path
            if path == below:
                return False


def filesystem(path: str) -> Filesystem:
    """What `path` is on; asked once for each path, and of the kernel once for each device. Raises `OSError`."""
    if path not in _known:
        _known[path] = _filesystem(os.stat(path).st_dev, path)
    return _known[path]


_known: dict[str | int, Filesystem] = {}


def is_shared_device(device: int, path: str) -> bool:
    """Whether several hosts may use `path`, on this device as stat(2) has it: no system call for a known device."""
    return sys.platform == "linux" and kind_of_device(device, path) not in _LOCAL


def kind_of_device(device: int, path: str) -> str:
    """The type of the filesystem that `path` is on, with this device; empty where that is unknown."""
    return _filesystem(device, path).kind


def _filesystem(device: int, path: str) -> Filesystem:
    if device not in _known:
        _known[device] = _filesystem_on(device, path)
    return _known[device]


def _filesystem_on(device: int, path: str) -> Filesystem:
    if sys.platform == "win32":
        return Filesystem()
    mounts, wanted = list(_mounts()), f"{os.major(device)}:{os.minor(device)}"
    found = [mount for mount in mounts if mount.device == wanted]
    if not found and sys.platform == "linux":  # a subvolume of btrfs has a device that no mount names
        number = volume(path)[1]
        found = [mount for mount in mounts if mount.number == str(number)]
    return Filesystem(found[0].kind, found[0].options) if found else Filesystem()


class _Mount(NamedTuple):
    number: str
    device: str
    point: str
    kind: str
    options: frozenset[str]


def _mounts() -> Iterator[_Mount]:
    for line in lines("self/mountinfo"):
        before, _, after = line.partition(" - ")
        number, _, device, _, point, *own = before.split(" ")
        kind, *more = after.split(" ")
        yield _Mount(number, device, point, kind, frozenset(",".join((*own[:1], *more[1:2])).split(",")))


def volume(path: str) -> Volume:
    """What a rename out of the directory `path` has to stay within. Raises `OSError` if there is no directory."""
    device = os.stat(path).st_dev
    if sys.platform != "linux":
        return device, 0
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return device, _mount_of(descriptor)
    finally:
        os.close(descriptor)


def mount_points() -> frozenset[str]:
    return frozenset(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), each.point) for each in _mounts())


def kernel_name(fd: int) -> str:
    """What /proc/locks calls the file behind a descriptor: device and inode."""
    status = os.fstat(fd)
    if sys.platform == "win32":
        return f"{status.st_dev}:{status.st_ino}"
    # On btrfs stat(2) gives another device than the superblock's; the mount knows the latter.
    wanted, own = str(_mount_of(fd)), f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    major, _, minor = next((mount.device for mount in _mounts() if mount.number == wanted), own).partition(":")
    return f"{int(major):02x}:{int(minor):02x}:{status.st_ino}"


def kernel_name_at(path: Path) -> str | None:
    """What /proc/locks calls the file at a path; None if there is none. No permission to read it is needed."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return kernel_name(fd)
        finally:
            os.close(fd)
    return None


def _mount_of(fd: int) -> int:
    """The number of the mount that an open file is on, 0 if unknown."""
    numbers = (line.split()[1] for line in lines(f"self/fdinfo/{fd}") if line.startswith("mnt_id:"))
    return int(next(numbers, 0))


def names(directory: str) -> list[str]:
    """What is called by a number in a directory of /proc: processes, or the descriptors of one."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(_PROC / directory) if name.isdecimal()]
    return []


def lines(name: str) -> list[str]:
    return [line for line in os.fsdecode(b"".join(pages(name))).split("\n") if line]


def link(name: str) -> str:
    """Where a link of /proc leads, such as that of a descriptor; empty if it cannot be seen."""
    with contextlib.suppress(OSError):
        return os.readlink(_PROC / name)
    return ""


def pages(name: str) -> list[bytes]:
    """The content of a file of /proc as the kernel gives it: whole lines, a page at a time."""
    with contextlib.suppress(OSError):
        fd = os.open(_PROC / name, os.O_RDONLY)
        try:
            return list(iter(lambda: os.read(fd, _MOST), b""))
        finally:
            os.close(fd)
    return []


def sees_all_processes() -> bool:
    """Whether /proc shows every process of this machine: it does only in the first pid namespace."""
    # The number is PROC_PID_INIT_INO in the kernel's sources.
    return link("self/ns/pid") == "pid:[4026531836]" and (_PROC / "locks").exists()
