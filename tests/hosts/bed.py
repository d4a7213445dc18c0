"""Several hosts on one machine that share a GlusterFS volume: see `bed.sh`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.support.venvs.template import clean_environment

PROJECT = Path(__file__).resolve().parents[2]
_SCRIPT = Path(__file__).with_name("bed.sh")
VOLUME = Path("/mnt/bed")
_PROGRAMS = ("glusterd", "gluster", "mount.glusterfs", "ip", "nsenter", "unshare", "pgrep")
_SECONDS = 120


def obstacle() -> str:
    """Why there can be no bed on this machine; empty if there can be one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root can make namespaces and mount"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    packages = "apt-get install --no-install-recommends glusterfs-server glusterfs-client fuse3 iproute2 procps"
    return f"{', '.join(missing)} not found: {packages}" if missing else ""


class Bed:
    """Hosts, each with a letter for its name; what is below `VOLUME` is the same on all."""

    def __init__(self, directory: Path, names: str) -> None:
        self.directory, self.names = directory, names
        self._variables = clean_environment(directory / "home")
        self._variables |= {"BED": str(directory / "bed"), "NAME": f"sp{os.getpid() % 100000}"}
        self._variables["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(PROJECT)])

    def script(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [str(_SCRIPT), *args]
        return subprocess.run(
            command, env=self._variables, capture_output=True, text=True, timeout=_SECONDS, check=False
        )

    def start(self, host: str, *command: str | Path, variables: Mapping[str, str] | None = None) -> Running:
        return Running(
            [str(_SCRIPT), "on", host, *map(str, command)],
            env={**self._variables, **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, host: str, *command: str | Path, status: int = 0, **more: str) -> str:
        """Run a command to its end; on return what it printed."""
        return self.start(host, *command, variables=more).ended(status)

    def pip(self, host: str, *args: str | Path, status: int = 0) -> str:
        return self.run(host, sys.executable, "-m", "safe_pip", *args, status=status)


class Running(subprocess.Popen[str]):
    def ended(self, *statuses: int, given: str | None = None) -> str:
        """What it printed, when it has ended with one of these statuses; its input is what is `given`."""
        output, errors = self.communicate(given, timeout=_SECONDS)
        assert self.returncode in (statuses or (0,)), f"status {self.returncode}\n{output}\n{errors}"
        return output + errors

    @staticmethod
    def next_line(stream: IO[str] | None, text: str) -> str:
        """The next line with this text; empty if the program ends without."""
        return next((line for line in stream or () if text in line), "")


@contextmanager
def bed(directory: Path, names: str = "ab") -> Iterator[Bed]:
    made = Bed(directory, names)
    try:
        done = made.script("up", *names)
        assert done.returncode == 0, done.stdout + done.stderr
        yield made
    finally:
        made.script("down")
