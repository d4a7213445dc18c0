"""What the ancestors of this process hold: it is inherited, and never waited for.

In a program that imports safe-pip a thread also inherits what it holds already, and not what other threads hold.

A holder whose child programs may run safe-pip makes a private directory and names it in SAFE_PIP_HELD. In it are
`alive`, locked as long as the rest is true; `held`, the list of its locks; and `keep`, `environment` and `commit`, with
their gates: stand-ins that child programs take in place of the holder's exclusive locks, so that they exclude each
other.

If the variable was dropped (tox, `env -i`, sudo), the holders in /proc/locks are compared with the ancestors.
"""

import contextlib
import functools
import itertools
import json
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import NestingRefused, UnusableEnvironment
from safe_pip.fs import Directory, proc
from safe_pip.locking import flock, holders, state_directory
from safe_pip.locking.flock import Descriptor, Identity
from safe_pip.locking.holders import Holder
from safe_pip.locking.order import Rank, Request

VARIABLE = "SAFE_PIP_HELD"
_PREFIX = "safe-pip-held-"
_ALIVE, _LIST = "alive", "held"
# What child programs take in place of an exclusive lock, and its gate.
_STAND_INS = {
    Rank.KEEP: ("keep", "keep.gate"),
    Rank.ENVIRONMENT: ("environment", "environment.gate"),
    Rank.COMMIT: ("commit", "commit.gate"),
}
_OLD = 3600.0
# A killed process's descriptors are closed from the highest one down (measured on Linux and macOS). `alive` must be
# free before any lock is.
_HIGH_DESCRIPTOR = 900
_DAMAGED = (OSError, ValueError, LookupError, TypeError)


class Claim(NamedTuple):
    rank: Rank
    exclusive: bool
    identity: Identity
    path: Path


class ClaimsDirectory:
    """The private directory that tells child programs what this process holds; SAFE_PIP_HELD names it."""

    def __init__(self) -> None:
        with _room_to_write():
            _sweep()
            self.path = fs.make_private_directory(prefix=_PREFIX)
            for name in (_ALIVE, *itertools.chain.from_iterable(_STAND_INS.values())):
                fs.write(self.path / name, b"")
        self._alive = Descriptor(self.path / _ALIVE, writable=True)  # the temporary directory may be on NFS
        self._alive.raise_to(_HIGH_DESCRIPTOR)
        try:
            flock.try_lock(self._alive, exclusive=True)
        except UnusableEnvironment:
            self._alive.close()
            fs.remove_tree(self.path)
            raise
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._content: dict[str, object] = {}
        self._outer: str | None = None
        self._notes: list[Path] = []
        self._locked_notes: list[Descriptor] = []

    def publish(self, claims: Iterable[Claim], exclusive: Iterable[Path], shared: Iterable[Path]) -> None:
        """Write down what is held now. `os.environ` names the directory; if that is lost, the `owner` notes do.

        They are left in the state directories of what is held `exclusive`, and in those `shared` with other hosts.
        """
        listed = [[*claim[:3], str(claim.path)] for claim in claims]
        with _publishing:
            self._outer = os.environ.get(VARIABLE)
            self._content = {"pid": self._process, "locks": listed}
            self._write()
            _published.append(self)
            os.environ[VARIABLE] = str(self.path)
        shared_notes = [path / f"{os.urandom(8).hex()}{state_directory.SHARED_NOTE}" for path in shared]
        for path in (*(path / state_directory.OWNER for path in exclusive), *shared_notes):
            note = proc.own_note(str(path.parent))
            note |= {"start": proc.start_ticks(os.getpid()), "held": str(self.path)}
            # This user may only read the state directory, or another one has put a link there.
            with contextlib.suppress(OSError), Directory.open(path.parent) as state:
                fs.replace_in(state, path.name, json.dumps(note).encode(), mode=0o644)
                self._notes.append(path)
                if path in shared_notes:
                    self._lock_note(path, state)

    def _lock_note(self, path: Path, state: Directory) -> None:
        """A killed process leaves its note; that it is not locked tells so. The next shared holder removes it."""
        with contextlib.suppress(FileNotFoundError):
            self._locked_notes.append(Descriptor(path, writable=True))
            flock.try_lock(self._locked_notes[-1], exclusive=True)
        for other in _shared_notes(path.parent):
            if not flock.is_locked(other):
                fs.remove(state, other.name)

    def _write(self) -> None:
        with _room_to_write():
            fs.write(self.path / _LIST, json.dumps({**self._content, "outer": self._outer}).encode())

    def _leave_out(self, ended: "ClaimsDirectory") -> None:
        """Name the directory outside of `ended`, which another thread ends before this one."""
        if self._outer == str(ended.path) and self._process == os.getpid():
            self._outer = ended._outer
            if self._outer is not None:
                with contextlib.suppress(UnusableEnvironment):
                    self._write()

    def is_of_another_thread(self) -> bool:
        """Whether another thread of this process holds what is claimed: then it is no ancestor."""
        return self._process == os.getpid() and self._thread != threading.get_ident()

    def close(self) -> None:
        """End all claims and remove the directory, before any lock is let go; in a forked child it does nothing."""
        if self._alive.fd < 0:
            return
        self._alive.close()
        with _publishing:
            if self in _published:
                _published.remove(self)
            if os.environ.get(VARIABLE) == str(self.path):
                os.environ.pop(VARIABLE)
                if self._outer is not None:
                    os.environ[VARIABLE] = self._outer
            for each in _published:
                each._leave_out(self)
        fs.remove_tree(self.path)
        for path in self._notes:
            with contextlib.suppress(OSError), Directory.open(path.parent) as state:
                fs.remove(state, path.name)
        for descriptor in self._locked_notes:
            descriptor.close()


# Of this process and, in a forked child, of its parent. SAFE_PIP_HELD names the last one.
_published: list[ClaimsDirectory] = []
_publishing = threading.RLock()
if sys.platform != "win32":
    os.register_at_fork(
        before=_publishing.acquire, after_in_parent=_publishing.release, after_in_child=_publishing.release
    )


@contextlib.contextmanager
def _room_to_write() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"cannot write to a temporary directory: {error.strerror}"
        raise UnusableEnvironment(what, hint="Make room, or set TMPDIR to a directory that can be written") from error


def can_publish() -> bool:
    """Whether there is a temporary directory that can be written, which a `ClaimsDirectory` needs."""
    with contextlib.suppress(OSError):
        return bool(tempfile.gettempdir())
    return False


@functools.cache
def _sweep() -> None:
    """Remove what killed holders left in the temporary directory. A new one may not be locked yet."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = os.stat(path, follow_symlinks=False)
            is_old = status.st_uid == proc.user() and time.time() - status.st_mtime > _OLD
            if is_old and not flock.is_locked(path / _ALIVE):
                fs.remove_tree(path)


def noted(path: Path) -> Holder | None:
    """The process that left this `owner` note; for messages."""
    with contextlib.suppress(*_DAMAGED):
        note = proc.read_note(json.loads(path.read_bytes().partition(b"\n")[0]))
        return Holder(note.pid, True, note.command, note.since, host=note.host)
    return None


def notes(state: Path, *, commits: bool = False) -> Iterator[Holder]:
    """The processes that left a note in a state directory; with `commits` those that carry out a change there."""
    if commits:
        journals = (state / name for name in fs.readable_names(state) if name.endswith(state_directory.JOURNALS))
        locked = filter(flock.is_locked, (path.with_suffix(state_directory.OWNER_FILE) for path in journals))
    else:
        locked = filter(flock.is_locked, _shared_notes(state))
    found = (noted(path) for path in (state / state_directory.OWNER, *locked))
    yield from (each._replace(exclusive=commits or not number) for number, each in enumerate(found) if each is not None)


def _shared_notes(state: Path) -> list[Path]:
    return [state / name for name in fs.readable_names(state) if name.endswith(state_directory.SHARED_NOTE)]


class Ancestor(NamedTuple):
    """A process above this one that holds `claims`, told in its `directory`, or one, on `file`, seen in /proc/locks."""

    pid: int
    claims: tuple[Claim, ...]
    directory: Path | None = None
    outer: str | None = None  # names the directory of the next one
    file: str = ""

    def is_alive(self) -> bool:
        if self.directory is not None:
            return flock.is_locked(self.directory / _ALIVE)
        wanted = (self.file, self.claims[0].exclusive)
        return any((entry.file, entry.exclusive) == wanted for entry in holders.held_by_ancestors())


def _load(directory: Path, trusted: Collection[int]) -> Ancestor | None:
    """Read an ancestor's directory; None if it is not private to one of the trusted users, or is damaged."""
    with contextlib.suppress(*_DAMAGED):
        status = os.stat(directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) and status.st_uid in trusted and not status.st_mode & 0o077:
            content = json.loads((directory / _LIST).read_bytes())
            claims = tuple(
                Claim(Rank(rank), bool(exclusive), (int(device), int(inode)), Path(path))
                for rank, exclusive, (device, inode), path in content["locks"]
            )
            return Ancestor(int(content["pid"]), claims, directory, content["outer"])
    return None


class Ancestry:
    """What is inherited, innermost ancestor first: the nearest one decides what is allowed below it."""

    def __init__(self, variable: str | None) -> None:
        self._known: list[Ancestor] = []
        self._beside: list[Ancestor] = []  # what other threads of this process hold
        self._follow(variable, {proc.user()})

    def _follow(self, name: str | None, trusted: Collection[int]) -> bool:
        """Read the directory of this name, and those of outer ancestors; whether there was a new one."""
        known = {str(ancestor.directory) for ancestor in self._known}
        others = {str(each.path) for each in list(_published) if each.is_of_another_thread()}
        before = len(self._known)
        while name and name not in known and (ancestor := _load(Path(name), trusted)) is not None:
            known.add(name)
            (self._beside if name in others else self._known).append(ancestor)
            name = ancestor.outer
        family = proc.ancestors()
        self._known.sort(key=lambda each: (not each.directory, family.index(each.pid) if each.pid in family else -1))
        return len(self._known) > before

    def refresh(self) -> None:
        self._known = [ancestor for ancestor in self._known if ancestor.is_alive()]

    def _find(self, identity: Identity, *, exclusive: bool = False) -> tuple[Claim, Ancestor] | None:
        """The nearest claim to a lock, or the nearest one to have it exclusively."""
        found = ((claim, each) for each in self._known for claim in each.claims if claim.identity == identity)
        return next((each for each in found if each[0].exclusive or not exclusive), None)

    def resolve(self, request: Request, identity: Identity) -> tuple[Request | None, Ancestor | None]:
        """What is left to be locked of a request whose file is `identity`, and the ancestor on which that depends.

        None if the lock is inherited; a stand-in may take its place. Raises `NestingRefused`.
        """
        if (found := self._find(identity)) is None:
            beside = [claim for each in self._beside for claim in each.claims if claim.identity == identity]
            # Another thread that shares the lock may wait for this one.
            is_shared = beside and not request.exclusive and not any(claim.exclusive for claim in beside)
            return request._replace(gate=None) if is_shared else request, None
        claim, source = found
        if request.exclusive and not claim.exclusive:
            raise self._refusal(request, source)
        # An outer ancestor may have the exclusive lock, and a nearer one only limit what is done below it.
        if (outer := self._find(identity, exclusive=True)) is None:
            return request._replace(gate=None), source  # behind it another process may wait until a shared holder ends
        source = outer[1]
        if request.rank not in _STAND_INS or (request.rank is not Rank.COMMIT and source.directory is None):
            if source.directory is not None or request.also is None:
                return None, source
            return request._replace(path=request.also, gate=None, also=None), source  # the other hosts do not see it
        if source.directory is None:
            raise self._refusal(request, source)
        name, gate_name = _STAND_INS[request.rank]
        gate = source.directory / gate_name if claim.exclusive else None
        return request._replace(path=source.directory / name, gate=gate, also=None, needs_writing=True), source

    @staticmethod
    def _refusal(request: Request, source: Ancestor) -> NestingRefused:
        if source.pid == os.getpid():
            return NestingRefused(
                f"this program shares the lock on `{request.shown}`, which does not become an exclusive one",
                hint="Take the exclusive lock before the shared one, or after it",
            )
        command = proc.command(source.pid) if source.directory is None else ""
        by = f" by `{command}` (pid {source.pid})" if command else ""
        if request.rank is Rank.COMMIT:
            return NestingRefused(
                f"the commit lock of `{request.shown}` is held{by}, which this command is part of",
                hint="Let that command hold the lock through `safe-pip run --exclusive`",
            )
        return NestingRefused(
            f"`{request.shown}` is kept as it is{by} for the command that this one is part of, "
            + ("so it cannot" if request.rank is Rank.DISTRIBUTION else "so nothing there can")
            + " be replaced or removed",
            hint="Do it before or after that command, or run that command under `safe-pip run --exclusive`",
        )

    def learn(self, wanted: Sequence[tuple[Request, Descriptor]]) -> bool:
        """Look in /proc/locks for what ancestors hold of `wanted`; True if that was not known."""
        family = {entry.file: entry for entry in holders.held_by_ancestors()}
        if not family:
            return False
        before = len(self._known)

        def observe(rank: Rank, path: Path, descriptor: Descriptor, gate: Path | None = None) -> None:
            entry = family.get(proc.kernel_name(descriptor.fd))
            if entry is None or self._find(descriptor.identity) is not None:
                return
            if gate is not None and entry.exclusive:
                with contextlib.suppress(*_DAMAGED):  # the `owner` note of the holder names its directory
                    note = json.loads(gate.with_name(state_directory.OWNER).read_bytes())
                    is_its = not proc.read_note(note).host and note["pid"] == entry.pid
                    is_its = is_its and note["start"] == proc.start_ticks(entry.pid)
                    if is_its and self._follow(str(note["held"]), {proc.user(), proc.owner_of(entry.pid)}):
                        return
            claim = Claim(rank, entry.exclusive, descriptor.identity, path)
            self._known.append(Ancestor(entry.pid, (claim,), file=entry.file))

        for request, descriptor in wanted:
            observe(request.rank, request.path, descriptor, request.gate)
        # If an ancestor is uv, its lock on an environment counts for the order.
        for path in {request.shown / ".lock" for request, _ in wanted if request.rank is not Rank.DISTRIBUTION}:
            with contextlib.suppress(FileNotFoundError, UnusableEnvironment), Descriptor(path) as descriptor:
                observe(Rank.UV, path, descriptor)
        return len(self._known) > before

    def breaks_order(self, request: Request, identity: Identity) -> bool:
        """Whether a wait for this lock comes out of order, with the locks of ancestors counted.

        A commit lock below a mutex does too: another family may hold that commit lock and want the mutex. What is
        held above the ancestor of a stand-in does not count: only commands below it take the stand-in.
        """
        directories = [*(ancestor.directory for ancestor in self._known), request.path.parent]
        nearer = directories.index(request.path.parent)
        return any(
            (claim.rank, claim.identity) > (request.rank, identity)
            or (claim.rank is Rank.MUTEX and request.rank is Rank.COMMIT)
            for number, ancestor in enumerate(self._known)
            for claim in ancestor.claims
            if number < nearer or ancestor.directory is None
        )
