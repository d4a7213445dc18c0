"""What pip sees as installed: its own listing of the environment path, made at one instant and kept."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import types
from collections import UserDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from pip._vendor.packaging.utils import canonicalize_name

from safe_pip.environment.transaction import Transaction
from safe_pip.pip_seams.output import kept_back
from safe_pip.pip_seams.seam import Seam, SeamBroken

if TYPE_CHECKING:
    from pip._internal.metadata.base import BaseDistribution

_KEPT = ("METADATA", "PKG-INFO", "direct_url.json", "requires.txt")
"""The files that pip reads of every distribution in one command or another; the rest is read when asked for."""

SELECT_BACKEND = Seam("pip._internal.metadata", "select_backend", ())
ENVIRONMENT = Seam("pip._internal.metadata.importlib", "Environment")
FROM_PATHS = ENVIRONMENT._replace(attribute="Environment.from_paths", parameters=("paths",))
DEFAULT = ENVIRONMENT._replace(attribute="Environment.default", parameters=())
INSTALLED = Seam("pip._internal.resolution.resolvelib.factory", "Factory.__init__", ("ignore_installed",))
PROTECTED = Seam("pip._internal.commands.freeze", "_dev_pkgs", ())
NAME = Seam("pip._internal.metadata.importlib._envs", "get_dist_canonical_name", ("dist",))
EGG_LINK = Seam("pip._internal.utils.egg_link", "sys")


class Installed:
    """Serves pip's questions about what is installed from one snapshot."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self._served: Any = None

    def attach(self) -> None:
        """Have pip ask this object from its first question on."""
        SELECT_BACKEND.put(cache(self._backend))
        # Legacy editable installs are looked up along `sys.path`, which is not the environment's any more.
        EGG_LINK.put(types.SimpleNamespace(path=[*filter(_may_have_egg_links, self.transaction.path)]))

    def _backend(self) -> Any:
        """pip's backend on `importlib.metadata`, which serves every Python, asking this object."""
        self._environment, self._from_paths = ENVIRONMENT.check(), FROM_PATHS.check()
        DEFAULT.replace(lambda original, cls: self.served())
        FROM_PATHS.replace(lambda original, cls, paths: self.served() if paths is None else original(cls, paths))
        if sys.version_info >= (3, 15):
            NAME.replace(self._name)
        return importlib.import_module(ENVIRONMENT.module)

    def attach_to_resolver(self) -> None:
        """Note which projects a resolve asks for: those that backtracking rejects are in no result, but decide it."""

        def build(original: Any, factory: Any, *args: Any, **kw: Any) -> None:
            original(factory, *args, **kw)
            if not isinstance(getattr(factory, "_installed_dists", None), dict):
                raise SeamBroken("`Factory` does not keep the installed distributions")
            factory._installed_dists = _Asked(factory._installed_dists, self.transaction)

        INSTALLED.replace(build)

    def attach_to_paths(self, command: str) -> None:
        """Have `list`, `freeze` and `inspect --path` read those directories at one instant too."""

        def get_environment(original: Any, paths: list[str] | None) -> Any:
            if not paths:
                return original(paths)
            other = self.transaction.of_other(paths)
            importlib.import_module("pip._internal.metadata").select_backend()
            with kept_back(), self.transaction.failing():
                return other.take_snapshot(lambda: self._list(other))

        module = f"pip._internal.{'operations' if command == 'freeze' else 'commands'}.{command}"
        Seam(module, "get_environment", ("paths",)).replace(get_environment)
        if command == "freeze":  # what is fed to `pip uninstall` names neither pip nor, where it is pip, safe-pip
            PROTECTED.replace(lambda original: {*original(), "parallel-safe-pip"})

    def served(self) -> Any:
        """pip's `Environment` as of the snapshot, which the first call takes."""
        if self._served is None:
            with kept_back():
                self._served = self.transaction.take_snapshot(lambda: self._list(self.transaction))
        return self._served

    def refresh(self) -> None:
        """Forget what was read; the next question takes a new snapshot."""
        self._served = None

    def distributions(self, names: Iterable[str]) -> dict[str, BaseDistribution]:
        """The distributions of these names that are on disk now; the caller holds the locks of a commit or a reader."""
        found: dict[str, BaseDistribution] = {}
        if wanted := set(names):
            for each in self._list(self.transaction)._iter_distributions():
                if each.canonical_name in wanted:
                    found.setdefault(str(each.canonical_name), each)
        return found

    def _name(self, original: Any, dist: Any) -> Any:
        """The name of a distribution, which its directory may not tell; without METADATA pip is to skip it."""
        try:
            return original(dist)
        except FileNotFoundError:
            notice_missing_metadata(self.transaction, dist._path)
            compat: Any = importlib.import_module("pip._internal.metadata.importlib._compat")
            raise compat.BadMetadata(dist, reason="invalid metadata entry 'name'") from None

    def _list(self, transaction: Transaction) -> Any:
        """pip's `Environment` with what is installed on the transaction's path now."""
        # The standard library keeps listings by the directory's mtime, whose steps are coarser than our commits.
        if hasattr(importlib.metadata, "FastPath"):
            importlib.metadata.FastPath.__new__.cache_clear()

        environment: Any = self._environment

        class Served(environment):  # type: ignore[misc]
            def __init__(self, distributions: list[Any]) -> None:
                self._distributions = distributions

            def _iter_distributions(self) -> Iterator[Any]:
                return iter(self._distributions)

            def get_distribution(self, name: str) -> Any:
                project = canonicalize_name(name)
                transaction.asked(project)
                return next((found for found in self.iter_all_distributions() if found.canonical_name == project), None)

        distributions = list(self._from_paths(environment, list(transaction.path))._iter_distributions())
        if sys.version_info < (3, 11):  # in the order of `pkg_resources`, with which pip lists there
            distributions.sort(key=lambda each: str(each._dist._path))
        for each in distributions:
            if type(each._dist) is importlib.metadata.PathDistribution:
                each._dist = _KeptFiles(each._dist, str(each.canonical_name), transaction)
        return Served(distributions)


class _Asked(UserDict[str, Any]):
    """The resolver's installed distributions; every name that is looked up is noted."""

    def __init__(self, distributions: dict[str, Any], transaction: Transaction) -> None:
        super().__init__(distributions)
        self._transaction = transaction

    def __contains__(self, name: object) -> bool:
        self._transaction.asked(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self._transaction.asked(name)
        return self.data[name]


def _may_have_egg_links(directory: str) -> bool:
    with suppress(OSError):
        return any(name.endswith(".egg-link") for name in os.listdir(directory or os.curdir))
    return True


class _KeptFiles(importlib.metadata.PathDistribution):
    """A distribution whose small files were read with the snapshot; one that could not be read is tried again."""

    def __init__(self, inner: Any, project: str, transaction: Transaction) -> None:
        super().__init__(inner._path)
        self._project = project
        self._transaction = transaction
        self._kept: dict[str, str | None] = {}
        names = list(_KEPT)
        with suppress(OSError):  # not a directory, or an archive; listing one takes less than an open that fails
            names = os.listdir(str(inner._path))
        for name in _KEPT:
            with suppress(OSError, ValueError):
                self._kept[name] = super().read_text(name) if name in names else None

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
