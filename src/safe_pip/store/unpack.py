"""One archive, unpacked, verified and compiled as an entry of the store of prepared wheels."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from safe_pip import fs, records
from safe_pip.errors import Mismatch
from safe_pip.fs import Directory, bulk
from safe_pip.store.compile import Source, compile_sources
from safe_pip.store.verify import Differences, verify_unpacked
from safe_pip.store.wheels import FILES, Listing, on_disk

KEYS = ("purelib", "platlib", "headers", "scripts", "data")
"""What `.data` of a wheel may have directories for (PyPA, "Binary distribution format")."""

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, Mismatch)
"""What a damaged archive raises."""

_CHUNK = 1 << 20
_HEADER, _EXTRA = 30, 64
_UTF8 = 0x800
# How well it is compressed, that sizes follow the data (they are in the directory too), and how its name is spelt.
_KNOWN_FLAGS = 0x0E | _UTF8


class Unpreparable(Exception):
    """A wheel that is left to the installer, which knows what to do or to say."""


class Unpacking:
    """One archive, unpacked and compiled in the new directory `place`."""

    def __init__(self, archive: zipfile.ZipFile, file: IO[bytes], place: Path, beat: Callable[[], None]) -> None:
        """`file` is the one that `archive` reads; `beat` is called all the time."""
        self._archive, self._file = archive, file.fileno()
        self._place, self._beat = place, beat
        # Of two members with one name an installer gets the last one.
        self._members = {info.filename: info for info in archive.infolist() if not info.filename.endswith("/")}
        self._groups = {name: _group(name) for name in self._members}
        self._files: dict[str, list[list[Any]]] = {group: [] for group in self._groups.values()}

    def run(self, wheel: str, *, compiles: bool) -> Listing:
        """Write all files of the entry but the listing, which is returned; `wheel` is the file name of the archive.

        Raises `OSError`, `Unpreparable`, or one of `DAMAGE`.
        """
        root = self._place / FILES
        fs.make_directories(root, mode=0o700)
        with Directory.open(root) as directory:
            differences = self._unpack(directory, wheel)
            if compiles:
                self._compile(directory)
        size = on_disk(file[1] for files in self._files.values() for file in files)
        return Listing(wheel, size, differences, {group: list(files) for group, files in self._files.items()})

    def _unpack(self, root: Directory, wheel: str) -> Differences:
        bulk.make_parents(root, self._members)
        known: dict[str, tuple[int, str]] = {}
        for name, info in self._members.items():
            mode = info.external_attr >> 16
            kind = bulk.EXECUTABLE if stat.S_ISREG(mode) and mode & 0o111 else 0
            if name.endswith(".py"):
                kind |= bulk.SOURCE
            try:
                known[name] = bulk.write_file(root, name, self._content(info), kind)
            except FileExistsError as error:
                raise Unpreparable(f"`{name}` is there twice") from error
            group = self._groups[name]
            self._files[group].append([name[len(group) + 1 if group else 0 :], *known[name], kind])
            self._beat()
        return verify_unpacked(wheel, self._archive, known)

    def _compile(self, root: Directory) -> None:
        # The name of a source, as bytecode has it, is the same wherever these are installed.
        pure = [each for each in self._files.items() if each[0].partition("/")[2] in ("", "purelib", "platlib")]
        sources = [(group, file) for group, files in pure for file in files if file[0].endswith(".py")]
        there = {os.path.join(group, file[0]) for group, files in pure for file in files}
        if any(os.path.join(group, importlib.util.cache_from_source(file[0])) in there for group, file in sources):
            raise Unpreparable("it has bytecode of its own")
        at = [root.join(os.path.join(group, file[0])) for group, file in sources]
        found = [Source(path, *file[:2]) for path, (_, file) in zip(at, sources, strict=True)]
        failed = compile_sources(found, beat=self._beat)
        for path, (group, file) in zip(at, sources, strict=True):
            if path not in failed:
                file[3] |= bulk.COMPILED
                compiled = importlib.util.cache_from_source(file[0])
                length, digest = records.digest_file(os.path.join(root.path, group, compiled))
                self._files[group].append([compiled, length, digest.hex(), bulk.BYTECODE])

    def _content(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        if (content := _small(self._file, info)) is not None:
            yield content
            return
        with self._archive.open(info) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                self._beat()


def _small(fd: int, info: zipfile.ZipInfo) -> bytes | None:
    """The content of a member, five times as fast as the standard library; None for what that has to read or refuse."""
    is_usual = not info.flag_bits & ~_KNOWN_FLAGS and info.compress_type in (0, 8) and info.file_size <= _CHUNK
    if sys.platform == "win32" or not is_usual:
        return None
    # Local file header: ".ZIP File Format Specification" 4.3.7.
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    found = os.pread(fd, _HEADER + len(name) + _EXTRA + info.compress_size, info.header_offset)
    start = _HEADER + len(name) + int.from_bytes(found[28:30], "little")
    packed = found[start : start + info.compress_size]
    if found[:4] != b"PK\x03\x04" or found[26:28] != len(name).to_bytes(2, "little"):
        return None
    if found[_HEADER : _HEADER + len(name)] != name or len(packed) != info.compress_size:
        return None
    content = packed
    if info.compress_type:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)
    return content if len(content) == info.file_size and zlib.crc32(content) == info.CRC else None


def _group(name: str) -> str:
    """The directory of the archive, "" or one of `.data`, that a file is installed below; or `Unpreparable`."""
    if os.path.normpath(name) != name or os.path.isabs(name) or name.split("/")[0] == os.pardir:
        raise Unpreparable(f"`{name}` is not a plain path")
    top, *rest = name.split("/", 2)
    if not top.endswith(".data"):
        return ""
    if len(rest) < 2 or rest[0] not in KEYS:
        raise Unpreparable(f"`{name}` is nowhere in the scheme")
    return f"{top}/{rest[0]}"
