"""Properties of every merge."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from safe_pip.merge import tree
from safe_pip.merge.merge import MergeRefused, Situation, merge
from safe_pip.merge.plan import Kind, Plan
from safe_pip.records import is_bytecode

from . import model
from .model import ROOTS, TREE, Disk, apply, clean_up, expected, is_possible, live_paths, make_links, undo

settings.register_profile("merge", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("merge")

NAMES = ["a", "b", "c.py", "d.py", "data", "__init__.py", "\udcff\n", "RECORD"]
PLACES = [TREE, f"{TREE}/x-1.dist-info", "/v/bin", "/v/share", "/v/new"]


@st.composite
def paths(draw: st.DrawFn, places: Collection[str] = ()) -> str:
    directory = draw(st.sampled_from([*PLACES, *places]))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
    if draw(st.integers(0, 3)) == 0:
        tag = draw(st.sampled_from(["cpython-313", "cpython-310.opt-1", "cpython-313-tool-8.4.1"]))
        names[-1:] = ["__pycache__", f"{draw(st.sampled_from(['c', 'd', '__init__', 'gone']))}.{tag}.pyc"]
    return "/".join([directory, *names])


class Case(NamedTuple):
    """A live tree, whose files belong to our distribution, to another or to none, and what replaces ours."""

    live: dict[str, str]
    going: frozenset[str]
    foreign: frozenset[str]
    staged: dict[str, str]
    entered: frozenset[str] = frozenset()
    can_exchange: bool = True
    is_mounted: bool = False
    aliases: Mapping[str, str] = MappingProxyType({})

    def wanted(self) -> dict[str, str]:
        """All files but bytecode that are expected afterwards."""
        return expected(self.live, self.aliases, self.going, self.staged)

    def places(self) -> dict[str, str]:
        """The final paths of the staged files, with their content."""
        links = model.staying(self.aliases, self.going)
        return {model.resolved(path, links): content for path, content in self.staged.items()}

    def disk(self) -> Disk:
        return Disk(self.live, self.staged, is_mounted=self.is_mounted, aliases=self.aliases, going=self.going)

    def situation(self, disk: Disk) -> Situation:
        return disk.situation(
            lambda path: path in self.foreign,
            entered=self.entered,
            can_exchange=frozenset({0, 1} if self.can_exchange else ()),
        )

    def plan(self, disk: Disk) -> Plan:
        return merge(disk.trees(), self.going, self.situation(disk))


def consistent(found: list[str], aliases: Mapping[str, str]) -> list[str]:
    """Those that can be together, and beside symbolic links and the directories that these lead to."""
    others = [*aliases, *(f"{target}/*" for target in aliases.values())]
    kept: list[str] = []
    for path in dict.fromkeys(found):
        if is_possible({*others, *kept, path}):
            kept.append(path)
    return kept


@st.composite
def links(draw: st.DrawFn) -> dict[str, str]:
    """Symbolic links, at most two, that do not lead in circles."""
    found: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 2))):
        more = {**found, draw(st.sampled_from(model.ALIASES)): draw(st.sampled_from(model.TARGETS))}
        if not any(model.is_below(a, more[b]) and model.is_below(b, more[a]) for a in more for b in more):
            found = more
    return found


def source_of(path: str) -> str:
    """What bytecode is made from; any other file itself."""
    directory, _, name = path.rpartition("/")
    return f"{directory.rpartition('/')[0]}/{name.partition('.')[0]}.py" if is_bytecode(path) else path


@st.composite
def cases(draw: st.DrawFn, *, plain: bool = False) -> Case:
    aliases = {} if plain else draw(links())
    some = paths([*aliases.values()])
    live = consistent(draw(st.lists(some, max_size=8)), aliases)
    # Most new versions are much like the old one.
    staged = draw(st.lists(st.sampled_from(live), max_size=6)) if live else []
    staged = consistent(staged + draw(st.lists(some, max_size=5)), aliases)
    # Bytecode is never staged without its source.
    staged = consistent([path for each in staged for path in dict.fromkeys((each, source_of(each)))], aliases)
    owners = draw(st.lists(st.sampled_from(["ours", "ours", "ours", "foreign", "nobody"]), min_size=8, max_size=8))
    owner = dict(zip(live, owners, strict=False))
    for alias, target in aliases.items():
        through = draw(st.sets(st.sampled_from(staged)) if staged else st.just(set()))
        staged = [path.replace(f"{target}/", f"{alias}/") if path in through else path for path in staged]
    directories = sorted({above for path in live for above in model.parents(path)})
    # What a RECORD names and is not there does not matter.
    named = draw(st.lists(some | st.sampled_from([*aliases]) if aliases else some, max_size=2))
    going = {path for path in (*live, *named) if owner.get(path, "ours") == "ours"}
    stay = model.staying(aliases, going)
    return Case(
        {path: f"old {path}" for path in live},
        frozenset(going),
        frozenset(path for path in live if owner[path] == "foreign"),
        {path: f"new {model.resolved(path, stay)}" for path in staged},
        frozenset(draw(st.sets(st.sampled_from(directories), max_size=2)))
        if directories and not plain
        else frozenset(),
        draw(st.booleans()),
        not plain and draw(st.booleans()),
        aliases,
    )


def check_result(case: Case, before: set[str], disk: Disk, *, tidy: str = "/") -> None:
    """Compare the live tree with what the merge had to come to; below `tidy` no directory is left empty.

    Outside the tree this is about directories that files have gone from.
    """
    after = disk.files()
    wanted = case.wanted()
    assert {path: content for path, content in after.items() if not is_bytecode(path)} == wanted
    places = case.places()
    staged = {path: content for path, content in places.items() if is_bytecode(path)}
    assert staged.items() <= after.items()
    for path in after:
        if is_bytecode(path) and path not in staged:
            assert path in case.live, "bytecode comes from nowhere"
            source = source_of(path)
            was_ours = source in case.going and source in case.live
            assert not was_ours, "bytecode outlives its source"
            assert not (source in case.live and source in places), "bytecode is out of date"
    for path in case.live:
        source = source_of(path)
        if is_bytecode(path) and not model.goes(path, case.going) and source in case.foreign and source in after:
            assert source in places or path in after, "bytecode of another distribution is gone"
    litter = disk.directories() - model.holding_data([*after, *map(source_of, places)]) - {*ROOTS, "/v/share"}
    emptied = {path.rpartition("/")[0] for path in before if not is_bytecode(path)}
    left = {
        path
        for path in litter & model.holding_data(before)
        if path.startswith(tidy) and (path.startswith(f"{TREE}/") or path in emptied)
    }
    assert not left, "an empty directory is left"


def check_shape(plan: Plan) -> None:
    """Check the properties that every plan has."""
    paths = live_paths(plan)
    assert len(set(paths)) == len(paths)
    assert not any(above in paths for path in paths for above in model.parents(path)), "operations are nested"
    assert plan.adds == all(each.kind is Kind.NEW for each in model.undoable(plan)) or not plan.adds
    trash = [(each.part, each.trash) for each in plan.operations if each.trash]
    assert len(set(trash)) == len(trash)
    moving = zip(paths, [each for each in model.undoable(plan) if each.kind is not Kind.MODE], strict=True)
    moved = {path for path, each in moving if each.old is not None and stat.S_ISDIR(each.old.mode)}
    assert moved == {each.path for each in plan.moved} - {
        path for path in (each.path for each in plan.moved) if not moved.isdisjoint(model.parents(path))
    }
    for each in model.undoable(plan):
        assert (each.old is None) == (each.kind is Kind.NEW)
        assert (each.new is None) == (each.kind is Kind.REMOVE)
        assert bool(each.trash) == (each.kind in (Kind.FILE, Kind.SWAP, Kind.REMOVE))
        assert bool(each.staged) == (each.kind not in (Kind.REMOVE, Kind.MODE))


def planned(case: Case, disk: Disk) -> Plan:
    """The plan, with its links made; a merge that has to be refused is, and is none of the caller's business."""
    wanted = case.wanted()
    try:
        plan = case.plan(disk)
    except MergeRefused:
        # A directory that cannot be moved cannot become a file either.
        unmoved = {*case.entered, model.SHARED} if case.is_mounted else case.entered
        assert not is_possible(wanted) or not unmoved.isdisjoint(case.places())
        assume(False)
    assert is_possible(wanted)
    make_links(plan, disk)
    return plan


@settings(max_examples=250)
@given(cases())
def test_the_result_is_that_of_the_plainest_merge(case: Case) -> None:
    disk = case.disk()
    plan = planned(case, disk)
    check_shape(plan)
    before = set(disk.files())
    apply(plan, disk)
    clean_up(plan, disk)
    check_result(case, before, disk)


@settings(max_examples=100)
@given(cases())
def test_a_plan_and_its_undo_are_nothing(case: Case) -> None:
    disk = case.disk()
    plan = planned(case, disk)

    def everything() -> object:
        return [model.frozen(each) for each in (disk.live, *disk.stages, *disk.trash)]

    before = everything()
    apply(plan, disk)
    undo(plan, disk)
    assert everything() == before


@settings(max_examples=60)
@given(cases(), st.integers(0, 20))
def test_a_plan_undone_half_way_is_nothing(case: Case, done: int) -> None:
    disk = case.disk()
    plan = planned(case, disk)
    before = model.frozen(disk.live)
    half = plan._replace(operations=plan.operations[:done])
    apply(half, disk)
    undo(half, disk)
    assert model.frozen(disk.live) == before


@settings(max_examples=100)
@given(cases())
def test_merging_twice_is_merging_once(case: Case) -> None:
    disk = case.disk()
    plan = planned(case, disk)
    apply(plan, disk)
    clean_up(plan, disk)
    once = disk.files()
    links = model.staying(case.aliases, case.going)
    again = case._replace(
        live={path: content for path, content in once.items() if path not in links},
        going=frozenset(case.places()),
        foreign=case.foreign - set(case.places()),
        aliases=links,
    )
    second = again.disk()
    # By now the files of others in a metadata directory count as its distribution's.
    assume(again.wanted() == {path: content for path, content in once.items() if not is_bytecode(path)})
    litter = second.directories() - model.holding_data(once)
    plan = planned(again, second)
    apply(plan, second)
    assert {path: content for path, content in second.files().items() if not is_bytecode(path)} == {
        path: content for path, content in once.items() if not is_bytecode(path)
    }
    assert set(case.places()) <= set(second.files())
    assert not plan.overwritten
    for path, operation in zip(live_paths(plan), model.undoable(plan), strict=True):
        if operation.kind in (Kind.NEW, Kind.REMOVE):
            assert is_bytecode(path) or path in litter


@settings(max_examples=100)
@given(cases(plain=True), st.lists(paths(), max_size=5), st.sets(st.integers(0, 7)))
def test_disjoint_plans_commute(case: Case, more: list[str], others: set[int]) -> None:
    ours = [path for path in sorted(case.going) if path in case.live]
    theirs = frozenset(path for number, path in enumerate(ours) if number in others)
    taken = {*case.staged, *case.live}
    second = case._replace(
        going=theirs,
        foreign=case.foreign | (case.going - theirs),
        staged={path: f"new {path}" for path in consistent(more, {}) if path not in taken},
    )
    first = case._replace(going=case.going - theirs, foreign=case.foreign | theirs)
    results = []
    plans = []
    try:
        plans = [each.plan(each.disk()) for each in (first, second)]
    except MergeRefused:
        assume(False)
    touched = [set(live_paths(plan)) for plan in plans]
    assume(is_disjoint(*touched) and is_disjoint(*reversed(touched)))
    assume(not set(plans[0].overwritten) & theirs)
    for order in ((0, 1), (1, 0)):
        disk = first.disk()
        disk.stages += second.disk().stages
        disk.trash += second.disk().trash
        for number in order:
            plan = plans[number]
            moved = plan._replace(
                operations=tuple(each._replace(part=each.part + 2 * number) for each in plan.operations),
                links=tuple(
                    link._replace(staged=link.staged.replace("/stage0", f"/stage{2 * number}")) for link in plan.links
                ),
            )
            make_links(moved, disk)
            apply(moved, disk)
        results.append(model.frozen(disk.live))
    assert results[0] == results[1]


def is_disjoint(ours: Collection[str], theirs: Collection[str]) -> bool:
    return not any(path in theirs or any(above in theirs for above in model.parents(path)) for path in ours)


# The same with real directories, which are only looked at in part.


def carry_out(plan: Plan, stage: Path, trash: Path) -> None:
    for source, staged, _ in plan.links:
        os.makedirs(os.path.dirname(staged), exist_ok=True)
        os.link(source, staged, follow_symlinks=False)
    for each in model.undoable(plan):
        live = os.path.join(plan.roots[each.root], each.path)
        if each.kind is Kind.MODE:
            continue
        if each.kind is Kind.EXCHANGE:
            os.rename(live, trash / "exchanged")
            os.rename(stage / each.staged, live)
            os.rename(trash / "exchanged", stage / each.staged)
            continue
        if each.kind is not Kind.NEW:
            os.rename(live, trash / each.trash)
        if each.kind is not Kind.REMOVE:
            assert not os.path.lexists(live)
            os.rename(stage / each.staged, live)
    for path in model.emptied(plan):
        os.rmdir(path)


def files_of(root: Path) -> dict[str, str]:
    found = {}
    for directory, directories, names in os.walk(root):
        links = [name for name in directories if os.path.islink(os.path.join(directory, name))]
        for name in names + links:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                content = f"-> {os.readlink(path).removeprefix(str(root))}"
            else:
                content = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
            found[path.removeprefix(str(root))] = content
    return found


@settings(max_examples=60)
@given(cases())
@example(Case({}, frozenset(), frozenset(), {}))
def test_a_look_at_the_relevant_directories_is_enough(case: Case) -> None:
    assume(is_possible(case.wanted()))
    with tempfile.TemporaryDirectory() as directory:
        top = Path(os.path.realpath(directory))
        root, stage, trash = top / "root", top / "stage", top / "trash"
        trash.mkdir()
        for base, files in ((root, case.live), (stage / str(root).lstrip("/"), case.staged)):
            base.mkdir(parents=True)
            for path, content in files.items():
                file = Path(f"{base}{path}")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8", errors="surrogateescape")
        for path in ROOTS:
            Path(f"{root}{path}").mkdir(parents=True, exist_ok=True)
        for alias, target in case.aliases.items():
            Path(f"{root}{target}").mkdir(parents=True, exist_ok=True)
            Path(f"{root}{alias}").parent.mkdir(parents=True, exist_ok=True)
            Path(f"{root}{alias}").symlink_to(f"{root}{target}")
        before = set(case.live)
        situation = Situation(
            tuple(f"{root}{path}" for path in ROOTS),
            (f"{root}{TREE}",),
            {tree.volume(str(root)): 0},
            frozenset(f"{root}{path}" for path in case.entered),
            frozenset({0} if case.can_exchange else ()),
            os.geteuid(),
            lambda path: path.removeprefix(str(root)) in case.foreign,
        )
        going = {f"{root}{path}" for path in case.going}
        staged = tree.scan(str(stage))
        live = tree.look("/", staged, going, situation.trees)
        try:
            plan = merge([(0, staged, live)], going, situation)
        except MergeRefused:
            return
        check_shape(plan)
        carry_out(plan, stage, trash)
        disk = Disk(files_of(root), {})
        # Elsewhere the merge does not look into directories from which nothing is removed.
        check_result(case, before, disk, tidy=f"{TREE}/")
        left = {path.removeprefix(str(root)) for path, _, _ in os.walk(f"{root}{TREE}")}
        litter = left - model.holding_data([*files_of(root), *map(source_of, case.places())]) - {TREE}
        assert not litter & model.holding_data(before)
