"""The copies of pip in this user's cache: each is complete or absent, and nobody removes one that somebody runs from.

A copy is made aside and renamed to `<version>-<digest>`; whoever finds another's there uses that one and discards his
own. Its sources are what pip's RECORD says and never change; only bytecode is added. Whoever runs from a copy holds its
directory locked, shared; who removes one (unused for 30 days, or damaged) locks it exclusively and renames it first.
"""

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import trust
from safe_pip.launch import bundle
from safe_pip.launch.pip_record import PipRecord, Unfaithful
from safe_pip.locking import flock

_DAY = 24 * 3600.0
UNUSED = 30 * _DAY
_ASIDE = ".aside-"


class Copy(NamedTuple):
    """One copy, kept from being removed while this process lives; a private one is removed by its only user."""

    path: Path
    version: str
    is_private: bool = False
    held: flock.Descriptor | None = None

    def beside(self, what: str) -> Path:
        """Where this interpreter, at this level of optimisation, keeps something that is made from the copy."""
        level = f".opt-{sys.flags.optimize}" if sys.flags.optimize else ""
        return self.path / f".{what}.{sys.implementation.cache_tag}{level}"

    def compile(self) -> None:
        """Compile it, once for each interpreter and level of optimisation, with PYTHONDONTWRITEBYTECODE as well.

        One process does it, and puts all of it into one file at the end (`bundle`); others meanwhile run without. Where
        bytecode cannot be kept pip is compiled as it is imported.
        """
        if self.is_private or sys.pycache_prefix is not None:  # bytecode is looked up there and nowhere else
            return
        done, bundled = self.beside("compiled"), self.beside("bundle")
        try:
            if bundled.exists() or not os.access(self.path, os.W_OK):
                return
            mutex = _lock(self.path / "pip", exclusive=True)
            try:
                if not done.exists():
                    for source in sorted(self.path.glob("pip/**/*.py")):
                        fs.write_bytecode(source)
                    fs.write(done, b"")
                bundle.make(self.path, bundled)
            finally:
                if mutex is not None:
                    mutex.close()
        except OSError:
            return


class Copies(NamedTuple):
    """The directory of all copies; None where this user has no cache that could be trusted."""

    directory: Path | None

    @classmethod
    def of_this_user(cls, environ: Mapping[str, str]) -> "Copies":
        """Find the directory in the cache of the user, and make it if it can be made."""
        cache = trust.cache_directory(environ)
        return cls(cache and trust.make_trusted(cache / "safe-pip" / "pip"))

    def find(self, version: str, manifest: PipRecord) -> Copy | None:
        """The complete copy of what `manifest` lists, held; None if there is none."""
        if self.directory is None:
            return None
        return hold(self.directory / f"{version}-{manifest.digest}", version, manifest)

    def newest(self, oldest: tuple[int, ...]) -> Copy | None:
        """The newest copy, from `oldest` on, that this interpreter can run."""
        names = _listed(self.directory) if self.directory else []
        for name in sorted(names, key=lambda name: (release(name), name), reverse=True):
            match = re.fullmatch(r"([0-9A-Za-z.+!]+)-([0-9a-f]+)", name)
            if self.directory is None or match is None or release(name) < oldest:
                continue
            try:
                manifest = PipRecord.read(self.directory / name / f"pip-{match[1]}.dist-info")
            except Unfaithful:
                continue
            if manifest.digest != match[2] or not manifest.suits(self.directory / name, sys.version_info[:2]):
                continue
            if copy := self.find(match[1], manifest):
                return copy
        return None

    def make(self, version: str, manifest: PipRecord, site: Path) -> Copy:
        """Copy what `manifest` lists from `site`; privately, to a temporary directory, where the cache cannot take it.

        Raises `Unfaithful` if a file is not what it should be, `UnusableEnvironment` if there is no room anywhere. On
        return, and if it raises, nothing else was left behind.
        """
        if self.directory is not None:
            _sweep(self.directory)
            with (
                contextlib.suppress(OSError),
                _discarded_if_it_raises(fs.make_private_directory(self.directory, _ASIDE)) as aside,
            ):
                manifest.copy(site, aside)
                return self._publish(aside, version, manifest)
        try:
            with _discarded_if_it_raises(trust.make_temporary()) as temporary:
                manifest.copy(site, temporary)
                return Copy(temporary, version, is_private=True)
        except OSError as error:
            raise UnusableEnvironment(
                f"cannot keep a private copy of pip in the cache or in a temporary directory: {error.strerror}",
                hint="Make room, or set XDG_CACHE_HOME or TMPDIR to a directory that can be written",
            ) from error

    def _publish(self, aside: Path, version: str, manifest: PipRecord) -> Copy:
        """Rename a complete copy to its place, or give the one that is there by now."""
        assert self.directory is not None
        place = self.directory / f"{version}-{manifest.digest}"
        for _ in range(2):
            try:
                fs.rename_path(aside, place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if copy := self.find(version, manifest):
                fs.remove_tree(aside)
                return copy
            # Damaged (some tools remove old files from caches one by one): made again if nobody runs from it.
            _remove_unused(place)
        return Copy(aside, version, is_private=True, held=_lock(aside))


def hold(place: Path, version: str, manifest: PipRecord | None = None) -> Copy | None:
    """Lock the copy at `place`; None if it is not there, not complete, or if others could change it."""
    held = None
    try:
        held = _lock(place)
        if trust.is_trusted(place) and (manifest is None or manifest.is_complete(place)):
            if manifest is not None and os.stat(place).st_mtime < time.time() - _DAY:
                fs.touch(place)
            return Copy(place, version, held=held)
    except OSError:
        pass
    if held is not None:
        held.close()
    return None


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.extend([int(digits)] if digits else [])
        if digits != part:
            break
    return tuple(numbers)


def _lock(place: Path, *, exclusive: bool = False) -> flock.Descriptor | None:
    """Lock the directory `place` without waiting; None where nothing can be locked, and so nothing is ever removed.

    Raises `BlockingIOError` if somebody is in the way, `FileNotFoundError` if it is gone, or was once it was locked.
    """
    if not flock.supported:
        return None
    descriptor = None
    try:
        descriptor = flock.Descriptor(place)
        if not flock.try_lock(descriptor, exclusive=exclusive):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(place))
        if not descriptor.is_current():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    except (OSError, UnusableEnvironment) as error:
        if descriptor is not None:
            descriptor.close()
        if isinstance(error, OSError):
            raise
        return None
    return descriptor


def _sweep(directory: Path) -> None:
    """Remove what nobody runs from: copies that were not used for long, and what killed processes left half made."""
    now = time.time()
    for name in _listed(directory):
        with contextlib.suppress(OSError):
            unused = now - os.lstat(directory / name).st_mtime
            if unused > (_DAY if name.startswith(_ASIDE) else UNUSED):
                _remove_unused(directory / name)


def _remove_unused(place: Path) -> None:
    """Remove a copy unless somebody runs from it: renamed while it is locked, so that nobody takes it for complete."""
    with contextlib.suppress(OSError):
        held = _lock(place, exclusive=True)
        if held is None:
            return
        try:
            rubbish = fs.make_private_directory(place.parent, _ASIDE)
            fs.rename_path(place, rubbish)
        finally:
            held.close()
        fs.remove_tree(rubbish)


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


@contextlib.contextmanager
def _discarded_if_it_raises(directory: Path) -> Iterator[Path]:
    try:
        yield directory
    except BaseException:
        fs.remove_tree(directory)
        raise
