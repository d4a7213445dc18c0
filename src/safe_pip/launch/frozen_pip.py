"""The frozen pip: pip runs from a copy, so that the environment's own may be upgraded or removed at any moment.

Copies are entries (`locking.entries`) of this user's cache, named `<version>-<digest>`. Their sources are what pip's
RECORD says and never change; only bytecode is added. Where the cache cannot be used (read-only, full, no home, open to
others) the copy is in a private temporary directory, which is removed at exit.

RECORD is compared line by line, and not read by `records`, because that is done at every start.
"""

import atexit
import contextlib
import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs, records
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import trust
from safe_pip.launch import fast_start
from safe_pip.locking import entries, flock
from safe_pip.locking.entries import Entries

OLDEST = (25, 3)
#: What a process that is started for another interpreter (`--python`) is told: the copy, and where it was frozen from.
GIVEN, GIVEN_ORIGIN = "SAFE_PIP_FROZEN", "SAFE_PIP_FROZEN_ORIGIN"
_DAY = 24 * 3600.0
_UNUSED = 30 * _DAY


class Unfaithful(Exception):
    """There is no RECORD, or the files are not what it says."""


class PipRecord(NamedTuple):
    """The files of pip that are copied, as sorted lines of its RECORD; no scripts and no bytecode.

    All installations of one wheel have the same lines, though their RECORDs differ: a script's digest depends on its
    shebang.
    """

    dist_info: str
    lines: tuple[str, ...]

    @classmethod
    def read(cls, dist_info: Path) -> "PipRecord":
        """Read RECORD in `dist_info`; raises `Unfaithful` if it is missing or has a file without a digest."""
        try:
            text = (dist_info / records.RECORD).read_text(encoding="utf-8")
            lines = _kept(text.splitlines(), dist_info.name)
        except (OSError, ValueError) as error:
            raise Unfaithful(dist_info) from error
        if not any(line.startswith("pip/__init__.py,") for line in lines):
            raise Unfaithful(dist_info)
        return cls(dist_info.name, tuple(lines))

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def digest(self) -> str:
        """Hexadecimal digits that no other content has, even one that was made to have them."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def copy(self, site: Path, destination: Path) -> None:
        """Copy every file below `site` to `destination`, which is made; raises `Unfaithful` if one differs.

        The copy's own RECORD, written last, holds these lines. Raises `OSError` if a file cannot be written.
        """
        made = set()
        for row in (records.Row(*line.rsplit(",", 2)) for line in self.lines):
            try:
                content = (site / row.path).read_bytes()
            except OSError as error:
                raise Unfaithful(site / row.path) from error
            if not row.has(hashlib.sha256(content).digest()) or len(content) != int(row.size):
                raise Unfaithful(site / row.path)
            parent = (destination / row.path).parent
            if parent not in made:
                fs.make_directories(parent, mode=0o700)
                made.add(parent)
            fs.write(destination / row.path, content)
        fs.write(destination / self.dist_info / records.RECORD, self.text.encode())

    def is_complete(self, directory: Path) -> bool:
        """Whether every file is there with its size: some tools remove old files from caches one by one."""
        root = os.fspath(directory)
        try:
            for line in self.lines:  # at every start: a tuple for each would double what this takes
                path, _, size = line.rsplit(",", 2)
                info = os.lstat(f"{root}/{path}")
                if info.st_size != int(size) or not stat.S_ISREG(info.st_mode):
                    return False
        except OSError:
            return False
        return True

    def suits(self, site: Path, python: tuple[int, int]) -> bool:
        """Whether this pip, found below `site`, runs under that version of Python."""
        try:
            metadata = (site / self.dist_info / "METADATA").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        match = re.search(r"^Requires-Python: *>= *(\d+)\.(\d+)", metadata, re.MULTILINE)
        return match is None or python >= (int(match[1]), int(match[2]))


def _kept(lines: list[str], dist_info: str) -> list[str]:
    """The lines of files that are copied; raises `ValueError` at a line that is not like those of pip's wheels."""
    own = f"{dist_info}/"
    ours = ("pip/", own, '"pip/', f'"{own}')
    left_out = tuple(f"{own}{name}," for name in records.OF_THE_INSTALLATION)
    # virtualenv lists the directories of bytecode as well.
    bytecode = (".pyc,", "/__pycache__,")
    kept = [line for line in lines if line.startswith(ours) and not line.startswith(left_out)]
    kept = [line for line in kept if not any(each in line for each in bytecode)]
    # Nothing that leads elsewhere, and nothing that needs quotes: pip has no such files.
    for line in kept:
        leads_elsewhere = "/." in line or '"' in line or "\\" in line
        if leads_elsewhere or ",sha256=" not in line or not line.rpartition(",")[2].isdecimal():
            raise ValueError(line)
    return sorted(kept)


class InstalledPip(NamedTuple):
    """The pip that the environment's interpreter would import: its directory on the path and, if known, its version.

    `dist_info` is None for a pip that was not installed (a checkout on PYTHONPATH).
    """

    site: Path
    version: str | None
    dist_info: Path | None

    @property
    def package(self) -> Path:
        return self.site / "pip"

    @property
    def is_too_old(self) -> bool:
        return self.version is not None and _release(self.version) < OLDEST

    @property
    def is_debundled(self) -> bool:
        """Whether a distributor took the vendored libraries out: such a pip needs what else the environment has."""
        try:
            source = (self.package / "_vendor" / "__init__.py").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise Unfaithful(self.package) from error
        return _assigned("DEBUNDLED", source) not in ("False", None)


class FrozenPip(NamedTuple):
    """A copy of pip that does not change: `path` goes on `sys.path`, `origin` is the `pip` that was copied.

    It stays while this process lives, or until `discard`. A private copy has no other user.
    """

    path: Path
    version: str
    origin: Path
    is_private: bool = False
    held: flock.Descriptor | None = None

    def discard(self) -> None:
        """Remove a private copy; called at exit, and needed before an exec, which runs no exit handler."""
        if self.is_private:
            fs.remove_tree(self.path)

    def for_child(self) -> dict[str, str]:
        """The variables that make safe-pip under another interpreter use this copy."""
        return {GIVEN: str(self.path), GIVEN_ORIGIN: str(self.origin)}

    def beside(self, what: str) -> Path:
        """Where this interpreter, at its level of optimisation, keeps something that is made from the copy."""
        level = f".opt-{sys.flags.optimize}" if sys.flags.optimize else ""
        return self.path / f".{what}.{sys.implementation.cache_tag}{level}"

    def compile(self) -> None:
        """Compile it, once for each interpreter and level of optimisation, even with PYTHONDONTWRITEBYTECODE.

        One process compiles; others meanwhile run without bytecode. Where bytecode cannot be kept, pip is compiled as
        it is imported.
        """
        if self.is_private or sys.pycache_prefix is not None:  # bytecode is looked up there and nowhere else
            return
        done, bundle = self.beside("compiled"), self.beside("bundle")
        mutex = None
        try:
            if bundle.exists() or not os.access(self.path, os.W_OK):
                return
            with contextlib.suppress(UnusableEnvironment):
                mutex = entries.hold(self.path / "pip", exclusive=True)
            if not done.exists():
                for source in sorted(self.path.glob("pip/**/*.py")):
                    fs.write_bytecode(source)
                fs.write(done, b"")
            fast_start.make_bundle(self.path, bundle)
        except OSError:
            pass
        finally:
            if mutex is not None:
                mutex.close()


Take = Callable[[], FrozenPip | None]


def _unlocked(take: Take) -> FrozenPip | None:
    return take()


def find_pip(path: Sequence[str]) -> InstalledPip | None:
    """The pip that an interpreter with this `sys.path` would import, found without importing it; None if none."""
    for entry in path:
        site = Path(entry or os.curdir)
        try:
            source = (site / "pip" / "__init__.py").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        version = (_assigned("__version__", source) or "").strip("\"'")
        if not version.replace(".", "").replace("+", "").isalnum():
            return InstalledPip(site, None, None)
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

    `read` is called, unless the copy is there already, with a function that reads the environment, perhaps more than
    once, while the environment must not change (`Environment.read`). None is returned if a distributor took pip apart,
    if it has no RECORD, or if its files are not what RECORD says; then pip can only run from where it is. Where there
    is no pip, or one that is too old, the newest copy in the cache serves. Raises `UnusableEnvironment` if there is
    none.
    """
    given, origin = environ.pop(GIVEN, None), environ.pop(GIVEN_ORIGIN, None)
    if given:
        frozen: FrozenPip | None = _given(Path(given), origin)
    else:
        copies = _copies(environ)
        private: list[FrozenPip] = []

        def take() -> FrozenPip | None:
            while private:
                private.pop().discard()
            taken = _take(find_pip(path), copies)
            if taken is not None and taken.is_private:
                _discard_at_exit(taken)
                private.append(taken)
            return taken

        # A RECORD that is half written, or of a pip that is being removed, has another digest or none: no lock needed.
        frozen = _take(find_pip(path), copies, makes=False) or read(take)
    if frozen is not None:
        frozen.compile()  # without the lock: it takes a second, once
    return frozen


def _take(installed: InstalledPip | None, copies: Entries | None, *, makes: bool = True) -> FrozenPip | None:
    """The copy of `installed`, or in its place the newest one; None if there is none yet, unless it `makes` one."""
    try:
        if installed is None or installed.is_too_old:
            return _newest(installed, copies) if makes else None
        if installed.version is None or installed.dist_info is None or installed.is_debundled:
            return None
        record = PipRecord.read(installed.dist_info)
        if copies is not None:
            place = copies.directory / f"{installed.version}-{record.digest}"
            if found := _hold(place, installed.version, installed.package, record):
                return found
        return _make(copies, installed, record) if makes else None
    except Unfaithful:
        return None


def _copies(environ: Mapping[str, str]) -> Entries | None:
    """The copies of this user, in a directory that is made if need be; None without a cache that can be trusted."""
    cache = trust.cache_directory(environ)
    directory = cache and trust.make_trusted(cache / "safe-pip" / "pip")
    return Entries(directory, directory / ".aside") if directory else None


def _hold(place: Path, version: str, origin: Path | None, record: PipRecord | None = None) -> FrozenPip | None:
    """Lock the copy at `place`; None if it is not there, not complete, or if others could change it."""
    held = None
    try:
        with contextlib.suppress(UnusableEnvironment):  # nothing can be locked, and so nothing is ever removed
            held = entries.hold(place)
        if trust.is_trusted(place) and (record is None or record.is_complete(place)):
            if record is not None and os.stat(place).st_mtime < time.time() - _DAY:
                fs.touch(place)
            return FrozenPip(place, version, origin or place / "pip", held=held)
    except OSError:
        pass
    if held is not None:
        held.close()
    return None


def _newest(installed: InstalledPip | None, copies: Entries | None) -> FrozenPip:
    """The newest copy, from `OLDEST` on, that this interpreter can run; raises `UnusableEnvironment` if none."""
    names = copies.names() if copies else []
    for name in sorted(names, key=lambda name: (_release(name), name), reverse=True):
        match = re.fullmatch(r"([0-9A-Za-z.+!]+)-([0-9a-f]+)", name)
        if copies is None or match is None or _release(name) < OLDEST:
            continue
        place = copies.directory / name
        with contextlib.suppress(Unfaithful):
            record = PipRecord.read(place / f"pip-{match[1]}.dist-info")
            if record.digest == match[2] and record.suits(place, sys.version_info[:2]):
                if found := _hold(place, match[1], None, record):
                    return found
    raise _no_pip(installed)


def _make(copies: Entries | None, installed: InstalledPip, record: PipRecord) -> FrozenPip:
    """Copy what `record` lists; to a private temporary directory, where the cache cannot take it.

    Raises `Unfaithful` if a file is not what it should be, `UnusableEnvironment` if there is no room anywhere. On
    return, and if it raises, nothing half made is left.
    """
    assert installed.version is not None
    if copies is not None:
        copies.sweep(unused=_UNUSED)
        name = f"{installed.version}-{record.digest}"
        with contextlib.suppress(OSError), copies.making() as aside:
            record.copy(installed.site, aside / name)
            for _ in range(2):
                copies.publish(aside / name, name)
                if found := _hold(copies.directory / name, installed.version, installed.package, record):
                    return found
                if not copies.remove(name):  # damaged, and another process runs from it
                    break
    temporary = None
    try:
        temporary = trust.make_temporary()
        record.copy(installed.site, temporary)
        return FrozenPip(temporary, installed.version, installed.package, is_private=True)
    except BaseException as error:
        if temporary is not None:
            fs.remove_tree(temporary)
        if not isinstance(error, OSError):
            raise
        raise UnusableEnvironment(
            f"cannot keep a private copy of pip in the cache or in a temporary directory: {error.strerror}",
            hint="Make room, or set XDG_CACHE_HOME or TMPDIR to a directory that can be written",
        ) from error


def _given(directory: Path, origin: str | None) -> FrozenPip:
    """The copy that the safe-pip which started this one runs from, and holds."""
    place = Path(os.path.realpath(directory))
    installed = find_pip([str(place)])
    found = installed and installed.version and _hold(place, installed.version, Path(origin) if origin else None)
    if not found:
        raise UnusableEnvironment(
            f"`{directory}`, named by {GIVEN}, is not a copy of pip that this user alone can change",
            hint=f"Unset {GIVEN}",
        )
    return found


def _no_pip(installed: InstalledPip | None) -> UnusableEnvironment:
    oldest = ".".join(map(str, OLDEST))
    if installed is None:
        return UnusableEnvironment(
            "there is no pip in this environment, and no copy of one in the cache",
            hint=f"Run `{sys.executable} -m ensurepip`, then `{sys.executable} -m pip install 'pip>={oldest}'`",
        )
    return UnusableEnvironment(
        f"pip {installed.version} in `{installed.site}` is older than {oldest}, and the cache has no newer one",
        hint=f"Run `{sys.executable} -m pip install 'pip>={oldest}'`",
    )


def _discard_at_exit(frozen: FrozenPip) -> None:
    process = os.getpid()

    def discard() -> None:
        if os.getpid() == process:  # a forked child that exits leaves it to its parent
            frozen.discard()

    atexit.register(discard)


def _assigned(name: str, source: str) -> str | None:
    """What is assigned to a global name, as it is written; a regular expression would cost more than the rest."""
    for line in source.splitlines():
        if line.startswith(name) and "=" in line:
            return line.partition("=")[2].partition("#")[0].strip()
    return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.extend([int(digits)] if digits else [])
        if digits != part:
            break
    return tuple(numbers)
