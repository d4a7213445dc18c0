"""`safe-pip run`: the lock is really held while the command runs, and what the command does passes through."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import safe_pip
from tests.support.processes.workers import LIMIT, holds, is_waiter, wait_until, workers

START = [sys.executable, "-m", "safe_pip"]


def variables(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_"))}
    return kept | {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)} | more


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*START, "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=variables(), **options)


def start(*words: object, **options: Any) -> "subprocess.Popen[str]":
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": variables()} | options
    return subprocess.Popen([*START, "run", *map(str, words)], **options)


@pytest.fixture
def venv(tree: Path) -> Path:
    """A virtual environment, as far as its directories go."""
    prefix = tree.parents[2]
    (prefix / "pyvenv.cfg").touch()
    return prefix


def test_the_exit_status_is_the_commands(venv: Path) -> None:
    assert run("--env", venv, "--", "sh", "-c", "exit 7").returncode == 7
    assert run("--env", venv, "true").returncode == 0


def test_a_command_that_a_signal_kills_gives_128_and_its_number(venv: Path) -> None:
    assert run("--env", venv, "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert run("--env", venv, "--", "sh", "-c", "kill -TERM $$").returncode == 143


def test_a_missing_command_gives_127_and_a_file_that_is_no_program_gives_126(venv: Path, tmp_path: Path) -> None:
    done = run("--env", venv, "--", tmp_path / "missing")
    assert done.returncode == 127
    assert "safe-pip: error: " in done.stderr
    (tmp_path / "text").write_text("")
    assert run("--env", venv, "--", tmp_path / "text").returncode == 126


def test_standard_streams_and_inherited_descriptors_are_the_commands(venv: Path) -> None:
    done = run("--env", venv, "--", "sh", "-c", "cat; echo oops >&2", input="hello")
    assert (done.stdout, done.stderr) == ("hello", "oops\n")
    reader, writer = os.pipe()
    run("--env", venv, "--", "bash", "-c", f"echo passed >&{writer}", pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 100) == b"passed\n"
    os.close(reader)


@pytest.mark.parametrize(("mode", "kept_out"), [("--shared", "replacing"), ("--exclusive", "reading")])
def test_the_lock_is_really_held_while_the_command_runs(venv: Path, tree: Path, mode: str, kept_out: str) -> None:
    with workers(tree, count=1) as (other,), start(mode, "--env", venv, "--", "sh", "-c", "echo in; cat") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "in\n"
        other.start_to_wait(kept_out)
        command.communicate("")
        other.expect("held")


def test_below_the_shared_lock_others_may_add(venv: Path, tree: Path) -> None:
    with workers(tree, count=1) as (other,), start("--env", venv, "--", "sh", "-c", "echo in; cat") as command:
        assert command.stdout is not None
        command.stdout.readline()
        other.hold("adding")
        command.communicate("")


def test_the_lock_is_free_when_the_command_ended_though_it_left_a_daemon(venv: Path, tree: Path) -> None:
    left = run("--exclusive", "--env", venv, "--", "sh", "-c", "sleep 1000 >&- 2>&- & echo $!")
    daemon = int(left.stdout)
    try:
        with workers(tree, count=1, timeout=0) as (other,):
            other.hold("replacing")
        os.kill(daemon, 0)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_the_lock_is_free_when_safe_pip_was_killed(venv: Path, tree: Path, tmp_path: Path) -> None:
    variable = variables(TMPDIR=str(tmp_path))
    with workers(tree, count=1) as (other,), start("--exclusive", "--env", venv, "--", "cat", env=variable) as command:
        wait_until(lambda: (tree / ".safe-pip" / "owner").exists())
        other.start_to_wait("replacing")
        command.kill()
        other.expect("held")
        command.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_to_safe_pip_reaches_the_command(venv: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 3' {name}; echo in; while read line; do :; done"

    def not_ignored() -> None:  # a shell cannot trap what it was started to ignore
        signal.signal(number, signal.SIG_DFL)

    with start("--env", venv, "--", "bash", "-c", script, preexec_fn=not_ignored) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "in\n"
        command.send_signal(number)
        assert command.stdout.readline() == "got\n"
        command.communicate("")
    assert command.returncode == 3


def test_a_stopped_command_stops_safe_pip_and_both_go_on(venv: Path) -> None:
    with start("--env", venv, "--", "sh", "-c", "echo $$; cat", preexec_fn=os.setpgrp) as command:
        assert command.stdout is not None
        child = int(command.stdout.readline())
        command.send_signal(signal.SIGTSTP)

        def is_stopped(pid: int) -> Callable[[], bool]:
            return lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

        wait_until(is_stopped(child))
        wait_until(is_stopped(command.pid))
        command.send_signal(signal.SIGCONT)
        wait_until(lambda: not is_stopped(child)())
        assert command.communicate("on")[0] == "on"
    assert command.returncode == 0


# It waits with its signals blocked: one that came between a handler's end and `pause` would be slept through.
COUNTING = """
import signal
count = 0
signals = {signal.SIGINT, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("in", flush=True)
while signal.sigwait(signals) == signal.SIGINT:
    count += 1
    print("hit", flush=True)
print(f"{count} times", flush=True)
raise SystemExit(5)
"""


def test_ctrl_c_at_a_terminal_reaches_the_command_once(venv: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        words = [*START, "run", "--env", str(venv), "--", sys.executable, "-c", COUNTING]
        os.execve(sys.executable, words, variables())
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(terminal, 1000)

    read_until(b"in\r\n")
    os.kill(pid, signal.SIGSTOP)  # so that the command has seen the signal before it could be passed on
    os.waitpid(pid, os.WUNTRACED)
    os.write(terminal, b"\x03")
    read_until(b"hit")
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGUSR1)  # passed on after whatever would have been passed on of the Ctrl-C
    read_until(b" times")
    assert b"1 times" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.close(terminal)


def test_a_lock_timeout_gives_75(venv: Path, tree: Path) -> None:
    with workers(tree, count=1) as (holder,):
        holder.hold("replacing")
        for words in (("--lock-timeout", "0"), ("--lock-timeout=0.2",)):
            done = run(*words, "--env", venv, "--", "echo", "no")
            assert done.returncode == 75
            assert done.stdout == ""
            assert done.stderr.startswith("safe-pip: error: ")
        holder.release()
        assert run("--lock-timeout", "0", "--env", venv, "true").returncode == 0


def test_an_interpreter_names_its_environment(venv: Path, tree: Path) -> None:
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    done = run("--exclusive", "--env", venv / "bin" / "python", "--", "cat", tree / ".safe-pip" / "owner")
    assert done.returncode == 0


def test_any_directory_is_locked_by_itself_and_made_if_it_is_missing(tmp_path: Path) -> None:
    directory = tmp_path / "some" / "where"
    with start("--exclusive", "--lock-dir", directory, "--", "sh", "-c", "echo in; cat") as command:
        assert command.stdout is not None
        command.stdout.readline()
        assert subprocess.run(["flock", "-n", "-s", directory, "true"]).returncode == 1
        command.communicate("")
    assert subprocess.run(["flock", "-n", "-x", directory, "true"]).returncode == 0
    assert os.listdir(directory) == []


def test_what_is_no_environment_is_neither_locked_nor_made(tmp_path: Path) -> None:
    for name in (".vnev", "."):
        done = run("--env", tmp_path / name, "--", "touch", tmp_path / "ran")
        assert (done.returncode, os.listdir(tmp_path)) == (78, [])
        assert "`--lock-dir DIR` locks any directory" in done.stderr


@pytest.mark.parametrize(("words", "status"), [((), 75), (("-E", "9"), 9), (("--conflict-exit-code=0",), 0)])
def test_the_exit_status_without_the_lock_can_be_chosen(
    venv: Path, tree: Path, words: tuple[str, ...], status: int
) -> None:
    with subprocess.Popen(["flock", "-x", tree, "cat"], stdin=subprocess.PIPE) as holder:
        wait_until(lambda: holds(holder.pid, tree))
        done = run(*words, "--lock-timeout", "0", "--env", venv, "--", "sh", "-c", "exit 3")
        assert (done.returncode, "is not free" in done.stderr) == (status, True)
        assert holder.stdin is not None
        holder.stdin.close()
    assert run(*words, "--env", venv, "--", "sh", "-c", "exit 75").returncode == 75
    refused = run("--env", venv, "--", *START, "run", *words, "--exclusive", "--env", venv, "--", "echo", "no")
    assert (refused.returncode, refused.stdout) == (status, "")


def test_flock_from_the_shell_takes_part(venv: Path, tree: Path) -> None:
    with subprocess.Popen(["flock", "-s", tree, "cat"], stdin=subprocess.PIPE) as build:
        wait_until(lambda: holds(build.pid, tree))
        with start("--exclusive", "--env", venv, "true") as command:
            wait_until(lambda: is_waiter(command.pid))
            assert build.stdin is not None
            build.stdin.close()


def test_a_mistake_in_the_options_gives_2(venv: Path) -> None:
    for words in ((), ("--nonsense", "true"), ("--env",), ("--lock-timeout", "soon", "true")):
        done = run(*words)
        assert done.returncode == 2
        assert done.stderr.startswith("safe-pip: error: ")
        assert "Traceback" not in done.stderr


def test_help_is_on_standard_output() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--exclusive" in done.stdout


# -- below another holder ----------------------------------------------------------------------------------------------

WITHOUT = ["env", "-u", "SAFE_PIP_HELD"]


def below(venv: Path, mode: str, *, by: tuple[str, ...] = ()) -> list[object]:
    return [*by, *START, "run", mode, "--env", venv, "--"]


@pytest.mark.parametrize("drop", [(), tuple(WITHOUT)], ids=["with the variable", "without"])
class TestBelow:
    """A command below a holder, whose variable arrives or was dropped on the way."""

    def test_a_shared_lock_is_inherited_though_a_replacement_waits(
        self, venv: Path, tree: Path, drop: tuple[str, ...]
    ) -> None:
        inner = below(venv, "--shared", by=drop)
        with workers(tree, count=1, first_message=1e6) as (writer,):
            writer.hold("adding")
            writer.release()
            script = 'echo in; read line; "$@"; echo out'
            command = start("--env", venv, "--", "sh", "-c", script, "sh", *inner, "echo", "inside")
            with command:
                assert command.stdout is not None
                assert command.stdout.readline() == "in\n"
                writer.start_to_wait("replacing")
                assert command.communicate("\n")[0] == "inside\nout\n"
            writer.expect("held")

    def test_a_replacement_below_a_shared_lock_is_refused_at_once(self, venv: Path, drop: tuple[str, ...]) -> None:
        done = run("--env", venv, "--", *below(venv, "--exclusive", by=drop), "echo", "no")
        assert (done.returncode, done.stdout) == (75, "")
        assert "is kept as it is" in done.stderr
        assert "safe-pip run --exclusive" in done.stderr

    def test_an_exclusive_lock_is_inherited_at_any_depth(self, venv: Path, drop: tuple[str, ...]) -> None:
        inner = below(venv, "--exclusive", by=drop)
        done = run("--exclusive", "--env", venv, "--", *inner, *inner, *below(venv, "--shared", by=drop), "echo", "in")
        assert (done.returncode, done.stdout) == (0, "in\n")

    def test_siblings_below_an_exclusive_lock_exclude_each_other(
        self, venv: Path, tmp_path: Path, drop: tuple[str, ...]
    ) -> None:
        inner = below(venv, "--exclusive", by=drop)
        body = 'set -e; for i in 1 2 3; do "$@"; done & for i in 1 2 3; do "$@"; done; wait $!'
        once = f"mkdir {tmp_path}/in && rmdir {tmp_path}/in"
        done = run("--exclusive", "--env", venv, "--", "sh", "-c", body, "sh", *inner, "sh", "-c", once)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_mutex_of_an_ancestor_is_inherited(self, tmp_path: Path, drop: tuple[str, ...]) -> None:
        inner = [*drop, *START, "run", "--exclusive", "--lock-dir", tmp_path, "--"]
        done = run("--exclusive", "--lock-dir", tmp_path, "--", *inner, "echo", "in")
        assert (done.returncode, done.stdout) == (0, "in\n")


def test_a_shared_lock_below_a_shared_one_below_an_exclusive_one_still_forbids_a_replacement(venv: Path) -> None:
    done = run("--exclusive", "--env", venv, "--", *below(venv, "--shared"), *below(venv, "--exclusive"), "echo", "no")
    assert (done.returncode, done.stdout) == (75, "")


@pytest.mark.parametrize(("mode", "status"), [("-s", 75), ("-x", 0)])
def test_a_lock_on_an_inherited_descriptor_counts(venv: Path, tree: Path, mode: str, status: int) -> None:
    script = f'exec 9<"{tree}"; flock {mode} 9; "$@"'
    words = list(map(str, below(venv, "--exclusive")))
    done = subprocess.run(
        ["sh", "-c", script, "sh", *words, "true"], env=variables(), timeout=LIMIT, capture_output=True
    )
    assert done.returncode == status, done.stderr


def test_a_commit_lock_that_an_ancestor_holds_alone_is_refused(venv: Path, tree: Path) -> None:
    assert run("--exclusive", "--env", venv, "true").returncode == 0
    words = ["flock", str(tree / ".safe-pip" / "commit"), *map(str, below(venv, "--exclusive")), "true"]
    done = subprocess.run(words, env=variables(), timeout=LIMIT, capture_output=True, text=True)
    assert done.returncode == 75
    assert "commit lock" in done.stderr


def test_a_claim_of_a_dead_holder_is_ignored(venv: Path, tree: Path) -> None:
    left = run("--exclusive", "--env", venv, "--", "sh", "-c", "echo $SAFE_PIP_HELD")
    with (
        workers(tree, count=1) as (holder,),
        workers(tree, count=1, variables={"SAFE_PIP_HELD": left.stdout.strip()}) as (late,),
    ):
        holder.hold("replacing")
        late.start_to_wait("replacing")


def test_nothing_is_left_in_the_temporary_directory(venv: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = [*START, "run", "--exclusive", "--env", str(venv), "--", "sh", "-c", 'ls "$SAFE_PIP_HELD"']
    done = subprocess.run(words, env=variables(TMPDIR=str(temporary)), capture_output=True, text=True, timeout=LIMIT)
    locks = ["commit", "commit.gate", "environment", "environment.gate"]
    assert sorted(done.stdout.split()) == ["alive", *locks, "held", "keep", "keep.gate"]
    assert os.listdir(temporary) == []


def test_where_nothing_temporary_can_be_written_that_is_said(venv: Path, tmp_path: Path) -> None:
    words = [*START, "run", "--exclusive", "--env", str(venv), "--", "true"]
    limited = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", *words]
    options: dict[str, Any] = {"env": variables(), "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(limited, timeout=LIMIT, **options)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("safe-pip: error: cannot write to a temporary directory: ")
    assert "Traceback" not in done.stderr
    done = subprocess.run([each for each in limited if each != "--exclusive"], timeout=LIMIT, **options)
    assert (done.returncode, done.stderr) == (0, "")
