"""A wheel with any content is copied from the store as it is in the archive, or left to the installer."""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
import zipfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from safe_pip.fs import Directory
from safe_pip.store import compile
from safe_pip.store.prepare import Preparing
from safe_pip.store.wheels import Store
from tests.support.wheels.tiny import Project

NAMES = st.sampled_from(["a", "b.py", "__init__.py", "c.txt", "__pycache__", "..", ".", "é", "x.data", "b.pyc", "d"])
TOPS = st.sampled_from(["", "", "p-1.data/purelib/", "p-1.data/data/", "p-1.data/scripts/", "p-1.data/else/", "/"])
PATHS = st.builds(lambda top, names: top + "/".join(names), TOPS, st.lists(NAMES, min_size=1, max_size=3))
CONTENTS = st.one_of(st.binary(max_size=80), st.sampled_from([b"x = 1\n", b"def (:\n", b"", b"y" * 400_000]))


@settings(deadline=None, max_examples=150)
@given(files=st.dictionaries(PATHS, CONTENTS, max_size=6), clones=st.booleans(), bytecode=st.booleans())
def test_a_copied_entry_has_the_content_of_the_archive(files, clones, bytecode):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        wheel = Project("p", "1", files=files).write_wheel(root)
        store = Store.below(root / "cache")
        assert store is not None
        tool = Preparing(store, compile.key(), limit=10**9)
        entry = tool.prepare([wheel], lambda: ()).get(wheel)
        assert not any((store.path / "aside").glob("*"))
        assert not any((store.path / "making").glob("*"))
        if entry is None:
            assert store.entries() == []
            return
        found = {}
        for number, group in enumerate(entry.listing.files):
            (root / str(number)).mkdir()
            with Directory.open(root / str(number)) as directory:
                entry.copy(group, directory, bytecode=bytecode, clones=clones)
            for path in (root / str(number)).rglob("*"):
                if path.is_file():
                    found[os.path.join(group, path.relative_to(root / str(number)))] = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
            there = {name: archive.read(name) for name in archive.namelist()}
        sources = [path for path in there if path.endswith(".py") and not path.startswith(("p-1.data/d", "p-1.data/s"))]
        compiled = {importlib.util.cache_from_source(path) for path in sources if bytecode}
        assert {path: content for path, content in found.items() if path not in compiled} == there
        entry.close()
