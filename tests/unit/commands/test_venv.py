"""An environment is made aside and moved into place; if a command is killed at that, the next one goes on."""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from safe_pip import fs
from safe_pip.commands import venv as virtual
from safe_pip.commands.environments import python_of
from safe_pip.environment.environment import Environment
from safe_pip.errors import CommitFailed, NotMade, SafePipError, State, UnusableEnvironment
from safe_pip.locking import flock, state_directory
from tests.support.faults import disk
from tests.support.trees.listing import Tree, tree_of
from tests.support.venvs.direct_installs import SilentReporter

OPTIONS = ["--without-pip", "--prompt", "name"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What was made aside, in a directory whose name needs quoting."""
    home = tmp_path_factory.mktemp("the 'home'")
    with virtual.made_aside(home, sys.executable, OPTIONS) as aside:
        yield aside


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def aside_in(home: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, home / made.name, symlinks=True))


def whole(made: Path) -> Tree:
    return tree_of(made)


def test_no_file_names_the_private_directory(made: Path) -> None:
    for directory, _, files in os.walk(made):
        for name in files:
            path = Path(directory, name)
            if not path.is_symlink() and path.suffix != ".pyc":
                assert os.fsencode(made.name) not in path.read_bytes(), path


def test_the_activation_script_names_the_final_directory(made: Path) -> None:
    home = made.parent
    script = f'. {shlex.quote(str(made / "bin" / "activate"))}; printf %s "$VIRTUAL_ENV"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == str(home)


@pytest.mark.slow
def test_the_scripts_of_pip_and_their_record_name_the_final_directory(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    with virtual.made_aside(home, sys.executable, ["--prompt", "x"]) as aside:
        virtual.finish(home, aside)
    assert not [name for name in os.listdir(home) if name.startswith(virtual.OURS)]
    done = subprocess.run([home / "bin" / "pip", "--version"], capture_output=True, text=True, check=True)
    assert str(home) in done.stdout
    (record,) = home.glob("lib/python*/site-packages/pip-*.dist-info/RECORD")
    rows = [line for line in record.read_text().splitlines() if line.startswith("../../../bin/")]
    assert rows
    for row in rows:
        name, digest, size = row.rsplit(",", 2)
        content = (record.parent.parent / name).read_bytes()
        assert f"{digest},{size}".encode() == virtual._row(content)


def test_the_interpreter_appears_last_and_the_environment_is_whole_then(home: Path, made: Path) -> None:
    aside = aside_in(home, made)
    with disk.record() as changes:
        virtual.finish(home, aside)
    moved = [Path(change.path).name for change in changes if change.operation == "move"]
    assert moved[-1] == python_of(home).parent.name
    assert tree_of(home) == whole(made)
    found = virtual.look(home)
    assert found is not None
    assert found.label == f"Python {'.'.join(map(str, sys.version_info[:3]))}"


def test_a_command_killed_at_any_change_leaves_no_environment_or_one_that_the_next_completes(
    tmp_path: Path, made: Path
) -> None:
    with disk.record() as changes:
        (tmp_path / "first").mkdir()
        virtual.finish(tmp_path / "first", aside_in(tmp_path / "first", made))
    for k in range(len(changes)):
        home = tmp_path / str(k)
        home.mkdir()
        with pytest.raises(disk.Crashed), disk.crash_at(k):
            virtual.finish(home, aside_in(home, made))
        is_there = virtual.look(home) is not None
        assert is_there == (tree_of(home, lambda path: path.startswith(".safe-pip")) == whole(made))
        assert os.path.lexists(home / ".safe-pip-venv") == (k > 0)
        virtual.finish(home)
        virtual.sweep(home)
        assert tree_of(home) == (whole(made) if k > 0 else {})


def test_a_file_in_the_way_of_a_ready_environment_is_named_and_stays(home: Path, made: Path) -> None:
    os.rename(aside_in(home, made), home / ".safe-pip-venv")
    (home / "lib").mkdir()
    with pytest.raises(UnusableEnvironment, match="lib` is in the way"):
        virtual.finish(home)
    (home / "lib").rmdir()
    virtual.finish(home)
    assert tree_of(home) == whole(made)


def test_a_private_directory_is_swept_only_if_no_process_has_locked_it(home: Path) -> None:
    for name in (".safe-pip-venv-dead", ".safe-pip-venv-alive", ".safe-pip-venv"):
        (home / name).mkdir()
        (home / name / "file").touch()
    alive = flock.Descriptor(home / ".safe-pip-venv-alive")
    assert flock.try_lock(alive, exclusive=True)
    virtual.sweep(home)
    assert sorted(os.listdir(home)) == [".safe-pip-venv", ".safe-pip-venv-alive"]
    alive.close()
    virtual.sweep(home)
    assert os.listdir(home) == [".safe-pip-venv"]


def test_what_makes_it_ends_with_all_that_it_has_started_when_its_parent_does() -> None:
    started = 'import signal; print("in", flush=True); signal.pause()'
    waiting = f"subprocess.run([sys.executable, '-c', {started!r}])"
    script = virtual._MAKE.replace('runpy.run_module("venv", run_name="__main__", alter_sys=True)', waiting)
    command = [sys.executable, "-I", "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        child.stdin.close()
        assert child.wait() == -signal.SIGKILL
        assert child.stdout.read() == b""  # no process has it open any more


def test_a_python_that_cannot_make_one_is_quoted_and_leaves_nothing(home: Path) -> None:
    with pytest.raises(NotMade) as caught, virtual.made_aside(home, sys.executable, ["--no-such-option"]):
        pass
    assert "--no-such-option" in caught.value.output
    assert os.listdir(home) == []


@pytest.mark.parametrize("number", [28, 122])
def test_a_disk_that_is_full_is_an_error_of_the_disk(home: Path, tmp_path: Path, number: int) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "Error: [Errno {number}] No space: {home}"\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(CommitFailed, match="not enough space") as caught, virtual.made_aside(home, str(python), []):
        pass
    assert (caught.value.exit_status, caught.value.state) == (74, State.UNCHANGED)
    assert os.listdir(home) == []


def test_an_environment_without_configuration_python_or_site_packages_is_not_complete(
    tmp_path: Path, made: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    virtual.finish(home, aside_in(home, made))
    for name in ("pyvenv.cfg", "bin", "lib"):
        (home / name).rename(tmp_path / "away")
        assert virtual.look(home) is None
        (tmp_path / "away").rename(home / name)
        assert virtual.look(home) is not None
    (home / "bin" / "python").unlink()
    (home / "bin" / "python").symlink_to(tmp_path / "gone")
    assert virtual.look(home) is None


def making(path: Path) -> AbstractContextManager[None]:
    return Environment([], waiting=SilentReporter(), timeout=10).making(path)


def test_the_directories_that_are_made_for_it_stay_if_it_succeeds_and_only_they_go_if_it_fails(home: Path) -> None:
    with pytest.raises(KeyError), making(home / "a" / "b"):
        raise KeyError
    assert os.listdir(home) == []
    with making(home / "a" / "b"):
        assert flock.is_locked(home / "a" / "b")
    with pytest.raises(KeyError), making(home / "a" / "b" / "c" / "d"):
        (home / "a" / "b" / "c" / "kept").touch()
        raise KeyError
    assert sorted(tree_of(home)) == ["a", "a/b", "a/b/c", "a/b/c/kept"]


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 74), (errno.EDQUOT, 74), (errno.EACCES, 78)])
def test_where_a_directory_cannot_be_made_those_above_it_go_again(home: Path, number: int, status: int) -> None:
    with pytest.raises(SafePipError) as caught, disk.error_at(2, number), making(home / "a" / "b" / "c"):
        pass
    assert (caught.value.exit_status, caught.value.state) == (status, State.UNCHANGED)
    assert os.listdir(home) == []


def test_where_this_user_may_not_write_it_says_so(empty: Path, as_a_user: None) -> None:
    (empty / "closed").mkdir(0o555)
    with pytest.raises(UnusableEnvironment, match="is not writable"), making(empty / "closed" / "a" / "b"):
        pass
    closed = virtual.made_aside(empty / "closed", sys.executable, OPTIONS)
    with pytest.raises(UnusableEnvironment, match="is not writable"), closed:
        pass


def test_a_parent_that_another_command_takes_away_again_is_made_once_more(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def take_away(operation: str, path: str, source: str) -> None:
        if path.endswith("/b") and not taken:
            taken.append(path)
            os.rmdir(home / "a")

    monkeypatch.setattr(fs.watch, "observer", take_away)
    assert fs.make_directories(home / "a" / "b" / "c")[-1] == home / "a" / "b" / "c"
    assert taken


def test_what_may_be_made_aside_on_another_host_is_left_for_a_day(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "is_shared", lambda path: True)
    aside = home / ".safe-pip-venv-x"
    aside.mkdir()
    virtual.sweep(home)
    assert aside.exists()
    os.utime(aside, (0, 0))
    virtual.sweep(home)
    assert not aside.exists()
