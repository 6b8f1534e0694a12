"""Bad copies are put right from good ones (HL1 to HL4, P7), and volumes that moved are found (AS3, CO2)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from bson.binary import Binary
from pymongo.errors import OperationFailure

from flakefs.engine import healing, hedging, nearness
from flakefs.errors import ChunkCorrupt, ChunkMissing, Refused
from flakefs.format.documents import CHUNKS, volume_collection
from flakefs.values import ChunkRef
from tests.engine.conftest import World, until
from tests.engine.mirrored import copy, document, lose, mirrored, node_of, prefer, set_nodes, spoil, stored


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preferred node is asked first and alone, however slow the machine is: so its bad copy is found."""
    monkeypatch.setattr(hedging, "DELAY_FIRST", 60.0)
    monkeypatch.setattr(hedging, "SAMPLES_LEAST", 10**9)
    monkeypatch.setattr(nearness, "SLOW_SECONDS", 10.0**9)


@pytest.mark.logs
@pytest.mark.parametrize("world", ["none", "zstd"], indirect=True)
@pytest.mark.parametrize("how", [spoil, lose])
async def test_p7_a_bad_copy_is_put_right(
    world: World, how: Callable[[World, ChunkRef, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """HL1: byte for byte, without anybody waiting for it, and one line says so however many there are."""
    caplog.set_level(logging.INFO, "flakefs")
    refs, contents = await mirrored(world, 5)
    before = [document(world, ref, 1) for ref in refs]
    for ref in refs[:3]:
        how(world, ref, 1)
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(refs[0]) == contents[0]
        assert await engine.fetch_many(refs) == contents
        await until(lambda: [document(world, ref, 1) for ref in refs] == before)
        await until(lambda: engine.statistics().healed_chunks >= 3)  # one that both fetches found may count twice
        assert engine.statistics().bad_copies >= 3
        found = engine.statistics().bad_copies
        assert await engine.fetch_many(refs) == contents
        assert engine.statistics().bad_copies == found
    lines = [record.getMessage() for record in caplog.records if "the copy of chunk" in record.getMessage()]
    assert len(lines) == 1
    assert f"volume {refs[0].volume} on node 1 " in lines[0]
    assert refs[0].key.hex() in lines[0]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.logs
async def test_a_replica_that_lost_its_collection(world: World) -> None:
    """It is made again as create_volume_sync makes it."""
    [ref], [content] = await mirrored(world)
    world.volume(ref).drop()
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(ref) == content
        await until(lambda: engine.statistics().healed_chunks == 1)
    assert document(world, ref, 1) == document(world, ref, 2)
    options = world.volume(ref).options()
    assert options["storageEngine"]["wiredTiger"]["configString"] == "block_compressor=none"


@pytest.mark.logs
async def test_the_only_good_copy_may_be_anywhere(world: World) -> None:
    """Three replicas, two of them bad in different ways."""
    [ref], [content] = await mirrored(world, servers=(1, 1))
    spoil(world, ref, 1)
    lose(world, ref, 3)
    async with world.open(chunk_cache_bytes=0) as engine:
        for id in (1, 3):
            prefer(engine, id)
            assert await engine.fetch(ref) == content
        await until(lambda: engine.statistics().healed_chunks == 2)
    assert document(world, ref, 1) == document(world, ref, 2) == document(world, ref, 3)


@pytest.mark.logs
async def test_a_wrong_label_is_not_spread(world: World) -> None:
    """HL1: the content is good, so it is read and copied, under the label that it should have had."""
    [ref], [content] = await mirrored(world)
    good = document(world, ref, 2)
    world.volume(ref, 2).update_one({"_id": good["_id"]}, {"$unset": {"h": 1}})
    spoil(world, ref, 1)
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(ref) == content
        await until(lambda: engine.statistics().healed_chunks == 1)
    assert document(world, ref, 1) == good


async def test_no_good_copy_at_all(world: World) -> None:
    """P7: an error, and nothing is put anywhere."""
    [ref], _ = await mirrored(world)
    spoil(world, ref, 1)
    lose(world, ref, 2)
    async with world.open(chunk_cache_bytes=0) as engine:
        with pytest.raises(ChunkCorrupt, match="on node 1 "):
            await engine.fetch(ref)
        assert engine.statistics().bad_copies == 0
    assert document(world, ref, 2) is None


@pytest.mark.logs
async def test_reading_only_counts(world: World) -> None:
    """HL4."""
    [ref], [content] = await mirrored(world)
    spoil(world, ref, 1)
    async with world.open(writable=False, chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(ref) == content
        assert engine.statistics().bad_copies == 1
        assert engine._healer.waiting() == 0
    assert document(world, ref, 1)["d"] == b"rotten"


async def test_what_nobody_names_is_not_resurrected(world: World) -> None:
    """HL2: the index is asked before a missing copy is inserted."""
    [ref], [content] = await mirrored(world)
    lose(world, ref, 1)
    world.metadata.client[world.database][CHUNKS].delete_one({"_id": Binary(ref.hash)})
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(ref) == content
        assert engine.statistics().bad_copies == 1
        await until(lambda: engine._healer.waiting() == 0)
        assert engine.statistics().healed_chunks == 0
    assert document(world, ref, 1) is None


async def test_what_is_removed_while_it_is_healed(world: World) -> None:
    """HL2: and once more afterwards."""
    [ref], [content] = await mirrored(world)
    lose(world, ref, 1)
    index = world.metadata.client[world.database][CHUNKS]
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        good = engine._healer._good_copy

        async def removed_meanwhile(*arguments: Any) -> Any:
            index.delete_one({"_id": Binary(ref.hash)})
            lose(world, ref, 2)
            lost.append(1)
            return found[0]

        lost: list[int] = []
        volume = engine._map.volume_nowait(ref.volume)
        assert volume is not None
        found = [await good(node_of(engine, 1), ref, volume)]
        engine._healer._good_copy = removed_meanwhile  # type: ignore[method-assign,assignment]
        assert await engine.fetch(ref) == content
        await until(lambda: bool(lost) and engine._healer.waiting() == 0)
        assert engine.statistics().healed_chunks == 0
    assert document(world, ref, 1) is None
    assert document(world, ref, 2) is None


async def test_a_node_that_was_wiped_is_not_filled_bit_by_bit(world: World) -> None:
    """Its mark is gone, so it may be anybody's database: it is refused, as it is when a mount begins."""
    [ref], [content] = await mirrored(world)
    async with world.open(chunk_cache_bytes=0) as engine:
        await until(lambda: all(node.asked for node in engine._map.nodes.values()))
        world.node_home(1).client.drop_database(world.node_databases[1])
        prefer(engine, 1)
        assert await engine.fetch(ref) == content
        await until(lambda: isinstance(node_of(engine, 1).problem, Refused))
        assert await engine.fetch(ref) == content
        assert engine.statistics().healed_chunks == 0
    assert not [name for name in world.node_home(1).list_collection_names() if name.startswith("vol_")]


@pytest.mark.logs
async def test_the_queue_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """HL3: the next read finds the rest."""
    monkeypatch.setattr(healing, "QUEUE_MAX", 2)
    refs, contents = await mirrored(world, 6)
    for ref in refs:
        spoil(world, ref, 1)
    async with world.open(chunk_cache_bytes=0) as engine:
        prefer(engine, 1)
        for healed in (2, 4, 6):
            assert await engine.fetch_many(refs) == contents
            await until(lambda healed=healed: engine.statistics().healed_chunks == healed)  # type: ignore[misc]
    assert all(document(world, ref, 1) == document(world, ref, 2) for ref in refs)


# -- volumes that were moved --


async def test_a_moved_volume_is_found(world: World) -> None:
    """AS3: its old collection is gone, and the map of this engine is stale."""
    refs, contents = await stored(world, 3)
    world.add_node(1)
    async with world.open(chunk_cache_bytes=0, poll_seconds=600.0) as engine:
        assert await engine.fetch(refs[0]) == contents[0]
        copy(world, refs[0], 2)
        set_nodes(world, refs[0], 2)
        world.volume(refs[0]).drop()
        assert await engine.fetch_many(refs) == contents
        assert engine.statistics().bad_copies == 0
    assert volume_collection(world.format.uuid, refs[0].volume) not in world.node_home(1).list_collection_names()


async def test_a_moved_replica_is_not_healed_where_it_was(world: World) -> None:
    """HL2: from nodes 1 and 2 to 3 and 2."""
    [ref], [content] = await mirrored(world)
    world.add_node(1)
    async with world.open(chunk_cache_bytes=0, poll_seconds=600.0) as engine:
        prefer(engine, 1)
        assert await engine.fetch(ref) == content
        copy(world, ref, 3)
        set_nodes(world, ref, 3, 2)
        world.volume(ref).drop()
        assert await engine.fetch(ref) == content
        await until(lambda: engine._healer.waiting() == 0)
        assert engine.statistics().healed_chunks == 0
    assert volume_collection(world.format.uuid, ref.volume) not in world.node_home(1).list_collection_names()


async def test_missing_where_the_map_is_right(world: World) -> None:
    [ref], _ = await mirrored(world)
    lose(world, ref, 1)
    lose(world, ref, 2)
    async with world.open(chunk_cache_bytes=0) as engine:
        with pytest.raises(ChunkMissing):
            await engine.fetch(ref)


@pytest.mark.parametrize("code", [26, 43, 175])
async def test_a_collection_that_is_renamed_under_the_query(world: World, code: int) -> None:
    """CO2: asked again, and no node is suspect for it."""
    [ref], [content] = await stored(world)
    async with world.open(chunk_cache_bytes=0, poll_seconds=600.0) as engine:
        await until(lambda: node_of(engine, 1).asked)
        node = node_of(engine, 1)
        real = node.read_sync
        failures = [OperationFailure("collection renamed", code) for _ in range(2)]

        def read_sync(*arguments: Any) -> Any:
            if failures:
                raise failures.pop()
            return real(*arguments)

        node.read_sync = read_sync  # type: ignore[method-assign,assignment]
        assert await engine.fetch(ref) == content
        assert failures == []
        assert engine.statistics().suspect_nodes == 0


async def test_reads_go_on_while_a_volume_is_moved_to_and_fro(world: World) -> None:
    """AS3, CO2 against a real server: collections are dropped under the queries."""
    refs, contents = await stored(world, 40, 20_000)
    world.add_node(1)
    fetched = 0
    async with world.open(chunk_cache_bytes=0) as engine:
        here = 1
        for _ in range(8):
            there = 3 - here
            name = volume_collection(world.format.uuid, refs[0].volume)
            world.node_home(there)[name].insert_many(list(world.node_home(here)[name].find({})))
            set_nodes(world, refs[0], there)
            assert await engine.fetch_many(refs[:20]) == contents[:20]
            world.node_home(here)[name].drop()
            assert await engine.fetch_many(refs[20:]) == contents[20:]
            fetched += 40
            here = there
        assert engine.statistics().fetched_chunks == fetched
        assert engine.statistics().bad_copies == 0
