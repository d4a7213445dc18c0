"""Child interpreters that compile: they make no difference but in time, whatever becomes of them."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from safe_pip.fs import proc
from safe_pip.store import compile
from safe_pip.store.compile import Child, Source, compile_sources
from tests.support.processes.workers import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="no children there"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="bytecode differs between processes there"),
]


@pytest.fixture(autouse=True)
def _keen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children started for little work."""
    monkeypatch.setattr(compile, "_WORTH", 100)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Those that were started; none is left running."""
    started: list[Child] = []

    class Noted(Child):
        def __init__(self, share: deque[Source]) -> None:
            super().__init__(share)
            started.append(self)

    monkeypatch.setattr(compile, "Child", Noted)
    yield started
    assert all(each._process.returncode is not None for each in started)


@pytest.fixture
def patient(children: list[Child], monkeypatch: pytest.MonkeyPatch) -> list[bytes | str]:
    """Have this process do nothing but the first source itself; what the children made."""
    made: list[bytes | str] = []
    receive = Child.receive

    def noted(child: Child) -> Iterator[bytes | str]:
        while child.share:
            for content in receive(child):
                made.append(content)
                yield content

    monkeypatch.setattr(Child, "receive", noted)
    return made


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
def test_what_a_child_does_not_make_is_made_here(tmp_path, children, monkeypatch, fate):
    alone = compiled(tmp_path / "alone", monkeypatch, 0)
    receive = Child.receive

    def doomed(child: Child) -> Iterator[bytes | str]:
        os.kill(child._process.pid, fate)
        return receive(child)

    monkeypatch.setattr(Child, "receive", doomed)
    assert compiled(tmp_path / "together", monkeypatch, 2) == alone
    assert children


def test_a_child_ends_with_its_parent(tmp_path):
    """It is given much to do by a process that is killed then; it leaves with the source that it is at work on."""
    there = sources(tmp_path)
    program = """
import os, signal, sys
from collections import deque
from safe_pip.store.compile import Child, Source
child = Child(deque(Source(path, "name", 1) for path in sys.argv[1:] * 1000))
print(child._process.pid, flush=True)
while not list(child.receive()):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = str(Path(compile.__file__).parents[2])
    command = [sys.executable, "-c", program, *(each.path for each in there[:-1])]
    ended = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert ended.returncode == -signal.SIGKILL
    wait_until(lambda: proc.state(int(ended.stdout)) in ("", "Z"))


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
    with closing(Child(deque(sources(tmp_path)[:20]))) as child:
        while child.share:
            for _ in child.receive():
                child.share.popleft()
    assert not bytecode(tmp_path)


@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-X", "no_debug_ranges"]])
def test_a_child_compiles_as_this_interpreter_was_told_to(tmp_path, options):
    there = sources(tmp_path, 10)
    program = """
import sys
from collections import deque
from safe_pip.fs import proc
from safe_pip.store import compile
child = compile.Child(deque(compile.Source(path, "name", 1) for path in sys.argv[1:]))
while child.share:
    for content in child.receive():
        path = child.share.popleft().path
        if content != compile.bytecode(path, "name", *compile.style()):
            sys.exit(f"{path} differs")
child.close()
"""
    path = str(Path(compile.__file__).parents[2])
    command = [sys.executable, *options, "-c", program, *(each.path for each in there)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
