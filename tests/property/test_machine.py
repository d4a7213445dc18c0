"""Any history of commands, with kills anywhere: the installed files are those of a plain dictionary."""

import contextlib
import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from safe_pip import fs
from safe_pip.locking import flock, state_directory
from safe_pip.merge.merge import MergeRefused
from tests.support.faults import disk
from tests.support.venvs.direct_installs import DirectPrefix, SmallDistribution, without_exchange

from .model import is_possible, parents

MEMORY = "/dev/shm"
"""Where it is fast, if there is such a filesystem: it is only processes that are killed here."""
Installed = Mapping[str, SmallDistribution]
"""What is installed: the distribution of each project."""
Wish = Mapping[str, str]
"""What a command is to come to: the version of each project, none for what it takes away."""

# Versions share files or have others, in directories of their own, in one that two projects have to themselves
# (`common`), in a namespace of all and outside the tree; what is a file in one is a directory in another. No two
# projects have the same file.
SHOP = {
    "one": {
        "1": "site/one/__init__.py site/one/__pycache__/__init__.cpython-313.pyc site/one/gone.py site/ns/one.py"
        " site/ns/turned bin/one",
        "2": "site/one/__init__.py site/one/come/x.py site/ns/one.py site/ns/turned/x.py bin/one",
        "3": "site/one site/one.py bin/one/inner share/one/data",
    },
    "two": {
        "1": "site/two.py site/common/two.py site/ns/two.py bin/two share/two/data",
        "2": "site/two.py site/common/inner/two.py site/ns/deep/two.py bin/two share/two/more",
    },
    "three": {
        "1": "site/common/three.py site/common/inner/three.py",
        "2": "site/common/three.py site/ns/deep/three.py site/ns/__pycache__/x.txt bin/three",
        "3": "site/three/__init__.py bin/three",
    },
}
NOBODY = [
    "site/one/note.txt",
    "site/one/mine/data.txt",
    "site/one/come",  # in the way of a directory of version 2
    "site/two.py",  # overwritten, as pip does
    "site/common/inner/note.txt",
    "site/ns/note.txt",
    "site/ns/turned/note.txt",  # in the way of a file of version 1
    "site/one-1.dist-info/note.txt",  # metadata belongs wholly to its distribution
    "bin/one/note.txt",
    "bin/two",
    "share/two/note.txt",
]
MOVES = frozenset({"link", "move", "move_over", "exchange"})
REMOVALS = frozenset({"remove", "remove_directory"})
MAKING = frozenset({"make_directory", "set_mode", "create", "write"})

versions = st.fixed_dictionaries(
    {}, optional={project: st.sampled_from(list(found)) for project, found in SHOP.items()}
)
changes = st.fixed_dictionaries(
    {}, optional={project: st.sampled_from(["", *found]) for project, found in SHOP.items()}
)
removals = st.fixed_dictionaries({}, optional={project: st.just("") for project in SHOP})
wishes = (changes | changes | removals).filter(bool)


class Moment(NamedTuple):
    """When a command is killed: before so many changes of some kinds; `torn`: if that is a write, after half of it."""

    number: int
    only: Collection[str] | None = None
    torn: bool = False


moments = (
    st.builds(Moment, st.integers(0, 90), st.none(), st.booleans())
    | st.builds(Moment, st.integers(0, 30), st.just(MAKING), st.booleans())
    | st.builds(Moment, st.integers(0, 20), st.just(REMOVALS))
)
readers = st.lists(st.integers(0, 20), max_size=2)
"""The next commands, which are killed too, each before that number of changes."""


class Expected(NamedTuple):
    """The expected content of the prefix: installed files, unowned files, bytecode that importers made."""

    installed: Installed
    unowned: Mapping[str, str] = {}
    bytecode: Mapping[str, str] = {}

    def files(self) -> dict[str, str]:
        """Every file, by its path relative to the prefix."""
        return {**self.unowned, **self.bytecode, **content_of(self.installed.values())}

    def after(self, new: Collection[SmallDistribution], old: Collection[SmallDistribution]) -> "Expected":
        """The expected content after a command that installs `new` and removes `old`."""
        kept = {project: each for project, each in self.installed.items() if each not in old}
        come, gone = content_of(new), content_of(old)
        metadata = {directory for path in gone for directory in parents(path) if directory.endswith(".dist-info")}
        return Expected(
            {**kept, **{each.project: each for each in new}},
            {path: text for path, text in self.unowned.items() if not (path in come or metadata & {*parents(path)})},
            {path: text for path, text in self.bytecode.items() if source_of(path) not in gone},
        )


def content_of(distributions: Iterable[SmallDistribution]) -> dict[str, str]:
    """Every file of these."""
    return {path: text for each in distributions for path, text in each.content().items()}


def bytecode_of(path: str) -> str:
    """The path of the bytecode of an interpreter of an old version."""
    directory, name = os.path.split(path)
    return f"{directory}/__pycache__/{name.removesuffix('.py')}.cpython-310.pyc"


def source_of(path: str) -> str:
    """The source text that was compiled to the bytecode at `path`."""
    directory, _, name = path.partition("/__pycache__/")
    return f"{directory}/{name.partition('.')[0]}.py"


class Command(NamedTuple):
    """What one command does, and the expected result."""

    new: Sequence[SmallDistribution]
    old: Sequence[SmallDistribution]
    after: Expected


class Machine(RuleBasedStateMachine):
    """One prefix and its expected content; every command uses the real transaction."""

    def __init__(self) -> None:
        super().__init__()
        place = MEMORY if os.access(MEMORY, os.W_OK) else None
        self.prefix = DirectPrefix(Path(tempfile.mkdtemp(prefix="safe-pip-test-", dir=place), "prefix"))
        self.expected = Expected({})
        self.unfinished: Command | None = None
        """What a killed command was to do, while its journal is there."""
        self.away: set[str] = set()
        """Unowned files that the next command that writes must restore."""
        self.numbers = itertools.count()
        self.locked = set(flock.own_descriptors())
        """What other tests of this process have left."""

    @initialize(installed=versions, can_exchange=st.booleans(), shared_bin=st.booleans())
    def begin(self, installed: Wish, can_exchange: bool, shared_bin: bool) -> None:
        self.prefix = DirectPrefix(self.prefix.root, shared_bin=shared_bin)
        self.can_exchange = can_exchange
        self.a_command_comes_to_its_end(installed, is_late=False)

    def teardown(self) -> None:
        shutil.rmtree(self.prefix.root.parent)

    # What happens.

    @rule(wish=wishes, is_late=st.booleans())
    def a_command_comes_to_its_end(self, wish: Wish, is_late: bool) -> None:
        """Unfinished transactions are undone or finished first, and nothing remains of any."""
        command = self.command(wish)
        if command is None:
            return
        with self.another_program_writing(command, is_late) as late:
            is_done = self.run(command)
        assert is_done == is_possible(command.after.files())
        self.unfinished = None
        if is_done:
            self.expected = command.after._replace(unowned={**command.after.unowned, **late})
            self.away.clear()
            assert self.prefix.private() == []
        self.check()

    @rule(wish=wishes, number=st.integers(1, 20), is_late=st.booleans(), again=readers)
    def a_command_is_killed_between_two_moves(self, wish: Wish, number: int, is_late: bool, again: list[int]) -> None:
        self.a_command_is_killed(wish, Moment(number, MOVES), is_late, again)

    @rule(wish=wishes, moment=moments, is_late=st.booleans(), again=readers)
    def a_command_is_killed_anywhere(self, wish: Wish, moment: Moment, is_late: bool, again: list[int]) -> None:
        self.a_command_is_killed(wish, moment, is_late, again)

    def a_command_is_killed(self, wish: Wish, moment: Moment, is_late: bool, again: list[int]) -> None:
        """A kill may fall into an earlier recovery. The journal decides whether the command took effect."""
        command = self.command(wish)
        if command is None:
            return
        number, only, torn = moment
        before = self.journals()
        with (
            disk.crash_at(number, torn=torn, only=only) as trial,
            self.another_program_writing(command, is_late) as late,
            contextlib.suppress(disk.Crashed),
        ):
            self.run(command)
        flock._close_in_child()  # the kernel does this for a killed process
        self.away |= late.keys()
        if is_committed(trial):
            assert not self.journals()
            self.expected = command.after
        self.expected = self.expected._replace(unowned={**self.expected.unowned, **late})
        if self.journals() != before:
            self.unfinished = command if self.journals() else None
        self.check()
        for number in again if self.unfinished else ():
            self.a_reader_is_killed(number)

    def a_reader_is_killed(self, number: int) -> None:
        with disk.crash_at(number), contextlib.suppress(disk.Crashed):
            self.prefix.read()
        flock._close_in_child()
        if not self.journals():
            self.unfinished = None
        self.check()

    @rule()
    def somebody_reads(self) -> None:
        """Unfinished transactions are undone first."""
        found = self.prefix.read()
        assert found.projects.keys() == self.expected.installed.keys()
        assert not self.journals()
        self.unfinished = None
        self.check()

    @rule(path=st.sampled_from(NOBODY))
    def somebody_puts_a_file_there(self, path: str) -> None:
        """Unless it cannot be there, or the environment is half changed."""
        files = self.expected.files()
        is_metadata = ".dist-info/" in path and os.path.dirname(path) not in {os.path.dirname(each) for each in files}
        if not self.unfinished and path not in files and is_possible({*files, path}) and not is_metadata:
            text = f"unowned {next(self.numbers)}"
            self.prefix.write({path: text})
            self.expected = self.expected._replace(unowned={**self.expected.unowned, path: text})

    @rule(project=st.sampled_from(sorted(SHOP)))
    def somebody_imports(self, project: str) -> None:
        """With another interpreter, whose bytecode is in no RECORD."""
        if not self.unfinished and project in self.expected.installed:
            files = self.expected.installed[project].files
            made = {bytecode_of(path): "bytecode" for path in files if path.endswith(".py")}
            self.prefix.write(made)
            self.expected = self.expected._replace(bytecode={**self.expected.bytecode, **made})

    # What is true.

    @invariant()
    def nothing_stays_locked(self) -> None:
        assert set(flock.own_descriptors()) <= self.locked

    def check(self) -> None:
        """Compare the prefix with its expected content; while it is half changed, with the allowed contents."""
        found = self.prefix.content()
        if self.unfinished is not None:
            check_metadata(found, self.expected.installed, self.unfinished)
            return
        files = self.expected.files()
        missing = self.away - found.keys()
        for path in missing:
            del files[path]
        seen = self.seen(files)
        # The directories of what is put back are made one after the other.
        made = {above for path in missing for above in parents(path)} - seen.keys()
        made |= {"share"} - seen.keys()  # no file was in it itself, so it stays when it is empty
        assert {path: content for path, content in found.items() if path not in made} == seen

    def seen(self, files: Mapping[str, str]) -> dict[str, str]:
        """The part of `DirectPrefix.content` for these files: the files and their directories below the roots."""
        mode = self.prefix.site.stat().st_mode
        directories = {"site", "bin"} | {above for path in files for above in parents(path)}
        regular = stat.filemode(stat.S_IFREG | mode & 0o666)
        return {each: f"{stat.filemode(mode)} " for each in directories} | {
            path: f"{regular} {text}" for path, text in files.items()
        }

    # How it is done.

    def command(self, wish: Wish) -> Command | None:
        """What does this; None if there is nothing to do, or if a file that is away would be in its way."""
        old = [each for project, each in self.expected.installed.items() if project in wish]
        new = [self.distribution(project, version) for project, version in wish.items() if version]
        after = self.expected.after(new, old)
        is_clear = not self.away or is_possible(after.files())
        return Command(new, old, after) if (old or new) and is_clear else None

    def distribution(self, project: str, version: str) -> SmallDistribution:
        """One whose every file says whose it is, and which no other one equals; lengths differ only for its number."""
        number = next(self.numbers)
        return SmallDistribution(
            project, version, {name: f"{name} {version} {number}" for name in SHOP[project][version].split()}
        )

    def run(self, command: Command) -> bool:
        """Whether it was done."""
        for made in (*self.prefix.site.glob(".safe-pip-*"), *self.prefix.root.glob("*/.safe-pip/*.home")):
            os.utime(made, (0, time.time() - 7200))  # A process may be about to make a younger one.
        with contextlib.nullcontext() if self.can_exchange else without_exchange():
            try:
                self.prefix.change(command.new, command.old)
            except MergeRefused:
                return False
        return True

    @contextlib.contextmanager
    def another_program_writing(self, command: Command, is_late: bool) -> Iterator[dict[str, str]]:
        """Another program writes a file into the first directory to be replaced or removed, just before; yields it."""
        late: dict[str, str] = {}
        outer = fs.watch.observer

        def told(operation: str, path: str, source: str) -> None:
            if outer is not None:
                outer(operation, path, source)
            live = {"exchange": path, "move": source}.get(operation, "")
            if not is_late or late or not live or ".safe-pip" in live or not os.path.isdir(live):
                return
            name = f"{os.path.relpath(live, self.prefix.root)}/late-{len(self.expected.unowned)}.txt"
            if not live.endswith((".dist-info", "__pycache__")) and is_possible({*command.after.files(), name}):
                late[name] = "late"
                self.prefix.write(late)

        fs.watch.observer = told if not self.unfinished else outer
        try:
            yield late
        finally:
            fs.watch.observer = outer

    def journals(self) -> list[Path]:
        """Of changes that are not committed, without the endings of their names."""
        found = self.prefix.site.glob(".safe-pip/*")
        return sorted(path.with_suffix("") for path in found if path.suffix in state_directory.JOURNALS)


def is_committed(trial: disk.Trial) -> bool:
    """Whether the command came past its commit point before it was killed."""
    done = itertools.takewhile(lambda change: change is not trial.struck, trial.changes)
    return any(change.operation == "move" and change.path.endswith(".committed") for change in done)


def check_metadata(found: Mapping[str, str], before: Installed, command: Command) -> None:
    """Metadata that comes or stays is seen only beside all that it lists; so is metadata that goes if nothing comes."""
    visible = [each for each in before.values() if each not in command.old or not command.new]
    are_there = {(each.project, each.version) for each in before.values()}
    visible += [each for each in command.new if (each.project, each.version) not in are_there]
    for each in visible:
        if f"site/{each.project}-{each.version}.dist-info" in found:
            for path, text in each.content().items():
                assert found.get(path, "").endswith(text), path


# Which change it is that a command is killed at depends, if only a little, on the time and on the names it has given.
MANY = settings(deadline=None, max_examples=60, stateful_step_count=20, suppress_health_check=list(HealthCheck))


def test_after_any_kills_the_installed_files_match_a_plain_dictionary() -> None:
    run_state_machine_as_test(Machine, settings=MANY)
