"""A disk in memory, plans carried out and undone on it, and what a merge has to come to, said in the plainest way."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from safe_pip.fs.proc import Volume
from safe_pip.merge.merge import Situation
from safe_pip.merge.plan import Kind, Operation, Plan, Seen
from safe_pip.merge.tree import FILE, LINK, Entry, join
from safe_pip.records import is_bytecode

TREE = "/v/site"
METADATA = ("RECORD", "METADATA", "PKG-INFO")
ROOTS = (TREE, "/v/bin", "/v")
SHARED = "/v/share"
# Where there may be a symbolic link to a directory, and where it may lead.
ALIASES = ("/v/alias", f"{TREE}/alias", f"{TREE}/a/alias", f"{TREE}/b/alias", f"{SHARED}/alias")
TARGETS = (SHARED, TREE, f"{TREE}/b", f"{TREE}/a", f"{TREE}/a/b", f"{TREE}/a/data/b")

Files = Mapping[str, str]
"""Content by absolute path."""

Links = Mapping[str, str]
"""Where symbolic links lead, by absolute path; no path has a link in it."""


class Directory(dict[str, "Directory | str | Alias"]):
    """Names and what they name; a file is its content."""

    mode = stat.S_IFDIR | 0o755
    volume: Volume | None = None
    """Other than that of the directory which holds it, if something is mounted there."""


class Alias(NamedTuple):
    """A symbolic link to a directory."""

    target: str


Node = Directory | str | Alias


class Disk:
    """The live files, and for each part the staged and the discarded files."""

    def __init__(
        self,
        files: Files,
        staged: Files,
        *,
        is_mounted: bool = False,
        aliases: Links = MappingProxyType({}),
        going: Collection[str] = (),
    ) -> None:
        self.live = Directory()
        self.stages = [Directory(), Directory()]
        self.trash: list[Directory] = [Directory(), Directory()]
        for path in (TREE, "/v/bin"):
            directory_at(self.live, path)
        for alias, target in aliases.items():
            directory_at(self.live, target)
            write(self.live, alias, Alias(target))
        for path, content in files.items():
            write(self.live, path, content)
        if is_mounted:
            directory_at(self.live, SHARED).volume = (2, 0)
        links = staying(aliases, going)
        for path, content in staged.items():
            write(self.stages[int(is_mounted and resolved(path, links).startswith(SHARED + "/"))], path, content)

    def situation(self, foreign: Callable[[str], bool], **other: object) -> Situation:
        values: dict[str, object] = {
            "roots": ROOTS,
            "trees": (TREE,),
            "parts": {(1, 0): 0, (2, 0): 1},
            "entered": frozenset(),
            "can_exchange": frozenset({0, 1}),
            "uid": 0,
            "foreign": foreign,
            "read": self.read,
        }
        return Situation(**{**values, **other})  # type: ignore[arg-type]

    def trees(self) -> list[tuple[int, Entry, Entry]]:
        """What `merge` is given."""
        live = self.entry(self.live, "/", (1, 0))
        return [
            (part, self.entry(stage, f"/stage{part}", (part + 1, 0)), live) for part, stage in enumerate(self.stages)
        ]

    def entry(self, node: Node, path: str, volume: Volume) -> Entry:
        if isinstance(node, Alias):
            found = at(self.live, node.target)
            if not isinstance(found, Directory):
                return LINK
            return self.entry(found, node.target, self.volume(node.target))._replace(target=node.target)
        if isinstance(node, str):
            return FILE
        inside = node.volume or volume
        return Entry(
            node.mode,
            path,
            {name: self.entry(child, join(path, name), inside) for name, child in node.items()},
            # A merge does not look at everything in a tree.
            is_whole=path not in (TREE, "/v", "/"),
            inode=id(node),
            inside=inside,
        )

    def volume(self, path: str) -> Volume:
        """That of the directory which a live one lies in."""
        above = [at(self.live, each) for each in parents(path)]
        return next((node.volume for node in above if isinstance(node, Directory) and node.volume), (1, 0))

    def read(self, path: str) -> Seen:
        for part, stage in enumerate(self.stages):
            if path.startswith(f"/stage{part}/"):
                content = at(stage, path.removeprefix(f"/stage{part}"))
                return Seen(stat.S_IFREG | 0o644, len(str(content)), 2 * 10**18)
        return Seen(stat.S_IFREG | 0o644, len(str(at(self.live, path))), 10**18)

    def files(self) -> dict[str, str]:
        """All that is live."""
        return dict(walk(self.live, ""))

    def directories(self) -> set[str]:
        return set(walk_directories(self.live, ""))


def resolved(path: str, links: Links) -> str:
    """Where something at `path` is in truth."""
    for alias, target in links.items():
        if path.startswith(alias + "/"):
            return resolved(target + path.removeprefix(alias), links)
    return path


def at(root: Directory, path: str) -> Node | None:
    node: Node | None = root
    for name in path.strip("/").split("/"):
        node = node.get(name) if isinstance(node, Directory) else None
    return node


def directory_at(root: Directory, path: str) -> Directory:
    """The directory, made if it is missing."""
    node = root
    for name in path.strip("/").split("/"):
        child = node.setdefault(name, Directory())
        assert isinstance(child, Directory)
        node = child
    return node


def write(root: Directory, path: str, content: str | Alias) -> None:
    parent, _, name = path.rpartition("/")
    directory_at(root, parent)[name] = content


def walk(node: Directory, path: str) -> Iterator[tuple[str, str]]:
    for name, child in node.items():
        if isinstance(child, Directory):
            yield from walk(child, f"{path}/{name}")
        else:
            yield f"{path}/{name}", child if isinstance(child, str) else f"-> {child.target}"


def walk_directories(node: Directory, path: str) -> Iterator[str]:
    for name, child in node.items():
        if isinstance(child, Directory):
            yield f"{path}/{name}"
            yield from walk_directories(child, f"{path}/{name}")


def frozen(node: Node) -> object:
    """Equal for equal trees, modes included, and not changed with them."""
    if isinstance(node, Directory):
        return node.mode, tuple(sorted((name, frozen(child)) for name, child in node.items()))
    return node


# Carrying out and undoing. As strict as the calls of the system: nothing is overwritten that is not named.


def make_links(plan: Plan, disk: Disk) -> None:
    for source, staged, _ in plan.links:
        part = int(staged.removeprefix("/stage")[0])
        path = staged.removeprefix(f"/stage{part}")
        origin = disk.stages[int(source[6])] if source.startswith("/stage") else disk.live
        content = at(origin, source[7:] if source.startswith("/stage") else source)
        assert isinstance(content, (str, Alias))
        assert at(disk.stages[part], path) is None
        write(disk.stages[part], path, content)


def apply(plan: Plan, disk: Disk) -> None:
    for operation in undoable(plan):
        do(plan, disk, operation)


def undo(plan: Plan, disk: Disk) -> None:
    for operation in reversed(undoable(plan)):
        undo_one(plan, disk, operation)


def undoable(plan: Plan) -> list[Operation]:
    return [each for each in plan.operations if not each.kind.is_late]


def emptied(plan: Plan) -> list[str]:
    return [f"{plan.roots[each.root]}/{each.path}" for each in plan.operations if each.kind is Kind.TIDY]


def clean_up(plan: Plan, disk: Disk) -> None:
    """The operations after the commit point."""
    for path in emptied(plan):
        parent, name = place(disk.live, path)
        assert parent.pop(name) == {}


def place(root: Directory, path: str) -> tuple[Directory, str]:
    above, _, name = path.rstrip("/").rpartition("/")
    parent = at(root, above) if above.strip("/") else root
    assert isinstance(parent, Directory)
    return parent, name


def places(plan: Plan, disk: Disk, operation: Operation) -> tuple[Directory, str, Directory, str, Directory]:
    parent, name = place(disk.live, f"{plan.roots[operation.root]}/{operation.path}")
    stage, staged = place(disk.stages[operation.part], f"/{operation.staged}")
    return parent, name, stage, staged, disk.trash[operation.part]


def do(plan: Plan, disk: Disk, operation: Operation) -> None:
    parent, name, stage, staged, trash = places(plan, disk, operation)
    kind = operation.kind
    if kind is Kind.MODE:
        found = parent[name]
        assert isinstance(found, Directory)
        assert operation.new is not None
        found.mode = operation.new.mode
        return
    if operation.old is not None:
        assert stat.S_ISDIR(operation.old.mode) == isinstance(parent[name], Directory)
    if operation.new is not None:
        assert stat.S_ISDIR(operation.new.mode) == isinstance(stage[staged], Directory)
    assert operation.trash not in trash
    if kind is Kind.NEW:
        assert name not in parent
        parent[name] = stage.pop(staged)
    elif kind is Kind.FILE:
        assert not isinstance(parent[name], Directory)
        assert not isinstance(stage[staged], Directory)
        trash[operation.trash] = parent[name]
        parent[name] = stage.pop(staged)
    elif kind is Kind.EXCHANGE:
        assert isinstance(parent[name], Directory)
        assert isinstance(stage[staged], Directory)
        parent[name], stage[staged] = stage[staged], parent[name]
    else:
        trash[operation.trash] = parent.pop(name)
        if kind is Kind.SWAP:
            parent[name] = stage.pop(staged)


def undo_one(plan: Plan, disk: Disk, operation: Operation) -> None:
    parent, name, stage, staged, trash = places(plan, disk, operation)
    kind = operation.kind
    if kind is Kind.MODE:
        found = parent[name]
        assert isinstance(found, Directory)
        assert operation.old is not None
        found.mode = operation.old.mode
    elif kind is Kind.EXCHANGE:
        parent[name], stage[staged] = stage[staged], parent[name]
    else:
        if kind is not Kind.REMOVE:
            stage[staged] = parent.pop(name)
        if kind is not Kind.NEW:
            parent[name] = trash.pop(operation.trash)


# What it has to come to.


def expected(live: Files, aliases: Links, going: Collection[str], staged: Files) -> dict[str, str]:
    """All files but bytecode after `staged` is merged. Removals happen before staged files follow any link."""
    links = staying(aliases, going)
    result = {path: content for path, content in live.items() if not goes(path, going) and not is_bytecode(path)}
    result.update({path: f"-> {target}" for path, target in links.items()})
    result.update({resolved(path, links): content for path, content in staged.items() if not is_bytecode(path)})
    return result


def staying(aliases: Links, going: Collection[str]) -> dict[str, str]:
    """The links that do not go."""
    return {path: target for path, target in aliases.items() if not goes(path, going)}


def goes(path: str, going: Collection[str]) -> bool:
    """Whether a file goes: by itself, with a directory, or with the distribution that its directory belongs to."""
    named = {path, *parents(path)} - {*ROOTS}
    infos = [above for above in named if above.endswith(".dist-info")]
    return not named.isdisjoint(going) or any(f"{info}/{name}" in going for info in infos for name in METADATA)


def is_below(path: str, directory: str) -> bool:
    return path.startswith(f"{directory}/")


def is_possible(files: Collection[str]) -> bool:
    """Whether no file lies where another needs a directory."""
    return not any(above in files for path in files for above in parents(path))


def parents(path: str) -> Iterator[str]:
    while "/" in path[1:]:
        path = path.rpartition("/")[0]
        yield path


def holding_data(files: Collection[str]) -> set[str]:
    """The directories in which, or below which, there is a file that is no bytecode."""
    return {above for path in files if not is_bytecode(path) for above in parents(path)}


def live_paths(plan: Plan) -> list[str]:
    return [f"{plan.roots[each.root]}/{each.path}" for each in undoable(plan) if each.kind is not Kind.MODE]
