"""The frozen pip: pip runs from a copy, so that the environment's own may be upgraded or removed at any moment.

Copies are entries (`locking.entries`) of this user's cache, named `<version>-<digest>`. Their sources are what pip's
RECORD says and never change; only bytecode is added. Where the cache cannot be used (read-only, full, no home, open to
others) the copies of this user are in a private directory below a temporary one. If no directory is safe from other
users, pip is not frozen: it runs from where it is, under one exclusive lock.

RECORD is compared line by line, and not read by `records`, because that is done at every start. `adoption` is imported
where no pip of the environment serves.
"""

import atexit
import contextlib
import hashlib
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from importlib.util import MAGIC_NUMBER
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs, records
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import proc, trust
from safe_pip.launch import fast_start, isolation
from safe_pip.locking import entries, flock, holders
from safe_pip.locking.entries import Entries

OLDEST = (25, 3)
#: What a process that is started for another interpreter (`--python`) is told: the copy, and where it was frozen from.
GIVEN, GIVEN_ORIGIN = "SAFE_PIP_FROZEN", "SAFE_PIP_FROZEN_ORIGIN"
_DAY = 24 * 3600.0
UNUSED_DAYS = 30
_TRIES = 3
_HELD: dict[Path, flock.Descriptor] = {}  # the locks on the copies that this process runs from
_BESIDE = Path(os.path.abspath(__file__)).parents[2]


class Unfaithful(Exception):
    """There is no RECORD, or the files are not what it says."""


class PipRecord(NamedTuple):
    """The files of pip that are copied, sorted lines of its RECORD: no scripts (their shebangs differ), no bytecode."""

    version: str
    lines: tuple[str, ...]

    @classmethod
    def read(cls, site: Path, version: str) -> "PipRecord":
        """Read the RECORD of pip in `site`; raises `Unfaithful` if it is missing or has a file without a digest."""
        own = f"pip-{version}.dist-info/"
        left_out = tuple(f"{own}{name}," for name in records.OF_THE_INSTALLATION)
        try:
            lines = (site / own / records.RECORD).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise Unfaithful(site) from error
        # virtualenv lists the directories of bytecode as well.
        lines = [
            line
            for line in lines
            if line.startswith(("pip/", own, '"pip/', f'"{own}'))
            and not (line.startswith(left_out) or ".pyc," in line or "/__pycache__," in line)
        ]
        # Nothing that leads elsewhere, and nothing that needs quotes: pip has no such files.
        leads_elsewhere = any("/." in line or '"' in line or "\\" in line for line in lines)
        has_digests = all(",sha256=" in line and line.rpartition(",")[2].isdecimal() for line in lines)
        if leads_elsewhere or not has_digests or not any(line.startswith("pip/__init__.py,") for line in lines):
            raise Unfaithful(site)
        return cls(version, tuple(sorted(lines)))

    @property
    def name(self) -> str:
        """A name that no copy of other content has, even of one that was made to have it."""
        return f"{self.version}-{hashlib.sha256(self._content()).hexdigest()[:32]}"

    def copy(self, site: Path, destination: Path) -> None:
        """Copy every file to `destination`, RECORD last; raises `Unfaithful` if one differs, `OSError` for the copy."""
        for row in (records.Row(*line.rsplit(",", 2)) for line in self.lines):
            try:
                content = (site / row.path).read_bytes()
            except OSError as error:
                raise Unfaithful(site / row.path) from error
            if not row.has(hashlib.sha256(content).digest()) or len(content) != int(row.size):
                raise Unfaithful(site / row.path)
            parent = (destination / row.path).parent
            if not parent.exists():
                fs.make_directories(parent, mode=0o700)
            fs.write(destination / row.path, content)
        fs.write(destination / f"pip-{self.version}.dist-info" / records.RECORD, self._content())

    def is_complete(self, directory: Path, *, unchanged: bool = False) -> bool:
        """Whether every file is there with its size, and if it is newer than RECORD (`unchanged`) with its content.

        Some tools remove old files from caches one by one.
        """
        root = os.fspath(directory)
        try:
            latest = os.stat(f"{root}/pip-{self.version}.dist-info/RECORD").st_mtime if unchanged else math.inf
            for line in self.lines:  # at every start: a tuple for each would double what this takes
                path, digest, size = line.rsplit(",", 2)
                info = os.lstat(f"{root}/{path}")
                if info.st_size != int(size) or not stat.S_ISREG(info.st_mode):
                    return False
                if info.st_mtime > latest:
                    content = (directory / path).read_bytes()
                    if not records.Row(path, digest, size).has(hashlib.sha256(content).digest()):
                        return False
        except OSError:
            return False
        return True

    def suits(self, site: Path) -> bool:
        """Whether this pip, found below `site`, runs under this version of Python."""
        try:
            metadata = (site / f"pip-{self.version}.dist-info" / "METADATA").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        match = re.search(r"^Requires-Python: *>= *(\d+)\.(\d+)", metadata, re.MULTILINE)
        return match is None or sys.version_info[:2] >= (int(match[1]), int(match[2]))

    def _content(self) -> bytes:
        return "\n".join((*self.lines, "")).encode()


class InstalledPip(NamedTuple):
    """The pip that the environment's interpreter would import: its directory on the path and, if known, its version."""

    site: Path
    version: str | None

    @property
    def is_too_old(self) -> bool:
        return self.version is not None and _release(self.version) < OLDEST

    def record(self) -> PipRecord:
        """What to copy; raises `Unfaithful` for a pip that can only run from where it is: see `freeze`."""
        if self.version is None:
            raise Unfaithful(self.site)
        try:
            source = (self.site / "pip" / "_vendor" / "__init__.py").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise Unfaithful(self.site) from error
        record = PipRecord.read(self.site, self.version)
        if _assigned("DEBUNDLED", source) not in ("False", None) or not record.is_complete(self.site, unchanged=True):
            raise Unfaithful(self.site)
        return record


Found = tuple[InstalledPip | None, PipRecord | None]
Read = Callable[[Callable[[], Found]], Found]


class FrozenPip(NamedTuple):
    """A copy of pip that stays as it is: `path` goes on `sys.path`, `origin` is the `pip` that was copied."""

    path: Path
    version: str
    origin: Path

    def for_child(self) -> dict[str, str]:
        """The variables that make safe-pip under another interpreter use this copy."""
        return {GIVEN: str(self.path), GIVEN_ORIGIN: str(self.origin)}

    @property
    def bundle(self) -> Path:
        """Where pip's bytecode is kept in one file."""
        return self._beside("bundle", MAGIC_NUMBER)

    @property
    def programs(self) -> Path:
        """Where this very build of Python keeps what importing pip compiles besides bytecode."""
        return self._beside("programs", sys.version, sys.byteorder)

    def _beside(self, what: str, *made_by: object) -> Path:
        """A file in the copy, named by all that its content depends on."""
        key = hashlib.sha256(repr((str(self.path), sys.flags.optimize, *made_by)).encode()).hexdigest()
        return self.path / f".{what}.{sys.implementation.cache_tag}.{key[:16]}"

    def compile(self) -> None:
        """Compile it, if that can be kept, once for each interpreter, even with PYTHONDONTWRITEBYTECODE.

        One process compiles; others meanwhile run without bytecode.
        """
        bundle = self.bundle
        # With a prefix bytecode is looked up there and nowhere else.
        if sys.pycache_prefix is not None or bundle.exists() or not os.access(self.path, os.W_OK):
            return
        with contextlib.suppress(OSError), contextlib.ExitStack() as mutex:
            with contextlib.suppress(UnusableEnvironment):
                mutex.callback(entries.hold(self.path / "pip", exclusive=True).close)
            if not bundle.exists():
                for source in sorted(self.path.glob("pip/**/*.py")):
                    fs.write_bytecode(source)
                fast_start.make_bundle(self.path, bundle)


def find_pip(path: Sequence[str]) -> InstalledPip | None:
    """The pip that an interpreter with this `sys.path` would import, found without importing it; None if none."""
    for entry in path:
        site = Path(entry or os.curdir)
        try:
            source = (site / "pip" / "__init__.py").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        version = (_assigned("__version__", source) or "").strip("\"'")
        return InstalledPip(site, version if version.replace(".", "").replace("+", "").isalnum() else None)
    return None


def freeze(
    path: Sequence[str],
    *,
    read: Read = lambda look: look(),
    environ: MutableMapping[str, str] = os.environ,
) -> FrozenPip | None:
    """Give the pip of the environment `path` as a frozen copy; None if pip can only run from where it is.

    That is so if a distributor took pip apart, if it has no RECORD (a checkout) or its files are not what RECORD says,
    or if no copy can be kept anywhere (a read-only container). Unless the copy is there already, `read` is called with
    a function that reads the environment, perhaps more than once, while it must not change (`Environment.read`). Where
    there is no pip, or one that is too old, the newest copy serves, or the pip of safe-pip itself: beside it, on its
    own path, or where the adoption of the environment says. Raises `UnusableEnvironment` if there is none.
    """
    given, origin = environ.pop(GIVEN, None), environ.pop(GIVEN_ORIGIN, None)
    frozen = _given(Path(given), origin) if given else _freeze(path, read, environ)
    if frozen is not None:
        frozen.compile()  # without the lock: it takes a second, once
    return frozen


def _freeze(path: Sequence[str], read: Read, environ: Mapping[str, str]) -> FrozenPip | None:
    def look() -> Found:
        installed = find_pip(path)
        with contextlib.suppress(Unfaithful):
            return installed, None if installed is None or installed.is_too_old else installed.record()
        return installed, None

    # A RECORD that is half written, or of a pip that is being removed, has another digest or none: no lock needed.
    installed, record = look()
    if installed is not None and record is not None and (found := _kept_copy(installed.site, record, environ)):
        return found
    for _ in range(_TRIES):
        installed, record = read(look)
        if installed is None or installed.is_too_old:
            return _newest(path, installed, environ)
        if record is None:
            break
        with contextlib.suppress(Unfaithful):  # copied without the lock: perhaps another command has replaced it
            return _kept_copy(installed.site, record, environ) or _make(installed.site, record, environ)
    return None


def _stores(environ: Mapping[str, str], *, makes: bool = False) -> Iterator[Entries]:
    """Where this user's copies are, best place first; with `makes` the temporary one is made if need be."""
    cache = trust.cache_directory(environ)
    temporary = cache is not None and proc.is_shared(str(cache))  # another host does not see that a copy is in use
    for is_temporary in (temporary, not temporary):
        with contextlib.suppress(OSError):
            if is_temporary:
                directory = trust.own_temporary(makes=makes)
            else:
                directory = cache and trust.make_trusted(cache / "safe-pip" / "pip")
            if directory is not None:
                yield Entries(directory, directory / ".aside")


def kept(environ: Mapping[str, str]) -> list[tuple[Path, int]]:
    """Each copy that this user has, and its size in bytes."""
    found = {each.directory / name: 0 for each in _stores(environ) for name in each.names()}
    for place in found:
        for directory, _, names in os.walk(place):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another command removed it
                    found[place] += os.lstat(os.path.join(directory, name)).st_size
    return [*found.items()]


def purge(environ: Mapping[str, str], own: FrozenPip) -> tuple[int, int, int]:
    """Remove the copies that no other process runs from, `own` at the end of this one.

    Returns how many go, their bytes, and how many stay.
    """
    sizes, gone = dict(kept(environ)), set[Path]()
    for copies in _stores(environ):
        copies.sweep()
        for place in (copies.directory / name for name in copies.names()):
            if place != own.path and copies.remove(place.name):
                gone.add(place)
            elif place == own.path and place in _HELD and not holders.holders_at(place):
                atexit.register(copies.discard, _HELD[place])
                gone.add(place)
    return len(gone), sum(sizes.get(place, 0) for place in gone), len(sizes.keys() - gone)


def _kept_copy(site: Path, record: PipRecord, environ: Mapping[str, str]) -> FrozenPip | None:
    held = (_hold(each.directory / record.name, record, site / "pip") for each in _stores(environ))
    return next(filter(None, held), None)


def _hold(place: Path, record: PipRecord, origin: Path) -> FrozenPip | None:
    """Lock the copy at `place`; None if it is not there, not complete, or if others could change it."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as held:
        lock = None
        with contextlib.suppress(UnusableEnvironment):  # nothing can be locked, and so nothing is ever removed
            lock = entries.hold(place)
            held.callback(lock.close)
        if trust.is_trusted(place) and record.is_complete(place):
            if os.stat(place).st_mtime < time.time() - _DAY:
                fs.touch(place)
            held.pop_all()  # until the process ends
            if lock is not None:
                _HELD[place] = lock
            return FrozenPip(place, record.version, origin)
    return None


def _newest(path: Sequence[str], installed: InstalledPip | None, environ: Mapping[str, str]) -> FrozenPip:
    """The newest copy that this interpreter can run, or one of safe-pip's own pip; or `UnusableEnvironment`."""
    from safe_pip.launch import adoption

    copies = [(_release(name), each.directory / name) for each in _stores(environ) for name in each.names()]
    adopted = [each for each in map(adoption.find, path) if each]
    # Beside safe-pip: beside that one which an adopted environment uses.
    own = [_BESIDE, *(each.pip for each in adopted if each.pip), *map(Path, isolation.environment_path)]
    for site in (*(place for _, place in sorted(copies, reverse=True)), *own):
        found = find_pip([str(site)])
        if found is not None and not found.is_too_old:
            with contextlib.suppress(Unfaithful):
                record = found.record()
                if record.suits(site):
                    return _kept_copy(site, record, environ) or _make(site, record, environ)
    oldest = ".".join(map(str, OLDEST))
    # Started by `runpy`, pip is plain pip in an adopted environment too.
    upgrade = f"`{sys.executable} -m {'runpy ' * bool(adopted)}pip install 'pip>={oldest}'`"
    if installed is None:
        why = "there is no pip in this environment nor beside safe-pip, and no copy of one in the cache"
        raise UnusableEnvironment(why, hint=f"Run `{sys.executable} -m ensurepip`, then {upgrade}")
    why = f"pip {installed.version} in `{installed.site}` is older than {oldest}, and the cache has no newer one"
    raise UnusableEnvironment(why, hint=f"Run {upgrade}")


def _make(site: Path, record: PipRecord, environ: Mapping[str, str]) -> FrozenPip:
    """Copy what `record` lists, where later commands find it. On return, and if it raises, nothing half made is left.

    Raises `Unfaithful` if a file is not what it should be, or if no directory has room and is safe from other users.
    """
    for copies in filter(lambda each: trust.is_trusted(each.directory), _stores(environ, makes=True)):
        with contextlib.suppress(OSError), copies.making() as aside:
            copies.sweep(unused=UNUSED_DAYS * _DAY)
            record.copy(site, aside / record.name)
            for _ in range(2):
                copies.publish(aside / record.name, record.name)
                if found := _hold(copies.directory / record.name, record, site / "pip"):
                    return found
                if not copies.remove(record.name):  # damaged, and another process runs from it
                    break
    raise Unfaithful(site)


def _given(directory: Path, origin: str | None) -> FrozenPip:
    """The copy that the safe-pip which started this one runs from, and holds."""
    place = Path(os.path.realpath(directory))
    with contextlib.suppress(Unfaithful):
        installed = find_pip([str(place)])
        record = installed and installed.record()
        if record and (found := _hold(place, record, Path(origin) if origin else place / "pip")):
            return found
    why = f"`{directory}`, named by {GIVEN}, is not a copy of pip that this user alone can change"
    raise UnusableEnvironment(why, hint=f"Unset {GIVEN}")


def _assigned(name: str, source: str) -> str | None:
    """What is assigned to a global name, as it is written."""
    for line in source.splitlines():
        if line.startswith(name) and "=" in line:
            return line.partition("=")[2].partition("#")[0].strip()
    return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version, or the name of a copy, begins with."""
    return tuple(map(int, takewhile(str.isdecimal, version.partition("-")[0].split("."))))
