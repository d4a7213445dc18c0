"""Files in place of /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_pip.fs import proc


def fake_proc(directory: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let safe-pip read these files of `directory` in place of /proc; `__` in a name stands for `/`."""
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(proc, "_PROC", directory)
