"""Tools of others that call pip, or stand in its place: fetched from the package index once per user, then kept.

A test that cannot have one of them is skipped by the tool's name. Like the wheelhouse, what is fetched is made aside
and renamed in; nothing but the fetching sees the index.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.venvs.template import clean_environment
from tests.support.wheels.wheelhouse import NEWEST_PIP, Wheelhouse, any_pip, user_cache

# Each with what it needs, as pip resolves it on the day when it is fetched.
VERSIONS = {
    "build": "1.6.1",
    "nox": "2026.10.20",
    "pipenv": "2026.10.3",
    "tox": "4.67.15" if sys.version_info >= (3, 11) else "4.65.0",
    "uv": "0.13.8",
}


class ToolOutOfReach(Exception):
    """The tool is not in the cache and the package index does not give it."""


def fetched(name: str) -> Path:
    """A directory with the wheels of one tool and of all that it needs, on this interpreter; or `ToolOutOfReach`."""
    key = json.dumps([name, VERSIONS[name], sys.implementation.cache_tag])
    path = user_cache() / "safe-pip-tests" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix="fetching-"))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            command = [*any_pip(Path(scratch)), "download", "-q", "--only-binary", ":all:", "-d", str(aside)]
            command.append(f"{name}=={VERSIONS[name]}")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolOutOfReach(f"{name} {VERSIONS[name]} cannot be fetched: {done.stderr[-1000:]}")
        aside.chmod(0o755)
        os.rename(aside, path)
    except OSError:
        if not path.is_dir():
            raise  # not the loser of a race between two test runs
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


@dataclass
class Toolbox:
    """The tools of one session, each in an environment of its own."""

    wheelhouse: Wheelhouse
    scratch: Path
    _made: dict[str, Path] = field(default_factory=dict)

    def wheels(self, name: str) -> list[Path]:
        """The wheels of a tool and of all that it needs; a tool that cannot be had skips the test."""
        try:
            return sorted(fetched(name).glob("*.whl"))
        except ToolOutOfReach as error:
            pytest.skip(str(error))

    def program(self, name: str) -> Path:
        """The tool's executable; a tool that cannot be had skips the test."""
        if name not in self._made:
            wheels = self.wheels(name)
            prefix = self.scratch / name
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
            pip = self.wheelhouse.wheel("pip", NEWEST_PIP) / "pip"
            command = [prefix / "bin" / "python", pip, "install", "-q", "--no-index", "--no-deps", *wheels]
            subprocess.run(command, check=True, env=clean_environment(self.scratch / "home"), cwd=self.scratch)
            self._made[name] = prefix / "bin" / name
        return self._made[name]
