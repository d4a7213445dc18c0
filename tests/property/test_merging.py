"""Properties of all staged trees and prefixes: a second merge changes nothing, and unmerge restores the prefix."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from safe_pip.commands.merge.manifest import Manifest
from safe_pip.errors import State, Unmergeable
from tests.support.faults.transaction import Link
from tests.support.trees.prefixes import SITE, MergePrefix, distribution, exact, stage

Files = dict[str, "str | Link | None"]

NAMES = ["a", "b", "lib", "lib64", "x.py", "\udcff\n"]
PLACES = ["", "", "bin", "lib", "lib64", "share/doc", SITE, f"{SITE}/pkg", f"{SITE}/pkg/__pycache__"]
CONTENTS: list[str | Link | None] = ["", "1", "22", None, Link("lib"), Link("a"), Link("../b")]


def consistent(files: Mapping[str, str | Link | None]) -> Files:
    """As much of it as can be in one tree."""
    kept: Files = {}
    for path, content in files.items():
        above = {str(each) for each in Path(path).parents}
        is_free = all(kept.get(each, None) is None for each in above)
        if is_free and (content is None or not any(each.startswith(f"{path}/") for each in kept)):
            kept[path] = content
    return kept


def without_empty_caches(content: Mapping[str, str]) -> dict[str, str]:
    """Without `__pycache__`, and directories in it, with no file: safe-pip may remove them."""
    files = [path for path, said in content.items() if not said.startswith("d")]
    return {
        path: said
        for path, said in content.items()
        if "/__pycache__" not in path or any(each == path or each.startswith(f"{path}/") for each in files)
    }


paths = st.builds(os.path.join, st.sampled_from(PLACES), st.sampled_from(NAMES))
trees = st.dictionaries(paths, st.sampled_from(CONTENTS), max_size=8).map(consistent)
OLD: Files = {**distribution("dist", "1", {f"{SITE}/pkg/x.py": "1", f"{SITE}/pkg/gone.py": "", "bin/a": "1"})}
NEW: Files = {**distribution("dist", "2", {f"{SITE}/pkg/x.py": "22", f"{SITE}/pkg/b": "", "share/doc/a": "1"})}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees, trees, st.sampled_from(["warn", "fail", "keep"]), st.sets(st.integers(0, 9), max_size=2))
@example({}, {"lib64": Link("lib"), "lib/a": "1"}, "warn", set())
@example({"lib64": Link("lib"), "lib/b": ""}, {"lib64/a": "1", "lib/a": "1", "lib64/lib": None}, "fail", set())
@example({**OLD, f"{SITE}/pkg/a": "1"}, NEW, "fail", set())
@example({**OLD, "share/doc/a": "22"}, NEW, "keep", set())
@example({"a/b": None}, {"a/b": None, "b/lib": None}, "warn", {0, 1})
@example({"lib": Link("lib")}, {"lib/a": ""}, "warn", set())
def test_merged_twice_is_merged_once_and_unmerged_it_is_as_it_was(
    before: Files, staged: Files, policy: str, read_only: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(os.path.realpath(name))
        tree, prefix = stage(directory / "staged", staged), MergePrefix(stage(directory / "prefix", before))
        directories = [path for path in sorted(tree.rglob("*")) if path.is_dir() and not path.is_symlink()]
        for number in read_only.intersection(range(len(directories))):
            directories[number].chmod(0o555)
        content, of_tree = prefix.content(), exact(tree)
        first, error = None, None
        try:
            first = prefix.merge(tree, policy, manifest=directory / "manifest")
        except Unmergeable as refused:
            error = refused
        if first is None:
            assert error is not None
            assert error.state is State.UNCHANGED
            assert prefix.content() == content
            assert not (directory / "manifest").exists()
        else:
            once = exact(prefix.path)
            kept = {path for path, _ in first.kept}
            for path in first.put:
                if path.startswith(f"{prefix.path}/"):
                    assert os.path.lexists(path)
            assert not prefix.merge(tree, policy).is_changed
            assert exact(prefix.path) == once
            assert not kept.intersection(first.put)
            prefix.unmerge(directory / "manifest")
            lost = {os.path.relpath(path, prefix.path) for path, _ in first.replaced}
            lost |= {os.path.relpath(path, prefix.path) for path in first.removed}
            if "dist-1.dist-info" not in "".join(before):
                assert prefix.content() == {path: said for path, said in content.items() if path not in lost}
        assert exact(tree) == of_tree
        assert prefix.private() == []


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(trees, min_size=2, max_size=3))
def test_trees_without_a_common_file_come_to_the_same_in_any_order(staged: list[Files]) -> None:
    """And each can be taken away by itself."""
    unlinked = [{path: content for path, content in files.items() if not isinstance(content, Link)} for files in staged]
    named = [
        consistent({f"{path}-{number}" if content is not None else path: content for path, content in files.items()})
        for number, files in enumerate(unlinked)
    ]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(os.path.realpath(name))
        found = []
        for number, order in enumerate(itertools.permutations(range(len(named)))):
            prefix = MergePrefix(directory / f"prefix-{number}")
            for each in order:
                tree = directory / f"staged-{each}"
                tree = tree if tree.exists() else stage(tree, named[each])
                prefix.merge(tree, "fail", manifest=directory / f"{number}-{each}")
            found.append(prefix.content())
            for each in reversed(order):
                prefix.unmerge(directory / f"{number}-{each}")
            assert prefix.content() == {}
        assert all(each == found[0] for each in found)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees, trees, trees)
@example({}, {"lib64": Link("lib"), "lib/a": "1"}, {"lib64/a": "1", "lib/b": "1"})
@example({"lib/b": ""}, {"lib/a": "1", "a": None}, {"lib": Link("a"), "a/b": ""})
@example({}, OLD, NEW)
@example({f"{SITE}/pkg/__pycache__/a": None}, {f"{SITE}/pkg/a": ""}, {f"{SITE}/pkg/a": "1"})
@example({f"{SITE}/pkg/a": ""}, {**OLD, "share/doc/b": None}, {**NEW, f"{SITE}/pkg/b": "", "share/doc/b": "1"})
def test_a_tree_in_place_of_another_is_as_if_that_had_been_taken_away_first(
    before: Files, old: Files, new: Files
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(os.path.realpath(name))
        one, two = stage(directory / "one", old), stage(directory / "two", new)
        found: list[object] = []
        for number in (0, 1):
            prefix = MergePrefix(stage(directory / f"prefix-{number}", before))
            manifest, content = directory / f"manifest-{number}", prefix.content()
            try:
                prefix.merge(one, manifest=manifest)
                if number == 1:
                    prefix.unmerge(manifest)
                content = prefix.content()
                prefix.merge(two, manifest=manifest)
                found.append((without_empty_caches(prefix.content()), Manifest.read(manifest).entries))
            except Unmergeable:
                assert number == 1 or prefix.content() == content
                found.append(None)
            assert prefix.private() == []
        assert found[0] is None or found[0] == found[1]
