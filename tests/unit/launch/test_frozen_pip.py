"""Which pip is frozen, what its copy holds, and what happens where no copy can be kept."""

import errno
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from safe_pip import fs
from safe_pip.errors import UnusableEnvironment
from safe_pip.fs import proc, trust
from safe_pip.launch import frozen_pip, isolation
from safe_pip.launch.adoption import Adoption
from safe_pip.launch.frozen_pip import FrozenPip
from safe_pip.locking import entries, flock
from tests.support.wheels.tiny_pip import install_tiny_pip

LONG_AGO = time.time() - 31 * 24 * 3600


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def environ(cache):
    return {"XDG_CACHE_HOME": str(cache), "HOME": "/nonexistent"}


@pytest.fixture(autouse=True)
def _temporary_directory_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(frozen_pip, "_BESIDE", tmp_path / "beside")
    if sys.platform == "darwin":
        monkeypatch.setattr(trust, "cache_directory", lambda environ: Path(environ["XDG_CACHE_HOME"]))


@pytest.fixture(autouse=True)
def _copies_are_let_go_as_by_the_end_of_their_process():
    before = set(flock._descriptors)
    yield
    for descriptor in set(flock._descriptors) - before:
        descriptor.close()


def freeze(site, environ, **how):
    return frozen_pip.freeze([str(site)], environ=environ, **how)


def sources(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def stored(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "safe-pip" / "pip").glob("*") if path.name != ".aside")


def close(copy):
    """Let a copy go, as the end of its process does."""
    for descriptor in [each for each in flock._descriptors if each.path == copy.path]:
        descriptor.close()


# Which pip


def test_the_first_pip_on_the_path_is_found(tmp_path):
    for name, version in (("one", "26.1"), ("two", "26.3")):
        install_tiny_pip(tmp_path / name, version)
    found = frozen_pip.find_pip([str(tmp_path / "none"), str(tmp_path / "two"), str(tmp_path / "one")])
    assert (found.site, found.version) == (tmp_path / "two", "26.3")


def test_a_dist_info_without_a_package_is_no_pip(site):
    install_tiny_pip(site)
    shutil.rmtree(site / "pip")
    assert frozen_pip.find_pip([str(site)]) is None


def test_a_pip_without_a_dist_info_is_not_frozen(site, environ):
    shutil.rmtree(install_tiny_pip(site))
    assert freeze(site, environ) is None


def test_finding_pip_does_not_import_it(site):
    install_tiny_pip(site, more={"pip/__init__.py": '__version__ = "26.3"\nraise SystemExit("imported")\n'})
    assert frozen_pip.find_pip([str(site)]).version == "26.3"


# What the copy holds


@pytest.mark.parametrize(
    ("changed", "value", "kinds"),
    [
        ("safe_pip.launch.frozen_pip.MAGIC_NUMBER", b"\0\0\r\n", {"bundle"}),
        ("sys.version", "3.99.0 (another build)", {"programs"}),
        ("sys.byteorder", "middle", {"programs"}),
        ("sys.flags", SimpleNamespace(optimize=2), {"bundle", "programs"}),
    ],
)
def test_an_interpreter_that_is_made_otherwise_has_files_of_its_own_beside_the_copy(
    tmp_path, monkeypatch, changed, value, kinds
):
    copy = FrozenPip(tmp_path, "26.3", tmp_path)
    before = {kind: getattr(copy, kind) for kind in ("bundle", "programs")}
    assert copy._replace(path=tmp_path / "moved").bundle.name != copy.bundle.name
    monkeypatch.setattr(changed, value)
    assert {kind for kind, file in before.items() if getattr(copy, kind) != file} == kinds


def test_the_copy_holds_what_record_lists_below_pip_and_bytecode(site, environ):
    install_tiny_pip(site)
    (site / "pip" / "planted.py").write_text("")
    (site / "other.py").write_text("")
    copy = freeze(site, environ)
    assert {name for name in sources(copy.path) if not name.endswith(".pyc")} == {
        copy.bundle.name,
        "pip/__init__.py",
        "pip/__main__.py",
        "pip/_internal/__init__.py",
        "pip/_internal/cli.py",
        "pip/_vendor/__init__.py",
        "pip-26.3.dist-info/METADATA",
        "pip-26.3.dist-info/RECORD",
    }
    assert (copy.version, copy.origin) == ("26.3", site / "pip")


def test_no_other_user_can_read_or_write_a_copy(site, environ):
    install_tiny_pip(site)
    copy = freeze(site, environ)
    assert not [path for path in (copy.path, *copy.path.rglob("*.py")) if path.stat().st_mode & 0o077]


def test_two_installations_of_one_wheel_share_a_copy(tmp_path, environ):
    install_tiny_pip(tmp_path / "one", script="#!/one/bin/python")
    install_tiny_pip(tmp_path / "two", script="#!/two/bin/python")
    one, two = freeze(tmp_path / "one", environ), freeze(tmp_path / "two", environ)
    assert one.path == two.path
    assert (one.origin, two.origin) == (tmp_path / "one" / "pip", tmp_path / "two" / "pip")


def test_the_pip_of_a_virtualenv_which_lists_directories_of_bytecode_is_frozen_as_any_other(tmp_path, environ):
    install_tiny_pip(tmp_path / "one")
    install_tiny_pip(tmp_path / "two")
    add_row(tmp_path / "two", "pip/_internal/__pycache__,,")
    add_row(tmp_path / "two", "pip/__init__.cpython-313.pyc,,")
    assert freeze(tmp_path / "one", environ).path == freeze(tmp_path / "two", environ).path


def test_one_version_with_other_content_is_another_copy(tmp_path, environ):
    install_tiny_pip(tmp_path / "one")
    install_tiny_pip(tmp_path / "two", more={"pip/_internal/cli.py": "# patched\n"})
    assert freeze(tmp_path / "one", environ).path != freeze(tmp_path / "two", environ).path


def test_a_copy_is_made_once(site, environ, monkeypatch):
    install_tiny_pip(site)
    first = freeze(site, environ)
    for name in ("write", "rename", "make_private_directory", "write_bytecode"):
        monkeypatch.delattr(fs, name)
    assert freeze(site, environ).path == first.path


def test_a_copy_is_compiled_with_any_setting_for_the_users_own_sources(site, environ, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    install_tiny_pip(site)
    assert list(freeze(site, environ).path.glob("pip/_internal/__pycache__/cli.*.pyc"))


def test_a_second_interpreter_compiles_a_copy_that_it_meets(site, environ, monkeypatch):
    install_tiny_pip(site)
    freeze(site, environ)
    other = type(sys.implementation)(**{**vars(sys.implementation), "cache_tag": "cpython-399"})
    monkeypatch.setattr(sys, "implementation", other)
    copy = freeze(site, environ)
    assert {path.name.split(".")[1] for path in copy.path.glob("pip/_internal/__pycache__/cli.*")} == {
        "cpython-399",
        f"cpython-{sys.version_info[0]}{sys.version_info[1]}",
    }


def test_a_source_that_does_not_compile_does_not_keep_the_others_from_it(site, environ):
    install_tiny_pip(site, more={"pip/_vendor/future.py": "this is no Python\n"})
    assert list(freeze(site, environ).path.glob("pip/_internal/__pycache__/cli.*.pyc"))


# Not faithful: pip can only run from where it is


@pytest.mark.parametrize(
    "spoil",
    [
        lambda site: (site / "pip/_internal/cli.py").write_text("def main():\n    return 1\n"),
        lambda site: (site / "pip/_internal/cli.py").unlink(),
        lambda site: (site / "pip-26.3.dist-info/RECORD").unlink(),
        lambda site: (site / "pip-26.3.dist-info/RECORD").write_text("\0 no rows"),
        lambda site: (site / "pip-26.3.dist-info/RECORD").write_text(""),
        lambda site: add_row(site, "pip/unchecked.py,,"),
        lambda site: add_row(site, "pip/md5.py,md5=abc,3"),
        lambda site: add_row(site, "pip/../../outside.py,sha256=abc,3"),
        lambda site: add_row(site, '"pip/a,b.py",sha256=abc,3'),
    ],
    ids=["changed", "missing", "no-record", "no-rows", "empty", "no-digest", "other-digest", "outside", "quoted"],
)
def test_what_is_not_as_record_says_is_not_frozen(site, environ, cache, spoil):
    install_tiny_pip(site)
    spoil(site)
    assert freeze(site, environ) is None
    assert stored(cache) == []


def add_row(site, row):
    with open(site / "pip-26.3.dist-info/RECORD", "a") as record:
        record.write(row + "\n")


@pytest.mark.parametrize("patch", ["longer", "same size", "gone"])
def test_a_pip_that_was_patched_in_place_is_not_run_unpatched_from_its_copy(site, environ, patch):
    install_tiny_pip(site)
    assert freeze(site, environ) is not None
    patched = site / "pip" / "_internal" / "cli.py"
    content = patched.read_bytes()
    patched.write_bytes(content + b"# patched" if patch == "longer" else content[:-1] + b"#")
    if patch == "gone":
        patched.unlink()
    later = time.time() + 2
    if patch != "gone":
        os.utime(patched, (later, later))
    assert freeze(site, environ) is None


def test_a_file_that_is_newer_than_record_and_not_patched_is_no_matter(site, environ):
    install_tiny_pip(site)
    copy = freeze(site, environ)
    os.utime(site / "pip" / "__init__.py", (time.time() + 60,) * 2)
    assert freeze(site, environ) == copy


def test_a_pip_that_a_distributor_took_apart_is_not_frozen(tmp_path, environ):
    install_tiny_pip(tmp_path / "wheel")
    freeze(tmp_path / "wheel", environ)
    install_tiny_pip(tmp_path / "site", debundled=True)
    assert freeze(tmp_path / "site", environ) is None


def test_debundling_is_noticed_where_record_still_is_the_one_of_the_wheel(site, environ):
    install_tiny_pip(site)
    freeze(site, environ)
    (site / "pip/_vendor/__init__.py").write_text("DEBUNDLED = True\n")
    assert freeze(site, environ) is None


# No pip, or an old one


@pytest.mark.parametrize("version", ["24.0", "25.2", None])
def test_where_pip_is_missing_or_too_old_the_newest_copy_serves(tmp_path, site, environ, version):
    for known in ("25.3", "26.3", "26.10", "26.9"):
        install_tiny_pip(tmp_path / known, known)
        freeze(tmp_path / known, environ)
    if version:
        install_tiny_pip(site, version)
    copy = freeze(site, environ)
    assert (copy.version, copy.origin) == ("26.10", copy.path / "pip")


def test_a_copy_that_needs_a_newer_python_does_not_serve(tmp_path, site, environ):
    install_tiny_pip(tmp_path / "new", "99.0", requires_python=">=3.99")
    install_tiny_pip(tmp_path / "old", "26.3")
    freeze(tmp_path / "new", environ)
    freeze(tmp_path / "old", environ)
    assert freeze(site, environ).version == "26.3"


@pytest.mark.parametrize("version", ["24.0", None])
def test_where_there_is_no_copy_the_pip_beside_safe_pip_serves(tmp_path, site, environ, cache, version):
    if version:
        install_tiny_pip(site, version)
    install_tiny_pip(tmp_path / "beside")
    copy = freeze(site, environ)
    assert (copy.version, copy.origin) == ("26.3", tmp_path / "beside" / "pip")
    assert stored(cache) == [copy.path.name]


@pytest.mark.parametrize("version", ["24.0", None])
def test_the_pip_that_the_adopting_safe_pip_runs_serves(tmp_path, site, environ, version):
    if version:
        install_tiny_pip(site, version)
    install_tiny_pip(tmp_path / "host")
    for name, content in Adoption(site, tmp_path / "checkout" / "safe_pip", tmp_path / "host").content().items():
        (site / name).write_bytes(content)
    assert freeze(site, environ).origin == tmp_path / "host" / "pip"


def test_the_pip_on_the_path_of_safe_pip_serves_another_environment(tmp_path, environ, monkeypatch):
    install_tiny_pip(tmp_path / "host")
    monkeypatch.setattr(isolation, "environment_path", (str(tmp_path / "none"), str(tmp_path / "host")))
    assert frozen_pip.freeze((), environ=environ).origin == tmp_path / "host" / "pip"


@pytest.mark.parametrize("spoil", [{"version": "24.0"}, {"requires_python": ">=3.99"}, {"debundled": True}], ids=str)
def test_a_pip_beside_safe_pip_that_cannot_run_here_does_not_serve(tmp_path, site, environ, spoil):
    install_tiny_pip(tmp_path / "beside", **spoil)
    with pytest.raises(UnusableEnvironment, match="there is no pip"):
        freeze(site, environ)


def test_no_pip_and_no_copy_is_an_unusable_environment(site, environ):
    with pytest.raises(UnusableEnvironment, match="there is no pip") as raised:
        freeze(site, environ)
    assert raised.value.exit_status == 78
    assert "ensurepip" in raised.value.hint


def test_with_an_old_pip_and_no_copy_the_command_that_is_recommended_runs_plain_pip(tmp_path, site, environ):
    install_tiny_pip(site, "24.0")
    with pytest.raises(UnusableEnvironment, match=r"pip 24\.0 .* is older than 25\.3") as raised:
        freeze(site, environ)
    assert f"`{sys.executable} -m pip install" in raised.value.hint
    for name, content in Adoption(site, tmp_path).content().items():
        (site / name).write_bytes(content)
    with pytest.raises(UnusableEnvironment) as raised:
        freeze(site, environ)
    assert f"`{sys.executable} -m runpy pip install" in raised.value.hint


# Where no copy can be kept


def unwritable(cache):
    cache.write_text("a file where a directory is expected")


def open_to_others(cache):
    (cache / "safe-pip" / "pip").mkdir(parents=True)
    (cache / "safe-pip").chmod(0o777)


def kept(tmp_path: Path) -> list[str]:
    """The copies below the temporary directory."""
    (own,) = (tmp_path / "tmp").iterdir()
    return sorted(name for name in os.listdir(own) if name != ".aside")


@pytest.mark.parametrize("spoil", [unwritable, open_to_others])
def test_without_a_private_cache_the_copies_are_below_the_temporary_directory(site, environ, cache, spoil, tmp_path):
    spoil(cache)
    install_tiny_pip(site)
    copy = freeze(site, environ)
    assert copy.path.parents[1] == tmp_path / "tmp"
    assert {path.stat().st_mode & 0o777 for path in (copy.path, copy.path.parent)} == {0o700}
    close(copy)
    assert freeze(site, environ).path == copy.path
    assert kept(tmp_path) == [copy.path.name]


def test_a_cache_that_other_hosts_use_too_is_left_for_a_directory_of_this_host(
    site, environ, cache, tmp_path, monkeypatch
):
    install_tiny_pip(site)
    monkeypatch.setattr(proc, "is_shared", lambda path: Path(path).is_relative_to(cache))
    copy = freeze(site, environ)
    assert copy.path.parents[1] == tmp_path / "tmp"
    close(copy)
    assert freeze(site, environ).path == copy.path


def test_a_home_that_does_not_exist_is_not_made(site, tmp_path):
    install_tiny_pip(site)
    copy = frozen_pip.freeze([str(site)], environ={"HOME": str(tmp_path / "nobody")})
    assert not (tmp_path / "nobody").exists()
    assert kept(tmp_path) == [copy.path.name]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.EACCES])
def test_where_no_copy_can_be_kept_pip_is_not_frozen(site, environ, cache, monkeypatch, number):
    install_tiny_pip(site)

    def refuse(*args, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fs, "make_private_directory", refuse)
    monkeypatch.setattr(fs, "make_directories", refuse)
    assert frozen_pip.freeze([str(site)], environ=environ) is None


def test_a_cache_that_is_full_is_passed_over(site, environ, cache, monkeypatch, tmp_path):
    install_tiny_pip(site)
    with monkeypatch.context() as patches:
        patches.setattr(fs, "write", full_below(cache))
        copy = freeze(site, environ)
    assert stored(cache) == []
    assert kept(tmp_path) == [copy.path.name]
    assert freeze(site, environ).path == copy.path


def test_where_no_directory_is_safe_pip_is_not_frozen(site, environ, cache, tmp_path, monkeypatch):
    unwritable(cache)
    monkeypatch.setattr(trust, "is_trusted", lambda directory, *, as_parent=False: False)
    install_tiny_pip(site)
    assert frozen_pip.freeze([str(site)], environ=environ) is None
    assert not list((tmp_path / "tmp").glob("*/*"))


def test_a_directory_of_another_user_with_such_a_name_is_not_used(site, environ, cache, tmp_path, monkeypatch):
    unwritable(cache)
    install_tiny_pip(site)
    theirs = tmp_path / "tmp" / f".safe-pip-{os.geteuid()}-a"
    theirs.mkdir(mode=0o777)
    theirs.chmod(0o777)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    theirs.with_name(f"{theirs.name}b").symlink_to(tmp_path / "elsewhere")
    copy = freeze(site, environ)
    assert copy.path.parents[1] == tmp_path / "tmp"
    assert os.listdir(theirs) == os.listdir(tmp_path / "elsewhere") == []


def test_where_there_is_no_room_at_all_pip_is_not_frozen_and_nothing_is_left(
    site, environ, cache, tmp_path, monkeypatch
):
    install_tiny_pip(site)
    monkeypatch.setattr(fs, "write", full_below(tmp_path))
    assert frozen_pip.freeze([str(site)], environ=environ) is None
    assert stored(cache) == kept(tmp_path) == []
    assert not list((tmp_path / "tmp").glob("*/.aside/*"))


def full_below(directory):
    write = fs.write

    def full(path, content, **how):
        if directory in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content, **how)

    return full


def test_nothing_is_copied_while_the_environment_is_locked(site, environ, cache):
    install_tiny_pip(site)

    def read(look):
        found = look()
        assert look() == found
        assert stored(cache) == []
        return found

    assert freeze(site, environ, read=read).path.parent == cache / "safe-pip" / "pip"


def test_a_pip_that_is_replaced_while_it_is_copied_is_copied_again(site, environ, cache):
    install_tiny_pip(site, "26.1")
    looks = []

    def read(look):
        found = look()
        looks.append(found)
        if len(looks) == 1:  # another command upgrades pip as soon as the lock is free
            shutil.rmtree(site / "pip")
            shutil.rmtree(site / "pip-26.1.dist-info")
            install_tiny_pip(site, "26.3")
        return found

    assert freeze(site, environ, read=read).version == "26.3"
    assert [record.version for _, record in looks] == ["26.1", "26.3"]
    assert len(stored(cache)) == 1


# Other processes that use the copies


def test_a_damaged_copy_is_made_again(site, environ):
    install_tiny_pip(site)
    copy = freeze(site, environ)
    close(copy)
    (copy.path / "pip/_internal/cli.py").unlink()
    again = freeze(site, environ)
    assert again.path == copy.path
    assert (copy.path / "pip/_internal/cli.py").exists()


def test_a_damaged_copy_in_use_is_left_alone(site, environ, cache):
    install_tiny_pip(site)
    copy = freeze(site, environ)
    (copy.path / "pip/_internal/cli.py").unlink()
    other = freeze(site, environ)
    assert other.path != copy.path
    assert (other.path / "pip/_internal/cli.py").exists()
    assert stored(cache) == [copy.path.name]


def test_copies_unused_for_a_month_are_removed_when_a_new_copy_is_made(tmp_path, environ, cache):
    kept = {}
    for version in ("25.3", "26.0", "26.1"):
        install_tiny_pip(tmp_path / version, version)
        kept[version] = freeze(tmp_path / version, environ)
    close(kept["25.3"])
    close(kept["26.1"])
    for version in ("25.3", "26.0"):
        os.utime(kept[version].path, (LONG_AGO, LONG_AGO))
    left = cache / "safe-pip/pip/.aside/of-a-killed-process"
    left.mkdir()
    install_tiny_pip(tmp_path / "26.3", "26.3")
    new = freeze(tmp_path / "26.3", environ)
    assert stored(cache) == sorted([kept["26.0"].path.name, kept["26.1"].path.name, new.path.name])
    assert not left.exists()


def test_using_a_copy_counts_as_use(site, environ):
    install_tiny_pip(site)
    copy = freeze(site, environ)
    os.utime(copy.path, (LONG_AGO, LONG_AGO))
    freeze(site, environ)
    assert copy.path.stat().st_mtime > LONG_AGO + 1


def test_the_loser_of_the_rename_uses_the_copy_of_the_winner(site, environ, cache, monkeypatch):
    install_tiny_pip(site)
    rename, winners = fs.rename_path, []

    def slow(source, destination):
        if not winners:
            winners.append(None)
            winners[:] = [freeze(site, environ)]
        rename(source, destination)

    monkeypatch.setattr(fs, "rename_path", slow)
    copy = freeze(site, environ)
    assert copy.path == winners[0].path
    assert stored(cache) == [copy.path.name]


def test_a_copy_that_is_being_removed_is_not_used(site, environ, monkeypatch):
    install_tiny_pip(site)
    copy = freeze(site, environ)
    close(copy)
    held = entries.hold(copy.path, exclusive=True)
    other = freeze(site, environ)
    held.close()
    assert other.path != copy.path


# The copy that another process gives


def test_the_copy_that_is_given_is_used_and_the_variables_are_not_passed_on(tmp_path, site, environ):
    install_tiny_pip(site)
    given = freeze(site, environ)
    environ.update(given.for_child())
    copy = frozen_pip.freeze([str(tmp_path / "another environment")], environ=environ)
    assert (copy.path, copy.origin, copy.version) == (given.path, given.origin, "26.3")
    assert not [name for name in environ if name.startswith("SAFE_PIP_")]


@pytest.mark.parametrize("spoil", [shutil.rmtree, lambda path: path.chmod(0o777)], ids=["missing", "open-to-others"])
def test_a_given_copy_that_cannot_be_trusted_is_refused(site, environ, spoil):
    install_tiny_pip(site)
    given = freeze(site, environ)
    environ.update(given.for_child())
    spoil(given.path)
    with pytest.raises(UnusableEnvironment, match="SAFE_PIP_FROZEN"):
        freeze(site, environ)
