"""Builds: the environment stays as it is while a build reads it, and one build at a time works in a source tree.

What was built is kept for the next attempt of the command.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pip._internal.build_env import NoOpBuildEnvironment
from pip._internal.utils.temp_dir import TempDirectory

from safe_pip import fs
from safe_pip.environment.transaction import Transaction
from safe_pip.fs import space
from safe_pip.pip_seams.seam import Seam

ENTER = Seam("pip._internal.build_env", "NoOpBuildEnvironment.__enter__", ("self",))
EXIT = Seam("pip._internal.build_env", "NoOpBuildEnvironment.__exit__", ("self", "exc_type", "exc_val", "exc_tb"))
HOOK = Seam("pip._vendor.pyproject_hooks", "BuildBackendHookCaller._call_hook", ("self", "hook_name"))
LOCATION = Seam(
    "pip._internal.req.req_install",
    "InstallRequirement.ensure_build_location",
    ("self", "build_dir", "autodelete", "parallel_builds"),
)
METADATA = Seam("pip._internal.req.req_install", "InstallRequirement.prepare_metadata", ("self",))
GENERATED = [
    Seam("pip._internal.req.req_install", name, ("build_env", "backend", "details"))
    for name in ("generate_metadata", "generate_editable_metadata")
]
CHECKOUT = Seam("pip._internal.req.req_install", "InstallRequirement.update_editable", ("self",))


class KeptBuilds:
    """The wheels, and metadata directories, that this attempt of the command and earlier ones have built."""

    def __init__(self, built: dict[str, tuple[str, int]]) -> None:
        """`built` is as in `Attempt.built`; what is built is added to it."""
        self._built = built

    def keep(self, key: str, path: str) -> None:
        """Keep a wheel, or a directory of metadata, that was built of `key`. What cannot be kept is built again."""
        # Each takes a descriptor. On Windows an open file cannot be deleted.
        if not key or sys.platform == "win32" or len(self._built) >= space.descriptor_limit() // 4:
            return
        with suppress(OSError, ValueError):
            if os.path.isfile(path):
                fd = os.open(path, os.O_RDONLY)
            else:
                files = filter(Path.is_file, Path(path).rglob("*"))
                fd = fs.unnamed_file(marshal.dumps({str(each.relative_to(path)): each.read_bytes() for each in files}))
            self._built[key] = os.path.basename(path), fd

    def restore(self, key: str, directory: str) -> str | None:
        """Put what was built of `key` into a directory; on return its path there, None if nothing was."""
        name, fd = self._built.get(key, ("", -1))
        if not name:
            return None
        path = Path(directory, name)
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            content = file.read()
        for below, each in ({"": content} if name.endswith(".whl") else marshal.loads(content)).items():
            fs.make_directories((path / below).parent)
            fs.write(path / below, each, mode=0o666)
        return str(path)


def built_of(req: Any, version: str) -> str:
    """What is built of a requirement, as far as one command can tell: the same again gives the same.

    Empty for a build without isolation: it depends on what is installed, which may be why the command begins again.
    """
    if isinstance(req.build_env, NoOpBuildEnvironment):
        return ""
    source = req.download_info and req.download_info.to_json()
    return repr((req.name, version, str(req.link), source, req.editable, req.config_settings))


def attach(transaction: Transaction, kept: KeptBuilds) -> None:
    """Hold the locks that each call of a build backend needs: that of the environment, then that of the source tree."""
    entered: list[tuple[ExitStack, Callable[[], None]]] = []

    def enter(original: Any, build_environment: Any) -> Any:
        # pip opens the same object again for every call; a build without isolation is never inside another.
        with ExitStack() as locks:
            check = locks.enter_context(transaction.building())
            result = original(build_environment)
            entered.append((locks.pop_all(), check))
        return result

    def leave(original: Any, build_environment: Any, *exc: Any, **kw: Any) -> Any:
        locks, _ = entered.pop()
        with locks:
            return original(build_environment, *exc, **kw)

    def call_hook(original: Any, caller: Any, *args: Any, **kw: Any) -> Any:
        with transaction.mutex(Path(caller.source_dir)):
            for _, check in entered:
                check()
            with transaction.writing(caller.source_dir):
                return original(caller, *args, **kw)

    def locate(original: Any, requirement: Any, build_dir: Any, *args: Any, **kw: Any) -> Any:
        if getattr(requirement, "req", None) is not None:
            # pip asks whether the directory exists and then makes it: of several pips at once all but one fail.
            fs.make_directories(Path(os.path.abspath(build_dir)))
        return original(requirement, build_dir, *args, **kw)

    def update(original: Any, requirement: Any) -> Any:
        checkout = getattr(requirement, "source_dir", None)
        if checkout is None:
            return original(requirement)
        source = Path(os.path.dirname(os.path.abspath(checkout)))
        while True:
            # Both in one step: a command that holds one mutex may not wait for another.
            existing = [Path(checkout)] if os.path.isdir(checkout) else []
            with transaction.mutex(source, *existing):
                if existing or not os.path.isdir(checkout):
                    with transaction.writing(checkout):
                        return original(requirement)

    key = ""

    def prepare(original: Any, requirement: Any, *args: Any, **kw: Any) -> Any:
        nonlocal key
        # A checkout may be of another commit the next time.
        key = "" if requirement.link is None or requirement.link.is_vcs else built_of(requirement, "metadata")
        return original(requirement, *args, **kw)

    def generate(original: Any, *args: Any, **kw: Any) -> Any:
        found = kept.restore(key, TempDirectory(kind="modern-metadata", globally_managed=True).path) if key else None
        if found is None:
            found = original(*args, **kw)
            if key:
                kept.keep(key, found)
        return found

    ENTER.replace(enter)
    EXIT.replace(leave)
    HOOK.replace(call_hook)
    LOCATION.replace(locate)
    CHECKOUT.replace(update)
    METADATA.replace(prepare)
    for seam in GENERATED:
        seam.replace(generate)
