"""pip's wheel cache, where a reader could meet a half-written or a just purged entry; and `pip cache`."""

from __future__ import annotations

import fnmatch
import logging
import os
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pip._internal.models.link import Link
from pip._internal.utils._log import getLogger
from pip._internal.utils.misc import format_size
from pip._internal.utils.temp_dir import TempDirectory
from pip._internal.utils.urls import path_to_url

from safe_pip import fs
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import trust
from safe_pip.pip_seams.builds import KeptBuilds, built_of
from safe_pip.pip_seams.seam import Seam
from safe_pip.store.wheels import FORMAT, Entry, Store

FOUND = Seam("pip._internal.cache", "WheelCache.get_cache_entry", ("link", "package_name", "supported_tags"))
ORIGIN = Seam("pip._internal.cache", "WheelCache.record_download_origin", ("cache_dir", "download_info"))
PLACE = Seam("pip._internal.wheel_builder", "_get_cache_dir", ("req", "wheel_cache"))
BUILT = Seam("pip._internal.wheel_builder", "_build_one", ("req", "output_dir", "verify", "editable"))
_COMMAND = "pip._internal.commands.cache"
INFO = Seam(_COMMAND, "CacheCommand.get_cache_info", ("options", "args"))
LIST = Seam(_COMMAND, "CacheCommand.list_cache_items", ("options", "args"))
REMOVE = Seam(_COMMAND, "CacheCommand.remove_cache_items", ("options", "args"))

logger = getLogger(_COMMAND)


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
            with _filtered("pip._internal.wheel_builder", rename):
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


def attach_to_command(transaction: Transaction) -> None:
    """Have `pip cache` know the prepared wheels too, and take its turn with commands that use pip's wheel cache."""

    def remove(original: Any, command: Any, options: Any, args: list[str]) -> Any:
        with _mutex(transaction, options.cache_dir):
            return _remove(original, command, options, args)

    INFO.replace(_info)
    LIST.replace(_list)
    REMOVE.replace(remove)


@contextmanager
def _mutex(transaction: Transaction, cache_dir: str | None) -> Iterator[bool]:
    """Yields whether the wheel cache may be used: not if it cannot be locked."""
    with ExitStack() as lock:
        try:
            if cache_dir:
                wheels = Path(cache_dir, "wheels")
                fs.make_directories(wheels)
                lock.enter_context(transaction.environment.mutex(wheels))
            is_usable = True
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


def _info(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    result = original(command, options, args)
    store = Store.existing(Path(options.cache_dir))
    entries = store.entries() if store is not None else []
    logger.info(
        textwrap.dedent(f"""\
            Prepared wheels location (safe-pip): {Path(options.cache_dir, "safe-pip", FORMAT)}
            Prepared wheels size: {format_size(sum(entry.listing.size for entry in entries))}
            Number of prepared wheels: {len(entries)}""")
    )
    return result


def _list(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    """List the prepared wheels for people. `--format=abspath` is for programs, which expect wheels."""
    result = original(command, options, args)
    entries = _matching(Store.existing(Path(options.cache_dir)), args[0] if args else "*")
    if entries and options.list_format == "human":
        lines = sorted(
            f" - {entry.listing.wheel} ({_made_for(entry)}, {format_size(entry.listing.size)})" for entry in entries
        )
        logger.info("\nPrepared wheels (safe-pip):\n")
        logger.info("\n".join(lines))
    return result


def _remove(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    """Remove what matches and is not in use; a command that prepares or copies a wheel is not disturbed."""
    store = Store.existing(Path(options.cache_dir))
    if store is None or not trust.is_trusted(store.path):
        return original(command, options, args)
    entries = _matching(store, args[0]) if len(args) == 1 else []

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


def _matching(store: Store | None, pattern: str) -> list[Entry]:
    """The entries whose wheels pip would find by this pattern."""
    if store is None:
        return []
    pattern += "*.whl" if "-" in pattern else "-*.whl"
    return [entry for entry in store.entries() if fnmatch.fnmatch(entry.listing.wheel, pattern)]


def _made_for(entry: Entry) -> str:
    """The interpreters that can use an entry: their cache tag."""
    _, *key = entry.path.name.split("-")
    return "-".join(key[:2]) if len(key) > 1 else "without bytecode"
