"""What pip's RECORD promises of the files that are frozen (PyPA specification "Recording installed projects")."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs

#: Files of a dist-info that tell of one installation, not of the distribution.
_OF_THE_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


class Unfaithful(Exception):
    """There is no RECORD, or the files are not what it says."""


class Row(NamedTuple):
    """One file: its path relative to site-packages, the sha256 digest (urlsafe base64, no padding) and the size."""

    path: str
    sha256: str
    size: int


class PipRecord(NamedTuple):
    """The files that make a distribution what it is, as sorted lines of its RECORD; no scripts and no bytecode.

    Equal for all installations of one wheel, though their RECORDs differ (a script's digest depends on its shebang).
    """

    dist_info: str
    lines: tuple[str, ...]

    @classmethod
    def read(cls, dist_info: Path) -> "PipRecord":
        """Read RECORD in `dist_info`; raises `Unfaithful` if it is missing or promises less than a digest per file."""
        try:
            text = (dist_info / "RECORD").read_text(encoding="utf-8")
            lines = _kept(text.splitlines(), dist_info.name)
        except (OSError, ValueError) as error:
            raise Unfaithful(dist_info) from error
        if not any(line.startswith("pip/__init__.py,") for line in lines):
            raise Unfaithful(dist_info)
        return cls(dist_info.name, tuple(lines))

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def rows(self) -> Iterator[Row]:
        """The files one by one."""
        for line in self.lines:
            path, digest, size = line.rsplit(",", 2)
            yield Row(path, digest.removeprefix("sha256="), int(size))

    @property
    def digest(self) -> str:
        """Hexadecimal digits that no other content has, whoever tries."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def copy(self, site: Path, destination: Path) -> None:
        """Copy every file below `site` to the same place below `destination`; raises `Unfaithful` if one differs.

        The copy's own RECORD, written last, is this manifest.
        """
        import base64  # by far most starts copy nothing

        made = set()
        for row in self.rows():
            content = _read(site / row.path)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            if digest != row.sha256 or len(content) != row.size:
                raise Unfaithful(site / row.path)
            parent = (destination / row.path).parent
            if parent not in made:
                fs.make_directories(parent, mode=0o700)
                made.add(parent)
            fs.write(destination / row.path, content)
        fs.write(destination / self.dist_info / "RECORD", self.text.encode())

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
        """Whether this distribution, found below `site`, can run under a Python of that version."""
        try:
            metadata = (site / self.dist_info / "METADATA").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        match = re.search(r"^Requires-Python: *>= *(\d+)\.(\d+)", metadata, re.MULTILINE)
        return match is None or python >= (int(match[1]), int(match[2]))


def _kept(lines: list[str], dist_info: str) -> list[str]:
    """Those that are to be copied; raises `ValueError` at one that is not as pip's wheels have them."""
    own = f"{dist_info}/"
    ours = ("pip/", own, '"pip/', f'"{own}')
    left_out = tuple(f"{own}{name}," for name in _OF_THE_INSTALLATION)
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unfaithful(path) from error
