"""What a transaction has on disk beside its journal and its owner file: private directories and marks.

`<directory>/.safe-pip/<identifier>` is a *part*: one on each filesystem, the first in the home. `<identifier>.home`, in
the state directory of anything else that is changed, is a *mark*: it leads a process that locks only that directory to
the journal. Both are noted in the owner file before they are made.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import Directory, attributes, proc
from safe_pip.fs.directory import fresh_names
from safe_pip.journal.directories import STAGE, TRASH, Refused, Writer, open_state, reach
from safe_pip.journal.owner import Owner, OwnerNote, give_access, read
from safe_pip.locking import state_directory
from safe_pip.locking.state_directory import COMMITTED, ENDED, JOURNALS, MARK, OWNER_FILE, REVOKED

JOURNAL = "journal"
"""The journal in the first part, before it is published."""
DURABLE = "durable"
"""A file in the first part of a transaction that is to survive a loss of power."""
HOME_NOTE = "home"
"""A file in each other part that names the home: a note in an owner file may be forged, this cannot."""
_LONGEST = 1 << 16
_TRIES = 100


def make_part(owner: Owner, home: str, directory: str, *, is_tree: bool = True) -> str:
    """Make a part in `directory`; on return its path."""
    part = os.path.join(directory, state_directory.NAME, owner.identifier)

    def make(state: Directory) -> None:
        make_private(state, owner.identifier)
        with state.child(owner.identifier) as private:
            if directory != home:
                fs.write_new(private, HOME_NOTE, os.fsencode(f"{home}\n"))
            make_private(private, STAGE)

    if directory != home:
        owner.append("part", part)
    _in_state(directory, make, is_tree=is_tree)
    return part


def make_mark(owner: Owner, home: str, directory: str, *, is_tree: bool) -> None:
    """Make the mark in the state directory of `directory` that leads to `home`."""
    name = f"{owner.identifier}{MARK}"

    def make(state: Directory) -> None:
        fs.write_new(state, name, os.fsencode(f"{home}\n"))
        give_access(state, name)

    owner.append("mark", os.path.join(directory, state_directory.NAME))
    _in_state(directory, make, is_tree=is_tree)


def named_home(directory: Directory, name: str) -> str | None:
    """The home that a mark, or the note in a part, names; None if it is none, or gone."""
    content = ""
    with suppress(OSError):
        if directory.stat(name).st_size <= _LONGEST:
            content = os.fsdecode(directory.read(name))
    is_path = content.endswith("\n") and os.path.isabs(content) and "\0" not in content
    return content[:-1] if is_path else None


def share(parts: Mapping[str, Directory], home: str, roots: Iterable[str], inside: Iterable[str]) -> None:
    """Let a group that shares `home` and all `roots` undo what moves out of the directories `inside` the stages.

    `parts` are the open private directories, by the paths of their stages.
    """
    like = os.stat(home)
    writer = Writer.of(like, like, tuple(map(os.stat, roots)))
    if writer is None or (group := writer.group) is None:
        return

    def give(directory: Directory, name: str) -> None:
        mode = stat.S_IMODE(directory.stat(name).st_mode) | 0o070
        attributes.set_access(directory, name, mode, group=group)

    for part in parts.values():
        above, name = os.path.split(part.path)
        with Directory.open(above) as state:
            give(state, name)
        for each in filter(part.exists, (STAGE, TRASH)):
            give(part, each)
    shared = {*parts}
    for path in inside:
        while path not in shared:
            shared.add(path)
            above, name = os.path.split(path)
            with Directory.open(above) as directory:
                give(directory, name)
            path = above


def sync(parts: Iterable[str], owner: Owner, marks: Iterable[str]) -> None:
    """Have the disk hold what lies in the private directories beside stages, the owner file, and the marks."""
    for part in parts:
        with Directory.open(part) as private:
            for name in private.names():
                if name != STAGE:
                    fs.sync(private, name)
            fs.sync(private)
    for directory in {*(os.path.dirname(os.path.dirname(part)) for part in parts), *marks}:
        with Directory.open(directory) as holder, holder.child(state_directory.NAME) as state:
            name = owner.path.name if state.path == str(owner.path.parent) else f"{owner.identifier}{MARK}"
            if name.endswith(MARK) or owner.note != OwnerNote():  # nothing in it is needed if it notes nothing
                with suppress(FileNotFoundError):
                    fs.sync(state, name)
            fs.sync(state)
            fs.sync(holder)


def delete(home: str, identifier: str, note: OwnerNote, known_as: str = "") -> None:
    """Delete all that a transaction has: parts and marks as `note` has them, then the journal, then the owner file.

    `known_as` is the path of `home` in them, if it was another one.

    Raises the first error, `OSError` or `Refused`, but goes on to what can be deleted; then the owner file is still
    there. What is on a filesystem that is gone is gone. After a crash another call goes on.
    """
    errors: list[Exception] = []

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except (OSError, Refused) as error:
            errors.append(error)

    for part in note.parts:
        with noted():
            _delete_part(part, identifier, known_as or home)
    for mark in note.marks:
        with noted():
            _delete_mark(mark, f"{identifier}{MARK}", known_as or home)
    with noted(), open_state(home) as state:
        fs.remove_below(state, identifier)
        fs.remove_below(state, identifier + REVOKED)
        if not errors:
            end(state, identifier, COMMITTED)
            fs.remove(state, identifier + OWNER_FILE)
    if errors:
        raise errors[0]


def end(state: Directory, identifier: str, suffix: str) -> None:
    """Let a journal, or a mark, go. In a tree that several hosts may read it leaves a name in place of those before."""
    names = fresh_names(state.path, state.fd) if proc.is_shared_device(state.identity[0], state.path) else []
    if state_directory.COMMIT not in names:
        fs.remove(state, f"{identifier}{suffix}")
        return
    older = [name for name in names if name.endswith(ENDED)]
    with suppress(FileNotFoundError):
        fs.move_over(state, f"{identifier}{suffix}", state, f"{identifier}{ENDED}")
        for name in older:
            fs.remove(state, name)


class Dead(NamedTuple):
    """A transaction in the state directory of `home` that is over, if its process is dead and no journal needs it.

    `note` is what it has elsewhere: then it was undone, or finished. None: what its owner file says. `known_as` is the
    path of `home` in the note, if it was another one.
    """

    home: str
    identifier: str
    note: OwnerNote | None = None
    known_as: str = ""

    def delete(self) -> None:
        """Delete all of it. No lock is held but that on its owner file, so it may take its time.

        What another process deletes at this time is left to it, and what cannot be deleted to the next sweep. Never
        raises.
        """
        path = state_directory.path_of(Path(self.home)) / f"{self.identifier}{OWNER_FILE}"
        with suppress(OSError, Refused), ExitStack() as held:
            owner = Owner.adopt(path)
            if owner is not None:
                held.callback(owner.close)
            elif self.note is None or os.path.lexists(path):
                return
            # Looked for now: until its owner file was locked here, its process may have been at work.
            if self.note is None and owner is not None:
                with open_state(self.home) as state:
                    _revoke(state, self.identifier, makes=True)
            journals = {f"{self.identifier}{suffix}" for suffix in (*JOURNALS, COMMITTED)}
            if self.note is not None or journals.isdisjoint(fs.names(path.parent)):
                delete(self.home, self.identifier, self.note or read(path), self.known_as)


def revoke(directory: str, name: str) -> bool:
    """Keep the process of an owner file or a mark, unless the owner file is locked, from publishing a journal.

    True if it has published one: then it is to be undone. What this user may not change stays as it is.
    """
    identifier, suffix = os.path.splitext(name)
    home: str | None = directory
    with suppress(OSError, Refused):
        if suffix == MARK:
            with open_state(directory) as state:
                home = named_home(state, name)
        owner = Owner.adopt(Path(home, state_directory.NAME, f"{identifier}{OWNER_FILE}")) if home else None
        if owner is not None and home:
            with closing(owner), open_state(home) as state:
                return _revoke(state, identifier)
    return False


def _revoke(state: Directory, identifier: str, *, makes: bool = False) -> bool:
    """Like `revoke`, with the owner file locked.

    `makes`: before the owner file is deleted, a process that has no private directory yet has to be told as well.
    """
    journals = {f"{identifier}{suffix}" for suffix in JOURNALS}
    names, revoked = fresh_names(state.path, state.fd), f"{identifier}{REVOKED}"
    if not journals.isdisjoint(names):
        return True
    if f"{identifier}{COMMITTED}" in names:
        return False
    if revoked not in names:
        if identifier in names:
            fs.move(state, identifier, state, revoked)
        elif makes:
            fs.make_directory(state, revoked, 0o700)
        else:
            return False
    # Both are there if the process made its own one later than that.
    for each in {revoked, identifier} & {*names, revoked}:
        with suppress(FileNotFoundError), state.child(each) as private:
            fs.remove(private, JOURNAL)
    if journals.isdisjoint(fresh_names(state.path, state.fd)):
        return False
    put_back(state, identifier)
    return True


def put_back(state: Directory, identifier: str) -> None:
    """Give a private directory its name again, of which a journal was published after all."""
    try:
        fs.move(state, f"{identifier}{REVOKED}", state, identifier)
    except FileNotFoundError:
        return
    except FileExistsError:
        fs.remove_directory(state, f"{identifier}{REVOKED}")


def delete_private(state: Directory, name: str) -> None:
    """Delete a private directory; the note that names its home goes last, for the case of a crash."""
    with suppress(FileNotFoundError):
        with state.child(name) as private:
            for each in sorted(private.names(), key=lambda each: each == HOME_NOTE):
                fs.remove_below(private, each)
        fs.remove_directory(state, name)


def make_private(directory: Directory, name: str) -> None:
    """Make a directory that only this user can read."""
    fs.make_directory(directory, name, 0o700)
    fs.set_mode(directory, name, 0o700)  # whatever the umask took, or a set-group-ID bit above gave


def _in_state(directory: str, make: Callable[[Directory], None], *, is_tree: bool) -> None:
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
            if not _is_directory(directory):
                raise
            # Another transaction has just removed it, with the last thing of its own in it.
    raise UnusableEnvironment(f"`{state_directory.path_of(path)}` is removed again and again")


def _make_state(directory: Path) -> None:
    """Make a state directory that is no tree's, so without locks: it is removed with the last thing in it."""
    with suppress(FileExistsError), Directory.open(directory) as holder:
        like = holder.status()
        fs.make_directory(holder, state_directory.NAME, 0o700)
        mode = stat.S_IMODE(like.st_mode) & ~(stat.S_ISVTX | stat.S_IWOTH) | 0o700
        attributes.set_access(holder, state_directory.NAME, mode, group=like.st_gid)


def _is_directory(path: str) -> bool:
    """Whether a directory is there; raises `OSError` if that cannot be told."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISDIR(os.stat(path).st_mode)
    return False


def _delete_part(part: str, identifier: str, home: str) -> None:
    state_path, name = os.path.split(part)
    directory, above = os.path.split(state_path)
    if name != identifier or above != state_directory.NAME or not _is_directory(directory):
        return
    with suppress(FileNotFoundError), open_state(directory) as state:
        with state.child(name) as private:
            # A crash may have torn the note, which is made first.
            is_ours = named_home(private, HOME_NOTE) == home or set(private.names()) <= {HOME_NOTE}
        if is_ours:
            delete_private(state, name)
    _delete_state(directory)


def _delete_mark(state_path: str, name: str, home: str) -> None:
    directory, above = os.path.split(state_path)
    if above != state_directory.NAME or not _is_directory(directory):
        return
    content = os.fsencode(f"{home}\n")
    with suppress(FileNotFoundError, NotADirectoryError, Refused), open_state(directory) as state:
        # A mark that a crash or a full disk has torn has only a part of its content.
        is_ours = False
        with suppress(OSError):
            is_ours = state.stat(name).st_size <= len(content) and content.startswith(state.read(name))
        if is_ours:
            end(state, name.removesuffix(MARK), MARK)
    _delete_state(directory)


def _delete_state(directory: str) -> None:
    """Remove a state directory that was made for a part or a mark alone, if nothing is in it any more."""
    with suppress(OSError, Refused), reach(directory) as holder:
        fs.remove_directory(holder, state_directory.NAME)
