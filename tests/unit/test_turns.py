"""Who does what another one does just now waits for him, as long as he gets on, and then has nothing left to do."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from safe_pip import lock, preparing
from safe_pip.cores import Cores
from safe_pip.prepared import Store
from safe_pip.preparing import Preparing

pytestmark = pytest.mark.skipif(not lock.supported, reason="there are no locks here, and so there is no store")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "cache").mkdir(mode=0o700)
    found = Store.below(tmp_path / "cache")
    assert found is not None
    return found


def tool(store: Store) -> Preparing:
    return Preparing(store, None, Cores({}), limit=10**9, progress=lambda wheel, share: None)


def never() -> bool:
    raise AssertionError("nobody was waited for")


def is_free(store: Store) -> bool:
    return not os.path.exists(store.path / "making") or not os.listdir(store.path / "making")


def test_who_is_alone_has_his_turn_at_once_and_leaves_nothing(store: Store) -> None:
    turn = tool(store).take_turn("this", never)
    assert turn is not None
    turn.show_progress()
    assert not is_free(store)
    turn.close()
    turn.show_progress()
    assert is_free(store)


def test_of_something_else_nobody_is_waited_for(store: Store) -> None:
    first, second = tool(store).take_turn("this", never), tool(store).take_turn("that", never)
    assert first is not None
    assert second is not None
    first.close()
    second.close()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when somebody has found that he has to wait; he waits as long as it takes."""
    event, wait_lock = threading.Event(), lock.wait_lock

    def note(descriptor: lock.Descriptor, *, exclusive: bool, seconds: float) -> bool:
        if seconds:
            event.set()
        return wait_lock(descriptor, exclusive=exclusive, seconds=seconds)

    monkeypatch.setattr(lock, "wait_lock", note)
    monkeypatch.setattr(preparing, "_PATIENCE", 1000.0)
    return event


def test_who_waited_and_finds_it_done_has_no_turn(store: Store, begun: threading.Event) -> None:
    first = tool(store).take_turn("this", never)
    assert first is not None
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(tool(store).take_turn("this", lambda: True)))
    waiting.start()
    begun.wait()
    first.close()
    waiting.join()
    assert found == [None]
    assert is_free(store)


def test_who_finds_it_not_done_has_the_next_turn(store: Store, begun: threading.Event) -> None:
    first = tool(store).take_turn("this", never)
    assert first is not None
    found: list[preparing.Turn | None] = []
    waiting = threading.Thread(target=lambda: found.append(tool(store).take_turn("this", lambda: False)))
    waiting.start()
    begun.wait()
    first.close()
    waiting.join()
    (turn,) = found
    assert turn is not None
    assert not is_free(store)
    turn.close()
    assert is_free(store)


def test_who_does_nothing_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_PATIENCE", 0.0)
    first = tool(store).take_turn("this", never)
    assert first is not None
    turn = tool(store).take_turn("this", lambda: False)
    assert turn is not None
    turn.show_progress()
    turn.close()
    assert not is_free(store)
    first.close()


def test_where_there_can_be_no_turns_everybody_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, key: str) -> Path:
        raise PermissionError(13, "Permission denied", key)

    monkeypatch.setattr(Store, "mutex", refuse)
    tools = tool(store)
    turn = tools.take_turn("this", never)
    assert turn is not None
    turn.close()
    assert isinstance(tools.refused, PermissionError)
