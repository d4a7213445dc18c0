"""The store of prepared wheels: complete or absent, as the archive had it, and no larger than allowed."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.fs import proc, space
from safe_pip.fs.bulk import Damaged
from safe_pip.locking import flock
from safe_pip.store import compile
from safe_pip.store import prepare as preparing
from safe_pip.store import wheels as prepared
from safe_pip.store.prepare import Preparing
from safe_pip.store.wheels import FILES, LISTING, Entry, Listing, Store
from tests.support.faults import disk
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.skipif(not flock.supported, reason="there are no locks here, and so there is no store")

PROJECT = Project(
    "demo",
    "1",
    files={
        "demo/__init__.py": "x = 1\n",
        "demo/broken.py": "def (:\n",
        "demo/deep/data.bin": bytes(range(256)) * 2000,
        "demo/empty.py": "",
        "demo-1.data/purelib/pure.py": "y = 2\n",
    },
    scripts={"tool": "#!python\n"},
    data={"share/demo/one": "one"},
)
OTHER = Project("other", "1")


def prepare(store: Store, *wheels: Path, limit: int = 10**9, **more) -> dict[Path, object]:
    tool = Preparing(store, more.pop("interpreter", compile.key()), limit=limit)
    return tool.prepare(wheels, more.pop("unneeded", lambda: ()))


@pytest.fixture(autouse=True)
def nothing_is_held() -> Iterator[None]:
    """What a test holds is let go after it, as at the end of a process."""
    yield
    flock._close_in_child()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store.below(tmp_path / "cache")
    assert found is not None
    return found


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return PROJECT.write_wheel(tmp_path)


def copied(entry, place: Path, group: str = "", *, bytecode: bool = True, clones: bool = True) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    with fs.Directory.open(place) as directory:
        entry.copy(group, directory, bytecode=bytecode, clones=clones)
    return place


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def left_in(store: Store) -> list[str]:
    """What stands in the store besides complete entries and their times."""
    return [path.name for name in ("aside", "making") for path in (store.path / name).glob("*")]


def packed(tmp_path: Path, *names: str) -> Path:
    """A wheel with files of these names, and whatever RECORD that leaves it with."""
    content = io.BytesIO(Project("odd", "1", files=dict.fromkeys(names, "")).wheel())
    path = tmp_path / "odd-1-py3-none-any.whl"
    path.write_bytes(content.getvalue())
    return path


def test_an_entry_has_what_the_archive_has_and_the_bytecode(store, wheel, tmp_path):
    entry = prepare(store, wheel)[wheel]
    found = files(copied(entry, tmp_path / "there"))
    with zipfile.ZipFile(wheel) as archive:
        there = {name: archive.read(name) for name in archive.namelist() if ".data/" not in name}
    compiled = {importlib.util.cache_from_source(name) for name in ("demo/__init__.py", "demo/empty.py")}
    assert found.keys() == there.keys() | compiled
    assert {name: found[name] for name in there} == there
    assert set(entry.listing.files) == {"", "demo-1.data/purelib", "demo-1.data/scripts", "demo-1.data/data"}
    assert files(copied(entry, tmp_path / "data", "demo-1.data/data")) == {"share/demo/one": b"one"}


def test_without_bytecode_there_are_the_sources_alone(store, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".data/" not in name}
    entry = prepare(store, wheel)[wheel]
    assert files(copied(entry, tmp_path / "left-out", bytecode=False)).keys() == there
    entry = prepare(store, wheel, interpreter=None)[wheel]
    assert files(copied(entry, tmp_path / "never-there")).keys() == there
    assert len(store.entries()) == 2


def test_what_is_copied_is_imported_from_its_bytecode_under_its_own_name(store, wheel, tmp_path):
    there = copied(prepare(store, wheel)[wheel], tmp_path / "there")
    code = (
        "import sys, demo; sys.dont_write_bytecode or sys.exit('writes')\n"
        "print(demo.__spec__.loader.get_code('demo').co_filename)"
    )
    before = files(there)
    options = ["-v", "-B", "-c", code]
    done = subprocess.run([sys.executable, *options], env={"PYTHONPATH": str(there)}, capture_output=True, text=True)
    assert done.stdout.strip() == str(there / "demo" / "__init__.py")
    assert re.search(r"matches .*demo/__init__\.py", done.stderr), done.stderr
    assert files(there) == before


def test_who_asks_again_changes_nothing_but_when_it_was_last_used(store, wheel):
    prepare(store, wheel)[wheel].close()
    with disk.record() as changes:
        assert prepare(store, wheel)[wheel].listing.wheel == wheel.name
    assert [change.operation for change in changes] == ["touch"]


def test_another_interpreter_has_an_entry_of_its_own(store, wheel):
    one, other = (prepare(store, wheel, interpreter=name)[wheel] for name in ("one", "other"))
    assert one.path != other.path


def test_what_is_copied_has_the_time_of_the_copy_and_valid_bytecode(store, wheel, tmp_path):
    """And not that of the day on which its wheel was first unpacked: make compares the times of installed files."""
    prepare(store, wheel)[wheel].close()
    (reference := tmp_path / "reference").touch()
    there = copied(prepare(store, wheel)[wheel], tmp_path / "there")
    # A file gets the time of the last tick of the kernel's clock, which comes at least 100 times in a second.
    assert all(path.stat().st_mtime >= reference.stat().st_mtime - 0.01 for path in there.rglob("*"))
    for compiled in there.rglob("*.pyc"):
        source = Path(importlib.util.source_from_cache(str(compiled)))
        assert int.from_bytes(compiled.read_bytes()[8:12], "little") == int(source.stat().st_mtime)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_modes_are_those_of_whoever_copies(store, tmp_path, mask):
    content = io.BytesIO()
    project = Project("modes", "1", files={"modes/tool": "", "modes/text": ""})
    with zipfile.ZipFile(io.BytesIO(project.wheel())) as old, zipfile.ZipFile(content, "w") as new:
        for info in old.infolist():
            if info.filename == "modes/tool":
                info.external_attr = 0o100755 << 16
            new.writestr(info, old.read(info.filename))
    wheel = tmp_path / project.wheel_name
    wheel.write_bytes(content.getvalue())
    before = os.umask(0o027)
    try:
        entry = prepare(store, wheel)[wheel]
        os.umask(mask)
        for clones in (False, True):
            there = copied(entry, tmp_path / str(clones), clones=clones)
            found = {
                name: stat.S_IMODE((there / name).stat().st_mode) for name in ("modes/tool", "modes/text", "modes")
            }
            assert found == {
                "modes/tool": 0o777 & ~mask | 0o111,
                "modes/text": 0o666 & ~mask,
                "modes": 0o777 & ~mask,
            }, clones
    finally:
        os.umask(before)


@pytest.mark.parametrize("clones", [False, True])
def test_what_is_in_the_way_makes_room(store, wheel, tmp_path, clones):
    there = tmp_path / "there"
    entry = prepare(store, wheel)[wheel]
    (there / "demo" / "deep").mkdir(parents=True)
    (there / "demo" / "__init__.py").write_text("other")
    (there / "demo" / "deep" / "data.bin").symlink_to(wheel)
    copied(entry, there, clones=clones)
    assert (there / "demo" / "__init__.py").read_text() == "x = 1\n"
    assert not (there / "demo" / "deep" / "data.bin").is_symlink()
    assert wheel.read_bytes() == PROJECT.wheel()


@pytest.mark.parametrize("clones", [False, True])
@pytest.mark.parametrize("name", ["demo/__init__.py", "demo/deep/data.bin"])
@pytest.mark.parametrize("how", ["content", "shorter", "longer", "gone", "directory"])
def test_a_file_that_is_not_as_it_was_prepared_is_never_copied(store, wheel, tmp_path, clones, name, how):
    entry = prepare(store, wheel)[wheel]
    path = entry.path / FILES / name
    content = path.read_bytes()
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how != "gone":
        path.write_bytes({"content": b"y" + content[1:], "shorter": content[:-1], "longer": content + b"x"}[how])
    with pytest.raises(Damaged):
        copied(entry, tmp_path / "there", clones=clones)


@pytest.mark.parametrize("how", ["torn", "flipped", "empty", "gone", "directory"])
def test_an_entry_with_a_damaged_listing_is_absent_and_made_again(store, wheel, tmp_path, how):
    entry = prepare(store, wheel)[wheel]
    entry.close()
    listing = entry.path / LISTING
    content = listing.read_bytes()
    listing.unlink()
    if how == "directory":
        listing.mkdir()
    elif how != "gone":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        listing.write_bytes({"torn": content[:-9], "flipped": flipped, "empty": b""}[how])
    assert store.find(entry.path.name) is None
    assert not entry.path.exists()
    assert files(copied(prepare(store, wheel)[wheel], tmp_path / "there"))["demo/__init__.py"] == b"x = 1\n"
    assert left_in(store) == []


def test_an_entry_that_appears_while_somebody_misses_it_stays(store, wheel, monkeypatch):
    key = Path(prepare(store, wheel)[wheel].path).name
    flock._close_in_child()
    place, away = store.path / "wheels" / key, store.path / "away"
    place.rename(away)

    def hold(path: Path, *, exclusive: bool = False, original=prepared.hold) -> flock.Descriptor:
        try:
            return original(path, exclusive=exclusive)
        finally:
            if away.exists():  # the process that prepares it is done just now
                away.rename(place)

    monkeypatch.setattr(prepared, "hold", hold)
    assert store.find(key) is None
    assert [entry.path.name for entry in store.entries()] == [key]
    assert store.find(key) is not None


def test_an_entry_that_takes_the_place_of_a_damaged_one_stays(store, wheel, monkeypatch):
    """Another process found the damage too, removed what was damaged and has made it again by now."""
    key = Path(prepare(store, wheel)[wheel].path).name
    flock._close_in_child()
    place, away = store.path / "wheels" / key, store.path / "away"
    shutil.copytree(place, away)
    (place / LISTING).write_bytes(b"")

    def decode(content: bytes, original=Listing.decode) -> Listing:
        if away.exists():
            shutil.rmtree(place)
            away.rename(place)
        return original(content)

    monkeypatch.setattr(Listing, "decode", decode)
    assert store.find(key) is None
    assert [entry.path.name for entry in store.entries()] == [key]
    assert store.find(key) is not None


def test_a_listing_comes_back_as_it_was():
    listing = Listing("a-1.whl", 4096, ["all", "some"], {"": [["\udce9\n.py", 1, "00", 2]], "a.data/data": []})
    assert Listing.decode(listing.encode()) == listing


@pytest.mark.parametrize(
    "names",
    [
        ("../odd.py",),
        ("/odd.py",),
        ("odd//odd.py",),
        ("./odd.py",),
        ("odd-1.data/odd.py",),
        ("odd-1.data/elsewhere/odd.py",),
        ("odd", "odd/odd.py"),
        ("odd.py", importlib.util.cache_from_source("odd.py")),
    ],
    ids=" ".join,
)
def test_what_only_an_installer_can_judge_is_left_to_him(store, tmp_path, names):
    other = OTHER.write_wheel(tmp_path)
    assert prepare(store, packed(tmp_path, *names), other).keys() == {other}
    assert [entry.listing.wheel for entry in store.entries()] == [other.name]
    assert left_in(store) == []


class Pipe(io.BytesIO):
    """What cannot be gone back in: sizes and checksums follow the data."""

    def seekable(self):
        return False

    def seek(self, *where):
        raise io.UnsupportedOperation


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("made", [io.BytesIO, Pipe])
def test_a_wheel_is_unpacked_however_it_was_packed(store, tmp_path, kind, made):
    names = {"é.py": "e = 1\n", "big.bin": bytes(3 << 20), "much.txt": "text " * 9000, "none": ""}
    project = Project("packed", "1", files=names)
    packed = made()
    with zipfile.ZipFile(io.BytesIO(project.wheel())) as old, zipfile.ZipFile(packed, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        there = {name: old.read(name) for name in old.namelist()}
    wheel = tmp_path / project.wheel_name
    wheel.write_bytes(b"#!before it\n" + packed.getvalue())
    entry = prepare(store, wheel)[wheel]
    assert files(copied(entry, tmp_path / "there", bytecode=False)) == there


@pytest.mark.parametrize("what", ["name", "checksum", "magic"])
def test_a_wheel_whose_parts_contradict_each_other_is_not_prepared(store, wheel, what):
    content = bytearray(wheel.read_bytes())
    at = content.index(b"PK\x03\x04")
    central = content.index(b"PK\x01\x02")
    content[{"name": at + 30, "checksum": central + 16, "magic": at + 3}[what]] ^= 1
    wheel.write_bytes(content)
    assert prepare(store, wheel) == {}


@pytest.mark.parametrize("how", ["empty", "torn", "flipped"])
def test_a_wheel_that_is_damaged_is_not_prepared(store, wheel, tmp_path, how):
    content = wheel.read_bytes()
    damaged = {"empty": b"", "torn": content[:-30], "flipped": content.replace(b"x = 1\n", b"x = 2\n")}[how]
    wheel.write_bytes(damaged)
    assert prepare(store, wheel, other := OTHER.write_wheel(tmp_path)).keys() == {other}
    assert [entry.listing.wheel for entry in store.entries()] == [OTHER.wheel_name]


def test_an_entry_says_how_its_wheel_differs_from_its_record(store, wheel):
    made = io.BytesIO()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"#more" if name == "demo/__init__.py" else b""))
        new.writestr("demo/left_out.py", "")
    wheel.write_bytes(made.getvalue())
    for _ in range(2):
        everything, contents = prepare(store, wheel)[wheel].listing.differences
        assert contents == f"`{wheel.name}` is not what its RECORD says: `demo/__init__.py` has another digest"
        assert everything == f"{contents}, `demo/left_out.py` is not listed"


def test_a_wheel_larger_than_the_limit_is_not_prepared(store, wheel):
    assert prepare(store, wheel, limit=400_000) == {}
    assert store.entries() == []


def test_the_store_stays_below_its_limit_and_the_least_recently_used_goes_first(store, tmp_path):
    wheels = [Project(f"p{number}").write_wheel(tmp_path) for number in range(4)]
    for number, wheel in enumerate(wheels[:3]):
        entry = prepare(store, wheel)[wheel]
        entry.close()
        os.utime(entry.path, (number, number))
    prepare(store, wheels[0])[wheels[0]].close()  # the first one is the last one used
    one = entry.listing.size
    assert sum(entry.listing.size for entry in store.entries()) == 3 * one
    found, tool, _ = trying(store, wheels[3], limit=2 * one)
    found[wheels[3]].close()
    tool.finish()
    assert {entry.listing.wheel for entry in store.entries()} == {wheels[0].name, wheels[3].name}
    assert left_in(store) == []


def test_what_is_in_use_is_never_removed(store, wheel, tmp_path):
    used = prepare(store, wheel)[wheel]
    other = OTHER.write_wheel(tmp_path)
    prepare(store, other)[other].close()
    store.keep_below(0)
    assert [entry.listing.wheel for entry in store.entries()] == [wheel.name]
    assert not store.wheels.remove(used.path.name)
    copied(used, tmp_path / "there")
    used.close()
    assert store.wheels.remove(used.path.name)
    assert store.entries() == []


def test_what_dead_processes_left_is_swept_and_what_the_living_do_stays(store, wheel):
    fs.make_directories(store.path / "aside" / "of-a-dead-one" / "entry")
    with store.wheels.making() as alive:
        prepare(store, wheel)[wheel].close()
        assert [path.name for path in (store.path / "aside").iterdir()] == [alive.name]
    assert left_in(store) == []


def test_a_store_that_others_could_change_is_not_used(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert Store.below(tmp_path / "cache") is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_other_hosts_use_too_is_left_for_a_directory_of_this_host(tmp_path, monkeypatch):
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    shared = [tmp_path / "home"]
    monkeypatch.setattr(proc, "is_shared", lambda path: any(map(Path(path).is_relative_to, shared)))
    cache = tmp_path / "home" / ".cache"
    assert Store.existing(cache) is None
    store = Store.below(cache)
    assert store is not None
    assert store.path.is_relative_to(tmp_path / "tmp")
    assert Store.existing(cache) == store
    assert os.listdir(tmp_path / "home") == []
    shared.append(Path("/"))
    assert Store.below(cache) is None, "rather none than one that two hosts write"


def test_all_of_it_is_closed_to_others(store, wheel):
    prepare(store, wheel)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o700


def attempt(root: Path, wheel: Path) -> dict[str, bytes]:
    store = Store.below(root)
    if store is None:
        return {}
    found = prepare(store, wheel)
    for entry in found.values():
        entry.close()
    return files(found[wheel].path / FILES) if found else {}


def changes_of(root: Path, wheel: Path) -> int:
    with disk.record() as changes:
        assert attempt(root, wheel)
    return len(changes)


def test_after_a_crash_at_any_change_the_next_one_prepares_it_whole(tmp_path):
    wheel = Project("small", "1").write_wheel(tmp_path)
    whole = attempt(tmp_path / "whole", wheel)
    for k in range(changes_of(tmp_path / "count", wheel)):
        root = tmp_path / str(k)
        with pytest.raises(disk.Crashed), disk.crash_at(k):
            attempt(root, wheel)
        for descriptor in list(flock._descriptors):  # as the kernel does for a dead process
            descriptor.close()
        found = attempt(root, wheel)
        assert found.keys() == whole.keys(), k
        store = Store.existing(root)
        assert [entry.listing.wheel for entry in store.entries()] == [wheel.name]
        store.sweep()
        assert not list((store.path / "aside").iterdir()), k


@pytest.mark.parametrize("forever", [False, True])
def test_an_error_of_the_disk_at_any_change_is_nobodys_problem(tmp_path, forever):
    wheel = Project("small", "1").write_wheel(tmp_path)
    whole = attempt(tmp_path / "whole", wheel)
    for k in range(changes_of(tmp_path / "count", wheel)):
        root = tmp_path / str(k)
        with disk.error_at(k, errno.ENOSPC, forever=forever):
            found = attempt(root, wheel)
        assert found in ({}, whole) or found.keys() == whole.keys(), k
        assert attempt(root, wheel).keys() == whole.keys(), k


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_PATIENCE", 0.01)


@pytest.fixture
def held(store, wheel, monkeypatch):
    """The mutex of `wheel`, held by a process that does nothing."""
    key = prepare(store, wheel)[wheel]
    key.close()
    store.wheels.remove(key.path.name)
    descriptor = flock.Descriptor(store.mutex(key.path.name))
    assert flock.try_lock(descriptor, exclusive=True)
    yield descriptor
    descriptor.close()


def test_of_one_who_is_stopped_the_wheel_is_prepared_aside(store, wheel, held, impatient):
    assert prepare(store, wheel)[wheel].listing.wheel == wheel.name


def test_who_waits_longer_than_a_second_for_others_is_told_once_for_which_wheel(store, wheel, held, monkeypatch):
    told, times, wait_lock = [], iter(range(1, 5)), flock.wait_lock

    def second(descriptor, *, exclusive, seconds):
        time = next(times, 0) if seconds else 0
        if time:
            os.utime(held.path, (time, time))
        if time == 4:
            held.close()
        return wait_lock(descriptor, exclusive=exclusive, seconds=0)

    monkeypatch.setattr(flock, "wait_lock", second)
    waiting = lambda what, holders: told.append(what)  # noqa: E731
    tool = Preparing(store, compile.key(), limit=10**9, waiting=waiting)
    assert tool.prepare([wheel], lambda: ())[wheel].listing.wheel == wheel.name
    assert told == [f"prepare `{wheel.name}`"]


def test_before_waiting_others_are_prepared_and_what_nobody_needs_is_left_out(store, wheel, held, tmp_path):
    other = OTHER.write_wheel(tmp_path)
    asked = []

    def unneeded():
        asked.append([entry.listing.wheel for entry in store.entries()])
        return [wheel]

    assert prepare(store, wheel, other, unneeded=unneeded).keys() == {other}
    assert asked == [[other.name]]


def test_of_two_who_prepare_one_wheel_the_second_one_discards_his(store, wheel, held, impatient):
    key = held.path.name

    first = prepare(store, wheel)[wheel]
    with store.wheels.making() as aside:
        (aside / "entry").mkdir()
        (aside / "entry" / "mark").touch()
        store.wheels.publish(aside / "entry", key)
    assert not (first.path / "mark").exists()
    assert left_in(store) == [key]


# What is in the place of an entry and cannot be used


def prepared_once(store: Store, wheel: Path) -> Path:
    """Where the entry of `wheel` is, made and let go."""
    entry = prepare(store, wheel)[wheel]
    entry.close()
    return entry.path


def trying(store: Store, *wheels: Path, **more: int) -> tuple[dict[Path, Entry], Preparing, list[Path]]:
    """What one more command has in the end, with a note of each wheel that it unpacked."""
    unpacked: list[Path] = []

    class Noting(Preparing):
        def _check_room(self, archive: zipfile.ZipFile) -> None:
            unpacked.append(Path(str(archive.filename)))
            super()._check_room(archive)

    tool = Noting(store, compile.key(), limit=more.get("limit", 10**9))
    found = tool.prepare(wheels, lambda: ())
    return found, tool, unpacked


def test_a_damaged_entry_that_somebody_holds_is_tried_once_and_left(store, wheel, tmp_path):
    place = prepared_once(store, wheel)
    other = OTHER.write_wheel(tmp_path)
    holder = flock.Descriptor(place)
    assert flock.try_lock(holder, exclusive=False)
    (place / LISTING).write_bytes(b"")
    found, tool, unpacked = trying(store, wheel, other)
    assert found.keys() == {other}
    assert len(unpacked) == 2
    assert "cannot be used or removed" in str(tool.refused)
    holder.close()
    assert trying(store, wheel)[0].keys() == {wheel}


@pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
def test_a_listing_that_is_no_file_is_damage_and_nobody_waits_for_it(store, wheel, tmp_path, kind):
    listing = prepared_once(store, wheel) / LISTING
    listing.rename(tmp_path / "listing")
    {"fifo": os.mkfifo, "directory": Path.mkdir, "link": lambda path: path.symlink_to(tmp_path / "listing")}[kind](
        listing
    )
    assert store.entries() == []
    assert trying(store, wheel)[0].keys() == {wheel}
    assert listing.is_file()
    assert not listing.is_symlink()


@pytest.mark.parametrize("there", [True, False], ids=["to-an-entry", "dangling"])
def test_a_link_in_the_place_of_an_entry_is_taken_away(store, wheel, tmp_path, there):
    place = prepared_once(store, wheel)
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved" if there else tmp_path / "nowhere")
    assert trying(store, wheel)[0].keys() == {wheel}
    assert not place.is_symlink()
    assert (tmp_path / "moved" / LISTING).is_file()


def test_what_is_no_entry_counts_for_nothing_and_goes_when_room_is_made(store, wheel, tmp_path):
    place = prepared_once(store, wheel)
    (place / LISTING).unlink()
    other = OTHER.write_wheel(tmp_path)
    found, tool, _ = trying(store, other)
    found[other].close()
    tool.finish()
    assert store.wheels.names() == [found[other].path.name]


# How much there is


def test_the_limit_holds_for_what_one_command_has_prepared(store, tmp_path):
    wheels = [
        Project(f"big{number}", "1", files={"big.bin": bytes(50_000)}).write_wheel(tmp_path) for number in range(4)
    ]
    found, tool, _ = trying(store, *wheels, limit=150_000)
    assert len(found) == 4
    for entry in found.values():
        entry.close()
    tool.finish()
    assert 0 < sum(entry.listing.size for entry in store.entries()) <= 150_000


def test_what_is_larger_than_the_limit_with_its_bytecode_is_not_kept(store, tmp_path):
    wheel = Project("much", "1", files={f"m{number}.py": "x = 1\n" for number in range(20)}).write_wheel(tmp_path)
    entry = prepare(store, wheel)[wheel]
    entry.close()
    assert store.wheels.remove(entry.path.name)
    assert trying(store, wheel, limit=entry.listing.size - 1)[0] == {}
    assert store.wheels.names() == []
    assert trying(store, wheel, limit=entry.listing.size)[0].keys() == {wheel}


def test_one_wheel_that_the_disk_has_no_room_for_hinders_no_other(store, wheel, tmp_path, monkeypatch):
    other = OTHER.write_wheel(tmp_path)
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4 * 300_000))
    found, tool, _ = trying(store, wheel, other)  # 512,000 bytes, and a few
    assert found.keys() == {other}
    assert "[Errno 28]" in str(tool.refused)


def test_a_wheel_whose_bytecode_has_too_long_a_name_hinders_no_other(store, tmp_path):
    name = "m" * 248  # 251 with its suffix, but 264 with that of its bytecode
    odd = Project("odd", "1", files={f"{name}.py": "x = 1\n"}).write_wheel(tmp_path)
    other = OTHER.write_wheel(tmp_path)
    found, tool, _ = trying(store, odd, other)
    assert found.keys() == {other}
    assert "too long" in str(tool.refused)
    assert left_in(store) == []


def test_what_a_killed_process_left_is_gone_before_room_is_looked_for(store, wheel):
    left = store.path / "aside" / "left"
    (left / "entry").mkdir(parents=True)
    (left / "entry" / "half").write_bytes(bytes(1000))
    found = trying(store, wheel)[0]
    assert left_in(store) == []
    for entry in found.values():
        entry.close()
    left.mkdir(parents=True)
    trying(store, wheel)  # a command that finds all of it prepared looks as well
    assert left_in(store) == []


def test_no_more_are_held_than_leave_descriptors_for_others(store, tmp_path, monkeypatch):
    wheels = [Project(f"p{number}", "1").write_wheel(tmp_path) for number in range(5)]
    monkeypatch.setattr(space, "descriptor_limit", lambda: 12)
    for _ in range(2):
        found, tool, _ = trying(store, *wheels)
        assert found.keys() == {*wheels}
        assert sum(entry.held is not None for entry in found.values()) == 3
        wheel, entry = next(item for item in found.items() if item[1].held is None)
        again = tool.renew(wheel, entry)
        assert again is not None
        assert again.held is not None
        for each in (*found.values(), again):
            each.close()
    assert store.wheels.remove(again.path.name)
    with tool.renew(wheel, entry).held:
        assert len(store.entries()) == len(wheels)
