"""pip's progress bar while wheels are prepared: the one that it draws over what it installs."""

from __future__ import annotations

import logging
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pip._internal.utils.logging import get_console

from safe_pip.pip_seams.seam import Seam, SeamBroken

RENDERER = Seam("pip._internal.cli.progress_bars", "get_install_progress_renderer", ("bar_type", "total"))

_LONG = 1.0
"""After so many seconds there is something to see."""
_WHOLE = 100


class Bar:
    """Shows which of several wheels is being prepared, of a single one how much in percent is done.

    Only where pip would draw one: on a terminal, where `--progress-bar` and `-q` have nothing against it. It is gone
    when the body of the `with` statement is done.
    """

    def __init__(self, wheels: Sequence[tuple[Path, str]], bar_type: str) -> None:
        """`wheels`, each with the name of its project, in the order in which they are prepared."""
        self._order = {wheel: number for number, (wheel, _) in enumerate(wheels)}
        names = [name for _, name in wheels]
        self._names = names if len(names) > 1 else names * _WHOLE
        self._bar_type = bar_type
        self._is_wanted = False
        self._begun = 0.0
        self._drawn: Iterator[Any] | None = None
        self._at = -1

    def __enter__(self) -> Bar:
        # pip asks its loggers: they know of `-q`.
        is_quiet = not logging.getLogger("pip._internal.req").isEnabledFor(logging.INFO)
        self._is_wanted = get_console().is_terminal and not is_quiet
        self._begun = time.monotonic()
        return self

    def __call__(self, wheel: Path, share: float) -> None:
        """Show that this share of a wheel is done."""
        if not self._is_wanted or time.monotonic() < self._begun + _LONG:
            return
        if self._drawn is None:
            try:
                render = RENDERER.check()(bar_type=self._bar_type, total=len(self._names))
            except SeamBroken:  # nobody misses it who did not know that there is one
                self._is_wanted = False
                return
            self._drawn = render(types.SimpleNamespace(name=name) for name in self._names)
        at = self._order.get(wheel, 0) if len(self._order) > 1 else min(int(share * _WHOLE), _WHOLE - 1)
        while self._at < at and next(self._drawn, None) is not None:
            self._at += 1

    def __exit__(self, *exception: object) -> None:
        self._is_wanted = False
        self.clear()

    def clear(self) -> None:
        """Take it off the screen until something more is done."""
        drawn, self._drawn, self._at = self._drawn, None, -1
        if isinstance(drawn, types.GeneratorType):
            drawn.close()
