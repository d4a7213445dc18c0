"""`safe-pip adopt` and `safe-pip unadopt`: the `pip` of an environment becomes safe-pip, or pip again."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from functools import partial
from pathlib import Path

from safe_pip import fs
from safe_pip.commands.environments import Context, Place, own_trees, trees_of, until_current
from safe_pip.commands.options import Namespace, tell
from safe_pip.environment.environment import PACKAGES, Target
from safe_pip.errors import StalePlan, UnusableEnvironment
from safe_pip.launch import adoption, isolation
from safe_pip.launch.frozen_pip import find_pip
from safe_pip.locking import order, state_directory
from safe_pip.merge.plan import Removal

_OLDEST = (3, 10)


def main(options: Namespace, context: Context) -> int:
    place, is_adopted = Place.find(options.env, context), options.verb == "adopt"
    trees = own_trees()[:1] if options.env is None else trees_of(options.env)
    if not trees or any(tree.name not in PACKAGES for tree in trees):
        raise UnusableEnvironment(f"`{options.env}` is not an environment: no Python looks into it when it starts")
    for tree in trees if is_adopted else ():
        check(place, tree)
    for tree in trees:
        attempt = partial(change, place, tree, is_adopted=is_adopted, is_trial=options.dry_run)
        told = _told(tree, until_current(attempt), options)
        if not options.quiet:
            tell(told)
    return 0


def _told(tree: Path, changed: adoption.Adoption | None, options: Namespace) -> str:
    """What was done, or would be: which pip is replaced by which, and where both are."""
    name, pip = f"`{order.shown_name(tree)}`", find_pip([str(tree)])
    plain, place = (f"pip {pip.version}", f"\n  pip: {pip.site / 'pip'}") if pip is not None else ("no pip", "")
    if options.verb == "unadopt":
        then = "would be" if options.dry_run else "is"
        return f"{name} was not adopted" if changed is None else f"{name}: `pip` {then} {plain} again{place}"
    if changed is None:
        return f"{name} is adopted already"
    found = re.search(r'__version__ = "(.+)"', (changed.home / "__init__.py").read_text(encoding="utf-8"))
    what, then = ("Would adopt", "would be") if options.dry_run else ("Adopted", "is now")
    said = f"{what} {name}: `pip` {then} safe-pip {found[1] if found else ''} in place of {plain}"
    return f"{said}{place}\n  safe-pip: {changed.home}"


def check(place: Place, tree: Path) -> None:
    """Raise `UnusableEnvironment` where an adoption would do nothing, or another tool looks after the pip."""
    if (adoption.python_of(tree) or _OLDEST) < _OLDEST:
        raise UnusableEnvironment(f"`{tree}` is of a Python older than {'.'.join(map(str, _OLDEST))}")
    # The mark of the interpreter that uses `tree` is beside its standard library (PEP 668).
    library = tree.parent
    found = [library, Path(sys.base_prefix, "lib", library.name), Path("/usr/lib", library.name)]
    found += [Path(sysconfig.get_path("stdlib"))] if place.named is None else []
    found += sorted(library.parent.glob("python3.*")) if library.name == "python3" else []  # Debian's, for all of them
    for mark in (each / "EXTERNALLY-MANAGED" for each in found if place.home(tree) is None):
        if fs.is_file(mark):
            raise UnusableEnvironment(
                f"`{tree}` is managed by the system (`{mark}`)", hint="Adopt a virtual environment"
            )


def change(place: Place, tree: Path, *, is_adopted: bool, is_trial: bool = False) -> adoption.Adoption | None:
    """Adopt the environment of `tree`, or take that back, but not if that is a trial.

    Returns None if it was so before. Raises `StalePlan`.
    """
    pip = find_pip(isolation.environment_path)
    site = Path(os.path.abspath(pip.site)) if pip and not pip.is_too_old else None
    wanted = adoption.wanted(tree, site)
    files, before = wanted.content() if is_adopted else {}, adoption.contents(tree)
    if (before.items() >= files.items()) if is_adopted else not before:
        return None
    for name in files:
        if name not in before and os.path.lexists(tree / name):
            raise UnusableEnvironment(f"`{tree / name}` was not made by safe-pip", hint="Remove it, then try again")
    if is_trial:
        return wanted
    # A command that makes `.safe-pip` removes it if it is free afterwards: unadopted, all is as it was.
    target = Target((tree,), stateless_trees=() if state_directory.exists(tree) else (tree,))
    transaction = place.context.transaction([*map(str, place.trees)])

    def validate(now: object) -> tuple[str, ...]:
        if adoption.contents(tree) != before:
            raise StalePlan((), f"`{wanted.file}` did not stay the same while this command was at work")
        return ()

    with transaction.staging(target) as staged:
        for name, content in files.items():
            if before.get(name) != content:
                staged.put(str(tree / name), content)
        if not is_adopted:
            staged.remove(Removal(f"`{wanted.file}`", tree, frozenset(str(tree / name) for name in before)))
        transaction.commit(staged, validate)
    return wanted
