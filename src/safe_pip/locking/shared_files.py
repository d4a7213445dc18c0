"""Filesystems that several hosts may use: whether locks reach all of them, as mount options and a probe tell.

`safe-pip doctor --filesystem DIR` tries on two hosts what commands rely on, and leaves its verdict in DIR.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from safe_pip.errors import CannotLock
from safe_pip.fs import Directory, proc, trust
from safe_pip.locking import flock

VERDICT = ".safe-pip-filesystem.json"
# Mount options of Lustre, NFS and SMB with which locks stay on the host that takes them; `local_lock=none` is harmless.
_LOCAL_LOCKS = {"localflock", "nolock", "local_lock", "nobrl"}


class Verdict(NamedTuple):
    """What the last probe found, for all that is below `directory` on the same filesystem; `failed`: which checks."""

    directory: str
    passed: bool
    date: float
    hosts: tuple[str, ...]
    failed: tuple[str, ...]
    remedies: tuple[str, ...]

    def told(self) -> str:
        day, hosts = time.strftime("%Y-%m-%d", time.localtime(self.date)), " and ".join(self.hosts)
        found = "passed" if self.passed else f"failed ({'; '.join(self.failed)})"
        return f"the probe of `{self.directory}` between {hosts} {found} on {day}"


def verdict(directory: Path) -> Verdict | None:
    """The nearest verdict in `directory`, which need not exist, or above it; None if its filesystem was not probed."""
    device = None
    place = Path(os.path.realpath(directory))
    for each in (place, *place.parents):
        with contextlib.suppress(OSError):
            of_each = os.stat(each)
            if device not in (None, of_each.st_dev):
                return None
            device = of_each.st_dev
            if (found := _read(each, of_each)) is not None:
                return found
    return None


def _read(directory: Path, of_directory: os.stat_result) -> Verdict | None:
    """The verdict in a directory, of a user that may change the directory: another one could keep all commands out."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), Directory.open(directory) as opened:
        with opened.opened(VERDICT) as fd, open(fd, "rb", closefd=False) as file:
            if not trust.may_change(os.fstat(fd), directory, of_directory):
                return None
            content = json.load(file)
        content["failed"] = [each["check"] for each in content["checks"] if not each["passed"]]
        told = [tuple(map(proc.printable, map(str, content[name]))) for name in ("hosts", "failed", "remedies")]
        return Verdict(str(directory), bool(content["passed"]), float(content["date"]), *told)
    return None


def check(directory: Path) -> None:
    """Raise `CannotLock` if several hosts may use this directory, and their locks do not reach each other."""
    if proc.is_shared(os.fspath(directory)):
        check_mount(directory)
        check_verdict(directory, probed(directory))


def check_verdict(directory: Path, found: Verdict | None) -> None:
    if found is not None and not found.passed:
        _known.pop(directory, None)  # the next probe may pass
        again = f"Then run `safe-pip doctor --filesystem {found.directory}` again on two hosts"
        raise CannotLock(f"`{directory}` cannot be used: {found.told()}", hint=". ".join((*found.remedies, again)))


def check_mount(directory: Path) -> None:
    """Raise `CannotLock` if several hosts may use this directory, and a mount option keeps their locks apart."""
    if proc.is_shared(os.fspath(directory)):
        with contextlib.suppress(OSError):
            for option in sorted(proc.filesystem(os.fspath(directory)).options):
                name, _, value = option.partition("=")
                if name in _LOCAL_LOCKS and value != "none":
                    what = f"`{directory}` is on a filesystem that is mounted with `{option}`"
                    hint = flock.remedy(directory)
                    raise CannotLock(f"{what}: commands on other hosts would not see its locks", hint=hint)


def probed(directory: Path) -> Verdict | None:
    """The verdict on a directory, looked for once."""
    if directory not in _known:
        _known[directory] = verdict(directory)
    return _known[directory]


_known: dict[Path, Verdict | None] = {}
