"""An entry of a cache is whole or absent, and stays for as long as a process uses it."""

import os
import time

import pytest

from safe_pip.locking import entries, flock
from safe_pip.locking.entries import Entries

pytestmark = pytest.mark.skipif(not flock.supported, reason="nothing can be locked here")

LONG_AGO = time.time() - 31 * 24 * 3600


@pytest.fixture
def cache(tmp_path):
    return Entries(tmp_path / "entries", tmp_path / "entries" / ".aside")


def make(cache, name, content="whole"):
    with cache.making() as aside:
        (aside / "made").mkdir()
        (aside / "made" / "content").write_text(content)
        cache.publish(aside / "made", name)
    return cache.directory / name


def test_an_entry_is_made_aside_and_nothing_else_is_left(cache):
    place = make(cache, "one")
    assert (place / "content").read_text() == "whole"
    assert cache.names() == ["one"]
    assert os.listdir(cache.aside) == []


def test_what_is_there_already_stays(cache):
    make(cache, "one", "first")
    assert (make(cache, "one", "second") / "content").read_text() == "first"
    (cache.directory / "two").write_text("a file")
    make(cache, "two")
    assert (cache.directory / "two").read_text() == "a file"


def test_an_entry_in_use_is_not_removed(cache):
    held = entries.hold(make(cache, "one"))
    assert not cache.remove("one")
    held.close()
    assert cache.remove("one")
    assert cache.remove("one"), "it is gone"
    assert cache.names() == []


def test_an_entry_that_is_being_removed_is_not_used(cache):
    held = entries.hold(make(cache, "one"), exclusive=True)
    with pytest.raises(BlockingIOError):
        entries.hold(cache.directory / "one")
    held.close()


def test_a_damaged_entry_is_discarded_but_not_what_took_its_place(cache):
    held = entries.hold(make(cache, "one"))
    (cache.directory / "one").rename(cache.directory / "old")
    make(cache, "one")
    cache.discard(held)
    assert sorted(cache.names()) == ["old", "one"]
    cache.discard(entries.hold(cache.directory / "one"))
    assert cache.names() == ["old"]


def test_a_damaged_entry_that_another_process_holds_stays(cache):
    one, other = (entries.hold(make(cache, "one")) for _ in range(2))
    cache.discard(one)
    assert cache.names() == ["one"]
    other.close()


def test_a_file_in_the_place_of_an_entry_is_removed(cache, tmp_path):
    make(cache, "one")
    (cache.directory / "link").symlink_to(tmp_path)
    assert cache.remove("link")
    assert cache.names() == ["one"]


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_makes_is_not(cache):
    with cache.making() as alive:
        (cache.aside / "left").mkdir()
        cache.sweep()
        assert os.listdir(cache.aside) == [alive.name]


def test_entries_go_that_were_not_used_for_long(cache):
    for name in ("used", "unused", "held"):
        make(cache, name)
    held = entries.hold(cache.directory / "held")
    for name in ("unused", "held"):
        os.utime(cache.directory / name, (LONG_AGO, LONG_AGO))
    cache.sweep(unused=30 * 24 * 3600)
    assert sorted(cache.names()) == ["held", "used"]
    held.close()
