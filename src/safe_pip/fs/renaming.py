"""Renames with a flag, which the standard library does not offer: renameat2(2), renamex_np(2) of macOS."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

if sys.platform == "darwin":
    NO_REPLACE, EXCHANGE = 4, 2
else:
    NO_REPLACE, EXCHANGE = 1, 2

# The system call, for C libraries that do not wrap it (musl before 1.2.6): asm/unistd.h of each architecture. The
# second number is that of a 32-bit process.
_NUMBERS = {
    "x86_64": (316, 353),
    "i686": (353, 353),
    "i586": (353, 353),
    "i386": (353, 353),
    "aarch64": (276, 382),
    "armv8l": (382, 382),
    "armv7l": (382, 382),
    "armv6l": (382, 382),
    "ppc64le": (357, 357),
    "ppc64": (357, 357),
    "s390x": (347, 347),
    "riscv64": (276, 276),
    "loongarch64": (276, 276),
}

Call = Callable[[int, bytes, int, bytes, int], int]
_loaded: tuple[Call | None, Callable[[], int]] | None = None


def load() -> tuple[Call | None, Callable[[], int]]:
    """Find the function, None if there is none, and what tells its errno; from then on `rename` imports nothing."""
    global _loaded
    if _loaded is None:
        try:
            import ctypes
        except ImportError:  # an interpreter built without libffi
            _loaded = (None, int)
        else:
            _loaded = (_find(ctypes.CDLL(None, use_errno=True)), ctypes.get_errno)
    return _loaded


def _find(library: object) -> Call | None:
    import ctypes

    number, text, flags = ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    function = getattr(library, "renameatx_np" if sys.platform == "darwin" else "renameat2", None)
    if function is not None:
        function.argtypes = (number, text, number, text, flags)
        function.restype = number
        call: Call = function
        return call
    if sys.platform != "linux" or os.uname().machine not in _NUMBERS:
        return None
    which = _NUMBERS[os.uname().machine][0 if sys.maxsize > 2**32 else 1]
    system_call = getattr(library, "syscall", None)
    if system_call is None:
        return None
    system_call.argtypes = (ctypes.c_long, number, text, number, text, flags)
    system_call.restype = ctypes.c_long
    return lambda *arguments: int(system_call(which, *arguments))


def rename(source: int | None, name: str, destination: int | None, new_name: str, flag: int) -> None:
    """Rename `name` in the directory open as `source`; raises `OSError`, ENOSYS where there is no such call."""
    call, get_errno = load()
    if call is None or source is None or destination is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    # An interrupted call is no error of these: rename(2) does not know EINTR, filesystems of their own might.
    while call(source, os.fsencode(name), destination, os.fsencode(new_name), flag) != 0:
        number = get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
