"""An image is named by what it is made of; it is there whole or not at all, and nothing else is left beside it."""

import dataclasses
import os
from argparse import Namespace
from pathlib import Path

import pytest

from safe_pip.commands._image import Image
from safe_pip.commands.environments import Interpreter
from safe_pip.environment.environment import Environment
from safe_pip.errors import NotMade, StalePlan, UnusableEnvironment
from tests.support.faults import disk
from tests.support.venvs.direct_installs import SilentReporter

PYTHON = Interpreter("python", "Python 3", ["cpython", "3.13.1", "", "/usr"], "/usr", "", "")
MAKES = """#!/bin/sh
printf 'hsqs made of ' > "$2"; cat "$1/file" >> "$2"
"""


@pytest.fixture
def tool(tmp_path: Path) -> str:
    """A program in the place of mksquashfs."""
    path = tmp_path / "mksquashfs"
    path.write_text(MAKES)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("a tree")
    return tmp_path / "tree"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "e.sqsh"


def image(path: Path, *requirements: Path, python: Interpreter = PYTHON, **more: object) -> Image:
    words = {"directory": "/opt/e", "passed_on": [], "prompt": None, "clear": False, **more}
    return Image(Namespace(image=str(path), requirements=[*map(str, requirements)], **words), python)


def test_another_requirement_python_option_or_directory_makes_another_image(
    tmp_path: Path, place: Path, tree: Path, tool: str
) -> None:
    files = [tmp_path / name for name in ("one.txt", "nested.txt", "limits.txt")]
    for path, content in zip(files, ("a\n-r nested.txt\n  --constraint=limits.txt\n", "b\n", "c<2\n"), strict=True):
        path.write_text(content)
    image(place, files[0]).pack(tool, tree)
    assert image(place, files[0]).is_made()
    assert not image(place, files[0], clear=True).is_made()
    assert not image(place, files[0], directory="/opt/other").is_made()
    assert not image(place, files[0], passed_on=["--copies"]).is_made()
    newer = dataclasses.replace(PYTHON, installation=["cpython", "3.13.2", "", "/usr"])
    assert not image(place, files[0], python=newer).is_made()
    for path in files:
        before = path.read_text()
        path.write_text(f"{before}d\n")
        assert not image(place, files[0]).is_made(), path
        path.write_text(before)
    assert image(place, files[0]).is_made()
    os.replace(files[0], tmp_path / "two.txt")  # the same content
    assert image(place, tmp_path / "two.txt").is_made()


def test_requirements_that_name_each_other_are_read_once(tmp_path: Path, place: Path) -> None:
    (tmp_path / "one.txt").write_text("-r one.txt\n-c https://example.org/two.txt\n")
    assert not image(place, tmp_path / "one.txt").is_made()


@pytest.mark.parametrize("content", [b"", b"text", b"hsqs of another tool"])
def test_a_file_that_is_no_image_of_ours_is_refused(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    with pytest.raises(UnusableEnvironment, match="is no image that safe-pip has made"):
        image(place).is_made()


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableEnvironment, match="does not exist"):
        image(tmp_path / "none" / "e.sqsh").is_made()


class _Context:
    """What a verb runs with, as far as an image needs it."""

    def environment(self, path: object) -> Environment:
        return Environment([], waiting=SilentReporter(), timeout=0)


def make(wanted: Image, tool: str, tree: Path) -> None:
    with wanted.making(_Context()):  # type: ignore[arg-type]
        wanted.pack(tool, tree)


def test_killed_at_any_change_the_old_image_or_the_new_one_is_there_and_the_next_leaves_nothing_else(
    tmp_path: Path, place: Path, tree: Path, tool: str
) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("old")
    new.write_text("new")
    make(image(place, old), tool, tree)
    before = place.read_bytes()
    with disk.record() as changes:
        make(image(place, new), tool, tree)
    after = place.read_bytes()
    assert before != after
    seen = set()
    for k in range(len(changes)):
        place.write_bytes(before)
        with pytest.raises(disk.Crashed), disk.crash_at(k):
            make(image(place, new), tool, tree)
        assert place.read_bytes() in (before, after), changes[k]
        seen.add(place.read_bytes())
        image(place, new).sweep()
        assert os.listdir(place.parent) == [place.name], changes[k]
    assert seen == {before, after}


def test_what_another_command_is_making_is_left_alone(place: Path, tree: Path, tool: str) -> None:
    wanted = image(place)
    with wanted.making(_Context()):  # type: ignore[arg-type]
        part = place.with_name(f"{place.name}.making-1")
        part.touch()
        image(place).sweep()
        assert sorted(os.listdir(place.parent)) == ["e.sqsh.making", "e.sqsh.making-1"]
    part.touch()
    make(wanted, tool, tree)
    assert os.listdir(place.parent) == [place.name]


def test_a_tool_that_fails_leaves_the_old_image(place: Path, tree: Path, tool: str) -> None:
    make(image(place), tool, tree)
    before = place.read_bytes()
    Path(tool).write_text("#!/bin/sh\necho a reason; exit 1\n")
    with pytest.raises(NotMade) as raised:
        make(image(place, directory="/opt/other"), tool, tree)
    assert raised.value.output == "a reason"
    Path(tool).write_text("#!/bin/sh\necho Write failed because No space left on device; exit 1\n")
    with pytest.raises(OSError, match="No space left"):
        make(image(place, directory="/opt/other"), tool, tree)
    assert place.read_bytes() == before
    assert os.listdir(place.parent) == [place.name]


def test_a_command_whose_lock_was_lost_replaces_nothing(place: Path, tree: Path, tool: str) -> None:
    Path(tool).write_text(f'{MAKES}rm "$2"\n')  # as the host does that has the lock by then
    with pytest.raises(StalePlan, match="another host"):
        make(image(place), tool, tree)
    assert os.listdir(place.parent) == []


def test_a_command_that_waited_finds_the_image_and_makes_no_lock_file(place: Path, tree: Path, tool: str) -> None:
    wanted = image(place)
    make(wanted, tool, tree)
    with (
        disk.record() as changes,
        Environment([], waiting=SilentReporter(), timeout=0).producing(wanted._lock, wanted.path, wanted.is_made),
    ):
        assert changes == []
