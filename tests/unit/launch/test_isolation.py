"""The decisions of isolation, each on its own; what they come to in a process is in the integration tests."""

import ast
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import safe_pip
from safe_pip.launch import isolation

PACKAGE = Path(safe_pip.__file__).parent


@pytest.fixture
def modules(monkeypatch):
    """`sys.modules`, for the time of one test."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return sys.modules


def module(name, **attributes):
    made = types.ModuleType(name)
    vars(made).update(attributes)
    return made


def forget():
    isolation._forget_impostors(isolation.standard_library(), os.stat)


def test_isolation_imports_nothing_but_sys_before_the_path_is_safe():
    tree = ast.parse((PACKAGE / "launch" / "isolation.py").read_text())
    at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in at_the_top] == ["import sys"]


def test_the_package_itself_imports_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    executed = [node for node in tree.body if ast.unparse(node).partition("\n")[0] != "if TYPE_CHECKING:"]
    found = [inner for node in executed for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
    assert found == []


def test_the_standard_library_is_what_an_interpreter_alone_has():
    command = [sys.executable, "-I", "-S", "-c", "import sys; print(*sys.path, sep='\\n')"]
    alone = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert isolation.standard_library() == alone


def test_no_loaded_module_of_the_standard_library_is_forgotten(modules):
    import importlib.util  # gives the import system a `__file__`
    import json.decoder

    before = set(modules)
    forget()
    assert {name for name in before - set(modules) if name.partition(".")[0] not in isolation.SHADOWED} == set()
    assert json.decoder is modules["json.decoder"]
    assert importlib.util is modules["importlib.util"]


@pytest.mark.parametrize("name", ["pip", "filelock", "typing_extensions"])
def test_what_has_the_name_of_a_vendored_module_is_forgotten_with_its_submodules(modules, name):
    modules[name] = module(name)
    modules[f"{name}._internal"] = module(f"{name}._internal")
    modules[f"{name}x"] = kept = module(f"{name}x")
    forget()
    assert [found for found in modules if found == name or found.startswith(name + ".")] == []
    assert modules[f"{name}x"] is kept


def test_what_has_the_name_of_a_standard_module_and_comes_from_elsewhere_is_forgotten(modules, tmp_path):
    modules["json"] = module("json", __file__=str(tmp_path / "json/__init__.py"), __path__=[str(tmp_path / "json")])
    modules["json.decoder"] = module("json.decoder", __file__=str(tmp_path / "json/decoder.py"))
    modules["wave"] = module("wave", __file__=str(tmp_path / "wave.py"))
    forget()
    assert not {"json", "json.decoder", "wave"} & set(modules)


def test_site_packages_is_elsewhere_though_it_lies_inside_the_standard_library(modules):
    library = isolation.standard_library()[1]
    modules["wave"] = module("wave", __file__=f"{library}/site-packages/wave.py")
    forget()
    assert "wave" not in modules


def test_another_spelling_of_the_standard_library_is_the_same_place(modules, tmp_path):
    (tmp_path / "link").symlink_to(isolation.standard_library()[1])
    modules["wave"] = kept = module("wave", __file__=str(tmp_path / "link" / "wave.py"))
    forget()
    assert modules["wave"] is kept


@pytest.mark.parametrize("attributes", [{}, {"__file__": None}, {"__path__": []}])
def test_a_module_that_comes_from_nowhere_is_left_alone(modules, attributes):
    modules["wave"] = kept = module("wave", **attributes)
    modules["fcntl"] = None
    forget()
    assert modules["wave"] is kept
    assert modules["fcntl"] is None


def test_a_lazy_module_is_not_loaded_by_being_looked_at(modules):
    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            raise AssertionError(f"asked for {name}")

    modules["wave"] = Lazy("wave")
    forget()


def test_other_modules_of_the_environment_are_left_alone(modules, tmp_path):
    modules["coverage"] = kept = module("coverage", __file__=str(tmp_path / "coverage.py"))
    forget()
    assert modules["coverage"] is kept


def started(monkeypatch, *, main, isolated=False, safe_path=False, directory="/project"):
    flags = types.SimpleNamespace(isolated=isolated, safe_path=safe_path)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(isolation.sys, "flags", flags)

    def getcwd():
        if directory is None:
            raise FileNotFoundError
        return directory

    return lambda first: isolation._is_of_the_start([first, "/lib"], types.SimpleNamespace(getcwd=getcwd))


SCRIPT = module("__main__", __spec__=None, __file__="/venv/bin/safe-pip")
DASH_M = module("__main__", __spec__=object(), __file__="/lib/safe_pip/__main__.py")
DASH_C = module("__main__", __spec__=None)


@pytest.mark.parametrize(
    ("how", "first", "expected"),
    [
        ({"main": SCRIPT}, "/venv/bin", True),
        ({"main": SCRIPT, "directory": None}, "/venv/bin", True),
        ({"main": SCRIPT, "safe_path": True}, "/lib/python3", False),
        ({"main": SCRIPT, "isolated": True}, "/lib/python3", False),
        ({"main": DASH_M}, "/project", True),
        ({"main": DASH_M}, "/of/PYTHONPATH", False),
        ({"main": DASH_M, "directory": None}, "/of/PYTHONPATH", False),
        ({"main": DASH_M, "safe_path": True}, "/project", False),
        ({"main": DASH_C}, "", True),
        ({"main": DASH_C}, "/of/PYTHONPATH", False),
    ],
)
def test_the_first_entry_is_taken_off_where_only_the_start_put_it_there(monkeypatch, how, first, expected):
    assert started(monkeypatch, **how)(first) is expected


def test_the_runner_is_for_any_python_to_read():
    """As far as a newer Python can tell: nothing in it is newer than Python 2.7."""
    tree = ast.parse((PACKAGE / "_runner.py").read_text())
    newer = (
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.AsyncFunctionDef,
        ast.Nonlocal,
        ast.Starred,
        ast.YieldFrom,
    )
    assert not [node for node in ast.walk(tree) if isinstance(node, newer)]
    assert "from __future__ import annotations" not in ast.unparse(tree)
