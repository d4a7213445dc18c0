"""What pip sees as installed: its own listing of the environment path, made at one instant and kept.

What only the standard library's backend needs is imported where pip may select that: `importlib.metadata` takes long.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
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
INSTALLED = Seam("pip._internal.resolution.resolvelib.factory", "Factory.__init__", ("ignore_installed",))
PROTECTED = Seam("pip._internal.commands.freeze", "_dev_pkgs", ())
NAME = Seam("pip._internal.metadata.importlib._envs", "get_dist_canonical_name", ("dist",))
EGG_LINK = Seam("pip._internal.utils.egg_link", "sys")
_KEPT_FILES = "safe_pip.pip_seams._kept_files"


class Installed:
    """Serves pip's questions about what is installed from one snapshot."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self._served: Any = None

    def attach(self) -> None:
        """Have pip ask this object from its first question on, whichever backend it selects."""
        original = SELECT_BACKEND.check()

        @cache
        def select_backend() -> Any:
            backend = original()
            self._serve(backend.Environment)
            return backend

        if sys.version_info >= (3, 11):  # there is no other backend, unless pip's tests ask for one
            importlib.import_module(_KEPT_FILES)
        SELECT_BACKEND.put(select_backend)
        # Legacy editable installs are looked up along `sys.path`, which is not the environment's any more.
        EGG_LINK.put(types.SimpleNamespace(path=list(self.transaction.path)))

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

    def _serve(self, environment: Any) -> None:
        from_paths = Seam(environment.__module__, "Environment.from_paths", ("paths",)).check()
        Seam(environment.__module__, "Environment.default", ()).check()

        is_pkg_resources = environment.__module__.endswith(".pkg_resources")
        self._files: Any = None if is_pkg_resources else importlib.import_module(_KEPT_FILES)
        if sys.version_info >= (3, 15) and not is_pkg_resources:
            NAME.replace(self._name)
        environment.default = classmethod(lambda cls: self.served())
        environment.from_paths = classmethod(
            lambda cls, paths: self.served() if paths is None else from_paths(cls, paths)
        )
        self._environment, self._from_paths = environment, from_paths

    def _name(self, original: Any, dist: Any) -> Any:
        """The name of a distribution, which its directory may not tell; without METADATA pip is to skip it."""
        try:
            return original(dist)
        except FileNotFoundError:
            self._files.notice_missing_metadata(self.transaction, dist._path)
            compat: Any = importlib.import_module("pip._internal.metadata.importlib._compat")
            raise compat.BadMetadata(dist, reason="invalid metadata entry 'name'") from None

    def _list(self, transaction: Transaction) -> Any:
        """pip's `Environment` with what is installed on the transaction's path now."""
        if self._files is not None:
            self._files.forget_listings()
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
        for distribution in distributions:
            self._keep(distribution, transaction)
        return Served(distributions)

    def _keep(self, distribution: Any, transaction: Transaction) -> None:
        """Have `distribution` answer from what is read now; what is read later is checked to be of this instant."""
        inner, project = distribution._dist, str(distribution.canonical_name)
        if self._files is not None:
            distribution._dist = self._files.keep(inner, project, transaction, _kept(inner.read_text))
        elif hasattr(inner, "_provider") and hasattr(inner._provider, "get_metadata"):
            inner._provider = _KeptProvider(inner._provider, project, transaction)


class _Asked(dict[str, Any]):
    """The resolver's installed distributions; every name that is looked up is noted."""

    def __init__(self, distributions: dict[str, Any], transaction: Transaction) -> None:
        super().__init__(distributions)
        self._transaction = transaction

    def __getitem__(self, name: str) -> Any:
        self._transaction.asked(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._transaction.asked(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._transaction.asked(name)
        return super().get(name, default)


def _kept(read: Callable[[str], str | None]) -> dict[str, str | None]:
    """What `read` gives for each file of `_KEPT`; one that cannot be read fails again when pip asks for it."""
    found: dict[str, str | None] = {}
    for name in _KEPT:
        with suppress(OSError, ValueError):
            found[name] = read(name)
    return found


class _KeptProvider:
    """A metadata provider of the `pkg_resources` backend (`IMetadataProvider`) whose small files were read before."""

    def __init__(self, provider: Any, project: str, transaction: Transaction) -> None:
        self._provider = provider
        self._project = project
        self._transaction = transaction
        self._kept = _kept(lambda name: provider.get_metadata(name) if provider.has_metadata(name) else None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def has_metadata(self, name: str) -> bool:
        if name in self._kept:
            return self._kept[name] is not None
        return bool(self._transaction.read_later(self._project, lambda: self._provider.has_metadata(name)))

    def get_metadata(self, name: str) -> str:
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        text: str = self._transaction.read_later(self._project, lambda: self._provider.get_metadata(name))
        return text

    def get_metadata_lines(self, name: str) -> Iterator[str]:
        lines = (line.strip() for line in self.get_metadata(name).splitlines())
        return (line for line in lines if line and not line.startswith("#"))
