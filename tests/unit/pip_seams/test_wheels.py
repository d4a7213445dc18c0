"""What pip asks for each file and each wheel is answered in less time, and as pip answers it."""

import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from safe_pip.launch import settings
from safe_pip.pip_seams import wheels


@pytest.mark.parametrize("path", ["pkg/a.py", "pkg/..x/a.py", "pkg//a.py", "./a.py", "a/../b.py", "../b.py", ".hidden"])
def test_paths_below_the_stage_are_as_pip_has_them(path):
    directory = "/env/.safe-pip/0123/stage/lib"

    def relative(path: str, directory: str) -> str:
        return os.path.relpath(path, directory)

    def is_within(directory: str, path: str) -> bool:
        return os.path.normpath(path).startswith(f"{directory}/")

    whole = f"{directory}/{path}"
    assert wheels._relative(relative, whole, directory) == relative(whole, directory)
    assert wheels._is_within(is_within, directory, whole) == is_within(directory, whole)


def test_a_plain_path_below_the_stage_is_not_normalized():
    directory = "/env/.safe-pip/0123/stage/lib"
    assert wheels._relative(pytest.fail, f"{directory}/pkg/a.py", directory) == "pkg/a.py"
    assert wheels._is_within(pytest.fail, directory, f"{directory}/pkg/a.py")


def test_the_metadata_of_a_wheel_is_read_once_while_the_wheel_stays_the_same(tmp_path):
    file = tmp_path / "one-1-py3-none-any.whl"
    file.write_bytes(b"one")
    staging = wheels.WheelStaging(settings.load({}))
    read: list[str] = []

    def from_wheel(cls: type, wheel: SimpleNamespace, name: str) -> object:
        read.append(wheel.location)
        return object()

    def ask(location: str) -> object:
        return staging._from_wheel(from_wheel, object, SimpleNamespace(location=location), "one")

    assert ask(str(file)) is ask(str(file))
    file.write_bytes(b"other")
    ask(str(file))
    assert read == [str(file)] * 2
    ask("https://example.org/one-1-py3-none-any.whl")
    ask("https://example.org/one-1-py3-none-any.whl")
    assert len(read) == 4, "a wheel that is an address is not kept"


def test_the_table_of_contents_that_was_read_for_the_metadata_serves_the_installation(tmp_path, monkeypatch):
    file = tmp_path / "one-1-py3-none-any.whl"
    tables: list[str] = []
    original = zipfile.ZipFile._RealGetContents

    def counted(archive: zipfile.ZipFile) -> None:
        tables.append(str(archive.filename))
        original(archive)

    def write(content: str) -> None:
        with zipfile.ZipFile(tmp_path / "new", "w") as archive:
            archive.writestr("one.py", content)
        (tmp_path / "new").replace(file)

    def from_wheel(cls: type, wheel: SimpleNamespace, name: str) -> str:
        with wheel.as_zipfile() as archive:
            return archive.read("one.py").decode()

    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", counted)
    staging = wheels.WheelStaging(settings.load({}))

    def installed() -> str:
        with staging._reopened(zipfile.ZipFile, str(file), allowZip64=True) as archive:
            return archive.read("one.py").decode()

    write("first")
    wheel = SimpleNamespace(location=str(file), as_zipfile=lambda: zipfile.ZipFile(file))
    assert staging._from_wheel(from_wheel, object, wheel, "one") == "first"
    assert [installed(), installed()] == ["first"] * 2
    assert len(tables) == 1
    write("another one")
    assert installed() == "another one"
    assert Path(tables[-1]) == file
