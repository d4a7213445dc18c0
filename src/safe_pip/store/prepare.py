"""A wheel becomes an entry of the store: by one of all processes that want it, while the others go on or wait.

Whoever finds a wheel neither prepared nor being prepared takes its mutex and prepares it. Who finds it being prepared
goes on with his other wheels and comes back. He holds no mutex while he waits, and whoever has one waits for nothing,
so nobody deadlocks; it dies with its owner. One who sees no progress (the owner is stopped: `patience`) prepares aside;
of two entries the second one is discarded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from safe_pip import fs, records
from safe_pip.errors import UnusableEnvironment
from safe_pip.locking import flock, holders
from safe_pip.locking.holders import Holder
from safe_pip.store import wheels as prepared
from safe_pip.store.cores import Cores
from safe_pip.store.heartbeat import Heartbeat
from safe_pip.store.unpack import DAMAGE, Beat, Unpacking, Unpreparable
from safe_pip.store.wheels import Entry, Store

_SOURCES = "sources"
_PATIENCE = 1.0
_ROOM = 4
"""The store takes no room that the environment may need: so many times what the wheel has, unpacked."""


class Preparing:
    """The wheels of one command on their way into the store."""

    def __init__(
        self,
        store: Store,
        interpreter: str | None,
        cores: Cores,
        *,
        limit: int,
        progress: Callable[[Path, float], None],
        waiting: Callable[[str, tuple[Holder, ...]], None] = lambda what, holders: None,
    ) -> None:
        """`interpreter` names what bytecode depends on; with None there is none in the entries.

        `progress` is told the share of a wheel that is done, `waiting`, once, for what others are waited for longer
        than a second. `limit` is what the store may take on the disk, in bytes.
        """
        self.refused: Exception | None = None
        """Why something was not prepared that could have been."""
        self._takes = True
        """Whether the store takes anything; what is wrong with one wheel, or its entry, hinders no other."""
        self._store = store
        self._interpreter = interpreter
        self._cores = cores
        self._limit = limit
        self._progress = progress
        self._waiting = waiting
        self._has_made = self._has_told = False

    def prepare(self, wheels: Iterable[Path], unneeded: Callable[[], Collection[Path]]) -> dict[Path, Entry]:
        """Have these wheels in the store; on return the entries, held. What has none is left to the installer.

        `unneeded` is asked, before anybody is waited for, which wheels are not needed any more. Of more entries than a
        process should hold the rest is not: `hold` each when it is its turn. Raises no `OSError`; if it raises
        anything, nothing is held and nothing half made is left.
        """
        found: dict[Path, Entry] = {}
        self._store.sweep()
        try:
            missing = {}
            for wheel in wheels:
                with suppress(OSError), open(wheel, "rb") as file:
                    missing[wheel] = self._key(file)
            self._take(missing, found)
            busy = [wheel for wheel in missing if not self._make_alone(wheel, missing[wheel], found)]
            while busy and self._takes:
                gone = unneeded()
                busy = [wheel for wheel in busy if wheel not in gone]
                for wheel in busy[:1]:
                    self._wait(wheel, missing[wheel], found)
                busy = [wheel for wheel in busy[1:] if not self._make_alone(wheel, missing[wheel], found)]
            if self._has_made:
                self._store.sweep()
        except BaseException:
            for entry in found.values():
                entry.close()
            raise
        return found

    def hold(self, entry: Entry) -> Entry | None:
        """The same entry, held; None if somebody has removed it."""
        return self._store.find(entry.path.name)

    def finish(self) -> None:
        """Keep the store below its limit; no entry is held any more."""
        if self._has_made:
            self._store.keep_below(self._limit)

    def take_turn(self, what: str, is_over: Callable[[], bool]) -> InstallSlot | None:
        """Wait until nobody else does `what`; on return nobody begins it before the turn is closed.

        None if it `is_over` by then, which is asked when the turn is granted, and after each second of waiting: others
        may have done it while this one had no turn yet. Who shows no progress is not waited for any longer.
        If `is_over` raises, no turn is held.
        """
        key = hashlib.sha256(os.fsencode(what)).hexdigest()
        patience: Heartbeat | None = None
        while True:
            turn = InstallSlot()
            try:
                held = turn.take(self._mutex(key, 0 if patience is None else _PATIENCE))
            except (OSError, UnusableEnvironment) as error:
                turn.close()
                self._give_up(error)
                return turn
            try:
                if (held is not None or patience is not None) and is_over():
                    turn.close()
                    return None
            except BaseException:
                turn.close()
                raise
            if held is not None or (patience is not None and patience.is_lost()):
                return turn
            if patience is None:
                patience = Heartbeat(self._store, key)
            else:
                self._tell("install the same", key)

    def renew(self, wheel: Path, damaged: Entry) -> Entry | None:
        """Throw an entry away that is not as it was prepared, and make it again."""
        if damaged.held is not None:
            self._store.discard(damaged.held)
        return self.prepare([wheel], lambda: ()).get(wheel)

    def _key(self, file: IO[bytes]) -> str:
        return f"{records.digest(file.fileno())[1].hex()}-{self._interpreter or _SOURCES}"

    def _take(self, missing: dict[Path, str], found: dict[Path, Entry]) -> None:
        for wheel in list(missing):
            entry = self._store.find(missing[wheel])
            if entry is not None:
                self._add(wheel, entry, found)
                del missing[wheel]

    def _add(self, wheel: Path, entry: Entry, found: dict[Path, Entry]) -> None:
        if len(found) >= _most_held():
            entry.close()
            entry = entry._replace(held=None)
        found[wheel] = entry

    def _make_alone(self, wheel: Path, key: str, found: dict[Path, Entry]) -> bool:
        """Prepare a wheel unless somebody else does it just now; on return whether there is nothing left to do."""
        if not self._takes:
            return True
        try:
            with self._mutex(key, 0) as held:
                entry = self._store.find(key)
                if entry is None and held is not None:
                    entry = self._make(wheel, key, held)
        except Unpreparable:
            return True
        except (OSError, UnusableEnvironment) as error:
            self._give_up(error)
            return True
        if entry is not None:
            self._add(wheel, entry, found)
        return entry is not None

    def _give_up(self, error: Exception) -> None:
        self.refused, self._takes = error, False

    def _wait(self, wheel: Path, key: str, found: dict[Path, Entry]) -> None:
        """Wait until somebody else has prepared a wheel; prepare it after all if he died or does nothing."""
        patience = Heartbeat(self._store, key)
        try:
            while (entry := self._store.find(key)) is None:
                with self._mutex(key, _PATIENCE) as held:
                    entry = self._store.find(key)
                    if entry is None and (held is not None or patience.is_lost()):
                        entry = self._make(wheel, key, held)
                if entry is not None:
                    break
                self._tell(f"prepare `{wheel.name}`", key)
            self._add(wheel, entry, found)
        except Unpreparable:
            pass
        except (OSError, UnusableEnvironment) as error:
            self._give_up(error)

    def _tell(self, what: str, key: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._waiting(what, holders.holders_at(self._store.making(key)))

    @contextmanager
    def _mutex(self, key: str, seconds: float) -> Iterator[flock.Descriptor | None]:
        """Within, nobody else prepares what has this key; yields None if that was not granted in so many seconds."""
        while True:
            place = self._store.mutex(key)
            try:
                descriptor = flock.Descriptor(place)
            except FileNotFoundError:  # whoever had it is done
                continue
            try:
                if not _granted(descriptor, seconds):
                    yield None
                    return
                if descriptor.is_current():
                    try:
                        yield descriptor
                    finally:
                        fs.unlink(place)
                    return
            finally:
                descriptor.close()

    def _make(self, wheel: Path, key: str, held: flock.Descriptor | None) -> Entry:
        """Prepare one wheel: on return its entry.

        Raises `OSError` where the store takes nothing, `Unpreparable` if it is this wheel that cannot be prepared, or
        its place that is taken by what cannot be used: nobody tries twice.
        """
        beat = Beat(wheel, held, self._progress)
        try:
            with open(wheel, "rb") as file:
                if self._key(file) != key:
                    raise Unpreparable(f"`{wheel}` was changed meanwhile")
                with self._store.aside() as aside, zipfile.ZipFile(file) as archive:
                    self._check_room(archive)
                    made = aside / "entry"
                    listing = Unpacking(archive, file, wheel, made, self._store.second(), beat).run(
                        None if self._interpreter is None else self._cores
                    )
                    self._check_size(listing.size)
                    fs.write(made / prepared.LISTING, listing.encode())
                    self._store.publish(made, key)
        except DAMAGE as error:
            raise Unpreparable(str(error)) from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise self._left(error) from error
        self._has_made = True
        entry = self._store.find(key)
        if entry is None:
            taken = f"the place of `{wheel.name}` is taken by what cannot be used or removed, or it was removed at once"
            raise self._left(Unpreparable(taken))
        return entry

    def _left(self, reason: Exception) -> Unpreparable:
        """What to raise if a wheel is left to the installer, for a reason that is worth a word."""
        self.refused = reason
        return Unpreparable(str(reason))

    def _check_room(self, archive: zipfile.ZipFile) -> None:
        """Raise `Unpreparable` for a wheel larger than the store may become, or than there is room on its disk."""
        size = prepared.on_disk(info.file_size for info in archive.infolist())
        self._check_size(size)
        if sys.platform != "win32":
            found = os.statvfs(self._store.path)
            if found.f_bavail * found.f_frsize < _ROOM * size:
                raise self._left(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._store.path)))

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise Unpreparable("larger than the store may become")


class InstallSlot:
    """Kept from all others who do the same thing, as long as it gets on, until it is closed or its process ends."""

    def __init__(self) -> None:
        self._held: flock.Descriptor | None = None
        self._closing = ExitStack()

    def take(self, mutex: AbstractContextManager[flock.Descriptor | None]) -> flock.Descriptor | None:
        """Take the mutex, if that is granted in its time."""
        self._held = self._closing.enter_context(mutex)
        return self._held

    def show_progress(self) -> None:
        """Tell those who wait that this process gets on."""
        if self._held is not None:
            fs.touch(self._held.path)

    def close(self) -> None:
        """Let the next one begin."""
        self._closing.close()
        self._held = None


def _most_held() -> int:
    """As many entries as leave a process three quarters of its descriptors; each takes one."""
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if most == resource.RLIM_INFINITY else most // 4


def _granted(descriptor: flock.Descriptor, seconds: float) -> bool:
    while True:
        try:
            return flock.wait_lock(descriptor, exclusive=True, seconds=seconds)
        except flock.Suspended:
            flock.stop()
