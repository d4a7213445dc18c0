"""One change of a target: what it reports as replaced, what it puts in place, and what it leaves out."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safe_pip.environment import transaction as transaction_module
from safe_pip.environment.change import Terms
from safe_pip.environment.snapshot import Snapshot
from safe_pip.errors import CommitFailed, State, UnusableEnvironment
from safe_pip.journal import commit
from safe_pip.journal.commit import check_permissions
from safe_pip.locking import state_directory
from safe_pip.locking.state_directory import LOCKS
from safe_pip.merge.plan import Link, Removal
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution
from tests.support.venvs.direct_installs import without_exchange as no_exchange

OLD = SmallDistribution("tool", "1", {"site/tool.py": "v = 1\n", "site/tool/part.py": "p = 1\n", "bin/tool": "one"})
NEW = SmallDistribution("tool", "2", {"site/tool.py": "v = 22\n", "site/tool/part.py": "p = 22\n", "bin/tool": "two"})
OTHER = SmallDistribution("other", "1", {"site/other.py": "o = 1\n", "site/shared/other.py": ""})


@pytest.fixture
def prefix(tmp_path: Path) -> DirectPrefix:
    made = DirectPrefix(tmp_path)
    made.change([OLD])
    return made


def replace(path: Path, text: str) -> None:
    """As an editor saves: the old file stays what it was."""
    path.with_name("aside").write_text(text)
    os.utime(path.with_name("aside"), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(path.with_name("aside"), path)


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inner").write_text("inner")


# What another program does to `mine`, a file that no distribution owns, or beside it.
MEANWHILE: dict[str, Callable[[Path], object]] = {
    "replaced": lambda mine: replace(mine, "newer"),
    "replaced by one of the same size and time": lambda mine: replace(mine, "NEW"),
    "edited in place": lambda mine: mine.write_text("newer"),
    "deleted": lambda mine: mine.unlink(),
    "deleted with its directory": lambda mine: shutil.rmtree(mine.parent),
    "moved": lambda mine: mine.rename(mine.with_name("elsewhere")),
    "made a directory": become_directory,
    "joined by a file": lambda mine: mine.with_name("other").write_text("other"),
    "joined by an empty directory": lambda mine: mine.with_name("other").mkdir(),
    "joined by a cache": lambda mine: mine.with_name("__pycache__").mkdir(),
}


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
@pytest.mark.parametrize("where", ["site/tool/mine", "site/tool/sub/mine", "site/tool/sub/deep/mine"])
@pytest.mark.parametrize("happens", MEANWHILE.values(), ids=MEANWHILE)
def test_what_other_programs_do_below_a_directory_after_it_was_planned_is_kept(
    tmp_path: Path,
    happens: Callable[[Path], object],
    where: str,
    links: bool,
    exchange: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result is that of the other program first, and the upgrade after it."""

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def upgrade(name: str, *, is_planned: bool) -> dict[str, str]:
        prefix = DirectPrefix(tmp_path / name)
        prefix.change([OLD])
        prefix.write({"site/tool/sub/deep/data": "data", where: "new"})
        os.utime(prefix.root / where, (1, 1))
        first = iter([lambda: happens(prefix.root / where)])
        if not is_planned:
            next(first)()

        def validate(now: object) -> tuple[()]:
            next(first, lambda: None)()
            return ()

        transaction = prefix.transaction()
        with contextlib.ExitStack() as stack:
            if not exchange:
                stack.enter_context(no_exchange())
            change = stack.enter_context(transaction.staging(prefix.target))
            prefix.stage(change, [NEW], [OLD])
            transaction.commit(change, validate)
        assert prefix.private() == []
        return {name: text for name, text in prefix.content().items() if not name.endswith("__pycache__")}

    if not links:
        monkeypatch.setattr(os, "link", refused)
    assert upgrade("meanwhile", is_planned=True) == upgrade("before", is_planned=False)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_what_is_dropped_after_a_plan_was_made_stays_as_it_is(prefix: DirectPrefix, exchange: bool) -> None:
    """This happens to an install whose distribution another command has installed meanwhile."""
    before = prefix.content()
    transaction = prefix.transaction()
    with transaction.staging(prefix.target) as change:
        prefix.stage(change, [NEW, OTHER], [OLD])
        if exchange:
            change.prepare()
        else:
            with no_exchange():
                change.prepare()
        change.drop(["tool"])
        transaction.commit(change, lambda now: ())
    after = prefix.content()
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        "site/other.py",
        "site/shared",
        "site/shared/other.py",
        "site/other-1.dist-info",
        "site/other-1.dist-info/METADATA",
        "site/other-1.dist-info/RECORD",
    }
    assert prefix.private() == []


# What only safe-pip writes, wherever a distribution names it.
OWN = [
    "site/.safe-pip/commit",
    "site/.safe-pip/0123456789abcdef.journal",
    "site/.safe-pip-0123456789abcdef",
    "site/.safe-pip-x/y",
    "site/pkg/.safe-pip/commit",
    "site/pkg/.safe-pip-0123456789abcdef",
    "bin/.safe-pip/commit",
    ".safe-pip/environment.gate",
    "lib/python3.9/site-packages/.safe-pip/commit",
]


@pytest.mark.parametrize("own", OWN)
def test_no_distribution_puts_or_removes_what_is_safe_pips_own(tmp_path: Path, own: str) -> None:
    # The name of a directory above the environment says nothing.
    prefix = DirectPrefix(tmp_path / ".safe-pip-environments" / "v")
    evil = SmallDistribution("evil", "1", {"site/evil.py": "", "site/pkg/__init__.py": "", "bin/evil": "", own: "evil"})

    def change(new: list[SmallDistribution], old: list[SmallDistribution]) -> None:
        transaction = prefix.transaction()
        with transaction.staging(prefix.target) as staged:
            staged.allow(str(prefix.root))
            prefix.stage(staged, new, old)
            transaction.commit(staged, lambda now: ())

    change([OTHER], [])
    before = everything(prefix)
    change([evil], [])
    assert {"site/evil.py", "site/pkg/__init__.py", "bin/evil"} <= everything(prefix).keys()
    assert everything(prefix).get(own) == before.get(own)
    path = prefix.root / own
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.basename(own) in LOCKS:
        path.write_text("ours")
        before = everything(prefix)
    change([evil], [evil])
    change([], [evil])
    assert everything(prefix).get(own) == before.get(own)
    assert "site/evil.py" not in everything(prefix)


def everything(prefix: DirectPrefix) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file."""
    files = [path for path in prefix.root.rglob("*") if path.is_file()]
    return {str(path.relative_to(prefix.root)): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_what_is_dropped_under_the_locks_stays_as_it_is(prefix: DirectPrefix) -> None:
    before = prefix.content()
    transaction = prefix.transaction()
    with transaction.staging(prefix.target) as change:
        prefix.stage(change, [NEW], [OLD])
        transaction.commit(change, lambda now: ("tool",))
    assert prefix.content() == before
    assert prefix.private() == []


def test_a_directory_in_which_nothing_is_staged_is_not_made(prefix: DirectPrefix) -> None:
    """Also inside a directory that is moved as a whole: pip asks for a header directory of each distribution."""
    transaction = prefix.transaction()
    with transaction.staging(prefix.target) as change:
        change.allow(str(prefix.root))
        for name in ("include/other", "include/more/deep"):
            change.mirror(str(prefix.root / name))
        header = Path(change.staged(str(prefix.root / "include/tool/tool.h")))
        header.parent.mkdir()
        header.write_text("")
        prefix.stage(change, [OTHER], [])
        transaction.commit(change, lambda now: ())
    assert sorted(os.listdir(prefix.root / "include")) == ["tool"]


def test_a_commit_names_overwritten_files_with_their_former_owners(prefix: DirectPrefix) -> None:
    prefix.write({"site/nobodys.py": "n = 1\n"})
    transaction = prefix.transaction()
    with transaction.staging(prefix.target) as change:
        grabbing = SmallDistribution("grabbing", "1", {"site/tool.py": "g = 1\n", "site/nobodys.py": "g = 1\n"})
        prefix.stage(change, [grabbing], [])
        overwritten = transaction.commit(change, lambda now: ())
    site = os.path.join(prefix.site, "")
    assert sorted(overwritten) == [(f"{site}nobodys.py", None), (f"{site}tool.py", "tool")]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["OpenDirectories", "_is_as_listed"])
def test_what_the_kernel_refuses_before_the_first_operation_changes_nothing(
    prefix: DirectPrefix, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    before = prefix.content()
    monkeypatch.setattr(f"safe_pip.journal.commit.{where}", refuse)
    with pytest.raises(CommitFailed) as failed:
        prefix.change([NEW], [OLD])
    assert failed.value.state is State.UNCHANGED
    assert prefix.content() == before
    assert prefix.private() == []


def test_an_egg_goes_although_its_directory_is_a_tree_of_the_environment(prefix: DirectPrefix) -> None:
    """`easy-install.pth` puts it on `sys.path`."""
    prefix.write({"site/egg-1.egg/EGG-INFO/PKG-INFO": "Name: egg\n", "site/egg-1.egg/egg.py": ""})
    egg = os.path.join(prefix.site, "egg-1.egg")
    transaction = prefix.transaction().of_other([str(prefix.site), egg])
    with transaction.staging(prefix.target) as change:
        change.remove(Removal("egg", prefix.site, frozenset([egg])))
        transaction.commit(change, lambda now: ())
    assert not os.path.lexists(egg)
    assert prefix.private() == []


def test_a_directory_that_was_removed_after_the_plan_does_not_count_as_unwritable(prefix: DirectPrefix) -> None:
    (prefix.site / "tool" / "nobodys.txt").write_text("")
    transaction = prefix.transaction()
    with transaction.staging(prefix.target) as change:
        prefix.stage(change, [], [OLD])
        prepared = change.prepare()
        assert any(os.path.dirname(each.path).endswith("tool") for each in prepared.journal.operations)
        shutil.rmtree(prefix.site / "tool")
        check_permissions(prepared.journal)


def test_a_command_that_has_waited_long_plans_again_under_its_locks(
    prefix: DirectPrefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command may be next in the queue, for hours."""
    monkeypatch.setattr(transaction_module, "_LONG", 0.0)
    prefix.write({"site/tool/mine": "old"})
    granted: list[object] = []
    transaction = prefix.transaction()
    with transaction.staging(prefix.target) as change:
        prefix.stage(change, [NEW], [OLD])

        def validate(now: object) -> tuple[()]:
            granted.append(now)
            replace(prefix.site / "tool/mine", "newer")
            return ()

        transaction.commit(change, validate)
    assert len(granted) == 1
    assert (prefix.site / "tool/mine").read_text() == "newer"
    assert (prefix.site / "tool/part.py").read_text() == "p = 22\n"


@pytest.mark.parametrize("new", ["site/shared/other.cpython-313-x86_64-linux-gnu.so", "site/shared/other/__init__.py"])
@pytest.mark.parametrize("is_planned", [False, True], ids=["before", "meanwhile"])
def test_what_hides_a_module_below_the_top_of_a_tree_takes_the_locks_of_a_replacement(
    prefix: DirectPrefix, new: str, is_planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix.write({"site/shared/unrelated.py": ""})
    prefix.change([] if is_planned else [OTHER])
    taken: list[object] = []
    transaction = prefix.transaction()
    replacing = transaction.environment.replacing

    def take(*to: Any, projects: object) -> Any:
        taken.append(projects)
        return replacing(*to)

    monkeypatch.setattr(transaction.environment, "replacing", take)
    with transaction.staging(prefix.target) as change:
        prefix.stage(change, [SmallDistribution("hiding", "1", {new: ""})], [])

        def validate(now: object) -> tuple[()]:
            # As another command that only adds.
            prefix.write({"site/shared/other.py": ""})
            return ()

        transaction.commit(change, validate)
    assert taken == [None], "it concerns any project, so those that others keep too"
    assert (prefix.root / new).exists()


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_comes_after_the_plan_is_seen_on_a_file_server_too(
    prefix: DirectPrefix, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There stat(2) may answer from a cache: unchanged times of a directory do not show that nothing came."""
    seen: list[Snapshot] = []
    monkeypatch.setattr(transaction_module, "listings", lambda path: [(1, 1, 1)])
    monkeypatch.setattr(state_directory, "is_shared", lambda tree: is_shared)
    transaction = prefix.transaction()
    terms = Terms(judge=lambda plan: prefix.write({"site/late-1.dist-info/METADATA": ""}))
    with transaction.staging(prefix.target, terms) as change:
        prefix.stage(change, [OTHER], [])
        transaction.commit(change, lambda now: seen.append(now) or ())
    assert ["late" in now.projects for now in seen] == [is_shared]


def test_nothing_is_deleted_if_it_cannot_be_told_whether_the_change_was_made(
    prefix: DirectPrefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal may be in its place, and need what is staged."""
    listdir, is_broken = os.listdir, False

    def failing(path: Any) -> list[str]:
        if is_broken and str(path).endswith(".safe-pip"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return listdir(path)

    def carry_out(*args: object, **more: object) -> None:
        nonlocal is_broken
        is_broken = True
        raise CommitFailed("the disk fails", state=State.UNCHANGED)

    monkeypatch.setattr(os, "listdir", failing)
    monkeypatch.setattr(commit, "carry_out", carry_out)
    transaction = prefix.transaction()
    with pytest.raises(CommitFailed) as caught, transaction.staging(prefix.target) as change:
        prefix.stage(change, [OTHER], [])
        transaction.commit(change, lambda now: ())
    assert caught.value.state is State.COMMITTED
    assert Path(change.stage.parts[0], "stage").is_dir()


def test_a_file_to_carry_over_that_cannot_be_looked_at_is_not_taken_for_gone(prefix: DirectPrefix) -> None:
    with prefix.transaction().staging(prefix.target) as change:
        with pytest.raises(UnusableEnvironment, match="cannot be looked at"):
            change.stage.link([Link(str(prefix.site / ("n" * 300)), change.staged(str(prefix.site / "file")))])
        with pytest.raises(UnusableEnvironment, match="cannot be looked at"):
            change.allow(str(prefix.site / ("n" * 300)))
