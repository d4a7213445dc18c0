"""Builds: the environment stays as it is while a build reads it, and one build at a time works in a source tree.

What was built is kept for the next attempt of the command. In pip's wheel cache no reader meets a half-written or a
just purged entry. `pip cache` knows the prepared wheels too.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import marshal
import os
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pip._internal.build_env import NoOpBuildEnvironment
from pip._internal.models.link import Link
from pip._internal.utils._log import getLogger
from pip._internal.utils.misc import format_size
from pip._internal.utils.temp_dir import TempDirectory
from pip._internal.utils.urls import path_to_url

from safe_pip import fs
from safe_pip.environment.required import required
from safe_pip.environment.snapshot import Ownership, Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import space, trust
from safe_pip.launch import frozen_pip
from safe_pip.launch.frozen_pip import FrozenPip
from safe_pip.launch.restart import Attempt
from safe_pip.pip_seams.seam import Seam
from safe_pip.store.wheels import FORMAT, Entry, Store

ENTER = Seam("pip._internal.build_env", "NoOpBuildEnvironment.__enter__", ("self",))
EXIT = Seam("pip._internal.build_env", "NoOpBuildEnvironment.__exit__", ("self", "exc_type", "exc_val", "exc_tb"))
HOOK = Seam("pip._vendor.pyproject_hooks", "BuildBackendHookCaller._call_hook", ("self", "hook_name"))
_REQUIREMENT = "pip._internal.req.req_install"
LOCATION = Seam(_REQUIREMENT, "InstallRequirement.ensure_build_location", ("build_dir", "autodelete"))
METADATA = Seam(_REQUIREMENT, "InstallRequirement.prepare_metadata", ("self",))
GENERATED = [
    Seam(_REQUIREMENT, name, ("build_env", "backend", "details"))
    for name in ("generate_metadata", "generate_editable_metadata")
]
CHECKOUT = Seam(_REQUIREMENT, "InstallRequirement.update_editable", ("self",))
FOUND = Seam("pip._internal.cache", "WheelCache.get_cache_entry", ("link", "package_name", "supported_tags"))
ORIGIN = Seam("pip._internal.cache", "WheelCache.record_download_origin", ("cache_dir", "download_info"))
PLACE = Seam("pip._internal.wheel_builder", "_get_cache_dir", ("req", "wheel_cache"))
BUILT = Seam("pip._internal.wheel_builder", "_build_one", ("req", "output_dir", "verify", "editable"))
_COMMAND = "pip._internal.commands.cache"
INFO = Seam(_COMMAND, "CacheCommand.get_cache_info", ("options", "args"))
LIST = Seam(_COMMAND, "CacheCommand.list_cache_items", ("options", "args"))
PURGE = Seam(_COMMAND, "CacheCommand.purge_cache", ("options", "args"))
REMOVE = Seam(_COMMAND, "CacheCommand.remove_cache_items", ("options", "args"))

logger = getLogger(_COMMAND)


class KeptBuilds:
    """The wheels and metadata directories that attempts of the command have built: `Attempt.built`.

    What was built without isolation is used again only while all that the build used is as it was.
    """

    def __init__(self, attempt: Attempt, transaction: Transaction) -> None:
        self._built, self._used, self._is_first = attempt.built, attempt.used, attempt.number == 1
        self._transaction = transaction
        self.requirements: Sequence[str] = ()
        """What the project that is built next declares to need for that."""
        self._noted: dict[str, str] = {}

    @contextmanager
    def building(self, requirement: Any) -> Iterator[None]:
        """Within, this is built. What it declares is known only if there is a file that declares anything."""
        if fs.is_file(Path(requirement.pyproject_toml_path)):
            self.requirements = requirement.pyproject_requires or ()
        try:
            yield
        finally:
            self.requirements = ()

    def to_keep(self) -> set[str] | None:
        """What has to stay as it is for a build without isolation; None: everything.

        The second time everything: something that was not declared was used, and changed meanwhile.
        """
        if not self._is_first or not self.requirements:
            return None
        return required(self.requirements, Snapshot.take(self._transaction.path)) or None

    def note(self, files: Sequence[str] | None, now: Snapshot) -> None:
        """Note what a build without isolation used: what it declares, and what owns the files that it has imported.

        If those are not known, everything.
        """
        projects = set(now.projects)
        if files is not None:
            owner = Ownership(map(str, self._transaction.environment.trees())).owner
            owners = {found for each in files if (found := owner(os.path.realpath(each)))}
            projects &= required(self.requirements, now) | owners
        self._transaction.used(projects, now)
        self._noted.update({each: repr(now.identity(each)) for each in projects})

    def keep(self, key: str, path: str) -> None:
        """Keep a wheel, or a directory of metadata, that was built of `key`. What cannot be kept is built again."""
        used, self._noted = self._noted, {}
        # Each takes a descriptor. On Windows an open file cannot be deleted.
        if not key or sys.platform == "win32" or len(self._built) >= space.descriptor_limit() // 4:
            return
        with suppress(OSError, ValueError):
            if os.path.isfile(path):
                fd = os.open(path, os.O_RDONLY)
            else:
                files = filter(Path.is_file, Path(path).rglob("*"))
                fd = fs.unnamed_file(marshal.dumps({str(each.relative_to(path)): each.read_bytes() for each in files}))
            self._built[key], self._used[key] = (os.path.basename(path), fd), used

    def restore(self, key: str, directory: str) -> str | None:
        """Put what was built of `key` into a directory; on return its path there, None if nothing was."""
        name, fd = self._built.get(key, ("", -1))
        if not name:
            return None
        if used := self._used[key]:
            now = self._transaction.read(lambda: Snapshot.take(self._transaction.path))
            if any(repr(now.identity(project)) != seen for project, seen in used.items()):
                os.close(self._built.pop(key)[1])
                return None
            self._transaction.used(used, now)
        path = Path(directory, name)
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            content = file.read()
        for below, each in ({"": content} if name.endswith(".whl") else marshal.loads(content)).items():
            fs.make_directories((path / below).parent)
            fs.write(path / below, each, mode=0o666)
        return str(path)


def built_of(req: Any, version: str) -> str:
    """What is built of a requirement, as far as one command can tell: the same again gives the same."""
    source = req.download_info and req.download_info.to_json()
    is_isolated = not isinstance(req.build_env, NoOpBuildEnvironment)
    return repr((req.name, version, str(req.link), source, req.editable, req.config_settings, is_isolated))


@contextmanager
def _imports(caller: Any) -> Iterator[list[str]]:
    """Within, a call of a build backend lists the files of the modules that it imports; none if that is not known."""
    runner, found = caller._subprocess_runner, list[str]()

    def run(command: Sequence[str], *args: Any, **kw: Any) -> None:
        python, script, hook, control = command
        runner([python, os.path.join(os.path.dirname(__file__), "_imports.py"), script, hook, control], *args, **kw)
        with suppress(OSError, ValueError):
            found.extend(json.loads(Path(control, "imported.json").read_bytes()))

    with caller.subprocess_runner(run):
        yield found


def attach(transaction: Transaction, kept: KeptBuilds) -> None:
    """Hold the locks that each call of a build backend needs: that of the environment, then that of the source tree."""
    entered: list[tuple[ExitStack, Callable[[], Snapshot]]] = []

    def enter(original: Any, build_environment: Any) -> Any:
        # pip opens the same object again for every call; a build without isolation is never inside another.
        with ExitStack() as locks:
            check = locks.enter_context(transaction.building(kept.to_keep()))
            result = original(build_environment)
            entered.append((locks.pop_all(), check))
        return result

    def leave(original: Any, build_environment: Any, *exc: Any, **kw: Any) -> Any:
        locks, _ = entered.pop()
        with locks:
            return original(build_environment, *exc, **kw)

    def call_hook(original: Any, caller: Any, *args: Any, **kw: Any) -> Any:
        with transaction.mutex(Path(caller.source_dir)):
            now = [check() for _, check in entered]
            with transaction.writing(caller.source_dir):
                if not now:
                    return original(caller, *args, **kw)
                try:
                    with _imports(caller) as files:
                        result = original(caller, *args, **kw)
                except Exception:
                    transaction.compare(now[-1])  # the reason may be a change of what was not kept
                    raise
                kept.note(files or None, now[-1])
                entered[-1][1]()
                return result

    def locate(original: Any, requirement: Any, build_dir: Any, *args: Any, **kw: Any) -> Any:
        if getattr(requirement, "req", None) is not None:
            # pip asks whether the directory exists and then makes it: of several pips at once all but one fail.
            fs.make_directories(Path(os.path.abspath(build_dir)))
        return original(requirement, build_dir, *args, **kw)

    def update(original: Any, requirement: Any) -> Any:
        checkout = getattr(requirement, "source_dir", None)
        if checkout is None:
            return original(requirement)
        source = Path(os.path.dirname(os.path.abspath(checkout)))
        while True:
            # Both in one step: a command that holds one mutex may not wait for another.
            existing = [Path(checkout)] if os.path.isdir(checkout) else []
            with transaction.mutex(source, *existing):
                if existing or not os.path.isdir(checkout):
                    with transaction.writing(checkout):
                        return original(requirement)

    key = ""

    def prepare(original: Any, requirement: Any, *args: Any, **kw: Any) -> Any:
        nonlocal key
        # A checkout may be of another commit the next time.
        key = "" if requirement.link is None or requirement.link.is_vcs else built_of(requirement, "metadata")
        with kept.building(requirement):
            return original(requirement, *args, **kw)

    def generate(original: Any, *args: Any, **kw: Any) -> Any:
        found = kept.restore(key, TempDirectory(kind="modern-metadata", globally_managed=True).path) if key else None
        if found is None:
            found = original(*args, **kw)
            kept.keep(key, found)
        return found

    ENTER.replace(enter)
    EXIT.replace(leave)
    HOOK.replace(call_hook)
    LOCATION.replace(locate)
    CHECKOUT.replace(update)
    METADATA.replace(prepare)
    for seam in GENERATED:
        seam.replace(generate)


def attach_to_wheels(transaction: Transaction, kept: KeptBuilds) -> Collection[Path]:
    """A wheel that is found in the wheel cache is copied for this command; one that is built is put there whole.

    `pip cache purge` removes whatever it finds, also a wheel that another command is just building there. Returned is
    a collection that gets the wheels which this command builds and pip does not keep; the next attempt has them `kept`.
    """
    caches: dict[str, str] = {}
    passing: set[Path] = set()

    def get_cache_entry(original: Any, cache: Any, *args: Any, **kw: Any) -> Any:
        with _mutex(transaction, cache.cache_dir) as usable:
            entry = original(cache, *args, **kw) if usable else None
            if entry is not None and entry.persistent:
                cached = Path(entry.link.file_path)
                private = Path(TempDirectory(kind="cached-wheel", globally_managed=True).path, cached.name)
                try:
                    fs.link_or_copy(cached, private)
                except FileNotFoundError:
                    return None
                entry.link = Link(path_to_url(str(private)))
            return entry

    def get_cache_dir(original: Any, req: Any, wheel_cache: Any) -> str:
        place = str(original(req, wheel_cache))
        if wheel_cache.cache_dir and place.startswith(os.path.join(wheel_cache.cache_dir, "")):
            caches[place] = wheel_cache.cache_dir
        return place

    def build_one(original: Any, req: Any, output_dir: str, *args: Any, **kw: Any) -> Any:
        is_cached = output_dir in caches
        place = TempDirectory(kind="built-wheel", globally_managed=True).path if is_cached else output_dir

        def rename(record: logging.LogRecord) -> bool:
            if isinstance(record.args, tuple):
                record.args = tuple(output_dir if value == place else value for value in record.args)
            return True

        key = built_of(req, req.metadata["version"])
        built = kept.restore(key, place)
        if built is None:
            with kept.building(req), _filtered("pip._internal.wheel_builder", rename):
                built = original(req, place, *args, **kw)
            if built is None:
                return None
            kept.keep(key, built)
            if is_cached:
                with _mutex(transaction, caches[output_dir]) as usable, suppress(OSError):
                    if usable:
                        fs.make_directories(Path(output_dir))
                        fs.copy_whole(Path(built), Path(output_dir, os.path.basename(built)))
        if not is_cached:
            passing.add(Path(built))
        return built

    def record_download_origin(original: Any, cache_dir: str, download_info: Any) -> None:
        with _mutex(transaction, caches.get(cache_dir)), suppress(FileNotFoundError):
            original(cache_dir, download_info)

    FOUND.replace(get_cache_entry)
    PLACE.replace(get_cache_dir)
    BUILT.replace(build_one)
    ORIGIN.replace(record_download_origin)
    return passing


def attach_to_command(transaction: Transaction, copy: FrozenPip, limit: int) -> None:
    """Have `pip cache` know what safe-pip keeps too, and take its turn with commands that use pip's wheel cache.

    `copy` is the copy of pip that this command runs from, `limit` what prepared wheels may take.
    """

    def remove(*args: Any) -> Any:
        with _mutex(transaction, args[2].cache_dir):
            return _remove(*args)

    def purge(original: Any, command: Any, options: Any, args: list[str]) -> Any:
        result = original(command, options, args)
        number, size, stay = frozen_pip.purge(os.environ, copy)
        logger.info("Copies of pip removed: %s (%s)%s", number, format_size(size), f", in use: {stay}" if stay else "")
        return result

    INFO.replace(partial(_info, limit))
    PURGE.replace(purge)
    LIST.replace(_list)
    REMOVE.replace(remove)


@contextmanager
def _mutex(transaction: Transaction, cache_dir: str | None) -> Iterator[bool]:
    """Yields whether the wheel cache may be used: not if it cannot be locked."""
    with ExitStack() as lock:
        is_usable = True
        try:
            if cache_dir:
                wheels = Path(cache_dir, "wheels")
                fs.make_directories(wheels)
                lock.enter_context(transaction.environment.mutex(wheels))
        except (OSError, UnusableEnvironment):
            is_usable = False
        yield is_usable


@contextmanager
def _filtered(name: str, rule: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Within, one of pip's loggers says only what `rule` lets through."""
    filtered = logging.getLogger(name)
    filtered.addFilter(rule)
    try:
        yield
    finally:
        filtered.removeFilter(rule)


def _info(limit: int, original: Any, command: Any, options: Any, args: list[str]) -> Any:
    result = original(command, options, args)
    entries, copies = _entries(options), frozen_pip.kept(os.environ)
    places = sorted({str(place.parent) for place, _ in copies})
    logger.info(
        textwrap.dedent(f"""\
            Prepared wheels location (safe-pip): {Path(options.cache_dir, "safe-pip", FORMAT)}
            Prepared wheels size: {format_size(sum(entry.listing.size for entry in entries))}
            Number of prepared wheels: {len(entries)}
            Limit of prepared wheels: {limit / 10**9:g} GB
            Copies of pip location (safe-pip): {", ".join(places)}
            Copies of pip size: {format_size(sum(size for _, size in copies))}
            Number of copies of pip: {len(copies)}
            Limit of copies of pip: {frozen_pip.UNUSED_DAYS} days without use""")
    )
    return result


def _list(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    """List the prepared wheels for people. `--format=abspath` is for programs, which expect wheels."""
    result = original(command, options, args)
    lines = []
    for entry in _entries(options, *args) if options.list_format == "human" else ():
        key = entry.path.name.split("-")  # digest, cache tag of the interpreters that can use the entry, ...
        made_for = "-".join(key[1:3]) if len(key) > 2 else "without bytecode"
        lines.append(f" - {entry.listing.wheel} ({made_for}, {format_size(entry.listing.size)})")
    if lines:
        logger.info("\nPrepared wheels (safe-pip):\n")
        logger.info("\n".join(sorted(lines)))
    return result


def _remove(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    """Remove what matches and is not in use; a command that prepares or copies a wheel is not disturbed."""
    store = Store.existing(Path(options.cache_dir))
    if store is None or not trust.is_trusted(store.path):
        return original(command, options, args)
    entries = _entries(options, *args) if len(args) == 1 else []

    # pip looks at its own wheels only before it says that nothing matches.
    with _filtered(_COMMAND, lambda record: not (entries and str(record.msg).startswith("No matching packages"))):
        result = original(command, options, args)
    removed = [entry for entry in entries if store.wheels.remove(entry.path.name)]
    if args == ["*"]:
        for damaged in store.wheels.names():
            store.wheels.remove(damaged)
    for entry in removed:
        logger.verbose("Removed %s", entry.path)
    store.sweep()
    if entries:
        size = format_size(sum(entry.listing.size for entry in removed))
        kept = len(entries) - len(removed)
        logger.info("Prepared wheels removed: %s (%s)%s", len(removed), size, f", in use: {kept}" if kept else "")
    return result


def _entries(options: Any, pattern: str = "*") -> list[Entry]:
    """The entries whose wheels pip would find by this pattern."""
    store = Store.existing(Path(options.cache_dir))
    pattern += "*.whl" if "-" in pattern else "-*.whl"
    return [each for each in (store.entries() if store else ()) if fnmatch.fnmatch(each.listing.wheel, pattern)]
