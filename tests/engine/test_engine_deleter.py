"""Deleting what nobody names: batches, replicas, nodes that are away, moved volumes, the end (DL1 to DL6, EN3)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import trio

from flakefs.engine import deleter
from flakefs.format.documents import NODES, VOLUMES
from tests.engine.conftest import World, fresh, until
from tests.engine.mirrored import copy, mirrored, node_of, set_nodes, stored


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


# -- replicas --


async def test_all_replicas_at_once(world: World) -> None:
    """The second one gets its question while the first is still busy."""
    refs, _ = await mirrored(world, 5)
    begun = {1: threading.Event(), 2: threading.Event()}
    async with world.open() as engine:
        for id in (1, 2):
            node = node_of(engine, id)

            def delete_sync(
                collection: str, keys: Sequence[bytes], id: int = id, real: object = node.delete_sync
            ) -> None:
                begun[id].set()
                assert begun[3 - id].wait(30), "one after the other"
                real(collection, keys)  # type: ignore[operator]

            node.delete_sync = delete_sync  # type: ignore[method-assign]
        engine.settle((), (), world.commit((), refs))
        await until(lambda: engine.statistics().deleted_chunks == 5)
    assert world.stored(1) == world.stored(2) == {}


async def test_a_node_that_is_away_holds_back_its_own_deletions_only(
    private_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DL3."""
    monkeypatch.setattr(deleter, "RETRY_SECONDS", 0.05)
    world = private_world
    refs, _ = await mirrored(world, 4, servers=(2,))
    away = world.node_servers[2]
    async with world.open(deadline_seconds=1.0) as engine:
        engine._deleter._delay_seconds = 0.05
        away.kill()
        await until(lambda: engine.statistics().suspect_nodes == 1)
        engine.settle((), (), world.commit((), refs))
        await until(lambda: world.stored(1) == {} and engine.statistics().deletions_waiting == 4)
        for _ in range(2 * deleter.TRIES):
            await trio.sleep(0.06)
        assert engine.statistics().leaked_chunks == 0
        await trio.to_thread.run_sync(away.start)
        await until(lambda: engine.statistics().deleted_chunks == 4)
    assert world.stored(2) == {}


async def test_a_replica_that_goes_away_under_a_deletion(private_world: World) -> None:
    """DL3: nothing is known of it before; it is found out, held, and done later."""
    world = private_world
    refs, _ = await mirrored(world, 4, servers=(2,))
    away = world.node_servers[2]
    async with world.open(deadline_seconds=0.5) as engine:
        await until(lambda: all(node.asked for node in engine._map.nodes.values()))
        away.pause()
        engine.settle((), (), world.commit((), refs))
        await until(lambda: world.stored(1) == {} and engine.statistics().deletions_waiting == 4)
        away.resume()
        await until(lambda: engine.statistics().deleted_chunks == 4)
    assert world.stored(2) == {}


async def test_deletions_for_a_node_that_is_taken_out_of_the_volume(private_world: World) -> None:
    """It never comes back: nobody waits for it any more once the volume does not lie there."""
    world = private_world
    refs, _ = await mirrored(world, 2, servers=(2,))
    world.node_servers[2].kill()
    async with world.open(deadline_seconds=0.5) as engine:
        await until(lambda: engine.statistics().suspect_nodes == 1)
        engine.settle((), (), world.commit((), refs))
        await until(lambda: world.stored(1) == {} and engine.statistics().deletions_waiting == 2)
        set_nodes(world, refs[0], 1)
        await until(lambda: engine.statistics().deleted_chunks == 2)
        assert engine.statistics().deletions_waiting == 0


# -- volumes that were moved --


async def test_a_deletion_follows_a_moved_volume(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DL5: the map of this engine is stale when it deletes."""
    monkeypatch.setattr(deleter, "CONFIRM_SECONDS", 0.01)
    refs, _ = await stored(world, 3)
    world.add_node(1)
    async with world.open(poll_seconds=600.0) as engine:
        copy(world, refs[0], 2)
        set_nodes(world, refs[0], 2)
        world.volume(refs[0]).drop()
        engine.settle((), (), world.commit((), refs))
        await until(lambda: world.stored(2) == {})
        await until(lambda: engine.statistics().deleted_chunks == 3)
        assert engine.statistics().leaked_chunks == 0


async def test_a_deletion_follows_a_moved_volume_at_the_end(world: World) -> None:
    """DL5, EN3."""
    refs, _ = await stored(world, 3)
    world.add_node(1)
    async with world.open(poll_seconds=600.0) as engine:
        copy(world, refs[0], 2)
        set_nodes(world, refs[0], 2)
        engine.settle((), (), world.commit((), refs))
    assert world.stored(1) == world.stored(2) == {}
    assert engine.statistics().deleted_chunks == 3


# -- bounds --


async def test_no_more_than_so_many_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DL6: doom() is held to it, too; the rest are leaks for gc."""
    monkeypatch.setattr(deleter, "WAITING_MAX", 10)
    refs, _ = await stored(world, 25)
    async with world.open() as engine:
        engine._deleter._delay_seconds = 3600.0
        engine.settle((), (), world.commit((), refs))
        assert engine.statistics().deletions_waiting == 10
        assert engine.statistics().leaked_chunks == 15
    assert engine.statistics().deleted_chunks == 10
    assert len(world.stored()) == 15


async def test_a_node_without_a_usable_address_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DL3: the other replica is cleaned, and what lies there is counted as leaked."""
    monkeypatch.setattr(deleter, "RETRY_SECONDS", 0.02)
    refs, _ = await mirrored(world, 2)
    home = world.metadata.client[world.database]
    home[NODES].update_one({"_id": 2}, {"$set": {"uri": "nonsense"}})
    async with world.open() as engine:
        engine._deleter._delay_seconds = 0.02
        engine.settle((), (), world.commit((), refs))
        await until(lambda: engine.statistics().leaked_chunks == 2)
        assert engine.statistics().deleted_chunks == 0
    assert world.stored(1) == {}
    volume = home[VOLUMES].find_one({"_id": refs[0].volume})
    assert volume is not None
    assert volume["nodes"] == [1, 2]


async def test_early_retries_are_not_held_up_by_a_grace(private_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes due sooner goes first, whatever was doomed before it."""
    monkeypatch.setattr(deleter, "GRACE_SECONDS", 3600.0)
    world = private_world
    refs, _ = await stored(world, 2)
    async with world.open() as engine:
        engine._deleter._delay_seconds = 0.02
        engine._deleter._shared = True
        engine.settle((), (), world.commit((), refs[:1]))
        engine._deleter._shared = False
        engine.settle((), (), world.commit((), refs[1:]))
        await until(lambda: engine.statistics().deleted_chunks == 1)
        assert set(world.stored()) == {refs[0].key}
