"""Commands that are killed while they prepare wheels: a sample of `python -m tests.integration store`."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from safe_pip.store.wheels import FILES, Entry, Store
from tests.support.processes.watching import Happened, Watch
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.store import tree
from tests.support.wheels.tiny import Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="inotify(7) tells when to kill")]

PATIENCE = 300.0
LATEST = 25
"""A kill comes so many changes of the store after the last one, at most; a whole round makes about fifty."""
FIRST = Project("first", "1")
PROJECTS = [
    *(
        Project(name, "1", files={f"{name}/module{number}.py": f"value = {number}\n" * 100 for number in range(30)})
        for name in ("one", "two", "three", "four")
    ),
    Project("large", "1", files={f"large/module{number}.py": "value = [1, 2]\n" * 5000 for number in range(8)}),
]
NAMES = [project.name for project in PROJECTS]


class Round:
    """Commands with a store of their own; some are killed while the store changes, the others must not notice."""

    def __init__(self, env: PipEnvironment, directory: Path, chances: random.Random) -> None:
        self._env = env
        self._directory = directory
        self._chances = chances
        self._cache = directory / "cache"
        (directory / "tmp").mkdir(parents=True)
        # Makes the directories that are watched.
        self._env.run(*self._words("first", FIRST.name), TMPDIR=str(directory / "tmp"))
        store = Store.existing(self._cache)
        assert store is not None
        self._store = store

    def perform(self, expected: dict[str, tuple[int, bytes]]) -> int:
        """On return how many were killed at work; raises `AssertionError` if anything is not as promised."""
        targets = [f"target{number}" for number in range(self._chances.randint(4, 8))]
        with Watch(*(self._store.path / name for name in ("wheels", "aside", "making"))) as watch, ExitStack() as stack:
            commands = [stack.enter_context(self._start(target)) for target in targets]
            stack.callback(lambda: [command.kill() for command in commands])
            survivor, *others = self._chances.sample(commands, len(commands))
            victims = others[: self._chances.randint(1, len(others))]
            for victim in victims:
                if not watch.wait(survivor, self._after(self._chances.randint(1, LATEST)), PATIENCE):
                    break
                victim.kill()
            done = [(command.communicate(timeout=PATIENCE), command.returncode) for command in commands]
        killed = [command in victims and command.returncode == -signal.SIGKILL for command in commands]
        for target, (output, status), was_killed in zip(targets, done, killed, strict=True):
            if not was_killed:
                assert (output, status) == ((b"", b""), 0), target
                assert tree(self._directory / target) == expected, target
        self._check(len(self._store.wheels.names()))
        self._env.run(*self._words("last", *NAMES), TMPDIR=str(self._directory / "tmp"))
        assert tree(self._directory / "last") == expected
        self._check(len(PROJECTS) + 1)
        assert not list((self._store.path / "aside").iterdir())
        return sum(killed)

    def _words(self, target: str, *names: str) -> list[str | Path]:
        options = ["--quiet", "--cache-dir", self._cache, "--target", self._directory / target]
        return ["install", *options, *names]

    def _start(self, target: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._env.command(*self._words(target, *NAMES)),
            env=self._env.variables | {"TMPDIR": str(self._directory / "tmp")},
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _after(self, count: int) -> Callable[[Happened], bool]:
        left = iter(range(count - 1, -1, -1))

        def is_it(happened: Happened) -> bool:
            return next(left) == 0

        return is_it

    def _check(self, count: int) -> None:
        """That there are so many entries, each as it is listed."""
        assert len(self._store.wheels.names()) == count
        for key in self._store.wheels.names():
            entry = self._store.find(key)
            assert entry is not None, key
            assert [*_wrong(entry)] == []
            entry.close()


def _wrong(entry: Entry) -> Iterator[Path]:
    for group, files in entry.listing.files.items():
        for name, size, digest, _ in files:
            path = entry.path / FILES / group / name
            content = path.read_bytes()
            if (len(content), hashlib.sha256(content).hexdigest()) != (size, digest):
                yield path


def perform(env: PipEnvironment, rounds: range, seed: int) -> int:
    """On return how many commands were killed; raises `AssertionError`, and leaves the round as it was, otherwise."""
    env.add_to_index(FIRST, *PROJECTS)
    plain = env.directory / "plain"
    env.run("install", "--quiet", "--no-cache-dir", "--target", plain, *NAMES)
    killed = 0
    for number in rounds:
        directory = env.directory / f"round-{number}"
        killed += Round(env, directory, random.Random(f"{seed} {number}")).perform(tree(plain))
        shutil.rmtree(directory)
    return killed


def test_after_any_kill_the_other_commands_install_the_same_and_the_store_is_whole(
    cold_env: PipEnvironment, seed: int
) -> None:
    assert perform(cold_env, range(3), seed) > 0
