"""What is wrong with an environment: its distributions, what lies between them, unfinished transactions. Only reads.

Metadata is read under the commit lock. Files are compared without a lock, and once more if the environment changed
meanwhile. What a distribution has to be like stands in
https://packaging.python.org/en/latest/specifications/recording-installed-projects/ (RECORD),
https://packaging.python.org/en/latest/specifications/binary-distribution-format/ (names) and
https://packaging.python.org/en/latest/specifications/direct-url/ (where it came from).
"""

import enum
import errno
import hashlib
import json
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from safe_pip._vendor import importlib_metadata
from safe_pip.commands import activity
from safe_pip.commands.activity import State, Transaction
from safe_pip.commands.environments import PACKAGES, Place
from safe_pip.environment.snapshot import Fingerprint, Snapshot
from safe_pip.errors import RecoveryNeeded
from safe_pip.errors import State as Outcome
from safe_pip.journal import codec, recovery
from safe_pip.journal.directories import Refused, is_accepted
from safe_pip.journal.pending import Unfinished
from safe_pip.launch import adoption
from safe_pip.locking import flock, state_directory
from safe_pip.records import RealPaths, Row, canonical, digest_file, is_bytecode, parse

_untyped: Any = importlib_metadata  # it has no types
KEPT = "kept-"
"""How the name starts of what `--repair` kept of a transaction that could not be undone."""

_ROUNDS = 5
"""How often the environment is looked at without a lock, while other commands go on changing it."""
_FILES = ("METADATA", "PKG-INFO", "RECORD", "INSTALLER", "entry_points.txt", "direct_url.json")
_UNREADABLE = "\0"
_INSTALLERS = ("", "pip", "safe-pip", "uv", "poetry", "pdm", "installer", "flit")
# https://packaging.python.org/en/latest/specifications/version-specifiers/#normalization
_SPELLINGS = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc", "rev": "post", "r": "post"}
_RELEASE = re.compile(r"^v?([0-9.]*)(.*)$", re.DOTALL)
# Markers and private directories are in use for milliseconds.
_LONGEST_USE = 600.0
_MARKER = re.compile(re.escape(state_directory.NAME) + r"-([0-9a-f]{16})")
# These come with an interpreter, a virtual environment or setuptools, and with no distribution.
_KNOWN = re.compile(r"README\.txt|_virtualenv\.(py|pth)|__pycache__|.*\.egg(-link)?|easy-install\.pth", re.DOTALL)
_INTERRUPTED = "of a plain pip that was interrupted"
_LONGEST_WRAPPER = 4096
# Scripts as pip, distlib and uv write them.
_WRAPPER = re.compile(
    rb"""
    (?: \#!\s*(?P<short>\S+python\S*)[ ]*\n
      | \#!/bin/sh\n'''exec'[ ](?P<long>\S+|"[^"\n]+")[ ]"\$0"[ ]"\$@"\n'[ ]'''\n )
    (?: \#[ ]-\*-[ ]coding:[ ]utf-8[ ]-\*-\n )? (?: import[ ]re\n )? import[ ]sys\n+
    from[ ](?P<module>[\w.]+)[ ]import[ ](?P<function>\w+)\n+
    if[ ]__name__[ ]==[ ](?:'__main__'|"__main__"):\n
    (?: [ ]+(?:el)?if[ ]sys\.argv\[0\]\.endswith\([^()]*\):\n | [ ]+sys\.argv\[0\][ ]=[ ][^\n]*\n )*
    [ ]+sys\.exit\((?P=function)[\w.]*\(\)\)\n*
    """,
    re.VERBOSE,
)


class Kind(enum.Enum):
    """What may be found."""

    MISSING_FILE = "missing-file"
    CHANGED_FILE = "changed-file"
    OVERWRITTEN_FILE = "overwritten-file"
    UNREADABLE_FILE = "unreadable-file"
    MISSING_METADATA = "missing-metadata"
    WRONG_METADATA = "wrong-metadata"
    MISSING_RECORD = "missing-record"
    UNREADABLE_RECORD = "unreadable-record"
    DOUBLED_PROJECT = "doubled-project"
    LEFTOVER = "leftover"
    OWNERLESS_SCRIPT = "ownerless-script"
    UNFINISHED_TRANSACTION = "unfinished-transaction"
    ABANDONED = "abandoned"
    UNOWNED = "unowned"
    NOT_OURS = "managed-elsewhere"
    PUT_ASIDE = "put-aside"
    ADOPTED = "adopted"
    ADOPTED_IN_VAIN = "adopted-in-vain"

    @property
    def is_note(self) -> bool:
        """Whether it is no fault: files without an owner are legitimate, and so is another installer."""
        return self in (Kind.UNOWNED, Kind.NOT_OURS, Kind.PUT_ASIDE, Kind.ADOPTED)


NOT_UNINSTALLABLE = (Kind.MISSING_METADATA, Kind.WRONG_METADATA, Kind.MISSING_RECORD, Kind.UNREADABLE_RECORD)
"""Damage that keeps pip from uninstalling a distribution, so that it has to be installed over."""
_REINSTALLED = (Kind.MISSING_FILE, Kind.CHANGED_FILE, *NOT_UNINSTALLABLE)


class Finding(NamedTuple):
    """One thing that is not as it should be; `path` is absolute, `info` the metadata directory of what it is about.

    `repair` says in a few words what repairs it (empty: nothing can). `again` are the arguments of `pip install` for
    that, if it takes a reinstall.
    """

    kind: Kind
    tree: str
    path: str
    project: str = ""
    version: str = ""
    detail: str = ""
    info: str = ""
    repair: str = ""
    again: tuple[str, ...] = ()


class Installed(NamedTuple):
    """One distribution as its metadata directory `info` (absolute) describes it.

    `name` and `version` are METADATA's, or else the directory's name has them; `metadata` is what METADATA says, None
    if it says nothing. `rows`, with absolute paths whose parents are resolved, is None without a RECORD that can be
    read, and `problem` says why. `scripts` are the names of its entry points, `origin` the text of direct_url.json.
    """

    tree: str
    info: str
    name: str
    version: str
    metadata: tuple[str, str] | None
    rows: tuple[Row, ...] | None
    problem: str = ""
    installer: str = ""
    scripts: frozenset[str] = frozenset()
    origin: str = ""

    @property
    def project(self) -> str:
        """The normalized name."""
        return canonical(self.name)

    def finding(self, kind: Kind, path: str, detail: str = "") -> Finding:
        """Something that was found in it."""
        return Finding(kind, self.tree, path, self.project, self.version, detail, self.info)

    @property
    def is_legacy(self) -> bool:
        """Whether it has no dist-info: nothing says which files it has."""
        return not self.info.endswith(".dist-info")

    @property
    def is_managed_elsewhere(self) -> bool:
        """Whether a tool that is no Python installer looks after it; without RECORD no other tool may change it."""
        return self.installer.lower() not in _INSTALLERS

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing tells what the metadata directory is of: neither METADATA nor RECORD."""
        return not self.is_legacy and self.metadata is None and self.rows is None


class Report(NamedTuple):
    """What was found, notes included.

    `installed` is None if no distribution was looked at: a transaction has to be rolled back first.
    """

    findings: tuple[Finding, ...] = ()
    installed: tuple[Installed, ...] | None = None
    unfinished: tuple[Transaction, ...] = ()
    snapshot: Snapshot | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.kind.is_note for finding in self.findings)


class Way(enum.Enum):
    """What can be done about an unfinished transaction."""

    USUAL = "as the next command does"
    KEEPING = "undo what can be undone, put aside what it has of the rest"
    ASIDE = "put it aside"
    NONE = ""
    """Nothing, by this user and this version of safe-pip."""


def way(found: Unfinished) -> Way:
    """What can be done about an unfinished transaction; changes nothing."""
    try:
        recovery.check(found)
    except FileNotFoundError:
        return Way.USUAL  # another command was faster
    except RecoveryNeeded as error:
        cause = error.__cause__
        is_refused_by_disk = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if not _may_be_moved(found) or isinstance(cause, codec.Newer) or is_refused_by_disk:
            return Way.NONE
        is_refused = isinstance(cause, Refused) and found.state is not Outcome.COMMITTED
        return Way.KEEPING if is_refused and _can_keep(found) else Way.ASIDE
    return Way.USUAL


def _may_be_moved(found: Unfinished) -> bool:
    """Whether its writer may change the environment. Root does not act on the journal of a user who may not."""
    try:
        return is_accepted(os.lstat(found.path), os.stat(found.home))
    except OSError:
        return False


def _can_keep(found: Unfinished) -> bool:
    try:
        recovery.check(found, keep=True)
    except (RecoveryNeeded, FileNotFoundError):
        return False
    return True


def examine(place: Place) -> Report:
    """Look at everything; on return no lock is held. Raises what taking a lock raises."""
    unfinished = tuple(each for each in activity.transactions(place.trees) if not _is_at_work(each))
    findings = {_unfinished(each) for each in unfinished}
    if any(each.state is State.PREPARED for each in unfinished):
        # Half a change is never read; and a command that takes the lock undoes it, but a look is to change nothing.
        return Report(_ordered(findings), None, unfinished)
    look = _Look(place, frozenset(each.identifier for each in unfinished))
    for _ in range(_ROUNDS):
        snapshot, texts = place.environment.read(look.see)
        installed, found = look.judge(snapshot, texts)
        if place.environment.read(look.snapshot) == snapshot:
            break
    else:
        snapshot, installed, found = place.environment.read(lambda: (look.snapshot(), *look.judge(*look.see())))
    findings.update(with_repairs(found, installed))
    return Report(_ordered(findings), installed, unfinished, snapshot)


def _ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda each: (each.tree, each.project, each.path, each.kind.value)))


def _is_at_work(transaction: Transaction) -> bool:
    if transaction.is_alive is None:
        return flock.supported and flock.is_locked(transaction.path(state_directory.OWNER_FILE))
    return transaction.is_alive


def _unfinished(transaction: Transaction) -> Finding:
    by = f" by `{transaction.command}`" if transaction.command else ""
    detail = f"{transaction.state.value}{by}, which is dead"
    how = Way.USUAL if transaction.state is State.STAGING else way(transaction.unfinished)
    repair = activity.next_action(transaction._replace(is_alive=False))
    if how is not Way.USUAL:
        repair = f"{how.value}, then reinstall what is damaged" if how.value else ""
    path = str(transaction.path())
    return Finding(Kind.UNFINISHED_TRANSACTION, str(transaction.tree), path, detail=detail, repair=repair)


class _Look:
    """Several looks at one environment; what has not changed in between is not read again."""

    def __init__(self, place: Place, unfinished: frozenset[str]) -> None:
        self._place = place
        self._unfinished = unfinished
        self._paths = RealPaths()
        self._checked: dict[Fingerprint, tuple[Installed, list[Finding]]] = {}

    def snapshot(self) -> Snapshot:
        """What is installed now, as far as it can be told apart."""
        return Snapshot.take(map(str, self._place.trees))

    def see(self) -> "tuple[Snapshot, list[Texts]]":
        """What is installed now, and its metadata. The caller holds the lock, so nothing is compared yet."""
        return self.snapshot(), take(self._place.trees)

    def judge(self, snapshot: Snapshot, texts: "list[Texts]") -> tuple[tuple[Installed, ...], list[Finding]]:
        """What is installed, and everything that is found, notes included."""
        fingerprints = {each[0]: each for several in snapshot.projects.values() for each in several}
        there, found = list[Installed](), dict[str, list[Finding]]()
        for each in texts:
            fingerprint = fingerprints.get(each.info, (each.info,))
            if fingerprint not in self._checked:
                meaning = each.meaning(self._paths)
                self._checked[fingerprint] = meaning, check(meaning)
            one, found[each.info] = self._checked[fingerprint]
            there.append(one)
        return tuple(there), [*judge(there, found), *self._strays(there)]

    def _strays(self, installed: list[Installed]) -> Iterator[Finding]:
        owned = Owned.by(installed)
        directories: dict[Path, Path] = {}
        for tree, directory in self._place.scripts().items():
            directories.setdefault(directory, tree)
            yield from map(_with_project, strays(str(tree), owned, self._unfinished))
            home = self._place.home(tree)
            if home is not None:
                trees = [str(each) for each in self._place.trees]
                for path in beside(owned.files, str(home), trees):
                    yield Finding(Kind.LEFTOVER, str(tree), path, detail=_INTERRUPTED)
        for directory, tree in directories.items():
            yield from scripts(str(tree), str(directory), owned, self._place.interpreters(directory))


def _with_project(finding: Finding) -> Finding:
    """A leftover with the project whose metadata it is, so that this can be reinstalled."""
    if finding.kind is not Kind.LEFTOVER or not finding.path.endswith(".dist-info"):
        return finding
    found = _untyped.PathDistribution(Path(finding.path))
    identity = Texts.read(finding.tree, found).identity()
    return finding if identity is None else finding._replace(project=canonical(identity[0]), version=identity[1])


# -- distributions -----------------------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """The metadata of one distribution, as it was when it was read: `texts` by the names of its files."""

    tree: str
    info: str
    texts: Mapping[str, str | None]

    @classmethod
    def read(cls, tree: str, found: Any) -> "Texts":
        """Read what `importlib_metadata` has found."""
        info = str(found._path)
        names = _FILES if os.path.isdir(info) else ("",)  # an egg-info may be a file
        return cls(tree, info, {name: _read(found, name) for name in names})

    def text(self, *names: str) -> str | None:
        """The text of the first of these files that exists; None if there is none, or it cannot be read."""
        text = next((self.texts[name] for name in names if self.texts.get(name) is not None), None)
        return None if text == _UNREADABLE else text

    def identity(self) -> tuple[str, str] | None:
        """Name and version in METADATA."""
        text = self.text("METADATA", "PKG-INFO", "")
        found = HeaderParser().parsestr(text or "")
        name, version = found["Name"], found["Version"]
        return (str(name), str(version)) if name and version else None

    def meaning(self, paths: RealPaths) -> Installed:
        """What the texts say."""
        name, version = named(self.info)
        metadata = self.identity()
        rows, problem = None, "it cannot be read" if self.texts.get("RECORD") == _UNREADABLE else ""
        record = self.text("RECORD")
        if record is not None:
            try:
                rows = rows_of(self.tree, record, paths)
            except (ValueError, OSError) as error:
                problem = str(error)
        if metadata is not None and (canonical(metadata[0]) == canonical(name) or not version):
            name, version = metadata
        try:
            points = _untyped.EntryPoints._from_text(self.text("entry_points.txt") or "")
            scripts = [point.name for point in points if point.group in ("console_scripts", "gui_scripts")]
        except ValueError:
            scripts = []
        installer, origin = (self.text("INSTALLER") or "").strip(), self.text("direct_url.json") or ""
        return Installed(
            self.tree, self.info, name, version, metadata, rows, problem, installer, frozenset(scripts), origin
        )


def _read(found: Any, name: str) -> str | None:
    try:
        text: str | None = found.read_text(name)
    except (OSError, ValueError):
        return _UNREADABLE
    if text is None and name and os.path.lexists(os.path.join(found._path, name)):
        return _UNREADABLE
    return text


def take(trees: Iterable[Path]) -> list[Texts]:
    """The metadata of every distribution in `trees`."""
    finder = _untyped.MetadataPathFinder
    finder.invalidate_caches()
    return [
        Texts.read(tree, found)
        for tree in map(str, trees)
        for found in finder.find_distributions(_untyped.DistributionFinder.Context(path=[tree]))
        if not found._path.name.startswith("~")
    ]


def named(info: str) -> tuple[str, str]:
    """Name and version, as the name of a metadata directory has them."""
    name, _, version = os.path.splitext(os.path.basename(info))[0].partition("-")
    return name, version.partition("-py")[0]


def rows_of(tree: str, record: str, paths: RealPaths) -> tuple[Row, ...]:
    """The rows of a RECORD, with absolute paths; raises `ValueError` if it is none."""
    rows = parse(record)
    if not rows:
        raise ValueError("it is empty")
    for row in rows:
        if row.size and not row.size.isdecimal():
            raise ValueError(f"not a row: {','.join(row)}")
    return tuple(row._replace(path=_placed(tree, row.path, paths)) for row in rows)


def _placed(tree: str, path: str, paths: RealPaths) -> str:
    """Where a file is. With `--target` pip moves what it installed, and leaves the rows as they were."""
    found = paths.real(tree, path)
    moved = path.removeprefix("../../")
    if moved == path or moved.startswith("../") or os.path.lexists(found):
        return found
    beside = paths.real(tree, moved)
    return beside if os.path.lexists(beside) else found


def check(installed: Installed) -> list[Finding]:
    """Everything that is wrong with one distribution by itself; reads all of its files."""
    if installed.is_legacy:
        return []
    return [*_metadata(installed), *_files(installed)]


def _metadata(installed: Installed) -> Iterator[Finding]:
    metadata, record = (os.path.join(installed.info, name) for name in ("METADATA", "RECORD"))
    if installed.metadata is None:
        yield installed.finding(Kind.MISSING_METADATA, metadata, "there is none that can be read")
    else:
        name, version = named(installed.info)
        if canonical(name) != canonical(installed.metadata[0]) or not same_version(version, installed.metadata[1]):
            says = " ".join(installed.metadata)
            yield installed.finding(Kind.WRONG_METADATA, metadata, f"it is of `{says}`")
    if installed.rows is None:
        if os.path.lexists(record):
            yield installed.finding(Kind.UNREADABLE_RECORD, record, installed.problem)
        elif installed.is_managed_elsewhere:
            yield installed.finding(Kind.NOT_OURS, record, f"there is none: `{installed.installer}` looks after it")
        else:
            yield installed.finding(Kind.MISSING_RECORD, record, "there is none")


def _files(installed: Installed) -> Iterator[Finding]:
    for row in installed.rows or ():
        if is_bytecode(row.path):
            continue
        try:
            kind, detail = _compare(row)
        except (FileNotFoundError, NotADirectoryError):
            if row.path.endswith(".pyc") and not row.digest:
                continue  # virtualenv lists bytecode that is never made
            kind, detail = Kind.MISSING_FILE, ""
        except OSError as error:
            kind, detail = Kind.UNREADABLE_FILE, str(error.strerror)
        if kind is not None:
            yield installed.finding(kind, row.path, detail)


def _compare(row: Row) -> tuple[Kind | None, str]:
    status = os.stat(row.path)
    if not stat.S_ISREG(status.st_mode):
        return Kind.CHANGED_FILE, "it is no file"
    if row.size and int(row.size) != status.st_size:
        return Kind.CHANGED_FILE, f"{status.st_size} bytes, not {row.size}"
    if row.algorithm not in hashlib.algorithms_guaranteed or row.algorithm.startswith("shake"):
        return None, ""
    is_same = row.has(digest_file(row.path, row.algorithm)[1])
    return (None, "") if is_same else (Kind.CHANGED_FILE, "another content")


def same_version(one: str, other: str) -> bool:
    """Whether two spellings are of one version; what may be escaped in a file name counts as equal."""
    return _comparable(one) == _comparable(other)


def _comparable(version: str) -> tuple[str, ...]:
    release, rest = _RELEASE.findall(version.lower())[0]
    numbers = [number.lstrip("0") or "0" for number in release.split(".")]
    while numbers[-1:] == ["0"]:
        numbers.pop()
    words = [_SPELLINGS.get(word, word.lstrip("0") or "0") for word in re.findall(r"[a-z]+|[0-9]+", rest)]
    return (*numbers, *words)


def judge(installed: Sequence[Installed], found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Everything that is wrong with all of them together; `found` is what `check` found of each, by its `info`."""
    findings: list[Finding] = []
    beside: set[str] = set()
    groups = defaultdict(list)
    for each in installed:
        groups[each.tree, each.project].append(each)
    for group in (group for group in groups.values() if len(group) > 1):
        kept = keeper(group, found)
        others = [each.info for each in group if each is not kept]
        beside.update(others)
        state = "is the least damaged" if found[kept.info] else "is complete"
        names = ", ".join(f"`{os.path.basename(info)}`" for info in others)
        detail = f"`{os.path.basename(kept.info)}` {state}, beside {names}"
        findings.append(kept.finding(Kind.DOUBLED_PROJECT, kept.info, detail))
    sound: dict[str, str] = {}
    for each in installed:
        wrong = {finding.path for finding in found[each.info]}
        sound |= {row.path: each.project for row in each.rows or () if row.digest and row.path not in wrong}
    for each in installed:
        for finding in found[each.info] if each.info not in beside else ():
            other = sound.get(finding.path, each.project)
            if finding.kind is Kind.CHANGED_FILE and other != each.project:
                finding = finding._replace(kind=Kind.OVERWRITTEN_FILE, detail=f"it is `{other}`'s")
            findings.append(finding)
    return findings


def keeper(group: Sequence[Installed], found: Mapping[str, Sequence[Finding]]) -> Installed:
    """Which of several distributions of a project is there: one that is complete, or else lacks least; the newest."""

    def rank(each: Installed) -> tuple[bool, float, int]:
        share = 1 - len(found[each.info]) / (len(each.rows) + 2) if each.rows else 0.0
        try:
            changed = os.stat(each.info).st_mtime_ns
        except OSError:
            changed = 0
        return not each.is_legacy, share, changed

    return max(group, key=rank)


def requirement(installed: Installed) -> tuple[str, ...]:
    """The arguments of `pip install` that bring a distribution back as it was, from where it came from.

    Empty if that is not known.
    """
    name, version = installed.name, installed.version
    stem, said = named(installed.info)
    if canonical(stem) != installed.project or (said and not same_version(said, version)):
        # METADATA was exchanged; the name of the directory stands in RECORD.
        name, version = stem, said
    if not name or not version:
        return ()
    try:
        words = _from_origin(name, json.loads(installed.origin)) if installed.origin else None
    except (ValueError, LookupError, TypeError, AttributeError):
        words = None
    return words or (f"{name}=={version}",)


def _from_origin(name: str, origin: Mapping[str, Any]) -> tuple[str, ...]:
    url = str(origin["url"])
    fragments = [f"subdirectory={origin['subdirectory']}"] if origin.get("subdirectory") else []
    if origin.get("dir_info", {}).get("editable"):
        path = unquote(urlsplit(url).path)
        return ("-e", os.path.join(path, origin.get("subdirectory", "")) if fragments else path)
    vcs = origin.get("vcs_info")
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    hashes = origin.get("archive_info", {}).get("hashes") or {}
    fragments += [f"sha256={hashes['sha256']}"] if "sha256" in hashes else []
    return (f"{name} @ {url}" + ("#" + "&".join(fragments) if fragments else ""),)


def with_repairs(findings: Iterable[Finding], installed: Iterable[Installed]) -> Iterator[Finding]:
    """The findings, each with what repairs it."""
    by_info = {each.info: each for each in installed}
    there = {(each.tree, each.project) for each in by_info.values()}
    for each in findings:
        repair, again = _remedy(each, by_info.get(each.info), (each.tree, each.project) in there)
        yield each._replace(repair=repair, again=again)


def _remedy(finding: Finding, installed: Installed | None, is_installed: bool) -> tuple[str, tuple[str, ...]]:
    """What repairs a finding about the distribution `installed`, and the arguments of `pip install` for that."""
    again: tuple[str, ...] = ()
    if finding.kind is Kind.LEFTOVER and finding.version and not is_installed:
        again = (f"{finding.project}=={finding.version}",)
        return f"reinstall `{again[0]}`, then remove it", again
    if finding.kind in (Kind.LEFTOVER, Kind.OWNERLESS_SCRIPT, Kind.ABANDONED):
        return "remove it", again
    if installed is None or finding.kind.is_note:
        return "", again
    if finding.kind is Kind.DOUBLED_PROJECT:
        return "remove the others", again
    if installed.is_hopeless:
        return "remove the directory", again
    if finding.kind in _REINSTALLED and not installed.is_managed_elsewhere:
        again = requirement(installed)
    return f"reinstall `{' '.join(again)}`" if again else "", again


# -- what lies between them --------------------------------------------------------------------------------------------


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


def strays(tree: str, owned: Owned, unfinished: Collection[str], now: float | None = None) -> list[Finding]:
    """What is in a tree and belongs to no distribution; the transactions in `unfinished` will remove their markers."""
    found = list(_below(tree, tree, owned, unfinished, time.time() if now is None else now))
    for entry in _listed(os.path.join(tree, state_directory.NAME)):
        if entry.name.startswith(KEPT):
            detail = "of a transaction that could not be undone: look at it, then remove it"
            found.append(Finding(Kind.PUT_ASIDE, tree, entry.path, detail=detail))
    return found


def _below(tree: str, directory: str, owned: Owned, unfinished: Collection[str], now: float) -> Iterator[Finding]:
    # Installers write there. Any other directory may be on the path too, for example a home.
    is_for_distributions = os.path.basename(tree) in PACKAGES or tree in owned.known
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
        elif entry.name.startswith("~") and (is_directory or directory == tree) and is_for_distributions:
            yield Finding(Kind.LEFTOVER, tree, path, detail=_INTERRUPTED)
        elif tree in owned.known and not (directory == tree and _KNOWN.fullmatch(entry.name)):
            count = (
                sum(not name.endswith(".pyc") for _, _, names in os.walk(path) for name in names) or not is_directory
            )
            if count:
                what = f"{count} files" if is_directory else ""
                yield Finding(Kind.UNOWNED, tree, os.path.join(path, "") if is_directory else path, detail=what)


def _listed(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _bytecode(tree: str, directory: str, owned: Owned) -> Iterator[Finding]:
    """What is in a `__pycache__` and is no bytecode. Bytecode goes with its source, or does no harm."""
    for entry in _listed(directory):
        path = os.path.join(directory, entry.name)
        if tree in owned.known and path not in owned.files and not is_bytecode(path):
            yield Finding(Kind.UNOWNED, tree, path)


def _ours(tree: str, path: str, entry: os.DirEntry[str], unfinished: Collection[str], now: float) -> Iterator[Finding]:
    """What a killed safe-pip left: a marker, or a private directory that no process uses."""
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
        """What the file is, if every line of it is one that installers write; None for any other program."""
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode) or os.stat(path).st_size > _LONGEST_WRAPPER:
                return None
            match = _WRAPPER.fullmatch(Path(path).read_bytes())
        except OSError:
            return None
        if match is None:
            return None
        return cls(os.fsdecode((match["short"] or match["long"]).strip(b'"')), match["module"].decode())


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
    """Whether `path` is one of them, by another name in its directory (`python`, `python3`)."""
    place = os.path.realpath(os.path.dirname(path))
    return any(
        place == os.path.realpath(os.path.dirname(each)) and os.path.realpath(path) == os.path.realpath(each)
        for each in interpreters
    )
