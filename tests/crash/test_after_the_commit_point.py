"""Every operation after the commit point fails, once or for ever: the change is made, and no file of a user is lost."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from safe_pip import fs, messages
from safe_pip.environment.environment import Environment
from safe_pip.errors import LockTimeout, SafePipError, State
from safe_pip.journal import commit
from tests.crash.test_every_operation import DATA, DATA_2, NEXT, ONE, ONE_2
from tests.support.venvs.direct_installs import DirectPrefix, without_exchange

MINE = ("site/one/sub/mine", "share/data/sub/mine")


class Upgrade:
    """An upgrade in a new prefix; another program writes files into old directories just before they are moved."""

    def __init__(self, root: Path, *, exchange: bool = True) -> None:
        self.prefix = DirectPrefix(root)
        self.prefix.change([ONE, DATA])
        self._exchange = exchange
        self.warned: list[str] = []
        self.transaction = self.prefix.transaction()

    def run(self) -> None:
        done = commit._validate

        def validate(*arguments: object) -> None:
            done(*arguments)  # type: ignore[arg-type]
            self.prefix.write(dict.fromkeys(MINE, "mine"))

        with contextlib.ExitStack() as stack:
            if not self._exchange:
                stack.enter_context(without_exchange())
            stack.enter_context(mock.patch.object(messages, "say", self.warned.append))
            change = stack.enter_context(self.transaction.staging(self.prefix.target))
            self.prefix.stage(change, [ONE_2, DATA_2], [ONE, DATA])
            with mock.patch.object(commit, "_validate", validate):
                self.transaction.commit(change, lambda now: ())

    def check(self, why: object) -> None:
        """Check that the change is made, and that the files are in their places once the next command is done."""
        assert (self.prefix.root / "site/one/__init__.py").read_text() == "22", why
        assert not self.prefix.root.joinpath("site/one/gone.py").exists(), why
        self.prefix.change([NEXT])
        assert [(self.prefix.root / each).read_text() for each in MINE] == ["mine", "mine"], why
        assert self.prefix.private() == [], why


@contextlib.contextmanager
def striking(k: int, strike: Callable[[str], BaseException], *, forever: bool = False) -> Iterator[list[str]]:
    """Within, operation `k` after the commit point fails, or all from there on; yields those operations."""
    after: list[str] = []
    is_committed = False

    def watch(operation: str, path: str, source: str) -> None:
        nonlocal is_committed
        if is_committed:
            after.append(f"{operation} {path}")
            if len(after) == k + 1 or (forever and len(after) > k):
                raise strike(path)
        is_committed = is_committed or bool(path.endswith(".committed") and source)

    with mock.patch.object(fs.watch, "observer", watch):
        yield after


def every_operation(root: Path, *, exchange: bool = True) -> range:
    """The numbers of the operations that an undisturbed upgrade makes after its commit point."""
    upgrade = Upgrade(root, exchange=exchange)
    with striking(10**6, AssertionError) as operations:
        upgrade.run()
    upgrade.check("undisturbed")
    assert len(operations) > 10
    return range(len(operations))


@pytest.mark.parametrize(
    ("number", "forever", "exchange"),
    [
        pytest.param(errno.EIO, False, True, id="once"),
        pytest.param(errno.EIO, True, True, id="for ever"),
        pytest.param(errno.EACCES, False, True, id="no permission"),
        pytest.param(errno.EIO, True, False, id="two renames"),
    ],
)
def test_what_the_disk_refuses_after_the_commit_point_is_left_to_the_next_command(
    tmp_path: Path, number: int, forever: bool, exchange: bool
) -> None:
    for at in every_operation(tmp_path / "whole", exchange=exchange):
        upgrade = Upgrade(tmp_path / str(at), exchange=exchange)
        with striking(at, lambda path: OSError(number, os.strerror(number), path), forever=forever) as operations:
            upgrade.run()
        assert upgrade.transaction.is_committed
        upgrade.check(operations[at:])


def test_an_interrupt_after_the_commit_point_loses_nothing(tmp_path: Path) -> None:
    for at in every_operation(tmp_path / "whole"):
        upgrade = Upgrade(tmp_path / str(at))
        with striking(at, lambda path: KeyboardInterrupt()) as operations, pytest.raises(KeyboardInterrupt):
            upgrade.run()
        assert upgrade.transaction.is_committed
        upgrade.check(operations[at:])


def test_a_lock_that_is_not_granted_after_the_commit_point_is_no_failure(tmp_path: Path) -> None:
    upgrade = Upgrade(tmp_path)
    with mock.patch.object(Environment, "adding", side_effect=LockTimeout("gave up after 1 s")):
        upgrade.run()
    (warning,) = upgrade.warned
    assert warning.startswith("warning: the change was made")
    assert "gave up after 1 s" in warning
    assert not any((upgrade.prefix.root / each).exists() for each in MINE)
    upgrade.check("left")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError(), LockTimeout("gave up")])
def test_a_command_that_fails_after_its_commit_deletes_no_file_of_a_user(tmp_path: Path, error: BaseException) -> None:
    upgrade = Upgrade(tmp_path)
    waits = mock.patch.object(Environment, "adding", side_effect=AssertionError("it waits for a lock"))
    with waits, pytest.raises(type(error)), upgrade.transaction.failing(), raising_after(upgrade, error):
        upgrade.run()
    assert upgrade.transaction.is_committed
    if isinstance(error, SafePipError):
        assert error.state is State.COMMITTED
    upgrade.check(error)


@contextlib.contextmanager
def raising_after(upgrade: Upgrade, error: BaseException) -> Iterator[None]:
    """Within, the body of the command raises this as soon as its change is committed."""
    commit_it = upgrade.transaction.commit

    def commit_and_fail(*arguments: object) -> None:
        commit_it(*arguments)  # type: ignore[arg-type]
        raise error

    with mock.patch.object(upgrade.transaction, "commit", commit_and_fail):
        yield
