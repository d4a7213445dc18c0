"""pip opens a wheel four times and reads its table of contents each time: of thousands of files it takes a while."""

from __future__ import annotations

import os
import types
import zipfile
from contextlib import suppress
from typing import Any, ClassVar

from safe_pip.pip_seams.seam import Seam, SeamBroken

METADATA = Seam("pip._internal.metadata.base", "zipfile")
INSTALLED = Seam("pip._internal.operations.install.wheel", "ZipFile")

_READ = "_RealGetContents"
_CONTENTS = ("_comment", "start_dir", "filelist", "NameToInfo")
"""What the standard library's own reading of the table leaves behind; where it leaves it elsewhere, it reads again."""


class Archive(zipfile.ZipFile):
    """A wheel whose table of contents is read once, for as long as the file stays the same by identity and times."""

    _known: ClassVar[dict[object, dict[str, Any]]] = {}

    def _RealGetContents(self) -> None:
        read: Any = getattr(super(), _READ)
        if not isinstance(self.filename, str) or self.fp is None:
            read()
            return
        status = os.fstat(self.fp.fileno())
        key = (self.filename, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._known.get(key)
        if known is not None:
            vars(self).update(known)
            return
        read()
        if all(name in vars(self) for name in _CONTENTS):
            self._known[key] = {name: vars(self)[name] for name in _CONTENTS}


def attach_to_metadata() -> None:
    """Have pip use it for what it reads of wheels while it resolves."""
    with suppress(SeamBroken):  # it is only slower then
        METADATA.put(types.SimpleNamespace(**{**vars(zipfile), "ZipFile": Archive}))


def attach_to_wheels() -> None:
    """Have pip use it for what it installs."""
    with suppress(SeamBroken):
        INSTALLED.put(Archive)
