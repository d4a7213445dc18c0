"""`safe-pip doctor`: what is wrong with the environment, and its repair."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safe_pip.commands.doctor.examination import Finding, Report, examine
from safe_pip.commands.doctor.repair import Repair
from safe_pip.commands.environments import Context, Place
from safe_pip.commands.options import Namespace, Parser, tell


def describe(parser: Parser) -> None:
    """Add the verb's arguments to its parser."""
    parser.description = """\
Compare every distribution of the environment with its metadata and RECORD, and look for what interrupted commands left.
The exit status is 0 if the environment is sound, 1 if anything was found. Notes do not count.

Each finding is a line: its kind, the distribution, the path, and what would repair it.
  missing-file, changed-file     not as RECORD has it (size, digest); bytecode in `__pycache__` does not count
  overwritten-file               changed, and as the RECORD of another distribution has it
  unreadable-file                you may not read it
  missing-metadata, wrong-metadata, missing-record, unreadable-record
                                 the dist-info is incomplete, or is of something else than its name says
  doubled-project                several dist-infos (egg-infos) of one project in one tree
  leftover                       `~x` of a plain pip that was interrupted
  unfinished-transaction         of a safe-pip that was killed; the next command undoes or finishes it, or refuses to
  abandoned                      a private directory or a marker of a safe-pip that was killed
  adopted-in-vain                the safe-pip that pip is there (`safe-pip adopt`) is gone
Notes:
  unowned                        a file that no RECORD names, where distributions are: data, which is kept
  managed-elsewhere              no RECORD, because another tool looks after the distribution
  put-aside                      what `--repair` kept of a transaction that could not be undone
  adopted                        pip is safe-pip there (`safe-pip adopt`)

`--repair` first undoes or finishes transactions. Some are refused by every other command, because another program has
changed something since or because the journal is damaged. Such a transaction is undone as far as possible; what it has
of the rest is put aside in `.safe-pip/kept-...`, never deleted, and its journal is removed. Then duplicate or empty
`.dist-info` directories and leftovers are removed. Leftovers stay as long as one of them is all there is of a project.
At last `--repair` prints what is left, and the command that reinstalls damaged distributions in their recorded version,
from where they came from.
"""
    parser.epilog = """\
The JSON document has:
  format         1; a later number means that the meaning of a key changed
  sound          whether the exit status is 0
  trees          the directories that hold distributions
  distributions  how many there are; null if none was looked at, because a transaction has to be rolled back first
  repaired       what `--repair` has done, a list of sentences
  failed         what it has tried in vain
  reinstall      the commands to run next, for a POSIX shell: at most one for each tree
  findings, notes
                 lists of: kind, project, version, tree, path, detail, repair (what would be done; null: nothing can be)
"""
    parser.add_argument("--repair", action="store_true", help="repair what can be repaired")
    parser.add_env(", or a --target directory")
    parser.add_json()


def main(options: Namespace, context: Context) -> int:
    """Run the verb; on return its exit status."""
    place = Place.find(options.env, context)
    repair = Repair(place)
    report = repair.run() if options.repair else examine(place)
    document = _document(place.trees, report, repair)
    is_told = tell(json.dumps(document, indent=2) if options.json else "\n".join(_lines(report, repair)))
    return 0 if is_told and report.is_sound else 1


def _lines(report: Report, repair: Repair) -> Iterator[str]:
    yield from (f"repaired: {each}" for each in repair.done)
    yield from (f"failed: {each}" for each in repair.failed)
    number = 0
    for finding in report.findings:
        is_note = finding.kind.is_note
        number += not is_note
        named = f"{finding.project} {finding.version}".strip()
        told = ": ".join(part for part in (finding.kind.value, named, finding.path, finding.detail) if part)
        yield f"note: {told}" if is_note else f"{told}; repair: {finding.repair or 'none here'}"
    if report.installed is None:
        yield "The distributions were not looked at: an unfinished transaction comes first"
    elif number:
        yield f"{number} {'finding' if number == 1 else 'findings'} in {len(report.installed)} distributions"
    else:
        yield f"Sound: {len(report.installed)} distributions"
    if repair.commands:
        yield "To reinstall what is damaged, run:"
        yield from repair.commands


def _document(trees: Iterable[Path], report: Report, repair: Repair) -> dict[str, Any]:
    return {
        "format": 1,
        "sound": report.is_sound,
        "trees": [os.fspath(tree) for tree in trees],
        "distributions": None if report.installed is None else len(report.installed),
        "repaired": repair.done,
        "failed": repair.failed,
        "reinstall": repair.commands,
        "findings": [_entry(finding) for finding in report.findings if not finding.kind.is_note],
        "notes": [_entry(finding) for finding in report.findings if finding.kind.is_note],
    }


def _entry(finding: Finding) -> dict[str, Any]:
    facts = {
        name: getattr(finding, name) or None for name in ("project", "version", "tree", "path", "detail", "repair")
    }
    return {"kind": finding.kind.value, **facts}
