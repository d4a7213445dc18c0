"""What the ancestors of this process hold: it is inherited, and never waited for.

If child programs of a holder may run safe-pip, the holder makes a private directory and names it in SAFE_PIP_HELD. In
it are `alive`, locked as long as the rest is true; `commit` and its gate, which child programs take in place of the
commit locks of the holder; and `held`, the list of its locks. No pid is tested, so forging one gains nothing.

If the variable was dropped (tox, `env -i`, sudo), the holders in /proc/locks are compared with the ancestors.
"""

import contextlib
import functools
import json
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import NestingRefused, UnusableEnvironment
from safe_pip.fs import proc
from safe_pip.locking import flock, holders, state_directory
from safe_pip.locking.flock import Descriptor, Identity
from safe_pip.locking.holders import Entry, Holder
from safe_pip.locking.order import Rank, Request

VARIABLE = "SAFE_PIP_HELD"

_PREFIX = "safe-pip-held-"
_ALIVE, _COMMIT, _COMMIT_GATE, _LIST = "alive", "commit", "commit.gate", "held"
_OLD = 3600.0
# Linux and macOS close the descriptors of a killed process from the highest one down (measured). `alive` must be free
# before any lock is, so its number is above all of them.
_HIGH_DESCRIPTOR = 900


class Claim(NamedTuple):
    """One lock that an ancestor holds."""

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
            for name in (_ALIVE, _COMMIT, _COMMIT_GATE):
                fs.write(self.path / name, b"")
        self._alive = Descriptor(self.path / _ALIVE, writable=True)  # the temporary directory may be on NFS
        self._alive.raise_to(_HIGH_DESCRIPTOR)
        flock.try_lock(self._alive, exclusive=True)
        self._before: str | None = None
        self._is_published = False

    def publish(self, claims: Iterable[Claim]) -> None:
        """Write down what is held now, and name the directory in `os.environ`."""
        self._before = os.environ.get(VARIABLE)
        listed = [[claim.rank.value, claim.exclusive, list(claim.identity), str(claim.path)] for claim in claims]
        content = {"pid": os.getpid(), "outer": self._before, "locks": listed}
        with _room_to_write():
            fs.write(self.path / _LIST, json.dumps(content).encode())
        os.environ[VARIABLE] = str(self.path)
        self._is_published = True

    def close(self) -> bool:
        """End all claims and remove the directory, before any lock is let go; False in a forked child."""
        if self._alive.fd < 0:
            return False
        self._alive.close()
        if self._is_published:
            self._is_published = False
            if self._before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = self._before
        fs.remove_tree(self.path)
        return True

    def note(self) -> bytes:
        """The content of the `owner` note. It leads a descendant that lost the variable to this directory."""
        content = {**proc.own_note(), "start": proc.start_ticks(os.getpid()), "held": str(self.path)}
        return json.dumps(content).encode()


@contextlib.contextmanager
def _room_to_write() -> Iterator[None]:
    """Within, errors become one that names the temporary directory (`tempfile` raises `FileNotFoundError` for none)."""
    try:
        yield
    except OSError as error:
        raise UnusableEnvironment(
            f"cannot write to a temporary directory: {error.strerror}",
            hint="Make room, or set TMPDIR to a directory that can be written",
        ) from error


@functools.cache
def _sweep() -> None:
    """Once per process, remove what killed holders left in the temporary directory. A new one may not be locked yet."""
    for path in fs.temporary_directory().glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = os.stat(path, follow_symlinks=False)
            is_ours = status.st_uid == os.getuid() if hasattr(os, "getuid") else True
            if is_ours and time.time() - status.st_mtime > _OLD and not flock.is_locked(path / _ALIVE):
                fs.remove_tree(path)


def noted(path: Path) -> Holder | None:
    """The process that left this `owner` note; for messages."""
    try:
        pid, command, since = proc.read_note(json.loads(path.read_bytes()))
        return Holder(pid, True, command, since)
    except (OSError, ValueError, LookupError, TypeError):
        return None


class Inherited(NamedTuple):
    """What one ancestor's directory says."""

    directory: Path
    claims: tuple[Claim, ...]
    outer: str | None
    pid: int
    """Only for the order of ancestors among each other."""

    def is_alive(self) -> bool:
        """Whether all of it is still true."""
        return flock.is_locked(self.directory / _ALIVE)


class ObservedClaim(NamedTuple):
    """A lock that /proc/locks shows with an ancestor, or with a descriptor that this process inherited."""

    claim: Claim
    file: str
    pid: int

    def is_alive(self) -> bool:
        """Whether this process or an ancestor still has it."""
        family = holders.held_by_ancestors(flock.own_descriptors())
        return any(entry.file == self.file and entry.exclusive == self.claim.exclusive for entry in family)


ClaimSource = Inherited | ObservedClaim
"""The ancestor whose life a claim depends on."""


def _load(directory: Path, trusted: Collection[int]) -> Inherited | None:
    """Read an ancestor's directory; None if it is not private to one of the trusted users, or is damaged."""
    try:
        status = os.stat(directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in trusted or status.st_mode & 0o077:
            return None
        content = json.loads((directory / _LIST).read_bytes())
        claims = tuple(
            Claim(Rank(rank), bool(exclusive), (int(identity[0]), int(identity[1])), Path(path))
            for rank, exclusive, identity, path in content["locks"]
        )
        return Inherited(directory, claims, content["outer"], int(content["pid"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


class Ancestry:
    """What is inherited, innermost ancestor first: the nearest one decides what is allowed below it."""

    def __init__(self, variable: str | None) -> None:
        self._chain: list[Inherited] = []
        self._seen: dict[Identity, ObservedClaim] = {}
        self._user = os.getuid() if hasattr(os, "getuid") else 0
        self._follow(variable, {self._user})

    def _follow(self, name: str | None, trusted: Collection[int]) -> bool:
        known = {str(inherited.directory) for inherited in self._chain}
        before = len(self._chain)
        while name and name not in known:
            known.add(name)
            inherited = _load(Path(name), trusted)
            if inherited is None:
                break
            self._chain.append(inherited)
            name = inherited.outer
        family = proc.ancestors()
        self._chain.sort(key=lambda each: family.index(each.pid) if each.pid in family else -1)
        return len(self._chain) > before

    def refresh(self) -> None:
        """Forget ancestors that are dead."""
        self._chain = [inherited for inherited in self._chain if inherited.is_alive()]
        self._seen = {identity: seen for identity, seen in self._seen.items() if seen.is_alive()}

    def _find(self, identity: Identity) -> tuple[Claim, ClaimSource] | None:
        for inherited in self._chain:
            for claim in inherited.claims:
                if claim.identity == identity:
                    return claim, inherited
        seen = self._seen.get(identity)
        return (seen.claim, seen) if seen else None

    def resolve(self, request: Request, identity: Identity) -> tuple[Request | None, ClaimSource | None]:
        """What is left to be locked of a request whose file is `identity`, and the ancestor on which that depends.

        None if the lock is inherited; another request where a file in an ancestor's directory takes its place. Raises
        `NestingRefused` for what an ancestor's lock forbids.
        """
        found = self._find(identity)
        if found is None:
            return request, None
        claim, source = found
        if request.exclusive and not claim.exclusive:
            raise self._refusal(request, source)
        # An outer ancestor may have the exclusive lock, and a nearer one only limit what is done below it.
        if not claim.exclusive and not any(each.exclusive and each.identity == identity for each in self._claims()):
            # Behind the gate another process may wait until that ancestor ends.
            return request._replace(gate=None), source
        if request.rank is not Rank.COMMIT:
            return None, source
        if isinstance(source, ObservedClaim):
            raise self._refusal(request, source)
        path, gate = source.directory / _COMMIT, source.directory / _COMMIT_GATE
        return request._replace(path=path, gate=gate, needs_writing=True), source

    def refuse_if_held(self, request: Request, identity: Identity) -> None:
        """Raise `NestingRefused` if an ancestor holds the lock that takes the place of another one."""
        if identity in self._seen:
            raise self._refusal(request, self._seen[identity])

    def _claims(self) -> list[Claim]:
        listed = [claim for inherited in self._chain for claim in inherited.claims]
        return listed + [seen.claim for seen in self._seen.values()]

    @staticmethod
    def _refusal(request: Request, source: ClaimSource) -> NestingRefused:
        by = ""
        if isinstance(source, ObservedClaim) and (command := proc.command(source.pid)):
            by = f" by `{command}` (pid {source.pid})"
        if request.rank is Rank.COMMIT:
            return NestingRefused(
                f"the commit lock of `{request.shown}` is held{by}, which this command is part of",
                hint="Let that command hold the lock through `safe-pip run --exclusive`",
            )
        return NestingRefused(
            f"`{request.shown}` is kept as it is{by} for the command that this one is part of, "
            "so nothing there can be replaced or removed",
            hint="Do it before or after that command, or run that command under `safe-pip run --exclusive`",
        )

    def learn(self, wanted: Sequence[tuple[Request, Descriptor]]) -> bool:
        """Look in /proc/locks for what ancestors hold of `wanted`; True if that was not known."""
        family = {entry.file: entry for entry in holders.held_by_ancestors(flock.own_descriptors())}
        if not family:
            return False
        before = len(self._chain) + len(self._seen)
        for request, descriptor in wanted:
            entry = family.get(proc.kernel_name(descriptor.fd))
            if entry is not None and self._find(descriptor.identity) is None:
                is_noted = request.rank is Rank.COMMIT and entry.exclusive
                if not (is_noted and self._follow_note(request.path, entry.pid)):
                    self._observe(request.rank, request.path, descriptor, entry)
        # If an ancestor is uv, its lock on an environment counts for the order.
        for path in {request.shown / ".lock" for request, _ in wanted}:
            with contextlib.suppress(FileNotFoundError, UnusableEnvironment):
                descriptor = Descriptor(path)
                entry = family.get(proc.kernel_name(descriptor.fd))
                if entry is not None and entry.exclusive and self._find(descriptor.identity) is None:
                    self._observe(Rank.UV, path, descriptor, entry)
                descriptor.close()
        return len(self._chain) + len(self._seen) > before

    def _observe(self, rank: Rank, path: Path, descriptor: Descriptor, entry: Entry) -> None:
        claim = Claim(rank, entry.exclusive, descriptor.identity, path)
        self._seen[descriptor.identity] = ObservedClaim(claim, entry.file, entry.pid)

    def _follow_note(self, commit: Path, pid: int) -> bool:
        """Find the directory of the ancestor that holds this commit lock through its `owner` note."""
        try:
            note = json.loads(commit.with_name(state_directory.OWNER).read_bytes())
            if note["pid"] != pid or note["start"] != proc.start_ticks(pid):
                return False
            owner = proc.owner_of(pid)
            return owner is not None and self._follow(str(note["held"]), {self._user, owner})
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def breaks_order(self, rank: Rank, identity: Identity) -> bool:
        """Whether a wait for this lock comes out of order, with the locks of ancestors counted.

        A commit lock below a mutex does too: another family may hold that commit lock and want the mutex.
        """
        return any(
            (claim.rank, claim.identity) > (rank, identity) or (claim.rank is Rank.MUTEX and rank is Rank.COMMIT)
            for claim in self._claims()
        )
