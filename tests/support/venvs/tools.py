"""Other tools that call pip or replace it: fetched from the package index once per user, then kept.

If a tool is not available, a test that needs it is skipped by the tool's name. Only the fetching uses the index.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.venvs.template import clean_environment, once
from tests.support.wheels.wheelhouse import NEWEST_PIP, Wheelhouse, any_pip, fetch_once, user_cache

# Dependencies are what pip resolves on the day of fetching.
VERSIONS = {
    "build": "1.6.1",
    "cmake": "4.1.2",
    "hatch": "1.18.2",
    "meson": "1.12.1",
    "ninja": "1.13.0",
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

    def fetch(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            command = [*any_pip(Path(scratch)), "download", "-q", "--only-binary", ":all:", "-d", str(directory)]
            command.append(f"{name}=={VERSIONS[name]}")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolOutOfReach(f"{name} {VERSIONS[name]} cannot be fetched: {done.stderr[-1000:]}")

    return fetch_once(path, fetch)


@dataclass
class Toolbox:
    """The tools of one run, each in an environment of its own."""

    wheelhouse: Wheelhouse
    scratch: Path
    _made: dict[str, Path] = field(default_factory=dict)

    def wheels(self, name: str) -> list[Path]:
        """The wheels of a tool and of all that it needs; skips the test if the tool is not available."""
        try:
            return sorted(fetched(name).glob("*.whl"))
        except ToolOutOfReach as error:
            pytest.skip(str(error))

    def program(self, name: str) -> Path:
        """The tool's executable; skips the test if the tool is not available."""
        if name not in self._made:
            wheels = self.wheels(name)
            prefix = self.scratch / name
            with once(prefix) as is_new:
                if is_new:
                    self._install(prefix, wheels)
            self._made[name] = prefix / "bin" / name
        return self._made[name]

    def _install(self, prefix: Path, wheels: Sequence[Path]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
        pip = self.wheelhouse.wheel("pip", NEWEST_PIP) / "pip"
        options = ("-q", "--no-index", "--no-deps", "--no-compile")  # a test imports a small part of its tool
        command = [prefix / "bin" / "python", pip, "install", *options, *wheels]
        subprocess.run(command, check=True, env=clean_environment(self.scratch / "home"), cwd=self.scratch)
