"""The first command keeps what importing pip compiles, and later commands use it."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

# Says how many expressions were parsed.
PROGRAM = """
import atexit, importlib, sys
from safe_pip.launch import isolation
isolation.isolate()
parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
parsed, parse = [], parser.parse
def note(expression, *args, **kw):
    parsed.append(expression)
    return parse(expression, *args, **kw)
parser.parse = note
atexit.register(lambda: print(len(parsed), file=sys.stderr))
from safe_pip.cli import main
sys.argv[:1] = ["safe-pip"]
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def counting(env: PipEnvironment) -> PipEnvironment:
    """An environment whose first command finds no copy of pip in the cache."""
    env.more |= {
        "XDG_CACHE_HOME": str(env.directory / "cache"),
        "PIP_CACHE_DIR": str(env.directory / "cache" / "pip"),
        "TMPDIR": str(env.directory),  # where there may be a copy as well
    }
    env.add_to_index(Project("aproject", "1"), Project("bproject", "1"))
    return env


def parsed(env: PipEnvironment, *args: str) -> int:
    """How many expressions a command parses."""
    command = [str(env.venv.python), "-c", PROGRAM, *args]
    done = subprocess.run(
        command, env=env.variables, cwd=env.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


def test_the_second_command_compiles_hardly_anything(counting: PipEnvironment) -> None:
    first, second = parsed(counting, "install", "aproject"), parsed(counting, "install", "bproject")
    assert 4 * second < first
    assert counting.installed() == {"aproject": "1", "bproject": "1"}


def test_the_setting_switches_it_off(counting: PipEnvironment) -> None:
    counting.more["SAFE_PIP_FAST_START"] = "0"
    first, second = parsed(counting, "install", "aproject"), parsed(counting, "install", "bproject")
    assert 2 * second > first
    assert not list((counting.directory / "cache").rglob(".programs.*"))
    assert counting.installed() == {"aproject": "1", "bproject": "1"}


def test_a_damaged_file_stops_no_command_and_is_written_again(counting: PipEnvironment) -> None:
    counting.run("list")
    (kept,) = (counting.directory / "cache").rglob(".programs.*")
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    counting.run("list")
    mended = kept.read_bytes()
    assert len(mended) > len(content) // 2
    counting.run("list")
    assert kept.read_bytes() == mended
    kept.unlink()
    kept.mkdir()
    assert "pip" in counting.run("list").stdout
