"""The quick loop and the turn of its readers, without a kernel."""

from __future__ import annotations

import os

import pyfuse3
import pytest
import trio
import trio.testing

from flakefs.fuse.quick import BURST, KEEPER_SECONDS, Turn, quick_loop, watched


async def test_q1_the_quick_loop_lets_others_run() -> None:
    """A descriptor that is always readable does not starve the scheduler."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with quick_loop():
        wait = vars(pyfuse3)["trio"].lowlevel.wait_readable
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(10 * BURST):
                await wait(reading)
            nursery.cancel_scope.cancel()
    os.close(reading)
    os.close(writing)
    assert turns >= 8
    assert vars(pyfuse3)["trio"] is trio, "Q2: pyfuse3 has its own trio back"


async def test_q3_the_turn_is_handed_on_when_a_handler_waits() -> None:
    order: list[str] = []
    answer = trio.Event()

    async def worker(name: str, turn: Turn, *, waits: bool) -> None:
        async with turn:
            order.append(f"{name} reads")
        await watched(request(name, waits=waits))
        order.append(f"{name} has answered")

    async def request(name: str, *, waits: bool) -> None:
        if waits:
            await answer.wait()

    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: worker("first", turn, waits=True))
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["first reads"]
            await worker("second", turn, waits=False)
            async with turn:
                nursery.start_soon(lambda: worker("third", turn, waits=False))
                await trio.testing.wait_all_tasks_blocked()
            assert "third reads" not in order, "a turn that is not needed was handed on"
            turn.hand_on()
            await trio.testing.wait_all_tasks_blocked()
            assert order[-1] == "third has answered"
            answer.set()
    assert order[-1] == "first has answered"


async def yielding() -> None:
    await trio.lowlevel.checkpoint()


async def test_q3_a_waiting_reader_gets_the_turn_of_one_that_waits() -> None:
    order: list[str] = []

    async def reader(turn: Turn) -> None:
        async with turn:
            order.append("reads")

    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            async with turn:
                nursery.start_soon(reader, turn)
                await trio.testing.wait_all_tasks_blocked()
            await watched(yielding())
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["reads"]


async def test_q4_a_forgotten_turn_is_found(autojump_clock: trio.testing.MockClock) -> None:
    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn.keep)
            async with turn:
                read = trio.Event()

                async def reader() -> None:
                    async with turn:
                        read.set()

                nursery.start_soon(reader)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10 * KEEPER_SECONDS):  # nobody hands on, as after a bug
                await read.wait()
            nursery.cancel_scope.cancel()


async def test_q3_at_the_end_every_task_gets_its_turn() -> None:
    ended: list[int] = []

    async def worker(number: int, turn: Turn) -> None:
        async with turn:
            ended.append(number)

    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            async with turn:
                for number in range(5):
                    nursery.start_soon(worker, number, turn)
                await trio.testing.wait_all_tasks_blocked()
            turn.close()
    assert sorted(ended) == [0, 1, 2, 3, 4]


async def test_a_reader_that_gives_up_does_not_keep_the_turn() -> None:
    with quick_loop() as turn:
        async with turn:
            with trio.move_on_after(0.01) as scope:
                async with turn:
                    pytest.fail("two have the turn")
            assert scope.cancelled_caught
        async with turn:
            pass


async def test_watched_is_transparent() -> None:
    async def add(one: int, two: int) -> int:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        return one + two

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("inside")

    async def deaf() -> str:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        try:
            await trio.sleep_forever()
        finally:
            seen.append("cancelled")
        return "never"

    seen: list[str] = []
    assert await watched(add(2, 3)) == 5
    with pytest.raises(KeyError, match="inside"):
        await watched(fail())
    with trio.move_on_after(0.01) as scope:
        await watched(deaf())
    assert scope.cancelled_caught
    assert seen == ["cancelled"]
