"""`safe-pip adopt`: until `unadopt`, every way to start an environment's pip runs safe-pip; nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from safe_pip.launch import adoption
from safe_pip.launch.adoption import NAME, Adoption
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.readonly import ReadOnlyEnvironment
from tests.support.venvs.template import PROJECT_ROOT, Venv
from tests.support.wheels.tiny import Project
from tests.support.wheels.tiny_pip import install_tiny_pip
from tests.support.wheels.wheelhouse import NEWEST_PIP, OLDEST_PIP

pytestmark = pytest.mark.slow
# Starts pip like `ensurepip` and other programs that import pip: the program itself is not pip.
PLAIN = "import runpy, sys; sys.argv[0] = 'pip'; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
TREE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


@pytest.fixture
def adopted(env: PipEnvironment) -> PipEnvironment:
    """An environment with a safe-pip of its own, adopted."""
    env.run("adopt")
    return env


@pytest.fixture
def other(env: PipEnvironment) -> Venv:
    """An environment without safe-pip, adopted by the safe-pip of `env`."""
    pip = env.workspace.wheelhouse.wheel("pip", env.workspace.pip_version)
    made = env.workspace.maker.make(env.directory / "other", [pip])
    env.run("adopt", "--env", made.path)
    return made


def run(
    env: PipEnvironment, command: Sequence[str | Path], status: int | None = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*map(str, command)],
        env=env.variables | more,
        cwd=env.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert status is None or done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def is_safe_pip(env: PipEnvironment, command: Sequence[str | Path]) -> bool:
    """Whether this is safe-pip; pip has no such command."""
    done = run(env, [*command, "status"], status=None)
    assert (done.returncode == 0) == ("nothing is unfinished" in done.stdout), done.stderr
    assert done.returncode or not done.stderr
    assert f"{os.sep}pip\n" not in done.stdout, "pip's own directory is taken for a place of distributions"
    return done.returncode == 0


def spellings(environment: Venv) -> list[list[str]]:
    python = str(environment.python)
    options = (["-m", "pip"], ["-I", "-m", "pip"], ["-Impip"], ["-sE", "-W", "ignore", "-mpip"], ["-m", "pip.__main__"])
    scripts = [[str(path)] for path in sorted(environment.scripts.glob("pip*"))]
    by_python = [[python, *script] for script in scripts[:1]]
    places = (environment.purelib / "pip", environment.purelib / "pip" / "__main__.py")
    by_place = [
        [python, each] for place in places for each in (str(place), os.path.relpath(place, environment.path.parent))
    ]
    return [[python, *each] for each in options] + scripts + by_python + by_place


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """All entries below a directory: kinds, modes, contents, and times except those of directories."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[str(path)] = (status.st_mode, os.readlink(path), status.st_mtime_ns)
        elif path.is_dir():
            found[str(path)] = (status.st_mode,)
        else:
            found[str(path)] = (status.st_mode, path.read_bytes(), status.st_mtime_ns)
    return found


@pytest.mark.oldest_pip
def test_every_way_to_start_pip_starts_safe_pip(adopted: PipEnvironment, other: Venv) -> None:
    for environment in (adopted.venv, other):
        link = environment.path.parent / f"pip-of-{environment.path.name}"
        link.symlink_to(environment.scripts / "pip")
        assert len(spellings(environment)) >= 12
        for number, command in enumerate(([str(link)], *spellings(environment))):
            if environment is other or number % 5 == 0:
                assert is_safe_pip(adopted, command), command
            if number % 5 == 0:
                assert str(environment.purelib) in run(adopted, [*command, "--version"]).stdout


@pytest.mark.skipif(sys.version_info < (3, 15), reason="reads no `.start` files")
@pytest.mark.parametrize("is_upgraded", [True, False], ids=["upgraded in place", "of one version"])
def test_later_versions_run_the_start_file(
    env: PipEnvironment, monkeypatch: pytest.MonkeyPatch, is_upgraded: bool
) -> None:
    """With the files of Python 3.18 alone, and with those of a tree that an older Python has used as well."""
    monkeypatch.setattr(adoption, "_RUNS_NO_LINE", (3, 15))
    if is_upgraded:
        monkeypatch.setattr(adoption, "python_of", lambda tree: None)
    files = Adoption(env.site, env.site / "safe_pip").content()
    assert len(files) == 3
    assert (b"import sys" in files[NAME]) == is_upgraded
    for name, content in files.items():
        (env.site / name).write_bytes(content)
    monkeypatch.undo()
    for command in spellings(env.venv):
        assert is_safe_pip(env, command), command
    assert run(env, [env.venv.python, "-c", "import pip; print(pip.__file__)"]).stderr == ""
    env.run("unadopt")
    assert not [name for name in os.listdir(env.site) if "adopted" in name]
    assert not list(env.site.glob("__pycache__/*adopted*"))
    assert not is_safe_pip(env, [env.venv.python, "-m", "pip"])


@pytest.mark.oldest_pip
def test_it_calls_itself_pip_as_pip_does(adopted: PipEnvironment) -> None:
    python, pip = adopted.venv.python, adopted.venv.scripts / "pip"
    usage = "".join(run(adopted, [python, "-m", "pip", "hash", "--help"]).stdout.split())  # long lines are wrapped
    assert usage.startswith(f"Usage:{python}-mpiphash[options]")
    usage = " ".join(run(adopted, [pip, "hash", "--help"]).stdout.split())
    assert usage.startswith("Usage: pip hash [options]")


@pytest.mark.oldest_pip
def test_a_program_that_imports_pip_gets_plain_pip(adopted: PipEnvironment) -> None:
    """Also from a script that is called almost as pip is, or from a start that another file runs."""
    python = adopted.venv.python
    shown = "import pip; print(pip.__file__)"
    (adopted.directory / "pip-compile").write_text(shown)
    (adopted.directory / "pip").write_text(shown)
    (adopted.directory / "pipx.py").write_text(shown)
    for command in (["-c", shown], ["pip-compile"], ["pip"], ["-m", "pipx"]):
        assert run(adopted, [python, *command]).stdout == f"{adopted.site / 'pip' / '__init__.py'}\n"
    assert not is_safe_pip(adopted, [python, "-c", PLAIN])
    (adopted.site / "zz.pth").write_text("import pip\n")
    assert is_safe_pip(adopted, [python, "-m", "pip"])


@pytest.mark.oldest_pip
def test_an_isolated_build_does_not_find_the_pip_of_the_environment_either(adopted: PipEnvironment) -> None:
    tree = Project("built").write_source_tree(adopted.directory / "built")
    (tree / "_backend.py").rename(tree / "_copying.py")
    asks = "subprocess.run([sys.executable, '-m', 'pip', '--version'], capture_output=True, text=True)"
    text = f"import subprocess, sys\nfrom _copying import *\ndone = {asks}\n"
    (tree / "_backend.py").write_text(text + "assert done.returncode == 1 and 'No module named pip' in done.stderr\n")
    run(adopted, [adopted.venv.scripts / "pip", "install", tree])
    assert adopted.installed() == {"built": "1"}


@pytest.mark.oldest_pip
def test_an_adoption_survives_whatever_happens_to_pip(adopted: PipEnvironment) -> None:
    """Upgrades, downgrades, an uninstall and a reinstall: by itself, by plain pip, and by ensurepip."""
    python, pip = str(adopted.venv.python), str(adopted.venv.scripts / "pip")
    plain = [python, "-c", PLAIN]
    for installer, version in (([pip], OLDEST_PIP), (plain, NEWEST_PIP)):
        run(adopted, [*installer, "install", "-q", f"pip=={version}"])
        assert is_safe_pip(adopted, [pip])
        assert is_safe_pip(adopted, [python, "-m", "pip"])
        assert run(adopted, [pip, "--version"]).stdout.startswith(f"pip {version} from {adopted.site}")
    run(adopted, [pip, "uninstall", "-q", "-y", "pip"])
    assert not (adopted.site / "pip").exists()
    assert is_safe_pip(adopted, [python, "-m", "pip"])
    run(adopted, [python, "-m", "ensurepip", "--default-pip"])
    assert is_safe_pip(adopted, [pip])
    run(adopted, [*plain, "uninstall", "-q", "-y", "pip"])
    run(adopted, [python, "-m", "pip", "install", "-q", "pip"])
    assert is_safe_pip(adopted, [pip])
    assert json.loads(adopted.run("doctor", "--json").stdout)["sound"]


@pytest.mark.parametrize(("adopter", "pip"), [("installed", None), ("a checkout", "24.2")])
def test_without_a_pip_that_is_new_enough_the_one_of_safe_pip_runs(
    env: PipEnvironment, adopter: str, pip: str | None
) -> None:
    bare = env.workspace.maker.make(env.directory / "bare")
    if pip:
        install_tiny_pip(bare.purelib, pip)
    env.add_to_index(Project("alpha"))
    more = {"PYTHONPATH": str(PROJECT_ROOT / "src")} if adopter == "a checkout" else {}
    run(env, [env.venv.python, "-m", "safe_pip", "adopt", "--env", bare.path], **more)
    for number, command in enumerate((["install", "alpha"], ["list", "--format=freeze"])):  # each with no copy at all
        place = env.directory / f"no copies {number}"
        place.mkdir()
        listed = run(env, [bare.python, "-m", "pip", *command], XDG_CACHE_HOME=str(place), TMPDIR=str(place)).stdout
    assert listed == "alpha==1\n" + (f"pip=={pip}\n" if pip else "")
    assert (bare.purelib / "alpha.py").exists()


@pytest.mark.parametrize("spelled", ["--env", "own"])
def test_unadopted_it_is_byte_for_byte_as_it_was(env: PipEnvironment, spelled: str) -> None:
    args = ["--env", str(env.venv.path)] if spelled == "--env" else []
    elsewhere = env.workspace.maker.make(env.directory / "elsewhere")
    for verb in ("adopt", "unadopt"):  # the first commands compile what they import
        env.run(verb, "--env", elsewhere.path)
    before = everything(env.venv.path)
    assert not (env.site / ".safe-pip").exists()
    env.run("adopt", *args)
    more = set(everything(env.venv.path)) - set(before)
    assert more == {str(env.site / name) for name in Adoption(env.site, env.site).content()}
    run(env, [env.venv.python, "-c", "print(1)"])  # Python keeps the bytecode of a module that it imports
    env.run("unadopt", *args)
    assert everything(env.venv.path) == before
    assert not is_safe_pip(env, [env.venv.python, "-m", "pip"])


def test_a_safe_pip_that_was_installed_stays(env: PipEnvironment) -> None:
    env.add_to_index(Project("alpha"))
    env.run("install", "alpha")
    assert (env.site / ".safe-pip").is_dir()
    env.run("adopt")
    env.run("unadopt")
    assert (env.site / ".safe-pip").is_dir()


def test_to_adopt_or_unadopt_twice_changes_nothing(env: PipEnvironment) -> None:
    assert env.run("adopt").stdout.startswith(f"Adopted `{env.venv.path}`")
    run(env, [env.venv.python, "-c", "print(1)"])  # Python keeps the bytecode of a module that it imports
    before = everything(env.site)
    assert "is adopted already" in env.run("adopt").stdout
    assert everything(env.site) == before
    assert "pip is" not in env.run("unadopt").stderr
    assert "was not adopted" in env.run("unadopt").stdout


def test_adopted_anew_it_has_the_safe_pip_that_was_asked(env: PipEnvironment, other: Venv) -> None:
    found = json.loads(env.run("status", "--json", "--env", other.path).stdout)["adopted"]
    assert [each["home"] for each in found] == [str(env.site / "safe_pip")]
    third = env.workspace.maker.copy(env.venv, env.directory / "third")
    run(env, [third.scripts / "safe-pip", "adopt", "--env", other.python])
    found = json.loads(env.run("status", "--json", "--env", other.path).stdout)["adopted"]
    home, file = str(third.purelib / "safe_pip"), str(other.purelib / NAME)
    assert found == [{"tree": str(other.purelib), "home": home, "file": file, "works": True}]


@pytest.mark.oldest_pip
def test_status_and_doctor_show_it_and_what_pip_prints_stays_the_same(env: PipEnvironment) -> None:
    commands = [["list"], ["freeze", "--all"], ["check"]]
    *before, inspected = (each.stdout for each in env.read_with_plain_pip(*commands, ["inspect"]))
    env.run("adopt")
    for command in spellings(env.venv)[:2]:
        assert [run(env, [*command, *each]).stdout for each in commands] == before
        # The order of keys in an object means nothing.
        assert json.loads(run(env, [*command, "inspect"]).stdout) == json.loads(inspected)
    told = f"`pip` is safe-pip, of `{env.site / 'safe_pip'}`"
    assert told in env.run("status").stdout
    doctor = env.run("doctor")
    assert doctor.stdout.splitlines() == [f"note: adopted: {env.site / NAME}: {told}", "Sound: 2 distributions"]
    env.run("doctor", "--repair")
    assert (env.site / NAME).exists()


def test_adopting_during_installs_delays_and_breaks_none_of_them(env: PipEnvironment) -> None:
    projects = [Project(f"p{number}") for number in range(5)]
    env.add_to_index(*projects)
    env.run("list")
    python = str(env.venv.python)
    commands = [env.command("install", "-q", each.name) for each in projects]
    commands += [env.command(verb) for verb in ("adopt", "unadopt", "adopt", "adopt")]
    options = {"env": env.variables, "cwd": env.directory, "stdin": subprocess.DEVNULL, "text": True}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
        for command in commands
    ]
    for process in started:
        out, err = process.communicate()
        assert process.returncode == 0, f"{process.args}:\n{out}\n{err}"
    env.run("adopt")
    more = [Project(f"q{number}") for number in range(3)]
    env.add_to_index(*more)
    started = [
        subprocess.Popen([python, "-m", "pip", "install", "-q", each.name], stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
        for each in more
    ]
    for process in started:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert env.installed() == {each.name: "1" for each in (*projects, *more)}
    assert json.loads(env.run("doctor", "--json").stdout)["sound"]


def test_without_its_safe_pip_pip_refuses_and_all_other_programs_start(env: PipEnvironment, other: Venv) -> None:
    shutil.move(env.site / "safe_pip", env.directory / "moved")
    for command in ([other.python, "-m", "pip", "list"], [other.scripts / "pip", "list"]):
        done = run(env, command, status=78)
        assert done.stdout == ""
        assert done.stderr.startswith("safe-pip: error: `pip` of this environment is safe-pip, which cannot be run")
        assert "Nothing was changed" in done.stderr
        assert str(other.purelib / NAME) in done.stderr
    for command in (["-c", "print(1)"], ["-c", "import pip; print(1)"]):
        done = run(env, [other.python, *command])
        assert (done.stdout, done.stderr) == ("1\n", "")
    shutil.move(env.directory / "moved", env.site / "safe_pip")
    assert is_safe_pip(env, [other.python, "-m", "pip"])
    shutil.rmtree(env.site / "safe_pip")
    (other.purelib / NAME).unlink()
    assert not is_safe_pip(env, [other.python, "-m", "pip"])


@pytest.mark.oldest_pip
def test_uninstalling_safe_pip_prints_the_effect_on_pip(adopted: PipEnvironment) -> None:
    pip, python = adopted.venv.scripts / "pip", adopted.venv.python
    done = run(adopted, [pip, "uninstall", "-y", "parallel-safe-pip"])
    assert "which is gone: `pip` is plain pip" in done.stderr
    assert run(adopted, [python, "-c", "print(1)"]).stderr == ""
    done = run(adopted, [pip, "list"])
    assert "parallel-safe-pip" not in done.stdout
    assert (
        done.stderr == f"safe-pip: the safe-pip that `{adopted.site / NAME}` names was removed, so `pip` is plain pip\n"
    )
    wheel = adopted.workspace.base[1]
    run(adopted, [python, "-c", PLAIN, "install", "-q", wheel])
    assert is_safe_pip(adopted, [pip])


@pytest.mark.oldest_pip
def test_removing_all_that_freeze_lists_leaves_pip_and_safe_pip(adopted: PipEnvironment) -> None:
    adopted.add_to_index(Project("alpha", "1"))
    pip = adopted.venv.scripts / "pip"
    run(adopted, [pip, "install", "alpha"])
    listed = run(adopted, [pip, "freeze"]).stdout.split()
    assert listed == ["alpha==1"]
    assert "parallel-safe-pip" in run(adopted, [pip, "freeze", "--all"]).stdout
    run(adopted, [pip, "uninstall", "-y", *(each.partition("=")[0] for each in listed)])
    assert is_safe_pip(adopted, [pip])


def test_doctor_finds_an_adoption_whose_safe_pip_is_gone(env: PipEnvironment, other: Venv) -> None:
    third = env.workspace.maker.copy(env.venv, env.directory / "third")
    shutil.rmtree(env.site / "safe_pip")
    done = run(env, [third.scripts / "safe-pip", "doctor", "--env", other.path], status=1)
    assert done.stdout.startswith(f"adopted-in-vain: {other.purelib / NAME}: `pip` is safe-pip, of `{env.site}")
    assert "which is gone" in run(env, [third.scripts / "safe-pip", "status", "--env", other.path]).stdout


def refused(env: PipEnvironment, path: Path, words: str) -> None:
    before = everything(path)
    done = env.run("adopt", "--env", path, status=78)
    assert words in done.stderr
    assert "Nothing was changed" in done.stderr
    assert everything(path) == before


def test_an_environment_that_cannot_be_adopted_is_refused(env: PipEnvironment, tmp_path: Path) -> None:
    managed = tmp_path / "managed"
    (managed / TREE).mkdir(parents=True)
    ((managed / TREE).parent / "EXTERNALLY-MANAGED").touch()
    refused(env, managed, "is managed by the system")

    old = tmp_path / "old"
    (old / "lib/python3.9/site-packages").mkdir(parents=True)
    refused(env, old, "is of a Python older than 3.10")

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(env, empty, "is not an environment")

    taken = env.workspace.maker.make(tmp_path / "taken")
    for name in Adoption(taken.purelib, taken.purelib).content():
        (taken.purelib / name).write_text("# mine\n")
        refused(env, taken.path, "was not made by safe-pip")
        (taken.purelib / name).unlink()


def test_an_environment_that_cannot_be_written_is_refused(env: PipEnvironment, common: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    readable = ReadOnlyEnvironment(env, common)
    before = everything(readable.site)
    for args in ([], ["--env", readable.python]):
        done = readable.run("adopt", *args)
        assert done.returncode == 78, done.stderr
        assert f"`{readable.site}` is not writable: Permission denied. Nothing was changed" in done.stderr
    assert everything(readable.site) == before
