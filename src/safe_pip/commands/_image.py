"""`safe-pip venv DIR --image FILE`: an environment as one file (squashfs), which each host mounts at DIR.

The environment is made in a private directory of this host, `ROOT/DIR`, and the paths in it are changed to DIR. The
image is written beside FILE and renamed there. It ends with a line that names what it was made of: a command that finds
this line has nothing to do. One command builds, under the lock of `FILE.making`, which is gone when none is at work.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from safe_pip import fs
from safe_pip.commands.environments import Context, Interpreter
from safe_pip.commands.options import Namespace, tell
from safe_pip.errors import NotMade, StalePlan, UnusableEnvironment
from safe_pip.fs import Directory, space, trust
from safe_pip.locking import flock
from safe_pip.locking.entries import Entries
from safe_pip.messages import say

_MAGIC = b"hsqs"
# Every kernel has gzip. Its best level, the default, takes six times as long as this one, and saves 6 %.
_COMPRESSION = ("-comp", "gzip", "-Xcompression-level", "4")
_MARK = b"\nsafe-pip image 1 "
_SUFFIX = ".making"
_NESTED = re.compile(rb"^\s*(?:-r|-c|--requirement|--constraint)[ \t=]*(\S+)", re.MULTILINE)


class Image:
    """The image that one command asks for, and what it is made of."""

    def __init__(self, options: Namespace, python: Interpreter) -> None:
        self.path = Path(os.path.realpath(options.image))
        self.home = Path(os.path.abspath(options.directory))
        self._python, self._anew = python, bool(options.clear)
        files = [content for name in options.requirements for content in _contents(name, {})]
        kind = [os.fspath(self.home), python.installation, sysconfig.get_platform(), options.passed_on, options.prompt]
        key = hashlib.sha256(json.dumps(kind).encode())
        for content in files:
            key.update(hashlib.sha256(content).digest())
        self._line = _MARK + key.hexdigest().encode() + b"\n"

    def is_made(self) -> bool:
        """Whether FILE is the image that is asked for; raises `UnusableEnvironment` if it is no image at all."""
        try:
            with open(self.path, "rb") as file:
                start, end = file.read(len(_MAGIC)), file.seek(0, os.SEEK_END)
                file.seek(max(0, end - len(self._line)))
                line = file.read()
        except FileNotFoundError:
            if fs.is_directory(self.path.parent):
                return False
            raise UnusableEnvironment(f"the directory `{self.path.parent}` does not exist") from None
        except OSError as error:
            raise UnusableEnvironment(f"`{self.path}` cannot be read: {error.strerror}") from error
        if start != _MAGIC or not line.startswith(_MARK):
            hint = "Move it away, or choose another file"
            raise UnusableEnvironment(f"`{self.path}` is no image that safe-pip has made", hint=hint)
        return line == self._line and not self._anew

    def pack(self, tool: str, tree: Path) -> None:
        """Make the image of `tree`, and rename it to FILE. Raises `NotMade`, `OSError`."""
        made = self.path.with_name(f"{self.path.name}{_SUFFIX}-{os.urandom(8).hex()}")
        command = [tool, str(tree), str(made), "-noappend", "-no-progress", "-quiet", *_COMPRESSION]
        try:
            fs.write(made, b"", mode=0o666)
            pipe = subprocess.PIPE
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                output = done.stdout.decode(errors="replace").strip()
                if os.strerror(errno.ENOSPC) in output:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(made))
                raise NotMade(f"`mksquashfs` could not make `{self.path}`", output)
            with Directory.open(made.parent) as parent:
                with flock.Descriptor(made, writable=True) as part:
                    fs.append(part.fd, made, self._line)
                fs.sync(parent, made.name)  # the line at its end says that it is whole
                fs.move_over(parent, made.name, parent, self.path.name)
                fs.sync(parent)
        except FileNotFoundError:
            raise StalePlan((), f"another host has taken over to make `{self.path}`") from None
        finally:
            fs.unlink(made)

    @contextlib.contextmanager
    def making(self, context: Context) -> Iterator[None]:
        """Be the only process that makes it, unless it is made by then; at the end no other file is left."""
        with context.environment([]).producing(self._lock, self.path, self.is_made):
            try:
                self._remove_parts()
                yield
            finally:
                fs.unlink(self._lock)

    def sweep(self) -> None:
        """Remove what killed commands have left on this host and beside it, unless another one is at work."""
        if place := trust.own_temporary(makes=False):
            _asides(place).sweep()
        with contextlib.suppress(OSError, UnusableEnvironment):
            if os.path.lexists(self._lock):
                with flock.Descriptor(self._lock, writable=True) as held:
                    if flock.try_lock(held, exclusive=True) and held.is_current():
                        self._remove_parts()
                        fs.unlink(self._lock)

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}{_SUFFIX}")

    def _remove_parts(self) -> None:
        for name in fs.readable_names(self.path.parent):
            if name.startswith(f"{self._lock.name}-"):
                fs.unlink(self.path.with_name(name))


def _contents(name: str, read: dict[str, bytes]) -> list[bytes]:
    """A requirements file and those that it names. Of a URL, or a file that cannot be read, the name counts."""
    if name not in read:
        read[name] = os.fsencode(name)
        with contextlib.suppress(OSError):
            read[name] = Path(name).read_bytes()
            for nested in _NESTED.findall(read[name]):
                _contents(os.path.join(os.path.dirname(name), os.fsdecode(nested)), read)
    return list(read.values())


def make(
    options: Namespace, context: Context, python: Interpreter, fill: Callable[[Path, Path], int], foresee: list[str]
) -> int:
    """Make the image unless it is up to date; `fill` makes the environment of a directory below a root."""
    image = Image(options, python)
    said = f"`{image.path}` is up to date"
    if not image.is_made():
        tool = shutil.which("mksquashfs")
        if tool is None:
            hint = "Install squashfs-tools (`apt-get install squashfs-tools`, `dnf install squashfs-tools`)"
            raise UnusableEnvironment("`mksquashfs` is not on PATH: it makes the image", hint=hint)
        if options.dry_run:
            said = "\n".join((f"Would make `{image.path}`, to be mounted at `{image.home}`", *foresee))
        else:
            with image.making(context):
                if not image.is_made():
                    if status := _build(image, tool, fill):
                        say(f"error: `{image.path}` was not made. Nothing was changed")
                        return status
                    said = f"Made `{image.path}`. Mount it at `{image.home}`:\n{_mounting(image)}"
    if not options.dry_run:
        image.sweep()
    if not options.quiet:
        tell(said)
    return 0


def _asides(place: Path) -> Entries:
    return Entries(place / "images", place / "images")


def _build(image: Image, tool: str, fill: Callable[[Path, Path], int]) -> int:
    try:
        place = trust.own_temporary(makes=True)
        assert place is not None
        with _asides(place).making() as root:
            tree = root / image.home.relative_to(image.home.anchor)
            status = fill(tree, root)
            if status == 0:
                image.pack(tool, tree)
            return status
    except OSError as error:
        raise space.refusal(str(image.path.parent), error) from error


def _mounting(image: Image) -> str:
    paths = shlex.join(map(str, (image.path, image.home)))
    return f"  mount -o loop,ro {paths}\nor, without root:\n  squashfuse {paths}"
