"""RECORD, digests and names are read in one way everywhere."""

import hashlib
import os

import pytest

from safe_pip import records
from safe_pip.records import RealPaths, Row

CONTENT = bytes(range(256)) * 12_000


def test_rows_are_read_with_what_they_leave_out():
    text = 'a.py,sha256=x,5\r\n"c\u2028, d.py",,\n\nonly.py\na.py,sha256=y,6,more\n'
    found = [Row("a.py", "sha256=x", "5"), Row("c\u2028, d.py"), Row("only.py"), Row("a.py", "sha256=y", "6")]
    assert records.parse(text) == found


@pytest.mark.parametrize("text", ['"a.py,,\n', '"a"b,,\n', ",sha256=x,5\n"])
def test_text_that_is_no_record_is_refused(text):
    with pytest.raises(ValueError, match=r"not a row|expected|end of"):
        records.parse(text)


@pytest.mark.parametrize("padding", ["", "="])
def test_a_row_has_a_digest_with_and_without_padding(padding):
    digest = hashlib.sha256(CONTENT).digest()
    row = Row("a.py", f"sha256={records.encoded(digest)}{padding}")
    assert row.algorithm == "sha256"
    assert row.has(digest)
    assert not row.has(hashlib.sha256(b"").digest())
    assert not Row("a.py").has(digest)


def test_the_paths_before_a_damage_are_listed(tmp_path):
    (tmp_path / "RECORD").write_bytes(b'a.py,,\n"b\xff.py",,\n\n,,\n"c.py' + b"x" * 200_000)
    assert records.listed(str(tmp_path / "RECORD")) == ["a.py", "b\udcff.py"]


def test_a_missing_record_lists_nothing(tmp_path):
    assert records.listed(str(tmp_path / "RECORD")) == []
    assert records.listed(str(tmp_path)) == []


def test_files_of_a_distribution_are_where_links_lead_to(tmp_path):
    info = tmp_path / "lib64" / "site-packages" / "a-1.dist-info"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib64").symlink_to("lib")
    info.mkdir(parents=True)
    (info / "RECORD").write_text("a.py,,\n../../bin/a,,\n")
    found = [str(tmp_path / "lib/site-packages/a.py"), str(tmp_path / "bin/a")]
    assert list(RealPaths().files_of(str(info))) == found


def test_files_of_an_egg_info_are_relative_to_it(tmp_path):
    info = tmp_path / "a-1-py3.12.egg-info"
    info.mkdir()
    (info / "installed-files.txt").write_text("../a.py\n\nPKG-INFO\n")
    assert list(RealPaths().files_of(str(info))) == [str(tmp_path / "a.py"), str(info / "PKG-INFO")]


def test_a_real_path_keeps_the_last_link(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    assert RealPaths().real(str(tmp_path), "x/../link") == str(tmp_path / "link")
    assert RealPaths().real("/", "a") == "/a"


@pytest.mark.parametrize("name", ["Foo.Bar", "foo__bar", "FOO-.bar"])
def test_names_are_normalized_as_the_specification_says(name):
    assert records.canonical(name) == "foo-bar"


@pytest.mark.parametrize("info", ["Foo_Bar-1.0.dist-info", "/x/foo.bar-1-py3.12.egg-info", "foo_bar.egg-info"])
def test_a_metadata_directory_is_named_after_its_project(info):
    assert records.project_of(info) == "foo-bar"


@pytest.mark.parametrize(
    "path", ["__pycache__/a.cpython-313.pyc", "/x/__pycache__/a.pyc", "__pycache__/a.pyc.1234", "__pycache__"]
)
def test_what_the_import_system_writes_is_bytecode(path):
    assert records.is_bytecode(path)


@pytest.mark.parametrize(
    "path",
    [
        "a.pyc",
        "__pycache__/a.nbi",
        "__pycache__/a.pyc.bak",
        "__pycache__/a.py",
        "__pycache__/b/a.pyc",
        "x__pycache__/a.pyc",
    ],
)
def test_nothing_else_is_bytecode(path):
    assert not records.is_bytecode(path)


@pytest.mark.parametrize("size", [-1, 0, 5, len(CONTENT), len(CONTENT) + 1])
@pytest.mark.parametrize("algorithm", ["sha256", "blake2b", "md5"])
def test_a_digest_is_that_of_the_whole_file_whatever_size_is_expected(tmp_path, size, algorithm):
    (tmp_path / "file").write_bytes(CONTENT)
    expected = len(CONTENT), hashlib.new(algorithm, CONTENT).digest()
    assert records.digest_file(str(tmp_path / "file"), algorithm, size) == expected


def test_a_digest_starts_where_the_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    os.lseek(fd, 256, os.SEEK_SET)
    assert records.digest(fd) == (len(CONTENT) - 256, hashlib.sha256(CONTENT[256:]).digest())
    os.close(fd)
