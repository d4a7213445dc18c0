"""`safe-pip status`: which commands hold or wait for which lock, and what was left unfinished."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safe_pip.commands import activity
from safe_pip.commands.activity import Lock, Transaction
from safe_pip.commands.environments import Context, Place
from safe_pip.commands.options import Namespace, Parser
from safe_pip.errors import UnusableEnvironment
from safe_pip.launch import adoption
from safe_pip.locking import order, state_directory
from safe_pip.locking.holders import Holder, View


def describe(parser: Parser) -> None:
    """Add the verb's arguments to its parser."""
    parser.description = """\
Show which processes hold or wait for the locks of the environment, which transactions are unfinished, what the next
command does about each, and whether pip is safe-pip there (`safe-pip adopt`). It takes no lock, changes nothing, and
needs no permission to write. The exit status is 0.
"""
    parser.epilog = """\
The JSON document has:
  format        1; a later number means that the meaning of a key changed
  trees         the directories that hold distributions
  complete      false where locks of other processes may be hidden: in a pid namespace other than the machine's
                first one, and where there is no /proc/locks
  locks         a list of: lock ("environment", "commit", "source directory", "shared directory", "uv"), tree,
                path (what is locked), holders, waiting (in turn): each with pid, command, mode ("shared",
                "exclusive"; null if the process has not yet said which kind of lock it wants), since (seconds of
                the epoch, or null), stopped, seen (false if only a note that it left tells of it: it may be dead)
  transactions  a list of: id, tree (where its journal is), state ("staging", "prepared", "committed"), alive
                (null: unknown), pid, command, since, next ("wait", "delete", "roll back", "finish", "refuse: ...")
  adopted       a list of: tree, home (the safe-pip that pip is there), file (what makes it so), works (false:
                that safe-pip is gone, and pip refuses to run)
  problems      what could not be looked at, and why
"""
    parser.add_env(", or a --target directory")
    parser.add_json()


def main(options: Namespace, context: Context) -> int:
    """Run the verb; on return its exit status."""
    place = Place.find(options.env, context)
    problems = tuple(_problems(place.trees))
    transactions = [(each, activity.next_action(each)) for each in activity.transactions(place.trees)]
    view = View.take()
    found = [lock for tree, scripts in place.scripts().items() for lock in activity.locks(tree, view, [scripts])]
    locks = list({(lock.name, lock.path): lock for lock in reversed(found)}.values())[::-1]
    if options.json:
        print(json.dumps(_document(place.trees, view, locks, transactions, problems), indent=2))
    else:
        print("\n".join(_lines(place.trees, view, locks, transactions, problems)))
    return 0


def _problems(trees: tuple[Path, ...]) -> Iterator[str]:
    for tree in trees:
        try:
            state_directory.exists(tree)
        except UnusableEnvironment as error:
            yield error.message


def _lines(
    trees: tuple[Path, ...],
    view: View,
    locks: list[Lock],
    transactions: list[tuple[Transaction, str]],
    problems: tuple[str, ...],
) -> Iterator[str]:
    """The report: a line for each process at a lock, and for each transaction."""
    for tree in trees:
        yield (str(order.shown_name(tree)) if order.shown_name(tree) == tree else f"{order.shown_name(tree)} ({tree})")
        said = [line for lock in locks if lock.tree == tree for line in _told(lock)]
        said += [_unfinished(each, next_) for each, next_ in transactions if each.tree == tree]
        adopted = adoption.find(tree)
        yield from (f"  {line}" for line in said or ["no lock is held, nothing is unfinished"])
        yield from () if adopted is None else [f"  {adopted.told()}"]
    yield from (f"{each.tree}: {_unfinished(each, next_)}" for each, next_ in transactions if each.tree not in trees)
    yield from problems
    if not view.is_complete:
        yield "This may not be all: locks that are held in other pid namespaces, or without /proc/locks, are not seen"


def _told(lock: Lock) -> Iterator[str]:
    name = f"{lock.name} lock" if lock.name in ("environment", "commit") else f"{lock.name} `{lock.path}`"
    for party in lock.holders:
        yield f"{name}: {'held' if party.exclusive else 'shared'} by {_who(party)}"
    for party in lock.waiting:
        mode = "" if party.is_waiting else "exclusively " if party.exclusive else "shared "
        yield f"{name}: waited for {mode}by {_who(party)}"


def _who(party: Holder | Transaction) -> str:
    facts = [f"pid {party.pid}"]
    if isinstance(party, Holder):
        facts += ["stopped"] if party.is_stopped else []
        facts += [] if party.is_seen else ["by the note it left"]
    named = f"`{party.command}` ({', '.join(facts)})" if party.command else ", ".join(facts)
    return named if party.since is None else f"{named} for {max(time.time() - party.since, 0):.0f} s"


def _unfinished(transaction: Transaction, next_: str) -> str:
    alive = {True: "at work", False: "dead", None: "perhaps at work"}[transaction.is_alive]
    by = "" if transaction.pid is None else f" by {_who(transaction)}"
    return f"transaction {transaction.identifier}: {transaction.state.value}{by}, {alive}; the next command: {next_}"


def _document(
    trees: tuple[Path, ...],
    view: View,
    locks: list[Lock],
    transactions: list[tuple[Transaction, str]],
    problems: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "format": 1,
        "trees": [str(tree) for tree in trees],
        "complete": view.is_complete,
        "locks": [
            {
                "lock": lock.name,
                "tree": str(lock.tree),
                "path": str(lock.path),
                "holders": [_party(party) for party in lock.holders],
                "waiting": [_party(party) for party in lock.waiting],
            }
            for lock in locks
        ],
        "transactions": [
            {
                "id": each.identifier,
                "tree": str(each.tree),
                "state": each.state.value,
                "alive": each.is_alive,
                "pid": each.pid,
                "command": each.command,
                "since": each.since,
                "next": next_,
            }
            for each, next_ in transactions
        ],
        "adopted": [_adoption(found) for found in map(adoption.find, trees) if found is not None],
        "problems": list(problems),
    }


def _adoption(found: adoption.Adoption) -> dict[str, Any]:
    return {"tree": str(found.tree), "home": str(found.home), "file": str(found.file), "works": found.works}


def _party(party: Holder) -> dict[str, Any]:
    return {
        "pid": party.pid,
        "command": party.command,
        "mode": None if party.is_waiting else "exclusive" if party.exclusive else "shared",
        "since": party.since,
        "stopped": party.is_stopped,
        "seen": party.is_seen,
    }
