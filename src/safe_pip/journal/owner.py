"""The owner file `<id>.owner` of a transaction: its process keeps it locked for as long as it lives.

It names what the transaction has outside its own state directory, each before it is made, so that it is found after the
owner's death. It is only ever appended to: the lock is on the file, not on its name.
"""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import Directory, attributes, proc
from safe_pip.fs.directory import own
from safe_pip.locking import flock
from safe_pip.locking.flock import Descriptor
from safe_pip.locking.state_directory import OWNER_FILE

# Of a killed process the highest descriptor is closed first: the next holder of its commit locks finds it dead.
_HIGH_DESCRIPTOR = 900
# In bytes: a longer file is not an owner file.
_LONGEST = 1 << 20


class OwnerNote(NamedTuple):
    """What an owner file says: the process that made it, and what its transaction has elsewhere.

    `since` is when it was made, in seconds of the epoch; `host` is empty if it is this one; `parts` are private
    directories, `marks` the state directories that hold a mark, as absolute paths.
    """

    pid: int = 0
    command: str = ""
    since: float = 0.0
    host: str = ""
    parts: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


class Owner:
    """A locked owner file. Once it is closed it is like that of a dead process."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.path = descriptor.path
        self.identifier = descriptor.path.name.removesuffix(OWNER_FILE)
        self.note = OwnerNote()
        """What was noted by `append`."""
        self._descriptor = descriptor

    @classmethod
    def make(cls, state: Path) -> "Owner":
        """Make and lock a new one in the state directory; the caller holds its commit lock, shared.

        Raises `OSError` if it cannot be made, and `UnusableEnvironment` if it cannot be locked. After a crash an
        unlocked owner file may stay.
        """
        while True:
            identifier = os.urandom(8).hex()
            name = f"{identifier}{OWNER_FILE}"
            with Directory.open(state) as directory:
                own.add(identifier)
                try:
                    fs.write_new(directory, name, _line(proc.own_note(str(state))), 0o644)
                    give_access(directory, name)
                    owner = _locked(state / name, asks=False)  # the commit lock keeps sweepers away
                except FileExistsError:
                    own.discard(identifier)
                    raise  # another transaction's
                except BaseException:
                    own.discard(identifier)
                    with contextlib.suppress(OSError):
                        fs.remove(directory, name)
                    raise
                if owner is not None:
                    return owner
                # Another process tested the lock at this moment, or took the owner for dead.
                own.discard(identifier)
                fs.remove(directory, name)

    @classmethod
    def adopt(cls, path: Path) -> "Owner | None":
        """Lock the file of a dead owner, to clean up after it; None if the owner lives, or the file is gone."""
        try:
            return _locked(path)
        except (FileNotFoundError, UnusableEnvironment):
            return None

    @property
    def is_ours(self) -> bool:
        """Whether this process holds it: not after it was closed, and not in a forked child."""
        return self._descriptor.fd >= 0

    def append(self, kind: str, directory: str) -> None:
        """Note a private directory ("part"), or the state directory of a "mark", before it is made."""
        # A newline before it as well: a line that a full disk has torn damages no other.
        fs.append(self._descriptor.fd, self.path, b"\n" + _line({kind: directory}))
        self.note = _with(self.note, {kind: directory})

    def close(self) -> None:
        """Let it go: unless it was removed, the next sweep deletes the transaction. A forked child does nothing."""
        own.discard(self.identifier)
        self._descriptor.close()


def read(path: Path) -> OwnerNote:
    """Read an owner file, locked or not; damaged lines are left out, and a file that is gone has none."""
    note, content = OwnerNote(), b""
    # Any user may have put the file there: no link is followed, no pipe waited for.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with contextlib.suppress(OSError), open(os.open(path, flags), "rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            content = file.read(_LONGEST)
    for line in content.split(b"\n"):
        try:
            note = _with(note, json.loads(line))
        except (ValueError, LookupError, TypeError):
            continue
    return note


def _with(note: OwnerNote, line: dict[str, Any]) -> OwnerNote:
    if "pid" in line:
        return note._replace(**proc.read_note(line)._asdict())
    if "part" in line:
        return note._replace(parts=(*note.parts, str(line["part"])))
    return note._replace(marks=(*note.marks, str(line["mark"])))


def _locked(path: Path, *, asks: bool = True) -> Owner | None:
    try:
        descriptor = Descriptor(path, writable=True)  # a file server wants that for an exclusive lock
    except UnusableEnvironment:
        descriptor = Descriptor(path)
    is_locked = False
    try:
        descriptor.raise_to(_HIGH_DESCRIPTOR)
        is_locked = flock.try_lock(descriptor, exclusive=True) and descriptor.is_current(asks=asks)
    finally:
        if not is_locked:
            descriptor.close()
    return Owner(descriptor) if is_locked else None


def give_access(directory: Directory, name: str) -> None:
    """Let all users who can read the directory read this file in it; its owner stays."""
    status = directory.status()
    attributes.set_access(directory, name, stat.S_IMODE(status.st_mode) & 0o666 | 0o444, group=status.st_gid)


def _line(content: dict[str, object]) -> bytes:
    return json.dumps(content).encode() + b"\n"
