"""`safe-pip venv`: virtual environments, made complete or not at all, and replaced as a whole (PEP 405).

A new environment is made aside: in a private directory of its future directory, by the `venv` module of the chosen
Python, with the paths in it that it will have. Then that directory is renamed to `.safe-pip-venv`. From this instant on
the environment will exist, whatever is killed: its content is moved up, scripts last, and every later command that
finds `.safe-pip-venv` goes on with that, all under the lock of the directory. The process that makes a private
directory holds a lock on it, and so does the program that fills it. Without a lock it is a leftover.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path

from safe_pip import fs
from safe_pip.commands import _image
from safe_pip.commands.environments import MISLEADING, Context, Interpreter, python_of, scripts_below, trees_of
from safe_pip.commands.options import Namespace, tell
from safe_pip.environment.change import Terms
from safe_pip.environment.environment import Target
from safe_pip.environment.transaction import Transaction
from safe_pip.errors import NotMade, OtherPython, UnusableEnvironment, UsageError
from safe_pip.fs import Directory, space, watch
from safe_pip.launch.restart import RUNNER
from safe_pip.locking import flock, state_directory
from safe_pip.locking.entries import hold
from safe_pip.locking.flock import Descriptor
from safe_pip.merge.plan import ExactTree, Removal
from safe_pip.messages import say
from safe_pip.records import encoded

CONFIGURATION = "pyvenv.cfg"
_READY = ".safe-pip-venv"
_ASIDE = f"{_READY}-"
OURS = ".safe-pip"
"""How every name starts that safe-pip itself makes in the directory of an environment."""
_UV_LOCK = ".lock"
_OLD = 24 * 3600.0

# The chosen Python runs this. It ends, with all that it started, when the other end of its standard input is closed, as
# the death of its parent does. And it prints what `ensurepip` said, which `venv` keeps back.
_MAKE = """
import os, runpy, signal, subprocess, sys, threading

def end_with_parent():
    os.read(0, 1)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)

def call(*args, **options):
    try:
        return original(*args, **options)
    except subprocess.CalledProcessError as error:
        sys.stderr.buffer.write(error.output or b"")
        sys.stderr.flush()
        raise

threading.Thread(target=end_with_parent, daemon=True).start()
original, subprocess.check_output = subprocess.check_output, call
runpy.run_module("venv", run_name="__main__", alter_sys=True)
"""
_ERRNO = re.compile(r"\[Errno (\d+)\]")


def look(home: Path) -> Interpreter | None:
    """The interpreter of the environment at `home` if that is complete: it runs, and has its site-packages."""
    if fs.is_file(home / CONFIGURATION) and os.path.lexists(python_of(home)):
        with suppress(UnusableEnvironment):
            found = Interpreter.ask(python_of(home))
            is_here = os.path.realpath(found.prefix) == os.path.realpath(home)
            return found if is_here and os.path.isdir(found.purelib) else None
    return None


@contextmanager
def made_aside(home: Path, python: str, options: Sequence[str]) -> Iterator[Path]:
    """Make an environment in a private directory of `home`, with the paths in it that it has at `home`.

    At the end the directory is gone. Raises `NotMade`, `UnusableEnvironment`, `CommitFailed` where there is no room,
    and `FileNotFoundError` if `home` is removed meanwhile.
    """
    aside, descriptor = _make_private(home)
    try:
        with watch.phase("create", lambda: {"environment": str(home)}):
            _run(home, aside, descriptor, python, options)
        with space.staging(str(home)):
            _relocate(aside, re.compile(rb"[\\/]+" + re.escape(os.fsencode(aside.name))))
        yield aside
    finally:
        fs.remove_tree(aside)
        if descriptor is not None:
            descriptor.close()


def finish(home: Path, aside: Path | None = None) -> None:
    """Move what is ready, or was made aside, into its place, under the lock of `home`; a second call goes on with that.

    Raises `UnusableEnvironment` if another program has put something there.
    """
    last = scripts_below(home).name
    with space.staging(str(home)), Directory.open(home) as live:
        if aside is not None:
            fs.rename_path(aside, home / _READY)
        elif not live.exists(_READY):
            return
        with live.child(_READY) as ready:
            for name in sorted(ready.names(), key=lambda name: (name == last, name)):
                try:
                    fs.move(ready, name, live, name)
                except FileExistsError:
                    raise UnusableEnvironment(
                        f"`{live.join(name)}` is in the way of the environment that is ready in `{home / _READY}`",
                        hint="Move it away, then try again",
                        state=None,
                    ) from None
        fs.remove_directory(live, _READY)


def exchange(aside: Path, home: Path, trees: Sequence[Path], context: Context) -> None:
    """Replace all that is in `home` by what is in `aside`, a private directory in it, in one transaction (`--clear`).

    The `trees` of `home` stay the same directories: commands that hold or wait for their locks go on in the new one. If
    it raises, nothing was changed. After a crash the next command brings the old environment back.
    """
    new = home / os.path.relpath(Interpreter.ask(python_of(aside)).purelib, os.path.realpath(aside))
    trees = tuple(trees) or (new,)
    own = context.environment([*map(str, trees)])
    # One environment for all steps of the transaction: each finds the locks held that it asks for.
    transaction = Transaction(lambda path: own, tuple(map(str, trees)), durable=context.settings.durable)
    target = Target(trees, uv_lock=home / _UV_LOCK)
    # `include` is empty, and comes too.
    with transaction.staging(target, Terms(exact=ExactTree({}, ()))) as change:
        change.mirror(str(home))
        with (
            space.staging(str(aside)),
            Directory.open(aside) as made,
            Directory.open(change.staged(str(home))) as staged,
        ):
            for name in made.names():
                fs.move(made, name, staged, name)
        with own.replacing(target):
            # Listed under the lock: no other command adds anything now.
            change.remove(Removal("what was there", trees[0], frozenset(_contents(home, trees))))
            transaction.commit(change, lambda now: ())
    for tree in trees:
        if tree != new:  # of the Python that the environment had before: it is empty now
            with context.environment([str(tree)]).replacing(Target((tree,), stateless_trees=(tree,))):
                pass
            if not state_directory.exists(tree):
                fs.remove_empty_directories([tree.parent, tree])


def _contents(home: Path, trees: Sequence[Path]) -> Iterator[str]:
    """Everything in `home` but the trees, the directories above them, and what safe-pip made for itself."""
    kept = {home, *trees, *(above for tree in trees for above in tree.parents)}
    waiting = [home]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = directory / entry.name
                if path in kept and entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif not (directory in (home, *trees) and entry.name.startswith(OURS)) and path != home / _UV_LOCK:
                    yield str(path)


def sweep(home: Path) -> None:
    """Remove what killed commands had made aside; needs no lock."""
    # A command on another host may be at work in it: that host does not see the lock on a directory.
    is_shared = state_directory.is_shared(home)
    for name in fs.names(home):
        if name.startswith(_ASIDE):
            with suppress(OSError, UnusableEnvironment), hold(home / name, exclusive=True):
                if not is_shared or os.lstat(home / name).st_mtime < time.time() - _OLD:
                    fs.remove_tree(home / name)


def _make_private(home: Path) -> tuple[Path, Descriptor | None]:
    """Make a private directory in `home`, locked as long as a process uses it."""
    while True:
        try:
            aside = fs.make_private_directory(home, prefix=_ASIDE)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise space.refusal(str(home), error) from error
        if not flock.supported:
            return aside, None
        with suppress(FileNotFoundError, BlockingIOError):  # another command swept it as a leftover
            return aside, hold(aside, exclusive=True)


def _run(home: Path, aside: Path, descriptor: Descriptor | None, python: str, options: Sequence[str]) -> None:
    try:
        # In a process group of its own, which it ends as a whole.
        child = subprocess.Popen(
            [python, "-I", "-c", _MAKE, *options, str(aside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # The pip of `ensurepip` fails with "all" (Python 3.15).
            env={**os.environ, "PYTHON_LAZY_IMPORTS": "normal"},
            pass_fds=() if descriptor is None else (descriptor.fd,),
            start_new_session=True,
        )
    except OSError as error:
        raise NotMade(f"`{python}` cannot be started: {error.strerror}") from error
    with child:
        assert child.stdout is not None
        try:
            output = child.stdout.read().decode(errors="replace")
            status = child.wait()
        except BaseException:  # a Python that is a shell script does not end with its standard input
            if sys.platform == "win32":
                child.kill()
            else:
                os.killpg(child.pid, signal.SIGKILL)
            raise
    for number in map(int, _ERRNO.findall(output) if status else ()):
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise space.refusal(str(home), OSError(number, os.strerror(number)))
    if status:
        output = re.sub(rf"[\\/]+{re.escape(aside.name)}", "", output).strip()
        raise NotMade(f"`{python} -m venv` could not make an environment in `{home}`", output)


def _relocate(aside: Path, gone: re.Pattern[bytes]) -> None:
    """Change the paths in the files of the environment `aside`: the part of them that is `gone` at its future place."""
    rows: dict[bytes, bytes] = {}
    for path in [aside / CONFIGURATION, *sorted(scripts_below(aside).iterdir())]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        moved = gone.sub(b"", content)
        if moved != content:
            fs.replace(path, moved, mode=stat.S_IMODE(path.stat().st_mode))
            rows[_row(content)] = _row(moved)
    for record in (file for tree in trees_of(str(aside)) for file in tree.glob("*.dist-info/RECORD")):
        content = record.read_bytes()
        for old, row in rows.items():
            content = content.replace(old, row)
        fs.replace(record, content, mode=stat.S_IMODE(record.stat().st_mode))


def _row(content: bytes) -> bytes:
    return f"sha256={encoded(hashlib.sha256(content).digest())},{len(content)}".encode()


def main(options: Namespace, context: Context) -> int:
    for name in options.requirements:
        if "://" not in name and not os.path.exists(name):
            raise UsageError(f"there is no requirements file `{name}`")
    command = _Command(options, context)
    try:
        if options.image is not None:
            fill = partial(_fill, options, context)
            return _image.make(options, context, command.chosen, fill, command.installs())
        if not options.dry_run:
            return _make(options, context)
    except NotMade as error:
        if error.output and sys.stderr is not None:
            with suppress(OSError):
                print(error.output, file=sys.stderr, flush=True)
        raise
    said = command.foresee()
    if not options.quiet:
        tell(said)
    # Into an environment that is yet to be made, pip cannot say what it would install.
    is_kept = command.exists() and not options.clear
    return _install(options, context) if options.requirements and is_kept else 0


def _make(options: Namespace, context: Context) -> int:
    command = _Command(options, context)
    while not command.is_complete():
        _ = command.chosen  # before a lock is taken
        with suppress(FileNotFoundError):  # another command had made the directory, failed, and removed it
            command.make()
    return _install(options, context) if options.requirements else 0


def _fill(options: Namespace, context: Context, aside: Path, root: Path) -> int:
    """Make the environment `aside` for an image, with the paths in it that it has without `root`."""
    given = Namespace(**{**vars(options), "directory": str(aside), "clear": False})
    status = _make(given, context)
    if status == 0:
        trees = trees_of(given.directory)
        context.environment([*map(str, trees)]).tidy(trees)
        _relocate(aside, re.compile(re.escape(os.fsencode(root))))
    return status


class _Command:
    def __init__(self, options: Namespace, context: Context) -> None:
        self._options = options
        self._context = context
        self._shown = Path(os.path.abspath(options.directory))
        self._home = Path(os.path.realpath(options.directory))

    @cached_property
    def chosen(self) -> Interpreter:
        named = self._options.python
        return Interpreter.ask(sys.executable) if named is None else Interpreter.find(named)

    def is_complete(self) -> bool:
        """Whether the environment exists, cleared if that is asked for; raises an error if it never can."""
        trees = trees_of(str(self._home)) if fs.is_directory(self._home) else []
        for tree in filter(state_directory.has_journal, trees):
            # Undo a change of the environment whose process was killed.
            self._context.environment([str(tree)]).read(lambda: None)
        if not self.exists():
            return False
        if self._options.clear:
            with self._made() as aside:
                exchange(aside, self._home, trees_of(str(self._home)), self._context)
            self._tell("Made `{}` anew with {}")
        sweep(self._home)
        return True

    def exists(self) -> bool:
        """Whether the environment exists and may be kept, or cleared if that is asked for; raises an error if not."""
        if os.path.lexists(self._home / _READY) or not fs.is_file(self._home / CONFIGURATION):
            return False
        found, named, again = look(self._home), self._options.python, "Make it anew with `--clear`"
        if self._options.clear:
            if os.path.realpath(sys.prefix) == str(self._home):
                mine = f"`{self._shown}` is the environment that this safe-pip runs from"
                raise UsageError(f"{mine}: clear it from another")
        elif found is None:
            raise UnusableEnvironment(f"`{self._shown}` is a virtual environment that does not work", hint=again)
        elif named is not None and found.installation != self.chosen.installation:
            raise OtherPython(f"`{self._shown}` is an environment of {found.label}, not of `{named}`", hint=again)
        return True

    def foresee(self) -> str:
        """What would be done, a line each; raises an error if nothing could be."""
        if not self.exists():
            self._check_that_it_is_empty()
            said = f"Would create `{self._shown}` with {self.chosen.label}"
        elif self._options.clear:
            said = f"Would make `{self._shown}` anew with {self.chosen.label}: all that is in it would go"
        else:
            return f"`{self._shown}` exists, and would stay as it is"
        return "\n".join((said, *self.installs()))

    def installs(self) -> list[str]:
        return [f"Would install `{name}` there" for name in self._options.requirements]

    def _check_that_it_is_empty(self) -> None:
        if fs.look(self._home) and not all(name.startswith(OURS) for name in os.listdir(self._home)):
            why = f"`{self._shown}` is not a virtual environment, and not empty"
            raise UnusableEnvironment(why, hint="Choose another directory")

    def _tell(self, what: str) -> None:
        if self._options.verbose:
            tell(what.format(self._shown, self.chosen.label))

    def make(self) -> None:
        """Make the environment, or wait until another command has."""
        with self._context.environment([]).making(self._home):
            finish(self._home)
            sweep(self._home)
            if fs.is_file(self._home / CONFIGURATION):
                return
            self._check_that_it_is_empty()
            with self._made() as aside:
                finish(self._home, aside)
            self._tell("Created `{}` with {}")

    def _made(self) -> AbstractContextManager[Path]:
        prompt = self._shown.name if self._options.prompt is None else self._options.prompt
        return made_aside(self._home, self.chosen.executable, [*self._options.passed_on, "--prompt", prompt])


def _install(options: Namespace, context: Context) -> int:
    command = [sys.executable, RUNNER, "--python", str(python_of(Path(options.directory))), "install"]
    command += [*["-q"] * options.quiet, *["-v"] * options.verbose, *["--dry-run"] * options.dry_run]
    command += [word for name in options.requirements for word in ("-r", name)]
    misleading = {f"PIP_{name}" for name in MISLEADING}
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    status = subprocess.run(command, env=kept | context.settings.for_child(), check=False).returncode
    if status != 0 and not options.dry_run and options.image is None:
        say(f"error: the environment `{options.directory}` exists, without what could not be installed")
    return status if status >= 0 else 128 - status
