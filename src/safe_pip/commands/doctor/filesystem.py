"""`safe-pip doctor --filesystem DIR`: do locks and names in DIR reach other hosts as commands rely on?

Two hosts carry out one script in lockstep. Each step has a part for each host, and both learn both results: so they
come to the same verdict. They meet and talk by names alone: a message is a file that is renamed into a directory, and
the other host lists that directory until it is there.
"""

import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands.options import tell
from safe_pip.errors import LockTimeout, SafePipError, UnusableEnvironment
from safe_pip.fs import Directory, proc
from safe_pip.locking import flock, shared_files
from safe_pip.locking.flock import Descriptor
from safe_pip.messages import say

_MEETING = ".safe-pip-probe"
# In seconds: until another host comes, until its next message, until a free lock is granted, until a meeting is old.
_COMES, _ANSWERS, _GRANTED, _OLD = 60.0, 30.0, 10.0, 180.0
_ROUNDS, _FILES = 2, 50
_GLUSTER = "Run `gluster volume set VOLUME performance.stat-prefetch off`"
_OTHER = "Mount it so that each host sees at once what another one has renamed"
_now, _sleep = time.monotonic, time.sleep  # tests have a clock of their own

Action = Callable[[], object]


class Lost(Exception):
    """The other host does not come, or answers no more."""


class Failed(Exception):
    """A check failed, or one of its steps could not be carried out."""


class Pair:
    """This host and the other one, which call the same methods in the same order. One of them came first."""

    def __init__(self, place: Path, hosts: tuple[str, str], *, is_first: bool) -> None:
        self.place, self.hosts, self.is_first = place, hosts, is_first
        self._steps = self._child = 0
        self.has_left = False
        self._lock: Descriptor | None = None

    def both(self, first: Action | None = None, second: Action | None = None) -> tuple[Any, Any]:
        """Each host does its part; on return both know both results. Raises `Failed` on both hosts, or `Lost`."""
        own, said = first if self.is_first else second, None
        try:
            said = own() if own is not None else None
        except (OSError, SafePipError) as error:
            said = {"error": f"{self.hosts[not self.is_first]}: {getattr(error, 'message', error)}"}
        self.tell(said)
        heard = _await(self.place / self._message(not self.is_first), _ANSWERS)
        for each in (said, heard):
            if isinstance(each, dict):
                raise Failed(each["error"])
        return (said, heard) if self.is_first else (heard, said)

    def one(self, is_first: bool, action: Action) -> Any:
        return self.both(action)[0] if is_first else self.both(None, action)[1]

    def tell(self, said: object) -> None:
        self._steps += 1
        fs.replace(self.place / self._message(self.is_first), json.dumps(said).encode(), mode=0o644)

    def leave(self) -> None:
        """End the meeting. The first host stays until the other one has heard everything, and removes what is left."""
        self.tell(None)
        if self.is_first:
            with suppress(Lost):
                _await(self.place / self._message(False), _ANSWERS)
        self.has_left = not self.is_first

    def _message(self, is_first: bool) -> str:
        return f"{self._steps}-{'first' if is_first else 'second'}"

    def lock(self, *, exclusive: bool = True, writable: bool = True) -> bool:
        self.release()
        self._lock = Descriptor(self.place / "lock", writable=writable)
        return flock.try_lock(self._lock, exclusive=exclusive)

    def lock_in_child(self) -> bool:
        """Have a child process take the lock, which `release` kills."""
        if sys.platform == "win32":
            return False
        out, into = os.pipe()
        self._child = os.fork()
        if not self._child:
            with suppress(BaseException):
                os.write(into, b"1" * self.lock())
                signal.pause()
            os._exit(0)
        os.close(into)
        with open(out, "rb", buffering=0) as answer:
            return bool(answer.read(1))

    def wait(self) -> bool:
        return self._lock is not None and flock.wait_lock(self._lock, exclusive=True, seconds=_GRANTED)

    def release(self, *, after: float = 0.0) -> None:
        _sleep(after)
        if self._lock is not None:
            self._lock.close()
        child, self._child = self._child, 0
        if child and sys.platform != "win32":
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _await(path: Path, seconds: float) -> Any:
    """The content of a file as soon as a listing has its name; raises `Lost` if it does not come in time."""
    end = _now() + seconds
    while path.name not in fs.names(path.parent):
        if _now() >= end:
            raise Lost
        _sleep(0.01)
    return json.loads(path.read_bytes())


def _excludes(pair: Pair) -> str:
    for holder in (True, False):
        for held, wanted in ((True, True), (True, False), (False, True), (False, False)):
            pair.one(holder, partial(pair.lock, exclusive=held))
            is_granted = pair.one(not holder, partial(pair.lock, exclusive=wanted))
            pair.both(pair.release, pair.release)
            if is_granted != (not held and not wanted):
                raise Failed("both hosts had it" if is_granted else "two hosts cannot share it")
    try:
        pair.one(True, partial(pair.lock, writable=False))
    except Failed:
        return "only if it is opened for writing, as safe-pip does"
    return "also if it is opened for reading only"


def _granted(pair: Pair, lock: Callable[[Pair], bool]) -> None:
    for holder in (True, False):
        if not pair.one(holder, lambda: lock(pair)) or pair.one(not holder, pair.lock):
            raise Failed("it did not keep the other host out")
        parts: tuple[Action, Action] = (partial(pair.release, after=0.5), pair.wait)
        if not pair.both(*(parts if holder else parts[::-1]))[holder]:
            raise Failed(f"not granted within {_GRANTED:g} s")
        pair.both(pair.release, pair.release)


def _renamed(pair: Pair) -> None:
    """The names are in use meanwhile: with its `performance.stat-prefetch` GlusterFS answers with old ones then."""
    names = [f"n{number}" for number in range(6)]

    def make(place: Path) -> list[int]:
        _write(place, {f"{where}{name}/x": where for where in ("", "stage/") for name in names} | {"trash/x": ""})
        return [os.stat(place / "stage" / name / "x").st_ino for name in names]

    def rename(place: Path) -> None:
        for name in names:
            _sleep(0.05)
            fs.rename_path(place / name, place / "trash" / name)
            fs.rename_path(place / "stage" / name, place / name)

    def use(place: Path) -> None:
        for _ in range(30):
            for path, _, files in os.walk(place):
                for name in files:
                    fs.look(os.path.join(path, name))
            _sleep(0.02)

    def look(place: Path) -> list[object]:
        """What this host sees if it lists a directory before anything else, as commands do."""
        found = list[object]()
        for path in (place, place / "trash", place / "stage"):
            with Directory.open(path) as opened:
                found += map(opened.exists, names)
        files = [place / name / "x" for name in names]
        return [*found, *map(Path.read_text, files), [os.stat(file).st_ino for file in files]]

    for number in range(_ROUNDS):
        place, writer = pair.place / f"renamed{number}", number % 2 == 0
        inodes = pair.one(writer, partial(make, place))
        parts: tuple[Action, Action] = (partial(rename, place), partial(use, place))
        pair.both(*(parts if writer else parts[::-1]))
        *seen, inodes_seen = pair.one(not writer, partial(look, place))
        if seen != [True] * 12 + [False] * 6 + ["stage/"] * 6:
            raise Failed("the other host sees old names or files")
        if inodes_seen != inodes:
            raise Failed("a file has another inode number on the other host")


def _one_winner(pair: Pair) -> None:
    names = [f"taken{number}" for number in range(_FILES)]

    def take(by: str, names: Iterable[str]) -> Iterator[str]:
        with Directory.open(pair.place) as place:
            for name in names:
                with suppress(FileNotFoundError):
                    fs.move_over(place, name, place, f"{name}-{by}")
                    yield name

    pair.both(lambda: _write(pair.place, dict.fromkeys(names, "")))
    first, second = pair.both(lambda: [*take("first", names)], lambda: [*take("second", reversed(names))])
    if sorted(first + second) != sorted(names):
        raise Failed("both hosts renamed the same file, or neither did")


_CHECKS: dict[str, Callable[[Pair], str | None]] = {
    "a lock on a file keeps the other host out": _excludes,
    "a host that waits gets the lock that the other one lets go": lambda pair: _granted(pair, Pair.lock),
    "the lock of a killed process is free": lambda pair: _granted(pair, Pair.lock_in_child),
    "what one host renames, the other one sees after a listing": _renamed,
    "if both hosts rename one file, one of them succeeds": _one_winner,
}


def _write(place: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        fs.make_directories((place / name).parent)
        fs.write(place / name, content.encode(), mode=0o644)


def _meet(place: Directory, inform: Callable[[str], None]) -> Pair:
    """Find the other host; raises `LockTimeout` if none comes in time."""
    own, end, meeting = json.dumps(proc.own_note(place.path)).encode(), _now() + _COMES, Path(place.join(_MEETING))
    if (left := fs.look(meeting)) is not None and time.time() - left.st_mtime > _OLD:
        fs.remove_below(place, _MEETING)
    while _now() < end:
        try:
            fs.make_directory(place, _MEETING)
        except FileExistsError:
            with suppress(FileNotFoundError), place.child(_MEETING) as made:
                note = proc.read_note(json.loads(made.read("waiting")))
                if not note.host and proc.stat(note.pid):
                    raise UnusableEnvironment(f"a probe of this host (pid {note.pid}) waits there already") from None
                fs.move_over(made, "waiting", made, "taken")
                if note.host:
                    fs.replace(meeting / "joined", own, mode=0o644)
                    return Pair(meeting, (note.host, proc.host()[0]), is_first=False)
                fs.remove_below(place, _MEETING)  # it was killed
            _sleep(0.1)
            continue
        try:
            fs.replace(meeting / "waiting", own, mode=0o644)
            inform(f"run the same command on another host within {_COMES:g} s")
            other = proc.read_note(_await(meeting / "joined", _COMES))
            return Pair(meeting, (proc.host()[0], other.host), is_first=True)
        except BaseException as error:
            fs.remove_below(place, _MEETING)
            if not isinstance(error, Lost):
                raise
    raise LockTimeout(f"no other host came within {_COMES:g} s: nothing is known about `{place.path}`")


def _verdict(pair: Pair, place: Directory) -> dict[str, Any]:
    """Carry out all checks; on return what they found, which the first host has written down."""
    pair.both(lambda: _write(pair.place, {"lock": ""}))
    checks, remedies = list[dict[str, Any]](), dict[str, None]()
    for name, check in _CHECKS.items():
        passed, detail = True, None
        try:
            detail = check(pair)
        except Failed as failed:
            passed, detail = False, str(failed)
            names = _GLUSTER if proc.filesystem(place.path).kind == "fuse.glusterfs" else _OTHER
            remedies[names if check in (_renamed, _one_winner) else flock.remedy(Path(place.path))] = None
        pair.both(pair.release, pair.release)
        checks.append({"check": name, "passed": passed, "detail": detail})
    found = {"passed": not remedies, "date": pair.both(time.time)[0], "hosts": sorted(pair.hosts), "checks": checks}
    content = json.dumps(found := {**found, "remedies": [*remedies]}, indent=2).encode()
    pair.both(lambda: fs.replace_in(place, shared_files.VERDICT, content, mode=0o644))
    return found


def _probe(place: Directory, inform: Callable[[str], None]) -> dict[str, Any]:
    pair = _meet(place, inform)
    try:
        inform(f"{' and '.join(pair.hosts)} try what commands rely on")
        found = _verdict(pair, place)
        pair.leave()
        return found
    except Failed as failed:
        pair.leave()
        raise UnusableEnvironment(f"`{place.path}` cannot be probed: {failed}") from failed
    except (Lost, FileNotFoundError):
        other = pair.hosts[pair.is_first]
        raise LockTimeout(f"`{other}` answers no more: nothing is known about `{place.path}`") from None
    finally:
        pair.release()
        if not pair.has_left:
            fs.remove_below(place, _MEETING)


def main(options: Namespace) -> int:
    path = os.path.realpath(options.filesystem)
    document: dict[str, Any] = {"format": 1, "directory": path, "filesystem": None, "shared": proc.is_shared(path)}
    document |= {"passed": None, "date": None, "hosts": [], "checks": [], "remedies": []}
    try:
        document["filesystem"] = proc.filesystem(path).kind or None
        with Directory.open(path) as place:
            if document["shared"]:
                shared_files.check_mount(Path(path))
                document |= _probe(place, lambda text: None if options.quiet else say(text))
    except OSError as error:
        raise UnusableEnvironment(f"`{path}` cannot be probed: {error.strerror}") from error
    is_told = tell(json.dumps(document, indent=2) if options.json else "\n".join(_lines(document, options)))
    return 0 if is_told and (document["passed"] or not document["shared"]) else 1


def _lines(document: dict[str, Any], options: Namespace) -> Iterator[str]:
    where = f"`{document['directory']}` ({document['filesystem'] or 'an unknown filesystem'})"
    if not document["shared"]:
        yield f"{where} is on a filesystem of this host alone: there is nothing to probe"
        return
    for each in document["checks"]:
        if not (each["passed"] and options.quiet):
            detail = f": {each['detail']}" if each["detail"] else ""
            yield f"{'ok    ' if each['passed'] else 'FAILED'}  {each['check']}{detail}"
    if document["passed"]:
        yield f"Passed: {where} is fit for environments that {' and '.join(document['hosts'])} use at once"
    else:
        yield f"Failed: environments in {where} are refused until a probe passes"
        yield from document["remedies"]
    if not options.quiet:
        yield f"The verdict is in `{os.path.join(document['directory'], shared_files.VERDICT)}`"
