"""Deleting what nobody names: batches, nodes that are away, the end (DL1 to DL3, EN3)."""

from __future__ import annotations

import trio

from tests.engine.conftest import World, fresh, until


async def test_thousands_are_deleted_in_batches(world: World) -> None:
    async with world.open() as engine:
        refs = await world.keep(engine, [fresh(40) for _ in range(2_500)])
        engine.settle((), (), world.commit((), refs))
        assert engine.statistics().deletions_waiting == 2_500
        await until(lambda: engine.statistics().deleted_chunks == 2_500)
        assert world.stored() == {}
        assert engine.statistics().deletions_waiting == 0


async def test_closing_deletes_what_waits(world: World) -> None:
    """EN3."""
    async with world.open() as engine:
        refs = await world.keep(engine, [fresh(40) for _ in range(1_500)])
        engine.settle((), (), world.commit((), refs))
        engine_statistics = engine.statistics
    assert engine_statistics().deleted_chunks == 1_500
    assert world.stored() == {}


async def test_a_node_that_was_away_is_cleaned_later(private_world: World) -> None:
    """DL3."""
    world = private_world
    node = world.node_servers[1]
    async with world.open(deadline_seconds=1.0) as engine:
        refs = await world.keep(engine, [fresh() for _ in range(3)])
        node.kill()
        engine.settle((), (), world.commit((), refs))
        await until(lambda: engine.statistics().suspect_nodes == 1)
        await trio.to_thread.run_sync(node.start)
        await until(lambda: engine.statistics().deleted_chunks == 3)
    assert world.stored() == {}


async def test_closing_does_not_wait_for_a_dead_node(private_world: World) -> None:
    """EN3: what could not be deleted is a leak, and counted."""
    world = private_world
    with trio.fail_after(40):
        async with world.open(deadline_seconds=1.0) as engine:
            refs = await world.keep(engine, [fresh() for _ in range(3)])
            world.node_servers[1].kill()
            engine.settle((), (), world.commit((), refs))
            statistics = engine.statistics
    assert statistics().deleted_chunks == 0
    assert statistics().leaked_chunks == 3
