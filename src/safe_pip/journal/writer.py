"""Whose journals are acted on, and what they may ask for.

Root repairs what users leave behind, so what a journal says proves nothing. Accepted is the journal of this user, of
root, of the environment's owner or, where a group shares the environment, of that group. Of anybody else than this
user and root it moves and deletes only what its writer could have moved and deleted himself.
"""

import os
import stat
import sys
from collections.abc import Iterable
from typing import NamedTuple


class Writer(NamedTuple):
    """Who wrote a journal: `group` is the one that shares the environment, if one does."""

    uid: int
    group: int | None
    is_trusted: bool
    """Whether this user acts for himself, or on root's word."""

    @classmethod
    def of(cls, made: os.stat_result, home: os.stat_result, roots: Iterable[os.stat_result]) -> "Writer | None":
        """Who made a file in the state directory of `home`, about what is below `roots`; None if he is not accepted."""
        if sys.platform == "win32":
            return cls(0, None, True)
        group = home.st_gid if _shares(home, roots) else None
        trusted = made.st_uid in (os.geteuid(), 0)
        if not (trusted or made.st_uid == home.st_uid or (group is not None and made.st_gid == group)):
            return None
        return cls(made.st_uid, group, trusted)

    @property
    def name(self) -> str:
        """What to call him."""
        return user_name(self.uid)

    def made(self, private: os.stat_result) -> bool:
        """Whether a private directory can be his, with nothing in it that somebody put there whom he does not trust."""
        if sys.platform == "win32":
            return True
        if private.st_uid != self.uid or private.st_mode & stat.S_IWOTH:
            return False
        return not private.st_mode & stat.S_IWGRP or private.st_gid == self.group

    def could_change(self, directory: os.stat_result, entry: os.stat_result | None = None) -> bool:
        """Whether he could have moved `entry`, or made and removed entries of his own, in this directory.

        Moving a directory to another one takes the right to write in it as well: rename(2).
        """
        if self.is_trusted:
            return True
        if not self._could_write(directory):
            return False
        if entry is not None and directory.st_mode & stat.S_ISVTX and self.uid not in (directory.st_uid, entry.st_uid):
            return False
        return entry is None or not stat.S_ISDIR(entry.st_mode) or self._could_write(entry)

    def could_set_mode(self, entry: os.stat_result) -> bool:
        """Whether he could have changed the permissions of this."""
        return self.is_trusted or entry.st_uid == self.uid

    def _could_write(self, directory: os.stat_result) -> bool:
        if directory.st_uid == self.uid:
            return True
        return self.group is not None and directory.st_gid == self.group and bool(directory.st_mode & stat.S_IWGRP)


def is_accepted(made: os.stat_result, directory: os.stat_result) -> bool:
    """Whether who made something in `directory` is one of those who may say what happens there."""
    return Writer.of(made, directory, ()) is not None


def user_name(uid: int) -> str:
    """The name of a user, or his number where he has none."""
    if sys.platform == "win32":
        return ""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _shares(home: os.stat_result, roots: Iterable[os.stat_result]) -> bool:
    """Whether the group of `home` may write it and all roots, and not everybody may."""
    return all(
        each.st_gid == home.st_gid and each.st_mode & stat.S_IWGRP and not each.st_mode & stat.S_IWOTH
        for each in (home, *roots)
    )
