"""pip's own phases in the timeline: resolving, downloading, building. Imported only if there is a timeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from safe_pip.fs import proc, watch
from safe_pip.pip_seams.builds import HOOK
from safe_pip.pip_seams.seam import Seam, SeamBroken

RESOLVE = Seam("pip._internal.resolution.resolvelib.resolver", "Resolver.resolve", ("self", "root_reqs"))
DOWNLOAD = Seam("pip._internal.network.download", "Downloader.__call__", ("self", "link", "location"))
_BUILD = "pip._internal.build_env"
TOOLS = [Seam(_BUILD, f"{kind}BuildEnvironmentInstaller.install") for kind in ("Subprocess", "Inprocess")]


def attach() -> None:
    """Note when pip is in which phase. A pip that has no such place has no such phase in the timeline."""
    _note(RESOLVE, "resolve", lambda *args, **kw: {})
    _note(DOWNLOAD, "download", lambda downloader, link, *args, **kw: {"file": proc.printable(link.filename)})
    _note(HOOK, "build", lambda caller, hook, *args, **kw: {"source": caller.source_dir, "hook": hook})
    for seam in TOOLS:
        _note(seam, "build", lambda installer, requirements, *args, **kw: {"requires": list(map(str, requirements))})


def _note(seam: Seam, phase: str, details: Callable[..., dict[str, object]]) -> None:
    def noted(original: Any, *args: Any, **kw: Any) -> Any:
        with watch.phase(phase, lambda: details(*args, **kw)):
            return original(*args, **kw)

    with suppress(SeamBroken):
        seam.replace(noted)
