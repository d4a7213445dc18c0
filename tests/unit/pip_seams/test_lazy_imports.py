"""Before pip forbids imports, every lazy one has taken place."""

import sys
import types

import pytest

from safe_pip.pip_seams import install

pytestmark = pytest.mark.skipif(sys.version_info < (3, 15), reason="before Python 3.15 no import is lazy")


@pytest.fixture
def import_module(monkeypatch, tmp_path):
    """Import a module of pip's with this text; the modules that it may import lie beside it."""
    monkeypatch.syspath_prepend(tmp_path)
    names = set(sys.modules)

    def import_module(text: str, **others: str) -> types.ModuleType:
        for name, content in others.items():
            (tmp_path / f"{name}.py").write_text(content)
        module = types.ModuleType("pip.lazy")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(text, vars(module))
        return module

    yield import_module
    for name in sys.modules.keys() - names:
        del sys.modules[name]


def never(names):
    raise AssertionError("pip looked itself")


def test_each_import_takes_place_and_those_that_it_brings(import_module):
    adds = "from lazy_inner import inner\nimport sys\nexec('lazy import lazy_last', vars(sys.modules['pip.lazy']))"
    others = {"lazy_outer": adds, "lazy_inner": "inner = 1", "lazy_last": ""}
    module = import_module("lazy from lazy_outer import inner", **others)
    assert "lazy_outer" not in sys.modules
    install.resolve_lazy_imports(never, ())
    assert vars(module)["inner"] == 1
    assert "lazy_last" in sys.modules


def test_pip_looks_itself_if_a_module_cannot_be_imported(import_module):
    import_module("lazy import lazy_missing")
    asked = []
    install.resolve_lazy_imports(asked.append, ["one"])
    assert asked == [["one"]]


def test_modules_of_the_environment_are_left_alone(import_module, monkeypatch):
    module = import_module("lazy import lazy_missing")
    monkeypatch.delitem(sys.modules, "pip.lazy")
    monkeypatch.setitem(sys.modules, "of_the_environment", module)
    install.resolve_lazy_imports(never, ())
    assert type(vars(module)["lazy_missing"]) is types.LazyImportType
