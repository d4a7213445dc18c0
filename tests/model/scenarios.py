"""Small sets of processes, each of which needs some of the rules. Versions are numbers; 0 is not installed."""

from collections.abc import Mapping
from typing import Any

from .machine import Process, Scenario
from .model import EXCLUSIVE, SHARED
from .programs import Goal, View, command, forked_child, reader, remover, run, sweeper, uv


def wants(**versions: int) -> Goal:
    """These versions, whatever else is there; `A_b=2` is project b in tree A, `s_x=1` script x in directory s."""
    wanted = {place.replace("_", "."): version for place, version in versions.items()}

    def changes(view: View) -> Mapping[str, int]:
        return {p: v for p, v in wanted.items() if view.get(p) != v}

    in_trees = tuple(place for place in wanted if place[0].isupper())
    return Goal(changes, in_trees, in_trees)


def raises(place: str) -> Goal:
    """One version more than there is."""
    return Goal(lambda view: {place: view[place] + 1}, (place,), (place,))


def unless(place: str, other: str) -> Goal:
    """Version 2 of one project where version 1 of the other is there, else version 1: one was looked at, rejected."""
    return Goal(lambda view: {place: 2 if view[other] == 1 else 1}, (place, other), (place,))


def reads(*places: str, **more: Any) -> Process:
    arguments: dict[str, Any] = {k: more.pop(k) for k in ("forever", "tidies") if k in more}
    return Process("reader", reader, {"places": places or ("A.a", "A.b"), **arguments}, **more)


def does(goal: Goal, name: str = "command", **more: Any) -> Process:
    arguments: dict[str, Any] = {
        k: more.pop(k)
        for k in (
            "builds",
            "uses",
            "mutex",
            "child",
            "forever",
            "attempt",
            "replaces",
            "stages",
            "rounds",
            "dies",
            "known",
            "rejects",
        )
        if k in more
    }
    return Process(name, command, {"goal": goal, **arguments}, **more)


def runs(mode: Any, *children: int, **more: Any) -> Process:
    arguments: dict[str, Any] = {
        k: more.pop(k) for k in ("forked", "forever", "outlives", "lasts", "keeps") if k in more
    }
    return Process(f"run --{mode.value}", run, {"mode": mode, "children": children, **arguments}, **more)


def keeps(*places: str, children: tuple[int, ...] = (), **more: Any) -> Process:
    arguments = {"mode": SHARED, "keeps": places, "children": children, "forever": more.pop("forever", False)}
    return Process("run --keep", run, arguments, **more)


def sweeps(name: str, **more: Any) -> Process:
    return Process("sweeper", sweeper, {"name": name}, **more)


ADD = wants(A_a=1, A_b=1)
UPGRADE = wants(A_a=2, A_b=2)
UPGRADE_B = wants(A_b=2)
BOTH_TREES: dict[str, Any] = {"trees": ("A", "B")}

SCENARIOS = {
    # one tree
    "a reader beside an addition": Scenario((reads(), does(ADD))),
    "a reader beside a replacement": Scenario((reads(), does(UPGRADE)), data=(1, 1)),
    "two readers beside an addition that is killed": Scenario((reads(), reads(), does(ADD, killable=True)), kills=1),
    "a reader beside a replacement that is killed": Scenario(
        (reads(), does(UPGRADE, killable=True)), data=(1, 1), kills=1
    ),
    "an addition and a recovery that are killed": Scenario(
        (reads(killable=True), does(ADD, killable=True), does(ADD, killable=True)), kills=2
    ),
    "two upgrades of one project": Scenario((does(raises("A.a")), does(raises("A.a")), reads()), data=(1, 1)),
    "two additions of one project": Scenario((does(ADD), does(ADD), reads())),
    "three commands of which one is killed": Scenario(
        (does(ADD), does(raises("A.a")), does(wants(A_a=0), killable=True)), data=(0, 1), kills=1
    ),
    "a removal and an addition in one transaction that is killed, beside a reader and a shared holder": Scenario(
        (reads(), runs(SHARED), does(wants(A_a=0, A_b=1), killable=True)), data=(1, 0), kills=1
    ),
    "two installs that rejected a version for each other": Scenario(
        (does(unless("A.a", "A.b")), does(unless("A.b", "A.a")))
    ),
    "a shared holder beside an addition and a replacement": Scenario(
        (runs(SHARED), does(UPGRADE_B, killable=True), does(wants(A_a=1))), data=(0, 1), kills=1
    ),
    "a shared holder beside a replacement that is killed": Scenario(
        (runs(SHARED), does(UPGRADE, killable=True)), data=(1, 1), kills=1
    ),
    "a build beside a replacement": Scenario((does(wants(A_a=1), builds=True), does(UPGRADE_B)), data=(0, 1)),
    "two builds of one source tree": Scenario(
        (
            does(wants(A_a=1), builds=True, mutex="source"),
            does(wants(A_a=2), builds=True, mutex="source"),
            does(UPGRADE_B),
        ),
        data=(0, 1),
    ),
    "an exclusive holder beside everything": Scenario(
        (runs(EXCLUSIVE), runs(SHARED), reads(), does(UPGRADE_B)), data=(0, 1)
    ),
    "an exclusive holder beside an addition": Scenario((runs(EXCLUSIVE), does(ADD), does(ADD, builds=True))),
    "an exclusive holder and its forked child": Scenario(
        (runs(EXCLUSIVE, 1, forked=True), Process("forked", forked_child, parent=0), does(UPGRADE_B)), data=(0, 1)
    ),
    "an exclusive holder that leaves a daemon": Scenario(
        (
            runs(EXCLUSIVE, 1, forked=True, outlives=True),
            Process("daemon", forked_child, {"daemon": True}, parent=0, daemon=True),
            does(UPGRADE_B),
        ),
        data=(0, 1),
    ),
    # some distributions are kept
    "a distribution that is kept, beside replacements of it and of another": Scenario(
        (keeps("A.a"), does(wants(A_a=2)), does(UPGRADE_B)), data=(1, 1)
    ),
    "a distribution that is kept, beside a replacement that is killed": Scenario(
        (keeps("A.a"), does(UPGRADE, killable=True), reads("A.b")), data=(1, 1), kills=1
    ),
    "a distribution that is kept, beside two replacements of it": Scenario(
        (keeps("A.a"), does(raises("A.a")), does(raises("A.a"))), ("A.a",), (1,)
    ),
    "a distribution that is kept, beside an exclusive holder": Scenario(
        (keeps("A.a"), runs(EXCLUSIVE), does(UPGRADE_B)), data=(1, 1)
    ),
    "two builds, each of which uses what the other replaces": Scenario(
        (
            does(wants(A_a=2), builds=True, uses=("A.b",), mutex="source"),
            does(wants(A_b=2), builds=True, uses=("A.a",), mutex="other source"),
        ),
        data=(1, 1),
    ),
    "a distribution that is kept, below which another and itself are replaced": Scenario(
        (keeps("A.a", children=(1, 2)), does(UPGRADE_B, parent=0), does(wants(A_a=2), parent=0)),
        data=(1, 1),
        may_fail=(2,),
    ),
    "two distributions that are kept, each with a replacement of the other one below": Scenario(
        (
            keeps("A.a", children=(1,)),
            does(UPGRADE_B, parent=0),
            keeps("A.b", children=(3,)),
            does(wants(A_a=2), parent=2),
        ),
        data=(1, 1),
        may_fail=(1, 3),
    ),
    "a distribution that is kept and an exclusive holder, below an exclusive holder": Scenario(
        (runs(EXCLUSIVE, 1, 2), keeps("A.a", parent=0), runs(EXCLUSIVE, parent=0)), data=(1, 1)
    ),
    "a build that uses a distribution, below a shared holder": Scenario(
        (runs(SHARED, 1), does(wants(A_c=1), parent=0, builds=True, uses=("A.a",)), does(wants(A_a=2))),
        ("A.a", "A.c"),
        (1, 0),
    ),
    "a command that has reserved, and builds with what another one replaces": Scenario(
        (does(wants(A_a=2), builds=True, uses=("A.b",), attempt=3, replaces=True), does(UPGRADE_B), keeps("A.a")),
        data=(1, 1),
    ),
    "a distribution that is kept in a tree that is packed, beside an exclusive holder": Scenario(
        (keeps("A.a", litter=True), Process("remover", remover, litter=True), runs(EXCLUSIVE, litter=True)), data=(1, 1)
    ),
    # more trees
    "two replacements over two trees": Scenario(
        (does(wants(A_a=2, B_a=2), **BOTH_TREES), does(wants(A_a=3, B_a=3), **BOTH_TREES)), ("A.a", "B.a"), (1, 1)
    ),
    "each reads the tree that the other changes": Scenario(
        (
            does(unless("A.a", "B.a"), trees=("A", "B")),
            does(unless("B.a", "A.a"), trees=("B", "A")),
        ),
        ("A.a", "B.a"),
    ),
    "a killed change of two trees": Scenario(
        (
            reads("A.a", "B.a", **BOTH_TREES),
            does(wants(A_a=1, B_a=1), killable=True, **BOTH_TREES),
            does(wants(B_a=2), trees=("B", "A")),
        ),
        ("A.a", "B.a"),
        kills=1,
    ),
    "two environments with one directory of scripts": Scenario(
        (does(wants(A_a=1, s_x=1)), does(wants(B_a=1, s_x=2), trees=("B",), killable=True)),
        ("A.a", "B.a", "s.x"),
        (0, 0, 0),
        kills=1,
    ),
    "two additions with one directory of scripts": Scenario(
        (does(wants(A_a=1, s_x=1)), does(wants(A_b=1, s_x=2))), ("A.a", "A.b", "s.x"), (0, 0, 0)
    ),
    # trees without a state directory
    "a reader before the first writer": Scenario(
        (reads(litter=True), does(ADD, litter=True)), no_state_directory=("A",)
    ),
    "two writers of a tree that is packed": Scenario(
        (does(wants(A_a=1), litter=True), does(UPGRADE, litter=True)), no_state_directory=("A",)
    ),
    "a reader and a writer beside the removal of a state directory": Scenario(
        (reads(litter=True), Process("remover", remover, litter=True), does(ADD, litter=True))
    ),
    "a reader and a killed addition to a tree that is packed": Scenario(
        (reads(litter=True), reads(litter=True), does(ADD, litter=True, killable=True)),
        no_state_directory=("A",),
        kills=1,
    ),
    "first writers of two trees, each of which reads the other": Scenario(
        (
            does(unless("A.a", "B.a"), trees=("A", "B"), litter=True),
            does(unless("B.a", "A.a"), trees=("B", "A"), litter=True),
        ),
        ("A.a", "B.a"),
        no_state_directory=("A", "B"),
    ),
    # uv
    "uv builds with a command below, beside another": Scenario(
        (
            Process("uv", uv, {"child": 1}),
            does(wants(A_a=1), parent=0, uv="A"),
            does(wants(A_b=1), uv="A"),
        )
    ),
    "uv installs beside two commands": Scenario(
        (
            Process("uv", uv, {"place": "A.a", "value": 3}),
            does(wants(A_a=1), uv="A"),
            does(wants(A_b=1), uv="A"),
        ),
    ),
    # below a holder; what a process is, is told by its place: children follow their parent
    "an addition below a shared holder": Scenario(
        (runs(SHARED, 1), does(wants(A_a=1), parent=0), does(UPGRADE_B)), data=(0, 1)
    ),
    "a build below a shared holder": Scenario(
        (runs(SHARED, 1), does(wants(A_a=1), parent=0, builds=True), does(UPGRADE_B)), data=(0, 1)
    ),
    "a build below a shared holder, the variable dropped": Scenario(
        (runs(SHARED, 1), does(wants(A_a=1), parent=0, builds=True, keeps_variable=False), does(UPGRADE_B)), data=(0, 1)
    ),
    "a build below a shared holder that is killed": Scenario(
        (runs(SHARED, 1, killable=True), does(wants(A_a=1), parent=0, builds=True), does(UPGRADE_B)),
        data=(0, 1),
        kills=1,
    ),
    "a replacement below a shared holder": Scenario(
        (runs(SHARED, 1), does(UPGRADE, parent=0), reads()), data=(1, 1), may_fail=(1,)
    ),
    "a replacement below a shared holder, the variable dropped": Scenario(
        (runs(SHARED, 1), does(UPGRADE, parent=0, keeps_variable=False), reads()), data=(1, 1), may_fail=(1,)
    ),
    "a reader and a replacement below an exclusive holder": Scenario(
        (runs(EXCLUSIVE, 1, 2), reads(parent=0), does(UPGRADE, parent=0), reads()), data=(1, 1)
    ),
    "a reader and a replacement below an exclusive holder, the variable dropped": Scenario(
        (
            runs(EXCLUSIVE, 1, 2),
            reads(parent=0, keeps_variable=False),
            does(UPGRADE, parent=0, keeps_variable=False),
            reads(),
        ),
        data=(1, 1),
        may_fail=(1, 2),
    ),
    "a replacement below an exclusive holder that is killed": Scenario(
        (runs(EXCLUSIVE, 1, killable=True), does(UPGRADE, parent=0), reads()), data=(1, 1), kills=1
    ),
    "a replacement below an exclusive holder that is killed, beside a shared one": Scenario(
        (runs(EXCLUSIVE, 1, killable=True), does(UPGRADE, parent=0), runs(SHARED)), data=(1, 1), kills=1
    ),
    "a shared holder and a replacement below an exclusive holder": Scenario(
        (runs(EXCLUSIVE, 1, 2), runs(SHARED, parent=0), does(UPGRADE_B, parent=0)), data=(0, 1)
    ),
    "a shared holder and a replacement of two trees below an exclusive holder": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, **BOTH_TREES),
            runs(SHARED, parent=0, trees=("B",)),
            does(wants(A_a=2, B_a=2), parent=0, **BOTH_TREES),
        ),
        ("A.a", "B.a"),
        (1, 1),
    ),
    "a build and a replacement below an exclusive holder": Scenario(
        (runs(EXCLUSIVE, 1, 2), does(wants(A_a=1), builds=True, parent=0), does(UPGRADE_B, parent=0)), data=(0, 1)
    ),
    "a build below a shared holder and a replacement, below an exclusive holder": Scenario(
        (
            runs(EXCLUSIVE, 1, 3),
            runs(SHARED, 2, parent=0),
            does(wants(A_a=1), builds=True, parent=1),
            does(UPGRADE_B, parent=0),
        ),
        data=(0, 1),
    ),
    "a replacement below two exclusive holders, beside a shared one below the first": Scenario(
        (
            runs(EXCLUSIVE, 1, 3),
            runs(EXCLUSIVE, 2, parent=0),
            does(UPGRADE_B, parent=1),
            runs(SHARED, parent=0),
        ),
        data=(0, 1),
    ),
    "a replacement below a shared holder below an exclusive one": Scenario(
        (runs(EXCLUSIVE, 1), runs(SHARED, 2, parent=0), does(UPGRADE_B, parent=1)), data=(0, 1), may_fail=(2,)
    ),
    "a reader below an exclusive holder that is killed": Scenario(
        (runs(EXCLUSIVE, 1, killable=True), reads(parent=0), does(UPGRADE)), data=(1, 1), kills=1
    ),
    "a recovery below an exclusive holder that is killed": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, killable=True),
            does(wants(A_a=1), parent=0, known=(0,), dies=1),
            reads("A.a", parent=0),
            does(wants(A_a=1), known=(0,)),
        ),
        ("A.a",),
        (0,),
        kills=1,
    ),
    "a recovery of two trees below a holder of both": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, **BOTH_TREES),
            does(wants(A_a=1, B_a=1), parent=0, dies=1, **BOTH_TREES),
            reads("A.a", "B.a", parent=0, **BOTH_TREES),
        ),
        ("A.a", "B.a"),
    ),
    "a change of one of two trees below a holder of both": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, **BOTH_TREES),
            does(wants(A_a=1, B_a=1), parent=0, **BOTH_TREES),
            reads("A.a", "B.a", parent=0, **BOTH_TREES),
        ),
        ("A.a", "B.a"),
        (1, 0),
    ),
    "a build whose setup.py installs": Scenario(
        (does(wants(A_a=1), builds=True, child=1, mutex="source"), does(wants(A_c=1), parent=0), does(UPGRADE_B)),
        ("A.a", "A.b", "A.c"),
        (0, 1, 0),
    ),
    "a build whose setup.py installs, the variable dropped": Scenario(
        (
            does(wants(A_a=1), builds=True, child=1, mutex="source"),
            does(wants(A_c=1), parent=0, keeps_variable=False),
            does(UPGRADE_B),
        ),
        ("A.a", "A.b", "A.c"),
        (0, 1, 0),
    ),
    "a build below a shared holder, beside a build of the same source tree": Scenario(
        (
            runs(SHARED, 1),
            does(wants(A_a=1), parent=0, builds=True, mutex="source"),
            does(wants(A_b=1), builds=True, mutex="source"),
        )
    ),
    "a replacement over two trees, one of them in use for ever": Scenario(
        (
            runs(SHARED, lasts=True, trees=("B",), daemon=True),
            does(wants(A_a=2, B_a=2), rounds=3, daemon=True, **BOTH_TREES),
            does(wants(A_b=1), builds=True),
        ),
        ("A.a", "A.b", "B.a"),
        (1, 0, 1),
    ),
    "a build whose setup.py installs, beside an exclusive holder of the other tree": Scenario(
        (
            does(wants(A_a=1), builds=True, child=1, mutex="source"),
            does(wants(B_a=1), parent=0, trees=("B",)),
            runs(EXCLUSIVE, trees=("B",)),
        ),
        ("A.a", "B.a"),
        may_fail=(1,),
    ),
    "a command that has reserved, and whose setup.py replaces": Scenario(
        (
            does(wants(A_a=2), builds=True, child=1, attempt=3, replaces=True),
            does(UPGRADE_B, parent=0),
            runs(SHARED),
            reads(),
        ),
        data=(1, 1),
    ),
    # a journal that lies in another state directory
    "a killed and a finished change of one script, with the same content": Scenario(
        (does(wants(A_a=1, s_x=1)), does(wants(B_a=1, s_x=1), trees=("B",), killable=True)),
        ("A.a", "B.a", "s.x"),
        (0, 0, 0),
        kills=1,
    ),
    "a killed change of two trees and a reader of the second alone": Scenario(
        (
            reads("B.a", "B.b", trees=("B",)),
            does(wants(A_a=1, B_a=1, B_b=1), killable=True, trees=("A", "B")),
        ),
        ("A.a", "B.a", "B.b"),
        (0, 0, 0),
        kills=1,
    ),
    "two killed changes of one script": Scenario(
        (
            does(wants(A_a=1, s_x=1), killable=True),
            does(wants(B_a=1, s_x=2), trees=("B",), killable=True),
            reads("A.a"),
        ),
        ("A.a", "B.a", "s.x"),
        (0, 0, 0),
        kills=2,
    ),
    # recovery of two trees at once
    "a killed change of two trees, recovered from both": Scenario(
        (
            does(wants(A_a=1, B_a=1), killable=True, **BOTH_TREES),
            reads("A.a", killable=True),
            reads("B.a", trees=("B",)),
        ),
        ("A.a", "B.a"),
        kills=2,
    ),
    "a killed change of two trees below a holder of the second": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, trees=("B",)),
            does(wants(A_a=1, B_a=1), parent=0, killable=True, **BOTH_TREES),
            reads("B.a", parent=0, trees=("B",)),
            reads("A.a"),
        ),
        ("A.a", "B.a"),
        kills=1,
        may_fail=(1, 2),
    ),
    "a journal below an exclusive holder that is killed, beside an addition": Scenario(
        (
            runs(EXCLUSIVE, 1, killable=True),
            does(wants(A_a=1), parent=0, dies=-1),
            does(wants(A_a=2), known=(0,)),
            reads("A.a"),
        ),
        ("A.a",),
        (0,),
        kills=1,
    ),
    "two killed changes of the same two trees, each with its journal in another": Scenario(
        (
            does(wants(A_a=1, B_a=1), killable=True, **BOTH_TREES),
            does(wants(A_a=2, B_a=2), dies=1, trees=("B", "A")),
            reads("A.a"),
        ),
        ("A.a", "B.a"),
        kills=1,
    ),
    # a stage and the processes that delete its remains
    "a stage that is killed beside a sweeper": Scenario((does(ADD, stages=True, killable=True), sweeps("A")), kills=1),
    "two stages and a sweeper": Scenario(
        (does(wants(A_a=1), stages=True), does(wants(A_b=1), stages=True), sweeps("A"))
    ),
    "a stage below an exclusive holder that is killed, beside a sweeper": Scenario(
        (runs(EXCLUSIVE, 1, killable=True), does(wants(A_a=1), parent=0, stages=True, killable=True), sweeps("A")),
        kills=2,
    ),
    "a stage for two trees that is killed beside sweepers of both": Scenario(
        (
            does(wants(A_a=1, B_a=1), stages=True, killable=True, **BOTH_TREES),
            sweeps("A", killable=True, **BOTH_TREES),
            sweeps("B", **BOTH_TREES),
        ),
        ("A.a", "B.a"),
        kills=2,
    ),
    "a stage for a directory of scripts that is killed beside its sweeper": Scenario(
        (does(wants(A_a=1, s_x=1), stages=True, killable=True), sweeps("s"), does(wants(A_b=1, s_x=2), known=(0,))),
        ("A.a", "A.b", "s.x"),
        (0, 0, 0),
        kills=1,
    ),
    "a stage in a tree that is packed": Scenario(
        (does(wants(A_a=1), stages=True, litter=True), Process("remover", remover, litter=True), reads(litter=True)),
    ),
    "two stages in a tree that is packed": Scenario(
        (
            does(wants(A_a=1), stages=True, litter=True),
            does(wants(A_b=1), stages=True, litter=True),
        ),
        no_state_directory=("A",),
        shipped=("A",),
    ),
    "three processes leave a tree that is packed": Scenario(
        (
            does(wants(A_a=1), stages=True, litter=True),
            Process("remover", remover, litter=True),
            Process("remover", remover, litter=True),
        ),
        no_state_directory=("A",),
        shipped=("A",),
    ),
    "a stage in a tree that is packed, and a reader of it": Scenario(
        (does(wants(A_a=1), stages=True, litter=True), reads(litter=True, tidies=True)),
        no_state_directory=("A",),
        shipped=("A",),
    ),
    "a journal that is taken back, met below a shared holder": Scenario(
        (
            runs(EXCLUSIVE, 1, killable=True),
            does(UPGRADE, parent=0, stages=True),
            runs(SHARED, 3),
            reads(parent=2),
        ),
        data=(1, 1),
        kills=1,
    ),
    "a journal that is taken back for another plan, met by a build below a shared holder": Scenario(
        (
            does(wants(A_a=1), stages=True, rejects=True),
            runs(SHARED, 2),
            does(wants(A_b=1), builds=True, parent=1),
        ),
    ),
    # a replacement that waits with what it has
    "a replacement over two trees beside a holder of the second that builds in the first": Scenario(
        (
            runs(SHARED, 1, trees=("B",)),
            does(wants(A_b=1), builds=True, parent=0),
            does(wants(A_a=2, B_a=2), rounds=3, **BOTH_TREES),
        ),
        ("A.a", "A.b", "B.a"),
        (1, 0, 1),
    ),
    "a replacement over two trees beside a build in the first that adds to the second": Scenario(
        (
            does(wants(A_b=1), builds=True, child=1),
            does(wants(B_b=1), parent=0, trees=("B",)),
            does(wants(A_a=2, B_a=2), rounds=3, **BOTH_TREES),
        ),
        ("A.a", "A.b", "B.a", "B.b"),
        (1, 0, 1, 0),
    ),
    "two replacements over two trees beside a holder of the second": Scenario(
        (
            does(wants(A_a=2, B_a=2), rounds=3, **BOTH_TREES),
            does(wants(A_a=3, B_a=3), rounds=3, **BOTH_TREES),
            runs(SHARED, trees=("B",)),
        ),
        ("A.a", "B.a"),
        (1, 1),
    ),
    "a command that reads the tree of a holder, below which its own tree is read": Scenario(
        (runs(EXCLUSIVE, 1, trees=("B",)), reads("A.a", parent=0), does(unless("A.a", "B.a"), rounds=3, **BOTH_TREES)),
        ("A.a", "B.a"),
    ),
    # processes whose locks a file server frees while they live
    "a late addition beside another": Scenario(
        (does(ADD, stages=True, late=True), does(raises("A.a"), stages=True)), frees=1, may_fail=(0,)
    ),
    "a late replacement and removal beside another": Scenario(
        (does(wants(A_a=2, A_b=0), stages=True, late=True), does(wants(A_a=3, A_b=3), stages=True, known=(1, 1))),
        data=(1, 1),
        frees=1,
        may_fail=(0,),
    ),
    "a late removal beside a reader": Scenario(
        (does(wants(A_a=0, A_b=0), stages=True, late=True, known=(1, 1)), reads()),
        data=(1, 1),
        frees=1,
        may_fail=(0,),
    ),
    "a late holder that undoes, beside another": Scenario(
        (does(wants(A_a=1), stages=True, rejects=True, late=True, known=(0,)), does(wants(A_a=2), known=(0,))),
        ("A.a",),
        (0,),
        frees=1,
        may_fail=(0,),
    ),
    "a late holder and a recovery that is killed": Scenario(
        (
            does(wants(A_a=1), stages=True, late=True, known=(0,)),
            reads("A.a", killable=True),
            reads("A.a"),
        ),
        ("A.a",),
        (0,),
        frees=1,
        kills=1,
        may_fail=(0,),
    ),
    "a late holder beside a sweeper": Scenario(
        (does(ADD, stages=True, late=True, known=(0, 0)), sweeps("A")), frees=1, may_fail=(0,)
    ),
    "a late replacement beside a shared holder": Scenario(
        (does(UPGRADE, stages=True, late=True), runs(SHARED)), data=(1, 1), frees=1, may_fail=(0,)
    ),
    "a late reader beside a replacement": Scenario(
        (reads(late=True), does(UPGRADE, stages=True)), data=(1, 1), frees=1
    ),
    # two families
    "uv below an exclusive holder, a command below uv": Scenario(
        (
            runs(EXCLUSIVE, 1),
            Process("uv", uv, {"fails_open": False}, parent=0),
            Process("uv", uv, {"child": 3}),
            does(wants(A_a=1), parent=2, uv="A"),
        ),
        may_fail=(3,),
    ),
    "a build below an exclusive holder, a command below a build": Scenario(
        (
            runs(EXCLUSIVE, 1, trees=("A",)),
            does(wants(A_a=1), parent=0, builds=True, mutex="source"),
            does(wants(B_a=1), builds=True, mutex="source", child=3, trees=("B",)),
            does(wants(A_b=1), parent=2),
        ),
        ("A.a", "A.b", "B.a"),
        (0, 0, 0),
        may_fail=(1, 3),
    ),
    "two exclusive holders, each with a command that needs the other's tree below, one with siblings": Scenario(
        (
            runs(EXCLUSIVE, 1, 2),
            runs(SHARED, 3, parent=0),
            does(UPGRADE_B, parent=0),
            does(wants(B_a=2), parent=1, trees=("B",)),
            runs(EXCLUSIVE, 5, trees=("B",)),
            reads("A.a", parent=4),
        ),
        ("A.a", "A.b", "B.a"),
        (1, 1, 1),
        may_fail=(3, 5),
    ),
    "two shared holders, each with a replacement of the other's tree below": Scenario(
        (
            runs(SHARED, 1),
            does(wants(B_a=2), parent=0, trees=("B",)),
            runs(SHARED, 3, trees=("B",)),
            does(wants(A_a=2), parent=2),
        ),
        ("A.a", "B.a"),
        (1, 1),
        may_fail=(1, 3),
    ),
}

FLIP = Goal(lambda view: {"A.a": 3 - view["A.a"]}, ("A.a",), ("A.a",))
UPGRADE_B_BY_A = Goal(lambda view: {"A.b": 2}, ("A.a", "A.b"), ("A.b",))

# Too large for every run of the tests: `python -m tests.model`.
LARGE = {
    "a late recovery beside a command": Scenario(
        (does(wants(A_a=1), dies=1, known=(0,)), reads("A.a", late=True), does(wants(A_a=3), known=(0,))),
        ("A.a",),
        (0,),
        frees=1,
    ),
    "two changes of the same two trees, each with its journal in another, and a reader, all killed": Scenario(
        (
            does(wants(A_a=1, B_a=1), killable=True, **BOTH_TREES),
            does(wants(A_a=2, B_a=2), killable=True, trees=("B", "A")),
            reads("B.a", trees=("B",), killable=True),
            reads("A.a"),
        ),
        ("A.a", "B.a"),
        kills=3,
    ),
    "a change of two trees and of a script that is killed, recovered from each of them": Scenario(
        (
            does(wants(A_a=1, B_a=1, s_x=1), killable=True, stages=True, **BOTH_TREES),
            reads("A.a", killable=True),
            reads("B.a", trees=("B",), killable=True),
            sweeps("s", **BOTH_TREES),
        ),
        ("A.a", "B.a", "s.x"),
        (0, 0, 0),
        kills=3,
    ),
    "a stage below an exclusive holder that is killed, beside two sweepers": Scenario(
        (
            runs(EXCLUSIVE, 1, killable=True),
            does(wants(A_a=1), parent=0, stages=True, killable=True),
            sweeps("A", killable=True),
            sweeps("A"),
        ),
        kills=3,
    ),
    "a recovery of two trees below a holder of both that is killed": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, killable=True, **BOTH_TREES),
            does(wants(A_a=1, B_a=1), parent=0, dies=1, **BOTH_TREES),
            reads("B.a", parent=0, trees=("B",)),
            does(wants(A_a=1)),
        ),
        ("A.a", "B.a"),
        kills=1,
    ),
    "a recovery below an exclusive holder that is killed, of two places": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, killable=True),
            does(ADD, parent=0, killable=True),
            reads(parent=0),
            does(ADD),
        ),
        kills=2,
    ),
    "a killed change of two trees below a holder of both that is killed": Scenario(
        (
            runs(EXCLUSIVE, 1, 2, killable=True, **BOTH_TREES),
            does(wants(A_a=1, B_a=1), parent=0, killable=True, **BOTH_TREES),
            reads("B.a", parent=0, trees=("B",)),
            reads("A.a"),
        ),
        ("A.a", "B.a"),
        kills=2,
    ),
    "a replacement over two trees beside a build in the first that adds to the second, and its holder": Scenario(
        (
            does(wants(A_b=1), builds=True, child=1),
            does(wants(B_b=1), parent=0, trees=("B",)),
            does(wants(A_a=2, B_a=2), rounds=3, **BOTH_TREES),
            runs(SHARED, trees=("B",)),
        ),
        ("A.a", "A.b", "B.a", "B.b"),
        (1, 0, 1, 0),
    ),
    "two replacements over overlapping trees beside a holder that builds": Scenario(
        (
            does(wants(A_a=2, B_a=2), rounds=3, **BOTH_TREES),
            does(wants(B_a=3, C_a=3), rounds=3, trees=("B", "C")),
            runs(SHARED, 3, trees=("C",)),
            does(wants(A_b=1), builds=True, parent=2),
        ),
        ("A.a", "A.b", "B.a", "C.a"),
        (1, 0, 1, 1),
    ),
}

# Processes that start over for ever, and what becomes of the others.
ENDLESS = {
    "overlapping shared holders and a replacement": Scenario(
        (runs(SHARED, forever=True), runs(SHARED, forever=True), does(UPGRADE_B)), data=(0, 1)
    ),
    "overlapping readers and an addition": Scenario((reads(forever=True), reads(forever=True), does(wants(A_a=1)))),
    "overlapping holders of a distribution and a replacement of it": Scenario(
        (keeps("A.a", forever=True), keeps("A.a", forever=True), does(wants(A_a=2))), data=(1, 1)
    ),
    "a replacement that others make stale": Scenario((does(FLIP, forever=True), does(UPGRADE_B_BY_A)), data=(1, 1)),
    "two replacements over two trees": SCENARIOS["two replacements over two trees"],
    "shared holders of two trees and a replacement over both": Scenario(
        (
            runs(SHARED, forever=True),
            runs(SHARED, forever=True, trees=("B",)),
            does(wants(A_a=2, B_a=2), **BOTH_TREES),
        ),
        ("A.a", "B.a"),
        (1, 1),
    ),
    "brief shared holders of two trees and a replacement over both": Scenario(
        (
            runs(SHARED, forever=True, brief=True),
            runs(SHARED, forever=True, brief=True, trees=("B",)),
            does(wants(A_a=2, B_a=2), **BOTH_TREES),
        ),
        ("A.a", "B.a"),
        (1, 1),
    ),
}
