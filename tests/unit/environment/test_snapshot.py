"""What counts as a change of an installed project."""

import os
from pathlib import Path

import pytest

from safe_pip.environment.snapshot import ReadSet, Snapshot


def install(site: Path, name: str = "idna", version: str = "1") -> Path:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    return info


def take(*directories: Path) -> Snapshot:
    return Snapshot.take(map(str, directories))


def test_a_project_is_found_under_its_normalized_name(tmp_path):
    install(tmp_path, "Zope.Interface_x")
    assert take(tmp_path).identity("zope-interface-x")


@pytest.mark.parametrize("name", ["a-1.dist-info", "a-1-py3.12.egg-info", "a.egg-info", "a.egg-link", "a-1-py3.12.egg"])
def test_every_form_of_metadata_is_seen(tmp_path, name):
    (tmp_path / name).mkdir() if not name.endswith("link") else (tmp_path / name).write_text(".\n")
    assert take(tmp_path).identity("a")


def test_an_egg_link_is_named_after_the_whole_project(tmp_path):
    (tmp_path / "foo-bar.egg-link").write_text(".\n")
    assert take(tmp_path).identity("foo-bar")


def test_an_untouched_project_keeps_its_identity(tmp_path):
    install(tmp_path)
    assert take(tmp_path).identity("idna") == take(tmp_path).identity("idna")


@pytest.mark.parametrize("file", ["METADATA", "RECORD", "direct_url.json"])
def test_rewriting_a_file_with_the_same_size_and_times_is_a_change(tmp_path, file):
    info = install(tmp_path)
    (info / file).write_text("one")
    before, status = take(tmp_path), os.stat(info / file)
    (info / file).unlink()
    (info / "other").write_text("")  # takes the inode number that was freed, on filesystems that give it away
    (info / file).write_text("two")
    os.utime(info / file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take(tmp_path).identity("idna") != before.identity("idna")
    assert not before.is_current("idna")


def test_a_second_metadata_directory_of_a_project_is_a_change(tmp_path):
    install(tmp_path)
    before = take(tmp_path)
    install(tmp_path, version="2")
    assert take(tmp_path).identity("idna") != before.identity("idna")


def test_a_removed_project_is_not_current(tmp_path):
    info = install(tmp_path)
    before = take(tmp_path)
    for file in info.iterdir():
        file.unlink()
    info.rmdir()
    assert not before.is_current("idna")


def test_moving_the_target_of_an_egg_link_is_a_change(tmp_path):
    source = tmp_path / "src"
    (source / "a.egg-info").mkdir(parents=True)
    (source / "a.egg-info" / "PKG-INFO").write_text("Name: a\nVersion: 1\n")
    (tmp_path / "a.egg-link").write_text(f"{source}\n.\n")
    before = take(tmp_path)
    (source / "a.egg-info" / "PKG-INFO").write_text("Name: a\nVersion: 22\n")
    assert take(tmp_path).identity("a") != before.identity("a")


def test_missing_and_unreadable_directories_hold_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert take(tmp_path / "missing", tmp_path / "file").projects == {}


def test_a_read_set_names_what_changed_after_it_was_asked_for(tmp_path):
    install(tmp_path, "a")
    install(tmp_path, "b")
    before, read = take(tmp_path), ReadSet()
    read.add("a", before)
    read.add("absent", before)
    (tmp_path / "b-1.dist-info" / "METADATA").write_text("changed")
    assert read.changed(take(tmp_path)) == ()
    install(tmp_path, "absent")
    (tmp_path / "a-1.dist-info" / "METADATA").write_text("changed")
    assert read.changed(take(tmp_path)) == ("a", "absent")
    assert read.changed_or_removed(take(tmp_path)) == ("a",)


def test_a_read_set_keeps_what_was_shown_first(tmp_path):
    install(tmp_path, "a")
    first, read = take(tmp_path), ReadSet()
    read.add("a", first)
    (tmp_path / "a-1.dist-info" / "METADATA").write_text("changed")
    read.add_all(take(tmp_path))
    assert read.changed(take(tmp_path)) == ("a",)
