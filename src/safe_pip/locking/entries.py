"""Entries of a cache: directories that are whole or absent, and that stay for as long as a process uses them.

They are renamed to their place and away from it; a user holds the lock shared, and removal takes it without waiting.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.locking import flock

_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class Entries(NamedTuple):
    """All entries of one kind, in `directory`; they are made and deleted in `aside`, which may be `directory/.name`."""

    directory: Path
    aside: Path

    def names(self) -> list[str]:
        return [name for name in fs.readable_names(self.directory) if not name.startswith(".")]

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """Yield a private directory to make an entry in, removed at the end, after a crash by `sweep`; or `OSError`."""
        made, held = self.make()
        try:
            yield made
        finally:
            fs.remove_tree(made)
            if held is not None:
                held.close()

    def make(self) -> tuple[Path, flock.Descriptor | None]:
        """Make a private directory aside, which stays while its lock is held: `sweep` removes it then."""
        fs.make_directories(self.aside, mode=0o700)
        while True:
            made = fs.make_private_directory(self.aside, "")
            try:
                return made, hold(made, exclusive=True)
            except (FileNotFoundError, BlockingIOError):  # swept before it was locked
                continue
            except UnusableEnvironment:  # nothing can be locked here, so nothing is swept
                return made, None

    def publish(self, made: Path, name: str) -> None:
        """Put a whole entry into its place; what is there already stays. Raises `OSError`."""
        fs.make_directories(self.directory, mode=0o700)
        try:
            fs.rename_path(made, self.directory / name)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise

    def remove(self, name: str) -> bool:
        """Remove the entry unless it is in use; on return whether it is gone. `sweep` deletes what could not be."""
        place = self.directory / name
        try:
            with hold(place, exclusive=True) as held:
                return self._rename_away(held)
        except (OSError, UnusableEnvironment):
            with contextlib.suppress(OSError):
                if place.is_symlink() or not place.is_dir():  # no entry
                    fs.unlink(place)
                    return True
            return False

    def discard(self, held: flock.Descriptor) -> None:
        """Close a damaged entry, and remove it unless another process holds it; never what has taken its place."""
        with held, contextlib.suppress(UnusableEnvironment):
            if flock.try_lock(held, exclusive=True) and held.is_current():
                self._rename_away(held)

    def sweep(self, *, unused: float | None = None) -> None:
        """Delete what dead processes left aside, and remove entries that were not used for `unused` seconds."""
        for name in fs.readable_names(self.aside):
            with contextlib.suppress(OSError, UnusableEnvironment), hold(self.aside / name, exclusive=True):
                fs.remove_tree(self.aside / name)
        if unused is None:
            return
        for name in self.names():
            with contextlib.suppress(OSError):
                if os.lstat(self.directory / name).st_mtime < time.time() - unused:
                    self.remove(name)

    def _rename_away(self, held: flock.Descriptor) -> bool:
        with contextlib.suppress(OSError), self.making() as aside:
            fs.rename_path(held.path, aside / "removed")
            return True
        return False


def hold(place: Path, *, exclusive: bool = False) -> flock.Descriptor:
    """Lock what is at `place` now, or `BlockingIOError`, `FileNotFoundError`, `UnusableEnvironment` if it cannot be."""
    if not flock.supported:
        raise UnusableEnvironment(f"`{place}` cannot be locked on this system")
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
