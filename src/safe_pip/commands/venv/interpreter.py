"""Which Python a user means, and what an interpreter says of itself when it is asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safe_pip.errors import UnusableEnvironment

# For any Python 3 to answer.
_QUESTION = """
import json, os, sys, sysconfig
print(json.dumps([
    sys.implementation.name, sys.version_info[:3], getattr(sys, "abiflags", ""),
    os.path.realpath(sys.base_prefix), sys.prefix, sysconfig.get_path("purelib"),
]))
"""
_VERSION = re.compile(r"(?:python)?(\d+)(?:\.(\d+))?(?:\.(\d+))?(t?)")


@dataclass(frozen=True)
class Interpreter:
    """One interpreter; `base` is the prefix of the installation that it belongs to, with no symbolic link in it."""

    executable: str
    implementation: str
    version: tuple[int, ...]
    abi: str
    base: str
    prefix: str
    purelib: str

    @classmethod
    def ask(cls, executable: str | os.PathLike[str]) -> Interpreter:
        """Start it and ask; raises `UnusableEnvironment` if it gives no answer."""
        command = [os.fspath(executable), "-I", "-c", _QUESTION]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            name, version, *rest = json.loads(done.stdout)
            return cls(command[0], name, tuple(version), *rest)
        except (OSError, ValueError, TypeError) as error:
            raise UnusableEnvironment(f"`{command[0]}` is not a Python 3 interpreter that runs") from error

    def __str__(self) -> str:
        name = "Python" if self.implementation == "cpython" else self.implementation
        return f"{name} {'.'.join(map(str, self.version))}"


@dataclass(frozen=True)
class Wanted:
    """The Python that a user asked for: by its path, its environment, its name on PATH, or its version."""

    text: str

    @property
    def _version(self) -> re.Match[str] | None:
        return None if os.path.dirname(self.text) else _VERSION.fullmatch(self.text)

    def find(self) -> Interpreter:
        """The interpreter that is meant; raises `UnusableEnvironment` if there is none."""
        version = self._version
        if version is None:
            path = self._path()
            if path is None:
                raise UnusableEnvironment(f"`{self.text}` is neither a Python interpreter nor the name of one on PATH")
            return Interpreter.ask(path)
        major, minor, _, threading = version.groups()
        name = f"python{major}" + (f".{minor}" if minor else "") + threading
        for directory in os.get_exec_path():
            path = shutil.which(name, path=directory)
            with suppress(UnusableEnvironment):  # a version manager's, for what is not chosen
                if path is not None and self.is_met_by(found := Interpreter.ask(path)):
                    return found
        raise UnusableEnvironment(f"there is no Python {self.text.removeprefix('python')} on PATH")

    def is_met_by(self, found: Interpreter) -> bool:
        """Whether an environment of this interpreter is what was asked for; of a path that is missing, none is."""
        version = self._version
        if version is not None:
            *numbers, threading = version.groups()
            wanted = tuple(int(number) for number in numbers if number is not None)
            return found.version[: len(wanted)] == wanted and ("t" in found.abi) == bool(threading)
        other = self.find()
        return (other.implementation, other.version, other.abi, other.base) == (
            found.implementation,
            found.version,
            found.abi,
            found.base,
        )

    def _path(self) -> str | None:
        if os.path.isdir(self.text):
            return str(python_of(Path(self.text)))
        if os.path.dirname(self.text):
            return os.path.abspath(self.text)
        return shutil.which(self.text)


def scripts_of(prefix: Path) -> Path:
    """The directory of the scripts of a virtual environment (PEP 405)."""
    return prefix / ("Scripts" if sys.platform == "win32" else "bin")


def python_of(prefix: Path) -> Path:
    """The interpreter of a virtual environment."""
    return scripts_of(prefix) / ("python.exe" if sys.platform == "win32" else "python")
