"""pip's own wheel code at work in the stage: what it writes is what it would have written into the target."""

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pip._internal.models.scheme import SCHEME_KEYS
from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.environment.change import Change
from safe_pip.pip_seams import archive
from safe_pip.pip_seams.output import KeptBack
from safe_pip.pip_seams.seam import Seam, arguments
from safe_pip.pip_seams.store import Prepared
from safe_pip.store.verify import verify

_REQUIREMENT = "pip._internal.req.req_install"
_WHEEL = "pip._internal.operations.install.wheel"

SCHEME = Seam(_REQUIREMENT, "get_scheme", ("dist_name", "user", "home", "root", "isolated", "prefix"))
INSTALL = Seam(_REQUIREMENT, "InstallRequirement.install", ("root", "home", "prefix", "use_user_site", "pycompile"))
SEAMS = (SCHEME, INSTALL)
# From 26.3 on pip imports this module only when there is something to install.
PARSE = Seam(_WHEEL, "parse_wheel", ("wheel_zip", "name"))
IS_PURE = Seam(_WHEEL, "wheel_root_is_purelib", ("metadata",))
COMPILER = Seam(_WHEEL, "compileall")
COMPILE = Seam(_WHEEL, "compileall.compile_file", ("fullname", "ddir", "force", "quiet"))
SCRIPTS = Seam(_WHEEL, "message_about_scripts_not_on_PATH", ("scripts",))
WHEEL_SEAMS = (PARSE, IS_PURE, COMPILER, COMPILE, SCRIPTS)


class Staged(NamedTuple):
    """One distribution in the stage: `record` is its RECORD, whose rows are relative to `lib_dir`."""

    project: str
    record: str
    lib_dir: str


class Staging:
    """Where pip's wheel code writes while a change is being made; at other times, or elsewhere, it is as ever."""

    def __init__(self, prepared: Prepared, prepare: Callable[[], None], is_dropped: Callable[[Any], bool]) -> None:
        """`prepare` is called before the first wheel is staged; what `is_dropped` then is not staged at all."""
        self.staged: list[Staged] = []
        self._change: Change | None = None
        self._kept: KeptBack | None = None
        self._home: str | None = None
        self._mirrored: set[str] = set()
        self._scheme: Any = None
        self._nominal: dict[str, str] = {}
        self._info_dir = self._lib_dir = ""
        self._prepared = prepared
        self._prepare = prepare
        self._is_dropped = is_dropped
        self._wheel: Path | None = None
        self._compiles = self._is_copied = False
        self._compiled: list[str] = []
        """The bytecode that pip has made of the wheel that it is at work on."""

    @property
    def is_at_work(self) -> bool:
        """Whether what pip installs now goes into the stage."""
        return self._change is not None

    def attach(self) -> None:
        """Take hold of where pip installs one requirement; an isolated build's requirements stay its own."""
        for seam in SEAMS:
            seam.check()
        archive.attach_to_metadata()
        SCHEME.replace(self._stage_scheme)
        INSTALL.replace(self._install)

    def attach_to_wheels(self) -> None:
        """Take hold of what pip imports when there is something to install."""
        for seam in WHEEL_SEAMS:
            seam.check()
        PARSE.replace(self._parse)
        archive.attach_to_wheels()
        self._prepared.attach()
        self._is_pure, self._compile = IS_PURE.check(), COMPILE.check()
        COMPILER.put(types.SimpleNamespace(compile_file=self._compile_file))
        SCRIPTS.replace(self._about_scripts)

    @contextmanager
    def into(self, change: Change, kept: KeptBack, *, home: str | None = None) -> Iterator[None]:
        """Within, pip installs into the stage of `change`; with `home`, which lies in it, as it would into `home`."""
        self._change, self._kept, self._home = change, kept, home
        try:
            yield
        finally:
            self._change = None

    def top_level(self, trees: Iterable[Path]) -> dict[Path, set[str]]:
        """What is staged directly in each of the target's trees, metadata and bytecode apart."""
        assert self._change is None
        found: dict[Path, set[str]] = {tree: set() for tree in trees}
        for staged, live in self._nominal.items():
            tree = Path(os.path.realpath(live))
            if tree in found and os.path.isdir(staged):
                found[tree].update(name for name in os.listdir(staged) if is_importable(name))
        return found

    def _stage_scheme(self, original: Any, *args: Any, **kw: Any) -> Any:
        scheme, change = original(*args, **kw), self._change
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
        change = self._change
        if change is None:
            original(requirement, *args, **kw)
            return
        self._prepare()
        project = str(canonicalize_name(requirement.name))
        if self._is_dropped(requirement):
            requirement.install_succeeded = True
            if self._kept is not None:
                self._kept.mark(project)
            return
        self._wheel, self._is_copied, self._compiled = Path(requirement.local_file_path), False, []
        self._compiles = bool(arguments(original, (requirement, *args), kw)["pycompile"])
        if sys.pycache_prefix is not None and "pycompile" in kw:
            kw["pycompile"] = False  # It would be named by the stage; whoever imports a module first compiles it.
        if "rollback_on_error" in kw:
            kw["rollback_on_error"] = True  # Nothing needs a RECORD to be removed by: the whole stage goes.
        try:
            original(requirement, *args, **kw)
        except Exception as error:
            _hide(error, change.root)
            raise
        if not self._is_copied:  # what is prepared was verified then
            scheme = {key: getattr(self._scheme, key) for key in SCHEME_KEYS}
            verify(self._wheel, self._lib_dir, scheme, self._compiled)
        record = os.path.join(self._lib_dir, self._info_dir, "RECORD")
        self.staged.append(Staged(project, record, self._lib_dir))
        self._prepared.show_progress()
        if self._kept is not None:
            self._kept.mark(project)

    def _parse(self, original: Any, *args: Any, **kw: Any) -> Any:
        self._info_dir, metadata = original(*args, **kw)
        if self._change is not None:
            self._lib_dir = self._scheme.purelib if self._is_pure(metadata) else self._scheme.platlib
            wheel = arguments(original, args, kw)["wheel_zip"]
            if self._home is None:
                self._mirror_below(self._change, wheel.namelist())
            if self._wheel is not None:
                self._is_copied = self._prepared.stage(
                    self._wheel, wheel, self._info_dir, self._lib_dir, self._scheme, compiles=self._compiles
                )
        return self._info_dir, metadata

    def _mirror_below(self, change: Change, names: Iterable[str]) -> None:
        """Have the directories that are there already hand on to the files of a wheel what they would."""
        data = f"{self._info_dir.removesuffix('.dist-info')}.data/"
        found: dict[str, list[str]] = {}
        for name in names:
            base, path = self._lib_dir, name
            if name.startswith(data):
                key, _, path = name.removeprefix(data).partition("/")
                base = getattr(self._scheme, key) if key in SCHEME_KEYS else ""
            found.setdefault(base, []).append(path)
        for base, paths in found.items():
            live = base.removeprefix(change.root)
            there = set(os.listdir(live)) if base and os.path.isdir(live) else set()
            paths = [path for path in paths if path.partition("/")[0] in there and os.pardir not in path.split("/")]
            if paths:
                change.mirror_below(live, paths)

    def _compile_file(self, path: str, **kw: Any) -> Any:
        """Compile with the path relative to the tree; the import system puts the whole one in its place."""
        if self._change is None:
            return self._compile(path, **kw)
        if self._prepared.is_compiled(path):
            return True
        directory = os.path.relpath(os.path.dirname(path), self._lib_dir)
        is_done = self._compile(path, ddir="" if directory == os.curdir else directory, **kw)
        if is_done:
            self._compiled.append(importlib.util.cache_from_source(path))
        return is_done

    def _about_scripts(self, original: Any, scripts: Iterable[str], *args: Any, **kw: Any) -> Any:
        return original([self._live(path) for path in scripts], *args, **kw)

    def _live(self, path: str) -> str:
        """Where a script that is staged at `path` will be, as pip spells it."""
        directory, name = os.path.split(path)
        return os.path.join(self._nominal.get(directory, directory), name)


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
