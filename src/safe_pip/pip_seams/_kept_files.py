"""Distributions of the standard library's backend, as they were when the snapshot was taken."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

from safe_pip.environment.transaction import Transaction


def forget_listings() -> None:
    """Have directories listed anew: listings are kept by an mtime whose steps are coarser than our commits."""
    if hasattr(importlib.metadata, "FastPath"):
        importlib.metadata.FastPath.__new__.cache_clear()


def keep(inner: Any, project: str, transaction: Transaction, kept: dict[str, str | None]) -> Any:
    """`inner` with these small files, which were read of it with the snapshot; of another kind, `inner` itself."""
    is_plain = type(inner) is importlib.metadata.PathDistribution
    return _KeptFiles(inner, project, transaction, kept) if is_plain else inner


class _KeptFiles(importlib.metadata.PathDistribution):
    """A distribution of the standard library's backend whose small files were read with the snapshot."""

    def __init__(self, inner: Any, project: str, transaction: Transaction, kept: dict[str, str | None]) -> None:
        super().__init__(inner._path)
        self._project = project
        self._transaction = transaction
        self._kept = kept

    def read_text(self, filename: Any) -> str | None:
        """The text of a metadata file; raises `StalePlan` if the distribution has changed since the snapshot."""
        if filename in self._kept:
            return self._kept[filename]
        read = super().read_text
        text = self._transaction.read_later(self._project, lambda: read(filename))
        if text is None and filename == "" and sys.version_info >= (3, 15):  # asked for last, where no other file is
            notice_missing_metadata(self._transaction, self._path)
            name, _, version = self._path.stem.partition("-")
            return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version.partition('-')[0] or '0'}\n"
        return text


def notice_missing_metadata(transaction: Transaction, path: Any) -> None:
    """Have the command say at its end that there is no METADATA in `path`."""
    notice = f"`{path}` has no METADATA, so no more is known than its name. Run `safe-pip doctor --repair`"
    if notice not in transaction.noticed:
        transaction.noticed.append(notice)
