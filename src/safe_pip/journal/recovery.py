"""Transactions that are at work or were left unfinished: their journals are found, believed or refused, and settled.

As long as the journal is there, the transaction is not committed: whatever happened of it is undone, then the journal
is removed. What is named `committed` is finished instead. Every operation is looked at first. If another program has
changed any of it, or if the journal's writer could not have made the change, nothing is changed.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import RecoveryNeeded, State, UnusableEnvironment
from safe_pip.fs import Directory, proc
from safe_pip.fs.proc import user
from safe_pip.journal import codec, parts, takeover
from safe_pip.journal import finish as finishing
from safe_pip.journal.directories import STAGE, TRASH, OpenDirectories, Refused, Writer, open_state, reach, user_name
from safe_pip.journal.owner import OwnerNote
from safe_pip.journal.parts import Dead
from safe_pip.journal.takeover import Superseded
from safe_pip.journal.undo import Action, Step, decide, observe, perform
from safe_pip.locking import state_directory
from safe_pip.locking.state_directory import COMMITTED, JOURNAL, JOURNALS, MARK, OWNER_FILE, REVOKED, UNDOING
from safe_pip.merge.plan import Journal

_MOST_NAMED = 3


class Unfinished(NamedTuple):
    """The journal `name` in the state directory of `home`; its transaction may still be at work."""

    home: Path
    identifier: str
    name: str

    @property
    def path(self) -> Path:
        """Where the journal is."""
        return state_directory.path_of(self.home) / self.name

    @property
    def owner_file(self) -> Path:
        """The file that the process of the transaction keeps locked."""
        return self.path.with_name(f"{self.identifier}{OWNER_FILE}")

    @property
    def state(self) -> State:
        """The state of the environment while it is there."""
        return State.COMMITTED if self.name.endswith(COMMITTED) else State.UNFINISHED


class _Journal(NamedTuple):
    state: Directory
    journal: Journal
    writer: Writer
    known_as: str
    """The path of the home when the journal was written."""


def find(directory: Path) -> tuple[Unfinished, ...]:
    """The journals that concern `directory`, of living processes too: its own, and those that a mark leads to.

    A mark is believed if the journal names `directory`. Raises `UnusableEnvironment`.
    """
    if not state_directory.exists(directory):
        return ()
    real = os.path.realpath(directory)
    found: list[Unfinished] = []
    try:
        with open_state(real) as state:
            for name in sorted(state.names()):
                stem, dot, suffix = name.rpartition(".")
                if dot + suffix in JOURNALS:
                    found.append(Unfinished(Path(real), stem, name))
                elif dot + suffix == MARK and codec.is_identifier(stem):
                    found += _marked(real, stem, parts.named_home(state, name))
    except (FileNotFoundError, NotADirectoryError, Refused):
        return ()
    except OSError as error:
        path = state_directory.path_of(directory)
        raise UnusableEnvironment(f"`{path}` cannot be read: {error.strerror}") from error
    return tuple(found)


def read(unfinished: Unfinished) -> Journal:
    """What the journal says; raises `RecoveryNeeded` if it may not be acted on, `FileNotFoundError` if it is gone."""
    with _read(unfinished) as found:
        return found.journal


def _marked(directory: str, identifier: str, home: str | None) -> Iterator[Unfinished]:
    if home is None or os.path.realpath(home) != home:
        return
    unfinished = Unfinished(Path(home), identifier, f"{identifier}{JOURNAL}")
    try:
        with open_state(home) as state:
            if state.exists(f"{identifier}{UNDOING}"):
                unfinished = unfinished._replace(name=f"{identifier}{UNDOING}")
            journal = _load(state, unfinished)[1]
    except (OSError, Refused):
        return  # there is none, or its home is closed to this user
    except RecoveryNeeded:
        yield unfinished  # `read` says what is wrong with it
    else:
        if directory in (*journal.trees, *journal.directories, *journal.roots):
            yield unfinished


@contextlib.contextmanager
def _read(unfinished: Unfinished) -> Iterator[_Journal]:
    try:
        state = open_state(str(unfinished.home))
    except (Refused, NotADirectoryError) as error:
        if not os.path.lexists(unfinished.path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(unfinished.path)) from None
        reasons = error.reasons if isinstance(error, Refused) else ("its state directory is none",)
        raise refused(unfinished, reasons) from error
    with state:
        try:
            made, journal = _load(state, unfinished)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise refused(unfinished, (f"it cannot be read ({error.strerror})",)) from error
        known_as, journal = journal.home, _moved(journal, str(unfinished.home))
        if (journal.identifier, journal.home) != (unfinished.identifier, str(unfinished.home)):
            raise refused(unfinished, (f"it belongs to `{journal.home}`",))
        writer = _writer(made, journal)
        if writer is None:
            name, hint = user_name(made.st_uid), "Remove it, if that was not right"
            raise refused(
                unfinished, (f"it was written by `{name}`, a user that may not change `{journal.home}`",), hint
            )
        if unfinished.name.endswith(JOURNALS) and not state.exists(f"{unfinished.identifier}{OWNER_FILE}"):
            state.stat(unfinished.name)
            raise refused(unfinished, ("its owner file is gone",))
        yield _Journal(state, journal, writer, known_as)


def _moved(journal: Journal, home: str) -> Journal:
    """The journal with the paths of today, if its home was moved to `home`, or is mounted there as well."""
    found = os.stat(home)
    if journal.home == home or journal.identity != (found.st_dev, found.st_ino):
        return journal
    old, new = journal.home, home
    while os.path.basename(old) == os.path.basename(new) != "":
        above = os.path.dirname(old), os.path.dirname(new)
        if os.path.commonpath(above) in above:
            break  # no directory was moved into itself
        old, new = above

    def path(written: str) -> str:
        """What lay beside the home has come with it, or has stayed."""
        with_home = os.path.join(new, os.path.relpath(written, old))
        return with_home if written.startswith(os.path.join(old, "")) and os.path.isdir(with_home) else written

    trees, directories, roots, parts = (
        tuple(home if each == journal.home else path(each) for each in paths)
        for paths in (journal.trees, journal.directories, journal.roots, journal.parts)
    )
    return journal._replace(home=home, trees=trees, directories=directories, roots=roots, parts=parts)


def _load(state: Directory, unfinished: Unfinished) -> tuple[os.stat_result, Journal]:
    with open(state.open_file(unfinished.name), "rb") as file:
        made = os.fstat(file.fileno())
        content = file.read(codec.LIMIT + 1)
    if made.st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), unfinished.name)
    try:
        if made.st_nlink > 1:  # a link to what another user, perhaps root, has written elsewhere
            raise codec.Damaged("it has another name as well")
        return made, codec.decode(content)
    except codec.Newer as error:
        hint = "Use the version of safe-pip that wrote it"
        raise refused(unfinished, (str(error),), hint) from error
    except codec.Damaged as error:
        raise refused(unfinished, (f"the journal is damaged, {error}",)) from error


def _writer(made: os.stat_result, journal: Journal) -> Writer | None:
    roots = []
    for root in journal.roots:
        with contextlib.suppress(Refused, OSError), reach(root) as directory:
            roots.append(directory.status())
    with reach(journal.home) as home:
        return Writer.of(made, home.status(), roots)


def refused(unfinished: Unfinished, reasons: Sequence[str], hint: str | None = None) -> RecoveryNeeded:
    """The error that says why nothing was done about it."""
    named = ", ".join(reasons[:_MOST_NAMED])
    more = f" and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
    what = "be finished" if unfinished.state is State.COMMITTED else "be undone"
    message = f"the unfinished change in `{unfinished.path}` cannot {what}: {named}{more}"
    return RecoveryNeeded(message, hint=hint, state=unfinished.state)


def roll_back(
    unfinished: Unfinished,
    *,
    keep: bool = False,
    aside: Callable[[OpenDirectories, tuple[str, ...]], None] = lambda directories, left: None,
) -> Dead:
    """Undo a dead process's transaction; the caller holds the commit locks that it names, and its owner file.

    On return the environment is as it was before, except for paths that other programs have changed: those in
    directories that serve other environments too, and with `keep` all of them. If there are any, `aside` gets them
    before the journal is removed. What is returned is to be deleted once the locks are let go. Raises `RecoveryNeeded`,
    with nothing changed unless the disk failed, and `FileNotFoundError` if another process was faster.
    """
    with contextlib.suppress(OSError, Refused), open_state(str(unfinished.home)) as state:
        if state.exists(f"{unfinished.identifier}{REVOKED}"):
            parts.put_back(state, unfinished.identifier)
    with _opened(unfinished) as (found, directories):
        steps = _checked_steps(found, directories, keep)
        name = f"{unfinished.identifier}{UNDOING}"
        if unfinished.name != name:
            try:
                takeover.claim(found.state, unfinished.identifier)
            except FileNotFoundError as error:
                raise Superseded from error
        with _superseded(directories):
            takeover.take_away(directories)
            # Until now its process may have gone on.
            steps = _checked_steps(found, directories, keep)
        # Its command promised that it survives a loss of power, whole or not at all.
        durable = proc.is_shared(str(unfinished.home)) or directories.private(parts.DURABLE).status() is not None
        with _superseded(directories):
            left = perform(directories, steps)
            if durable:
                directories.sync()
        if left:
            aside(directories, left)
        parts.end(found.state, unfinished.identifier, UNDOING)
        if durable:
            fs.sync(found.state)
        if left:
            with contextlib.suppress(OSError, Refused):  # `doctor` finds what stays
                finishing.remove_markers(directories)
        return _dead(found)


def finish(unfinished: Unfinished) -> Dead:
    """Do what is left of a dead process's transaction after its commit point; the locks are those of `roll_back`.

    What is returned is to be deleted once they are let go. Raises `RecoveryNeeded`, and `FileNotFoundError` if another
    process was faster; then all is kept for the next command.
    """
    with _opened(unfinished) as (found, directories):
        _check_permission(directories, (), found.state)
        new = finishing.remove_markers(directories)
        finishing.restore_unplanned(directories, finishing.find_unplanned(directories))
        finishing.remove_emptied(directories)
        finishing.seal(directories, new)
        return _dead(found)


def check(unfinished: Unfinished, *, keep: bool = False) -> None:
    """Raise what `roll_back`, or `finish`, would raise before its first change; changes nothing, and needs no lock."""
    with _opened(unfinished) as (found, directories):
        if unfinished.state is State.COMMITTED:
            _check_permission(directories, (), found.state)
        else:
            _checked_steps(found, directories, keep)


def _dead(found: _Journal) -> Dead:
    """What the transaction has, by its journal: its owner file may be gone."""
    journal = found.journal
    others = [each for each in (*journal.trees, *journal.directories) if each != journal.home]
    note = OwnerNote(parts=journal.parts[1:], marks=tuple(os.path.join(each, state_directory.NAME) for each in others))
    return Dead(journal.home, journal.identifier, note, found.known_as)


@contextlib.contextmanager
def _opened(unfinished: Unfinished) -> Iterator[tuple[_Journal, OpenDirectories]]:
    is_over = unfinished.state is State.COMMITTED
    with (
        _read(unfinished) as found,
        _explained(unfinished, found.writer),
        OpenDirectories(found.journal, found.writer, is_over=is_over) as directories,
    ):
        yield found, directories


def _checked_steps(found: _Journal, directories: OpenDirectories, keep: bool) -> tuple[Step, ...]:
    steps = decide(found.journal, lambda operation: observe(directories, operation, is_compared=True), keep=keep)
    _check_writer(directories, steps)
    _check_permission(directories, steps, found.state)
    return steps


def _check_writer(directories: OpenDirectories, steps: Sequence[Step]) -> None:
    writer, reasons = directories.writer, []
    for operation, action in steps:
        if writer is None or writer.is_trusted or action in (Action.LEAVE, Action.DROP_TRASH):
            continue
        live = directories.live(operation)
        found = live.status()
        is_theirs = live.directory is not None and writer.could_change(live.directory.status(), found)
        if not is_theirs or (action is Action.MODE and found is not None and not writer.could_set_mode(found)):
            reasons.append(directories.journal.path(operation))
    if writer is not None and reasons:
        whose = f"is not for `{user_name(writer.uid)}` to change, the journal's writer"
        raise Refused(*(f"`{path}` {whose}" for path in reasons))


def _check_permission(directories: OpenDirectories, steps: Sequence[Step], state: Directory) -> None:
    """Raise `PermissionError` if this user may not do all of it: a part of it is worse than nothing."""
    for operation, action in steps:
        if action is not Action.LEAVE:
            live = directories.live(operation)
            _check_entry(live.directory, live.status(), directories.journal.path(operation))
        if action in (Action.LIVE_TO_STAGE, Action.EXCHANGE):
            staged = directories.staged(operation)
            _check_entry(staged.directory, staged.status(), directories.journal.path(operation))
    _check_entry(state, None, state.path)
    for part in directories.journal.parts:
        for path in (part, f"{part}/{STAGE}", f"{part}/{TRASH}"):
            if (directory := directories.base(path)) is not None:
                _check_entry(directory, None, path)


def _check_entry(directory: Directory | None, entry: os.stat_result | None, path: str) -> None:
    """Raise `PermissionError` if the directory, its sticky bit, or an entry's own mode forbids a move: rename(2)."""
    if directory is None or not _may_change(directory):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    if entry is None or user() in (0, entry.st_uid):
        return
    above = directory.status()
    is_sticky = above.st_mode & stat.S_ISVTX and above.st_uid != user()
    if is_sticky or (stat.S_ISDIR(entry.st_mode) and not entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory.path)


def _may_change(directory: Directory) -> bool:
    if directory.fd is None:
        return os.access(directory.path, os.W_OK)
    effective = os.access in os.supports_effective_ids
    return os.access(".", os.W_OK | os.X_OK, dir_fd=directory.fd, effective_ids=effective)


@contextlib.contextmanager
def _superseded(directories: OpenDirectories) -> Iterator[None]:
    """Raise `Superseded` for what goes wrong because another process has taken the transaction over from this one."""
    try:
        yield
    except (OSError, Refused) as error:
        if takeover.is_taken_over(directories):
            raise Superseded from error
        raise


@contextlib.contextmanager
def _explained(unfinished: Unfinished, writer: Writer) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise refused(unfinished, error.reasons) from error
    except Superseded as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(unfinished.path)) from error
    except FileNotFoundError as error:
        raise refused(unfinished, (f"`{error.filename}` is gone",)) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise refused(unfinished, (f"`{error.filename}`: {error.strerror}",)) from error
        hint = "Run it where it may be written" if writer.uid == user() else f"Run it as `{user_name(writer.uid)}`"
        raise refused(unfinished, (f"`{error.filename}` is not this user's to change",), hint) from error
