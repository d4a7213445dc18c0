"""The only package that knows pip's internals: where pip asks what is installed, builds, and changes the environment.

Everything is replaced in memory, where pip uses it; each seam is checked first, and one that is not as expected means
that all of pip runs under one exclusive lock (`SeamBroken`).
"""

from __future__ import annotations

import gc
import importlib
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safe_pip.environment.transaction import Transaction
from safe_pip.errors import NestingRefused, Replaced, SafePipError
from safe_pip.fs.rename import load as load_rename
from safe_pip.launch import isolation
from safe_pip.launch.attempt import RESERVING, Attempt
from safe_pip.launch.settings import Settings
from safe_pip.pip_seams import tracebacks
from safe_pip.pip_seams.seam import Seam, SeamBroken
from safe_pip.pip_seams.shell import CREATE, Shell, program

__all__ = ["SeamBroken", "Seams", "Shell", "program", "run_unchanged"]

PRELOADED = (
    *(
        "safe_pip.environment.change",
        "safe_pip.journal.commit",
        "safe_pip.journal.recovery",
        "safe_pip.environment.stage",
        "safe_pip.journal.sweep",
        "safe_pip.store.verify",
    ),
    *("pwd", "py_compile", "resource", "shlex"),
)
"""What is imported elsewhere when it is needed, which may be after pip's first change: then nothing can be any more."""

_GARBAGE = 50_000
"""So many new objects are worth a look for garbage: a command that lasts a second makes hardly any."""

CONTENT = Seam("pip._internal.req.req_file", "get_file_content", ("url", "session"))


class Seams:
    """pip, with our answers in its seams."""

    def __init__(
        self,
        transaction: Transaction,
        shell: Shell,
        attempt: Attempt,
        settings: Settings,
        *,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """`begin` is called when all of pip that a command needs at first is imported."""
        self._begin = begin
        self.transaction = transaction
        self.shell = shell
        self.attempt = attempt
        self.settings = settings
        self.error: SafePipError | None = None
        """Why the command did not do what it was asked for, after `run`."""
        self.inputs = dict(attempt.inputs)
        self.answered = attempt.answered
        self.installed: Any = None
        self._install: Any = None
        self._uninstall: Any = None
        self._attached: set[str] = set()
        self._passing: Collection[Path] = ()

    def run(self, args: list[str]) -> int:
        """Run pip's own main; on return its exit status, or that of `error`."""
        try:
            if any(proxy.lower().startswith("socks") for proxy in self.settings.proxies):
                from safe_pip.pip_seams.network import load_socks

                load_socks(self.transaction)
            tracebacks.attach()
            self.shell.attach()
            self._replace_create()
            if "PIP_AUTO_COMPLETE" in os.environ:
                self._once("metadata")
            return _main(args)
        except SafePipError as error:
            self.error = self.error or error
            return error.exit_status

    def _replace_create(self) -> None:
        """Have every command made by `_create`, wherever pip has bound the name already (until 26.0 when imported)."""
        CREATE.replace(self._create)
        for name in ("pip._internal.cli.main", "pip._internal.cli.autocompletion"):
            module: Any = importlib.import_module(name)
            if hasattr(module, "create_command"):
                module.create_command = CREATE.check()

    def _create(self, original: Any, name: str, *args: Any, **kw: Any) -> Any:
        self._once("commands")
        command = original(name, *args, **kw)
        self._attach_to(name, command)
        run = command.run
        command.run = lambda options, args: self._guarded(name, command, run, options, args)
        return command

    def _guarded(self, name: str, command: Any, run: Any, options: Any, args: list[str]) -> int:
        """Run a command; an error of ours becomes its exit status here, before pip takes it for its own."""
        transaction = self.transaction
        self._begin()
        gc.freeze()  # What was imported stays; the collector need not look at it again.
        gc.set_threshold(_GARBAGE)
        gc.enable()
        try:
            # All of ours that this command needs is loaded by now; it must be of one version.
            if not isolation.is_current():
                raise Replaced("safe-pip was replaced while this command started")
            with ExitStack() as locks:
                if name == "install":
                    self._install.command, self._install.options = command, options
                    if not options.debug_mode:
                        tracebacks.leave_out()
                    locks.enter_context(self._install.closing)
                if name == "uninstall":
                    locks.enter_context(self._uninstall.closing)
                is_reported = getattr(options, "json_report_file", None) == "-"
                if self.attempt.number >= RESERVING or is_reported:
                    locks.enter_context(self._reserved(name, options, alone=is_reported))
                status = int(run(options, args))
                if transaction.error is not None:
                    raise transaction.error
                if name == "uninstall" and status == 0:
                    self._uninstall.commit()
                return status
        except SafePipError as error:
            self.error = transaction.error or error
            return self.error.exit_status
        except Exception:
            if transaction.error is None:
                raise
            self.error = transaction.error  # pip took it for something else: a failed build
            return self.error.exit_status
        finally:
            if self._uninstall is not None:
                self.answered = frozenset(self._uninstall.answered)

    @contextmanager
    def _reserved(self, name: str, options: Any, *, alone: bool) -> Iterator[None]:
        """Within, nobody changes or removes what is installed, or with `alone` adds to it.

        Without that, below one who forbids it. Alone has to be who prints what he is going to do: another attempt
        would print it twice.
        """
        if name not in ("install", "uninstall") or getattr(options, "dry_run", False):
            yield
            return
        from safe_pip.pip_seams.scheme import options_target

        target = options_target(self.transaction.path, options)
        trees = [tree for tree in self.transaction.environment.trees() if os.access(tree, os.W_OK)]
        with ExitStack() as locks:
            environment = self.transaction.environment
            with suppress(NestingRefused):
                locks.enter_context(environment.exclusively(target) if alone else environment.reserving(target, trees))
            yield

    def _attach_to(self, name: str, command: Any) -> None:
        """Attach to what `command` uses, which pip has imported by now."""
        if name in ("install", "uninstall"):
            for module in PRELOADED:
                with suppress(ImportError):  # not on every platform
                    importlib.import_module(module)
            load_rename()
        self.shell.attach_to(name)
        if "pip._internal.metadata" in sys.modules:
            self._once("metadata")
        if self._is_a(command, "pip._internal.cli.index_command", "SessionCommandMixin"):
            self._once("network")
        if name == "uninstall" or self._is_a(command, "pip._internal.cli.req_command", "RequirementCommand"):
            self._once("inputs")
        if self._is_a(command, "pip._internal.cli.req_command", "RequirementCommand"):
            self._once("requirements")
        if name in ("install", "uninstall", "list", "inspect", "freeze", "cache"):
            self._once(name)

    def _once(self, part: str) -> None:
        if part not in self._attached:
            self._attached.add(part)
            getattr(self, f"_attach_{part}")()

    def _attach_commands(self) -> None:
        self.shell.attach_to_commands()

    def _attach_metadata(self) -> None:
        from safe_pip.pip_seams.installed import Installed

        self.installed = Installed(self.transaction)
        self.installed.attach()

    def _attach_network(self) -> None:
        from safe_pip.pip_seams import network

        self._once("metadata")
        network.attach(self.transaction)

    def _attach_inputs(self) -> None:
        def content(original: Any, url: str, *args: Any, **kw: Any) -> tuple[str, str]:
            if url in self.inputs:
                return url, self.inputs[url]
            is_pipe = _is_pipe(url)
            location, text = original(url, *args, **kw)
            if is_pipe:
                self.inputs[url] = text
            return location, text

        CONTENT.replace(content)

    def _attach_requirements(self) -> None:
        from safe_pip.pip_seams import builds, caches

        self.installed.attach_to_resolver()
        builds.attach(self.transaction)
        self._passing = caches.attach_to_wheels(self.transaction)

    def _attach_install(self) -> None:
        from safe_pip.fs.bulk import LinkMode
        from safe_pip.pip_seams.install import Install
        from safe_pip.pip_seams.store import Prepared

        mode = LinkMode(self.settings.link_mode)
        prepared = Prepared(mode, self.settings.cache_limit)
        self._install = Install(self.transaction, self.installed, prepared, self._passing)
        self._install.attach()

    def _attach_uninstall(self) -> None:
        from safe_pip.pip_seams.uninstall import Uninstall

        self._uninstall = Uninstall(self.transaction, self.installed, self.answered)
        self._uninstall.attach()

    def _attach_list(self) -> None:
        self.installed.attach_to_paths("list")

    def _attach_inspect(self) -> None:
        self.installed.attach_to_paths("inspect")

    def _attach_freeze(self) -> None:
        self.installed.attach_to_paths("freeze")

    def _attach_cache(self) -> None:
        from safe_pip.pip_seams import cache_command, caches

        caches.attach_to_purge(self.transaction)
        cache_command.attach()

    @staticmethod
    def _is_a(command: Any, module: str, name: str) -> bool:
        return module in sys.modules and isinstance(command, getattr(sys.modules[module], name, ()))


def run_unchanged(args: list[str]) -> int:
    """Run pip's own main as it is; the caller holds every lock."""
    return _main(args)


def _main(args: list[str]) -> int:
    """pip's entry point: `cli` from 26.1 on, `main` before."""
    module = importlib.import_module("pip._internal.cli.main")
    entry = getattr(module, "cli", None) or getattr(module, "main", None)
    if entry is None:
        raise SeamBroken("pip has no `main` in `pip._internal.cli.main`")
    return int(entry(args) or 0)


def _is_pipe(url: str) -> bool:
    if "://" in url:
        return False
    try:
        return not stat.S_ISREG(os.stat(url).st_mode)
    except OSError:
        return False
