"""Python 3.15 can make every import lazy; safe-pip needs its own to happen at once, whatever the user has set."""

import subprocess
import sys

import pytest

from tests.support.wheels.tiny import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 15), reason="before Python 3.15 no import is lazy"),
]

COMMANDS = """
--version
help install
install one
install --dry-run --report report.json two
install --upgrade --target there one
list
list --outdated
freeze
check
inspect
show -f one
index versions one
debug
config list
cache info
cache list
download one
wheel one
hash one-1-py3-none-any.whl
lock one
completion --bash
run -- true
status
doctor
merge staged --into prefix --manifest manifest
unmerge manifest
venv another
uninstall -y one
adopt
unadopt
"""


@pytest.mark.parametrize("how", ["option", "variable"])
def test_every_command_works_and_takes_no_exclusive_lock_for_all_of_pip(env, how):
    """With the variable, which Python reads as it reads the option, only commands that others start inherit it."""
    env.add_to_index(Project("one", "1"), Project("two", "1"))
    (env.directory / "staged").mkdir()
    (env.directory / "staged" / "file").write_text("")
    options = ["-X", "lazy_imports=all"] if how == "option" else []
    variables = env.variables | ({} if options else {"PYTHON_LAZY_IMPORTS": "all"})

    def run(*arguments):
        command = [env.venv.python, *options, *arguments]
        done = subprocess.run(
            command, env=variables, cwd=env.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, (arguments, done.stderr)
        assert "exclusive lock" not in done.stderr, (arguments, done.stderr)
        return done.stdout

    commands = COMMANDS.split("\n")[1:-1] if options else ["install one", "run -- true", "venv another", "adopt"]
    for line in commands:
        arguments = line.split()
        verbose = [] if arguments[0] in ("--version", "run", "status", "doctor", "merge", "unmerge", "venv") else ["-v"]
        run("-m", "safe_pip", *verbose, *arguments)
        if line == "adopt":
            run("-m", "pip", "-v", "list")
            run(env.venv.scripts / "pip", "-v", "install", "two")
            assert (env.site / "two.py").exists()
