"""Is what was staged what the wheel promises?

The rules are those of https://packaging.python.org/en/latest/specifications/binary-distribution-format/: every file of
a wheel, its RECORD and signatures apart, has a correct digest in RECORD, of SHA-256 or better.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from safe_pip.errors import Mismatch

_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
# Signatures of RECORD cannot be in it.
_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")
# An installer writes these in their place, whatever the wheel has there.
_OF_THE_INSTALLATION = ("INSTALLER", "REQUESTED", "direct_url.json")
_ACCEPTED = hashlib.algorithms_guaranteed - {"md5", "sha1", "sha224", "sha3_224", "shake_128", "shake_256"}
_REWRITTEN = b"#!python"
_CHUNK = 1 << 20
_NAMED = 3

Row = tuple[str, str]
"""Digest with its algorithm, and size; as RECORD has them."""


def verify(wheel: Path, lib_dir: str, scheme: Mapping[str, str], compiled: Collection[str] = ()) -> None:
    """Compare every file of `wheel` with its RECORD, as it lies in the stage; raises `Mismatch`.

    `lib_dir` and the directories of `scheme` (purelib, platlib, scripts, data, headers) are those of the stage;
    `compiled` is the bytecode that was made in it of this wheel's sources, perhaps over the wheel's own. To be called
    before another wheel is staged over it: two may have a file in common.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _refuse(wheel.name, list(_Wheel(archive, lib_dir, scheme, compiled=compiled).problems()))
    except (zipfile.BadZipFile, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise Mismatch(f"`{wheel.name}` is damaged: {error}") from error


def verify_unpacked(wheel: str, archive: zipfile.ZipFile, unpacked: Mapping[str, tuple[int, str]]) -> None:
    """The same for an archive whose files were written as they are: `unpacked` has size and SHA-256 digest of each."""
    _refuse(wheel, list(_Wheel(archive, "", {}, unpacked).problems()))


def _refuse(wheel: str, problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        raise Mismatch(f"`{wheel}` is not what its RECORD says: {', '.join(problems[:_NAMED] + more)}")


class _Wheel:
    """One wheel beside what was made of it."""

    def __init__(
        self,
        archive: zipfile.ZipFile,
        lib_dir: str,
        scheme: Mapping[str, str],
        unpacked: Mapping[str, tuple[int, str]] | None = None,
        compiled: Collection[str] = (),
    ) -> None:
        self._archive = archive
        self._compiled = {os.path.normpath(path) for path in compiled}
        self._unpacked = unpacked or {}
        self._lib_dir = lib_dir
        self._scheme = scheme
        self._names = list(dict.fromkeys(name for name in archive.namelist() if not name.endswith("/")))
        records = list(filter(_RECORD.fullmatch, self._names))
        self._info = records[0].partition("/")[0] if len(records) == 1 else ""
        self._scripts: set[str] = set()
        self._begun: dict[str, hashlib._Hash] = {}

    def problems(self) -> Iterator[str]:
        """What is wrong, one phrase for each file."""
        if not self._info:
            yield "there is not one RECORD"
            return
        rows = self._rows()
        unlisted = {f"{self._info}/{name}" for name in _UNLISTED}
        places = {} if self._unpacked else self._places()
        for name in self._names:
            if name in unlisted:
                continue
            row = rows.pop(name, None)
            problem = "is not listed" if row is None else self._problem(name, row, places.get(name))
            if problem:
                yield f"`{name}` {problem}"
        yield from (f"`{name}` is missing" for name in rows if name not in unlisted)

    def _rows(self) -> dict[str, Row]:
        lines = self._archive.read(f"{self._info}/RECORD").decode().splitlines()
        return {
            row[0]: (row[1] if len(row) > 1 else "", row[2] if len(row) > 2 else "") for row in csv.reader(lines) if row
        }

    def _places(self) -> dict[str, str]:
        """Where each file of the archive lies in the stage as it is; what another file took the place of is left out.

        Files of `.data` come after the others, scripts last.
        """
        at: dict[str, str] = {}
        data: list[str] = []
        replaced = {f"{self._info}/{name}" for name in _OF_THE_INSTALLATION}
        for name in self._names:
            top, _, rest = name.partition("/")
            if not top.endswith(".data"):
                at[os.path.join(self._lib_dir, os.path.normpath(name))] = name
            elif rest.startswith("scripts/"):
                self._scripts.add(name)
            else:
                data.append(name)
        wrappers = self._wrappers() if self._scripts else set()
        data += [name for name in self._names if name in self._scripts and _entry_point(name) not in wrappers]
        for name in data:
            _, key, below = os.path.normpath(name).split(os.sep, 2)
            at[os.path.join(self._scheme[key], below)] = name
        return {
            name: path
            for path, name in at.items()
            if name not in replaced and not (path.endswith(".pyc") and os.path.normpath(path) in self._compiled)
        }

    def _wrappers(self) -> set[str]:
        """The names of entry points: a script of such a name is made by the installer, not unpacked."""
        found: set[str] = set()
        listing = f"{self._info}/entry_points.txt"
        if listing not in self._names:
            return found
        section = ""
        for line in self._archive.read(listing).decode().splitlines():
            line = line.strip()
            if line.startswith("["):
                section = line.strip("[]").strip()
            elif "=" in line and not line.startswith("#") and section in ("console_scripts", "gui_scripts"):
                found.add(line.partition("=")[0].strip())
        return found

    def _problem(self, name: str, row: Row, path: str | None) -> str:
        """What is wrong with one file; empty if nothing is."""
        digest, size = row
        algorithm = digest.partition("=")[0]
        if digest and algorithm not in _ACCEPTED:
            return f"has a digest of the kind `{algorithm}`, which is not accepted"
        if name in self._unpacked and algorithm in ("", "sha256"):
            known, hexadecimal = self._unpacked[name]
            return _difference(row, known, bytes.fromhex(hexadecimal)) if digest else ""
        if path is not None and name in self._scripts:
            content = self._archive.read(name)
            if content.startswith(_REWRITTEN):
                if not _has_rest(path, content):
                    return "was not unpacked as it is"
                path = None
        if not digest and path is not None:
            return "" if _has_content(path, self._archive.read(name)) else "was not unpacked as it is"
        if not digest:
            return ""
        if path is None:
            content = self._archive.read(name)
            length, found = len(content), hashlib.new(algorithm, content).digest()
        else:
            try:
                length, found = self._digest(path, algorithm, size)
            except FileNotFoundError:
                return "was not unpacked"
        return _difference(row, length, found)

    def _digest(self, path: str, algorithm: str, size: str) -> tuple[int, bytes]:
        """Length and digest of a file, read once; `size` is what it is expected to be."""
        if algorithm not in self._begun:
            self._begun[algorithm] = hashlib.new(algorithm)
        state = self._begun[algorithm].copy()  # to look for an algorithm takes longer than to hash a small file
        fd = os.open(path, _FLAGS)
        try:
            # One byte more than expected: a short answer is the end of the file, and most files take one call.
            asked = min(int(size) + 1, _CHUNK) if size.isdecimal() else _CHUNK
            length = 0
            while True:
                chunk = os.read(fd, asked)
                length += len(chunk)
                state.update(chunk)
                if len(chunk) < asked:
                    return length, state.digest()
                asked = _CHUNK
        finally:
            os.close(fd)


def _difference(row: Row, length: int, digest: bytes) -> str:
    """What is wrong with a file of this length and digest; empty if nothing is."""
    expected, size = row
    if urlsafe_b64encode(digest).decode().rstrip("=") != expected.partition("=")[2].rstrip("="):
        return "has another digest"
    return "" if not size or size == str(length) else f"has {length} bytes and not {size}"


def _entry_point(name: str) -> str:
    """The entry point that a script of this name would be the wrapper of."""
    name = name.rpartition("/")[2]
    for suffix in (".exe", "-script.py", ".pya"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _has_content(path: str, content: bytes) -> bool:
    try:
        return Path(path).read_bytes() == content
    except FileNotFoundError:
        return False


def _has_rest(path: str, content: bytes) -> bool:
    """Whether the file is `content` but for its first line, which names an interpreter now."""
    try:
        found = Path(path).read_bytes()
    except FileNotFoundError:
        return False
    return found.startswith(b"#!") and found.partition(b"\n")[2] == content.partition(b"\n")[2]


_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
