"""A forked child that does one thing: dies at it, or does it as another user."""

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
    """Have a child do it, and end without cleaning up; fails where it raises."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            if user is not None:
                become(user, groups)
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def killed_at(k: int, act: Callable[[], object]) -> bool:
    """Have a child do it that is killed before its change `k`; False if it does not make so many."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with disk.kill_at(k):
                act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def become(user: str, groups: tuple[int, ...] = ()) -> None:
    """Become this user for ever, also in these supplementary groups."""
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
    """Let others pass through the directories of pytest's above `path`, which they may enter."""
    for directory in (path, *path.parents):
        if directory.stat().st_uid == os.geteuid() and len(directory.parts) > 2:
            directory.chmod(directory.stat().st_mode | 0o055)
    return path
