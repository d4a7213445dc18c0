"""What safe_pip/_vendor holds is what the vendoring tool makes of vendor.txt, licences included, and stands alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
VENDOR = PROJECT / "src/safe_pip/_vendor"
PINNED = dict(line.split("==") for line in (VENDOR / "vendor.txt").read_text().split())


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def modules_imported_by(path: Path) -> set[str]:
    """The absolute names that the module at `path` imports, anywhere in it but for the type checker."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def test_every_vendored_library_is_pinned_and_every_pin_is_vendored():
    assert {path.name for path in VENDOR.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(PINNED)


@pytest.mark.parametrize("library", PINNED)
def test_every_vendored_library_has_its_licence_beside_it(library):
    assert (VENDOR / library / "LICENSE").read_text().strip()


def test_vendored_code_imports_the_standard_library_and_itself_only():
    foreign = {
        f"{path.relative_to(VENDOR)} imports {name}"
        for path in VENDOR.rglob("*.py")
        for name in modules_imported_by(path)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("safe_pip._vendor")
    }
    assert not foreign


def test_vendored_libraries_load_where_nothing_else_is_installed_and_traps_lie_on_the_path(tmp_path):
    for library in PINNED:
        (tmp_path / f"{library}.py").write_text("raise AssertionError(__name__)")
    imports = "; ".join(f"import safe_pip._vendor.{library}" for library in PINNED)
    program = f"import sys; sys.path[:0] = sys.argv[1:]; {imports}"
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", program, str(tmp_path), str(VENDOR.parents[1])]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


@pytest.mark.network
def test_the_vendored_tree_is_what_the_tool_makes_of_the_pinned_list(tmp_path):
    if sys.version_info < (3, 11):
        pytest.skip("the vendoring tool needs Python 3.11")
    pytest.importorskip("vendoring", reason="the vendoring tool is not installed")
    copy = tmp_path / "src/safe_pip/_vendor"
    copy.mkdir(parents=True)
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    for name in ("__init__.py", "vendor.txt"):
        shutil.copy(VENDOR / name, copy)
    # The tool calls `pip` by name, and keeps downloads in one fixed directory below the temporary one.
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    command = [sys.executable, "-m", "vendoring", "sync", "--verbose"]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert files_below(copy) == files_below(VENDOR)


def test_pins_are_exact():
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in PINNED.values())
