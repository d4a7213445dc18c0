"""The store of prepared wheels in tests: its entries, and what is installed with and without it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.venvs.pip_environment import PipEnvironment

STORE = Path("pip", "safe-pip", "prepared-v1")


def store(env: PipEnvironment) -> Path:
    return Path(env.more["XDG_CACHE_HOME"], STORE)


def entries(env: PipEnvironment) -> dict[str, Path]:
    """The entries, by the project that each is of."""
    found = {}
    for entry in store(env).glob("wheels/*"):
        name = next(path.name for path in (entry / "files").glob("*.dist-info"))
        found[name.partition("-")[0]] = entry
    return found


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `root`, with its mode; of bytecode all but the time of its source."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = content[:8] + content[12:] if path.suffix == ".pyc" else content
            found[str(path.relative_to(root))] = (path.stat().st_mode, content)
    return found


def installed(env: PipEnvironment, *options: str, **more: str) -> dict[str, tuple[int, bytes]]:
    """The files that a command installs into a private prefix, always at the same path."""
    prefix = env.directory / "prefix"
    env.run("install", "--ignore-installed", "--prefix", prefix, *options, "every-thing", "other", **more)
    found = tree(prefix)
    shutil.rmtree(prefix)
    return found
