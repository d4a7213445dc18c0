"""The store of prepared wheels: each unpacked and compiled once, complete or absent, and never changed afterwards.

An entry is a directory `wheels/<key>` with `files/`, the tree of the archive with its bytecode, and `listing`, which
has size and digest of every file, and its own digest. It is made in `aside/` and renamed to its place. Whoever copies
from an entry holds its directory locked, shared; who removes one locks it exclusively and renames it first.
`making/<key>` is the mutex of whoever makes an entry (`preparing`), `seconds/<n>` says that n is the time of an entry.

What is in the store can be made again, so nothing of it is worth an error: an entry that is damaged is an absent one.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import Directory, trust
from safe_pip.fs.bulk import BYTECODE, Damaged, LinkMode, Listed, copy_files, make_parents, umask
from safe_pip.locking import flock

__all__ = ["Damaged", "Entry", "Listed", "Listing", "Store"]

FORMAT = "prepared-v1"
FILES, LISTING = "files", "listing"
_WHEELS, _ASIDE, _MAKING, _SECONDS = "wheels", "aside", "making", "seconds"
_OLD = 24 * 3600.0
_BLOCK = 4096


class Listing(NamedTuple):
    """What an entry holds; `files` by the directory of the archive that goes to one place: "" and those of `.data`."""

    wheel: str
    """The file name of the wheel."""
    second: int
    """The time of its sources, which no other entry's have."""
    size: int
    """What it takes on the disk, in bytes."""
    umask: int
    """The one that its files were made with."""
    files: dict[str, list[Listed]]

    def encode(self) -> bytes:
        """The whole listing; its first line is the digest of the others, its second all but the files."""
        head = json.dumps(self._replace(files={})._asdict())
        body = f"{head}\n{json.dumps(self.files, separators=(',', ':'))}\n".encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def decode(cls, content: bytes) -> "Listing":
        """Raises `Damaged` for anything but what `encode` has made."""
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise Damaged(LISTING)
        head, _, files = body.partition(b"\n")
        return cls(**{**json.loads(head), "files": json.loads(files)})


def on_disk(sizes: Iterable[int]) -> int:
    """What files of these sizes take on a disk, about: whole blocks."""
    return sum(-(-size // _BLOCK) * _BLOCK for size in sizes)


class Entry(NamedTuple):
    """One prepared wheel, kept from being removed while it is held."""

    path: Path
    listing: Listing
    held: flock.Descriptor | None = None

    @property
    def name(self) -> str:
        """The file name of the wheel that it was made of."""
        return self.listing.wheel

    @property
    def size(self) -> int:
        """What it takes on the disk, in bytes, about."""
        return self.listing.size

    def close(self) -> None:
        """Let it go; it may be removed now."""
        if self.held is not None:
            self.held.close()

    def copy(self, group: str, destination: Directory, *, bytecode: bool, by: LinkMode) -> None:
        """Copy what the archive has below `group` to `destination`, where what is in the way makes room.

        The new files have the modes that the umask gives them. Raises `Damaged` where a file is not what was prepared,
        `OSError` where one cannot be written. Some are there then.
        """
        files = self.listing.files[group]
        if not bytecode:
            files = [file for file in files if not file[3] & BYTECODE]
        make_parents(destination, (file[0] for file in files))
        try:
            source = Directory.open(self.path / FILES / group)
        except OSError:
            raise Damaged(group) from None
        with source:
            if by is not LinkMode.HARDLINK:
                copy_files(source, destination, files, second=self.listing.second, by=by)
                return
            # An installer writes into these in their place; and nothing is to be linked that has other modes.
            same = umask() == self.listing.umask
            shared = [file for file in files if same and ".dist-info/" not in file[0]]
            own = [file for file in files if not same or ".dist-info/" in file[0]]
            copy_files(source, destination, own, second=self.listing.second, by=LinkMode.COPY)
            copy_files(source, destination, shared, second=self.listing.second, by=by)


class Store(NamedTuple):
    """All prepared wheels of one user below one cache directory; may be used by any number of processes."""

    path: Path

    @classmethod
    def below(cls, cache: Path) -> "Store | None":
        """The store in the cache directory `cache`; None where it cannot be made, or where others could change it."""
        path = trust.make_trusted(cache / "safe-pip" / FORMAT)
        return cls(path) if path is not None else None

    @classmethod
    def existing(cls, cache: Path) -> "Store | None":
        """The same, if there is one; nothing is made."""
        path = cache / "safe-pip" / FORMAT
        return cls(Path(os.path.realpath(path))) if path.is_dir() else None

    def find(self, key: str) -> Entry | None:
        """The entry of this key, held; None if there is none, or none that is complete.

        What is found damaged is removed; what somebody else has put there since is not.
        """
        place = self.path / _WHEELS / key
        try:
            held = hold(place)
        except (FileNotFoundError, BlockingIOError):  # being made, or being removed
            return None
        except (OSError, UnusableEnvironment):
            self.remove(place)
            return None
        try:
            with _opened(place / LISTING) as file:
                entry = Entry(place, Listing.decode(file.read()), held)
        except (OSError, Damaged, ValueError, TypeError):
            self.discard(held)
            return None
        fs.touch(place)
        return entry

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first, none of them held, and with no files in their listings."""
        found = []
        for name in _names(self.path / _WHEELS):
            place = self.path / _WHEELS / name
            with contextlib.suppress(OSError, ValueError, TypeError):
                with _opened(place / LISTING) as file:
                    file.readline()
                    head: dict[str, Any] = json.loads(file.readline())
                found.append((os.stat(place).st_mtime, Entry(place, Listing(**head))))
        return [entry for _, entry in sorted(found, key=lambda each: (each[0], each[1].path))]

    def places(self) -> list[Path]:
        """Where entries are, damaged ones included."""
        return [self.path / _WHEELS / name for name in sorted(_names(self.path / _WHEELS))]

    @property
    def size(self) -> int:
        """What all entries take on the disk, in bytes, about."""
        return sum(entry.size for entry in self.entries())

    def remove(self, entry: Entry | Path) -> bool:
        """Remove an entry unless somebody uses it: renamed first, so that nobody takes it for complete.

        On return whether it is gone; what could not be deleted of it is left to `sweep`.
        """
        place = entry.path if isinstance(entry, Entry) else entry
        try:
            held = hold(place, exclusive=True)
        except (OSError, UnusableEnvironment):
            return _is_gone(place)
        try:
            return self._rename_away(held)
        finally:
            held.close()

    def discard(self, held: flock.Descriptor) -> None:
        """Let a damaged entry go, and remove it unless somebody else holds it; never what has taken its place since."""
        try:
            with contextlib.suppress(UnusableEnvironment):
                if flock.try_lock(held, exclusive=True) and held.is_current():
                    self._rename_away(held)
        finally:
            held.close()

    def _rename_away(self, held: flock.Descriptor) -> bool:
        try:
            with self.aside() as aside:
                fs.rename_path(held.path, aside / "removed")
        except OSError:
            return False
        return True

    def keep_below(self, limit: int) -> None:
        """Remove the least recently used entries until all take no more than `limit` bytes; none that is in use.

        What is in the place of an entry and none goes first.
        """
        entries = self.entries()
        for place in {*self.places()} - {entry.path for entry in entries}:
            if entry := self.find(place.name):
                entry.close()
        size = sum(entry.size for entry in entries)
        for entry in entries:
            if size <= limit:
                return
            if self.remove(entry):
                size -= entry.size

    def sweep(self) -> None:
        """Remove what dead processes have left: entries half made, and mutexes that nobody holds."""
        for name in _names(self.path / _ASIDE):
            with contextlib.suppress(OSError, UnusableEnvironment):
                held = hold(self.path / _ASIDE / name, exclusive=True)
                try:
                    fs.remove_tree(self.path / _ASIDE / name)
                finally:
                    held.close()
        for name in _names(self.path / _MAKING):
            with contextlib.suppress(OSError, UnusableEnvironment):
                place = self.path / _MAKING / name
                if os.stat(place).st_mtime < time.time() - _OLD:
                    held = hold(place, exclusive=True)
                    fs.unlink(place)
                    held.close()

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """A private directory in which an entry is made; removed on return, with what was not renamed by then.

        Raises `OSError` where there is no room for one. After a crash it is left to `sweep`.
        """
        held = None
        fs.make_directories(self.path / _ASIDE, mode=0o700)
        while held is None:
            made = fs.make_private_directory(self.path / _ASIDE, "")
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # swept before it was locked
                held = hold(made, exclusive=True)
        try:
            yield made
        finally:
            fs.remove_tree(made)
            held.close()

    def publish(self, made: Path, key: str) -> None:
        """Put a complete entry into its place; where there is one already, it stays. Raises `OSError`."""
        fs.make_directories(self.path / _WHEELS, mode=0o700)
        try:
            fs.rename_path(made, self.path / _WHEELS / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def mutex(self, key: str) -> Path:
        """The file that is locked by whoever makes the entry of this key; on return it was there. Raises `OSError`."""
        fs.make_directories(self.path / _MAKING, mode=0o700)
        place = self.making(key)
        with contextlib.suppress(FileExistsError):
            fs.write(place, b"")
        return place

    def making(self, key: str) -> Path:
        """Where that file is, if there is one."""
        return self.path / _MAKING / key

    def progress(self, key: str) -> int:
        """The time when whoever holds that mutex last showed that he gets on; -1 if nobody does."""
        try:
            return os.stat(self.making(key)).st_mtime_ns
        except OSError:
            return -1

    def second(self) -> int:
        """A time, in whole seconds and not in the future, that is nobody else's from now on. Raises `OSError`."""
        fs.make_directories(self.path / _SECONDS, mode=0o700)
        found = int(time.time())
        while True:
            with contextlib.suppress(FileExistsError):
                fs.write(self.path / _SECONDS / str(found), b"")
                return found
            found -= 1


def hold(place: Path, *, exclusive: bool = False) -> flock.Descriptor:
    """Lock what is at `place` without waiting.

    Raises `BlockingIOError` if somebody is in the way, `FileNotFoundError` if it is gone, or was once it was locked,
    `UnusableEnvironment` where nothing can be locked.
    """
    descriptor = flock.Descriptor(place)
    try:
        if not flock.try_lock(descriptor, exclusive=exclusive):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(place))
        if not descriptor.is_current():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    except BaseException:
        descriptor.close()
        raise
    return descriptor


def _opened(path: Path) -> IO[bytes]:
    """A regular file, opened for reading; raises `OSError` for anything else, and never waits."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
    return file


def _is_gone(place: Path) -> bool:
    """Whether nothing is there that cannot be locked; what is no directory was never an entry, and is removed."""
    try:
        if stat.S_ISDIR(os.lstat(place).st_mode):
            return False
        fs.unlink(place)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
