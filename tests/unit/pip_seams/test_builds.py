"""What was built is kept for the next attempt where it would be the same again, and where it can be kept."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pip._internal.build_env import NoOpBuildEnvironment

from safe_pip.environment.snapshot import Snapshot
from safe_pip.fs import space
from safe_pip.launch.restart import Attempt
from safe_pip.pip_seams.builds import KeptBuilds, built_of
from tests.support.venvs.direct_installs import DirectPrefix


def requirement(**changes: object) -> Any:
    # pip 25.3 shows it by its address, so that two of the same are not equal.
    info = SimpleNamespace(to_json=lambda: "{}")
    given = {"name": "x", "link": "x", "download_info": info, "editable": False, "config_settings": None}
    return SimpleNamespace(**{**given, "build_env": None, **changes})


def kept_builds(attempt: Attempt, transaction: Any = None) -> KeptBuilds:
    return KeptBuilds(attempt, transaction)


def put(site: Path, name: str, more: str) -> None:
    """Install a distribution of one module anew."""
    info = site / f"{name}-1.dist-info"
    shutil.rmtree(info, ignore_errors=True)
    info.mkdir(parents=True)
    (site / f"{name}.py").touch()
    (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\n{more}")
    (info / "RECORD").write_text(f"{name}.py,,\n")


def metadata(directory: Path) -> str:
    info = directory / "x-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: x\n", encoding="utf-8")
    return str(info)


def test_of_two_equal_requirements_the_same_is_built() -> None:
    assert built_of(requirement(), "1") == built_of(requirement(), "1") != built_of(requirement(), "2")


def test_without_isolation_something_else_is_built() -> None:
    assert built_of(requirement(build_env=NoOpBuildEnvironment()), "1") != built_of(requirement(), "1")


@pytest.mark.parametrize(
    ("requirements", "imported", "changed", "is_valid"),
    [
        (["one"], ["none.py"], "other", True),
        (["one"], ["none.py"], "one", False),
        (["one"], ["none.py"], "two", False),
        ([], ["other.py"], "other", False),
        ([], ["other.py"], "one", True),
        ([], None, "other", False),
    ],
)
def test_a_build_without_isolation_is_kept_while_what_it_used_stays(
    tmp_path: Path, requirements: list[str], imported: list[str] | None, changed: str, is_valid: bool
) -> None:
    prefix = DirectPrefix(tmp_path)
    for name, requires in (("one", "two>=1"), ("two", ""), ("other", "")):
        put(prefix.site, name, f"Requires-Dist: {requires}\n" if requires else "")
    attempt, transaction = Attempt(), prefix.transaction()
    kept = kept_builds(attempt, transaction)
    kept.requirements = requirements
    kept.note(imported and [str(prefix.site / each) for each in imported], Snapshot.take(transaction.path))
    kept.keep("key", metadata(tmp_path / "made"))
    put(prefix.site, changed, "Summary: changed\n")
    assert transaction.read_set.changed(Snapshot.take(transaction.path)) == (() if is_valid else (changed,))
    later = kept_builds(attempt, prefix.transaction()).restore("key", str(tmp_path / "next"))
    assert (later is not None) == is_valid


def test_metadata_of_any_time_is_kept(tmp_path: Path) -> None:
    made = metadata(tmp_path / "made")
    os.utime(os.path.join(made, "METADATA"), (0, 0))
    kept = kept_builds(Attempt())
    kept.keep("key", made)
    found = kept.restore("key", str(tmp_path / "next"))
    assert found is not None
    assert Path(found, "METADATA").read_text(encoding="utf-8") == "Name: x\n"


def test_no_more_is_kept_than_the_descriptors_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "descriptor_limit", lambda: 8)
    attempt, made = Attempt(), metadata(tmp_path)
    for number in range(4):
        kept_builds(attempt).keep(str(number), made)
    assert list(attempt.built) == ["0", "1"]
    for _, fd in attempt.built.values():
        os.close(fd)
