"""A seam: a name in pip that is replaced where pip uses it, checked to be what is expected before pip runs."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

from safe_pip.errors import SafePipError


class SeamBroken(SafePipError):
    """pip is not as expected at a seam (a newer pip than was tested): the command runs under one exclusive lock."""

    code = "seam-broken"


class Seam(NamedTuple):
    """One name in pip: `attribute` of `module`, either a function that takes at least `parameters`, or any object."""

    module: str
    attribute: str
    parameters: tuple[str, ...] | None = None

    def check(self) -> Any:
        """The object as pip has it; raises `SeamBroken` if it is missing or takes other parameters."""
        return self._find()[2]

    def _find(self) -> tuple[Any, str, Any]:
        """Its owner, its name there and the object."""
        found = None
        with contextlib.suppress(ImportError, AttributeError):
            owner: Any = importlib.import_module(self.module)
            *classes, name = self.attribute.split(".")
            for part in classes:
                owner = getattr(owner, part)
            getattr(owner, name, None)  # a lazy import (Python 3.15) takes place now
            found = inspect.getattr_static(owner, name, None)
        found = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        if found is None:
            raise SeamBroken(f"pip has no `{self.attribute}` in `{self.module}`")
        if self.parameters is not None:
            self._check_parameters(found)
        return owner, name, found

    def replace(self, wrapper: Callable[..., Any]) -> Any:
        """Have pip call `wrapper(original, *args, **kw)` in its place; returns the original."""
        owner, name, original = self._find()

        @functools.wraps(original)
        def replacement(*args: Any, **kw: Any) -> Any:
            return wrapper(original, *args, **kw)

        static = type(inspect.getattr_static(owner, name))
        setattr(owner, name, static(replacement) if static in (staticmethod, classmethod) else replacement)
        return original

    def put(self, value: object) -> None:
        """Have pip use `value` in its place."""
        owner, name, _ = self._find()
        setattr(owner, name, value)

    def _check_parameters(self, found: Any) -> None:
        if isinstance(found, FunctionType) and not hasattr(found, "__wrapped__") and self.parameters:
            code = found.__code__  # takes no time; the signature knows more, and is asked if this misses
            if set(self.parameters).issubset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]):
                return
        try:
            signature = inspect.signature(found)
            if not self.parameters:
                signature.bind(*[name for name in signature.parameters if name == "cls"])
        except (TypeError, ValueError):
            raise SeamBroken(f"`{self.attribute}` in `{self.module}` cannot be called as before") from None
        missing = [name for name in self.parameters or () if name not in signature.parameters]
        if missing:
            raise SeamBroken(f"`{self.attribute}` in `{self.module}` does not take `{missing[0]}`")


def arguments(function: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]) -> dict[str, Any]:
    """What a call with `args` and `kw` gives each parameter of `function`, defaults included."""
    bound = inspect.signature(function).bind(*args, **kw)
    bound.apply_defaults()
    return bound.arguments
