"""The store of prepared wheels: each wheel is unpacked and compiled once, and its entry never changes afterwards.

An entry (`locking.entries`) is a directory `wheels/<key>` with `files/`, the tree of the archive with its bytecode, and
`listing`, which has size and digest of every file, and its own digest. Entries are made in `aside/`. `making/<key>` is
the mutex of the process that makes an entry (`prepare`). A damaged entry is not an error: it counts as absent.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import Directory, proc, trust
from safe_pip.fs.bulk import BYTECODE, Damaged, Listed, copy_files, make_parents
from safe_pip.locking import flock
from safe_pip.locking.entries import Entries, hold

FORMAT = "prepared-v1"
FILES, LISTING = "files", "listing"
_OLD = 24 * 3600.0
_BLOCK = 4096


class Listing(NamedTuple):
    """What an entry holds; `files` by the directory of the archive that goes to one place: "" and those of `.data`.

    `size` are the bytes on the disk; `differences` is what `verify.Differences` says of the wheel with this file name.
    """

    wheel: str
    size: int
    differences: Sequence[str]
    files: dict[str, list[Listed]]

    def encode(self) -> bytes:
        """The whole listing: a line with the digest of the rest, a line with all but the files, a line with these."""
        head = json.dumps(self._replace(files={})._asdict())
        body = f"{head}\n{json.dumps(self.files, separators=(',', ':'))}\n".encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def decode(cls, content: bytes) -> "Listing":
        """Raises `Damaged` for anything that `encode` has not made."""
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise Damaged(LISTING)
        head, _, files = body.partition(b"\n")
        return cls(**{**json.loads(head), "files": json.loads(files)})


def on_disk(sizes: Iterable[int]) -> int:
    """The bytes that files of these sizes take on a disk, about: whole blocks."""
    return sum(-(-size // _BLOCK) * _BLOCK for size in sizes)


def _of_this_host(cache: Path, *, makes: bool) -> Path | None:
    """The directory for caches, or one that only this host uses in its place; None if there is none.

    An entry is locked as a directory, which other hosts do not see.
    """
    if not proc.is_shared(str(cache)):
        return cache
    with contextlib.suppress(OSError):
        place = trust.own_temporary(makes=makes)
        if place is not None and not proc.is_shared(str(place)):
            return place / ".cache"
    return None


class Entry(NamedTuple):
    """One prepared wheel; it is not removed while it is held."""

    path: Path
    listing: Listing
    held: flock.Descriptor | None = None

    def close(self) -> None:
        if self.held is not None:
            self.held.close()

    def copy(self, group: str, destination: Directory, *, bytecode: bool, clones: bool) -> None:
        """Copy what the archive has below `group` to `destination`; files that are there already are replaced.

        The new files have the modes that the umask gives, and the present time. Raises `Damaged` if a file is not what
        was prepared, `OSError` if one cannot be written; some files are copied then.
        """
        files = [file for file in self.listing.files[group] if bytecode or not file[3] & BYTECODE]
        make_parents(destination, (file[0] for file in files))
        try:
            source = Directory.open(self.path / FILES / group)
        except OSError:
            raise Damaged(group) from None
        with source:
            copy_files(source, destination, files, clones=clones)


class Store(NamedTuple):
    """All prepared wheels of one user below one cache directory; any number of processes may use it."""

    path: Path

    @classmethod
    def below(cls, cache: Path) -> "Store | None":
        """The store in the directory `cache`, made if need be; None if it cannot be made, or others could change it."""
        local = _of_this_host(cache, makes=True)
        path = local and trust.make_trusted(local / "safe-pip" / FORMAT)
        return cls(path) if path is not None else None

    @classmethod
    def existing(cls, cache: Path) -> "Store | None":
        """The store in the directory `cache`, if there is one; nothing is made."""
        local = _of_this_host(cache, makes=False)
        path = local and local / "safe-pip" / FORMAT
        return cls(Path(os.path.realpath(path))) if path is not None and fs.is_directory(path) else None

    @property
    def wheels(self) -> Entries:
        return Entries(self.path / "wheels", self.path / "aside")

    def find(self, key: str) -> Entry | None:
        """The entry of this key, held; None if there is no whole one. A damaged one is removed."""
        place = self.wheels.directory / key
        try:
            held = hold(place)
        except (FileNotFoundError, BlockingIOError):  # being made, or being removed
            return None
        except (OSError, UnusableEnvironment):
            self.wheels.remove(key)
            return None
        try:
            with Directory.open(place) as directory:
                listing = Listing.decode(directory.read(LISTING))
        except (OSError, Damaged, ValueError, TypeError):
            self.wheels.discard(held)
            return None
        fs.touch(place)
        return Entry(place, listing, held)

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first, none of them held, and without files in their listings."""
        found = []
        for name in self.wheels.names():
            place = self.wheels.directory / name
            with contextlib.suppress(OSError, ValueError, TypeError):
                with Directory.open(place) as directory, open(directory.open_file(LISTING), "rb") as file:
                    file.readline()
                    head: dict[str, Any] = json.loads(file.readline())
                found.append((os.stat(place).st_mtime, place, Listing(**head)))
        return [Entry(place, listing) for _, place, listing in sorted(found)]

    def keep_below(self, limit: int) -> None:
        """Remove damaged entries, then the least recently used ones that are not in use, down to `limit` bytes."""
        entries = self.entries()
        for name in {*self.wheels.names()} - {entry.path.name for entry in entries}:
            if entry := self.find(name):
                entry.close()
        size = sum(entry.listing.size for entry in entries)
        for entry in entries:
            if size > limit and self.wheels.remove(entry.path.name):
                size -= entry.listing.size

    def sweep(self) -> None:
        """Remove what dead processes left: half-made entries, and mutexes that no process holds."""
        Entries(self.path / "making", self.path / "aside").sweep(unused=_OLD)

    def mutex(self, key: str) -> Path:
        """The file, made if need be, that the process locks which makes the entry of this key. Raises `OSError`."""
        place = self.making(key)
        fs.make_directories(place.parent, mode=0o700)
        with contextlib.suppress(FileExistsError):
            fs.write(place, b"")
        return place

    def making(self, key: str) -> Path:
        """Where that file is, if there is one."""
        return self.path / "making" / key
