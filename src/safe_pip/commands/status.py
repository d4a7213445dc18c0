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
from safe_pip.commands.options import Namespace, tell
from safe_pip.errors import UnusableEnvironment
from safe_pip.launch import adoption
from safe_pip.locking import order, state_directory
from safe_pip.locking.holders import Holder, View


def main(options: Namespace, context: Context) -> int:
    place = Place.find(options.env, context)
    problems = list[str]()
    for tree in place.trees:
        try:
            state_directory.exists(tree)
        except UnusableEnvironment as error:
            problems.append(error.message)
    transactions = [_transaction(each) for each in activity.transactions(place.trees)]
    view = View.take()
    found = [lock for tree, scripts in place.scripts().items() for lock in activity.locks(tree, view, [scripts])]
    found += activity.mutexes(view, [lock.path for lock in found])
    locks = {(lock.name, lock.path): lock for lock in reversed(found)}.values()
    adopted = [each for each in map(adoption.find, place.trees) if each is not None]
    document = {
        "format": 1,
        "trees": [str(tree) for tree in place.trees],
        "complete": view.is_complete,
        "locks": [_lock(each) for each in reversed(locks)],
        "transactions": transactions,
        "adopted": [
            {"tree": str(each.tree), "home": str(each.home), "file": str(each.file), "works": each.works}
            for each in adopted
        ],
        "problems": problems,
    }
    told = {str(each.tree): each.told() for each in adopted}
    is_told = tell(json.dumps(document, indent=2) if options.json else "\n".join(_lines(document, told)))
    return 0 if is_told else 1


def _lock(lock: Lock) -> dict[str, Any]:
    return {
        "lock": lock.name,
        "tree": lock.tree and str(lock.tree),
        "path": str(lock.path),
        "holders": [*map(_party, lock.holders)],
        "waiting": [*map(_party, lock.waiting)],
    }


def _party(party: Holder) -> dict[str, Any]:
    return {
        "pid": party.pid,
        "command": party.command,
        "mode": None if party.is_waiting else "exclusive" if party.exclusive else "shared",
        "since": party.since,
        "stopped": party.is_stopped,
        "seen": party.is_seen,
    }


def _transaction(found: Transaction) -> dict[str, Any]:
    names = {"identifier": "id", "is_alive": "alive"}
    facts = {names.get(name, name): value for name, value in found._asdict().items()}
    return {**facts, "tree": str(found.tree), "state": found.state.value, "next": activity.next_action(found)}


def _lines(document: dict[str, Any], adopted: dict[str, str]) -> Iterator[str]:
    trees, transactions = document["trees"], document["transactions"]
    for tree in trees:
        shown = str(order.shown_name(Path(tree)))
        yield shown if shown == tree else f"{shown} ({tree})"
        said = [line for lock in document["locks"] if lock["tree"] == tree for line in _told(lock)]
        said += [_unfinished(each) for each in transactions if each["tree"] == tree]
        said = said or ["no lock is held, nothing is unfinished"]
        yield from (f"  {line}" for line in (*said, *([adopted[tree]] if tree in adopted else [])))
    yield from (f"{each['tree']}: {_unfinished(each)}" for each in transactions if each["tree"] not in trees)
    yield from (line for lock in document["locks"] if lock["tree"] is None for line in _told(lock))
    yield from document["problems"]
    if not document["complete"]:
        yield "This may not be all: locks that are held in other pid namespaces, or without /proc/locks, are not seen"


def _told(lock: dict[str, Any]) -> Iterator[str]:
    name = f"{lock['lock']} lock" if lock["lock"] in ("environment", "commit") else f"{lock['lock']} `{lock['path']}`"
    for party in lock["holders"]:
        yield f"{name}: {'held' if party['mode'] == 'exclusive' else 'shared'} by {_named(party)}"
    for party in lock["waiting"]:
        mode = {"exclusive": "exclusively ", "shared": "shared ", None: ""}[party["mode"]]
        yield f"{name}: waited for {mode}by {_named(party)}"


def _unfinished(found: dict[str, Any]) -> str:
    alive = {True: "at work", False: "dead", None: "perhaps at work"}[found["alive"]]
    by = "" if found["pid"] is None else f" by {_named(found)}"
    return f"transaction {found['id']}: {found['state']}{by}, {alive}; the next command: {found['next']}"


def _named(party: dict[str, Any]) -> str:
    facts = [f"pid {party['pid']}"]
    facts += ["stopped"] if party.get("stopped") else []
    facts += [] if party.get("seen", True) else ["by the note it left"]
    named = f"`{party['command']}` ({', '.join(facts)})" if party["command"] else ", ".join(facts)
    return named if party["since"] is None else f"{named} for {max(time.time() - party['since'], 0):.0f} s"
