"""Real distributions from the package index, fetched once and kept in the user's cache.

Only the fetching uses the index, with the pip configuration of the machine. The directory is renamed into place when it
is complete, so any number of test runs may start at once on a new machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

OLDEST_PIP = "25.3"
NEWEST_PIP = "26.3"

# Two versions of each, for upgrades and downgrades. pip takes one version of a project per command.
OLD = {
    "attrs": "23.2.0",
    "certifi": "2024.2.2",
    "charset-normalizer": "3.3.2",
    "click": "8.1.7",
    "flit_core": "3.9.0",
    "idna": "3.6",
    "jinja2": "3.1.3",
    "packaging": "23.2",
    "pip": OLDEST_PIP,
    "pygments": "2.17.2",
    "requests": "2.31.0",
    "setuptools": "75.8.0",
    "six": "1.16.0",
    "urllib3": "2.2.1",
    "wheel": "0.43.0",
}
NEW = {
    "attrs": "24.2.0",
    "certifi": "2024.8.30",
    "charset-normalizer": "3.4.0",
    "click": "8.1.8",
    "flit_core": "3.12.0",
    "idna": "3.10",
    "jinja2": "3.1.4",
    "packaging": "24.2",
    "pip": NEWEST_PIP,
    "pygments": "2.18.0",
    "requests": "2.32.3",
    "setuptools": "80.9.0",
    "six": "1.17.0",
    "urllib3": "2.2.3",
    "wheel": "0.45.1",
}
# Requirements of hatchling, the build backend of safe-pip, to build without an index.
BACKENDS = {
    "hatchling": "1.27.0",
    "pathspec": "0.12.1",
    "pluggy": "1.5.0",
    "tomli": "2.0.2",
    "trove-classifiers": "2026.9.21.13",
}
# A requirement of jinja2, with a wheel for each interpreter; it is built for interpreters newer than the release.
OLD_BINARY = {"markupsafe": "3.0.1"}
NEW_BINARY = {"markupsafe": "3.0.2"}
# The first builds with setuptools, the second with flit_core.
SDISTS = {"six": "1.17.0", "idna": "3.10"}

ANY_INTERPRETER = ("--platform", "any", "--implementation", "py", "--abi", "none", "--python-version", "3.10")
WHEELS = ("--only-binary", ":all:")
FETCHES: tuple[tuple[Mapping[str, str], tuple[str, ...]], ...] = (
    (OLD, ("download", "-d", ".", *WHEELS, *ANY_INTERPRETER)),
    (NEW | BACKENDS, ("download", "-d", ".", *WHEELS, *ANY_INTERPRETER)),
    (OLD_BINARY, ("wheel", "-w", ".")),
    (NEW_BINARY, ("wheel", "-w", ".")),
    (SDISTS, ("download", "-d", ".", "--no-binary", ",".join(SDISTS))),
)


class IndexOutOfReach(Exception):
    """The wheelhouse is not in the cache and the package index does not answer."""


@dataclass(frozen=True)
class Wheelhouse:
    """A directory for `--find-links`, with all that the tests install."""

    path: Path

    def wheel(self, project: str, version: str) -> Path:
        """The wheel of one version of a project, or `LookupError`."""
        name = project.replace("-", "_").lower()
        for file in self.path.glob(f"*-{version}-*.whl"):
            if file.name.split("-")[0].replace(".", "_").lower() == name:
                return file
        raise LookupError(f"{project} {version} is not in {self.path}")

    def sdist(self, project: str) -> Path:
        """The sdist of a project, or `LookupError`."""
        return self.path / f"{project}-{SDISTS[project]}.tar.gz"

    def old(self, *projects: str) -> list[Path]:
        return [self.wheel(project, (OLD | OLD_BINARY)[project]) for project in projects]

    def new(self, *projects: str) -> list[Path]:
        return [self.wheel(project, (NEW | NEW_BINARY | BACKENDS)[project]) for project in projects]


def user_cache() -> Path:
    """Where this user's caches are (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()


def open_wheelhouse() -> Wheelhouse:
    """The wheelhouse of the lists above, fetched now if this user has none.

    On return every file in it has the digest it was fetched with. Raises `IndexOutOfReach`.
    """
    lists = json.dumps([FETCHES, sys.implementation.cache_tag], sort_keys=True)
    path = user_cache() / "safe-pip-tests" / f"wheelhouse-{hashlib.sha256(lists.encode()).hexdigest()[:16]}"
    if path.is_dir():
        if _manifest(path) == json.loads((path / "manifest.json").read_text()):
            return Wheelhouse(path)
        shutil.rmtree(path)
    return Wheelhouse(fetch_once(path, _fetch))


def fetch_once(path: Path, fetch: Callable[[Path], None]) -> Path:
    """Have `fetch` fill a directory that is renamed to `path` when it is complete; on return `path` exists.

    Two test runs may do this at once: the result of the slower one is discarded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix="fetching-"))
    try:
        fetch(aside)
        aside.chmod(0o755)
        os.rename(aside, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _manifest(path: Path) -> dict[str, str]:
    files = [file for file in sorted(path.iterdir()) if file.name != "manifest.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _fetch(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pip = any_pip(Path(scratch))
        for pins, options in FETCHES:
            requirements = [f"{project}=={version}" for project, version in pins.items()]
            command = [*pip, *options, "-q", "--no-deps", *requirements]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            if done.returncode:
                raise IndexOutOfReach(
                    "the tests on real distributions fetch them once from the package index, and cannot: "
                    f"`{' '.join(command)}` exited {done.returncode}:\n{done.stdout}{done.stderr}"
                )
    (directory / "manifest.json").write_text(json.dumps(_manifest(directory), indent=1))


def any_pip(scratch: Path) -> list[str]:
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode == 0:
        return pip
    venv.EnvBuilder(with_pip=True).create(scratch / "pip")
    return [str(scratch / "pip" / "bin" / "python"), "-m", "pip"]
