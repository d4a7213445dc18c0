"""One change of a target: what it reports as replaced, what it puts in place, and what it leaves out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from safe_pip.journal.commit import check_permissions
from safe_pip.merge.plan import Removal
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
