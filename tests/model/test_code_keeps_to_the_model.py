"""The code takes its locks in the order that was searched."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from safe_pip.environment.environment import Environment, Target
from safe_pip.locking import flock as lock
from safe_pip.locking import inheritance, state_directory
from safe_pip.locking import order as request
from safe_pip.locking.waiting import Wait

from .machine import Nodes, Scenario
from .model import EXCLUSIVE, GATED, LOCK_ORDER, Rules
from .scenarios import does, wants
from .steps import Take

pytestmark = pytest.mark.skipif(not lock.supported, reason="no flock here")

Acquired = tuple[str, str, bool]
"""Rank, name, exclusive."""


class SilentReporter:
    def waiting(self, event: Wait) -> None:
        raise AssertionError("no process is in the way")

    def granted(self, event: Wait, seconds: float) -> None:
        raise AssertionError("no process was in the way")


def acquired_by_model(scenario: Scenario) -> list[Acquired]:
    """What the only process of a scenario takes for its commit, in order."""
    machine = Nodes(scenario, Rules())
    world = machine.beginning()
    taken: list[Acquired] = []
    while successors := list(machine.successors(world)):
        (_, _, after), *others = successors
        assert not others, "a process that is alone has no choice"
        step = machine.nodes[world.at[0]].step
        if isinstance(step, Take):
            taken.append((step.lock.rank, step.lock.name, step.mode is EXCLUSIVE))
        world = after
    snapshot = len(scenario.trees)
    return taken[snapshot:]


def test_the_ranks_of_the_code_are_those_of_the_model() -> None:
    assert tuple(rank.name.lower() for rank in sorted(request.Rank)) == LOCK_ORDER


def test_locks_with_a_gate_are_those_of_the_model(tmp_path: Path) -> None:
    state_directory.make(tmp_path)
    (tmp_path / "uv").touch()
    (tmp_path / "METADATA").touch()
    requests = [
        request.environment_lock(tmp_path, exclusive=True),
        request.keep_lock(tmp_path, exclusive=True),
        request.distribution_lock("a", str(tmp_path), exclusive=True),
        request.commit_lock(tmp_path, exclusive=True),
        request.mutex(tmp_path),
        request.shared_directory(tmp_path),
        request.uv_lock(tmp_path / "uv"),
    ]
    assert tuple(r.rank.name.lower() for r in requests if r.gate is not None) == GATED


@pytest.mark.parametrize("replaces", [True, False])
def test_a_real_change_takes_what_the_model_takes(
    replaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(inheritance.VARIABLE, raising=False)
    trees = [tmp_path / name / "site-packages" for name in ("one", "two", "three")]
    for tree in trees:
        tree.mkdir(parents=True)
        state_directory.make(tree)
    scripts, uv = tmp_path / "scripts", tmp_path / "uv.lock"
    scripts.mkdir()
    uv.touch()

    names = {scripts: ("directory", "s"), uv: ("uv", "A")}
    order: dict[str, list[Path]] = {}
    for rank, path in (("environment", "."), ("commit", ".safe-pip/commit")):
        order[rank] = sorted(trees, key=lambda t: ((t / path).stat().st_dev, (t / path).stat().st_ino))
    by_name = dict(zip("ABC", order["environment"], strict=True))
    for name, tree in by_name.items():
        names |= {tree: ("environment", name), tree / ".safe-pip/commit": ("commit", name)}
        names |= {tree / f".safe-pip/{rank}.gate": (f"{rank}.gate", name) for rank in GATED}
        info = tree / "a-1.dist-info"
        info.mkdir()
        (info / "METADATA").touch()
        names |= {info: ("distribution", f"{name}.a"), info / "METADATA": ("distribution.gate", f"{name}.a")}
    infos = [tree / "a-1.dist-info" for tree in by_name.values()]

    recorded: list[Acquired] = []
    flock: Any = lock._flock

    def record(descriptor: lock.Descriptor, *, exclusive: bool, blocks: bool) -> None:
        recorded.append((*names[descriptor.path], exclusive))
        flock(descriptor, exclusive=exclusive, blocks=blocks)

    environment = Environment([str(t) for t in trees], waiting=SilentReporter(), timeout=0)
    target = Target((by_name["B"], by_name["A"]), directories=(scripts,), uv_lock=uv)
    shutil.rmtree(by_name["C"] / "a-1.dist-info")
    monkeypatch.setattr(lock, "_flock", record)
    with environment.replacing(target, projects={"a"}) if replaces else environment.adding(target):
        monkeypatch.setattr(lock, "_flock", flock)

    old = 1 if replaces else 0
    goal = wants(A_a=2, B_a=2, s_x=1)
    model = acquired_by_model(
        Scenario((does(goal, trees=("A", "B", "C"), uv="A"),), ("A.a", "B.a", "s.x"), (old, old, 0))
    )
    # The inodes of the lock files may lie in another order than those of their trees.
    commits = [names[t / ".safe-pip/commit"][1] for t in order["commit"]]
    by_inode = [names[info][1] for info in sorted(filter(Path.exists, infos), key=lambda each: each.stat().st_ino)]
    places = {"commit": commits, "distribution": by_inode}
    expected = sorted(
        model, key=lambda a: (LOCK_ORDER.index(a[0]), places[a[0]].index(a[1]) if a[0] in places else 0, a[1])
    )
    assert [r for r, _, _ in model] == [r for r, _, _ in expected]
    assert [taken for taken in recorded if not taken[0].endswith(".gate")] == expected
    assert recorded[0][0].endswith(".gate")
    for before, taken in itertools.pairwise(recorded):
        if taken[0] in GATED:
            assert before == (f"{taken[0]}.gate", taken[1], True), "a lock behind its gate, with nothing between"
