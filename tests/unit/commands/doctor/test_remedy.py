"""What would repair what was found."""

from __future__ import annotations

import json

import pytest

from safe_pip.commands.doctor.checkup import Finding, Installed, Kind, Row
from safe_pip.commands.doctor.remedy import described, needs_reinstalling, requirement

INFO = "/v/demo-1.dist-info"
DEMO = Installed("/v", INFO, "demo", "1", ("demo", "1"), (Row("/v/demo.py"),), installer="pip")


def finding(kind: Kind, project: str = "demo", version: str = "1") -> Finding:
    return Finding(kind, "/v", "/v/x", project, version, info=INFO)


def repair(kind: Kind, installed: Installed | None = DEMO, *, damaged: bool = False, elsewhere: bool = False) -> str:
    wanted = None if installed is None else requirement(installed)
    return described(finding(kind), installed, wanted, is_damaged=damaged, is_elsewhere=elsewhere)


@pytest.mark.parametrize(
    "kind",
    [Kind.MISSING_FILE, Kind.CHANGED_FILE, Kind.MISSING_METADATA, Kind.WRONG_METADATA, Kind.MISSING_RECORD]
    + [Kind.UNREADABLE_RECORD],
)
def test_a_damaged_distribution_is_reinstalled_in_its_version(kind: Kind) -> None:
    assert repair(kind) == "reinstall `demo==1`"
    assert needs_reinstalling(finding(kind), DEMO)


@pytest.mark.parametrize("kind", [Kind.OVERWRITTEN_FILE, Kind.UNREADABLE_FILE])
def test_what_a_reinstall_does_not_help_is_not_repaired(kind: Kind) -> None:
    assert repair(kind) == ""


def test_what_another_tool_looks_after_is_left_to_it() -> None:
    assert repair(Kind.CHANGED_FILE, DEMO._replace(installer="conda")) == ""
    assert repair(Kind.CHANGED_FILE, DEMO._replace(installer="uv")) == "reinstall `demo==1`"


def test_what_says_nothing_of_itself_is_removed() -> None:
    assert repair(Kind.MISSING_METADATA, DEMO._replace(metadata=None, rows=None)) == "remove the directory"
    assert repair(Kind.MISSING_RECORD, DEMO._replace(metadata=None, rows=None)) == "remove the directory"


def test_leftovers_wrappers_and_what_we_left_are_removed() -> None:
    for kind in (Kind.OWNERLESS_SCRIPT, Kind.ABANDONED):
        assert repair(kind, None) == "remove it"
    assert repair(Kind.LEFTOVER, None, elsewhere=True) == "remove it"
    assert described(finding(Kind.LEFTOVER, "", ""), None, None) == "remove it"


def test_a_leftover_that_is_all_there_is_of_a_project_brings_it_back() -> None:
    assert repair(Kind.LEFTOVER, None) == "reinstall `demo==1`, then remove it"


def test_of_several_versions_one_stays() -> None:
    assert repair(Kind.DOUBLED_PROJECT) == "remove the others"
    assert repair(Kind.DOUBLED_PROJECT, damaged=True) == "remove the others, then reinstall `demo==1`"


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
def test_it_comes_from_where_it_came_from(origin: object, words: tuple[str, ...]) -> None:
    found = requirement(DEMO._replace(origin=json.dumps(origin)))
    assert found is not None
    assert found.words == words


def test_metadata_that_was_exchanged_does_not_say_which_version_it_was() -> None:
    assert str(requirement(DEMO._replace(version="2", metadata=("demo", "2")))) == "demo==1"
    assert str(requirement(DEMO._replace(name="other", metadata=("other", "1")))) == "demo==1"
    assert str(requirement(DEMO._replace(name="Demo", version="1.0"))) == "Demo==1.0"
    assert requirement(DEMO._replace(name="demo", version="", info="/v/demo.dist-info")) is None
