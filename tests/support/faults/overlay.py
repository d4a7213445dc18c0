"""An overlayfs with a real lower layer, like that of a container, mounted in a private namespace."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import safe_pip

_MOUNT = """
set -e
mount -t overlay overlay -o userxattr,lowerdir="$1/lower",upperdir="$1/upper",workdir="$1/work" "$1/merged"
shift
exec "$@"
"""


def run(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` where `directory/merged` shows `directory/lower`, which the caller has filled, below a new layer.

    It runs in `directory` as the root of a user namespace; the mount is gone with it, `directory/upper` is not. It
    finds safe_pip and the tests.
    """
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir(exist_ok=True)
    paths = [Path(safe_pip.__file__).parents[1], Path(__file__).parents[3]]
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(directory), *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
    )


def run_python(directory: Path, code: str, *arguments: str) -> str:
    """The output of the program `code` in the overlay; raises `AssertionError` with its errors if it fails."""
    done = run(directory, sys.executable, "-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def why_not() -> str:
    """Why this machine cannot make such a mount; empty if it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "no unshare(1)"
    with tempfile.TemporaryDirectory() as name:
        done = run(Path(name), "true")
        # The kernel makes work/work with no permissions at all.
        subprocess.run(["chmod", "-R", "u+rwx", name], check=False)
    return done.stderr.strip() if done.returncode else ""
