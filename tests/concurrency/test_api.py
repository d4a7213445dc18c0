"""`safe_pip.locked` and `safe_pip.status` in real programs: what they hold, what is nested, what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import safe_pip
from tests.support.processes.workers import LIMIT, Worker, is_waiter, wait_until, workers

BEGIN = """
import os, signal, subprocess, sys, threading
import safe_pip
env, safe_pip_command = os.environ["ENV"], [sys.executable, "-m", "safe_pip"]
def run(*words):
    command = [*safe_pip_command, "run", "--lock-timeout", "0", "--env", env, *words, "--", "true"]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode
def refused(**how):
    try:
        with safe_pip.locked(env, **{"timeout": 0, **how}):
            return None
    except safe_pip.SafePipError as error:
        return type(error)
def in_thread(function, **how):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(**how)))
    thread.start()
    thread.join()
    return found[0]
"""


@pytest.fixture
def venv(tree: Path) -> Path:
    """A virtual environment, as far as its directories go."""
    (tree.parents[2] / "pyvenv.cfg").touch()
    return tree.parents[2]


def command(venv: Path, text: str) -> tuple[list[str], dict[str, str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_"))}
    kept |= {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent), "ENV": str(venv)}
    return [sys.executable, "-c", BEGIN + textwrap.dedent(text)], kept


def check(venv: Path, text: str, *below: object) -> str:
    """Run a program to its end, which is a good one; what it printed."""
    words, variables = command(venv, text)
    done = subprocess.run([*map(str, below), *words], env=variables, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def program(venv: Path, text: str) -> Iterator["subprocess.Popen[str]"]:
    """A program that prints a line once it is where the test wants it, and goes on when it can read one."""
    words, variables = command(venv, text)
    with subprocess.Popen(words, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "in\n"
        try:
            yield started
        finally:
            started.kill()


def is_free(tree: Path) -> bool:
    with workers(tree, count=1, timeout=0) as (other,):
        other.tell(do="hold", how="replacing")
        event = other.next_event()
        return event is not None and event["event"] == "held"


HOLD = """
with safe_pip.locked(env, shared={shared}):
    print("in", flush=True)
    input()
"""


@pytest.mark.parametrize(("shared", "kept_out"), [(True, "replacing"), (False, "reading")])
def test_the_lock_is_held_during_the_block(venv: Path, tree: Path, shared: bool, kept_out: str) -> None:
    with workers(tree, count=1) as (other,), program(venv, HOLD.format(shared=shared)) as started:
        other.start_to_wait(kept_out)
        started.communicate("\n")
        other.expect("held")


def test_others_may_add_while_it_is_shared(venv: Path, tree: Path) -> None:
    with workers(tree, count=1) as (other,), program(venv, HOLD.format(shared=True)):
        other.hold("adding")


def test_a_wait_ends_after_the_time_that_is_given(venv: Path, tree: Path) -> None:
    with workers(tree, count=1) as (holder,):
        holder.hold("replacing")
        check(
            venv,
            """
            assert refused(timeout=0.1) is safe_pip.LockTimeout
            assert safe_pip.LockTimeout.exit_status == 75 and safe_pip.UnusableEnvironment.exit_status == 78
            os.environ["SAFE_PIP_LOCK_TIMEOUT"] = "0"
            assert refused(timeout=None) is safe_pip.LockTimeout
            """,
        )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("locked(env + '-that-is-none')", "UnusableEnvironment"),
        ("locked('')", "UnusableEnvironment"),
        ("locked(env, timeout=float('nan'))", "UsageError"),
        ("locked(env, lock_dir=env)", "TypeError"),
        ("locked(env, keep='one')", "TypeError"),
        ("locked(env, keep=['one'], shared=False)", "TypeError"),
        ("locked(lock_dir=env, keep=['one'])", "TypeError"),
        ("locked(env, keep=['one'])", "UnusableEnvironment"),
    ],
)
def test_a_block_is_not_entered_for_what_cannot_be_meant(venv: Path, call: str, error: str) -> None:
    told = check(
        venv,
        f"""
        try:
            with safe_pip.{call}:
                print("entered")
        except Exception as error:
            print(type(error).__name__)
        """,
    )
    assert told == f"{error}\n"


def test_a_block_keeps_what_it_names_and_lets_others_replace_all_else(venv: Path, tree: Path) -> None:
    for name in ("one", "two", "three"):
        (tree / f"{name}-1.dist-info").mkdir()
        requires = "Requires-Dist: two\n" if name == "one" else ""
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{requires}"
        (tree / f"{name}-1.dist-info" / "METADATA").write_text(metadata)
    check(
        venv,
        f"""
        from pathlib import Path
        from safe_pip.environment.environment import Environment, Target
        from safe_pip.messages import Reporter
        def kept():
            return [name for name in ("one", "two", "three") if not is_replaced(name)]
        def is_replaced(name):
            held = os.environ.pop("SAFE_PIP_HELD", None)
            stranger = Environment([{str(tree)!r}], waiting=Reporter(quiet=True), timeout=0)
            os.environ.update({{"SAFE_PIP_HELD": held}} if held else {{}})
            try:
                with stranger.replacing(Target((Path({str(tree)!r}),)), projects={{name}}):
                    return True
            except safe_pip.LockTimeout:
                return False
        assert kept() == []
        with safe_pip.locked(env, keep=["One"]):
            assert kept() == ["one", "two"]
        with safe_pip.locked(env):
            assert kept() == ["one", "two", "three"]
        assert kept() == []
        """,
    )


def test_any_directory_can_be_locked(venv: Path, tmp_path: Path) -> None:
    check(
        venv,
        f"""
        run = [*safe_pip_command, "run", "--exclusive", "--lock-timeout", "0", "--lock-dir", {str(tmp_path / "new")!r}]
        with safe_pip.locked(lock_dir={str(tmp_path / "new")!r}, shared=False):
            assert subprocess.run([*run, "--", "true"]).returncode == 0
            other = [sys.executable, "-c", "import fcntl, os; fcntl.flock(os.open(os.environ['NEW'], 0), 6)"]
            where = {{"NEW": {str(tmp_path / "new")!r}}}
            assert subprocess.run(other, env=where, stderr=subprocess.DEVNULL).returncode == 1
        assert subprocess.run([*run, "--", "true"]).returncode == 0
        """,
    )


# -- nesting -----------------------------------------------------------------------------------------------------------


def test_a_block_inside_another_one_follows_the_rules_of_run(venv: Path) -> None:
    check(
        venv,
        """
        os.environ.pop("SAFE_PIP_HELD", None)
        before = dict(os.environ)
        with safe_pip.locked(env):
            assert refused() is None
            assert refused(shared=False) is safe_pip.NestingRefused
            assert run() == 0 and run("--exclusive") == 75
        with safe_pip.locked(env, shared=False):
            assert refused() is None and refused(shared=False) is None
            assert run() == 0 and run("--exclusive") == 0
            with safe_pip.locked(env):
                assert refused(shared=False) is safe_pip.NestingRefused
                assert run("--exclusive") == 75
            assert run("--exclusive") == 0
        assert dict(os.environ) == before
        """,
    )


@pytest.mark.parametrize("mode", ["--shared", "--exclusive"])
def test_a_block_below_run_inherits_its_lock(venv: Path, mode: str) -> None:
    run = [sys.executable, "-m", "safe_pip", "run", mode, "--env", venv, "--"]
    expected = "None" if mode == "--exclusive" else "safe_pip.NestingRefused"
    check(venv, f"assert refused() is None and refused(shared=False) is {expected}", *run)


def test_without_the_variable_a_command_in_the_block_inherits_too(venv: Path) -> None:
    check(
        venv,
        """
        for shared, status in ((True, 75), (False, 0)):
            with safe_pip.locked(env, shared=shared):
                os.environ.pop("SAFE_PIP_HELD")
                assert run() == 0 and run("--exclusive") == status
        """,
    )


def test_threads_exclude_each_other(venv: Path) -> None:
    check(
        venv,
        """
        with safe_pip.locked(env, shared=False):
            assert in_thread(refused) is in_thread(refused, shared=False) is safe_pip.LockTimeout
        with safe_pip.locked(env):
            assert in_thread(refused) is None and in_thread(refused, shared=False) is safe_pip.LockTimeout
        assert in_thread(refused, shared=False) is None
        """,
    )


def test_a_thread_that_shares_does_not_wait_behind_a_command_that_waits_for_its_program(venv: Path, tree: Path) -> None:
    text = """
    with safe_pip.locked(env):
        print("in", flush=True)
        input()
        print(in_thread(refused), flush=True)
        input()
    """
    with workers(tree, count=1) as (other,), program(venv, text) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        other.start_to_wait("replacing")
        started.stdin.write("\n")
        started.stdin.flush()
        assert started.stdout.readline() == "None\n"
        started.communicate("\n")
        other.expect("held")


def test_blocks_of_threads_that_end_in_any_order_leave_what_was_there(venv: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "safe_pip", "run", "--exclusive", "--env", venv, "--"]
    check(
        venv,
        f"""
        outer = os.environ["SAFE_PIP_HELD"]
        one = safe_pip.locked(lock_dir={str(tmp_path / "one")!r})
        other = safe_pip.locked(lock_dir={str(tmp_path / "other")!r})
        in_thread(one.__enter__)
        in_thread(other.__enter__)
        in_thread(lambda: one.__exit__(None, None, None))
        assert os.environ["SAFE_PIP_HELD"] != outer
        assert run("--exclusive") == 0, "it is still below the first command"
        in_thread(lambda: other.__exit__(None, None, None))
        assert os.environ["SAFE_PIP_HELD"] == outer
        """,
        *run,
    )


def test_a_forked_child_inherits_and_lets_nothing_go(venv: Path, tree: Path) -> None:
    text = """
    with safe_pip.locked(env, shared=False):
        if not (pid := os.fork()):
            # The thread that forked holds the lock; for the child that is its parent.
            os._exit(0 if refused() is None and refused(shared=False) is None and run("--exclusive") == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        def fork():
            if not (pid := os.fork()):
                os._exit(0 if refused(shared=False) is None else 1)
            return os.waitpid(pid, 0)[1]
        assert in_thread(fork) == 0
        is_parent = os.fork()
        if is_parent:
            assert os.waitpid(is_parent, 0)[1] == 0
            print("in", flush=True)
            input()
    """
    with program(venv, text) as started:
        assert not is_free(tree)
        started.communicate("\n")
        assert started.returncode == 0
    assert is_free(tree)


# -- the end of a block ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        """
        try:
            with safe_pip.locked(env, shared=False):
                raise LookupError
        except LookupError:
            pass
        """,
        """
        def steps():
            with safe_pip.locked(env, shared=False):
                yield
        each = steps()
        next(each)
        each.close()
        """,
        """
        try:
            with safe_pip.locked(env, shared=False):
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
        except KeyboardInterrupt:
            pass
        """,
    ],
    ids=["exception", "generator", "Ctrl-C"],
)
def test_however_the_block_ends_the_lock_is_free_and_nothing_of_it_stays(venv: Path, tree: Path, text: str) -> None:
    after = 'assert "SAFE_PIP_HELD" not in os.environ\nprint("in", flush=True)\ninput()\n'
    with program(venv, textwrap.dedent(text) + after):
        assert is_free(tree)


def test_an_interrupted_wait_leaves_nothing(venv: Path, tree: Path) -> None:
    text = """
    print("in", flush=True)
    try:
        with safe_pip.locked(env):
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        input()
    """
    with workers(tree, count=1) as (holder,), program(venv, text) as started:
        assert started.stdout is not None
        holder.hold("replacing")
        wait_until(lambda: is_waiter(started.pid))
        started.send_signal(signal.SIGINT)
        assert started.stdout.readline() == "interrupted\n"
        holder.release()
        assert is_free(tree)


def test_a_killed_program_holds_nothing(venv: Path, tree: Path) -> None:
    other = Worker(tree)
    with program(venv, HOLD.format(shared=False)) as started:
        other.start_to_wait("replacing")
        started.kill()
        other.expect("held")
    other.close()


# -- beside the program's own code -------------------------------------------------------------------------------------


def test_importing_it_costs_nothing_until_it_is_used(venv: Path) -> None:
    told = check(
        venv,
        """
        import json
        del sys.modules["safe_pip"]
        before = set(sys.modules)
        import safe_pip
        print(json.dumps(sorted(set(sys.modules) - before)))
        """,
    )
    assert json.loads(told) == ["safe_pip"]


def test_it_changes_nothing_of_the_interpreter(venv: Path) -> None:
    """It is no command here: the path, the importers and the signals are the program's."""
    check(
        venv,
        """
        def state():
            handlers = [signal.getsignal(number) for number in signal.valid_signals() if number not in (9, 19)]
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return [*sys.path], [*sys.meta_path], [*sys.path_hooks], handlers, mask, signal.getitimer(0), sys.argv
        before, tops = state(), {name for name in sys.modules if "." not in name}
        with safe_pip.locked(env):
            safe_pip.status(env)
        assert state() == before
        new = {name for name in sys.modules if "." not in name} - tops
        assert not {name for name in new if name not in sys.stdlib_module_names}, new
        assert not {name for name in sys.modules if name.startswith(("pip", "filelock"))}
        assert all(getattr(safe_pip, name) for name in safe_pip.__all__)
        """,
    )


def test_status_is_what_the_command_prints(venv: Path) -> None:
    told = check(
        venv,
        """
        import json
        with safe_pip.locked(env):
            print(json.dumps(safe_pip.status(env)), flush=True)
            subprocess.run([*safe_pip_command, "status", "--json", "--env", env], check=True)
        """,
    )
    returned, _, printed = told.partition("\n")
    assert json.loads(returned) == json.loads(printed)
    [holder] = json.loads(printed)["locks"][0]["holders"]
    assert holder["mode"] == "shared"


def test_without_a_name_the_environment_is_that_of_the_program(venv: Path) -> None:
    told = check(
        venv,
        """
        import sysconfig
        purelib = sysconfig.get_path("purelib")
        with safe_pip.locked():
            found = safe_pip.status()
        print(os.path.realpath(purelib) in found["trees"])
        print(sum(len(lock["holders"]) for lock in found["locks"] if lock["tree"] == os.path.realpath(purelib)) > 0)
        """,
    )
    assert told == "True\nTrue\n"
