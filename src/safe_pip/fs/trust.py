"""Which directories may hold code that this process is going to run: root runs safe-pip too, in homes of other users.

This user owns them, and no other user can write them, checked up to the root. `pwd` is imported when HOME is not set.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from safe_pip import fs
from safe_pip.fs import attributes, proc


def is_trusted(directory: Path, *, as_parent: bool = False) -> bool:
    """Whether only this user and root can change what lies at `directory`, which exists and is resolved.

    `as_parent`: what this user makes in it. Then it may belong to root, and be open to all with the sticky bit.
    """
    if sys.platform == "win32":  # access lists protect LOCALAPPDATA and the temporary directory
        return True
    user = os.geteuid()
    reachable = True
    for path in reversed((directory, *directory.parents)):
        info = os.lstat(path)
        last = path == directory and not as_parent
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in ((user,) if last else (user, 0)):
            return False
        # The bits of the group, which bound an access list (acl(5)), matter only if the group can get there: with a
        # umask of 002, directories in a home that others cannot search are safe.
        writers = 0o022 if last or reachable else 0o002
        if info.st_mode & writers and (last or not info.st_mode & stat.S_ISVTX):
            return False
        reachable = reachable and bool(info.st_mode & 0o011)
    return True


def may_change(made: os.stat_result, tree: str | Path, of_tree: os.stat_result) -> bool:
    """Whether the user that made something, with this status, may change `tree`: then it is accepted from that user."""
    if made.st_uid in (proc.user(), of_tree.st_uid, 0):
        return True
    if of_tree.st_mode & stat.S_ISVTX:  # other users may only add
        return False
    is_of_group = made.st_gid == of_tree.st_gid or attributes.lets_write(tree, made.st_uid)
    return bool(of_tree.st_mode & stat.S_IWOTH or (of_tree.st_mode & stat.S_IWGRP and is_of_group))


def cache_directory(environ: Mapping[str, str]) -> Path | None:
    """The directory for caches of this user (XDG, on macOS Apple's), or None. It need not exist, but its home does."""
    if sys.platform == "win32":
        local = environ.get("LOCALAPPDATA", "")
        return Path(local) if os.path.isabs(local) else None
    if sys.platform != "darwin" and os.path.isabs(environ.get("XDG_CACHE_HOME", "")):
        return Path(environ["XDG_CACHE_HOME"])
    home = environ.get("HOME", "")
    if not home:
        import pwd

        with contextlib.suppress(KeyError):
            home = pwd.getpwuid(os.getuid()).pw_dir
    if not os.path.isabs(home) or not os.path.isdir(home):
        return None
    return Path(home, "Library/Caches") if sys.platform == "darwin" else Path(home, ".cache")


def make_trusted(directory: Path) -> Path | None:
    """Make `directory`, private to this user; on return its resolved path, or None if it cannot be made or trusted."""
    with contextlib.suppress(OSError):
        existing = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
        if existing != directory:  # root leaves nothing behind in the homes of other users
            if not is_trusted(Path(os.path.realpath(existing)), as_parent=True):
                return None
            fs.make_directories(directory, mode=0o700)
        resolved = Path(os.path.realpath(directory))
        return resolved if is_trusted(resolved) else None
    return None


def own_temporary(*, makes: bool) -> Path | None:
    """The directory below a temporary one that all commands of this user share, private to this user.

    If possible it lies where no other host sees it and no other user can replace it. Its name cannot be guessed. None
    if there is none yet, unless it `makes` one; raises `OSError` if that fails.
    """
    prefix = f".safe-pip-{proc.user()}-"
    named = (os.environ.get("TMPDIR"), "/tmp", "/var/tmp")
    places = sorted((Path(os.path.realpath(name)) for name in named if name), key=_is_open)
    for place in places:
        for found in sorted(place.glob(f"{prefix}*")):
            with contextlib.suppress(OSError):
                info = os.lstat(found)
                is_private = sys.platform == "win32" or (info.st_uid == os.geteuid() and not info.st_mode & 0o077)
                if stat.S_ISDIR(info.st_mode) and is_private:
                    return found
        if makes:
            with contextlib.suppress(OSError):
                return fs.make_private_directory(place, prefix)
        elif os.access(place, os.W_OK):
            return None
    return fs.make_private_directory(prefix=prefix) if makes else None


def _is_open(place: Path) -> tuple[bool, bool]:
    """Whether other hosts see what lies there, and whether other users can replace it."""
    is_safe = False
    with contextlib.suppress(OSError):
        is_safe = is_trusted(place, as_parent=True)
    return proc.is_shared(str(place)), not is_safe
