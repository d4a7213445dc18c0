"""Hosts use one environment on a GlusterFS volume."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import rounds
from tests.hosts.bed import VOLUME, Bed, bed, obstacle
from tests.hosts.rounds import Rounds, check

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle())]

HOSTS = "abcdefgh"
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
    with bed(tmp_path_factory.mktemp("hosts"), HOSTS) as made:
        rounds.make_index(made)
        yield made


@pytest.fixture
def venv(hosts: Bed, request: pytest.FixtureRequest) -> Path:
    path = VOLUME / request.node.name.replace("[", "-").rstrip("]")
    hosts.pip("a", "venv", path, "--without-pip")
    return path


def installing(hosts: Bed, venv: Path, *pins: str) -> list[str | Path]:
    return ["--python", venv, *rounds.installing(hosts, *pins)]


def test_commands_on_two_hosts_leave_a_sound_environment(hosts: Bed, venv: Path, seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(2):
        running = []
        for host in ("a", "b") * 4:
            pins = [f"{name}=={chosen.choice('12')}" for name in chosen.sample(rounds.PROJECTS, 2)]
            command = installing(hosts, venv, *pins)
            if (draw := chosen.random()) < 0.5:
                command = ["--python", venv, "list"] if draw < 0.2 else [*command[:2], "uninstall", "-y", "one", "two"]
            running.append(hosts.start(host, sys.executable, "-m", "safe_pip", *command))
        for each in running:
            each.ended()
        check(hosts, venv)


@pytest.mark.parametrize("number", [2, 4, 8])
def test_hosts_that_install_one_set_have_it_once(hosts: Bed, venv: Path, number: int) -> None:
    pins = [f"{name}==1" for name in rounds.PROJECTS]
    command = [sys.executable, "-m", "safe_pip", *installing(hosts, venv, *pins)]
    for each in [hosts.start(host, *command) for host in HOSTS[:number]]:
        each.ended()
    assert check(hosts, venv).split() == sorted(pins)


def test_a_program_below_run_sees_one_version_while_another_host_upgrades(hosts: Bed, venv: Path) -> None:
    hosts.pip("a", *installing(hosts, venv, "one==1"))
    reading = ["-m", "safe_pip", "run", "--shared", "--env", venv, "--", sys.executable, "-c", READ, venv]
    for old, new, host, other in ("12ab", "21ba"):
        reader = hosts.start(host, sys.executable, *reading)
        assert reader.next_line(reader.stdout, "reading")
        upgrade = hosts.start(other, sys.executable, "-m", "safe_pip", *installing(hosts, venv, f"one=={new}"))
        waits = upgrade.next_line(upgrade.stderr, "waiting for the exclusive lock")
        assert reader.ended(given="\n").strip() == f"version = {old}"
        assert f"on host-{host})" in waits
        upgrade.ended()
    assert check(hosts, venv).split() == ["one==1"]


def test_what_is_killed_on_one_host_is_undone_or_finished_by_the_other_at_once(hosts: Bed, seed: int) -> None:
    made = Rounds(hosts, "killed", seed)
    seen = [made.killed(at, *("ab" if at % 4 else "ba")) for at in range(0, 20, 2)]
    assert not any(each.had_to_wait for each in seen)
    assert {each.is_committed for each in seen} == {True, False}
    made.finish()


def test_a_host_that_is_cut_off_in_its_commit_changes_nothing_when_it_is_back(hosts: Bed, seed: int) -> None:
    made = Rounds(hosts, "cut", seed)
    seen = made.cut(2, "a", "b")
    assert not seen.is_committed
    assert (seen.status, "Nothing was changed" in seen.words) == (75, True), seen
    made.finish("b")
    made.finish("a")


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
