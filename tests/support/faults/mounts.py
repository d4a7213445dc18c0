"""Filesystems that are mounted for one test, and always unmounted when it ends. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="takes root on Linux, to mount or to act as another user"
)


@contextlib.contextmanager
def mounted(directory: Path, *words: str | Path) -> Iterator[None]:
    """Within, something is mounted over `directory` (mount(8)); skips where that is refused."""
    done = subprocess.run(["mount", *words, directory], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        if subprocess.run(["umount", directory], capture_output=True).returncode:  # a process still uses it
            subprocess.run(["umount", "-l", directory], check=True)


def tmpfs(directory: Path, *options: str) -> contextlib.AbstractContextManager[None]:
    """Within, `directory` is empty and in memory."""
    return mounted(directory, "-t", "tmpfs", *options, "tmpfs")


@contextlib.contextmanager
def ext4(directory: Path, image: Path, size: int = 8 << 20) -> Iterator[None]:
    """Within, `directory` is an ext4 of its own in the file `image`, which is made."""
    with _in_file("ext4", directory, image, size, "-q", "-F"):
        (directory / "lost+found").rmdir()
        yield


def sharing(kind: str, directory: Path, image: Path) -> contextlib.AbstractContextManager[None]:
    """Within, `directory` is a filesystem whose files can share blocks, `btrfs` or `xfs`, in the file `image`."""
    options = {"btrfs": ("-q", "-f"), "xfs": ("-q", "-f", "-m", "reflink=1")}[kind]
    return _in_file(kind, directory, image, 512 << 20, *options)


@contextlib.contextmanager
def _in_file(kind: str, directory: Path, image: Path, size: int, *options: str) -> Iterator[None]:
    program = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', os.defpath)}:/sbin:/usr/sbin")
    if program is None:
        pytest.skip(f"there is no mkfs.{kind}")
    with open(image, "wb") as file:  # which takes no room where nothing is written
        file.truncate(size)
    subprocess.run([program, *options, image], check=True, capture_output=True)
    with mounted(directory, "-o", "loop", image):
        yield


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Within, no user may write in `directory`, not even root."""
    with mounted(directory, "--bind", directory):
        subprocess.run(["mount", "-o", "remount,ro,bind", directory], check=True)
        yield


def overlay(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Within, `directory/merged` shows `directory/lower` below `directory/upper`, which stays afterwards."""
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir(exist_ok=True)
    layers = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    return mounted(directory / "merged", "-t", "overlay", "-o", layers, "overlay")
