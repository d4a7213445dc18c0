"""pip with our answers in its seams: what is attached for each command, and how pip presents itself.

Everything is replaced in memory, where pip uses it. Each seam is checked before; one that is not as expected raises
`SeamBroken`, and all of pip runs under one exclusive lock.

The other modules of this package import the part of pip that they replace. `Seams._attach` imports them when pip has
imported that part, so that `pip list` does without what `pip install` needs. `own_verb` serves help and completion.
"""

import importlib
import optparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from safe_pip import __version__, fs
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import (
    NO_WORKING_DIRECTORY,
    NestingRefused,
    Replaced,
    SafePipError,
    UnusableEnvironment,
    UsageError,
)
from safe_pip.fs import watch
from safe_pip.launch import active, isolation
from safe_pip.launch.frozen_pip import FrozenPip
from safe_pip.launch.restart import RESERVING, RUNNER, Attempt
from safe_pip.launch.settings import OPTIONS, Settings
from safe_pip.pip_seams.seam import Seam, SeamBroken

if TYPE_CHECKING:
    from safe_pip.pip_seams.install import Install
    from safe_pip.pip_seams.installed import Installed
    from safe_pip.pip_seams.uninstall import Uninstall

CONTENT = Seam("pip._internal.req.req_file", "get_file_content", ("url", "session"))
COMMANDS = Seam("pip._internal.commands", "commands_dict")
CREATE = Seam("pip._internal.commands", "create_command", ("name",))
RUNNABLE = Seam("pip._internal.cli.main_parser", "get_runnable_pip", ())
VERSION = Seam("pip._internal.cli.main_parser", "get_pip_version", ())
MAIN = Seam("pip._internal.cli.main_parser", "create_main_parser", ())
PROG = Seam("pip._internal.cli.main_parser", "get_prog", ())
COMPLETION = Seam("pip._internal.commands.completion", "COMPLETION_SCRIPTS")


class Seams:
    """pip, with our answers in its seams."""

    installed: "Installed"
    _install: "Install"
    _uninstall: "Uninstall"

    def __init__(
        self,
        transaction: Transaction,
        attempt: Attempt,
        settings: Settings,
        copy: FrozenPip,
        verbs: dict[str, str],
        begin: Callable[[], None],
    ) -> None:
        """`verbs`: our own, with summaries; `begin` is called when what a command needs at first is imported."""
        self.transaction, self.attempt, self.settings = transaction, attempt, settings
        self._copy, self._verbs, self._begin = copy, verbs, begin
        self.error: SafePipError | None = None  # after `run`: why the command did not do what it was asked for
        self._is_attached = False

    def run(self, args: list[str]) -> int:
        """Run pip's own main; on return its exit status, or that of `error`."""
        try:
            if self.settings.fast_start:
                _put_tracebacks_off()
            VERSION.replace(self._versions)
            PROG.replace(program)
            hand_over({**self._copy.for_child(), **self.settings.for_child()})
            commands = COMMANDS.check()
            for verb, summary in self._verbs.items():
                commands[verb] = type(commands["install"])(__name__, "own_verb", summary)
            CREATE.replace(self._create)
            MAIN.replace(lambda original: _with_own_options(original()))
            for name in ("pip._internal.cli.main", "pip._internal.cli.autocompletion"):
                module: Any = importlib.import_module(name)
                for seam in (CREATE, MAIN):
                    if hasattr(module, seam.attribute):  # pip has bound the name already
                        setattr(module, seam.attribute, seam.check())
            if "PIP_AUTO_COMPLETE" in os.environ:
                self._attach_metadata()
            return run_unchanged(args)
        except SafePipError as error:
            self.error = self.error or error
            return error.exit_status

    def _version(self, original: Any) -> str:
        head, _, tail = original().partition(" from ")
        return f"{head} from {self._copy.origin} {tail[tail.rindex('(') :]}"

    def _versions(self, original: Any) -> str:
        """pip's line, which other tools parse, and ours below it."""
        own = "" if active.is_adopted() else f"{os.linesep}safe-pip {__version__}"
        return self._version(original) + own

    def _create(self, original: Any, name: str, *args: Any, **kw: Any) -> Any:
        is_run, self._is_attached = not self._is_attached, True  # `help` makes another command, which does not run
        if is_run:  # `--version`, `--help` and errors import no command
            PROG._replace(module="pip._internal.cli.base_command").replace(program)
        command = original(name, *args, **kw)
        _with_own_options(command.parser)
        if is_run:
            self._attach(name, command)
            run = command.run
            command.run = lambda options, args: self._guarded(name, run, options, args)
        return command

    def _guarded(self, name: str, run: Any, options: Any, args: list[str]) -> int:
        """Run a command; an error of ours becomes its exit status here, before pip takes it for its own."""
        transaction = self.transaction
        self._begin()
        try:
            # All of ours that this command needs is loaded by now; it must be of one version.
            if not isolation.is_current():
                raise Replaced("safe-pip was replaced while this command started")
            with ExitStack() as work:
                later = work.enter_context(ExitStack())  # closed with no lock held, after pip's last message
                if name == "install":
                    self._install.options, self._install.later = options, later
                if name in ("install", "uninstall") and not getattr(options, "dry_run", False):
                    self._reserve(options, work)
                status = int(run(options, args))
                if transaction.error is not None:
                    raise transaction.error
                if name == "uninstall" and status == 0:
                    self._uninstall.commit(later)
                return status
        except Exception as error:
            found: Exception = transaction.error or error  # pip may have taken ours for something else: a failed build
            if isinstance(found, FileNotFoundError) and not fs.has_working_directory():
                found = UnusableEnvironment(NO_WORKING_DIRECTORY)
            if not isinstance(found, SafePipError):
                raise
            self.error = found
            return found.exit_status

    def _reserve(self, options: Any, locks: ExitStack) -> None:
        """For a late attempt, let others only add to what is installed until `locks` are closed.

        A command that prints a report on standard output is alone from its first attempt: a second one would print
        another report. Where an ancestor forbids the lock, nothing is reserved.
        """
        is_alone = getattr(options, "json_report_file", None) == "-"
        if is_alone or self.attempt.number >= RESERVING:
            from safe_pip.pip_seams.scheme import options_target

            environment, target = self.transaction.environment, options_target(self.transaction.path, options)
            trees = [tree for tree in environment.trees() if os.access(tree, os.W_OK)]
            with suppress(NestingRefused):
                alone = environment.exclusively(target) if is_alone else environment.reserving(target, trees)
                locks.enter_context(alone)

    def _attach(self, name: str, command: Any) -> None:
        """Attach to what `command` uses, which pip has imported by now."""
        transaction = self.transaction
        classes = {each.__name__ for each in type(command).__mro__}
        is_requirement, is_session = "RequirementCommand" in classes, "SessionCommandMixin" in classes
        module = f"pip._internal.commands.{'configuration' if name == 'config' else name}"
        if name in ("install", "debug", "lock"):
            VERSION._replace(module=module).replace(self._version)
        if name in ("config", "completion"):
            PROG._replace(module=module).replace(program)
        if name == "completion":
            scripts = COMPLETION.check()
            for shell, script in scripts.items():  # for the program `safe-pip`, with names of our own
                scripts[shell] = re.sub("-P '?pip\\[0-9.\\]#'?", "safe-pip", script.replace("_pip", "_safe_pip"))
        if is_session or "pip._internal.metadata" in sys.modules:
            self._attach_metadata()
        if is_session:
            from safe_pip.pip_seams import network

            network.attach(transaction)
        if is_requirement or name == "uninstall":
            CONTENT.replace(self._content)
        if is_requirement:
            if os.isatty(1):
                from safe_pip.pip_seams import bars

                bars.attach()
            from safe_pip.pip_seams import builds

            if watch.timeline is not None:
                from safe_pip.pip_seams import _timeline

                _timeline.attach()
            self.installed.attach_to_resolver()
            kept = builds.KeptBuilds(self.attempt, transaction)
            builds.attach(transaction, kept)
            passing = builds.attach_to_wheels(transaction, kept)
        if name in ("list", "inspect", "freeze"):
            self.installed.attach_to_paths(name)
        if name == "cache":
            from safe_pip.pip_seams import builds

            builds.attach_to_command(transaction, self._copy, self.settings.cache_limit)
        if name in ("install", "uninstall"):
            importlib.import_module("safe_pip.journal.recovery")  # later it may be that of another version
        if name == "install":
            from safe_pip.pip_seams.install import Install

            self._install = Install(transaction, self.installed, self.settings, passing)
            self._install.attach()
        if name == "uninstall":
            from safe_pip.pip_seams.uninstall import Uninstall

            self._uninstall = Uninstall(transaction, self.attempt.answered)
            self._uninstall.attach()

    def _attach_metadata(self) -> None:
        from safe_pip.pip_seams.installed import Installed

        if not hasattr(self, "installed"):
            self.installed = Installed(self.transaction)
            self.installed.attach()

    def _content(self, original: Any, url: str, *args: Any, **kw: Any) -> tuple[str, str]:
        """A file of requirements. What comes from a pipe is kept: the next attempt finds the pipe empty."""
        if url in self.attempt.inputs:
            return url, self.attempt.inputs[url]
        is_pipe = "://" not in url and os.path.exists(url) and not os.path.isfile(url)
        location, text = original(url, *args, **kw)
        if is_pipe:
            self.attempt.inputs[url] = text
        return location, text


def hand_over(variables: Mapping[str, str]) -> None:
    """Have pip start safe-pip, with these variables, for another interpreter that `--python` names."""

    def runner(original: Any) -> str:
        os.environ.update(variables)
        return RUNNER

    RUNNABLE.replace(runner)


def load_pip(place: Path) -> None:
    """Have all of pip come from `place`, which does not stay on the path: what lies there is not installed."""
    sys.path.append(str(place))
    importlib.import_module("pip")
    sys.path.remove(str(place))


def run_unchanged(args: list[str]) -> int:
    """Run pip's own main, `cli` from 26.1 on, as it is: every seam is attached by then, or every lock held."""
    module = importlib.import_module("pip._internal.cli.main")
    entry = getattr(module, "cli", None) or getattr(module, "main", None)
    if entry is None:
        raise SeamBroken("pip has no `main` in `pip._internal.cli.main`")
    return int(entry(args) or 0)


def _with_own_options(parser: Any) -> Any:
    """One of pip's parsers, whose help shows our own options too. `cli` takes them out of the command line."""
    group = optparse.OptionGroup(parser, "safe-pip Options")
    for name, each in OPTIONS.items():
        if not parser.has_option(name):  # a verb of our own has them
            action = "store" if each.option else "store_true"
            group.add_option(name, metavar=each.option or None, action=action, help=each.help)
    parser.add_option_group(group)
    return parser


def _put_tracebacks_off() -> None:
    """Have what draws tracebacks in colour imported for `--debug` only; `LazyLoader` would import it earlier."""
    name = "pip._vendor.rich.traceback"

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        sys.modules.pop(name, None)
        return getattr(importlib.import_module(name), attribute)

    sys.modules[name] = later = ModuleType(name)
    vars(later)["__getattr__"] = load


def own_verb(name: str, summary: str, **options: Any) -> Any:
    """One of safe-pip's own verbs as a command of pip, for help and completion. `cli` runs the verb itself."""
    from pip._internal.cli.base_command import Command

    class OwnVerb(Command):
        ignore_require_venv = True

        def add_options(self) -> None:
            for names, value, text in importlib.import_module("safe_pip.commands.options").listed(name):
                if not any(map(self.parser.has_option, names)):
                    action = "store" if value else "store_true"
                    self.cmd_opts.add_option(*names, metavar=value, action=action, help=text)
            self.parser.insert_option_group(0, self.cmd_opts)

        def run(self, options: Any, args: list[str]) -> int:
            # `cli` took the verb for the value of an option.
            raise UsageError(f"`{name}` stands behind an option that is not written out, or not known here")

    return OwnVerb(name, summary, **options)


def program(*original: Any) -> str:
    """The name under which this program was called, derived as pip derives its own."""
    directory, name = os.path.split(sys.argv[0])
    if name not in ("__main__.py", "-c", "-m"):
        return name
    return f"{sys.executable} -m {'pip' if os.path.basename(directory) == 'pip' else 'safe_pip'}"
