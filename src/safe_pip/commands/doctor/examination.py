"""A whole environment looked at: listed under the lock, read without it, and looked at again where it changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safe_pip.commands import activity
from safe_pip.commands.activity import State, Transaction
from safe_pip.commands.doctor import checkup, mending, remedy, strays
from safe_pip.commands.doctor import installed as metadata
from safe_pip.commands.doctor.checkup import Finding, Installed, Kind, RealPaths
from safe_pip.commands.doctor.installed import Texts
from safe_pip.commands.doctor.mending import Way
from safe_pip.commands.doctor.strays import Owned
from safe_pip.commands.environments import Place
from safe_pip.environment.snapshot import Fingerprint, Snapshot
from safe_pip.journal.pending import Unfinished
from safe_pip.locking import flock, state_directory

__all__ = ["Finding", "Report", "examine"]

_ROUNDS = 5
"""How often it is looked at with no lock held, while others go on changing it."""


@dataclass(frozen=True)
class Report:
    """What was found, each finding with what would repair it (empty: nothing can).

    `installed` is None if no distribution was looked at: a transaction has to be rolled back first.
    """

    findings: tuple[tuple[Finding, str], ...] = ()
    notes: tuple[tuple[Finding, str], ...] = ()
    installed: tuple[Installed, ...] | None = None
    unfinished: tuple[Transaction, ...] = ()
    snapshot: Snapshot | None = None


def examine(place: Place) -> Report:
    """Look at everything; on return no lock is held. Raises what taking a lock raises."""
    unfinished = tuple(each for each in activity.transactions(place.trees) if not _is_at_work(each))
    findings = [_unfinished(each) for each in unfinished]
    if any(each.state is State.PREPARED for each in unfinished):
        # Nobody reads half a change; and who takes the lock undoes it, but a look is to change nothing.
        return _report(findings, None, unfinished)
    look = _Look(place, frozenset(each.identifier for each in unfinished))
    for _ in range(_ROUNDS):
        snapshot, texts = place.environment.read(look.see)
        installed, found = look.judge(snapshot, texts)
        if place.environment.read(look.snapshot) == snapshot:
            break
    else:
        snapshot, installed, found = place.environment.read(lambda: (look.snapshot(), *look.judge(*look.see())))
    return replace(_report([*findings, *found], installed, unfinished), snapshot=snapshot)


def _is_at_work(transaction: Transaction) -> bool:
    if transaction.is_alive is None:
        owner = state_directory.path_of(transaction.tree) / f"{transaction.identifier}.owner"
        return flock.supported and flock.is_locked(owner)
    return transaction.is_alive


def _outlook(transaction: Transaction) -> str:
    """What `--repair` does about a transaction of the dead."""
    if transaction.state is not State.STAGING:
        way = mending.way(found_of(transaction))
        if way is not Way.USUAL:
            return f"{way.value}, then reinstall what is damaged" if way.value else ""
    return activity.outlook(transaction._replace(is_alive=False))


def found_of(transaction: Transaction) -> Unfinished:
    """The journal of a transaction that has one."""
    suffix = state_directory.JOURNAL if transaction.state is State.PREPARED else state_directory.COMMITTED
    return Unfinished(transaction.tree, transaction.identifier, f"{transaction.identifier}{suffix}")


def _unfinished(transaction: Transaction) -> Finding:
    suffix = {State.STAGING: "", State.PREPARED: ".journal", State.COMMITTED: ".committed"}[transaction.state]
    path = state_directory.path_of(transaction.tree) / f"{transaction.identifier}{suffix}"
    by = f" by `{transaction.command}`" if transaction.command else ""
    detail = f"{transaction.state.value}{by}, which is dead"
    return Finding(Kind.UNFINISHED_TRANSACTION, str(transaction.tree), str(path), detail=detail)


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

    def see(self) -> tuple[Snapshot, list[Texts]]:
        """What is installed now, under the lock; what it means is read from it later."""
        return self.snapshot(), metadata.take(self._place.trees)

    def judge(self, snapshot: Snapshot, texts: list[Texts]) -> tuple[tuple[Installed, ...], list[Finding]]:
        """What is installed, and everything that is wrong, notes included."""
        fingerprints = {each[0]: each for several in snapshot.projects.values() for each in several}
        there, found = list[Installed](), dict[str, list[Finding]]()
        for each in texts:
            fingerprint = fingerprints.get(each.info, (each.info,))
            if fingerprint not in self._checked:
                meaning = each.meaning(self._paths)
                self._checked[fingerprint] = meaning, checkup.check(meaning)
            one, found[each.info] = self._checked[fingerprint]
            there.append(one)
        return tuple(there), [*checkup.judge(there, found), *self._strays(there)]

    def _strays(self, installed: list[Installed]) -> Iterator[Finding]:
        owned = Owned.by(installed)
        scripts: dict[Path, Path] = {}
        for tree, directory in self._place.scripts().items():
            scripts.setdefault(directory, tree)
            yield from map(_of_leftover, strays.of_tree(str(tree), owned, self._unfinished))
            home = self._place.home(tree)
            if home is not None:
                trees = [str(each) for each in self._place.trees]
                for path in strays.beside(owned.files, str(home), trees):
                    yield Finding(Kind.LEFTOVER, str(tree), path, detail=strays.INTERRUPTED)
        for directory, tree in scripts.items():
            yield from strays.scripts(str(tree), str(directory), owned, self._place.interpreters(directory))


def _of_leftover(finding: Finding) -> Finding:
    """With the project whose metadata the leftover is, so that it can be put back."""
    if finding.kind is not Kind.LEFTOVER or not finding.path.endswith(".dist-info"):
        return finding
    metadata_of = metadata.identity(Path(finding.path))
    return finding if metadata_of is None else finding._replace(project=metadata_of[0], version=metadata_of[1])


def _report(
    findings: Iterable[Finding], installed: tuple[Installed, ...] | None, unfinished: tuple[Transaction, ...]
) -> Report:
    by_info = {each.info: each for each in installed or ()}
    there = {(each.tree, each.project) for each in installed or ()}
    outlooks = {_unfinished(each): _outlook(each) for each in unfinished}
    wanted = {each.info: remedy.requirement(each) for each in installed or ()}
    ordered = sorted(set(findings), key=lambda each: (each.tree, each.project, each.path, each.kind.value))
    damaged = {(each.tree, each.project) for each in ordered if each.kind is not Kind.DOUBLED_PROJECT}

    def repair(finding: Finding) -> str:
        if finding.kind is Kind.UNFINISHED_TRANSACTION:
            return outlooks[finding]
        is_elsewhere = (finding.tree, finding.project) in there
        about = by_info.get(finding.info)
        is_damaged = (finding.tree, finding.project) in damaged
        again = wanted.get(finding.info)
        return remedy.described(finding, about, again, is_damaged=is_damaged, is_elsewhere=is_elsewhere)

    told = [(each, "" if each.kind.is_note else repair(each)) for each in ordered]
    return Report(
        tuple(each for each in told if not each[0].kind.is_note),
        tuple(each for each in told if each[0].kind.is_note),
        installed,
        unfinished,
    )
