"""What one attempt at a command tells the next one."""

import os
import subprocess
import sys

from safe_pip.launch.restart import Attempt

FIRST = """
import os, sys
from safe_pip.launch.restart import Attempt, Start
attempt = Attempt.taken_from(os.environ)
if attempt.number == 1:
    os.environ["SET_LATER"] = "yes"
    start = Start(sys.executable, tuple(sys.orig_argv), os.getcwd(), {**os.environ, "SET_LATER": "no"}, frozenset())
    with open("wheel", "w+") as wheel:
        wheel.write("content")
    wheel = os.open("wheel", os.O_RDONLY)
    os.unlink("wheel")
    os.chdir("/")
    attempt.number += 1
    attempt.answered += ["b", "a"]
    attempt.inputs["/dev/fd/63"] = "six\\n"
    attempt.built["key"] = "name.whl", wheel
    attempt.reexec(start)
(name, wheel), = attempt.built.values()
print(name, os.read(wheel, 99), os.get_inheritable(wheel))
print(attempt.number, sorted(attempt.answered), dict(attempt.inputs), os.environ["SET_LATER"], os.getcwd())
print("SAFE_PIP_ATTEMPT" in os.environ, sys.argv[1:])
"""


def test_the_next_attempt_knows_all_and_finds_the_process_as_it_was(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FIRST, "an argument"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "name.whl b'content' False",
        f"2 ['a', 'b'] {{'/dev/fd/63': 'six\\n'}} no {os.path.realpath(tmp_path)}",
        "False ['an argument']",
    ]


def test_without_the_variable_it_is_the_first():
    assert vars(Attempt.taken_from({})) == vars(Attempt())


def test_a_forged_variable_counts_for_nothing_and_removes_nothing(tmp_path):
    (tmp_path / "attempt").write_text("{}")
    for forged in ("x", "999", str(tmp_path), "", "0", "1", str(os.open(tmp_path / "attempt", os.O_RDONLY))):
        environ = {"SAFE_PIP_ATTEMPT": forged}
        assert vars(Attempt.taken_from(environ)) == vars(Attempt())
        assert environ == {}
    assert (tmp_path / "attempt").exists()
