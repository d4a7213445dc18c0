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
_UNLISTED = (RECORD, "RECORD.jws", "RECORD.p7s")  # it cannot list its own signatures
_ACCEPTED = hashlib.algorithms_guaranteed - {"md5", "sha1", "sha224", "sha3_224", "shake_128", "shake_256"}
_NAMED = 3


class Differences(NamedTuple):
    """One line about all that differs between a wheel and its RECORD, and one about contents alone; "" for nothing."""

    everything: str = ""
    contents: str = ""


def verify(wheel: Path, lib_dir: str, scheme: Mapping[str, str], compiled: Collection[str] = ()) -> Differences:
    """Compare every file of `wheel`, as staged, with the wheel's RECORD. Scripts are compared as they are in the wheel.

    `lib_dir` and the directories of `scheme` are those of the stage; `compiled` is the bytecode that was made there,
    perhaps over the wheel's own. Call this before another wheel is staged: two wheels may have a file in common. Raises
    `Mismatch` for a file that was not unpacked as it is in the wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            places = _places(archive, lib_dir, scheme, {*map(os.path.normpath, compiled)})
            return _compare(wheel.name, archive, places, {})
    except (zipfile.BadZipFile, EOFError) as error:
        raise Mismatch(f"`{wheel.name}` is damaged: {error}") from error


def verify_unpacked(wheel: str, archive: zipfile.ZipFile, unpacked: Mapping[str, tuple[int, str]]) -> Differences:
    """Compare an archive whose files were written unchanged, with these sizes and SHA-256 digests, with its RECORD."""
    return _compare(wheel, archive, {}, unpacked)


def _names(archive: zipfile.ZipFile) -> list[str]:
    return list(dict.fromkeys(name for name in archive.namelist() if not name.endswith("/")))


def _places(archive: zipfile.ZipFile, lib_dir: str, scheme: Mapping[str, str], compiled: set[str]) -> dict[str, str]:
    """Where each file of the archive is staged unchanged: not of scripts, nor files whose place another file took."""
    at: dict[str, str] = {}
    for name in sorted(_names(archive), key=lambda name: name.partition("/")[0].endswith(".data")):
        path = os.path.normpath(name)
        top, _, below = path.partition(os.sep)
        if not top.endswith(".data"):
            at[os.path.join(lib_dir, path)] = name
        elif not below.startswith("scripts/"):
            key, _, below = below.partition(os.sep)
            at[os.path.join(scheme[key], below)] = name
    replaced = tuple(f".dist-info/{name}" for name in records.OF_THE_INSTALLATION)
    return {
        name: path
        for path, name in at.items()
        if not name.endswith(replaced) and not (path.endswith(".pyc") and os.path.normpath(path) in compiled)
    }


def _compare(
    wheel: str, archive: zipfile.ZipFile, places: Mapping[str, str], unpacked: Mapping[str, tuple[int, str]]
) -> Differences:
    names = _names(archive)
    found = list(filter(_RECORD.fullmatch, names))
    if len(found) != 1:
        raise Mismatch(f"`{wheel}` is not what its RECORD says: there is not one RECORD")
    try:
        rows = {row.path: row for row in records.parse(archive.read(found[0]).decode())}
    except ValueError as error:
        return Differences(*[_told(wheel, [f"RECORD is damaged: {error}"])] * 2)
    unlisted = {f"{os.path.dirname(found[0])}/{name}" for name in _UNLISTED}
    contents, others = list[str](), list[str]()
    for name in filter(lambda name: name not in unlisted, names):
        row = rows.pop(name, None)
        if row is None:
            others.append(f"`{name}` is not listed")
        elif row.digest and row.algorithm not in _ACCEPTED:
            others.append(f"`{name}` has a digest of the kind `{row.algorithm}`, which is not accepted")
            row = None
        row, path = row or Row(name), places.get(name)
        algorithm = row.algorithm or "sha256"
        if name in unpacked and algorithm == "sha256":
            length, hexadecimal = unpacked[name]
            difference = _difference(row, length, bytes.fromhex(hexadecimal))
        elif path is None:
            content = archive.read(name)
            difference = _difference(row, len(content), hashlib.new(algorithm, content).digest())
        else:
            try:
                size = int(row.size) if row.size.isdecimal() else -1
                difference = _difference(row, *records.digest_file(path, algorithm, size))
                is_unpacked = bool(row.digest and not difference) or Path(path).read_bytes() == archive.read(name)
            except FileNotFoundError:
                is_unpacked = False
            if not is_unpacked:
                raise Mismatch(f"`{name}` of `{wheel}` was not unpacked as it is")
        if difference:
            contents.append(f"`{name}` {difference}")
    others += [f"`{name}` is missing" for name in rows if name not in unlisted]
    return Differences(_told(wheel, contents + others), _told(wheel, contents))


def _told(wheel: str, problems: list[str]) -> str:
    more = [f"and {len(problems) - _NAMED} more"] * (len(problems) > _NAMED)
    what = ", ".join(problems[:_NAMED] + more)
    return f"`{wheel}` is not what its RECORD says: {what}" if problems else ""


def _difference(row: Row, length: int, digest: bytes) -> str:
    """How a file of this length and digest differs from its row; empty if it does not, or if the row has no digest."""
    if not row.digest:
        return ""
    if not row.has(digest):
        return "has another digest"
    return "" if not row.size or row.size == str(length) else f"has {length} bytes and not {row.size}"
