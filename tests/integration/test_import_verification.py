"""`--verify=import`: a child of the environment's interpreter imports what is staged, before it is installed."""

import os
import sys
import sysconfig
from pathlib import Path

import pytest

from safe_pip.environment.import_check import top_level, verify_imports
from safe_pip.environment.stage import Stage
from safe_pip.errors import ImportFailed, State
from safe_pip.locking import state_directory

STANDARD = [path for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")) if path]
DYNAMIC = [os.path.join(path, "lib-dynload") for path in STANDARD]


class Site:
    """A tree, and a stage for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = root / "site"
        self.tree.mkdir()
        state_directory.make(self.tree)
        self.stage = Stage(self.tree)
        self.path = [*STANDARD, *DYNAMIC, str(self.tree)]

    def put(self, name: str, content: str, *, live: bool = False) -> Path:
        """Have a file in the tree, or in the stage."""
        path = Path("" if live else self.stage.root, *self.tree.parts[0 if live else 1 :], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def verify(self) -> None:
        verify_imports(self.stage, [str(self.tree)], self.path)

    def refused(self, *reasons: str) -> ImportFailed:
        with pytest.raises(ImportFailed) as caught:
            self.verify()
        assert caught.value.state is State.UNCHANGED
        assert caught.value.exit_status == 1
        for reason in reasons:
            assert reason in caught.value.message
        assert "\n" not in caught.value.message
        return caught.value


@pytest.fixture
def site(tmp_path: Path):
    made = Site(tmp_path)
    yield made
    made.stage.close()


def test_importable_modules_pass_without_bytecode_and_without_output(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    site.put("pkg/__init__.py", "from . import sub\nprint('hello')\nimport sys; sys.stderr.write('hello')")
    site.put("pkg/sub.py", "")
    site.put("mod.py", "import pkg.sub")
    before = sorted(site.root.rglob("*"))
    site.verify()
    assert capfd.readouterr() == ("", "")
    assert sorted(site.root.rglob("*")) == before


def test_where_there_is_nothing_to_import_no_program_is_started(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.put("x-1.dist-info/METADATA", "")
    site.put("../bin/x.py", "raise SystemExit(3)")
    monkeypatch.setattr(sys, "executable", "/nothing")
    site.verify()


def test_a_failed_import_is_named_with_the_last_lines_that_it_printed(site: Site) -> None:
    site.put("good.py", "")
    site.put("bad/__init__.py", "import sys\nfor n in range(99):\n    print(n, file=sys.stderr)\nimport missing_thing")
    error = site.refused("`bad` cannot be imported: ModuleNotFoundError: No module named 'missing_thing'")
    lines = error.output.splitlines()
    assert len(lines) <= 20
    assert lines[0].isdigit() or "Traceback" in error.output
    assert lines[-1] == "ModuleNotFoundError: No module named 'missing_thing'"


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise KeyboardInterrupt", "import os; os._exit(0)"])
def test_a_module_that_ends_the_interpreter_fails(site: Site, code: str) -> None:
    site.put("ending.py", code)
    site.refused("`ending` cannot be imported")


def test_a_module_that_crashes_the_interpreter_is_named(site: Site) -> None:
    site.put("crashing.py", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    site.refused("`crashing` cannot be imported: the interpreter was killed by signal 9")


def test_a_module_that_leaves_something_running_does_not_hold_it_up(site: Site) -> None:
    site.put(
        "lasting.py",
        "import subprocess, sys, threading\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "open(__file__ + '.pid', 'w').write(str(child.pid))\n"
        "threading.Thread(target=threading.Event().wait).start()\n",
    )
    site.verify()
    (note,) = Path(site.stage.root).rglob("*.pid")
    os.kill(int(note.read_text()), 9)


def test_the_stage_comes_before_what_is_installed(site: Site) -> None:
    site.put("pkg/__init__.py", "version = 1", live=True)
    site.put("pkg/old.py", "", live=True)
    site.put("pkg/__init__.py", "version = 2")
    site.put("user.py", "import pkg; assert pkg.version == 2")
    site.verify()
    site.put("user.py", "import pkg.old")
    site.refused("`user` cannot be imported: ModuleNotFoundError")


def test_new_modules_can_import_installed_modules(site: Site) -> None:
    site.put("installed.py", "x = 1", live=True)
    site.put("new.py", "import installed")
    site.verify()


def test_a_namespace_package_has_parts_in_the_stage_and_in_the_environment(site: Site) -> None:
    site.put("ns/installed/__init__.py", "", live=True)
    site.put("ns/new/__init__.py", "import ns.installed")
    site.put("user.py", "import ns.new, ns.installed")
    site.verify()


def test_a_part_of_a_regular_package_that_is_installed_is_not_taken_for_all_of_it(site: Site) -> None:
    site.put("host/__init__.py", "x = 1", live=True)
    site.put("host/plugin.py", "broken code here")
    site.put("user.py", "import host; assert host.x == 1")
    site.verify()


def test_a_standard_module_is_not_hidden_by_one_that_is_staged(site: Site) -> None:
    """As it will be once that is installed: the environment's trees come after the standard library's."""
    site.put("typing.py", "raise RuntimeError")
    site.verify()


def test_a_tree_that_is_not_on_the_path_comes_first(site: Site) -> None:
    site.put("new.py", "import sys; assert sys.path[0].endswith('/site'), sys.path")
    site.path.remove(str(site.tree))
    site.verify()


def test_the_working_directory_is_not_on_the_path(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "lying_around.py").write_text("")
    monkeypatch.chdir(tmp_path / "cwd")
    site.put("new.py", "import lying_around")
    site.refused("No module named 'lying_around'")


def test_path_files_are_heeded(site: Site, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "editable.py").write_text("")
    site.put("editable.pth", f"{tmp_path / 'source'}\n")
    site.put("new.py", "import editable")
    site.verify()


def test_the_environment_of_the_user_is_passed_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_USER", "1")
    site.put("new.py", "import os; assert os.environ['OF_THE_USER'] == '1'")
    site.verify()


def test_metadata_of_new_distributions_is_found(site: Site) -> None:
    site.put("new-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: new\nVersion: 1\n", live=True)
    site.put("new-2.dist-info/METADATA", "Metadata-Version: 2.1\nName: new\nVersion: 2\n")
    site.put("new.py", "import importlib.metadata as m; assert m.version('new') == '2'")
    site.verify()


def test_the_names_are_those_of_modules_and_regular_packages(tmp_path: Path) -> None:
    for name in ("pkg/__init__.py", "native/__init__.abi3.so", "ns/mod.py", "not-one/__init__.py", "__pycache__/m.pyc"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in ("mod.py", f"fast{suffix}", "stable.abi3.so", "other.cpython-27-x.so.txt", "old.pyc", "is-none.py"):
        (tmp_path / name).touch()
    for name in ("x.pth", "__main__.py", "__init__.py", "data.txt", "x-1.dist-info"):
        (tmp_path / name).touch()
    assert sorted(top_level(str(tmp_path))) == ["fast", "mod", "native", "old", "pkg", "stable"]
