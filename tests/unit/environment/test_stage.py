"""The private tree: what is made in it is as if made in place, and it goes without a trace."""

import contextlib
import errno
import importlib.util
import os
import py_compile
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.environment import stage as stage_module
from safe_pip.environment.stage import Stage
from safe_pip.errors import CommitFailed, SafePipError, State, UnusableEnvironment
from safe_pip.fs import space
from safe_pip.locking import flock, state_directory
from safe_pip.merge import tree
from safe_pip.merge.plan import Kind, Link, Operation
from tests.support.faults import disk
from tests.support.faults.filesystems import another_filesystem
from tests.support.processes.forks import in_child, need_user, reachable
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution

LOCKS = ["commit", "commit.gate", "environment.gate", "keep", "keep.gate"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "venv" / "lib"
    made.mkdir(parents=True)
    state_directory.make(made)
    return made


@pytest.fixture
def stage(home: Path) -> Iterator[Stage]:
    made = Stage(home)
    yield made
    made.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another filesystem."""
    other = another_filesystem(tmp_path)
    if other is None:
        pytest.skip("there is no second filesystem to write to")
    made = Path(tempfile.mkdtemp(prefix="safe-pip-test-", dir=other))
    yield made
    shutil.rmtree(made)


def left_in(home: Path) -> list[str]:
    return sorted(os.listdir(home / ".safe-pip"))


def put(stage: Stage, live: Path, content: str = "x") -> Path:
    """Stage a file as pip does: with directories made on the way."""
    path = Path(stage.root + str(live))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def with_mask(mask: int, act) -> None:
    before = os.umask(mask)
    try:
        act()
    finally:
        os.umask(before)


# Open and close


def test_it_is_an_owner_file_and_a_private_directory_and_gone_when_it_is_closed(home: Path) -> None:
    stage = Stage(home)
    assert left_in(home) == sorted([*LOCKS, stage.identifier, f"{stage.identifier}.owner"])
    (private,) = stage.parts
    assert private == str(home / ".safe-pip" / stage.identifier)
    assert os.listdir(private) == ["stage"]
    assert stage.root == f"{private}/stage"
    assert stage.home == home
    put(stage, home / "x" / "y.py")
    stage.close()
    assert left_in(home) == LOCKS
    stage.close()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o755, 0o2775, 0o777])
def test_no_other_user_can_enter_with_any_umask_and_any_tree(tmp_path: Path, mask: int, mode: int) -> None:
    tmp_path.chmod(mode)
    state_directory.make(tmp_path)
    opened = []
    with_mask(mask, lambda: opened.append(Stage(tmp_path)))
    for path in (*opened[0].parts, opened[0].root):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    with_mask(mask, lambda: opened[0].add_markers([Operation(Kind.REMOVE, 0, "x", trash="0")]))
    is_shared = stat.S_IMODE(os.stat(opened[0].parts[0]).st_mode) == 0o770  # with the group that may change the tree
    trash = os.path.join(opened[0].parts[0], "trash")
    assert stat.S_IMODE(os.stat(trash).st_mode) == (0o770 if is_shared else 0o700)
    opened[0].close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_an_error_while_it_is_made_leaves_nothing_and_says_that_nothing_was_changed(home: Path, number: int) -> None:
    with disk.record() as changes:
        stage = Stage(home)
    stage.close()
    for k, change in enumerate(changes):
        if change.operation == "set_owner" and number == errno.EACCES:
            continue  # without the right to give it to a group it stays private
        with pytest.raises(SafePipError) as caught, disk.error_at(k, number):
            Stage(home)
        assert caught.value.state is State.UNCHANGED
        assert isinstance(caught.value, UnusableEnvironment if number in (errno.EACCES, errno.EROFS) else CommitFailed)
        assert left_in(home) == LOCKS
    assert not flock.own_descriptors()


def test_a_state_directory_that_is_a_symbolic_link_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "home" / ".safe-pip").symlink_to("../other")
    with pytest.raises(SafePipError):
        Stage(tmp_path / "home")
    assert os.listdir(tmp_path / "other") == []


def test_as_long_as_there_is_a_journal_nothing_is_deleted(home: Path) -> None:
    stage = Stage(home)
    path = put(stage, home / "x.py")
    journal = home / ".safe-pip" / f"{stage.identifier}.journal"
    journal.write_text("undo this")
    stage.close()
    assert path.read_text() == "x"
    assert journal.exists()
    assert not flock.is_locked(home / ".safe-pip" / f"{stage.identifier}.owner")


def test_the_owner_file_is_removed_before_it_is_let_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    remove = fs.remove

    def watched(directory: fs.Directory, name: str) -> None:
        if name.endswith(".owner"):
            seen.append(flock.is_locked(Path(directory.join(name))))
        remove(directory, name)

    monkeypatch.setattr(fs, "remove", watched)
    Stage(home).close()
    assert seen == [True]


def test_what_is_committed_is_deleted_with_the_rest(home: Path) -> None:
    stage = Stage(home)
    (home / ".safe-pip" / f"{stage.identifier}.committed").write_text("done")
    stage.close()
    assert left_in(home) == LOCKS


def test_an_abandoned_stage_stays_for_the_sweep(home: Path) -> None:
    stage = Stage(home)
    before = left_in(home)
    stage.close(keeps=True)
    stage.close()
    assert left_in(home) == before
    assert not flock.is_locked(home / ".safe-pip" / f"{stage.identifier}.owner")


def test_closing_it_never_raises_and_leaves_an_owner_file_for_what_could_not_be_deleted(
    home: Path, elsewhere: Path
) -> None:
    def fill() -> Stage:
        stage = Stage(home)
        stage.add_part(str(elsewhere))
        stage.mark(str(elsewhere))
        put(stage, home / "x.py")
        return stage

    stage = fill()
    with disk.record() as changes:
        stage.close()
    assert left_in(home) == LOCKS
    assert os.listdir(elsewhere) == []
    for k in range(len(changes)):
        stage = fill()
        with disk.error_at(k, errno.EIO):
            stage.close()
        if left_in(home) != LOCKS or os.listdir(elsewhere):
            path = home / ".safe-pip" / f"{stage.identifier}.owner"
            # The state directory of no tree is what may stay, if it is empty.
            assert path.exists() or (left_in(home) == LOCKS and os.listdir(elsewhere / ".safe-pip") == [])
            assert not flock.is_locked(path)
        shutil.rmtree(home / ".safe-pip" / stage.identifier, ignore_errors=True)
        shutil.rmtree(elsewhere / ".safe-pip", ignore_errors=True)
        (home / ".safe-pip" / f"{stage.identifier}.owner").unlink(missing_ok=True)


def test_a_forked_child_deletes_nothing(home: Path, stage: Stage) -> None:
    before = left_in(home)
    in_child(stage.close)
    assert left_in(home) == before
    assert os.path.isdir(stage.root)


# Mirrored directories


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access list as the kernel has it in an extended attribute: version 2, then tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
DEFAULT = acl((1, 7, NO_ID), (2, 7, 65534), (4, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 4, NO_ID))


def set_default_acl(path: Path) -> None:
    try:
        os.setxattr(path, "system.posix_acl_default", DEFAULT)
    except (AttributeError, OSError):
        pytest.skip("there are no access lists here")


def access(path: Path) -> tuple[int, int, dict[str, bytes]]:
    status = os.stat(path)
    listed = os.listxattr(path) if hasattr(os, "listxattr") else []
    return stat.S_IMODE(status.st_mode), status.st_gid, {name: os.getxattr(path, name) for name in listed}


def make_things(directory: Path) -> list[Path]:
    """What pip makes: a directory, a file in it, one it makes executable."""
    (directory / "d").mkdir()
    (directory / "d" / "f").write_text("")
    (directory / "run").write_text("")
    (directory / "run").chmod(0o755)
    return [directory / "d", directory / "d" / "f", directory / "run"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("kind", ["plain", "setgid", "group", "acl", "setgid home", "acl home"])
def test_what_is_made_there_gets_the_access_that_it_would_have_got_in_place(home: Path, mask: int, kind: str) -> None:
    live = home.parent / "share" / "deep"
    live.mkdir(parents=True)
    at = home if kind.endswith("home") else live
    if kind.startswith("setgid"):
        at.chmod(0o2755)
        if os.geteuid() == 0:
            os.chown(at, -1, 65534)
            at.chmod(0o2755)
    elif kind == "group" and os.geteuid() == 0:
        os.chown(at, -1, 65534)
    elif kind.startswith("acl"):
        set_default_acl(at)
    shutil.rmtree(home / ".safe-pip")
    state_directory.make(home)  # it inherits from its tree
    stage = Stage(home)
    stage.mirror(str(live))
    mirrored = Path(stage.root + str(live))

    def compare() -> None:
        for there, here in zip(make_things(live), make_things(mirrored), strict=True):
            assert access(there) == access(here)

    with_mask(mask, compare)
    stage.close()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_directory_that_does_not_exist_is_made_as_it_would_be_in_place(home: Path, mask: int) -> None:
    home.chmod(0o2755)

    def compare() -> None:
        stage = Stage(home)
        stage.mirror(str(home / "new" / "er"))
        (home / "new" / "er").mkdir(parents=True)
        for path in (home / "new", home / "new" / "er"):
            assert access(Path(stage.root + str(path))) == access(path)
        stage.close()

    with_mask(mask, compare)


def test_a_mirrored_directory_can_be_written_also_if_the_one_in_the_target_cannot(home: Path) -> None:
    (home / "closed").mkdir(mode=0o555)
    stage = Stage(home)
    stage.mirror(str(home / "closed"))
    assert stat.S_IMODE(os.stat(f"{stage.root}{home}/closed").st_mode) & 0o700 == 0o700
    stage.close()


def test_a_directory_is_mirrored_at_its_path_without_dots(home: Path, stage: Stage) -> None:
    stage.mirror(str(home / ".." / "bin" / "."))
    stage.mirror(str(home / ".." / "bin" / "."))
    assert os.path.isdir(f"{stage.root}{home.parent}/bin")


def test_a_link_to_a_directory_is_mirrored_as_a_directory(home: Path, stage: Stage) -> None:
    (home.parent / "lib64").symlink_to("lib")
    stage.mirror(str(home.parent / "lib64"))
    path = f"{stage.root}{home.parent}/lib64"
    assert os.path.isdir(path)
    assert not os.path.islink(path)


# Parts


def test_a_part_is_made_on_each_filesystem_and_noted_first(home: Path, elsewhere: Path, stage: Stage) -> None:
    with disk.record() as changes:
        assert stage.add_part(str(elsewhere)) == 1
    assert changes[0].path.endswith(f"{stage.identifier}.owner")
    private = elsewhere / ".safe-pip" / stage.identifier
    assert stage.parts[1] == str(private)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stage.roots == [stage.root, f"{private}/stage"]
    volumes = stage.volumes()
    assert sorted(volumes.values()) == [0, 1]
    assert {device for device, _ in volumes} == {home.stat().st_dev, elsewhere.stat().st_dev}
    stage.close()
    assert os.listdir(elsewhere) == []


def test_a_tree_whose_state_directory_is_removed_just_now_gets_another_one(tmp_path, stage, monkeypatch) -> None:
    tree, exists = tmp_path / "tree", state_directory.exists
    tree.mkdir()
    state_directory.make(tree)

    def exists_no_longer(looked_at: Path) -> bool:
        monkeypatch.setattr(state_directory, "exists", exists)
        found = exists(looked_at)
        shutil.rmtree(state_directory.path_of(looked_at))
        return found

    monkeypatch.setattr(state_directory, "exists", exists_no_longer)
    stage.mark(str(tree), is_tree=True)
    assert sorted(os.listdir(tree / ".safe-pip")) == sorted([f"{stage.identifier}.home", *LOCKS])


@pytest.mark.parametrize("is_tree", [True, False])
def test_of_a_directory_that_is_missing_itself_it_is_said_so(tmp_path: Path, stage: Stage, is_tree: bool) -> None:
    with pytest.raises(CommitFailed, match="No such file or directory"):
        stage.mark(str(tmp_path / "missing"), is_tree=is_tree)


def test_a_part_in_a_tree_comes_with_the_locks_of_the_tree_which_stay(elsewhere: Path, stage: Stage) -> None:
    stage.add_part(str(elsewhere), is_tree=True)
    assert set(LOCKS) < set(os.listdir(elsewhere / ".safe-pip"))
    stage.close()
    assert sorted(os.listdir(elsewhere / ".safe-pip")) == LOCKS


def test_a_state_directory_that_others_use_too_stays(elsewhere: Path, stage: Stage) -> None:
    stage.add_part(str(elsewhere))
    (elsewhere / ".safe-pip" / "0123456789abcdef").mkdir()
    stage.close()
    assert os.listdir(elsewhere / ".safe-pip") == ["0123456789abcdef"]


def test_one_that_is_removed_while_it_is_made_is_made_again(
    home: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = home.parent / "share"
    directory.mkdir()
    make, removed = Path.resolve, []
    exists = state_directory.exists

    def vanishing(path: Path) -> bool:
        found = exists(path)
        if found and not removed:
            removed.append(path)
            (path / ".safe-pip").rmdir()
        return found

    assert make
    (directory / ".safe-pip").mkdir()
    monkeypatch.setattr(state_directory, "exists", vanishing)
    stage.mark(str(directory))
    assert removed
    assert os.listdir(directory / ".safe-pip") == [f"{stage.identifier}.home"]


def test_a_part_is_refused_where_the_state_directory_is_not_ours(elsewhere: Path, stage: Stage) -> None:
    (elsewhere / "target").mkdir()
    (elsewhere / ".safe-pip").symlink_to("target")
    for make in (stage.add_part, stage.mark):
        with pytest.raises(UnusableEnvironment, match="symbolic link"):
            make(str(elsewhere))
    stage.close()
    assert os.listdir(elsewhere / "target") == []


def test_what_moves_to_another_part_keeps_times_modes_and_links(home: Path, elsewhere: Path, stage: Stage) -> None:
    source = put(stage, home / "pkg" / "sub" / "m.py", "x = 1\n")
    os.utime(source, ns=(1, 1_234_567_890_123_456_789))
    py_compile.compile(str(source), doraise=True)
    tool = put(stage, home / "pkg" / "tool")
    tool.chmod(0o751)
    tool.parent.chmod(0o2711)
    (tool.parent / "dangling").symlink_to("nowhere")
    top = tool.parent
    before = {path.relative_to(top): stamp(path) for path in [top, *top.rglob("*")]}
    number = stage.add_part(str(elsewhere))
    stage.move_to_part(str(top), number)
    assert not top.exists()
    there = Path(stage.roots[number] + str(home / "pkg"))
    assert {path.relative_to(there): stamp(path) for path in [there, *there.rglob("*")]} == before
    assert os.readlink(there / "dangling") == "nowhere"
    cached = there / "sub" / "__pycache__" / Path(importlib.util.cache_from_source(str(source))).name
    assert struct.unpack("<I", cached.read_bytes()[8:12])[0] == 1_234_567_890


def stamp(path: Path) -> tuple[object, ...]:
    status = os.lstat(path)
    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    return status.st_mode, status.st_mtime_ns, status.st_uid, status.st_gid, content


def test_to_move_to_the_part_where_it_is_changes_nothing(home: Path, stage: Stage) -> None:
    path = put(stage, home / "x.py")
    with disk.record() as changes:
        stage.move_to_part(str(path), 0)
    assert changes == []


def test_the_parts_that_can_exchange_are_tried_once(stage: Stage) -> None:
    first = stage.can_exchange()
    with disk.record() as changes:
        assert stage.can_exchange() == first
    assert changes == []
    assert os.listdir(stage.parts[0]) == ["stage"]


# Marks


def test_a_mark_leads_home_and_is_noted_first_and_made_once(home: Path, stage: Stage) -> None:
    directory = home.parent / "bin"
    directory.mkdir()
    with disk.record() as changes:
        stage.mark(str(directory))
        stage.mark(f"{home}/../bin")
    assert changes[0].path.endswith(f"{stage.identifier}.owner")
    (mark,) = (directory / ".safe-pip").iterdir()
    assert mark.name == f"{stage.identifier}.home"
    assert mark.read_bytes() == os.fsencode(home) + b"\n"
    assert mark.stat().st_mode & 0o444 == 0o444
    assert sum(change.operation == "create" for change in changes) == 1
    stage.close()
    assert os.listdir(directory) == []


def test_a_mark_of_which_only_a_part_was_written_goes_too_and_anything_else_of_its_name_stays(
    home: Path, stage: Stage
) -> None:
    for name, content in (("torn", os.fsencode(home)[:5]), ("other", b"/elsewhere\n")):
        (home.parent / name).mkdir()
        stage.mark(str(home.parent / name))
        (home.parent / name / ".safe-pip" / f"{stage.identifier}.home").write_bytes(content)
    stage.close()
    assert os.listdir(home.parent / "torn") == []
    assert os.listdir(home.parent / "other" / ".safe-pip") == [f"{stage.identifier}.home"]


def test_a_mark_in_a_tree_comes_with_the_locks_of_the_tree(home: Path, stage: Stage) -> None:
    directory = home.parent / "plat"
    directory.mkdir()
    stage.mark(str(directory), is_tree=True)
    assert set(LOCKS) < set(os.listdir(directory / ".safe-pip"))
    stage.close()
    assert sorted(os.listdir(directory / ".safe-pip")) == LOCKS


# Files that are staged


def test_a_file_is_staged_like_the_one_in_the_target(home: Path, stage: Stage) -> None:
    live = home / "easy-install.pth"
    live.write_text("one\ntwo\n")
    live.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(live, 65534, 65534)
    for content in (b"one\n", b""):
        stage.write_like(str(live), content)
        path = Path(stage.root + str(live))
        assert path.read_bytes() == content
        old, new = live.stat(), path.stat()
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
        assert new.st_mtime_ns >= old.st_mtime_ns
    stage.take_out([str(live)])
    assert not path.exists()
    assert path.parent.is_dir()
    assert live.read_text() == "one\ntwo\n"


def staged_distribution(stage: Stage, home: Path, name: str, files: list[str]) -> str:
    for file in files:
        put(stage, home / file)
    info = home / f"{name}-1.dist-info"
    put(stage, info / "METADATA")
    return str(put(stage, info / "RECORD", "".join(f"{file},sha256=x,1\n" for file in files)))


def staged_files(stage: Stage, home: Path) -> list[str]:
    return sorted(
        os.path.relpath(path, root + str(home))
        for root in stage.roots
        for path in Path(root).rglob("*")
        if not path.is_dir()
    )


def test_a_distribution_that_is_dropped_leaves_what_others_brought_as_well(home: Path, stage: Stage) -> None:
    stage.mirror(str(home))
    one = staged_distribution(stage, home, "one", ["ns/one/a.py", "ns/common.py", "../bin/one", "top.py"])
    two = staged_distribution(stage, home, "two", ["ns/two/b.py", "ns/common.py", "../bin/two"])
    stage.drop(one, (two,))
    left = ["../bin/two", "ns/common.py", "ns/two/b.py", "two-1.dist-info/METADATA", "two-1.dist-info/RECORD"]
    assert staged_files(stage, home) == left
    assert not os.path.exists(f"{stage.root}{home}/ns/one")
    stage.drop(two, ())
    assert staged_files(stage, home) == []
    assert os.path.isdir(stage.root + str(home))
    assert not os.path.exists(f"{stage.root}{home}/ns")
    assert not os.path.exists(f"{stage.root}{home.parent}/bin")


def test_a_record_that_leads_out_of_the_stage_deletes_nothing_there(home: Path, stage: Stage) -> None:
    (home / "mine.py").write_text("")
    up = "../" * 30
    record = staged_distribution(stage, home, "one", ["a.py"])
    with open(record, "a") as file:
        file.write(f"{up}{str(home / 'mine.py')[1:]},,\n{home / 'mine.py'},,\n")
    stage.drop(record, ())
    assert (home / "mine.py").exists()


def test_a_distribution_is_dropped_from_all_parts(home: Path, elsewhere: Path, stage: Stage) -> None:
    record = staged_distribution(stage, home, "one", ["pkg/a.py", "b.py"])
    number = stage.add_part(str(elsewhere))
    stage.move_to_part(f"{stage.root}{home}/pkg", number)
    stage.move_to_part(os.path.dirname(record), number)
    stage.drop(record, ())
    assert staged_files(stage, home) == []


# Times


def sources(stage: Stage, home: Path) -> tuple[Path, list[Path]]:
    source = put(stage, home / "pkg" / "m.py", "x = 1\n")
    os.utime(source, ns=(5, 1_600_000_000_500_000_000))
    made = [Path(py_compile.compile(str(source), optimize=level, doraise=True)) for level in (0, 1, 2)]
    return source, made


def test_a_source_of_the_same_second_gets_another_and_its_bytecode_knows(home: Path, stage: Stage) -> None:
    source, cached = sources(stage, home)
    other = put(stage, home / "pkg" / "mm.py", "y = 1\n")
    os.utime(other, ns=(5, 1_600_000_000_500_000_000))
    others = Path(py_compile.compile(str(other), doraise=True)).read_bytes()
    stage.bump_mtime([(str(source), 1_600_000_000_000_000_000)])
    assert source.stat().st_mtime_ns == 1_600_000_001_000_000_000
    for pyc in cached:
        header = struct.unpack("<4sIII", pyc.read_bytes()[:16])
        assert header == (importlib.util.MAGIC_NUMBER, 0, 1_600_000_001, source.stat().st_size)
    assert Path(importlib.util.cache_from_source(str(other))).read_bytes() == others
    # The import system takes it, without compiling.
    spec = importlib.util.spec_from_file_location("m", source)
    assert spec is not None
    loader = spec.loader
    source.with_name("__pycache__").chmod(0o500)
    assert loader.get_code("m").co_consts  # type: ignore[union-attr]


def test_the_new_second_is_none_of_those_that_it_replaces(home: Path, stage: Stage) -> None:
    source, _ = sources(stage, home)
    base = 1_600_000_000
    stage.bump_mtime([(str(source), (base + more) * 10**9 + 7) for more in (0, 1, 5, 2)])
    assert source.stat().st_mtime_ns // 10**9 not in {base, base + 1, base + 2, base + 5}


def test_of_many_sources_in_one_directory_the_bytecode_is_looked_for_once(home, stage, monkeypatch) -> None:
    base, looked_at, names = 1_600_000_000, [], fs.Directory.names
    given = {number: put(stage, home / "pkg" / f"m{number}.py", "") for number in range(5)}
    for source in given.values():
        py_compile.compile(str(source), doraise=True)
    monkeypatch.setattr(fs.Directory, "names", lambda directory: looked_at.append(directory.path) or names(directory))
    stage.bump_mtime([(str(source), (base + number) * 10**9) for number, source in given.items()])
    assert looked_at == [str(given[0].with_name("__pycache__"))]
    for number, source in given.items():
        assert source.stat().st_mtime_ns == (base + number + 1) * 10**9
        header = Path(importlib.util.cache_from_source(str(source))).read_bytes()[8:12]
        assert int.from_bytes(header, "little") == base + number + 1


def test_bytecode_that_goes_by_a_digest_stays_as_it_is(home: Path, stage: Stage) -> None:
    source, _ = sources(stage, home)
    modes = (py_compile.PycInvalidationMode.CHECKED_HASH, py_compile.PycInvalidationMode.UNCHECKED_HASH)
    for mode in modes:
        pyc = Path(py_compile.compile(str(source), doraise=True, invalidation_mode=mode))
        before = pyc.read_bytes()
        stage.bump_mtime([(str(source), source.stat().st_mtime_ns)])
        assert pyc.read_bytes() == before


def test_a_source_without_bytecode_is_freshened_too(home: Path, stage: Stage) -> None:
    source = put(stage, home / "m.py")
    stage.bump_mtime([(str(source), source.stat().st_mtime_ns)])
    put(stage, home / "__pycache__" / "m.cpython-313.pyc", "short")
    stage.bump_mtime([(str(source), source.stat().st_mtime_ns)])


# What a plan needs


def operation(stage: Stage, kind: Kind, live: Path) -> Operation:
    return Operation(kind, 0, str(live)[1:], staged=str(live)[1:])


def test_unowned_files_are_linked_in_with_their_directories(home: Path, stage: Stage) -> None:
    data = home / "pkg" / "data" / "deep" / "mine"
    data.parent.mkdir(parents=True)
    data.write_text("mine")
    data.parent.chmod(0o2750)
    if os.geteuid() == 0:
        os.chown(data.parent, 65534, 65534)
        data.parent.chmod(0o2750)
    put(stage, home / "pkg" / "__init__.py")
    path = Path(f"{stage.root}{data}")
    stage.link([Link(str(data), str(path))])
    assert path.samefile(data)
    assert stamp(path.parent)[0] == stamp(data.parent)[0]
    assert stamp(path.parent)[2:4] == stamp(data.parent)[2:4]
    stage.reset()
    assert staged_files(stage, home) == ["pkg/__init__.py"]
    assert not path.parent.parent.exists()
    assert data.read_text() == "mine"


def test_directories_that_move_are_marked_and_files_are_not(home: Path, stage: Stage) -> None:
    for name in ("new", "exchanged", "swapped"):
        put(stage, home / name / "a.py")
    put(stage, home / "new.py")
    put(stage, home / "file.py")
    kinds = {
        "new": Kind.NEW,
        "exchanged": Kind.EXCHANGE,
        "swapped": Kind.SWAP,
        "new.py": Kind.NEW,
        "file.py": Kind.FILE,
    }
    before = staged_files(stage, home)
    operations = [operation(stage, kind, home / name) for name, kind in kinds.items()]
    operations.append(Operation(Kind.REMOVE, 0, "gone", trash="1"))
    stage.add_markers(operations)
    marker = f".safe-pip-{stage.identifier}"
    marked = [f"{name}/{marker}" for name in ("new", "exchanged", "swapped")]
    assert staged_files(stage, home) == sorted([*before, *marked])
    assert os.path.getsize(f"{stage.root}{home}/new/{marker}") == 0
    stage.reset()
    assert staged_files(stage, home) == before
    stage.add_markers(operations)


def test_what_was_moved_over_a_file_and_undone_can_be_planned_again(home: Path, stage: Stage) -> None:
    (home / "x.py").write_text("old")
    path = put(stage, home / "x.py", "new")
    path.chmod(0o755)
    before = stamp(path)
    operations = [operation(stage, Kind.FILE, home / "x.py")]
    for _ in range(2):
        stage.add_markers(operations)
        assert stamp(path) == before
        os.replace(path, home / "x.py")
        (home / "x.py").unlink()
        (home / "x.py").write_text("old")
        stage.reset()
        assert stamp(path) == before
    stage.add_markers(operations)
    stage.reset()
    assert stamp(path) == before
    assert path.stat().st_nlink == 1


def test_the_journal_is_ready_is_as_readable_as_the_tree_and_can_be_written_again(home: Path, stage: Stage) -> None:
    path = Path(stage.parts[0], "journal")
    with_mask(0o077, lambda: stage.write_journal(b"first"))
    stage.write_journal(b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644


def test_all_that_is_staged_is_synced_before_the_journal(home: Path, stage: Stage) -> None:
    put(stage, home / "pkg" / "a.py")
    (home.parent / "bin").mkdir()
    stage.mark(str(home.parent / "bin"))
    stage.write_journal(b"x")
    with disk.record() as changes:
        stage.sync(map(tree.scan, stage.roots))
    synced = [change.path for change in changes if change.operation == "sync"]
    state, mark = home / ".safe-pip", home.parent / "bin" / ".safe-pip" / f"{stage.identifier}.home"
    (private,) = stage.parts
    last = [
        f"{private}/journal",
        f"{private}/durable",
        private,
        str(state / f"{stage.identifier}.owner"),
        str(state),
        str(mark),
    ]
    assert {f"{stage.root}{home}/pkg/a.py", f"{stage.root}{home}/pkg", stage.root, *last} <= set(synced)
    assert synced.index(stage.root) < synced.index(f"{private}/journal") < synced.index(private)


# Groups


def test_where_a_group_shares_everything_what_is_only_removed_needs_nothing_staged(tmp_path: Path) -> None:
    prefix, one = DirectPrefix(tmp_path), SmallDistribution("one", "1", {"site/one.py": "1"})
    for directory in (prefix.root, prefix.site, prefix.bin):
        directory.chmod(0o775)
    prefix.change([one])
    prefix.change([], [one])
    assert prefix.content().keys() == {"site", "bin"}


def test_a_group_that_shares_everything_may_undo_what_is_prepared(tmp_path: Path) -> None:
    user = need_user()
    home = reachable(tmp_path) / "lib"
    home.mkdir()
    os.chown(home, 0, user.pw_gid)
    home.chmod(0o2775)
    state_directory.make(home)
    stage = Stage(home)
    stage.mirror(str(home))
    put(stage, home / "pkg" / "a.py")
    operations = [operation(stage, Kind.NEW, home / "pkg"), Operation(Kind.REMOVE, 0, "old", trash="0")]
    stage.add_markers(operations, [str(home)])
    stage.write_journal(b"x")
    staged = f"{stage.parts[0]}/stage{home}"  # another user's process is given no path through a descriptor
    os.rename(f"{staged}/pkg", home / "pkg")
    os.chmod(home / "pkg", 0o2775)

    def undo() -> None:
        os.rename(home / "pkg", f"{staged}/pkg")
        with open(os.path.join(stage.parts[0], "trash", "x"), "w"):
            pass

    in_child(undo, user="nobody")
    assert os.path.exists(f"{staged}/pkg/a.py")
    stage.close()


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_no_other_user_is_let_in_if_a_root_does_not_belong_to_the_group(tmp_path: Path, mode: int) -> None:
    user = need_user()
    home, shared = tmp_path / "lib", tmp_path / "bin"
    for path in (home, shared):
        path.mkdir()
        os.chown(path, 0, user.pw_gid)
        path.chmod(0o2775)
    shared.chmod(mode)
    state_directory.make(home)
    stage = Stage(home)
    path = put(stage, home / "a.py")
    stage.add_markers([operation(stage, Kind.NEW, home / "a.py")], [str(home), str(shared)])
    assert stat.S_IMODE(os.stat(stage.parts[0]).st_mode) == 0o700
    assert path.exists()
    stage.close()


# Room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_while_unpacking_ends_it_the_same_way(stage: Stage, number: int) -> None:
    with pytest.raises(CommitFailed, match="not enough space") as caught, space.unpacking(stage.root):
        raise OSError(number, "full")
    assert caught.value.state is State.UNCHANGED


def test_another_error_while_unpacking_stays_what_it_is(stage: Stage) -> None:
    with pytest.raises(OSError) as caught, space.unpacking(stage.root):
        raise OSError(errno.ENAMETOOLONG, "too long")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_every_change_that_is_refused_is_an_error_of_ours_and_leaves_nothing(home: Path, elsewhere: Path) -> None:
    (home / "x.py").write_text("")
    (home / "data").mkdir()
    (home / "data" / "mine").write_text("")

    def work(stage: Stage) -> None:
        stage.mirror(str(home))
        stage.write_like(str(home / "x.py"), b"1")
        stage.mark(str(elsewhere))
        stage.reset()
        stage.link([Link(str(home / "data" / "mine"), f"{stage.root}{home}/data/mine")])
        stage.bump_mtime([(f"{stage.root}{home}/x.py", 0)])
        stage.add_markers([operation(stage, Kind.FILE, home / "x.py")])
        stage.write_journal(b"x")
        stage.sync(map(tree.scan, stage.roots))
        stage.reset()
        stage.move_to_part(f"{stage.root}{home}/x.py", stage.add_part(str(elsewhere)))
        stage.take_out([str(home / "x.py")])

    stage = Stage(home)
    with disk.record() as changes:
        work(stage)
    stage.close()
    assert len(changes) > 30
    for k in range(len(changes)):
        stage = Stage(home)
        with contextlib.suppress(SafePipError), disk.error_at(k, errno.ENOSPC, forever=True) as trial:
            work(stage)
        assert trial.struck == changes[k]._replace(path=trial.struck.path, source=trial.struck.source)
        stage.close()
        assert left_in(home) == LOCKS
        assert os.listdir(elsewhere) == []
    assert sorted(os.listdir(home)) == [".safe-pip", "data", "x.py"]


def test_what_goes_while_it_is_mirrored_is_staged_as_if_it_had_never_been(tmp_path, monkeypatch):
    root, live = tmp_path / "root", tmp_path / "live"
    root.mkdir()
    live.mkdir()
    monkeypatch.setattr(stage_module.attributes, "pass_on", lambda like, *rest: os.stat(f"{like}/gone"))
    stage_module._mirror(str(root), str(live))
    (tmp_path / "other").mkdir()
    mirrored = Path(f"{root}{live}")
    assert mirrored.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_staged_where_another_user_may_rename_goes_through_no_link(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    home.chmod(0o777)
    other.mkdir()
    state_directory.make(home)
    with closing(Stage(home)) as stage:
        [private] = map(Path, stage.parts)
        private.rename(tmp_path / "moved")
        private.symlink_to(other)
        for name in ("stage", "trash", "spare"):
            (other / name).mkdir()
        stage.mirror(str(home / "pack"))
        Path(f"{stage.root}{home}/pack/by_pip.py").write_text("")
        (home / "pack").mkdir()
        stage.write(str(home / "pack" / "by_us.py"), b"")
        stage.write_journal(b"")
        stage.can_exchange()
        assert sorted(path.name for path in other.rglob("*")) == ["spare", "stage", "trash"]
        staged = {path.name for path in (tmp_path / "moved").rglob("*")}
        assert {"by_pip.py", "by_us.py", "journal"} <= staged
