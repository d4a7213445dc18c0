"""`--verify=import`: a child interpreter imports what was staged before any of it is in the environment."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterable

from safe_pip import fs
from safe_pip.environment.stage import Stage
from safe_pip.errors import ImportFailed

_SHOWN = 20

# The modules may print to standard output. The names of what is imported go to the file that it led to before.
_CHILD = """\
import importlib, json, os, site, sys, traceback
path, staged, names = json.loads(sys.argv[1])
report = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
sys.argv[1:] = []
sys.path[:] = path
for directory in staged:
    site.addsitedir(directory)
for name in names:
    os.write(report, name.encode() + b"\\n")
    try:
        importlib.import_module(name)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
os.write(report, b"\\n")
os._exit(0)
"""


def verify_imports(stage: Stage, trees: Iterable[str], path: Iterable[str]) -> None:
    """Import every top-level module that is staged for one of `trees`, in a child; raises `ImportFailed`.

    The child sees what the environment's interpreter sees on `path`, with the stage in front of its trees. It leaves no
    bytecode. Packages without `__init__` are not imported: their parts may lie anywhere.
    """
    staged = [(tree, root + tree) for root in stage.roots for tree in trees if os.path.isdir(root + tree)]
    names = [name for _, directory in staged for name in top_level(directory)]
    if not names:
        return
    # Each staged tree comes right before the tree that it is for, or first if that tree is not on the path.
    order: list[str] = []
    for name in path:
        real = os.path.realpath(name)
        order += [directory for tree, directory in staged if tree == real and directory not in order]
        order.append(name)
    order[:0] = [directory for _, directory in staged if directory not in order]
    arguments = json.dumps([order, [directory for _, directory in staged], names])
    report, errors = fs.unnamed_file(b""), fs.unnamed_file(b"")
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, arguments],
            stdin=subprocess.DEVNULL,
            # Files and not pipes: a process that a module starts would hold pipes open.
            stdout=report,
            stderr=errors,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        begun, output = _read(report).split("\n"), _read(errors).rstrip()
    finally:
        os.close(report)
        os.close(errors)
    if child.returncode or begun[-2:] != ["", ""]:
        name, shown = next(filter(None, reversed(begun)), ""), output.splitlines()[-_SHOWN:]
        why = shown[-1].strip() if shown else ""
        if child.returncode <= 0:
            killed = f"was killed by signal {-child.returncode}" if child.returncode else "ended"
            why = f"the interpreter {killed}"
        raise ImportFailed(f"`{name}` cannot be imported: {why}", "\n".join(shown))


def top_level(directory: str) -> list[str]:
    """The names of the modules and regular packages in a directory, sorted."""
    found = (module.name for module in pkgutil.iter_modules([directory]))
    return sorted(name for name in found if name.isidentifier() and name != "__main__")


def _read(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, encoding="utf-8", errors="replace", closefd=False) as file:
        return file.read()
