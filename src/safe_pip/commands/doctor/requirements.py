"""What the distributions of an environment require and do not find there: the findings of `pip check`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from safe_pip import fs
from safe_pip.commands.doctor.examination import Finding, Kind, Report
from safe_pip.commands.environments import Place, python_of, scripts_of
from safe_pip.environment.environment import PACKAGES
from safe_pip.launch.restart import RUNNER
from safe_pip.records import canonical

_UNMET = re.compile(
    r"(?P<name>\S+) (?P<version>\S+) (?:requires (?P<missing>.+), which is not installed"
    r"|has requirement (?P<wanted>.+), but you have .+|is not supported on this platform)\.?"
)


def check(place: Place, report: Report) -> Report:
    """The report, with what `pip check` finds. A directory that no Python looks into by itself is not checked."""
    if not report.installed:  # perhaps not looked at, because a command would roll back what is unfinished
        return report
    found = {*report.findings, *_unmet(place, report)}
    return report._replace(findings=tuple(sorted(found, key=Finding.order)))


def python_in(place: Place, tree: Path) -> Path | None:
    """The Python, or the environment, whose pip installs into `tree`; None if it is this one, or there is none."""
    if place.named is None or tree.name not in PACKAGES:
        return None
    path = Path(os.path.abspath(place.named))
    python = place.home(tree) or (path if fs.is_file(path) else python_of(scripts_of(tree).parent))
    return python if fs.look(python) else None


def _unmet(place: Place, report: Report) -> Iterator[Finding]:
    python = python_in(place, place.trees[0])
    if python is None and place.named is not None:
        return
    timeout = place.context.settings.lock_timeout
    command = [sys.executable, RUNNER, "--isolated", *(["--python", str(python)] if python else []), "check"]
    command += [] if timeout is None else [f"--lock-timeout={timeout}"]
    # `--isolated` leaves out the variables and files that could silence it.
    kept = {name: value for name, value in os.environ.items() if name != "PIP_PYTHON"}
    done = subprocess.run(command, env=kept, capture_output=True, check=False)
    output = done.stdout.decode(errors="replace").splitlines()
    infos = {each.project: each for each in reversed(report.installed or ())}
    lines = list(filter(None, map(_UNMET.fullmatch, output)))
    for line in lines:
        if each := infos.get(canonical(line["name"])):
            wanted = line["wanted"] or line["missing"]
            detail = line[0].removeprefix(f"{line['name']} {line['version']} ").rstrip(".")
            found = each.finding(Kind.UNMET_REQUIREMENT, each.info, detail)
            yield found._replace(repair=f"install `{wanted}`" if wanted else "")
    if done.returncode and not lines:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        yield Finding(Kind.NOT_CHECKED, str(place.trees[0]), "", detail=said[-1] if said else "`pip check` failed")
