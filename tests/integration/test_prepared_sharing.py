"""One store of prepared wheels for several interpreters and users: shared where possible, never mixed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from safe_pip.store.wheels import Listing
from tests.support.faults.mounts import as_root
from tests.support.venvs import interpreters
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.readonly import NOBODY, ReadOnlyEnvironment
from tests.support.venvs.store import entries, installed, store, tree
from tests.support.venvs.template import Venv

pytestmark = pytest.mark.slow


def kept(*roots: Path) -> dict[Path, tuple[object, ...]]:
    """Everything at and below these: what it is, whose it is, and when it was changed."""
    found = {}
    for path in (each for root in roots for each in (root, *root.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[path] = (status.st_ino, status.st_uid, status.st_mode, status.st_mtime_ns, content)
    return found


# Two interpreters


@dataclass(frozen=True)
class Interpreter:
    """One environment, and what its interpreter says of bytecode."""

    env: PipEnvironment
    site: Path
    tag: str
    magic: bytes

    @classmethod
    def of(cls, env: PipEnvironment, site: Path) -> Interpreter:
        code = "import sys, importlib.util as u; print(sys.implementation.cache_tag, u.MAGIC_NUMBER.hex())"
        done = subprocess.run([env.venv.python, "-c", code], capture_output=True, text=True, check=True)
        tag, magic = done.stdout.split()
        return cls(env, site, tag, bytes.fromhex(magic))

    def imports(self, *modules: str) -> str:
        """Import modules as a program does, which compiles and writes what it misses; on return what `-v` says."""
        command = [self.env.venv.python, "-W", "error", "-v", "-c", f"import {', '.join(modules)}"]
        done = subprocess.run(command, env=self.env.variables, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def bytecode(self) -> dict[Path, tuple[object, ...]]:
        found = kept(*(self.site / name for name in ("every", "nspace", "__pycache__")))
        return {path: what for path, what in found.items() if path.suffix == ".pyc"}


@pytest.fixture
def both(cold_env: PipEnvironment) -> tuple[Interpreter, Interpreter]:
    """This interpreter and another one, with one index and one cache."""
    path = cold_env.directory / "another"
    site = interpreters.make_environment(interpreters.another(), path)
    shutil.copytree(cold_env.site, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".safe-pip", "__pycache__"))
    other = replace(cold_env, venv=Venv(path, frozenset()))
    script = (cold_env.venv.scripts / "safe-pip").read_text()
    theirs = other.venv.scripts / "safe-pip"
    theirs.write_text(script.replace(str(cold_env.venv.python), str(other.venv.python)))
    theirs.chmod(0o755)
    return Interpreter.of(cold_env, cold_env.site), Interpreter.of(other, site)


def test_each_interpreter_gets_bytecode_of_its_own_that_it_takes_as_it_is(both):
    for one in both:
        one.env.run("install", "every-thing", "other")
        before = one.bytecode()
        assert len(before) >= 6
        assert {path.name.split(".")[1] for path in before} == {one.tag}
        assert {content[:4] for *_, content in before.values()} == {one.magic}
        said = one.imports("every.deep.er", "module", "pure", "plat", "other", "nspace.other")
        taken = re.findall(r"^# .*/([\w-]+)\.pyc matches ", said.replace(f".{one.tag}", ""), re.MULTILINE)
        assert {"er", "module", "pure", "plat", "other"} <= {*taken}, said
        assert f"# wrote '{one.site}" not in said
        assert one.bytecode() == before


def test_an_interpreter_neither_uses_nor_changes_the_entries_of_another(both):
    first, second = both
    without = installed(first.env, "--no-cache-dir"), installed(second.env, "--no-cache-dir")
    assert installed(first.env) == without[0]
    theirs = kept(*entries(first.env).values())
    assert installed(second.env) == without[1]
    assert kept(*(path for path in theirs if path.parent.name == "wheels")) == theirs
    assert len(list(store(first.env).glob("wheels/*"))) == 4
    assert installed(first.env) == without[0]
    assert installed(second.env) == without[1]
    assert len(list(store(first.env).glob("wheels/*"))) == 4


# Two users


@dataclass(frozen=True)
class Users:
    """Root and a second user, who share an interpreter and an index."""

    readable: ReadOnlyEnvironment

    def home(self, user: int) -> Path:
        home = self.readable.directory / f"home-{user}"
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, user, user)
        return home

    def install(self, user: int, *options: str | Path) -> tuple[dict[str, tuple[int, bytes]], str]:
        """What a user's command installs into a private prefix, always at the same path, and what it prints."""
        prefix = self.readable.directory / "prefix"
        prefix.mkdir()
        os.chown(prefix, user, user)
        wanted = ("--ignore-installed", "--prefix", prefix, *options, "every-thing", "other")
        home = self.home(user)
        more = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        done = self.readable.run("install", "-v", *wanted, user=user, **more)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        found = tree(prefix)
        shutil.rmtree(prefix)
        return found, done.stderr


@pytest.fixture
def users(cold_env: PipEnvironment, common: Path) -> Users:
    return Users(ReadOnlyEnvironment(cold_env, common))


def plant(store: Path) -> None:
    """Have the entry of `other` hold other code, as its owner can."""
    (entry,) = (path for path in store.glob("wheels/*") if (path / "files" / "other.py").exists())
    code = b"planted = 1\n"
    (entry / "files" / "other.py").write_bytes(code)
    listing = Listing.decode((entry / "listing").read_bytes())
    rows = json.loads(json.dumps(listing.files))
    (row,) = (row for row in rows[""] if row[0] == "other.py")
    row[1:3] = len(code), hashlib.sha256(code).hexdigest()
    (entry / "listing").write_bytes(listing._replace(files=rows).encode())


OURS = "safe-pip: prepared wheels are not used"
PIPS = "The cache has been disabled"


@as_root
@pytest.mark.parametrize(
    ("owner", "mode", "user", "said"),
    [
        pytest.param(0, 0o755, NOBODY, PIPS, id="roots"),
        pytest.param(NOBODY, 0o755, 0, PIPS, id="somebodys"),
        pytest.param(NOBODY, 0o777, 0, PIPS, id="somebodys-open"),
        pytest.param(0, 0o777, NOBODY, OURS, id="roots-open"),
        pytest.param(0, 0o1777, NOBODY, OURS, id="roots-sticky"),
        pytest.param(0, 0o777, 0, OURS, id="ones-own-open"),
        pytest.param(NOBODY, 0o775, NOBODY, OURS, id="ones-own-open-to-the-group"),
    ],
)
def test_a_cache_that_others_can_change_is_not_used_and_not_changed(users, owner, mode, user, said):
    without, _ = users.install(user, "--no-cache-dir")
    cache = users.readable.directory / "cache"
    cache.mkdir()
    os.chown(cache, owner, owner)
    users.install(owner, "--cache-dir", cache)
    plant(cache / "safe-pip" / "prepared-v1")
    for path in cache.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    cache.chmod(mode)
    before = kept(cache)
    found, err = users.install(user, "--cache-dir", cache)
    assert found == without
    assert said in err
    assert kept(cache) == before


@as_root
def test_two_users_have_a_store_each(users):
    without, _ = users.install(0, "--no-cache-dir")
    for _ in range(2):
        for user in (0, NOBODY):
            found, err = users.install(user)
            assert found == without
            assert "prepared wheels" not in err
    for user in (0, NOBODY):
        root = users.home(user) / ".cache" / "pip" / "safe-pip"
        assert len(list((root / "prepared-v1" / "wheels").iterdir())) == 2
        found = [path.lstat() for path in (root, *root.rglob("*"))]
        assert {status.st_uid for status in found} == {user}
        assert (root / "prepared-v1").stat().st_mode & 0o777 == 0o700
