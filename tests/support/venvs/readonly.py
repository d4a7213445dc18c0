"""An environment of root's that another user may only read."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.template import clean_environment, offline

NOBODY = 65534


class ReadOnlyEnvironment:
    """An environment of root, in a directory that every user can reach, with what is installed in `env`."""

    def __init__(self, env: PipEnvironment, directory: Path) -> None:
        self.directory = directory
        self.index = directory / "index"
        shutil.copytree(env.index, self.index)
        self.home = directory / "home"
        self.home.mkdir()
        os.chown(self.home, NOBODY, NOBODY)
        environment = directory / "venv"
        subprocess.run([self._interpreter(), "-m", "venv", "--without-pip", environment], check=True)
        self.python = environment / "bin" / "python"
        (self.site,) = environment.glob("lib/python3*/site-packages")
        shutil.copytree(env.site, self.site, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".safe-pip"))

    def _interpreter(self) -> str:
        for found in (os.path.realpath(sys.executable), "/usr/bin/python3"):
            script = "import sys; sys.exit(sys.version_info < (3, 10))"
            with contextlib.suppress(OSError):
                if subprocess.run([found, "-c", script], user=NOBODY, cwd="/", capture_output=True).returncode == 0:
                    return found
        pytest.skip("no interpreter here that another user can run")

    def run(
        self, *args: str | Path, user: int = NOBODY, program: tuple[str | Path, ...] = ("-m", "safe_pip"), **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run safe-pip, or another `program` of this interpreter, as `user`."""
        return subprocess.run(
            [self.python, *program, *args],
            env=clean_environment(self.home, **offline(self.index)) | more,
            cwd="/",
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
