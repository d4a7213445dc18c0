"""Two processes really exclude each other: which modes may be held together, and in which order they are granted."""

import itertools
import os
import signal
from pathlib import Path

import pytest

from tests.support.processes.workers import Worker, holds, wait_until, workers

HOWS = ("reading", "building", "adding", "reserving", "replacing", "exclusively")
# What may be held beside what: the rest excludes each other.
BESIDE = {
    frozenset(pair)
    for pair in (
        ("reading", "reading"),
        ("reading", "building"),
        ("reading", "reserving"),
        ("building", "building"),
        ("building", "adding"),
        ("adding", "reserving"),
    )
}


def state(tree: Path) -> Path:
    return tree / ".safe-pip"


@pytest.mark.parametrize("how", ["adding", "reserving", "replacing", "exclusively", "mutex"])
def test_two_processes_really_exclude_each_other(tree: Path, tmp_path: Path, how: str) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with workers(tree, count=2) as both:
        for worker in both:
            worker.tell(
                do="hammer",
                how=how,
                times=100,
                inside=str(tmp_path / "in"),
                counter=str(counter),
                sources=[str(tmp_path)],
            )
        for worker in both:
            worker.expect("hammered")
    assert counter.read_text() == "200"


def test_the_locks_that_go_together_are_held_together_and_no_others(tree: Path) -> None:
    with workers(tree, count=2) as (first, second):
        first.hold("adding")  # makes the state directory
        first.release()
        for one, other in itertools.product(HOWS, HOWS):
            first.hold(one)
            second.tell(do="hold", how=other)
            is_beside = frozenset((one, other)) in BESIDE
            assert second.is_blocked() is not is_beside, (one, other)
            first.release()
            if not is_beside:
                second.expect("held")
            second.release()


def test_takers_are_served_in_the_order_in_which_they_came(tree: Path) -> None:
    hows = ["building", "replacing", "building", "reserving", "replacing"]
    with workers(tree, count=1 + len(hows), first_message=1e6) as (holder, *takers):
        holder.hold("replacing")
        for taker, how in zip(takers, hows, strict=True):
            taker.start_to_wait(how)
        holder.release()
        for number, taker in enumerate(takers):
            taker.expect("held")
            for later in takers[number + 1 :]:
                later.expect_blocked()
            taker.release()


def test_a_replacement_is_not_starved_by_builds_that_overlap(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (first, second, writer):
        writer.hold("adding")
        writer.release()
        first.hold("building")
        writer.start_to_wait("replacing")
        second.start_to_wait("building")
        first.release()
        writer.expect("held")
        second.expect_blocked()
        writer.release()
        second.expect("held")


def test_a_commit_is_not_starved_by_readers_that_overlap(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (first, second, writer):
        writer.hold("adding")
        writer.release()
        first.hold("reading")
        writer.start_to_wait("adding")
        second.start_to_wait("reading")
        first.release()
        writer.expect("held")
        second.expect_blocked()
        writer.release()
        second.expect("held")


def test_a_build_is_not_starved_by_replacements_that_queue(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (first, second, builder):
        first.hold("replacing")
        builder.start_to_wait("building")
        second.start_to_wait("replacing")
        first.release()
        builder.expect("held")
        second.expect_blocked()


def test_the_lock_of_a_killed_holder_is_free(tree: Path) -> None:
    with workers(tree, count=2) as (holder, waiter):
        holder.hold("replacing")
        waiter.start_to_wait("replacing")
        holder.kill()
        waiter.expect("held")


@pytest.mark.parametrize("how", ["building", "replacing", "reading"])
def test_a_killed_waiter_leaves_the_queue(tree: Path, how: str) -> None:
    with workers(tree, count=3, first_message=1e6) as (holder, waiter, other):
        holder.hold("replacing")
        waiter.start_to_wait("replacing")  # has the gate
        other.start_to_wait(how)
        waiter.kill()
        holder.release()
        other.expect("held")


@pytest.mark.parametrize("way", ["fork", "exec"])
def test_a_program_that_a_holder_leaves_running_does_not_keep_the_lock(tree: Path, way: str) -> None:
    with workers(tree, count=2) as (holder, waiter):
        holder.hold("exclusively")
        holder.tell(do=way)
        child = holder.expect("child")["pid"]
        try:
            waiter.start_to_wait("exclusively")
            holder.kill()
            waiter.expect("held")
            assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_ends_does_not_let_the_lock_go(tree: Path) -> None:
    with workers(tree, count=2) as (holder, waiter):
        holder.hold("exclusively")
        holder.tell(do="fork")
        child = holder.expect("child")["pid"]
        os.kill(child, signal.SIGKILL)
        waiter.start_to_wait("exclusively")
        assert holds(holder.pid, tree)


def test_the_locks_of_several_trees_are_taken_in_one_order_whatever_the_path_says(tmp_path: Path) -> None:
    trees = [tmp_path / name for name in "abc"]
    for each in trees:
        each.mkdir()
    counter = tmp_path / "counter"
    counter.write_text("0")
    one = Worker(*trees, target=list(map(str, trees)))
    other = Worker(*reversed(trees), target=list(map(str, reversed(trees))))
    for worker in (one, other):
        worker.tell(do="hammer", how="replacing", times=100, inside=str(tmp_path / "in"), counter=str(counter))
    for worker in (one, other):
        worker.expect("hammered")
        worker.close()
    assert counter.read_text() == "200"


def test_a_tree_that_two_paths_lead_to_is_locked_once(tree: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(tree)
    with workers(alias, tree, count=1, target=[str(alias), str(tree)]) as (worker,):
        worker.hold("replacing")


def test_a_shared_directory_is_changed_by_one_environment_at_a_time(tmp_path: Path) -> None:
    scripts = tmp_path / "bin"
    with (
        workers(tmp_path / "a", count=1, directories=[str(scripts)]) as (one,),
        workers(tmp_path / "b", count=1, directories=[str(scripts)]) as (other,),
    ):
        one.hold("adding")
        other.start_to_wait("adding")
        one.release()
        other.expect("held")


def test_uv_and_a_commit_exclude_each_other_where_uv_has_a_lock(tree: Path, tmp_path: Path) -> None:
    lock = tmp_path / "venv" / ".lock"
    lock.touch()
    with workers(tree, count=1, uv_lock=str(lock)) as (worker,):
        worker.hold("adding")
        assert holds(worker.pid, lock)


def test_nothing_is_locked_for_uv_where_it_has_no_lock(tree: Path, tmp_path: Path) -> None:
    lock = tmp_path / "venv" / ".lock"
    with workers(tree, count=1, uv_lock=str(lock)) as (worker,):
        worker.hold("adding")
        assert not lock.exists()


def test_uvs_lock_is_taken_even_if_uv_makes_it_during_a_wait_for_another_lock(tree: Path, tmp_path: Path) -> None:
    lock = tmp_path / "venv" / ".lock"
    with workers(tree, count=2, uv_lock=str(lock)) as (holder, waiter):
        holder.hold("replacing")
        waiter.start_to_wait("replacing")
        lock.touch()
        holder.release()
        waiter.expect("held")
        assert holds(waiter.pid, lock)


def test_a_process_that_waits_long_for_one_lock_holds_no_other(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with workers(tree, count=3) as (builder, waiter, replacer):
        builder.hold("mutex", sources=[str(source)])
        waiter.start_to_wait("building", sources=[str(source)])
        replacer.hold("replacing")  # though the waiter asked for the environment first
        replacer.release()
        builder.release()
        waiter.expect("held")


def test_a_reservation_is_given_up_rather_than_held_while_waiting(tree: Path, tmp_path: Path) -> None:
    other_tree = tmp_path / "other"
    with (
        workers(tree, other_tree, count=1, target=[str(tree)]) as (reserver,),
        workers(other_tree, count=1) as (holder,),
    ):
        holder.hold("exclusively")
        reserver.hold("reserving")
        reserver.tell(do="hold", how="replacing")
        wait_until(lambda: not holds(reserver.pid, tree))
        holder.release()
        assert reserver.expect("error")["code"] == "stale-plan"
