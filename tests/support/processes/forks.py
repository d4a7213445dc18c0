"""A forked child that calls one function: it is killed meanwhile, or runs as another user."""

from __future__ import annotations

import os
import pwd
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faults import disk


def in_child(act: Callable[[], object], *, user: str | None = None, groups: tuple[int, ...] = ()) -> None:
    """Call `act` in a child, which ends without cleaning up; fails if `act` raises."""

    def act_as_user() -> None:
        if user is not None:
            become(user, groups)
        act()

    assert _status(act_as_user) == 0


def killed_at(k: int, act: Callable[[], object]) -> bool:
    """Call `act` in a child that is killed before its change `k`; False if it makes fewer changes."""

    def act_until_killed() -> None:
        with disk.kill_at(k):
            act()

    status = _status(act_until_killed)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _status(act: Callable[[], object]) -> int:
    """The exit status of a child that calls `act`: 1 if it raises, negative if a signal kills the child."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def become(user: str, groups: tuple[int, ...] = ()) -> None:
    """Become this user, with these supplementary groups."""
    found = pwd.getpwnam(user)
    os.setgroups(list(groups))
    os.setgid(found.pw_gid)
    os.setuid(found.pw_uid)


def need_user(name: str = "nobody") -> pwd.struct_passwd:
    """A second, unprivileged user for a child process; skips the test if there is none."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pytest.skip(f"there is no user `{name}`")


def reachable(path: Path) -> Path:
    """Let other users reach `path`: give them access to the directories of pytest above it."""
    for directory in (path, *path.parents):
        if directory.stat().st_uid == os.geteuid() and len(directory.parts) > 2:
            directory.chmod(directory.stat().st_mode | 0o055)
    return path
