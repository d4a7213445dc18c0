"""`safe-pip merge`: what `cp -Rp STAGED/. PREFIX` does, as one transaction."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder
from safe_pip.commands.merge.transfer import Conflicts, Merged, Owned, Policy, Request, merge
from safe_pip.commands.options import Namespace, Parser, tell, text
from safe_pip.errors import Unmergeable
from safe_pip.messages import say


def describe(parser: Parser) -> None:
    parser.description = """\
Merge the directory STAGED into a prefix, as `cp -Rp STAGED/. PREFIX` does, but in one step that happens whole or not
at all, under the locks of the prefix: any number of merges and installs may run at once. Directories that are missing
are moved in whole; existing ones are entered. Permissions, owners (for root), times, extended attributes, hard links
among the staged files, symbolic links and empty directories are kept.

A file that exists with the same content, permissions and (for root) owner is left alone, whatever its time: merging
twice is merging once. A symbolic link is left alone if its target is the same. A file in the place of a directory, or
the reverse, is refused. A staged directory over a symbolic link to a directory of the prefix goes where that link
leads; a staged link over a directory is refused, unless it leads to that directory. A distribution that is there in
another version is upgraded: its old files go. `__pycache__` and `.safe-pip` are never merged.
"""
    parser.epilog = """\
The JSON document has:
  format     1; a later number means that the meaning of a key changed
  into       the prefix
  changed    whether anything was changed
  put, made, same, removed
             lists of paths: files and links that were put there, directories that were made, files and links that
             were there already, files of upgraded distributions that are gone
  replaced, kept, conflicts
             lists of: path, owner (a distribution, or null); conflicts with `fail` alone
  manifest   where it was written, or null

The exit status is 0; 1 if there is something in the way, nothing being changed.
"""
    parser.add_argument("staged", type=text, metavar="STAGED", help="the directory to merge")
    parser.add_argument(
        "--into", type=text, metavar="PREFIX", help="the prefix; made if missing (default: this Python's)"
    )
    parser.add_argument("--env", type=text, metavar="DIR", help="the prefix, by a virtual environment or its Python")
    parser.add_argument(
        "--on-conflict",
        choices=[each.value for each in Policy],
        default=Policy.WARN.value,
        metavar="warn|fail|keep",
        help="what becomes of a file that exists with other content: it is replaced, and named with the distribution"
        " that owned it (warn, the default); all such files are named, nothing is changed, and the exit status is 1"
        " (fail); it stays, and is named (keep)",
    )
    parser.add_argument(
        "--manifest",
        type=text,
        metavar="FILE",
        help="write down what was put where, with digests, for `safe-pip unmerge FILE`. If FILE is the manifest of an"
        " earlier merge into this prefix, it still lists what that merge put",
    )
    parser.add_argument(
        "--move",
        action="store_true",
        help="delete what was staged once it is in its place; on one filesystem nothing is copied. What was kept out"
        " stays",
    )
    parser.add_json()


def main(options: Namespace, context: Context) -> int:
    staged = Path(os.path.realpath(options.staged))
    if not fs.is_directory(staged):
        raise Unmergeable(f"`{staged}` is not a directory" if fs.look(staged) else f"`{staged}` does not exist")
    find = prefix_finder(options.into, options.env)
    into = find().path
    if into.is_relative_to(staged):
        raise Unmergeable(f"`{into}` lies in `{staged}`, which is to be merged into it")
    manifest = None if options.manifest is None else Path(os.path.realpath(options.manifest))
    request = Request(staged, Policy(options.on_conflict), manifest, options.move)
    try:
        merged = merge(request, find, context.transaction)
    except Conflicts as error:
        for path, owner in error.found:
            say(f"`{path}` exists with other content, {_owned(owner)}")
        if options.json:
            tell(json.dumps(_document(Merged(into), None, error.found), indent=2))
        raise
    for path, owner in merged.replaced:
        say(f"warning: `{path}` was replaced, {_owned(owner)}")
    for path, owner in merged.kept:
        say(f"warning: `{path}` was kept with its other content, {_owned(owner)}")
    for path in merged.outside:
        say(f"`{path}` lies outside the prefix and was left alone")
    tell(json.dumps(_document(merged, manifest), indent=2) if options.json else _summary(merged))
    return 0


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
        **{name: getattr(merged, name) for name in ("put", "made", "same", "removed")},
        "replaced": named(merged.replaced),
        "kept": named(merged.kept),
        "conflicts": named(conflicts),
        "manifest": None if manifest is None else str(manifest),
    }


def named(found: tuple[Owned, ...]) -> list[dict[str, str | None]]:
    """Paths with their owners, for the JSON document."""
    return [{"path": path, "owner": owner} for path, owner in found]
