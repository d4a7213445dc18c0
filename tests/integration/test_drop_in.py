"""safe-pip in pip's place: equal output and exit status, and a slow reader of the output delays no command."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment, ended
from tests.support.wheels.tiny import Project

A1 = Project("aproject", "1", console_scripts={"aproject": "aproject:main"})


def renamed(text: str) -> str:
    """pip's words with our name in them."""
    return text.replace("safe-pip", "pip")


def without_ours(text: str) -> str:
    """Help without our own options, the version without our line: both follow pip's."""
    return text.partition("\nsafe-pip Options:\n")[0].partition("\nsafe-pip ")[0]


COMMANDS = [
    ("list",),
    ("list", "--format", "json"),
    ("list", "-v"),
    ("freeze", "--all"),
    ("inspect",),
    ("show", "-f", "pip"),
    ("show", "missing"),
    ("check",),
    ("config", "list"),
    ("cache", "dir"),
    ("hash", sys.executable),
    ("install",),
    ("install", "--no-such-option"),
    ("install", "missing-project"),
    ("install", "--dry-run", "aproject"),
    ("download", "--no-such-option"),
    ("uninstall",),
    ("uninstall", "-y", "missing"),
    ("instal",),
    ("install", "--help"),
    ("-q", "list"),
    ("--version",),
    ("--version", "list"),
]
"""None changes what is installed."""


@pytest.fixture(scope="module")
def compared(workspace, tmp_path_factory):
    """An environment, and what plain pip says in it."""
    env = PipEnvironment.open(workspace, tmp_path_factory.mktemp("compared"))
    env.add_to_index(A1)
    return env, dict(zip(COMMANDS, env.read_with_plain_pip(*COMMANDS), strict=True))


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_output_and_exit_status_are_pips(compared, args):
    env, expected_of = compared
    pip, ours = expected_of[args], env.run(*args, status=None)
    assert ours.returncode == pip.returncode
    said, expected = renamed(without_ours(ours.stdout)), renamed(pip.stdout)
    if args == ("inspect",):  # the order of keys in an object means nothing
        assert json.loads(said) == json.loads(expected)
    else:
        assert said.split() == expected.split()
    assert renamed(ours.stderr).split() == renamed(pip.stderr).split()


def in_order(text: str) -> list[str]:
    """Lines, last those on the entries of a `--target`: pip takes them as its filesystem lists them."""
    return sorted(text.splitlines(), key=lambda line: line if line.startswith("WARNING: Target directory") else "")


def test_an_install_an_upgrade_and_an_uninstall_print_what_pip_prints(workspace, tmp_path):
    environments = [PipEnvironment.open(workspace, tmp_path / name) for name in ("one", "two")]
    said: list[list[str]] = [[], []]
    for env, lines in zip(environments, said, strict=True):
        env.add_to_index(A1, Project("aproject", "2"), Project("needing", "1", requires=("aproject",)))
        for args in (
            ("install", "aproject==1", "needing"),
            ("install", "aproject==1"),
            ("install", "--upgrade", "aproject"),
            ("install", "--target", "there", "aproject"),
            ("install", "--target", "there", "aproject"),
            ("install", "--prefix", "prefix", "aproject"),
            ("uninstall", "-y", "aproject"),
        ):
            done = env.run(*args) if env is environments[0] else env.plain(*args)
            lines.append(done.stdout.replace(str(env.directory), "HERE"))
            lines.append(done.stderr.replace(str(env.directory), "HERE"))
    for ours, pips in zip(*said, strict=True):
        assert in_order(ours) == in_order(pips)


def test_version_names_the_place_that_pip_was_frozen_from_and_v_tells_ours(env):
    done = env.run("--version", "-v")
    assert done.stdout.startswith(f"pip {env.workspace.pip_version} from {env.site / 'pip'} (python ")
    assert done.stderr.startswith("safe-pip: safe-pip ")


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_pips_version_and_help_are_shown_whatever_the_command(env, option):
    assert env.run(option, "run", "--", "false").stdout == env.run(option).stdout


def test_help_lists_pips_commands_and_ours(env):
    listed = env.run("help").stdout
    assert "\n  install " in listed
    assert "\n  run " in listed
    for asked in (("run", "--help"), ("help", "run")):
        assert "--exclusive" in env.run(*asked).stdout
    for asked in (("--help",), ("install", "--help"), ("help", "install"), ("run", "--help")):
        assert "--lock-timeout" in env.run(*asked).stdout


def test_our_options_stand_before_or_behind_a_command(env):
    held = env.start("run", "--exclusive", "--", sys.executable, "-c", "print('held', flush=True); input()")
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    for args in (["--lock-timeout", "0", "list"], ["list", "--lock-timeout=0"], ["venv", "new", "--lock-timeout", "0"]):
        told = env.run(*args, status=0 if args[0] == "venv" else 75)
        assert ("is not free" in told.stderr) == (args[0] != "venv")
    held.communicate("")
    assert "takes a value: SECONDS" in env.run("list", "--lock-timeout", status=2).stderr


def test_m_names_itself_as_it_was_called(env):
    done = subprocess.run(
        [env.venv.python, "-m", "safe_pip", "install", "--help"],
        env=env.variables,
        cwd=env.directory,
        capture_output=True,
        text=True,
    )
    # pip breaks long lines, within paths too.
    assert f"{env.venv.python}-msafe_pipinstall" in "".join(done.stdout.split())


def test_a_log_file_is_complete_and_in_order(env):
    env.add_to_index(A1)
    env.run("install", "aproject", "--log", "log")
    log = (env.directory / "log").read_text()
    assert log.index("Installing collected packages: aproject") < log.index("Successfully installed aproject-1")


def test_configuration_and_variables_are_pips(env):
    env.add_to_index(A1)
    (env.venv.path / "pip.conf").write_text("[list]\nformat = freeze\n[safe-pip]\nlock-timeout = 7\n")
    assert "pip==" in env.run("list", PIP_CONFIG_FILE="").stdout
    assert json.loads(env.run("list", PIP_FORMAT="json").stdout)
    assert "safe-pip.lock-timeout='7'" in env.run("config", "list", PIP_CONFIG_FILE="").stdout


@pytest.mark.parametrize(
    "args", [("config", "list"), ("cache", "info"), ("hash", sys.executable), ("help",)], ids=" ".join
)
def test_a_command_that_never_asks_what_is_installed_takes_no_lock(env, args):
    env.run("--version")
    holder = env.start("run", "--exclusive", "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    assert env.run("--lock-timeout", "0", "list", status=75)
    env.run("--lock-timeout", "0", *args)
    with ended(holder, "") as (status, _, _):
        assert status == 0


@pytest.mark.parametrize("command", ["list", "install"])
def test_unread_standard_output_delays_no_other_command(env, command):
    env.add_to_index(A1, Project("other", "1"))
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    fcntl.fcntl(writing, fcntl.F_SETFL, 0)
    args = ("list",) if command == "list" else ("install", "other", "-v")
    blocked = subprocess.Popen(env.command(*args), env=env.variables, cwd=env.directory, stdout=writing, stderr=writing)
    os.close(writing)
    wait_until_it_writes(blocked.pid)
    env.run("install", "aproject")
    env.run("uninstall", "-y", "aproject")
    with open(reading, "rb") as pipe:
        printed = pipe.read().decode().lstrip("x")
    assert blocked.wait() == 0
    assert "pip" in printed


def wait_until_it_writes(pid: int) -> None:
    """Return when a process sleeps in write(2) on a pipe (proc_pid_syscall(5), proc_pid_wchan(5))."""
    if not Path("/proc/self/wchan").exists():
        pytest.skip("/proc/PID/wchan tells what a process waits for")
    for _ in range(2_000_000):
        with contextlib.suppress(OSError):
            if "pipe_w" in Path(f"/proc/{pid}/wchan").read_text():
                return
    raise AssertionError("it never wrote")


@contextlib.contextmanager
def private_index(directory: Path, agents: list[str] | None = None):
    """Serve `directory` as a flat index that asks for a password; yields its URL. `agents` gets the user agents."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(directory))

        def do_GET(self):
            if agents is not None:
                agents.append(self.headers["User-Agent"])
            expected = "Basic " + base64.b64encode(b"somebody:secret").decode()
            if self.headers.get("Authorization") == expected:
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


KEYRING = """
import collections, sys
assert "pip" not in sys.modules and "safe_pip" not in sys.modules
Found = collections.namedtuple("Found", "username password")
def get_credential(url, username):
    return Found("somebody", "secret")
"""


def test_keyring_is_asked_for_credentials_as_by_pip(env):
    env.add_to_index(A1)
    with private_index(env.index) as url:
        arguments = ("install", "aproject", "--no-input", "--find-links", url, "--keyring-provider")
        hidden = {"PIP_FIND_LINKS": ""}
        assert "No matching distribution" in env.run(*arguments, "import", status=1, **hidden).stderr
        (env.site / "keyring.py").write_text("raise ValueError('the keyring is locked')")
        assert "the keyring is locked" in env.run(*arguments, "import", status=1, **hidden).stderr
        (env.site / "keyring.py").write_text(KEYRING)
        env.run(*arguments, "import", **hidden)
    assert env.installed() == {"aproject": "1"}


ASKING = """
import collections
def get_credential(url, username):
    open({asks!r}, "w").close()
    open({answered!r}).close()
    return collections.namedtuple("Found", "username password")("somebody", "secret")
"""


def test_no_lock_is_held_while_a_keyring_asks_its_user(env):
    asks, answered = env.directory / "asks", env.directory / "answered"
    os.mkfifo(asks)
    os.mkfifo(answered)
    env.add_to_index(Project("other", "1"))
    env.run("install", "other")
    (env.site / "keyring.py").write_text(ASKING.format(asks=str(asks), answered=str(answered)))
    env.add_to_index(A1)
    with private_index(env.index) as url:
        arguments = ("install", "aproject", "--no-input", "--find-links", url, "--keyring-provider", "import")
        process = env.start(*arguments, PIP_FIND_LINKS="")
        asks.open().close()
        env.run("--lock-timeout", "0", "uninstall", "-y", "other")
        answered.open("w").close()
        with ended(process) as (status, _, err):
            assert status == 0, err
    assert env.installed() == {"aproject": "1"}


def test_each_request_has_the_user_agent_of_pip(env):
    env.add_to_index(A1)
    agents = []
    arguments = ("install", "aproject", "--no-input", "--find-links")
    with private_index(env.index, agents) as url:
        env.run(*arguments, url.replace("//", "//somebody:secret@"), PIP_FIND_LINKS="")
    assert len(agents) >= 2
    assert {agent.partition(" ")[0] for agent in agents} == {f"pip/{env.workspace.pip_version}"}
    assert all(json.loads(agent.partition(" ")[2])["installer"]["name"] == "pip" for agent in agents)


def test_a_socks_proxy_finds_pysocks_in_the_environment(env):
    args = ("install", "aproject", "--index-url", "http://127.0.0.1:9/", "--retries", "0", "--no-input")
    unset = {"PIP_NO_INDEX": "", "PIP_PROXY": "socks5://127.0.0.1:9"}
    without = env.run(*args, status=None, **unset)
    assert "Missing dependencies for SOCKS support" in without.stdout + without.stderr
    (env.site / "socks.py").write_text(
        "PROXY_TYPE_SOCKS4, PROXY_TYPE_SOCKS5 = 1, 2\n"
        "class ProxyError(Exception): pass\n"
        "ProxyConnectionError = SOCKS5AuthError = SOCKS5Error = ProxyError\n"
        "def create_connection(*args, **kw): raise OSError('this is the stand-in')\n"
    )
    within = env.run(*args, status=None, **unset)
    assert "Missing dependencies" not in within.stdout + within.stderr


SHELLS = {
    "bash": 'eval "$(safe-pip completion --bash)"; COMP_WORDS=(safe-pip inst) COMP_CWORD=1; '
    '_safe_pip_completion safe-pip; echo "${COMPREPLY[@]}"; complete -p safe-pip',
    "zsh": 'autoload -U compinit; compinit -u; eval "$(safe-pip completion --zsh)"; '
    'compadd() { echo "$@" }; words=(safe-pip inst); CURRENT=2; __safe_pip; echo $_comps[safe-pip]',
    "fish": "safe-pip completion --fish | source; complete --do-complete 'safe-pip inst'; complete -c safe-pip",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_completes_safe_pip(env, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{env.venv.scripts}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", SHELLS[shell]], env=env.variables | {"PATH": path}, capture_output=True, text=True
    )
    assert "install" in done.stdout, done.stderr
    assert "safe_pip" in done.stdout, done.stderr


def test_completion_offers_our_verbs_and_what_is_installed(env):
    env.add_to_index(A1)
    env.run("install", "aproject")

    def offered(words: str, number: int) -> list[str]:
        asked = {"PIP_AUTO_COMPLETE": "1", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        return env.run(status=1, **asked).stdout.split()

    assert offered("safe-pip ru", 1) == ["run"]
    assert offered("safe-pip uninstall apr", 2) == ["aproject"]
    assert "--exclusive" in offered("safe-pip run --e", 2)
    assert "--on-conflict=" in offered("safe-pip merge --on", 2)
    assert "--prompt=" in offered("safe-pip venv --", 2)
    assert offered("safe-pip install --lock", 2) == ["--lock-timeout="]
    assert "--durable" in offered("safe-pip --d", 1)


def test_another_environment_is_managed_with_nothing_of_ours_in_it(env):
    other = env.workspace.maker.make(env.directory / "other")
    env.add_to_index(A1)
    for chosen in ("option", "variable", "configuration"):
        options = ("--python", str(other.path)) if chosen == "option" else ()
        variables = {"PIP_PYTHON": str(other.python)} if chosen == "variable" else {}
        if chosen == "configuration":
            (env.venv.path / "pip.conf").write_text(f"[global]\npython = {other.path}\n")
            variables = {"PIP_CONFIG_FILE": ""}
        env.run(*options, "install", "aproject", **variables)
        assert [info.name for info in other.purelib.glob("*.dist-info")] == ["aproject-1.dist-info"]
        listed = env.run(*options, "list", "--format", "freeze", **variables).stdout
        assert listed == "aproject==1\n"
        env.run(*options, "uninstall", "-y", "aproject", **variables)
        assert not list(other.purelib.glob("*.dist-info"))
    assert env.installed() == {}


def test_another_environment_is_locked_like_any_other(env):
    other = env.workspace.maker.make(env.directory / "other")
    holder = env.start("run", "--exclusive", "--env", str(other.path), "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    refused = env.run("--lock-timeout", "0", "--python", str(other.path), "list", status=75)
    assert "is not free" in refused.stderr
    env.run("--lock-timeout", "0", "list")
    with ended(holder, "") as (status, _, _):
        assert status == 0


def test_an_interpreter_that_is_too_old_is_refused_in_pips_words(env):
    old = next((found for name in ("python3.8", "python3.7", "python3.9") if (found := shutil.which(name))), None)
    if old is None or subprocess.run([old, "--version"], capture_output=True).returncode:
        pytest.skip("no Python older than 3.10 is installed")
    done = env.run("--python", old, "list", status=1)
    assert "This version of pip does not support python 3." in done.stderr
    assert "(requires >=3.10)" in done.stderr
