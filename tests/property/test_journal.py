"""The journal: torn off anywhere, or with any byte changed, it is refused and never misread."""

import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safe_pip.journal import codec
from safe_pip.merge.plan import Journal, Kind, Operation, Seen

# How fast this machine is at the moment is nothing that a test may depend on.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Made and never filtered: a health check counts what a filter throws away.
names = st.binary(min_size=1, max_size=12).map(
    lambda drawn: os.fsdecode({b".": b"_", b"..": b"__"}.get(drawn, drawn.translate(bytes.maketrans(b"\0/", b"ab"))))
)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
absolute = paths.map(lambda path: f"/{path}")
identifiers = st.text("0123456789abcdef", min_size=16, max_size=16)
permissions = st.integers(0, 0o7777)
files = st.builds(
    lambda kind, mode, size, mtime: Seen(kind | mode, size, mtime),
    st.sampled_from([stat.S_IFREG, stat.S_IFLNK]),
    permissions,
    st.integers(0, 1 << 63),
    st.integers(-(1 << 63), 1 << 63),
)
directories = permissions.map(lambda mode: Seen(stat.S_IFDIR | mode, 0, 0))
objects = {
    Kind.NEW: (st.none(), files | directories),
    Kind.FILE: (files, files),
    Kind.EXCHANGE: (directories, directories),
    Kind.SWAP: (files | directories, files | directories),
    Kind.REMOVE: (files | directories, st.none()),
    Kind.MODE: (directories, directories),
    Kind.TIDY: (directories, st.none()),
    Kind.SEAL: (directories, directories),
}


@st.composite
def journals(draw: st.DrawFn) -> Journal:
    identifier, home = draw(identifiers), draw(absolute)
    holders = [each for each in draw(st.lists(absolute, max_size=2, unique=True)) if each != home]
    roots = tuple(draw(st.lists(absolute | st.just("/"), min_size=1, max_size=3)))
    operations = []
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(Kind))
        old, new = (draw(each) for each in objects[kind])
        is_staged = kind not in (Kind.REMOVE, Kind.MODE, Kind.TIDY, Kind.SEAL)
        operations.append(
            Operation(
                kind,
                draw(st.integers(0, len(roots) - 1)),
                draw(paths),
                draw(st.integers(0, len(holders))),
                f"{number}/{draw(paths)}" if is_staged else "",
                str(number) if kind in (Kind.FILE, Kind.SWAP, Kind.REMOVE) else "",
                old,
                new,
                tuple(draw(st.lists(paths, max_size=3))),
                draw(st.text("0123456789abcdef ", max_size=9)),
            )
        )
    parts = tuple(f"{holder}/.safe-pip/{identifier}" for holder in (home, *holders))
    trees = (home, *draw(st.lists(absolute, max_size=2)))
    directories = tuple(draw(st.lists(absolute, max_size=2)))
    identity = draw(st.tuples(st.integers(0, 1 << 64), st.integers(0, 1 << 64)))
    return Journal(identifier, home, trees, directories, roots, parts, tuple(operations), identity)


@patient
@given(journals())
def test_an_encoded_journal_decodes_to_itself(written: Journal) -> None:
    assert codec.decode(codec.encode(written)) == written


@settings(patient, max_examples=20)
@given(journals())
def test_every_torn_prefix_is_refused(written: Journal) -> None:
    content = codec.encode(written)
    for length in range(len(content)):
        with pytest.raises(codec.Damaged):
            codec.decode(content[:length])


@settings(patient, max_examples=20)
@given(journals(), st.integers(1, 255))
def test_every_single_wrong_byte_is_noticed(written: Journal, flips: int) -> None:
    content = codec.encode(written)
    for position in range(len(content)):
        wrong = bytearray(content)
        wrong[position] ^= flips
        with pytest.raises((codec.Damaged, codec.Newer)):
            codec.decode(bytes(wrong))


@settings(patient, max_examples=50)
@given(journals(), st.binary(min_size=1), st.data())
def test_every_additional_byte_is_noticed(written: Journal, more: bytes, data: st.DataObject) -> None:
    content = codec.encode(written)
    position = data.draw(st.integers(0, len(content)))
    with pytest.raises((codec.Damaged, codec.Newer)):
        codec.decode(content[:position] + more + content[position:])


@patient
@given(st.binary())
def test_no_bytes_at_all_are_misread(content: bytes) -> None:
    with pytest.raises(codec.Damaged):
        codec.decode(content)


@settings(patient, max_examples=200)
@given(
    journals(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4), st.data()
)
def test_a_decoded_journal_is_well_formed(written: Journal, value: object, data: st.DataObject) -> None:
    """Any value in the place of any other, with a header that belongs to it: refused, or a journal that encodes."""
    import hashlib
    import json

    body = json.loads(codec.encode(written).partition(b"\n")[2])
    place = data.draw(st.sampled_from(list(body)))
    if place == "operations" and body[place]:
        data.draw(st.sampled_from(body[place]))[data.draw(st.integers(0, 8))] = value
    else:
        body[place] = value
    text = json.dumps(body).encode()
    header = f"safe-pip-journal 1 {len(text)} {hashlib.sha256(text).hexdigest()}\n".encode()
    try:
        found = codec.decode(header + text)
    except codec.Damaged:
        return
    assert codec.decode(codec.encode(found)) == found
