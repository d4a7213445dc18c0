"""Bytecode is what the standard library would write; without children, which `test_compile_children` starts."""

import compileall
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_pip.store import compile
from safe_pip.store.compile import Source, compile_sources
from tests.support.faults import disk

CONTENTS = {
    "plain.py": b'"""doc"""\nassert True, "no"\nVALUE = {"a": (1, 2.5, None), "b": b"x"}\n',
    "empty.py": b"",
    "package/__init__.py": b"from . import module\r\n",
    "package/module.py": "# -*- coding: latin-1 -*-\nNAME = 'é'\n".encode("latin-1"),
    "package/marked.py": b"\xef\xbb\xbfx = 1\n",
    "package/warned.py": b"x = '\\d'\nx is 'y'\n",
}
BROKEN = {
    "broken.py": b"def f(:\n",
    "old.py": b"print 'x'\n",
    "null.py": b"x = 1\0\n",
    "coded.py": b"# coding: nowhere\n",
}


def write(root: Path, contents: dict[str, bytes]) -> list[Source]:
    for number, (name, content) in enumerate(contents.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        os.utime(root / name, (0, 1_700_000_000 + number))
    # A name from an archive is none that Python has interned: in Python 3.10 bytecode tells one from the other.
    return [Source(str(root / name), f"{name} "[:-1], len(content)) for name, content in contents.items()]


def bytecode(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.pyc")}


def compiled(sources: list[Source]) -> tuple[dict[str, str], int]:
    done: list[None] = []
    messages = compile_sources(sources, beat=lambda: done.append(None))
    return messages, len(done)


def by_the_standard_library(sources: list[Source]) -> str:
    """Compile as pip does; on return what was printed."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        for source in sources:
            directory = os.path.dirname(source.name)
            compileall.compile_file(source.path, ddir=directory, force=True, quiet=True)
    return printed.getvalue()


@pytest.mark.parametrize("epoch", [None, "1700000000"])
def test_bytecode_is_what_the_standard_library_writes(tmp_path, monkeypatch, epoch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    if epoch is not None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    by_the_standard_library(write(tmp_path / "theirs", CONTENTS))
    messages, done = compiled(write(tmp_path / "ours", CONTENTS))
    assert bytecode(tmp_path / "ours") == bytecode(tmp_path / "theirs")
    assert (messages, done) == ({}, len(CONTENTS))


def test_what_cannot_be_compiled_has_the_words_of_the_standard_library(tmp_path):
    sources = write(tmp_path, BROKEN | CONTENTS)
    printed = by_the_standard_library(sources)
    for path in tmp_path.rglob("*.pyc"):
        path.unlink()
    messages, done = compiled(sources)
    lines = "".join(f"*** Error compiling {each.path!r}...\n{messages[each.path]}\n" for each in sources[: len(BROKEN)])
    assert (lines, set(messages), done) == (printed, {each.path for each in sources[: len(BROKEN)]}, len(sources))
    assert len(bytecode(tmp_path)) == len(CONTENTS)


def test_bytecode_in_the_way_is_an_error_and_stays(tmp_path):
    sources = write(tmp_path, {"plain.py": b"x = 1\n"})
    cached = Path(compile.importlib.util.cache_from_source(sources[0].path))
    cached.parent.mkdir()
    cached.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        compiled(sources)
    assert cached.read_bytes() == b"theirs"


def test_a_source_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        compiled([Source(str(tmp_path / "gone.py"), "gone.py", 1)])


def test_every_change_passes_through_fs(tmp_path):
    sources = write(tmp_path, CONTENTS)
    with disk.record() as changes:
        compiled(sources)
    created = {change.path for change in changes if change.operation == "create"}
    assert created == {str(path) for path in tmp_path.rglob("*.pyc")}


def test_the_key_names_what_decides_the_bytecode(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    plain = compile.key()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert plain is not None
    assert sys.implementation.cache_tag in plain
    assert compile.key() not in (plain, None)


def test_there_is_no_key_where_bytecode_lies_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    assert compile.key() is None


# How many children


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Four cores, of which this process may use all; call it with what the system says of its load."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def says(load: str) -> None:
        def opened(path: str, **how: str) -> io.StringIO:
            assert path == "/proc/loadavg"
            return io.StringIO(load)

        monkeypatch.setattr(compile, "open", opened, raising=False)

    return says


@pytest.mark.parametrize(("running", "idle"), [(0, 3), (1, 3), (3, 1), (4, 0), (7, 0)])
def test_cores_are_idle_that_no_task_wants_now(four, running, idle):
    four(f"9.10 0.00 0.00 {running}/812 4711\n")
    assert compile.idle_cores() == idle


def test_where_the_tasks_are_not_told_the_load_average_is_asked(four, monkeypatch):
    four("")
    monkeypatch.setattr(os, "getloadavg", lambda: (2.3, 0.0, 0.0))
    assert compile.idle_cores() == 1


def test_where_nothing_is_told_no_core_is_idle(four, monkeypatch):
    def unknown() -> None:
        raise OSError

    four("")
    monkeypatch.setattr(os, "getloadavg", unknown)
    assert compile.idle_cores() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="CPUs can be forbidden on Linux only")
def test_what_this_process_may_not_run_on_does_not_count(four, monkeypatch):
    four("0.00 0.00 0.00 1/812 4711\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    assert compile.idle_cores() == 1


def test_small_work_asks_for_no_core(tmp_path, monkeypatch):
    monkeypatch.delattr(compile, "idle_cores")
    assert compiled(write(tmp_path, CONTENTS))[0] == {}
