"""Renames: never over anything, over a file, and two entries for each other (renameat2(2), renamex_np(2) of macOS).

`ctypes` is imported by `load`: commands that rename nothing do not need it, and some interpreters have none.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable

from safe_pip.fs import proc
from safe_pip.fs.directory import Directory, make_directory
from safe_pip.fs.files import remove_below
from safe_pip.fs.watch import Changing

NO_REPLACE, EXCHANGE = 4 if sys.platform == "darwin" else 1, 2

# The system call in a 64-bit process, for C libraries that do not wrap it: asm/unistd.h of each architecture.
_NUMBERS = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "loongarch64": 276, "s390x": 347, "ppc64le": 357}
# What a kernel or a filesystem answers that does not know the flag; an old sandbox answers EPERM.
_NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}

_FLAGLESS = {"fuse.glusterfs", "nfs", "nfs4"}
_without_flags: set[int] = set()
"""Devices of file servers on which a rename succeeded only without the flag: it is not tried there again."""

Call = Callable[[int, bytes, int, bytes, int], int]


@functools.cache
def load() -> tuple[Call, Callable[[], int]] | None:
    """The system call and its errno; None where there is none."""
    try:
        import ctypes
    except ImportError:  # an interpreter built without libffi
        return None
    library = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function = getattr(library, "renameatx_np" if sys.platform == "darwin" else "renameat2", None)
    if function is not None:
        function.argtypes = arguments
        return function, ctypes.get_errno
    system_call = getattr(library, "syscall", None)
    if system_call is None or sys.platform != "linux" or sys.maxsize < 2**32 or os.uname().machine not in _NUMBERS:
        return None
    system_call.argtypes, system_call.restype = (ctypes.c_long, *arguments), ctypes.c_long
    return functools.partial(system_call, _NUMBERS[os.uname().machine]), ctypes.get_errno


def _rename(source: int | None, name: str, destination: int | None, new_name: str, flag: int) -> None:
    """Rename with `flag`; raises `OSError`, ENOSYS where there is no such call."""
    if (found := load()) is None or source is None or destination is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call, get_errno = found
    # rename(2) has no EINTR, but a filesystem in user space may answer it: then the call is repeated.
    while call(source, os.fsencode(name), destination, os.fsencode(new_name), flag) != 0:
        if (number := get_errno()) != errno.EINTR:
            raise OSError(number, os.strerror(number))


def move(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Rename; raises `FileExistsError` if the new name is taken: in one step or, where there is none, after a look."""
    old, new = source.at(name), destination.at(new_name)
    with Changing("move", destination.join(new_name), source.join(name)):
        if sys.platform == "win32":
            os.rename(old, new)
            return
        device = destination.identity[0]
        try:
            if device not in _without_flags and proc.kind_of_device(device, destination.path) not in _FLAGLESS:
                _rename(source.fd, old, destination.fd, new, NO_REPLACE)
                return
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
        if destination.exists(new_name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(old, new, src_dir_fd=source.fd, dst_dir_fd=destination.fd)
        if proc.is_shared_device(device, destination.path):
            _without_flags.add(device)


def move_fresh(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Rename to a name that no other process uses, such as one with a random part: no look whether it is taken."""
    with Changing("move", destination.join(new_name), source.join(name)):
        os.rename(source.at(name), destination.at(new_name), src_dir_fd=source.fd, dst_dir_fd=destination.fd)


def move_over(source: Directory, name: str, destination: Directory, new_name: str) -> None:
    """Rename over a file: readers find the old file or the new one. The old name goes, also if both were one file."""
    with Changing("move_over", destination.join(new_name), source.join(name)):
        os.replace(source.at(name), destination.at(new_name), src_dir_fd=source.fd, dst_dir_fd=destination.fd)
        if (source.identity, name) != (destination.identity, new_name):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(source.stat(name), destination.stat(new_name)):  # they were links to one file
                    os.unlink(source.at(name), dir_fd=source.fd)


def exchange(one: Directory, name: str, other: Directory, other_name: str) -> None:
    """Let two entries of any kind change places in one step; `OSError` where the kernel or the filesystem cannot."""
    old, new = one.at(name), other.at(other_name)
    with Changing("exchange", other.join(other_name), one.join(name)):
        _rename(one.fd, old, other.fd, new, EXCHANGE)


def can_exchange(directory: Directory) -> bool:
    """Whether directories can be exchanged there; two are made for it in the private `directory`, and removed."""
    if proc.kind_of_device(directory.identity[0], directory.path) in _FLAGLESS:
        return False
    first, second = "exchange-first", "exchange-second"
    try:
        for name in (first, second):
            make_directory(directory, name)
        with directory.child(first) as below:
            make_directory(below, "inner")
        exchange(directory, first, directory, second)
        with directory.child(second) as below:
            return below.exists("inner")
    except OSError:
        return False
    finally:
        for name in (first, second):
            with contextlib.suppress(OSError):
                remove_below(directory, name)
