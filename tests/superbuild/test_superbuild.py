"""The superbuild of docs/how-to/superbuild.md with twenty packages: made new, then half of it again, while it is used.

If SAFE_PIP_TEST_COMPARE is set, plain pip and `cp` do the same afterwards. What they do is printed and not judged.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.superbuild import sources
from tests.support.pages import Page
from tests.support.venvs.checker import check_files, check_imports, installed
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.template import Venv
from tests.support.venvs.workspace import Workspace

MISSING = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),  # a minute where nothing else runs, ten with a dozen other programs
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: `tox -e superbuild` has them"),
]
PAGE = Page.read("superbuild")

USE = """\
import importlib, importlib.metadata, json, sys
found = {}
for module, name in json.loads(sys.argv[1]).items():
    package = importlib.import_module(module)
    versions = {package.VERSION} | {importlib.import_module(f"{module}.{each}").VERSION for each in ("one", "two")}
    found[name] = [*sorted(versions), importlib.metadata.version(name)] if sys.argv[2] == "under run" else ["1"]
mixed = {name: versions for name, versions in found.items() if len(set(versions)) > 1}
sys.exit(f"mixed: {mixed}" if mixed else 0)
"""
ASK = """\
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    package = importlib.import_module(name)
    native = package.native.version() if hasattr(package, "native") else None
    found[name] = [importlib.import_module(f"{name}.built_with").USES, native]
print(json.dumps(found))
"""

# In place of safe-pip: what a superbuild does without it.
PLAIN = """\
#!/bin/sh
case $1 in
    venv) exec '{real}' "$@" ;;
    merge) cp -Rp "$2/." "$4" && echo '{{"entries": {{}}}}' > "$6" ;;
    run) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
    --python) python=$2/bin/python; shift 2; exec "$python" -m pip "$@" ;;
esac
"""


@dataclass
class Superbuild:
    """A source tree with the page's files, its build, and what went wrong for its users."""

    env: PipEnvironment
    directory: Path
    tool: Path
    errors: list[str] = field(default_factory=list)
    actions: int = 0

    @classmethod
    def begin(cls, env: PipEnvironment, directory: Path, tool: Path) -> Superbuild:
        """Write the sources in their first versions, configure, and make the empty prefix."""
        PAGE.save(directory)
        sources.write(directory)
        build = cls(env, directory, tool)
        status, output = build.shell(PAGE.command("cmake -S").strip() + f" -DSAFE_PIP={tool}")
        assert status == 0, output
        status, output = build.shell("ninja -C build prefix.made")
        assert status == 0, output
        return build

    @property
    def prefix(self) -> Path:
        return self.directory / "build" / "prefix"

    def shell(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-e", "-c", command],
            cwd=self.directory,
            env=self.env.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def ninja(self) -> tuple[int, str]:
        """The page's build command, to its end, with users at work; on return its status and its output."""
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                action = self._list() if self.actions % 3 == 2 else self._import(under_run=self.actions % 3 == 1)
                done = subprocess.run(action, env=self.env.variables, capture_output=True, text=True)
                self.actions += 1
                if done.returncode:
                    self.errors.append(
                        f"{action[-1]}: {done.returncode}: {(done.stdout + done.stderr)[-1000:].strip()}"
                    )

        user = threading.Thread(target=work)
        user.start()
        try:
            return self.shell(PAGE.command("ninja -C"))
        finally:
            over.set()
            user.join()

    def _import(self, *, under_run: bool) -> list[str | Path]:
        """Import what is installed by now."""
        there = {path.stem for path in (self.directory / "build").glob("*.installed")}
        modules = json.dumps({module: name for module, name in sources.MODULES.items() if name in there})
        python: list[str | Path] = [self.prefix / "bin" / "python", "-I", "-c", USE, modules]
        run: list[str | Path] = [self.tool, "run", "--env", self.prefix, "--"] if under_run else []
        return [*run, *python, "under run" if under_run else "alone"]

    def _list(self) -> list[str | Path]:
        return [self.tool, "--python", self.prefix, "list", "--format", "json"]

    def manifests(self) -> dict[str, Any]:
        """The documents of all manifests by name."""
        return {path.name: json.loads(path.read_text()) for path in self.directory.glob("build/manifests/*")}

    def faults(self, own: frozenset[str]) -> list[str]:
        """What is wrong with the prefix; `own` are the files that it had at first."""
        merged = {name for each in self.manifests().values() for name in each["entries"]}
        missing = [f"missing: {name}" for name in merged if not os.path.lexists(self.prefix / name)]
        venv = Venv(self.prefix, own | merged)
        found = [*check_files(venv), *check_imports(venv, self.env.variables)]
        # The pip that `venv` puts there names the interpreter in full.
        return [*(str(each) for each in found if not each.detail.startswith("pip: #!")), *missing]

    def files(self) -> frozenset[str]:
        return frozenset(os.path.relpath(path, self.prefix) for path in self.prefix.rglob("*") if not path.is_dir())

    def versions(self) -> dict[str, str]:
        there = installed(Venv(self.prefix, frozenset()))
        return {name: version for name, version in there.items() if name in sources.NAMES}

    def built_with(self) -> dict[str, Any]:
        """What each package says of what it was built with."""
        command = [self.prefix / "bin/python", "-I", "-c", ASK, json.dumps([*sources.MODULES])]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found


@pytest.fixture
def env(workspace: Workspace, tmp_path: Path) -> PipEnvironment:
    env = PipEnvironment.open(workspace, tmp_path)
    env.activate()
    return env


def failed(output: str) -> list[str]:
    """The outputs of the recipes that ninja says have failed."""
    return re.findall(r"^FAILED: (?:\[code=\d+\] )?(\S+)", output, re.MULTILINE)


def expected(version: str) -> dict[str, str]:
    return {name: version if name in sources.HALF else "1" for name in sources.NAMES}


def processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_half_of_a_superbuild_is_built_again_while_it_is_used_and_recipes_are_killed(env: PipEnvironment) -> None:
    begun = processor_time()
    build = Superbuild.begin(env, env.directory / "safe", env.venv.scripts / "safe-pip")
    own = build.files()
    status, output = build.ninja()
    assert status == 0, output
    assert {f"{name}.installed" for name in sources.NAMES} <= {*re.findall(r"\] Generating (\S+)", output)}
    assert build.versions() == expected("1")
    assert build.faults(own) == []

    sources.write(build.directory, second=True)
    for name, trap in (("pages-1", "interrupt"), ("space-2", "kill")):
        (build.directory / "packages" / name / "trap").write_text(trap)
    status, output = build.ninja()
    assert status != 0, output
    assert not (build.directory / "packages/pages-1/trap").exists(), output
    (build.directory / "packages/space-2/trap").write_text("kill")
    status, output = build.ninja()
    assert status != 0
    assert failed(output) == ["space-2.installed"], output
    status, output = build.ninja()
    assert status == 0, output
    assert build.faults(own) == []
    assert build.versions() == expected("2")
    uses = build.built_with()
    assert {uses[f"pages_{number}"][0]["templates"] for number in "123"} == {"2"}
    if sources.HAS_COMPILER:
        assert [uses["codec"][1], uses["solver"][1]] == [22, 22 + 12], "built again with the new library"
        assert {"vector-2.json", "matrix-1.json"} == build.manifests().keys()
        assert (
            sorted(path.name for path in build.prefix.glob("include/*.h"))
            == "matrix.h matrix1.h vector.h vector2.h".split()
        )
    status, output = build.ninja()
    assert status == 0, output
    assert re.findall(r"\] Generating (\S+)", output) == [], "a library that has not changed has no package built again"
    assert build.errors == []
    assert build.actions > 0
    print(f"safe-pip: {build.actions} actions of users, no error, {processor_time() - begun:.0f} s of processor time")
    if os.environ.get("SAFE_PIP_TEST_COMPARE"):
        print(compare(env))


def compare(env: PipEnvironment) -> str:
    """What plain pip does: what recipes and users met, and what is wrong in the end."""
    begun, tool = processor_time(), env.directory / "plain-pip"
    tool.write_text(PLAIN.format(real=env.venv.scripts / "safe-pip"))
    tool.chmod(0o755)
    build = Superbuild.begin(env, env.directory / "plain", tool)
    own, failures = build.files(), []
    for second in (False, True):
        sources.write(build.directory, second=second)
        if second:
            (build.directory / "packages/space-2/trap").write_text("kill")
        for _ in range(3):
            status, output = build.ninja()
            failures += failed(output)
            if status == 0:
                break
    used = f"{processor_time() - begun:.0f} s of processor time"
    lines = [f"plain pip: {build.actions} actions of users, {len(build.errors)} errors, {used}"]
    # What `cp` put is listed nowhere. Only the header of the first version should be gone.
    put = {path for path in build.files() if path.startswith(("include/", "lib/lib")) and path != "include/vector1.h"}
    lines += [f"failed: {name}" for name in failures] + [f"left: {fault}" for fault in build.faults(own | put)]
    return "\n".join([*lines, *(f"user: {error.splitlines()[-1]}" for error in build.errors)])
