"""`safe-pip merge`: what `cp -Rp STAGED/. PREFIX` does, as one transaction."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands.environments import Context, prefix_finder
from safe_pip.commands.merge.transfer import Conflicts, Merged, Owned, Request, merge
from safe_pip.commands.options import Namespace, tell
from safe_pip.errors import Unmergeable
from safe_pip.messages import say


def main(options: Namespace, context: Context) -> int:
    staged = Path(os.path.realpath(options.staged))
    if not fs.is_directory(staged):
        raise Unmergeable(f"`{staged}` is not a directory" if fs.look(staged) else f"`{staged}` does not exist")
    find = prefix_finder(options.into, options.env)
    into = find().path
    if into.is_relative_to(staged):
        raise Unmergeable(f"`{into}` lies in `{staged}`, which is to be merged into it")
    manifest = None if options.manifest is None else Path(os.path.realpath(options.manifest))
    request = Request(staged, options.on_conflict, manifest, options.move)
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
    owned = {"replaced": merged.replaced, "kept": merged.kept, "conflicts": conflicts}
    return {
        "format": 1,
        **merged._asdict(),
        "into": str(merged.into),
        "changed": merged.is_changed,
        **{name: named(found) for name, found in owned.items()},
        "manifest": None if manifest is None else str(manifest),
    }


def named(found: tuple[Owned, ...]) -> list[dict[str, str | None]]:
    """Paths with their owners, for the JSON document."""
    return [{"path": path, "owner": owner} for path, owner in found]
