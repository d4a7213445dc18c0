"""Paths that cannot be looked at: they may be there, so no verb takes them for missing."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from safe_pip import fs
from safe_pip.commands import VERBS as ALL
from safe_pip.commands import options
from safe_pip.errors import SafePipError, State, UnusableEnvironment
from safe_pip.journal import parts
from safe_pip.journal.owner import Owner, OwnerNote
from safe_pip.launch import adoption
from safe_pip.launch.settings import Settings
from safe_pip.locking import state_directory
from safe_pip.pip_seams.scheme import shared_directories
from safe_pip.store.wheels import Store
from tests.support.venvs.direct_installs import SilentReporter

pytestmark = pytest.mark.usefixtures("as_a_user")
VERBS = {
    "status": ["--env", "{path}"],
    "doctor": ["--env", "{path}"],
    "adopt": ["--env", "{path}"],
    "unadopt": ["--env", "{path}"],
    "run": ["--env", "{path}", "--", "true"],
    "merge": ["{path}", "--into", "{top}/prefix"],
    "merge --into": ["{top}/staged", "--into", "{path}"],
    "unmerge": ["{top}/manifest"],
    "venv": ["{path}"],
}


sysconfig.get_paths()  # which imports, as the verbs do: another user may not read the modules
for each in ALL:
    options.parser(each)
    importlib.import_module(options.MODULES[each])


@pytest.fixture(params=["closed/env", "long", "loop", "broken"])
def unseen(request: pytest.FixtureRequest, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that stat(2) refuses: a closed directory above it, a long name, a link to itself, a disk that fails."""
    path: Path = empty / ("n" * 300 if request.param == "long" else request.param)
    if request.param == "closed/env":
        path.mkdir(parents=True)
        path.parent.chmod(0)
    elif request.param == "loop":
        path.symlink_to(path)
    elif request.param == "broken":
        stat = os.stat

        def failing(where: Any, *args: Any, **more: Any) -> os.stat_result:
            if isinstance(where, (str, os.PathLike)) and "broken" in os.fspath(where):
                raise OSError(errno.EIO, os.strerror(errno.EIO), where)
            return stat(where, *args, **more)

        monkeypatch.setattr(os, "stat", failing)
    return path


def run(verb: str, words: list[str]) -> int:
    return options.run(verb.split()[0], words, Settings(lock_timeout=0), SilentReporter())


def write_manifest(file: Path, prefix: Path, *names: str) -> None:
    entry = {"kind": "file", "mode": "0644", "sha256": "0" * 64, "there": False}
    document = {"format": 1, "prefix": str(prefix), "entries": dict.fromkeys(names, entry), "directories": []}
    file.write_text(json.dumps({**document, "read_only": []}))


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_takes_it_for_missing(verb: str, unseen: Path, empty: Path) -> None:
    (empty / "staged").mkdir()
    (empty / "staged" / "file").touch()
    write_manifest(empty / "manifest", unseen, "file")
    with pytest.raises(UnusableEnvironment) as caught:
        run(verb, [word.format(path=unseen, top=empty) for word in VERBS[verb]])
    assert caught.value.state is State.UNCHANGED
    assert (empty / "manifest").exists()
    assert not (empty / "prefix").exists()


def test_unmerge_keeps_its_manifest_if_it_may_not_see_or_read_what_it_lists(empty: Path) -> None:
    (empty / "prefix" / "share").mkdir(parents=True)
    (empty / "prefix" / "share" / "file").touch()
    write_manifest(empty / "manifest", empty / "prefix", "share/file")
    for closed in (empty / "prefix" / "share", empty / "prefix" / "share" / "file"):
        closed.chmod(0)
        with pytest.raises(SafePipError, match="Permission denied"):
            run("unmerge", [str(empty / "manifest")])
        assert (empty / "manifest").exists()
        closed.chmod(0o700)
    assert run("unmerge", [str(empty / "manifest")]) == 0


def test_a_path_is_missing_only_if_nothing_is_there(unseen: Path, empty: Path) -> None:
    (empty / "file").touch()
    assert (fs.look(empty / "missing"), fs.look(empty / "file" / "below")) == (None, None)
    assert (fs.is_file(empty / "file"), fs.is_directory(empty), fs.is_no_directory(empty / "file")) == (True,) * 3
    for ask in (fs.look, fs.is_file, fs.is_directory, fs.is_no_directory):
        with pytest.raises(UnusableEnvironment, match="cannot be looked at"):
            ask(unseen)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "venv"])
@pytest.mark.parametrize("closed", ["lib", "lib/python3.13"])
def test_no_verb_takes_a_prefix_for_one_without_distributions(verb: str, closed: str, empty: Path) -> None:
    """Its trees cannot be found, so their locks could not be taken."""
    path = empty / "env"
    (path / "lib/python3.13/site-packages").mkdir(parents=True)
    (path / "file").touch()
    (empty / "staged").mkdir()
    write_manifest(empty / "manifest", path, "file")
    (path / closed).chmod(0)
    with pytest.raises(SafePipError, match="Permission denied") as caught:
        run(verb, [word.format(path=path, top=empty) for word in VERBS[verb]])
    (path / closed).chmod(0o700)
    assert caught.value.state is State.UNCHANGED
    assert (empty / "manifest").exists()
    assert (path / "file").exists()
    assert not (path / ".safe-pip").exists()


def test_an_adoption_that_cannot_be_read_is_not_taken_for_none(empty: Path) -> None:
    file = adoption.wanted(empty).file
    file.write_bytes(b"")
    assert adoption.find(empty) is None
    file.chmod(0)
    with pytest.raises(UnusableEnvironment, match="cannot be read"):
        adoption.find(empty)


def test_a_store_that_cannot_be_looked_at_is_not_taken_for_none(unseen: Path) -> None:
    with pytest.raises(UnusableEnvironment):
        Store.existing(unseen)


def test_a_directory_of_a_scheme_that_cannot_be_looked_at_may_need_a_lock(unseen: Path) -> None:
    with pytest.raises(UnusableEnvironment):
        shared_directories([str(unseen)], [])


def test_what_a_dead_process_left_is_noted_until_it_could_be_deleted(empty: Path) -> None:
    home, other = empty / "home", empty / "closed" / "tree"
    for tree in (home, other):
        tree.mkdir(parents=True)
        state_directory.make(tree)
    owner = Owner.make(state_directory.path_of(home))
    part = parts.make_part(owner, str(home), str(home))
    note = OwnerNote(parts=(part,), marks=(str(state_directory.path_of(other)),))
    parts.make_mark(owner, str(home), str(other), is_tree=True)
    other.parent.chmod(0)
    with pytest.raises(PermissionError):
        parts.delete(str(home), owner.identifier, note)
    assert owner.path.exists()
    other.parent.chmod(0o700)
    parts.delete(str(home), owner.identifier, note)
    owner.close()
    assert (owner.path.exists(), list(other.rglob("*.home"))) == (False, [])
