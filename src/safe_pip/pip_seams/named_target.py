"""Where `pip install` is told to install, found without pip: if pip is not as expected, it cannot be asked."""

import optparse
import os
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from safe_pip.environment.environment import Target, resolved
from safe_pip.errors import UsageError

# Other options of `pip install` that may stand before `t` in one word; `--pre` is no short `--prefix`.
_FLAGS, _WITH_VALUE = "-h -I -q -U -v --pre".split(), "-c -C -e -f -i -r".split()


class _Parser(optparse.OptionParser):
    """Reads the options that it knows as pip's parser does, and passes over the others."""

    def _process_args(self, largs: list[str], rargs: list[str], values: optparse.Values) -> None:
        while rargs:
            with suppress(optparse.BadOptionError):
                super()._process_args(largs, rargs, values)

    def error(self, msg: str) -> NoReturn:
        raise UsageError(msg)


def named_target(
    path: Iterable[str], command: str | None, words: Sequence[str], configured: Mapping[str, str]
) -> Target | None:
    """The target that the options of an install name, or what is `configured` for it; None for the environment."""
    if command != "install":
        return None
    parser = _Parser(add_help_option=False)
    for names in (("-t", "--target"), ("--prefix",), ("--root",)):
        parser.add_option(*names)
    parser.add_option(*_FLAGS, action="store_true", dest="flag")
    parser.add_option(*_WITH_VALUE, dest="value")
    try:
        given, _ = parser.parse_args(list(words))
    except UsageError:
        return None  # pip itself says what is wrong
    target, prefix, root = (getattr(given, name) or configured.get(name) for name in ("target", "prefix", "root"))
    if not (target or prefix or root):
        return None
    if target:
        places = [target]
    else:
        paths = sysconfig.get_paths(vars={"base": prefix, "platbase": prefix} if prefix else None)
        places = [os.path.abspath(paths[name]) for name in ("purelib", "platlib")]
        if root:
            places = [os.path.join(root, os.path.relpath(place, os.sep)) for place in places]
    trees = resolved(map(Path, places))
    if any(not next(filter(os.path.lexists, (tree, *tree.parents))).is_dir() for tree in trees):
        return None  # pip itself says that this is no directory
    known = {os.path.realpath(entry) for entry in path}
    stateless = tuple(tree for tree in trees if str(tree) not in known)
    container = Path(os.path.realpath(target or root or prefix or ""))
    return Target(tuple(trees), stateless_trees=stateless, containers=(container,))
