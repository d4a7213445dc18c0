"""How a wheel differs from its RECORD is found; what was not unpacked as it is in the wheel is refused."""

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
from safe_pip.store.verify import Differences, verify

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

    def verify(self, *compiled: str) -> Differences:
        return verify(self.wheel, self.scheme["purelib"], self.scheme, compiled)

    def is_like_record(self) -> bool:
        return self.verify() == Differences()

    def refused(self, reason: str) -> None:
        """It is refused, for this reason."""
        with pytest.raises(Mismatch) as caught:
            self.verify()
        assert caught.value.state is State.UNCHANGED
        assert caught.value.exit_status == 1
        assert reason in caught.value.message

    def was_not_unpacked(self, name: str) -> None:
        """It is refused because of this file."""
        self.refused(f"`{name}` of `demo-1-py3-none-any.whl` was not unpacked as it is")

    def differs(self, *differences: str, contents: bool = True) -> None:
        """It differs from RECORD like this; if not in `contents`, only a verbose command says so."""
        found = self.verify()
        for difference in differences:
            assert difference in found.everything
            assert found.everything.startswith("`demo-1-py3-none-any.whl` is not what its RECORD says: ")
        assert found.contents == (found.everything if contents else "")


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
    assert staged.is_like_record()


@pytest.mark.parametrize("name", STAGED)
def test_a_staged_file_with_another_content_is_refused(staged: Staged, name: str) -> None:
    staged.make()
    content = staged.path(name).read_bytes()
    staged.path(name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"x")
    staged.was_not_unpacked(name)


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("change", [lambda content: content + b"x", lambda content: content[:-1]])
def test_a_longer_or_shorter_one_is_refused(staged: Staged, name: str, change: Callable[[bytes], bytes]) -> None:
    staged.make()
    content = staged.path(name).read_bytes()
    if change(content) != content:
        staged.path(name).write_bytes(change(content))
        staged.was_not_unpacked(name)


@pytest.mark.parametrize("name", STAGED)
def test_one_that_is_missing_in_the_stage_is_refused(staged: Staged, name: str) -> None:
    staged.make()
    staged.path(name).unlink()
    staged.was_not_unpacked(name)


@pytest.mark.parametrize("name", FILES)
def test_one_that_record_does_not_list_is_told_if_asked(staged: Staged, name: str) -> None:
    staged.edit = lambda rows: [row for row in rows if row[0] != name]
    staged.make()
    staged.differs(f"`{name}` is not listed", contents=False)


@pytest.mark.parametrize("name", FILES)
def test_one_whose_digest_in_record_is_wrong_is_told(staged: Staged, name: str) -> None:
    """Also a script's, though what was made of it is another."""
    staged.edit = changing(name, digest(b"other"), str(len(FILES[name])))
    staged.make()
    staged.differs(f"`{name}` has another digest")


@pytest.mark.parametrize("name", ["demo/gone.py", "demo/"])
def test_one_that_record_lists_and_the_wheel_has_not_is_told_if_asked(staged: Staged, name: str) -> None:
    """A well-known tool lists directories."""
    staged.edit = lambda rows: [*rows, [name, digest(b""), "0"]]
    staged.make()
    staged.differs(f"`{name}` is missing", contents=False)


@pytest.mark.parametrize("size", ["5", "7", "-6", "x"])
def test_a_wrong_size_is_told(staged: Staged, size: str) -> None:
    staged.edit = changing("demo/__init__.py", digest(FILES["demo/__init__.py"]), size)
    staged.make()
    staged.differs(f"`demo/__init__.py` has 6 bytes and not {size}")


def test_a_row_without_a_size_is_judged_by_its_digest(staged: Staged) -> None:
    name = "demo/big.bin"
    staged.edit = changing(name, digest(FILES[name]))
    staged.make()
    assert staged.is_like_record()
    staged.path(name).write_bytes(FILES[name] + b"x")
    staged.was_not_unpacked(name)


@pytest.mark.parametrize("algorithm", ["sha384", "sha512", "blake2b", "sha3_256"])
def test_better_digests_are_accepted(staged: Staged, algorithm: str) -> None:
    staged.edit = changing("demo/__init__.py", digest(FILES["demo/__init__.py"], algorithm), "")
    staged.make()
    assert staged.is_like_record()
    staged.path("demo/__init__.py").write_bytes(b"x = 2\n")
    staged.was_not_unpacked("demo/__init__.py")


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha224", "crc32", "shake_128"])
def test_weaker_or_unknown_digests_are_told_if_asked(staged: Staged, algorithm: str) -> None:
    value = digest(FILES["demo/__init__.py"], algorithm) if algorithm in ("md5", "sha1", "sha224") else f"{algorithm}=x"
    staged.edit = changing("demo/__init__.py", value, "")
    staged.make()
    staged.differs(f"`demo/__init__.py` has a digest of the kind `{algorithm}`, which is not accepted", contents=False)


def test_a_digest_with_padding_is_accepted(staged: Staged) -> None:
    staged.edit = changing("demo/__init__.py", digest(FILES["demo/__init__.py"]) + "=", "6")
    staged.make()
    assert staged.is_like_record()


@pytest.mark.parametrize("values", [(), ("",), ("", "")])
def test_a_row_without_a_digest_is_accepted_if_the_file_is_as_in_the_wheel(
    staged: Staged, values: tuple[str, ...]
) -> None:
    staged.edit = changing("demo/__init__.py", *values)
    staged.make()
    assert staged.is_like_record()
    staged.path("demo/__init__.py").write_bytes(b"x = 2\n")
    staged.was_not_unpacked("demo/__init__.py")


@pytest.mark.parametrize("name", ["RECORD.jws", "RECORD.p7s"])
def test_signatures_are_not_listed(staged: Staged, name: str) -> None:
    staged.files[f"{INFO}/{name}"] = b"signed"
    staged.edit = lambda rows: [row for row in rows if not row[0].endswith(name)]
    staged.make()
    assert staged.is_like_record()


@pytest.mark.parametrize("name", ["INSTALLER", "REQUESTED", "direct_url.json"])
def test_what_the_installer_writes_in_its_place_is_checked_in_the_wheel_alone(staged: Staged, name: str) -> None:
    staged.files[f"{INFO}/{name}"] = b"conda\n"
    staged.make()
    staged.path(f"{INFO}/{name}").write_bytes(b"pip\n")
    assert staged.is_like_record()
    staged.files.pop(f"{INFO}/RECORD")
    staged.edit = changing(f"{INFO}/{name}", digest(b"other"), "")
    staged.make()
    staged.differs(f"`{INFO}/{name}` has another digest")


def test_bytecode_that_the_installer_compiled_over_is_checked_in_the_wheel_alone(staged: Staged) -> None:
    inside, data = "demo/__pycache__/__init__.x.pyc", f"{DATA}/platlib/__pycache__/top.x.pyc"
    staged.files |= {inside: b"their own", data: b"their own too"}
    staged.make()
    assert staged.is_like_record()
    compiled = [str(staged.path(name)) for name in (inside, data)]
    for path in compiled:
        Path(path).write_bytes(b"compiled here")
    staged.was_not_unpacked(inside)
    assert staged.verify(*compiled) == Differences()
    staged.files.pop(f"{INFO}/RECORD")
    staged.edit = changing(inside, digest(b"other"), "")
    staged.make()
    assert f"`{inside}` has another digest" in staged.verify(*compiled).contents


def test_what_was_compiled_excuses_no_other_bytecode_of_the_wheel(staged: Staged) -> None:
    one, other = (f"demo/__pycache__/{name}.x.pyc" for name in ("__init__", "empty"))
    staged.files |= {one: b"1", other: b"2"}
    staged.make()
    staged.path(other).write_bytes(b"3")
    with pytest.raises(Mismatch, match=other):
        staged.verify(str(staged.path(one)))


def test_of_two_files_for_one_place_the_last_one_is_there_and_the_other_is_checked_in_the_wheel(staged: Staged) -> None:
    staged.files[f"{DATA}/purelib/demo/__init__.py"] = b"y = 2\n"
    staged.make()
    assert staged.is_like_record()
    staged.path("demo/__init__.py").write_bytes(FILES["demo/__init__.py"])
    staged.was_not_unpacked(f"{DATA}/purelib/demo/__init__.py")
    staged.path("demo/__init__.py").write_bytes(b"y = 2\n")
    staged.files.pop(f"{INFO}/RECORD")
    staged.edit = changing("demo/__init__.py", digest(b"other"), "")
    staged.make()
    staged.differs("`demo/__init__.py` has another digest")


# The wheel itself


def test_names_with_commas_quotes_and_other_letters_are_found(staged: Staged) -> None:
    staged.files['demo/a,"b" ü.txt'] = b"1"
    staged.make()
    assert staged.is_like_record()
    staged.path('demo/a,"b" ü.txt').write_bytes(b"2")
    staged.was_not_unpacked('demo/a,"b" ü.txt')


def test_all_differences_are_counted_and_the_first_ones_named_contents_first(staged: Staged) -> None:
    staged.edit = lambda rows: [[name, digest(b"other"), ""] for name, *_ in rows if name != "demo/__init__.py"]
    staged.make()
    found = staged.verify()
    assert "RECORD says: `demo/empty.py` has another digest, `single.py` has another digest, " in found.everything
    assert found.contents.endswith(f" and {len(FILES) - 1 - 3} more")
    assert found.everything.endswith(f" and {len(FILES) - 3} more")
    assert "\n" not in found.everything


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


@pytest.mark.parametrize("content", [b"\xff\xfe", b",,\n"])
def test_a_record_that_is_none_is_told(staged: Staged, content: bytes) -> None:
    staged.files[f"{INFO}/RECORD"] = content
    staged.make()
    staged.differs("RECORD is damaged: ")


def test_each_staged_file_is_opened_once(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    staged.make()
    opened: list[str] = []
    real = os.open

    def watched(path: str, *more: int) -> int:
        opened.append(path)
        return real(path, *more)

    monkeypatch.setattr(os, "open", watched)
    assert staged.is_like_record()
    assert len(opened) == len(set(opened)) > 5
