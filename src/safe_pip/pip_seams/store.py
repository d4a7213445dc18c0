"""Prepared wheels under pip's own wheel code: the files that it is about to write are copied from the store before.

pip still does the rest: its loop over the files of a wheel, RECORD, scripts and metadata. Where the store cannot be
used, or a wheel is not in it, pip unpacks and compiles by itself.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pip._internal.models.scheme import SCHEME_KEYS

from safe_pip import fs
from safe_pip.environment.environment import Target
from safe_pip.errors import Mismatch
from safe_pip.fs import Directory
from safe_pip.fs.bulk import BYTECODE, COMPILED, Damaged, LinkMode
from safe_pip.locking.holders import Holder
from safe_pip.messages import Reporter
from safe_pip.pip_seams.seam import Seam, SeamBroken
from safe_pip.store import compile
from safe_pip.store.prepare import Preparing
from safe_pip.store.verify import Differences
from safe_pip.store.wheels import Entry, Store

_WHEEL = "pip._internal.operations.install.wheel"
SAVE = Seam(_WHEEL, "ZipBackedFile.save", ("self",))
RELATIVE = Seam(_WHEEL, "_fs_to_record_path", ("path", "lib_dir"))
WITHIN = Seam(_WHEEL, "is_within_directory", ("directory", "target"))


class Copied(NamedTuple):
    """A prepared wheel in the stage."""

    places: dict[str, str]
    """The directory in the stage for each group of files."""
    files: dict[str, str]
    """Where each file of the archive lies, but for scripts, which pip unpacks itself."""
    scripts: dict[str, str]
    """The digest of each script."""
    compiled: set[str]
    """The sources whose bytecode was copied too."""


class PreparedWheels:
    """The prepared wheels of one command."""

    def __init__(self, mode: LinkMode, limit: int) -> None:
        """`mode`: how files get from the store into the environment. `limit`: the bytes that the store may take."""
        self._mode = mode
        self._limit = limit
        self._refused = ""
        self._is_attached = False
        self._preparing: Preparing | None = None
        self.turn = ExitStack()
        """Closed when what was staged is in its place, or will never be."""
        self._entries: dict[Path, Entry] = {}
        self._copied: Copied | None = None
        """The wheel that pip is at work on."""

    def attach(self) -> None:
        """Attach to pip's wheel code; where it is not as expected nothing is prepared."""
        for seam, wrapper in ((RELATIVE, _relative), (WITHIN, _is_within)):
            with suppress(SeamBroken):  # it is only slower then
                seam.replace(wrapper)
        try:
            SAVE.replace(self._save)
            self._is_attached = True
        except SeamBroken as broken:
            self._refused = broken.message

    def make_ready(self, wheels: Mapping[Path, str], options: Any, unneeded: Callable[[], Collection[Path]]) -> None:
        """Have these wheels, each with its project, prepared by this command or by others that want them too.

        Where pip's options allow no store, or there is none to be trusted, nothing is prepared.
        """
        if not options.cache_dir or not self._limit or not self._is_attached:
            return
        store = Store.below(Path(options.cache_dir))
        if store is None:
            self._refused = f"`{options.cache_dir}` cannot be written, or others could change it"
            return
        interpreter = compile.key() if options.compile else None

        def waiting(what: str, holders: tuple[Holder, ...]) -> None:
            if not options.quiet:
                Reporter().waiting_for_turn(what, holders)

        self._preparing = Preparing(store, interpreter, limit=self._limit, waiting=waiting)
        self._entries = self._preparing.prepare(wheels, unneeded)
        if self._preparing.refused is not None:
            self._refused = str(self._preparing.refused)

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
        if not self._refused or not options.verbose:
            return []
        return [f"prepared wheels are not used, or not all that could be: {self._refused}"]

    def stage(
        self, wheel: Path, archive: Any, info_dir: str, lib_dir: str, scheme: Any, *, compiles: bool
    ) -> Differences | None:
        """Copy a prepared wheel to where pip is about to write it.

        On return how it differs from its RECORD; None if it was not copied.
        """
        self._copied = None
        entry = self._entries.get(wheel)
        if entry is not None and entry.held is None and self._preparing is not None:
            entry = self._preparing.hold(entry)
        is_renewed = False
        while entry is not None and (copied := _arranged(entry, archive, info_dir, lib_dir, scheme)) is not None:
            try:
                self._copy(entry, copied, lib_dir, compiles=compiles)
                entry.close()
                self._entries[wheel] = entry._replace(held=None)
                self._copied = copied
                return Differences(*entry.listing.differences)
            except Damaged:
                del self._entries[wheel]
                again = None if is_renewed or self._preparing is None else self._preparing.renew(wheel, entry)
                entry.close()
                is_renewed, entry = True, again
                if again is not None:
                    self._entries[wheel] = again
        if entry is not None:
            entry.close()
        return None

    def is_compiled(self, path: str) -> bool:
        """Whether the bytecode of a staged source came from the store."""
        return self._copied is not None and path in self._copied.compiled

    def close(self) -> None:
        """Let all entries go."""
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

    def _save(self, original: Any, file: Any) -> None:
        name = file.src_record_path
        if self._copied is not None and self._copied.files.get(name) == file.dest_path:
            file.written = True
            return
        original(file)
        digest = None if self._copied is None else self._copied.scripts.get(name)
        if digest is not None:
            with open(file.dest_path, "rb") as written:
                if hashlib.sha256(written.read()).hexdigest() != digest:
                    raise Mismatch(f"`{name}` is not what its wheel had a moment ago")


def _arranged(entry: Entry, archive: Any, info_dir: str, lib_dir: str, scheme: Any) -> Copied | None:
    """Where each file of an entry goes.

    None if the archive that pip has open is not what was prepared, or if a file takes the place of another.
    """
    places = {"": lib_dir, **{group: _place(group, scheme) for group in entry.listing.files if group}}
    found = Copied(places, {}, {}, set())
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


def _relative(original: Any, path: str, lib_dir: str) -> str:
    """pip's answer for each file of a wheel, in less time where the path is plain."""
    start = len(lib_dir)
    if path.startswith(lib_dir) and path[start : start + 1] == os.sep == "/" and _is_plain(path):
        return path[start + 1 :]
    return str(original(path, lib_dir))


def _is_within(original: Any, directory: str, target: str, **kw: Any) -> bool:
    """pip's answer for each file of a wheel, in less time where the path is plain."""
    if os.sep == "/" and not kw and target.startswith(directory + "/") and _is_plain(target):
        return True
    return bool(original(directory, target, **kw))


def _is_plain(path: str) -> bool:
    """Whether normalizing the path would change nothing."""
    return "//" not in path and "/./" not in path and "/../" not in path and not path.endswith(("/", "/.", "/.."))
