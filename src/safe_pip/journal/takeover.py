"""Taking over a transaction whose process has lost its locks, and may still be at work.

Each step is one that the process itself needs as well, so that one of the two gets it. A journal is renamed to
`.undoing`, or the process commits it. What lies in stage and trash is renamed into a directory that the process does
not know, and stage and trash are removed: what it begins after that fails. Of a transaction without a journal the
private directory gets another name, and the journal in it, which is not published yet, is removed.
"""

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from safe_pip import fs
from safe_pip.errors import TakenOver, UnusableEnvironment
from safe_pip.fs import Directory, attributes, proc
from safe_pip.fs.directory import fresh_names
from safe_pip.journal.directories import ASIDE, STAGE, TRASH, OpenDirectories
from safe_pip.locking.state_directory import JOURNAL, JOURNALS, UNDOING

_MAY_NOT = (errno.EACCES, errno.EPERM)
# What a host hears that cannot reach its file server, and later of all that it had open: by then its locks are free.
_LOST = frozenset({errno.EIO, errno.ENOTCONN, errno.ESTALE, getattr(errno, "EBADFD", errno.ESTALE)})
_ANSWERS = 60.0
_now, _sleep = time.monotonic, time.sleep  # tests have a clock of their own


class Superseded(Exception):
    """Another process has committed the transaction, or undoes it."""


def claim(state: Directory, identifier: str) -> None:
    """Rename the journal to `.undoing`; raises `FileNotFoundError` if it has its name no more."""
    fs.move_fresh(state, f"{identifier}{JOURNAL}", state, f"{identifier}{UNDOING}")


def lost(error: OSError, home: str) -> TakenOver | None:
    """What to raise if this says that the file server cannot be reached, or could not. No change is committed then."""
    if error.errno not in _LOST or not proc.is_shared(home):
        return None
    return TakenOver(f"the file server of `{home}` could not be reached ({error.strerror}), so the locks may be lost")


def names(path: str, *, waits: bool) -> list[str] | None:
    """What is in a directory, by its path: what was open may be so no more. None if it cannot be listed.

    `waits`: until the file server answers, or for a minute.
    """
    end = _now() + (_ANSWERS if waits else 0)
    while True:
        with suppress(UnusableEnvironment):
            return fs.names(path)
        if _now() >= end:
            return None
        _sleep(0.5)


def is_taken_over(directories: OpenDirectories) -> bool:
    """Whether another process undoes what this one has begun to do, or to undo, or is through with it."""
    identifier = directories.journal.identifier
    try:
        private, state = directories.private("").parent, directories.state("").parent
        if {f"{identifier}{suffix}" for suffix in JOURNALS}.isdisjoint(fresh_names(state.path, state.fd)):
            return True
        newest = max(_numbers(fresh_names(private.path, private.fd)), default=0)
        return newest > max(_numbers(directories.asides(directories.journal.parts[0])), default=0)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def take_away(directories: OpenDirectories) -> None:
    """Leave the process of a transaction, and each that took it over before, nothing that it could still move.

    Raises `Superseded` if another process takes it over from this one.
    """
    for number, part in enumerate(directories.journal.parts):
        private = directories.base(part)
        if private is None:
            continue
        names = fresh_names(private.path, private.fd)
        aside = f"{ASIDE}{1 + max(_numbers(names), default=0)}"
        like = private.status()
        try:
            fs.make_directory(private, aside, 0o700)
        except FileExistsError as error:
            raise Superseded from error
        directories.use_aside(part, aside, directories.asides(part))
        attributes.set_access(private, aside, like.st_mode & 0o777, group=like.st_gid)
        places = {each.staged: str(n) for n, each in enumerate(directories.journal.operations) if each.part == number}
        places.pop("", None)
        with private.child(aside) as destination:
            while left := [name for name in names if name in (STAGE, TRASH) or _number(name) < _number(aside)]:
                is_moved = False
                for name in left:
                    is_moved |= _empty(private, name, destination, places)
                if not is_moved:
                    break
                names = fresh_names(private.path, private.fd)
        names = fresh_names(private.path, private.fd)
        if max(_numbers(names), default=0) != _number(aside):
            raise Superseded
        directories.use_aside(part, aside)
        for gone in {STAGE, TRASH, *(f"{ASIDE}{number}" for number in range(int(_number(aside))))} - {*names}:
            directories.forget(f"{part}/{gone}")


def _number(name: str) -> float:
    number = name.removeprefix(ASIDE)
    return int(number) if name.startswith(ASIDE) and number.isdecimal() else float("inf")


def _numbers(names: Iterable[str]) -> Iterator[int]:
    return (int(number) for number in map(_number, names) if number != float("inf"))


def _empty(private: Directory, name: str, destination: Directory, places: dict[str, str]) -> bool:
    """Move what is in a directory away, and remove it; False if nothing could be done."""
    is_staged, above = name == STAGE, {path[: at + 1] for path in places for at, c in enumerate(path) if c == "/"}

    def take(parent: Directory, entry: str, below: str) -> bool:
        with parent.child(entry) as directory:
            is_moved = False
            for each in fresh_names(directory.path, directory.fd):
                path = f"{below}{each}"
                new = f"s{places[path]}" if path in places else f"x{os.urandom(8).hex()}"
                with suppress(FileNotFoundError):
                    if is_staged and f"{path}/" in above:
                        is_moved |= take(directory, each, f"{path}/")
                        continue
                    new = new if is_staged else f"t{each}" if name == TRASH else each
                    try:
                        # Where this host knows a directory by another path, the kernel cannot both learn and rename it.
                        directory.stat(each)
                        fs.move(directory, each, destination, new)
                        is_moved = True
                    except OSError as error:
                        # A directory of another user of the group, which only that user can move to another one.
                        if error.errno not in _MAY_NOT:
                            raise
        try:
            fs.remove_directory(parent, entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return is_moved
        return True

    with suppress(FileNotFoundError, NotADirectoryError):
        return take(private, name, "")
    return True
