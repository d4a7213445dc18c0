"""Child interpreters that compile: they make no difference but in time, whatever becomes of them."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip.store import compile
from safe_pip.store.compile import Child, Source, Style, compile_sources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="no children there"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="bytecode differs between processes there"),
]


@pytest.fixture(autouse=True)
def _keen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children started for little work, and given little at once."""
    for name, value in (("_WORTH", 100), ("_BATCH", 2000), ("_AHEAD", 6000)):
        monkeypatch.setattr(compile, name, value)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Those that were started; none is left running."""
    started: list[Child] = []

    class Noted(Child):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            started.append(self)

    monkeypatch.setattr(compile, "Child", Noted)
    yield started
    assert all(each._process.returncode is not None for each in started)


@pytest.fixture
def patient(children: list[Child], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have this process wait for what a child does before it does more itself; what they sent."""
    sent: list[int] = []
    receive = Child.receive

    def noted(child: Child) -> list[tuple[int, bytes | str]]:
        if child.tasks:
            select.select([child.out], [], [])
        results = [*receive(child)]
        sent.extend(number for number, _ in results)
        return results

    monkeypatch.setattr(Child, "receive", noted)
    return sent


def sources(root: Path, count: int = 60) -> list[Source]:
    """Sources of all sizes, the last one broken."""
    found = []
    for number in range(count):
        path = root / f"package{number % 7}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"def f{line}(a, b={line}.5):\n    'doc {line}'\n    assert a\n    return a, b\n" for line in range(number)
        ]
        path.write_text("".join(lines) + ("x = = 1\n" if number == count - 1 else ""))
        os.utime(path, (0, 1_700_000_000))
        found.append(Source(str(path), path.relative_to(root).as_posix(), path.stat().st_size))
    return found


def bytecode(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.pyc")}


def compiled(root: Path, monkeypatch: pytest.MonkeyPatch, idle: int) -> tuple[dict[str, bytes], list[str]]:
    """All bytecode, and the messages about what has none, made with so many idle cores."""
    monkeypatch.setattr(compile, "idle_cores", lambda: idle)
    there, done = sources(root), list[None]()
    messages = compile_sources(there, beat=lambda: done.append(None))
    assert len(done) == len(there)
    return bytecode(root), list(messages.values())


@pytest.mark.parametrize("idle", [1, 3])
def test_children_make_the_same_bytecode(tmp_path, monkeypatch, children, patient, idle):
    alone = compiled(tmp_path / "alone", monkeypatch, 0)
    assert not children
    assert compiled(tmp_path / "together", monkeypatch, idle) == alone
    assert patient
    assert len(children) == idle


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_child_does_not_send_is_made_here(tmp_path, children, monkeypatch, fate):
    alone = compiled(tmp_path / "alone", monkeypatch, 0)
    give = Child.give

    def doomed(child: Child, batch: dict[int, Source]) -> None:
        give(child, batch)
        os.kill(child._process.pid, fate)

    monkeypatch.setattr(Child, "give", doomed)
    assert compiled(tmp_path / "together", monkeypatch, 2) == alone
    assert children


def test_no_more_are_started_than_there_is_work_for(tmp_path, children, monkeypatch):
    monkeypatch.setattr(compile, "_WORTH", sum(each.size for each in sources(tmp_path)) // 3)
    compiled(tmp_path, monkeypatch, 8)
    assert len(children) == 2


def test_an_interpreter_that_cannot_be_started_is_not_missed(tmp_path, monkeypatch):
    alone = compiled(tmp_path / "alone", monkeypatch, 0)
    monkeypatch.setattr(compile.sys, "executable", str(tmp_path / "gone"))
    assert compiled(tmp_path / "together", monkeypatch, 1) == alone


def test_an_error_leaves_no_child_behind(tmp_path, children, monkeypatch):
    monkeypatch.setattr(compile, "idle_cores", lambda: 1)
    there = sources(tmp_path)
    Path(there[30].path).unlink()
    with pytest.raises(FileNotFoundError):
        compile_sources(there, beat=lambda: None)
    assert children


def test_a_child_changes_nothing_on_the_disk(tmp_path):
    there = sources(tmp_path)
    child = Child(Style.of_this_process())
    try:
        child.give(dict(enumerate(there[:20])))
        while child.tasks:
            select.select([child.out], [], [])
            list(child.receive())
    finally:
        child.close()
    assert not bytecode(tmp_path)


@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-X", "no_debug_ranges"]])
def test_a_child_compiles_as_this_interpreter_was_told_to(tmp_path, options):
    there = sources(tmp_path, 10)
    program = """
import select, sys
from safe_pip.store import compile
style = compile.Style.of_this_process()
child = compile.Child(style)
child.give({number: compile.Source(path, "name", 1) for number, path in enumerate(sys.argv[1:])})
while child.tasks:
    select.select([child.out], [], [])
    for number, content in child.receive():
        if content != compile.bytecode(sys.argv[1 + number], "name", *style[:3]):
            sys.exit(f"{number} differs")
child.close()
"""
    path = str(Path(compile.__file__).parents[2])
    command = [sys.executable, *options, "-c", program, *(each.path for each in there)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
