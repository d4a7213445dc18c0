"""A staged tree copied into the private tree, exactly: as `cp -Rp` does, and sharing blocks where the disk can.

Directories stay writable for their owner as long as they are staged; how they are to be in their place is told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from contextlib import ExitStack

from safe_pip import fs
from safe_pip.commands.merge.comparison import Item, Verdict, unreadable
from safe_pip.errors import Unmergeable
from safe_pip.fs import Directory, attributes
from safe_pip.fs.space import staging
from safe_pip.merge.plan import Seen

_STAGED = (Verdict.NEW, Verdict.OURS)
_OPEN = (Verdict.CONFLICT, Verdict.FOLLOWS)


def wanted(items: Iterable[Item], *, conflicts: bool) -> list[Item]:
    """Those of the items that are to be staged: with all directories that they lie in, and those that are not there."""
    items = tuple(items)
    chosen = [item for item in items if item.verdict in _STAGED or (conflicts and item.verdict in _OPEN)]
    needed: set[str] = set()
    for item in chosen:
        above = os.path.dirname(item.path)
        while above and above not in needed:
            needed.add(above)
            above = os.path.dirname(above)
    taken = {item.path for item in chosen} | needed
    return [item for item in items if item.path in taken]


class Copying:
    """One staged tree on its way into the stage."""

    def __init__(
        self, source: str, destination: str, place: str, modes: dict[str, Seen], *, is_moved: bool = False
    ) -> None:
        """`place` is where it will be: `destination` ends with it. `is_moved`: files are linked where they can be.

        `modes` gets what each directory is to become (`plan.ExactTree`).
        """
        self._modes = modes
        self._source = source
        self._destination = destination
        self._place = place.strip("/")
        self._is_moved = is_moved
        self._linked: dict[tuple[int, int], str] = {}

    def copy(self, items: Collection[Item]) -> None:
        """Copy these items, parents before what is in them; raises `Unmergeable` if one cannot be read, or changes."""
        directories = [item for item in items if item.is_directory]
        with staging(self._destination):
            for item in items:
                with ExitStack() as opened:
                    self._copy(item, opened)
            for item in reversed(directories):  # times last, when nothing is put into them any more
                with ExitStack() as opened:
                    destination, name = self._at(opened, self._destination, item.path)
                    attributes.set_time(destination, name, item.status.st_mtime_ns)

    def _copy(self, item: Item, opened: ExitStack) -> None:
        try:
            source, name = self._at(opened, self._source, item.path)
            if not item.target:
                os.close(source.open_file(name))
        except OSError as error:
            error.filename = os.path.join(self._source, item.path)
            raise unreadable(error) from error
        destination, name = self._at(opened, self._destination, item.path)
        status = item.status
        if item.is_directory:
            fs.make_directory(destination, name, 0o700)
            attributes.copy_status(source, name, destination, name)
            given = destination.stat(name).st_mode
            fs.set_mode(destination, name, stat.S_IMODE(given) | 0o700)
            path = f"{self._place}/{item.path}".strip("/")
            self._modes[path] = Seen(given, 0, status.st_mtime_ns)
            return
        inode = status.st_dev, status.st_ino
        other = self._linked.get(inode)
        if other is not None:
            first, first_name = self._at(opened, self._destination, other)
            fs.link(first, first_name, destination, name)
        elif self._is_moved:
            fs.link(source, name, destination, name)
        else:
            fs.copy(source, name, destination, name)
        if status.st_nlink > 1:
            self._linked.setdefault(inode, item.path)
        now = source.stat(name)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (status.st_ino, status.st_size, status.st_mtime_ns):
            raise Unmergeable(f"`{os.path.join(self._source, item.path)}` was changed while it was merged")

    @staticmethod
    def _at(opened: ExitStack, root: str, path: str) -> tuple[Directory, str]:
        above, name = os.path.split(path)
        directory = opened.enter_context(Directory.open(root))
        return (opened.enter_context(directory.child(above)) if above else directory), name
