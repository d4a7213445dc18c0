"""`safe-pip trace`: from the lines that processes wrote to lanes, Chrome's events and the page."""

from __future__ import annotations

import html.parser
import json
import os
from pathlib import Path
from typing import Any

import pytest

from safe_pip.commands import options
from safe_pip.commands.trace import Lane, Span, chrome, page, read
from safe_pip.errors import UnusableEnvironment, UsageError
from safe_pip.launch.settings import Settings
from safe_pip.trace import now, started

COMMIT = {"kind": "commit", "path": "/venv/.safe-pip/commit", "of": "/venv", "mode": "exclusive"}


def write(directory: Path, pid: int, *lines: tuple[int, str, dict[str, Any]], **header: Any) -> Path:
    """The trace of a process that begins at the time of the first line, in milliseconds."""
    first = {"boot": "b", "wall": 1e9 + lines[0][0] / 1e3, "attempt": 1, "command": f"safe-pip {pid}"} | header
    path = directory / f"{pid}-{lines[0][0]}.jsonl"
    made = [(lines[0][0], "process", {"pid": pid, **first}), *lines]
    path.write_text(
        "".join(json.dumps({"event": event, "time": at * 10**6, **more}) + "\n" for at, event, more in made)
    )
    return path


def begin(at: int, span: int, phase: str, **more: object) -> tuple[int, str, dict[str, Any]]:
    return at, "begin", {"span": span, "phase": phase, **more}


def end(at: int, span: int) -> tuple[int, str, dict[str, Any]]:
    return at, "end", {"span": span}


def leave(at: int, status: int = 0) -> tuple[int, str, dict[str, Any]]:
    return at, "exit", {"status": status}


def times(lane: Lane) -> dict[str, tuple[float, float]]:
    return {span.phase: (span.begin / 1e6, span.end / 1e6) for span in lane.spans}


def wait(at: int, until: int, *holders: int) -> list[tuple[int, str, dict[str, Any]]]:
    by = [{"pid": pid, "command": f"safe-pip {pid}"} for pid in holders]
    return [begin(at, 1, "wait", lock=COMMIT, **{"for": by}), end(until, 1), leave(until + 5)]


def parsed(text: str) -> tuple[list[dict[str, Any]], set[str]]:
    """The data in the page as a browser finds it, and the addresses that the page names."""
    found: list[str] = []
    addresses: set[str] = set()

    class Parser(html.parser.HTMLParser):
        is_data = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.is_data = ("id", "data") in attrs
            addresses.update(value or "" for name, value in attrs if name in ("src", "href"))

        def handle_data(self, data: str) -> None:
            if self.is_data:
                found.append(data)

        def handle_endtag(self, tag: str) -> None:
            self.is_data = False

    Parser().feed(text)
    data: list[dict[str, Any]] = json.loads("".join(found))
    return data, addresses


def test_phases_that_overlap_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    held = begin(12, 2, "hold", locks=[COMMIT])
    write(tmp_path, 7, begin(10, 1, "commit"), held, end(20, 1), end(25, 2), leave(30, 1), started=4 * 10**6)
    [lane], damaged = read(tmp_path)
    assert times(lane) == {"start": (4, 10), "commit": (10, 20), "hold": (12, 25)}
    assert (lane.begin, lane.last, lane.ended(), damaged) == (4 * 10**6, 30 * 10**6, "exit status 1", 0)


def test_a_killed_process_ends_without_a_word_when_it_was_last_heard_or_heard_of(tmp_path: Path) -> None:
    killed = write(tmp_path, 7, begin(10, 1, "commit"), begin(20, 2, "hold", locks=[COMMIT]))
    with killed.open("ab") as file:
        file.write(b'{"event":"end","ti')
    write(tmp_path, 8, *wait(50, 60, 7))
    [dead, waiter], damaged = read(tmp_path)
    assert (dead.ended(), damaged) == ("ended without an exit status", 0)
    assert times(dead) == {"commit": (10, 50), "hold": (20, 50)}
    assert waiter.spans[0].blockers == [0]
    assert "ended without an exit status" in parsed(page([dead, waiter]))[0][0]["spans"][0]["what"]


def test_a_process_that_goes_on_still_runs(tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    at = now() // 10**6
    write(tmp_path, os.getpid(), begin(at, 1, "commit"), boot=boot, started=started(os.getpid()))
    write(tmp_path, 1, begin(at, 1, "commit"), leave(at + 99), boot=boot, started=1)
    lane, other = sorted(read(tmp_path)[0], key=lambda lane: lane.pid == 1)
    assert other.ended() == "exit status 0"
    assert (lane.ended(), times(lane)["commit"]) == ("still running", (at, at + 99))


def test_lines_that_are_none_are_counted_and_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, 7, begin(10, 1, "commit"), end(20, 1), leave(20))
    with file.open("ab") as damaged:
        damaged.write(b'nonsense\n[]\n{"event":"begin","time":3}\n{"event":"other","time":3}\n\xff\n')
    (tmp_path / "0-0.jsonl").write_bytes(b"")
    assert options.run("trace", [str(tmp_path)], Settings()) == 0
    told = capfd.readouterr()
    assert told.err == "safe-pip: warning: 5 lines of the trace cannot be read\n"
    assert told.out == f"1 command: `{tmp_path}/timeline.html`, `{tmp_path}/timeline.json`\n"


def test_an_attempt_that_starts_again_stays_in_its_lane(tmp_path: Path) -> None:
    write(tmp_path, 7, begin(10, 1, "resolve"), end(20, 1), (20, "retry", {"why": "`six` changed"}))
    write(tmp_path, 7, begin(30, 1, "commit"), end(40, 1), leave(40), attempt=2)
    write(tmp_path, 7, begin(90, 1, "stage"), end(95, 1), leave(95))  # the number is used again
    [lane, other], _ = read(tmp_path)
    assert times(lane) == {"resolve": (10, 20), "commit": (30, 40)}
    assert (lane.retries, lane.status) == ([(20 * 10**6, "`six` changed")], 0)
    assert times(other) == {"stage": (90, 95)}
    events = chrome([lane, other])["traceEvents"]
    assert len({event["pid"] for event in events}) == 2


def test_another_boot_is_placed_by_its_date(tmp_path: Path) -> None:
    write(tmp_path, 7, begin(100, 1, "stage"), end(110, 1), leave(110), wall=1000.0)
    write(tmp_path, 8, begin(5, 1, "stage"), end(15, 1), leave(15), wall=1000.2, boot="other", started=2 * 10**6)
    lanes, _ = read(tmp_path)
    assert [times(lane)["stage"] for lane in lanes] == [(100, 110), (300, 310)]
    assert lanes[1].begin == 297 * 10**6


def test_a_process_of_another_host_is_no_lane_here(tmp_path: Path) -> None:
    write(tmp_path, 7, begin(1, 1, "stage"), end(30, 1), leave(35))
    by = [{"pid": 7, "command": "make", "host": "node2"}]
    write(tmp_path, 8, begin(20, 1, "wait", lock=COMMIT, **{"for": by}), end(31, 1), leave(36))
    assert read(tmp_path)[0][1].spans[0].blockers == []


@pytest.mark.parametrize("holders", [(7,), (), (6,)])
def test_a_wait_leads_to_its_holder_also_if_that_let_go_before_it_was_seen(tmp_path: Path, holders: Any) -> None:
    write(tmp_path, 7, begin(10, 1, "hold", locks=[COMMIT]), end(30, 1), leave(35))
    write(tmp_path, 8, *wait(20, 31, *holders))
    write(tmp_path, 9, begin(10, 1, "hold", locks=[COMMIT | {"path": "/elsewhere"}]), end(30, 1), leave(35))
    lanes, _ = read(tmp_path)
    [waiter] = [lane for lane in lanes if lane.pid == 8]
    assert [lanes[each].pid for each in waiter.spans[0].blockers] == [7]
    flows = {event["ph"]: event for event in chrome(lanes)["traceEvents"] if event["ph"] in "sf"}
    assert (flows["s"]["pid"], flows["s"]["ts"], flows["f"]["pid"]) == (8, 10_000, 7)
    assert flows["s"]["id"] == flows["f"]["id"]


def test_shared_holders_are_in_no_way_of_a_shared_wait(tmp_path: Path) -> None:
    shared = COMMIT | {"mode": "shared"}
    write(tmp_path, 7, begin(10, 1, "hold", locks=[shared]), end(30, 1), leave(35))
    write(tmp_path, 8, begin(20, 1, "wait", lock=shared, **{"for": []}), end(31, 1), leave(36))
    assert read(tmp_path)[0][1].spans[0].blockers == []


def test_what_is_on_one_track_of_chrome_is_nested(tmp_path: Path) -> None:
    phases = [begin(10, 1, "stage"), begin(12, 2, "prepare"), end(15, 2), end(20, 1)]
    locks = [begin(11, 3, "hold"), begin(13, 4, "hold"), end(16, 3), end(18, 4), begin(19, 5, "hold"), end(21, 5)]
    write(tmp_path, 7, *sorted([*phases, *locks], key=lambda line: line[0]), leave(30))
    events = [event for event in chrome(read(tmp_path)[0])["traceEvents"] if event["ph"] == "X"]
    for one in events:
        for other in events:
            if one["tid"] == other["tid"] and one["ts"] < other["ts"] < one["ts"] + one["dur"]:
                assert other["ts"] + other["dur"] <= one["ts"] + one["dur"]
    assert sorted(event["tid"] for event in events if event["name"] == "hold") == [2, 2, 3]


def test_no_command_breaks_the_page(tmp_path: Path) -> None:
    hostile = "safe-pip install '</script><script>alert(1)</script>' '<!--' \u2028 \udcff"
    write(tmp_path, 7, begin(10, 1, "download", file="<b>\udcff"), end(20, 1), leave(20), command=hostile)
    options.run("trace", [str(tmp_path), "-o", str(tmp_path / "a/b")], Settings())
    [lane], addresses = parsed((tmp_path / "a/b/timeline.html").read_text(encoding="utf-8"))
    assert lane["name"] == hostile.replace("\udcff", "\\udcff")
    assert lane["spans"][0]["what"] == "<b>\\udcff"
    assert addresses == set()  # needs no network
    [name] = [e for e in json.loads((tmp_path / "a/b/timeline.json").read_text())["traceEvents"] if e["ph"] == "M"][:1]
    assert name["args"]["name"] == lane["name"]


def test_a_wait_says_what_for_and_who_holds_it() -> None:
    details = {"lock": COMMIT, "for": [{"pid": 7, "command": "safe-pip install six"}, {"pid": 8, "command": ""}]}
    said = Span("wait", 0, details).describe().splitlines()
    assert said == [
        "for the exclusive commit lock on /venv",
        "held by safe-pip install six (pid 7)",
        "held by ? (pid 8)",
    ]
    far = {"lock": COMMIT, "for": [{"pid": 7, "command": "make", "host": "node2"}]}
    assert Span("wait", 0, far).describe().splitlines()[1] == "held by make (pid 7 on node2)"
    assert Span("wait", 0, {"turn": "prepare `x.whl`", "for": []}).describe() == "for the turn to prepare `x.whl`"


def test_without_a_trace_there_is_an_error(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="there is no trace"):
            options.run("trace", [str(place)], Settings())


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 7, leave(10))
    (tmp_path / "file").touch()
    with pytest.raises(UnusableEnvironment, match="is not a directory"):
        options.run("trace", [str(tmp_path), "-o", str(tmp_path / "file/below")], Settings())
