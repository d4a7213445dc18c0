"""Two hosts use one environment on a GlusterFS volume."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import safe_pip
from tests.hosts.bed import VOLUME, Bed, bed, obstacle
from tests.support.wheels.tiny import Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle())]

HOSTS = ("a", "b")
FILES = 20
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
READ = """
import glob, sys
found = set()
for number, path in enumerate(sorted(glob.glob(sys.argv[1] + "/lib/python*/site-packages/one/*.py"))):
    if number == 3:
        print("reading", flush=True)
        sys.stdin.readline()
    found.add(open(path).read().strip())
print(*sorted(found))
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with bed(tmp_path_factory.mktemp("hosts")) as made:
        index = made.directory / "index"
        index.mkdir()
        for name in ("one", "two", "three"):
            for version in ("1", "2"):
                modules = {f"{name}/m{number}.py": f"version = {version}\n" for number in range(FILES)}
                Project(name, version, files={f"{name}/__init__.py": f"version = {version}\n", **modules}).write_wheel(
                    index
                )
        yield made


@pytest.fixture
def venv(hosts: Bed, request: pytest.FixtureRequest) -> Path:
    path = VOLUME / request.node.name.partition("[")[0]
    hosts.pip("a", "venv", path, "--without-pip")
    return path


def installing(hosts: Bed, venv: Path, *names: str) -> list[str | Path]:
    return ["--python", venv, "install", "--no-index", "--find-links", hosts.directory / "index", *names]


def check(hosts: Bed, venv: Path) -> str:
    """What is installed, the same on both hosts, with no fault."""
    one, other = (hosts.run(host, sys.executable, "-c", CHECK, venv) for host in HOSTS)
    assert one == other
    return one


def test_commands_on_two_hosts_leave_a_sound_environment(hosts: Bed, venv: Path, seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(2):
        running = []
        for host in HOSTS * 3:
            pins = [f"{name}=={chosen.choice('12')}" for name in chosen.sample(["one", "two", "three"], 2)]
            command = installing(hosts, venv, *pins)
            if chosen.random() < 0.3:
                command = ["--python", venv, "uninstall", "-y", chosen.choice(["one", "two"])]
            running.append(hosts.start(host, sys.executable, "-m", "safe_pip", *command))
        for each in running:
            each.ended()
        check(hosts, venv)


def test_a_program_below_run_sees_one_version_while_another_host_upgrades(hosts: Bed, venv: Path) -> None:
    hosts.pip("a", *installing(hosts, venv, "one==1"))
    reading = ["-m", "safe_pip", "run", "--shared", "--env", venv, "--", sys.executable, "-c", READ, venv]
    for old, new in ("12", "21"):
        reader = hosts.start("a", sys.executable, *reading)
        assert reader.next_line(reader.stdout, "reading")
        upgrade = hosts.start("b", sys.executable, "-m", "safe_pip", *installing(hosts, venv, f"one=={new}"))
        waits = upgrade.next_line(upgrade.stderr, "waiting for the exclusive lock")
        assert reader.ended(given="\n").strip() == f"version = {old}"
        assert "on host-a)" in waits
        upgrade.ended()
    assert check(hosts, venv).split() == ["one==1"]


def test_what_is_killed_on_one_host_is_undone_by_the_other_at_once(hosts: Bed, venv: Path) -> None:
    # Started with the environment's own Python: with `--python` a child process would do the work.
    killed = [venv / "bin/python", Path(__file__).with_name("killed.py")]
    path = str(Path(safe_pip.__file__).parents[1])
    before, after = {"one": "1"}, {"one": "2", "two": "1"}
    hosts.pip("a", *installing(hosts, venv, "one==1"))
    seen = []
    for number in (1, 7, 12, 17):  # the commit point is among them
        command = [*killed, *installing(hosts, venv, "one==2", "two==1")[2:]]
        process = hosts.start("a", *command, variables={"AT": str(number), "PYTHONPATH": path})
        process.ended(137, -9)
        listed = json.loads(hosts.pip("b", "--python", venv, "list", "--format", "json"))
        seen.append({each["name"]: each["version"] for each in listed})
        assert seen[-1] in (before, after), f"killed at change {number}"
        if seen[-1] == after:
            hosts.pip("b", *installing(hosts, venv, "one==1"))
            hosts.pip("b", "--python", venv, "uninstall", "-y", "two")
        check(hosts, venv)
    assert before in seen
    assert after in seen


def probe(hosts: Bed, status: int) -> str:
    other = hosts.start("a", sys.executable, "-m", "safe_pip", "doctor", "--filesystem", VOLUME)
    said = hosts.pip("b", "doctor", "--filesystem", VOLUME, status=status)
    both = (each.partition("safe-pip: ")[0] for each in (said, other.ended(status)))
    assert len({*both}) == 1
    return said


def test_a_probe_finds_what_the_volume_has_to_have_set(hosts: Bed, venv: Path) -> None:
    assert "Run `safe-pip doctor --filesystem" in hosts.pip("a", "--python", venv, "list")
    assert "doctor" not in hosts.pip("b", "--python", venv, "list")
    for prefetch, status in (("on", 1), ("off", 0)):
        hosts.run("srv", "gluster", "--mode=script", "volume", "set", "bed", "performance.stat-prefetch", prefetch)
        said = probe(hosts, status)
        assert ("performance.stat-prefetch off" in said) == bool(status)
        listed = hosts.pip("b", "--python", venv, "list", status=78 if status else 0)
        assert ("the other one sees after a listing" in listed) == bool(status)
    assert "between host-a and host-b passed" in hosts.pip("a", "status", "--env", venv)
