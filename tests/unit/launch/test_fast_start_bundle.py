"""What is imported from a bundle is what the interpreter would have imported; a damaged one is no hindrance."""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest

from safe_pip import fs
from safe_pip.launch import fast_start
from tests.support.wheels.tiny_pip import install_tiny_pip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is none")

SOURCES = {
    "pip": "pip/__init__.py",
    "pip.__main__": "pip/__main__.py",
    "pip._internal": "pip/_internal/__init__.py",
    "pip._internal.cli": "pip/_internal/cli.py",
    "pip._vendor": "pip/_vendor/__init__.py",
    "pip._vendor.deep.er": "pip/_vendor/deep/er.py",
}


@pytest.fixture(autouse=True)
def _finders_as_before() -> Iterator[None]:
    before = list(sys.meta_path)
    yield
    sys.meta_path[:] = before


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of pip with bytecode, and with a directory in it that is no package."""
    place = tmp_path / "copy"
    install_tiny_pip(place, more={"pip/_vendor/deep/er.py": "class Deep:\n    '''Deep.'''\n"})
    for source in SOURCES.values():
        fs.write_bytecode(place / source)
    return place


@pytest.fixture
def file(copy: Path) -> Path:
    fast_start.make_bundle(copy, copy / "bundle")
    return copy / "bundle"


def found(name: str) -> ModuleSpec | None:
    """What is found by what was attached."""
    spec: ModuleSpec | None = sys.meta_path[0].find_spec(name, None, None)
    return spec


def is_attached(file: Path) -> bool:
    before = list(sys.meta_path)
    fast_start.attach_bundle(file)
    return sys.meta_path != before


def code_of(copy: Path, name: str) -> CodeType | None:
    loader = SourceFileLoader(name, str(copy / SOURCES[name]))
    code: CodeType | None = loader.get_code(name)
    return code


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_is_what_the_interpreter_would_have_imported(copy: Path, file: Path, name: str) -> None:
    path = str(copy / SOURCES[name])
    packages = [os.path.dirname(path)] if path.endswith("__init__.py") else None
    plain = importlib.util.spec_from_file_location(name, path, submodule_search_locations=packages)
    assert plain is not None
    fast_start.attach_bundle(file)
    spec = found(name)
    assert spec is not None
    for attribute in ("name", "origin", "cached", "has_location", "parent", "submodule_search_locations"):
        assert getattr(spec, attribute) == getattr(plain, attribute), attribute
    assert isinstance(spec.loader, SourceFileLoader)
    assert isinstance(plain.loader, SourceFileLoader)
    assert spec.loader.get_code(name) == plain.loader.get_code(name)
    assert spec.loader.get_source(name) == plain.loader.get_source(name)
    assert spec.loader.get_filename(name) == plain.loader.get_filename(name)
    assert spec.loader.is_package(name) == plain.loader.is_package(name)
    modules = [importlib.util.module_from_spec(one) for one in (spec, plain)]
    for one, module in zip((spec, plain), modules, strict=True):
        assert one.loader is not None
        if name != "pip.__main__":
            one.loader.exec_module(module)
    ours, theirs = (set(vars(module)) for module in modules)
    assert ours == theirs
    for attribute in {"__file__", "__cached__", "__package__", "__name__", "__doc__"} & ours:
        assert getattr(modules[0], attribute) == getattr(modules[1], attribute), attribute


def test_the_code_comes_from_the_bundle_alone(copy: Path, file: Path) -> None:
    codes = {name: code_of(copy, name) for name in SOURCES}
    fast_start.attach_bundle(file)
    for path in copy.rglob("*.py*"):
        path.unlink()
    for name in SOURCES:
        spec = found(name)
        assert spec is not None
        assert isinstance(spec.loader, SourceFileLoader)
        assert spec.loader.get_code(name) == codes[name]


def test_what_is_not_in_it_is_left_to_others(copy: Path) -> None:
    Path(importlib.util.cache_from_source(str(copy / "pip/_internal/cli.py"))).unlink()
    Path(importlib.util.cache_from_source(str(copy / "pip/__main__.py"))).write_bytes(b"")
    older = Path(importlib.util.cache_from_source(str(copy / "pip/_vendor/deep/er.py")))
    older.write_bytes(b"\0\0\r\n" + older.read_bytes()[4:])
    fast_start.make_bundle(copy, copy / "bundle")
    assert is_attached(copy / "bundle")
    left = [name for name in SOURCES if found(name) is None]
    assert left == ["pip.__main__", "pip._internal.cli", "pip._vendor.deep.er"]
    assert found("json") is None
    assert found("") is None


@pytest.mark.parametrize("damage", ["empty", "shorter", "length", "digest", "table", "zeros", "shape"])
def test_a_damaged_one_is_removed(copy: Path, file: Path, damage: str) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")

    other = marshal.dumps(("another", "version's"))
    other = hashlib.sha256(other).digest() + other

    def flipped(at: int) -> bytes:
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    file.write_bytes(
        {
            "empty": b"",
            "shorter": content[: 8 + length // 2],
            "length": flipped(7),
            "digest": flipped(20),
            "table": flipped(8 + length // 2),
            "zeros": bytes(len(content)),
            "shape": len(other).to_bytes(8, "little") + other,
        }[damage]
    )
    assert not is_attached(file)
    assert not file.exists()
    fast_start.make_bundle(copy, file)
    assert file.read_bytes() == content


def test_code_that_was_never_written_is_taken_from_beside_the_sources(copy: Path, file: Path) -> None:
    content = file.read_bytes()
    size = len(content) - 8 - int.from_bytes(content[:8], "little")
    file.write_bytes(content[:-size] + bytes(size))
    assert is_attached(file)
    for name in SOURCES:
        spec = found(name)
        assert spec is not None
        assert isinstance(spec.loader, SourceFileLoader)
        assert spec.loader.get_code(name) == code_of(copy, name)


def test_where_there_is_none_or_something_else_nothing_changes(copy: Path, tmp_path: Path) -> None:
    assert not is_attached(copy / "none")
    (tmp_path / "directory").mkdir()
    assert not is_attached(tmp_path / "directory")
    assert (tmp_path / "directory").is_dir()


def test_it_is_for_this_user_alone(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
