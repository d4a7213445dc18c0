"""`safe-pip status`: which commands hold or wait for which lock, and which transactions are unfinished.

It takes no lock: testing a lock by taking it would delay other commands. /proc/locks shows the locks of one pid
namespace on Linux; elsewhere only the notes of holders are known. What is not known is None.
"""

import enum
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypedDict

from safe_pip import fs
from safe_pip.commands.environments import Context, Place
from safe_pip.commands.options import Namespace, tell
from safe_pip.environment.environment import PACKAGES
from safe_pip.errors import CannotLock, RecoveryNeeded, UnusableEnvironment
from safe_pip.fs import proc, trust
from safe_pip.journal import owner, recovery
from safe_pip.journal.directories import Refused, open_state
from safe_pip.journal.parts import named_home
from safe_pip.journal.recovery import Unfinished
from safe_pip.launch import adoption
from safe_pip.locking import holders, inheritance, order, shared_files, state_directory
from safe_pip.locking.holders import Entry, Holder, View
from safe_pip.locking.state_directory import COMMITTED, JOURNAL, OWNER_FILE, REVOKED, UNDOING
from safe_pip.messages import DOUBT, SILENT, count, duration, output

_INTERVAL = 1.0
_CLEAR = "\x1b[H\x1b[2J"
_NAME = re.compile(r"([0-9a-f]{16})(?:\.(owner|committed|home|undoing|revoked))?|(.+)\.journal")


class Lock(NamedTuple):
    """The lock on `path`; `waiting` in their turn. `tree` is None for a lock of no environment."""

    name: str
    tree: Path | None
    path: Path
    holders: tuple[Holder, ...] = ()
    waiting: tuple[Holder, ...] = ()


class ProcessStatus(TypedDict):
    """A process that holds or waits for a lock. `mode`: shared, exclusive; None if it did not yet say what it wants.

    `since`: seconds of the epoch, or None. `host`: None if it is this one. `seen`: False if only a note that it left
    tells of it: it may be dead.
    """

    pid: int
    command: str
    mode: str | None
    since: float | None
    host: str | None
    stopped: bool
    seen: bool


class LockStatus(TypedDict):
    """A lock on `path`; `tree` is None for a mutex. `waiting` is in turn."""

    lock: str
    tree: str | None
    path: str
    holders: list[ProcessStatus]
    waiting: list[ProcessStatus]


class TransactionStatus(TypedDict):
    """A transaction at work, or left unfinished. `state`: staging, prepared, committed. `alive`: None if unknown.

    `last_seen`: when it last changed a directory of its own.
    `next`: what the next command does: "wait", "delete", "roll back", "finish", "refuse: ...".
    """

    id: str
    tree: str
    state: str
    alive: bool | None
    pid: int | None
    command: str
    since: float | None
    host: str | None
    last_seen: float | None
    next: str


class AdoptedStatus(TypedDict):
    """A tree whose pip is the safe-pip at `home`, because of `file`. `works`: False if that safe-pip is gone."""

    tree: str
    home: str
    file: str
    works: bool


class FilesystemStatus(TypedDict):
    """What a tree is on that several hosts may use. `passed`: what the last probe found, None if there was none.

    `date`, `hosts`: when and where it ran, in `directory`. `refused`: why every command is refused, or None.
    """

    tree: str
    filesystem: str | None
    passed: bool | None
    date: float | None
    hosts: list[str]
    directory: str | None
    refused: str | None


class Status(TypedDict):
    """What `safe-pip status --json` prints. `complete`: False where locks of other processes may be hidden.

    `hidden`: with `--all`, how many locks are held on files that this user may not see.
    """

    format: int
    trees: list[str]
    complete: bool
    locks: list[LockStatus]
    transactions: list[TransactionStatus]
    adopted: list[AdoptedStatus]
    filesystems: list[FilesystemStatus]
    hidden: int
    problems: list[str]


class State(enum.Enum):
    """How far a transaction got: before its journal, before its commit point, after it."""

    STAGING = "staging"
    PREPARED = "prepared"
    COMMITTED = "committed"


# How the names end that tell the state: of several that are there the first one counts.
_SUFFIXES = {
    JOURNAL: State.PREPARED,
    UNDOING: State.PREPARED,
    COMMITTED: State.COMMITTED,
    "": State.STAGING,
    REVOKED: State.STAGING,
    OWNER_FILE: State.STAGING,
}


class Transaction(NamedTuple):
    """One that is at work, or was left unfinished; `is_alive` is None where that cannot be seen."""

    identifier: str
    tree: Path
    state: State
    is_alive: bool | None
    pid: int | None
    command: str
    since: float | None
    host: str

    @property
    def unfinished(self) -> Unfinished:
        """Its journal, or its private directory before there is one."""
        suffix = _suffix(self.tree, self.identifier)
        if suffix is None or suffix == OWNER_FILE or _SUFFIXES[suffix] is not self.state:
            suffix = next(suffix for suffix, state in _SUFFIXES.items() if state is self.state)
        return Unfinished(self.tree, self.identifier, f"{self.identifier}{suffix}")


def locks(tree: Path, view: View, directories: Iterable[Path] = ()) -> Iterator[Lock]:
    """The locks of `tree`, then those of shared `directories` and the mutexes and uv's lock of its environment."""
    state = state_directory.path_of(tree)
    notes = list(inheritance.notes(state))
    # `/proc` tells only when the process began; the note tells when it took the lock.
    since = {note.pid: note.since for note in notes if note.exclusive and not note.host}
    for name, paths, gate in (
        ("environment", [tree, state / state_directory.ENVIRONMENT], state / state_directory.ENVIRONMENT_GATE),
        ("commit", [state / state_directory.COMMIT], state / state_directory.COMMIT_GATE),
        ("keep", [state / state_directory.KEEP], state / state_directory.KEEP_GATE),
    ):
        lock = _lock(name, tree, paths, gate, view)
        if name == "keep" and not lock.holders:
            continue
        known = [by._replace(since=since.get(by.pid, by.since)) for by in lock.holders]
        if name == "environment":
            pids = {by.pid for by in known}
            hidden = (note for note in notes if note.host or not (view.is_complete or note.pid in pids))
            known += (note._replace(is_seen=False) for note in hidden)
        yield lock._replace(holders=tuple(known))
    locked = {entry.file for entry in view.entries}
    for info in sorted(name for name in fs.readable_names(tree) if name.endswith((".dist-info", ".egg-info"))):
        if proc.kernel_name_at(tree / info) in locked:
            yield _lock("distribution", tree, [tree / info], tree / info / "METADATA", view)
    home = order.shown_name(tree)
    others = {"source directory": home / "src", "uv": home / ".lock"}
    others |= {f"shared directory {path}": path for path in directories if not path.is_relative_to(home)}
    for name, path in others.items():
        if os.path.lexists(path):
            yield _lock(name.partition(" /")[0], tree, [path], None, view)


def mutexes(view: View, shown: Iterable[Path]) -> Iterator[Lock]:
    """The exclusive locks of no environment that this user may see, but those `shown`: sources, caches, wheels."""
    known = {proc.kernel_name_at(path) for path in shown}
    for entry in view.entries:
        if entry.exclusive and not entry.is_waiting and entry.file not in known:
            path = holders.locked_path(entry)
            if path is not None and _is_mutex(path):
                known.add(entry.file)
                yield _lock("mutex", None, [path], None, view)


def _is_mutex(path: Path) -> bool:
    if path.name in PACKAGES or state_directory.NAME in path.parts or os.path.lexists(state_directory.path_of(path)):
        return False  # of a tree
    return path.name in order.SOURCE_MARKS or "safe-pip" in path.parts or os.path.isdir(path)


def _lock(name: str, tree: Path | None, paths: list[Path], gate: Path | None, view: View) -> Lock:
    holding: dict[int, Holder] = {}
    waiting: dict[int, Holder] = {}
    for path in paths:
        held, blocked = view.at(path)
        holding |= {party.pid: party for entry in held for party in _parties(entry)}
        waiting |= {entry.pid: holders.describe(entry)._replace(is_waiting=False) for entry in blocked}
    if gate is not None:
        # The holder of the gate is the next in turn, and already waits for the lock itself, or does so at once.
        held, blocked = view.at(gate)
        for entry in held + blocked:
            waiting.setdefault(entry.pid, holders.describe(entry)._replace(is_waiting=True))
    return Lock(name, tree, paths[0], tuple(holding.values()), tuple(waiting.values()))


def _parties(entry: Entry) -> list[Holder]:
    """The process that took a lock; if it has ended, those that inherited its descriptor (`flock 9; make`)."""
    party = holders.describe(entry)
    if party.command or party.since is not None:
        return [party]
    inheritors = [holders.describe(entry._replace(pid=pid)) for pid in holders.inheritors(entry.file)]
    return inheritors or [party]


def transactions(trees: Iterable[Path]) -> list[Transaction]:
    """The transactions that changed `trees`, or are about to: at home in one of them, or with a mark there."""
    states = {each: _state(*each) for tree in trees for each in _named(tree)}
    # The locks are read after the names: a transaction that began in between is seen alive, never dead.
    view = View.take()
    found = []
    for (home, identifier), state in sorted(states.items()):
        path = Unfinished(home, identifier, identifier).owner_file
        note = owner.read(path)
        is_alive: bool | None = os.path.lexists(path) and bool(view.at(path)[0])
        is_hidden = bool(note.host) or not view.is_complete
        if os.path.lexists(path) and not is_alive and is_hidden and sys.platform != "win32":
            is_alive = None
        if state is not None and (is_alive or _state(home, identifier) is not None):
            pid, since = note.pid or None, note.since if note.pid else None
            found.append(Transaction(identifier, home, state, is_alive, pid, note.command, since, note.host))
    return found


def _named(tree: Path) -> Iterator[tuple[Path, str]]:
    with suppress(OSError, Refused), open_state(str(tree), checked=False) as state:
        for match in filter(None, map(_NAME.fullmatch, state.names())):
            if match[2] != "home":
                yield tree, match[1] or match[3]
            elif home := named_home(state, match[0]):
                yield Path(home), match[1]


def _state(home: Path, identifier: str) -> State | None:
    suffix = _suffix(home, identifier)
    return _SUFFIXES[suffix] if suffix is not None else None


def _suffix(home: Path, identifier: str) -> str | None:
    path = state_directory.path_of(home) / identifier
    return next((suffix for suffix in _SUFFIXES if os.path.lexists(f"{path}{suffix}")), None)


def next_action(transaction: Transaction) -> str:
    """What the next command of this user does about it."""
    if transaction.is_alive:
        return "wait"
    then = {State.STAGING: "delete", State.PREPARED: "roll back", State.COMMITTED: "finish"}[transaction.state]
    if transaction.state is not State.STAGING:
        try:
            recovery.check(transaction.unfinished)
        except RecoveryNeeded as error:
            hint = f" ({error.hint})" if error.hint else ""
            then = f"refuse: {error.message}{hint}"
        except FileNotFoundError:
            pass  # another command was faster
    return then if transaction.is_alive is False else f"wait, or {then} if it is dead"


def in_use(view: View) -> tuple[tuple[Path, ...], int]:
    """The trees in which a process of this machine holds a lock, and the number of locks whose files cannot be seen."""
    trees, hidden = set[Path](), 0
    for entry in (entry for entry in view.entries if not entry.is_waiting):
        by = (entry, *(entry._replace(pid=pid) for pid in _inheritors(entry)))
        path = next(filter(None, map(holders.locked_path, by)), None)
        hidden += path is None
        while path is not None and state_directory.NAME in path.parts:
            path = path.parent
        if path is not None and (path.name in PACKAGES or os.path.lexists(state_directory.path_of(path))):
            trees.add(path)
    return tuple(sorted(trees)), hidden


def _inheritors(entry: Entry) -> list[int]:
    return [] if proc.state(entry.pid) else holders.inheritors(entry.file)


def examine(place: Place, *, is_all: bool = False) -> Status:
    """What `--json` prints of an environment, and `safe_pip.status` returns; or of all that are in use."""
    problems, hidden = list[str](), 0
    if is_all:
        trees, hidden = in_use(View.take())
        place = Place(place.context, place.environment, trees, named="")
    for tree in place.trees:
        try:
            state_directory.exists(tree)
        except UnusableEnvironment as error:
            problems.append(error.message)
    unfinished = [_transaction(each) for each in transactions(place.trees)]
    view = View.take()
    found = [lock for tree, scripts in place.scripts().items() for lock in locks(tree, view, [scripts])]
    others = [*mutexes(view, [lock.path for lock in found])]
    if not is_all:
        pids = {party.pid for lock in found for party in lock.holders + lock.waiting}
        pids |= {each["pid"] for each in unfinished if each["pid"] is not None and each["alive"]}
        others = [each for each in others if _is_in_a_cache(each.path) or pids & {by.pid for by in each.holders}]
    unique = {(lock.name, lock.path): lock for lock in reversed(found + others)}.values()
    adopted = [each for each in map(adoption.find, place.trees) if each is not None]
    return {
        "format": 1,
        "trees": [str(tree) for tree in place.trees],
        "complete": view.is_complete,
        "locks": [_facts(each) for each in reversed(unique)],
        "transactions": unfinished,
        "adopted": [
            {"tree": str(each.tree), "home": str(each.home), "file": str(each.file), "works": each.works}
            for each in adopted
        ],
        "filesystems": [_filesystem(tree) for tree in place.trees if state_directory.is_shared(tree)],
        "hidden": hidden,
        "problems": problems,
    }


def _is_in_a_cache(path: Path) -> bool:
    """Whether it is in this user's cache directory, or in that of pip."""
    named = (str(trust.cache_directory(os.environ) or ""), os.environ.get("PIP_CACHE_DIR", ""))
    return any(path.is_relative_to(os.path.realpath(each)) for each in named if each)


def main(options: Namespace, context: Context) -> int:
    place = Place(context, context.environment([]), ()) if options.all else Place.find(options.env, context)
    if options.watch:
        return _watch(place, options)
    document = examine(place, is_all=options.all)
    return 0 if tell(json.dumps(document, indent=2) if options.json else _text(document, options)) else 1


def _watch(place: Place, options: Namespace) -> int:
    """Show it again and again: on a terminal in the same place, elsewhere whenever it is another than before."""
    is_live = not options.json and sys.stdout is not None and sys.stdout.isatty()
    before: Status | None = None
    try:
        while True:
            document, text = examine(place, is_all=options.all), ""
            if is_live:
                lines = [time.strftime("%X  (Ctrl-C ends it)"), *_text(document, options).splitlines()]
                text = "\n".join((_CLEAR + lines[0], *lines[1 : shutil.get_terminal_size().lines - 1]))
            elif document != before:
                text = json.dumps(document) if options.json else f"{time.strftime('%X')}\n{_text(document, options)}\n"
            if text and (error := output(text)) is not None:
                return 0 if isinstance(error, BrokenPipeError) else 1
            before = document
            time.sleep(_INTERVAL)
    except KeyboardInterrupt:
        if is_live:
            output("\r")
        raise


def _facts(lock: Lock) -> LockStatus:
    return {
        "lock": lock.name,
        "tree": None if lock.tree is None else str(lock.tree),
        "path": str(lock.path),
        "holders": [*map(_party, lock.holders)],
        "waiting": [*map(_party, lock.waiting)],
    }


def _party(party: Holder) -> ProcessStatus:
    return {
        "pid": party.pid,
        "command": party.command,
        "mode": None if party.is_waiting else "exclusive" if party.exclusive else "shared",
        "since": party.since,
        "host": party.host or None,
        "stopped": party.is_stopped,
        "seen": party.is_seen,
    }


def _transaction(found: Transaction) -> TransactionStatus:
    return {
        "id": found.identifier,
        "tree": str(found.tree),
        "state": found.state.value,
        "alive": found.is_alive,
        "pid": found.pid,
        "command": found.command,
        "since": found.since,
        "host": found.host or None,
        "last_seen": _last_seen(found),
        "next": next_action(found),
    }


def _filesystem(tree: Path) -> FilesystemStatus:
    found, refused, kind = shared_files.verdict(tree), None, ""
    with suppress(OSError):
        kind = proc.filesystem(os.fspath(tree)).kind
    try:
        shared_files.check_mount(tree)
        shared_files.check_verdict(tree, found)
    except CannotLock as error:
        refused = f"{error.message} ({error.hint})"
    return {
        "tree": str(tree),
        "filesystem": kind or None,
        "passed": None if found is None else found.passed,
        "date": None if found is None else found.date,
        "hosts": [] if found is None else [*found.hosts],
        "directory": None if found is None else found.directory,
        "refused": refused,
    }


def _last_seen(found: Transaction) -> float | None:
    """When a directory or the journal of a transaction was last changed."""
    private = str(state_directory.path_of(found.tree) / found.identifier)
    places = [*(where for where, _, _ in os.walk(private)), str(found.unfinished.path), f"{private}{OWNER_FILE}"]
    times = list[float]()
    for place in places:
        with suppress(OSError):
            times.append(os.lstat(place).st_mtime)
    return max(times, default=None)


def _text(document: Status, options: Namespace) -> str:
    lines = [*_lines(document, options)]
    if options.all and not lines:
        lines.append("No environment is in use")
    if hidden := document["hidden"]:
        more = "only root can see on which files" if proc.user() else "on files that cannot be seen from here"
        lines.append(f"{count(hidden, 'more lock')} {'is' if hidden == 1 else 'are'} held by other processes: {more}")
    if options.all:
        lines.append("An environment in which no process holds a lock now is not listed")
    return "\n".join(lines)


def _lines(document: Status, options: Namespace) -> Iterator[str]:
    trees, unfinished = document["trees"], document["transactions"]
    told = {str(each.tree): each.told() for each in map(adoption.find, trees) if each is not None}
    for tree in trees:
        shown = str(order.shown_name(Path(tree)))
        said = [line for lock in document["locks"] if lock["tree"] == tree for line in _told(lock)]
        said += [_sentence(each, options) for each in unfinished if each["tree"] == tree]
        if options.all and not said:
            continue  # in use no more
        yield shown if shown == tree else f"{shown} ({tree})"
        said = said or ["not in use, and nothing is unfinished"]
        said += [_shared(each) for each in document["filesystems"] if each["tree"] == tree]
        yield from (f"  {line}" for line in (*said, *([told[tree]] if tree in told else [])))
    for each in (each for each in unfinished if each["tree"] not in trees):
        yield f"{each['tree']}: {_sentence(each, options)}"
    yield from (line for lock in document["locks"] if lock["tree"] is None for line in _told(lock))
    yield from document["problems"]
    if not document["complete"]:
        yield "This may not be all: locks that are held in other pid namespaces, or without /proc/locks, are not seen"


def _shared(found: FilesystemStatus) -> str:
    what = f"on {found['filesystem'] or 'a filesystem'}, which several hosts may use"
    if found["refused"]:
        return f"{what}. Every command is refused: {found['refused']}"
    if found["date"] is None:
        probe = f"safe-pip doctor --filesystem {order.shown_name(Path(found['tree'])).parent}"
        return f"{what}. It was never probed: run `{probe}` on two hosts at once"
    ago, hosts = duration(time.time() - found["date"]), " and ".join(found["hosts"])
    return f"{what}. A probe of `{found['directory']}` between {hosts} passed {ago} ago"


_HELD = {
    ("environment", "shared"): "uses it: others may add to it, but not change or remove anything",
    ("environment", "exclusive"): "has it to itself",
    ("commit", "shared"): "reads what is installed",
    ("commit", "exclusive"): "changes what is installed",
    ("keep", "shared"): "keeps some distributions as they are: others may be added, changed and removed",
    ("keep", "exclusive"): "lets no program keep a distribution as it is",
    ("distribution", "shared"): "keeps {}",
    ("distribution", "exclusive"): "has {} to itself, to change or remove it",
}
_WAITED_FOR = {
    ("environment", "shared"): "waits to use it",
    ("environment", "exclusive"): "waits to have it to itself",
    ("environment", None): "waits for its turn to use it",
    ("commit", "shared"): "waits to read what is installed",
    ("commit", "exclusive"): "waits to change what is installed",
    ("commit", None): "waits for its turn to read or change what is installed",
    ("keep", "shared"): "waits to keep some distributions as they are",
    ("keep", "exclusive"): "waits until no program keeps a distribution as it is",
    ("distribution", "shared"): "waits to keep {}",
    ("distribution", "exclusive"): "waits to change or remove {}",
    ("distribution", None): "waits for its turn to keep, change or remove {}",
}


def _told(lock: LockStatus) -> Iterator[str]:
    path = Path(lock["path"])
    is_wheel = lock["lock"] == "mutex" and path.parent.name == "making"
    what = f"a wheel ({path.name[:8]})" if is_wheel else f"`{path}`"
    if lock["lock"] == "distribution":
        what = f"`{path.stem}`"
    for party in lock["holders"]:
        does = "prepares" if is_wheel else "works in" if lock["lock"] == "mutex" else "holds the lock on"
        yield f"{_process(party)} {_HELD.get((lock['lock'], party['mode'] or ''), f'{does} {{}}').replace('{}', what)}"
    for party in lock["waiting"]:
        yield f"{_process(party)} {_WAITED_FOR.get((lock['lock'], party['mode']), 'waits for {}').replace('{}', what)}"


def _sentence(found: TransactionStatus, options: Namespace) -> str:
    state, then = State(found["state"]), found["next"]
    if found["alive"]:
        does = {State.STAGING: "prepares a change", State.PREPARED: "commits its change"}
        said = f"{_process(found)} {does.get(state, 'has made its change, and cleans up')}"
    else:
        by = f"`{found['command']}`" if found["command"] else "a command"
        by += f" on {found['host']}" if found["host"] else ""
        ago = None if found["last_seen"] is None else duration(time.time() - found["last_seen"])
        where = {State.STAGING: "; nothing was changed", State.PREPARED: " in the middle of its change"}
        begin = f"{'perhaps ' if found['alive'] is None else ''}interrupted: {by}"
        begin += f", last at work {ago} ago" if ago else ""
        next_does = {
            State.STAGING: "removes its leftovers",
            State.PREPARED: "undoes it",
            State.COMMITTED: "finishes it",
        }[state]
        refusal = then.partition("refuse: ")[2].removesuffix(" if it is dead")
        end = (
            f"Every safe-pip command refuses to go on: {refusal}"
            if refusal
            else f"The next safe-pip command {next_does}"
        )
        doubt = f"; {DOUBT}" if found["alive"] is None and _is_silent(found["host"], found["last_seen"]) else ""
        said = f"{begin}{where.get(state, ' after its change was made')}{doubt}. {end}"
    return f"{said} ({found['id']})" if options.verbose else said


def _is_silent(host: str | None, seen: float | None) -> bool:
    return host is not None and seen is not None and time.time() - seen > SILENT


def _process(party: ProcessStatus | TransactionStatus) -> str:
    facts = [f"pid {party['pid']} on {party['host']}" if party["host"] else f"pid {party['pid']}"]
    facts += [] if party["since"] is None else [f"for {duration(time.time() - party['since'])}"]
    facts += ["stopped"] if party.get("stopped") else []
    if not party.get("seen", True):
        facts.append("by the note it left")
        # The note of a process that shares the lock is locked, so the lock manager has seen it.
        facts += [DOUBT] if party.get("mode") == "exclusive" and _is_silent(party["host"], party["since"]) else []
    return f"`{party['command']}` ({', '.join(facts)})" if party["command"] else ", ".join(facts)
