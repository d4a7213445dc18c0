"""What an ancestor holds is inherited, counts for the order, and is worth nothing once it is dead."""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pip.locking.inheritance import VARIABLE
from tests.support.processes.workers import Worker, holds, workers


def test_a_lock_that_uv_holds_above_is_not_waited_for(tree: Path, tmp_path: Path) -> None:
    lock = tmp_path / "venv" / ".lock"
    lock.touch()
    with workers(tree, count=1, uv_lock=str(lock), below=["flock", "-x", lock]) as (worker,):
        worker.hold("adding")


def test_a_wait_for_a_commit_lock_below_uv_ends(tree: Path, tmp_path: Path) -> None:
    lock = tmp_path / "venv" / ".lock"
    lock.touch()
    with (
        workers(tree, count=1) as (holder,),
        workers(tree, count=1, uv_lock=str(lock), below=["flock", "-x", lock], out_of_order=0.2) as (worker,),
    ):
        holder.hold("adding")
        worker.tell(do="hold", how="adding")
        event = worker.expect("error")
        assert event["code"] == "lock-timeout"
        assert "what runs this command holds a lock" in event["message"]


@pytest.mark.parametrize("how", ["reading", "building"])
def test_a_reader_below_uv_does_not_wait_for_ever_either(tree: Path, tmp_path: Path, how: str) -> None:
    lock = tmp_path / "venv" / ".lock"
    for path in (lock, lock.with_name("pyvenv.cfg")):
        path.touch()
    with (
        workers(tree, count=1) as (holder,),
        workers(tree, count=1, below=["flock", "-x", lock], out_of_order=0.2) as (worker,),
    ):
        holder.hold("replacing")
        worker.tell(do="hold", how=how)
        assert worker.expect("error")["code"] == "lock-timeout"


def test_a_wait_for_a_commit_lock_below_a_mutex_ends(tree: Path, tmp_path: Path) -> None:
    with workers(tree, count=2) as (builder, holder):
        variable = builder.hold("mutex", sources=[str(tmp_path / "source")])["variable"]
        holder.hold("replacing")
        with workers(tree, count=1, variables={VARIABLE: variable}, out_of_order=0.2) as (below,):
            below.tell(do="hold", how="adding")
            assert below.expect("error")["code"] == "lock-timeout"


def test_a_wait_for_a_mutex_below_run_ends(tree: Path, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    with workers(tree, count=2) as (runner, builder):
        variable = runner.hold("occupying")["variable"]
        builder.hold("mutex", sources=[source])
        with workers(tree, count=1, variables={VARIABLE: variable}, out_of_order=0.2) as (below,):
            below.tell(do="hold", how="mutex", sources=[source])
            assert below.expect("error")["code"] == "lock-timeout"


def test_a_wait_that_keeps_the_order_has_no_such_end(tree: Path, tmp_path: Path) -> None:
    with workers(tree, count=2, first_message=1e6) as (runner, adder):
        variable = runner.hold("keeping")["variable"]
        adder.hold("adding")
        with workers(tree, count=1, variables={VARIABLE: variable}, out_of_order=0.0, first_message=0.05) as (below,):
            below.tell(do="hold", how="adding")
            for _ in range(2):
                below.expect("waiting")
            adder.release()
            below.expect("held")


def test_a_mutex_that_an_ancestor_holds_is_inherited(tree: Path, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    with workers(tree, count=1) as (builder,):
        variable = builder.hold("mutex", sources=[source])["variable"]
        with workers(tree, count=1, variables={VARIABLE: variable}, timeout=0) as (below,):
            below.hold("mutex", sources=[source])


@pytest.mark.parametrize("above", ["occupying", "reserving", "exclusively"])
@pytest.mark.parametrize("how", ["keeping", "building"])
def test_siblings_below_an_exclusive_holder_exclude_each_other(tree: Path, above: str, how: str) -> None:
    with workers(tree, count=1) as (ancestor,):
        variable = ancestor.hold(above)["variable"]
        with workers(tree, count=3, variables={VARIABLE: variable}, timeout=0) as (one, other, third):
            one.hold(how)
            other.tell(do="hold", how="replacing")
            assert other.expect("error")["code"] == "lock-timeout"
            third.hold("adding")
            third.release()
            one.release()
            other.hold("replacing")
            one.tell(do="hold", how=how)
            assert one.expect("error")["code"] == "lock-timeout"


def test_siblings_below_an_exclusive_holder_wait_for_each_other_without_an_end(tree: Path) -> None:
    with workers(tree, count=1) as (ancestor,):
        variable = ancestor.hold("occupying")["variable"]
        settings = {"variables": {VARIABLE: variable}, "out_of_order": 0.0, "first_message": 0.05}
        with workers(tree, count=2, **settings) as (one, other):
            one.hold("keeping")
            other.tell(do="hold", how="replacing")
            for _ in range(2):
                assert [holder["pid"] for holder in other.expect("waiting")["holders"]] == [one.pid]
            one.release()
            other.expect("held")


def test_below_a_sibling_no_command_waits_behind_one_that_waits_for_it(tree: Path) -> None:
    with workers(tree, count=1) as (ancestor,):
        variable = ancestor.hold("occupying")["variable"]
        with workers(tree, count=2, variables={VARIABLE: variable}, first_message=1e6) as (one, other):
            inner = one.hold("keeping")["variable"]
            other.start_to_wait("replacing")
            with workers(tree, count=1, variables={VARIABLE: inner}, timeout=0) as (below,):
                below.hold("building")
                below.release()
                below.tell(do="hold", how="replacing")
                assert below.expect("error")["code"] == "nesting-refused"
            one.release()
            other.expect("held")


def test_without_the_variable_a_command_below_an_exclusive_holder_takes_its_stand_in_too(tree: Path) -> None:
    (tree.parents[2] / "pyvenv.cfg").touch()
    run = [sys.executable, "-m", "safe_pip", "run", "--exclusive", "--env", tree.parents[2], "--"]
    with workers(tree, count=1, below=[*run, "env", "-u", VARIABLE], timeout=0) as (below,):
        below.hold("keeping")
        ancestors = json.loads((tree / ".safe-pip" / "owner").read_bytes())["held"]
        assert holds(below.pid, Path(ancestors, "environment"))


def is_free(descriptor: int) -> bool:
    """Whether a lock can be shared; if so it is, until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_claim_ends_before_any_lock_when_its_holder_is_killed(tmp_path: Path) -> None:
    trees = [tmp_path / str(number) for number in range(80)]  # so many that the kernel is seen closing them
    for _ in range(4):
        with workers(*trees, count=1, target=list(map(str, trees))) as (holder,):
            alive = Path(holder.hold("exclusively")["variable"]) / "alive"
            with open(alive) as claim, opened(trees[-1]) as lock:
                assert not is_free(claim.fileno())
                os.kill(holder.pid, 9)
                # /proc/locks is not read in one piece: so look at one lock first, and at `alive` after it.
                while not is_free(lock):
                    pass
                assert is_free(claim.fileno())
            holder.kill()


def test_the_heirs_of_a_dead_holder_take_the_real_locks(tree: Path) -> None:
    with workers(tree, count=2) as (lender, stranger):
        variable = lender.hold("occupying")["variable"]
        heir = Worker(tree, variables={VARIABLE: variable}, first_message=1e6)
        heir.hold("replacing")
        assert not holds(heir.pid, tree / ".safe-pip" / "commit")
        heir.release()
        lender.kill()
        stranger.hold("replacing")
        heir.start_to_wait("replacing")
        stranger.release()
        heir.expect("held")
        assert holds(heir.pid, tree / ".safe-pip" / "commit")
        heir.close()


@pytest.mark.parametrize("way", ["building", "replacing", "reading", "exclusively"])
def test_where_there_is_no_flock_everything_excludes_everything(tree: Path, way: str) -> None:
    with workers(tree, count=2, without_flock=True, timeout=0) as (one, other):
        one.hold("building")
        other.tell(do="hold", how=way)
        assert other.expect("error")["code"] == "lock-timeout"
        one.release()
        other.hold(way)


def test_where_there_is_no_flock_the_lock_of_a_killed_holder_is_free_too(tree: Path) -> None:
    with workers(tree, count=2, without_flock=True) as (holder, waiter):
        holder.hold("replacing")
        waiter.tell(do="hold", how="replacing")
        waiter.expect("waiting")
        holder.kill()
        waiter.expect("held")


def test_where_there_is_no_flock_an_ancestors_lock_is_inherited_and_siblings_exclude_each_other(tree: Path) -> None:
    with workers(tree, count=1, without_flock=True) as (ancestor,):
        variable = ancestor.hold("exclusively")["variable"]
        with workers(tree, count=2, without_flock=True, variables={VARIABLE: variable}, timeout=0) as (one, other):
            one.hold("replacing")
            other.tell(do="hold", how="replacing")
            assert other.expect("error")["code"] == "lock-timeout"
            one.release()
            other.hold("replacing")
