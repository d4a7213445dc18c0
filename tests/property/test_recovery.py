"""A transaction with any operations, killed anywhere, with any kills of its recovery: the tree is the old one."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from safe_pip.journal import recovery
from safe_pip.merge.plan import Kind
from tests.support.faults import disk
from tests.support.faults.transaction import Content, Link, StagedTransaction

files = st.text("ab\n", max_size=3)
links = st.sampled_from(["nowhere", "../lib", "a"]).map(Link)
leaves = files | links
names = st.sampled_from(["a.py", "b", "__pycache__", "c.so"])
directories: st.SearchStrategy[Content] = st.dictionaries(
    names, st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=2), max_leaves=4), max_size=3
)
objects = leaves | directories
wanted = {
    Kind.NEW: (st.none(), objects),
    Kind.FILE: (leaves, leaves),
    Kind.EXCHANGE: (directories, directories),
    Kind.SWAP: (objects, objects),
    Kind.REMOVE: (objects, st.none()),
}
Planned = tuple[Kind, Content | None, Content | None, int, bool]


@st.composite
def operations(draw: st.DrawFn) -> list[Planned]:
    found: list[Planned] = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(list(wanted)))
        old, new = (draw(each) for each in wanted[kind])
        found.append((kind, old, new, draw(st.integers(0, 1)), draw(st.booleans())))
    return found


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(operations(), st.integers(0, 20), st.lists(st.integers(0, 25), max_size=3))
@example([(Kind.FILE, "a", "b", 0, False)], 20, [0, 0, 0])
def test_undoing_is_the_opposite_of_doing(planned: list[Planned], killed: int, killed_again: list[int]) -> None:
    root = Path(tempfile.mkdtemp(prefix="safe-pip-test-"))
    try:
        transaction = StagedTransaction(root)
        for number, (kind, old, new, where, is_deep) in enumerate(planned):
            path = f"{number}/deeper" if is_deep else str(number)
            if is_deep:
                (transaction.roots[where] / str(number)).mkdir()
            transaction.add(kind, path, _named(old), _named(new), root=where)
        transaction.write_journal()
        before = transaction.content()
        _until(killed, transaction.do)
        for k in killed_again:
            if transaction.unfinished.path.exists():
                _until(k, lambda: recovery.roll_back(transaction.unfinished).delete())
        if transaction.unfinished.path.exists():
            recovery.roll_back(transaction.unfinished).delete()
            assert transaction.leftovers() == []
        assert transaction.content() == before
    finally:
        shutil.rmtree(root)


def _until(k: int, act) -> None:  # type: ignore[no-untyped-def]
    try:
        with disk.crash_at(k):
            act()
    except disk.Crashed:
        pass


def _named(content: Content | None) -> Content | None:
    """An empty dictionary is a directory too."""
    return dict(content) if isinstance(content, Mapping) else content
