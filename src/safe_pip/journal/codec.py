"""The journal's format: a plan to bytes and back. No damage goes unnoticed.

One header line (magic word, format number, length and SHA-256 of the body), then the body in JSON. What decodes is
well-formed. Names are kept as the bytes that the filesystem has, so that a journal means the same in every locale.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from safe_pip.merge.plan import Journal, Kind, Operation, Seen

FORMAT = 1
LIMIT = 1 << 28
"""In bytes: nothing larger is written, and nothing larger is read into memory."""

_MAGIC = "safe-pip-journal"
_HEADER = re.compile(rb"safe-pip-journal ([1-9][0-9]{0,8}) (0|[1-9][0-9]{0,17}) ([0-9a-f]{64})\n")
_IDENTIFIER = re.compile(r"[0-9a-f]{16}")
_FIELDS = ("identifier", "home", "trees", "directories", "roots", "parts", "operations", "identity")
# Whether an operation of this kind has: a name in the stage, one in the trash, an old object, a new one.
_HAS = {
    Kind.NEW: (True, False, False, True),
    Kind.FILE: (True, True, True, True),
    Kind.EXCHANGE: (True, False, True, True),
    Kind.SWAP: (True, True, True, True),
    Kind.REMOVE: (False, True, True, False),
    Kind.MODE: (False, False, True, True),
    Kind.TIDY: (False, False, True, False),
    Kind.SEAL: (False, False, True, True),
}

T = TypeVar("T")


class Damaged(Exception):
    """These bytes are not a whole journal; the message says what is wrong with them."""


class Newer(Exception):
    """A version of safe-pip whose journals have another format wrote this."""


def is_identifier(text: str) -> bool:
    """Whether this can be the identifier of a transaction."""
    return _IDENTIFIER.fullmatch(text) is not None


def marker(identifier: str) -> str:
    """The name of the empty file in a staged directory that identifies the directory in its place."""
    return f".safe-pip-{identifier}"


def encode(journal: Journal) -> bytes:
    """The bytes of `journal`; raises `ValueError` if `decode` would not take them."""
    rows = [(operation.kind.value, *operation[1:]) for operation in journal.operations]
    # All text as UTF-8 that stands for the filesystem's bytes.
    fields = _mapped(
        (*journal[:-2], rows, journal.identity), lambda text: os.fsencode(text).decode("utf-8", "surrogateescape")
    )
    body = json.dumps(dict(zip(_FIELDS, fields, strict=True)), separators=(",", ":")).encode("ascii")
    content = _header(body) + body
    try:
        _check(journal)
    except Damaged as error:
        raise ValueError(str(error)) from error
    if len(content) > LIMIT:
        raise ValueError(f"a journal of {len(content)} bytes")
    return content


def decode(content: bytes) -> Journal:
    """The journal that `encode` made these bytes of; raises `Damaged` or `Newer`."""
    found = _HEADER.match(content)
    if found is None:
        _damaged("it has no header")
    if int(found[1]) != FORMAT:
        raise Newer(f"its format is {int(found[1])}, and this version knows {FORMAT}")
    body = content[found.end() :]
    if len(content) > LIMIT or found[0] != _header(body):
        _damaged("its length or its digest is wrong")
    try:
        fields = json.loads(body)
        if not isinstance(fields, dict) or tuple(fields) != _FIELDS:
            _damaged("its fields are not those of a journal")
        values = list(fields.values())
        journal = _read(*_mapped(values, lambda text: os.fsdecode(text.encode("utf-8", "surrogateescape"))))
    except (ValueError, RecursionError) as error:  # not JSON, too few fields, or names that no filesystem has
        raise Damaged(str(error)) from error
    _check(journal)
    return journal


def _header(body: bytes) -> bytes:
    return f"{_MAGIC} {FORMAT} {len(body)} {hashlib.sha256(body).hexdigest()}\n".encode("ascii")


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else change(value)
    return [_mapped(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _read(identifier: object, home: object, *rest: object) -> Journal:
    trees, directories, roots, parts = map(_texts, rest[:-2])
    operations = tuple(map(_operation, _is(list, rest[-2])))
    device, inode = (_is(int, number) for number in _is(list, rest[-1]))
    return Journal(_is(str, identifier), _is(str, home), trees, directories, roots, parts, operations, (device, inode))


def _operation(row: object) -> Operation:
    kind, root, path, part, staged, trash, old, new, known, proof = _is(list, row)  # ValueError: too few, or too many
    for number, text in ((root, path), (part, staged), (0, trash), (0, proof)):
        _is(int, number)
        _is(str, text)
    return Operation(Kind(kind), root, path, part, staged, trash, _seen(old), _seen(new), _texts(known), proof)


def _seen(value: object) -> Seen | None:
    if value is None:
        return None
    mode, size, mtime_ns = (_is(int, number) for number in _is(list, value))
    return Seen(mode, size, mtime_ns)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_is(str, item) for item in _is(list, value))


def _is(wanted: type[T], value: object) -> T:
    if type(value) is not wanted:  # not isinstance: True is no number here
        _damaged(f"{value!r:.40} stands where {wanted.__name__} should")
    return value


def _check(journal: Journal) -> None:
    if not is_identifier(journal.identifier):
        _damaged("its identifier is none")
    for path in (journal.home, *journal.trees, *journal.directories, *journal.roots, *journal.parts):
        if path != "/" and not (path.startswith("/") and is_relative(path[1:])):
            _damaged(f"`{path}` is not an absolute path in its simplest form")
    if journal.home not in journal.trees:
        _damaged("its home is none of its trees")
    private = f".safe-pip/{journal.identifier}"
    if not journal.parts or journal.parts[0] != os.path.join(journal.home, private):
        _damaged("its first part is not in its home")
    if any(not part.endswith(f"/{private}") for part in journal.parts) or len({*journal.parts}) < len(journal.parts):
        _damaged("its parts are not private directories of their own")
    used: set[tuple[int, str]] = set()
    for operation in journal.operations:
        _check_operation(operation, journal)
        names = [(operation.part, name) for name in (operation.staged, f"/{operation.trash}") if name not in ("", "/")]
        if not used.isdisjoint(names):
            _damaged(f"`{operation.path}` shares its place in the stage or the trash")
        used.update(names)


def _check_operation(operation: Operation, journal: Journal) -> None:
    _, root, path, part, staged, trash, old, new, known, _ = operation
    if not (0 <= root < len(journal.roots) and 0 <= part < len(journal.parts)):
        _damaged(f"`{path}` is in none of its roots or parts")
    has = (bool(staged), bool(trash), old is not None, new is not None)
    if has != _HAS[operation.kind]:
        _damaged(f"`{path}` has not what `{operation.kind.value}` needs")
    for relative in (path, *known, *filter(None, (staged, trash))):
        if not is_relative(relative):
            _damaged(f"`{relative}` is not a relative path in its simplest form")
    if "/" in trash:
        _damaged(f"`{trash}` is not a name")
    if any(not (0 <= seen.mode < 1 << 32 and seen.size >= 0) for seen in (old, new) if seen is not None):
        _damaged(f"`{path}` has an impossible mode or size")
    directories = [stat.S_ISDIR(seen.mode) for seen in (old, new) if seen is not None]
    if operation.kind is Kind.FILE and any(directories):
        _damaged(f"`{path}` is a directory where `file` needs none")
    if operation.kind in (Kind.EXCHANGE, Kind.MODE, Kind.TIDY, Kind.SEAL) and not all(directories):
        _damaged(f"`{path}` is no directory, as `{operation.kind.value}` needs it")


def is_relative(path: str) -> bool:
    """Whether this is a path below something, without `.`, `..`, empty names or anything that no name can have."""
    return all(name not in ("", ".", "..") for name in path.split("/")) and "\0" not in path


def _damaged(why: str) -> NoReturn:
    raise Damaged(why)
