"""The environment of one interpreter, and every kind of access to it: read, build, add, replace.

A `Step` says which locks one access takes, and makes what must exist on disk before. Each tree has two: the environment
lock (shared: what is installed stays as it is) and the commit lock (shared: a process reads what is installed).

`locking.fallback` is imported where there is no flock, `journal.recovery` when a journal is met, under a lock, and
`required` by what keeps some projects.
"""

import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from safe_pip import fs
from safe_pip.environment.snapshot import Snapshot, metadata_of, seen
from safe_pip.errors import CannotLock, StalePlan, UnusableEnvironment
from safe_pip.fs import space, watch
from safe_pip.locking import flock, inheritance, order, shared_files, state_directory
from safe_pip.locking.locker import Keep, Locker, Scope, Step
from safe_pip.locking.order import Request
from safe_pip.locking.waiting import Interrupted, Waiting

if TYPE_CHECKING:
    from safe_pip.journal.parts import Dead
    from safe_pip.journal.recovery import Unfinished

# So many seconds others wait for a process that is stopped in the microseconds in which it looks at a directory.
_TURN = 10.0
_MOMENT = 0.001, 0.001
# So often a tree without a lock that other hosts see is read before the command gives up.
_READS = 10
# A change of more distributions excludes all processes that keep some: each lock takes a descriptor.
_MOST_LOCKED = 16
_PATTERNS = ("lib*/python*/*-packages", "lib*/pypy*/*-packages", "Lib/site-packages")
PACKAGES = ("site-packages", "dist-packages")
"""What a directory is called that an interpreter looks for distributions in."""

T = TypeVar("T")
Trees = Callable[[], "list[Path]"]
Holds = Callable[[flock.Identity], bool]
"""Whether this process holds the exclusive lock on a file."""


class Target(NamedTuple):
    """The directories that one command changes.

    `trees`: purelib, and platlib if it is another directory. `directories`: those of the scheme that serve other
    environments too (`~/.local/bin`). `uv_lock`: the file that uv locks for this target. `stateless_trees`: trees in
    which no state directory stays, because they are packed and shipped or hold no distributions. `containers`: where
    trees may be made (`--target`, `--prefix`, `--root`); `run --exclusive` may lock them before there is a tree.
    """

    trees: tuple[Path, ...]
    directories: tuple[Path, ...] = ()
    uv_lock: Path | None = None
    stateless_trees: tuple[Path, ...] = ()
    containers: tuple[Path, ...] = ()


class Prefix(NamedTuple):
    """A whole prefix (`bin`, `include`, `lib`, `share` and the site-packages inside) as it is now.

    `trees` are the directories below `path` that hold distributions. `environment` is the path of a program that uses
    the prefix; the prefix is on it if a journal may lie there. `is_shipped`: no state directory stays in it.
    """

    path: Path
    trees: tuple[Path, ...]
    environment: tuple[str, ...]
    is_virtual: bool
    is_shipped: bool

    @classmethod
    def at(cls, path: Path, own: Sequence[Path] = (), environment: Sequence[str] = ()) -> "Prefix":
        """The prefix at `path`, which need not exist. For the running Python: its `own` trees and environment path."""
        real = Path(os.path.realpath(path))
        inside = [tree for tree in own if tree.is_relative_to(real) and fs.is_directory(tree)]
        trees = tuple(dict.fromkeys([*inside, *trees_below(real)]))
        is_virtual = fs.is_file(real / "pyvenv.cfg")
        is_used = is_virtual or bool(inside) or any(name.startswith("python3") for name in fs.names(real / "bin"))
        home = (str(real),) if not trees or state_directory.has_locks(real) else ()
        return cls(real, trees, (*(environment or map(str, trees)), *home), is_virtual, not is_used)

    @property
    def target(self) -> Target:
        """What a merge locks: the trees, and the prefix itself unless it is a virtual environment."""
        # A prefix without trees stands in for one, and is one more tree as long as a journal may lie in it.
        home = (self.path,) if str(self.path) in self.environment else ()
        shared = () if self.is_virtual and self.trees else (self.path, self.path / "bin")
        directories = tuple(path for path in resolved(shared) if fs.is_directory(path))
        stateless = (*(self.trees if self.is_shipped else ()), *home, *filter(state_directory.is_shared, directories))
        return Target((*self.trees, *home), directories, self.path / ".lock", stateless)

    @property
    def stateless_trees(self) -> tuple[Path, ...]:
        """Where no state directory stays: in the prefix neither, which another command may have used as a tree."""
        return (*(self.trees if self.is_shipped else ()), self.path)

    def is_tree(self, path: str) -> bool:
        """Whether a directory (its real path) is one of the trees, or will be once it exists."""
        below = Path(path)
        is_like_one = below.is_relative_to(self.path) and below.name in PACKAGES
        return below in self.trees or (is_like_one and any(map(below.relative_to(self.path).match, _PATTERNS)))


def trees_below(prefix: Path) -> list[Path]:
    """The directories below a prefix that hold distributions, as `sysconfig` has them; resolved, each once.

    Raises `UnusableEnvironment` for a directory that cannot be listed: they may be in it.
    """
    found: list[Path] = []
    for pattern in _PATTERNS:
        level = [prefix]
        for part in pattern.split("/"):
            level = [each / name for each in level for name in sorted(fnmatch.filter(fs.names(each), part))]
        found += (path for path in level if path.name in PACKAGES)
    return resolved(found)


def resolved(paths: Iterable[Path]) -> list[Path]:
    """Each path with no symbolic link in it, once."""
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in paths))


def look_for_journals(directories: Iterable[Path], *, revokes: bool = False) -> dict[Path, list[str]]:
    """The names in the state directories; `Interrupted` if a change was left unfinished, to be undone before all else.

    With `revokes`, a change without a journal gets none any more if the lock on its owner file is free. Its process may
    live: a file server frees the locks of a host that it cannot reach.
    """
    names = {each: state_directory.names_on_grant(each) for each in directories}
    if found := tuple(filter(lambda each: state_directory.are_journals(names[each]), names)):
        from safe_pip.journal import recovery

        if found := tuple(filter(recovery.find, found)):
            raise Interrupted(*found)
    others = [(each, name) for each in names if revokes for name in names[each] if state_directory.is_of_another(name)]
    if others:
        from safe_pip.journal import parts

        if found := tuple(directory for directory, name in others if parts.revoke(str(directory), name)):
            raise Interrupted(*found)
    return names


def _make_directory(path: Path) -> list[Path]:
    try:
        with space.unpacking(str(path)):
            return fs.make_directories(path)
    except OSError as error:
        raise space.not_writable(path, error) from error


def _nothing(identity: flock.Identity) -> bool:
    """What a process holds that has let everything go."""
    return False


def _makes_locks(tree: Path) -> bool:
    """Make the lock files of a site directory; False if this user may not, or it is another directory."""
    if tree.name in PACKAGES and os.access(tree, os.W_OK):
        state_directory.make(tree)
        return True
    return False


class Reading(Step):
    """Read what is installed: the commit lock, shared; of a tree without that lock the environment lock, shared.

    A tree that is no site directory may be locked by itself: of that both, but not behind commands that replace.
    """

    def __init__(self, trees: Trees) -> None:
        self._find = trees
        self._without: list[Path] = []
        self.unguarded: list[Path] = []
        """Trees that several hosts may use and that are locked for the processes of this one alone."""
        self.trees: list[Path] = []
        self.names: dict[Path, list[str]] = {}
        """What was in their state directories when they were looked at last."""

    def requests(self) -> Iterator[Request]:
        self.trees = self._find()
        self._without = [tree for tree in self.trees if not state_directory.has_locks(tree)]
        self.unguarded = [tree for tree in self._without if state_directory.is_shared(tree) and not _makes_locks(tree)]
        if self._without != self.unguarded:
            self._without = [tree for tree in self._without if not state_directory.has_locks(tree)]
        for tree in self.trees:
            if tree in self._without:
                yield order.environment_lock(tree, exclusive=False)
            else:
                yield order.commit_lock(tree, exclusive=False)
                if tree.name not in PACKAGES:
                    yield order.environment_lock(tree, exclusive=False)._replace(gate=None)

    def on_grant(self) -> None:
        self.names = look_for_journals(self.trees)

    def is_current(self) -> bool:
        return not any(map(state_directory.has_locks, self._without))


def _seen(step: Reading) -> object:
    """What tells a reader, before and after, that a change was made meanwhile in spite of its lock.

    Without a lock that other hosts see, that is the tree itself; with one, the last changes: a file server may free it.
    """
    if step.unguarded:
        return seen(map(str, step.trees))
    return {tree: state_directory.changes(tree, step.names.get(tree, ())) for tree in step.trees}


class SharedUse(Reading):
    """Use what is installed while it stays as it is: the environment lock, shared, and the mutexes of `sources`."""

    def __init__(self, trees: Trees, sources: Iterable[Path] = ()) -> None:
        super().__init__(trees)
        self.directories = resolved(sources)
        self._made: list[Path] = []

    def _make_locks(self, tree: Path) -> None:
        """Without lock files, commands on other hosts would change the tree while it is in use."""
        try:
            if state_directory.make(tree) and tree.name not in PACKAGES:
                self._made.append(tree)
        except CannotLock:
            raise
        except UnusableEnvironment as error:
            raise UnusableEnvironment(
                f"several hosts may use `{tree}`, and it has no lock files: {error.message}",
                hint="A user that may write there makes them with `safe-pip list`",
            ) from error

    def on_grant(self) -> None:
        look_for_journals(self.trees, revokes=True)

    def on_release(self) -> None:
        for tree in self._made:
            remove_state_directory(tree, _nothing)

    def requests(self) -> Iterator[Request]:
        self.trees = self._find()
        for tree in self.trees:
            if state_directory.is_shared(tree) and not state_directory.has_locks(tree):
                self._make_locks(tree)
            yield order.environment_lock(tree, exclusive=False)
        for source in self.directories:
            _make_directory(source)
            yield order.mutex(source)


class Keeping(SharedUse):
    """Use some projects, and those that share files with them, while they stay as they are: their locks, shared.

    A tree without lock files gets them. Where that is not allowed, or several hosts use it, all in it stays as it is.
    """

    def __init__(self, trees: Trees, projects: Iterable[str], sources: Iterable[Path] = ()) -> None:
        super().__init__(trees, sources)
        self._projects = frozenset(projects)
        self._locked: list[tuple[str, str]] = []

    def requests(self) -> Iterator[Request]:
        from safe_pip.environment.required import sharing

        for each in super().requests():
            is_tree = each.rank is order.Rank.ENVIRONMENT and not state_directory.is_shared(each.path)
            if is_tree and not state_directory.has_locks(each.path):
                with suppress(UnusableEnvironment):
                    self._make_locks(each.path)
            is_kept = is_tree and state_directory.has_locks(each.path)
            yield order.keep_lock(each.path, exclusive=False) if is_kept else each
        self._projects = frozenset(sharing(self._projects, Snapshot.take(map(str, self.trees))))
        self._locked = _local_metadata(self._projects, self.trees)
        yield from (order.distribution_lock(*each, exclusive=False) for each in self._locked)

    def is_current(self) -> bool:
        return self._locked == _local_metadata(self._projects, self.trees)


def _local_metadata(projects: Collection[str], trees: Iterable[Path]) -> list[tuple[str, str]]:
    return metadata_of(projects, [str(tree) for tree in trees if not state_directory.is_shared(tree)])


class Recovering(Step):
    """Undo what a dead process left unfinished, under the commit locks that its journal names and its owner file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: list[Unfinished] = []
        self._dead: list[Dead] = []

    def requests(self) -> Iterator[Request]:
        from safe_pip.journal import recovery

        self._found.clear()
        for unfinished in recovery.find(self._directory):
            try:
                journal = recovery.read(unfinished)
            except FileNotFoundError:
                continue  # another process has undone it
            self._found.append(unfinished)
            for tree in map(Path, journal.trees):
                if fs.is_directory(tree) and state_directory.exists(tree):
                    state_directory.make(tree)  # a lock file may have been deleted
                    yield order.commit_lock(tree, exclusive=True)
            for directory in map(Path, journal.directories):
                if fs.is_directory(directory):
                    yield order.shared_directory(directory)
            yield order.owner_lock(unfinished.owner_file, unfinished.home)
            return

    def on_grant(self) -> None:
        from safe_pip.journal import recovery

        for unfinished in self._found:
            with suppress(FileNotFoundError):
                self._dead.append(recovery.roll_back(unfinished))

    def on_release(self) -> None:
        for each in self._dead:
            each.delete()


class Locking(Step):
    """Lock one directory that is no environment: flock on the directory itself, which is made if it is missing."""

    def __init__(self, path: Path, *, exclusive: bool) -> None:
        self.directories = resolved([path])
        self._exclusive = exclusive
        self.made: list[Path] = []

    def requests(self) -> Iterator[Request]:
        for path in self.directories:
            self.made += _make_directory(path)
            yield order.plain_directory(path, exclusive=self._exclusive)

    def on_release(self) -> None:
        self._remove_locks(_nothing)

    def _remove_locks(self, holds: Holds) -> None:
        for path in filter(state_directory.is_shared, self.directories):
            remove_state_directory(path, holds)

    def tidy(self, holds: Holds, *, failed: bool) -> None:
        if failed:
            self._remove_locks(holds)
        fs.remove_empty_directories(self.made if failed else [])


class Producing(Step):
    """Make the file `product`, which many commands may want at once: the lock of a file beside it, until it is made."""

    def __init__(self, lock: Path, product: Path, is_made: Callable[[], bool]) -> None:
        self._lock, self._product, self._is_made = lock, product, is_made

    def requests(self) -> Iterator[Request]:
        if not self._is_made():
            with space.staging(str(self._lock.parent)), suppress(FileExistsError):
                fs.write(self._lock, b"", mode=0o666)
            yield order.file_lock(self._lock, self._product)


class Opening(Step):
    """Make a private tree in the home of a target: its commit lock, shared, which keeps sweepers away."""

    def __init__(self, target: Target, also: Iterable[Path] = ()) -> None:
        self.trees = tuple(resolved((*target.trees, *also)))
        self.directories = (*self.trees, *resolved(target.directories))
        self._target = target
        # A directory on the path that is no site directory may hold sources.
        others = (tree for tree in resolved(also) if tree.name not in PACKAGES)
        containers = filter(state_directory.is_shared, target.containers)
        self._stateless = resolved((*target.stateless_trees, *others, *containers))
        self.made: list[Path] = []

    def requests(self) -> Iterator[Request]:
        for tree in self.trees:
            self._make(tree)
        yield order.commit_lock(self.trees[0], exclusive=False)

    def _make(self, tree: Path) -> None:
        self.made += _make_directory(tree)
        state_directory.make(tree)

    def on_grant(self) -> None:
        look_for_journals(self.trees)

    def tidy(self, holds: Holds, *, failed: bool) -> None:
        """Remove the state directories that do not stay and, after a failure, the directories that were made."""
        made = [each for each in self.directories if failed and each in self.made]
        for tree in dict.fromkeys((*self._stateless, *made)):
            remove_state_directory(tree, holds)
        fs.remove_empty_directories(self.made if failed else [])


class Changing(Opening):
    """Change a target: its trees exclusively, the others' commit locks shared, then its directories and uv's lock.

    `environment` and `commit` say which of the two locks of the target's trees are taken; with both of them also those
    of the `projects` that are changed, or, if these are not known, what excludes all processes that keep some.
    """

    def __init__(
        self,
        target: Target,
        also: Iterable[Path] = (),
        *,
        others: Trees = list,
        environment: bool = True,
        commit: bool = True,
        projects: Collection[str] | None = None,
    ) -> None:
        super().__init__(target, also)
        self._others = Reading(lambda: [tree for tree in others() if tree not in self.trees])
        self._environment, self._commit = environment, commit
        self._projects = None if projects is not None and len(projects) > _MOST_LOCKED else projects
        self._locked: list[tuple[str, str]] = []
        self._uv_lock: Path | None = None

    def requests(self) -> Iterator[Request]:
        for tree in self.trees:
            self._make(tree)
            if self._environment:
                yield order.environment_lock(tree, exclusive=True)
            if self._commit:
                yield order.commit_lock(tree, exclusive=True)
        if not self._commit:
            return
        yield from self._others.requests()
        if self._environment and self._projects is None:
            local = (tree for tree in self.trees if not state_directory.is_shared(tree))
            yield from (order.keep_lock(tree, exclusive=True) for tree in local)
        elif self._environment and self._projects:
            self._locked = self._found()
            yield from (order.distribution_lock(*each, exclusive=True) for each in self._locked)
        for directory in resolved(self._target.directories):
            self.made += _make_directory(directory)
            yield order.shared_directory(directory)
        for container in resolved(self._target.containers):
            if container in self.trees:  # it has its place in the order already, as a tree
                if not self._environment:
                    yield order.environment_lock(container, exclusive=False)._replace(gate=None)
            elif fs.is_directory(container):
                yield order.shared_directory(container, exclusive=self._environment)
        self._uv_lock = self._find_uv_lock()
        if self._uv_lock is not None:
            yield order.uv_lock(self._uv_lock)

    def _found(self) -> list[tuple[str, str]]:
        return _local_metadata(self._projects or (), (*self.trees, *self._others.trees))

    def _find_uv_lock(self) -> Path | None:
        uv = self._target.uv_lock
        return Path(os.path.realpath(uv)) if uv is not None and fs.is_file(uv) else None

    def on_grant(self) -> None:
        if self._commit:
            look_for_journals((*self.directories, *self._others.trees), revokes=True)
        else:
            look_for_journals(self.trees)

    def is_current(self) -> bool:
        # uv makes its file when it first works there, perhaps while this process waited for another lock.
        is_same = not self._locked or self._locked == self._found()
        return not self._commit or (is_same and self._find_uv_lock() == self._uv_lock and self._others.is_current())


def remove_state_directory(tree: Path, holds: Holds) -> None:
    """Remove `.safe-pip` if this process holds both locks or gets them without waiting. Never raises.

    Of several commands that leave at once, the last one removes it: they look one after another, and the process that
    has removed it looks again. Another command may have made a new one, and left because this process held the tree.
    """
    state, is_removed = state_directory.path_of(tree), flock.supported
    files = [state / state_directory.COMMIT, state / state_directory.KEEP]
    if os.path.lexists(state / state_directory.ENVIRONMENT):
        files.insert(0, state / state_directory.ENVIRONMENT)
    with suppress(FileNotFoundError, UnusableEnvironment):
        while is_removed:
            with ExitStack() as opened:
                # Only this function locks the state directory itself. The lock is held until the others were tried.
                turn = opened.enter_context(flock.Descriptor(state))
                locks = [opened.enter_context(flock.Descriptor(tree))]
                locks += (opened.enter_context(flock.Descriptor(path, writable=True)) for path in files)
                is_removed = flock.poll_lock(turn, exclusive=True, seconds=_TURN, pauses=_MOMENT) and turn.is_current()
                for lock in locks:
                    is_removed = is_removed and (holds(lock.identity) or flock.try_lock(lock, exclusive=True))
                is_removed = is_removed and all(lock.is_current() for lock in locks) and state_directory.remove(tree)


class Environment:
    """What one interpreter sees: the directories of `path` that exist, without those of the standard library."""

    def __init__(
        self, path: Sequence[str], *, stdlib: Collection[str] = (), waiting: Waiting, timeout: float | None
    ) -> None:
        self._path = tuple(path)
        self._stdlib = {os.path.realpath(name) for name in stdlib}
        self._waiting = waiting
        ancestry = inheritance.Ancestry(os.environ.get(inheritance.VARIABLE))
        self._locker = Locker(waiting, timeout, ancestry, Recovering)
        self._sole = None
        if not flock.supported:
            from safe_pip.locking.fallback import Sole

            self._sole = Sole(waiting, timeout)
        self._has_all = False
        watch.note("environment", lambda: {"of": list(map(str, dict.fromkeys(map(order.shown_name, self.trees()))))})

    def trees(self) -> list[Path]:
        """The directories that may hold distributions now, resolved, each once; without those that cannot be listed."""
        found = dict.fromkeys(os.path.realpath(name or ".") for name in self._path)
        usable = (real for real in found if os.path.isdir(real) and os.access(real, os.R_OK | os.X_OK))
        return [Path(real) for real in usable if real not in self._stdlib]

    def read(self, take: Callable[[], T]) -> T:
        """Call `take` while nothing is changed, again if it may have seen half a change; in the end `StalePlan`."""
        changes = 0
        while changes < _READS:
            step = Reading(self.trees)
            with self._taking(step) as scope:
                for tree in step.unguarded:
                    if tree.name in PACKAGES:
                        self._waiting.unguarded(tree)
                before = _seen(step)
                value = take()
                if self._has_all:
                    return value
                # Without a commit lock, a change may have begun meanwhile. It is dealt with when this starts over.
                with suppress(Interrupted):
                    step.names = look_for_journals(step.trees)
                    is_same = before == _seen(step)
                    changes += bool(step.unguarded) and not is_same  # others may change it again and again
                    if is_same and step.is_current() and scope.is_inheritance_alive():
                        return value
        raise StalePlan((), "what is installed changed whenever this command read it")

    def building(self, *sources: Path, projects: Collection[str] | None = None) -> AbstractContextManager[Scope]:
        """Keep what is installed as it is for a build, and have each of `sources` to itself; child programs may add.

        With `projects` only these stay as they are, unless this command has reserved the environment.
        If a mutex inside has to be waited for, this is let go and taken again: compare what is installed after that.
        """
        trees = list if self._has_all else self.trees
        status = map(os.stat, trees() if projects else ())
        is_some = projects and not any(self._holds((each.st_dev, each.st_ino)) for each in status)
        step = Keeping(trees, projects or (), sources) if is_some else SharedUse(trees, sources)
        return self._taking(step, keep=Keep.RENEWED, is_published=True)

    def reserving(self, target: Target, also: Iterable[Path] = ()) -> AbstractContextManager[Scope]:
        """Let other commands only add to the target until this ends, or, with `StalePlan`, until another wait."""
        return self._changing(Changing(target, also, commit=False), keep=Keep.RESERVED, is_published=True)

    def replacing(
        self, target: Target, also: Iterable[Path] = (), *, projects: Collection[str] | None = None
    ) -> AbstractContextManager[Scope]:
        """Have the target to itself, to change or remove what is in it; the rest of the environment does not change.

        With `projects` only these are changed or removed: processes that keep others as they are go on.
        Missing directories are made. If the body raises, those that were made are removed unless something is in them.
        """
        return self._changing(Changing(target, also, others=self.trees, projects=projects))

    def adding(self, target: Target, also: Iterable[Path] = ()) -> AbstractContextManager[Scope]:
        """Like `replacing`, for additions alone: builds and programs that use the environment go on."""
        return self._changing(Changing(target, also, others=self.trees, environment=False))

    @contextmanager
    def staging(self, target: Target, make: Callable[[Path], T]) -> Iterator[T]:
        """Let `make` make what is private in the target's first tree, while no sweeper is at work; holds no lock then.

        Missing trees are made, and removed if the body raises, as by `replacing`.
        """
        step = Opening(target)
        with self._tidying(step):
            with self._taking(step):
                made = make(step.trees[0])
            yield made

    def tidy(self, trees: Iterable[Path]) -> None:
        """Remove the state directories of `trees`, unless another command uses them. Never raises."""
        for tree in trees:
            remove_state_directory(tree, self._holds)

    def carry_out(self, step: Step) -> None:
        """Take the locks of a step that does its work as soon as it has them, and let them go."""
        with self._taking(step):
            pass

    @contextmanager
    def exclusively(self, target: Target | None) -> Iterator[None]:
        """Have the target, or every tree that this user can write, to itself; inside every access is granted."""
        also = [] if target is not None else [tree for tree in self.trees() if os.access(tree, os.W_OK)]
        step = Changing(target or Target(()), also, others=self.trees)
        with ExitStack() as stack:
            stack.callback(lambda: fs.remove_empty_directories(step.made))  # pip's failure is a status, no exception
            # In a read-only container pip runs as well.
            stack.enter_context(self._changing(step, is_published=inheritance.can_publish()))
            stack.callback(setattr, self, "_has_all", self._has_all)
            self._has_all = True
            yield

    def mutex(self, *directories: Path) -> AbstractContextManager[Scope]:
        """Be the only process that writes in these directories, which are made if they are missing."""
        return self._taking(SharedUse(list, directories), is_published=True)

    def keeping(self, projects: Collection[str] = ()) -> AbstractContextManager[Scope]:
        """Keep what is installed, or some projects, as they are while another program runs, which may add others."""
        step = Keeping(self.trees, projects) if projects else SharedUse(self.trees)
        return self._taking(step, is_published=True)

    def occupying(self, target: Target) -> AbstractContextManager[Scope]:
        """Have the target to itself while another program runs."""
        return self._changing(Changing(target), is_published=True)

    def directory(self, path: Path, *, exclusive: bool) -> AbstractContextManager[Scope]:
        """Lock a directory that is no environment while another program runs; it is made if it is missing."""
        return self._taking(Locking(path, exclusive=exclusive), is_published=True)

    def may_wait(self) -> bool:
        """Whether this command may wait for another one that may wait for a lock: it holds none, nor one above it."""
        return self._locker.is_idle

    def producing(self, lock: Path, product: Path, is_made: Callable[[], bool]) -> AbstractContextManager[Scope]:
        """Be the only process that makes the file `product`, under the lock of a file beside it; none if it is made."""
        return self._taking(Producing(lock, product, is_made))

    @contextmanager
    def making(self, path: Path) -> Iterator[None]:
        """Be the only process that makes an environment in this directory; missing ones are made as by `replacing`."""
        step = Locking(path, exclusive=True)
        # Removed under the lock: the next holder of the lock notices that it has another directory.
        with self._tidying(step), self._taking(step), self._tidying(step):
            yield

    @contextmanager
    def _changing(self, step: Changing, *, keep: Keep = Keep.FIRMLY, is_published: bool = False) -> Iterator[Scope]:
        with self._tidying(step), self._taking(step, keep=keep, is_published=is_published) as scope:
            yield scope

    @contextmanager
    def _tidying(self, step: Opening | Locking) -> Iterator[None]:
        failed, process = True, os.getpid()
        try:
            yield
            failed = False
        finally:
            if os.getpid() == process:  # a forked child that unwinds leaves everything to its parent
                step.tidy(self._holds, failed=failed)

    def _holds(self, identity: flock.Identity) -> bool:
        return self._locker.holds(identity, exclusive=True)

    @contextmanager
    def _taking(self, step: Step, *, keep: Keep = Keep.FIRMLY, is_published: bool = False) -> Iterator[Scope]:
        scope = Scope(step, keep=keep, is_published=is_published)
        with ExitStack() as taken:
            if self._sole is not None:
                taken.enter_context(self._sole.holding([*self.trees(), *step.directories]))
            elif not self._has_all or isinstance(step, SharedUse):
                self._locker.take(scope)
                taken.callback(self._locker.close, scope)
                self._warn(scope)
            yield scope

    def _warn(self, scope: Scope) -> None:
        """Say of a tree that several hosts may use that they were never tried; once, which a file there notes."""
        shared = {each.gate.parent for each, _ in scope.granted if each.gate is not None and each.needs_writing}
        unprobed = (state for state in shared if shared_files.probed(state.parent) is None)
        for state in (state for state in unprobed if state.parent.name in PACKAGES and os.access(state, os.W_OK)):
            if fs.look(state / state_directory.UNPROBED) is None and self._waiting.unprobed(state.parent):
                with suppress(OSError):
                    fs.write(state / state_directory.UNPROBED, b"", mode=0o644)
