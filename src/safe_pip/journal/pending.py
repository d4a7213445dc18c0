"""The journals of transactions that are at work or were left unfinished: found, read, and believed or refused."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safe_pip.errors import RecoveryNeeded, State, UnusableEnvironment
from safe_pip.fs import Directory
from safe_pip.journal import codec
from safe_pip.journal.directories import Refused, Writer, open_state, reach, status, user_name
from safe_pip.journal.parts import named_home
from safe_pip.locking import state_directory
from safe_pip.locking.state_directory import COMMITTED, JOURNAL, MARK, OWNER_FILE
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
    def state(self) -> State:
        """The state of the environment while it is there."""
        return State.COMMITTED if self.name.endswith(COMMITTED) else State.UNFINISHED


class Opened(NamedTuple):
    """A journal that may be acted on, and the state directory it is in."""

    state: Directory
    made: os.stat_result
    journal: Journal
    writer: Writer


def owner_file(unfinished: Unfinished) -> Path:
    """The file that the process of the transaction keeps locked."""
    return state_directory.path_of(unfinished.home) / f"{unfinished.identifier}{OWNER_FILE}"


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
                if dot + suffix == JOURNAL:
                    found.append(Unfinished(Path(real), stem, name))
                elif dot + suffix == MARK and codec.is_identifier(stem):
                    found += _marked(real, stem, named_home(state, name))
    except (FileNotFoundError, NotADirectoryError, Refused):
        return ()
    except OSError as error:
        path = state_directory.path_of(directory)
        raise UnusableEnvironment(f"`{path}` cannot be read: {error.strerror}") from error
    return tuple(found)


def read(unfinished: Unfinished) -> Journal:
    """What the journal says; raises `RecoveryNeeded` if it may not be acted on, `FileNotFoundError` if it is gone."""
    with opened(unfinished) as found:
        return found.journal


def _marked(directory: str, identifier: str, home: str | None) -> Iterator[Unfinished]:
    """The journal that a mark in `directory` leads to."""
    if home is None or os.path.realpath(home) != home:
        return
    unfinished = Unfinished(Path(home), identifier, f"{identifier}{JOURNAL}")
    try:
        with open_state(home) as state:
            journal = _load(state, unfinished)[1]
    except (OSError, Refused):
        return  # there is none, or its home is closed to this user
    except RecoveryNeeded:
        yield unfinished  # `read` says what is wrong with it
    else:
        if directory in (*journal.trees, *journal.directories, *journal.roots):
            yield unfinished


@contextlib.contextmanager
def opened(unfinished: Unfinished) -> Iterator[Opened]:
    """Open the journal if it may be acted on, else raise what `read` raises."""
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
        if journal.identifier != unfinished.identifier or journal.home != str(unfinished.home):
            raise refused(unfinished, (f"it belongs to `{journal.home}`",))
        writer = _writer(made, journal)
        if writer is None:
            name, hint = user_name(made.st_uid), "Remove it, if that was not right"
            raise refused(unfinished, (f"`{name}` wrote it, and has no say there",), hint)
        if unfinished.name.endswith(JOURNAL) and not state.exists(f"{unfinished.identifier}{OWNER_FILE}"):
            state.stat(unfinished.name)
            raise refused(unfinished, ("its owner file is gone",))
        yield Opened(state, made, journal, writer)


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
            roots.append(status(directory))
    with reach(journal.home) as home:
        return Writer.of(made, status(home), roots)


def refused(unfinished: Unfinished, reasons: Sequence[str], hint: str | None = None) -> RecoveryNeeded:
    """The error that says why nothing was done about it."""
    named = ", ".join(reasons[:_MOST_NAMED])
    more = f" and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
    what = "be finished" if unfinished.state is State.COMMITTED else "be undone"
    message = f"the unfinished change in `{unfinished.path}` cannot {what}: {named}{more}"
    return RecoveryNeeded(message, hint=hint, state=unfinished.state)
