"""What was built is kept for the next attempt where it would be the same again, and where it can be kept."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pip._internal.build_env import NoOpBuildEnvironment

from safe_pip.fs import space
from safe_pip.pip_seams.builds import KeptBuilds, built_of


def requirement(**changes: object) -> Any:
    # pip 25.3 shows it by its address, so that two of the same are not equal.
    info = SimpleNamespace(to_json=lambda: "{}")
    given = {"name": "x", "link": "x", "download_info": info, "editable": False, "config_settings": None}
    return SimpleNamespace(**{**given, "build_env": None, **changes})


def metadata(directory: Path) -> str:
    info = directory / "x-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: x\n", encoding="utf-8")
    return str(info)


def test_of_two_equal_requirements_the_same_is_built() -> None:
    assert built_of(requirement(), "1") == built_of(requirement(), "1") != built_of(requirement(), "2")


def test_a_build_without_isolation_is_not_kept(tmp_path: Path) -> None:
    key = built_of(requirement(build_env=NoOpBuildEnvironment()), "1")
    built: dict[str, tuple[str, int]] = {}
    kept = KeptBuilds(built)
    kept.keep(key, metadata(tmp_path))
    assert (built, kept.restore(key, str(tmp_path / "next"))) == ({}, None)


def test_metadata_of_any_time_is_kept(tmp_path: Path) -> None:
    made = metadata(tmp_path / "made")
    os.utime(os.path.join(made, "METADATA"), (0, 0))
    kept = KeptBuilds({})
    kept.keep("key", made)
    found = kept.restore("key", str(tmp_path / "next"))
    assert found is not None
    assert Path(found, "METADATA").read_text(encoding="utf-8") == "Name: x\n"


def test_no_more_is_kept_than_the_descriptors_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "descriptor_limit", lambda: 8)
    built: dict[str, tuple[str, int]] = {}
    made = metadata(tmp_path)
    for number in range(4):
        KeptBuilds(built).keep(str(number), made)
    assert list(built) == ["0", "1"]
    for _, fd in built.values():
        os.close(fd)
