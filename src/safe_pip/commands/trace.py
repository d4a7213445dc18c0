"""`safe-pip trace`: what the processes of a build did, from the files that each wrote (`safe_pip.trace`), drawn.

`timeline.html` is the page of that name beside this module, with the data in it; `timeline.json` has Chrome's trace
event format. A process that starts again in its place (another attempt) stays in its lane.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_pip import fs, trace
from safe_pip.commands.environments import Context
from safe_pip.commands.options import Namespace, tell, warn
from safe_pip.errors import UsageError
from safe_pip.fs import proc, space
from safe_pip.messages import count

PAGE = Path(__file__).with_name("timeline.html")
HOLD, WAIT = "hold", "wait"
Line = dict[str, Any]


@dataclass
class Span:
    """A phase of a process, in nanoseconds; not `is_over` if the trace does not say when it ended."""

    phase: str
    begin: int
    details: Line
    end: int = 0
    is_over: bool = False
    blockers: list[int] = field(default_factory=list)
    """The lanes of the processes that this one waited for."""

    @property
    def locks(self) -> list[Line]:
        return list(self.details.get("locks") or filter(None, [self.details.get("lock")]))

    @property
    def is_exclusive(self) -> bool:
        return any(each["mode"] == "exclusive" for each in self.locks)

    def describe(self) -> str:
        """What was done, in words."""
        details = self.details
        words = [f"{each['mode']} {each['kind']} lock on {each['of']}" for each in self.locks]
        if self.phase == WAIT:
            words = [f"for the {each}" for each in words] or [f"for the turn to {details.get('turn')}"]
            for each in details.get("for", ()):
                where = f" on {each['host']}" if each.get("host") else ""
                words.append(f"held by {each['command'] or '?'} (pid {each['pid']}{where})")
        elif self.phase != HOLD:
            words = [", ".join(value) if isinstance(value, list) else str(value) for value in details.values()]
        return text("\n".join(words))


@dataclass
class Lane:
    """One process."""

    boot: str
    pid: int
    header: Line
    begin: int
    last: int
    spans: list[Span] = field(default_factory=list)
    retries: list[tuple[int, str]] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    status: int | None = None
    is_running: bool = False

    def add(self, lines: Iterable[Line]) -> None:
        """Add what a file of this process says."""
        spans: dict[object, Span] = {}
        for line in lines:
            event, self.last = line["event"], max(self.last, line["time"])
            if event == "process" and line.get("started"):
                self.spans.append(Span("start", line["started"], {}, line["time"], True))
            elif event == "begin":
                details = {key: value for key, value in line.items() if key not in ("event", "time", "span", "phase")}
                spans[line["span"]] = Span(str(line["phase"]), line["time"], details)
                self.spans.append(spans[line["span"]])
            elif event == "end" and (span := spans.get(line["span"])) is not None:
                span.end, span.is_over = line["time"], True
            elif event == "environment":
                self.environment = self.environment or line["of"]
            elif event == "retry":
                self.retries.append((line["time"], text(line["why"])))
            elif event == "exit":
                self.status = line["status"]

    def ended(self) -> str:
        if self.status is not None:
            return f"exit status {self.status}"
        return "still running" if self.is_running else "ended without an exit status"

    def name(self) -> str:
        return text(self.header["command"])


def text(value: object) -> str:
    """A text that can be encoded: bytes that are no UTF-8 are shown as `\\udcff`."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def main(options: Namespace, context: Context) -> int:
    source = Path(options.directory)
    lanes, damaged = read(source)
    if not lanes:
        hint = "Run commands with `--trace DIR` or SAFE_PIP_TRACE=DIR"
        raise UsageError(f"there is no trace in `{source}`", hint=hint)
    if damaged:
        warn(options, f"{count(damaged, 'line')} of the trace cannot be read")
    output = Path(options.output or source)
    try:
        fs.make_directories(output)
        fs.replace(output / "timeline.json", json.dumps(chrome(lanes)).encode(), mode=0o644)
        fs.replace(output / "timeline.html", page(lanes).encode(), mode=0o644)
    except OSError as error:
        raise space.not_writable(output, error) from error
    if not options.quiet:
        tell(f"{count(len(lanes), 'command')}: `{output / 'timeline.html'}`, `{output / 'timeline.json'}`")
    return 0


def read(directory: Path) -> tuple[list[Lane], int]:
    """The processes whose traces lie in a directory, by their begin; and how many lines cannot be read.

    Times become those of the first process's clock. Another boot, or machine, is placed by its date.
    """
    damaged, files = 0, list[list[Line]]()
    for path in sorted(directory.glob(f"*{trace.SUFFIX}")):
        *whole, _ = path.read_bytes().split(b"\n")  # behind the last line there is nothing, or what a kill cut off
        lines = [line for each in whole if (line := _parsed(each)) is not None]
        damaged += len(whole) - len(lines)
        if lines and lines[0]["event"] == "process":
            files.append(lines)
    files.sort(key=lambda lines: (float(lines[0]["wall"]), lines[0]["time"]))
    lanes: list[Lane] = []
    clocks: dict[str, int] = {}
    for header, *rest in files:
        boot, pid = header["boot"], header["pid"]
        clocks.setdefault(boot, int(float(header["wall"]) * 1e9) - header["time"])
        shift = clocks[boot] - next(iter(clocks.values()))
        lines = [{**line, "time": line["time"] + shift} for line in (header, *rest)]
        if lines[0].get("started"):
            lines[0]["started"] += shift
        before = next((lane for lane in reversed(lanes) if (lane.boot, lane.pid) == (boot, pid)), None)
        if before is None or header["attempt"] == 1:
            before = Lane(boot, pid, header, lines[0].get("started") or lines[0]["time"], lines[0]["time"])
            lanes.append(before)
        before.add(lines)
    _finish(lanes)
    return lanes, damaged


def _parsed(line: bytes) -> Line | None:
    """A line of a trace, None if it is none."""
    try:
        found = json.loads(line)
        int(found["time"])
        kinds = {"process": ("pid", "boot", "wall", "attempt", "command"), "begin": ("span", "phase"), "end": ("span",)}
        kinds |= {"environment": ("of",), "retry": ("why",), "exit": ("status",)}
        return found if all(name in found for name in kinds[found["event"]]) else None
    except (ValueError, TypeError, KeyError):
        return None


def _finish(lanes: list[Lane]) -> None:
    """End what has no end, and find out which process each wait was for."""
    here = "".join(proc.lines("sys/kernel/random/boot_id")).strip()
    waits = [(number, span) for number, lane in enumerate(lanes) for span in lane.spans if span.phase == WAIT]
    for number, wait in waits:
        for each in wait.details.get("for", ()):
            if each.get("host"):
                continue
            holder = lanes[number].boot, each["pid"]
            known = [n for n, lane in enumerate(lanes) if (lane.boot, lane.pid) == holder and lane.begin <= wait.begin]
            if known and known[-1] != number:
                wait.blockers.append(known[-1])
                if lanes[known[-1]].status is None:  # killed later than its last line
                    lanes[known[-1]].last = max(lanes[known[-1]].last, wait.begin)
    newest = max((lane.last for lane in lanes), default=0)
    for lane in lanes:
        started = lane.header.get("started")
        is_same = started is not None and lane.boot == here and trace.started(lane.pid) == started
        lane.is_running = lane.status is None and is_same
        lane.last = newest if lane.is_running else lane.last
        for span in lane.spans:
            span.end = span.end if span.is_over else lane.last
    for number, wait in waits:  # the holder may have let go before this process could look
        wait.blockers = wait.blockers or list(_holders(lanes, number, wait))


def _holders(lanes: list[Lane], own: int, wait: Span) -> Iterator[int]:
    """The lanes that held, within a wait, the lock that was waited for."""
    for number, lane in enumerate(lanes):
        for span in lane.spans if number != own else ():
            is_then = span.phase == HOLD and span.begin < wait.end and wait.begin < span.end
            if is_then and any(_collide(one, other) for one in span.locks for other in wait.locks):
                yield number
                break


def _collide(one: Line, other: Line) -> bool:
    return bool(one["path"] == other["path"] and "exclusive" in (one["mode"], other["mode"]))


def chrome(lanes: list[Lane]) -> Line:
    """The processes in Chrome's trace event format, in microseconds: phases, a track or more for locks, and flows."""
    start, used, events = min(lane.begin for lane in lanes), set[int](), list[Line]()
    pids = []
    for lane in lanes:
        pids.append(next(pid for pid in range(lane.pid, 10**12, 10**7) if pid not in used))  # a pid may come again
        used.add(pids[-1])
    for lane, pid in zip(lanes, pids, strict=True):
        facts = {"command": lane.name(), "environment": text(", ".join(lane.environment)), "end": lane.ended()}
        tracks: list[int] = []  # when each is free again; what is held need not be nested
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": lane.name()}})
        length = (lane.last - lane.begin) / 1000
        events.append(_event("X", pid, 1, lane.begin, start, name="process", dur=length, args=facts))
        for time, why in lane.retries:
            events.append(_event("i", pid, 1, time, start, name="retry", s="t", args={"why": why}))
        for span in lane.spans:
            track = 1
            if span.phase == HOLD:
                free = next((each for each, until in enumerate(tracks) if until <= span.begin), len(tracks))
                tracks[free : free + 1] = [span.end]
                track = free + 2
            args = {"what": span.describe()} | ({} if span.is_over else {"end": lane.ended()})
            length = (span.end - span.begin) / 1000
            events.append(_event("X", pid, track, span.begin, start, name=span.phase, dur=length, args=args))
        for track, name in enumerate(["phases", *("locks held" for _ in tracks)], 1):
            events.append({"ph": "M", "pid": pid, "tid": track, "name": "thread_name", "args": {"name": name}})
    flows = ((own, span, other) for own, lane in enumerate(lanes) for span in lane.spans for other in span.blockers)
    for number, (own, wait, other) in enumerate(flows):
        events.append(_event("s", pids[own], 1, wait.begin, start, name="waited for", cat=WAIT, id=number))
        held = min(max(wait.begin, lanes[other].begin), lanes[other].last)
        events.append(_event("f", pids[other], 1, held, start, bp="e", name="waited for", cat=WAIT, id=number))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(kind: str, pid: int, track: int, time: int, start: int, **more: object) -> Line:
    return {"ph": kind, "pid": pid, "tid": track, "ts": (time - start) / 1000, **more}


def page(lanes: list[Lane]) -> str:
    """`timeline.html`; nothing in the data can end the element that it stands in."""
    start = min(lane.begin for lane in lanes)

    def milliseconds(time: int) -> float:
        return round((time - start) / 1e6, 3)

    data = [
        {
            "name": lane.name(),
            "pid": lane.pid,
            "facts": [
                text(f"in {lane.header.get('directory')}"),
                text(f"on {', '.join(lane.environment) or lane.header.get('prefix')}"),
                lane.ended(),
            ],
            "ok": lane.status == 0 or lane.is_running,
            "begin": milliseconds(lane.begin),
            "end": milliseconds(lane.last),
            "retries": [[milliseconds(time), why] for time, why in lane.retries],
            "spans": [
                {
                    "phase": span.phase,
                    "begin": milliseconds(span.begin),
                    "end": milliseconds(span.end),
                    "what": span.describe() + ("" if span.is_over else f"\n{lane.ended()}"),
                    "exclusive": span.is_exclusive,
                    "blockers": span.blockers,
                }
                for span in lane.spans
            ],
        }
        for lane in lanes
    ]
    return PAGE.read_text(encoding="utf-8").replace("{{data}}", json.dumps(data).replace("<", "\\u003c"))
