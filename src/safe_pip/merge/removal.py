"""What goes when a distribution is uninstalled or replaced, as pip lists it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Removal(NamedTuple):
    """The files of one distribution: absolute paths, their parents resolved; of an egg, its directory.

    `tree` is where its metadata lies, `edits` the new content of files that lose only some of their lines
    (`easy-install.pth`).
    """

    project: str
    tree: Path
    files: frozenset[str]
    edits: Mapping[str, bytes] = MappingProxyType({})
