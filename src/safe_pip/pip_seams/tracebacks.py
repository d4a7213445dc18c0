"""pip draws tracebacks in colour for `--debug` alone: what that takes is imported then, and not by every command."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_DRAWING = "pip._vendor.rich.traceback"
_HIGHLIGHTING = "pip._vendor.pygments"


def attach() -> None:
    """Called before pip is imported."""
    sys.modules.setdefault(_DRAWING, _Later(_DRAWING))


def leave_out() -> None:
    """Called before an install without `--debug`: have pip not load, for the case of one, what would draw it."""
    command: Any = sys.modules.get("pip._internal.commands.install")
    eager = getattr(command, "_INTERNAL_EAGER_IMPORTS", None)  # from 26.3 on
    if eager is not None:
        command._INTERNAL_EAGER_IMPORTS = tuple(name for name in eager if not name.startswith(_HIGHLIGHTING))


class _Later(ModuleType):
    """In the place of a module until something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
