"""What one command writes, as far as locks go."""

from pathlib import Path
from typing import NamedTuple


class Target(NamedTuple):
    """The directories that one command changes, and whose locks that needs.

    `trees`: purelib, and platlib if it is another directory. `directories`: those of the scheme that lie outside the
    environment and serve others too (`~/.local/bin`). `uv_lock`: the file that uv locks for this target, if it uses
    one. `litter`: the target is packed and shipped, so nothing of ours stays in it. `bare`: those of the trees that
    hold no distributions themselves; nothing of ours stays in them either.
    """

    trees: tuple[Path, ...]
    directories: tuple[Path, ...] = ()
    uv_lock: Path | None = None
    litter: bool = False
    bare: tuple[Path, ...] = ()
