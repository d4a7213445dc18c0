"""`safe-pip venv`: many at once, some of them killed, beside others who use the environment; docs/how-to/venv.md."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import Page, shell
from tests.support.processes.workers import LIMIT, is_waiter, wait_until
from tests.support.trees.look import tree_of
from tests.support.venvs.checker import Violation, check, installed
from tests.support.venvs.environment import Shop, ended
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


def wrapper(shop: Shop, name: str, then: str) -> Path:
    """A Python that does `then` before it makes an environment."""
    path = shop.directory / name
    path.write_text(WRAPPER.format(then=then, python=shop.environment.python))
    path.chmod(0o755)
    return path


def venv(path: Path) -> Venv:
    """The environment, with the files that it has of nobody's: those of the `venv` module."""
    own = [*(path / "bin").glob("[aA]ctivate*"), *(path / "bin").glob("python*")]
    own += [path / "pyvenv.cfg", path / ".gitignore", path / ".lock"]
    return Venv(path, frozenset(os.path.relpath(file, path) for file in own))


def violations(shop: Shop, home: Path) -> list[Violation]:
    """What is wrong with it."""
    found = check(venv(home), shop.variables, pip_check=(home / "bin" / "pip").exists())
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

    def __init__(self, shop: Shop) -> None:
        self._ready, self._go = shop.directory / "ready", shop.directory / "go"
        os.mkfifo(self._ready)
        os.mkfifo(self._go)
        self.python = wrapper(shop, "blocking", f'echo > "{self._ready}"; read line < "{self._go}"')

    def begun(self) -> None:
        """Return when it waits."""
        assert self._ready.read_text() == "\n"

    def release(self) -> None:
        """Let it go on."""
        self._go.write_text("\n")


def test_sixteen_at_once_with_five_missing_parents_make_it_once(shop: Shop) -> None:
    log = shop.directory / "log"
    python = wrapper(shop, "counting", f'echo made >> "{log}"')
    home = shop.directory / PARENTS / "here"
    processes = [shop.start("venv", home, "--python", python) for _ in range(MANY)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert (status, out) == (0, ""), err
    assert log.read_text() == "made\n"
    assert runs(home)
    assert ours(home) == []
    assert violations(shop, home) == []
    for above in list(home.parents)[:5]:
        assert len(os.listdir(above)) == 1
    made = subprocess.run([home / "bin" / "pip", "--version"], capture_output=True, text=True, check=True)
    assert str(home) in made.stdout


def test_it_has_what_python_m_venv_makes(shop: Shop) -> None:
    subprocess.run([shop.environment.python, "-m", "venv", shop.directory / "plain" / "here"], check=True)
    shop.run("venv", shop.directory / "ours" / "here")
    plain, made = (tree_of(shop.directory / name / "here") for name in ("plain", "ours"))
    assert plain.keys() == made.keys()
    for path, what in made.items():
        # Where scripts, their RECORD and the configuration name the directory, their content differs.
        if path.startswith("bin/") or path.endswith("RECORD") or path == "pyvenv.cfg":
            assert what.split()[:2] == plain[path].split()[:2], path
        else:
            assert what == plain[path], path


def test_those_who_wait_are_told_for_whom_and_may_give_up(shop: Shop) -> None:
    blocking, home = Blocking(shop), shop.directory / "here"
    first = shop.start("venv", home, "--without-pip", "--python", blocking.python)
    blocking.begun()
    done = shop.run("venv", home, "--lock-timeout", "0", status=75)
    assert f"the exclusive lock on `{home}` is not free, held by " in done.stderr
    assert f"(pid {first.pid}). Nothing was changed" in done.stderr
    second = shop.start("venv", home, "--without-pip")
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


def test_directories_that_a_failing_command_made_go_again_and_no_others(shop: Shop) -> None:
    failing = wrapper(shop, "failing", "exit 3")
    (shop.directory / "one").mkdir()
    done = shop.run("venv", f"{PARENTS}/here", "--python", failing, status=1)
    assert "could not make an environment" in done.stderr
    assert "Nothing was changed" in done.stderr
    assert os.listdir(shop.directory / "one") == []


def test_commands_that_fail_take_no_directory_away_from_those_that_do_not(shop: Shop) -> None:
    failing = wrapper(shop, "failing", "exit 3")
    for number in range(3):
        home = shop.directory / f"round{number}" / PARENTS / "here"
        bad = [shop.start("venv", home, "--without-pip", "--python", failing) for _ in range(5)]
        good = [shop.start("venv", home, "--without-pip") for _ in range(5)]
        for process in good:
            with ended(process) as (status, _, err):
                assert status == 0, err
        for process in bad:
            with ended(process) as (status, _, err):
                assert status in (0, 1), err
                assert "Traceback" not in err
        assert runs(home)
        assert ours(home) == []


def test_an_interrupt_leaves_nothing(shop: Shop) -> None:
    blocking = Blocking(shop)
    process = shop.start("venv", f"{PARENTS}/here", "--python", blocking.python)
    blocking.begun()
    process.send_signal(signal.SIGINT)
    with ended(process) as (status, _, err):
        assert status == 130, err
    assert not (shop.directory / "one").exists()


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
def test_killed_at_any_moment_it_is_made_anew_by_the_next(shop: Shop, seed: int, options: list[str]) -> None:
    shop.run("venv", "whole", *options)
    whole = entries(shop.directory / "whole")
    chance = random.Random(f"venv {seed} {options}")
    for number in range(12 if options else 4):
        home = shop.directory / f"round{number}" / "here"
        moment = chance.randrange(whole)
        process = shop.start("venv", home, *options)
        wait_until(lambda: entries(home) >= moment or process.poll() is not None)  # noqa: B023
        process.kill()
        process.communicate()
        shop.run("venv", home, *options)
        assert runs(home), moment
        wait_until(lambda: not list(programs(home)))  # noqa: B023
        # What was left may have been in use until that moment.
        shop.run("venv", home, *options)
        assert ours(home) == []
        assert tree_of(home).keys() == tree_of(shop.directory / "whole").keys()
        assert violations(shop, home) == []


def test_one_that_python_m_venv_made_is_taken_as_it_is(shop: Shop) -> None:
    subprocess.run([shop.environment.python, "-m", "venv", "--without-pip", shop.directory / "here"], check=True)
    before = tree_of(shop.directory / "here")
    shop.run("venv", "here", "--system-site-packages")
    shop.run("venv", "here", "--python", shop.environment.path)
    shop.run("--python", shop.environment.python, "venv", "here")
    assert tree_of(shop.directory / "here") == before


def test_what_cannot_be_an_environment_is_refused_and_stays(shop: Shop) -> None:
    (shop.directory / "project").mkdir()
    (shop.directory / "project" / "setup.py").touch()
    (shop.directory / "file").touch()
    shop.run("venv", "broken", "--without-pip")
    (shop.directory / "broken" / "bin" / "python").unlink()
    (shop.directory / "broken" / "bin" / "python").symlink_to("gone")
    shop.run("venv", "there", "--without-pip")
    before = tree_of(shop.directory, lambda path: path in ("home", "venv"))
    for words, status, said in (
        (["project"], 78, "is not a virtual environment, and not empty"),
        (["project", "--clear"], 78, "is not a virtual environment, and not empty"),
        (["file"], 78, "file` is not a directory"),
        (["file/below/it"], 78, "is not a directory"),
        (["broken"], 78, "does not work. Nothing was changed. Make it anew with `--clear`"),
        (["there", "--python", "2.7"], 1, "not of `2.7`. Nothing was changed. Make it anew with `--clear`"),
        (["new/one", "--python", "2.7"], 78, "there is no Python 2.7 on PATH"),
        (["new/one", "--python", "./nothing"], 78, "is not a Python 3 interpreter"),
        (["new/one", "-r", "nothing.txt"], 2, "there is no requirements file `nothing.txt`"),
        # Older ones make it, though PATH cannot name it.
        *([(["new/a:b"], 1, "could not make an environment")] if sys.version_info >= (3, 11) else []),
        ([shop.environment.path, "--clear"], 2, "is the environment that this safe-pip runs from"),
    ):
        done = shop.run("venv", *words, status=status)
        assert said in done.stderr
        assert "Nothing was changed" in done.stderr
        assert tree_of(shop.directory, lambda path: path in ("home", "venv")) == before, words
    shop.run("venv", "broken", "--clear", "--without-pip")
    assert runs(shop.directory / "broken")


def test_cleared_it_has_nothing_of_what_was_there_and_the_same_site_packages(shop: Shop) -> None:
    shop.stock(Project("aproject", "1", console_scripts={"aprogram": "aproject:main"}))
    shop.run("venv", "here")
    shop.run("venv", "new")
    home = shop.directory / "here"
    shop.run("--python", home, "install", "aproject")
    (home / "share").mkdir()
    (home / "share" / "mine").touch()
    (home / ".lock").touch()  # uv's, which others may wait for
    inode = venv(home).purelib.stat().st_ino
    shop.run("venv", "here", "--clear")
    assert runs(home)
    assert venv(home).purelib.stat().st_ino == inode
    assert violations(shop, home) == []
    ignored = {".lock", os.path.relpath(venv(home).purelib / ".safe-pip", home)}
    assert tree_of(home, ignored.__contains__).keys() == tree_of(shop.directory / "new").keys()


def test_cleared_for_another_python_it_has_that_ones_site_packages_alone(shop: Shop) -> None:
    minors = [minor for minor in range(10, 16) if minor != sys.version_info[1]]
    for minor in minors:
        if shop.run("venv", f"other{minor}", "--without-pip", "--python", f"3.{minor}", status=None).returncode == 0:
            break
    else:
        pytest.skip("there is no other Python 3 on PATH")
    shop.run("venv", "here", "--without-pip")
    done = shop.run("venv", "here", "--python", f"3.{minor}", status=1)
    assert f"not of `3.{minor}`" in done.stderr
    shop.run("venv", "here", "--clear", "--without-pip", "--python", f"3.{minor}")
    assert [path.name for path in (shop.directory / "here" / "lib").iterdir()] == [f"python3.{minor}"]
    shop.run("venv", "here", "--python", f"3.{minor}")


def test_others_install_and_list_while_it_is_cleared(shop: Shop) -> None:
    shop.stock(*(Project("aproject", version) for version in "12"), Project("other", "1"))
    home = shop.directory / "here"
    shop.run("venv", home, "--without-pip")
    inode = venv(home).purelib.stat().st_ino
    for number in range(3):
        clears = [shop.start("venv", home, "--clear", "--without-pip") for _ in range(2)]
        others = [
            shop.start("--python", home, *words)
            for words in (["install", f"aproject=={1 + number % 2}"], ["install", "other"], ["list"], ["freeze"])
        ]
        for process in clears + others:
            with ended(process) as (status, out, err):
                assert status == 0, out + err
                assert "Traceback" not in err
        assert venv(home).purelib.stat().st_ino == inode
        assert violations(shop, home) == []
        assert ours(home) == []
        assert set(installed(venv(home))) <= {"aproject", "other"}


def test_who_builds_with_the_environment_is_waited_for(shop: Shop) -> None:
    shop.run("venv", "here", "--without-pip")
    user = shop.start("run", "--shared", "--env", "here", "--", "sh", "-c", "echo in; cat")
    assert user.stdout is not None
    assert user.stdout.readline() == "in\n"
    done = shop.run("venv", "here", "--clear", "--without-pip", "--lock-timeout", "0", status=75)
    assert "Nothing was changed" in done.stderr
    assert ours(shop.directory / "here") == []
    clearing = shop.start("venv", "here", "--clear", "--without-pip")
    wait_until(lambda: is_waiter(clearing.pid))
    shop.run("venv", "here")  # it is there all the while
    with ended(user, "") as (status, _, err):
        assert status == 0, err
    with ended(clearing) as (status, _, err):
        assert status == 0, err


def test_below_run_it_uses_the_lock_that_is_held(shop: Shop) -> None:
    command = [*shop.command("venv"), "here", "--without-pip"]
    shop.run("run", "--exclusive", "--env", "here", "--", *command)
    assert runs(shop.directory / "here")
    shop.run("run", "--exclusive", "--env", "here", "--lock-timeout", "60", "--", *command, "--clear")
    assert runs(shop.directory / "here")
    shop.run("run", "--shared", "--env", "here", "--", *command)
    done = shop.run("run", "--shared", "--env", "here", "--", *command, "--clear", status=75)
    assert "kept as it is" in done.stderr


def test_with_requirements_eight_at_once_each_find_them_satisfied(shop: Shop) -> None:
    shop.stock(Project("aproject", "1"), Project("other", "1"), Project("third", "1"))
    (shop.directory / "a.txt").write_text("aproject\nother\n")
    (shop.directory / "b.txt").write_text("third\n")
    words = ["here", "--without-pip", "-r", "a.txt", "--requirement", "b.txt"]
    processes = [shop.start("venv", *words, PIP_TARGET="elsewhere", PIP_USER="1") for _ in range(8)]
    for process in processes:
        with ended(process) as (status, out, err):
            assert status == 0, out + err
    assert installed(venv(shop.directory / "here")) == {"aproject": "1", "other": "1", "third": "1"}
    assert violations(shop, shop.directory / "here") == []
    done = shop.run("venv", *words)
    assert done.stdout.count("Requirement already satisfied") == 3


def test_requirements_that_cannot_be_installed_leave_the_environment_without_them(shop: Shop) -> None:
    (shop.directory / "r.txt").write_text("no-such-project\n")
    done = shop.run("venv", "here", "--without-pip", "-r", "r.txt", status=1)
    assert "No matching distribution found for no-such-project" in done.stderr
    assert "the environment `here` is there, without what could not be installed" in done.stderr
    assert runs(shop.directory / "here")


def test_the_page_says_what_happens(shop: Shop) -> None:
    shop.activate()
    shop.stock(Project("aproject", "1"))
    page = Page.read("venv")
    page.save(shop.directory)
    for commands in page.commands:
        shell(commands, shop.directory, shop.variables, timeout=LIMIT * 5)
    homes = [path.parent for path in shop.directory.glob("**/pyvenv.cfg") if path.parent != shop.environment.path]
    assert homes
    for home in homes:
        assert runs(home)
