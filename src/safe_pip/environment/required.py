"""What installed distributions require, by the names in their metadata, and which of them share files."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile

from safe_pip.environment.snapshot import Snapshot
from safe_pip.records import RealPaths, canonical, is_bytecode

# Name, extras, and the environment marker (https://packaging.python.org/en/latest/specifications/dependency-specifiers/).
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?[^;]*(.*)")
_EXTRA = re.compile(r"""\bextra\s*==\s*["']([^"']+)["']""")


def required(requirements: Iterable[str], snapshot: Snapshot) -> set[str]:
    """The installed projects that these requirements name, and those that they require in their turn.

    Of environment markers only `extra` counts: what some platform requires belongs to it too.
    """
    found, left = set[tuple[str, str]](), list(requirements)
    while left:
        if (match := _REQUIREMENT.match(left.pop())) is None:
            continue
        project, extras = canonical(match[1]), [canonical(each.strip()) for each in (match[2] or "").split(",")]
        for extra in {"", *extras} if snapshot.identity(project) else ():
            if (project, extra) not in found:
                found.add((project, extra))
                left += _of_extra(project, extra, snapshot)
    return {project for project, _ in found}


def sharing(projects: Iterable[str], snapshot: Snapshot) -> set[str]:
    """These projects, and those that list some file of theirs: to remove one of them removes that file."""
    paths, kept = RealPaths(), {*projects}
    files = {
        project: {file for info in found for file in paths.files_of(str(info[0])) if not is_bytecode(file)}
        for project, found in snapshot.projects.items()
    }
    own = set[str]().union(*(files[each] for each in kept & files.keys()))
    return kept.union(each for each, found in files.items() if not found.isdisjoint(own))


def _of_extra(project: str, extra: str, snapshot: Snapshot) -> Iterator[str]:
    """What a project requires; of an extra, what that adds."""
    for path, *_ in snapshot.identity(project):
        try:
            with open(os.path.join(str(path), "METADATA"), encoding="utf-8", errors="replace") as file:
                head = takewhile(str.strip, file)
                lines = [line.partition(":")[2] for line in head if line.startswith("Requires-Dist:")]
        except OSError:
            continue  # an egg, or removed meanwhile
        for line in lines:
            of = [canonical(each) for each in _EXTRA.findall(line)]
            if extra in of or not (extra or of):
                yield line
