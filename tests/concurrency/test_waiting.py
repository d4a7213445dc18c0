"""A process that waits: messages, Ctrl-C, Ctrl-Z, timeouts, directories that are replaced meanwhile."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.processes.workers import Worker, holds, wait_until, workers

SOON = 0.05


def gate(tree: Path, name: str = "environment") -> Path:
    return tree / ".safe-pip" / f"{name}.gate"


def test_a_waiting_process_names_the_lock_and_its_holder(tree: Path) -> None:
    with workers(tree, count=1) as (holder,), workers(tree, count=1, first_message=SOON) as (waiter,):
        holder.hold("building")
        waiter.tell(do="hold", how="replacing")
        event = waiter.expect("waiting")
        assert event["path"] == str(tree)
        assert event["exclusive"]
        assert [person["pid"] for person in event["holders"]] == [holder.pid]
        assert "workers.py" in event["holders"][0]["command"]
        assert not event["holders"][0]["exclusive"]
        assert not event["holders"][0]["is_stopped"]
        holder.release()
        assert waiter.expect("granted")["seconds"] >= SOON
        waiter.expect("held")


def test_the_environment_is_called_by_the_name_of_its_venv(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    with workers(tree, count=1) as (holder,), workers(tree, count=1, timeout=0) as (other,):
        holder.hold("replacing")
        other.tell(do="hold", how="building")
        message = other.expect("error")["message"]
        assert f"`{tmp_path / 'venv'}`" in message
        assert f"(pid {holder.pid})" in message
        assert "Nothing was changed" in message


@pytest.mark.parametrize("how", ["building", "replacing"])
def test_a_process_that_does_not_wait_gets_a_free_lock_and_is_refused_a_held_lock(tree: Path, how: str) -> None:
    with workers(tree, count=2, timeout=0) as (one, other):
        one.hold("replacing")
        other.tell(do="hold", how=how)
        assert other.expect("error")["code"] == "lock-timeout"
        one.release()
        other.hold(how)


def test_a_process_that_does_not_wait_is_not_refused_for_a_gate_held_for_an_instant(tree: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with workers(tree, count=2) as (holder, other), workers(tree, count=1, timeout=0) as (eager,):
        holder.hold("building")
        other.tell(do="hammer", how="building", times=300, inside=str(tmp_path / "in"), counter=str(counter))
        for _ in range(100):
            eager.hold("building")
            eager.release()
        other.expect("hammered")


def test_time_that_runs_out_while_waiting_leaves_nothing_held(tree: Path) -> None:
    with workers(tree, count=2) as (holder, other), workers(tree, count=1, timeout=0.3) as (waiter,):
        holder.hold("building")
        waiter.tell(do="hold", how="replacing")
        event = waiter.expect("error")
        assert event["code"] == "lock-timeout"
        assert "gave up after 0.3 s" in event["message"]
        assert "shared by" in event["message"]
        assert not holds(waiter.pid, gate(tree))
        other.hold("building")


def test_ctrl_c_while_waiting_leaves_nothing_held(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (holder, waiter, other):
        holder.hold("building")
        waiter.start_to_wait("replacing")
        waiter.signal(signal.SIGINT)
        waiter.expect("interrupted")
        other.hold("building")
        holder.release()
        other.release()
        waiter.hold("replacing")


def test_ctrl_c_at_the_gate_leaves_nothing_held(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (holder, first, second):
        holder.hold("building")
        first.start_to_wait("replacing")
        second.start_to_wait("replacing")
        second.signal(signal.SIGINT)
        second.expect("interrupted")
        holder.release()
        first.expect("held")


def test_ctrl_z_lets_a_waiter_stop_with_nothing_held_and_wait_again_when_continued(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (holder, waiter, other):
        holder.hold("building")
        waiter.start_to_wait("replacing")
        assert holds(waiter.pid, gate(tree))
        waiter.signal(signal.SIGTSTP)
        waiter.wait_until_stopped()
        assert not holds(waiter.pid, gate(tree))
        other.hold("building")  # which the waiter would have kept out
        holder.release()
        waiter.signal(signal.SIGCONT)
        waiter.expect_blocked()
        other.release()
        waiter.expect("held")


def test_a_process_that_is_stopped_at_the_gate_is_named_as_such(tree: Path) -> None:
    with (
        workers(tree, count=2, first_message=1e6) as (holder, stopped),
        workers(tree, count=1, first_message=SOON) as (waiter,),
    ):
        holder.hold("building")
        stopped.start_to_wait("replacing")
        stopped.signal(signal.SIGSTOP)
        stopped.wait_until_stopped()
        waiter.tell(do="hold", how="building")
        people = {person["pid"]: person for person in waiter.expect("waiting")["holders"]}
        assert people[stopped.pid]["is_stopped"]
        assert people[stopped.pid]["is_waiting"]
        assert not people[holder.pid]["is_stopped"]
        stopped.kill()
        waiter.expect("held")


def test_a_tick_does_not_cost_the_holder_of_the_gate_its_place(tree: Path) -> None:
    with workers(tree, count=2, first_message=SOON) as (holder, waiter):
        holder.hold("building")
        waiter.tell(do="hold", how="replacing")
        for _ in range(3):
            waiter.expect("waiting")
        assert holds(waiter.pid, gate(tree))


def test_a_tree_that_is_deleted_and_made_anew_is_locked_as_it_is_now(tree: Path) -> None:
    with workers(tree, count=2, first_message=1e6) as (other, waiter):
        other.hold("adding")
        other.release()
        with subprocess.Popen(["flock", "-x", tree, "cat"], stdin=subprocess.PIPE, start_new_session=True) as clearing:
            wait_until(lambda: holds(clearing.pid, tree))
            waiter.start_to_wait("replacing")
            aside = tree.with_name("old")
            tree.rename(aside)  # so that the inode is not given away again
            tree.mkdir()
            assert clearing.stdin is not None
            clearing.stdin.close()
        waiter.expect("held")
        assert holds(waiter.pid, tree)
        assert holds(waiter.pid, tree / ".safe-pip" / "commit")
        assert not holds(waiter.pid, aside)


def test_a_tree_that_vanishes_while_it_is_waited_for_is_made_again(tree: Path) -> None:
    with workers(tree, count=2, first_message=1e6) as (holder, waiter):
        holder.hold("replacing")
        waiter.start_to_wait("replacing")
        shutil.rmtree(tree.parent)
        holder.kill()
        waiter.expect("held")
        assert holds(waiter.pid, tree)


def test_a_reader_goes_on_without_a_tree_that_vanished(tree: Path) -> None:
    with workers(tree, count=2, first_message=1e6) as (holder, reader):
        holder.hold("replacing")
        reader.start_to_wait("reading")
        shutil.rmtree(tree)
        holder.kill()
        reader.expect("held")


@pytest.mark.parametrize("how", ["reading", "adding"])
def test_lock_files_that_are_swapped_are_locked_as_they_are_now(tree: Path, how: str) -> None:
    with workers(tree, count=2, first_message=1e6) as (holder, waiter):
        holder.hold("adding")
        waiter.start_to_wait(how)
        state = tree / ".safe-pip"
        state.rename(tree / "old")
        shutil.copytree(tree / "old", state)
        holder.kill()
        waiter.expect("held")
        assert holds(waiter.pid, state / "commit")


def test_a_gate_that_is_swapped_is_locked_as_it_is_now(tree: Path) -> None:
    with workers(tree, count=3, first_message=1e6) as (holder, first, second):
        holder.hold("building")
        first.hold("adding")
        first.release()
        first.start_to_wait("replacing")
        second.start_to_wait("building")
        assert holds(first.pid, gate(tree))
        os.rename(gate(tree), tree / "old")
        gate(tree).touch()
        first.kill()
        second.expect("held")


def test_a_reader_reads_again_when_the_state_directory_appeared_meanwhile(tree: Path) -> None:
    with workers(tree, count=2) as (reader, writer):
        reader.tell(do="hold", how="reading")
        reader.expect("held")
        writer.hold("adding")  # the first one ever: it makes the state directory, and waits for no reader
        reader.tell(do="release")
        reader.expect_blocked()
        writer.release()
        reader.expect("held")


def test_a_first_replacement_waits_for_readers_without_a_state_directory(tree: Path) -> None:
    with workers(tree, count=2) as (reader, writer):
        reader.tell(do="hold", how="reading")
        reader.expect("held")
        writer.start_to_wait("replacing")


def test_the_state_directory_of_a_stateless_tree_is_removed_when_it_is_unused(tree: Path) -> None:
    with workers(tree, count=1, stateless_trees=[str(tree)]) as (worker,):
        for how in ("replacing", "adding"):
            worker.hold(how)
            worker.release()
            assert os.listdir(tree) == []


def test_the_state_directory_of_a_stateless_tree_stays_while_a_process_reads(tree: Path) -> None:
    with workers(tree, count=2, stateless_trees=[str(tree)]) as (worker, builder):
        builder.hold("building")
        worker.hold("adding")
        worker.release()
        assert os.listdir(tree) == [".safe-pip"]


def test_a_process_that_waits_for_a_stateless_tree_gets_it_after_its_state_directory_was_removed(tree: Path) -> None:
    with workers(tree, count=3, stateless_trees=[str(tree)], first_message=1e6) as (holder, writer, reader):
        holder.hold("replacing")
        writer.start_to_wait("replacing")
        reader.start_to_wait("reading")
        holder.release()
        for _ in range(2):  # it may read once more
            reader.tell(do="release")
        writer.expect("held")
        writer.release()
        assert reader.next_event() == {"event": "held"}


def test_many_writers_of_litter_at_once_leave_nothing(tree: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with workers(tree, count=3, stateless_trees=[str(tree)]) as several:
        for worker, how in zip(several, ("replacing", "adding", "adding"), strict=True):
            worker.tell(do="hammer", how=how, times=50, inside=str(tmp_path / "in"), counter=str(counter))
        for worker in several:
            worker.expect("hammered")
    assert counter.read_text() == "150"
    assert os.listdir(tree) == []


def test_directories_that_a_failed_taker_made_are_gone(tmp_path: Path) -> None:
    tree, scripts = tmp_path / "a" / "b", tmp_path / "c" / "bin"
    scripts.mkdir(parents=True)
    with workers(tmp_path, count=1, directories=[str(scripts)]) as (holder,):
        holder.hold("adding")
        late = Worker(tree, directories=[str(scripts)], timeout=0)
        late.tell(do="hold", how="replacing")
        assert late.expect("error")["code"] == "lock-timeout"
        late.close()
    assert not (tmp_path / "a").exists()
