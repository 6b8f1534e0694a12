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


def test_cl1_our_clock_may_be_put_right_or_wrong_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    door = FakeDoor(0.0)
    made = clock(door)
    monkeypatch.setattr(module, "time", lambda: time.time() - 7200)
    assert abs(made.now() - time.time()) < SLACK_SECONDS
    made.refresh()
    assert door.asked == 1, "the answer is young"
    door.ahead = None
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    made.refresh()
    assert door.asked == 2
    assert abs(made.now() - time.time()) < SLACK_SECONDS, "the last answer counts"
