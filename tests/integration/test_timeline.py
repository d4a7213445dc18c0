"""`--trace` of real commands that wait for each other, and the timeline that `safe-pip trace` makes of it."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import PAGES, Page, shell
from tests.support.processes.workers import wait_until
from tests.support.venvs.pip_environment import PipEnvironment, ended

pytestmark = pytest.mark.slow


def lines(directory: Path) -> list[dict[str, Any]]:
    """All lines, each with the command of its process."""
    found = []
    for file in directory.glob("*.jsonl"):
        ours = [json.loads(line) for line in file.read_text().splitlines()]
        found += [{**line, "command": ours[0]["command"]} for line in ours]
    return found


def test_commands_that_wait_name_the_command_that_they_wait_for(env: PipEnvironment) -> None:
    runpy.run_path(str(PAGES.parent / "examples.py"))["main"](env.index)
    env.more["SAFE_PIP_TRACE"] = "traces"
    traces, fifo = env.directory / "traces", env.directory / "fifo"
    os.mkfifo(fifo)

    def are_begun(phase: str, number: int) -> bool:
        return sum(line.get("phase") == phase for line in lines(traces)) >= number

    holder = env.start("run", "--exclusive", "--", "cat", fifo)
    wait_until(lambda: are_begun("run", 1))
    waiters = [env.start("install", f"example-{name}") for name in ("alpha", "beta")]
    wait_until(lambda: are_begun("wait", 2))
    fifo.write_bytes(b"")
    for process in (holder, *waiters):
        with ended(process) as (status, _, said):
            assert status == 0, said
    env.run("trace", traces)
    waits = [line for line in lines(traces) if line.get("phase") == "wait"]
    by = {"pid": holder.pid, "command": f"safe-pip run --exclusive -- cat {fifo}"}
    assert {line["command"] for line in waits if by in line["for"]} == {
        f"safe-pip install example-{name}" for name in ("alpha", "beta")
    }
    events = json.loads((traces / "timeline.json").read_text())["traceEvents"]
    flows = {(event["ph"], event["pid"]) for event in events if event["ph"] in "sf"}
    assert {("f", holder.pid), *(("s", waiter.pid) for waiter in waiters)} <= flows
    assert {event["args"]["end"] for event in events if event["name"] == "process"} == {"exit status 0"}


def test_the_page_draws_a_make_with_parallel_recipes(env: PipEnvironment) -> None:
    env.activate()
    runpy.run_path(str(PAGES.parent / "examples.py"))["main"](env.index)
    page = Page.read("timeline")
    page.save(env.directory)
    shell("".join(page.commands), env.directory, env.variables)
    assert (env.directory / "traces/timeline.html").stat().st_size > 10_000
    phases = {line["phase"] for line in lines(env.directory / "traces") if line["event"] == "begin"}
    assert {"resolve", "stage", "hold", "commit", "clean"} <= phases
