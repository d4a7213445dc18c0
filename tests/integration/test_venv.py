"""`safe-pip venv`: many at once, some of them killed, while other commands use the environment; docs/how-to/venv.md."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.mounts import as_root, mounted
from tests.support.pages import Page, shell
from tests.support.processes.workers import LIMIT, is_waiter, wait_until
from tests.support.trees.listing import tree_of
from tests.support.venvs.checker import Violation, check, installed
from tests.support.venvs.pip_environment import PipEnvironment, ended
from tests.support.venvs.template import Venv
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow
MANY = 16
PARENTS = "one/two/three/four/five"

# An interpreter that says when it makes an environment, and may be told to wait or to fail then.
WRAPPER = """#!/bin/sh
case "$*" in *runpy*) {then};; esac
exec "{python}" "$@"
"""


def wrapper(env: PipEnvironment, name: str, then: str) -> Path:
    """A Python that does `then` before it makes an environment."""
    path = env.directory / name
    path.write_text(WRAPPER.format(then=then, python=env.venv.python))
    path.chmod(0o755)
    return path


def venv(path: Path) -> Venv:
    """The environment, with the unowned files that the `venv` module makes."""
    own = [*(path / "bin").glob("[aA]ctivate*"), *(path / "bin").glob("python*")]
    own += [path / "pyvenv.cfg", path / ".gitignore", path / ".lock"]
    return Venv(path, frozenset(os.path.relpath(file, path) for file in own))


def violations(env: PipEnvironment, home: Path) -> list[Violation]:
    """What is wrong with it."""
    found = check(venv(home), env.variables, pip_check=(home / "bin" / "pip").exists())
    # `ensurepip` names the interpreter in the scripts of pip as the one that it was made from is named.
    own = re.compile(rf".*: #!{re.escape(str(home))}/bin/python[\d.]*")
    return [each for each in found if each.name != "wrong-shebang" or not own.fullmatch(each.detail)]


def runs(home: Path) -> bool:
    """Whether there is an environment whose Python and whose pip, if it has one, find it."""
    ask = "import sys, os; print(os.path.realpath(sys.prefix))"
    done = subprocess.run([home / "bin" / "python", "-I", "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.strip() == os.path.realpath(home) and venv(home).purelib.is_dir()


def ours(home: Path) -> list[str]:
    """What is there of safe-pip's, and is to be gone."""
    return [name for name in os.listdir(home) if name.startswith(".safe-pip")]


class Blocking:
    """A Python that waits when it is to make an environment, until it is told to go on."""

    def __init__(self, env: PipEnvironment) -> None:
        self._ready, self._go = env.directory / "ready", env.directory / "go"
        os.mkfifo(self._ready)
        os.mkfifo(self._go)
        self.python = wrapper(env, "blocking", f'echo > "{self._ready}"; read line < "{self._go}"')

    def begun(self) -> None:
        """Return when it waits."""
        assert self._ready.read_text() == "\n"

    def release(self) -> None:
        """Let it go on."""
        self._go.write_text("\n")


def test_sixteen_at_once_with_five_missing_parents_make_it_once(env: PipEnvironment) -> None:
    log = env.directory / "log"
    python = wrapper(env, "counting", f'echo made >> "{log}"')
    home = env.directory / PARENTS / "here"
    processes = [env.start("venv", home, "--python", python) for _ in range(MANY)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert (status, out) == (0, ""), err
    assert log.read_text() == "made\n"
    assert runs(home)
    assert ours(home) == []
    assert violations(env, home) == []
    for above in list(home.parents)[:5]:
        assert len(os.listdir(above)) == 1
    made = subprocess.run([home / "bin" / "pip", "--version"], capture_output=True, text=True, check=True)
    assert str(home) in made.stdout


def test_it_has_what_python_m_venv_makes(env: PipEnvironment) -> None:
    subprocess.run([env.venv.python, "-m", "venv", env.directory / "plain" / "here"], check=True)
    env.run("venv", env.directory / "ours" / "here")
    plain, made = (tree_of(env.directory / name / "here") for name in ("plain", "ours"))
    assert plain.keys() == made.keys()
    for path, what in made.items():
        # Where scripts, their RECORD and the configuration name the directory, their content differs.
        if path.startswith("bin/") or path.endswith("RECORD") or path == "pyvenv.cfg":
            assert what.split()[:2] == plain[path].split()[:2], path
        else:
            assert what == plain[path], path


def test_waiting_commands_name_the_holder_and_may_give_up(env: PipEnvironment) -> None:
    blocking, home = Blocking(env), env.directory / "here"
    first = env.start("venv", home, "--without-pip", "--python", blocking.python)
    blocking.begun()
    done = env.run("venv", home, "--lock-timeout", "0", status=75)
    assert f"the exclusive lock on `{home}` is not free, held by " in done.stderr
    assert f"(pid {first.pid}). Nothing was changed" in done.stderr
    second = env.start("venv", home, "--without-pip")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line.startswith(f"safe-pip: waiting for the exclusive lock on `{home}`, held by "), line
    assert f"(pid {first.pid})" in line
    wait_until(lambda: is_waiter(second.pid))
    blocking.release()
    for process in (first, second):
        with ended(process) as (status, _, err):
            assert status == 0, err
    assert "got the lock after" in err
    assert runs(home)


def test_directories_that_a_failing_command_made_go_again_and_no_others(env: PipEnvironment) -> None:
    failing = wrapper(env, "failing", "exit 3")
    (env.directory / "one").mkdir()
    done = env.run("venv", f"{PARENTS}/here", "--python", failing, status=1)
    assert "could not make an environment" in done.stderr
    assert "Nothing was changed" in done.stderr
    assert os.listdir(env.directory / "one") == []


def test_commands_that_fail_take_no_directory_away_from_those_that_do_not(env: PipEnvironment) -> None:
    failing = wrapper(env, "failing", "exit 3")
    for number in range(2):
        home = env.directory / f"round{number}" / PARENTS / "here"
        bad = [env.start("venv", home, "--without-pip", "--python", failing) for _ in range(5)]
        good = [env.start("venv", home, "--without-pip") for _ in range(5)]
        for process in good:
            with ended(process) as (status, _, err):
                assert status == 0, err
        for process in bad:
            with ended(process) as (status, _, err):
                assert status in (0, 1), err
                assert "Traceback" not in err
        assert runs(home)
        assert ours(home) == []


def test_an_interrupt_leaves_nothing(env: PipEnvironment) -> None:
    blocking = Blocking(env)
    process = env.start("venv", f"{PARENTS}/here", "--python", blocking.python)
    blocking.begun()
    process.send_signal(signal.SIGINT)
    with ended(process) as (status, _, err):
        assert status == 130, err
    assert not (env.directory / "one").exists()


def entries(path: Path) -> int:
    return sum(len(directories) + len(files) for _, directories, files in os.walk(path))


def programs(home: Path) -> Iterator[int]:
    """The processes that have a private directory of `here` on their command line, or work in one."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path("/proc", name, "cmdline").read_bytes()
            line += os.fsencode(os.readlink(f"/proc/{name}/cwd"))
        except OSError:
            continue
        if os.fsencode(home / ".safe-pip-venv-") in line:
            yield int(name)


@pytest.mark.parametrize("options", [["--without-pip"], []], ids=["without pip", "with pip"])
def test_killed_at_any_moment_it_is_made_anew_by_the_next(env: PipEnvironment, seed: int, options: list[str]) -> None:
    env.run("venv", "whole", *options)
    whole = entries(env.directory / "whole")
    chance = random.Random(f"venv {seed} {options}")
    for number in range(8 if options else 2):
        home = env.directory / f"round{number}" / "here"
        moment = chance.randrange(whole)
        process = env.start("venv", home, *options)
        wait_until(lambda: entries(home) >= moment or process.poll() is not None)  # noqa: B023
        process.kill()
        process.communicate()
        env.run("venv", home, *options)
        assert runs(home), moment
        wait_until(lambda: not list(programs(home)))  # noqa: B023
        # What was left may have been in use until that moment.
        env.run("venv", home, *options)
        assert ours(home) == []
        assert tree_of(home).keys() == tree_of(env.directory / "whole").keys()
        assert violations(env, home) == []


def test_one_that_python_m_venv_made_is_taken_as_it_is(env: PipEnvironment) -> None:
    subprocess.run([env.venv.python, "-m", "venv", "--without-pip", env.directory / "here"], check=True)
    before = tree_of(env.directory / "here")
    env.run("venv", "here", "--system-site-packages")
    env.run("venv", "here", "--python", env.venv.path)
    env.run("--python", env.venv.python, "venv", "here")
    assert tree_of(env.directory / "here") == before


def test_a_path_that_cannot_be_an_environment_is_refused_and_stays(env: PipEnvironment) -> None:
    (env.directory / "project").mkdir()
    (env.directory / "project" / "setup.py").touch()
    (env.directory / "file").touch()
    env.run("venv", "broken", "--without-pip")
    (env.directory / "broken" / "bin" / "python").unlink()
    (env.directory / "broken" / "bin" / "python").symlink_to("gone")
    env.run("venv", "there", "--without-pip")
    before = tree_of(env.directory, lambda path: path in ("home", "venv"))
    for words, status, said in (
        (["project"], 78, "is not a virtual environment, and not empty"),
        (["project", "--clear"], 78, "is not a virtual environment, and not empty"),
        (["file"], 78, "file` is not a directory"),
        (["file/below/it"], 78, "is not a directory"),
        (["broken"], 78, "does not work. Nothing was changed. Make it anew with `--clear`"),
        (["new/one", "--python", "2.7"], 78, "`2.7` is neither a Python interpreter nor the name of one on PATH"),
        (["new/one", "--python", "./nothing"], 78, "is not a Python interpreter"),
        (["new/one", "-r", "nothing.txt"], 2, "there is no requirements file `nothing.txt`"),
        # Older ones make it, though PATH cannot name it.
        *([(["new/a:b"], 1, "could not make an environment")] if sys.version_info >= (3, 11) else []),
        ([env.venv.path, "--clear"], 2, "is the environment that this safe-pip runs from"),
    ):
        done = env.run("venv", *words, status=status)
        assert said in done.stderr
        assert "Nothing was changed" in done.stderr
        assert tree_of(env.directory, lambda path: path in ("home", "venv")) == before, words
    env.run("venv", "broken", "--clear", "--without-pip")
    assert runs(env.directory / "broken")


def test_clear_removes_all_content_and_keeps_the_site_packages_directory(env: PipEnvironment) -> None:
    env.add_to_index(Project("aproject", "1", console_scripts={"aprogram": "aproject:main"}))
    env.run("venv", "here")
    env.run("venv", "new")
    home = env.directory / "here"
    env.run("--python", home, "install", "aproject")
    (home / "share").mkdir()
    (home / "share" / "mine").touch()
    (home / ".lock").touch()  # uv's, which others may wait for
    inode = venv(home).purelib.stat().st_ino
    env.run("venv", "here", "--clear")
    assert runs(home)
    assert venv(home).purelib.stat().st_ino == inode
    assert violations(env, home) == []
    ignored = {".lock", os.path.relpath(venv(home).purelib / ".safe-pip", home)}
    assert tree_of(home, ignored.__contains__).keys() == tree_of(env.directory / "new").keys()


def test_clear_for_another_python_leaves_only_the_site_packages_of_that_python(env: PipEnvironment) -> None:
    minors = [minor for minor in range(10, 16) if minor != sys.version_info[1]]
    for minor in minors:
        words = "--without-pip", "--python", f"python3.{minor}"
        if env.run("venv", f"other{minor}", *words, status=None).returncode == 0:
            break
    else:
        pytest.skip("there is no other Python 3 on PATH")
    env.run("venv", "here", "--without-pip")
    done = env.run("venv", "here", "--python", f"python3.{minor}", status=1)
    assert f"not of `python3.{minor}`" in done.stderr
    env.run("venv", "here", "--clear", "--without-pip", "--python", f"python3.{minor}")
    assert [path.name for path in (env.directory / "here" / "lib").iterdir()] == [f"python3.{minor}"]
    env.run("venv", "here", "--python", f"python3.{minor}")


def test_others_install_and_list_while_it_is_cleared(env: PipEnvironment) -> None:
    env.add_to_index(*(Project("aproject", version) for version in "12"), Project("other", "1"))
    home = env.directory / "here"
    env.run("venv", home, "--without-pip")
    inode = venv(home).purelib.stat().st_ino
    for number in range(3):
        clears = [env.start("venv", home, "--clear", "--without-pip") for _ in range(2)]
        others = [
            env.start("--python", home, *words)
            for words in (["install", f"aproject=={1 + number % 2}"], ["install", "other"], ["list"], ["freeze"])
        ]
        for process in clears + others:
            with ended(process) as (status, out, err):
                assert status == 0, out + err
                assert "Traceback" not in err
        assert venv(home).purelib.stat().st_ino == inode
        assert violations(env, home) == []
        assert ours(home) == []
        assert set(installed(venv(home))) <= {"aproject", "other"}


def test_clear_waits_for_a_build_that_uses_the_environment(env: PipEnvironment) -> None:
    env.run("venv", "here", "--without-pip")
    user = env.start("run", "--shared", "--env", "here", "--", "sh", "-c", "echo in; cat")
    assert user.stdout is not None
    assert user.stdout.readline() == "in\n"
    done = env.run("venv", "here", "--clear", "--without-pip", "--lock-timeout", "0", status=75)
    assert "Nothing was changed" in done.stderr
    assert ours(env.directory / "here") == []
    clearing = env.start("venv", "here", "--clear", "--without-pip")
    wait_until(lambda: is_waiter(clearing.pid))
    env.run("venv", "here")  # it is there all the while
    with ended(user, "") as (status, _, err):
        assert status == 0, err
    with ended(clearing) as (status, _, err):
        assert status == 0, err


def test_below_run_it_uses_the_lock_that_is_held(env: PipEnvironment) -> None:
    command = [*env.command("venv"), "here", "--without-pip"]
    env.run("run", "--exclusive", "--lock-dir", "here", "--", *command)
    assert runs(env.directory / "here")
    env.run("run", "--exclusive", "--env", "here", "--lock-timeout", "60", "--", *command, "--clear")
    assert runs(env.directory / "here")
    env.run("run", "--shared", "--env", "here", "--", *command)
    done = env.run("run", "--shared", "--env", "here", "--", *command, "--clear", status=75)
    assert "kept as it is" in done.stderr


def test_with_requirements_eight_at_once_each_find_them_satisfied(env: PipEnvironment) -> None:
    env.add_to_index(Project("aproject", "1"), Project("other", "1"), Project("third", "1"))
    (env.directory / "a.txt").write_text("aproject\nother\n")
    (env.directory / "b.txt").write_text("third\n")
    words = ["here", "--without-pip", "-r", "a.txt", "--requirement", "b.txt"]
    processes = [env.start("venv", *words, PIP_TARGET="elsewhere", PIP_USER="1") for _ in range(8)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert status == 0, out + err
    assert installed(venv(env.directory / "here")) == {"aproject": "1", "other": "1", "third": "1"}
    assert violations(env, env.directory / "here") == []
    done = env.run("venv", *words)
    assert done.stdout.count("Requirement already satisfied") == 3


def test_requirements_that_cannot_be_installed_leave_the_environment_without_them(env: PipEnvironment) -> None:
    (env.directory / "r.txt").write_text("no-such-project\n")
    done = env.run("venv", "here", "--without-pip", "-r", "r.txt", status=1)
    assert "No matching distribution found for no-such-project" in done.stderr
    assert "the environment `here` exists, without what could not be installed" in done.stderr
    assert runs(env.directory / "here")


def test_the_page_says_what_happens(env: PipEnvironment) -> None:
    env.activate()
    env.add_to_index(Project("example-alpha", "1"))
    page = Page.read("venv")
    page.save(env.directory)
    for commands in page.commands:
        shell(commands, env.directory, env.variables, timeout=LIMIT * 5)
    homes = [path.parent for path in env.directory.glob("**/pyvenv.cfg") if path.parent != env.venv.path]
    assert homes
    for home in homes:
        assert runs(home)


@as_root
def test_an_image_is_made_once_and_works_where_it_is_mounted(env: PipEnvironment) -> None:
    if shutil.which("mksquashfs") is None:
        pytest.skip("there is no mksquashfs")
    env.add_to_index(Project("aproject", "1", console_scripts={"aprogram": "aproject:main"}), Project("other", "1"))
    home, image, requirements = (env.directory / name for name in ("the 'home'", "e.sqsh", "requirements.txt"))
    requirements.write_text("aproject\n")
    home.mkdir()
    words = ["venv", home, "--without-pip", "-r", requirements, "--image", image]
    blocking = Blocking(env)
    first = env.start(*words, "--python", blocking.python)
    blocking.begun()
    refused = env.run(*words, "--lock-timeout", "0", status=75)
    assert f"the exclusive lock on `{image}` is not free, held by " in refused.stderr
    second = env.start(*words, "--python", blocking.python)
    wait_until(lambda: is_waiter(second.pid))
    blocking.release()
    with ended(first) as (status, out, err):
        assert status == 0, err
        assert f"Made `{image}`" in out
    with ended(second) as (status, out, err):
        assert (status, out) == (0, f"`{image}` is up to date\n"), err
    assert os.listdir(home) == []
    assert not list(env.directory.glob("e.sqsh?*"))
    made = image.stat().st_ino
    with mounted(home, "-o", "loop,ro", image):
        before = tree_of(home)
        assert runs(home)
        assert violations(env, home) == []
        subprocess.run([home / "bin" / "python", "-c", "import aproject"], check=True)
        subprocess.run([home / "bin" / "aprogram"], check=True)
        assert "aproject" in env.run("--python", home, "list").stdout
        env.run("run", "--env", home, "--", "true")
        assert env.run("doctor", "--env", home).stdout.startswith("Sound")
        env.run("venv", home)
        refused = env.run("--python", home, "install", "other", status=78)
        assert "Read-only file system. Nothing was changed" in refused.stderr
        assert tree_of(home) == before
        # Another set replaces the file; what is mounted stays as it is.
        requirements.write_text("other\n")
        assert "Would make" in env.run(*words, "-n").stdout
        assert image.stat().st_ino == made
        env.run(*words)
        assert tree_of(home) == before
    with mounted(home, "-o", "loop,ro", image):
        subprocess.run([home / "bin" / "python", "-c", "import other"], check=True)
    requirements.write_text("nothing-of-this-name\n")
    made = image.stat().st_ino
    assert f"`{image}` was not made. Nothing was changed" in env.run(*words, status=1).stderr
    assert image.stat().st_ino == made
