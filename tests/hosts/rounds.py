"""Commits on one host that end badly, and what another host finds: for the tests and for `benchmarks/hosts.py`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safe_pip
from tests.hosts.bed import VOLUME, Bed, Running
from tests.support.wheels.tiny import Project

STOPPED = Path(__file__).with_name("stopped.py")
PROJECTS, VERSIONS, FILES = ("one", "two", "three"), ("1", "2"), 20
CHECK = """
import sys
from pathlib import Path
from tests.support.venvs import checker
from tests.support.venvs.template import Venv
path = Path(sys.argv[1])
venv = Venv(path, frozenset())
print(*sorted(f"{name}=={version}" for name, version in checker.installed(venv).items()))
found = [str(each) for each in checker.check_files(venv) if "/site-packages/" in str(each)]
sys.exit("\\n".join(found) or 0)
"""


def make_index(hosts: Bed) -> None:
    """Wheels of `PROJECTS`, of which each file tells its version."""
    index = hosts.directory / "index"
    index.mkdir()
    for name in PROJECTS:
        for version in VERSIONS:
            modules = {f"{name}/m{number}.py": f"version = {version}\n" for number in range(FILES)}
            files = {f"{name}/__init__.py": f"version = {version}\n", **modules}
            Project(name, version, files=files).write_wheel(index)


def installing(hosts: Bed, *pins: str) -> list[str]:
    return ["install", "--no-index", "--find-links", str(hosts.directory / "index"), *pins]


def check(hosts: Bed, venv: Path) -> str:
    """What is installed, the same on all hosts, with no fault."""
    found = {hosts.run(host, sys.executable, "-c", CHECK, venv) for host in hosts.names[:2]}
    assert len(found) == 1, found
    return found.pop()


class Seen(NamedTuple):
    """What a round ended with: the exit status and words of the stopped command, and what is installed."""

    status: int
    words: str
    is_committed: bool
    had_to_wait: bool


class Rounds:
    """One environment, and changes of it that are stopped before a change that they make to the disk."""

    def __init__(self, hosts: Bed, name: str, seed: int = 1) -> None:
        self.hosts, self.venv, self.chances = hosts, VOLUME / name, random.Random(seed)
        hosts.pip("a", "venv", self.venv, "--without-pip")
        hosts.pip("a", "--python", self.venv, *installing(hosts, "one==1"))
        self.installed = {"one": "1"}

    def killed(self, at: int, host: str, other: str) -> Seen:
        """Kill a commit on `host` before its change number `at`; `other` reads at once what is installed then."""
        process, after = self._start(host, at)
        words = process.communicate(timeout=120)[1]
        return self._seen(process.returncode, words, other, after)

    def cut(self, at: int, host: str, other: str) -> Seen:
        """Cut the link of `host` before the change number `at` of its commit; mend it when `other` has gone on."""
        process, after = self._start(host, at, PAUSES="1")
        assert process.next_line(process.stderr, "stopped before")
        self.hosts.script("cut", host)
        try:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            seen = self._seen(0, "", other, after)
        finally:
            self.hosts.script("mend", host)
        words = process.communicate(timeout=120)[1]
        self.hosts.run(host, "bash", "-c", f"until [ -e {self.venv}/bin/python ]; do sleep 0.1; done")
        found, _ = self._listed(host)
        assert found == self.installed, f"the late holder changed something\n{words}"
        return seen._replace(status=process.returncode, words=words)

    def finish(self, host: str = "b") -> None:
        """Make one more change, which deletes what the ended ones left, and check what is installed."""
        pin = "three==1" if host == "b" else "three==2"
        self.hosts.pip(host, "--python", self.venv, *installing(self.hosts, pin))
        check(self.hosts, self.venv)

    def _start(self, host: str, at: int, **variables: str) -> tuple[Running, Mapping[str, str]]:
        after = {name: "2" if self.installed.get(name, "2") == "1" else "1" for name in ("one", "two")}
        command = installing(self.hosts, *(f"{name}=={version}" for name, version in after.items()))
        if "two" in self.installed and self.chances.random() < 0.25:
            command, after = ["uninstall", "-y", "two"], {"one": self.installed["one"]}
        # The environment's own Python: with `--python` a child process would do the work.
        start = [self.venv / "bin/python", STOPPED, *command]
        path = str(Path(safe_pip.__file__).parents[1])
        return self.hosts.start(host, *start, variables={"AT": str(at), "PYTHONPATH": path, **variables}), after

    def _seen(self, status: int, words: str, other: str, after: Mapping[str, str]) -> Seen:
        before = self.installed
        found, said = self._listed(other)
        assert found in (before, after), f"{found} is neither {before} nor {after}"
        self.installed = found
        return Seen(status, words, found == after, "waiting" in said)

    def _listed(self, host: str) -> tuple[dict[str, str], str]:
        command = [sys.executable, "-m", "safe_pip", "--python", self.venv, "list", "--format", "json"]
        process = self.hosts.start(host, *command)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"status {process.returncode} on {host}\n{errors}"
        return {each["name"]: each["version"] for each in json.loads(output)}, errors
