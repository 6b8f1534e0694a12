"""Nodes that are away for a while: reads wait, read-ahead and closing do not (RD4, RD5, DL3, EN3; P6)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from flakefs.engine import deleter
from flakefs.errors import ChunkMissing, Unavailable
from flakefs.format.documents import VOLUMES
from flakefs.values import ChunkRef
from tests.engine.conftest import World, fresh, until

HANG_SECONDS = 60.0


async def stored(world: World, count: int = 3) -> tuple[list[ChunkRef], list[bytes]]:
    contents = [fresh() for _ in range(count)]
    async with world.open() as engine:
        return await world.keep(engine, contents), contents


@pytest.mark.parametrize("how", ["hangs", "refuses"])
async def test_p6_reads_wait_and_go_on(private_world: World, how: str) -> None:
    """RD5: for longer than the deadline of a call."""
    world = private_world
    refs, contents = await stored(world)
    node = world.node_servers[1]
    async with world.open(deadline_seconds=0.5, error_timeout_seconds=60.0) as engine:
        await engine.fetch(refs[2])
        (node.pause if how == "hangs" else node.kill)()
        got: list[list[bytes]] = []

        async def read_one() -> None:
            got.append([await engine.fetch(refs[0])])

        async def read_many() -> None:
            got.append(await engine.fetch_many(refs[:2]))

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_one)
                nursery.start_soon(read_many)
                await until(lambda: engine.statistics().suspect_nodes == 1)
                await trio.lowlevel.checkpoint()
                assert got == []
                await trio.to_thread.run_sync(node.resume if how == "hangs" else node.start)
        assert sorted(got, key=len) == [contents[:1], contents[:2]]


async def test_p6_then_they_are_told_and_later_ones_at_once(private_world: World) -> None:
    """RD5: a node that is known to be away is not even asked, until a probe succeeds."""
    world = private_world
    refs, contents = await stored(world)
    node = world.node_servers[1]
    async with world.open(deadline_seconds=0.5, error_timeout_seconds=2.0) as engine:
        await engine.fetch(refs[2])
        node.pause()
        begin = time.monotonic()
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(10):

                    async def read() -> None:
                        with pytest.raises(Unavailable):
                            await engine.fetch_many(refs[:2])

                    nursery.start_soon(read)
        assert time.monotonic() - begin > 1.9
        asked = []
        door = next(iter(engine._map.nodes.values())).door
        real = door.run

        async def run(call: Callable[..., Any], **named: Any) -> Any:
            asked.append(call.__name__)
            return await real(call, **named)

        door.run = run  # type: ignore[method-assign]
        for _ in range(5):
            with pytest.raises(Unavailable):
                await engine.fetch(refs[0])
        assert "read_sync" not in asked
        node.resume()
        await until(lambda: engine.statistics().suspect_nodes == 0)
        assert await engine.fetch_many(refs) == contents


async def test_a_volume_that_lies_nowhere_is_not_waited_for(world: World) -> None:
    """No server is silent, so no time can help."""
    [ref, *_], _ = await stored(world)
    home = world.metadata.client[world.database]
    home["nodes"].update_one({"_id": 1}, {"$set": {"uri": "nonsense"}})
    async with world.open(error_timeout_seconds=600.0) as engine:
        with trio.fail_after(HANG_SECONDS), pytest.raises(Unavailable, match="lies on node 1"):
            await engine.fetch(ref)
    assert home[VOLUMES].count_documents({}) >= 1


async def test_other_answers_are_not_waited_for(world: World) -> None:
    [ref, *_], _ = await stored(world)
    world.volume(ref).delete_many({})
    async with world.open(error_timeout_seconds=600.0) as engine:
        with trio.fail_after(HANG_SECONDS), pytest.raises(ChunkMissing):
            await engine.fetch(ref)


async def test_read_ahead_and_closing_do_not_wait(private_world: World) -> None:
    """RD4, EN3: with deadlines and time-outs that would be noticed."""
    world = private_world
    refs, _ = await stored(world)
    node = world.node_servers[1]
    with trio.fail_after(HANG_SECONDS):
        async with world.open(deadline_seconds=300.0, error_timeout_seconds=600.0) as engine:
            await engine.fetch(refs[2])
            await until(lambda: engine.statistics().suspect_nodes == 0)
            node.pause()
            engine.prefetch(refs[:1])  # under way when the engine is closed
            await trio.sleep(0.1)
        async with world.open(deadline_seconds=1.0, error_timeout_seconds=600.0) as engine:
            await until(lambda: engine.statistics().suspect_nodes == 1)
            engine.prefetch(refs)
            await until(lambda: not any(engine._reader.reading(ref) for ref in refs))
    node.resume()


async def test_deletions_wait_for_a_node_that_is_away(
    private_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """DL3: they do not use up their tries, and one line says so."""
    caplog.set_level(logging.INFO, "flakefs")
    monkeypatch.setattr(deleter, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(deleter, "DELAY_SECONDS", 0.02)
    world = private_world
    node = world.node_servers[1]
    async with world.open(deadline_seconds=0.5) as engine:
        engine._deleter._delay_seconds = 0.02
        refs = await world.keep(engine, [fresh() for _ in range(3)])
        node.kill()
        engine.settle((), (), world.commit((), refs))
        await until(lambda: engine.statistics().suspect_nodes == 1)
        for _ in range(3 * deleter.TRIES):
            await trio.sleep(0.03)
        assert engine.statistics().leaked_chunks == 0
        assert engine.statistics().deletions_waiting == 3
        await trio.to_thread.run_sync(node.start)
        await until(lambda: engine.statistics().deleted_chunks == 3)
    assert world.stored() == {}
    lines = [record.getMessage() for record in caplog.records if record.name == "flakefs.engine.deleter"]
    assert len([line for line in lines if "cannot be deleted" in line]) <= 1
    assert not [record for record in caplog.records if record.exc_info]
