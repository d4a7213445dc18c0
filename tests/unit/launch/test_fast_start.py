"""What importing compiles is taken from the file the next time, and is then what compiling would give."""

from __future__ import annotations

import collections
import dataclasses
import gc
import importlib
import os
import random
import re
import string
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safe_pip.launch import fast_start
from safe_pip.launch.fast_start import FastStart

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython's `re` is known")

COMPILER: Any = importlib.import_module("re._compiler" if sys.version_info >= (3, 11) else "sre_compile")
EXPRESSIONS: list[tuple[str | bytes, int]] = [
    (tokenize.PseudoToken, re.UNICODE),
    (string.Template.pattern.pattern, int(string.Template.pattern.flags & ~re.UNICODE)),  # type: ignore[attr-defined]
    (textwrap.TextWrapper.wordsep_re.pattern, re.VERBOSE),
    (r"(?P<year>\d{4})-(?P<month>\d\d)", 0),
    (r"(a)(?:b|c)*?(?P=x)?(?P<x>d)".replace("(?P=x)?", ""), re.IGNORECASE),
    (r"(?<=a)b(?!c)|(?P<q>['\"]).*?(?P=q)", re.DOTALL | re.MULTILINE),
    (r"[\w.-]+@[^\x00-\x1f\s]{2,64}", re.ASCII),
    (r"(?i:straße|\u017f)K", re.IGNORECASE),
    ("[\U0001f600-\U0001f64f]|\ud800", 0),
    (rb"\x00[\x80-\xff]*(?:end)?$", 0),
    (b"a", 0),
    ("a", 0),
    ("a", re.IGNORECASE),
    ("", 0),
]
TEXTS = [
    "",
    "a",
    "A",
    "abcd",
    "2026-11-22",
    "x.y@example.org",
    "'quoted' and \"more\"",
    "${name} $$",
    "STRASSE Straße",
    "\U0001f601",
]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where it is kept; afterwards `re`, `collections` and `dataclasses` are as they were."""
    before = COMPILER._sre, COMPILER.compile
    yield tmp_path / "kept"
    COMPILER._sre, COMPILER.compile = before
    vars(collections).pop("eval", None)
    vars(dataclasses).pop("exec", None)


def everything() -> list[Any]:
    """Compile all of it, as `re` does at the first request, and make a few classes."""
    re.purge()
    patterns = [re.compile(expression, flags) for expression, flags in EXPRESSIONS]
    point = collections.namedtuple("point", "x y z", defaults=[3])

    class Pair(NamedTuple):
        left: int
        right: str = "right"

    @dataclasses.dataclass(order=True, frozen=True)
    class Thing:
        name: str
        size: int = dataclasses.field(default=1, compare=False)

    return [patterns, point(1, 2), Pair(1), Thing("a") < Thing("b"), repr(Thing("a", size=7)), hash(Thing("a", 2))]


def once(file: Path, *, keep: bool = True) -> list[Any]:
    """What a process does that ends then."""
    before = COMPILER._sre, COMPILER.compile
    asked = FastStart(file)
    asked.attach()
    try:
        found = everything()
    finally:
        if keep:
            asked.end()
        COMPILER._sre, COMPILER.compile = before
        vars(collections).pop("eval", None)
        vars(dataclasses).pop("exec", None)
    return found


def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be compiled."""

    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("it was compiled")

    monkeypatch.setattr(COMPILER, "compile", refuse)
    monkeypatch.setattr(fast_start, "compile", refuse, raising=False)


def test_what_is_kept_is_what_compiling_gives_and_nothing_is_compiled_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = everything()
    assert once(file) == plain
    content = file.read_bytes()
    with monkeypatch.context() as patches:
        refusing(patches)
        again = once(file)
    assert again == plain  # patterns are equal if expression, flags and code are
    for ours, theirs in zip(again[0], plain[0], strict=True):
        assert (ours.flags, ours.groups, dict(ours.groupindex)) == (
            theirs.flags,
            theirs.groups,
            dict(theirs.groupindex),
        )
        for text in TEXTS:
            subject = text.encode() if isinstance(theirs.pattern, bytes) else text
            found = [match and (match.span(), match.groups(), match.lastgroup) for match in ours.finditer(subject)]
            assert found == [
                match and (match.span(), match.groups(), match.lastgroup) for match in theirs.finditer(subject)
            ]
    assert file.read_bytes() == content


def test_the_standard_library_is_as_it_was_when_the_command_begins(file: Path) -> None:
    before = COMPILER._sre, COMPILER.compile
    start = FastStart(file)
    start.attach()
    assert (COMPILER._sre, COMPILER.compile) != before
    start.end()
    assert (COMPILER._sre, COMPILER.compile) == before
    assert "eval" not in vars(collections)
    assert "exec" not in vars(dataclasses)


def test_the_collector_wakes_when_the_command_begins(file: Path) -> None:
    before = gc.get_threshold()
    gc.disable()
    try:
        FastStart(file).end()
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*before)


def test_it_is_kept_for_this_user_alone(file: Path) -> None:
    once(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == ["kept"]


def test_what_comes_after_the_start_is_not_kept(file: Path) -> None:
    asked = FastStart(file)
    asked.attach()
    re.compile("what a library compiles", re.ASCII)
    asked.end()
    content = file.read_bytes()
    re.compile("what a user wrote", re.ASCII)
    collections.namedtuple("users", "own")
    asked.end()
    assert file.read_bytes() == content
    assert b"what a library" in content
    assert b"own" not in content


def test_more_is_added_to_what_is_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once(file)
    asked = FastStart(file)
    asked.attach()
    re.compile("one that is new", re.ASCII)
    asked.end()
    assert b"one that is new" in file.read_bytes()
    refusing(monkeypatch)
    once(file)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_as_none_and_is_made_anew(file: Path, seed: int) -> None:
    plain = once(file)
    content = bytearray(file.read_bytes())
    chances = random.Random(seed)
    if seed % 2:
        content[chances.randrange(len(content))] ^= 1 << chances.randrange(8)
    else:
        del content[chances.randrange(len(content)) :]
    file.write_bytes(content)
    assert once(file) == plain
    assert bytes(content) != file.read_bytes()
    assert once(file) == plain


def test_what_is_no_expression_is_refused_as_ever(file: Path) -> None:
    for _ in range(2):
        asked = FastStart(file)
        asked.attach()
        with pytest.raises(re.error) as refused:
            re.compile("(", re.ASCII)
        asked.end()
        assert "unterminated subpattern" in str(refused.value)
        assert not file.exists()


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, file: Path) -> None:
    assert once(tmp_path / "missing" / "kept") == everything()
    assert not (tmp_path / "missing").exists()


def test_too_much_is_not_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_start, "MOST", 3)
    assert once(file) == everything()
    assert not file.exists()


def test_an_interpreter_that_is_made_otherwise_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(COMPILER, "_sre")
    before = COMPILER.compile
    FastStart(file).attach()
    assert COMPILER.compile is before
    assert "eval" not in vars(collections)
