"""Several users on one machine: which locks they may take, and which users are not trusted."""

import json
import os
import pwd
import struct
import subprocess
from pathlib import Path

import pytest

from safe_pip.locking.inheritance import VARIABLE
from tests.support.processes.workers import Worker, workers


@pytest.mark.parametrize("how", ["reading", "building"])
def test_a_user_without_write_permission_can_lock_readable_directories(common: Path, nobody: str, how: str) -> None:
    with workers(common, count=1) as (root,), workers(common, count=1, user=nobody) as (user,):
        root.hold("adding")
        root.release()
        user.hold(how)
        root.start_to_wait("replacing")
        user.release()
        root.expect("held")
        user.start_to_wait(how)
        root.release()
        user.expect("held")


def test_a_reader_without_write_permission_needs_no_state_directory(common: Path, nobody: str) -> None:
    with workers(common, count=1) as (root,), workers(common, count=1, user=nobody) as (user,):
        user.hold("reading")
        root.start_to_wait("replacing")
        user.tell(do="release")
        user.tell(do="release")  # it may read once more: there is a state directory by now
        root.expect("held")


@pytest.mark.parametrize("how", ["adding", "replacing", "reserving"])
def test_a_change_without_write_permission_is_refused(common: Path, nobody: str, how: str) -> None:
    with workers(common, count=1, user=nobody) as (user,):
        user.tell(do="hold", how=how)
        event = user.expect("error")
        assert event["code"] == "unusable-environment"
        assert f"`{common}` is not writable" in event["message"]


def test_the_state_directory_that_root_makes_belongs_to_the_owner_of_the_tree(common: Path, nobody: str) -> None:
    user = pwd.getpwnam(nobody)
    os.chown(common, user.pw_uid, user.pw_gid)
    os.chmod(common, 0o2775)
    os.umask(os.umask(0o077))
    with workers(common, count=1) as (root,):
        root.hold("adding")
    state = common / ".safe-pip"
    for path, mode in ((state, 0o2775), (state / "commit", 0o664), (state / "commit.gate", 0o664)):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (user.pw_uid, user.pw_gid, mode)


def test_a_state_directory_that_another_user_put_there_is_refused(common: Path, nobody: str) -> None:
    user = pwd.getpwnam(nobody)
    os.chmod(common, 0o1777)
    state = common / ".safe-pip"
    state.mkdir()
    os.chown(state, user.pw_uid, user.pw_gid)
    with workers(common, count=1) as (root,):
        for how in ("adding", "reading", "building"):
            root.tell(do="hold", how=how)
            event = root.expect("error")
            assert event["code"] == "unusable-environment"
            assert f"belongs to user {user.pw_uid}" in event["message"]


def access_list(user: int, *, writes: bool) -> bytes:
    """The tree's access list, in the form of the kernel (acl(5)): owner, this user, group, mask, others."""
    entries = [(0x01, 7, -1), (0x02, 7 if writes else 5, user), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.mark.parametrize("first", ["nobody", "root"])
@pytest.mark.parametrize("shared", ["to all", "by a list"])
def test_users_that_may_all_write_the_tree_share_its_locks(common: Path, nobody: str, shared: str, first: str) -> None:
    os.chmod(common, 0o777 if shared == "to all" else 0o755)
    if shared == "by a list":
        try:
            os.setxattr(common, "system.posix_acl_access", access_list(pwd.getpwnam(nobody).pw_uid, writes=True))
        except OSError:
            pytest.skip("this filesystem has no access lists")
    with workers(common, count=1, user=nobody) as (user,), workers(common, count=1) as (root,):
        one, other = (user, root) if first == "nobody" else (root, user)
        one.hold("replacing")
        other.start_to_wait("replacing")
        one.release()
        other.expect("held")
        other.release()
        for each in (one, other):
            for how in ("adding", "building", "reserving", "reading"):
                each.hold(how)
                each.release()


def test_a_user_whom_the_access_list_lets_only_read_makes_no_state_directory(common: Path, nobody: str) -> None:
    user = pwd.getpwnam(nobody)
    os.chmod(common, 0o775)
    try:
        os.setxattr(common, "system.posix_acl_access", access_list(user.pw_uid, writes=False))
    except OSError:
        pytest.skip("this filesystem has no access lists")
    (common / ".safe-pip").mkdir()
    os.chown(common / ".safe-pip", user.pw_uid, user.pw_gid)
    with workers(common, count=1) as (root,):
        root.tell(do="hold", how="reading")
        assert f"belongs to user {user.pw_uid}" in root.expect("error")["message"]


def test_a_member_of_the_group_that_may_write_the_tree_may_make_its_state_directory(common: Path, nobody: str) -> None:
    user = pwd.getpwnam(nobody)
    os.chown(common, 0, user.pw_gid)
    os.chmod(common, 0o2775)
    with workers(common, count=1, user=nobody) as (member,), workers(common, count=1) as (root,):
        member.hold("replacing")
        root.start_to_wait("replacing")
        assert (common / ".safe-pip").stat().st_uid == user.pw_uid


def test_a_forged_claim_of_another_user_is_not_believed(common: Path, nobody: str, tmp_path: Path) -> None:
    user = pwd.getpwnam(nobody)
    forged = common / "forged"
    forged.mkdir(mode=0o700)
    for name in ("alive", "commit", "commit.gate"):
        (forged / name).touch()
    with workers(common, count=1) as (holder,):
        holder.hold("replacing")
        claims = [
            [rank, True, [path.stat().st_dev, path.stat().st_ino], str(path)]
            for rank, path in ((1, common), (3, common / ".safe-pip" / "commit"))
        ]
        (forged / "held").write_text(json.dumps({"pid": 1, "outer": None, "locks": claims}))
        for path in (forged, *forged.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        with subprocess.Popen(["flock", "-x", forged / "alive", "cat"], stdin=subprocess.PIPE):
            believer = Worker(common, variables={VARIABLE: str(forged)})
            believer.start_to_wait("replacing")
            believer.close()
