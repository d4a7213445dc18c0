"""What undoes an operation, in every state that can be there: a model of the disk, small enough to try everything."""

import itertools
import stat
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from safe_pip.journal.directories import Refused
from safe_pip.journal.undo import Action, Observed, decide
from safe_pip.merge.plan import Journal, Kind, Operation, Seen

PRIVATE = "/v/lib/.safe-pip/0123456789abcdef"
OLD, NEW, OTHER = (Seen(stat.S_IFREG | 0o644, size, size) for size in (1, 2, 3))
OLD_DIRECTORY, NEW_DIRECTORY = (Seen(stat.S_IFDIR | mode, 0, 0) for mode in (0o755, 0o700))


class State(NamedTuple):
    """What is at the three places of one operation: "old", "new", "other", a "part" of a copy, or nothing."""

    live: str = ""
    staged: str = ""
    trash: str = ""


class Case(NamedTuple):
    """One operation, and the states that carrying it out leads through."""

    operation: Operation
    states: tuple[State, ...]


def case(kind: Kind, old: Seen | None, new: Seen | None, *states: State, path: str = "x") -> Case:
    staged = "" if kind is Kind.REMOVE else "s"
    trash = "0" if kind in (Kind.FILE, Kind.SWAP, Kind.REMOVE) else ""
    return Case(Operation(kind, 0, path, 0, staged, trash, old, new), states)


FILE = (State("old", "new"), State("old", "new", "part"), State("old", "new", "old"), State("new", "", "old"))
SWAP = (State("old", "new"), State("", "new", "old"), State("new", "", "old"))
CASES = {
    "a new file": case(Kind.NEW, None, NEW, State("", "new"), State("new")),
    "a new directory": case(Kind.NEW, None, NEW_DIRECTORY, State("", "new"), State("new")),
    "a file over a file": case(Kind.FILE, OLD, NEW, *FILE),
    "an exchange": case(Kind.EXCHANGE, OLD_DIRECTORY, NEW_DIRECTORY, State("old", "new"), State("new", "old")),
    "a directory for a directory": case(Kind.SWAP, OLD_DIRECTORY, NEW_DIRECTORY, *SWAP),
    "a directory for a file": case(Kind.SWAP, OLD, NEW_DIRECTORY, *SWAP),
    "a file for a directory": case(Kind.SWAP, OLD_DIRECTORY, NEW, *SWAP),
    "a removed file": case(Kind.REMOVE, OLD, None, State("old"), State("", "", "old")),
    "a removed directory": case(Kind.REMOVE, OLD_DIRECTORY, None, State("old"), State("", "", "old")),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def journal(*operations: Operation) -> Journal:
    return Journal("0123456789abcdef", "/v/lib", ("/v/lib",), ("/bin",), ("/v/lib", "/bin"), (PRIVATE,), operations)


def look(operation: Operation, state: State) -> Observed:
    objects = {"old": operation.old, "new": operation.new, "other": OTHER, "part": OTHER, "": None}

    def is_marked(name: str) -> bool:
        return name == "new" and operation.new == NEW_DIRECTORY

    return Observed(*(objects[name] for name in state), is_marked(state.live), is_marked(state.staged))


def act(state: State, action: Action) -> State:
    """What an action makes of a state; nothing is ever put over anything but by a replacement."""
    if action is Action.LIVE_TO_STAGE:
        assert state.live
        assert not state.staged
        return state._replace(live="", staged=state.live)
    if action is Action.EXCHANGE:
        assert state.live
        assert state.staged
        return state._replace(live=state.staged, staged=state.live)
    assert state.trash
    if action is Action.DROP_TRASH:
        return state._replace(trash="")
    assert action is Action.TRASH_OVER_LIVE or not state.live
    return state._replace(live=state.trash, trash="")


def undoing(operation: Operation, state: State) -> Iterator[State]:
    """All states that undoing leads through, the first one included."""
    yield state
    sight = look(operation, state)
    for step in decide(journal(operation), lambda _: sight):
        state = act(state, step[1])
        yield state


def reachable(case: Case) -> set[State]:
    """All that a crash can leave: of carrying it out, of undoing it, of undoing that again, and so on."""
    found: set[State] = set()
    new = set(case.states)
    while new:
        found |= new
        new = {after for state in new for after in undoing(case.operation, state)} - found
    return found


@every_case
def test_whatever_a_crash_left_is_undone(case):
    before = "" if case.operation.old is None else "old"
    for state in reachable(case):
        assert [*undoing(case.operation, state)][-1].live == before


@every_case
def test_undoing_what_is_undone_changes_nothing(case):
    for state in reachable(case):
        last = [*undoing(case.operation, state)][-1]
        assert [*undoing(case.operation, last)] == [last]


def has_moved(operation: Operation, state: State) -> bool:
    """Whether any operation has happened, according to stage and trash alone; live files may belong to others."""
    if operation.kind is Kind.EXCHANGE:
        return state.staged != "new"
    return bool(state.trash) or (bool(operation.staged) and not state.staged)


@every_case
def test_what_no_crash_can_have_left_is_refused(case):
    """What is refused, what is undone and what has not begun are all that there is; nothing in between."""
    operation = case.operation
    names = ("", "old", "new", "other", "part")
    allowed = reachable(case)
    if operation.kind is Kind.NEW:
        allowed.add(State())  # another program removed it: as it was before
    for state in itertools.product(names, names if operation.staged else ("",), names if operation.trash else ("",)):
        state = State(*state)
        if (operation.new is None and "new" in state) or (operation.old is None and "old" in state):
            continue  # there is no such object
        if state.count("new") > 1:
            continue  # there is one of it
        seen = look(operation, state)
        if not has_moved(operation, state):
            assert decide(journal(operation), lambda _, seen=seen: seen) == ()
        elif any(look(operation, other) == seen for other in allowed) or _is_equivalent(operation, state, allowed):
            decide(journal(operation), lambda _, seen=seen: seen)
        else:
            with pytest.raises(Refused):
                decide(journal(operation), lambda _, seen=seen: seen)


def _is_equivalent(operation: Operation, state: State, allowed: set[State]) -> bool:
    """Whether it differs from what a crash can leave only where it does not matter: in what we alone can reach."""
    replaced = state
    if state.staged and operation.kind is not Kind.EXCHANGE:
        replaced = replaced._replace(staged="new")
    if operation.kind is Kind.FILE and state.trash and state.staged:
        replaced = replaced._replace(trash="part")
    if operation.new == NEW_DIRECTORY and operation.old == OLD_DIRECTORY and state.trash == "new":
        replaced = replaced._replace(trash="old")
    if operation.kind is Kind.EXCHANGE and state.staged in ("other", "part") and state.live == "new":
        replaced = replaced._replace(staged="old")
    return replaced in allowed


@every_case
def test_an_object_that_another_program_wrote_in_is_refused(case):
    sight = look(case.operation, case.states[-1])
    with pytest.raises(Refused, match="`/v/lib/x` was changed by another program"):
        decide(journal(case.operation), lambda _: sight._replace(is_changed=True))


@every_case
def test_what_lies_behind_a_symbolic_link_is_refused_whether_it_has_moved_or_not(case):
    for state in case.states:
        sight = look(case.operation, state)._replace(live=None, is_marked=False, is_reachable=False)
        with pytest.raises(Refused):
            decide(journal(case.operation), lambda _, sight=sight: sight)


@every_case
@pytest.mark.parametrize("live", ["", "other"])
def test_a_journal_of_which_nothing_has_moved_is_withdrawn_whatever_others_did_since(case, live):
    sight = look(case.operation, case.states[0]._replace(live=live))
    assert decide(journal(case.operation), lambda _: sight) == ()
    assert decide(journal(case.operation), lambda _: sight._replace(is_changed=True)) == ()


@every_case
def test_once_anything_has_moved_what_others_did_to_the_rest_is_refused(case):
    begun = CASES["a new file"].operation._replace(path="begun")
    for live in ("", "other") if case.operation.old else ("other",):
        states = {begun: State("new"), case.operation: case.states[0]._replace(live=live)}
        for operations in (states, reversed(states)):
            with pytest.raises(Refused) as caught:
                decide(journal(*operations), lambda each, states=states: look(each, states[each]))
            assert caught.value.reasons == ("`/v/lib/x` was changed by another program since",)


@pytest.mark.parametrize("live", ["", "old", "other"])
def test_an_exchanged_directory_that_another_program_removed_or_replaced_is_refused(live):
    """The old one is in the stage, without a marker: that alone says that the exchange took place."""
    operation = CASES["an exchange"].operation
    with pytest.raises(Refused, match="`/v/lib/x` was changed by another program"):
        decide(journal(operation), lambda _: look(operation, State(live, "old")))


@every_case
def test_in_a_shared_directory_what_was_changed_is_left_and_reported(case):
    operation = case.operation._replace(root=1)
    steps = decide(journal(operation), lambda _: look(operation, case.states[-1])._replace(is_changed=True))
    assert [action for _, action in steps] == [Action.LEAVE]


def test_all_reasons_are_named():
    operations = [CASES["a new file"].operation._replace(path=name, staged=name) for name in "abc"]
    with pytest.raises(Refused) as caught:
        decide(journal(*operations), lambda operation: look(operation, State("other", "")))
    assert [reason.split("`")[1] for reason in caught.value.reasons] == ["/v/lib/c", "/v/lib/b", "/v/lib/a"]


def test_one_refusal_refuses_all():
    good, bad = CASES["a new file"], CASES["an exchange"]
    states = {good.operation: good.states[-1], bad.operation: State("other", "new")}
    with pytest.raises(Refused):
        decide(journal(good.operation, bad.operation), lambda operation: look(operation, states[operation]))


def test_operations_are_undone_last_first():
    operations = [CASES["a new file"].operation._replace(path=name) for name in "abc"]
    steps = decide(journal(*operations), lambda operation: look(operation, State("new")))
    assert [step[0].path for step in steps] == ["c", "b", "a"]


@every_case
def test_bytecode_that_an_importer_wrote_is_never_in_the_way(case):
    """Every state at all: nothing is refused, and nothing is put over anything."""
    operation = case.operation._replace(path="pkg/__pycache__/x.pyc")
    names = ("", "old", "new", "other")
    for state in itertools.product(names, names, names):
        state = State(state[0], state[1] if operation.staged else "", state[2] if operation.trash else "")
        if (operation.new is None and "new" in state) or (operation.old is None and "old" in state):
            continue  # there is no such object
        for step in decide(journal(operation), lambda _, state=state: look(operation, state)):
            state = act(state, step[1])


def test_a_copied_link_is_known_by_its_length():
    """Where hard links to symbolic links are refused they are copied, and have a time of their own."""
    link = stat.S_IFLNK | 0o777
    operation = Operation(Kind.FILE, 0, "x", 0, "s", "0", Seen(link, 5, 1), Seen(link, 6, 2))
    sight = Observed(Seen(link, 6, 9), None, Seen(link, 5, 9))
    assert [action for _, action in decide(journal(operation), lambda _: sight)] == [Action.TRASH_OVER_LIVE]
    with pytest.raises(Refused):
        decide(journal(operation), lambda _: sight._replace(live=Seen(link, 7, 2)))


def test_what_is_in_a_tree_within_a_shared_directory_is_not_shared():
    operation = CASES["a new file"].operation
    nested = journal(operation)._replace(directories=("/v",))
    with pytest.raises(Refused):
        decide(nested, lambda _: look(operation, State("other")))
