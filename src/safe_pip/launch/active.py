"""Which environment a command is about, where its command line names none.

safe-pip that is installed in an environment is about that one, as pip is. As a tool of its own (of pipx, uv or pex)
it is about the environment that the user is at work in, never about its own unless that is named.
"""

import os
import sys
from collections.abc import Iterator, Mapping

from safe_pip.errors import UnusableEnvironment

#: pip's commands that are about no environment.
_FREE = frozenset(("cache", "completion", "config", "hash", "help", "index", "search"))
_VARIABLES = ("VIRTUAL_ENV", "CONDA_PREFIX")
#: What pipx, `uv tool` and pex leave in the environments that they make for programs.
_MARKS = ("pipx_metadata.json", "uv-receipt.toml", "PEX-INFO")
_PYTHON = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")


def environment(environ: Mapping[str, str], command: str = "") -> tuple[str | None, str]:
    """The environment of a command, None for that of this Python, and a message if that is not obvious.

    Raises `UnusableEnvironment` if safe-pip is a tool of its own and there is no other environment.
    """
    if command in _FREE or is_adopted():
        return None, ""
    if not is_tool():
        active = environ.get(_VARIABLES[0])
        is_other = active and not _is_same(active)
        return None, f"using `{sys.prefix}`, where safe-pip is installed, not the active `{active}`" if is_other else ""
    path, shown = next(_candidates(environ), ("", ""))
    if not path:
        raise UnusableEnvironment(
            "safe-pip is installed as a tool of its own, and there is no environment to use",
            hint="Activate one, or name it: `--python PATH` before the command",
        )
    if not os.path.exists(os.path.join(path, *_PYTHON)):
        raise UnusableEnvironment(f"{shown} is not an environment: it has no Python")
    return (None, "") if _is_same(path) else (path, f"using {shown}")


def is_adopted() -> bool:
    """Whether this process was started to be pip."""
    directory, name = os.path.split(sys.argv[0])
    return name.startswith("pip") or (name == "__main__.py" and os.path.basename(directory) == "pip")


def is_tool() -> bool:
    """Whether the environment of this Python was made for safe-pip alone."""
    if any(os.path.exists(os.path.join(sys.prefix, mark)) for mark in _MARKS):
        return True
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # A pex without an environment has each wheel in a directory; `uvx` makes an environment in uv's cache.
    cache, bucket = os.path.split(os.path.dirname(os.path.realpath(sys.prefix)))
    is_in_cache = bucket.startswith("archive-v") and os.path.exists(os.path.join(cache, "CACHEDIR.TAG"))
    return os.path.dirname(package).endswith(".whl") or is_in_cache


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The path of each environment that the user may be at work in, the first one first, and how it is shown."""
    for name in _VARIABLES:
        if path := environ.get(name):
            yield path, f"`{path}` ({name})"
    try:
        directory = start = os.getcwd()
    except OSError:
        return
    while True:
        for path in (directory, os.path.join(directory, ".venv")):
            if os.path.isfile(os.path.join(path, "pyvenv.cfg")):
                yield path, f"`{os.path.relpath(path, start)}`"
        if directory == os.path.dirname(directory):
            return
        directory = os.path.dirname(directory)


def _is_same(path: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(sys.prefix)
