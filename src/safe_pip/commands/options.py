"""The command line of safe-pip's own verbs: one table for all, from which parser, help and completion come.

`argparse` takes milliseconds to import: only a command that runs a verb, or shows its options, imports this module.
`trace` and `prefix` are imported only for their options.
"""

import argparse
import importlib
import os
from argparse import Namespace as Namespace
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from safe_pip.commands import MODULES, VERBS
from safe_pip.commands.environments import Context
from safe_pip.errors import LockTimeout, UsageError
from safe_pip.launch import active
from safe_pip.launch.settings import OPTIONS, Setting, Settings, suggestion
from safe_pip.locking.waiting import Waiting
from safe_pip.messages import Reporter, output, say


def text(value: str) -> str:
    """A value that is not empty. The empty one comes from a variable that is not set, and would mean this directory."""
    if not value:
        raise argparse.ArgumentTypeError("it is empty")
    return value


def status(value: str) -> int:
    if value.isdecimal() and int(value) < 256:
        return int(value)
    raise argparse.ArgumentTypeError("it is no exit status")


Option = tuple[tuple[str, ...], dict[str, Any]]
"""One argument: its names, and what `argparse` is told of it."""


def value(*names: str, help: str, **facts: Any) -> Option:
    return names, {"type": text, "help": help, **facts}


def flag(*names: str, help: str, **facts: Any) -> Option:
    return names, {"action": "store_true", "help": help, **facts}


def env(more: str = "") -> Option:
    what = f"the environment: a virtual environment, its Python, or a prefix{more} (default: this Python's)"
    return value("--env", metavar="DIR", help=what)


JSON = flag("--json", help="print one JSON document")
DRY_RUN = flag("-n", "--dry-run", help="say what would be done, and change nothing")
HOW_MUCH: tuple[Option, ...] = (
    (("-q", "--quiet"), {"action": "count", "help": "Do not say what was changed or waited for; `-qq`: no warnings."}),
    (("-v", "--verbose"), {"action": "count", "help": "Say more."}),
)
"""Options of every verb: how much it says."""


class Verb(NamedTuple):
    description: str
    options: tuple[Option, ...]
    epilog: str = ""
    usage: str | None = None
    either: tuple[tuple[str, ...], ...] = ()
    """Options of which only one may be given."""


TABLE = {
    "adopt": Verb(
        """\
From now on `pip`, `pip3`, `pip3.X` and `python -m pip` of the environment are safe-pip, for programs that call pip
themselves: tox, nox, Makefiles. It stays so when a tool upgrades or reinstalls pip there, and `python -m pip` works
without any pip in the environment. What is installed stays as it is, and so does `import pip`.

The command writes `safe-pip-adopted.pth`, and what newer Pythons want beside it, where the environment's distributions
are. It starts the safe-pip that is installed there, or else the one that you run now, which has to stay where it is. If
that is uninstalled or moved, pip is plain pip again, and says so. If it is damaged, pip refuses to run, with status 78,
and says what to do.
""",
        (env(), DRY_RUN),
    ),
    "unadopt": Verb(
        """\
Take `safe-pip adopt` back: `pip` and `python -m pip` of the environment are what they were, byte for byte. The command
waits until no build, and no command under `safe-pip run`, uses the environment.
""",
        (env(), DRY_RUN),
    ),
    "doctor": Verb(
        """\
Compare every distribution of the environment with its metadata and RECORD, look for requirements that are missing or
in conflict, as `pip check` does, and for what interrupted commands left. Each distribution with faults is a line, which
ends with what would repair it; with `-v` each fault is one. Bytecode does not count. Notes are no faults: what another
tool looks after, what `--repair` has put aside, an environment that is adopted; `-q` leaves them out.

`--repair` first undoes or finishes transactions. One that every other command refuses is undone as far as possible;
what it has of the rest is put aside in `.safe-pip/kept-...`, never deleted. Then duplicate or empty `.dist-info`
directories and leftovers are removed, but no leftover that is all there is of a project. At last `--repair` prints what
is left, and the command that reinstalls damaged distributions in their recorded version, from where they came from.

`--filesystem DIR` tries whether locks and renames in DIR reach other hosts as safe-pip relies on. Run it on two hosts
within 60 seconds; both print the same verdict, which stays in DIR as `.safe-pip-filesystem.json`. It holds for all that
is below DIR on that filesystem. If the probe failed, commands there are refused with status 78 until one passes.
""",
        (
            flag("--repair", help="repair what can be repaired"),
            value("--filesystem", metavar="DIR", help="probe the filesystem of DIR, together with another host"),
            DRY_RUN,
            env(", or a --target directory"),
            JSON,
        ),
        """\
The exit status is 0 if the environment is sound, 1 if anything but notes was found. With `--filesystem` it is 0 if the
probe passed or there is nothing to probe, 1 if it failed, 75 if no other host came, 78 if DIR cannot be probed.
""",
        either=(("--filesystem", "--env"),),
    ),
    "merge": Verb(
        """\
Merge the directory STAGED into a prefix, as `cp -Rp STAGED/. PREFIX` does, but in one step that happens whole or not
at all, under the locks of the prefix: any number of merges and installs may run at once. Permissions, owners (for
root), times, extended attributes, hard links among the staged files, symbolic links and empty directories are kept.

A file that exists with the same content, permissions and (for root) owner is left alone, whatever its time: merging
twice is merging once. A symbolic link is left alone if its target is the same. A file in the place of a directory, or
the reverse, is refused. A staged directory over a symbolic link to a directory of the prefix goes where that link
leads; a staged link over a directory is refused, unless it leads to that directory. A distribution that is there in
another version is upgraded: its old files go. `__pycache__` and `.safe-pip` are never merged.

A merge with the `--manifest` of an earlier one takes its place: files that are staged no more go, as by `unmerge`, in
the same step. Keep the manifests of a prefix in one directory, with one suffix: then each merge knows what others put.
""",
        (
            value("staged", metavar="STAGED", help="the directory to merge"),
            value("--into", metavar="PREFIX", help="the prefix; made if missing (default: this Python's)"),
            value("--env", metavar="DIR", help="the prefix, by a virtual environment or its Python"),
            value(
                "--on-conflict",
                choices=["warn", "fail", "keep"],
                default="warn",
                metavar="warn|fail|keep",
                help="replace files that exist with other content, and name each with the distribution that owned it"
                " (warn, the default); name them, and change nothing (fail); name and keep them (keep)",
            ),
            value(
                "--manifest",
                metavar="FILE",
                help="list what was put where, for `safe-pip unmerge FILE`; what it lists already is replaced",
            ),
            value(
                "--replace", metavar="MANIFEST", help="take away what MANIFEST lists, as `unmerge` does, and MANIFEST"
            ),
            flag("--move", help="delete what was staged once it is in its place; on one filesystem nothing is copied"),
            DRY_RUN,
            JSON,
        ),
        "The exit status is 0; 1 if something is in the way, as with `--on-conflict=fail`: nothing was changed.",
        either=(("--into", "--env"),),
    ),
    "unmerge": Verb(
        """\
Remove what `safe-pip merge --manifest MANIFEST` has put into a prefix, in one step that happens whole or not at all.
It removes each file that still has the content (or, a symbolic link, the target) that the manifest lists, with the
bytecode made of it, and the directories that merges made and that are empty then. It keeps and names each file that
was changed since, that a manifest beside MANIFEST lists too, that belongs to a distribution that came later, or that
would be reached through a symbolic link. What was there before the merge stays. At the end the manifest is deleted. The
exit status is 0; 1 if MANIFEST is none.
""",
        (value("manifest", metavar="MANIFEST", help="what `safe-pip merge --manifest` wrote"), DRY_RUN, JSON),
    ),
    "run": Verb(
        VERBS["run"],
        (
            flag("--exclusive", help="let no other command use the environment: for plain pip, conda, `make install`"),
            flag("--shared", dest="exclusive", action="store_false", help="let others add to it, no more (default)"),
            value(
                "--keep",
                nargs="+",
                action="extend",
                default=[],
                metavar="NAME",
                help="let others change anything but these distributions and what these require; `--` ends the names",
            ),
            env(),
            value("--lock-dir", metavar="DIR", help="lock this directory, whatever it is; made if missing"),
            value(
                *("-E", "--conflict-exit-code"),
                type=status,
                default=LockTimeout.exit_status,
                metavar="N",
                help="the exit status if safe-pip does not get the lock (default: 75)",
            ),
            value("command", nargs=argparse.REMAINDER, type=str, metavar="COMMAND ...", help="with its arguments"),
        ),
        "The exit status is COMMAND's; 128 + n if signal n killed it; 127 if it was not found, 126 if it cannot be"
        " executed.",
        "safe-pip run [--shared | --exclusive | --keep NAME ...]\n"
        "                    [--env DIR | --lock-dir DIR] [-E N] [--] COMMAND ...",
        (("--shared", "--exclusive", "--keep"), ("--env", "--lock-dir")),
    ),
    "status": Verb(
        """\
Show which processes use, read or change the environment or wait to; which commands were interrupted, and what the next
one does about each; and whether pip is safe-pip there (`safe-pip adopt`). Of the locks on source trees and caches those
are shown that these processes hold, or that are in your cache. The command takes no lock, changes nothing, and needs no
permission to write. The exit status is 0; 1 if standard output cannot be written; 130 if Ctrl-C ended `--watch`.

`--all` shows every environment of the machine in which a process holds a lock, and the locks on all source trees and
caches. Those of other users' processes are counted only, unless you are root. An environment that is not in use is not
found.
""",
        (
            env(", or a --target directory"),
            flag("--all", help="show every environment that is in use on this machine"),
            flag("--watch", help="show it again whenever it changes, with `--json` a document on each line"),
            JSON,
        ),
        either=(("--env", "--all"),),
    ),
    "trace": Verb(
        """\
Draw what commands with `--trace DIR` (or SAFE_PIP_TRACE) did at the same time. `timeline.html` is a page for any
browser that needs no network: a lane for each process, with what it did when, and which command each wait was for.
`timeline.json` is for Perfetto (ui.perfetto.dev) and Chrome. A process that was killed, or still runs, is in it too.
""",
        (
            value("directory", metavar="DIR", help="the directory with the traces"),
            value("-o", "--output", metavar="DIR", help="where the two files go; made if missing (default: the same)"),
        ),
        "The exit status is 0; 2 if there is no trace in DIR; 78 if the files cannot be written.",
    ),
    "venv": Verb(
        """\
Create the virtual environment DIR, with all directories that are missing above it, unless it exists. If many commands
ask for it at once, one creates it and the others wait until it is complete. A program sees it only when it is complete.
If the command that creates it is killed, the next one starts anew.

An existing environment is taken as it is, whatever tool made it, if its Python runs and it has its site-packages. One
that does not work is refused, unless it is to be cleared. A directory with anything else in it is refused too.

With `--image` it becomes one file, for machines that mount it at DIR. The command prints how. FILE appears whole or not
at all, and is replaced in one step: mounts of the old one stay as they are. `mksquashfs` (squashfs-tools) makes it.
""",
        (
            value("directory", metavar="DIR", help="where the environment is to be"),
            flag("--clear", help="make an existing environment anew, in one transaction: all of DIR goes"),
            value(
                *("-r", "--requirement"),
                dest="requirements",
                action="append",
                default=[],
                metavar="FILE",
                help="then run `safe-pip install -r FILE` for it; may be repeated. If that fails the environment stays",
            ),
            value("--python", metavar="PATH", help="its Python: a path, an environment, or a name on PATH"),
            value(
                "--image",
                metavar="FILE",
                help="make it as an image (squashfs) to be mounted at DIR, and leave DIR alone; nothing is done if FILE"
                " was made of the same requirements with the same Python, unless with `--clear`",
            ),
            *(
                flag(name, dest="passed_on", action="append_const", const=name, default=[], help="passed on to `venv`")
                for name in ("--system-site-packages", "--without-pip", "--copies", "--symlinks")
            ),
            value("--prompt", type=str, help="passed on to `venv`"),
            DRY_RUN,
        ),
        """\
The exit status is pip's with `-r`; else 0 if the environment exists; 1 if the Python could not make it, or the existing
one is of another Python; 74 if the disk is full; 75 if the lock was not free in time; 78 if DIR or FILE cannot be used.
""",
    ),
}


class _Formatter(argparse.HelpFormatter):
    """Keeps paragraphs apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(each, width, indent) for each in text.strip().split("\n\n"))


def _valued(setting: Setting, name: str) -> Callable[[str], object]:
    return lambda given: setting.parse(given, name)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        meant = suggestion(unknown, self._option_string_actions)
        raise UsageError(f"{self.prog}: {message}", hint=meant or f"See `{self.prog} --help`")


def parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb. A mistake on the command line raises `UsageError`."""
    description, options, epilog, usage, either = TABLE[verb]
    made = _Parser(f"safe-pip {verb}", usage, description, epilog, allow_abbrev=False)
    made.formatter_class = _Formatter
    made.set_defaults(verb=verb)
    groups = {name: group for names in either for group in [made.add_mutually_exclusive_group()] for name in names}
    for names, facts in options:
        groups.get(names[0], made).add_argument(*names, **facts)
    general = made.add_argument_group("safe-pip options", argument_default=argparse.SUPPRESS)
    for names, facts in HOW_MUCH:
        general.add_argument(*names, default=0, **facts)
    for name, each in OPTIONS.items():
        if each.option:
            general.add_argument(name, help=each.help, type=_valued(each, name), metavar=each.option)
        else:
            general.add_argument(name, help=each.help, action="store_true")
    return made


def listed(verb: str) -> list[tuple[tuple[str, ...], str | None, str]]:
    """The options of a verb, for completion: names, what the value is called (None: it takes none), help."""
    actions = [action for action in parser(verb)._actions if action.option_strings and action.dest != "help"]
    values = [None if each.nargs == 0 else str(each.metavar or each.dest).upper() for each in actions]
    return [(tuple(each.option_strings), value, each.help or "") for each, value in zip(actions, values, strict=True)]


def tell(text: str) -> bool:
    """Print the result of a verb. False: it could not be written, which is said; not if a reader ended (`| head`)."""
    error = output(text)
    if error is not None:
        say(f"warning: standard output could not be written: {error.strerror}")
    return error is None or isinstance(error, BrokenPipeError)


def warn(options: Namespace, text: str) -> None:
    """Say that something is not as the user may expect; not with `-qq`."""
    if options.quiet < 2:
        say(f"warning: {text}")


def run(
    verb: str, args: list[str], settings: Settings, waiting: Waiting | None = None, python: str | None = None
) -> int:
    """Run a verb, or print its help; on return the exit status. `python` is what `--python` before the verb says."""
    made = parser(verb)
    made.set_defaults(**{"python" if verb == "venv" else "env": python})
    try:
        options = made.parse_args(args)
        if verb == "run" and options.command in ([], ["--"]):
            made.error("it needs a command to run")
    except SystemExit:  # after the help
        output()
        return 0
    given = {each.name: getattr(options, each.name) for each in OPTIONS.values() if hasattr(options, each.name)}
    settings = settings._replace(**given)
    if settings.prefix_output is not None:
        from safe_pip.launch import prefix

        settings = prefix.begin(settings)
    is_named = (
        getattr(options, "into", None) or getattr(options, "lock_dir", None) or getattr(options, "filesystem", None)
    )
    if getattr(options, "env", "") is None and not is_named:
        options.env, told = active.environment(os.environ)
        if told and not options.quiet:
            say(told)
    waiting = waiting or Reporter(quiet=options.quiet > 0)
    if settings.trace is not None and verb != "trace":
        from safe_pip import trace

        trace.begin(settings.trace, 1, say)
    return int(importlib.import_module(MODULES[verb]).main(options, Context(settings, waiting)))
