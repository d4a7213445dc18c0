"""A transaction that recovery refuses gets out of the way, and nothing that it has is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_pip.commands.doctor.mending import Mending, Way, way
from safe_pip.environment.environment import Environment
from safe_pip.errors import RecoveryNeeded
from safe_pip.journal import recovery
from safe_pip.locking import flock, inheritance
from safe_pip.merge.plan import Kind
from tests.support.faults import disk
from tests.support.faults.transaction import IDENTIFIER, Scene, content_of

pytestmark = pytest.mark.skipif(not flock.supported, reason="there are no journals without flock")
KEPT = f"kept-{IDENTIFIER}"


class Silent:
    """Nobody waits."""

    def waiting(self, event: object) -> None:
        raise AssertionError(event)

    def granted(self, event: object, seconds: float) -> None:
        raise AssertionError(event)


@pytest.fixture(autouse=True)
def _no_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(inheritance.VARIABLE, raising=False)


def made(root: Path) -> Scene:
    """An upgrade that a dead process carried out and did not commit."""
    scene = Scene(root)
    for name in ("commit.gate", "environment.gate"):
        (scene.state / name).touch()
    scene.add(Kind.FILE, "first.py", "old first", "new first")
    scene.add(Kind.FILE, "second.py", "old second", "new second")
    scene.add(Kind.EXCHANGE, "pkg", {"a.py": "old a"}, {"a.py": "new a"})
    scene.add(Kind.REMOVE, "gone.py", "old gone")
    scene.write_journal()
    scene.do()
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return made(tmp_path)


def mend(scene: Scene) -> list[str]:
    mending = Mending(scene.unfinished)
    Environment([str(scene.home)], waiting=Silent(), timeout=0).carry_out(mending)
    return mending.told


def journal_path(scene: Scene) -> Path:
    return scene.unfinished.path


def texts(path: Path) -> set[str]:
    """What stands in the files below a directory."""
    return {file.read_text() for file in path.rglob("*") if file.is_file() and file.stat().st_size < 100}


def change_second(scene: Scene) -> None:
    (scene.home / "second.py").write_text("by another program")


def damage(scene: Scene) -> None:
    journal_path(scene).write_bytes(journal_path(scene).read_bytes()[:-1])


def lose_owner(scene: Scene) -> None:
    (scene.state / f"{IDENTIFIER}.owner").unlink()


def test_what_the_next_command_undoes_needs_no_mending(scene: Scene) -> None:
    assert way(scene.unfinished) is Way.USUAL
    assert mend(scene) == []
    assert journal_path(scene).exists()


def test_what_is_gone_needs_none_either(scene: Scene) -> None:
    journal_path(scene).unlink()
    assert way(scene.unfinished) is Way.USUAL
    assert mend(scene) == []


def test_what_another_program_changed_stays_and_the_rest_is_undone(scene: Scene) -> None:
    change_second(scene)
    with pytest.raises(RecoveryNeeded):
        recovery.check(scene.unfinished)
    assert way(scene.unfinished) is Way.KEEPING
    told = mend(scene)
    assert f"left `{scene.home / 'second.py'}` as it is" in told
    assert f"put aside `{scene.state / KEPT}`" in told
    assert scene.content() == {
        "0": {
            "first.py": "old first",
            "second.py": "by another program",
            "pkg": {"a.py": "old a"},
            "gone.py": "old gone",
        },
        "1": {},
    }
    assert scene.leftovers() == []
    assert "old second" in texts(scene.state / KEPT)


@pytest.mark.parametrize("break_it", [damage, lose_owner])
def test_a_journal_that_cannot_be_believed_is_put_aside_with_all_that_belongs_to_it(
    scene: Scene, break_it: Callable[[Scene], None]
) -> None:
    break_it(scene)
    before, had, written = scene.content(), texts(scene.private), journal_path(scene).read_bytes()
    assert way(scene.unfinished) is Way.ASIDE
    assert mend(scene) == [f"put aside `{scene.state / KEPT}`"]
    assert scene.content() == before
    assert texts(scene.state / KEPT) == had
    assert (scene.state / KEPT / "refused-journal").read_bytes() == written
    assert scene.leftovers_of_home() == []
    assert recovery.find(scene.home) == ()


def test_one_without_a_private_directory_is_put_aside_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for name in ("commit.gate", "environment.gate"):
        (scene.state / name).touch()
    journal_path(scene).write_text("")
    (scene.private / "stage").rmdir()
    (scene.private / "trash").rmdir()
    scene.private.rmdir()
    mend(scene)
    assert [path.name for path in (scene.state / KEPT).iterdir()] == ["refused-journal"]


def test_what_lies_on_other_filesystems_is_put_aside_as_well(scene: Scene, tmp_path: Path) -> None:
    part = tmp_path / "data" / ".safe-pip" / IDENTIFIER
    (part / "trash").mkdir(parents=True)
    (part / "trash" / "0").write_text("old data")
    stranger = tmp_path / "data" / "private"
    stranger.mkdir()
    notes = f'{{"part": "{part}"}}\n{{"part": "{stranger}"}}\n{{"part": "{scene.private}"}}\n'
    (scene.state / f"{IDENTIFIER}.owner").write_text(notes)
    damage(scene)
    mend(scene)
    assert (part.parent / KEPT / "trash" / "0").read_text() == "old data"
    assert not part.exists()
    assert stranger.exists()


def test_a_committed_transaction_that_cannot_be_finished_is_put_aside(scene: Scene) -> None:
    damage(scene)
    scene.commit()
    assert way(scene.committed) is Way.ASIDE
    mending = Mending(scene.committed)
    Environment([str(scene.home)], waiting=Silent(), timeout=0).carry_out(mending)
    assert mending.told == [f"put aside `{scene.state / KEPT}`"]
    assert scene.leftovers_of_home() == []


def test_the_journal_of_a_newer_version_is_left_to_that(scene: Scene) -> None:
    content = journal_path(scene).read_bytes()
    journal_path(scene).write_bytes(content.replace(b"safe-pip-journal 1 ", b"safe-pip-journal 2 ", 1))
    with pytest.raises(RecoveryNeeded, match="newer"):
        recovery.read(scene.unfinished)
    assert way(scene.unfinished) is Way.NONE
    assert mend(scene) == []
    assert journal_path(scene).exists()


def test_the_journal_of_a_stranger_is_left_alone(scene: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    damage(scene)
    os.chown(journal_path(scene), 65534, 65534)
    assert way(scene.unfinished) is Way.NONE
    assert mend(scene) == []
    assert journal_path(scene).exists()


@pytest.mark.parametrize("break_it", [change_second, damage])
def test_killed_anywhere_it_is_done_again_and_nothing_is_lost(
    tmp_path: Path, break_it: Callable[[Scene], None]
) -> None:
    for k in itertools.count():
        scene = made(tmp_path / str(k))
        break_it(scene)
        with disk.crash_at(k) as trial, contextlib.suppress(disk.Crashed):
            mend(scene)
        if way(scene.unfinished) is not Way.USUAL or journal_path(scene).exists():
            mend(scene)
        assert not journal_path(scene).exists()
        everything = texts(scene.home) | texts(scene.state)
        assert {"old first", "old second", "old gone", "old a"} <= everything
        if break_it is change_second:
            assert "by another program" in content_of(scene.home)["second.py"]  # type: ignore[index, operator]
        if trial.struck is None:
            break
    assert k >= 3
