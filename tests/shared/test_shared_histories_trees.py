"""Random histories of names in a tree, on delayed sessions: linearizable, and in the end all show what is stored."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack

import pytest

from flakefs.namespace import entries
from flakefs.testing.jitter import jitter
from flakefs.testing.stack import Fresh
from tests.shared.conftest import shared
from tests.shared.history.trees import Play, explain, listed

FIRST = int(os.environ.get("FLAKEFS_SEED", "0"))
ROUNDS = int(os.environ.get("FLAKEFS_ROUNDS", "4"))
PROGRAMS = 2
CALLS = 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
async def test_trees_are_linearizable(fresh: Fresh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    if chance.random() < 0.3:
        monkeypatch.setattr(entries, "LOOKUP_LOADS", 1)  # folders that are not known whole
    if chance.random() < 0.2:
        monkeypatch.setattr(entries, "LISTING_MAX", 2)  # and such that never are
    with jitter(seed, most_seconds=chance.choice((0.0, 0.004, 0.004, 0.02)), often=0.9):
        async with AsyncExitStack() as exits:
            stacks = [await exits.enter_async_context(fresh.open()) for _ in range(2 + seed % 2)]
            for stack in stacks:
                await shared(stack)
            play = Play(stacks, seed)
            await play.run(PROGRAMS, CALLS, gaps=chance.random() < 0.3)
            end = await play.end()
    async with fresh.open() as stack:
        stored = frozenset(each for each in await listed(stack.fs))
    assert stored == end, f"the sessions show other names than are stored: {sorted(stored ^ end)}\n{play.text()}"
    assert explain(play.start, play.events, end), f"no order explains it\n{play.text()}\n-> {sorted(end)}"
