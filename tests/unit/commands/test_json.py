"""What `--json` prints is what the schemas in the package say: every key, and no other."""

from __future__ import annotations

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

import safe_pip
from safe_pip.commands import options
from safe_pip.commands.doctor.examination import Kind
from safe_pip.commands.merge import Conflicts
from safe_pip.launch.settings import Settings
from safe_pip.locking.flock import Descriptor, try_lock
from tests.support.processes.proc import fake_mount
from tests.support.trees.prefixes import SITE, distribution, stage
from tests.support.venvs.direct_installs import SilentReporter

SCHEMAS = {file.stem: json.loads(file.read_text()) for file in Path(safe_pip.__file__).parent.glob("schemas/*.json")}
ID = "0123456789abcdef"


def objects(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("$defs", {}).values()]


def run(capfd: pytest.CaptureFixture[str], verb: str, *words: str | Path) -> dict[str, Any]:
    """The document that a verb prints, which is valid."""
    with suppress(Conflicts):
        options.run(verb, ["--json", *map(str, words)], Settings(lock_timeout=0), SilentReporter())
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    Draft202012Validator(SCHEMAS[verb]).validate(document)
    return document


def lists(document: dict[str, Any]) -> set[str]:
    """The lists that have something in them."""
    return {name for name, value in document.items() if isinstance(value, list) and value}


def test_each_verb_that_prints_json_has_a_strict_schema() -> None:
    verbs = {verb for verb, each in options.TABLE.items() if options.JSON in each.options}
    assert {*SCHEMAS} == {*verbs, "doctor-filesystem"}
    for verb, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert schema["title"] == f"safe-pip {verb.replace('-', ' --')} --json"
        for each in objects(schema):
            assert each["additionalProperties"] is False
            assert each["required"] == [*each["properties"]]
            assert all(value["description"] for value in each["properties"].values())


def test_a_key_is_the_same_in_all_documents() -> None:
    types = defaultdict(set)
    for each in itertools.chain(*map(objects, SCHEMAS.values())):
        for name, value in each["properties"].items():
            said = value.get("type", "enum")
            types[name].add(said if isinstance(said, str) else said[0])
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


def test_a_forgotten_key_and_a_missing_one_are_noticed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site-packages").mkdir()
    document = run(capfd, "status", "--env", tmp_path / "site-packages")
    for other in ({**document, "new": 1}, {name: value for name, value in document.items() if name != "hidden"}):
        with pytest.raises(ValidationError):
            Draft202012Validator(SCHEMAS["status"]).validate(other)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="there is no /proc/locks")
def test_a_status_is_valid(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = stage(empty / "venv" / SITE, {".safe-pip/commit": "", ".safe-pip/owner": ""})
    for suffix in ("owner", "journal"):
        note = {"pid": 4_000_000_000, "command": "pip install x", "since": 5.0}
        (tree / ".safe-pip" / f"{ID}.{suffix}").write_text(json.dumps(note) + "\n")
    stage(empty / "other" / SITE, {"pip/__init__.py": ""})
    options.run("adopt", ["--env", str(empty / "other" / SITE)], Settings(), SilentReporter())
    capfd.readouterr()
    with Descriptor(tree) as held:
        assert try_lock(held, exclusive=True)
        document = run(capfd, "status", "--env", tree)
        assert lists(document) == {"trees", "locks", "transactions"}
        assert document["locks"][0]["holders"][0]["pid"] == os.getpid()
        assert lists(run(capfd, "status", "--env", empty / "other" / SITE)) == {"trees", "locks", "adopted"}
        assert str(tree) in run(capfd, "status", "--all")["trees"]


def test_a_status_on_a_filesystem_of_several_hosts_is_valid(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = stage(empty / "venv" / SITE, {"x": ""})
    fake_mount(tmp_path, monkeypatch, tree, "nfs4 server:/export rw,local_lock=all")
    assert lists(run(capfd, "status", "--env", tree)) >= {"trees", "filesystems"}


def test_every_kind_of_finding_is_in_the_schema() -> None:
    kinds = {name: {*each["properties"]["kind"]["enum"]} for name, each in SCHEMAS["doctor"]["$defs"].items()}
    assert kinds["note"] == {kind.value for kind in Kind if kind.is_note}
    assert kinds["finding"] == {kind.value for kind in Kind if not kind.is_note}


def test_what_doctor_finds_is_valid(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = distribution("alpha", "1", {f"{SITE}/alpha.py": "1\n"})
    tree = stage(empty / "venv", {**files, f"{SITE}/.safe-pip/kept-{ID}/x": "", f"{SITE}/~x.dist-info/x": ""}) / SITE
    for name in ("commit", "commit.gate", "environment.gate", "keep", "keep.gate"):
        (tree / ".safe-pip" / name).touch()
    (tree / "alpha.py").write_text("changed\n")
    assert lists(run(capfd, "doctor", "--env", tree)) == {"trees", "findings", "notes"}
    assert run(capfd, "doctor", "-n", "--repair", "--env", tree)["dry_run"]
    assert lists(run(capfd, "doctor", "--repair", "--env", tree)) >= {"repaired", "findings"}
    (tree / ".safe-pip" / f"{ID}.journal").write_text("no journal")
    assert run(capfd, "doctor", "--env", tree)["distributions"] is None


def merges(empty: Path) -> Iterator[list[str | Path]]:
    old = distribution("alpha", "1", {f"{SITE}/alpha.py": "1\n", "share/old": "1\n"})
    stage(empty / "prefix", {**old, "same": "same\n", "conflict": "old\n"})
    new = distribution("alpha", "2", {f"{SITE}/alpha.py": "2\n"})
    stage(empty / "staged", {**new, "same": "same\n", "conflict": "new\n", "new/file": "new\n", "new/gone": "x\n"})
    words = [empty / "staged", "--into", empty / "prefix"]
    yield [*words, "-n"]
    yield [*words, "--on-conflict", "fail"]
    yield [*words, "--on-conflict", "keep", "--manifest", empty / "m"]
    yield words


def test_what_a_merge_and_its_removal_do_is_valid(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = [run(capfd, "merge", *words) for words in merges(empty)]
    assert [each["changed"] for each in done] == [True, False, True, True]
    assert set().union(*map(lists, done)) == {"put", "made", "same", "removed", "replaced", "kept", "conflicts"}
    (empty / "prefix" / "new" / "file").write_text("changed\n")
    (empty / "prefix" / "new" / "gone").unlink()
    stage(empty / "prefix", distribution("late", "1", {f"{SITE}/alpha.py": "2\n"}))
    assert run(capfd, "unmerge", "-n", empty / "m")["dry_run"]
    gone = run(capfd, "unmerge", empty / "m")
    assert lists(gone) == {"removed", "directories", "kept", "gone", "left"}
    assert {each["reason"] for each in gone["kept"]} == {"changed", "owned"}


def test_what_a_merge_in_place_of_another_does_is_valid(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words, first = ["--into", empty / "prefix", "--manifest"], empty / "manifests/first"
    first.parent.mkdir()
    tree = stage(empty / "1", {"a/edited": "", "a/gone": "", "b/old": "", "b/shared": "", "conflict": "1"})
    run(capfd, "merge", tree, *words, first)
    stage(empty / "prefix", {"a/edited": "edited"})
    (empty / "prefix/a/gone").unlink()
    tree = stage(empty / "2", {"b/shared": "", "conflict": "2", "c/x": ""})
    replaced = run(capfd, "merge", tree, *words, empty / "manifests/second")["replaced"]
    assert replaced == [{"path": str(empty / "prefix/conflict"), "owner": None, "manifest": str(first)}]
    for more in (["-n"], []):
        found = run(capfd, "merge", *more, stage(empty / "3", {"new": ""}), *words, first)
        assert lists(found) == {"put", "removed", "kept", "gone", "left"}
        assert [(each["reason"], each["manifest"]) for each in found["kept"]] == [
            ("changed", None),
            ("changed", None),
            ("owned", str(empty / "manifests/second")),
        ]
    assert lists(run(capfd, "merge", stage(empty / "4", {"c/x": ""}), *words, first)) == {"same", "removed", "left"}
