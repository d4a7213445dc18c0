"""pip's progress bars and spinners, which overwrite what another safe-pip writes to the same terminal."""

from contextlib import suppress
from typing import Any

from pip._internal.cli.spinners import NonInteractiveSpinner

from safe_pip.locking import terminal
from safe_pip.pip_seams.seam import Seam, SeamBroken

DOWNLOAD = Seam("pip._internal.network.download", "get_download_progress_renderer", ("bar_type",))
INSTALL = Seam("pip._internal.req", "get_install_progress_renderer", ("bar_type",))
SPINNER = Seam("pip._internal.cli.spinners", "InteractiveSpinner")


def attach() -> None:
    """Have pip begin no bar and no spinner while another safe-pip writes to the terminal. What is drawn goes on."""
    terminal.is_shared(1)

    def renderer(original: Any, **kw: Any) -> Any:
        is_off = kw.get("bar_type") == "on" and terminal.is_shared(1)
        return original(**kw | {"bar_type": "off"} if is_off else kw)

    def spinner(original: Any, message: str, *args: Any, **kw: Any) -> Any:
        return NonInteractiveSpinner(message) if terminal.is_shared(1) else original(message, *args, **kw)

    for seam, wrapper in ((DOWNLOAD, renderer), (INSTALL, renderer), (SPINNER, spinner)):
        with suppress(SeamBroken):  # a bar is no reason to take an exclusive lock
            seam.replace(wrapper)
