"""pip's own wheel code at work in the stage: it writes there what it would have written into the target.

What the store has is copied before, and pip does the rest: its loop over the files, RECORD, scripts and metadata. Where
the store cannot be used, or a wheel is not in it, pip unpacks and compiles by itself.
"""

import copy
import hashlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pip._internal.models.scheme import SCHEME_KEYS
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip import fs
from safe_pip.environment.change import Change
from safe_pip.environment.environment import Target
from safe_pip.errors import Mismatch
from safe_pip.fs import Directory
from safe_pip.fs.bulk import BYTECODE, COMPILED, Damaged
from safe_pip.launch.settings import Settings
from safe_pip.locking import state_directory
from safe_pip.locking.holders import Holder
from safe_pip.messages import Reporter
from safe_pip.pip_seams.output import KeptBack
from safe_pip.pip_seams.seam import Seam, SeamBroken, arguments
from safe_pip.store import compile
from safe_pip.store.prepare import Preparing
from safe_pip.store.verify import Differences, verify
from safe_pip.store.wheels import Entry, Store

_REQUIREMENT = "pip._internal.req.req_install"
_WHEEL = "pip._internal.operations.install.wheel"

SCHEME = Seam(_REQUIREMENT, "get_scheme", ("dist_name", "user", "home", "root", "isolated", "prefix"))
INSTALL = Seam(_REQUIREMENT, "InstallRequirement.install", ("root", "home", "prefix", "use_user_site", "pycompile"))
# From 26.3 on pip imports this module only when there is something to install.
PARSE = Seam(_WHEEL, "parse_wheel", ("wheel_zip", "name"))
IS_PURE = Seam(_WHEEL, "wheel_root_is_purelib", ("metadata",))
COMPILER = Seam(_WHEEL, "compileall")
COMPILE = Seam(_WHEEL, "compileall.compile_file", ("fullname", "ddir", "force", "quiet"))
SCRIPTS = Seam(_WHEEL, "message_about_scripts_not_on_PATH", ("scripts",))
SAVE = Seam(_WHEEL, "ZipBackedFile.save", ("self",))
RELATIVE = Seam(_WHEEL, "_fs_to_record_path", ("path", "lib_dir"))
DISTRIBUTION = Seam("pip._internal.metadata.importlib", "Distribution.from_wheel", ("wheel", "name"))
ARCHIVE = Seam(_WHEEL, "ZipFile")
WITHIN = Seam(_WHEEL, "is_within_directory", ("directory", "target"))


class Copied(NamedTuple):
    """A prepared wheel in the stage; `scripts` has the digest of each script, all of which pip unpacks itself."""

    places: dict[str, str]  # the directory for each group of files
    files: dict[str, str]  # where each file lies
    scripts: dict[str, str]
    compiled: set[str]  # the sources whose bytecode was copied too
    differences: Differences


class _Wheel:
    """The wheel that pip is at work on, with the `bytecode` that pip has made."""

    def __init__(self, file: Path, *, compiles: bool) -> None:
        self.file, self.compiles = file, compiles
        self.copied: Copied | None = None
        self.bytecode: list[str] = []
        self.info_dir = self.lib_dir = ""


def _arranged(entry: Entry, archive: Any, wheel: _Wheel, scheme: Any) -> Copied | None:
    """Where an entry's files go; None if pip's archive is not what was prepared, or if two files go to one place."""
    places = {group: _place(group, scheme, wheel.lib_dir) for group in ("", *entry.listing.files)}
    found = Copied(places, {}, {}, set(), Differences(*entry.listing.differences))
    record, digest = f"{wheel.info_dir}/RECORD", ""
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


def _place(group: str, scheme: Any, lib_dir: str) -> str:
    """The directory for a group: the names at the top of the wheel, or `NAME.data/KEY`."""
    key = group.partition("/")[2]
    return lib_dir if not group else str(getattr(scheme, key)) if key in SCHEME_KEYS else ""


class WheelStaging:
    """Where pip's wheel code writes while a change is being made; at other times it writes where pip wants it to."""

    def __init__(self, settings: Settings) -> None:
        self._clones, self._limit = settings.link_mode == "clone", settings.cache_limit
        self.refused = ""  # why nothing is prepared, or not all that could be
        self._preparing: Preparing | None = None
        self.turn = ExitStack()  # closed when what was staged is in its place, or will never be
        self._entries: dict[Path, Entry] = {}
        self.staged: dict[str, str] = {}  # the RECORD in the stage of each project
        self.differences: list[Differences] = []  # of each wheel from its RECORD
        self.change: Change | None = None  # which pip installs into now
        self._kept = KeptBack()
        self._home: str | None = None
        self._scheme: Any = None
        self._nominal: dict[str, str] = {}  # for each directory in the stage that of the target, as pip spells it
        self._wheel = _Wheel(Path(), compiles=False)
        self._read: dict[object, Any] = {}
        self._archives: dict[object, Any] = {}

    def attach(self) -> None:
        """Attach to where pip installs one requirement; an isolated build's requirements stay pip's own."""
        SCHEME.replace(self._stage_scheme)
        with suppress(SeamBroken):  # it is only slower then
            DISTRIBUTION.replace(self._from_wheel)
        INSTALL.replace(self._install)

    def attach_to_wheels(self) -> None:
        """Attach to what pip imports when there is something to install."""
        PARSE.replace(self._parse)
        self._is_pure, self._compile = IS_PURE.check(), COMPILE.check()
        COMPILER.put(types.SimpleNamespace(compile_file=self._compile_file))
        SCRIPTS.replace(self._about_scripts)
        with suppress(SeamBroken):  # it is only slower then
            ARCHIVE.put(partial(self._reopened, ARCHIVE.check()))
        for seam, wrapper in ((RELATIVE, _relative), (WITHIN, _is_within)):
            with suppress(SeamBroken):  # it is only slower then
                seam.replace(wrapper)
        try:
            SAVE.replace(self._save)
        except SeamBroken as broken:
            self.refused = broken.message

    def make_ready(self, wheels: Iterable[Path], options: Any, unneeded: Callable[[], Collection[Path]]) -> None:
        """Have these wheels prepared by this command or by others; none without a store that is allowed and trusted."""
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

    def take_turn(self, target: Target, is_over: Callable[[], bool], *, may_wait: bool) -> None:
        """Wait while another command stages the same wheels for the same target; until `turn` is closed others wait.

        `is_over`: whether the other command has put all of it in place; `may_wait`: whether no lock is held, so that
        it may be on another host, where nothing tells that it waits for this one.
        """
        if self._preparing is not None and self._entries:
            names = sorted(entry.path.name for entry in self._entries.values())
            tree = target.trees[0]
            shared = tree if may_wait and state_directory.is_shared(tree) else None
            self._preparing.take_turn("\n".join((*map(str, target.trees), *names)), is_over, self.turn, shared)

    def _from_store(self, wheel: _Wheel, archive: Any, scheme: Any) -> Copied | None:
        """Copy a prepared wheel to where pip is about to write it; on return what was copied, None if it was not."""
        entry, preparing = self._entries.pop(wheel.file, None), self._preparing
        if preparing is not None and entry is not None and entry.held is None:
            entry = preparing.renew(wheel.file, entry)
        for is_last in (False, True):
            if preparing is None or entry is None:
                break
            with closing(entry) as damaged:
                copied = _arranged(entry, archive, wheel, scheme)
                try:
                    if copied is not None:
                        self._copy(entry, copied, wheel)
                    return copied
                except Damaged:
                    entry = None if is_last else preparing.renew(wheel.file, damaged)
        return None

    def close(self) -> None:
        while self._entries:
            self._entries.popitem()[1].close()
        if self._preparing is not None:
            self._preparing.finish()

    def _copy(self, entry: Entry, copied: Copied, wheel: _Wheel) -> None:
        for group, files in entry.listing.files.items():
            if not group.endswith("/scripts"):
                place = copied.places[group]
                fs.make_directories(Path(place))
                # The names in bytecode are relative to this one directory.
                bytecode = wheel.compiles and place == wheel.lib_dir
                with Directory.open(place) as destination:
                    entry.copy(group, destination, bytecode=bytecode, clones=self._clones)
                if bytecode:
                    copied.compiled.update(f"{place}/{path}" for path, _, _, kind in files if kind & COMPILED)

    @contextmanager
    def into(self, change: Change, kept: KeptBack, *, home: str | None = None) -> Iterator[None]:
        """Within, pip installs into the stage of `change`; with `home`, which lies in it, as it would into `home`."""
        self.change, self._kept, self._home = change, kept, home
        try:
            yield
        finally:
            self.change = None

    def top_level(self, tree: Path) -> set[str]:
        """What is staged directly in one of the target's trees, but for metadata and bytecode."""
        places = (staged for staged, live in self._nominal.items() if os.path.realpath(live) == str(tree))
        return {name for place in places if os.path.isdir(place) for name in os.listdir(place) if is_importable(name)}

    def _from_wheel(self, original: Any, cls: Any, wheel: Any, name: str) -> Any:
        """The metadata of a wheel. pip asks three times, and reads the whole table of contents each time."""

        def archive() -> Any:
            self._archives[identity] = opened = wheel.as_zipfile()
            return opened

        key = (cls, name, identity := _identity(wheel.location))
        if identity is None:  # it has an address only
            return original(cls, wheel, name)
        if key not in self._read:
            opening = types.SimpleNamespace(location=wheel.location, as_zipfile=archive)
            self._read[key] = original(cls, opening, name)
        return self._read[key]

    def _reopened(self, original: Any, path: str, *args: Any, **kw: Any) -> Any:
        """The archive of a wheel, opened; the table of contents is that which was read for the metadata."""
        known = self._archives.get(_identity(path))
        if known is None or known.fp is not None or not hasattr(known, "_fileRefCnt"):
            return original(path, *args, **kw)
        again = copy.copy(known)
        again.fp, again._fileRefCnt = io.BufferedReader(io.FileIO(path)), 1
        return again

    def _stage_scheme(self, original: Any, *args: Any, **kw: Any) -> Any:
        scheme, change = original(*args, **kw), self.change
        if change is None:
            return scheme
        if self._home is None:
            live = {key: os.path.abspath(getattr(scheme, key)) for key in SCHEME_KEYS}
            staged = {key: change.staged(directory) for key, directory in live.items()}
            for key in SCHEME_KEYS:
                if staged[key] not in self._nominal:
                    # A header directory belongs to one distribution, and may go with it.
                    change.allow(os.path.dirname(live[key]) if key == "headers" else live[key])
                    change.stage.mirror(live[key])
                self._nominal[staged[key]] = getattr(scheme, key)
            scheme = type(scheme)(**staged)
        self._scheme = scheme
        return scheme

    def _install(self, original: Any, requirement: Any, *args: Any, **kw: Any) -> None:
        change = self.change
        if change is None:
            original(requirement, *args, **kw)
            return
        compiles = bool(arguments(original, (requirement, *args), kw)["pycompile"])
        wheel = self._wheel = _Wheel(Path(requirement.local_file_path), compiles=compiles)
        if sys.pycache_prefix is not None and "pycompile" in kw:
            kw["pycompile"] = False  # It would be named by the stage; the first import of a module compiles it.
        if "rollback_on_error" in kw:
            kw["rollback_on_error"] = True  # Nothing needs a RECORD to be removed by: the whole stage goes.
        try:
            original(requirement, *args, **kw)
        except Exception as error:
            _hide(error, change.stage.root)
            raise
        if wheel.copied is not None:
            self.differences.append(wheel.copied.differences)
        else:
            scheme = {key: getattr(self._scheme, key) for key in SCHEME_KEYS}
            self.differences.append(verify(wheel.file, wheel.lib_dir, scheme, wheel.bytecode))
        project = str(canonicalize_name(requirement.name))
        self.staged[project] = os.path.join(wheel.lib_dir, wheel.info_dir, "RECORD")
        if self._preparing is not None:  # commands that wait for their turn see that something was staged
            self._preparing.show_progress()
        self._kept.mark(project)

    def _parse(self, original: Any, *args: Any, **kw: Any) -> Any:
        info_dir, metadata = original(*args, **kw)
        if self.change is not None:
            wheel, scheme = self._wheel, self._scheme
            wheel.info_dir = info_dir
            wheel.lib_dir = scheme.purelib if self._is_pure(metadata) else scheme.platlib
            opened = arguments(original, args, kw)["wheel_zip"]
            if self._home is None:
                self._mirror_below(self.change, opened.namelist())
            wheel.copied = self._from_store(wheel, opened, scheme)
        return info_dir, metadata

    def _mirror_below(self, change: Change, names: Iterable[str]) -> None:
        """Mirror directories of the target that the files of a wheel will lie in: these pass their modes on."""
        data = f"{self._wheel.info_dir.removesuffix('.dist-info')}.data/"
        found: dict[str, list[str]] = {}
        for name in names:
            group, path = "", name
            if name.startswith(data):
                key, _, path = name.removeprefix(data).partition("/")
                group = data + key
            found.setdefault(_place(group, self._scheme, self._wheel.lib_dir), []).append(path)
        for base, paths in found.items():
            live = base.removeprefix(change.stage.root)
            there = set(os.listdir(live)) if base and os.path.isdir(live) else set()
            paths = [path for path in paths if path.partition("/")[0] in there and os.pardir not in path.split("/")]
            if paths:
                change.stage.mirror_below(live, set(map(os.path.dirname, paths)))

    def _compile_file(self, path: str, **kw: Any) -> Any:
        """Compile with the path relative to the tree; the import system puts the whole path in its place."""
        if self.change is None:
            return self._compile(path, **kw)
        if self._wheel.copied is not None and path in self._wheel.copied.compiled:
            return True
        directory = os.path.relpath(os.path.dirname(path), self._wheel.lib_dir)
        is_done = self._compile(path, ddir="" if directory == os.curdir else directory, **kw)
        if is_done:
            self._wheel.bytecode.append(importlib.util.cache_from_source(path))
        return is_done

    def _save(self, original: Any, file: Any) -> None:
        name, copied = file.src_record_path, self._wheel.copied
        if copied is not None and copied.files.get(name) == file.dest_path:
            file.written = True
            return
        original(file)
        if copied is not None and name in copied.scripts:
            with open(file.dest_path, "rb") as written:
                if hashlib.sha256(written.read()).hexdigest() != copied.scripts[name]:
                    raise Mismatch(f"`{name}` is not what its wheel had a moment ago")

    def _about_scripts(self, original: Any, scripts: Iterable[str], *args: Any, **kw: Any) -> Any:
        """Have pip's warning name where the scripts will be, as pip spells it."""
        places = ((*os.path.split(path),) for path in scripts)
        return original([os.path.join(self._nominal.get(place, place), name) for place, name in places], *args, **kw)


def _identity(path: str) -> object:
    """What tells a file from another one at its path; None if it is not there."""
    with suppress(OSError):
        status = os.stat(path)
        return path, status.st_ino, status.st_size, status.st_mtime_ns
    return None


def is_importable(name: str) -> bool:
    """Whether an entry of a tree is, or may be, a module; not metadata, not bytecode."""
    return name != "__pycache__" and not name.endswith(".dist-info")


def _hide(error: BaseException, root: str) -> None:
    """Have an error that pip will show name the path in the target."""
    for attribute in ("filename", "filename2"):
        if isinstance(path := getattr(error, attribute, None), str):
            setattr(error, attribute, path.replace(root, ""))
    if not isinstance(error, OSError):
        error.args = tuple(each.replace(root, "") if isinstance(each, str) else each for each in error.args)


def _relative(original: Any, path: str, lib_dir: str) -> str:
    """pip's answer, in less time where the path is plain."""
    return _below(lib_dir, path) or str(original(path, lib_dir))


def _is_within(original: Any, directory: str, target: str, **kw: Any) -> bool:
    return bool((not kw and _below(directory, target)) or original(directory, target, **kw))


def _below(directory: str, path: str) -> str:
    """The path relative to a directory that it starts with; "" if it may have to be normalized first."""
    rest = path.removeprefix(f"{directory}/") if os.sep == "/" else path
    return "" if rest == path or "//" in f"/{rest}/" or "/." in f"/{rest}" else rest
