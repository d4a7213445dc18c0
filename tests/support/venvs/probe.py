"""A safe-pip whose `cli` reports the state of the started process in place of running pip.

The package is the real one but for `cli.py`; it is made once and linked into environments, so that its bytecode is too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safe_pip
from tests.support.venvs.template import clean_environment
from tests.support.wheels.tiny_pip import install_tiny_pip

CLI = """
import json, os, sys


def main(argv):
    from safe_pip.errors import SafePipError
    from safe_pip.launch import frozen_pip, isolation

    if os.environ.get("PROBE") == "error":
        try:
            if frozen_pip.freeze(isolation.environment_path) is None:
                print(None)
                return 0
        except SafePipError as error:
            print(f"safe-pip: error: {error}", file=sys.stderr)
            return error.exit_status
    copy = frozen_pip.freeze(isolation.environment_path)
    sys.path.append(str(copy.path))
    import asyncio, csv, email, json, sqlite3, types, wave, xml.dom, zipfile  # whatever a trap may be called
    import pip, pip._internal.cli
    try:
        import filelock
    except ImportError:
        pass
    start = isolation.start
    print(json.dumps({
        "argv": argv,
        "argv0": sys.argv[0],
        "path": sys.path,
        "environment_path": isolation.environment_path,
        "identity": isolation.package_identity,
        "finders": [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path],
        "hooks": [f"{hook.__module__}.{hook.__qualname__}" for hook in sys.path_hooks],
        "caches": list(sys.path_importer_cache),
        "modules": {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())},
        "copy": [str(copy.path), str(copy.origin), copy.version],
        "start": [start.executable, start.argv, start.directory, sorted(start.environ)],
    }))
    return 0
"""


@dataclass(frozen=True)
class Probe:
    """The package with the probing `cli`, and a home for its processes."""

    package: Path
    home: Path
    cache: Path
    variables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, scratch: Path) -> Probe:
        package = scratch / "package" / "safe_pip"
        ignore = shutil.ignore_patterns("__pycache__", "_vendor", "pip_seams", "commands")
        shutil.copytree(Path(safe_pip.__file__).parent, package, ignore=ignore)
        (package / "cli.py").write_text(CLI)
        return cls(package, scratch / "home", scratch / "cache")

    def run(self, command: list[str | Path], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = clean_environment(self.home, cache=self.cache, **variables)
        stdin = subprocess.DEVNULL
        return subprocess.run(
            [str(word) for word in command],
            env=environment, cwd=directory, stdin=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def report(self, command: list[str | Path], directory: Path, **variables: str) -> dict[str, Any]:
        """Run a command that starts the probe; on return its report."""
        done = self.run(command, directory, **variables)
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


@dataclass(frozen=True)
class ProbeVenv:
    """A virtual environment with the probe, a console script for it and a pip of five files."""

    path: Path

    @classmethod
    def make(cls, path: Path, probe: Probe, *, system_site_packages: bool = False) -> ProbeVenv:
        venv.EnvBuilder(symlinks=True, system_site_packages=system_site_packages).create(path)
        installed = cls(path)
        # Not through the virtual environment that runs the tests, as older versions of `venv` have it.
        installed.python.unlink()
        installed.python.symlink_to(os.path.realpath(sys.executable))
        (installed.purelib / "safe_pip").symlink_to(probe.package)
        install_tiny_pip(installed.purelib)
        installed.script.write_text(
            f"#!{installed.python}\nimport sys\nfrom safe_pip.__main__ import main\nsys.exit(main())\n"
        )
        installed.script.chmod(0o755)
        return installed

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def script(self) -> Path:
        return self.path / "bin" / "safe-pip"

    @property
    def purelib(self) -> Path:
        variables = {"base": str(self.path), "platbase": str(self.path)}
        return Path(sysconfig.get_path("purelib", "posix_prefix", vars=variables))

    @property
    def runner(self) -> Path:
        return self.purelib / "safe_pip" / "_runner.py"

    def identity(self) -> list[int]:
        status = os.stat(self.purelib / "safe_pip")
        return [status.st_dev, status.st_ino]
