"""Prepared wheels: the files that pip's own wheel code is about to write are copied from the store before.

Where the store cannot be used, or a wheel is not in it, pip unpacks and compiles by itself.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from pip._internal.models.scheme import SCHEME_KEYS

from safe_pip import fs
from safe_pip.environment.environment import Target
from safe_pip.fs import Directory
from safe_pip.fs.bulk import BYTECODE, COMPILED, Damaged, LinkMode
from safe_pip.launch.settings import Settings
from safe_pip.locking.holders import Holder
from safe_pip.messages import Reporter
from safe_pip.store import compile
from safe_pip.store.prepare import Preparing
from safe_pip.store.verify import Differences
from safe_pip.store.wheels import Entry, Store


class Copied(NamedTuple):
    """A prepared wheel in the stage.

    `places`: the directory for each group of files. `files`: where each file lies, but for scripts, which pip unpacks.
    `scripts`: the digest of each script. `compiled`: the sources whose bytecode was copied too. `differences`: how the
    wheel differs from its RECORD.
    """

    places: dict[str, str]
    files: dict[str, str]
    scripts: dict[str, str]
    compiled: set[str]
    differences: Differences


class PreparedWheels:
    """The prepared wheels of one command."""

    def __init__(self, settings: Settings) -> None:
        self._mode = LinkMode(settings.link_mode)
        self._limit = settings.cache_limit
        self.refused = ""
        """Why nothing is prepared, or not all that could be."""
        self._preparing: Preparing | None = None
        self.turn = ExitStack()
        """Closed when what was staged is in its place, or will never be."""
        self._entries: dict[Path, Entry] = {}

    def make_ready(self, wheels: Iterable[Path], options: Any, unneeded: Callable[[], Collection[Path]]) -> None:
        """Have these wheels prepared by this command or by others that want them too.

        Where pip's options allow no store, or there is none to be trusted, nothing is prepared.
        """
        if not options.cache_dir or not self._limit or self.refused:
            return
        store = Store.below(Path(options.cache_dir))
        if store is None:
            self.refused = f"`{options.cache_dir}` cannot be written, or others could change it"
            return
        interpreter = compile.key() if options.compile else None

        def waiting(what: str, holders: tuple[Holder, ...]) -> None:
            if not options.quiet:
                Reporter().waiting_for_turn(what, holders)

        self._preparing = Preparing(store, interpreter, limit=self._limit, waiting=waiting)
        self._entries = self._preparing.prepare(wheels, unneeded)
        if self._preparing.refused is not None:
            self.refused = str(self._preparing.refused)

    def take_turn(self, target: Target, is_over: Callable[[], bool]) -> None:
        """Wait while another command stages the same wheels for the same target; until `turn` is closed others wait.

        `is_over`: whether nothing is left to be staged, because the other command has put it in place.
        """
        if self._preparing is not None and self._entries:
            names = sorted(entry.path.name for entry in self._entries.values())
            self._preparing.take_turn("\n".join((*map(str, target.trees), *names)), is_over, self.turn)

    def show_progress(self) -> None:
        """Tell commands that wait for their turn that something was staged."""
        if self._preparing is not None:
            self._preparing.show_progress()

    def notices(self, options: Any) -> list[str]:
        """What `-v` says."""
        if not self.refused or not options.verbose:
            return []
        return [f"prepared wheels are not used, or not all that could be: {self.refused}"]

    def stage(
        self, wheel: Path, archive: Any, info_dir: str, lib_dir: str, scheme: Any, *, compiles: bool
    ) -> Copied | None:
        """Copy a prepared wheel to where pip is about to write it; on return what was copied, None if it was not."""
        entry = self._entries.pop(wheel, None)
        if entry is not None and entry.held is None and self._preparing is not None:
            entry = self._preparing.hold(entry)
        is_renewed = False
        while entry is not None:
            with closing(entry):
                copied = _arranged(entry, archive, info_dir, lib_dir, scheme)
                if copied is None:
                    break
                try:
                    self._copy(entry, copied, lib_dir, compiles=compiles)
                    return copied
                except Damaged:
                    again = None if is_renewed or self._preparing is None else self._preparing.renew(wheel, entry)
            is_renewed, entry = True, again
        return None

    def close(self) -> None:
        for entry in self._entries.values():
            entry.close()
        self._entries = {}
        if self._preparing is not None:
            self._preparing.finish()

    def _copy(self, entry: Entry, copied: Copied, lib_dir: str, *, compiles: bool) -> None:
        for group, files in entry.listing.files.items():
            place = copied.places[group]
            if not group.endswith("/scripts"):
                fs.make_directories(Path(place))
                # The names in bytecode are relative to this one directory.
                bytecode = compiles and place == lib_dir
                with Directory.open(place) as destination:
                    entry.copy(group, destination, bytecode=bytecode, by=self._mode)
                if bytecode:
                    copied.compiled.update(f"{place}/{path}" for path, _, _, kind in files if kind & COMPILED)


def _arranged(entry: Entry, archive: Any, info_dir: str, lib_dir: str, scheme: Any) -> Copied | None:
    """Where each file of an entry goes.

    None if the archive that pip has open is not what was prepared, or if a file takes the place of another.
    """
    places = {"": lib_dir, **{group: _place(group, scheme) for group in entry.listing.files if group}}
    found = Copied(places, {}, {}, set(), Differences(*entry.listing.differences))
    record, digest = f"{info_dir}/RECORD", ""
    compiled: list[str] = []
    for group, files in entry.listing.files.items():
        start, place = (f"{group}/" if group else ""), os.path.join(places[group], "")
        if group.endswith("/scripts"):  # pip rewrites some of them, and leaves out others
            found.scripts.update((start + path, known) for path, _, known, _ in files)
            continue
        for path, _, known, kind in files:
            if kind & BYTECODE:
                compiled.append(place + path)
            else:
                found.files[start + path] = place + path
                if path == record:
                    digest = known
    if {name for name in archive.namelist() if name[-1] != "/"} != found.files.keys() | found.scripts.keys():
        return None
    # Bytecode that is in the wheel, where pip compiles over it, takes the place of a file too.
    if len({*found.files.values(), *compiled}) != len(found.files) + len(compiled):
        return None
    return found if digest == hashlib.sha256(archive.read(record)).hexdigest() else None


def _place(group: str, scheme: Any) -> str:
    key = group.partition("/")[2]
    return str(getattr(scheme, key)) if key in SCHEME_KEYS else ""
