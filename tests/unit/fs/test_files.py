"""Links and the copies that stand in for them, whole trees deleted, and what is synced."""

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_pip import fs
from tests.support.faults import disk

A_TIME = 1_600_000_000_123_456_700


@pytest.fixture
def path(empty: Path) -> Path:
    return empty


@pytest.fixture
def place(path: Path) -> Iterator[fs.Directory]:
    with fs.Directory.open(path) as directory:
        yield directory


@pytest.fixture
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that has no hard links, or a kernel that refuses this one."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(getattr(errno, request.param), "no")

    monkeypatch.setattr(os, "link", refuse)


refused_links = pytest.mark.parametrize(
    "no_links", ["EPERM", "EACCES", "EMLINK", "ENOTSUP", "EXDEV", "ENOSYS"], indirect=True
)


def test_a_link_is_to_the_same_file(path: Path, place: fs.Directory) -> None:
    (path / "file").write_bytes(b"content")
    fs.link(place, "file", place, "new")
    assert place.stat("new").st_ino == place.stat("file").st_ino


@pytest.mark.parametrize("target", ["file", "nowhere", "inner"])
def test_of_a_symbolic_link_the_link_itself_is_linked(path: Path, place: fs.Directory, target: str) -> None:
    (path / "file").write_bytes(b"content")
    (path / "inner").mkdir()
    (path / "link").symlink_to(target)
    fs.link(place, "link", place, "new")
    assert os.readlink(path / "new") == target


@refused_links
@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("mode", [0o644, 0o755, 0o400, 0o2755, 0o4711])
def test_where_links_are_refused_a_copy_is_the_same_in_all_but_its_inode(
    path: Path, place: fs.Directory, mode: int
) -> None:
    file = path / "file"
    file.write_bytes(os.urandom(3 << 20))
    if os.geteuid() == 0:
        os.chown(file, 12345, 54321)
    file.chmod(mode)
    os.utime(file, ns=(A_TIME - 1, A_TIME))
    try:
        os.setxattr(file, "user.note", b"kept")
        attributes = True
    except (OSError, AttributeError):
        attributes = False
    fs.link(place, "file", place, "new")
    old, new = place.stat("file"), place.stat("new")
    assert place.read("new") == place.read("file")
    assert (new.st_mode, new.st_mtime_ns, new.st_size) == (old.st_mode, A_TIME, old.st_size)
    assert (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid)
    assert new.st_ino != old.st_ino
    if attributes:
        assert os.getxattr(path / "new", "user.note") == b"kept"


@refused_links
@pytest.mark.usefixtures("no_links")
def test_where_links_are_refused_a_symbolic_link_is_made_anew(path: Path, place: fs.Directory) -> None:
    (path / "link").symlink_to("nowhere")
    os.utime(path / "link", ns=(A_TIME, A_TIME), follow_symlinks=False)
    fs.link(place, "link", place, "new")
    assert os.readlink(path / "new") == "nowhere"
    assert place.stat("new").st_mtime_ns == A_TIME


def test_a_file_on_another_filesystem_is_copied(path: Path, place: fs.Directory, elsewhere: fs.Directory) -> None:
    (path / "file").write_bytes(b"content")
    fs.link(place, "file", elsewhere, "new")
    assert elsewhere.read("new") == b"content"


@pytest.mark.parametrize("no_links", ["EPERM"], indirect=True)
@pytest.mark.usefixtures("no_links")
def test_the_rights_of_an_owner_are_not_given_to_another_user(
    path: Path, place: fs.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to have a file of another user")
    (path / "file").write_bytes(b"")
    os.chown(path / "file", 12345, 54321)
    (path / "file").chmod(0o6755)

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchown", refuse)
    fs.link(place, "file", place, "new")
    assert stat.S_IMODE(place.stat("new").st_mode) == 0o755


@pytest.mark.parametrize("no_links", ["EPERM", "EEXIST"], indirect=True)
@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("name", ["file", "link"])
def test_neither_a_link_nor_a_copy_is_over_anything(path: Path, place: fs.Directory, name: str) -> None:
    (path / "file").write_bytes(b"content")
    (path / "link").symlink_to("nowhere")
    (path / "taken").write_bytes(b"taken")
    (path / "taken2").symlink_to("elsewhere")
    for taken in ("taken", "taken2"):
        with pytest.raises(FileExistsError):
            fs.link(place, name, place, taken)
    assert place.read("taken") == b"taken"
    assert sorted(place.names()) == ["file", "link", "taken", "taken2"]


@pytest.mark.parametrize("no_links", ["EIO", "ENOSPC", "EROFS", "EDQUOT"], indirect=True)
@pytest.mark.usefixtures("no_links")
def test_what_is_wrong_with_the_disk_is_not_answered_with_a_copy(path: Path, place: fs.Directory) -> None:
    (path / "file").write_bytes(b"content")
    with pytest.raises(OSError):
        fs.link(place, "file", place, "new")
    assert place.names() == ["file"]


def test_a_directory_is_not_linked(path: Path, place: fs.Directory) -> None:
    (path / "inner").mkdir()
    with pytest.raises(OSError):
        fs.link(place, "inner", place, "new")
    with pytest.raises(FileNotFoundError):
        fs.link(place, "missing", place, "new")
    assert place.names() == ["inner"]


@pytest.mark.parametrize("no_links", ["EPERM"], indirect=True)
@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("torn", [False, True])
def test_of_a_copy_that_failed_nothing_is_left_but_after_a_crash(path: Path, place: fs.Directory, torn: bool) -> None:
    (path / "file").write_bytes(b"content")
    with pytest.raises(OSError) as caught, disk.error_at(0, errno.ENOSPC, torn=torn, only={"write"}):
        fs.link(place, "file", place, "new")
    assert caught.value.errno == errno.ENOSPC
    assert place.names() == ["file"]
    with pytest.raises(disk.Crashed), disk.crash_at(0, torn=torn, only={"write"}):
        fs.link(place, "file", place, "new")
    assert place.read("new") == (b"con" if torn else b"")


# Deletion


def plant(path: Path) -> Path:
    """A tree with links that lead out of it, and what they lead to."""
    (path / "outside" / "inner").mkdir(parents=True)
    (path / "outside" / "file").write_bytes(b"precious")
    (path / "tree" / "a" / "b").mkdir(parents=True)
    (path / "tree" / "a" / "b" / "file").touch()
    (path / "tree" / "a" / "up").symlink_to("..")
    (path / "tree" / "a" / "out").symlink_to("../../outside")
    (path / "tree" / "file").symlink_to(path / "outside" / "file")
    (path / "tree" / "dangling").symlink_to("nowhere")
    os.mkfifo(path / "tree" / "pipe")
    os.link(path / "outside" / "file", path / "tree" / "hard")
    return path / "tree"


def test_a_tree_is_deleted_and_nothing_that_its_links_lead_to(path: Path, place: fs.Directory) -> None:
    plant(path)
    fs.remove_below(place, "tree")
    assert place.names() == ["outside"]
    assert sorted(os.listdir(path / "outside")) == ["file", "inner"]
    (path / "link").symlink_to("outside")
    fs.remove_below(place, "link")
    assert place.names() == ["outside"]
    assert sorted(os.listdir(path / "outside")) == ["file", "inner"]


def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(path: Path, place: fs.Directory) -> None:
    plant(path)
    (path / "tree" / "a" / "b" / "file").unlink()

    def swap(operation: str, told: str, source: str) -> None:
        if told.endswith("/tree/a/b") and operation == "remove_directory":
            (path / "tree" / "a" / "b").rmdir()
            (path / "tree" / "a" / "b").symlink_to("../../outside")

    fs.watch.observer = swap
    try:
        with pytest.raises(NotADirectoryError):
            fs.remove_below(place, "tree")
    finally:
        fs.watch.observer = None
    assert sorted(os.listdir(path / "outside")) == ["file", "inner"]
    fs.remove_below(place, "tree")
    assert place.names() == ["outside"]


@pytest.mark.parametrize("depth", [1, 2, 49, 50, 51, 52, 53, 103, 1500])
def test_a_tree_of_any_depth_is_deleted(path: Path, place: fs.Directory, depth: int) -> None:
    fs.make_directory(place, "tree")
    directory = place.child("tree")
    fs.write_new(directory, "deep-0", b"in the way")
    for _ in range(depth):
        fs.make_directory(directory, "a-name-that-makes-it-long")
        fs.write_new(directory, "file", b"")
        below = directory.child("a-name-that-makes-it-long")
        directory.close()
        directory = below
    directory.close()
    fs.remove_below(place, "tree")
    assert place.names() == []


def test_a_tree_with_many_deep_branches_is_deleted(path: Path, place: fs.Directory) -> None:
    for name in ("a", "b", "c"):
        deep = path.joinpath("tree", *["x"] * 51, name, *["y"] * 51)
        deep.mkdir(parents=True)
        (deep / "file").touch()
    fs.remove_below(place, "tree")
    assert place.names() == []


def test_directories_of_our_own_are_made_writable_before_they_are_deleted(
    path: Path, place: fs.Directory, as_a_user: None
) -> None:
    tree = plant(path)
    for mode in (0, 0o500, 0o300, 0o600, 0o400):
        (tree / str(mode) / "inner").mkdir(parents=True)
        (tree / str(mode) / "inner" / "file").touch()
        (tree / str(mode) / "inner").chmod(mode)
        (tree / str(mode)).chmod(mode)
    tree.chmod(0)
    fs.remove_below(place, "tree")
    assert place.names() == ["outside"]
    assert sorted(os.listdir(path / "outside")) == ["file", "inner"]


def test_deletion_goes_on_after_an_error_and_raises_the_first(path: Path, place: fs.Directory) -> None:
    plant(path)
    with disk.record() as changes:
        fs.remove_below(place, "tree")
    for k, change in enumerate(changes):
        plant_again(path)
        with pytest.raises(OSError) as caught, disk.error_at(k, errno.EIO) as trial:
            fs.remove_below(place, "tree")
        assert caught.value.errno == errno.EIO
        assert trial.struck == change
        assert caught.value.filename == change.path
        left = [str(found) for found in path.rglob("*") if "outside" not in found.parts]
        assert sorted(left) == sorted(
            {change.path, *(str(up) for up in Path(change.path).parents if up != path and up.is_relative_to(path))}
        )
        fs.remove_below(place, "tree")
    assert sorted(os.listdir(path / "outside")) == ["file", "inner"]


def plant_again(path: Path) -> None:
    for up, directories, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(up, name))
        for name in directories:
            inner = os.path.join(up, name)
            os.unlink(inner) if os.path.islink(inner) else os.rmdir(inner)
    plant(path)


def test_a_deletion_that_was_cut_off_anywhere_is_done_by_the_next(path: Path, place: fs.Directory) -> None:
    plant(path)
    with disk.record() as changes:
        fs.remove_below(place, "tree")
    for k in range(len(changes)):
        plant_again(path)
        with pytest.raises(disk.Crashed), disk.crash_at(k):
            fs.remove_below(place, "tree")
        assert place.exists("tree")
        fs.remove_below(place, "tree")
        assert place.names() == ["outside"]
        assert sorted(os.listdir(path / "outside")) == ["file", "inner"]


def test_removing_a_tree_by_its_path_never_raises(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = plant(path)
    for left_alone in (path / "missing", path / "missing" / "below", tree / "a" / "out", path / "outside" / "file"):
        fs.remove_tree(left_alone)
    assert (tree / "a" / "out").is_symlink()
    assert sorted(os.listdir(path / "outside")) == ["file", "inner"]
    with disk.error_at(0, errno.EIO, forever=True):
        fs.remove_tree(tree)
    assert tree.exists()
    monkeypatch.chdir(path)
    fs.remove_tree(Path("tree"))
    assert sorted(os.listdir(path)) == ["outside"]
    (path / "way").symlink_to("outside")
    fs.remove_tree(path / "way" / "inner")
    assert os.listdir(path / "outside") == ["file"]


# Syncing


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that were synced, in order."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: inodes.append(os.fstat(fd).st_ino))
    return inodes


def test_a_file_or_a_directory_is_synced_and_a_link_is_not(path: Path, place: fs.Directory, synced: list[int]) -> None:
    plant(path)
    for name in ("tree", "outside"):
        fs.sync(place, name)
    fs.sync(place)
    with place.child("tree") as tree:
        for name in ("hard", "file", "dangling", "pipe"):
            fs.sync(tree, name)
    assert synced == [each.stat().st_ino for each in (path / "tree", path / "outside", path, path / "tree" / "hard")]
    with pytest.raises(FileNotFoundError):
        fs.sync(place, "missing")


def test_all_of_a_tree_is_synced_and_each_directory_after_what_is_in_it(
    path: Path, place: fs.Directory, synced: list[int]
) -> None:
    tree = plant(path)
    with place.child("tree") as directory, disk.record() as changes:
        fs.sync_tree(directory)
    files = [tree, tree / "a", tree / "a" / "b", tree / "a" / "b" / "file", tree / "hard"]
    assert sorted(synced) == sorted(file.stat().st_ino for file in files)
    order = [change.path for change in changes]
    assert {change.operation for change in changes} == {"sync"}
    for file in files[1:]:
        assert order.index(str(file)) < order.index(str(file.parent))


def test_an_error_while_syncing_is_raised_but_for_a_directory_that_cannot_be_synced(
    path: Path, place: fs.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(path)

    def fails_with(number: int) -> Any:
        def refuse(fd: int) -> None:
            raise OSError(number, "no")

        return refuse

    monkeypatch.setattr(os, "fsync", fails_with(errno.EINVAL))
    fs.sync(place)
    fs.sync(place, "outside")
    with place.child("outside") as outside, pytest.raises(OSError):
        fs.sync(outside, "file")
    monkeypatch.setattr(os, "fsync", fails_with(errno.EIO))
    for name in ("", "outside"):
        with pytest.raises(OSError) as caught:
            fs.sync(place, name)
        assert caught.value.filename == str(path / name).rstrip("/")


@pytest.mark.parametrize("copies_in_the_kernel", [False, True])
@pytest.mark.parametrize("content", [b"", b"x", b"xy" * 3_000_000], ids=len)
def test_a_copy_has_the_content_of_the_file(
    empty: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, copies_in_the_kernel: bool
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    (empty / "file").write_bytes(content)
    if not copies_in_the_kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    with fs.Directory.open(empty) as place:
        fs.copy(place, "file", place, "new")
    assert (empty / "new").read_bytes() == content


def test_a_copy_has_the_access_list_of_the_file_and_not_of_where_it_is_made(empty: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux keeps access lists as attributes")
    # acl(5) as the kernel has it: version 2; tag, permissions, id of each entry.
    entries = [(0x01, 7, -1), (0x02, 7, 1), (0x04, 5, -1), (0x10, 7, -1), (0x20, 0, -1)]
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    (empty / "file").write_bytes(b"file")
    (empty / "file").chmod(0o640)
    (empty / "directory").mkdir()
    try:
        os.setxattr(empty / "directory", "system.posix_acl_default", content)
    except OSError:
        pytest.skip("this filesystem has no access lists")
    with fs.Directory.open(empty) as place, place.child("directory") as below:
        fs.copy(place, "file", below, "new")
    assert os.listxattr(empty / "directory/new") == []
    assert stat.S_IMODE((empty / "directory/new").stat().st_mode) == 0o640


def test_a_deep_tree_is_removed_with_few_descriptors(tmp_path):
    resource = pytest.importorskip("resource")
    below = tmp_path / "top"
    for number in range(25):
        below = below / f"d{number}"
        below.mkdir(parents=True)
        (below / "file").write_text("")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 9, before[1]))
    taken = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(5):
            os.close(taken.pop())
        fs.remove_tree(tmp_path / "top")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)
    assert os.listdir(tmp_path) == []


def test_a_link_that_leads_to_itself_leads_to_no_directory(empty):
    (empty / "loop").symlink_to("loop")
    assert fs.names(empty / "loop") == []
