"""Virtual environments in a tenth of a second, with a given pip, safe-pip and other wheels.

pip installs a set of wheels once per session into a template; each venv is made by `venv` and filled with a copy of
what the template has, compiled files included. Scripts name their interpreter, so they and their RECORD rows change.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.wheels.tiny import digest
from tests.support.wheels.wheelhouse import NEWEST_PIP, Wheelhouse

PROJECT_ROOT = Path(__file__).resolve().parents[3]
BUILD_INPUTS = ("pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", "docs", "src")
OURS = ("PIP_", "PYTHON", "SAFE_PIP_", "VIRTUAL_ENV", "XDG_", "SETUPTOOLS_", "DISTUTILS_", "UV_", "SOURCE_DATE_EPOCH")
OURS += ("TOX_", "NOX_", "PIPENV_", "MAKE", "MFLAGS")
# If one of these is set, pip asks no question and draws no progress bar.
CI = ("BUILD_BUILDID", "BUILD_ID", "CI")


@dataclass(frozen=True)
class Venv:
    """One virtual environment; `own` are the files (relative to `path`) that no distribution brought."""

    path: Path
    own: frozenset[str]

    @property
    def scripts(self) -> Path:
        return self.path / "bin"

    @property
    def python(self) -> Path:
        return self.scripts / "python"

    @functools.cached_property
    def purelib(self) -> Path:
        variables = {"base": str(self.path), "platbase": str(self.path)}
        return Path(sysconfig.get_path("purelib", "posix_prefix", vars=variables))


def clean_environment(home: Path, *, cache: Path | None = None, **more: str) -> dict[str, str]:
    """The environment variables of every command in a test: nothing of this machine's that pip or Python would read.

    `home` becomes HOME; `cache` the cache directory of pip and of safe-pip (default: below `home`).
    """
    home.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS) and name not in CI}
    environment |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(cache or home / ".cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    return environment | more


def offline(*find_links: Path) -> dict[str, str]:
    """The variables that make pip, and the pips that it starts for isolated builds, use these directories alone."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": " ".join(map(str, find_links))}


@dataclass
class VenvMaker:
    """Makes venvs for the interpreter that runs the tests; templates are kept in `scratch`."""

    wheelhouse: Wheelhouse
    scratch: Path
    _templates: dict[tuple[Path, ...], Venv] = field(default_factory=dict)

    def make(self, path: Path, wheels: Sequence[Path] = ()) -> Venv:
        """Make a venv at `path` in which pip has installed exactly `wheels`; none of them needs another to be there."""
        environment = _empty(path)
        if wheels:
            self._fill(environment, self._template(tuple(sorted(wheels))))
        return environment

    def copy(self, source: Venv, path: Path) -> Venv:
        """Make a venv at `path` that has what `source` has."""
        environment = _empty(path)
        self._fill(environment, source)
        return environment

    def _template(self, wheels: tuple[Path, ...]) -> Venv:
        if wheels not in self._templates:
            template = _empty(self.scratch / f"template-{len(self._templates)}")
            pip = self.wheelhouse.wheel("pip", NEWEST_PIP) / "pip"
            options = ("install", "-q", "--no-index", "--no-deps", "--no-cache-dir")
            command = [str(template.python), str(pip), *options, *map(str, wheels)]
            run(command, clean_environment(self.scratch / "home"), self.scratch)
            self._templates[wheels] = template
        return self._templates[wheels]

    def _fill(self, environment: Venv, source: Venv) -> None:
        ignore = shutil.ignore_patterns(".safe-pip")
        shutil.copytree(source.purelib, environment.purelib, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        changed = {}
        for file in _files(source.path, but=source.purelib):
            if file in source.own:
                continue
            content = (source.path / file).read_bytes()
            moved = content.replace(os.fsencode(source.path), os.fsencode(environment.path))
            (environment.path / file).parent.mkdir(parents=True, exist_ok=True)
            (environment.path / file).write_bytes(moved)
            shutil.copymode(source.path / file, environment.path / file)
            if moved != content:
                changed[environment.path / file] = moved
        for record in environment.purelib.glob("*.dist-info/RECORD"):
            _update_record(record, changed)


def build_safe_pip(wheelhouse: Wheelhouse, scratch: Path) -> Path:
    """Build the wheel of this checkout, from a copy, with nothing but the wheelhouse; on return its path."""
    source = scratch / "source"
    source.mkdir(parents=True)
    for name in BUILD_INPUTS:
        if (PROJECT_ROOT / name).is_dir():
            shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (PROJECT_ROOT / name).exists():
            shutil.copy(PROJECT_ROOT / name, source / name)
    pip = wheelhouse.wheel("pip", NEWEST_PIP) / "pip"
    # pip runs from its wheel in an interpreter that need not have pip, so not in the one that runs the tests.
    builder = _empty(scratch / "builder")
    command = [str(builder.python), str(pip), "wheel", "-q", "--no-deps", "-w", str(scratch / "wheel"), str(source)]
    run(command, clean_environment(scratch / "home", **offline(wheelhouse.path)), scratch)
    (wheel,) = (scratch / "wheel").iterdir()
    return wheel


def run(command: Sequence[str | Path], environment: dict[str, str], directory: Path) -> str:
    """Run a command that must succeed; on return what it printed on standard output."""
    done = subprocess.run(
        command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        line = " ".join(map(str, command))
        raise AssertionError(f"`{line}` exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _empty(path: Path) -> Venv:
    venv.EnvBuilder(symlinks=True).create(path)
    return Venv(path, frozenset(_files(path)))


def _files(root: Path, but: Path | None = None) -> list[str]:
    """The files below `root`, relative to it, without those below `but`."""
    found = []
    for directory, directories, files in os.walk(root):
        if directory == str(but):
            directories.clear()
            continue
        found += [os.path.relpath(os.path.join(directory, file), root) for file in files]
    return sorted(found)


def _update_record(record: Path, changed: dict[Path, bytes]) -> None:
    rows = list(csv.reader(io.StringIO(record.read_text(encoding="utf-8"))))
    updated = []
    for path, old_digest, size in rows:
        content = changed.get(Path(os.path.normpath(record.parent.parent / path))) if path.startswith("..") else None
        updated.append((path, old_digest, size) if content is None else (path, digest(content), str(len(content))))
    if updated != [tuple(row) for row in rows]:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(updated)
        record.write_text(text.getvalue(), encoding="utf-8")
