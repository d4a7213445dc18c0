"""Virtual environments: whether there is one, and how one comes to be, complete or not at all (PEP 405).

It is made aside, in a private directory of the one that is to be it, by the `venv` module of the chosen Python, with
the paths in it that it will have. Then that directory is renamed to `.safe-pip-venv`: from this instant on it will be
there, whoever is killed. What is in it is moved up, name by name, scripts last; who finds `.safe-pip-venv` goes on with
that. So an interpreter that can be found means that all the rest is there. All of it happens under the lock of the
directory (`Environment.making`), which needs nothing but to exist.

What makes a private directory holds a lock on it, and so does the program that fills it, which may live longer: it ends
with its parent, but not in the same instant. What nobody has locked is litter.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safe_pip import fs
from safe_pip.locking import flock
from safe_pip.fs import space
from safe_pip.errors import NotMade, UnusableEnvironment
from safe_pip.fs import Directory
from safe_pip.commands.venv.interpreter import Interpreter, python_of, scripts_of
from safe_pip.locking.flock import Descriptor

CONFIGURATION = "pyvenv.cfg"
_READY = ".safe-pip-venv"
_ASIDE = f"{_READY}-"
OURS = ".safe-pip"
"""What the names of all that is ours in the directory of an environment begin with."""

# In the chosen Python. It ends, with all that it started, when the other end of its standard input is closed, which the
# death of its parent does as well; and it does not keep to itself what `ensurepip` said.
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


def is_configured(home: Path) -> bool:
    """Whether the directory says that it is a virtual environment, working or not."""
    return (home / CONFIGURATION).is_file()


def look(home: Path) -> Interpreter | None:
    """The interpreter of the virtual environment at `home`, if that is complete: it runs, and has its site-packages.

    One that any other tool has made counts; one of ours whose parts are still being moved does not.
    """
    if not is_configured(home) or not os.path.lexists(python_of(home)):
        return None
    try:
        found = Interpreter.ask(python_of(home))
    except UnusableEnvironment:
        return None
    is_here = os.path.realpath(found.prefix) == os.path.realpath(home)
    return found if is_here and os.path.isdir(found.purelib) else None


def is_moving(home: Path) -> bool:
    """Whether the parts of a new environment are being moved, or were when somebody was killed."""
    return os.path.lexists(home / _READY)


def is_empty(home: Path) -> bool:
    """Whether nothing is in the directory but what is ours."""
    return all(name.startswith(OURS) for name in os.listdir(home))


@contextmanager
def made_aside(home: Path, python: str, options: Sequence[str]) -> Iterator[Path]:
    """Make an environment in a private directory of `home`, with the paths in it that it has at `home`.

    On return of the body the directory is gone, but for what was moved away. Raises `NotMade`, `UnusableEnvironment`,
    `CommitFailed` where there is no room, and `FileNotFoundError` if `home` is removed meanwhile.
    """
    aside, descriptor = _make_private(home)
    try:
        _run(home, aside, descriptor, python, options)
        with space.staging(str(home)):
            _relocate(aside)
        yield aside
    finally:
        fs.remove_tree(aside)
        if descriptor is not None:
            descriptor.close()


def put(aside: Path, home: Path) -> None:
    """Let what was made aside be the environment at `home`, which is empty; the caller holds its lock.

    Raises `UnusableEnvironment`, with nothing changed, for what has come in between. After a crash the next one that
    calls `finish` goes on.
    """
    taken = [name for name in sorted(os.listdir(aside)) if os.path.lexists(home / name)]
    if taken:
        raise UnusableEnvironment(f"`{home / taken[0]}` was put there while the environment was made")
    with space.staging(str(home)):
        fs.rename_path(aside, home / _READY)
    finish(home)


def finish(home: Path) -> None:
    """Move what is ready into its place; the caller holds the lock of `home`. Again it does nothing."""
    if not is_moving(home):
        return
    last = scripts_of(home).name
    with space.staging(str(home)), Directory.open(home) as live:
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


def sweep(home: Path) -> None:
    """Remove what was made aside by those who were killed; never raises, and needs no lock."""
    if not flock.supported:
        return
    with suppress(OSError):
        for name in os.listdir(home):
            if name.startswith(_ASIDE):
                with suppress(OSError, UnusableEnvironment):
                    descriptor = Descriptor(home / name)
                    try:
                        if flock.try_lock(descriptor, exclusive=True):
                            fs.remove_tree(home / name)
                    finally:
                        descriptor.close()


def _make_private(home: Path) -> tuple[Path, Descriptor | None]:
    """Make a private directory in `home`, locked as long as somebody has it."""
    while True:
        try:
            aside = fs.make_private_directory(home, prefix=_ASIDE)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise space.refusal(str(home), error) from error
        if not flock.supported:
            return aside, None
        try:
            descriptor = Descriptor(aside)
        except FileNotFoundError:
            continue  # taken for litter
        if flock.try_lock(descriptor, exclusive=True) and descriptor.is_current():
            return aside, descriptor
        descriptor.close()


def _run(home: Path, aside: Path, descriptor: Descriptor | None, python: str, options: Sequence[str]) -> None:
    """Run the `venv` module of `python` for the directory `aside`."""
    command = [python, "-I", "-c", _MAKE, *options, str(aside)]
    with _held_back() as let_through:
        try:
            # A group of its own, which it can end as a whole.
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=() if descriptor is None else (descriptor.fd,),
                start_new_session=True,
            )
        except OSError as error:
            raise NotMade(f"`{python}` cannot be started: {error.strerror}") from error
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            let_through()
            output = child.stdout.read().decode(errors="replace")
            status = child.wait()
        except BaseException:
            if sys.platform == "win32":
                child.kill()
            else:
                os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            child.stdin.close()
            child.stdout.close()
            child.wait()
    if status != 0:
        raise _failure(home, python, re.sub(rf"[\\/]+{re.escape(aside.name)}", "", output).strip())


@contextmanager
def _held_back() -> Iterator[Callable[[], None]]:
    """Hold a Ctrl-C back until what is yielded is called: what is just being started would not be ended by it."""
    if sys.platform == "win32":
        yield lambda: None
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def let_through() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        yield let_through
    finally:
        let_through()


def _failure(home: Path, python: str, output: str) -> Exception:
    """What to raise when the environment could not be made, from what was said about it."""
    numbers = {int(number) for number in _ERRNO.findall(output)}
    for number in (errno.ENOSPC, errno.EDQUOT):
        if number in numbers:
            return space.refusal(str(home), OSError(number, os.strerror(number)))
    return NotMade(f"`{python} -m venv` could not make an environment in `{home}`", output)


def _relocate(aside: Path) -> None:
    """Have the files in `aside` name the directory that it lies in, where they name itself."""
    here = re.compile(rb"[\\/]+" + re.escape(os.fsencode(aside.name)))
    digests: dict[bytes, bytes] = {}
    for path in [aside / CONFIGURATION, *sorted(scripts_of(aside).iterdir())]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        moved = here.sub(b"", content)
        if moved != content:
            fs.replace(path, moved, mode=stat.S_IMODE(path.stat().st_mode))
            digests[_row(content)] = _row(moved)
    purelib = Path(Interpreter.ask(python_of(aside)).purelib)
    for record in sorted(purelib.glob("*.dist-info/RECORD")):
        content = new = record.read_bytes()
        for old, digest in digests.items():
            new = new.replace(old, digest)
        if new != content:
            fs.replace(record, new, mode=stat.S_IMODE(record.stat().st_mode))


def _row(content: bytes) -> bytes:
    """Digest and size of a file as a RECORD has them (PyPA specification "Recording installed projects")."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return b"sha256=%s,%d" % (digest, len(content))
