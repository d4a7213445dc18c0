"""Every kind of damage to a distribution is found, and nothing is found in what is sound."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from safe_pip.commands.doctor import examination
from safe_pip.commands.doctor.examination import (
    Finding,
    Installed,
    Kind,
    check,
    judge,
    named,
    requirement,
    rows_of,
    same_version,
)
from safe_pip.records import RealPaths, Row
from tests.support.wheels.tiny import digest

FILES = {"demo/__init__.py": "x = 1\n", "demo/data.txt": "data\n"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty tree."""
    made = tmp_path / "site-packages"
    made.mkdir()
    return made


def install(
    tree: Path, name: str = "demo", version: str = "1", files: Mapping[str, str] = FILES, metadata: str | None = None
) -> Path:
    """Write the files of a distribution, its metadata and RECORD; on return its dist-info."""
    info = f"{name}-{version}.dist-info"
    content = dict(files)
    content[f"{info}/METADATA"] = f"Name: {name}\nVersion: {version}\n" if metadata is None else metadata
    content[f"{info}/INSTALLER"] = "pip\n"
    for path, text in content.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    rows = [f"{path},{digest(text.encode())},{len(text)}" for path, text in content.items()]
    (tree / info / "RECORD").write_text("\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return tree / info


def read(info: Path, **more: object) -> Installed:
    """What is installed, read by hand."""
    name, version = named(str(info))
    metadata, rows, problem = None, None, ""
    if (info / "METADATA").is_file():
        fields = dict(line.split(": ") for line in (info / "METADATA").read_text().splitlines())
        metadata = fields["Name"], fields["Version"]
    if (info / "RECORD").is_file():
        try:
            rows = rows_of(str(info.parent), (info / "RECORD").read_text(), RealPaths())
        except ValueError as error:
            problem = str(error)
    installer = (info / "INSTALLER").read_text().strip() if (info / "INSTALLER").is_file() else ""
    found = Installed(str(info.parent), str(info), name, version, metadata, rows, problem, installer)
    return found._replace(**more)  # type: ignore[arg-type]


def found(*infos: Path) -> list[tuple[Kind, str]]:
    """Kind and path of everything that is found in these."""
    installed = [read(info) for info in infos]
    findings = judge(installed, {each.info: check(each) for each in installed})
    return [(finding.kind, os.path.relpath(finding.path, infos[0].parent)) for finding in findings]


def test_nothing_is_found_in_what_is_as_it_was_installed(tree: Path) -> None:
    assert found(install(tree), install(tree, "other", files={"other.py": ""})) == []


def write(path: str, text: str) -> Callable[[Path], object]:
    return lambda tree: (tree / path).write_text(text)


def remove(path: str) -> Callable[[Path], object]:
    return lambda tree: (tree / path).unlink()


def put_directory(path: str) -> Callable[[Path], object]:
    return lambda tree: ((tree / path).unlink(), (tree / path).mkdir())


INFO = "demo-1.dist-info"


@pytest.mark.parametrize(
    ("damage", "kind", "path"),
    [
        (remove("demo/data.txt"), Kind.MISSING_FILE, "demo/data.txt"),
        (write("demo/data.txt", "dada\n"), Kind.CHANGED_FILE, "demo/data.txt"),
        (write("demo/data.txt", "longer\n"), Kind.CHANGED_FILE, "demo/data.txt"),
        (put_directory("demo/data.txt"), Kind.CHANGED_FILE, "demo/data.txt"),
        (write(f"{INFO}/RECORD", ""), Kind.UNREADABLE_RECORD, f"{INFO}/RECORD"),
        (write(f"{INFO}/RECORD", "demo.py,sha256=x,many\n"), Kind.UNREADABLE_RECORD, f"{INFO}/RECORD"),
        (remove(f"{INFO}/RECORD"), Kind.MISSING_RECORD, f"{INFO}/RECORD"),
        (remove(f"{INFO}/METADATA"), Kind.MISSING_METADATA, f"{INFO}/METADATA"),
        (write(f"{INFO}/METADATA", "Name: demo\nVersion: 2\n"), Kind.WRONG_METADATA, f"{INFO}/METADATA"),
        (write(f"{INFO}/METADATA", "Name: omed\nVersion: 1\n"), Kind.WRONG_METADATA, f"{INFO}/METADATA"),
    ],
)
def test_damage_is_found_where_it_is(tree: Path, damage: Callable[[Path], object], kind: Kind, path: str) -> None:
    info = install(tree)
    damage(tree)
    assert (kind, path) in found(info)
    assert all(named == path for _, named in found(info))


def test_a_file_below_what_is_no_directory_is_missing(tree: Path) -> None:
    info = install(tree, files={"demo/deep/a.py": ""})
    (tree / "demo" / "deep" / "a.py").unlink()
    (tree / "demo" / "deep").rmdir()
    (tree / "demo" / "deep").write_text("")
    assert found(info) == [(Kind.MISSING_FILE, "demo/deep/a.py")]


def test_a_file_that_may_not_be_read_is_found_as_such(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = install(tree)

    def refuse(path: str, algorithm: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(examination, "digest_file", refuse)
    assert {kind for kind, _ in found(info)} == {Kind.UNREADABLE_FILE}


def test_bytecode_is_no_part_of_the_promise_but_a_module_without_source_is(tree: Path) -> None:
    compiled = {"demo.py": "", "__pycache__/demo.cpython-310.pyc": "old", "sourceless.pyc": "code"}
    info = install(tree, files=compiled)
    (tree / "__pycache__" / "demo.cpython-310.pyc").write_text("new")
    assert found(info) == []
    (tree / "__pycache__" / "demo.cpython-310.pyc").unlink()
    assert found(info) == []
    (tree / "sourceless.pyc").write_text("dead")
    assert found(info) == [(Kind.CHANGED_FILE, "sourceless.pyc")]


def test_bytecode_that_record_lists_and_no_tool_makes_is_not_missed(tree: Path) -> None:
    """As virtualenv lists it, for the pip that it puts into an environment."""
    info = install(tree, files={"demo.py": ""})
    with open(info / "RECORD", "a") as record:
        record.write("demo.cpython-310.pyc,,\n__pycache__,,\n")
    assert found(info) == []
    with open(info / "RECORD", "a") as record:
        record.write("gone.py,,\n")
    assert found(info) == [(Kind.MISSING_FILE, "gone.py")]


@pytest.mark.parametrize("row", ["demo.py,,", "demo.py", "demo.py,,3", "demo.py,md6=abc,3", '"demo.py",,3'])
def test_a_row_without_a_digest_we_know_is_looked_at_for_existence_and_size(tree: Path, row: str) -> None:
    info = install(tree, files={"demo.py": "one"})
    (info / "RECORD").write_text(row + "\n")
    (tree / "demo.py").write_text("two")
    assert found(info) == []
    (tree / "demo.py").unlink()
    assert found(info) == [(Kind.MISSING_FILE, "demo.py")]


def test_an_old_digest_with_padding_is_understood(tree: Path) -> None:
    info = install(tree, files={"demo.py": "one"})
    (info / "RECORD").write_text(f"demo.py,{digest(b'one')}=,3\n")
    assert found(info) == []


def test_a_link_counts_as_what_it_leads_to(tree: Path) -> None:
    info = install(tree)
    (tree / "elsewhere").write_text(FILES["demo/data.txt"])
    (tree / "demo" / "data.txt").unlink()
    (tree / "demo" / "data.txt").symlink_to(tree / "elsewhere")
    assert found(info) == []
    (tree / "elsewhere").unlink()
    assert found(info) == [(Kind.MISSING_FILE, "demo/data.txt")]


def test_two_versions_are_one_finding_that_names_the_complete_one(tree: Path) -> None:
    older, newer = install(tree, version="1"), install(tree, version="2", files={"demo/__init__.py": "x = 2\n"})
    installed = [read(older), read(newer)]
    (finding,) = judge(installed, {each.info: check(each) for each in installed})
    assert (finding.kind, finding.info, finding.version) == (Kind.DOUBLED_PROJECT, str(newer), "2")
    assert finding.detail == "`demo-2.dist-info` is complete, beside `demo-1.dist-info`"


def test_of_several_damaged_versions_the_least_damaged_one_is_told_with_its_damage(tree: Path) -> None:
    older, newer = (
        install(tree, version="1"),
        install(tree, version="2", files={"demo/two.py": "", "demo/three.py": ""}),
    )
    for name in ("two.py", "three.py", "data.txt"):
        (tree / "demo" / name).unlink()
    assert found(older, newer) == [(Kind.DOUBLED_PROJECT, INFO), (Kind.MISSING_FILE, "demo/data.txt")]


def test_an_egg_info_beside_a_dist_info_is_doubled_and_never_what_is_kept(tree: Path) -> None:
    info = install(tree)
    (tree / "Demo-1-py3.egg-info").mkdir()
    assert found(tree / "Demo-1-py3.egg-info", info) == [(Kind.DOUBLED_PROJECT, INFO)]
    assert found(tree / "Demo-1-py3.egg-info") == []


def test_a_file_that_another_distribution_has_overwritten_is_named_with_its_owner(tree: Path) -> None:
    first = install(tree, files={"shared.py": "first\n"})
    second = install(tree, "other", files={"shared.py": "second\n"})
    installed = [read(first), read(second)]
    (finding,) = judge(installed, {each.info: check(each) for each in installed})
    assert finding.kind is Kind.OVERWRITTEN_FILE
    assert (finding.project, finding.detail) == ("demo", "it is `other`'s")


def test_a_file_that_two_distributions_have_alike_is_sound(tree: Path) -> None:
    assert found(install(tree, files={"a/b.py": ""}), install(tree, "other", files={"a/b.py": ""})) == []


def test_a_missing_record_of_another_tool_is_a_note(tree: Path) -> None:
    info = install(tree)
    (info / "RECORD").unlink()
    (finding,) = check(read(info, installer="debian"))
    assert finding.kind is Kind.NOT_OURS
    assert finding.kind.is_note
    assert not Kind.MISSING_RECORD.is_note


def test_rows_lead_where_the_files_are_through_links_and_out_of_a_target(tmp_path: Path) -> None:
    tree = tmp_path / "lib" / "site-packages"
    tree.mkdir(parents=True)
    (tmp_path / "lib64").symlink_to("lib")
    paths = RealPaths()
    (row,) = rows_of(str(tmp_path / "lib64" / "site-packages"), "../../bin/demo,,\n", paths)
    assert row.path == str(tmp_path / "bin" / "demo")
    target = tmp_path / "target"
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "demo").touch()
    (row,) = rows_of(str(target), "../../bin/demo,,\n", paths)
    assert row.path == str(target / "bin" / "demo")


def test_names_with_line_separators_and_commas_are_read_whole(tree: Path) -> None:
    rows = rows_of(str(tree), '"a,b.py",,\r\n"c\u2028d.py",,1\r\n', RealPaths())
    assert [os.path.basename(row.path) for row in rows] == ["a,b.py", "c\u2028d.py"]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("1.0", "1", True),
        ("1.0.0", "1.0", True),
        ("2020.01.05", "2020.1.5", True),
        ("1.0a1", "1alpha1", True),
        ("1.0+local_1", "1.0+local-1", True),
        ("1.0+local.1", "1.0_local.1", True),
        ("v1.2", "1.2", True),
        ("1.10", "1.1", False),
        ("1.0", "1.0.1", False),
        ("1.0", "1.0a1", False),
        ("1.0.post1", "1.0.post2", False),
        ("unknown", "1", False),
    ],
)
def test_spellings_of_one_version_are_the_same(one: str, other: str, is_same: bool) -> None:
    assert same_version(one, other) is is_same


def test_a_finding_is_of_the_distribution_it_was_found_in(tree: Path) -> None:
    info = install(tree)
    (tree / "demo" / "data.txt").unlink()
    (finding,) = check(read(info))
    path = str(tree / "demo" / "data.txt")
    repair = "reinstall `demo==1`", ("demo==1",)
    assert finding == Finding(Kind.MISSING_FILE, str(tree), path, "demo", "1", "", str(info), *repair)


DEMO_INFO = "/v/demo-1.dist-info"
DEMO = Installed("/v", DEMO_INFO, "demo", "1", ("demo", "1"), (Row("/v/demo.py"),), installer="pip")


def repair(kind: Kind, installed: Installed) -> str:
    """What repairs a finding about `demo`, with the arguments of `pip install` that it names."""
    found = installed.finding(kind, "/v/x")
    assert all(word in found.repair for word in found.again)
    return found.repair


@pytest.mark.parametrize(
    "kind",
    [Kind.MISSING_FILE, Kind.CHANGED_FILE, Kind.MISSING_METADATA, Kind.WRONG_METADATA, Kind.MISSING_RECORD]
    + [Kind.UNREADABLE_RECORD],
)
def test_a_damaged_distribution_is_reinstalled_in_its_version(kind: Kind) -> None:
    assert repair(kind, DEMO) == "reinstall `demo==1`"


@pytest.mark.parametrize("kind", [Kind.OVERWRITTEN_FILE, Kind.UNREADABLE_FILE])
def test_a_finding_that_a_reinstall_does_not_help_has_no_repair(kind: Kind) -> None:
    assert repair(kind, DEMO) == ""


def test_a_distribution_that_another_tool_looks_after_is_left_to_it() -> None:
    assert repair(Kind.CHANGED_FILE, DEMO._replace(installer="conda")) == ""
    assert repair(Kind.CHANGED_FILE, DEMO._replace(installer="uv")) == "reinstall `demo==1`"


def test_a_dist_info_that_names_no_project_is_removed() -> None:
    assert repair(Kind.MISSING_METADATA, DEMO._replace(metadata=None, rows=None)) == "remove the directory"
    assert repair(Kind.MISSING_RECORD, DEMO._replace(metadata=None, rows=None)) == "remove the directory"


def test_of_several_versions_one_stays() -> None:
    assert repair(Kind.DOUBLED_PROJECT, DEMO) == "remove the others"


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ({"url": "file:///src/de%20mo", "dir_info": {"editable": True}}, ("-e", "/src/de mo")),
        ({"url": "file:///src", "dir_info": {"editable": True}, "subdirectory": "demo"}, ("-e", "/src/demo")),
        ({"url": "file:///src/demo", "dir_info": {}}, ("demo @ file:///src/demo",)),
        (
            {"url": "https://host/demo.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "x"},
            ("demo @ git+https://host/demo.git@abc#subdirectory=x",),
        ),
        (
            {"url": "file:///d.whl", "archive_info": {"hashes": {"sha256": "12"}}},
            ("demo @ file:///d.whl#sha256=12",),
        ),
        ({"url": "file:///d.whl", "archive_info": {}}, ("demo @ file:///d.whl",)),
        ({"no": "url"}, ("demo==1",)),
        (["no", "object"], ("demo==1",)),
    ],
)
def test_a_distribution_is_reinstalled_from_where_it_came_from(origin: object, words: tuple[str, ...]) -> None:
    assert requirement(DEMO._replace(origin=json.dumps(origin))) == words


def test_metadata_that_was_exchanged_does_not_say_which_version_it_was() -> None:
    assert requirement(DEMO._replace(version="2", metadata=("demo", "2"))) == ("demo==1",)
    assert requirement(DEMO._replace(name="other", metadata=("other", "1"))) == ("demo==1",)
    assert requirement(DEMO._replace(name="Demo", version="1.0")) == ("Demo==1.0",)
    assert requirement(DEMO._replace(name="demo", version="", info="/v/demo.dist-info")) == ()
