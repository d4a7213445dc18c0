"""`safe-pip doctor`: what is wrong with the environment, and its repair."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safe_pip.commands.doctor.checkup import Finding
from safe_pip.commands.doctor.examination import Report, examine
from safe_pip.commands.doctor.repair import Repair
from safe_pip.commands.environments import Context, Place
from safe_pip.commands.options import Namespace, Parser

_DESCRIPTION = """\
Compare every distribution of the environment with its metadata and RECORD, and look for what an interrupted command
left. The exit status is 0 if the environment is sound, 1 if anything was found; notes do not count.

Each finding is a line: what it is, the distribution, the path, and what would repair it.
  missing-file, changed-file     not as RECORD has it (size, digest); bytecode in `__pycache__` does not count
  overwritten-file               changed, and as the RECORD of another distribution has it
  unreadable-file                this user may not read it
  missing-metadata, wrong-metadata, missing-record, unreadable-record
                                 the dist-info is not whole, or is of something else than its name says
  doubled-project                several dist-infos (egg-infos) of one project in one tree
  leftover                       `~x` of a plain pip that was interrupted
  ownerless-script               a wrapper as installers make them, for this Python, that no RECORD and no entry
                                 point names
  unfinished-transaction         a safe-pip was killed; the next command undoes or finishes it, or refuses to
  abandoned                      a private directory or a marker of a safe-pip that was killed
  adopted-in-vain                the safe-pip that pip is there (`safe-pip adopt`) has gone: pip refuses to run
Notes:
  unowned                        a file that no RECORD names, where distributions are: data, which is kept
  managed-elsewhere              no RECORD, because another tool looks after it
  put-aside                      what `--repair` kept of a transaction that could not be undone
  adopted                        pip is safe-pip there (`safe-pip adopt`)

`--repair` first undoes or finishes transactions. One that every other command refuses, because another program has
changed something since or because its journal is damaged, is undone as far as it can be; what it has of the rest is
put aside in `.safe-pip/kept-...`, never deleted, and its journal is removed. Then dist-infos that are one too many,
or say nothing, are removed, damaged distributions are reinstalled in their recorded version from where they came
from (`safe-pip install --no-deps`; its options come from PIP_ variables and pip's configuration), and at last
leftovers and ownerless scripts are removed: leftovers only if every reinstall succeeded. What is left is printed.
"""

_JSON = """\
The JSON document has:
  format         1; a later number means that a key got another meaning
  sound          whether the exit status is 0
  trees          the directories that hold distributions
  distributions  how many there are; null if none was looked at, because a transaction has
                 to be rolled back first
  repaired       what `--repair` has done, a list of sentences
  failed         what it has tried in vain
  findings, notes
                 lists of: kind, project, version, tree, path, detail, repair (what would be
                 done; null: nothing can be)
"""


def describe(parser: Parser) -> None:
    """Add the verb's arguments to its parser."""
    parser.description = _DESCRIPTION
    parser.epilog = _JSON
    parser.add_argument("--repair", action="store_true", help="repair what can be repaired")
    parser.add_env(", or a --target directory")
    parser.add_json()


def main(options: Namespace, context: Context) -> int:
    """Run the verb; on return its exit status."""
    place = Place.find(options.env, context)
    repair = Repair(place)
    report = repair.run() if options.repair else examine(place)
    if options.json:
        print(json.dumps(_document(place.trees, report, repair), indent=2))
    else:
        print("\n".join(_lines(report, repair)))
    return 1 if report.findings else 0


def _lines(report: Report, repair: Repair) -> Iterator[str]:
    yield from (f"repaired: {each}" for each in repair.done)
    yield from (f"failed: {each}" for each in repair.failed)
    for finding, how in report.findings:
        yield f"{_described(finding)}; repair: {how or 'none here'}"
    for finding, _ in report.notes:
        yield f"note: {_described(finding)}"
    count = None if report.installed is None else len(report.installed)
    if count is None:
        yield "The distributions were not looked at: an unfinished transaction comes first"
    elif report.findings:
        number = len(report.findings)
        yield f"{number} {'finding' if number == 1 else 'findings'} in {count} distributions"
    else:
        yield f"Sound: {count} distributions"


def _described(finding: Finding) -> str:
    who = f"{finding.project} {finding.version}".strip()
    return ": ".join(part for part in (finding.kind.value, who, finding.path, finding.detail) if part)


def _document(trees: Iterable[Path], report: Report, repair: Repair) -> dict[str, Any]:
    return {
        "format": 1,
        "sound": not report.findings,
        "trees": [os.fspath(tree) for tree in trees],
        "distributions": None if report.installed is None else len(report.installed),
        "repaired": repair.done,
        "failed": repair.failed,
        "findings": [_entry(finding, how) for finding, how in report.findings],
        "notes": [_entry(finding, how) for finding, how in report.notes],
    }


def _entry(finding: Finding, repair: str) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "project": finding.project or None,
        "version": finding.version or None,
        "tree": finding.tree,
        "path": finding.path,
        "detail": finding.detail or None,
        "repair": repair or None,
    }
