"""What the verbs print, where standard output cannot take it: a reader that ended, a full disk, an encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip.commands import VERBS, options
from safe_pip.commands.merge import Conflicts
from safe_pip.launch.settings import Settings
from tests.support.venvs.direct_installs import SilentReporter

HELP = {verb: [verb, "--help"] for verb in VERBS}
RESULTS = {
    "status": ["status", "--env", "{site}"],
    "status --json": ["status", "--json", "--env", "{site}"],
    "doctor": ["doctor", "--env", "{site}"],
    "doctor --json": ["doctor", "--json", "--repair", "--env", "{site}"],
    "adopt": ["adopt", "--env", "{site}"],
    "unadopt": ["unadopt", "--env", "{site}"],
    "merge": ["merge", "{top}/staged", "--into", "{top}/prefix", "--manifest", "{top}/m"],
    "merge --json": ["merge", "{top}/staged", "--into", "{top}/prefix", "--json"],
    "merge, conflict": ["merge", "{top}/staged", "--into", "{top}/other", "--on-conflict", "fail", "--json"],
    "unmerge": ["unmerge", "{top}/m"],
    "unmerge --json": ["unmerge", "--json", "{top}/m"],
}
CHANGES = ("adopt", "unadopt", "merge", "unmerge")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory whose name is neither ASCII nor UTF-8."""
    made = tmp_path / "\xe4\udcff"
    for name in ("staged", "other"):
        (made / name).mkdir(parents=True)
        (made / name / "f\xe4\udcff").write_text(name)
    (made / "venv/lib/python3.13/site-packages").mkdir(parents=True)
    (made / "m").write_text('{"format": 1, "prefix": "/p", "entries": {}, "directories": [], "read_only": []}')
    return made


def run(words: list[str], top: Path) -> int:
    """Run a verb within this process; on return its exit status."""
    site = top / "venv/lib/python3.13/site-packages"
    verb, *rest = (word.format(top=top, site=site) for word in words)
    try:
        return options.run(verb, rest, Settings(lock_timeout=5), SilentReporter())
    except Conflicts:
        return 1


@pytest.fixture
def to_no_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe whose reader has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        yield


@pytest.mark.parametrize("words", [*HELP.values(), *RESULTS.values()], ids=" ".join)
@pytest.mark.usefixtures("to_no_reader")
def test_a_reader_that_has_ended_is_no_error(words: list[str], top: Path) -> None:
    assert run(words, top) == (1 if "fail" in words else 0)
    sys.stdout.flush()  # as the interpreter does at its end


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("words", RESULTS.values(), ids=" ".join)
def test_a_result_that_cannot_be_written_is_told_and_a_change_stays_made(
    words: list[str], top: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(words, top) == (0 if words[0] in CHANGES and "fail" not in words else 1)
        sys.stdout.flush()
    assert "standard output could not be written: No space left on device" in capfd.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("words", RESULTS.values(), ids=" ".join)
def test_a_path_that_the_encoding_does_not_have_is_shown_with_backslashes(
    words: list[str], encoding: str, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
    assert run(words, top) == (1 if "fail" in words else 0)
    shown = content.getvalue().decode(encoding)
    assert shown
    if words[0] != "unmerge" and words[0] != "doctor":
        assert "\\udcff" in shown
        assert ("\xe4" in shown) == (encoding == "utf-8" and "--json" not in words)


@pytest.mark.parametrize("words", [HELP["run"], *RESULTS.values()], ids=" ".join)
def test_without_a_standard_output_a_verb_does_its_work(
    words: list[str], top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run(words, top) == (1 if "fail" in words else 0)
