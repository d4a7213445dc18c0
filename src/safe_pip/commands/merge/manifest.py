"""The manifest of a merge: what it has put where, so that `unmerge` can remove exactly that.

It is JSON. Paths are relative to the prefix, with no symbolic link among their parents. What was there is listed, too.
The manifests of several merges into one prefix know of each other if they lie in one directory and have one suffix.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands.environments import state_of
from safe_pip.errors import Unmergeable
from safe_pip.journal.codec import is_relative
from safe_pip.locking import state_directory
from safe_pip.records import digest_file

FORMAT = 1
ALL = "."
"""Among the directories of a manifest: the prefix itself, which a merge has made."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{3,4}")
_HEAD = re.compile(rb'\s*\{\s*"format"\s*:\s*1\s*,\s*"prefix"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Put:
    """One file or symbolic link: `sha256` of a file's content, `target` of a link; `was_there`: not by the merge."""

    mode: int
    sha256: str = ""
    target: str = ""
    was_there: bool = False

    @classmethod
    def of(cls, path: str, *, was_there: bool = False) -> Put:
        """What is at `path`, which is no directory; raises `OSError`."""
        status = os.lstat(path)
        digest = digest_file(path)[1].hex() if stat.S_ISREG(status.st_mode) else ""
        target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
        return cls(stat.S_IMODE(status.st_mode), digest, target, was_there)

    def is_like(self, other: Put) -> bool:
        """Whether both are the same file or link, whatever its permissions."""
        return (self.sha256, self.target) == (other.sha256, other.target)

    def is_at(self, path: str) -> bool:
        """Whether that is at `path` now. Permissions do not count. Raises `Unmergeable` if it cannot be read."""
        try:
            return self.is_like(Put.of(path))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        except OSError as error:
            raise Unmergeable(f"`{path}` cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Manifest:
    """What a merge has put below `prefix`, and the directories that merges have made (`made`), perhaps `ALL`.

    `read_only` are directories that were there, and are read-only by the staged tree's word as well.
    """

    prefix: str
    entries: Mapping[str, Put]
    made: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read one; raises `Unmergeable` for what is none, or could lead anywhere but below its prefix."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise Unmergeable(f"`{path}` is not a regular file")
            content = path.read_bytes()
        except OSError as error:
            raise Unmergeable(f"`{path}` cannot be read: {error.strerror}") from error
        try:
            document = json.loads(content)
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']!r:.20}, and this version knows {FORMAT}")
            prefix = _text(document["prefix"])
            if not os.path.isabs(prefix) or os.path.normpath(prefix) != prefix:
                raise ValueError("its prefix is not an absolute path")
            entries = {_below(name): _put(name, each) for name, each in document["entries"].items()}
            made = tuple(name if name == ALL else _below(name) for name in document["directories"])
            return cls(prefix, entries, made, tuple(map(_below, document["read_only"])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = str(error) if type(error) is ValueError else "it is damaged"
            raise Unmergeable(f"`{path}` is not the manifest of a merge: {why}") from error

    def encode(self) -> bytes:
        """Its text, with the entries last: the rest can be read without them."""
        entries = {}
        for name, put in sorted(self.entries.items()):
            what = {"target": outward(put.target)} if put.target else {"sha256": put.sha256}
            kind, mode = "link" if put.target else "file", f"{put.mode:04o}"
            entries[outward(name)] = {"kind": kind, "mode": mode, **what, "there": put.was_there}
        document = {
            "format": FORMAT,
            "prefix": outward(self.prefix),
            "directories": sorted(map(outward, self.made)),
            "read_only": sorted(map(outward, self.read_only)),
            "entries": entries,
        }
        return json.dumps(document, indent=1).encode("ascii") + b"\n"


class Neighbours:
    """The other manifests of a prefix that lie beside those at the paths `own`, with the same suffix."""

    def __init__(self, prefix: str, own: Collection[Path]) -> None:
        self._prefix, self._own = prefix, set(map(str, own))
        self._places = {(path.parent, path.suffix) for path in own}
        self._found: dict[str, tuple[object, _Neighbour | None]] = {}
        self._known: list[tuple[str, _Neighbour]] = []
        self.look()

    def look(self) -> bool:
        """Look at them again; on return whether there is anything new."""
        before, self._found = self._found, {}
        for directory, suffix in self._places:
            for path in (os.path.join(directory, name) for name in fs.readable_names(directory)):
                if os.path.splitext(path)[1] == suffix and path not in self._own:
                    state, known = state_of(path), before.get(path)
                    is_known = known is not None and known[0] == state
                    self._found[path] = known if is_known and known else (state, _neighbour(path, self._prefix))
        self._known = [(path, other) for path, (_, other) in sorted(self._found.items()) if other is not None]
        return self._found != before

    def owner(self, name: str, put: Put | None = None) -> str | None:
        """The manifest of the merge that has put `name`, with the same content as `put` if that is given."""
        for path, other in self._known:
            listed = other.put(name)
            if listed is not None and not listed.was_there and (put is None or put.is_like(listed)):
                return path
        return None

    def maker(self, name: str) -> str | None:
        """The manifest that lists the directory `name`."""
        return next((path for path, other in self._known if outward(name) in other.made), None)


class _Neighbour:
    """A manifest, read as far as it is asked for: there may be hundreds."""

    def __init__(self, path: str, content: bytes) -> None:
        self._path, self._content = path, content
        head, is_last, _ = content.partition(b'\n "entries": {')
        self.made = frozenset(json.loads(head.rstrip(b",") + b"}" if is_last else content)["directories"])

    def put(self, name: str) -> Put | None:
        """What it lists as `name`; raises `Unmergeable` if it is damaged."""
        try:
            found = self._entries.get(outward(name))
            return found and _put(name, found)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Unmergeable(f"`{self._path}` is not the manifest of a merge: it is damaged") from error

    @cached_property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads(self._content)["entries"]
        return entries


def _neighbour(path: str, prefix: str) -> _Neighbour | None:
    """The manifest at `path`; None if that is another file, or the manifest of another prefix."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                head = file.read(1 << 14)
                found = _HEAD.match(head)
                if found and os.path.realpath(_text(json.loads(found[1]))) == prefix:
                    return _Neighbour(path, head + file.read())
    return None


def _put(name: str, entry: Any) -> Put:
    kind, mode = entry["kind"], entry["mode"]
    if not isinstance(mode, str) or not _MODE.fullmatch(mode) or kind not in ("file", "link"):
        raise ValueError(f"`{name}` is neither a file nor a link")
    digest, target = (entry["sha256"], "") if kind == "file" else ("", _text(entry["target"]))
    if not target and not _DIGEST.fullmatch(digest):
        raise ValueError(f"`{name}` has neither digest nor target")
    return Put(int(mode, 8), digest, target, entry["there"] is True)


def _below(name: object) -> str:
    path = _text(name)
    if not is_relative(path) or state_directory.NAME in path.split("/"):
        raise ValueError(f"`{path}` does not lie below its prefix")
    return path


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r:.40} is not a path")
    return os.fsdecode(value.encode("utf-8", "surrogateescape"))


def outward(text: str) -> str:
    """The text as UTF-8 that stands for the bytes of the filesystem, in any locale."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")
