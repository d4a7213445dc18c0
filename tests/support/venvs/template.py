"""Virtual environments in a tenth of a second, with a given pip, safe-pip and other wheels.

pip installs each wheel once per session into a template of its own; each venv is made by `venv` and filled with a copy
of what the templates of its wheels have, compiled files included. Scripts name their interpreter, so they and their
RECORD rows change. The processes of one run share the templates.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.wheels.tiny import digest
from tests.support.wheels.wheelhouse import NEWEST_PIP, Wheelhouse

PROJECT_ROOT = Path(__file__).resolve().parents[3]
BUILD_INPUTS = ("pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", "docs", "src")
PACKAGE_VARIABLE = "TOX_PACKAGE"
OWN = "own-files.txt"
"""In a template: the files that `venv` made, and this one."""
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
    """Makes venvs for the interpreter that runs the tests; templates are kept in `shared`."""

    wheelhouse: Wheelhouse
    shared: Path
    _templates: dict[Path, Venv] = field(default_factory=dict)

    def make(self, path: Path, wheels: Sequence[Path] = ()) -> Venv:
        """Make a venv at `path` in which pip has installed exactly `wheels`; none of them needs another to be there."""
        return self._filled(path, [self._template(wheel) for wheel in wheels])

    def copy(self, source: Venv, path: Path) -> Venv:
        """Make a venv at `path` that has what `source` has."""
        return self._filled(path, [source])

    def _template(self, wheel: Path) -> Venv:
        if wheel not in self._templates:
            path = self.shared / f"template-{hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]}"
            with once(path) as is_new:
                if is_new:
                    self._install(wheel, path)
            self._templates[wheel] = Venv(path, frozenset((path / OWN).read_text().splitlines()))
        return self._templates[wheel]

    def _install(self, wheel: Path, path: Path) -> None:
        template = _empty(path)
        pip = self.wheelhouse.wheel("pip", NEWEST_PIP)
        # From its archive pip starts slowly.
        program = pip / "pip" if wheel == pip else self._template(pip).purelib / "pip"
        options = ("install", "-q", "--no-index", "--no-deps", "--no-cache-dir")
        home = clean_environment(self.shared / "home")
        run([str(template.python), str(program), *options, str(wheel)], home, self.shared)
        (path / OWN).write_text("\n".join([OWN, *template.own]))

    def _filled(self, path: Path, sources: Sequence[Venv]) -> Venv:
        environment = _empty(path)
        changed: dict[Path, bytes] = {}
        for source in sources:
            self._fill(environment, source, changed)
        for record in environment.purelib.glob("*.dist-info/RECORD"):
            _update_record(record, changed)
        return environment

    def _fill(self, environment: Venv, source: Venv, changed: dict[Path, bytes]) -> None:
        # `shutil` takes three times as long.
        subprocess.run(["cp", "-a", f"{source.purelib}/.", environment.purelib], check=True)
        shutil.rmtree(environment.purelib / ".safe-pip", ignore_errors=True)
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


@contextlib.contextmanager
def once(path: Path) -> Iterator[bool]:
    """Yield whether `path` has to be made now: one process of those that share it makes it, and the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = Path(f"{path}.done")
        yield not done.exists()
        done.touch()


def build_safe_pip(wheelhouse: Wheelhouse, scratch: Path) -> Path:
    """The wheel of this checkout: the one that tox has built, or one that is built with nothing but the wheelhouse."""
    if PACKAGE_VARIABLE in os.environ:
        return Path(os.environ[PACKAGE_VARIABLE])
    with once(scratch) as is_new:
        if is_new:
            _build(wheelhouse, scratch)
    (wheel,) = (scratch / "wheel").iterdir()
    return wheel


def _build(wheelhouse: Wheelhouse, scratch: Path) -> None:
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
