"""Traps in an environment for importing processes; none may affect safe-pip."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.venvs.probe import ProbeVenv
from tests.support.wheels.tiny_pip import install_tiny_pip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="virtual environments of POSIX")

RAISES = "raise SystemExit(f'{__file__} was run')\n"
VENDORED = ("filelock", "typing_extensions")
STANDARD = ("json", "wave", "csv", "email", "sqlite3", "zipfile")
DEBIAN = Path("/usr/bin/python3")

# Claims every module that is not yet loaded, and says so; what it is asked for while safe-pip is found is no concern.
FINDER = """
import sys

class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in ("safe_pip", "__future__") and "safe_pip.launch.isolation" in sys.modules:
            raise SystemExit(f"the finder was asked for {name}")

def hook(directory):
    if "safe_pip.launch.isolation" in sys.modules and directory.find("safe_pip") < 0:
        raise SystemExit(f"the path hook was asked for {directory}")
    raise ImportError(directory)

def install():
    sys.meta_path.insert(0, Finder)
    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()
    sys.path.append("__editable__.project-1.0.finder.__path_hook__")
"""


@pytest.fixture(params=["script", "module", "runner"])
def command(request, installed):
    """The three ways in."""
    return {
        "script": [installed.script],
        "module": [installed.python, "-m", "safe_pip"],
        "runner": [installed.python, installed.runner],
    }[request.param]


def assert_isolated(report, installed):
    """Nothing is imported from the environment but safe-pip itself, nor could anything be."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    copy, origin, _ = report["copy"]
    assert report["path"][-1] == copy
    assert all(version in entry or f"python{sys.version_info[0]}{sys.version_info[1]}" in entry
               for entry in report["path"][:-1])  # fmt: skip
    assert not [entry for entry in report["path"] if "-packages" in entry]
    assert report["finders"] == ["BuiltinImporter", "FrozenImporter", "PathFinder"]
    assert [hook.rpartition(".")[2] for hook in report["hooks"]] == ["zipimporter", "path_hook_for_FileFinder"]
    assert origin == str(installed.purelib / "pip")
    assert Path(report["modules"]["pip"]).is_relative_to(copy)
    standard = Path(sysconfig.get_path("stdlib"))
    for name in STANDARD:
        assert Path(report["modules"][name]).is_relative_to(standard)
        assert "site-packages" not in report["modules"][name]
    assert str(installed.purelib) in report["environment_path"]


def test_a_clean_environment_is_left_and_remembered(command, installed, probe, tmp_path):
    report = probe.report([*command, "list", "-v"], tmp_path)
    assert_isolated(report, installed)
    assert report["argv"] == ["list", "-v"]
    assert report["identity"] == installed.identity()
    assert not [
        entry for entry in report["environment_path"] if entry in ("", str(tmp_path), str(installed.path / "bin"))
    ]
    executable, argv, directory, variables = report["start"]
    assert (executable, directory) == (str(installed.python), str(tmp_path))
    assert argv[-2:] == ["list", "-v"]
    assert "XDG_CACHE_HOME" in variables


def test_the_runner_lets_pip_call_itself_as_below_its_own_python_option(installed, probe, tmp_path):
    report = probe.report([installed.python, installed.runner], tmp_path)
    assert Path(report["argv0"]).name == "__main__.py"


def test_the_runner_needs_neither_pip_nor_safe_pip(installed, probe, tmp_path):
    copy, origin, _ = probe.report([installed.script], tmp_path)["copy"]
    shutil.rmtree(installed.purelib / "pip")
    (installed.purelib / "safe_pip").unlink()
    given = {"SAFE_PIP_FROZEN": copy, "SAFE_PIP_FROZEN_ORIGIN": origin}
    report = probe.report([installed.python, probe.package / "_runner.py"], tmp_path, **given)
    assert report["copy"][:2] == [copy, origin]
    assert Path(report["modules"]["safe_pip"]).parent == probe.package
    assert not [entry for entry in report["environment_path"] if "safe_pip" in entry]


@pytest.mark.parametrize("interpreter", ["python2.7", "python3.6", "python3.7", "python3.8", "python3.9"])
def test_an_interpreter_that_is_too_old_is_refused_in_the_words_of_pip(interpreter, probe, tmp_path):
    version = interpreter.removeprefix("python")
    probed = (
        subprocess.run([interpreter, "-c", "1"], capture_output=True, check=False)
        if shutil.which(interpreter)
        else None
    )
    if probed is None or probed.returncode:
        pytest.skip(f"there is no {interpreter} on this machine")
    done = probe.run([interpreter, probe.package / "_runner.py", "list"], tmp_path, PATH=os.environ["PATH"])
    assert done.returncode == 1
    assert done.stderr == f"This version of pip does not support python {version} (requires >=3.10).\n"


def plant_import(site):
    """A `.pth` file that imports from site-packages."""
    (site / "loaded_by_pth.py").write_text("import os\n")
    (site / "early.pth").write_text("import loaded_by_pth\n")


def plant_failure(site):
    """A `.pth` file that fails: `site` says so and goes on."""
    (site / "broken.pth").write_text("import there_is_no_such_module\n")


def plant_finder(site):
    """An editable install: a finder, a path hook and an entry for it."""
    (site / "__editable___project_finder.py").write_text(FINDER)
    (site / "__editable__.project.pth").write_text("import __editable___project_finder as e; e.install()\n")


def plant_distutils(site):
    """What setuptools does at every start: a package with a finder, put first by a `.pth` file."""
    (site / "_distutils_hack").mkdir()
    (site / "_distutils_hack" / "__init__.py").write_text(FINDER + "add_shim = install\n")
    (site / "distutils-precedence.pth").write_text("import os; __import__('_distutils_hack').add_shim()\n")


def plant_modules(site):
    """Modules of the environment that are called like standard and vendored ones."""
    for name in (*VENDORED, *STANDARD):
        (site / f"{name}.py").write_text(RAISES)


def plant_impostors(site):
    """The same, loaded already by a `.pth` file."""
    for name in (*VENDORED, *STANDARD):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("def __getattr__(name): raise SystemExit(f'{__file__} was used')\n")
    names = ", ".join((*VENDORED, *STANDARD))
    (site / "impostors.pth").write_text(f"import sys; sys.path.insert(0, {str(site)!r}); import {names}\n")


def plant_pip(site):
    """pip itself, loaded already."""
    (site / "early.pth").write_text("import pip, pip._internal.cli\n")


@pytest.mark.parametrize(
    "plant",
    [plant_import, plant_failure, plant_finder, plant_distutils, plant_modules, plant_impostors, plant_pip],
    ids=lambda plant: plant.__name__.removeprefix("plant_"),
)
def test_nothing_that_lies_in_the_environment_is_run_after_the_start(plant, command, installed, probe, tmp_path):
    plant(installed.purelib)
    assert_isolated(probe.report(command, tmp_path), installed)


def test_modules_that_the_environment_loaded_before_are_left_alone(command, installed, probe, tmp_path):
    plant_import(installed.purelib)
    report = probe.report(command, tmp_path)
    assert report["modules"]["loaded_by_pth"] == str(installed.purelib / "loaded_by_pth.py")


def test_pythonpath_belongs_to_the_environment_and_is_not_imported_from(command, installed, probe, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("json", "wave", "pip", "filelock", "csv"):
        (tmp_path / "mine" / f"{name}.py").write_text(RAISES)
    report = probe.report(command, tmp_path, PYTHONPATH=str(tmp_path / "mine"))
    assert_isolated(report, installed)
    assert report["environment_path"][0] == str(tmp_path / "mine")


def test_the_standard_library_on_pythonpath_changes_nothing(command, installed, probe, tmp_path):
    standard = sysconfig.get_path("stdlib")
    report = probe.report(command, tmp_path, PYTHONPATH=f"{standard}/lib-dynload:{standard}")
    assert_isolated(report, installed)


def test_a_sitecustomize_that_replaces_modules_and_finders_has_no_say(command, installed, probe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__editable.py").write_text(FINDER)
    (tmp_path / "mine" / "json.py").write_text("def __getattr__(name): raise SystemExit('json was used')\n")
    (tmp_path / "mine" / "sitecustomize.py").write_text("import json, __editable; __editable.install()\n")
    report = probe.report(command, tmp_path, PYTHONPATH=str(tmp_path / "mine"))
    assert_isolated(report, installed)
    assert report["modules"]["sitecustomize"] == str(tmp_path / "mine" / "sitecustomize.py")


@pytest.mark.parametrize("system", [True, False], ids=["with", "without"])
def test_system_site_packages_are_of_the_environment_where_the_venv_has_them(system, probe, tmp_path):
    installed = ProbeVenv.make(tmp_path / "venv", probe, system_site_packages=system)
    report = probe.report([installed.script], tmp_path)
    assert_isolated(report, installed)
    # Debian has several; not all of them need exist.
    question = "import site; print(*site.getsitepackages(), sep='\\n')"
    system_sites = subprocess.check_output([os.path.realpath(sys.executable), "-I", "-c", question], text=True)
    assert (not set(system_sites.splitlines()).isdisjoint(report["environment_path"])) is system


def test_the_user_site_is_of_the_environment_and_not_imported_from(probe, tmp_path):
    installed = ProbeVenv.make(tmp_path / "venv", probe, system_site_packages=True)
    scheme = (
        "osx_framework_user"
        if sys.platform == "darwin" and sysconfig.get_config_var("PYTHONFRAMEWORK")
        else "posix_user"
    )
    user = Path(sysconfig.get_path("purelib", scheme, vars={"userbase": str(tmp_path / "user")}))
    user.mkdir(parents=True)
    plant_modules(user)
    report = probe.report([installed.script], tmp_path, PYTHONUSERBASE=str(tmp_path / "user"))
    assert_isolated(report, installed)
    assert str(user) in report["environment_path"]


def test_the_dist_packages_of_debian_are_of_the_environment_and_not_imported_from(probe, tmp_path):
    if not DEBIAN.exists() or not Path("/etc/debian_version").exists():
        pytest.skip("this machine has no Python of Debian's")
    command = [str(DEBIAN), "-I", "-c", "import sys; print(sys.version_info >= (3, 10), *sys.path)"]
    usable, *path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if usable != "True":
        pytest.skip("Debian's Python is older than 3.10 on this machine")
    install_tiny_pip(tmp_path / "pip")
    report = probe.report([DEBIAN, probe.package / "_runner.py"], tmp_path, PYTHONPATH=str(tmp_path / "pip"))
    # The user site is there before it exists: the first `--user` install makes it.
    added = {str(tmp_path / "pip"), *(entry for entry in report["environment_path"] if "/.local/" in entry)}
    assert [entry for entry in report["environment_path"] if entry not in added] == path
    assert not [entry for entry in report["path"] if "-packages" in entry]
    assert report["path"][:-1] == [entry for entry in path if "-packages" not in entry]


def test_a_directory_full_of_traps_is_no_danger_to_a_module_started_in_it(installed, probe, tmp_path):
    (tmp_path / "trap").mkdir()
    for name in ("pip", "filelock", "json", "wave", "csv", "importlib_metadata", "cli", "isolation", "errors"):
        (tmp_path / "trap" / f"{name}.py").write_text(RAISES)
    report = probe.report([installed.python, "-m", "safe_pip"], tmp_path / "trap")
    assert_isolated(report, installed)
    assert str(tmp_path / "trap") not in report["environment_path"]


def test_safe_pip_starts_without_a_working_directory(command, installed, probe, tmp_path):
    shell = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    report = probe.report(["/bin/sh", "-c", shell, "sh", *command], tmp_path)
    assert_isolated(report, installed)
    assert report["start"][2] is None


def test_an_isolated_interpreter_keeps_all_of_its_environment(installed, probe, tmp_path):
    report = probe.report([installed.python, "-I", "-m", "safe_pip"], tmp_path)
    assert_isolated(report, installed)


@pytest.mark.parametrize("option", ["-S", "-s", "-E", "-B", "-O", "-Wd"])
def test_options_of_the_interpreter_are_no_hindrance(installed, probe, tmp_path, option):
    site = {"PYTHONPATH": str(installed.purelib)} if option == "-S" else {}
    report = probe.report([installed.python, option, "-m", "safe_pip"], tmp_path, **site)
    assert_isolated(report, installed)


def test_pip_is_compiled_also_where_python_is_told_to_write_no_bytecode(installed, probe, tmp_path):
    install_tiny_pip(installed.purelib, more={"pip/_internal/only_here.py": ""})
    report = probe.report([installed.script], tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert list(Path(report["copy"][0]).glob("pip/_internal/__pycache__/only_here.*.pyc"))
    assert not list(installed.purelib.glob("pip/**/*.pyc"))


@pytest.mark.parametrize("number", [2, 8])
def test_commands_that_freeze_pip_at_once_all_succeed_with_one_copy(number, installed, probe, tmp_path):
    install_tiny_pip(installed.purelib, more={"pip/_internal/of_this_test.py": f"# {tmp_path}\n"})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read(1); import os; os.execv(sys.argv[1], sys.argv[1:])",
             str(installed.script)],
            env={"PATH": os.defpath, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(number)
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("g")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    copies = tmp_path / "cache" / "safe-pip" / "pip"
    assert len([name for name in os.listdir(copies) if name != ".aside"]) == 1
    assert os.listdir(copies / ".aside") == []


def test_without_a_cache_later_commands_use_the_copy_below_the_temporary_directory(installed, probe, tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cache").write_text("a file where a directory is expected")
    places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    copies = {probe.report([installed.script], tmp_path, **places)["copy"][0] for _ in range(2)}
    assert len(copies) == 1
    assert Path(*copies).parents[1] == (tmp_path / "tmp").resolve()
    assert len(os.listdir(tmp_path / "tmp")) == 1


FULL_DISK = """
set -e
exec 9<"$1"
mount -t tmpfs -o size=64k none /var/tmp
mount -t tmpfs -o size=64k none /tmp
mkdir -p "$1"
mount --no-canonicalize --bind /proc/self/fd/9 "$1"
mkdir /var/tmp/cache
cat /dev/zero > /tmp/fill 2>&- || cat /dev/zero > /var/tmp/fill 2>&- || :
shift
exec "$@"
"""


def test_where_no_disk_has_room_pip_is_not_frozen(installed, probe, tmp_path):
    """In a mount namespace of its own, in which the cache and all temporary directories are full."""
    namespace = ["unshare", "--mount", "/bin/sh", "-c", FULL_DISK, "sh", probe.package.parents[2].parent]
    if Path(os.path.realpath(sys.executable)).parts[1] in ("tmp", "var"):
        pytest.skip("the interpreter lies where this test hides everything")
    if shutil.which("unshare") is None or probe.run([*namespace, "true"], tmp_path).returncode:
        pytest.skip("this user may not mount a filesystem")
    done = probe.run([*namespace, installed.script], tmp_path, XDG_CACHE_HOME="/var/tmp/cache", PROBE="error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
