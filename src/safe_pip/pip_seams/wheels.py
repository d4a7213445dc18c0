"""pip's own wheel code at work in the stage: it writes there what it would have written into the target.

What the store has is copied before. pip still does the rest: its loop over the files, RECORD, scripts and metadata.
"""

import hashlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pip._internal.models.scheme import SCHEME_KEYS
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.environment.change import Change
from safe_pip.errors import Mismatch
from safe_pip.pip_seams.output import KeptBack
from safe_pip.pip_seams.seam import Seam, SeamBroken, arguments
from safe_pip.pip_seams.store import Copied, PreparedWheels
from safe_pip.store.verify import Differences, verify

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
WITHIN = Seam(_WHEEL, "is_within_directory", ("directory", "target"))


class Staged(NamedTuple):
    """One distribution in the stage: `record` is its RECORD, whose rows are relative to `lib_dir`."""

    project: str
    record: str
    lib_dir: str


class _Wheel:
    """The wheel that pip is at work on."""

    def __init__(self, file: Path, *, compiles: bool) -> None:
        self.file = file
        self.compiles = compiles
        self.copied: Copied | None = None
        """What came from the store, where it was verified."""
        self.bytecode: list[str] = []
        """The bytecode that pip has made."""
        self.info_dir = self.lib_dir = ""


class WheelStaging:
    """Where pip's wheel code writes while a change is being made. At other times it writes where pip wants it to."""

    def __init__(self, prepared: PreparedWheels) -> None:
        self.staged: list[Staged] = []
        self.differences: list[Differences] = []
        """How each wheel differs from its RECORD."""
        self.change: Change | None = None
        """The change that pip installs into now."""
        self._prepared = prepared
        self._kept = KeptBack()
        self._home: str | None = None
        self._mirrored: set[str] = set()
        self._scheme: Any = None
        self._nominal: dict[str, str] = {}
        """The directory of the target, as pip spells it, for each directory in the stage."""
        self._wheel = _Wheel(Path(), compiles=False)

    def attach(self) -> None:
        """Attach to where pip installs one requirement; an isolated build's requirements stay pip's own."""
        SCHEME.replace(self._stage_scheme)
        INSTALL.replace(self._install)

    def attach_to_wheels(self) -> None:
        """Attach to what pip imports when there is something to install."""
        PARSE.replace(self._parse)
        self._is_pure, self._compile = IS_PURE.check(), COMPILE.check()
        COMPILER.put(types.SimpleNamespace(compile_file=self._compile_file))
        SCRIPTS.replace(self._about_scripts)
        for seam, wrapper in ((RELATIVE, _relative), (WITHIN, _is_within)):
            with suppress(SeamBroken):  # it is only slower then
                seam.replace(wrapper)
        try:
            SAVE.replace(self._save)
        except SeamBroken as broken:
            self._prepared.refused = broken.message

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

    def _stage_scheme(self, original: Any, *args: Any, **kw: Any) -> Any:
        scheme, change = original(*args, **kw), self.change
        if change is None:
            return scheme
        if self._home is None:
            live = {key: os.path.abspath(getattr(scheme, key)) for key in SCHEME_KEYS}
            for directory in dict.fromkeys(live.values()):
                if directory not in self._mirrored:
                    self._mirrored.add(directory)
                    change.mirror(directory)
            staged = {key: change.staged(directory) for key, directory in live.items()}
            self._nominal.update((staged[key], getattr(scheme, key)) for key in SCHEME_KEYS)
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
            _hide(error, change.root)
            raise
        if wheel.copied is not None:
            self.differences.append(wheel.copied.differences)
        else:
            scheme = {key: getattr(self._scheme, key) for key in SCHEME_KEYS}
            self.differences.append(verify(wheel.file, wheel.lib_dir, scheme, wheel.bytecode))
        project = str(canonicalize_name(requirement.name))
        self.staged.append(Staged(project, os.path.join(wheel.lib_dir, wheel.info_dir, "RECORD"), wheel.lib_dir))
        self._prepared.show_progress()
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
            wheel.copied = self._prepared.stage(
                wheel.file, opened, info_dir, wheel.lib_dir, scheme, compiles=wheel.compiles
            )
        return info_dir, metadata

    def _mirror_below(self, change: Change, names: Iterable[str]) -> None:
        """Mirror directories of the target that the files of a wheel will lie in, so that they pass their modes on."""
        data = f"{self._wheel.info_dir.removesuffix('.dist-info')}.data/"
        found: dict[str, list[str]] = {}
        for name in names:
            base, path = self._wheel.lib_dir, name
            if name.startswith(data):
                key, _, path = name.removeprefix(data).partition("/")
                base = getattr(self._scheme, key) if key in SCHEME_KEYS else ""
            found.setdefault(base, []).append(path)
        for base, paths in found.items():
            live = base.removeprefix(change.root)
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


def is_importable(name: str) -> bool:
    """Whether an entry of a tree is, or may be, a module; not metadata, not bytecode."""
    return name != "__pycache__" and not name.endswith(".dist-info")


def _hide(error: BaseException, root: str) -> None:
    """Have an error that pip will show name the path in the target."""
    for attribute in ("filename", "filename2"):
        if isinstance(getattr(error, attribute, None), str):
            setattr(error, attribute, getattr(error, attribute).replace(root, ""))
    if not isinstance(error, OSError):
        error.args = tuple(each.replace(root, "") if isinstance(each, str) else each for each in error.args)


def _relative(original: Any, path: str, lib_dir: str) -> str:
    """pip's answer for each file of a wheel, in less time where the path is plain."""
    if path.startswith(lib_dir + "/") and _is_plain(path):
        return path[len(lib_dir) + 1 :]
    return str(original(path, lib_dir))


def _is_within(original: Any, directory: str, target: str, **kw: Any) -> bool:
    """pip's answer for each file of a wheel, in less time where the path is plain."""
    is_plain = not kw and target.startswith(directory + "/") and _is_plain(target)
    return is_plain or bool(original(directory, target, **kw))


def _is_plain(path: str) -> bool:
    """Whether it is sure that normalizing the path would change nothing."""
    return os.sep == "/" and "//" not in path and "/." not in path and not path.endswith("/")
