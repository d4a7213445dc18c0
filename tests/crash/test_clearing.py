"""`venv --clear` killed at any of its changes: the next command meets the old environment or the new one, whole."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_pip.commands import venv as virtual
from safe_pip.commands.environments import Context
from safe_pip.launch.settings import Settings
from tests.support.faults import disk
from tests.support.faults.chosen import some
from tests.support.processes.forks import killed_at
from tests.support.trees.listing import Tree, tree_of
from tests.support.venvs.direct_installs import SilentReporter

pytestmark = pytest.mark.slow
CRASHES = 60
CONTEXT = Context(Settings(lock_timeout=10), SilentReporter())


def is_ours(path: str) -> bool:
    return os.path.basename(path).startswith(".safe-pip")


class Case:
    """An environment with content and the one that will replace it; made again for every trial."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._old, self._new = scratch / "old", scratch / "new"
        for path in (self._old, self._new):
            path.mkdir()
            with virtual.made_aside(path, sys.executable, ["--without-pip", "--prompt", path.name]) as aside:
                virtual.finish(path, aside)
        (tree,) = self._old.glob("lib/python*/site-packages")
        self._tree = tree.relative_to(self._old)
        for name in ("package/__init__.py", "package/deep/module.py", "package-1.dist-info/METADATA", "single.py"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(name)
        for name in ("bin/program", "share/data/file", "unowned"):
            (self._old / name).parent.mkdir(parents=True, exist_ok=True)
            (self._old / name).write_text(name)
        (self._old / "link").symlink_to("lib")
        self.old, self.new = tree_of(self._old, is_ours), tree_of(self._new, is_ours)

    def prepare(self, number: int) -> tuple[Path, Callable[[], None]]:
        """A new copy of the old one, and what clears it."""
        home = self._scratch / f"home-{number}"
        shutil.copytree(self._old, home, symlinks=True)
        aside = Path(shutil.copytree(self._new, home / ".safe-pip-venv-aside", symlinks=True))

        def clear() -> None:
            virtual.exchange(aside, home, [home / self._tree], CONTEXT)

        return home, clear

    def next_command(self, home: Path) -> Tree:
        """What the next command finds, which only reads."""
        return CONTEXT.environment([str(home / self._tree)]).read(lambda: tree_of(home, is_ours))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("clearing"))


def test_clear_keeps_only_the_site_packages_directories_and_their_locks(case: Case) -> None:
    home, clear = case.prepare(1000)
    case.next_command(home)
    tree = next(home.glob("lib/python*/site-packages"))
    before = os.stat(tree).st_ino
    clear()
    assert tree_of(home, is_ours) == case.new
    assert os.stat(tree).st_ino == before
    assert sorted(os.listdir(tree)) == [".safe-pip"]
    assert set(os.listdir(tree / ".safe-pip")) == {"commit", "commit.gate", "environment.gate", "keep", "keep.gate"}


def test_a_clear_killed_at_any_change_leaves_the_old_environment_or_the_new_one(case: Case) -> None:
    home, clear = case.prepare(0)
    with disk.record() as changes:
        clear()
    shutil.rmtree(home)
    names = [change.operation for change in changes]
    seen = set()
    for k in some(range(len(changes)), CRASHES):
        home, clear = case.prepare(k)
        assert killed_at(k, clear), (k, changes[k])
        found = case.next_command(home)
        assert found in (case.old, case.new), (k, changes[k], names)
        seen.add(found == case.new)
        shutil.rmtree(home)
    assert seen == {False, True}
