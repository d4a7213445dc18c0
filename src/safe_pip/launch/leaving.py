"""The end of this process: all that others can see of it is done, and its memory is left to the system.

An interpreter that ends takes apart what it has, object by object: for nothing, in a twelfth of a small install.
mypy leaves in the same way.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

# What `python -m` has on the stack below the module that it runs.
_OF_RUNPY = {"_run_module_as_main", "_run_code"}
_TOOLS = range(6)  # docs.python.org, `sys.monitoring`, "Tool identifiers"


def leave(status: int) -> None:
    """End this process, of which the caller's caller is the program itself, as the interpreter would.

    Threads are waited for, exit functions called, streams flushed. Returns, and the interpreter is to do it, where
    somebody is there to see how it ends (a profiler, a debugger, `-i`, `-X dev`, a program that runs this one in its
    process), and where a stream cannot be flushed: it says so then.
    """
    wait = getattr(threading, "_shutdown", None)
    call = getattr(atexit, "_run_exitfuncs", None)
    if wait is None or call is None or _is_watched() or not _is_all(sys._getframe(2)):
        return
    try:
        wait()
        call()
        for stream in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        return
    os._exit(status & 0xFF)


def _is_watched() -> bool:
    flags = sys.flags
    if flags.inspect or flags.dev_mode or flags.verbose or sys.gettrace() or sys.getprofile():
        return True
    monitoring: Any = getattr(sys, "monitoring", None)
    return monitoring is not None and any(monitoring.get_tool(tool) is not None for tool in _TOOLS)


def _is_all(frame: Any) -> bool:
    """Whether this frame is that of the program that the interpreter was started for, with nothing of another below."""
    if frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") != "__main__":
        return False
    while frame := frame.f_back:
        if frame.f_globals.get("__name__") != "runpy" or frame.f_code.co_name not in _OF_RUNPY:
            return False
    return True
