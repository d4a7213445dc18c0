"""A wheel becomes an entry of the store: by one of all processes that want it, while the others go on or wait.

Whoever finds a wheel neither prepared nor being prepared takes its mutex and prepares it. Who finds it being prepared
goes on with his other wheels and comes back. He holds no mutex while he waits, and whoever has one waits for nothing,
so nobody deadlocks; it dies with its owner. One who sees no progress for a second (the owner is stopped) prepares
aside; of two entries the second one is discarded.
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

from safe_pip import fs, lock, prepared
from safe_pip.cores import Cores
from safe_pip.errors import UnusableEnvironment
from safe_pip.prepared import Entry, Store
from safe_pip.unpacking import DAMAGE, Beat, Unpacking, Unpreparable

_SOURCES = "sources"
_PATIENCE = 1.0
_CHUNK = 1 << 20
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
    ) -> None:
        """`interpreter` names what bytecode depends on; with None there is none in the entries.

        `progress` is told the share of a wheel that is done. `limit` is what the store may take on the disk, in bytes.
        """
        self.refused: OSError | UnusableEnvironment | None = None
        """Why the store took nothing any more."""
        self._store = store
        self._interpreter = interpreter
        self._cores = cores
        self._limit = limit
        self._progress = progress
        self._has_made = False

    def prepare(self, wheels: Iterable[Path], unneeded: Callable[[], Collection[Path]]) -> dict[Path, Entry]:
        """Have these wheels in the store; on return the entries, held. What has none is left to the installer.

        `unneeded` is asked, before anybody is waited for, which wheels are not needed any more. Raises no `OSError`; if
        it raises anything, nothing is held and nothing half made is left.
        """
        found: dict[Path, Entry] = {}
        try:
            missing = {}
            for wheel in wheels:
                with suppress(OSError), open(wheel, "rb") as file:
                    missing[wheel] = self._key(file)
            self._take(missing, found)
            busy = [wheel for wheel in missing if not self._make_alone(wheel, missing[wheel], found)]
            while busy and self.refused is None:
                gone = unneeded()
                busy = [wheel for wheel in busy if wheel not in gone]
                for wheel in busy[:1]:
                    self._wait(wheel, missing[wheel], found)
                busy = [wheel for wheel in busy[1:] if not self._make_alone(wheel, missing[wheel], found)]
            if self._has_made:
                self._store.sweep()
                self._store.keep_below(self._limit)
        except BaseException:
            for entry in found.values():
                entry.close()
            raise
        return found

    def take_turn(self, what: str, is_over: Callable[[], bool]) -> Turn | None:
        """Wait until nobody else does `what`; on return nobody begins it before the turn is closed.

        None if it `is_over` by then, which is asked whenever somebody was waited for, with no turn held. Who shows no
        progress for a second is not waited for any longer.
        """
        key, seconds, last = hashlib.sha256(os.fsencode(what)).hexdigest(), 0.0, -1
        while True:
            turn = Turn()
            try:
                held = turn.take(self._mutex(key, seconds))
                if held is not None and not seconds:
                    return turn
                turn.close()
                before, last = last, self._store.progress(key)
            except (OSError, UnusableEnvironment) as error:
                turn.close()
                self.refused = error
                return turn
            if seconds and is_over():
                return None
            if held is None and before == last:
                return turn
            seconds = _PATIENCE if held is None else 0.0

    def renew(self, wheel: Path, damaged: Entry) -> Entry | None:
        """Throw an entry away that is not as it was prepared, and make it again."""
        damaged.close()
        self._store.remove(damaged)
        return self.prepare([wheel], lambda: ()).get(wheel)

    def _key(self, file: IO[bytes]) -> str:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return f"{digest.hexdigest()}-{self._interpreter or _SOURCES}"

    def _take(self, missing: dict[Path, str], found: dict[Path, Entry]) -> None:
        for wheel in list(missing):
            entry = self._store.find(missing[wheel])
            if entry is not None:
                found[wheel] = entry
                del missing[wheel]

    def _make_alone(self, wheel: Path, key: str, found: dict[Path, Entry]) -> bool:
        """Prepare a wheel unless somebody else does it just now; on return whether there is nothing left to do."""
        if self.refused is not None:
            return True
        try:
            with self._mutex(key, 0) as held:
                entry = self._store.find(key)
                if entry is None and held is not None:
                    entry = self._make(wheel, key, held)
        except Unpreparable:
            return True
        except (OSError, UnusableEnvironment) as error:
            self.refused = error
            return True
        if entry is not None:
            found[wheel] = entry
        return entry is not None

    def _wait(self, wheel: Path, key: str, found: dict[Path, Entry]) -> None:
        """Wait until somebody else has prepared a wheel; prepare it after all if he died or does nothing."""
        try:
            while (entry := self._store.find(key)) is None:
                before = self._store.progress(key)
                with self._mutex(key, _PATIENCE) as held:
                    entry = self._store.find(key)
                    if entry is None and (held is not None or self._store.progress(key) == before):
                        entry = self._make(wheel, key, held)
                if entry is not None:
                    break
            found[wheel] = entry
        except Unpreparable:
            pass
        except (OSError, UnusableEnvironment) as error:
            self.refused = error

    @contextmanager
    def _mutex(self, key: str, seconds: float) -> Iterator[lock.Descriptor | None]:
        """Within, nobody else prepares what has this key; yields None if that was not granted in so many seconds."""
        while True:
            place = self._store.mutex(key)
            try:
                descriptor = lock.Descriptor(place)
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

    def _make(self, wheel: Path, key: str, held: lock.Descriptor | None) -> Entry | None:
        """Prepare one wheel: on return its entry, or None if somebody has removed it already.

        Raises `Unpreparable`, or `OSError` where the store takes nothing.
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
                    fs.write(made / prepared.LISTING, listing.encode())
                    self._store.publish(made, key)
        except DAMAGE as error:
            raise Unpreparable(str(error)) from error
        self._has_made = True
        return self._store.find(key)

    def _check_room(self, archive: zipfile.ZipFile) -> None:
        """Raise `Unpreparable` for a wheel larger than the store may become, `OSError` for one larger than its disk."""
        size = prepared.on_disk(info.file_size for info in archive.infolist())
        if size > self._limit:
            raise Unpreparable("larger than the store may become")
        if sys.platform != "win32":
            found = os.statvfs(self._store.path)
            if found.f_bavail * found.f_frsize < _ROOM * size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._store.path))


class Turn:
    """Kept from all others who do the same thing, as long as it gets on, until it is closed or its process ends."""

    def __init__(self) -> None:
        self._held: lock.Descriptor | None = None
        self._closing = ExitStack()

    def take(self, mutex: AbstractContextManager[lock.Descriptor | None]) -> lock.Descriptor | None:
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


def _granted(descriptor: lock.Descriptor, seconds: float) -> bool:
    while True:
        try:
            return lock.wait_lock(descriptor, exclusive=True, seconds=seconds)
        except lock.Suspended:
            lock.stop()
