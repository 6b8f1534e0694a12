"""Reading: verification, damage, replicas, single flight, cache, read-ahead (RD1 to RD4, CA1, CA2, P7)."""

from __future__ import annotations

import pytest
import trio
from bson.objectid import ObjectId

from flakefs.engine.balance import Random
from flakefs.engine.engine import Engine
from flakefs.errors import ChunkCorrupt, ChunkMissing, Damaged, Unavailable
from flakefs.format.documents import VOLUMES, Document, volume_collection
from flakefs.format.hashing import chunk_hash
from flakefs.values import ChunkRef
from tests.engine.conftest import World, fresh, ref_of, sealed, until


async def test_a_missing_chunk(world: World) -> None:
    async with world.open(chunk_cache_bytes=0) as engine:
        [ref] = await world.keep(engine, [fresh()])
        world.volume(ref).delete_one({"_id": ObjectId(ref.key)})
        with pytest.raises(ChunkMissing, match=rf"chunk {ref.hash.hex()[:12]} .*volume {ref.volume} on node 1 "):
            await engine.fetch(ref)
        with pytest.raises(ChunkMissing):
            await engine.fetch_many([ref])


DAMAGES = [
    {"$set": {"d": b"something else"}},
    {"$set": {"d": b""}},
    {"$set": {"d": "text"}},
    {"$set": {"c": "none"}},
    {"$set": {"c": "zstd"}},
    {"$set": {"c": "lz4"}},
    {"$set": {"c": "snappy"}},
    {"$set": {"c": 3}},
    {"$unset": {"d": ""}},
    {"$unset": {"c": ""}},
]


@pytest.mark.parametrize("world", ["none", "zstd", "lz4"], indirect=True)
async def test_a_damaged_chunk(world: World) -> None:
    """RD1: never wrong bytes, never a crash; the message names chunk, volume and node."""
    contents = [b"squeeze %d " % number * 500 for number in range(len(DAMAGES))]
    async with world.open(chunk_cache_bytes=0) as engine:
        *refs, good = await world.keep(engine, [*contents, fresh()])
        for ref, content, damage in zip(refs, contents, DAMAGES, strict=True):
            world.volume(ref).update_one({"_id": ObjectId(ref.key)}, damage)
            if damage == {"$set": {"c": world.format.codec}}:
                assert await engine.fetch(ref) == content, "nothing was changed"
                continue
            name = rf"chunk {ref.hash.hex()[:12]} .*volume {ref.volume} on node 1 "
            with pytest.raises(ChunkCorrupt, match=name):
                await engine.fetch(ref)
            with pytest.raises(ChunkCorrupt, match=name):
                await engine.fetch_many([good, ref])
        assert chunk_hash(await engine.fetch(good)) == good.hash


@pytest.mark.parametrize("damage", [{"$unset": {"h": ""}}, {"$set": {"h": b"h" * 32}}, {"$set": {"h": 3}}])
async def test_a_damaged_label_harms_nobody_who_knows_the_ref(world: World, damage: Document) -> None:
    """RD1: the content is verified by the name in the ref; fsck names the label."""
    async with world.open(chunk_cache_bytes=0) as engine:
        content = fresh()
        [ref] = await world.keep(engine, [content])
        assert world.volume(ref).update_one({"_id": ObjectId(ref.key)}, damage).modified_count == 1
        assert await engine.fetch(ref) == content


async def test_one_flipped_bit(world: World) -> None:
    """P7."""
    async with world.open(chunk_cache_bytes=0) as engine:
        [ref] = await world.keep(engine, [fresh(5000)])
        data = bytearray(world.stored()[ref.key]["d"])
        data[2500] ^= 1
        world.volume(ref).update_one({"_id": ObjectId(ref.key)}, {"$set": {"d": bytes(data)}})
        with pytest.raises(ChunkCorrupt, match="other bytes than its hash says"):
            await engine.fetch(ref)


async def test_two_chunks_swapped(world: World) -> None:
    async with world.open(chunk_cache_bytes=0) as engine:
        refs = await world.keep(engine, [fresh(1000), fresh(1000)])
        chunks = world.stored()
        for one, other in (refs, refs[::-1]):
            fields = {name: chunks[other.key][name] for name in ("h", "d")}
            world.volume(one).update_one({"_id": ObjectId(one.key)}, {"$set": fields})
        for ref in refs:
            with pytest.raises(ChunkCorrupt):
                await engine.fetch(ref)


async def test_a_ref_of_a_wrong_length(world: World) -> None:
    async with world.open(chunk_cache_bytes=0) as engine:
        [ref] = await world.keep(engine, [fresh()])
        with pytest.raises(ChunkCorrupt):
            await engine.fetch(ref._replace(length=ref.length - 1))


async def test_a_ref_of_no_volume(world: World) -> None:
    async with world.open() as engine:
        ref = ChunkRef(chunk_hash(b"x"), 99, ObjectId().binary, 1)
        with pytest.raises(Damaged, match="no volume 99"):
            await engine.fetch(ref)
        engine.prefetch([ref])
        with pytest.raises(Damaged):
            await engine.fetch(ref)


async def test_many_readers_ask_once(world: World) -> None:
    """RD2."""
    content = fresh(100_000)
    async with world.open() as engine:
        refs = await world.keep(engine, [content, fresh()])
    async with world.open() as engine:
        got: list[bytes] = []

        async def read() -> None:
            got.append(await engine.fetch(refs[0]))
            got.append((await engine.fetch_many(refs))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
        assert got == [content] * 20
        assert engine.statistics().fetched_chunks == 2


async def test_a_cancelled_reader_does_not_spoil_it_for_others(world: World) -> None:
    async with world.open() as engine:
        refs = await world.keep(engine, [fresh(100_000) for _ in range(8)])
    for delay in (0, 0.0005, 0.002):
        async with world.open() as engine:

            async def give_up(engine: Engine = engine, delay: float = delay) -> None:
                with trio.move_on_after(delay):
                    await engine.fetch_many(refs)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up)
                await trio.lowlevel.checkpoint()
                contents = await engine.fetch_many(refs)
                assert [chunk_hash(content) for content in contents] == [ref.hash for ref in refs]


async def test_read_ahead_fills_the_cache(world: World) -> None:
    async with world.open() as engine:
        refs = await world.keep(engine, [fresh(50_000) for _ in range(6)] + [fresh(100) for _ in range(20)])
    async with world.open() as engine:
        engine.prefetch(refs)
        assert engine.peek(refs[0]) is None, "RD4: it does not wait"
        assert chunk_hash(await engine.fetch(refs[0])) == refs[0].hash, "joins what is under way"
        await until(lambda: all(engine.peek(ref) is not None for ref in refs))
        assert engine.statistics().fetched_chunks == len(refs)


async def test_read_ahead_takes_a_quarter_of_the_cache(world: World) -> None:
    async with world.open() as engine:
        refs = await world.keep(engine, [fresh(50_000) for _ in range(10)])
    async with world.open(chunk_cache_bytes=450_000) as engine:
        engine.prefetch(refs)
        await engine.fetch_many(refs[:2])
        assert engine.statistics().fetched_chunks == 2
        assert not any(engine._reader.reading(ref) for ref in refs), "RD4: the others were not begun"


async def test_read_ahead_is_silent_about_damage(world: World) -> None:
    async with world.open() as engine:
        [ref] = await world.keep(engine, [fresh()])
        world.volume(ref).delete_many({})
    async with world.open() as engine:
        nowhere = ref._replace(volume=77)
        engine.prefetch([ref, nowhere])
        await until(lambda: not engine._reader.reading(ref) and not engine._reader.reading(nowhere))
        with pytest.raises(ChunkMissing):
            await engine.fetch(ref)


async def test_the_cache_keeps_its_limit(world: World) -> None:
    """CA1."""
    async with world.open(chunk_cache_bytes=100_000) as engine:
        refs = await world.keep(engine, [fresh(10_000) for _ in range(30)])
        assert engine.statistics().cached_bytes <= 100_000
        await engine.fetch_many(refs)
        assert 50_000 < engine.statistics().cached_bytes <= 100_000


async def test_what_is_being_read_is_deleted_afterwards(world: World) -> None:
    """DL2: who planned a read before the removal gets the bytes."""
    async with world.open(chunk_cache_bytes=0) as engine:
        refs = await world.keep(engine, [fresh(1 << 20) for _ in range(8)])
        removed = world.commit((), refs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.fetch_many, refs)
            await trio.lowlevel.checkpoint()
            engine.settle((), (), removed)
        assert engine.statistics().fetched_chunks == 8
    assert world.stored() == {}


# -- replicas --


async def replicate(world: World, ref: ChunkRef) -> None:
    """Make the volume of *ref* one with copies on nodes 1 and 2."""
    home = world.metadata.client[world.database]
    name = volume_collection(world.format.uuid, ref.volume)
    world.node_home(2)[name].insert_many(list(world.volume(ref).find({})))
    home[VOLUMES].update_one({"_id": ref.volume}, {"$set": {"nodes": [1, 2]}})


@pytest.mark.logs
async def test_the_other_replica_answers(world: World) -> None:
    """RD3."""
    content = fresh()
    async with world.open() as engine:
        [ref, lost] = await world.keep(engine, [content, fresh()])
    world.add_node(1)
    await replicate(world, ref)
    key = {"_id": ObjectId(ref.key)}
    for damage in ({"$set": {"d": b"rotten"}}, None):
        if damage is None:
            world.volume(ref).delete_one(key)
        else:
            world.volume(ref).update_one(key, damage)
        async with world.open() as engine:
            assert await engine.fetch(ref) == content
    world.volume(lost).delete_one({"_id": ObjectId(lost.key)})
    world.volume(lost, 2).update_one({"_id": ObjectId(lost.key)}, {"$set": {"d": b"rotten"}})
    async with world.open() as engine:
        with pytest.raises(ChunkCorrupt, match="on node 2"):
            await engine.fetch(lost)


async def test_a_dead_replica_is_passed_over(private_world: World) -> None:
    """P6, RD3: and when the other one has no good copy, the dead one may have: Unavailable."""
    world = private_world
    async with world.open() as engine:
        refs = await world.keep(engine, [fresh(), fresh()])
        contents = await engine.fetch_many(refs)
    world.add_node(2)
    await replicate(world, refs[0])
    world.node_servers[1].kill()
    async with world.open(deadline_seconds=1.0, writable=False) as engine:
        with trio.fail_after(30):
            assert await engine.fetch_many(refs) == contents
        world.volume(refs[0], 2).delete_many({})
    async with world.open(deadline_seconds=1.0, error_timeout_seconds=2.0, writable=False) as engine:
        with pytest.raises(Unavailable, match="node 1"):
            await engine.fetch(refs[0])


async def test_new_chunks_go_to_all_replicas(world: World) -> None:
    async with world.open() as engine:
        [first] = await world.keep(engine, [fresh()])
    world.add_node(1)
    await replicate(world, first)
    async with world.open(balance="random") as engine:
        engine._writer._placement._balancer = Random(seed=3)
        blocks = [sealed(fresh()) for _ in range(30)]
        for block in blocks:
            await engine.store([block])
        await engine.harden()
        shared = {ref_of(block).key for block in blocks if ref_of(block).volume == first.volume}
        assert shared
        assert shared <= set(world.stored(1))
        assert shared <= set(world.stored(2))
        engine.settle((), blocks, ())
    assert set(world.stored(1)) == set(world.stored(2)) == {first.key}, "deleted from all replicas, too"
