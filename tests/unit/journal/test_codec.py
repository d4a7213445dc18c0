"""The journal's format: everything survives, no damage passes, nothing that is not well-formed is taken."""

import hashlib
import json
import os
import stat
from typing import Any

import pytest

from safe_pip.journal import codec as journal
from safe_pip.merge.plan import Journal, Kind, Operation, Seen

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
PRIVATE = "/v/lib/.safe-pip/0123456789abcdef"
OPERATIONS = (
    Operation(Kind.NEW, 0, "new", 0, "v/lib/new", "", None, Seen(DIRECTORY, 0, 0)),
    Operation(Kind.FILE, 1, "tool", 1, "spare/1", "1", Seen(FILE, 3, -5), Seen(FILE | 0o4111, 4, 1 << 62)),
    Operation(Kind.EXCHANGE, 0, "a/b", 0, "v/lib/a/b", "", Seen(DIRECTORY, 0, 0), Seen(DIRECTORY, 0, 0), ("x", "y/z")),
    Operation(Kind.SWAP, 0, "s", 0, "v/lib/s", "2", Seen(FILE, 1, 2), Seen(DIRECTORY, 0, 0)),
    Operation(Kind.REMOVE, 0, "r", 0, "", "3", Seen(DIRECTORY, 0, 0), None, ("\udcff", "é", "🐍")),
    Operation(Kind.MODE, 0, "a/b", 0, "", "", Seen(DIRECTORY, 0, 0), Seen(DIRECTORY | 0o200, 0, 0)),
)
JOURNAL = Journal(
    "0123456789abcdef",
    "/v/lib",
    ("/v/lib", "/v/lib64"),
    ("/home/\udce9/bin",),
    ("/v/lib", "/"),
    (PRIVATE, "/.safe-pip/0123456789abcdef"),
    OPERATIONS,
)


def body_of(content: bytes) -> Any:
    return json.loads(content.partition(b"\n")[2])


def with_body(body: object, form: int = 1) -> bytes:
    """A journal with this body, and the header that belongs to it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"safe-pip-journal {form} {len(text)} {hashlib.sha256(text).hexdigest()}\n".encode() + text


def test_what_was_written_is_read():
    assert journal.decode(journal.encode(JOURNAL)) == JOURNAL


def test_what_was_written_is_one_header_line_and_one_line_of_ascii():
    content = journal.encode(JOURNAL)
    assert content.isascii()
    assert content.startswith(b"safe-pip-journal 1 ")
    assert content.count(b"\n") == 1


def test_names_are_kept_as_the_bytes_of_the_filesystem_in_every_locale(monkeypatch):
    """The same two bytes are another text where the locale is not UTF-8."""
    name = b"caf\xc3\xa9"
    operation = Operation(Kind.REMOVE, 0, os.fsdecode(name), 0, "", "0", Seen(FILE, 0, 0))
    utf_8 = journal.encode(JOURNAL._replace(operations=(operation,)))
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    monkeypatch.setattr(os, "fsdecode", lambda content: content.decode("latin-1"))
    assert journal.decode(utf_8).operations[0].path.encode("latin-1") == name
    latin = JOURNAL._replace(directories=(), operations=(operation._replace(path=name.decode("latin-1")),))
    assert body_of(journal.encode(latin)) == body_of(utf_8) | {"directories": []}


@pytest.mark.parametrize("form", [2, 10, 999_999_999])
def test_another_format_is_newer(form):
    with pytest.raises(journal.Newer):
        journal.decode(with_body({"anything": "else"}, form))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}",
        b"safe-pip-journal 1\n",
        b"safe-pip-journal 1 0\n",
        b"safe-pip-journal 2 0\n",
        b"safe-pip-journal 0 0 " + b"0" * 64 + b"\n",
        b"safe-pip-journal -1 0 " + b"0" * 64 + b"\n",
        with_body(b""),
        with_body(b"\xff"),
        with_body(b"[" * 100_000),
        with_body(b"1" * 100_000),
        with_body(b"null"),
        with_body([]),
        with_body({}),
    ],
    ids=range(15),
)
def test_what_is_no_journal_is_damaged(content):
    with pytest.raises(journal.Damaged):
        journal.decode(content)


def test_a_leading_zero_in_the_header_is_noticed():
    content = journal.encode(JOURNAL)
    with pytest.raises(journal.Damaged):
        journal.decode(content.replace(b" 1 ", b" 1 0", 1))


UNSAFE = ["", "/", "/etc", "..", ".", "a/..", "../a", "a//b", "a/./b", "a/", "/a", "a\0b", "\ud800", 1, None, ["a"]]


@pytest.mark.parametrize("value", [*UNSAFE, True])
@pytest.mark.parametrize("field", [2, 4, 5, 8], ids=["path", "staged", "trash", "known"])
def test_a_path_that_leads_anywhere_else_is_refused(field, value):
    body = body_of(journal.encode(JOURNAL))
    body["operations"][1][field] = [value] if field == 8 else value
    with pytest.raises(journal.Damaged):
        journal.decode(with_body(body))


def test_a_name_in_the_trash_is_a_single_one():
    body = body_of(journal.encode(JOURNAL))
    body["operations"][1][5] = "1/2"
    with pytest.raises(journal.Damaged):
        journal.decode(with_body(body))


@pytest.mark.parametrize("value", ["", "v", "/v/", "//v", "/v/../etc", "/v/./x", "/v\0", "\ud800", 1, None, True])
@pytest.mark.parametrize("field", ["home", "trees", "directories", "roots", "parts"])
def test_an_absolute_path_that_is_not_in_its_simplest_form_is_refused(field, value):
    body = body_of(journal.encode(JOURNAL))
    body[field] = value if field == "home" else [*body[field][:-1], value]
    with pytest.raises(journal.Damaged):
        journal.decode(with_body(body))


@pytest.mark.parametrize(
    "value", ["", "0123456789abcde", "0123456789ABCDEF", "../456789abcdef", "0123456789abcdef\n", 1]
)
def test_an_identifier_is_sixteen_hexadecimal_digits(value):
    body = body_of(journal.encode(JOURNAL))
    body["identifier"] = value
    with pytest.raises(journal.Damaged):
        journal.decode(with_body(body))


@pytest.mark.parametrize("index", [-1, 2, 1.0, True, "0", None, 10**30])
@pytest.mark.parametrize("field", [1, 3], ids=["root", "part"])
def test_an_index_out_of_range_is_refused(field, index):
    body = body_of(journal.encode(JOURNAL))
    body["operations"][0][field] = index
    with pytest.raises(journal.Damaged):
        journal.decode(with_body(body))


@pytest.mark.parametrize(
    "value", [[], [1], [1, 2], [1, 2, 3, 4], [1, -2, 3], [-1, 2, 3], [1.0, 2, 3], [1 << 40, 2, 3], 1, {}]
)
@pytest.mark.parametrize("field", [6, 7], ids=["old", "new"])
def test_what_was_seen_has_a_mode_a_size_and_a_time(field, value):
    body = body_of(journal.encode(JOURNAL))
    body["operations"][1][field] = value
    with pytest.raises(journal.Damaged):
        journal.decode(with_body(body))


def changed(number: int, **fields: Any) -> Journal:
    operations = list(OPERATIONS)
    operations[number] = operations[number]._replace(**fields)
    return JOURNAL._replace(operations=tuple(operations))


WRONG = {
    "a new object with a name in the trash": changed(0, trash="9"),
    "a new object that is not staged": changed(0, staged=""),
    "a new object in the place of an old one": changed(0, old=Seen(FILE, 0, 0)),
    "a new object that is nothing": changed(0, new=None),
    "a file that is kept nowhere": changed(1, trash=""),
    "a file in the place of nothing": changed(1, old=None),
    "a file in the place of a directory": changed(1, old=Seen(DIRECTORY, 0, 0)),
    "a directory in the place of a file": changed(1, new=Seen(DIRECTORY, 0, 0)),
    "an exchange with the trash": changed(2, trash="9"),
    "an exchange of a file": changed(2, old=Seen(FILE, 0, 0)),
    "a removal with something staged": changed(4, staged="v/lib/r"),
    "a removal that leaves something": changed(4, new=Seen(FILE, 0, 0)),
    "the mode of a file": changed(5, new=Seen(FILE, 0, 0)),
    "the same place in the trash twice": changed(3, trash="3"),
    "the same place in the stage twice": changed(3, staged="v/lib/new"),
    "a home that is no tree": JOURNAL._replace(trees=("/v/lib64",)),
    "no parts": JOURNAL._replace(parts=()),
    "a first part elsewhere": JOURNAL._replace(parts=JOURNAL.parts[::-1]),
    "a part of another transaction": JOURNAL._replace(parts=(PRIVATE, "/.safe-pip/0123456789abcdee")),
    "a part that is no private directory": JOURNAL._replace(parts=(PRIVATE, "/home")),
    "the same part twice": JOURNAL._replace(parts=(PRIVATE, PRIVATE)),
    "no root": JOURNAL._replace(roots=()),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_no_plan_contains_is_neither_written_nor_read(wrong, monkeypatch):
    with pytest.raises(ValueError):
        journal.encode(wrong)
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_check", lambda journal: None)
        content = journal.encode(wrong)
    with pytest.raises(journal.Damaged):
        journal.decode(content)


def test_a_kind_that_is_not_known_is_refused():
    body = body_of(journal.encode(JOURNAL))
    for kind in ("delete", "", None, [], "NEW"):
        body["operations"][0][0] = kind
        with pytest.raises(journal.Damaged):
            journal.decode(with_body(body))


def test_a_field_too_many_or_too_few_is_refused():
    body = body_of(journal.encode(JOURNAL))
    operation = body["operations"][0]
    bodies = [
        body | {"more": 1},
        {name: value for name, value in body.items() if name != "trees"},
        dict(reversed(body.items())),
        body | {"operations": [operation[:-1]]},
        body | {"operations": [[*operation, 1]]},
        body | {"operations": [{}]},
        body | {"operations": {}},
    ]
    for wrong in bodies:
        with pytest.raises(journal.Damaged):
            journal.decode(with_body(wrong))


def test_no_journal_is_larger_than_what_is_read(monkeypatch):
    content = journal.encode(JOURNAL)
    monkeypatch.setattr(journal, "LIMIT", len(content) - 1)
    with pytest.raises(ValueError, match="bytes"):
        journal.encode(JOURNAL)
    with pytest.raises(journal.Damaged):
        journal.decode(content)
