"""Who may import whom, and who alone may print, lock, change a disk or know pip's internals."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import safe_pip

PACKAGE = Path(safe_pip.__file__).parent

# Each row may import from the rows below it, never from its own or one above. `__init__` and `_vendor` are for all;
# `_runner` is a file for another interpreter, where it starts over from the top.
ORDER = """
__main__
cli
commands pip_seams
reporter attempt
clearing remedy strays
checkup lookout mending
unmerging
merging
transaction
change
preparing
unpacking patience
verify copying
importing comparison manifest
stage
commit
merge
draft
contents sources
tree
ownership prefix
snapshot
environment virtual
steps sole
sweep
recovery
parts unfinished
finishing undoing
sight
places
writer journal
holding
waiting
nesting
request
room staged
state_directory owner
frozen
copies prepared
lock
holders
compiling
compiler
interpreter isolation target child adoption cores
record trust compiled bundle
settings start leaving
fs
errors plan removal _runner _hook
"""
ROW = {module: number for number, row in enumerate(ORDER.strip().splitlines()) for module in row.split()}

WRITES = re.compile(
    r"""
    os\.(rename|renames|replace|unlink|remove|removedirs|rmdir|mkdir|makedirs|link|symlink|chmod|chown|truncate|utime)
    | shutil\.(rmtree|move|copy\w*)
    | tempfile\.(mk|\w*Temporary)\w*
    | (?!fs\.).*\.(unlink|rmdir|mkdir|touch|write_text|write_bytes|symlink_to|hardlink_to|chmod)
    """,
    re.VERBOSE,
)


def owner(path: Path) -> str:
    """The module of `ORDER` that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if owner(path) not in ("_vendor", "__init__")]
every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def imported(path: Path) -> Iterator[str]:
    """The modules of safe_pip that the file at `path` imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = path.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            base = ".".join([*start, node.module] if node.module else start)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("safe_pip."))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@every_source
def test_dependencies_point_one_way(path):
    upward = {name for name in imported(path) if name in ROW and name != owner(path) and ROW[name] <= ROW[owner(path)]}
    assert owner(path) == "_runner" or not upward


@every_source
def test_every_module_has_its_place_in_the_order(path):
    assert owner(path) in ROW


@every_source
def test_only_cli_its_reporter_and_commands_print(path):
    printing = re.compile(r"print\(.*|sys\.(stdout|stderr)\.write\(.*|os\.write\([12],.*", re.DOTALL)
    if owner(path) not in ("cli", "reporter", "commands", "_hook"):
        assert not [call for _, call in calls(path) if printing.fullmatch(ast.unparse(call))]


@every_source
def test_only_the_seams_and_the_frozen_pip_know_the_internals_of_pip(path):
    if owner(path) not in ("pip_seams", "isolation", "frozen"):
        assert not re.search(r"pip\._(internal|vendor)\b(?<!safe_pip\._vendor)", path.read_text())


@every_source
def test_only_lock_calls_flock(path):
    if owner(path) != "lock":
        assert not [name for name, _ in calls(path) if re.search(r"\b(flock|lockf)$", name)]


@every_source
def test_only_fs_changes_a_disk(path):
    if owner(path) != "fs":
        writes = [name for name, _ in calls(path) if WRITES.fullmatch(name)]
        opened = [
            ast.unparse(call)
            for name, call in calls(path)
            if (name == "open" or name.endswith(".open"))
            and re.search(r"O_CREAT|O_TRUNC|'[rbt]*[wax+]", ast.unparse(call))
        ]
        assert not writes + opened


def test_importlib_metadata_serves_the_own_verbs_only():
    """Importing it switches off the standard library's finder, which pip needs."""
    users = {
        owner(path) for path in SOURCES if re.search(r"import(_module)?\b.*\bimportlib_metadata\b", path.read_text())
    }
    assert users <= {"commands"}


@every_source
def test_named_tuples_are_made_of_types_and_not_of_strings(path):
    """`from __future__ import annotations` has `NamedTuple` compile each field's type: several times the cost."""
    source = path.read_text()
    assert "(NamedTuple):" not in source or "from __future__ import annotations" not in source
