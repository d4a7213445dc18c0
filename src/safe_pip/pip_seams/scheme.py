"""Where a command writes: pip's scheme for its options, as the trees and directories to lock.

`options_target` imports pip's install command, which an uninstall needs for a late attempt only.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pip._internal.exceptions import PipError
from pip._internal.locations import get_bin_prefix, get_bin_user, get_scheme
from pip._internal.utils.virtualenv import running_under_virtualenv

from safe_pip import fs
from safe_pip.environment.environment import Target, resolved
from safe_pip.pip_seams.output import handled_by


def scheme_target(
    path: Iterable[str],
    *,
    root: str | None = None,
    prefix: str | None = None,
    use_user_site: bool = False,
    target_dir: Path | None = None,
) -> Target:
    """The target of an install with these options; `path` is the environment path."""
    known = {os.path.realpath(entry) for entry in path}
    if target_dir is not None:
        tree = Path(os.path.realpath(target_dir))
        return Target((tree,), (), tree / ".lock", () if str(tree) in known else (tree,), (tree,))
    scheme = get_scheme("", user=use_user_site, root=root, prefix=prefix)
    trees = tuple(resolved([Path(scheme.purelib), Path(scheme.platlib)]))
    packed = (root is not None or prefix is not None) and not known.intersection(map(str, trees))
    home = Path(os.path.realpath(prefix or sys.prefix))
    return Target(
        trees,
        () if packed else shared_directories((scheme.scripts, scheme.data, scheme.headers), trees),
        None if root is not None or use_user_site else home / ".lock",
        trees if packed else (),
        tuple(Path(os.path.realpath(each)) for each in (root, scheme.data) if each) if packed else (),
    )


def shared_directories(paths: Iterable[str], trees: Iterable[Path]) -> tuple[Path, ...]:
    """The directories of a scheme that lie outside this virtual environment, so that others write to them too."""
    inside = [Path(os.path.realpath(sys.prefix))] if running_under_virtualenv() else []
    found = (each for each in resolved(map(Path, paths)) if fs.is_directory(each) and each not in trees)
    return tuple(each for each in found if not any(map(each.is_relative_to, inside)))


def reachable() -> tuple[str, ...]:
    """The directories that pip installs into by default: what is removed lies below one of them."""
    if running_under_virtualenv():
        return (sys.prefix,)
    schemes = (get_scheme("", user=user) for user in (False, True))
    found = (path for each in schemes for path in (each.purelib, each.platlib, each.scripts, each.data))
    return (sys.prefix, *dict.fromkeys(found))


def tree_of(distribution: Any) -> Path:
    """The tree that pip changes when it uninstalls `distribution`: that of an egg or egg-link is what it lies in."""
    location = Path(os.path.realpath(distribution.installed_location or distribution.location))
    return location if fs.is_directory(location) and location.suffix != ".egg" else location.parent


def uninstall_target(trees: Iterable[Path]) -> Target:
    """The target of an uninstall of distributions that lie in `trees`."""
    trees = tuple(dict.fromkeys(trees))
    scripts = (get_bin_prefix(), get_bin_user())
    return Target(trees, shared_directories(scripts, trees), Path(os.path.realpath(sys.prefix), ".lock"))


def options_target(path: Iterable[str], options: Any) -> Target:
    """The target of a command with these options, before pip has checked them; of an uninstall, this environment."""
    if getattr(options, "target_dir", None):
        return scheme_target(path, target_dir=Path(options.target_dir))
    from pip._internal.commands.install import decide_user_install

    root, prefix = getattr(options, "root_path", None), getattr(options, "prefix_path", None)
    try:
        with handled_by(logging.NullHandler()):
            asked = getattr(options, "use_user_site", False)
            user = decide_user_install(asked, prefix, None, root, options.isolated_mode)
    except PipError:
        user = False  # pip itself says what is wrong
    return scheme_target(path, root=root, prefix=prefix, use_user_site=user)
