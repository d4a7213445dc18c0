"""RECORD, digests and names of projects: one reader for all of safe-pip.

https://packaging.python.org/en/latest/specifications/recording-installed-projects/ has the rules for RECORD,
https://packaging.python.org/en/latest/specifications/name-normalization/ those for names. `csv`, `hashlib` and
`base64` are imported where they are used: most starts of pip compare no file.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

RECORD = "RECORD"
OF_THE_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Files of a dist-info that an installer writes in each environment, whatever the wheel holds."""

_OWN = re.compile(r"(^|/)\.safe-pip(-[^/]*)?(/|\Z)")
_BYTECODE = re.compile(r"(^|/)__pycache__(/[^/]+\.pyc(\.[0-9]+)?)?\Z")
_CHUNK = 1 << 20


class Row(NamedTuple):
    """One file in a RECORD, as written there: its path, its digest with the algorithm, its size; "" for none."""

    path: str
    digest: str = ""
    size: str = ""

    @property
    def algorithm(self) -> str:
        return self.digest.partition("=")[0]

    def has(self, digest: bytes) -> bool:
        """Whether the row gives this digest. Wheels leave the padding out; RECORDs of old tools keep it."""
        return self.digest.partition("=")[2].rstrip("=") == encoded(digest)


def parse(text: str) -> list[Row]:
    """The rows of a RECORD; raises `ValueError` for text that is not one. Digests and sizes are not checked."""
    import csv
    import io

    try:
        found = [Row(*fields[:3]) for fields in csv.reader(io.StringIO(text, newline=""), strict=True) if fields]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if bad := [row for row in found if not row.path]:
        raise ValueError(f"not a row: {','.join(bad[0])}")
    return found


def listed(record: str) -> list[str]:
    """The paths of files in the RECORD at this path, as written there; those before the damage, if there is some."""
    import csv

    found: list[str] = []
    with suppress(OSError, csv.Error), open(record, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = (row[0] for row in csv.reader(file) if row and row[0] and not row[0].endswith("/"))
        found.extend(path for path in rows if os.path.isabs(path) or not is_own(path))
    return found


class RealPaths:
    """Resolves the parents of paths; each directory is resolved once."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def real(self, base: str, name: str) -> str:
        parent, _, last = os.path.normpath(os.path.join(base, name)).rpartition(os.sep)
        real = self._parents.get(parent)
        if real is None:
            real = self._parents[parent] = os.path.realpath(parent or os.sep)
        return os.path.join(real, last)

    def files_of(self, info: str) -> Iterator[str]:
        """The files that an installed distribution lists, absolute, with their parents resolved.

        `info` is its dist-info, or its egg-info, which may have `installed-files.txt`. Raises nothing, as `listed`.
        """
        if info.endswith(".egg-info"):
            base, names = info, _lines(os.path.join(info, "installed-files.txt"))
        else:
            base, names = os.path.dirname(info), listed(os.path.join(info, RECORD))
        for name in names:
            yield self.real(base, name)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project_of(info: str) -> str:
    """The normalized name of the project that a metadata directory with this name, or path, belongs to."""
    return canonical(os.path.splitext(os.path.basename(info))[0].partition("-")[0])


def is_bytecode(path: str) -> bool:
    """Whether this is a `__pycache__`, or bytecode in one (PEP 3147): the import system can make it again."""
    return _BYTECODE.search(path) is not None


def is_own(path: str) -> bool:
    """Whether a path in a tree is safe-pip's own: no distribution has it, whatever its RECORD lists."""
    return ".safe-pip" in path and _OWN.search(path) is not None


def encoded(digest: bytes) -> str:
    """A digest as RECORD has it: URL-safe base64 without padding."""
    import base64

    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def digest(fd: int, algorithm: str = "sha256", size: int = -1) -> tuple[int, bytes]:
    """Length and digest of the rest of an open file; one of the expected `size` takes one read(2). Raises `OSError`."""
    state = _state(algorithm).copy()
    asked = min(size + 1, _CHUNK) if size >= 0 else _CHUNK
    length = 0
    while True:
        chunk = os.read(fd, asked)
        length += len(chunk)
        state.update(chunk)
        if len(chunk) < asked:
            return length, state.digest()
        asked = _CHUNK


def digest_file(path: str, algorithm: str = "sha256", size: int = -1) -> tuple[int, bytes]:
    """Length and digest of the file at `path`; see `digest`. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return digest(fd, algorithm, size)
    finally:
        os.close(fd)


@cache
def _state(algorithm: str) -> Any:
    """A state that nothing was hashed with yet: copying it is cheaper than looking for the algorithm again."""
    import hashlib

    return hashlib.new(algorithm, usedforsecurity=False)


def _lines(path: str) -> list[str]:
    with suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [line.rstrip("\r\n") for line in file if line.strip()]
    return []
