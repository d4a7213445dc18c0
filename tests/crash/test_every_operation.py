"""A crash, or an error of the disk, at every single change that a command makes: the old environment, or the new one."""

import contextlib
import errno
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from safe_pip.errors import SafePipError
from tests.support import faults
from tests.support.small import Prefix, Small, without_exchange

ONE = Small("one", "1", {"site/one/__init__.py": "1", "site/one/gone.py": "", "bin/one": "1", "site/ns/one.py": "1"})
ONE_2 = Small("one", "2", {"site/one/__init__.py": "22", "site/one/come/x.py": "", "bin/one": "22", "site/ns/one.py": "22"})
TWO = Small("two", "1", {"site/two.py": "1", "site/ns/two.py": "1", "bin/two": "1", "share/two/data": "1"})
TWO_2 = Small("two", "2", {"site/two.py": "22", "site/ns/deep/two.py": "22", "bin/two": "22", "share/two/more": "22"})
TURNED = Small("one", "3", {"site/one.py": "333", "bin/one/inner": "333"})


class Case(NamedTuple):
    """What is there, what comes, what goes."""

    before: tuple[Small, ...]
    new: tuple[Small, ...] = ()
    old: tuple[Small, ...] = ()
    exchange: bool = True
    shared_bin: bool = False
    unowned: bool = False


CASES = {
    "install": Case((), (ONE, TWO)),
    "install beside another": Case((TWO,), (ONE,)),
    "upgrade": Case((ONE, TWO), (ONE_2,), (ONE,)),
    "upgrade in two renames": Case((ONE, TWO), (ONE_2,), (ONE,), exchange=False),
    "upgrade of two": Case((ONE, TWO), (ONE_2, TWO_2), (ONE, TWO)),
    "upgrade with data of nobody": Case((ONE,), (ONE_2,), (ONE,), unowned=True),
    "upgrade with a shared directory": Case((ONE, TWO), (ONE_2, TWO_2), (ONE, TWO), shared_bin=True),
    "downgrade": Case((ONE_2, TWO_2), (ONE, TWO), (ONE_2, TWO_2)),
    "reinstall": Case((ONE,), (ONE,), (ONE,)),
    "a file for a directory": Case((ONE,), (TURNED,), (ONE,)),
    "uninstall": Case((ONE, TWO), (), (ONE,)),
    "uninstall of two": Case((ONE, TWO), (), (ONE, TWO)),
    "uninstall beside data of nobody": Case((ONE, TWO), (), (ONE,), unowned=True),
}


class Scene:
    """A prefix in its state before, made anew for every trial, and the command."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case = case
        self._directory = directory
        self._template = Prefix(directory / "template", shared_bin=case.shared_bin)
        if case.before:
            self._template.change(case.before)
        if case.unowned:
            self._template.write({"site/one/mine/data.txt": "mine", "site/one/note.txt": "mine"})
        self.old = self._template.content()
        done = self.fresh()
        self.run(done)
        assert done.private() == []
        self.new = done.content()
        assert self.new != self.old or case.new == case.old

    def fresh(self) -> Prefix:
        """The environment as it is before the command."""
        root = self._directory / "trial"
        if root.exists():
            shutil.rmtree(root)
        shutil.copytree(self._template.root, root, symlinks=True)
        return Prefix(root, shared_bin=self.case.shared_bin)

    def run(self, prefix: Prefix) -> None:
        """The command."""
        with contextlib.nullcontext() if self.case.exchange else without_exchange():
            prefix.change(self.case.new, self.case.old)

    def changes(self) -> list[faults.Change]:
        """Every change that the undisturbed command makes."""
        prefix = self.fresh()
        with faults.record() as changes:
            self.run(prefix)
        return changes

    def check(self, prefix: Prefix, why: object) -> None:
        """The next command sees the old environment or the new one, whole; and one that writes leaves nothing behind."""
        prefix.read()
        found = prefix.content()
        assert found in (self.old, self.new), why
        if found == self.old:
            self.run(prefix)
            assert prefix.content() == self.new, why
        else:
            prefix.change([Small("next", "1", {"site/next.py": ""})])
        assert prefix.private() == [], why


@pytest.fixture(params=CASES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(CASES[request.param], tmp_path)


def test_killed_before_any_change_it_is_the_old_environment_or_the_new_one(scene: Scene) -> None:
    for number, change in enumerate(scene.changes()):
        for torn in {False, change.operation == "write"}:
            prefix = scene.fresh()
            with faults.crash_at(number, torn=torn), pytest.raises(faults.Crashed):
                scene.run(prefix)
            scene.check(prefix, change)


@pytest.mark.slow
def test_a_recovery_may_be_killed_before_any_change_as_well(scene: Scene) -> None:
    for number, change in enumerate(scene.changes()):
        again = 0
        while True:
            prefix = scene.fresh()
            with faults.crash_at(number), pytest.raises(faults.Crashed):
                scene.run(prefix)
            try:
                with faults.crash_at(again):
                    prefix.read()
            except faults.Crashed:
                scene.check(prefix, (change, again))
                again += 1
            else:
                break


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("forever", [False, True])
def test_a_change_that_the_disk_refuses_leaves_the_old_environment_or_the_new_one(
    scene: Scene, number: int, forever: bool
) -> None:
    for at, change in enumerate(scene.changes()):
        prefix = scene.fresh()
        failed = False
        with faults.error_at(at, number, forever=forever):
            try:
                scene.run(prefix)
            except (SafePipError, OSError) as error:
                failed = True
                seen, state = prefix.content(), getattr(error, "state", None)
        if failed and not forever:
            assert seen == scene.old or (state is not None and state.name == "COMMITTED"), (change, state)
        scene.check(prefix, change)


def test_nothing_in_the_target_is_changed_that_is_not_in_a_journal_first(scene: Scene) -> None:
    prefix = scene.fresh()
    journaled = False
    with faults.record() as changes:
        scene.run(prefix)
    for change in changes:
        journaled = journaled or change.path.endswith(".journal")
        is_private = all("/.safe-pip" in path for path in change.paths)
        assert journaled or is_private, change
