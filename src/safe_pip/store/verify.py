"""Compare what was staged with what its wheel promises.

The rules are those of https://packaging.python.org/en/latest/specifications/binary-distribution-format/: every file of
a wheel, except RECORD and its signatures, has a correct digest in RECORD, of SHA-256 or better.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from safe_pip import records
from safe_pip.errors import Mismatch
from safe_pip.records import RECORD, Row

_RECORD = re.compile(rf"[^/]+\.dist-info/{RECORD}")
# RECORD cannot list its own signatures.
_UNLISTED = (RECORD, "RECORD.jws", "RECORD.p7s")
_ACCEPTED = hashlib.algorithms_guaranteed - {"md5", "sha1", "sha224", "sha3_224", "shake_128", "shake_256"}
_NAMED = 3


def verify(wheel: Path, lib_dir: str, scheme: Mapping[str, str], compiled: Collection[str] = ()) -> None:
    """Compare every file of `wheel`, as staged, with the wheel's RECORD; raises `Mismatch`. Scripts: as in the wheel.

    `lib_dir` and the directories of `scheme` (purelib, platlib, scripts, data, headers) are those of the stage.
    `compiled` is the bytecode that was made there from this wheel's sources, perhaps over the wheel's own. Call this
    before another wheel is staged: two wheels may have a file in common.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _refuse(wheel.name, list(_Wheel(archive, lib_dir, scheme, compiled=compiled).problems()))
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise Mismatch(f"`{wheel.name}` is damaged: {error}") from error


def verify_unpacked(wheel: str, archive: zipfile.ZipFile, unpacked: Mapping[str, tuple[int, str]]) -> None:
    """Compare an archive whose files were all written unchanged with its RECORD; raises `Mismatch`, or `ValueError`.

    `unpacked` has the size in bytes and the SHA-256 digest, in hexadecimal digits, of each written file.
    """
    _refuse(wheel, list(_Wheel(archive, "", {}, unpacked).problems()))


def _refuse(wheel: str, problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        raise Mismatch(f"`{wheel}` is not what its RECORD says: {', '.join(problems[:_NAMED] + more)}")


class _Wheel:
    """One wheel beside what was staged of it."""

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
        found = list(filter(_RECORD.fullmatch, self._names))
        self._info = found[0].partition("/")[0] if len(found) == 1 else ""

    def problems(self) -> Iterator[str]:
        """What is wrong, one phrase for each file."""
        if not self._info:
            yield "there is not one RECORD"
            return
        rows = {row.path: row for row in records.parse(self._archive.read(f"{self._info}/{RECORD}").decode())}
        unlisted = {f"{self._info}/{name}" for name in _UNLISTED}
        places = {} if self._unpacked else self._places()
        for name in self._names:
            if name in unlisted:
                continue
            row = rows.pop(name, None)
            problem = "is not listed" if row is None else self._problem(row, places.get(name))
            if problem:
                yield f"`{name}` {problem}"
        yield from (f"`{name}` is missing" for name in rows if name not in unlisted)

    def _places(self) -> dict[str, str]:
        """Where each file of the archive is staged unchanged. Files whose place another file took are left out.

        Files of `.data` are installed after the others. Of scripts the installer rewrites some, and leaves out others.
        """
        at: dict[str, str] = {}
        replaced = {f"{self._info}/{name}" for name in records.OF_THE_INSTALLATION}
        for name in sorted(self._names, key=lambda name: name.partition("/")[0].endswith(".data")):
            path = os.path.normpath(name)
            top, _, below = path.partition(os.sep)
            if not top.endswith(".data"):
                at[os.path.join(self._lib_dir, path)] = name
            elif not below.startswith("scripts/"):
                key, _, below = below.partition(os.sep)
                at[os.path.join(self._scheme[key], below)] = name
        return {
            name: path
            for path, name in at.items()
            if name not in replaced and not (path.endswith(".pyc") and os.path.normpath(path) in self._compiled)
        }

    def _problem(self, row: Row, path: str | None) -> str:
        """What is wrong with one file; empty if nothing is."""
        name = row.path
        if row.digest and row.algorithm not in _ACCEPTED:
            return f"has a digest of the kind `{row.algorithm}`, which is not accepted"
        if name in self._unpacked and row.algorithm in ("", "sha256"):
            length, hexadecimal = self._unpacked[name]
            return _difference(row, length, bytes.fromhex(hexadecimal)) if row.digest else ""
        if not row.digest:
            is_staged = path is None or _content(path) == self._archive.read(name)
            return "" if is_staged else "was not unpacked as it is"
        if path is None:
            content = self._archive.read(name)
            return _difference(row, len(content), hashlib.new(row.algorithm, content).digest())
        try:
            size = int(row.size) if row.size.isdecimal() else -1
            return _difference(row, *records.digest_file(path, row.algorithm, size))
        except FileNotFoundError:
            return "was not unpacked"


def _difference(row: Row, length: int, digest: bytes) -> str:
    """What is wrong with a file of this length and digest; empty if nothing is."""
    if not row.has(digest):
        return "has another digest"
    return "" if not row.size or row.size == str(length) else f"has {length} bytes and not {row.size}"


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None
