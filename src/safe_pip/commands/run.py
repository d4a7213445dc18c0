"""`safe-pip run`: any command under the environment's lock."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from safe_pip.commands import child
from safe_pip.commands.environments import Context, environment_of, own_trees, trees_of
from safe_pip.commands.options import Namespace
from safe_pip.environment.environment import Target
from safe_pip.errors import LockTimeout, NestingRefused
from safe_pip.launch import isolation
from safe_pip.messages import say


def main(options: Namespace, context: Context) -> int:
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        with _locked(options.lock_dir or options.env, options, context):
            return _run(command, context)
    except (LockTimeout, NestingRefused) as error:
        error.exit_status = options.conflict_exit_code
        raise


def _run(command: list[str], context: Context) -> int:
    try:
        return child.run(command, durable=context.settings.durable)
    except FileNotFoundError as error:
        say(f"error: `{command[0]}` was not found ({error.strerror})")
        return 127
    except OSError as error:
        say(f"error: `{command[0]}` cannot be executed ({error.strerror})")
        return 126


def _locked(env: str | None, options: Namespace, context: Context) -> AbstractContextManager[object]:
    exclusive: bool = options.exclusive
    if options.lock_dir is not None:
        own = trees_of(options.lock_dir)
    else:
        own = own_trees() if env is None else environment_of(env, "`--lock-dir DIR` locks any directory")
    environment = context.environment(isolation.environment_path if env is None else tuple(map(str, own)))
    if env is not None and not own:
        return environment.directory(Path(env), exclusive=exclusive)
    if not exclusive:
        return environment.keeping()
    if env is None and not any(os.access(tree, os.W_OK) for tree in own):
        # What this user installs goes to a tree that the user can write: the user site.
        own = [tree for tree in environment.trees() if os.access(tree, os.W_OK)] or own
    # A command may be about to make another tree in a prefix that is named.
    containers = (Path(env),) if env is not None and os.path.isdir(env) else ()
    return environment.occupying(Target(tuple(own), containers=containers))
