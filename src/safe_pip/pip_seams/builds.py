"""Builds: the environment stays as it is while a build reads it, and one build at a time works in a source tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.environment.transaction import Transaction
from safe_pip.pip_seams.seam import Seam

ENTER = Seam("pip._internal.build_env", "NoOpBuildEnvironment.__enter__", ("self",))
EXIT = Seam("pip._internal.build_env", "NoOpBuildEnvironment.__exit__", ("self", "exc_type", "exc_val", "exc_tb"))
HOOK = Seam("pip._vendor.pyproject_hooks", "BuildBackendHookCaller._call_hook", ("self", "hook_name"))
LOCATION = Seam(
    "pip._internal.req.req_install",
    "InstallRequirement.ensure_build_location",
    ("self", "build_dir", "autodelete", "parallel_builds"),
)
CHECKOUT = Seam("pip._internal.req.req_install", "InstallRequirement.update_editable", ("self",))


def attach(transaction: Transaction) -> None:
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
                    return original(requirement)

    ENTER.replace(enter)
    EXIT.replace(leave)
    HOOK.replace(call_hook)
    LOCATION.replace(locate)
    CHECKOUT.replace(update)
