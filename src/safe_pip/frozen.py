"""The frozen pip: a private copy of the environment's pip, so that anybody may upgrade or remove pip while we run.

One per version and content, in this user's cache directory, made aside and renamed in: complete or absent. Its sources
are what pip's RECORD says, and are never changed; only bytecode is added. Whoever runs from a copy holds a shared lock
on it. Where the cache cannot be used (read-only, full, no home, or open to others, see `trust`) the copy goes to a
private temporary directory and is removed at exit.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_pip import fs, lock, trust
from safe_pip.errors import UnusableEnvironment
from safe_pip.record import Manifest, Unfaithful

OLDEST = (25, 3)
#: What a process that is started for another interpreter (`--python`) is told: the copy, and where it was frozen from.
GIVEN, GIVEN_ORIGIN = "SAFE_PIP_FROZEN", "SAFE_PIP_FROZEN_ORIGIN"
UNUSED_AFTER = 30 * 24 * 3600.0
_DAY = 24 * 3600.0
_ASIDE = ".aside-"


@dataclass(frozen=True)
class InstalledPip:
    """The pip that the environment's interpreter would import: its directory on the path and, if known, its version.

    `dist_info` is None for a pip that nobody installed (a checkout on PYTHONPATH).
    """

    site: Path
    version: str | None
    dist_info: Path | None

    @property
    def package(self) -> Path:
        return self.site / "pip"


@dataclass(frozen=True)
class FrozenPip:
    """A copy of pip that nobody changes: `path` goes on `sys.path`, `origin` is the `pip` directory it was frozen from.

    The copy stays while this process lives; a private one (`is_private`) is removed at exit, or by `discard`.
    """

    path: Path
    version: str
    origin: Path
    is_private: bool = False
    held: lock.Descriptor | None = None

    def discard(self) -> None:
        """Remove a private copy; called at exit, and before an exec, which no exit handler sees."""
        if self.is_private:
            fs.remove_tree(self.path)

    def for_child(self) -> dict[str, str]:
        """The variables that make safe-pip under another interpreter use this same copy."""
        return {GIVEN: str(self.path), GIVEN_ORIGIN: str(self.origin)}


Take = Callable[[], "FrozenPip | None"]


def _unlocked(take: Take) -> FrozenPip | None:
    return take()


def find_pip(path: Sequence[str]) -> InstalledPip | None:
    """The pip that an interpreter with this `sys.path` would import, found without importing it; None if it has none."""
    for entry in path:
        site = Path(entry or os.curdir)
        try:
            source = (site / "pip" / "__init__.py").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        match = re.search(r"""^__version__ *= *["']([0-9A-Za-z.+!-]+)["']""", source, re.MULTILINE)
        version = match and match[1]
        dist_info = site / f"pip-{version}.dist-info"
        return InstalledPip(site, version, dist_info if dist_info.is_dir() else None)
    return None


def freeze(
    path: Sequence[str],
    *,
    read: Callable[[Take], FrozenPip | None] = _unlocked,
    environ: MutableMapping[str, str] = os.environ,
) -> FrozenPip | None:
    """Give the pip of the environment `path` as a frozen copy; None if it cannot be copied faithfully.

    `read` is called with a function that reads the environment, perhaps more than once, and must not see it change
    (`Environment.read`). None: a distributor took it apart, it has no RECORD, or its files are not what RECORD says;
    then pip can only run from where it is. Where there is no pip, or one that is too old, the newest copy in the cache
    serves. Raises `UnusableEnvironment` when nothing does.
    """
    given, origin = environ.pop(GIVEN, None), environ.pop(GIVEN_ORIGIN, None)
    if given is not None:
        frozen: FrozenPip | None = _given(Path(given), origin)
    else:
        store = _store(environ)
        made: list[FrozenPip] = []

        def take() -> FrozenPip | None:
            taken = _take(find_pip(path), store)
            for earlier in made:
                earlier.discard()
            made[:] = [taken] if taken is not None and taken.is_private else []
            return taken

        frozen = read(take)
    if frozen is None:
        return None
    if frozen.is_private:
        _discard_at_exit(frozen)
    else:
        _compile(frozen.path)
    return frozen


def _take(installed: InstalledPip | None, store: Path | None) -> FrozenPip | None:
    """A copy of `installed`: the one in the store, else a new one."""
    if installed is None or _is_too_old(installed.version):
        return _newest(installed, store)
    try:
        if installed.dist_info is None or installed.version is None or _is_debundled(installed):
            return None
        manifest = Manifest.read(installed.dist_info)
        place = store and store / f"{installed.version}-{manifest.digest}"
        if place is not None and (frozen := _hold(place, manifest, installed.package)):
            return frozen
        return _make(installed, manifest, place)
    except Unfaithful:
        return None


def _make(installed: InstalledPip, manifest: Manifest, place: Path | None) -> FrozenPip:
    """Copy pip to `place`, or to a private temporary directory where that cannot be done."""
    assert installed.version is not None
    if place is not None:
        aside = None
        try:
            aside = fs.make_private_directory(place.parent, _ASIDE)
            manifest.copy(installed.site, aside)
            return _publish(aside, place, manifest, installed)
        except (OSError, Unfaithful) as error:
            if aside is not None:
                fs.remove_tree(aside)
            if isinstance(error, Unfaithful):
                raise
    temporary = None
    try:
        temporary = trust.make_temporary()
        manifest.copy(installed.site, temporary)
    except (OSError, Unfaithful) as error:
        if temporary is not None:
            fs.remove_tree(temporary)
        if isinstance(error, Unfaithful):
            raise
        raise UnusableEnvironment(
            f"cannot keep a private copy of pip in the cache or in a temporary directory: {error.strerror}",
            hint="Make room, or set XDG_CACHE_HOME or TMPDIR to a directory that can be written",
        ) from error
    return FrozenPip(temporary, installed.version, installed.package, is_private=True)


def _publish(aside: Path, place: Path, manifest: Manifest, installed: InstalledPip) -> FrozenPip:
    """Rename a complete copy to its place; who finds another's there uses that one and discards his own."""
    assert installed.version is not None
    _sweep(place.parent)
    for _ in range(2):
        try:
            fs.rename(aside, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES):
                raise
        if frozen := _hold(place, manifest, installed.package):
            fs.remove_tree(aside)
            return frozen
        _remove_unused(place)  # damaged, by a cleaner of caches for instance: made again if nobody runs from it
    return FrozenPip(aside, installed.version, installed.package, is_private=True, held=_lock(aside))


def _hold(place: Path, manifest: Manifest, origin: Path) -> FrozenPip | None:
    """The complete copy at `place`, kept from being removed for as long as we live; None if there is none."""
    held = None
    try:
        held = _lock(place)
        if trust.is_trusted(place) and manifest.is_complete(place):
            if os.stat(place).st_mtime < time.time() - _DAY:
                fs.touch(place)
            return FrozenPip(place, place.name.rpartition("-")[0], origin, held=held)
    except OSError:
        pass
    if held is not None:
        held.close()
    return None


def _lock(place: Path, *, exclusive: bool = False) -> lock.Descriptor | None:
    """Lock the directory `place` without waiting; None where that cannot be done at all.

    Raises `BlockingIOError` if somebody is in the way, `FileNotFoundError` if it is gone, or was once it was locked.
    """
    if not lock.supported:
        return None
    descriptor = None
    try:
        descriptor = lock.Descriptor(place)
        if not lock.try_lock(descriptor, exclusive=exclusive):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(place))
        if not descriptor.is_current():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    except (OSError, UnusableEnvironment) as error:
        if descriptor is not None:
            descriptor.close()
        if isinstance(error, OSError):
            raise
        return None  # a filesystem without locks: then nobody removes anything from it either
    return descriptor


def _newest(installed: InstalledPip | None, store: Path | None) -> FrozenPip:
    """The newest copy in the store that this interpreter can run."""
    for place in sorted(_copies(store), key=lambda place: _release(place.name), reverse=True):
        try:
            manifest = Manifest.read(place / f"pip-{place.name.rpartition('-')[0]}.dist-info")
        except Unfaithful:
            continue
        if manifest.digest == place.name.rpartition("-")[2] and manifest.suits(place, sys.version_info[:2]):
            if frozen := _hold(place, manifest, place / "pip"):
                return frozen
    oldest = ".".join(map(str, OLDEST))
    if installed is None:
        raise UnusableEnvironment(
            "there is no pip in this environment, and none was ever frozen",
            hint=f"Run `{sys.executable} -m ensurepip`, then `{sys.executable} -m pip install 'pip>={oldest}'`",
        )
    raise UnusableEnvironment(
        f"pip {installed.version} in `{installed.site}` is older than {oldest}, and no newer one was ever frozen",
        hint=f"Run `{sys.executable} -m pip install 'pip>={oldest}'`",
    )


def _given(directory: Path, origin: str | None) -> FrozenPip:
    """The copy that the safe-pip which started this one runs from."""
    try:
        place = Path(os.path.realpath(directory))
        installed = find_pip([str(place)])
        if installed is None or installed.version is None or not trust.is_trusted(place):
            raise PermissionError(errno.EPERM, "not a copy of pip that only this user can change")
        held = _lock(place)
    except OSError as error:
        raise UnusableEnvironment(
            f"cannot use the copy of pip in `{directory}`: {error.strerror or error}",
            hint=f"Leave {GIVEN} unset",
        ) from error
    return FrozenPip(place, installed.version, Path(origin or installed.package), held=held)


def _store(environ: MutableMapping[str, str]) -> Path | None:
    cache = trust.cache_directory(environ)
    return cache and trust.make_trusted(cache / "safe-pip" / "pip")


def _copies(store: Path | None) -> Iterator[Path]:
    if store is not None:
        with contextlib.suppress(OSError):
            for name in os.listdir(store):
                if re.fullmatch(r"[0-9A-Za-z.+!]+-[0-9a-f]+", name) and not _is_too_old(name):
                    yield store / name


def _compile(place: Path) -> None:
    """Compile the copy, once for each interpreter and level of optimisation, also where PYTHONDONTWRITEBYTECODE is set.

    One process does it; others meanwhile run without. Where it cannot be written pip is compiled as it is imported.
    """
    if sys.pycache_prefix is not None:  # bytecode is looked up there and nowhere else
        return
    level = f".opt-{sys.flags.optimize}" if sys.flags.optimize else ""
    done = place / f".compiled.{sys.implementation.cache_tag}{level}"
    if done.exists():
        return
    try:
        mutex = _lock(place / "pip", exclusive=True)
        if mutex is None:
            return
        try:
            for source in sorted(place.glob("pip/**/*.py")):
                fs.write_bytecode(source)
            fs.write(done, b"")
        finally:
            mutex.close()
    except OSError:
        return


def _sweep(store: Path) -> None:
    """Remove what nobody runs from: copies not used for 30 days, and what killed processes left half made."""
    now = time.time()
    with contextlib.suppress(OSError):
        for name in os.listdir(store):
            path = store / name
            with contextlib.suppress(OSError):
                limit = _DAY if name.startswith(_ASIDE) else UNUSED_AFTER
                if os.lstat(path).st_mtime < now - limit:
                    _remove_unused(path)


def _remove_unused(path: Path) -> None:
    """Remove a copy unless somebody runs from it: renamed while it is locked, so that nobody takes it for complete."""
    try:
        held = _lock(path, exclusive=True)
        if held is None:
            return
        try:
            rubbish = fs.make_private_directory(path.parent, _ASIDE)
            fs.rename(path, rubbish)
        finally:
            held.close()
        fs.remove_tree(rubbish)
    except OSError:
        return


def _discard_at_exit(frozen: FrozenPip) -> None:
    process = os.getpid()

    def discard() -> None:
        if os.getpid() == process:  # a forked child that exits leaves it to its parent
            frozen.discard()

    atexit.register(discard)


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _is_too_old(version: str | None) -> bool:
    return version is not None and _release(version) < OLDEST


def _is_debundled(installed: InstalledPip) -> bool:
    """Whether a distributor took the vendored libraries out: then this pip needs what else the environment has."""
    try:
        source = (installed.package / "_vendor" / "__init__.py").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Unfaithful(installed.package) from error
    return re.search(r"^DEBUNDLED\b[^=\n]*=(?! *False\b)", source, re.MULTILINE) is not None
