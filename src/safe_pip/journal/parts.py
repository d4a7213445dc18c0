"""Where a transaction keeps what is private: a directory on each filesystem that it touches, and its marks.

`<directory>/.safe-pip/<identifier>` is a *part*, the first one in the transaction's home. `<identifier>.home`, beside
the state directory of whatever else it changes, is a *mark*: who locks only that is led to the journal. Both are noted
in the owner file before they are made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import Directory
from safe_pip.journal.directories import STAGE, TRASH, Refused, open_state
from safe_pip.journal.finish import HOME_NOTE, named_home
from safe_pip.journal.owner import SUFFIX, Owner, give_access
from safe_pip.journal.writer import Writer
from safe_pip.locking import state_directory

JOURNAL, COMMITTED, MARK = ".journal", ".committed", ".home"

_TRIES = 100


def make_first(home: str, identifier: str) -> str:
    """Make the part in the state directory of `home`, which is there; on return its path."""
    with open_state(home) as state:
        _make(state, identifier, None)
        return state.join(identifier)


def make_part(owner: Owner, home: str, directory: str, *, is_tree: bool) -> str:
    """Make a part in `directory`; on return its path."""
    part = os.path.join(directory, state_directory.NAME, owner.identifier)
    owner.append_part(part)
    _in_state(directory, lambda state: _make(state, owner.identifier, home), is_tree=is_tree)
    return part


def make_mark(owner: Owner, home: str, directory: str, *, is_tree: bool) -> None:
    """Make the mark in the state directory of `directory` that leads to `home`."""
    name = f"{owner.identifier}{MARK}"

    def make(state: Directory) -> None:
        fs.write_new(state, name, os.fsencode(f"{home}\n"))
        give_access(Path(state.join(name)))

    owner.append_mark(os.path.join(directory, state_directory.NAME))
    _in_state(directory, make, is_tree=is_tree)


def share(parts: Iterable[str], home: str, roots: Iterable[str], inside: Iterable[str]) -> None:
    """Let the group that shares `home` and all `roots`, if one does, undo what the parts are for.

    `inside` are the directories in the stages that something moves out of.
    """
    like = os.stat(home)
    writer = Writer.of(like, like, tuple(map(os.stat, roots)))
    if writer is None or writer.group is None:
        return
    shared = {os.path.join(part, name) for part in parts for name in ("", STAGE, TRASH)}
    for path in inside:
        while path not in shared and os.path.dirname(path) != path:
            shared.add(path)
            path = os.path.dirname(path)
    for path in shared:
        fs.set_access(Path(path), stat.S_IMODE(os.lstat(path).st_mode) | 0o070, group=writer.group)


def sync(parts: Iterable[str], owner: str, marks: Iterable[str]) -> None:
    """Have the disk hold what lies in the private directories themselves, the owner file, and the marks."""
    for part in parts:
        with Directory.open(part) as private:
            for name in private.names():
                fs.sync(private, name)
            fs.sync(private)
    with Directory.open(os.path.dirname(owner)) as state:
        fs.sync(state, os.path.basename(owner))
        fs.sync(state)
        name = os.path.basename(owner).removesuffix(SUFFIX) + MARK
    for directory in {*(os.path.dirname(os.path.dirname(part)) for part in parts), *marks}:
        with open_state(directory) as state, Directory.open(directory) as holder:
            if state.exists(name):
                fs.sync(state, name)
            fs.sync(state)
            fs.sync(holder)


def delete(owner: Owner, home: str) -> None:
    """Delete all that a transaction has, whoever's it was, the owner file last; lets that go in any case.

    Raises the first error, `OSError` or `Refused`, but goes on to what can be deleted. What is on a filesystem that is
    gone is gone.
    """
    errors: list[Exception] = []
    note, identifier = owner.note(), owner.identifier
    try:
        for part in note.parts:
            with _kept(errors):
                _delete_part(part, identifier, home)
        for mark in note.marks:
            with _kept(errors):
                _delete_mark(mark, identifier, home)
        with _kept(errors), open_state(home) as state:
            fs.remove_below(state, identifier)
            if not errors:
                fs.remove(state, identifier + COMMITTED)
        if errors:
            raise errors[0]
        owner.close()
    finally:
        owner.release()


@contextmanager
def _kept(errors: list[Exception]) -> Iterator[None]:
    try:
        yield
    except (OSError, Refused) as error:
        errors.append(error)


def _make(state: Directory, identifier: str, home: str | None) -> None:
    fs.make_directory(state, identifier, 0o700)
    fs.set_mode(state, identifier, 0o700)  # whatever the umask took, or a set-group-ID bit above gave
    with state.child(identifier) as private:
        if home is not None:
            # Whose it is: a note in an owner file may be forged, this cannot.
            fs.write_new(private, HOME_NOTE, os.fsencode(f"{home}\n"))
        for name in (STAGE, TRASH):
            fs.make_directory(private, name, 0o700)
            fs.set_mode(private, name, 0o700)


def _in_state(directory: str, make: Callable[[Directory], None], *, is_tree: bool) -> None:
    """Call `make` with the state directory of `directory`, made if it is missing."""
    path = Path(directory)
    for _ in range(_TRIES):
        try:
            if is_tree:
                state_directory.make(path)
            elif not state_directory.exists(path):
                _make_state(path)
            with open_state(directory) as state:
                return make(state)
        except Refused as error:
            raise UnusableEnvironment(*error.reasons) from error
        except FileNotFoundError:
            if not path.is_dir():
                raise
            # Removed at this moment by who has nothing in it any more.
    raise UnusableEnvironment(f"`{state_directory.path_of(path)}` is removed again and again")


def _make_state(directory: Path) -> None:
    """Make a state directory that is no tree's, so without locks: it is removed with the last thing in it."""
    like = os.stat(directory)
    with suppress(FileExistsError), Directory.open(directory) as holder:
        fs.make_directory(holder, state_directory.NAME, 0o700)
        mode = stat.S_IMODE(like.st_mode) & ~(stat.S_ISVTX | stat.S_IWOTH) | 0o700
        fs.set_access(state_directory.path_of(directory), mode, group=like.st_gid)


def _delete_part(part: str, identifier: str, home: str) -> None:
    state_path, name = os.path.split(part)
    directory, above = os.path.split(state_path)
    if name != identifier or above != state_directory.NAME or not os.path.isdir(directory):
        return
    with suppress(FileNotFoundError), open_state(directory) as state:
        with state.child(name) as private:
            # What is made first may be torn.
            is_ours = named_home(private, HOME_NOTE) == home or set(private.names()) <= {HOME_NOTE}
        if is_ours:
            delete_private(state, name)
    _delete_state(directory)


def delete_private(state: Directory, name: str) -> None:
    """Delete a private directory; whose it is can be told until the last, also after a crash."""
    with suppress(FileNotFoundError):
        with state.child(name) as private:
            for each in sorted(private.names(), key=lambda each: each == HOME_NOTE):
                fs.remove_below(private, each)
        fs.remove_directory(state, name)


def _delete_mark(state_path: str, identifier: str, home: str) -> None:
    directory, above = os.path.split(state_path)
    if above != state_directory.NAME or not os.path.isdir(directory):
        return
    with suppress(FileNotFoundError), open_state(directory) as state:
        delete_mark(state, f"{identifier}{MARK}", home)
    _delete_state(directory)


def delete_mark(state: Directory, name: str, home: str) -> None:
    """Delete a mark, if it is one that leads to `home`."""
    if _is_mark(state, name, os.fsencode(f"{home}\n")):
        fs.remove(state, name)


def _is_mark(state: Directory, name: str, content: bytes) -> bool:
    # Killed, or out of space, while it was made, it has only a part of its content.
    try:
        return state.stat(name).st_size <= len(content) and content.startswith(state.read(name))
    except OSError:
        return False


def _delete_state(directory: str) -> None:
    with suppress(OSError), Directory.open(directory) as holder:
        fs.remove_directory(holder, state_directory.NAME)
