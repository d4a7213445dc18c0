"""What is wrong with the distributions of an environment: each compared with its own metadata and RECORD.

Only reads. What a distribution is to be like stands in
https://packaging.python.org/en/latest/specifications/recording-installed-packages/ (dist-info) and
https://packaging.python.org/en/latest/specifications/binary-distribution-format/ (names, digests).
"""

import base64
import csv
import enum
import hashlib
import io
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from safe_pip.records import canonical, is_bytecode

_CHUNK = 1 << 20
# https://packaging.python.org/en/latest/specifications/version-specifiers/#normalization
_SPELLINGS = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc", "rev": "post", "r": "post"}
_RELEASE = re.compile(r"^v?([0-9.]*)(.*)$", re.DOTALL)


class Kind(enum.Enum):
    """What may be found; whether it makes the environment unsound."""

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
        """Whether it is told for information only: data that nobody owns is legitimate, and so is another installer."""
        return self in (Kind.UNOWNED, Kind.NOT_OURS, Kind.PUT_ASIDE, Kind.ADOPTED)


class Finding(NamedTuple):
    """One thing that is not as it should be; `path` is absolute, `info` the metadata directory of what it is about."""

    kind: Kind
    tree: str
    path: str
    project: str = ""
    version: str = ""
    detail: str = ""
    info: str = ""


class Row(NamedTuple):
    """A file of a distribution: `path` absolute with its parents resolved; the digest as RECORD has it; size or -1."""

    path: str
    digest: str = ""
    size: int = -1


class Installed(NamedTuple):
    """One distribution as its metadata directory `info` (absolute) describes it.

    `name` and `version` are METADATA's, or else the directory's name has them; `metadata` is what METADATA says, None
    if it says nothing. `rows` is None without a RECORD that can be read, and `problem` says why. `scripts` are the
    names of its entry points, `origin` the text of direct_url.json.
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

    @property
    def is_legacy(self) -> bool:
        """Whether it has no dist-info: nothing says which files it has."""
        return not self.info.endswith(".dist-info")

    @property
    def is_managed_elsewhere(self) -> bool:
        """Whether another tool than a Python installer looks after it; without RECORD nobody else may change it."""
        return self.installer.lower() not in ("", "pip", "safe-pip", "uv", "poetry", "pdm", "installer", "flit")


class RealPaths:
    """Real paths of what RECORDs name: each directory is resolved once."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def real(self, base: str, name: str) -> str:
        """The path `name`, relative to `base`, with its parents resolved and itself not."""
        parent, _, last = os.path.normpath(os.path.join(base, name)).rpartition(os.sep)
        real = self._parents.get(parent)
        if real is None:
            real = self._parents[parent] = os.path.realpath(parent or os.sep)
        return os.path.join(real, last)

    def rows(self, tree: str, record: str) -> tuple[Row, ...]:
        """The rows of a RECORD; raises `ValueError` if that is none."""
        found = []
        try:
            rows = [row for row in csv.reader(io.StringIO(record, newline=""), strict=True) if row]
        except csv.Error as error:
            raise ValueError(str(error)) from error
        for row in rows:
            path, digest, size, *_ = [*row, "", ""]
            if not path or (size and not size.isdecimal()):
                raise ValueError(f"not a row: {','.join(row)}")
            found.append(Row(self._placed(tree, path), digest, int(size) if size else -1))
        if not found:
            raise ValueError("it is empty")
        return tuple(found)

    def _placed(self, tree: str, path: str) -> str:
        """Where a file is: with `--target` pip moves what it installed, and leaves the rows as they were."""
        found = self.real(tree, path)
        moved = path.removeprefix("../../")
        if moved == path or moved.startswith("../") or os.path.lexists(found):
            return found
        beside = self.real(tree, moved)
        return beside if os.path.lexists(beside) else found


def named(info: str) -> tuple[str, str]:
    """Name and version, as the name of a metadata directory has them."""
    name, _, version = os.path.splitext(os.path.basename(info))[0].partition("-")
    return name, version.partition("-py")[0]


def check(installed: Installed) -> list[Finding]:
    """Everything that is wrong with one distribution by itself; reads all of its files."""
    if installed.is_legacy:
        return []
    return [*_metadata(installed), *_files(installed)]


def _metadata(installed: Installed) -> Iterator[Finding]:
    def found(kind: Kind, file: str, detail: str) -> Finding:
        path = os.path.join(installed.info, file)
        return Finding(kind, installed.tree, path, installed.project, installed.version, detail, installed.info)

    if installed.metadata is None:
        yield found(Kind.MISSING_METADATA, "METADATA", "there is none that can be read")
    else:
        name, version = named(installed.info)
        if canonical(name) != canonical(installed.metadata[0]) or not same_version(version, installed.metadata[1]):
            says = " ".join(installed.metadata)
            yield found(Kind.WRONG_METADATA, "METADATA", f"it is of `{says}`")
    if installed.rows is None:
        if os.path.lexists(os.path.join(installed.info, "RECORD")):
            yield found(Kind.UNREADABLE_RECORD, "RECORD", installed.problem)
        elif installed.is_managed_elsewhere:
            yield found(Kind.NOT_OURS, "RECORD", f"there is none: `{installed.installer}` looks after it")
        else:
            yield found(Kind.MISSING_RECORD, "RECORD", "there is none")


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
            yield Finding(kind, installed.tree, row.path, installed.project, installed.version, detail, installed.info)


def _compare(row: Row) -> tuple[Kind | None, str]:
    status = os.stat(row.path)
    if not stat.S_ISREG(status.st_mode):
        return Kind.CHANGED_FILE, "it is no file"
    if row.size not in (-1, status.st_size):
        return Kind.CHANGED_FILE, f"{status.st_size} bytes, not {row.size}"
    algorithm, _, expected = row.digest.partition("=")
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        return None, ""
    found = hashlib.new(algorithm, usedforsecurity=False)
    with open(row.path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    # Without padding in wheels; with it in the RECORDs of old tools.
    if base64.urlsafe_b64encode(found.digest()).rstrip(b"=").decode() == expected.rstrip("="):
        return None, ""
    return Kind.CHANGED_FILE, "another content"


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
    for group in doubled(installed):
        kept = keeper(group, found)
        others = [each.info for each in group if each is not kept]
        beside.update(others)
        state = "is the least damaged" if found[kept.info] else "is complete"
        names = ", ".join(f"`{os.path.basename(info)}`" for info in others)
        detail = f"`{os.path.basename(kept.info)}` {state}, beside {names}"
        findings.append(
            Finding(Kind.DOUBLED_PROJECT, kept.tree, kept.info, kept.project, kept.version, detail, kept.info)
        )
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


def doubled(installed: Iterable[Installed]) -> list[list[Installed]]:
    """The distributions of one project in one tree, where there are several."""
    groups = defaultdict(list)
    for each in installed:
        groups[each.tree, each.project].append(each)
    return [group for group in groups.values() if len(group) > 1]


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
