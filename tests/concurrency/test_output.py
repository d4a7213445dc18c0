"""Several commands on one terminal: bars are off, and with `--prefix-output` each line is whole and has its name."""

import os
import pty
import pwd
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import safe_pip
from safe_pip.locking import terminal
from tests.support.processes.workers import LIMIT, wait_until, workers

START = [sys.executable, "-m", "safe_pip"]


class Screen:
    """A terminal, and what was written to it."""

    def __init__(self) -> None:
        self.master, self.terminal = pty.openpty()
        self.text = ""

    def read_until(self, words: str, times: int = 1) -> None:
        while self.text.count(words) < times:
            ready, _, _ = select.select([self.master], [], [], LIMIT)
            assert ready, f"no {words!r} in {self.text!r}"
            self.text += os.read(self.master, 4096).decode()

    def rest(self) -> str:
        """All that was written, when no process can write any more."""
        os.close(self.terminal)
        with suppress(OSError):
            while chunk := os.read(self.master, 4096):
                self.text += chunk.decode()
        return self.text.replace("\r\n", "\n")

    def start(self, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
        command = [*map(str, words)]
        return subprocess.Popen(
            command, env=variables(), stdin=self.terminal, stdout=self.terminal, stderr=self.terminal, **options
        )


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    terminal._opened.cache_clear()  # its name may have been that of another terminal
    yield made
    for fd in (made.master, made.terminal):
        with suppress(OSError):
            os.close(fd)


@pytest.fixture
def venv(tree: Path) -> Path:
    """A virtual environment, as far as its directories go."""
    (tree.parents[2] / "pyvenv.cfg").touch()
    return tree.parents[2]


def variables(**more: str) -> dict[str, str]:
    colours = ("FORCE_COLOR", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_", *colours))}
    return kept | {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)} | more


def run(venv: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*START, "run", "--env", str(venv), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=variables(**more))


# -- one terminal ------------------------------------------------------------------------------------------------------

COUNTS = """
import os, sys
from safe_pip.locking import terminal
if sys.argv[1:]:
    os.setuid(int(sys.argv[1]))
print("shared" if terminal.is_shared(1) else "alone", flush=True)
input()
"""


def test_a_command_is_alone_until_another_one_writes_there_and_after_its_death(screen: Screen) -> None:
    assert not terminal.is_shared(screen.terminal)
    other = screen.start(sys.executable, "-c", COUNTS)
    screen.read_until("shared")
    assert terminal.is_shared(screen.terminal)
    assert terminal.is_shared(screen.terminal), "to ask changes nothing"
    other.kill()
    other.wait(LIMIT)
    assert not terminal.is_shared(screen.terminal)


def test_what_has_no_name_of_a_terminal_counts_as_its_own() -> None:
    assert not terminal.is_shared(os.open(os.devnull, os.O_WRONLY))


def test_users_see_each_other_where_both_may_open_the_terminal(screen: Screen, nobody: str) -> None:
    user = pwd.getpwnam(nobody).pw_uid
    terminal.is_shared(screen.terminal)
    one = screen.start(sys.executable, "-c", COUNTS, user)
    screen.read_until("shared")
    assert not terminal.is_shared(screen.terminal), "it may not open the terminal, so it draws nothing itself"
    one.kill()
    one.wait(LIMIT)
    screen.text = ""
    os.chown(os.ttyname(screen.terminal), user, -1)
    other = screen.start(sys.executable, "-c", COUNTS, user)
    screen.read_until("shared")
    assert terminal.is_shared(screen.terminal)
    other.kill()
    other.wait(LIMIT)


SEAMS = """
import pip._internal.cli.req_command
from safe_pip.pip_seams import bars
bars.attach()
"""
FALLBACK = """
import os, pip
from safe_pip import cli
from safe_pip.launch import settings
from safe_pip.pip_seams import seams
seams.run_unchanged = print
cli._run_unchanged(cli.CommandLine.parse(["install"]), settings.load(os.environ), None)
"""
BARS = """
import pip._internal.network.download as download, pip._internal.req as req, pip._internal.cli.spinners as spinners
for _ in range(2):
    drawn = [
        download.get_download_progress_renderer(bar_type="on", size=1, initial_progress=None) is not iter,
        req.get_install_progress_renderer(bar_type="on", total=2) is not iter,
        isinstance(spinners.InteractiveSpinner("message"), spinners.SpinnerInterface)
        and type(spinners.InteractiveSpinner("message")).__name__ == "InteractiveSpinner",
        download.get_download_progress_renderer(bar_type="raw", size=1, initial_progress=None) is not iter,
    ]
    print("drawn:", *map(int, drawn), flush=True)
    input()
"""


@pytest.mark.parametrize("attach", [SEAMS, FALLBACK], ids=["seams", "fallback"])
def test_a_bar_or_a_spinner_begins_only_if_no_other_command_writes_there(screen: Screen, attach: str) -> None:
    command = screen.start(sys.executable, "-c", attach + BARS)
    screen.read_until("drawn: 1 1 1 1")
    assert terminal.is_shared(screen.terminal)
    os.write(screen.master, b"\n")
    screen.read_until("drawn: 0 0 0 1")
    os.write(screen.master, b"\n")
    assert command.wait(LIMIT) == 0


def test_a_wait_is_told_line_by_line_where_others_write_too(screen: Screen, venv: Path, tree: Path) -> None:
    with workers(tree, count=1) as (holder,):
        holder.hold("replacing")
        one = screen.start(*START, "run", "--env", venv, "--", "true")
        screen.read_until("\r\x1b[Ksafe-pip: waiting")
        other = screen.start(*START, "run", "--env", venv, "--", "true")
        screen.read_until("1 s so far\r\n", 1)
        holder.release()
    assert [one.wait(LIMIT), other.wait(LIMIT)] == [0, 0]


# -- prefixed lines ----------------------------------------------------------------------------------------------------


def test_each_line_of_both_streams_begins_with_the_name_and_the_status_is_kept(venv: Path) -> None:
    done = run(venv, "--prefix-output", "n", "--", "sh", "-c", "echo a; echo b >&2; printf 'c\\r\\nd'; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("n | a\nn | c\nn | d\n", "n | b\n", 7)


@pytest.mark.parametrize("where", [["--prefix-output=n", "--version"], ["--version", "--prefix-output", "n"]])
def test_a_command_of_pip_has_it_before_or_behind_its_name(where: list[str]) -> None:
    done = subprocess.run([*START, *where], capture_output=True, text=True, env=variables())
    assert [line[:4] for line in done.stdout.splitlines()] == ["n | "] * 2


def test_an_error_has_it_too_and_a_command_below_does_not_repeat_it(venv: Path) -> None:
    words = [*START, "run", "--env", f"{venv}-that-is-none", "--", "true"]
    done = run(venv, "--", *words, SAFE_PIP_PREFIX_OUTPUT="n")
    assert done.returncode == 78
    assert done.stderr.startswith("n | safe-pip: error: ")


def test_a_name_that_would_break_lines_is_refused(venv: Path) -> None:
    assert run(venv, "--prefix-output", "a\nb", "--", "true").returncode == 2


WRITES = """
import os
for number in range(100):
    os.write(1, b"a" * 40)
    os.write(1, b"b" * 40 + b"\\n")
"""


def test_lines_are_whole_with_eight_commands_at_once(venv: Path, screen: Screen) -> None:
    words = [*START, "run", "--env", venv, "--prefix-output"]
    started = [screen.start(*words, number, "--", sys.executable, "-c", WRITES) for number in range(8)]
    for number in range(8):
        screen.read_until(f"{number} | ", 100)
    assert [each.wait(LIMIT) for each in started] == [0] * 8
    lines = screen.rest().splitlines()
    assert sorted(lines) == sorted(f"{number} | {'a' * 40}{'b' * 40}" for number in range(8) for _ in range(100))


def test_a_question_is_seen_before_its_answer(venv: Path, screen: Screen) -> None:
    script = 'printf "Proceed (Y/n)? "; read answer; echo got $answer'
    command = screen.start(*START, "run", "--env", venv, "--prefix-output", "n", "--", "sh", "-c", script)
    screen.read_until("n | Proceed (Y/n)? ")
    os.write(screen.master, b"y\n")
    assert command.wait(LIMIT) == 0
    assert screen.rest() == "n | Proceed (Y/n)? y\nn | got y\n"


def test_what_a_bar_rewrites_is_one_line(venv: Path) -> None:
    done = run(venv, "--prefix-output", "n", "--", "sh", "-c", "printf '10%%\\r50%%\\r100%%\\n'")
    assert done.stdout == "n | 100%\n"


def test_colours_stay_on_a_terminal_and_bars_are_off(venv: Path, screen: Screen) -> None:
    script = "echo $FORCE_COLOR,$PIP_PROGRESS_BAR"
    assert run(venv, "--prefix-output", "n", "--", "sh", "-c", script).stdout == "n | ,off\n"
    command = screen.start(*START, "run", "--env", venv, "--prefix-output", "n", "--", "sh", "-c", script)
    assert command.wait(LIMIT) == 0
    assert screen.rest() == "n | 1,off\n"


SLEEPS = """
import signal
try:
    print("in", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(3)
"""


def test_ctrl_c_reaches_the_command_and_its_last_words_are_shown(venv: Path) -> None:
    pid, master = pty.fork()
    if pid == 0:
        words = [*START, "run", "--env", str(venv), "--prefix-output", "n", "--", sys.executable, "-c", SLEEPS]
        os.execve(sys.executable, words, variables())
    text = b""
    while b"n | in" not in text:
        text += os.read(master, 1000)
    os.write(master, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    while b"n | interrupted" not in text:
        text += os.read(master, 1000)
    os.close(master)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_as_before_and_nothing_is_left(venv: Path, number: signal.Signals) -> None:
    words = [*START, "run", "--env", str(venv), "--prefix-output", "n", "--", "sh", "-c", "echo $$; exec cat"]
    with subprocess.Popen(words, env=variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        child = int(command.stdout.readline().removeprefix("n | "))
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        [writer] = set(map(int, children)) - {child}
        command.send_signal(number)
        # While its input is open: at the end of that `cat` would end by itself.
        assert command.wait(LIMIT) == (143 if number == signal.SIGTERM else -9)
        command.communicate("")
    wait_until(lambda: not Path(f"/proc/{writer}").exists())


def test_the_command_ends_though_it_left_a_program_whose_lines_still_come(venv: Path) -> None:
    words = [*START, "run", "--env", str(venv), "--prefix-output", "n", "--"]
    script = "exec 3<&0; (read line <&3; echo later) & echo now"
    with subprocess.Popen(
        [*words, "sh", "-c", script], env=variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.wait(LIMIT) == 0
        assert command.communicate("go\n")[0] == "n | now\nn | later\n"


def test_the_reader_of_the_output_may_end_first(venv: Path) -> None:
    words = [*START, "run", "--env", str(venv), "--prefix-output", "n", "--", "yes"]
    with subprocess.Popen(words, env=variables(), stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "n | y\n"
        command.stdout.close()
        assert command.wait(LIMIT) == 128 + signal.SIGPIPE


AGAIN = """
import os
from safe_pip.launch import prefix
from safe_pip.launch.restart import Attempt, Start
from safe_pip.launch.settings import Settings
start = Start.now()
attempt = Attempt.taken_from(os.environ)
assert prefix.begin(Settings(prefix_output="n"), attempt).prefix_output is None
print(f"attempt {attempt.number}", flush=True)
attempt.number += 1
if attempt.number < 4:
    attempt.reexec(start)
"""


LAST = """
import atexit, os
from safe_pip.launch import prefix
from safe_pip.launch.settings import Settings
before = os.dup(1)
atexit.register(lambda: os.write(before, b"after it\\n"))  # what is registered first runs last
prefix.begin(Settings(prefix_output="n"))
os.write(1, b"line\\n" * 100)
"""


def test_all_is_written_before_the_command_ends() -> None:
    done = subprocess.run([sys.executable, "-c", LAST], capture_output=True, text=True, env=variables())
    assert (done.stdout, done.stderr) == ("n | line\n" * 100 + "after it\n", "")


def test_a_command_that_starts_again_keeps_one_prefix() -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, env=variables())
    assert (done.stdout, done.stderr) == ("n | attempt 1\nn | attempt 2\nn | attempt 3\n", "")
