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

from safe_pip.store import compile, compiler
from safe_pip.store.compile import Source, compile_sources
from safe_pip.store.compiler import Compiler, Settings
from safe_pip.store.cores import Cores, Permit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="no children there"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="bytecode differs between processes there"),
]

PATIENCE = 60.0


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
        monkeypatch.setattr(compile, name, value)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Compiler]]:
    """Those that were started; none is left running."""
    started: list[Compiler] = []

    class Noted(Compiler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            started.append(self)

    monkeypatch.setattr(compile, "Compiler", Noted)
    yield started
    assert all(each._child.returncode is not None for each in started)


@pytest.fixture
def patient(children: list[Compiler], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have this process wait for what the children do before it does more itself; on return what they sent."""
    sent: list[int] = []
    own, receive = compile.bytecode, Compiler.receive

    def bytecode(*args: object) -> bytes | str:
        for child in children:
            if child.tasks and child._child.poll() is None:
                select.select([child.out], [], [])
        return own(*args)

    def noted(child: Compiler) -> list[tuple[int, bytes | str]]:
        results = receive(child)
        sent.extend(number for number, _ in results)
        return results

    monkeypatch.setattr(compile, "bytecode", bytecode)
    monkeypatch.setattr(Compiler, "receive", noted)
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


def compiled(root: Path, cores: Cores) -> tuple[dict[str, bytes], list[str]]:
    """All bytecode, and the messages about what has none."""
    there, done = sources(root), list[int]()
    messages = compile_sources(there, cores=cores, progress=done.append)
    assert sum(done) == len(there)
    return bytecode(root), list(messages.values())


@pytest.mark.parametrize("spare", [1, 3])
def test_children_make_the_same_bytecode(tmp_path, children, patient, spare):
    alone = compiled(tmp_path / "alone", Counted(0))
    assert not children
    cores = Counted(spare)
    assert compiled(tmp_path / "together", cores) == alone
    assert patient
    assert (cores.taken >= spare, cores.out) == (True, 0)


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


def test_children_go_when_others_want_the_cores(tmp_path, monkeypatch):
    done: list[int] = []
    gone_after: list[int] = []
    close = Compiler.close
    monkeypatch.setattr(Compiler, "close", lambda child: (close(child), gone_after.append(sum(done))))
    cores = Counted(1, 0, -1, 0)
    there = sources(tmp_path)
    compile_sources(there, cores=cores, progress=done.append)
    assert (cores.taken, cores.out) == (1, 0)
    assert [number < len(there) for number in gone_after] == [True]


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
def test_a_child_compiles_as_this_interpreter_was_told_to(tmp_path, options):
    there = sources(tmp_path, 10)
    program = """
import select, sys
from safe_pip.store import compiler, cores
chosen = compiler.Settings.of_this_process()
child = compiler.Compiler(chosen, cores.Cores({}), cores.Permit())
child.give((number, path, "name") for number, path in enumerate(sys.argv[1:]))
while child.tasks:
    select.select([child.out], [], [])
    for number, content in child.receive():
        if content != compiler.bytecode(sys.argv[1 + number], "name", *chosen[:3]):
            sys.exit(f"{number} differs")
child.close()
"""
    path = str(Path(compiler.__file__).parents[2])
    command = [sys.executable, *options, "-c", program, *(each.path for each in there)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


def test_a_child_that_fails_leaves_the_token_to_its_parent(tmp_path):
    read, write = os.pipe()
    os.write(write, b"+")
    cores = Cores({"MAKEFLAGS": f"--jobserver-auth={read},{write}"})
    permit = cores.take()
    assert permit == Permit(b"+")
    child = Compiler(Settings.of_this_process(), cores, permit)
    child.give([(0, str(tmp_path / "gone.py"), "gone.py")])
    assert select.select([child.out], [], [], PATIENCE)[0]
    with pytest.raises(BrokenPipeError):
        child.receive()
    assert not select.select([read], [], [], 0)[0]
    child.close()
    assert os.read(read, 2) == b"+"
    for end in (read, write):
        os.close(end)


def test_a_child_whose_parent_is_just_dying_gives_the_token_back(tmp_path):
    """The kernel closes the files of a process before its children get another parent (exit(3), exit_group(2))."""
    read, write = os.pipe()
    os.write(write, b"\xff")
    cores = Cores({"MAKEFLAGS": f"--jobserver-auth={read},{write}"})
    permit = cores.take()
    assert permit is not None
    child = Compiler(Settings.of_this_process(), cores, permit)
    assert child._child.stdin is not None
    child._child.stdin.close()
    assert select.select([read], [], [], PATIENCE)[0]
    assert os.read(read, 2) == b"\xff"
    child._permit = Permit()
    child.close()
    for end in (read, write):
        os.close(end)


@pytest.mark.parametrize("when", ["at its start", "at work"])
def test_the_token_of_a_killed_parent_goes_back_to_make(tmp_path, when):
    there = sources(tmp_path)
    read, write = os.pipe()
    os.write(write, b"+")
    program = f"""
import os, sys
from safe_pip.store import compiler, cores
found = cores.Cores({{"MAKEFLAGS": "--jobserver-auth={read},{write}"}})
child = compiler.Compiler(compiler.Settings.of_this_process(), found, found.take())
if {when == "at work"}:
    child.give([(0, sys.argv[1], "name")])
    while child.tasks:
        child.receive()
os.kill(os.getpid(), 9)
"""
    path = str(Path(compiler.__file__).parents[2])
    try:
        killed = subprocess.run(
            [sys.executable, "-c", program, there[5].path],
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=(read, write),
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        assert select.select([read], [], [], PATIENCE)[0]
        assert os.read(read, 1) == b"+"
        assert not select.select([read], [], [], 0)[0]
    finally:
        with contextlib.suppress(OSError):
            os.close(read)
            os.close(write)
