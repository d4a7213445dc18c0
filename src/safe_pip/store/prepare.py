"""A wheel becomes an entry of the store: one process prepares it, and the others wait or help themselves.

A process takes the mutex of a wheel and prepares it. If another process has the mutex, it goes on with its other wheels
and comes back. It holds no mutex while it waits, so there are no deadlocks. If it sees that nothing happens
(`Heartbeat`), it prepares the wheel aside; of two entries the second one is discarded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from safe_pip import fs, records
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import space, watch
from safe_pip.locking import flock, holders, state_directory
from safe_pip.locking.holders import Holder
from safe_pip.store.unpack import DAMAGE, Unpacking, Unpreparable
from safe_pip.store.wheels import LISTING, Entry, Store, on_disk

_SOURCES = "sources"
_PATIENCE = 1.0
_ROOM = 4  # so many times the size of the wheel, unpacked: the environment needs some too
Tell = Callable[[str, tuple[Holder, ...]], None]
# So many times in a row computing is believed without anything else; so many times idling.
LONGEST, IDLE = 60, 2


class Preparing:
    """The wheels of one command on their way into the store."""

    def __init__(
        self, store: Store, interpreter: str | None, *, limit: int, waiting: Tell = lambda what, holders: None
    ) -> None:
        """`interpreter`: what bytecode depends on, None for none; `waiting` is called once, after a second."""
        self.refused: Exception | None = None
        """Why something was not prepared that could have been."""
        self._takes = True  # whatever is wrong with one wheel or its entry
        self._store, self._interpreter = store, interpreter
        self._limit, self._waiting = limit, waiting
        self._has_made = self._has_told = False
        self._turns: list[Path] = []

    def prepare(self, wheels: Iterable[Path], unneeded: Callable[[], Collection[Path]]) -> dict[Path, Entry]:
        """Have these wheels in the store; on return the entries, held. A wheel without one is left to the installer.

        `unneeded` is asked, before each wait, which wheels are not needed any more. Of many entries only the first are
        held: call `renew` to use another one. Raises no `OSError`; if it raises, nothing is held or half made.
        """
        found: dict[Path, Entry] = {}
        self._store.sweep()
        try:
            missing = {}
            for wheel in wheels:
                with suppress(OSError), open(wheel, "rb") as file:
                    missing[wheel] = self._key(file)
            for wheel, key in list(missing.items()):
                if (entry := self._store.find(key)) is not None:
                    self._add(wheel, entry, found)
                    del missing[wheel]
            busy = [wheel for wheel in missing if not self._obtain(wheel, missing[wheel], found)]
            while busy and self._takes:
                gone = unneeded()
                busy = [wheel for wheel in busy if wheel not in gone]
                for wheel in busy[:1]:
                    heartbeat = Heartbeat(self._store.making(missing[wheel]))
                    what = f"prepare `{wheel.name}`"
                    place = self._store.making(missing[wheel])
                    with self._noted(what, place):
                        while not self._obtain(wheel, missing[wheel], found, heartbeat):
                            self._tell(what, place)
                busy = [wheel for wheel in busy[1:] if not self._obtain(wheel, missing[wheel], found)]
            if self._has_made:
                self._store.sweep()
        except BaseException:
            for entry in found.values():
                entry.close()
            raise
        return found

    def finish(self) -> None:
        """Keep the store below its limit. No entry is held any more."""
        if self._has_made:
            self._store.keep_below(self._limit)

    def take_turn(self, what: str, is_over: Callable[[], bool], turn: ExitStack, shared: Path | None = None) -> None:
        """Wait until no other process does `what`; on return none begins it before `turn` is closed.

        With `shared`, a tree that several hosts may use, none on any host. `is_over` is asked when the turn is granted,
        and on one host after each second of waiting: if others have done it by then, there is no turn to wait for. A
        process that does nothing is not waited for any longer.
        """
        key = hashlib.sha256(os.fsencode(what)).hexdigest()
        is_next = self._take(self._store.making(key), partial(self._store.mutex, key), is_over, turn)
        if is_next and shared is not None:
            make = partial(state_directory.make_turn, shared, key)
            self._take(state_directory.turn(shared, key), make, is_over, turn, is_shared=True)

    def _take(
        self,
        place: Path,
        make: Callable[[], Path],
        is_over: Callable[[], bool],
        turn: ExitStack,
        *,
        is_shared: bool = False,
    ) -> bool:
        """Wait for the mutex at `place`, which `make` makes; False if the work is done meanwhile."""
        heartbeat: Heartbeat | None = None
        with ExitStack() as waited:
            while True:
                with ExitStack() as taken:
                    seconds = 0 if heartbeat is None else _PATIENCE
                    try:
                        is_mine = taken.enter_context(self._mutex(make, seconds, writable=is_shared))
                    except (OSError, UnusableEnvironment) as error:
                        if not is_shared:
                            self.refused, self._takes = error, False
                        return True
                    gives_up = not is_mine and heartbeat is not None and heartbeat.look()
                    # To ask means to read the environment: of a thousand hosts not each second.
                    asks = is_mine or gives_up or (heartbeat is not None and not is_shared)
                    if asks and is_over():
                        return False
                    if is_mine or gives_up:
                        self._turns.append(place)
                        turn.push(taken.pop_all())
                        return True
                self.show_progress()  # others on this host wait for the one that waits for another host
                if heartbeat is None:
                    heartbeat = Heartbeat(place, sees_all=not is_shared)
                    waited.enter_context(self._noted("install the same", place))
                else:
                    self._tell("install the same", place)

    def show_progress(self) -> None:
        """Show processes that wait for this one that it works."""
        for place in self._turns:
            fs.touch(place)

    def renew(self, wheel: Path, damaged: Entry) -> Entry | None:
        """The entry of this wheel, held. One that is `damaged` was held, and is removed and made again."""
        if damaged.held is not None:
            self._store.wheels.discard(damaged.held)
        return self.prepare([wheel], lambda: ()).get(wheel)

    def _key(self, file: IO[bytes]) -> str:
        return f"{records.digest(file.fileno())[1].hex()}-{self._interpreter or _SOURCES}"

    def _add(self, wheel: Path, entry: Entry, found: dict[Path, Entry]) -> None:
        if len(found) >= space.descriptor_limit() // 4:  # each takes a descriptor
            entry.close()
            entry = entry._replace(held=None)
        found[wheel] = entry

    def _obtain(self, wheel: Path, key: str, found: dict[Path, Entry], heartbeat: Heartbeat | None = None) -> bool:
        """Take a wheel from the store or prepare it, with a `heartbeat` after a wait; on return whether all is done."""
        if not self._takes:
            return True
        try:
            with self._mutex(partial(self._store.mutex, key), 0 if heartbeat is None else _PATIENCE) as is_mine:
                entry = self._store.find(key)
                if entry is None and (is_mine or (heartbeat is not None and heartbeat.look())):
                    entry = self._make(wheel, key)
        except Unpreparable:
            return True
        except (OSError, UnusableEnvironment) as error:
            self.refused, self._takes = error, False
            return True
        if entry is not None:
            self._add(wheel, entry, found)
        return entry is not None

    def _tell(self, what: str, place: Path) -> None:
        if not self._has_told:
            self._has_told = True
            self._waiting(what, holders.holders_at(place))

    def _noted(self, what: str, place: Path) -> AbstractContextManager[object]:
        """A wait for the process that does this, in the timeline if there is one."""
        by = partial(holders.holders_at, place)
        return watch.phase("wait", lambda: {"turn": what, "for": [each.noted() for each in by()]})

    @contextmanager
    def _mutex(self, make: Callable[[], Path], seconds: float, *, writable: bool = False) -> Iterator[bool]:
        """Within, no other process has the mutex that `make` makes; yields False if it was not granted in `seconds`."""
        while True:
            place = make()
            with ExitStack() as opened:
                try:
                    descriptor = opened.enter_context(flock.Descriptor(place, writable=writable))
                    is_granted = flock.wait_lock(descriptor, exclusive=True, seconds=seconds)
                except FileNotFoundError:  # the process that had it is done
                    continue
                except flock.Suspended:
                    opened.close()
                    flock.stop()
                    continue
                if not is_granted or descriptor.is_current():
                    if is_granted:
                        opened.callback(_remove, place)
                    yield is_granted
                    return

    def _make(self, wheel: Path, key: str) -> Entry:
        """Prepare a wheel. Raises `OSError` if the store takes nothing, `Unpreparable` if it cannot be prepared."""
        try:
            with open(wheel, "rb") as file:
                if self._key(file) != key:
                    raise Unpreparable(f"`{wheel}` was changed meanwhile")
                noted = watch.phase("prepare", lambda: {"wheel": wheel.name})
                with noted, self._store.wheels.making() as aside, zipfile.ZipFile(file) as archive:
                    self._check_room(archive)
                    made = aside / "entry"
                    unpacking = Unpacking(archive, file, made, partial(fs.touch, self._store.making(key)))
                    listing = unpacking.run(wheel.name, compiles=self._interpreter is not None)
                    self._check_size(listing.size)
                    fs.write(made / LISTING, listing.encode())
                    self._store.wheels.publish(made, key)
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
        self.refused = reason
        return Unpreparable(str(reason))

    def _check_room(self, archive: zipfile.ZipFile) -> None:
        """Raise `Unpreparable` for a wheel larger than the store may become, or than there is room on its disk."""
        size = on_disk(info.file_size for info in archive.infolist())
        self._check_size(size)
        if shutil.disk_usage(self._store.path).free < _ROOM * size:
            raise self._left(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._store.path)))

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise Unpreparable("larger than the store may become")


class Heartbeat:
    """One wait for a process that has a mutex: does it still work? Asked once a second.

    It shows that by the time of the mutex after each file or distribution, with or without the mutex. Some modules take
    longer than a second to compile, so for a limited time it also counts that the process computes, or is ready to run.
    One idle second is not enough: after a suspension of the machine the processes that wait may go on first.
    """

    def __init__(self, place: Path, *, sees_all: bool = True) -> None:
        """Without `sees_all` the process may be on another host: only the time of the mutex counts."""
        self._place, self._sees_all = place, sees_all
        self._silent = self._idle = 0
        self._seen = self._observe()

    def look(self) -> bool:
        """Look once more: has the process stopped working? A new holder of the mutex has not."""
        (shown, before), self._seen = self._seen, self._observe()
        now, work = self._seen
        if now != shown:
            self._silent = self._idle = 0
            return False
        self._silent += 1
        self._idle = self._idle + 1 if work == before == (work[0], False) else 0
        return now != -1 and (self._silent > LONGEST or (self._sees_all and self._idle >= IDLE))

    def _observe(self) -> tuple[int, tuple[list[str], bool]]:
        """The time of the mutex in nanoseconds, -1 if there is none, and what its holders do."""
        with suppress(OSError):
            return os.stat(self._place).st_mtime_ns, holders.work_at(self._place)
        return -1, ([], False)


def _remove(mutex: Path) -> None:
    """Remove the file of a mutex, or leave it to the next sweep: the work is done."""
    with suppress(OSError):
        fs.unlink(mutex)
