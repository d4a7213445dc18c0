"""pip's caches, where a reader could meet a half-written or a just purged entry."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safe_pip import fs
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import UnusableEnvironment
from safe_pip.pip_seams.seam import Seam

FOUND = Seam("pip._internal.cache", "WheelCache.get_cache_entry", ("link", "package_name", "supported_tags"))
ORIGIN = Seam("pip._internal.cache", "WheelCache.record_download_origin", ("cache_dir", "download_info"))
PLACE = Seam("pip._internal.wheel_builder", "_get_cache_dir", ("req", "wheel_cache"))
BUILT = Seam("pip._internal.wheel_builder", "_build_one", ("req", "output_dir", "verify", "editable"))
REMOVED = Seam("pip._internal.commands.cache", "CacheCommand.remove_cache_items", ("options", "args"))
PAGE = Seam("pip._internal.network.cache", "SafeFileCache.get", ("self", "key"))
BODY = Seam("pip._internal.network.cache", "SafeFileCache.get_body", ("self", "key"))


def attach_to_wheels(transaction: Transaction) -> Collection[Path]:
    """What is found in the wheel cache becomes this command's own; what is built is put there whole.

    `pip cache purge` unlinks whatever it finds, the wheel that another command is building right there included. In
    what is returned will be the wheels that this command builds and pip does not keep: whoever wants one again gets
    another, built anew.
    """
    from pip._internal.models.link import Link
    from pip._internal.utils.temp_dir import TempDirectory
    from pip._internal.utils.urls import path_to_url

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
        if output_dir not in caches:
            built = original(req, output_dir, *args, **kw)
            if built is not None:
                passing.add(Path(built))
            return built
        private = TempDirectory(kind="built-wheel", globally_managed=True).path
        with _named(private, output_dir):
            built = original(req, private, *args, **kw)
        if built is not None:
            with _mutex(transaction, caches[output_dir]) as usable, suppress(OSError):
                if usable:
                    fs.make_directories(Path(output_dir))
                    fs.copy_whole(Path(built), Path(output_dir, os.path.basename(built)))
        return built

    def record_download_origin(original: Any, cache_dir: str, download_info: Any) -> None:
        with _mutex(transaction, caches.get(cache_dir)), suppress(FileNotFoundError):
            original(cache_dir, download_info)

    FOUND.replace(get_cache_entry)
    PLACE.replace(get_cache_dir)
    BUILT.replace(build_one)
    ORIGIN.replace(record_download_origin)
    return passing


def attach_to_pages() -> None:
    """Read both files of a cached page at once: without its body, pip takes a purged page for an empty one."""
    bodies: dict[str, Any] = {}
    get_body = BODY.check()

    def get(original: Any, cache: Any, key: str) -> bytes | None:
        found: bytes | None = original(cache, key)
        body = get_body(cache, key) if found is not None else None
        if body is None:
            return None
        stale = bodies.pop(key, None)
        if stale is not None:
            stale.close()
        bodies[key] = body
        return found

    def body_of(original: Any, cache: Any, key: str) -> Any:
        kept = bodies.pop(key, None)
        return kept if kept is not None else original(cache, key)

    PAGE.replace(get)
    BODY.replace(body_of)


def attach_to_purge(transaction: Transaction) -> None:
    """Have `cache remove` and `cache purge` take their turn with those who read and fill the cache."""

    def remove(original: Any, command: Any, options: Any, args: Any) -> Any:
        with _mutex(transaction, options.cache_dir):
            return original(command, options, args)

    REMOVED.replace(remove)


@contextmanager
def _mutex(transaction: Transaction, cache_dir: str | None) -> Iterator[bool]:
    """Yields whether the wheel cache may be used: not where there is none, or where it cannot be locked."""
    if not cache_dir:
        yield True
        return
    wheels = Path(cache_dir, "wheels")
    try:
        fs.make_directories(wheels)
        lock = transaction.environment.mutex(wheels)
        lock.__enter__()
    except (OSError, UnusableEnvironment):
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def _named(private: str, shown: str) -> Iterator[None]:
    """Within, pip's wheel builder names `shown` where it means `private`."""

    def rename(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(shown if value == private else value for value in record.args)
        return True

    logger = logging.getLogger("pip._internal.wheel_builder")
    logger.addFilter(rename)
    try:
        yield
    finally:
        logger.removeFilter(rename)
