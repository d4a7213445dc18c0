"""What goes on in a tree, read from /proc/locks and from what transactions leave in the state directory."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from safe_pip import messages
from safe_pip.commands import options, status
from safe_pip.commands.status import State, next_action
from safe_pip.fs import proc
from safe_pip.journal import codec
from safe_pip.launch.settings import Settings
from safe_pip.locking import holders, shared_files, state_directory
from safe_pip.locking.flock import Descriptor, try_lock
from safe_pip.locking.holders import Entry, Holder, View
from safe_pip.merge.plan import Journal
from tests.support.processes.proc import fake_mount
from tests.support.venvs.direct_installs import SilentReporter

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="there is no /proc/locks")

DEAD = 4_000_000_000
"""No process has this number."""
ID = "0123456789abcdef"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a state directory that no command uses."""
    made = tmp_path / "site-packages"
    (made / ".safe-pip").mkdir(parents=True)
    for name in ("commit", "commit.gate", "environment.gate", "keep", "keep.gate"):
        (made / ".safe-pip" / name).touch()
    return made


def view(*rows: tuple[Path, int, bool, bool], is_complete: bool = True) -> View:
    """What /proc/locks would show: path, pid, exclusive, is_waiting."""
    entries = [Entry(str(proc.kernel_name_at(path)), *row) for path, *row in rows]
    return View(tuple(entries), is_complete)


def found(tree: Path, view: View) -> dict[str, status.Lock]:
    return {lock.name: lock for lock in status.locks(tree, view)}


def pids(parties: tuple[Holder, ...]) -> list[tuple[int, bool | None]]:
    return [(party.pid, None if party.is_waiting else party.exclusive) for party in parties]


def test_a_free_lock_has_no_holder(tree: Path) -> None:
    assert [(lock.name, lock.holders, lock.waiting) for lock in status.locks(tree, view())] == [
        ("environment", (), ()),
        ("commit", (), ()),
    ]


def test_each_waiting_process_is_shown_once_in_the_order_of_its_turn(tree: Path) -> None:
    gate = tree / ".safe-pip" / "environment.gate"
    seen = view(
        (tree, 1, False, False),
        (tree, 2, True, True),
        (gate, 2, True, False),
        (gate, 3, True, True),
        (gate, 4, True, True),
    )
    environment = found(tree, seen)["environment"]
    assert pids(environment.holders) == [(1, False)]
    assert pids(environment.waiting) == [(2, True), (3, None), (4, None)]
    assert found(tree, seen)["commit"].waiting == ()


def test_what_is_kept_and_what_waits_for_it_is_shown_and_told(tree: Path) -> None:
    one, two = tree / "one-1.dist-info", tree / "two-2.0.dist-info"
    for path in (one, two):
        path.mkdir()
        (path / "METADATA").touch()
    keep = tree / ".safe-pip" / "keep"
    seen = view(
        (keep, DEAD, False, False),
        (one, DEAD, False, False),
        (one, DEAD + 1, True, True),
        (one / "METADATA", DEAD + 1, True, False),
    )
    locks = found(tree, seen)
    assert pids(locks["keep"].holders) == [(DEAD, False)]
    assert (locks["distribution"].path, pids(locks["distribution"].holders)) == (one, [(DEAD, False)])
    assert pids(locks["distribution"].waiting) == [(DEAD + 1, True)]
    told = [*status._told(status._facts(locks["keep"])), *status._told(status._facts(locks["distribution"]))]
    assert told == [
        f"pid {DEAD} keeps some distributions as they are: others may be added, changed and removed",
        f"pid {DEAD} keeps `one-1`",
        f"pid {DEAD + 1} waits to change or remove `one-1`",
    ]


def test_the_locks_of_a_tree_that_cannot_be_listed_are_shown(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def refused(path: str | os.PathLike[str]) -> list[str]:
        if path == tree:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    assert pids(found(tree, view((tree, DEAD, True, False)))["environment"].holders) == [(DEAD, True)]


def test_the_note_of_a_holder_says_since_when(tree: Path) -> None:
    note = {"pid": os.getpid(), "command": "pip install x", "since": 5.0}
    (tree / ".safe-pip" / "owner").write_text(json.dumps(note))
    (holder,) = found(tree, view((tree, os.getpid(), True, False)))["environment"].holders
    assert (holder.since, holder.is_seen) == (5.0, True)


def test_a_note_whose_writer_holds_nothing_counts_only_where_holders_may_be_hidden(tree: Path) -> None:
    (tree / ".safe-pip" / "owner").write_text(json.dumps({"pid": DEAD, "command": "pip install x", "since": 5.0}))
    assert found(tree, view())["environment"].holders == ()
    hidden = found(tree, view(is_complete=False))["environment"].holders
    assert hidden == (Holder(DEAD, True, "pip install x", 5.0, is_seen=False),)


def test_the_lock_of_uv_and_the_mutex_of_checkouts_are_shown_where_they_are(tmp_path: Path) -> None:
    tree = tmp_path / "venv" / "lib" / "python3" / "site-packages"
    tree.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert set(found(tree, view())) == {"environment", "commit"}
    (tmp_path / "venv" / ".lock").touch()
    (tmp_path / "venv" / "src").mkdir()
    seen = found(tree, view((tmp_path / "venv" / ".lock", 7, True, False)))
    assert pids(seen["uv"].holders) == [(7, True)]
    assert seen["source directory"].path == tmp_path / "venv" / "src"


def test_a_directory_that_other_environments_share_has_a_lock_of_its_own(tmp_path: Path) -> None:
    tree = tmp_path / "venv" / "lib" / "python3" / "site-packages"
    tree.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "venv" / "bin").mkdir()
    seen = {lock.name: lock for lock in status.locks(tree, view(), [tmp_path / "bin", tmp_path / "venv" / "bin"])}
    assert seen["shared directory"].path == tmp_path / "bin"


@pytest.mark.parametrize(
    ("name", "is_shown"),
    [
        ("project/pyproject.toml", True),
        ("project/setup.py", True),
        ("cache/wheels/ab/", True),
        ("cache/safe-pip/making/0123", True),
        ("project/other.lock", False),
        ("venv/lib/python3/site-packages/", False),
        ("target/.safe-pip/commit", False),
        ("target/", False),
    ],
)
def test_a_mutex_of_a_source_tree_or_a_cache_is_shown_with_its_holder_and_waiters(
    tmp_path: Path, name: str, is_shown: bool
) -> None:
    (tmp_path / "target" / ".safe-pip").mkdir(parents=True)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(exist_ok=True) if name.endswith("/") else path.touch()
    descriptor = Descriptor(path)
    assert try_lock(descriptor, exclusive=True)
    seen = view((path, os.getpid(), True, False), (path, DEAD, True, True))
    found = [(lock.path, pids(lock.holders), pids(lock.waiting)) for lock in status.mutexes(seen, [])]
    assert found == ([(path, [(os.getpid(), True)], [(DEAD, True)])] if is_shown else [])
    assert list(status.mutexes(seen, [path])) == []
    assert list(status.mutexes(view((path, os.getpid(), False, False)), [])) == []  # held by many at once
    descriptor.close()


def test_a_tree_that_does_not_exist_is_free(tmp_path: Path) -> None:
    assert all(not lock.holders for lock in status.locks(tmp_path / "missing", view()))


def plant(tree: Path, *suffixes: str, identifier: str = ID, pid: int = DEAD) -> None:
    state = tree / ".safe-pip"
    first = json.dumps({"pid": pid, "command": "pip install x", "since": 5.0})
    for suffix in suffixes:
        if suffix == "/":
            (state / identifier).mkdir()
        else:
            (state / f"{identifier}{suffix}").write_text(first + "\n" + '{"part": "/x')


@pytest.mark.parametrize(
    ("suffixes", "state"),
    [
        ((".owner", "/"), State.STAGING),
        (("/",), State.STAGING),
        ((".owner", "/", ".journal"), State.PREPARED),
        ((".owner", "/", ".undoing"), State.PREPARED),
        ((".owner", "/", ".committed"), State.COMMITTED),
        ((".committed",), State.COMMITTED),
    ],
)
def test_the_names_tell_how_far_a_dead_transaction_got(
    tree: Path, suffixes: tuple[str, ...], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "sees_all_processes", lambda: True)
    plant(tree, *suffixes)
    (transaction,) = status.transactions([tree])
    assert (transaction.identifier, transaction.tree, transaction.state) == (ID, tree, state)
    assert transaction.is_alive is False
    if ".owner" in suffixes:
        assert (transaction.pid, transaction.command, transaction.since) == (DEAD, "pip install x", 5.0)


def plant_whole(tree: Path, suffix: str) -> None:
    """A transaction with nothing to do, whole in all its parts."""
    private = tree / ".safe-pip" / ID
    for name in ("stage", "trash"):
        (private / name).mkdir(parents=True, mode=0o700)
    private.chmod(0o700)
    written = Journal(ID, str(tree), (str(tree),), (), (str(tree),), (str(private),), ())
    (tree / ".safe-pip" / f"{ID}{suffix}").write_bytes(codec.encode(written))
    plant(tree, ".owner")


@pytest.mark.parametrize(
    ("suffix", "next_"),
    [("", "delete"), (".journal", "roll back"), (".undoing", "roll back"), (".committed", "finish")],
)
def test_a_whole_transaction_is_settled_by_the_next_command(
    tree: Path, suffix: str, next_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "sees_all_processes", lambda: True)
    if suffix:
        plant_whole(tree, suffix)
    else:
        plant(tree, ".owner", "/")
    before = sorted((tree / ".safe-pip").rglob("*"))
    (transaction,) = status.transactions([tree])
    assert next_action(transaction) == next_
    assert sorted((tree / ".safe-pip").rglob("*")) == before


def test_a_transaction_that_the_next_command_refuses_is_told_with_the_reason(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "sees_all_processes", lambda: True)
    plant(tree, ".owner", "/", ".journal")
    (transaction,) = status.transactions([tree])
    assert next_action(transaction).startswith("refuse: ")
    assert "damaged" in next_action(transaction)


def test_a_transaction_with_a_locked_owner_file_is_alive_whatever_its_pid(tree: Path) -> None:
    plant(tree, ".owner", "/", ".journal")
    descriptor = Descriptor(tree / ".safe-pip" / f"{ID}.owner")
    assert try_lock(descriptor, exclusive=True)
    (transaction,) = status.transactions([tree])
    descriptor.close()
    assert transaction.is_alive is True
    assert next_action(transaction) == "wait"


def test_where_holders_may_be_hidden_no_transaction_is_called_dead(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "sees_all_processes", lambda: False)
    plant_whole(tree, ".journal")
    (transaction,) = status.transactions([tree])
    assert transaction.is_alive is None
    assert next_action(transaction) == "wait, or roll back if it is dead"


def test_a_mark_leads_to_the_transaction_in_another_tree(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / ".safe-pip").mkdir(parents=True)
    (other / ".safe-pip" / f"{ID}.home").write_text(f"{tree}\n")
    assert status.transactions([other]) == []
    plant(tree, ".owner", ".journal")
    (transaction,) = status.transactions([other])
    assert transaction.tree == tree
    assert status.transactions([other, tree]) == [transaction]


def test_other_names_in_the_state_directory_are_no_transactions(tree: Path) -> None:
    for name in ("owner", f"{ID}.journal.tmp", f"{ID.upper()}.committed", "x.owner"):
        (tree / ".safe-pip" / name).touch()
    assert status.transactions([tree]) == []


def test_what_another_host_does_is_told_with_its_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc/locks` shows nothing of it: whether its transaction is alive is unknown."""
    first = json.dumps({"pid": os.getpid(), "command": "pip install x", "since": 5.0, "host": "node17", "boot": "1"})
    (tree / ".safe-pip" / f"{ID}.owner").write_text(f"{first}\n")
    (tree / ".safe-pip" / ID).mkdir()
    (tree / ".safe-pip" / "owner").write_text(first)
    monkeypatch.setattr(proc, "sees_all_processes", lambda: True)
    (found,) = status.transactions([tree])
    assert (found.is_alive, found.pid, found.host) == (None, os.getpid(), "node17")
    (lock,) = (lock for lock in status.locks(tree, View.take()) if lock.name == "environment")
    assert [(by.where, by.exclusive, by.is_seen) for by in lock.holders] == [
        (f"pid {os.getpid()} on node17", True, False)
    ]


@pytest.mark.parametrize(("silent", "is_doubted"), [(29, False), (40, True)])
def test_the_host_of_a_process_without_a_sign_is_doubted(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], silent: float, is_doubted: bool
) -> None:
    moment = time.time()
    facts = {"pid": 7, "command": "pip x", "since": moment, "host": "node17", "boot": "1"}
    (tree / ".safe-pip" / "owner").write_text(json.dumps(facts))
    (tree / ".safe-pip" / f"1{state_directory.SHARED_NOTE}").write_text(json.dumps({**facts, "command": "make"}))
    (tree / ".safe-pip" / f"{ID}.owner").write_text(json.dumps(facts) + "\n")
    (tree / ".safe-pip" / ID).mkdir()
    with Descriptor(tree / ".safe-pip" / f"1{state_directory.SHARED_NOTE}", writable=True) as shared:
        assert try_lock(shared, exclusive=True)
        monkeypatch.setattr(time, "time", lambda: moment + silent)
        options.run("status", ["--env", str(tree)], Settings(), SilentReporter())
    said = capfd.readouterr().out
    note = "by the note it left" + (", its host may be gone" if is_doubted else "")
    assert f"`pip x` (pid 7 on node17, for {silent} s, {note}) has it to itself" in said
    assert f"`make` (pid 7 on node17, for {silent} s, by the note it left) uses it" in said
    doubt = "; its host may be gone" if is_doubted else ""
    assert re.search(rf"interrupted: `pip x` on node17, last at work \d+ s ago; nothing was changed{doubt}\. The", said)


@pytest.mark.parametrize(
    ("after", "passed", "said"),
    [
        ("xfs /dev/a rw", None, None),
        (
            "nfs4 s:/x rw",
            None,
            "on nfs4, which several hosts may use. It was never probed: run `safe-pip doctor --filesy",
        ),
        (
            "nfs4 s:/x rw",
            True,
            "on nfs4, which several hosts may use. A probe of `{}` between a and b passed 2 min ago",
        ),
        (
            "nfs4 s:/x rw",
            False,
            "on nfs4, which several hosts may use. Every command is refused: `{}/site-packages` can",
        ),
        (
            "lustre x rw,localflock",
            None,
            "on lustre, which several hosts may use. Every command is refused: `{}/site-p",
        ),
    ],
)
def test_the_verdict_on_a_filesystem_of_several_hosts_is_shown(
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    after: str,
    passed: bool | None,
    said: str | None,
) -> None:
    if passed is not None:
        checks = [{"check": "a lock keeps others out", "passed": passed}]
        facts = {"passed": passed, "date": time.time() - 125, "hosts": ["a", "b"], "checks": checks, "remedies": []}
        (tmp_path / shared_files.VERDICT).write_text(json.dumps(facts))
    (tmp_path / "proc").mkdir()
    fake_mount(tmp_path / "proc", monkeypatch, tree, after)
    assert options.run("status", ["--env", str(tree)], Settings(), SilentReporter()) == 0
    assert (said or "").format(tmp_path) in (told := capfd.readouterr().out)
    assert ("several hosts" in told) == (said is not None)
    options.run("status", ["--env", str(tree), "--json"], Settings(), SilentReporter())
    found = json.loads(capfd.readouterr().out)["filesystems"]
    assert [each["passed"] for each in found] == ([] if said is None else [passed])
    assert [each["refused"] is not None for each in found] == ([] if said is None else ["refused" in said])


SENTENCES = [
    (State.STAGING, True, "delete", r"`pip x` \(pid 7, for 2 s\) prepares a change"),
    (State.PREPARED, True, "wait", r"`pip x` \(pid 7, for 2 s\) commits its change"),
    (State.COMMITTED, True, "wait", r"`pip x` \(pid 7, for 2 s\) has made its change, and cleans up"),
    (
        State.STAGING,
        False,
        "delete",
        r"interrupted: `pip x`, last at work 1 s ago; nothing was changed\. "
        r"The next safe-pip command removes its leftovers",
    ),
    (
        State.PREPARED,
        None,
        "wait, or roll back if it is dead",
        r"perhaps interrupted: `pip x`, last at work 1 s ago in the middle of its change\. "
        r"The next safe-pip command undoes it",
    ),
    (
        State.COMMITTED,
        False,
        "finish",
        r"interrupted: `pip x`, last at work 1 s ago after its change was made\. The next safe-pip command finishes it",
    ),
    (
        State.PREPARED,
        False,
        "refuse: the journal is damaged",
        r"interrupted: .* in the middle of its change\. Every safe-pip command refuses to go on: the journal .*",
    ),
]


@pytest.mark.parametrize(("state", "alive", "next_", "said"), SENTENCES)
def test_a_transaction_is_told_in_a_sentence(
    state: State, alive: bool | None, next_: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 102.0)
    told: status.TransactionStatus = {
        "id": ID,
        "tree": "/tree",
        "state": state.value,
        "alive": alive,
        "pid": 7,
        "command": "pip x",
        "since": 100.0,
        "host": None,
        "last_seen": 101.0,
        "next": next_,
    }
    assert re.fullmatch(said, status._sentence(told, options.parser("status").parse_args([])))
    assert status._sentence(told, options.parser("status").parse_args(["-v"])).endswith(f" ({ID})")


def watched(tree: Path, monkeypatch: pytest.MonkeyPatch, *words: str, changes: int = 0) -> int | None:
    """The status of `status --watch`, which Ctrl-C ends (None) after two looks, `changes` of which see a change."""
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 1:
            raise KeyboardInterrupt
        if changes:
            plant(tree, ".owner", "/")

    monkeypatch.setattr(time, "sleep", sleep)
    try:
        return options.run("status", ["--watch", "--env", str(tree), *words], Settings(), SilentReporter())
    except KeyboardInterrupt:
        return None


@pytest.mark.parametrize("changes", [0, 1])
def test_a_watch_tells_each_change_once(
    tree: Path, changes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watched(tree, monkeypatch, "--json", changes=changes) is None
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(each["transactions"]) for each in documents] == [0, 1][: changes + 1]


def test_a_watch_on_a_terminal_is_drawn_anew_each_time(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert watched(tree, monkeypatch) is None
    assert capsys.readouterr().out.count("\x1b[H\x1b[2J") == 2


def test_a_watch_whose_reader_has_ended_ends(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "output", lambda text="": BrokenPipeError())
    assert watched(tree, monkeypatch) == 0


def test_a_lock_on_a_file_that_cannot_be_seen_is_counted_and_the_others_lead_to_their_trees(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [Entry(str(number), number, exclusive=True, is_waiting=False) for number in range(5)]
    paths = dict(
        zip(entries, [tree, tree / ".safe-pip/commit", tmp_path / "other.lock", None, tmp_path / "t"], strict=True)
    )
    (tmp_path / "t" / ".safe-pip").mkdir(parents=True)
    monkeypatch.setattr(holders, "locked_path", paths.get)
    monkeypatch.setattr(holders, "inheritors", lambda file: [])
    assert status.in_use(View(tuple(entries), is_complete=True)) == ((tree, tmp_path / "t"), 1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (5.9, "5 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_a_time_has_the_unit_that_suits_it(seconds: float, said: str) -> None:
    assert messages.duration(seconds) == said
