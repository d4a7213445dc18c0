"""Finds what a machine offers to tox: the interpreters of pyenv, and memory for the files of the tests.

Every interpreter of pyenv is found, not only those that are active in this directory. Without pyenv tox finds those on
PATH and skips the others by name.

The tests make and remove hundreds of environments, which keeps the disk busy. In memory they need a third less time.
If there is not enough memory, or programs may not run from there, the files go below `.tox`.
"""

import hashlib
import os
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM = 2 << 30
"""An upper bound of the room that the tests of one core need, in bytes."""


def find_interpreters() -> None:
    """Select every version that pyenv has."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    numbered = [path.name for path in versions.glob("3.*") if path.name.replace(".", "").isdigit()]
    if numbered:
        newest_first = sorted(numbered, key=lambda name: [int(part) for part in name.split(".")], reverse=True)
        os.environ.setdefault("PYENV_VERSION", ":".join(newest_first))


def available() -> int:
    """The memory that is available without swapping, in bytes; 0 if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def find_memory() -> None:
    """Select a private directory in memory for this checkout and this user, if there is room."""
    room = ROOM * (os.cpu_count() or 1)
    try:
        found = os.statvfs(MEMORY)
        if found.f_flag & os.ST_NOEXEC or found.f_bavail * found.f_frsize < room or available() < 2 * room:
            return
        checkout = hashlib.sha256(os.fsencode(Path(__file__).resolve().parent)).hexdigest()[:16]
        directory = MEMORY / f"safe-pip-tests-{os.getuid()}-{checkout}"
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if status.st_uid == os.getuid() and not directory.is_symlink():
            os.environ.setdefault("SAFE_PIP_TEST_FILES", str(directory))
    except (OSError, AttributeError):  # no such directory, or another system
        return


find_interpreters()
find_memory()
