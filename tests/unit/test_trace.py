"""The trace that a process writes: whole lines, at once, and never in the way of the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_pip import trace
from safe_pip.fs import watch


def lines(directory: Path) -> list[dict[str, Any]]:
    """All lines of the one file there."""
    [file] = directory.iterdir()
    text = file.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The warnings; at the end tracing is off again."""
    monkeypatch.setattr(watch, "timeline", None)
    monkeypatch.setenv(trace.VARIABLE, "")
    yield []
    if isinstance(watch.timeline, trace.Trace) and watch.timeline._fd >= 0:
        os.close(watch.timeline._fd)


def test_a_process_writes_who_it_is_and_each_phase_at_once(tmp_path: Path, said: list[str]) -> None:
    trace.begin(str(tmp_path / "not/there yet"), 2, said.append)
    with watch.phase("resolve"):
        with watch.phase("wait", lambda: {"lock": {"path": "/\udcff"}}):
            seen = lines(tmp_path / "not/there yet")
        watch.note("retry", lambda: {"why": "because"})
    first, resolve, wait = seen
    assert (first["event"], first["pid"], first["parent"]) == ("process", os.getpid(), os.getppid())
    assert (first["attempt"], first["started"], first["directory"]) == (2, None, os.getcwd())
    assert (resolve["phase"], wait["phase"], wait["lock"]) == ("resolve", "wait", {"path": "/\udcff"})
    *_, end_of_wait, retry, end = lines(tmp_path / "not/there yet")
    assert (end_of_wait["event"], end_of_wait["span"], end["span"]) == ("end", wait["span"], resolve["span"])
    assert (retry["event"], retry["why"]) == ("retry", "because")
    times = [each["time"] for each in (first, resolve, wait, end_of_wait, retry, end)]
    assert times == sorted(times)
    assert os.environ[trace.VARIABLE] == str(tmp_path / "not/there yet")
    assert said == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's clock of processes")
def test_the_clock_is_the_one_in_which_the_kernel_says_when_a_process_began(tmp_path: Path, said: list[str]) -> None:
    code = "import sys; from safe_pip import trace; trace.begin(sys.argv[1], 1, print)"
    before = trace.now()
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    [line] = lines(tmp_path)
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    assert before - tick <= line["started"] <= line["time"] <= trace.now()


def test_after_a_kill_all_lines_are_there(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from safe_pip import trace
from safe_pip.fs import watch
trace.begin(sys.argv[1], 1, print)
with watch.phase("stage"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [line["event"] for line in lines(tmp_path)] == ["process", "begin"]


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    trace.begin(str(tmp_path / "file/below"), 1, said.append)
    assert watch.timeline is None
    [warning] = said
    assert warning.startswith(f"warning: no trace is written: `{tmp_path}/file/below` cannot be written (")


def test_nothing_follows_half_a_line(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trace.begin(str(tmp_path), 1, said.append)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, content: write(fd, content[:9]))
        watch.note("exit", lambda: {"status": 0})
    watch.note("exit", lambda: {"status": 1})
    [file] = tmp_path.iterdir()
    assert file.read_bytes().splitlines()[1:] == [b'{"event":']
    assert said == ["warning: the trace could not be written any further"]


def test_secrets_on_the_command_line_are_hidden(tmp_path: Path) -> None:
    code = "from safe_pip import trace; trace.begin('.', 1, print)"
    secrets = ["--index-url", "https://user:hunter2@host/simple", "--api-token", "hunter3"]
    subprocess.run([sys.executable, "-c", code, *secrets], cwd=tmp_path, check=True)
    [file] = tmp_path.iterdir()
    assert b"hunter" not in file.read_bytes()
    assert "--index-url 'https://****@host/simple' --api-token ****" in lines(tmp_path)[0]["command"]


@pytest.mark.parametrize("traced", [False, True])
def test_only_a_traced_command_imports_what_traces(tmp_path: Path, traced: bool) -> None:
    options = ["--trace", str(tmp_path)] if traced else []
    command = [sys.executable, "-X", "importtime", "-m", "safe_pip", "list", *options]
    variables = {name: value for name, value in os.environ.items() if name != trace.VARIABLE}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "safe_pip.fs.watch" in imported
    assert ("safe_pip.trace" in imported) == traced
    assert not traced or lines(tmp_path)[-1].items() >= {"event": "exit", "status": 0}.items()
