"""Interpreters that import a distribution in a loop while it is upgraded, and their results."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.wheels.tiny import Content, Project

NAME, MODULE = "example-alpha", "example_alpha"
MODULES = 40

# What one interpreter does: the package imports all its modules, each of which knows its version.
IMPORTER = f"""\
import importlib.metadata, json
try:
    import {MODULE} as package
    met = "one version" if package.VERSIONS == {{package.__version__}} else "modules of both versions"
    try:
        version = importlib.metadata.version("{NAME}")
    except Exception as error:
        version, met = None, "no metadata"
    if version is None:
        met = "no metadata"
    elif met == "one version" and version != package.__version__:
        met = "metadata of the other version"
    print(json.dumps([met, repr(version)]))
except Exception as error:
    # The module that is missing, not what went wrong because of it.
    met = "missing module" if isinstance(error, ImportError) else "other error"
    print(json.dumps([met, repr(error)]))
"""

ONE_VERSION, MISSING = "one version", "missing module"
KINDS = (
    ONE_VERSION,
    MISSING,
    "modules of both versions",
    "metadata of the other version",
    "no metadata",
    "other error",
)


def both_versions() -> tuple[Project, Project]:
    """Both versions of the imported distribution. Modules have equal names and sizes, so only the content differs."""
    return _version("1"), _version("2")


def _version(version: str) -> Project:
    names = [f"module{number}" for number in range(MODULES)]
    lines = [f"__version__ = {version!r}", f"from . import {', '.join(names)}"]
    lines.append(f"VERSIONS = {{{', '.join(f'{name}.VERSION' for name in names)}}}")
    files: dict[str, Content] = {f"{MODULE}/__init__.py": "\n".join(lines) + "\n"}
    files |= {f"{MODULE}/{name}.py": f"VERSION = {version!r}\n" for name in names}
    return Project(NAME, version, files=files)


def import_once(command: Sequence[str | Path], variables: Mapping[str, str]) -> tuple[str, str]:
    """The result of one new interpreter, started by `command`: one of `KINDS`, and details."""
    done = subprocess.run(
        [*command, "-I", "-c", IMPORTER], env=dict(variables), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        return "other error", done.stderr[-2000:]
    met, detail = json.loads(done.stdout)
    return met, detail


def import_during(
    changes: Callable[[], None], commands: Sequence[Sequence[str | Path]], variables: Mapping[str, str]
) -> tuple[Counter[str], list[str]]:
    """Import with each of `commands` in a separate loop while `changes` runs; on return the count of each result.

    The second value tells more of each import that did not meet one version.
    """
    met: Counter[str] = Counter()
    details: list[str] = []
    over, guard = threading.Event(), threading.Lock()

    def loop(command: Sequence[str | Path]) -> None:
        while not over.is_set():
            kind, detail = import_once(command, variables)
            with guard:
                met[kind] += 1
                if kind != ONE_VERSION:
                    details.append(f"{kind}: {detail}")

    threads = [threading.Thread(target=loop, args=(command,)) for command in commands]
    for thread in threads:
        thread.start()
    try:
        changes()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return met, details
