"""What was staged is what the wheel's RECORD says, byte for byte, or it is refused."""

import base64
import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_pip.errors import Mismatch, State
from safe_pip.store.verify import verify

INFO = "demo-1.dist-info"
DATA = "demo-1.data"
FILES = {
    "demo/__init__.py": b"x = 1\n",
    "demo/empty.py": b"",
    "single.py": b"y = 1\n",
    "demo/big.bin": bytes(range(256)) * 12_000,
    f"{DATA}/scripts/tool": b"#!python\nprint(1)\n",
    f"{DATA}/scripts/shell": b"#!/bin/sh\necho\n",
    f"{DATA}/data/share/man/demo.1": b"man",
    f"{DATA}/headers/demo.h": b"int x;",
    f"{DATA}/platlib/native.so": b"\x7fELF",
    f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\n",
}
STAGED = [name for name in FILES if not name.startswith(f"{DATA}/scripts/")]
"""What an installer writes as it is in the wheel; it rewrites scripts."""
Rows = list[list[str]]


class Staged:
    """A wheel, and what an installer makes of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheel = root / "demo-1-py3-none-any.whl"
        self.scheme = {key: str(root / key) for key in ("purelib", "platlib", "scripts", "data", "headers")}
        self.files = dict(FILES)
        self.edit: Callable[[Rows], Rows] = lambda rows: rows

    def make(self) -> None:
        """Make the wheel, and unpack it."""
        rows = [[name, digest(content), str(len(content))] for name, content in self.files.items()]
        rows = self.edit([*rows, [f"{INFO}/RECORD", "", ""]])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.files.setdefault(f"{INFO}/RECORD", text.getvalue().encode())
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("demo/", b"")
            for name, content in self.files.items():
                archive.writestr(name, content)
        for name, content in self.files.items():
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.startswith(f"{DATA}/scripts/") and content.startswith(b"#!python"):
                content = b"#!/venv/bin/python\n" + content.partition(b"\n")[2]
            path.write_bytes(content)
        # The installer's own RECORD has other rows.
        if self.path(f"{INFO}/RECORD").parent.is_dir():
            self.path(f"{INFO}/RECORD").write_text("other")

    def path(self, name: str) -> Path:
        """Where a file of the wheel is staged."""
        if name.partition("/")[0].endswith(".data"):
            _, key, below = name.split("/", 2)
            return Path(self.scheme[key], below)
        return Path(self.scheme["purelib"], name)

    def verify(self) -> None:
        verify(self.wheel, self.scheme["purelib"], self.scheme)

    def refused(self, *reasons: str) -> str:
        """It is refused, for these reasons."""
        with pytest.raises(Mismatch) as caught:
            self.verify()
        assert caught.value.state is State.UNCHANGED
        assert caught.value.exit_status == 1
        assert caught.value.message.startswith("`demo-1-py3-none-any.whl` is ")
        for reason in reasons:
            assert reason in caught.value.message
        return caught.value.message


def digest(content: bytes, algorithm: str = "sha256") -> str:
    encoded = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).decode()
    return f"{algorithm}={encoded.rstrip('=')}"


@pytest.fixture
def staged(tmp_path: Path) -> Staged:
    return Staged(tmp_path)


def changing(name: str, *values: str) -> Callable[[Rows], Rows]:
    return lambda rows: [[row[0], *values] if row[0] == name else row for row in rows]


def test_a_wheel_that_was_unpacked_as_it_is_passes(staged: Staged) -> None:
    staged.make()
    staged.verify()


@pytest.mark.parametrize("name", STAGED)
def test_a_staged_file_with_another_content_is_refused(staged: Staged, name: str) -> None:
    staged.make()
    content = staged.path(name).read_bytes()
    staged.path(name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"x")
    staged.refused(f"`{name}` has another digest")


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("change", [lambda content: content + b"x", lambda content: content[:-1]])
def test_a_longer_or_shorter_one_is_refused(staged: Staged, name: str, change: Callable[[bytes], bytes]) -> None:
    staged.make()
    content = staged.path(name).read_bytes()
    if change(content) != content:
        staged.path(name).write_bytes(change(content))
        staged.refused(f"`{name}` ")


@pytest.mark.parametrize("name", STAGED)
def test_one_that_is_missing_in_the_stage_is_refused(staged: Staged, name: str) -> None:
    staged.make()
    staged.path(name).unlink()
    staged.refused(f"`{name}` was not unpacked")


@pytest.mark.parametrize("name", FILES)
def test_one_that_record_does_not_list_is_refused(staged: Staged, name: str) -> None:
    staged.edit = lambda rows: [row for row in rows if row[0] != name]
    staged.make()
    staged.refused(f"`{name}` is not listed")


@pytest.mark.parametrize("name", FILES)
def test_one_whose_digest_in_record_is_wrong_is_refused(staged: Staged, name: str) -> None:
    """Also a script's, though what was made of it is another."""
    staged.edit = changing(name, digest(b"other"), str(len(FILES[name])))
    staged.make()
    staged.refused(f"`{name}` has another digest")


def test_one_that_record_lists_and_the_wheel_has_not_is_refused(staged: Staged) -> None:
    staged.edit = lambda rows: [*rows, ["demo/gone.py", digest(b""), "0"]]
    staged.make()
    staged.refused("`demo/gone.py` is missing")


@pytest.mark.parametrize("size", ["5", "7", "-6", "x"])
def test_a_wrong_size_is_refused(staged: Staged, size: str) -> None:
    staged.edit = changing("demo/__init__.py", digest(FILES["demo/__init__.py"]), size)
    staged.make()
    staged.refused(f"`demo/__init__.py` has 6 bytes and not {size}")


def test_a_row_without_a_size_is_judged_by_its_digest(staged: Staged) -> None:
    name = "demo/big.bin"
    staged.edit = changing(name, digest(FILES[name]))
    staged.make()
    staged.verify()
    staged.path(name).write_bytes(FILES[name] + b"x")
    staged.refused(f"`{name}` has another digest")


@pytest.mark.parametrize("algorithm", ["sha384", "sha512", "blake2b", "sha3_256"])
def test_better_digests_are_accepted(staged: Staged, algorithm: str) -> None:
    staged.edit = changing("demo/__init__.py", digest(FILES["demo/__init__.py"], algorithm), "")
    staged.make()
    staged.verify()
    staged.path("demo/__init__.py").write_bytes(b"x = 2\n")
    staged.refused("`demo/__init__.py` has another digest")


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha224", "crc32", "shake_128"])
def test_weaker_or_unknown_digests_are_refused(staged: Staged, algorithm: str) -> None:
    value = digest(FILES["demo/__init__.py"], algorithm) if algorithm in ("md5", "sha1", "sha224") else f"{algorithm}=x"
    staged.edit = changing("demo/__init__.py", value, "")
    staged.make()
    staged.refused(f"`demo/__init__.py` has a digest of the kind `{algorithm}`, which is not accepted")


def test_a_digest_with_padding_is_accepted(staged: Staged) -> None:
    staged.edit = changing("demo/__init__.py", digest(FILES["demo/__init__.py"]) + "=", "6")
    staged.make()
    staged.verify()


@pytest.mark.parametrize("values", [(), ("",), ("", "")])
def test_a_row_without_a_digest_is_accepted_if_the_file_is_as_in_the_wheel(
    staged: Staged, values: tuple[str, ...]
) -> None:
    staged.edit = changing("demo/__init__.py", *values)
    staged.make()
    staged.verify()
    staged.path("demo/__init__.py").write_bytes(b"x = 2\n")
    staged.refused("`demo/__init__.py` was not unpacked as it is")


@pytest.mark.parametrize("name", ["RECORD.jws", "RECORD.p7s"])
def test_signatures_are_not_listed(staged: Staged, name: str) -> None:
    staged.files[f"{INFO}/{name}"] = b"signed"
    staged.edit = lambda rows: [row for row in rows if not row[0].endswith(name)]
    staged.make()
    staged.verify()


@pytest.mark.parametrize("name", ["INSTALLER", "REQUESTED", "direct_url.json"])
def test_what_the_installer_writes_in_its_place_is_checked_in_the_wheel_alone(staged: Staged, name: str) -> None:
    staged.files[f"{INFO}/{name}"] = b"conda\n"
    staged.make()
    staged.path(f"{INFO}/{name}").write_bytes(b"pip\n")
    staged.verify()
    staged.files.pop(f"{INFO}/RECORD")
    staged.edit = changing(f"{INFO}/{name}", digest(b"other"), "")
    staged.make()
    staged.refused(f"`{INFO}/{name}` has another digest")


def test_bytecode_that_the_installer_compiled_over_is_checked_in_the_wheel_alone(staged: Staged) -> None:
    inside, data = "demo/__pycache__/__init__.x.pyc", f"{DATA}/platlib/__pycache__/top.x.pyc"
    staged.files |= {inside: b"their own", data: b"their own too"}
    staged.make()
    staged.verify()
    compiled = [str(staged.path(name)) for name in (inside, data)]
    for path in compiled:
        Path(path).write_bytes(b"compiled here")
    staged.refused(f"`{inside}` has another digest", f"`{data}` has another digest")
    verify(staged.wheel, staged.scheme["purelib"], staged.scheme, compiled)
    staged.files.pop(f"{INFO}/RECORD")
    staged.edit = changing(inside, digest(b"other"), "")
    staged.make()
    with pytest.raises(Mismatch, match=inside):
        verify(staged.wheel, staged.scheme["purelib"], staged.scheme, compiled)


def test_what_was_compiled_excuses_no_other_bytecode_of_the_wheel(staged: Staged) -> None:
    one, other = (f"demo/__pycache__/{name}.x.pyc" for name in ("__init__", "empty"))
    staged.files |= {one: b"1", other: b"2"}
    staged.make()
    staged.path(other).write_bytes(b"3")
    with pytest.raises(Mismatch, match=other):
        verify(staged.wheel, staged.scheme["purelib"], staged.scheme, [str(staged.path(one))])


def test_of_two_files_for_one_place_the_last_one_is_there_and_the_other_is_checked_in_the_wheel(staged: Staged) -> None:
    staged.files[f"{DATA}/purelib/demo/__init__.py"] = b"y = 2\n"
    staged.make()
    staged.verify()
    staged.path("demo/__init__.py").write_bytes(FILES["demo/__init__.py"])
    staged.refused(f"`{DATA}/purelib/demo/__init__.py` has another digest")
    staged.path("demo/__init__.py").write_bytes(b"y = 2\n")
    staged.files.pop(f"{INFO}/RECORD")
    staged.edit = changing("demo/__init__.py", digest(b"other"), "")
    staged.make()
    staged.refused("`demo/__init__.py` has another digest")


# The wheel itself


def test_names_with_commas_quotes_and_other_letters_are_found(staged: Staged) -> None:
    staged.files['demo/a,"b" ü.txt'] = b"1"
    staged.make()
    staged.verify()
    staged.path('demo/a,"b" ü.txt').write_bytes(b"2")
    staged.refused('`demo/a,"b" ü.txt` has another digest')


def test_all_problems_are_counted_and_the_first_ones_named(staged: Staged) -> None:
    staged.make()
    for name in FILES:
        staged.path(name).unlink()
    message = staged.refused("`demo/__init__.py` was not unpacked, `demo/empty.py` was not unpacked")
    assert message.endswith(f"and {len(STAGED) - 3} more")
    assert "\n" not in message


@pytest.mark.parametrize("count", [0, 2])
def test_without_one_record_it_is_refused(staged: Staged, count: int) -> None:
    staged.make()
    with zipfile.ZipFile(staged.wheel, "w") as archive:
        for number in range(count):
            archive.writestr(f"demo-{number}.dist-info/RECORD", "")
    staged.refused("there is not one RECORD")


def test_a_wheel_that_is_damaged_is_refused(staged: Staged) -> None:
    staged.files[f"{DATA}/scripts/tool"] = b"#!python\n" + b"x" * 5000
    staged.make()
    content = staged.wheel.read_bytes()
    at = content.index(b"x" * 100)
    staged.wheel.write_bytes(content[:at] + b"y" + content[at + 1 :])
    staged.refused("is damaged")
    staged.wheel.write_bytes(content[:2000])
    staged.refused("is damaged")


def test_a_record_that_is_not_text_is_refused(staged: Staged) -> None:
    staged.files[f"{INFO}/RECORD"] = b"\xff\xfe"
    staged.make()
    staged.refused("is damaged")


def test_each_staged_file_is_opened_once(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    staged.make()
    opened: list[str] = []
    real = os.open

    def watched(path: str, *more: int) -> int:
        opened.append(path)
        return real(path, *more)

    monkeypatch.setattr(os, "open", watched)
    staged.verify()
    assert len(opened) == len(set(opened)) > 5
