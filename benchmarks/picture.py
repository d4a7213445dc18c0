"""Draws README's picture: six upgrades at once by pip, by pip behind one lock, and by safe-pip, as measured.

    python benchmarks/picture.py [--rounds N] [--output docs/six-at-once.svg]

All start at once in one environment with old versions, wheels come from a directory, and no wheel is prepared. The
order of the three is turned in each round; drawn is, of each, the round of median length. safe-pip's lanes are its own
trace (`--trace`). For the others this script writes the same kind of trace: begin, the wait for `flock`, and the end.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

from _bench import UPGRADES, Bench, bench
from _supplies import forget
from tests.support.venvs.template import Venv

from safe_pip import trace
from safe_pip.commands.trace import Lane, read

SETS = (
    *(("Django", "requests"), ("numpy", "requests"), ("Django", "six"), ("numpy", "attrs")),
    *(("six", "jinja2"), ("requests", "click")),
)
OLD = [*(f"{name}=={old}" for name, (old, _) in UPGRADES.items()), "requests==2.31.0", "attrs==23.2.0"]
TOOLS = {"pip": "pip", "flock": "pip behind one lock", "safe-pip": "safe-pip"}
WIDTH, LEFT, RIGHT, BAR, GAP = 860, 165, 150, 10, 3
Lines = list[dict[str, object]]


def measure(shared: Bench, environment: Venv, tool: str, traces: Path) -> list[Lane]:
    """Start all six, wait for all, and read what happened."""
    directory, lock = shared.scratch / "granted", shared.scratch / "lock"
    directory.mkdir()
    forget(shared)
    os.sync()
    running: dict[int, Lines] = {}
    for number, projects in enumerate(SETS):
        command, granted = [*shared.pip(environment)], directory / str(number)
        if tool == "safe-pip":
            command = [*shared.safe_pip(environment), "--trace", str(traces)]
        elif tool == "flock":
            noted = ["sh", "-c", 'cut -d" " -f1 /proc/uptime > "$0"; exec "$@"', str(granted)]
            command = ["flock", "-x", str(lock), *noted, *command]
        begin = trace.now()
        process = shared.start(command, "install", "--upgrade", "--no-deps", *projects)
        process.returncode = 0  # waited for below, whichever ends first
        text = f"{tool} install --upgrade {' '.join(projects)}"
        head = {"event": "process", "time": begin, "pid": process.pid, "boot": "", "wall": 0, "attempt": 1}
        running[process.pid] = [{**head, "command": text}]
    for _ in SETS:
        pid, status = os.wait()
        running[pid].append({"event": "exit", "time": trace.now(), "status": os.waitstatus_to_exitcode(status)})
    if tool != "safe-pip":
        traces.mkdir()
        for number, (pid, lines) in enumerate(running.items()):
            if (directory / str(number)).exists():
                until = int(float((directory / str(number)).read_text()) * 1e9)
                lines[1:1] = [
                    {"event": "begin", "time": lines[0]["time"], "span": 1, "phase": "wait"},
                    {"event": "end", "time": until, "span": 1},
                ]
            (traces / f"{pid}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    shutil.rmtree(directory)
    return read(traces)[0]


def length(lanes: list[Lane]) -> float:
    """How long all of it took, in seconds."""
    return (max(lane.last for lane in lanes) - min(lane.begin for lane in lanes)) / 1e9


def draw(lanes: dict[str, list[Lane]]) -> str:
    """The picture, for light and dark pages."""
    scale = (WIDTH - LEFT - RIGHT) / max(map(length, lanes.values()))
    band = len(SETS) * (BAR + GAP) + 16
    height = band * len(lanes) + 34
    shown = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.work{fill:#4c78c8}"
        ".wait{fill:#eaa39d}.hold{fill:#1f2328}"
        ".dim{fill:#6e7781}.bad{fill:#cf222e}@media(prefers-color-scheme:dark){text,.hold{fill:#e6edf3}.bad{fill:#ff7b72}"
        ".dim{fill:#9198a1}.wait{fill:#8e4a45}}</style>",
    ]

    def bar(kind: str, begin: float, end: float, y: float, tall: float = BAR) -> str:
        return (
            f'<rect class="{kind}" x="{begin:.1f}" y="{y}" width="{max(end - begin, 1):.1f}" height="{tall}" rx="1"/>'
        )

    for number, (tool, found) in enumerate(lanes.items()):
        top, start = number * band + 8, min(lane.begin for lane in found)
        failed = sum(lane.status != 0 for lane in found)
        shown.append(f'<text x="0" y="{top + 40}">{html.escape(TOOLS[tool])}</text>')
        outcome = f'class="bad">{failed} of {len(found)} failed' if failed else 'class="dim">all succeed'
        right = LEFT + length(found) * scale + 10
        shown.append(f'<text x="{right:.0f}" y="{top + 34}">{length(found):.1f} s</text>')
        shown.append(f'<text x="{right:.0f}" y="{top + 51}" {outcome}</text>')
        for row, lane in enumerate(found):
            y = top + row * (BAR + GAP)

            def place(time: int, start: int = start) -> float:
                return LEFT + (time - start) / 1e9 * scale

            title = html.escape(f"{re.sub(' --trace [^ ]+', '', lane.name())}: {lane.ended()}")
            shown.append(f"<g><title>{title}</title>")
            shown.append(bar("work" if lane.status == 0 else "bad", place(lane.begin), place(lane.last), y))
            spans = [(span.phase, span) for span in lane.spans if span.phase in ("wait", "hold")]
            for phase, span in sorted(spans, key=lambda found: found[0], reverse=True):
                alone = [each for each in span.locks if each["mode"] == "exclusive" and each["kind"] != "mutex"]
                if phase == "wait" or alone:
                    y_hold, tall = (y, BAR) if phase == "wait" else (y + BAR - 4, 4)
                    shown.append(bar(phase, place(span.begin), place(span.end), y_hold, tall))
            shown.append("</g>")
    x, y = LEFT, height - 10
    kinds = {"work": "working", "wait": "waiting", "hold": "locking the environment", "bad": "fails"}
    for kind, words in kinds.items():
        shown.append(bar(kind, x, x + 12, y - 9) + f'<text x="{x + 17}" y="{y}">{words}</text>')
        x += 40 + 7 * len(words)
    return "\n".join([*shown, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "six-at-once.svg")
    options = parser.parse_args()
    rounds = defaultdict[str, list[list[Lane]]](list)
    with bench() as shared:
        for number in range(options.rounds):
            order = [*TOOLS][number % 3 :] + [*TOOLS][: number % 3]
            for tool in order:
                environment = shared.environment(f"{tool}-{number}")
                shared.run(shared.pip(environment), "install", "--no-deps", *OLD)
                lanes = measure(shared, environment, tool, shared.scratch / f"traces-{tool}-{number}")
                rounds[tool].append(lanes)
                print(f"{tool}: {length(lanes):.1f} s,", *(lane.status for lane in lanes), file=sys.stderr)
    chosen = {tool: sorted(rounds[tool], key=length)[options.rounds // 2] for tool in TOOLS}
    options.output.write_text(draw(chosen))


if __name__ == "__main__":
    main()
