"""The frozen pip: pip runs from a copy, so that the environment's own may be upgraded or removed at any moment.

The copy is in this user's cache (`copies`), or where that cannot be used (read-only, full, no home, open to others) in
a private temporary directory that is removed at exit.
"""

import atexit
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.launch import copies
from safe_pip.launch.copies import Copies, Copy
from safe_pip.launch.pip_record import PipRecord, Unfaithful

OLDEST = (25, 3)
#: What a process that is started for another interpreter (`--python`) is told: the copy, and where it was frozen from.
GIVEN, GIVEN_ORIGIN = "SAFE_PIP_FROZEN", "SAFE_PIP_FROZEN_ORIGIN"


class InstalledPip(NamedTuple):
    """The pip that the environment's interpreter would import: its directory on the path and, if known, its version.

    `dist_info` is None for a pip that nobody installed (a checkout on PYTHONPATH).
    """

    site: Path
    version: str | None
    dist_info: Path | None

    @property
    def package(self) -> Path:
        return self.site / "pip"

    @property
    def is_too_old(self) -> bool:
        return self.version is not None and copies.release(self.version) < OLDEST

    @property
    def is_debundled(self) -> bool:
        """Whether a distributor took the vendored libraries out: then it needs what else the environment has."""
        try:
            source = (self.package / "_vendor" / "__init__.py").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise Unfaithful(self.package) from error
        return _assigned("DEBUNDLED", source) not in ("False", None)


class FrozenPip(NamedTuple):
    """A copy of pip that nobody changes: `path` goes on `sys.path`, `origin` is the `pip` directory it was frozen from.

    It stays while this process lives, or until `discard`.
    """

    copy: Copy
    origin: Path

    @property
    def path(self) -> Path:
        return self.copy.path

    @property
    def version(self) -> str:
        return self.copy.version

    def discard(self) -> None:
        """Remove a private copy; called at exit, and needed before an exec, which no exit handler sees."""
        if self.copy.is_private:
            fs.remove_tree(self.copy.path)

    def for_child(self) -> dict[str, str]:
        """The variables that make safe-pip under another interpreter use this same copy."""
        return {GIVEN: str(self.path), GIVEN_ORIGIN: str(self.origin)}


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
    once, and must not see it change (`Environment.read`). None: a distributor took it apart, it has no RECORD, or its
    files are not what RECORD says; then pip can only run from where it is. Where there is no pip, or one that is too
    old, the newest copy in the cache serves. Raises `UnusableEnvironment` when nothing does.
    """
    given, origin = environ.pop(GIVEN, None), environ.pop(GIVEN_ORIGIN, None)
    if given:
        frozen: FrozenPip | None = _given(Path(given), origin)
    else:
        kept = Copies.of_this_user(environ)
        private: list[FrozenPip] = []

        def take() -> FrozenPip | None:
            while private:
                private.pop().discard()
            taken = _take(find_pip(path), kept)
            if taken is not None and taken.copy.is_private:
                _discard_at_exit(taken)
                private.append(taken)
            return taken

        frozen = _find(find_pip(path), kept) or read(take)
    if frozen is not None:
        frozen.copy.compile()  # without the lock: it takes a second, once
    return frozen


def _find(installed: InstalledPip | None, kept: Copies) -> FrozenPip | None:
    """The copy of `installed` that is in the cache already, told by its RECORD; None if that takes a closer look.

    Needs no lock: a RECORD that is half written, or of a pip that is being removed, has another digest or none.
    """
    if installed is None or installed.is_too_old or installed.version is None or installed.dist_info is None:
        return None
    try:
        if installed.is_debundled:
            return None
        copy = kept.find(installed.version, PipRecord.read(installed.dist_info))
    except Unfaithful:
        return None
    return copy and FrozenPip(copy, installed.package)


def _take(installed: InstalledPip | None, kept: Copies) -> FrozenPip | None:
    if installed is None or installed.is_too_old:
        copy = kept.newest(OLDEST)
        if copy is None:
            raise _no_pip(installed)
        return FrozenPip(copy, copy.path / "pip")
    try:
        if installed.version is None or installed.dist_info is None or installed.is_debundled:
            return None
        manifest = PipRecord.read(installed.dist_info)
        copy = kept.find(installed.version, manifest) or kept.make(installed.version, manifest, installed.site)
    except Unfaithful:
        return None
    return FrozenPip(copy, installed.package)


def _assigned(name: str, source: str) -> str | None:
    """What is assigned to a global name, as it is written; no regular expression, for it costs more than the rest."""
    for line in source.splitlines():
        if line.startswith(name) and "=" in line:
            return line.partition("=")[2].partition("#")[0].strip()
    return None


def _given(directory: Path, origin: str | None) -> FrozenPip:
    """The copy that the safe-pip which started this one runs from, and holds."""
    place = Path(os.path.realpath(directory))
    installed = find_pip([str(place)])
    copy = installed and installed.version and copies.hold(place, installed.version)
    if not installed or not copy:
        raise UnusableEnvironment(
            f"`{directory}`, named by {GIVEN}, is not a copy of pip that this user alone can change",
            hint=f"Unset {GIVEN}",
        )
    return FrozenPip(copy, Path(origin or installed.package))


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
