"""Staged trees, the prefixes that they are merged into, and the full content of both."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import safe_pip
from safe_pip.commands.environments import Context
from safe_pip.commands.merge import Merged, Request, merge
from safe_pip.commands.merge.unmerge import Unmerged, unmerge
from safe_pip.environment.environment import Prefix
from safe_pip.environment.transaction import Transaction
from safe_pip.launch.settings import Settings
from tests.support.faults.transaction import Link
from tests.support.venvs.direct_installs import SilentReporter
from tests.support.wheels.tiny import digest

SITE = "lib/python3.13/site-packages"
STAMP = 1_000_000_000
LOCKS = {"commit", "commit.gate", "environment.gate", "keep", "keep.gate", "environment", "owner"}

context = Context(Settings(lock_timeout=30), SilentReporter())


def stage(directory: Path, files: Mapping[str, str | Link | None]) -> Path:
    """Make a tree: files with these texts, links, and directories (None); all with times of long ago."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, Link):
            path.symlink_to(content)
        else:
            path.write_text(content)
            if path.parent.name == "bin":
                path.chmod(0o755)
    age(directory)
    return directory


def age(directory: Path) -> None:
    """Give all that is in a tree a time of its own, long ago."""
    for number, (where, _, names) in enumerate(sorted(os.walk(directory), reverse=True)):
        for name in sorted(names):
            path = os.path.join(where, name)
            os.utime(path, (STAMP + number, STAMP + number + len(name)), follow_symlinks=False)
        os.utime(where, (STAMP + number, STAMP - number))


def distribution(name: str, version: str, files: Mapping[str, str], tree: str = SITE) -> dict[str, str]:
    """What an installer stages for a distribution: `files` are relative to the prefix."""
    info = f"{tree}/{name}-{version}.dist-info"
    content = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/INSTALLER": "pip\n",
    }
    rows = [f"{os.path.relpath(path, tree)},{digest(text.encode())},{len(text)}" for path, text in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{os.path.relpath(info, tree)}/RECORD,,"]) + "\n"
    return content


class MergePrefix:
    """A prefix, to merge into within this process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))

    def merge(self, staged: Path, policy: str = "warn", *, durable: bool = False, **more: Any) -> Merged:
        """Merge a tree into it."""
        settings = Context(Settings(lock_timeout=30, durable=durable), SilentReporter())
        request = Request(Path(os.path.realpath(staged)), policy, **more)
        return merge(request, lambda: Prefix.at(self.path), settings.transaction)

    def unmerge(self, manifest: Path, *, is_trial: bool = False) -> Unmerged:
        """Take away what a manifest lists, and the manifest."""
        return unmerge(manifest, lambda: Prefix.at(self.path), context.transaction, is_trial=is_trial)

    def content(self) -> dict[str, str]:
        """Kind, permissions and content of every entry, without safe-pip's own files."""
        return {path: " ".join(said[:3]) for path, said in exact(self.path).items()}

    def private(self) -> list[str]:
        """What transactions have left in it: private directories, journals, marks and markers."""
        found = []
        for where, directories, names in os.walk(self.path):
            if os.path.basename(where) == ".safe-pip":
                found += [os.path.join(where, name) for name in (*directories, *names) if name not in LOCKS]
                directories.clear()
            found += [os.path.join(where, name) for name in (*directories, *names) if name.startswith(".safe-pip-")]
        return found


def exact(root: Path) -> dict[str, tuple[str, ...]]:
    """All entries with all properties: kind, permissions, content or target, owner, time, hard links, attributes."""
    found: dict[str, tuple[str, ...]] = {}
    linked: dict[tuple[int, int], str] = {}
    for where, directories, names in os.walk(root):
        directories[:] = sorted(name for name in directories if not name.startswith(".safe-pip"))
        for name in (*directories, *sorted(names)):
            if name.startswith(".safe-pip"):
                continue
            path = os.path.join(where, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            content, group, attributes = "", "", ""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                group = linked.setdefault((status.st_dev, status.st_ino), relative)
                attributes = _attributes(path)
            said = stat.filemode(status.st_mode)
            owner = f"{status.st_uid}:{status.st_gid}"
            found[relative] = said[0], said[1:], content, owner, str(status.st_mtime_ns), group, attributes
    return found


def _attributes(path: str) -> str:
    if sys.platform != "linux":
        return ""
    try:
        return str({name: os.getxattr(path, name) for name in os.listxattr(path)})
    except OSError:
        return ""


def command(*args: object) -> list[str]:
    """The command line of safe-pip, of this checkout."""
    return [sys.executable, "-m", "safe_pip", *map(str, args)]


def variables() -> dict[str, str]:
    """The environment variables of a safe-pip command."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFE_PIP_", "PIP_"))}
    return kept | {"PYTHONPATH": str(Path(safe_pip.__file__).parent.parent)}


def start(*args: object, **more: Any) -> subprocess.Popen[str]:
    """Start safe-pip."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*args), **({"env": variables()} | pipes | more))


def run(*args: object, status: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run safe-pip to its end; it must exit with `status`."""
    process = start(*args, **more)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    told = f"{' '.join(map(str, args))} exited {process.returncode}:\n{out}{err}"
    assert process.returncode == status, told
    assert "Traceback" not in out + err, told
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def all_end(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Wait for all of them; on return what went wrong with those that failed."""
    wrong = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        if process.returncode or "Traceback" in err:
            wrong.append(f"{process.returncode}: {out}{err}")
    return wrong


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something when the next merge has compared, and not planned yet."""
    original = Transaction.commit

    def commit(*args: Any) -> Any:
        monkeypatch.setattr(Transaction, "commit", original)
        act()
        return original(*args)

    monkeypatch.setattr(Transaction, "commit", commit)
