"""Files in place of /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safe_pip.fs import proc, rename


def fake_proc(directory: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let safe-pip read these files of `directory` in place of /proc; `__` in a name stands for `/`."""
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(proc, "_PROC", directory)
    # What is known of the device of the tests' files holds for this test alone.
    monkeypatch.setattr(proc, "_known", {})
    monkeypatch.setattr(rename, "_without_flags", set())


def fake_mount(directory: Path, monkeypatch: pytest.MonkeyPatch, place: Path, after: str, device: str = "") -> None:
    """Let all that is on the device of `place` be on the filesystem with which a line of mountinfo ends.

    That is the only file of /proc then; it lies in `directory`.
    """
    status = os.stat(place)
    device = device or f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    fake_proc(directory, monkeypatch, self__mountinfo=f"77 76 {device} / / rw,noatime shared:1 - {after}\n")
