"""Which directories may hold code that is going to be run."""

import os
import sys
from pathlib import Path

import pytest

from safe_pip.fs import trust

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists")


@pytest.fixture
def place(tmp_path):
    """`.../outer/inner`; whatever the directories above it are, others get as far as `outer` in these tests."""
    place = tmp_path.resolve() / "outer" / "inner"
    place.mkdir(parents=True, mode=0o755)
    for directory in (place, place.parent):
        directory.chmod(0o755)
    return place


@pytest.fixture(autouse=True)
def _all_others_can_search_what_is_above(tmp_path, monkeypatch):
    above, lstat = set(tmp_path.resolve().parents) | {tmp_path.resolve()}, os.lstat

    def open_to_search(path):
        info = lstat(path)
        return info if Path(path) not in above else os.stat_result((info.st_mode | 0o011, *info[1:]))

    monkeypatch.setattr(trust.os, "lstat", open_to_search)


def test_what_only_this_user_can_write_is_trusted(place):
    assert trust.is_trusted(place)
    assert trust.is_trusted(place, as_parent=True)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_what_others_can_write_is_not_trusted(place, mode):
    place.chmod(mode)
    assert not trust.is_trusted(place)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_what_others_can_exchange_is_not_trusted(place, mode):
    place.parent.chmod(mode)
    assert not trust.is_trusted(place)


def test_a_directory_of_ones_own_below_a_sticky_one_is_trusted(place):
    place.parent.chmod(0o1777)
    assert trust.is_trusted(place)
    assert trust.is_trusted(place.parent, as_parent=True)


def test_what_a_group_could_exchange_if_it_could_get_there_is_trusted(place):
    """A home of mode 0700 with a `.cache` of mode 0775: the umask of users that have a group each."""
    middle = place.parent / "middle"
    middle.mkdir()
    place = place.rename(middle / "inner")
    middle.chmod(0o775)
    assert not trust.is_trusted(place)
    middle.parent.chmod(0o700)
    assert trust.is_trusted(place)
    middle.chmod(0o777)
    assert not trust.is_trusted(place)


def test_a_symbolic_link_is_not_trusted(place):
    link = place.parent / "link"
    link.symlink_to(place)
    assert not trust.is_trusted(link)


def test_a_file_is_not_trusted(place):
    (place / "file").write_text("")
    assert not trust.is_trusted(place / "file")


def test_what_is_made_is_private_whatever_the_umask(place):
    before = os.umask(0)
    try:
        made = trust.make_trusted(place / "cache" / "safe-pip")
    finally:
        os.umask(before)
    assert made == place / "cache" / "safe-pip"
    assert {path.stat().st_mode & 0o777 for path in (made, made.parent)} == {0o700}


def test_nothing_is_made_below_what_others_can_write(place):
    place.chmod(0o777)
    assert trust.make_trusted(place / "cache") is None
    assert not list(place.iterdir())


def test_a_cache_that_is_a_link_of_ones_own_is_used_where_it_leads(place):
    (place.parent / "cache").symlink_to(place)
    assert trust.make_trusted(place.parent / "cache" / "safe-pip") == place / "safe-pip"


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG specification is for Linux")
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "{home}"}, "/c"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "{home}"}, "{home}/.cache"),
        ({"XDG_CACHE_HOME": "", "HOME": "{home}"}, "{home}/.cache"),
        ({"HOME": "{home}"}, "{home}/.cache"),
        ({"HOME": "{home}/missing"}, None),
        ({"HOME": "relative"}, None),
    ],
)
def test_the_cache_is_where_the_xdg_specification_puts_it(tmp_path, environ, expected):
    environ = {name: value.format(home=tmp_path) for name, value in environ.items()}
    assert trust.cache_directory(environ) == (expected and Path(expected.format(home=tmp_path)))


def test_a_temporary_directory_that_others_control_is_passed_over(place, monkeypatch):
    place.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(place))
    before = trust.own_temporary(makes=False)
    made = trust.own_temporary(makes=True)
    assert place not in made.parents
    assert trust.is_trusted(made)
    assert trust.own_temporary(makes=False) == made
    if before is None:
        made.rmdir()
