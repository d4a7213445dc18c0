"""What is wrong with an environment that no command is using. Every violation has a name.

The files are compared with what the RECORDs say (PyPA's "Recording installed projects"), read here by hand: the
checker shares no code with what it checks.
"""

from __future__ import annotations

import configparser
import csv
import io
import json
import os
import re
import subprocess
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import digest

STATE_DIRECTORY = ".safe-pip"
UNFINISHED = (".journal", ".undoing", ".committed")

IMPORT_ALL = """\
import importlib, json, sys
failed = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
json.dump(failed, sys.stdout)
"""


@dataclass(frozen=True, order=True)
class Violation:
    """One fault that no sequence of pip commands, one after another, leaves behind."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True)
class Distribution:
    """One dist-info directory, whole or not."""

    info: Path

    @property
    def directory_name(self) -> tuple[str, str]:
        name, _, version = self.info.name.removesuffix(".dist-info").partition("-")
        return normalize(name), version

    @cached_property
    def identity(self) -> tuple[str, str] | None:
        """Normalized name and version, as METADATA has them."""
        try:
            text = (self.info / "METADATA").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = dict(re.findall(r"^(Name|Version): *(.*?)\s*$", text.partition("\n\n")[0], re.MULTILINE))
        return (normalize(fields["Name"]), fields["Version"]) if len(fields) == 2 else None

    @property
    def name(self) -> str:
        return (self.identity or self.directory_name)[0]

    @cached_property
    def rows(self) -> list[tuple[Path, str, str]] | None:
        """The rows of RECORD with absolute paths; None if it cannot be read."""
        try:
            text = (self.info / "RECORD").read_text(encoding="utf-8")
            rows = [(path, hashed, size) for path, hashed, size in csv.reader(io.StringIO(text))]
        except (OSError, ValueError):
            return None
        return [(Path(os.path.normpath(self.info.parent / path)), hashed, size) for path, hashed, size in rows]

    def entry_points(self, *groups: str) -> list[str]:
        """The names of the scripts that installers make (entry points specification)."""
        parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        try:
            parser.read(self.info / "entry_points.txt", encoding="utf-8")
        except configparser.Error:
            return []
        return [name for group in groups if parser.has_section(group) for name in parser.options(group)]


def normalize(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(environment: Venv) -> list[Distribution]:
    """Every dist-info directory of the environment, by name."""
    return [Distribution(path) for path in sorted(environment.purelib.glob("*.dist-info"))]


def installed(environment: Venv) -> dict[str, str]:
    """The installed version of each project, as far as it can be read."""
    return dict(each.identity or each.directory_name for each in distributions(environment))


def check(environment: Venv, variables: Mapping[str, str], *, pip_check: bool = True) -> list[Violation]:
    """Every violation in an environment that no command uses any more."""
    found = check_files(environment) + check_imports(environment, variables)
    return sorted(found + (check_with_pip(environment, variables) if pip_check else []))


def check_files(environment: Venv) -> list[Violation]:
    """What the files alone tell; starts no process."""
    there = distributions(environment)
    owned = {path for each in there for path, _, _ in each.rows or ()}
    return sorted(
        {
            *_doubled(environment, there),
            *(violation for each in there for violation in _damaged(each)),
            *(violation for each in there for violation in _rows(each, environment)),
            *(violation for each in there for violation in _scripts(each, environment)),
            *_leftovers(environment),
            *_unowned(environment, owned),
            *_unfinished(environment),
        }
    )


def check_imports(environment: Venv, variables: Mapping[str, str]) -> list[Violation]:
    """Import all top-level modules in one child interpreter, and each module that fails again in its own interpreter.

    Some only import before others: setuptools 75 on Python 3.10 refuses to come after `pkg_resources`.
    """
    names = sorted({name for each in distributions(environment) for name in _top_level(each, environment)})
    together = _import(names, environment, variables)
    failed = [_import([name], environment, variables) for name in together]
    return [Violation("import-failed", f"{name}: {error}") for each in failed for name, error in each.items()]


def _import(names: list[str], environment: Venv, variables: Mapping[str, str]) -> dict[str, str]:
    """Which of `names` cannot be imported in one interpreter, and why; all of them if the interpreter dies."""
    command = [str(environment.python), "-I", "-B", "-W", "ignore", "-c", IMPORT_ALL]
    done = subprocess.run(
        command, input=json.dumps(names), env=dict(variables), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return dict.fromkeys(names, f"the interpreter exited {done.returncode}: {done.stderr[-2000:]}")
    failed: dict[str, str] = json.loads(done.stdout[done.stdout.rindex("{") :])
    return failed


def check_with_pip(environment: Venv, variables: Mapping[str, str]) -> list[Violation]:
    """Ask `pip check` of the environment's own pip."""
    command = [str(environment.python), "-m", "pip", "check"]
    done = subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=False)
    output = (done.stdout + done.stderr).strip()
    noisy = done.returncode or "Traceback" in output or "WARNING" in output
    return [Violation("pip-check", f"exit {done.returncode}: {output[-2000:]}")] if noisy else []


def check_wheel(wheel: Path, modules: Collection[str]) -> list[Violation]:
    """Violations of a built wheel: it must match its RECORD and have exactly `modules`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        record = next(text for name, text in content.items() if name.endswith(".dist-info/RECORD"))
        rows = {path: hashed for path, hashed, _ in csv.reader(io.StringIO(record.decode()))}
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError) as error:
        return [Violation("wrong-build", f"{wheel}: {error!r}")]
    wrong = {name for name, hashed in rows.items() if hashed and digest(content.get(name, b"")) != hashed}
    wrong |= (content.keys() ^ rows.keys()) | {name for name in modules if name not in content}
    wrong |= {name for name in content if name.endswith(".py")} - set(modules)
    return [Violation("wrong-build", f"{wheel}: {name}") for name in sorted(wrong)]


def _doubled(environment: Venv, there: list[Distribution]) -> Iterator[Violation]:
    places = defaultdict(list)
    for each in there:
        places[each.name].append(each.info.name)
    for path in environment.purelib.glob("*.egg-info"):
        places[normalize(path.name.removesuffix(".egg-info").partition("-")[0])].append(path.name)
    for name, infos in places.items():
        if len(infos) > 1:
            yield Violation("doubled-project", f"{name}: {', '.join(sorted(infos))}")


def _damaged(each: Distribution) -> Iterator[Violation]:
    for name in ("METADATA", "RECORD"):
        if not (each.info / name).is_file():
            yield Violation("damaged-dist-info", f"{each.info.name} has no {name}")
    if (each.info / "METADATA").is_file() and each.identity != each.directory_name:
        yield Violation("damaged-dist-info", f"{each.info.name}: METADATA says {each.identity}")
    if (each.info / "RECORD").is_file() and not each.rows:
        yield Violation("damaged-dist-info", f"{each.info.name}: RECORD cannot be read")


def _rows(each: Distribution, environment: Venv) -> Iterator[Violation]:
    for path, hashed, size in each.rows or ():
        shown = f"{each.info.name}: {os.path.relpath(path, environment.path)}"
        try:
            content = path.read_bytes()
        except OSError:
            yield Violation("missing-file", shown)
            continue
        if (size and int(size) != len(content)) or (hashed and hashed != digest(content)):
            yield Violation("wrong-digest", shown)


def _scripts(each: Distribution, environment: Venv) -> Iterator[Violation]:
    for name in each.entry_points("console_scripts", "gui_scripts"):
        if re.fullmatch(r"pip\d.*", name):
            continue  # installers of pip name it after the Python that runs, not after pip's wheel
        try:
            first_line = (environment.scripts / name).read_bytes().partition(b"\n")[0]
        except OSError:
            yield Violation("missing-script", f"{each.info.name}: {name}")
            continue
        # A path that is too long or has a blank stands in the second line, behind `exec`.
        if first_line not in (b"#!" + os.fsencode(environment.python), b"#!/bin/sh"):
            yield Violation("wrong-shebang", f"{name}: {os.fsdecode(first_line)}")


def _leftovers(environment: Venv) -> Iterator[Violation]:
    for directory, directories, files in os.walk(environment.path):
        for name in directories + files:
            if name.startswith("~"):
                yield Violation("leftover", os.path.relpath(os.path.join(directory, name), environment.path))


def _unowned(environment: Venv, owned: set[Path]) -> Iterator[Violation]:
    state_directory = environment.purelib / STATE_DIRECTORY
    for directory, directories, files in os.walk(environment.path):
        if Path(directory, STATE_DIRECTORY) == state_directory and STATE_DIRECTORY in directories:
            directories.remove(STATE_DIRECTORY)
        for path in (Path(directory, name) for name in files):
            shown = os.path.relpath(path, environment.path)
            if path in owned or shown in environment.own or _is_bytecode_of(path, owned):
                continue
            yield Violation("stray-script" if path.parent == environment.scripts else "unowned-file", shown)


def _is_bytecode_of(path: Path, owned: set[Path]) -> bool:
    stem = path.name.partition(".")[0]
    return path.parent.name == "__pycache__" and path.suffix == ".pyc" and path.parent.parent / f"{stem}.py" in owned


def _unfinished(environment: Venv) -> Iterator[Violation]:
    state_directory = environment.purelib / STATE_DIRECTORY
    for path in state_directory.iterdir() if state_directory.is_dir() else ():
        if path.suffix in UNFINISHED or path.is_dir():
            yield Violation("unfinished-transaction", os.path.relpath(path, environment.path))


def _top_level(each: Distribution, environment: Venv) -> Iterator[str]:
    for path, _, _ in each.rows or ():
        if path.is_relative_to(environment.purelib):
            parts = path.relative_to(environment.purelib).parts
            stem, _, suffix = parts[0].partition(".")
            if len(parts) == 1 and suffix.endswith(("py", "so")) and stem.isidentifier():
                yield stem
            elif len(parts) == 2 and parts[1] == "__init__.py" and parts[0].isidentifier():
                yield parts[0]
