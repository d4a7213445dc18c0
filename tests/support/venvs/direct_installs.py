"""Small distributions that the real transaction installs and removes, without pip, in milliseconds."""

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safe_pip.environment.change import Change
from safe_pip.environment.environment import Environment, Target
from safe_pip.environment.snapshot import Snapshot
from safe_pip.environment.transaction import Transaction
from safe_pip.merge.plan import Removal

STAMP = 1_000_000_000


class SilentReporter:
    """Reports no wait."""

    def waiting(self, event: object) -> None:
        pass

    def granted(self, event: object, seconds: float) -> None:
        pass


class SmallDistribution(NamedTuple):
    """A distribution: its files, by their paths relative to the prefix (`site/...`, `bin/...`)."""

    project: str
    version: str
    files: Mapping[str, str]

    def content(self) -> dict[str, str]:
        """All its files, its metadata included."""
        info = f"site/{self.project}-{self.version}.dist-info"
        names = [*self.files, f"{info}/METADATA", f"{info}/RECORD"]
        rows = "".join(f"{os.path.relpath(name, 'site')},,\n" for name in names)
        return {**self.files, f"{info}/METADATA": f"Name: {self.project}\n", f"{info}/RECORD": rows}


class DirectPrefix:
    """A prefix with the tree `site` and scripts in `bin`."""

    def __init__(self, root: Path, *, shared_bin: bool = False) -> None:
        self.root = Path(os.path.realpath(root))
        self.site, self.bin = self.root / "site", self.root / "bin"
        for directory in (self.site, self.bin):
            directory.mkdir(parents=True, exist_ok=True)
        self.target = Target((self.site,), (self.bin,) if shared_bin else ())

    def transaction(self, **options: Any) -> Transaction:
        """A new command's."""
        environments: Callable[[Sequence[str]], Environment] = functools.partial(
            Environment, waiting=SilentReporter(), timeout=10
        )
        return Transaction(environments, [str(self.site)], **options)

    def change(
        self, new: Sequence[SmallDistribution] = (), old: Sequence[SmallDistribution] = (), **options: Any
    ) -> None:
        """Put `new` in and take `old` away, as one command does."""
        transaction = self.transaction(**options)
        with transaction.staging(self.target) as change:
            self.stage(change, new, old)
            transaction.commit(change, lambda now: ())

    def stage(self, change: Change, new: Sequence[SmallDistribution], old: Sequence[SmallDistribution]) -> None:
        """Stage `new`, and have `old` removed."""
        for directory in (self.root, self.site, self.bin):
            change.mirror(str(directory))
        for each in old:
            files = frozenset(str(self.real(name)) for name in each.content())
            change.remove(Removal(each.project, self.site, files))
        for each in new:
            for name, text in each.content().items():
                path = Path(change.staged(str(self.root / name)))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            change.add(each.project, change.staged(str(self.site / f"{each.project}-{each.version}.dist-info/RECORD")))

    def real(self, name: str) -> Path:
        """Where a file is, though a directory above it may be a symbolic link."""
        path = self.root / name
        return Path(os.path.realpath(path.parent), path.name)

    def write(self, files: Mapping[str, str]) -> None:
        """Write files that no distribution owns."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def read(self) -> Snapshot:
        """What a reader does: recover, if there is anything to recover, and look."""
        return self.transaction().read(lambda: Snapshot.take([str(self.site)]))

    def content(self) -> dict[str, str]:
        """The text and mode of every file, and every link and directory, without the files of transactions."""
        found: dict[str, str] = {}
        for where, directories, names in os.walk(self.root):
            directories[:] = [name for name in directories if not name.startswith(".safe-pip")]
            for name in (*directories, *names):
                if name.startswith(".safe-pip-"):
                    continue
                path = Path(where, name)
                status = path.lstat()
                text = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_text()
                found[str(path.relative_to(self.root))] = f"{stat.filemode(status.st_mode)} {text}"
        return found

    def private(self) -> list[str]:
        """What transactions have left, in the state directories and beside."""
        found: list[str] = []
        for where, directories, names in os.walk(self.root):
            found += [os.path.join(where, name) for name in (*directories, *names) if name.startswith(".safe-pip-")]
            if os.path.basename(where) == ".safe-pip":
                known = {"commit", "commit.gate", "environment.gate", "keep", "keep.gate", "environment", "owner"}
                found += [os.path.join(where, name) for name in (*directories, *names) if name not in known]
                directories.clear()
        return found


@contextlib.contextmanager
def without_exchange() -> Iterator[None]:
    """Within, the filesystem cannot exchange two directories."""
    from unittest import mock

    with mock.patch("safe_pip.fs.can_exchange", return_value=False):
        yield
