"""`pip cache` with the prepared wheels beside pip's own caches."""

from __future__ import annotations

import fnmatch
import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pip._internal.utils._log import getLogger
from pip._internal.utils.misc import format_size

from safe_pip.fs import trust
from safe_pip.pip_seams.seam import Seam
from safe_pip.store.wheels import FORMAT, Entry, Store

_COMMAND = "pip._internal.commands.cache"
INFO = Seam(_COMMAND, "CacheCommand.get_cache_info", ("options", "args"))
LIST = Seam(_COMMAND, "CacheCommand.list_cache_items", ("options", "args"))
REMOVE = Seam(_COMMAND, "CacheCommand.remove_cache_items", ("options", "args"))

logger = getLogger(_COMMAND)


def attach() -> None:
    """Have `cache info`, `list`, `remove` and `purge` know the store; what pip says stays as it is."""
    for seam in (INFO, LIST, REMOVE):
        seam.check()
    INFO.replace(_info)
    LIST.replace(_list)
    REMOVE.replace(_remove)


def _info(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    result = original(command, options, args)
    store = Store.existing(Path(options.cache_dir))
    entries = store.entries() if store is not None else []
    logger.info(
        textwrap.dedent(f"""\
            Prepared wheels location (safe-pip): {Path(options.cache_dir, "safe-pip", FORMAT)}
            Prepared wheels size: {format_size(sum(entry.size for entry in entries))}
            Number of prepared wheels: {len(entries)}""")
    )
    return result


def _list(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    """List them for people; `--format=abspath` is for programs, which take what it lists for wheels."""
    result = original(command, options, args)
    entries = _matching(Store.existing(Path(options.cache_dir)), args[0] if args else "*")
    if entries and options.list_format == "human":
        lines = sorted(f" - {entry.name} ({_made_for(entry)}, {format_size(entry.size)})" for entry in entries)
        logger.info("\nPrepared wheels (safe-pip):\n")
        logger.info("\n".join(lines))
    return result


def _remove(original: Any, command: Any, options: Any, args: list[str]) -> Any:
    """Remove what matches and nobody uses; who is just preparing a wheel, or copying one, is not disturbed."""
    store = Store.existing(Path(options.cache_dir))
    if store is None or not trust.is_trusted(store.path):
        return original(command, options, args)
    entries = _matching(store, args[0]) if len(args) == 1 else []
    with _without_word_of_none(bool(entries)):
        result = original(command, options, args)
    removed = [entry for entry in entries if store.remove(entry)]
    if args == ["*"]:
        for damaged in store.places():
            store.remove(damaged)
    for entry in removed:
        logger.verbose("Removed %s", entry.path)
    store.sweep()
    if entries:
        size = format_size(sum(entry.size for entry in removed))
        kept = len(entries) - len(removed)
        logger.info("Prepared wheels removed: %s (%s)%s", len(removed), size, f", in use: {kept}" if kept else "")
    return result


def _matching(store: Store | None, pattern: str) -> list[Entry]:
    """The entries whose wheels pip would find by this pattern."""
    if store is None:
        return []
    pattern += "*.whl" if "-" in pattern else "-*.whl"
    return [entry for entry in store.entries() if fnmatch.fnmatch(entry.name, pattern)]


def _made_for(entry: Entry) -> str:
    """The interpreters that can use an entry: their cache tag."""
    key = entry.path.name.split("-")[1:]
    return "-".join(key[:2]) if len(key) > 1 else "without bytecode"


@contextmanager
def _without_word_of_none(is_wrong: bool) -> Iterator[None]:
    """Within, pip does not say that nothing matches, where that `is_wrong`: it looks at its own wheels only."""

    def keep(record: logging.LogRecord) -> bool:
        return not (is_wrong and str(record.msg).startswith("No matching packages"))

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
