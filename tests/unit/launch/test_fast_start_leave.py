"""The end of a process that leaves its memory to the system is, for others, the end of any other."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safe_pip.launch import fast_start

PACKAGE = Path(fast_start.__file__).parents[2]

PROGRAM = """
import atexit, os, sys, threading
from safe_pip.launch import fast_start
from safe_pip.launch.fast_start import leave
fast_start._is_on = True


class Watched:
    def __del__(self, write=os.write):
        write(1, b"taken apart\\n")


watched = Watched()
atexit.register(print, "exit function")
begin = threading.Event()


def last():
    begin.wait()
    print("thread")


def program(status):
    threading._register_atexit(begin.set)
    threading.Thread(target=last).start()
    print("program", end=" ")
    sys.stderr.write("error")
    leave(status)
    return status
"""
RUN = "\nif __name__ == '__main__':\n    sys.exit(program(259))\n"
SEEN = "program thread\nexit function\n"
ENDED = f"{SEEN}taken apart\n"


def run(path: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=path,
        env={**environ, "PYTHONPATH": str(PACKAGE)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        **{"stdout": subprocess.PIPE, **more},
    )


@pytest.fixture
def path(tmp_path):
    (tmp_path / "left.py").write_text(PROGRAM + RUN)
    return tmp_path


@pytest.mark.parametrize("words", [["left.py"], ["-m", "left"], ["-I", "left.py"], ["-c", PROGRAM + RUN]])
def test_threads_exit_functions_and_streams_come_to_their_end(path, words):
    if words[0] == "-I":
        words = ["-c", f"import sys; sys.path.insert(0, {str(PACKAGE)!r})\n{PROGRAM}{RUN}"]
    done = run(path, *words)
    assert (done.returncode, done.stdout, done.stderr) == (3, SEEN, "error")


@pytest.mark.parametrize(
    "words",
    [
        ["-X", "dev", "left.py"],
        ["-m", "cProfile", "-o", "profile", "left.py"],
        ["-m", "cProfile", "-o", "profile", "-m", "left"],
        ["-m", "trace", "--count", "-C", "counts", "left.py"],
        ["-c", "import runpy; runpy.run_module('left', run_name='__main__')"],
        ["-c", "import runpy; runpy.run_path('left.py', run_name='__main__')"],
        ["-c", "import left\ndef host():\n    left.program(259)\nhost()"],
        ["-c", "exec(open('left.py').read())"],
    ],
    ids=" ".join,
)
def test_who_looks_at_the_end_of_a_process_sees_it(path, words):
    done = run(path, *words)
    assert done.returncode in (0, 3)
    assert all(line in done.stdout.splitlines() for line in ENDED.splitlines())
    if "-o" in words:
        assert (path / "profile").stat().st_size
    if "-C" in words:
        assert [*(path / "counts").iterdir()]


def test_a_program_can_be_looked_into_after_its_end(path):
    assert "looked into" in run(path, "-i", "left.py", input="print('looked into', watched)\n").stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full here")
def test_what_cannot_be_written_is_said_by_the_interpreter(path):
    with open("/dev/full", "w") as full:
        done = run(path, "left.py", stdout=full)
    assert done.returncode == 120
    assert "No space left" in done.stderr


def test_streams_that_are_closed_are_no_matter(path):
    (path / "left.py").write_text(
        "import sys\nfrom safe_pip.launch import fast_start\nfrom safe_pip.launch.fast_start import leave\n"
        "fast_start._is_on = True\nsys.stdout.close()\nsys.stderr = None\n"
        "def program():\n    leave(4)\n    return 5\nsys.exit(program())\n"
    )
    assert run(path, "left.py").returncode == 4
