"""`--dry-run`: what a verb would do is what it then does, and until then nothing is changed; `-q` and `-v`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from safe_pip.commands import options
from safe_pip.errors import SafePipError
from safe_pip.launch.settings import Settings
from tests.support.faults.transaction import IDENTIFIER, StagedTransaction
from tests.support.trees.prefixes import SITE, distribution, exact, stage
from tests.support.venvs.direct_installs import SilentReporter

Capture = pytest.CaptureFixture[str]


def everything(root: Path) -> dict[str, tuple[str, ...]]:
    """All of a directory, with what safe-pip has there for itself."""
    own = {str(path): (path.name,) for path in root.rglob(".safe-pip*/**/*")}
    return exact(root) | own


def run(*words: str | Path) -> int:
    verb, *rest = map(str, words)
    return options.run(verb, rest, Settings(lock_timeout=0), SilentReporter())


def told(capfd: Capture, *words: str | Path) -> tuple[dict[str, Any], list[str]]:
    """The JSON document that a command prints, and its warnings."""
    run(*words, "--json")
    found = capfd.readouterr()
    return json.loads(found.out), found.err.replace("would be", "was").splitlines()


def compare(capfd: Capture, top: Path, *words: str | Path) -> dict[str, Any]:
    before = everything(top)
    foreseen, warned = told(capfd, *words, "-n")
    assert everything(top) == before
    done, said = told(capfd, *words)
    assert everything(top) != before
    assert foreseen.pop("dry_run")
    assert not done.pop("dry_run")
    assert {**foreseen, "manifest": 0} == {**done, "manifest": 0}
    assert warned == said
    return done


def test_a_merge_and_its_removal_do_what_they_said_that_they_would(empty: Path, capfd: Capture) -> None:
    old = distribution("alpha", "1", {f"{SITE}/alpha/__init__.py": "1\n", f"{SITE}/alpha/old.py": "1\n"})
    stage(empty / "prefix", {**old, "share/kept": "old\n", "share/same": "same\n"})
    new = distribution("alpha", "2", {f"{SITE}/alpha/__init__.py": "2\n"})
    stage(
        empty / "staged", {**new, "share/kept": "new\n", "share/same": "same\n", "doc/alpha/x": "x\n", "doc/y": "y\n"}
    )
    merge = ("merge", empty / "staged", "--into", empty / "prefix", "--manifest", empty / "m")
    assert compare(capfd, empty, *merge)["replaced"] == [
        {"path": f"{empty}/prefix/share/kept", "owner": None, "manifest": None}
    ]
    assert not told(capfd, *merge, "-n")[0]["changed"]
    (empty / "prefix" / "doc" / "y").write_text("changed since\n")
    gone = compare(capfd, empty, "unmerge", empty / "m")
    assert [os.path.basename(path) for path in gone["directories"]] == ["alpha", "alpha-2.dist-info"]


def test_a_prefix_that_is_missing_is_not_made(empty: Path, capfd: Capture) -> None:
    stage(empty / "staged", {"bin/tool": "x\n", "share/one/x": "x\n"})
    compare(capfd, empty, "merge", empty / "staged", "--into", empty / "new" / "prefix", "--manifest", empty / "m")
    compare(capfd, empty, "unmerge", empty / "m")


@pytest.mark.parametrize("content", [{"x": "file\n"}, {"x/y": "directory\n"}])
def test_what_a_merge_refuses_is_refused_in_a_trial_too(empty: Path, content: dict[str, str]) -> None:
    stage(empty / "staged", content)
    stage(empty / "prefix", {"x/y": "in the way\n"} if "x" in content else {"x": "in the way\n"})
    before, said = everything(empty), []
    for words in (["-n"], []):
        with pytest.raises(SafePipError) as caught:
            run("merge", empty / "staged", "--into", empty / "prefix", *words)
        assert (everything(empty) == before) or not words
        said.append(caught.value.message)
    assert said[0].split("`")[1] == said[1].split("`")[1] == str(empty / "prefix" / "x")
    assert said[0].rpartition(":")[2] == said[1].rpartition(":")[2]


@pytest.mark.parametrize("verb", ["adopt", "unadopt"])
def test_adoption_says_which_pip_is_replaced_by_which_and_where_they_are(
    verb: str, empty: Path, capfd: Capture
) -> None:
    site = empty / "venv" / SITE
    stage(site, {"pip/__init__.py": '__version__ = "26.0"\n'})
    if verb == "unadopt":
        run("adopt", "--env", site)
        capfd.readouterr()
    before = everything(site)
    run(verb, "-n", "--env", site)
    assert everything(site) == before
    foreseen = capfd.readouterr().out
    run(verb, "--env", site)
    done = capfd.readouterr().out
    assert everything(site) != before
    assert foreseen.replace("Would adopt", "Adopted").replace("would be", "is") == done.replace("is now", "is")
    assert f"\n  pip: {site / 'pip'}\n" in done
    assert "pip 26.0" in done
    assert ("in place of" in done) == (verb == "adopt")


def test_what_a_repair_would_do_is_listed_and_left(tmp_path: Path, capfd: Capture) -> None:
    transaction = StagedTransaction(tmp_path)
    for name in ("commit.gate", "environment.gate", "keep", "keep.gate"):
        (transaction.state / name).touch()
    transaction.write_journal()
    before = everything(tmp_path)
    words = ("doctor", "--repair", "--env", transaction.home)
    document, _ = told(capfd, *words, "-n")
    assert document["repaired"] == [f"roll back: transaction `{IDENTIFIER}`"]
    assert everything(tmp_path) == before
    assert run(*words) == 0
    assert not (transaction.state / f"{IDENTIFIER}.journal").exists()


def test_a_venv_is_made_only_by_a_command_that_is_no_trial(empty: Path, capfd: Capture) -> None:
    home = empty / "new" / "venv"
    assert run("venv", "-n", home, "-r", __file__) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith(f"Would create `{home}` with Python ")
    assert said[1:] == [f"Would install `{__file__}` there"]
    assert list(empty.iterdir()) == []
    (home / "file").mkdir(parents=True)
    with pytest.raises(SafePipError, match="not empty"):
        run("venv", "-n", home)
    assert [path.name for path in empty.rglob("*")] == ["new", "venv", "file"]


def test_quiet_says_no_result_twice_quiet_no_warning_verbose_each_file(empty: Path, capfd: Capture) -> None:
    stage(empty / "staged", {"bin/tool": "new\n", "bin/other": "x\n"})
    shown = {}
    for option in ("-q", "-qq", "-v"):
        stage(empty / option, {"bin/tool": "old\n"})
        run("merge", option, empty / "staged", "--into", empty / option)
        found = capfd.readouterr()
        shown[option] = (found.out.splitlines(), len(found.err.splitlines()))
    assert shown["-q"] == ([], 1)
    assert shown["-qq"] == ([], 0)
    assert shown["-v"] == (
        [
            *(f"put: {empty / '-v' / 'bin' / name}" for name in ("other", "tool")),
            f"Merged 2 files into `{empty / '-v'}`",
        ],
        1,
    )
