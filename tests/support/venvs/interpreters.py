"""Interpreters of other versions than the one that runs the tests, if this machine has any."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.venvs.template import clean_environment

OLDEST, NEWEST = (3, 10), (3, 15)


def another() -> str:
    """An interpreter of another supported version; skips the test if there is none."""
    found = _another()
    if found is None:
        pytest.skip("there is no other interpreter on PATH or among those of pyenv")
    return found


@functools.cache
def _another() -> str | None:
    question = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        version = f"3.{minor}"
        if (3, minor) == sys.version_info[:2]:
            continue
        for path in _named(version):
            # What is on PATH may be a name that only says that this version is not to be used here.
            done = subprocess.run([path, "-c", question], capture_output=True, text=True, cwd="/")
            if done.stdout.strip() == version:
                return path
    return None


def _named(version: str) -> Iterator[str]:
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    yield from sorted(glob.glob(f"{glob.escape(root)}/versions/{version}.*/bin/python{version}"))
    found = shutil.which(f"python{version}")
    if found is not None:
        yield found


def make_environment(interpreter: str, path: Path) -> Path:
    """Make an environment without pip for this interpreter; on return its directory of packages."""
    command = [interpreter, "-m", "venv", "--without-pip", str(path)]
    subprocess.run(command, env=clean_environment(path.parent / "home"), check=True)
    (site,) = path.glob("lib/python3*/site-packages")
    return site
