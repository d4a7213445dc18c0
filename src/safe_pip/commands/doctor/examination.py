"""What is wrong with an environment: its distributions, what lies between them, unfinished transactions. Only reads.

The rules are those of https://packaging.python.org/en/latest/specifications/ ("Recording installed projects", others).
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from safe_pip.commands.environments import Place
from safe_pip.commands.status import State, Transaction, next_action, transactions
from safe_pip.environment.environment import PACKAGES
from safe_pip.environment.snapshot import Snapshot
from safe_pip.errors import RecoveryNeeded
from safe_pip.errors import State as Outcome
from safe_pip.journal import codec, recovery
from safe_pip.journal.directories import Refused, is_accepted
from safe_pip.journal.recovery import Unfinished
from safe_pip.launch import adoption
from safe_pip.locking import flock, state_directory
from safe_pip.records import RealPaths, Row, canonical, digest_file, is_bytecode, is_own, parse, project_of

KEPT = "kept-"
"""How the name starts of what `--repair` kept of a transaction that could not be undone."""

_ROUNDS = 5
"""How often the environment is looked at without a lock, while other commands go on changing it."""
_INFO = (".dist-info", ".egg-info")
_INSTALLERS = ("", "pip", "safe-pip", "uv", "poetry", "pdm", "installer", "flit")
# Markers and private directories are in use for milliseconds.
_LONGEST_USE = 600.0
_MARKER = re.compile(re.escape(state_directory.NAME) + r"-([0-9a-f]{16})")


class Kind(enum.Enum):
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
    UNMET_REQUIREMENT = "unmet-requirement"
    UNFINISHED_TRANSACTION = "unfinished-transaction"
    ABANDONED = "abandoned"
    NOT_OURS = "managed-elsewhere"
    PUT_ASIDE = "put-aside"
    ADOPTED = "adopted"
    ADOPTED_IN_VAIN = "adopted-in-vain"
    NOT_CHECKED = "requirements-not-checked"

    @property
    def is_note(self) -> bool:
        """Whether it is no fault."""
        return self in (Kind.NOT_OURS, Kind.PUT_ASIDE, Kind.ADOPTED, Kind.NOT_CHECKED)


NOT_UNINSTALLABLE = (Kind.MISSING_METADATA, Kind.WRONG_METADATA, Kind.MISSING_RECORD, Kind.UNREADABLE_RECORD)
"""Damage that keeps pip from uninstalling a distribution, so that it has to be installed over."""


class Finding(NamedTuple):
    """One thing that is not as it should be; `path` is absolute, `info` the metadata directory of what it is about.

    `repair` says what repairs it (empty: nothing can), `again` are the arguments of `pip install` for that, if any.
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

    def order(self) -> tuple[str, ...]:
        """What findings are sorted by."""
        return self.tree, self.project, self.path, self.kind.value, self.detail


class Installed(NamedTuple):
    """One distribution as its metadata directory `info` (absolute) describes it.

    `name` and `version` are METADATA's, or else the directory's name has them; `metadata` is what METADATA says, None
    if it says nothing. `rows`, with absolute paths whose parents are resolved, is None without a RECORD that can be
    read, and `problem` says why. `origin` is the text of direct_url.json.
    """

    tree: str
    info: str
    name: str
    version: str
    metadata: tuple[str, str] | None
    rows: tuple[Row, ...] | None
    problem: str = ""
    installer: str = ""
    origin: str = ""

    @classmethod
    def read(cls, tree: str, info: str, paths: RealPaths) -> "Installed":
        """Read what is at `info`; what cannot be read is left out."""
        (name, version), rows, problem = named(info), None, "it cannot be read"
        text = _text(info, "METADATA") or _text(info, "PKG-INFO") or _text(info, "")  # an egg-info may be a file
        fields = HeaderParser().parsestr(text or "")
        metadata = (str(fields["Name"]), str(fields["Version"])) if fields["Name"] and fields["Version"] else None
        if metadata is not None and (canonical(metadata[0]) == canonical(name) or not version):
            name, version = metadata
        try:
            record = _text(info, "RECORD")
            rows = None if record is None else rows_of(tree, record, paths)
        except (ValueError, OSError) as error:
            problem = str(error)
        installer, origin = (_text(info, "INSTALLER") or "").strip(), _text(info, "direct_url.json") or ""
        return cls(tree, info, name, version, metadata, rows, problem, installer, origin)

    @property
    def project(self) -> str:
        return canonical(self.name)

    def finding(self, kind: Kind, path: str, detail: str = "") -> Finding:
        """What is wrong with it, and what repairs that."""
        repair, again = "", tuple[str, ...]()
        if kind is Kind.DOUBLED_PROJECT:
            repair = "remove the others"
        elif self.is_hopeless and not kind.is_note:
            repair = "remove the directory"
        elif kind in (Kind.MISSING_FILE, Kind.CHANGED_FILE, *NOT_UNINSTALLABLE) and not self.is_managed_elsewhere:
            again = requirement(self)
            repair = f"reinstall `{' '.join(again)}`" if again else ""
        return Finding(kind, self.tree, path, self.project, self.version, detail, self.info, repair, again)

    @property
    def is_legacy(self) -> bool:  # nothing says which files it has
        return not self.info.endswith(".dist-info")

    @property
    def is_managed_elsewhere(self) -> bool:  # by no Python installer: without RECORD no other tool may change it
        return self.installer.lower() not in _INSTALLERS

    @property
    def is_hopeless(self) -> bool:  # nothing tells what the metadata directory is of
        return not self.is_legacy and self.metadata is None and self.rows is None


def _text(info: str, name: str) -> str | None:
    try:
        return Path(info, name).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


class Report(NamedTuple):
    """What was found, notes included. `installed` is None if a transaction has to be rolled back before a look."""

    findings: tuple[Finding, ...] = ()
    installed: tuple[Installed, ...] | None = None
    unfinished: tuple[Transaction, ...] = ()
    snapshot: Snapshot | None = None

    @property
    def is_sound(self) -> bool:
        return all(finding.kind.is_note for finding in self.findings)


class Way(enum.Enum):
    """What can be done about an unfinished transaction."""

    USUAL = "as the next command does"
    KEEPING = "undo what can be undone, put aside what it has of the rest"
    ASIDE = "put it aside"
    NONE = ""  # by this user and this version of safe-pip


def way(found: Unfinished) -> Way:
    """What can be done about an unfinished transaction; changes nothing."""
    try:
        recovery.check(found)
        return Way.USUAL
    except FileNotFoundError:
        return Way.USUAL  # another command was faster
    except RecoveryNeeded as error:
        cause = error.__cause__
    try:
        # Root does not act on the journal of a user who may not change the environment.
        is_accepted_there = is_accepted(os.lstat(found.path), os.stat(found.home))
    except OSError:
        return Way.NONE
    is_refused_by_disk = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if not is_accepted_there or isinstance(cause, codec.Newer) or is_refused_by_disk:
        return Way.NONE
    if isinstance(cause, Refused) and found.state is not Outcome.COMMITTED:
        with suppress(RecoveryNeeded, FileNotFoundError):
            recovery.check(found, keep=True)
            return Way.KEEPING
    return Way.ASIDE


def examine(place: Place) -> Report:
    """Look at everything; on return no lock is held. Raises what taking a lock raises."""
    unfinished = tuple(each for each in transactions(place.trees) if not _is_at_work(each))
    look = Report()
    # Half a change is never read; and a command that takes the lock undoes it, but a look is to change nothing.
    if all(each.state is not State.PREPARED for each in unfinished):
        look = _settled(place, [each.identifier for each in unfinished])
    findings = {*map(_unfinished, unfinished), *look.findings}
    ordered = sorted(findings, key=Finding.order)
    return look._replace(findings=tuple(ordered), unfinished=unfinished)


def _settled(place: Place, unfinished: Collection[str]) -> Report:
    """A look at an environment that did not change meanwhile."""
    trees, read = [*map(str, place.trees)], place.environment.read
    for _ in range(_ROUNDS):
        look = _look(read(lambda: Snapshot.take(trees)), trees, unfinished)
        if read(lambda: Snapshot.take(trees)) == look.snapshot:
            return look
    return read(lambda: _look(Snapshot.take(trees), trees, unfinished))


def _is_at_work(each: Transaction) -> bool:
    is_locked = each.is_alive is None and flock.supported and flock.is_locked(each.unfinished.owner_file)
    return is_locked or bool(each.is_alive)


def _unfinished(transaction: Transaction) -> Finding:
    by = f" by `{transaction.command}`" if transaction.command else ""
    detail = f"{transaction.state.value}{by}, which is dead"
    how = Way.USUAL if transaction.state is State.STAGING else way(transaction.unfinished)
    repair = next_action(transaction._replace(is_alive=False))
    if how is not Way.USUAL:
        repair = f"{how.value}, then reinstall what is damaged" if how.value else ""
    tree, path = str(transaction.tree), str(transaction.unfinished.path)
    return Finding(Kind.UNFINISHED_TRANSACTION, tree, path, detail=detail, repair=repair)


def _look(snapshot: Snapshot, trees: Sequence[str], unfinished: Collection[str]) -> Report:
    paths, there = RealPaths(), list[Installed]()
    for tree in trees:
        names = [each.name for each in _listed(tree) if each.name.endswith(_INFO) and not each.name.startswith("~")]
        there += [Installed.read(tree, os.path.join(tree, name), paths) for name in names]
    owned = {path for each in there for path in (each.info, *(row.path for row in each.rows or ()))}
    oldest = time.time() - _LONGEST_USE
    found = judge(there, {each.info: check(each) for each in there})
    found += [each for tree in trees for each in strays(tree, owned, unfinished, oldest)]
    return Report(tuple(found), tuple(there), (), snapshot)


def named(info: str) -> tuple[str, str]:
    """Name and version, as the name of a metadata directory has them."""
    name, _, version = os.path.splitext(os.path.basename(info))[0].partition("-")
    return name, version.partition("-py")[0]


def rows_of(tree: str, record: str, paths: RealPaths) -> tuple[Row, ...]:
    """The rows of a RECORD that are about files, with absolute paths; raises `ValueError` if it is none."""
    rows = parse(record)
    if not rows:
        raise ValueError("it is empty")
    for row in rows:
        if row.size and not row.size.isdecimal():
            raise ValueError(f"not a row: {','.join(row)}")
    rows = [row for row in rows if not row.path.endswith("/") and not is_own(row.path)]
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
    return [] if installed.is_legacy else [*_metadata(installed), *_files(installed)]


def _metadata(installed: Installed) -> Iterator[Finding]:
    metadata, record = (os.path.join(installed.info, name) for name in ("METADATA", "RECORD"))
    (name, version), (said, of) = named(installed.info), installed.metadata or ("", "")
    if installed.metadata is None:
        yield installed.finding(Kind.MISSING_METADATA, metadata, "there is none that can be read")
    elif canonical(name) != canonical(said) or not same_version(version, of):
        yield installed.finding(Kind.WRONG_METADATA, metadata, f"it is of `{said} {of}`")
    if installed.rows is None and os.path.lexists(record):
        yield installed.finding(Kind.UNREADABLE_RECORD, record, installed.problem)
    elif installed.rows is None and installed.is_managed_elsewhere:
        yield installed.finding(Kind.NOT_OURS, record, f"there is none: `{installed.installer}` looks after it")
    elif installed.rows is None:
        yield installed.finding(Kind.MISSING_RECORD, record, "there is none")


def _files(installed: Installed) -> Iterator[Finding]:
    for row in installed.rows or ():
        if is_bytecode(row.path):
            continue
        try:
            detail = _difference(row)
            if detail:
                yield installed.finding(Kind.CHANGED_FILE, row.path, detail)
        except (FileNotFoundError, NotADirectoryError):
            if row.digest or not row.path.endswith(".pyc"):  # virtualenv lists bytecode that is never made
                yield installed.finding(Kind.MISSING_FILE, row.path)
        except OSError as error:
            yield installed.finding(Kind.UNREADABLE_FILE, row.path, str(error.strerror))


def _difference(row: Row) -> str:
    status = os.stat(row.path)
    if not stat.S_ISREG(status.st_mode):
        return "it is no file"
    if row.size and int(row.size) != status.st_size:
        return f"{status.st_size} bytes, not {row.size}"
    if row.algorithm not in hashlib.algorithms_guaranteed or row.algorithm.startswith("shake"):
        return ""
    return "" if row.has(digest_file(row.path, row.algorithm)[1]) else "another content"


def same_version(one: str, other: str) -> bool:
    """Whether two spellings may be of one version: they have the same numbers. Zeros do not count (`1.0`, `1`)."""
    numbers, others = ([int(each) for each in re.findall("[0-9]+", version) if int(each)] for version in (one, other))
    return numbers == others


def judge(installed: Sequence[Installed], found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Everything that is wrong with all of them together; `found` is what `check` found of each, by its `info`."""

    def soundness(each: Installed) -> tuple[bool, float]:
        return not each.is_legacy, 1 - len(found[each.info]) / (len(each.rows) + 2) if each.rows else 0.0

    findings: list[Finding] = []
    beside, sound = set[str](), dict[str, str]()
    groups = defaultdict(list)
    for each in installed:
        groups[each.tree, each.project].append(each)
        wrong = {finding.path for finding in found[each.info]}
        sound |= {row.path: each.project for row in each.rows or () if row.digest and row.path not in wrong}
    for group in (group for group in groups.values() if len(group) > 1):
        kept = max(group, key=soundness)  # one that is complete, or else lacks least
        others = [each.info for each in group if each is not kept]
        beside.update(others)
        state = "is the least damaged" if found[kept.info] else "is complete"
        one, *names = (f"`{os.path.basename(info)}`" for info in (kept.info, *others))
        detail = f"{one} {state}, beside {', '.join(names)}"
        findings.append(kept.finding(Kind.DOUBLED_PROJECT, kept.info, detail))
    for each in installed:
        for finding in found[each.info] if each.info not in beside else ():
            other = sound.get(finding.path, each.project)
            if finding.kind is Kind.CHANGED_FILE and other != each.project:
                finding = each.finding(Kind.OVERWRITTEN_FILE, finding.path, f"it is `{other}`'s")
            findings.append(finding)
    return findings


def requirement(installed: Installed) -> tuple[str, ...]:
    """The arguments of `pip install` that bring a distribution back as it was, from where it came from, if known."""
    name, version = installed.name, installed.version
    stem, said = named(installed.info)
    if canonical(stem) != installed.project or (said and not same_version(said, version)):
        # METADATA was exchanged; the name of the directory stands in RECORD.
        name, version = stem, said
    if not name or not version:
        return ()
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        origin = json.loads(installed.origin)
        url, below = str(origin["url"]), origin.get("subdirectory", "")
        if origin.get("dir_info", {}).get("editable"):
            return "-e", os.path.join(unquote(urlsplit(url).path), below).rstrip("/")
        if vcs := origin.get("vcs_info"):
            url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
        hashes = origin.get("archive_info", {}).get("hashes") or {}
        facts = {"subdirectory": below, "sha256": hashes.get("sha256")}
        fragments = "&".join(f"{key}={value}" for key, value in facts.items() if value)
        return (f"{name} @ {url}#{fragments}".rstrip("#"),)
    return (f"{name}=={version}",)


def strays(tree: str, owned: Collection[str], unfinished: Collection[str], oldest: float) -> Iterator[Finding]:
    """What interrupted commands have left in a tree, beside the paths that are `owned`, and what `--repair` put aside.

    Transactions in `unfinished` will remove their markers. What is younger than `oldest` may be in use.
    """
    for each in _listed(os.path.join(tree, state_directory.NAME)):
        if each.name.startswith(KEPT):
            detail = "of a transaction that could not be undone: look at it, then remove it"
            yield Finding(Kind.PUT_ASIDE, tree, each.path, detail=detail)
    if adopted := adoption.find(Path(tree)):
        kind = Kind.ADOPTED if adopted.works else Kind.ADOPTED_IN_VAIN
        yield Finding(kind, tree, str(adopted.file), detail=adopted.told())
    entered = {tree}
    for path in owned:
        while (path := os.path.dirname(path)) not in entered and path.startswith(os.path.join(tree, "")):
            entered.add(path)
    # Installers write there. Any other directory may be on the path too, for example a home.
    infos = [path for path in owned if path.endswith(_INFO)]
    is_for_distributions = os.path.basename(tree) in PACKAGES or tree in map(os.path.dirname, infos)
    for entry in (entry for directory in entered for entry in _listed(directory)):
        name, path, is_directory = entry.name, entry.path, entry.is_dir(follow_symlinks=False)
        if name.startswith(f"{state_directory.NAME}-"):
            match = _MARKER.fullmatch(name)  # a marker, or a private directory that no process uses
            with suppress(OSError):
                is_old = entry.stat(follow_symlinks=False).st_mtime < oldest
                if is_old and (is_directory if match is None else match[1] not in unfinished):
                    yield Finding(
                        Kind.ABANDONED, tree, path, detail="of a safe-pip that was killed", repair="remove it"
                    )
        elif not (name.startswith("~") and is_for_distributions) or path in owned or path in entered:
            pass
        elif is_directory or os.path.dirname(path) == tree:
            said = Installed.read(tree, path, RealPaths()).metadata if name.endswith(".dist-info") else None
            project, version, again = canonical(said[0]) if said else "", said[1] if said else "", tuple[str, ...]()
            if project and not any(os.path.dirname(each) == tree and project_of(each) == project for each in infos):
                again = (f"{project}=={version}",)  # it is all that there is of it
            detail = "of a plain pip that was interrupted"
            repair = f"reinstall `{again[0]}`, then remove it" if again else "remove it"
            yield Finding(Kind.LEFTOVER, tree, path, project, version, detail, repair=repair, again=again)


def _listed(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
