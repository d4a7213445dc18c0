"""`safe-pip merge`: what `cp -Rp STAGED/. PREFIX` does, as one transaction."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands.merge.merging import Conflicts, Environments, Merged, Owned, Policy, Request, merge
from safe_pip.commands.run import located
from safe_pip.environment.access import Prefix
from safe_pip.environment.environment import Environment, Waiting
from safe_pip.errors import Unmergeable, UnusableEnvironment, UsageError
from safe_pip.launch import isolation, settings
from safe_pip.messages import say

HELP = """\
Usage:
  safe-pip merge STAGED [--into PREFIX | --env DIR] [--on-conflict warn|fail|keep] [--manifest FILE] [--move] [--json]

Description:
  Merge the directory STAGED into a prefix, as `cp -Rp STAGED/. PREFIX` does, but in one step that happens whole or not
  at all, under the locks of the prefix: however many merges and installs are at work at once. Directories that are not
  there are moved in whole, those that are there are entered. Permissions, owners (for root), times, extended
  attributes, hard links among the staged files, symbolic links and empty directories are kept.

  A file that is there with the same content, permissions and (for root) owner is left alone, whatever its time: merging
  twice is merging once. A symbolic link is left alone if its target is the same. Where a directory is to be and a file
  is, or the reverse, the merge is refused. A staged directory over a symbolic link to a directory of the prefix goes
  where that leads; a staged link over a directory is refused, unless it leads to that directory. A distribution that is
  there in another version is upgraded: its old files go. Bytecode of a source that is there already is left out.
  `.safe-pip` is never merged.

Options:
  --into PREFIX           The prefix, which is made if it does not exist. (default: this Python's)
  --env DIR               Likewise, by a virtual environment or its Python.
  --on-conflict warn|fail|keep
                          What becomes of a file that is there with other content: it is replaced, and named with the
                          distribution that owned it (warn, the default); nothing is changed, all are named, and the
                          exit status is 1 (fail); or it stays, and is named (keep).
  --manifest FILE         Write down what was put where, with digests, for `safe-pip unmerge FILE`. If FILE is the
                          manifest of an earlier merge into this prefix, what that put is still listed.
  --move                  Delete what was staged once it is in its place; on one filesystem nothing is copied. What was
                          kept out stays.
  --json                  Print one JSON document:
                            format     1; a later number means that a key got another meaning
                            into       the prefix
                            changed    whether anything was changed
                            put, made, same, removed
                                       lists of paths: files and links that were put there, directories that were made,
                                       files and links that were there already, files of distributions that were
                                       upgraded which are no more
                            replaced, kept, conflicts
                                       lists of: path, owner (a distribution, or null); conflicts with `fail` alone
                            manifest   where it was written, or null

The exit status is 0; 1 if there is something in the way, nothing being changed.
"""


@dataclass(frozen=True)
class Options:
    """What stands on the command line of `merge` or `unmerge`."""

    words: tuple[str, ...] = ()
    into: str | None = None
    env: str | None = None
    policy: Policy = Policy.WARN
    manifest: str | None = None
    flags: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, verb: str, args: list[str], *, with_value: tuple[str, ...], flags: tuple[str, ...]) -> Options:
        """Take the options; raises `UsageError`."""
        options, words, is_over = cls(), list(args), False
        while words:
            word = words.pop(0)
            name, has_value, value = word.partition("=")
            if is_over or not word.startswith("-") or word == "-":
                options = replace(options, words=(*options.words, word))
            elif word == "--":
                is_over = True
            elif word in ("--help", "-h"):
                options = replace(options, flags=options.flags | {"--help"})
            elif word in flags:
                options = replace(options, flags=options.flags | {word})
            elif name in with_value:
                value = value if has_value or not words else words.pop(0)
                if not value:  # of a variable that is not set: the working directory is not what is meant
                    raise UsageError(f"`{name}` needs a value", hint=f"See `safe-pip {verb} --help`")
                options = options._with(verb, name, value)
            else:
                raise UsageError(f"`safe-pip {verb}` has no option `{word}`", hint=f"See `safe-pip {verb} --help`")
        return options

    def _with(self, verb: str, name: str, value: str) -> Options:
        if name == "--into":
            return replace(self, into=value)
        if name == "--env":
            return replace(self, env=value)
        if name == "--manifest":
            return replace(self, manifest=value)
        try:
            return replace(self, policy=Policy(value))
        except ValueError:
            raise UsageError(
                f"`--on-conflict` is `warn`, `fail` or `keep`, not `{value}`", hint=f"See `safe-pip {verb} --help`"
            ) from None

    def only_word(self, verb: str, what: str) -> str:
        """The one argument; raises `UsageError` if there are none or several."""
        if len(self.words) != 1 or not self.words[0]:
            raise UsageError(f"`safe-pip {verb}` takes {what}", hint=f"See `safe-pip {verb} --help`")
        return self.words[0]


def main(args: list[str], *, waiting: Waiting, timeout: float | None) -> int:
    """Run the verb; on return its exit status."""
    options = Options.parse(
        "merge",
        args,
        with_value=("--into", "--env", "--on-conflict", "--manifest"),
        flags=("--json", "--move"),
    )
    if "--help" in options.flags:
        print(HELP, end="")
        return 0
    staged = Path(os.path.realpath(options.only_word("merge", "one directory")))
    if not staged.is_dir():
        raise Unmergeable(f"`{staged}` is not a directory" if staged.exists() else f"`{staged}` does not exist")
    find = finder(options)
    into = find().path
    if into.is_relative_to(staged):
        raise Unmergeable(f"`{into}` lies in `{staged}`, which is to be merged into it")
    request = Request(
        staged,
        options.policy,
        None if options.manifest is None else Path(os.path.realpath(options.manifest)),
        "--move" in options.flags,
        settings.load(os.environ).durable,
    )
    is_json = "--json" in options.flags
    try:
        merged = merge(request, find, environments(waiting, timeout))
    except Conflicts as error:
        for path, owner in error.found:
            say(f"`{path}` is there with other content, {_owned(owner)}")
        if is_json:
            print(json.dumps(_document(Merged(into), None, error.found), indent=2))
        raise
    for line in _warnings(merged):
        say(line)
    if is_json:
        tell(json.dumps(_document(merged, request.manifest), indent=2))
    else:
        tell(_summary(merged))
    return 0


def tell(text: str) -> None:
    """Print what came of a change on standard output; if that takes nothing, the change was made all the same."""
    try:
        print(text, flush=True)
    except OSError as error:
        say(f"warning: standard output could not be written: {error.strerror}")
        with contextlib.suppress(OSError):  # what is left in the buffer goes nowhere, at the end of the process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def finder(options: Options) -> Callable[[], Prefix]:
    """What finds the prefix that the options name, as it is at that moment."""
    own = [Path(os.path.realpath(sysconfig.get_path(name))) for name in ("purelib", "platlib")]
    if options.into is not None:
        path = Path(os.path.abspath(options.into))
    elif options.env is not None:
        path = _prefix_of(options.env)
    else:
        path = Path(sysconfig.get_path("data"))
    return at(path, own)


def at(path: Path, own: list[Path] | None = None) -> Callable[[], Prefix]:
    """The same for a prefix by its path."""
    if fs.is_no_directory(path):
        raise UnusableEnvironment(f"`{path}` is not a directory")
    real = Path(os.path.realpath(path))
    if own is None:
        own = [Path(os.path.realpath(sysconfig.get_path(name))) for name in ("purelib", "platlib")]
    inside = [tree for tree in own if tree.is_relative_to(real)]
    return partial(Prefix.at, real, inside, isolation.environment_path if inside else ())


def environments(waiting: Waiting, timeout: float | None) -> Environments:
    """Makes the environment of a path."""
    return partial(Environment, stdlib=isolation.standard_library(), waiting=waiting, timeout=timeout)


def _prefix_of(named: str) -> Path:
    """The prefix of the environment that `--env` names."""
    path = Path(os.path.abspath(named))
    if path.is_dir():
        return path
    if path.is_file() and (path.parent.parent / "pyvenv.cfg").is_file():
        return path.parent.parent
    for tree in located(named):
        return next((above.parent for above in tree.parents if above.name.startswith("lib")), tree)
    raise UnusableEnvironment(f"`{named}` does not exist")


def _warnings(merged: Merged) -> Iterator[str]:
    for path, owner in merged.replaced:
        yield f"warning: `{path}` was replaced, {_owned(owner)}"
    for path, owner in merged.kept:
        yield f"warning: `{path}` was kept with its other content, {_owned(owner)}"
    for path in merged.outside:
        yield f"`{path}` lies outside the prefix and was left alone"


def _owned(owner: str | None) -> str:
    return "which no distribution owned" if owner is None else f"which `{owner}` owned"


def _summary(merged: Merged) -> str:
    if not merged.is_changed:
        return f"Nothing to merge: all of it is in `{merged.into}`"
    counts = [f"{len(merged.put)} files"]
    counts += [f"{len(merged.made)} directories"] if merged.made else []
    said = f"Merged {' and '.join(counts)} into `{merged.into}`"
    more = [f"{len(merged.same)} were there"] if merged.same else []
    more += [f"{len(merged.removed)} of old versions are gone"] if merged.removed else []
    return ", ".join([said, *more])


def _document(merged: Merged, manifest: Path | None, conflicts: tuple[Owned, ...] = ()) -> dict[str, Any]:
    return {
        "format": 1,
        "into": str(merged.into),
        "changed": merged.is_changed,
        "put": list(merged.put),
        "made": list(merged.made),
        "same": list(merged.same),
        "removed": list(merged.removed),
        "replaced": _named(merged.replaced),
        "kept": _named(merged.kept),
        "conflicts": _named(conflicts),
        "manifest": None if manifest is None else str(manifest),
    }


def _named(found: tuple[Owned, ...]) -> list[dict[str, str | None]]:
    return [{"path": path, "owner": owner} for path, owner in found]
