"""What lies in a tree, or beside it, and belongs to no distribution: data, leftovers of a crash, wrappers of nobody.

Only lists and reads. Data that nobody owns is none of our business: it is told, never touched.
"""

import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from safe_pip.commands.doctor.checkup import Finding, Installed, Kind
from safe_pip.commands.doctor.mending import KEPT
from safe_pip.launch import adoption
from safe_pip.locking import state_directory
from safe_pip.records import is_bytecode

# Both are used for milliseconds.
_LONGEST_USE = 600.0
_MARKER = re.compile(re.escape(state_directory.NAME) + r"-([0-9a-f]{16})")
# What comes with an interpreter or a virtual environment, and with no distribution.
_NOBODYS = {"README.txt", "_virtualenv.py", "_virtualenv.pth", "__pycache__"}
INTERRUPTED = "of a plain pip that was interrupted"
_WRAPPER = 4096
_SHEBANG = re.compile(rb"#!\s*(\S+python\S*)\s*\n|#!/bin/sh\n'''exec' (\S+|\"[^\"\n]+\") \"\$0\" \"\$@\"\n' '''\n")
_LINE = re.compile(
    rb"""
    (?:\#\ -\*-\ coding:\ utf-8\ -\*-|import\ re|import\ sys|if\ __name__\ ==\ (?:'__main__'|"__main__"):)
    | \s*(?:el)?(?:if)?\ ?(?:sys\.argv\[0\]\.endswith\([^()]*\):)
    | \s*sys\.argv\[0\]\ =\ [^\n]*
    |
    """,
    re.VERBOSE,
)
_IMPORT = re.compile(rb"\s*from ([\w.]+) import (\w+)")
_CALL = re.compile(rb"\s*sys\.exit\((\w+)[\w.]*\(\)\)")


class Owned(NamedTuple):
    """What the distributions own: their files, the directories above them, and what is theirs as a whole."""

    files: frozenset[str]
    directories: frozenset[str]
    whole: frozenset[str]
    scripts: frozenset[str]
    known: frozenset[str]
    """The trees whose distributions all say which files they have; elsewhere nothing can be called unowned."""

    @classmethod
    def by(cls, installed: Collection[Installed]) -> "Owned":
        """What these own."""
        files, whole, scripts = set[str](), set[str](), set[str]()
        known = {each.tree: True for each in installed}
        for each in installed:
            whole.add(each.info)
            files |= {row.path for row in each.rows or ()}
            scripts |= each.scripts
            known[each.tree] &= each.rows is not None
        directories = set[str]()
        for path in (*files, *whole):
            parent = os.path.dirname(path)
            while parent not in directories and parent != os.path.dirname(parent):
                directories.add(parent)
                parent = os.path.dirname(parent)
        return cls(
            frozenset(files),
            frozenset(directories),
            frozenset(whole),
            frozenset(scripts),
            frozenset(tree for tree in known if known[tree]),
        )


def of_tree(tree: str, owned: Owned, unfinished: Collection[str], now: float | None = None) -> list[Finding]:
    """What is in a tree and nobody's; `unfinished` are the transactions that are to take their markers away."""
    found = list(_below(tree, tree, owned, unfinished, time.time() if now is None else now))
    for entry in _listed(os.path.join(tree, state_directory.NAME)):
        if entry.name.startswith(KEPT):
            detail = "of a transaction that could not be undone: look at it, then remove it"
            found.append(Finding(Kind.PUT_ASIDE, tree, entry.path, detail=detail))
    return found


def _below(tree: str, directory: str, owned: Owned, unfinished: Collection[str], now: float) -> Iterator[Finding]:
    for entry in _listed(directory):
        path = os.path.join(directory, entry.name)
        is_directory = entry.is_dir(follow_symlinks=False)
        if path in owned.files or path in owned.whole or entry.name == state_directory.NAME:
            continue
        if directory == tree and entry.name == adoption.NAME and (adopted := adoption.find(tree)):
            kind = Kind.ADOPTED if adopted.works else Kind.ADOPTED_IN_VAIN
            yield Finding(kind, tree, path, detail=adopted.told())
        elif entry.name.startswith(f"{state_directory.NAME}-"):
            yield from _ours(tree, path, entry, unfinished, now)
        elif is_directory and entry.name == "__pycache__":
            yield from _bytecode(tree, path, owned)
        elif is_directory and path in owned.directories:
            yield from _below(tree, path, owned, unfinished, now)
        elif entry.name.startswith("~") and (is_directory or directory == tree) and is_for_distributions(tree, owned):
            yield Finding(Kind.LEFTOVER, tree, path, detail=INTERRUPTED)
        elif tree in owned.known and not (directory == tree and _is_known_at_the_top(entry.name)):
            count = sum(1 for _ in _files(path)) if is_directory else 1
            if count:
                what = f"{count} files" if is_directory else ""
                yield Finding(Kind.UNOWNED, tree, os.path.join(path, "") if is_directory else path, detail=what)


def is_for_distributions(tree: str, owned: Owned) -> bool:
    """Whether installers write there: any directory may stand on the path, a home for one."""
    return os.path.basename(tree) in ("site-packages", "dist-packages") or tree in owned.known


def _listed(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_known_at_the_top(name: str) -> bool:
    return name in _NOBODYS or name.endswith((".egg", ".egg-link")) or name == "easy-install.pth"


def _files(path: str) -> Iterator[str]:
    for directory, _, files in os.walk(path):
        yield from (os.path.join(directory, file) for file in files if not file.endswith(".pyc"))


def _bytecode(tree: str, directory: str, owned: Owned) -> Iterator[Finding]:
    """What is in a `__pycache__` and no bytecode; bytecode goes with its source, or does no harm."""
    for entry in _listed(directory):
        path = os.path.join(directory, entry.name)
        if tree in owned.known and path not in owned.files and not is_bytecode(path):
            yield Finding(Kind.UNOWNED, tree, path)


def _ours(tree: str, path: str, entry: os.DirEntry[str], unfinished: Collection[str], now: float) -> Iterator[Finding]:
    """What a safe-pip that was killed left: a marker, or a private directory that nobody uses."""
    match = _MARKER.fullmatch(entry.name)
    if match is not None and match[1] in unfinished:
        return
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return
    if now - status.st_mtime > _LONGEST_USE and (stat.S_ISDIR(status.st_mode) or match is not None):
        yield Finding(Kind.ABANDONED, tree, path, detail="of a safe-pip that was killed")


def beside(files: Iterable[str], within: str, trees: Iterable[str]) -> Iterator[str]:
    """The `~` leftovers in those directories of `files` that lie below `within`, but in none of the trees."""
    inside = tuple(os.path.join(tree, "") for tree in trees)
    directories = set[str]()
    for file in files:
        parent = os.path.dirname(file)
        while parent.startswith(os.path.join(within, "")) and not f"{parent}/".startswith(inside):
            directories.add(parent)
            parent = os.path.dirname(parent)
    for directory in sorted(directories):
        for entry in _listed(directory):
            if entry.name.startswith("~") and entry.is_dir(follow_symlinks=False):
                yield os.path.join(directory, entry.name)


class Wrapper(NamedTuple):
    """A script that an installer made for an entry point: the interpreter that runs it, and what it calls."""

    interpreter: str
    module: str

    @classmethod
    def read(cls, path: str) -> "Wrapper | None":
        """What the file is, if every line of it is one that installers write; a person's own program is none."""
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode) or os.stat(path).st_size > _WRAPPER:
                return None
            with open(path, "rb") as file:
                content = file.read(_WRAPPER)
        except OSError:
            return None
        shebang = _SHEBANG.match(content)
        if shebang is None:
            return None
        lines = content[shebang.end() :].split(b"\n")
        imports = [match for line in lines if (match := _IMPORT.fullmatch(line))]
        calls = [match for line in lines if (match := _CALL.fullmatch(line))]
        rest = [line for line in lines if not _IMPORT.fullmatch(line) and not _CALL.fullmatch(line)]
        if len(imports) != 1 or len(calls) != 1 or imports[0][2] != calls[0][1]:
            return None
        if not all(_LINE.fullmatch(line) for line in rest):
            return None
        interpreter = (shebang[1] or shebang[2]).strip(b'"')
        return cls(os.fsdecode(interpreter), imports[0][1].decode())


def scripts(tree: str, directory: str, owned: Owned, interpreters: Collection[str]) -> Iterator[Finding]:
    """The wrappers in `directory` that run one of `interpreters`, and that no RECORD and no entry point names."""
    real = os.path.realpath(directory)
    for entry in _listed(real):
        path = os.path.join(real, entry.name)
        if path in owned.files or entry.name in owned.scripts:
            continue
        wrapper = Wrapper.read(path)
        if wrapper is not None and is_same_interpreter(wrapper.interpreter, interpreters):
            yield Finding(Kind.OWNERLESS_SCRIPT, tree, path, detail=f"it calls `{wrapper.module}`")


def is_same_interpreter(path: str, interpreters: Collection[str]) -> bool:
    """Whether `path` is one of them by another of its names: in a directory `python`, `python3` and so on are one."""
    place = os.path.realpath(os.path.dirname(path))
    return any(
        place == os.path.realpath(os.path.dirname(each)) and os.path.realpath(path) == os.path.realpath(each)
        for each in interpreters
    )
