"""How many cores are idle, by what the system says; a jobserver is a pipe like make's."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from safe_pip.store.cores import Cores, Jobserver, Permit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is one core for us")


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, of which this process may use all."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


def cores(root: Path, files: Mapping[str, str], **environ: str) -> Cores:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return Cores(environ, str(root))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The pipe of a jobserver with two tokens."""
    ends = os.pipe()
    os.write(ends[1], b"+-")
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(("running", "spare"), [(1, 3), (4, 0), (7, -3)])
@pytest.mark.usefixtures("four")
def test_cores_are_idle_that_no_task_wants_now(tmp_path, running, spare):
    assert cores(tmp_path, {"proc/loadavg": f"9.10 0.00 0.00 {running}/812 4711\n"}).spare() == spare


@pytest.mark.usefixtures("four")
def test_a_kernel_that_counts_not_even_this_process_is_not_believed(tmp_path):
    assert cores(tmp_path, {"proc/loadavg": "0.00 0.00 0.00 0/0 0\n"}).spare() == 3


@pytest.mark.usefixtures("four")
def test_where_the_tasks_are_not_told_the_load_average_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.3, 0.0, 0.0))
    assert cores(tmp_path, {}).spare() == 1


@pytest.mark.usefixtures("four")
def test_where_nothing_is_told_no_core_is_idle(tmp_path, monkeypatch):
    def unknown() -> None:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert cores(tmp_path, {}).spare() == 0


@pytest.mark.usefixtures("four")
def test_what_this_process_may_not_run_on_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3}, raising=False)
    assert cores(tmp_path, {}).limit == (2 if os.uname().sysname == "Linux" else 4)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/../x\n",
                "sys/fs/cgroup/cpu.max": "300000 100000\n",
                "sys/fs/x/cpu.max": "100000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n3:cpu,cpuacct:/c\n",
                "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "nonsense"}, 4),
    ],
)
@pytest.mark.usefixtures("four")
def test_the_smallest_quota_of_its_control_groups_bounds_it(tmp_path, files, limit):
    assert cores(tmp_path, files).limit == limit


def test_without_a_jobserver_every_permit_is_granted(tmp_path):
    plain = cores(tmp_path, {}, MAKEFLAGS="-j --no-print-directory")
    assert plain.take() == Permit()
    assert plain.jobserver is None


def test_each_permit_below_make_is_a_token_of_its_own(tmp_path, pipe):
    made = cores(tmp_path, {}, MAKEFLAGS=f" -j4 --jobserver-auth={pipe[0]},{pipe[1]}")
    assert made.jobserver is not None
    assert not os.get_blocking(made.jobserver.read)
    taken = [made.take() for _ in range(3)]
    assert taken == [Permit(b"+"), Permit(b"-"), None]
    made.give(Permit(b"-"))
    assert made.take() == Permit(b"-")


def test_asking_for_a_token_leaves_the_pipe_as_make_has_it(tmp_path, pipe):
    made = cores(tmp_path, {}, MAKEFLAGS=f"--jobserver-auth={pipe[0]},{pipe[1]}")
    made.take()
    assert os.get_blocking(pipe[0])


def test_a_jobserver_may_be_a_named_pipe(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    made = cores(tmp_path, {}, MAKEFLAGS=f"-j2 --jobserver-auth=fifo:{fifo}")
    assert made.take() is None
    made.give(Permit(b"+"))
    assert made.take() == Permit(b"+")


def test_the_last_jobserver_in_makeflags_is_the_one(pipe):
    found = Jobserver.of(f"--jobserver-fds=98,99 --jobserver-auth={pipe[0]},{pipe[1]}")
    assert found is not None
    assert found.write == pipe[1]


@pytest.mark.parametrize(
    "flags", ["", "-j8", "--jobserver-auth=-2,-2", "--jobserver-auth=fifo:/", "--jobserver-auth=x"]
)
def test_makeflags_without_a_pipe_to_reach_announce_no_jobserver(flags):
    assert Jobserver.of(flags) is None


def test_descriptors_that_are_not_the_ends_of_one_pipe_are_somebody_elses(tmp_path, pipe):
    other = os.pipe()
    with open(tmp_path / "file", "w+b") as file:
        for read, write in ((pipe[0], other[1]), (file.fileno(), file.fileno()), (pipe[0], 12345)):
            assert Jobserver.of(f"--jobserver-auth={read},{write}") is None
    for end in other:
        os.close(end)
