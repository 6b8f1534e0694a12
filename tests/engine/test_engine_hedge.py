"""Which replica is read: near, fast, alive; and another one as well when that takes long (AS1, AS2, HE*, NE*; P6)."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from flakefs.engine import Engine, asking
from flakefs.engine.hedging import (
    DELAY_FIRST,
    DELAY_MAX,
    DELAY_MIN,
    HALF_LIFE_SECONDS,
    HEDGED_PART,
    HEDGES_AT_ONCE,
    SAMPLES_LEAST,
    UNIT_BYTES,
    Budget,
    Pace,
)
from flakefs.engine.nearness import Nearness
from flakefs.engine.nodes import Node
from flakefs.errors import FlakeError, Unavailable
from flakefs.format.records import NodeRecord
from tests.engine.conftest import World, until
from tests.engine.mirrored import lose, mirrored, node_of, prefer, stored

HANG_SECONDS = 60.0


def node(id: int, dc: str = "", rack: str = "", problem: FlakeError | None = None) -> Node:
    record = NodeRecord(id=id, uri="", database="", dc=dc, rack=rack)
    return cast(Node, _Named(record=record, problem=problem))


class _Named(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]  # a SimpleNamespace has none


def ids(nodes: list[Node]) -> list[int]:
    return [node.record.id for node in nodes]


# -- order --


def test_the_nearest_first() -> None:
    """Same rack, same data center, the rest; who has a problem comes last, however near."""
    away, far, rack, near = (
        node(1, "east", "1", Unavailable("away")),
        node(2, "west", "1"),
        node(3, "east", "2"),
        node(4, "east", "1"),
    )
    order = Nearness("east", "1").order([away, far, rack, near], 0.0)
    assert ids(order) == [4, 3, 2, 1]


def test_where_this_process_runs_may_not_be_known() -> None:
    """Then the fastest is the nearest."""
    named, unnamed = node(1, "east", "1"), node(2)
    nearness = Nearness("", "")
    nearness.pace(named).note(0.001, 0, 100.0)
    nearness.pace(unnamed).note(0.030, 0, 100.0)
    assert ids(nearness.order([unnamed, named], 100.0)) == [1, 2]
    assert {Nearness("east", "").distance(node.record) for node in (named, unnamed)} == {0, 2}


def test_the_fastest_of_equally_near_ones() -> None:
    one, two, three = node(1), node(2), node(3)
    nearness = Nearness("", "")
    for name, seconds in ((one, 0.030), (two, 0.001), (three, 0.010)):
        nearness.pace(name).note(seconds, 0, 100.0)
    assert ids(nearness.order([one, two, three], 100.0)) == [2, 3, 1]


def test_equally_fast_ones_share_the_work() -> None:
    one, two = node(1), node(2)
    nearness = Nearness("", "")
    nearness.pace(one).note(0.0010, 0, 100.0)
    nearness.pace(two).note(0.0012, 0, 100.0)
    first = Counter(nearness.order([one, two], 100.0)[0].record.id for _ in range(400))
    assert min(first[1], first[2]) > 100


def test_near_is_worth_less_than_alive() -> None:
    """NE2."""
    near, far = node(1, "east"), node(2, "west")
    nearness = Nearness("east", "")
    nearness.pace(far).note(0.02, 0, 100.0)
    nearness.pace(near).note(0.05, 0, 100.0)
    assert ids(nearness.order([far, near], 100.0)) == [1, 2]
    for _ in range(30):
        nearness.pace(near).note(0.5, 0, 100.0)
    assert ids(nearness.order([near, far], 100.0)) == [2, 1]


def test_a_slow_node_gets_another_chance() -> None:
    """HE3."""
    slow, fast = node(1), node(2)
    nearness = Nearness("", "")
    nearness.pace(slow).note(0.5, 0, 100.0)
    nearness.pace(fast).note(0.001, 0, 100.0)
    assert ids(nearness.order([slow, fast], 100.0)) == [2, 1]
    later = 100.0 + 12 * HALF_LIFE_SECONDS
    nearness.pace(fast).note(0.001, 0, later)
    assert {ids(nearness.order([slow, fast], later))[0] for _ in range(100)} == {1, 2}


# -- delay and budget --


def test_the_delay_follows_the_slowest_reads() -> None:
    """HE1."""
    pace = Pace()
    assert pace.delay(0) == DELAY_FIRST
    for _ in range(SAMPLES_LEAST):
        pace.note(0.001, 0, 1.0)
    assert pace.delay(0) == DELAY_MIN
    for _ in range(60):
        pace.note(0.1, 0, 1.0)
    assert pace.delay(0) == pytest.approx(0.1)
    assert pace.delay(2 * UNIT_BYTES) == pytest.approx(0.3), "larger reads may take longer"
    assert pace.delay(1000 * UNIT_BYTES) == DELAY_MAX
    pace.forget()
    assert pace.delay(0) == DELAY_FIRST
    assert pace.seconds(1.0) is None


def test_few_reads_are_asked_twice() -> None:
    """HE2."""
    budget = Budget()
    hedges = 0
    for _ in range(1000):
        budget.earn()
        hedges += budget.spend()
    assert hedges <= HEDGES_AT_ONCE + 1000 * HEDGED_PART


# -- against servers --


def asked(engine: Engine) -> Counter[int]:
    """Counts the reads each node gets from now on."""
    counts: Counter[int] = Counter()
    for id, node in engine._map.nodes.items():

        def read_sync(*arguments: Any, id: int = id, real: Any = node.read_sync) -> Any:
            counts[id] += 1
            return real(*arguments)

        node.read_sync = read_sync  # type: ignore[method-assign,assignment]
    return counts


def sleeping(node: Node, awake: threading.Event) -> None:
    """*node* answers no reads before *awake*."""
    real = node.read_sync

    def read_sync(*arguments: Any) -> Any:
        awake.wait(HANG_SECONDS)
        return real(*arguments)

    node.read_sync = read_sync  # type: ignore[method-assign,assignment]


async def test_reads_stay_near(world: World) -> None:
    """The engine is told where it runs."""
    refs, contents = await mirrored(world, 20, dc="east", rack="2")
    async with world.open(chunk_cache_bytes=0, dc="east", rack="1") as engine:
        counts = asked(engine)
        for ref, content in zip(refs, contents, strict=True):
            assert await engine.fetch(ref) == content
        assert counts[2] >= 20
        assert counts[1] <= engine.statistics().hedged_reads


async def test_the_second_answers_while_the_first_sleeps(world: World) -> None:
    """AS2: the first good answer counts, and the other one is not waited for."""
    refs, contents = await mirrored(world, 3)
    awake = threading.Event()
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        sleeping(node_of(engine, 1), awake)
        try:
            with trio.fail_after(HANG_SECONDS / 2):
                assert await engine.fetch_many(refs) == contents
            assert engine.statistics().hedged_reads == 1
            assert engine.statistics().bad_copies == 0
        finally:
            awake.set()


@pytest.mark.logs
async def test_an_answer_that_comes_second_is_better(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """AS1: the fast one has no copy, the slow one has."""
    [ref], [content] = await mirrored(world)
    lose(world, ref, 2)
    awake = threading.Event()
    async with world.open(chunk_cache_bytes=0, writable=False) as engine:
        prefer(engine, 1)
        answered = trio.Event()
        ask_node = engine._asker.ask_node

        async def ask(node: Node, *rest: Any) -> Any:
            answers = await ask_node(node, *rest)
            if node is node_of(engine, 2):
                answered.set()
            return answers

        monkeypatch.setattr(engine._asker, "ask_node", ask)
        sleeping(node_of(engine, 1), awake)
        try:
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    assert await engine.fetch(ref) == content

                nursery.start_soon(read)
                await until(lambda: engine.statistics().hedged_reads == 1)
                await answered.wait()
                awake.set()
        finally:
            awake.set()
        assert engine.statistics().bad_copies == 1


async def test_a_cancelled_read_leaves_nothing_behind(private_world: World) -> None:
    world = private_world
    [ref], [content] = await mirrored(world, servers=(2,))
    async with world.open(chunk_cache_bytes=0, writable=False, deadline_seconds=3.0) as engine:
        assert await engine.fetch(ref) == content
        for number in (1, 2):
            world.node_servers[number].pause()
        with trio.move_on_after(0.1) as scope:
            await engine.fetch(ref)
        assert scope.cancelled_caught
        assert not engine._reader.reading(ref)
        for number in (1, 2):
            world.node_servers[number].resume()
        assert await engine.fetch(ref) == content


async def test_p6_a_node_that_hangs_costs_one_read(private_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """AS2: then it gets no reads until a probe succeeds; then it is in use again by itself."""
    monkeypatch.setattr(asking, "OVERDUE_SECONDS", 0.5)
    world = private_world
    refs, contents = await mirrored(world, 30, servers=(2,))
    async with world.open(chunk_cache_bytes=0, writable=False, deadline_seconds=300.0) as engine:
        await until(lambda: all(node.asked for node in engine._map.nodes.values()))
        prefer(engine, 1)
        assert await engine.fetch_many(refs) == contents
        await until(lambda: node_of(engine, 1).probing is None)
        world.node_servers[1].pause()
        with trio.fail_after(HANG_SECONDS):
            for ref, content in zip(refs, contents, strict=True):
                assert await engine.fetch(ref) == content
            await until(lambda: node_of(engine, 1).problem is not None)
            counts = asked(engine)
            assert await engine.fetch_many(refs) == contents
            assert counts[1] == 0
            engine.prefetch(refs)
            await until(lambda: not any(engine._reader.reading(ref) for ref in refs))
            assert counts[1] == 0
        world.node_servers[1].resume()
        await until(lambda: engine.statistics().suspect_nodes == 0)
        counts.clear()
        assert await engine.fetch_many(refs) == contents
        assert counts[1] == 1


async def test_p6_many_readers_when_a_node_hangs(private_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """HE2, AS2: more than may be asked twice; all get their content, long before the deadline of a call.

    No probe finds the node out here: the reads do.
    """
    monkeypatch.setattr(asking, "OVERDUE_SECONDS", 0.5)
    world = private_world
    refs, contents = await mirrored(world, 60, servers=(2,), size=100_000)
    async with world.open(chunk_cache_bytes=0, writable=False, deadline_seconds=300.0, poll_seconds=600.0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(refs[0]) == contents[0]
        await until(lambda: node_of(engine, 1).asked and node_of(engine, 1).probing is None)
        world.node_servers[1].pause()
        got: dict[int, bytes] = {}

        async def read(number: int) -> None:
            got[number] = await engine.fetch(refs[number])

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(len(refs)):
                    nursery.start_soon(read, number)
            await until(lambda: isinstance(node_of(engine, 1).problem, Unavailable))
        assert [got[number] for number in range(len(refs))] == contents
        world.node_servers[1].resume()


async def test_p6_both_hang_and_one_comes_back(private_world: World) -> None:
    """RD5 with replicas: the read waits, and goes on with whoever answers first."""
    world = private_world
    [ref], [content] = await mirrored(world, servers=(2,))
    async with world.open(
        chunk_cache_bytes=0, writable=False, deadline_seconds=1.0, error_timeout_seconds=60.0
    ) as engine:
        assert await engine.fetch(ref) == content
        for number in (1, 2):
            world.node_servers[number].pause()
        got: list[bytes] = []

        async def read() -> None:
            got.append(await engine.fetch(ref))

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await until(lambda: engine.statistics().suspect_nodes == 2)
                assert got == []
                world.node_servers[2].resume()
        assert got == [content]
        world.node_servers[1].resume()


async def test_one_replica_is_asked_in_the_readers_task(world: World) -> None:
    """AS4: no task, no second question, however slow it is."""
    [ref], [content] = await stored(world)
    async with world.open(chunk_cache_bytes=0) as engine:
        names: list[str | None] = []
        real = engine._asker.ask_node

        async def ask_node(*arguments: Any) -> Any:
            names.append(trio.lowlevel.current_task().name)
            return await real(*arguments)

        engine._asker.ask_node = ask_node  # type: ignore[method-assign,assignment]
        assert await engine.fetch(ref) == content
        assert names == [trio.lowlevel.current_task().name]
        assert engine.statistics().hedged_reads == 0
