"""Compare what was staged with what its wheel promises.

The rules are those of https://packaging.python.org/en/latest/specifications/binary-distribution-format/: every file of
a wheel, except RECORD and its signatures, has a correct digest in RECORD, of SHA-256 or better. pip does not compare.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from safe_pip import records
from safe_pip.errors import Mismatch
from safe_pip.records import RECORD, Row

_RECORD = re.compile(rf"[^/]+\.dist-info/{RECORD}")
# RECORD cannot list its own signatures.
_UNLISTED = (RECORD, "RECORD.jws", "RECORD.p7s")
_ACCEPTED = hashlib.algorithms_guaranteed - {"md5", "sha1", "sha224", "sha3_224", "shake_128", "shake_256"}
_NAMED = 3


class Differences(NamedTuple):
    """One line about all that differs between a wheel and its RECORD, and one about contents alone; "" for nothing."""

    everything: str = ""
    contents: str = ""


def verify(wheel: Path, lib_dir: str, scheme: Mapping[str, str], compiled: Collection[str] = ()) -> Differences:
    """Compare every file of `wheel`, as staged, with the wheel's RECORD. Scripts are compared as they are in the wheel.

    `lib_dir` and the directories of `scheme` (purelib, platlib, scripts, data, headers) are those of the stage.
    `compiled` is the bytecode that was made there from this wheel's sources, perhaps over the wheel's own. Call this
    before another wheel is staged: two wheels may have a file in common. Raises `Mismatch` for a file that was not
    unpacked as it is in the wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _Wheel(wheel.name, archive, lib_dir, scheme, compiled=compiled).compare()
    except (zipfile.BadZipFile, EOFError) as error:
        raise Mismatch(f"`{wheel.name}` is damaged: {error}") from error


def verify_unpacked(wheel: str, archive: zipfile.ZipFile, unpacked: Mapping[str, tuple[int, str]]) -> Differences:
    """Compare an archive whose files were all written unchanged with its RECORD; raises `Mismatch` if it has none.

    `unpacked` has the size in bytes and the SHA-256 digest, in hexadecimal digits, of each written file.
    """
    return _Wheel(wheel, archive, "", {}, unpacked).compare()


class _Wheel:
    """One wheel beside what was staged of it."""

    def __init__(
        self,
        wheel: str,
        archive: zipfile.ZipFile,
        lib_dir: str,
        scheme: Mapping[str, str],
        unpacked: Mapping[str, tuple[int, str]] | None = None,
        compiled: Collection[str] = (),
    ) -> None:
        self._wheel = wheel
        self._archive = archive
        self._compiled = {os.path.normpath(path) for path in compiled}
        self._unpacked = unpacked or {}
        self._lib_dir = lib_dir
        self._scheme = scheme
        self._names = list(dict.fromkeys(name for name in archive.namelist() if not name.endswith("/")))
        found = list(filter(_RECORD.fullmatch, self._names))
        if len(found) != 1:
            raise Mismatch(f"`{wheel}` is not what its RECORD says: there is not one RECORD")
        self._info = found[0].partition("/")[0]

    def compare(self) -> Differences:
        try:
            rows = {row.path: row for row in records.parse(self._archive.read(f"{self._info}/{RECORD}").decode())}
        except ValueError as error:
            return Differences(*[self._told([f"RECORD is damaged: {error}"])] * 2)
        unlisted = {f"{self._info}/{name}" for name in _UNLISTED}
        places = {} if self._unpacked else self._places()
        contents, others = list[str](), list[str]()
        for name in filter(lambda name: name not in unlisted, self._names):
            row = rows.pop(name, None)
            if row is None:
                others.append(f"`{name}` is not listed")
            elif row.digest and row.algorithm not in _ACCEPTED:
                others.append(f"`{name}` has a digest of the kind `{row.algorithm}`, which is not accepted")
                row = None
            if difference := self._difference(row or Row(name), places.get(name)):
                contents.append(f"`{name}` {difference}")
        others += [f"`{name}` is missing" for name in rows if name not in unlisted]
        return Differences(self._told(contents + others), self._told(contents))

    def _told(self, problems: list[str]) -> str:
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        what = ", ".join(problems[:_NAMED] + more)
        return f"`{self._wheel}` is not what its RECORD says: {what}" if problems else ""

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

    def _difference(self, row: Row, path: str | None) -> str:
        """How one file differs from its row; empty if it does not, or if the row has no digest."""
        name = row.path
        if name in self._unpacked and row.algorithm in ("", "sha256"):
            length, hexadecimal = self._unpacked[name]
            return _compared(row, length, bytes.fromhex(hexadecimal))
        if path is None or not row.digest:
            content = self._archive.read(name)
            found = _compared(row, len(content), hashlib.new(row.algorithm or "sha256", content).digest())
        else:
            size = int(row.size) if row.size.isdecimal() else -1
            try:
                found = _compared(row, *records.digest_file(path, row.algorithm, size))
            except FileNotFoundError:
                found = "is missing"
        if path is not None and (found or not row.digest) and _content(path) != self._archive.read(name):
            raise Mismatch(f"`{name}` of `{self._wheel}` was not unpacked as it is")
        return found


def _compared(row: Row, length: int, digest: bytes) -> str:
    """How a file of this length and digest differs from its row."""
    if not row.digest:
        return ""
    if not row.has(digest):
        return "has another digest"
    return "" if not row.size or row.size == str(length) else f"has {length} bytes and not {row.size}"


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None
