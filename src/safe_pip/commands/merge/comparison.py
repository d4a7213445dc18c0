"""A staged tree compared with a prefix, file by file: what is new, what exists already, what is in conflict.

Only reads. A file exists already if content, permissions and, for root, owner are the same. Times do not count, so that
a file that was built again and did not change is left alone. Bytecode in `__pycache__` is left out: the import system
makes it again.
"""

import enum
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from safe_pip.environment.environment import Prefix
from safe_pip.environment.snapshot import Ownership
from safe_pip.errors import Unmergeable
from safe_pip.locking.state_directory import NAME
from safe_pip.records import RECORD, RealPaths, is_bytecode, project_of

_CHUNK = 1 << 20
_DEEPEST = 256
"""How many directories may lie in each other. Walking through them takes as many frames of the interpreter's stack."""
_INFO = (".dist-info", ".egg-info")


class Verdict(enum.Enum):
    """What is to be done with something staged."""

    NEW = "new"
    SAME = "same"
    OURS = "ours"
    """It takes the place of a file of the distribution that it replaces."""
    CONFLICT = "conflict"


class Item(NamedTuple):
    """Something staged: `path` relative to the staged tree, `live` its place (absolute, parents resolved).

    `seen` is what is at that place, None for nothing; `target` the text of a symbolic link.
    """

    path: str
    live: str
    status: os.stat_result
    verdict: Verdict
    seen: os.stat_result | None = None
    target: str = ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class Replaced(NamedTuple):
    """A distribution that is there, and which a staged one replaces: all its files, and those that lie elsewhere."""

    project: str
    tree: str
    files: frozenset[str]
    outside: tuple[str, ...]


class Comparison(NamedTuple):
    """What is staged, parents before what is in them, and which distributions it replaces.

    `projects` are all that are staged, by the staged directory of their metadata. `conflicts` are the places of files
    with other content, each with the distribution that owns it.
    """

    items: tuple[Item, ...]
    replaced: list[Replaced]
    projects: Mapping[str, str]
    conflicts: Mapping[str, str | None]


def compare(staged: str, prefix: Prefix) -> Comparison:
    """Compare the directory `staged` with a prefix; raises `Unmergeable` for what no merge can put there."""
    with reading():  # too long a path, or a link that leads to itself
        items = list(_once(staged, _walk(staged, "", str(prefix.path))))
        projects, replaced = _distributions(staged, items, prefix)
    owned = {path for each in replaced for path in each.files}
    going = tuple(os.path.join(path, "") for path in owned if path.endswith(_INFO))
    for number, item in enumerate(items):
        if item.seen is not None and not item.is_directory and (item.live in owned or item.live.startswith(going)):
            items[number] = item._replace(verdict=Verdict.OURS)
    ownership = Ownership(map(str, prefix.trees), owned)
    conflicts = {item.live: ownership.owner(item.live) for item in items if item.verdict is Verdict.CONFLICT}
    return Comparison(tuple(items), replaced, projects, conflicts)


def _walk(staged: str, below: str, live: str, *, is_there: bool = True) -> Iterator[Item]:
    """Everything in a staged directory, which is to be at `live`; whether that is there already."""
    directory = os.path.join(staged, below)
    for name in sorted(os.listdir(directory)):
        path = os.path.join(below, name)
        if name == NAME or name.startswith(f"{NAME}-") or is_bytecode(path):
            continue
        if path.count(os.sep) > _DEEPEST:
            raise Unmergeable(f"`{directory}` lies too deep")
        status = os.lstat(os.path.join(staged, path))
        place = os.path.join(live, name)
        seen = _status(place) if is_there else None
        if stat.S_ISDIR(status.st_mode):
            is_entered = seen is not None and os.path.isdir(place)
            if is_entered:
                place = os.path.realpath(place)
                seen = os.lstat(place)
            yield Item(path, place, status, Verdict.SAME if is_entered else Verdict.NEW, seen)
            yield from _walk(staged, path, place, is_there=is_entered)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            target = os.readlink(os.path.join(staged, path)) if stat.S_ISLNK(status.st_mode) else ""
            item = Item(path, place, status, Verdict.NEW, seen, target)
            yield item._replace(verdict=_verdict(os.path.join(staged, path), item))
        else:
            raise Unmergeable(f"`{os.path.join(staged, path)}` is neither a file, a directory nor a symbolic link")


def _once(staged: str, items: Iterator[Item]) -> Iterator[Item]:
    """Each file once: through a link in the prefix two staged files may have the same place."""
    found: dict[str, Item] = {}
    for item in items:
        other = found.setdefault(item.live, item) if not item.is_directory else item
        if other is item:
            yield item
            continue
        one, two = os.path.join(staged, other.path), os.path.join(staged, item.path)
        if item.target != other.target or not (item.target or _is_same(one, other.status, two, item.status)):
            raise Unmergeable(f"`{one}` and `{two}` are to be at the same place, `{item.live}`")


def _verdict(source: str, item: Item) -> Verdict:
    if item.seen is None or (stat.S_ISDIR(item.seen.st_mode) and not item.target):
        return Verdict.NEW  # over a directory, the plan of the merge is refused
    if item.target and stat.S_ISDIR(item.seen.st_mode):
        # `lib64 -> lib`, where `lib` leads to the directory `lib64`: the link leads there already.
        leads_to = os.path.realpath(os.path.join(os.path.dirname(item.live), item.target))
        return Verdict.SAME if leads_to == item.live else Verdict.NEW
    if item.target:
        is_same = stat.S_ISLNK(item.seen.st_mode) and os.readlink(item.live) == item.target
    else:
        is_same = _is_same(source, item.status, item.live, item.seen)
    return Verdict.SAME if is_same else Verdict.CONFLICT


def _is_same(source: str, status: os.stat_result, live: str, seen: os.stat_result) -> bool:
    if not stat.S_ISREG(seen.st_mode) or status.st_size != seen.st_size:
        return False
    mode = stat.S_IMODE(status.st_mode)
    if sys.platform != "win32":
        if os.geteuid() == 0:
            if (status.st_uid, status.st_gid) != (seen.st_uid, seen.st_gid):
                return False
        else:  # setuid and setgid are not passed on with a file of another user
            mode &= ~(stat.S_ISUID if status.st_uid != seen.st_uid else 0)
            mode &= ~(stat.S_ISGID if status.st_gid != seen.st_gid else 0)
    if mode != stat.S_IMODE(seen.st_mode) or _attributes(source) != _attributes(live):
        return False
    with open(source, "rb") as one, open(live, "rb") as other:
        while chunk := one.read(_CHUNK):
            if chunk != other.read(_CHUNK):
                return False
    return True


def _attributes(path: str) -> dict[str, bytes]:
    """The extended attributes that a copy keeps, for a user who may set them."""
    if sys.platform != "linux":
        return {}
    found = {}
    with suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith("user.") or (name == "security.capability" and os.geteuid() == 0):
                found[name] = os.getxattr(path, name)
    return found


def _distributions(staged: str, items: list[Item], prefix: Prefix) -> tuple[dict[str, str], list[Replaced]]:
    """The projects that are staged in a tree, and what they replace: what is there of them in another state."""
    paths, projects, replaced = RealPaths(), dict[str, str](), list[Replaced]()
    found: dict[tuple[str, str], str] = {}
    same = {item.path for item in items if item.verdict is Verdict.SAME}
    for item in items:
        tree, info = os.path.split(item.live)
        if not item.is_directory or not info.endswith(".dist-info") or not prefix.is_tree(tree):
            continue
        project = projects[item.path] = project_of(info)
        other = found.setdefault((tree, project), item.path)
        if other != item.path:
            raise Unmergeable(f"`{staged}` holds `{project}` twice, in `{other}` and in `{item.path}`")
        names = sorted(os.listdir(tree)) if os.path.isdir(tree) else []
        old = [name for name in names if name.endswith(_INFO) and project_of(name) == project]
        # A file that was changed since in one that stays is in conflict like any other.
        if not old or (old == [info] and os.path.join(item.path, RECORD) in same):
            continue
        listed: set[str] = set()
        for path in (os.path.join(tree, name) for name in old):
            if path.endswith(".dist-info") and not os.path.lexists(os.path.join(path, RECORD)):
                raise Unmergeable(
                    f"`{project}` is there in `{path}`, which has no RECORD: nothing says which files it has"
                )
            listed |= {path, *paths.files_of(path)}
        files = frozenset(path for path in listed if path.startswith(os.path.join(prefix.path, "")))
        replaced.append(Replaced(project, tree, files, tuple(sorted(listed - files))))
    return projects, replaced


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def reading(path: str = "") -> Iterator[None]:
    """Within, what cannot be read that is to be compared or copied raises `Unmergeable`."""
    try:
        yield
    except OSError as error:
        raise Unmergeable(f"`{path or os.fsdecode(error.filename or '')}` cannot be read: {error.strerror}") from error
