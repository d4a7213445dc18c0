"""The manifest of a merge: what it has put where, so that `unmerge` can remove exactly that.

It is JSON. Paths are relative to the prefix, with no symbolic link among their parents. What was there is listed, too.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.errors import Unmergeable
from safe_pip.fs import space
from safe_pip.journal.codec import is_relative
from safe_pip.locking import state_directory
from safe_pip.records import digest_file

FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{3,4}")


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

    def is_at(self, path: str) -> bool:
        """Whether that is at `path` now. Permissions do not count. Raises `Unmergeable` if it cannot be read."""
        try:
            return replace(Put.of(path), mode=self.mode, was_there=self.was_there) == self
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        except OSError as error:
            raise Unmergeable(f"`{path}` cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Manifest:
    """What merges with one manifest have put below `prefix`, and the directories that they made for it (`made`).

    `read_only` are directories that were there, and are read-only by the staged tree's word as well.
    """

    prefix: str
    entries: Mapping[str, Put]
    made: tuple[str, ...]
    read_only: tuple[str, ...]

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
            made, read_only = (tuple(map(_below, document[name])) for name in ("directories", "read_only"))
            return cls(prefix, entries, made, read_only)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = str(error) if type(error) is ValueError else "it is damaged"
            raise Unmergeable(f"`{path}` is not the manifest of a merge: {why}") from error

    def write(self, path: Path) -> None:
        """Write it, whole or not at all; raises a `SafePipError` if the disk refuses."""
        entries = {}
        for name, put in sorted(self.entries.items()):
            what = {"target": _outward(put.target)} if put.target else {"sha256": put.sha256}
            kind, mode = "link" if put.target else "file", f"{put.mode:04o}"
            entries[_outward(name)] = {"kind": kind, "mode": mode, **what, "there": put.was_there}
        document = {
            "format": FORMAT,
            "prefix": _outward(self.prefix),
            "entries": entries,
            "directories": list(map(_outward, self.made)),
            "read_only": list(map(_outward, self.read_only)),
        }
        try:
            fs.replace(path, json.dumps(document, indent=1).encode("ascii") + b"\n", mode=0o644)
        except OSError as error:
            raise space.not_writable(path, error) from error

    def with_earlier(self, earlier: Manifest) -> Manifest:
        """This manifest, with what an earlier merge has put and what is still as that put it."""
        if earlier.prefix != self.prefix:
            return self
        entries = dict(earlier.entries)
        for name, put in self.entries.items():
            known = earlier.entries.get(name)  # its own, if it is still as the earlier merge put it
            is_own = known is not None and known == replace(put, mode=known.mode, was_there=False)
            entries[name] = replace(put, was_there=put.was_there and not is_own)
        made = tuple(dict.fromkeys((*earlier.made, *self.made)))
        return Manifest(self.prefix, entries, made, tuple(dict.fromkeys((*earlier.read_only, *self.read_only))))


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


def _outward(text: str) -> str:
    """The text as UTF-8 that stands for the bytes of the filesystem, in any locale."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")
