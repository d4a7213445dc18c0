"""An open directory and single changes in it, on the disk and in memory."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.fs import attributes, rename
from tests.support.faults import disk

CONTENT = {"file": b"file", "other": b"other", "directory/inner": b"inner", "full/inner": b"full"}


@pytest.fixture
def path(empty: Path) -> Path:
    """A directory with files, directories and links, on different filesystems."""
    for file, content in CONTENT.items():
        (empty / file).parent.mkdir(exist_ok=True)
        (empty / file).write_bytes(content)
    (empty / "empty").mkdir()
    (empty / "dangling").symlink_to("nowhere")
    (empty / "link").symlink_to("directory")
    return empty


@pytest.fixture
def place(path: Path) -> Iterator[fs.Directory]:
    with fs.Directory.open(path) as directory:
        yield directory


@pytest.fixture
def without_flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel, a C library or a filesystem has to say of renames with flags."""
    if request.param == "none":
        monkeypatch.setattr(rename, "load", lambda: None)
    elif request.param != "all":
        monkeypatch.setattr(rename, "load", lambda: (lambda *arguments: -1, lambda: getattr(errno, request.param)))


every_kernel = pytest.mark.parametrize("without_flags", ["all", "none", "EINVAL", "ENOSYS", "EPERM"], indirect=True)


def listing(path: Path) -> dict[str, tuple[int, int]]:
    """Inode and mode of all below `path`."""
    found = {}
    for at, directories, files in os.walk(path):
        for name in directories + files:
            status = os.lstat(os.path.join(at, name))
            found[os.path.relpath(os.path.join(at, name), path)] = (status.st_ino, status.st_mode)
    return found


# Directories


def test_a_directory_is_not_opened_through_a_link(path: Path, place: fs.Directory) -> None:
    for name in ("link", "link/", "link//", "file", "dangling"):
        with pytest.raises(NotADirectoryError):
            fs.Directory.open(f"{path}/{name}")
    for name in ("link", "file", "link/inner", "file/inner"):
        with pytest.raises(NotADirectoryError):
            place.child(name)
    with pytest.raises(FileNotFoundError) as caught:
        place.child("directory/missing")
    assert caught.value.filename == str(path / "directory" / "missing")


def test_a_link_on_the_way_to_the_first_directory_is_followed(path: Path) -> None:
    (path / "full" / "below").mkdir()
    (path / "way").symlink_to("full")
    with fs.Directory.open(path / "way" / "below") as directory:
        assert directory.identity[1] == (path / "full" / "below").stat().st_ino


@pytest.mark.parametrize("name", ["", ".", "..", "/", "/etc", "a/../b", "../a", "a//b", "a/", "./a", "a\0b"])
def test_a_path_that_leaves_the_directory_is_none(place: fs.Directory, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        place.child(name)
    if name != "a/b":
        with pytest.raises(ValueError, match="not a name"):
            fs.remove_below(place, name)


@pytest.mark.parametrize("name", ["", "relative", "directory/.", "link/.", "directory/..", "."])
def test_only_an_absolute_path_of_a_directory_itself_is_opened(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        fs.Directory.open(f"{path}/{name}" if "." in name else name)


def test_the_root_can_be_opened() -> None:
    with fs.Directory.open("/") as directory:
        assert directory.path == "/"
        assert directory.join("etc") == "/etc"


def test_what_is_held_open_stays_itself_whatever_its_path_leads_to(path: Path, place: fs.Directory) -> None:
    held = place.child("directory")
    (path / "directory").rename(path / "elsewhere")
    (path / "directory").symlink_to("full")
    fs.write_new(held, "new", b"")
    held.close()
    assert (path / "elsewhere" / "new").exists()
    assert os.listdir(path / "full") == ["inner"]


def test_entries_are_told_and_not_followed(path: Path, place: fs.Directory) -> None:
    assert sorted(place.names()) == sorted(os.listdir(path))
    assert stat.S_ISLNK(place.stat("link").st_mode)
    assert place.exists("dangling")
    assert not place.exists("nowhere")
    assert place.read("file") == b"file"
    assert place.identity == (path.stat().st_dev, path.stat().st_ino)
    (path / "to-file").symlink_to("file")
    os.mkfifo(path / "pipe")
    for name in ("to-file", "pipe"):
        with pytest.raises(OSError):
            place.read(name)


def test_no_descriptor_is_left_open(path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/dev/fd"))

    before = opened()
    with fs.Directory.open(path) as directory:
        (path / "directory" / "b" / "c").mkdir(parents=True)
        directory.child("directory/b/c").close()
        for refused in ("directory/b/missing", "directory/inner", "link"):
            with pytest.raises(OSError):
                directory.child(refused)
        with pytest.raises(OSError):
            directory.read("directory")
        fs.remove_below(directory, "directory")
    directory.close()
    assert opened() == before


def test_descriptors_are_not_inherited(place: fs.Directory) -> None:
    assert place.fd is not None
    assert not os.get_inheritable(place.fd)


# Renames


KINDS = ["file", "directory", "empty", "link", "dangling"]


@every_kernel
@pytest.mark.usefixtures("without_flags")
@pytest.mark.parametrize("name", KINDS)
def test_everything_can_be_moved_to_where_nothing_is(path: Path, place: fs.Directory, name: str) -> None:
    inode = place.stat(name).st_ino
    with place.child("full") as full:
        fs.move(place, name, full, "new")
        assert full.stat("new").st_ino == inode
    assert not place.exists(name)


@every_kernel
@pytest.mark.usefixtures("without_flags")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("taken", ["other", "full", "nothing", "link2", "dangling2"])
def test_a_move_is_never_over_anything(path: Path, place: fs.Directory, name: str, taken: str) -> None:
    (path / "nothing").mkdir()
    (path / "link2").symlink_to("full")
    (path / "dangling2").symlink_to("nowhere")
    before = listing(path)
    with pytest.raises(FileExistsError) as caught:
        fs.move(place, name, place, taken)
    assert (caught.value.filename, caught.value.filename2) == (str(path / name), str(path / taken))
    assert listing(path) == before


@every_kernel
@pytest.mark.usefixtures("without_flags")
def test_a_move_never_unites_two_links_to_one_file(path: Path, place: fs.Directory) -> None:
    os.link(path / "file", path / "same")
    with pytest.raises(FileExistsError):
        fs.move(place, "file", place, "same")
    assert place.exists("file")


@every_kernel
@pytest.mark.usefixtures("without_flags")
def test_what_is_not_there_cannot_be_moved(place: fs.Directory) -> None:
    with pytest.raises(FileNotFoundError):
        fs.move(place, "missing", place, "new")
    assert not place.exists("new")


@pytest.mark.parametrize("taken", ["other", "link", "dangling"])
def test_a_file_is_moved_over_a_file_or_a_link(path: Path, place: fs.Directory, taken: str) -> None:
    fs.move_over(place, "file", place, taken)
    assert place.read(taken) == b"file"
    assert not place.exists("file")
    assert (path / "directory" / "inner").exists()


def test_what_comes_to_the_old_name_at_once_stays(
    path: Path, place: fs.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replaced(*names: str, **more: int) -> None:
        replace(*names, **more)
        (path / names[0]).mkdir() if names[0] == "directory" else (path / names[0]).touch()

    monkeypatch.setattr(os, "replace", replaced)
    for name in ("file", "directory"):
        fs.move_over(place, name, place, "new" + name)
        assert place.exists(name)
        assert place.exists("new" + name)


def test_a_file_is_not_moved_over_a_directory(path: Path, place: fs.Directory) -> None:
    before = listing(path)
    with pytest.raises(IsADirectoryError):
        fs.move_over(place, "file", place, "empty")
    assert listing(path) == before


def test_a_link_moved_over_another_to_the_same_file_is_gone(path: Path, place: fs.Directory) -> None:
    os.link(path / "file", path / "same")
    fs.move_over(place, "same", place, "file")
    assert place.read("file") == b"file"
    assert not place.exists("same")
    fs.move_over(place, "file", place, "file")
    assert place.read("file") == b"file"


@pytest.mark.parametrize("name", ["directory", "empty", "file", "link"])
@pytest.mark.parametrize("other", ["full", "other", "dangling"])
def test_any_two_entries_can_be_exchanged(path: Path, place: fs.Directory, name: str, other: str) -> None:
    before = (place.stat(name).st_ino, place.stat(other).st_ino)
    fs.exchange(place, name, place, other)
    assert (place.stat(other).st_ino, place.stat(name).st_ino) == before


def test_a_directory_is_none_in_the_way_nor_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, target in {"to-file": "file", "to-directory": ".", "dangling": "missing"}.items():
        (tmp_path / name).symlink_to(target)
    names = ["", "file", "to-file", "to-directory", "dangling", "missing", "file/below"]
    in_the_way = [name for name in names if fs.is_no_directory(tmp_path / name)]
    assert in_the_way == ["file", "to-file", "dangling"]


def test_what_is_missing_is_not_exchanged(path: Path, place: fs.Directory) -> None:
    before = listing(path)
    for one, other in (("file", "missing"), ("missing", "file")):
        with pytest.raises(FileNotFoundError):
            fs.exchange(place, one, place, other)
    assert listing(path) == before


def test_nothing_is_renamed_to_another_filesystem(path: Path, place: fs.Directory, elsewhere: fs.Directory) -> None:
    before = listing(path)
    fs.make_directory(elsewhere, "there")
    for act, name in ((fs.move, "new"), (fs.move_over, "new"), (fs.exchange, "there")):
        with pytest.raises(OSError) as caught:
            act(place, "directory", elsewhere, name)
        assert caught.value.errno == errno.EXDEV
    assert listing(path) == before
    assert elsewhere.names() == ["there"]


@pytest.mark.parametrize("without_flags", ["none", "EINVAL", "ENOSYS"], indirect=True)
@pytest.mark.usefixtures("without_flags")
def test_where_nothing_can_be_exchanged_that_is_found_out(path: Path, place: fs.Directory) -> None:
    before = listing(path)
    with pytest.raises(OSError) as caught:
        fs.exchange(place, "directory", place, "full")
    assert caught.value.errno in (errno.EINVAL, errno.ENOSYS)
    assert not fs.can_exchange(place)
    assert listing(path) == before


def test_where_directories_can_be_exchanged_that_is_found_out(path: Path, place: fs.Directory) -> None:
    before = listing(path)
    assert fs.can_exchange(place)
    assert listing(path) == before


def test_a_filesystem_that_only_says_that_it_exchanged_is_not_believed(
    place: fs.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "load", lambda: (lambda *arguments: 0, int))
    assert not fs.can_exchange(place)


def test_an_interrupted_rename_is_done_again(place: fs.Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([-1, -1, 0])
    monkeypatch.setattr(rename, "load", lambda: (lambda *arguments: next(answers), lambda: errno.EINTR))
    fs.move(place, "file", place, "new")
    assert next(answers, None) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the system call")
def test_a_c_library_without_the_function_is_passed_by(place: fs.Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    class OldLibrary:
        syscall = ctypes.CDLL(None, use_errno=True).syscall

    if os.uname().machine not in rename._NUMBERS:
        pytest.skip(f"the number of the system call is not known for {os.uname().machine}")
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **more: OldLibrary)
    monkeypatch.setattr(rename, "load", rename.load.__wrapped__)
    inode = place.stat("directory").st_ino
    fs.exchange(place, "directory", place, "full")
    assert place.stat("full").st_ino == inode
    with pytest.raises(FileExistsError):
        fs.move(place, "file", place, "other")


def test_an_unknown_machine_type_has_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", "pdp11")))
    monkeypatch.setattr("ctypes.CDLL", lambda *args, **more: types.SimpleNamespace(syscall=print))
    assert rename.load.__wrapped__() is None


def test_a_c_library_without_any_system_call_has_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", "x86_64")))
    monkeypatch.setattr("ctypes.CDLL", lambda *args, **more: object())
    assert rename.load.__wrapped__() is None


# Files and directories


def test_a_new_file_is_never_over_anything(path: Path, place: fs.Directory) -> None:
    fs.write_new(place, "new", b"content", 0o640)
    assert place.read("new") == b"content"
    assert stat.S_IMODE(place.stat("new").st_mode) == 0o640
    before = listing(path)
    for taken in KINDS:
        with pytest.raises(FileExistsError):
            fs.write_new(place, taken, b"")
        with pytest.raises(FileExistsError):
            fs.make_directory(place, taken)
    assert listing(path) == before
    assert place.read("file") == b"file"


def test_a_file_is_written_whole_however_little_is_written_at_once(
    place: fs.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[:3]))
    fs.write_new(place, "new", b"0123456789")
    assert place.read("new") == b"0123456789"


def test_appending_is_to_the_end(path: Path, place: fs.Directory) -> None:
    fd = os.open(path / "file", os.O_RDWR)
    try:
        fs.append(fd, path / "file", b" and more")
        fs.append(fd, path / "file", b"\n")
    finally:
        os.close(fd)
    assert place.read("file") == b"file and more\n"


def test_what_is_gone_is_removed(place: fs.Directory) -> None:
    for act in (fs.remove, fs.remove_directory, fs.remove_below):
        act(place, "missing")


def test_only_a_file_or_a_link_is_removed_as_a_file_and_only_an_empty_directory_as_one(
    path: Path, place: fs.Directory
) -> None:
    for name in ("file", "link", "dangling"):
        fs.remove(place, name)
        assert not place.exists(name)
    fs.remove_directory(place, "empty")
    assert not place.exists("empty")
    before = listing(path)
    for act, name in ((fs.remove, "full"), (fs.remove_directory, "full"), (fs.remove_directory, "other")):
        with pytest.raises(OSError):
            act(place, name)
    assert listing(path) == before


def test_permissions_are_given_whatever_the_umask(place: fs.Directory) -> None:
    before = os.umask(0o077)
    try:
        fs.set_mode(place, "file", 0o4664)
        fs.set_mode(place, "empty", 0o2775)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat("file").st_mode) == 0o4664
    assert stat.S_IMODE(place.stat("empty").st_mode) == 0o2775


def test_permissions_are_not_given_through_a_link(path: Path, place: fs.Directory) -> None:
    before = listing(path)
    for name in ("link", "dangling"):
        with pytest.raises(OSError) as caught:
            fs.set_mode(place, name, 0o777)
        assert caught.value.errno == errno.ELOOP
    assert listing(path) == before


def test_one_may_give_permissions_to_what_one_may_not_read(place: fs.Directory, as_a_user: None) -> None:
    for name in ("file", "empty"):
        fs.set_mode(place, name, 0)
        fs.set_mode(place, name, 0o700)
        assert stat.S_IMODE(place.stat(name).st_mode) == 0o700


def test_one_may_pass_through_what_one_may_not_read(path: Path, place: fs.Directory, as_a_user: None) -> None:
    fs.set_mode(place, "directory", 0o300)
    with place.child("directory") as directory:
        fs.write_new(directory, "new", b"")
        with pytest.raises(PermissionError):
            directory.names()
    fs.set_mode(place, "directory", 0o700)
    assert sorted(place.child("directory").names()) == ["inner", "new"]


# What holds for all of them


CHANGES: dict[str, Callable[[fs.Directory], object]] = {
    "append": lambda place: fs.append(0, place.join("file"), b"more"),
    "can_exchange": fs.can_exchange,
    "copy": lambda place: fs.copy(place, "file", place, "new"),
    "copy_status": lambda place: attributes.copy_status(place, "file", place, "other"),
    "copy_whole": lambda place: fs.copy_whole(Path(place.join("file")), Path(place.join("other"))),
    "date_bytecode": lambda place: attributes.date_bytecode(place, "file", 1),
    "exchange": lambda place: fs.exchange(place, "file", place, "other"),
    "link": lambda place: fs.link(place, "file", place, "new"),
    "link_or_copy": lambda place: fs.link_or_copy(Path(place.join("file")), Path(place.join("new"))),
    "make_directories": lambda place: fs.make_directories(Path(place.join("new"))),
    "make_directory": lambda place: fs.make_directory(place, "new"),
    "make_private_directory": lambda place: fs.make_private_directory(Path(place.path)),
    "move": lambda place: fs.move(place, "file", place, "new"),
    "move_fresh": lambda place: fs.move_fresh(place, "file", place, "new"),
    "move_over": lambda place: fs.move_over(place, "file", place, "other"),
    "open_log": lambda place: fs.open_log(place.join("new")),
    "pass_on": lambda place: attributes.pass_on("/", place, "empty", 0o700),
    "remove": lambda place: fs.remove(place, "file"),
    "remove_below": lambda place: fs.remove_below(place, "full"),
    "remove_directory": lambda place: fs.remove_directory(place, "empty"),
    "remove_empty_directories": lambda place: fs.remove_empty_directories([Path(place.join("empty"))]),
    "remove_tree": lambda place: fs.remove_tree(Path(place.join("full"))),
    "rename_path": lambda place: fs.rename_path(Path(place.join("file")), Path(place.join("new"))),
    "replace": lambda place: fs.replace(Path(place.join("file")), b"replaced"),
    "replace_in": lambda place: fs.replace_in(place, "file", b"replaced"),
    "set_access": lambda place: attributes.set_access(place, "file", 0o777, group=os.getegid()),
    "set_mode": lambda place: fs.set_mode(place, "file", 0o777),
    "set_owner": lambda place: fs.set_owner(place, "file", os.geteuid(), os.getegid()),
    "set_time": lambda place: attributes.set_time(place, "file", 1),
    "sync": lambda place: fs.sync(place, "file"),
    "sync_tree": fs.sync_tree,
    "touch": lambda place: fs.touch(Path(place.join("file"))),
    "unlink": lambda place: fs.unlink(Path(place.join("file"))),
    "unnamed_file": lambda place: fs.unnamed_file(b""),
    "write": lambda place: fs.write(Path(place.join("new")), b"new"),
    "write_bytecode": lambda place: fs.write_bytecode(Path(place.join("file"))),
    "write_new": lambda place: fs.write_new(place, "new", b"new"),
}


def test_a_file_without_a_name_needs_no_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with open(fs.unnamed_file(b"content"), "rb") as file:
        assert file.read() == b"content"


def test_every_function_that_changes_a_disk_is_among_those_that_are_tried_here() -> None:
    ours = {
        name
        for module in (fs, attributes)
        for name, value in vars(module).items()
        if name[0].islower() and getattr(value, "__module__", "").startswith("safe_pip.fs")
    }
    looks = {
        "handed_on",
        "has_working_directory",
        "is_directory",
        "is_file",
        "is_no_directory",
        "load",
        "look",
        "lets_write",
        "names",
        "readable_names",
    }
    assert ours - looks == set(CHANGES)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_observer_is_called_before_each_change(
    path: Path, place: fs.Directory, change: Callable[[fs.Directory], object]
) -> None:
    before = listing(path)
    times = {name: os.lstat(path / name).st_mtime_ns for name in before}
    with pytest.raises(disk.Crashed), disk.crash_at(0) as trial:
        change(place)
    assert listing(path) == before
    assert {name: os.lstat(path / name).st_mtime_ns for name in before} == times
    assert trial.struck is not None
    assert all(os.path.isabs(told) for told in trial.struck.paths)


def test_after_loading_nothing_is_imported_any_more(tmp_path: Path) -> None:
    """pip lets nothing be imported once it has begun to install."""
    code = """
import sys
from pathlib import Path
from safe_pip import fs
assert "ctypes" not in sys.modules
fs.load()
before = set(sys.modules)
with fs.Directory.open(Path.cwd()) as place:
    assert fs.can_exchange(place)
    fs.write_new(place, "a", b"")
    fs.set_mode(place, "a", 0o600)
    fs.link(place, "a", place, "b")
    fs.move(place, "b", place, "c")
    fs.move_over(place, "c", place, "a")
    fs.make_directory(place, "d")
    fs.sync_tree(place)
    fs.remove_below(place, "d")
    fs.replace(Path("a"), b"")
assert set(sys.modules) == before, set(sys.modules) - before
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(fs.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
