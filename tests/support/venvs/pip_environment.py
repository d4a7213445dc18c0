"""An environment with safe-pip, an index of tiny distributions, and a build that waits for the test."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.venvs.template import Venv, clean_environment, offline
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.tiny import Project

WAITING_BACKEND = """
import os
from _copying import *
from _copying import build_wheel as copy

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open({log!r}, "a") as log:
        log.write("built ")
    if not os.path.exists({passed!r}):
        with open({ready!r}, "w"):
            pass
        with open({go!r}):
            pass
        open({passed!r}, "w").close()
    return copy(directory)

build_editable = build_wheel
"""

FORKING = """
import json, os, sys, tempfile, traceback
sys.argv[:] = sys.argv[1:]
sys.path[:] = sys.path[1:]
import pip._internal.cli.main as module
from pip._internal.commands import check, freeze, inspect, install, list, show

main = getattr(module, "cli", None) or module.main
results = []
for args in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = 1
            try:
                status = main(args) or 0
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        results.append([status, *texts])
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Waiting:
    """A source tree whose first build reports that it has begun, and waits until it is released."""

    tree: Path
    ready: Path
    go: Path

    def builds(self) -> int:
        """How often it was built."""
        return (self.tree / "builds.log").read_text().count("built")

    def begun(self, process: subprocess.Popen[str]) -> None:
        """Return when the build that `process` runs waits; raises if the process ends before."""
        reader = os.open(self.ready, os.O_RDONLY | os.O_NONBLOCK)
        try:
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            while not poll.poll(100):  # POLLHUP: a writer was there (poll(2))
                if process.poll() is not None:
                    raise AssertionError(f"it ended before it built: {process.communicate()}")
        finally:
            os.close(reader)

    def release(self) -> None:
        """Let the build go on."""
        with open(self.go, "w"):
            pass


@dataclass
class PipEnvironment:
    """A venv with pip and safe-pip, in which a test installs tiny distributions."""

    workspace: Workspace
    directory: Path
    venv: Venv
    more: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, workspace: Workspace, directory: Path) -> PipEnvironment:
        """Make the environment; nothing but pip and safe-pip is in it."""
        (directory / "index").mkdir(parents=True)
        return cls(workspace, directory, workspace.maker.make(directory / "venv", workspace.base))

    def copy(self, directory: Path) -> PipEnvironment:
        """Make another environment in `directory` with what is installed in this one, and with its index."""
        (directory / "index").mkdir(parents=True)
        for wheel in self.index.iterdir():
            (directory / "index" / wheel.name).hardlink_to(wheel)
        return PipEnvironment(self.workspace, directory, self.workspace.maker.copy(self.venv, directory / "venv"))

    def activate(self) -> None:
        """Put the environment's programs on PATH, as activating it in a shell does."""
        self.more["PATH"] = os.pathsep.join([str(self.venv.scripts), os.environ["PATH"]])
        self.more["VIRTUAL_ENV"] = str(self.venv.path)

    @property
    def index(self) -> Path:
        return self.directory / "index"

    @property
    def site(self) -> Path:
        return self.venv.purelib

    @property
    def variables(self) -> dict[str, str]:
        cache = self.workspace.scratch / "cache"
        links = offline(self.workspace.wheelhouse.path, self.index)
        variables = clean_environment(self.directory / "home", cache=cache, **links) | self.more
        del variables["PIP_NO_INPUT"]
        return variables

    def add_to_index(self, *projects: Project) -> None:
        """Put wheels into the index."""
        for project in projects:
            project.write_wheel(self.index)

    def command(self, *args: str | Path) -> list[str]:
        """The command line of safe-pip in this environment."""
        return [str(self.venv.scripts / "safe-pip"), *map(str, args)]

    def run(
        self, *args: str | Path, given: str | None = None, status: int | None = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run safe-pip to its end; it must exit with `status`, unless that is None."""
        done = subprocess.run(
            self.command(*args),
            input=given or "",
            env=self.variables | more,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        told = f"{' '.join(map(str, args))} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert status is None or done.returncode == status, told
        assert "Traceback" not in done.stderr + done.stdout, told
        return done

    def start(self, *args: str | Path, in_a_session_of_its_own: bool = False, **more: str) -> subprocess.Popen[str]:
        """Start safe-pip, with a pipe to and from it."""
        return subprocess.Popen(
            self.command(*args),
            env=self.variables | more,
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=in_a_session_of_its_own,
        )

    def plain(self, *args: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run plain pip on the same environment."""
        command = [str(self.venv.python), "-m", "pip", *map(str, args)]
        done = subprocess.run(
            command, env=self.variables, cwd=self.directory, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done

    def read_with_plain_pip(self, *commands: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
        """Run commands of plain pip, in children of one process that has imported pip; none may change anything."""
        script = str(self.venv.scripts / "pip")
        done = subprocess.run(
            [self.venv.python, "-c", FORKING, script],
            input=json.dumps(commands), env=self.variables, cwd=self.directory, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [
            subprocess.CompletedProcess(args, *each)
            for args, each in zip(commands, json.loads(done.stdout), strict=True)
        ]

    def installed(self) -> dict[str, str]:
        """The projects in the environment and their versions, without pip and safe-pip."""
        found = [info.name.removesuffix(".dist-info").split("-") for info in self.site.glob("*.dist-info")]
        return {name: version for name, version in found if name not in ("pip", "parallel_safe_pip")}

    def waiting(self, project: Project) -> Waiting:
        """A source tree of `project` whose build waits."""
        tree = project.write_source_tree(self.directory / f"waiting-{project.name}")
        ready, go, passed = (tree / name for name in ("ready.fifo", "go.fifo", "passed"))
        os.mkfifo(ready)
        os.mkfifo(go)
        (tree / "_backend.py").rename(tree / "_copying.py")
        log = str(tree / "builds.log")
        backend = WAITING_BACKEND.format(ready=str(ready), go=str(go), passed=str(passed), log=log)
        (tree / "_backend.py").write_text(backend)
        return Waiting(tree, ready, go)


@contextmanager
def ended(process: subprocess.Popen[str], given: str | None = None):
    """Wait for a process and yield (status, stdout, stderr); a process that does not end is killed."""
    try:
        out, err = process.communicate(given, timeout=120)
        yield process.returncode, out, err
    finally:
        process.kill()
        process.wait()


def names(lines: Sequence[str]) -> list[str]:
    """The first words of `lines`."""
    return [line.split()[0] for line in lines]
