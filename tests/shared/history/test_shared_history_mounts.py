"""Histories of programs on several mounts, of which one is killed or stopped meanwhile, and what the checker says."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest

from flakefs.testing.killing import new_chance
from flakefs.testing.mounted import Mount, NewMount, new_mount
from tests.shared.history.play import LEASE_SECONDS, Play

__all__ = ["new_mount"]

HISTORIES = int(os.environ.get("FLAKEFS_HISTORIES", "0"))
TROUBLES = ("none", "none", "kill", "none", "pause", "none", "fence")
FAMILY_HISTORIES = 25
"""Histories until all mounts are unmounted and checked."""
LOGGED = "declared this one dead|cannot be stored|not everything could be stored|does not answer|has ended"

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(300 + 30 * HISTORIES),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
    pytest.mark.skipif(
        HISTORIES == 0, reason="by hand, tests/run-histories: paused mounts need a machine of their own"
    ),
]


def mounts(new_mount: NewMount, count: int) -> list[Mount]:
    first = new_mount(settings={"namespace": {"lease_seconds": LEASE_SECONDS}})
    family = [first, *(first.another() for _ in range(count - 1))]
    for mount in family:
        mount.expect_log(LOGGED)
        mount.expect_leaks()
    return family


@pytest.mark.parametrize("count", [2, 3])
def test_histories(new_mount: NewMount, count: int) -> None:
    chance: random.Random = new_chance()
    todo = (HISTORIES + (count == 2)) // 2
    tried: Counter[str] = Counter()
    events = 0
    family: list[Mount] = []
    for number in range(todo):
        if number % FAMILY_HISTORIES == 0:
            if family:
                family[0].close(verify=True)
            family = mounts(new_mount, count)
        trouble = TROUBLES[number % len(TROUBLES)] if todo > 3 else ("none", "kill", "pause")[number % 3]
        began = time.monotonic()
        play = Play(family, chance, f"h{number}", programs=2, calls=10)
        play.run(trouble)
        events += len(play.text().splitlines())
        tried[trouble] += 1
        told = f", a rename did nothing:\n{play.text()}" if play.told_of_none else ""
        print(f"{count} mounts, history {number} ({trouble}): {time.monotonic() - began:.1f} s{told}")
    assert sum(tried.values()) == todo
    assert events >= 10 * todo
