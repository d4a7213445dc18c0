"""The bytecode of the whole frozen pip in one file, from which its modules are imported.

To import a module the interpreter asks for the times of a directory and of a source, and opens and reads a file. A
command imports 400 modules of a pip that never changes: from here that is a look in a table, and one read. What is not
in the bundle, or damaged, is imported as ever, from the bytecode beside the sources.
"""

import hashlib
import marshal
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

from safe_pip import fs

_FORMAT = 1
_BEFORE_CODE = 16
"""So many bytes of a file of bytecode are not code (PEP 552)."""
_LENGTH = 8
_DIGEST = hashlib.sha256().digest_size
"""A bundle is the length of its table in so many bytes, the table's digest, the table, and the code."""

Place = tuple[str, bool, int, int]
"""Of one module: its source, relative to the copy; whether it is a package; offset and size of its code, in bytes."""


def make(copy: Path, file: Path) -> None:
    """Write to `file` the bytecode of all that is below `copy`; a module that has none of this interpreter is left out.

    Readers see the old file, none, or the new one. Raises `OSError` where that cannot be read or written.
    """
    table: dict[str, Place] = {}
    code = bytearray()
    for source in sorted(copy.glob("pip/**/*.py")):
        content = b""
        with suppress(FileNotFoundError):
            content = Path(cache_from_source(str(source))).read_bytes()
        if content.startswith(MAGIC_NUMBER):
            relative = source.relative_to(copy)
            is_package = relative.name == "__init__.py"
            name = ".".join(relative.parent.parts if is_package else relative.with_suffix("").parts)
            table[name] = (str(relative), is_package, len(code), len(content) - _BEFORE_CODE)
            code += content[_BEFORE_CODE:]
    head = marshal.dumps((_identity(copy), len(code), table))
    fs.replace(file, len(head).to_bytes(_LENGTH, "little") + hashlib.sha256(head).digest() + head + code)


def attach(copy: Path, file: Path) -> None:
    """Import what is in `file` from there, from now on, if it was made of `copy`; else nothing changes.

    It stays open while this process lives. One that is damaged is removed, so that it is made anew.
    """
    if sys.platform == "win32":  # which cannot read at an offset
        return
    try:
        fd = os.open(file, os.O_RDONLY)
    except OSError:
        return
    head = _head(fd)
    if head is not None and head.identity == _identity(copy):
        sys.meta_path.insert(0, _Finder(str(copy), head.table, _Code(fd, head.end)))
        return
    os.close(fd)
    if head is None:
        with suppress(OSError):
            fs.unlink(file)


class _Head(NamedTuple):
    identity: tuple[int, bytes, int, str]
    table: dict[str, Place]
    end: int
    """Where the code begins."""


def _head(fd: int) -> _Head | None:
    """What a bundle begins with; None if it is damaged, has not its length, or is another version's."""
    if sys.platform != "win32":
        with suppress(OSError, ValueError, EOFError, TypeError):
            whole = os.fstat(fd).st_size
            length = int.from_bytes(os.pread(fd, _LENGTH, 0), "little")
            digest = os.pread(fd, _DIGEST, _LENGTH)
            end = _LENGTH + _DIGEST + length
            content = os.pread(fd, length, end - length) if end <= whole else b""
            if content and hashlib.sha256(content).digest() == digest:
                identity, size, table = marshal.loads(content)
                if end + size == whole:
                    return _Head(identity, table, end)
    return None


def _identity(copy: Path) -> tuple[int, bytes, int, str]:
    """What it is made for: nobody else takes it. Code objects carry the names of their sources."""
    return (_FORMAT, MAGIC_NUMBER, sys.flags.optimize, str(copy))


class _Code(NamedTuple):
    """The code in an open bundle."""

    fd: int
    start: int

    def read(self, offset: int, size: int) -> CodeType | None:
        """One module's; None if it is damaged."""
        if sys.platform != "win32":
            with suppress(OSError, ValueError, EOFError, TypeError):
                code = marshal.loads(os.pread(self.fd, size, self.start + offset))
                if isinstance(code, CodeType):
                    return code
        return None


class _Finder:
    """What `sys.meta_path` holds (docs.python.org, `importlib.abc.MetaPathFinder`)."""

    def __init__(self, copy: str, table: dict[str, Place], code: _Code) -> None:
        self._prefix = copy + os.sep
        self._table = table
        self._code = code

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self._table.get(name)
        if place is None:
            return None
        source, is_package, offset, size = place
        origin = self._prefix + source
        spec = ModuleSpec(name, _Loader(name, origin, self._code, offset, size), origin=origin)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec


class _Loader(SourceFileLoader):
    """Imports a module as the interpreter does, but for where its code is."""

    def __init__(self, name: str, path: str, code: _Code, offset: int, size: int) -> None:
        super().__init__(name, path)
        self._code = code
        self._offset = offset
        self._size = size

    def get_code(self, fullname: str) -> CodeType | None:
        return self._code.read(self._offset, self._size) or super().get_code(fullname)
