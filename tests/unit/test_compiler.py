"""Child interpreters that compile: they make no difference but in time, whatever becomes of them."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip import compiler, compiling
from safe_pip.compiler import Compiler, Settings
from safe_pip.compiling import Source, compile_sources
from safe_pip.cores import Cores, Permit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="no children there"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="bytecode differs between processes there"),
]

PROJECT_ROOT = Path(__file__).resolve().parents[2]


class Counted(Cores):
    """So many idle cores, at most `tokens` permits, and how many of these are out."""

    limit = 8

    def __init__(self, *spare: int, tokens: int = 8) -> None:
        super().__init__({})
        self._spare = list(spare)
        self.tokens = tokens
        self.taken = self.out = 0

    def spare(self) -> int:
        return self._spare.pop(0) if len(self._spare) > 1 else self._spare[0]

    def take(self) -> Permit | None:
        if self.out == self.tokens:
            return None
        self.taken, self.out = self.taken + 1, self.out + 1
        return Permit()

    def give(self, permit: Permit) -> None:
        self.out -= 1


@pytest.fixture(autouse=True)
def _keen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children started for little work, and look for idle cores after every file."""
    for name, value in (("_WORTH", 100), ("_BATCH", 2000), ("_AHEAD", 6000), ("_LOOK", 0.0)):
        monkeypatch.setattr(compiling, name, value)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Compiler]]:
    """Those that were started; none is left running."""
    started: list[Compiler] = []

    class Noted(Compiler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            started.append(self)

    monkeypatch.setattr(compiling, "Compiler", Noted)
    yield started
    assert all(each._child.returncode is not None for each in started)


def sources(root: Path, count: int = 60) -> list[Source]:
    """Sources of all sizes, the last one broken."""
    found = []
    for number in range(count):
        path = root / f"package{number % 7}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"def function{line}(a, b={line}.5):\n    return 'text {line}', a, (1, b)\n" for line in range(number)]
        path.write_text("".join(lines) + ("x = = 1\n" if number == count - 1 else ""))
        os.utime(path, (0, 1_700_000_000))
        found.append(Source(str(path), path.relative_to(root).as_posix(), path.stat().st_size))
    return found


def bytecode(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.pyc")}


def compiled(root: Path, cores: Cores) -> tuple[dict[str, bytes], list[str]]:
    """All bytecode, and the messages about what has none."""
    there, done = sources(root), list[int]()
    messages = compile_sources(there, cores=cores, progress=done.append)
    assert sum(done) == len(there)
    return bytecode(root), list(messages.values())


@pytest.mark.parametrize("spare", [1, 3])
def test_children_make_the_same_bytecode(tmp_path, children, spare):
    alone = compiled(tmp_path / "alone", Counted(0))
    assert not children
    cores = Counted(spare)
    assert compiled(tmp_path / "together", cores) == alone
    assert len(children) >= 1
    assert cores.out == 0


def test_a_child_does_a_share_of_the_work(tmp_path, children, monkeypatch):
    received = []
    receive = Compiler.receive
    monkeypatch.setattr(Compiler, "receive", lambda child: received.extend(got := receive(child)) or got)
    cores = Counted(1)
    there = sources(tmp_path, 150)
    compile_sources(there, cores=cores, progress=lambda count: None)
    assert received
    assert len(bytecode(tmp_path)) == len(there) - 1


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_child_does_not_send_is_made_here(tmp_path, children, monkeypatch, fate):
    alone = compiled(tmp_path / "alone", Counted(0))
    give = Compiler.give

    def doomed(child: Compiler, tasks: object) -> None:
        give(child, tasks)
        os.kill(child._child.pid, fate)

    monkeypatch.setattr(Compiler, "give", doomed)
    cores = Counted(2)
    assert compiled(tmp_path / "together", cores) == alone
    assert children
    assert cores.out == 0


def test_children_go_when_others_want_the_cores(tmp_path, children):
    cores = Counted(1, 0, -1, 0, -1)
    compiled(tmp_path, cores)
    assert (cores.taken, cores.out) == (1, 0)
    assert children[0]._child.returncode == -signal.SIGKILL


def test_without_a_permit_there_is_no_child(tmp_path, children):
    compiled(tmp_path, Counted(4, tokens=0))
    assert not children


def test_no_more_run_than_this_process_may_use(tmp_path, children, monkeypatch):
    monkeypatch.setattr(Counted, "limit", 2)
    cores = Counted(5)
    compiled(tmp_path, cores)
    assert cores.taken == 1


def test_an_interpreter_that_cannot_be_started_is_not_missed(tmp_path, monkeypatch):
    alone = compiled(tmp_path / "alone", Counted(0))
    monkeypatch.setattr(compiler.sys, "executable", str(tmp_path / "gone"))
    cores = Counted(1)
    assert compiled(tmp_path / "together", cores) == alone
    assert (cores.taken, cores.out) == (1, 0)


def test_an_error_leaves_no_child_behind(tmp_path, children):
    there = sources(tmp_path)
    Path(there[30].path).unlink()
    cores = Counted(1)
    with pytest.raises(FileNotFoundError):
        compile_sources(there, cores=cores, progress=lambda count: None)
    assert cores.out == 0


def test_a_child_changes_nothing_on_the_disk(tmp_path):
    there = sources(tmp_path)
    child = Compiler(Settings.of_this_process(), Counted(1), Permit())
    try:
        child.give((number, each.path, each.name) for number, each in enumerate(there[:20]))
        while child.tasks:
            select.select([child.out], [], [])
            child.receive()
    finally:
        child.close()
    assert not bytecode(tmp_path)


@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-X", "no_debug_ranges"]])
def test_children_compile_as_this_interpreter_was_told_to(tmp_path, options):
    for where in ("alone", "together"):
        sources(tmp_path / where)
    program = (
        "import sys; from pathlib import Path; from tests.unit import test_compiler as t; t.compiling._WORTH = 100\n"
        "for where, spare in ('alone', 0), ('together', 1): t.compiled(Path(sys.argv[1], where), t.Counted(spare))"
    )
    command = [sys.executable, *options, "-c", program, str(tmp_path)]
    path = os.pathsep.join([str(PROJECT_ROOT), str(Path(compiler.__file__).parents[1])])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    assert bytecode(tmp_path / "together") == bytecode(tmp_path / "alone") != {}


def test_the_token_of_a_killed_parent_goes_back_to_make(tmp_path):
    there = sources(tmp_path)
    read, write = os.pipe()
    os.write(write, b"+")
    program = f"""
import os, sys
from safe_pip import compiler, cores
found = cores.Cores({{"MAKEFLAGS": "--jobserver-auth={read},{write}"}})
child = compiler.Compiler(compiler.Settings.of_this_process(), found, found.take())
child.give([(0, sys.argv[1], "name")])
while child.tasks:
    child.receive()
os.kill(os.getpid(), 9)
"""
    path = str(Path(compiler.__file__).parents[1])
    try:
        killed = subprocess.run(
            [sys.executable, "-c", program, there[5].path],
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=(read, write),
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        assert os.read(read, 1) == b"+"
        assert not select.select([read], [], [], 0)[0]
    finally:
        with contextlib.suppress(OSError):
            os.close(read)
            os.close(write)
