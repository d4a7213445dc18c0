"""Rules of the packages: which package imports which, and which modules print, lock, change a disk or know pip."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import safe_pip

PACKAGE = Path(safe_pip.__file__).parent

# A package imports only from the rows below its own. `__init__` and `_vendor` are for all; `__main__` starts `cli`, and
# `_runner` and `_hook` are files that other interpreters run by their path.
ROWS = """
__main__ _runner _hook
cli api
commands pip_seams
environment
store launch journal messages trace
locking merge
fs
errors records
"""
ROW = {package: number for number, row in enumerate(ROWS.strip().splitlines()) for package in row.split()}

WRITES = re.compile(
    r"""
    os\.(rename|renames|replace|unlink|remove|removedirs|rmdir|mkdir|makedirs|link|symlink|chmod|chown|truncate|utime)
    | shutil\.(rmtree|move|copy\w*)
    | tempfile\.(mk|\w*Temporary)\w*
    | (?!fs\.).*\.(unlink|rmdir|mkdir|touch|write_text|write_bytes|symlink_to|hardlink_to|chmod)
    """,
    re.VERBOSE,
)


def package_of(path: Path) -> str:
    """The name in `ROWS` that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if package_of(path) not in ("_vendor", "__init__")]
MODULES = {module_of(path): path for path in SOURCES}
every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def imported(path: Path) -> Iterator[str]:
    """The modules of safe_pip that the file at `path` imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = module_of(path).split(".")[: None if path.name == "__init__.py" else -1]
            start = start[: len(start) - node.level + 1] if node.level else []
            base = ".".join([*start, node.module] if node.module else start)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("safe_pip."):
                yield name if name in MODULES or name.startswith("safe_pip._vendor") else name.rpartition(".")[0]


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@every_source
def test_a_package_imports_only_from_the_rows_below_its_own(path):
    own = package_of(path)
    others = {name.split(".")[1] for name in imported(path) if name.count(".")} - {own, "_vendor"}
    assert own == "_runner" or not {name for name in others if ROW[name] <= ROW[own]}


def test_imports_inside_a_package_have_no_circles():
    graph = {name: {each for each in imported(path) if each in MODULES} - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


@every_source
def test_a_module_whose_name_starts_with_an_underscore_is_for_its_own_package(path):
    def is_private(name: str) -> bool:
        _, package, *modules = [*name.split("."), ""]
        return package not in (package_of(path), "_vendor") and any(each.startswith("_") for each in modules)

    assert not {name for name in imported(path) if is_private(name)}


@every_source
def test_a_module_that_imports_inside_a_function_says_why_in_its_docstring(path):
    """Imports at the top are the rule: after pip's first change nothing can be imported any more."""
    tree = ast.parse(path.read_bytes())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = [node for each in functions for node in ast.walk(each) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not late or "import" in (ast.get_docstring(tree) or "")


@every_source
def test_only_the_command_line_the_verbs_and_messages_print(path):
    printing = re.compile(r"print\(.*|sys\.(stdout|stderr)\.write\(.*|os\.write\([12],.*", re.DOTALL)
    if package_of(path) not in ("cli", "messages", "commands", "_hook"):
        assert not [call for _, call in calls(path) if printing.fullmatch(ast.unparse(call))]


@every_source
def test_only_the_seams_and_what_runs_before_pip_know_the_internals_of_pip(path):
    if package_of(path) not in ("pip_seams", "launch"):
        assert not re.search(r"pip\._(internal|vendor)\b(?<!safe_pip\._vendor)", path.read_text())


@every_source
def test_only_locking_flock_calls_flock(path):
    if module_of(path) != "safe_pip.locking.flock":
        assert not [name for name, _ in calls(path) if re.search(r"\b(flock|lockf)$", name)]


@every_source
def test_only_fs_changes_a_disk(path):
    # `_imports.py` runs in the process of a build backend, and writes into a directory that pip made for it.
    if package_of(path) != "fs" and path.name != "_imports.py":
        writes = [name for name, _ in calls(path) if WRITES.fullmatch(name)]
        opened = [
            ast.unparse(call)
            for name, call in calls(path)
            if (name == "open" or name.endswith(".open"))
            and re.search(r"O_CREAT|O_TRUNC|'[rbt]*[wax+]", ast.unparse(call))
        ]
        assert not writes + opened


@every_source
def test_named_tuples_are_made_of_types_and_not_of_strings(path):
    """`from __future__ import annotations` has `NamedTuple` compile each field's type: several times the cost."""
    source = path.read_text()
    assert "(NamedTuple):" not in source or "from __future__ import annotations" not in source
