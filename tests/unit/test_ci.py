"""What `.ci/run` does where the newest Pythons cannot be had."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TOX = "#!/bin/sh\necho tox ${1:+of more} found python3.15: $(python3.15)\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def run(tmp_path):
    """Run a copy of `.ci/run` with a stand-in for `.ci/pythons`; returns what it printed."""
    bin, checkout = tmp_path / "bin", tmp_path / "checkout"
    for name in ("python3.14", "python3.15"):  # of a host that has the name, but no such Python
        program(bin / name, "#!/bin/sh\nexit 127\n")
    program(bin / "python3", "#!/bin/sh\nexit 0\n")
    for name, text in (("python", "#!/bin/sh\n"), ("tox", TOX)):
        program(checkout / ".venv/bin" / name, text)

    def run(pythons: str) -> list[str]:
        program(checkout / ".ci/pythons", pythons)
        shutil.copy(PROJECT / ".ci/run", checkout / ".ci/run")
        environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([checkout / ".ci/run"], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


def test_the_tests_run_with_the_pythons_that_it_gets(run):
    gets = """#!/bin/sh
directory=$1; shift
mkdir -p "$directory/bin"
for version; do
    printf '#!/bin/sh\\necho the %s that it gets' $version > "$directory/bin/python$version"
    chmod +x "$directory/bin/python$version"
done
"""
    found = "found python3.15: the 3.15 that it gets"
    assert run(gets) == [f"tox {found}", f"tox of more {found}"]


def test_without_them_the_other_tests_run_and_the_output_begins_and_ends_with_a_warning(run):
    warning = "WARNING: not tested on every one of Python 3.14 3.15: see above"
    assert run("#!/bin/sh\nexit 1\n") == [warning, "tox found python3.15:", "tox of more found python3.15:", warning]


def test_it_runs_the_test_command_of_the_readme_and_then_all_the_others():
    readme = (PROJECT / "README.md").read_text()
    command, others = (PROJECT / ".ci/run").read_text().splitlines()[-2:]
    assert command.endswith("tox")
    assert re.fullmatch(r"\.venv/bin/tox run-parallel .* -m full # .*", others)
    assert f"\n{command}\n" in readme
