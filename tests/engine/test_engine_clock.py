"""Keys by the metadata server's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson.objectid import ObjectId

from flakefs.engine import clock as module
from flakefs.engine.clock import SLACK_SECONDS, ServerClock
from flakefs.errors import Unavailable


class FakeDoor:
    """A server whose clock is *ahead*; None: it does not answer."""

    def __init__(self, ahead: float | None) -> None:
        self.ahead = ahead
        self.asked = 0
        self.client = SimpleNamespace(admin=SimpleNamespace(command=self._hello))

    def _hello(self, _: str) -> dict[str, datetime]:
        self.asked += 1
        if self.ahead is None:
            raise Unavailable("silent")
        return {"localTime": datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=self.ahead)}

    def run_sync(self, call: Any, *, deadline_seconds: float) -> Any:
        return call()


def clock(door: Any) -> ServerClock:
    made = ServerClock(door)
    made.refresh()
    return made


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_cl2_a_key_is_of_the_servers_time_and_else_the_same(ahead: float) -> None:
    key = ObjectId()
    found = ObjectId(clock(FakeDoor(ahead)).key(key.binary))
    off = (found.generation_time - key.generation_time).total_seconds()
    assert abs(off - ahead) < SLACK_SECONDS
    assert found.binary[4:] == key.binary[4:]


@pytest.mark.parametrize("ahead", [None, SLACK_SECONDS / 2])
def test_cl2_else_it_is_left_alone(ahead: float | None) -> None:
    key = ObjectId().binary
    assert clock(FakeDoor(ahead)).key(key) == key


@pytest.mark.parametrize("set_by", [-7200.0, 7200.0])
def test_cl1_our_clock_may_be_put_right_or_wrong_meanwhile(monkeypatch: pytest.MonkeyPatch, set_by: float) -> None:
    made = clock(FakeDoor(0.0))
    monkeypatch.setattr(module, "time", lambda: time.time() + set_by)
    assert abs(made.now() - time.time() - max(0.0, set_by)) < SLACK_SECONDS, "perhaps ahead, never behind"
    made.refresh()
    assert abs(made.now() - time.time()) < SLACK_SECONDS


def test_cl3_an_answer_is_asked_for_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    door = FakeDoor(0.0)
    made = clock(door)
    made.refresh()
    assert door.asked == 1, "the answer is young"
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    made.refresh()
    assert door.asked == 2


def test_cl3_and_after_a_pause_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the clock that is set has noticed it."""
    door = FakeDoor(0.0)
    made = clock(door)
    door.ahead = 7200.0
    monkeypatch.setattr(module, "time", lambda: time.time() + 7200)
    for _ in range(2):
        made.refresh()
        assert door.asked == 2, "once"
        assert abs(made.now() - time.time() - 7200) < SLACK_SECONDS


def test_without_any_answer_it_is_asked_each_time() -> None:
    door = FakeDoor(None)
    made = clock(door)
    door.ahead = 7200.0
    made.refresh()
    assert abs(made.now() - time.time() - 7200) < SLACK_SECONDS


def test_a_server_that_is_silent_is_not_asked_by_every_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    door = FakeDoor(7200.0)
    made = clock(door)
    door.ahead = None
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    for _ in range(3):
        made.refresh()
    assert door.asked == 2
    assert abs(made.now() - time.time() - 7200) < SLACK_SECONDS, "the last answer counts"
    monkeypatch.setattr(made, "_silent_until", 0.0)
    door.ahead = 0.0
    made.refresh()
    assert door.asked == 3
    assert abs(made.now() - time.time()) < SLACK_SECONDS
