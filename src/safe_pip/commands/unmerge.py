"""`safe-pip unmerge`: what a manifest lists is taken away again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.commands.merge import Options, at, environments, tell
from safe_pip.commands.merge.manifest import Manifest
from safe_pip.commands.merge.unmerging import Unmerged, unmerge
from safe_pip.environment.environment import Waiting
from safe_pip.launch import settings
from safe_pip.messages import say

HELP = """\
Usage:
  safe-pip unmerge MANIFEST [--json]

Description:
  Take away what `safe-pip merge --manifest MANIFEST` has put into a prefix, in one step that happens whole or not at
  all. Removed is what still has the content (or, a symbolic link, the target) that the manifest lists, with the
  bytecode made of it, and the directories that the merge made and that are empty then. Kept and named is what was
  changed since, what belongs to a distribution that came later, and what would be reached through a symbolic link. What
  was there before the merge stays. The manifest is deleted at the end. The exit status is 0; 1 if the manifest is none.

Options:
  --json                  Print one JSON document:
                            format       1; a later number means that a key got another meaning
                            prefix       the prefix
                            removed, directories
                                         lists of paths that are gone now: files and links, and directories
                            changed, elsewhere
                                         lists of paths that were kept
                            owned        a list of: path, owner (the distribution); kept as well
                            gone         a list of paths that were gone already
                            left         a list of directories with something else in them
"""


def main(args: list[str], *, waiting: Waiting, timeout: float | None) -> int:
    """Run the verb; on return its exit status."""
    # `--env` comes from `safe-pip --python`, and says nothing here: the manifest has the prefix.
    options = Options.parse("unmerge", args, with_value=("--env",), flags=("--json",))
    if "--help" in options.flags:
        print(HELP, end="")
        return 0
    path = Path(os.path.realpath(options.only_word("unmerge", "one manifest")))
    manifest = Manifest.read(path)
    durable = settings.load(os.environ).durable
    find = at(Path(manifest.prefix))
    unmerged = unmerge(manifest, find, environments(waiting, timeout), is_durable=durable)
    for line in _warnings(unmerged):
        say(line)
    try:
        fs.unlink(path)
    except OSError as error:
        say(f"warning: `{path}` could not be deleted: {error.strerror}")
    if "--json" in options.flags:
        tell(json.dumps(_document(unmerged), indent=2))
    else:
        removed = f"Removed {len(unmerged.removed)} files and {len(unmerged.directories)} directories"
        tell(f"{removed} from `{unmerged.prefix}`")
    return 0


def _warnings(unmerged: Unmerged) -> Iterator[str]:
    for path in unmerged.changed:
        yield f"warning: `{path}` was changed since, and kept"
    for path, owner in unmerged.owned:
        yield f"warning: `{path}` belongs to `{owner}` by now, and was kept"
    for path in unmerged.elsewhere:
        yield f"warning: `{path}` leads through a symbolic link by now, and was left alone"


def _document(unmerged: Unmerged) -> dict[str, Any]:
    return {
        "format": 1,
        "prefix": str(unmerged.prefix),
        "removed": list(unmerged.removed),
        "directories": list(unmerged.directories),
        "changed": list(unmerged.changed),
        "owned": [{"path": path, "owner": owner} for path, owner in unmerged.owned],
        "elsewhere": list(unmerged.elsewhere),
        "gone": list(unmerged.gone),
        "left": list(unmerged.left),
    }
