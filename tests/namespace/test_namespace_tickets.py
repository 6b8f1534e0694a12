"""How long a group waits for those who will be back (TK1)."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from flakefs.namespace.tickets import GATHER_SECONDS, Ticket, Tickets


async def test_a_lone_worker_is_never_held_back(autojump_clock: MockClock) -> None:
    tickets = Tickets()
    for cut in range(1, 4):
        with tickets.queued(Ticket(cut)):
            before = trio.current_time()
            await tickets.gather(cut - 1, 60.0)
            assert trio.current_time() == before
            tickets.answer(cut - 1)


async def test_a_commit_for_which_nobody_waits_goes_at_once(autojump_clock: MockClock) -> None:
    tickets = Tickets()
    with tickets.queued(Ticket(1)), tickets.queued(Ticket(1)):
        tickets.answer(0)
    before = trio.current_time()
    await tickets.gather(1, 60.0)
    assert trio.current_time() == before


async def test_the_group_goes_as_soon_as_all_are_back(autojump_clock: MockClock) -> None:
    """One was in flight and one waited for the next commit: from then on they go together."""
    tickets = Tickets()
    gathered = trio.Event()

    async def gather() -> None:
        await tickets.gather(1, 60.0)
        gathered.set()

    with tickets.queued(Ticket(2)):
        with tickets.queued(Ticket(1)):
            tickets.answer(0)
        async with trio.open_nursery() as nursery:
            before = trio.current_time()
            nursery.start_soon(gather)
            await wait_all_tasks_blocked()
            assert not gathered.is_set()
            with tickets.queued(Ticket(2)):
                await gathered.wait()
                assert trio.current_time() == before


@pytest.mark.parametrize(("last", "limit"), [(60.0, GATHER_SECONDS), (0.002, 0.001)])
async def test_who_does_not_come_back_is_not_waited_for_long(
    autojump_clock: MockClock, last: float, limit: float
) -> None:
    tickets = Tickets()
    with tickets.queued(Ticket(2)):
        with tickets.queued(Ticket(1)):
            tickets.answer(0)
        before = trio.current_time()
        await tickets.gather(1, last)
        assert trio.current_time() - before == pytest.approx(limit)
        tickets.answer(1)
    with tickets.queued(Ticket(3)):
        before = trio.current_time()
        await tickets.gather(2, last)
        assert trio.current_time() == before


async def test_only_what_was_taken_back_is_lost() -> None:
    tickets = Tickets()
    stored, back = Ticket(1), Ticket(2)
    with tickets.queued(stored), tickets.queued(back):
        tickets.lose(2)
    assert not stored.lost
    assert back.lost
