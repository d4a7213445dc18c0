"""Which installed projects a requirement stands for."""

from pathlib import Path

import pytest

from safe_pip.environment.required import required
from safe_pip.environment.snapshot import Snapshot

METADATA = {
    "build": ['Tools>=1; python_version > "3"', "plugin (>=2)", "never; extra == 'docs'", "gone"],
    "tools": ["build[fast,docs]", "build"],
    "plugin": [],
    "never": [],
    "quick": [],
    "other": ["build"],
}


@pytest.mark.parametrize(
    ("requirements", "found"),
    [
        (["plugin==1"], {"plugin"}),
        (["PlugIn [x] ~= 1; sys_platform == 'none'"], {"plugin"}),
        (["build"], {"build", "tools", "plugin", "never"}),
        (["gone", "build[fast]"], {"build", "tools", "plugin", "never", "quick"}),
        (["", "#"], set()),
    ],
)
def test_what_is_required_is_found_through_names_extras_and_circles(
    tmp_path: Path, requirements: list[str], found: set[str]
) -> None:
    for name, requires in METADATA.items():
        (tmp_path / f"{name}-1.dist-info").mkdir()
        lines = [*requires, *(['quick ; extra == "Fast"'] if name == "build" and "gone" in requirements else [])]
        text = "".join(f"Requires-Dist: {each}\n" for each in lines)
        (tmp_path / f"{name}-1.dist-info" / "METADATA").write_text(f"Name: {name}\n{text}\nRequires-Dist: other\n")
    (tmp_path / "egg-1.egg-info").touch()
    assert required(requirements, Snapshot.take([str(tmp_path)])) == found
