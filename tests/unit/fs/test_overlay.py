"""Changes where the kernel says no: a lower layer of an overlayfs, and another filesystem below a tree."""

from pathlib import Path

import pytest

from tests.support.faults import overlay
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution

pytestmark = pytest.mark.skipif(bool(overlay.why_not()), reason=f"overlayfs cannot be mounted: {overlay.why_not()}")

BEGIN = """
import errno, os, subprocess
from safe_pip import fs
merged = fs.Directory.open(os.path.abspath("merged"))


def refusal(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
"""


def test_a_directory_of_a_lower_layer_can_be_neither_moved_nor_exchanged(tmp_path: Path) -> None:
    (tmp_path / "lower" / "old").mkdir(parents=True)
    overlay.run_python(
        tmp_path,
        BEGIN
        + """
fs.make_directory(merged, "new")
assert fs.can_exchange(merged)
assert refusal(fs.move, merged, "old", merged, "moved") == "EXDEV"
assert refusal(fs.exchange, merged, "new", merged, "old") == "EXDEV"
assert sorted(merged.names()) == ["new", "old"]
""",
    )


def test_a_file_of_a_lower_layer_can_be_moved_and_exchanged_and_moved_over_and_linked(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    for name in ("one", "two", "three", "four"):
        (tmp_path / "lower" / name).write_text(name)
    overlay.run_python(
        tmp_path,
        BEGIN
        + """
fs.write_new(merged, "new", b"new")
fs.move(merged, "one", merged, "moved")
fs.exchange(merged, "new", merged, "two")
fs.link(merged, "three", merged, "kept")
fs.move_over(merged, "two", merged, "three")
fs.move_over(merged, "kept", merged, "three")
fs.remove(merged, "four")
assert {name: merged.read(name) for name in merged.names()} == {"moved": b"one", "new": b"two", "three": b"three"}
""",
    )


def test_what_of_a_lower_layer_is_deleted_is_gone(tmp_path: Path) -> None:
    (tmp_path / "lower" / "old" / "inner").mkdir(parents=True)
    (tmp_path / "lower" / "old" / "inner" / "file").touch()
    overlay.run_python(tmp_path, BEGIN + 'fs.remove_below(merged, "old"); assert merged.names() == []')


def test_a_filesystem_that_is_mounted_in_a_tree_survives_the_trees_deletion(tmp_path: Path) -> None:
    (tmp_path / "lower" / "old" / "mounted").mkdir(parents=True)
    overlay.run_python(
        tmp_path,
        BEGIN
        + """
subprocess.run(["mount", "-t", "tmpfs", "none", "merged/old/mounted"], check=True)
with merged.child("old/mounted") as mounted:
    fs.write_new(mounted, "precious", b"")
    fs.write_new(merged.child("old"), "file", b"")
    assert refusal(fs.remove_below, merged, "old") == "EXDEV"
    assert mounted.names() == ["precious"]
assert merged.child("old").names() == ["mounted"]
""",
    )


def many(version: str) -> list[SmallDistribution]:
    """More distributions than a change is planned times, each with directories of its own."""
    files = {"site/{0}/a.py": version, "site/{0}/deep/er.py": version, f"site/{{0}}/only{version}/x.py": version}
    return [
        SmallDistribution(name, version, {path.format(name): text for path, text in files.items()})
        for name in (f"project{number}" for number in range(15))
    ]


def test_however_many_directories_of_a_lower_layer_are_to_be_moved_it_is_found_out_once(tmp_path: Path) -> None:
    DirectPrefix(tmp_path / "lower").change(many("1"))
    overlay.run_python(
        tmp_path,
        """
from pathlib import Path
from tests.support.faults import disk
from tests.support.venvs.direct_installs import DirectPrefix
from tests.unit.fs.test_overlay import many

prefix, plain = DirectPrefix(Path("merged")), DirectPrefix(Path("plain"))
for old, new in (("1", "22"), ("22", "1")):
    with disk.record() as changes:
        prefix.change(many(new), many(old))
    journals = [change for change in changes if change.operation == "move" and change.path.endswith(".journal")]
    assert len(journals) == 2, journals
    plain.change(many(new))
    assert prefix.content() == plain.content()
    assert prefix.private() == []
    plain.change((), many(new))
prefix.change((), many("1"))
assert prefix.content() == plain.content()
assert prefix.private() == []
""",
    )
