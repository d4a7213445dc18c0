"""Every case of a merge, each by itself."""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping

import pytest

from safe_pip.errors import State
from safe_pip.merge.merge import MergeRefused, NeedsPart, merge
from safe_pip.merge.plan import Kind, Link, Operation, Plan, Seen
from safe_pip.merge.tree import Entry, seen_at
from tests.property.model import ALIASES, SHARED, TREE, Directory, Disk, directory_at

SITE = f"{TREE}/"
CACHE = "__pycache__"


def plan_of(disk: Disk, going: Collection[str] = (), foreign: Collection[str] = (), **situation: object) -> Plan:
    return merge(disk.trees(), going, disk.situation(lambda path: path in foreign, **situation))


def planned(
    live: Collection[str], staged: Collection[str], going: Collection[str] = (), foreign: Collection[str] = ()
) -> Plan:
    return plan_of(disk_with(live, staged), going, foreign)


def disk_with(live: Collection[str], staged: Collection[str], **options: object) -> Disk:
    return Disk(dict.fromkeys(live, "old"), dict.fromkeys(staged, "new"), **options)  # type: ignore[arg-type]


def in_site(*names: str) -> list[str]:
    return [SITE + name for name in names]


def kinds(plan: Plan) -> dict[str, Kind]:
    """What is done, by path; below the tree relative to it."""
    operations = [each for each in plan.operations if not each.kind.is_late]
    found = {f"{plan.roots[each.root]}/{each.path}".removeprefix(SITE): each.kind for each in operations}
    assert len(found) == len(operations)
    return found


def tidied(plan: Plan) -> list[str]:
    """The directories that go if they are empty when all is done."""
    return [f"{plan.roots[each.root]}/{each.path}" for each in plan.operations if each.kind is Kind.TIDY]


def order(plan: Plan) -> list[str]:
    return list(kinds(plan))


def seen_before(plan: Plan, path: str) -> Seen:
    (old,) = [each.old for each in plan.operations if each.path == path]
    assert old is not None
    return old


def only(plan: Plan) -> Operation:
    (operation,) = plan.operations
    return operation


# New things.


def test_a_new_directory_is_renamed_in_whole():
    plan = planned([], in_site("pkg/__init__.py", "pkg/sub/a.py", "pkg-1.dist-info/RECORD", "six.py"))
    assert kinds(plan) == {"pkg": Kind.NEW, "six.py": Kind.NEW, "pkg-1.dist-info": Kind.NEW}
    assert plan.adds
    assert not plan.moved


def test_an_operation_says_where_its_entry_is_staged_and_what_it_is():
    operation = only(planned([], in_site("six.py")))
    assert operation.staged == "v/site/six.py"
    assert operation.path == "six.py"
    assert operation.root == 0
    assert operation.trash == ""
    assert operation.old is None
    assert operation.new == Seen(stat.S_IFREG | 0o644, 3, 2 * 10**18)


def test_a_directory_has_no_size_and_no_time():
    operation = only(planned([], in_site("pkg/a.py")))
    assert operation.new == Seen(stat.S_IFDIR | 0o755, 0, 0)


def test_nothing_staged_is_nothing_to_do():
    plan = planned(in_site("six.py"), [])
    assert plan.operations == ()
    assert plan.adds


def test_a_staged_directory_without_files_is_nothing():
    disk = disk_with(in_site("pkg/a.py"), [])
    directory_at(disk.stages[0], f"{TREE}/empty/deeper")
    directory_at(disk.stages[0], f"{TREE}/pkg")
    assert kinds(plan_of(disk)) == {}
    assert kinds(plan_of(disk, in_site("pkg/a.py"))) == {"pkg": Kind.REMOVE}


def test_what_is_new_in_a_namespace_that_others_have_is_an_addition():
    plan = planned(in_site("ns/a/__init__.py"), in_site("ns/b/__init__.py"))
    assert kinds(plan) == {"ns/b": Kind.NEW}
    assert plan.adds
    assert [path for path, _, _ in plan.entered] == [f"{TREE}/ns"]


@pytest.mark.parametrize("name", ["__init__.py", "__init__.cpython-313-x86_64-linux-gnu.so"])
def test_an_init_over_a_namespace_is_no_addition(name):
    plan = planned(in_site("ns/a/__init__.py"), in_site(f"ns/{name}"))
    assert kinds(plan) == {f"ns/{name}": Kind.NEW}
    assert not plan.adds


@pytest.mark.parametrize(
    ("there", "new"),
    [
        ("x.py", "x/__init__.py"),
        ("x.py", "x/part.py"),
        ("x.py", "x.cpython-313-x86_64-linux-gnu.so"),
        ("x.abi3.so", "x/__init__.py"),
        ("x.abi3.so", "x.cpython-313-x86_64-linux-gnu.so"),
        ("x/part.py", "x.py"),
        ("x.pyc", "x.py"),
    ],
)
@pytest.mark.parametrize("where", ["pkg", "pkg/deep/er"])
def test_what_stands_for_the_same_module_as_something_beside_it_is_no_addition(there, new, where):
    plan = planned(in_site(f"{where}/__init__.py", f"{where}/{there}"), in_site(f"{where}/{new}"))
    assert all(each.kind is Kind.NEW for each in plan.operations)
    assert not plan.adds


@pytest.mark.parametrize(
    ("there", "new"), [("x.txt", "x.py"), ("x.py", "x.json"), ("x.py", "xx.py"), ("x.py", "y/x.py")]
)
def test_what_no_import_takes_for_the_same_module_is_an_addition(there, new):
    assert planned(in_site(f"pkg/{there}"), in_site(f"pkg/{new}")).adds
    assert planned([f"/v/bin/{there}"], [f"/v/bin/{new}"]).adds


def test_the_bytecode_of_an_init_makes_no_package():
    live = in_site("ns/a.py", f"ns/{CACHE}/a.cpython-313.pyc")
    plan = planned(live, in_site(f"ns/{CACHE}/__init__.cpython-313.pyc"))
    assert plan.adds


# Files over files.


def test_a_file_over_a_file_of_ours_is_one_step():
    plan = planned(["/v/bin/tool"], ["/v/bin/tool"], ["/v/bin/tool"])
    operation = only(plan)
    assert (operation.kind, operation.trash, operation.staged) == (Kind.FILE, "0", "v/bin/tool")
    assert operation.old == Seen(stat.S_IFREG | 0o644, 3, 10**18)
    assert not plan.adds
    assert not plan.overwritten


@pytest.mark.parametrize("foreign", [(), ("/v/bin/tool",)])
def test_a_file_of_another_owner_or_of_none_is_overwritten_and_named(foreign):
    plan = planned(["/v/bin/tool"], ["/v/bin/tool"], (), foreign)
    assert kinds(plan) == {"/v/bin/tool": Kind.FILE}
    assert plan.overwritten == ("/v/bin/tool",)


def test_a_symbolic_link_in_the_way_of_a_file_is_replaced_itself():
    disk = disk_with([], [ALIASES[0]], aliases={ALIASES[0]: SHARED})
    plan = plan_of(disk)
    assert kinds(plan) == {ALIASES[0]: Kind.FILE}
    assert plan.overwritten == (ALIASES[0],)


# Directories that are replaced.


def upgrade(**options: object) -> tuple[Disk, list[str]]:
    live = in_site("pkg/a.py", "pkg/old.py", "pkg/sub/b.py")
    return disk_with(live, in_site("pkg/a.py", "pkg/new.py", "pkg/sub/b.py"), **options), live


def test_a_directory_of_ours_is_exchanged_whole():
    disk, live = upgrade()
    plan = plan_of(disk, live)
    operation = only(plan)
    assert operation.kind is Kind.EXCHANGE
    assert operation.trash == ""
    assert sorted(operation.known) == ["a.py", "old.py", "sub/b.py"]
    assert not plan.adds
    assert [each.path for each in plan.moved] == [f"{TREE}/pkg", f"{TREE}/pkg/sub"]
    assert [path for path, _, _ in plan.entered] == [TREE]


def test_where_the_part_cannot_exchange_it_is_two_renames():
    disk, live = upgrade()
    operation = only(plan_of(disk, live, can_exchange=frozenset()))
    assert (operation.kind, operation.trash) == (Kind.SWAP, "0")
    assert sorted(operation.known) == ["a.py", "old.py", "sub/b.py"]


def test_a_directory_that_refused_to_be_moved_is_entered():
    disk, live = upgrade()
    plan = plan_of(disk, live, entered=frozenset({f"{TREE}/pkg"}))
    assert kinds(plan) == {
        "pkg/a.py": Kind.FILE,
        "pkg/new.py": Kind.NEW,
        "pkg/old.py": Kind.REMOVE,
        "pkg/sub": Kind.EXCHANGE,
    }


def test_a_directory_that_another_distribution_has_files_in_is_entered():
    disk, live = upgrade()
    directory_at(disk.live, f"{TREE}/pkg")["theirs.py"] = "theirs"
    plan = plan_of(disk, live, in_site("pkg/theirs.py"))
    assert kinds(plan) == {
        "pkg/a.py": Kind.FILE,
        "pkg/new.py": Kind.NEW,
        "pkg/old.py": Kind.REMOVE,
        "pkg/sub": Kind.EXCHANGE,
    }
    assert [path for path, _, _ in plan.entered] == [f"{TREE}/pkg"]


def test_a_directory_in_which_nothing_is_ours_is_entered():
    plan = planned(in_site("pkg/theirs.py"), in_site("pkg/a.py"))
    assert kinds(plan) == {"pkg/a.py": Kind.NEW}
    assert plan.adds


def test_an_empty_directory_is_entered():
    disk = disk_with([], in_site("pkg/a.py"))
    directory_at(disk.live, f"{TREE}/pkg")
    assert kinds(plan_of(disk)) == {"pkg/a.py": Kind.NEW}


def test_what_an_uninstall_left_bytecode_in_is_exchanged():
    plan = planned(in_site(f"pkg/{CACHE}/a.cpython-39.pyc"), in_site("pkg/a.py"))
    assert kinds(plan) == {"pkg": Kind.EXCHANGE}
    assert only(plan).known == ()


def test_a_directory_outside_the_trees_is_exchanged_if_all_in_it_goes():
    """Only what pip would make anew as well: the directories above may be an administrator's."""
    live = ["/v/share/doc/pkg/a", "/v/share/doc/pkg/old/x"]
    plan = planned(live, ["/v/share/doc/pkg/a", "/v/share/doc/pkg/new"], live)
    assert kinds(plan) == {"/v/share/doc/pkg": Kind.EXCHANGE}


@pytest.mark.parametrize("other", ["/v/share/pkg/theirs", "/v/share/pkg/sub/theirs"])
def test_a_directory_outside_the_trees_with_a_file_of_others_is_entered(other):
    going = ["/v/share/pkg/a", "/v/share/pkg/old"]
    plan = planned([*going, other], ["/v/share/pkg/a", "/v/share/pkg/new"], going)
    assert kinds(plan) == {
        "/v/share/pkg/a": Kind.FILE,
        "/v/share/pkg/new": Kind.NEW,
        "/v/share/pkg/old": Kind.REMOVE,
    }


def test_a_directory_outside_the_trees_that_no_file_goes_from_is_entered():
    live = ["/v/share/pkg/sub/a"]
    assert kinds(planned(live, live, live)) == {"/v/share/pkg/sub": Kind.EXCHANGE}


def test_a_tree_and_a_root_and_what_they_lie_in_are_never_moved():
    live = [f"{TREE}/a.py", "/v/bin/tool"]
    assert kinds(planned(live, [], live)) == {"/v/bin/tool": Kind.REMOVE, "a.py": Kind.REMOVE}
    disk = disk_with(live, [])
    inner = f"{TREE}/bin"
    disk.live["v"]["site"]["bin"] = Directory(tool="old")  # type: ignore[index,call-overload]
    plan = plan_of(disk, [f"{inner}/tool"], roots=(TREE, inner, "/v"))
    assert kinds(plan) == {"bin/tool": Kind.REMOVE}
    assert tidied(plan) == []


def test_a_record_that_names_the_tree_itself_takes_nothing_with_it():
    assert kinds(planned(in_site("a.py", "b.py"), [], [TREE, f"{TREE}/a.py"])) == {"a.py": Kind.REMOVE}


def test_a_directory_with_a_volume_in_it_is_entered():
    disk, live = upgrade()
    directory_at(disk.live, f"{TREE}/pkg/sub").volume = (2, 0)
    with pytest.raises(NeedsPart) as caught:
        plan_of(disk, live)
    assert (caught.value.volume, caught.value.directory) == ((2, 0), f"{TREE}/pkg/sub")
    assert caught.value.staged == f"/stage0{TREE}/pkg/sub"
    staged = directory_at(disk.stages[0], f"{TREE}/pkg").pop("sub")
    directory_at(disk.stages[1], f"{TREE}/pkg")["sub"] = staged
    plan = plan_of(disk, live)
    assert kinds(plan)["pkg/sub/b.py"] is Kind.FILE
    assert [each.part for each in plan.operations if each.path == "pkg/sub/b.py"] == [1]


def test_a_directory_that_could_not_be_listed_is_entered():
    disk, live = upgrade()
    trees = [(part, staged, unlisted(entry, f"{TREE}/pkg/sub")) for part, staged, entry in disk.trees()]
    plan = merge(trees, live, disk.situation(lambda path: False))
    assert kinds(plan)["pkg/a.py"] is Kind.FILE


def unlisted(entry: Entry, path: str) -> Entry:
    if entry.path == path:
        return entry._replace(entries={}, is_whole=False)
    entries = {name: unlisted(child, path) for name, child in (entry.entries or {}).items()}
    return entry._replace(entries=entries if entry.entries is not None else None)


# Unowned files.


def test_an_unowned_file_is_linked_into_the_new_directory():
    disk, live = upgrade()
    directory_at(disk.live, f"{TREE}/pkg/local")["settings"] = "mine"
    plan = plan_of(disk, live)
    assert plan.links == (Link(f"{TREE}/pkg/local/settings", f"/stage0{TREE}/pkg/local/settings"),)
    assert "local/settings" in only(plan).known
    assert not plan.overwritten


def test_an_unowned_file_that_is_also_staged_is_overwritten_and_named():
    disk, live = upgrade()
    directory_at(disk.live, f"{TREE}/pkg")["new.py"] = "mine"
    plan = plan_of(disk, live)
    assert kinds(plan) == {"pkg": Kind.EXCHANGE}
    assert plan.overwritten == (f"{TREE}/pkg/new.py",)
    assert plan.links == ()


@pytest.mark.parametrize(("mine", "theirs"), [("pkg/x", "pkg/x/y"), ("pkg/x/y", "pkg/x")])
def test_an_unowned_file_in_the_place_of_a_directory_or_below_a_file_is_refused(mine, theirs):
    with pytest.raises(MergeRefused, match="pkg/x") as caught:
        planned(in_site("pkg/a.py", mine), in_site("pkg/a.py", theirs), in_site("pkg/a.py"))
    assert caught.value.state is State.UNCHANGED


def test_all_that_is_in_the_way_is_named():
    with pytest.raises(MergeRefused, match=r"pkg/x.*pkg/y"):
        planned(in_site("pkg/x", "pkg/y"), in_site("pkg/x/a", "pkg/y/a"))


def test_the_owner_of_a_file_is_looked_up_only_if_it_matters():
    asked: list[str] = []

    def foreign(path: str) -> bool:
        asked.append(path)
        return False

    disk, live = upgrade()
    directory_at(disk.live, TREE)["six.py"] = "theirs"
    directory_at(disk.live, f"{TREE}/pkg")["local"] = "mine"
    directory_at(disk.live, f"{TREE}/ns")["theirs.py"] = "theirs"
    directory_at(disk.stages[0], f"{TREE}/ns")["ours.py"] = "ours"
    merge(disk.trees(), live, disk.situation(foreign))
    assert asked == [f"{TREE}/pkg/local"]


def test_the_mark_of_a_finished_transaction_is_not_data():
    disk, live = upgrade()
    directory_at(disk.live, f"{TREE}/pkg")[".safe-pip-0123456789abcdef"] = ""
    plan = plan_of(disk, live)
    assert plan.links == ()
    assert kinds(plan) == {"pkg": Kind.EXCHANGE}


# What goes.


def test_a_directory_that_goes_whole_is_removed_whole():
    live = in_site("pkg/a.py", "pkg/sub/b.py", f"pkg/sub/{CACHE}/b.cpython-313.pyc", f"pkg/{CACHE}/gone.cpython-39.pyc")
    plan = planned(live, [], live[:2])
    operation = only(plan)
    assert (operation.kind, operation.path, operation.trash) == (Kind.REMOVE, "pkg", "0")
    assert sorted(operation.known) == ["a.py", "sub/b.py"]
    assert operation.new is None
    assert not plan.adds


def test_of_directories_left_empty_the_highest_goes():
    plan = planned(in_site("ns/x/y/a.py"), [], in_site("ns/x/y/a.py"))
    assert kinds(plan) == {"ns": Kind.REMOVE}


def test_outside_the_trees_only_directories_go_that_a_file_goes_from():
    """The directories above may be an administrator's, with a group and permissions of their own; as with pip."""
    live = ["/v/share/doc/pkg/a", "/v/share/man/man1/b", "/v/share/data/c", "/v/share/data/x/y/d"]
    plan = planned(live, [], live)
    assert kinds(plan) == dict.fromkeys(["/v/share/doc/pkg", "/v/share/man/man1", "/v/share/data"], Kind.REMOVE)


def test_so_it_is_where_such_a_directory_cannot_be_moved():
    live = ["/v/share/doc/data/a", "/v/share/doc/data/x/y/b"]
    plan = plan_of(disk_with(live, []), live, entered=frozenset(["/v/share/doc/data"]))
    assert kinds(plan) == {"/v/share/doc/data/a": Kind.REMOVE, "/v/share/doc/data/x": Kind.REMOVE}
    assert tidied(plan) == ["/v/share/doc/data"]


def test_a_directory_with_files_of_other_owners_or_of_none_is_entered():
    live = in_site("ns/ours/a.py", "ns/b.py", "ns/mixed/c.py", "ns/mixed/data")
    plan = planned(live, [], [live[0], live[2]])
    assert kinds(plan) == {"ns/ours": Kind.REMOVE, "ns/mixed/c.py": Kind.REMOVE}
    assert plan.links == ()


def test_a_directory_that_cannot_be_moved_is_emptied_and_named():
    live = in_site("pkg/a.py", f"pkg/{CACHE}/a.cpython-313.pyc", f"pkg/{CACHE}/x.cpython-39.pyc", "pkg/sub/b.py")
    disk = disk_with(live, [])
    stuck = [f"{TREE}/pkg", f"{TREE}/pkg/sub", f"{TREE}/pkg/{CACHE}"]
    plan = plan_of(disk, [live[0], live[3]], entered=frozenset(stuck))
    assert set(kinds(plan)) == {path.removeprefix(SITE) for path in live}
    assert set(tidied(plan)) == set(stuck)
    assert tidied(plan)[-1] == f"{TREE}/pkg"


def test_a_file_that_is_gone_already_is_nothing():
    assert planned(in_site("b.py"), [], in_site("a.py", "pkg/c.py")).operations == ()


def test_a_symbolic_link_that_goes_is_removed_itself():
    disk = disk_with(["/v/share/theirs"], [], aliases={ALIASES[0]: SHARED})
    assert kinds(plan_of(disk, [ALIASES[0]])) == {ALIASES[0]: Kind.REMOVE}


def test_a_directory_that_goes_by_name_goes_with_all_that_is_in_it():
    live = in_site("pkg-1.egg/a.py", "pkg-1.egg/EGG-INFO/PKG-INFO")
    assert kinds(planned(live, [], in_site("pkg-1.egg"), foreign=live[:1])) == {"pkg-1.egg": Kind.REMOVE}


@pytest.mark.parametrize("metadata", ["pkg-1.dist-info/RECORD", "pkg-1.dist-info/METADATA", "pkg.egg-info/PKG-INFO"])
def test_a_metadata_directory_goes_with_all_that_is_in_it(metadata):
    info = metadata.partition("/")[0]
    live = in_site(metadata, f"{info}/unlisted.json", f"{info}/licenses/LICENSE")
    plan = planned(live, [], live[:1])
    assert kinds(plan) == {info: Kind.REMOVE}
    assert len(only(plan).known) == 3


def test_a_metadata_directory_of_the_same_version_is_exchanged_and_nothing_in_it_is_kept():
    live = in_site("pkg-1.dist-info/RECORD", "pkg-1.dist-info/direct_url.json")
    plan = planned(live, in_site("pkg-1.dist-info/RECORD"), live[:1])
    assert kinds(plan) == {"pkg-1.dist-info": Kind.EXCHANGE}
    assert plan.links == ()


# A file for a directory, and the reverse.


def test_a_directory_in_place_of_a_file_of_ours_is_swapped_with_it():
    plan = planned(in_site("six"), in_site("six/a.py"), in_site("six"))
    operation = only(plan)
    assert operation.kind is Kind.SWAP
    assert operation.known == ()
    assert operation.old is not None
    assert stat.S_ISREG(operation.old.mode)
    assert plan.moved == ()


def test_a_file_in_place_of_a_directory_of_ours_is_swapped_with_it():
    live = in_site("six/a.py", f"six/{CACHE}/a.cpython-313.pyc")
    plan = planned(live, in_site("six"), live[:1])
    assert kinds(plan) == {"six": Kind.SWAP}
    assert only(plan).known == ("a.py",)
    assert len(plan.moved) == 1


@pytest.mark.parametrize("foreign", [(), in_site("x", "x/a")])
@pytest.mark.parametrize(("live", "staged"), [("x", "x/a"), ("x/a", "x")])
def test_what_is_in_the_way_and_stays_is_refused(live, staged, foreign):
    with pytest.raises(MergeRefused, match=f"`{TREE}/x`"):
        planned(in_site(live), in_site(staged), (), foreign)


def test_a_file_in_place_of_a_directory_that_cannot_be_moved_is_refused():
    disk = disk_with(in_site("x/a"), in_site("x"))
    with pytest.raises(MergeRefused):
        plan_of(disk, in_site("x/a"), entered=frozenset({f"{TREE}/x"}))


def test_what_lies_outside_all_roots_is_refused():
    with pytest.raises(MergeRefused, match="/etc"):
        planned(["/etc/passwd"], ["/etc/passwd"])
    with pytest.raises(MergeRefused):
        planned([], ["/v"])


# Bytecode.


def test_bytecode_goes_with_its_source_whatever_its_tag():
    pyc = in_site(
        *(f"{CACHE}/six.{tag}.pyc" for tag in ("cpython-313", "cpython-39.opt-1", "cpython-313-pytest-8.4.1"))
    )
    others = in_site("other.py", f"{CACHE}/other.cpython-313.pyc")
    plan = planned([*in_site("six.py"), *pyc, *others], [], in_site("six.py"))
    assert set(kinds(plan)) == {"six.py", *(path.removeprefix(SITE) for path in pyc)}
    assert set(kinds(plan).values()) == {Kind.REMOVE}


def test_a_cache_directory_with_nothing_of_others_goes_whole():
    live = in_site("ns/a.py", "ns/data", f"ns/{CACHE}/a.cpython-313.pyc", f"ns/{CACHE}/gone.cpython-39.pyc")
    plan = planned(live, [], live[:1], foreign=live[1:2])
    assert kinds(plan) == {"ns/a.py": Kind.REMOVE, f"ns/{CACHE}": Kind.REMOVE}
    assert plan.operations[0].path == "ns/a.py", "the source leaves first, or an importer writes the bytecode again"


def test_bytecode_of_a_replaced_source_goes_with_it():
    names = [f"ns/{CACHE}/a.cpython-313.pyc", f"ns/{CACHE}/a.cpython-39.pyc", f"ns/{CACHE}/b.cpython-313.pyc"]
    live = in_site("ns/a.py", "ns/b.py", *names)
    plan = planned(live, in_site("ns/a.py", names[0]), in_site("ns/a.py"), foreign=in_site("ns/b.py"))
    assert kinds(plan) == {"ns/a.py": Kind.FILE, names[0]: Kind.FILE, names[1]: Kind.REMOVE}
    assert order(plan).index(names[0]) < order(plan).index("ns/a.py"), "a source that can be seen has its bytecode"
    assert plan.overwritten == ()


def test_bytecode_that_an_uninstall_left_is_overwritten_and_not_named():
    names = ["ns/a.py", f"ns/{CACHE}/a.cpython-313.pyc"]
    plan = planned(in_site("ns/b.py", f"ns/{CACHE}/b.cpython-313.pyc", names[1]), in_site(*names))
    assert kinds(plan) == {names[0]: Kind.NEW, names[1]: Kind.FILE}
    assert plan.overwritten == ()


def test_bytecode_comes_before_its_source_and_leaves_after_it_whatever_that_is_called():
    names = ["ns/A.py", f"ns/{CACHE}/A.cpython-313.pyc", "ns/z.py", f"ns/{CACHE}/z.cpython-313.pyc"]
    others = in_site("ns/b.py", f"ns/{CACHE}/b.cpython-313.pyc")
    assert order(planned(others, in_site(*names))) == [names[1], names[3], names[0], names[2]]
    plan = planned([*others, *in_site(*names)], [], in_site(*names), others)
    assert order(plan) == [names[2], names[0], names[3], names[1]]


def test_the_source_with_the_longest_name_owns_bytecode():
    live = in_site("ns/a.py", "ns/a.b.py", f"ns/{CACHE}/a.b.cpython-313.pyc", f"ns/{CACHE}/a.cpython-313.pyc")
    plan = planned(live, [], in_site("ns/a.py"), foreign=in_site("ns/a.b.py"))
    assert set(kinds(plan)) == {"ns/a.py", f"ns/{CACHE}/a.cpython-313.pyc"}


def test_bytecode_beside_its_source_is_a_file_like_any_other():
    live = in_site("ns/a.pyc", "ns/b.py")
    assert kinds(planned(live, [], live[:1])) == {"ns/a.pyc": Kind.REMOVE}
    with_data = planned(in_site("pkg/a.py", "pkg/x.pyc"), in_site("pkg/a.py"), in_site("pkg/a.py"))
    assert [link.source for link in with_data.links] == in_site("pkg/x.pyc")


def test_data_in_a_cache_directory_is_data():
    live = in_site("pkg/a.py", f"pkg/{CACHE}/a.f-1.py313.nbi")
    plan = planned(live, in_site("pkg/a.py"), live[:1])
    assert [link.source for link in plan.links] == live[1:]


def test_bytecode_that_an_importer_is_just_writing_is_bytecode():
    live = in_site("pkg/a.py", f"pkg/{CACHE}/a.cpython-313.pyc.140032")
    assert only(planned(live, [], live[:1])).known == ("a.py",)


def test_bytecode_never_makes_a_directory_shared_and_is_never_carried_over():
    live = in_site("pkg/a.py", f"pkg/{CACHE}/x.cpython-39.pyc")
    plan = planned(live, in_site("pkg/a.py"), live[:1], foreign=live[1:])
    assert kinds(plan) == {"pkg": Kind.EXCHANGE}
    assert plan.links == ()


# Permissions.


def with_mode(disk: Disk, path: str, mode: int) -> None:
    directory_at(disk.live, path).mode = stat.S_IFDIR | mode


def entries(disk: Disk, path: str, **changes: object) -> list[tuple[int, Entry, Entry]]:
    """The trees, with what is said of one live directory changed."""

    def changed(entry: Entry) -> Entry:
        if entry.entries is None:
            return entry
        entry = entry._replace(entries={name: changed(child) for name, child in entry.entries.items()})
        return entry._replace(**changes) if entry.path == path else entry  # type: ignore[arg-type]

    return [(part, staged, changed(live)) for part, staged, live in disk.trees()]


@pytest.mark.parametrize("staged", [in_site("pkg/a.py"), [], in_site("pkg")])
def test_a_directory_of_our_own_that_we_may_not_write_is_made_writable_before_it_moves(staged):
    disk = disk_with(in_site("pkg/a.py"), staged)
    with_mode(disk, f"{TREE}/pkg", 0o555)
    trees = entries(disk, f"{TREE}/pkg", uid=1000)
    first, second = merge(trees, in_site("pkg/a.py"), disk.situation(lambda path: False, uid=1000)).operations
    assert (first.kind, first.path, first.path) == (Kind.MODE, "pkg", second.path)
    assert first.old == Seen(stat.S_IFDIR | 0o555, 0, 0)
    assert first.new == Seen(stat.S_IFDIR | 0o755, 0, 0)
    assert second.kind in (Kind.EXCHANGE, Kind.REMOVE, Kind.SWAP)


def test_root_may_move_what_it_may_not_write():
    disk = disk_with(in_site("pkg/a.py"), [])
    with_mode(disk, f"{TREE}/pkg", 0o555)
    assert kinds(plan_of(disk, in_site("pkg/a.py"), uid=0)) == {"pkg": Kind.REMOVE}


@pytest.mark.parametrize(("is_writable", "kind"), [(True, Kind.EXCHANGE), (False, Kind.FILE)])
def test_a_directory_of_another_user_is_entered_where_we_may_not_write_it(is_writable, kind):
    disk = disk_with(in_site("pkg/a.py"), in_site("pkg/a.py"))
    trees = entries(disk, f"{TREE}/pkg", uid=1001, is_writable=is_writable)
    plan = merge(trees, in_site("pkg/a.py"), disk.situation(lambda path: False, uid=1000))
    assert only(plan).kind is kind


# Symbolic links to directories.


def test_what_is_staged_through_a_symbolic_link_goes_where_it_leads():
    disk = disk_with(["/v/share/a"], [f"{ALIASES[0]}/a", f"{ALIASES[0]}/b"], aliases={ALIASES[0]: SHARED})
    plan = plan_of(disk)
    assert kinds(plan) == {"/v/share/a": Kind.FILE, "/v/share/b": Kind.NEW}
    assert {each.staged for each in plan.operations} == {"v/alias/a", "v/alias/b"}


def test_what_is_staged_for_one_directory_by_two_names_is_put_together():
    staged = [f"{ALIASES[0]}/new/a", "/v/share/new/b", f"{ALIASES[0]}/new/x/y", "/v/share/new/x/z"]
    disk = disk_with([], staged, aliases={ALIASES[0]: SHARED})
    plan = plan_of(disk)
    assert kinds(plan) == {"/v/share/new": Kind.NEW}
    assert {link.staged for link in plan.links} == {"/stage0/v/alias/new/b", "/stage0/v/alias/new/x/z"} or {
        link.staged for link in plan.links
    } == {"/stage0/v/share/new/a", "/stage0/v/share/new/x/y"}


def test_what_is_staged_by_two_names_as_a_file_and_as_a_directory_is_refused():
    for names in (["new/a", "new"], ["new", "new/a"], ["new/x/a", "new/x"]):
        disk = disk_with([], [f"{ALIASES[0]}/{names[0]}", f"/v/share/{names[1]}"], aliases={ALIASES[0]: SHARED})
        with pytest.raises(MergeRefused):
            plan_of(disk)


def test_what_a_symbolic_link_leads_into_stays_where_it_is():
    link = f"{TREE}/old/link"
    staged = [f"{link}/c.py", *in_site("pkg/sub/a.py")]
    disk = disk_with(in_site("pkg/sub/a.py", "old/b.py"), staged, aliases={link: f"{TREE}/pkg/sub"})
    plan = plan_of(disk, in_site("pkg/sub/a.py", "old/b.py"))
    # `old` has to stay for what is staged through it, `pkg` for the path to what it leads to.
    assert kinds(plan) == {"old/b.py": Kind.REMOVE, "pkg/sub": Kind.EXCHANGE}


def test_a_symbolic_link_that_leads_out_of_all_roots_is_refused():
    disk = disk_with(["/etc/x"], [f"{TREE}/old/link/x"], aliases={f"{TREE}/old/link": "/etc"})
    with pytest.raises(MergeRefused, match="/etc/x"):
        plan_of(disk)


def test_a_symbolic_link_goes_with_the_directory_it_is_in():
    links = {f"{TREE}/pkg.egg/link": f"{TREE}/data"}
    disk = disk_with(in_site("pkg.egg/a.py", "data/b"), in_site("pkg.egg/link/b"), aliases=links)
    assert kinds(plan_of(disk, in_site("pkg.egg"))) == {"pkg.egg": Kind.EXCHANGE}


LINK = f"{TREE}/a/alias"


def test_what_is_staged_through_a_symbolic_link_that_goes_takes_its_place():
    disk = disk_with(["/v/share/a", *in_site("a/theirs")], [f"{LINK}/a"], aliases={LINK: SHARED})
    plan = plan_of(disk, [LINK, "/v/share/a"], in_site("a/theirs"))
    assert kinds(plan) == {"a/alias": Kind.SWAP, "/v/share": Kind.REMOVE}
    assert not stat.S_ISDIR(seen_before(plan, "a/alias").mode)


def test_so_it_is_with_one_that_goes_with_the_directory_it_is_in():
    disk = disk_with(["/v/share/a"], [f"{LINK}/a"], aliases={LINK: SHARED})
    plan = plan_of(disk, [*in_site("a"), "/v/share/a"])
    assert kinds(plan) == {"a": Kind.EXCHANGE, "/v/share": Kind.REMOVE}


def test_bytecode_staged_through_a_symbolic_link_that_goes_is_not_where_it_led():
    staged = [f"{LINK}/{CACHE}/c.cpython-313.pyc", "/v/share/c.py"]
    live = [f"/v/share/{CACHE}/c.cpython-313.pyc", *in_site(f"a/{CACHE}/c.cpython-313.pyc")]
    disk = disk_with(live, staged, aliases={LINK: SHARED})
    plan = plan_of(disk, [*live, *in_site("a")])
    assert kinds(plan) == {"a": Kind.EXCHANGE, f"/v/share/{CACHE}": Kind.REMOVE, "/v/share/c.py": Kind.NEW}


def test_what_takes_the_place_of_a_symbolic_link_is_on_the_volume_of_the_link():
    staged = [f"{LINK}/{CACHE}/c.cpython-313.pyc", "/v/share/c.py"]
    disk = disk_with([], staged, aliases={LINK: SHARED}, is_mounted=True, going=in_site("a"))
    plan = plan_of(disk, in_site("a"))
    assert {each.path: each.part for each in plan.operations} == {"a": 0, "share/c.py": 1}
    disk = disk_with([], staged, aliases={LINK: SHARED}, is_mounted=True)
    with pytest.raises(NeedsPart) as caught:
        plan_of(disk, in_site("a"))
    assert (caught.value.volume, caught.value.staged) == ((1, 0), f"/stage1{TREE}/a")


def test_a_directory_that_only_a_symbolic_link_leads_into_is_exchanged_as_the_directory_that_it_is():
    live = in_site("pkg/sub/a.py")
    disk = disk_with(live, ["/v/alias/a.py"], aliases={"/v/alias": f"{TREE}/pkg/sub"})
    plan = plan_of(disk, live)
    assert kinds(plan) == {"pkg/sub": Kind.EXCHANGE}
    assert only(plan).old == Seen(stat.S_IFDIR | 0o755, 0, 0)
    assert [each.path for each in plan.moved] == [f"{TREE}/pkg/sub"]
    assert tidied(plan) == [], "there is something in what it lies in"


def test_a_symbolic_link_goes_with_a_directory_that_only_another_one_leads_into():
    links = {"/v/alias": f"{TREE}/pkg.egg/sub", f"{TREE}/pkg.egg/sub/link": SHARED}
    disk = disk_with(in_site("pkg.egg/a.py"), ["/v/alias/link/x"], aliases=links)
    plan = plan_of(disk, in_site("pkg.egg"))
    assert kinds(plan) == {"pkg.egg/a.py": Kind.REMOVE, "pkg.egg/sub": Kind.EXCHANGE}


def test_what_comes_through_one_symbolic_link_by_two_names_is_put_together_once():
    links = {"/v/alias": f"{TREE}/a", LINK: SHARED}
    disk = disk_with([], ["/v/alias/alias/new/x", f"{LINK}/new/y"], aliases=links)
    plan = plan_of(disk)
    assert kinds(plan) == {"/v/share/new": Kind.NEW}
    assert plan.links == (Link(f"/stage0{LINK}/new/y", "/stage0/v/alias/alias/new/y"),)


# Volumes.


def test_a_volume_without_a_part_needs_one():
    disk = disk_with(["/v/share/x"], ["/v/share/a", "/v/share/b"])
    directory_at(disk.live, "/v/share").volume = (3, 0)
    with pytest.raises(NeedsPart) as caught:
        plan_of(disk)
    assert caught.value.volume == (3, 0)
    assert caught.value.directory == "/v/share"
    assert caught.value.staged == "/stage0/v/share", "all files of a directory at once"


def test_what_is_staged_for_other_volumes_as_well_moves_by_itself():
    disk = disk_with([], ["/v/new/a", f"{TREE}/a.py"])
    directory_at(disk.live, "/v").volume = (2, 0)
    directory_at(disk.live, TREE).volume = (1, 0)
    with pytest.raises(NeedsPart) as caught:
        plan_of(disk)
    assert caught.value.staged == "/stage0/v/new"


def test_a_removal_needs_a_part_as_well_in_a_directory_that_will_stay():
    disk = disk_with(["/v/share/doc/pkg/a", "/v/share/b"], [])
    directory_at(disk.live, "/v/share").volume = (3, 0)
    with pytest.raises(NeedsPart) as caught:
        plan_of(disk, ["/v/share/doc/pkg/a"])
    assert (caught.value.directory, caught.value.staged) == ("/v/share", "")


def test_a_directory_on_another_volume_is_not_moved():
    disk = disk_with(["/v/share/a"], [], is_mounted=True)
    plan = plan_of(disk, ["/v/share/a"])
    assert kinds(plan) == {"/v/share/a": Kind.REMOVE}
    assert [each.part for each in plan.operations] == [1]
    assert tidied(plan) == []


def test_two_looks_at_one_directory_count_as_one():
    disk = disk_with(["/v/share/x/a", *in_site("a.py")], ["/v/share/x/a", *in_site("a.py")], is_mounted=True)
    going = ["/v/share/x/a", *in_site("a.py")]
    (_, first, live), (_, second, _) = disk.trees()
    v = live.entries["v"]  # type: ignore[index]

    def with_only(name: str) -> Entry:
        entries = {name: v.entries[name], "bin": v.entries["bin"]._replace(entries=None)}  # type: ignore[index]
        return live._replace(entries={"v": v._replace(entries=entries)})

    trees = [(0, first, with_only("site")), (1, second, with_only("share"))]
    plan = merge(trees, going, disk.situation(lambda path: False))
    assert kinds(plan) == {"a.py": Kind.FILE, "/v/share/x": Kind.EXCHANGE}


def test_what_was_merged_by_itself_is_not_merged_again_with_what_it_lies_in():
    disk = disk_with(in_site("a.py"), in_site("a.py", "b.py"))
    ((part, staged, live), _) = disk.trees()
    inner = [entry.entries["v"].entries["site"] for entry in (staged, live)]  # type: ignore[index,union-attr]
    plan = merge([(part, *inner), (part, staged, live)], in_site("a.py"), disk.situation(lambda path: False))
    assert kinds(plan) == {"a.py": Kind.FILE, "b.py": Kind.NEW}
    assert {each.staged for each in plan.operations} == {"v/site/a.py", "v/site/b.py"}


# Order.


def test_the_payload_comes_before_the_metadata_and_leaves_after_it():
    live = ["/v/bin/old", *in_site("old.py", "pkg/a.py", "pkg-1.dist-info/RECORD")]
    staged = ["/v/bin/new", *in_site("new.py", "pkg/a.py", "pkg-2.dist-info/RECORD")]
    assert order(planned(live, staged, live)) == [
        "new.py",
        "pkg",
        "/v/bin/new",
        "pkg-2.dist-info",
        "pkg-1.dist-info",
        "/v/bin/old",
        "old.py",
    ]


def test_metadata_comes_in_the_order_of_dependencies_and_leaves_in_the_reverse():
    infos = ["b-1.dist-info", "c-1.dist-info", "a-1.dist-info"]
    files = in_site(*(f"{info}/RECORD" for info in infos))
    assert order(plan_of(disk_with([], files), order=tuple(infos))) == infos
    assert order(plan_of(disk_with(files, []), files, order=tuple(infos))) == infos[::-1]


def test_each_thing_that_leaves_has_a_name_of_its_own_in_the_trash():
    live = in_site("a.py", "b.py", "c/d.py")
    names = [each.trash for each in planned(live, in_site("a.py"), live).operations]
    assert len(set(names)) == 3
    assert all(name.isdecimal() for name in names)


# Times.


def test_sources_of_the_same_second_are_named():
    disk = disk_with(in_site("a.py", "pkg/b.py", "pkg/c.py", "pkg/d"), in_site("a.py", "pkg/b.py", "pkg/c.py", "pkg/d"))
    times: Mapping[str, int] = {f"{TREE}/a.py": 5, f"/stage0{TREE}/a.py": 7 * 10**9}
    later = {f"{TREE}/pkg/b.py": 7 * 10**9 + 1, f"/stage0{TREE}/pkg/b.py": 7 * 10**9 + 2}
    time = {**times, **later}

    def look(path: str) -> Seen:
        number = 0 if path.endswith("/d") else time.get(path, len(path) * 10**9)
        return Seen(stat.S_IFREG, 1, number)

    plan = plan_of(disk, in_site("a.py", "pkg/b.py", "pkg/c.py", "pkg/d"), read=look)
    assert plan.same_second == ((f"/stage0{TREE}/pkg/b.py", 7 * 10**9 + 1),)
    plan = plan_of(disk, in_site("a.py"), read=lambda path: Seen(stat.S_IFREG, 1, 5))
    assert {path for path, _ in plan.same_second} == {
        f"/stage0{TREE}/{name}" for name in ("a.py", "pkg/b.py", "pkg/c.py")
    }


def test_a_file_that_has_gone_meanwhile_is_in_no_state(tmp_path):
    (tmp_path / "a").write_text("abc")
    assert seen_at(str(tmp_path / "a")).size == 3
    assert seen_at(str(tmp_path / "b")) == Seen(0, 0, 0)
    assert seen_at(str(tmp_path / "a" / "b")) == Seen(0, 0, 0)


def test_names_are_strings_whatever_they_are():
    names = ["\udcff\n", "Ä", "a\nb/c d", "UPPER", "upper"]
    plan = planned(in_site("\udcff\n"), in_site(*names), in_site("\udcff\n"))
    assert kinds(plan) == {"\udcff\n": Kind.FILE, "Ä": Kind.NEW, "a\nb": Kind.NEW, "UPPER": Kind.NEW, "upper": Kind.NEW}
