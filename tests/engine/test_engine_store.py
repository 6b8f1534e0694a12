"""Storing: de-duplication, single flight, pins, batches, figures (EN1, WR1 to WR4, RD2)."""

from __future__ import annotations

import random

import pytest
import trio

from flakefs.engine import Engine
from flakefs.engine.admin import list_volumes, set_node
from flakefs.engine.room import usable
from flakefs.errors import ReadOnly
from flakefs.format.documents import NODE_MARKER
from flakefs.format.hashing import chunk_hash
from flakefs.values import Block
from tests.engine.conftest import World, fresh, ref_of, sealed, until


async def test_what_is_stored_can_be_read(world: World) -> None:
    contents = [fresh(size) for size in (1, 100, 4096, 70_000, 1 << 20)]
    async with world.open() as engine:
        refs = await world.keep(engine, contents)
        assert [ref.hash for ref in refs] == [chunk_hash(content) for content in contents]
        assert [ref.length for ref in refs] == [len(content) for content in contents]
    async with world.open(writable=False) as engine:
        assert [await engine.fetch(ref) for ref in refs] == contents
        assert engine.statistics().fetched_chunks == len(contents)


@pytest.mark.parametrize("world", ["zstd", "lz4"], indirect=True)
async def test_codecs_shrink_what_shrinks(world: World) -> None:
    noise = random.Random(1).randbytes(100_000)
    contents = [b"all the same " * 10_000, noise]
    async with world.open(chunk_cache_bytes=0) as engine:
        blocks = [sealed(content) for content in contents]
        await engine.store(blocks)
        assert blocks[0].stored_bytes < 10_000
        assert blocks[1].stored_bytes == len(noise)
        assert await engine.fetch_many([ref_of(block) for block in blocks]) == contents
        assert sorted(chunk["c"] for chunk in world.stored().values()) == sorted([world.format.codec, "none"])
        engine.settle((), blocks, ())


async def test_equal_content_is_stored_once(world: World) -> None:
    content = fresh()
    async with world.open() as engine:
        together = [sealed(content), sealed(bytearray(content))]
        await engine.store(together)
        later = sealed(content)
        await engine.store([later])
        assert together[0].ref == together[1].ref == later.ref
        assert later.stored_bytes == together[0].stored_bytes == len(content)
        assert len(world.stored()) == 1
        assert engine.statistics().duplicate_chunks == 2
        await engine.harden()
        world.commit([*together, later])
        engine.settle([*together, later], (), ())
    async with world.open() as engine:  # nothing in memory: the index knows
        again = sealed(content)
        await engine.store([again])
        assert again.ref == later.ref
        assert again.stored_bytes == len(content)
        assert len(world.stored()) == 1
        engine.settle((), [again], ())
    assert len(world.stored()) == 1, "dropping a duplicate leaves the indexed chunk"


async def test_many_tasks_with_one_content_write_it_once(world: World) -> None:
    """WR2."""
    content = fresh(100_000)
    blocks = [sealed(content) for _ in range(20)]
    async with world.open() as engine:
        async with trio.open_nursery() as nursery:
            for block in blocks:
                nursery.start_soon(engine.store, [block])
        assert len({block.ref for block in blocks}) == 1
        assert len(world.stored()) == 1
        engine.settle((), blocks, ())


async def test_one_block_in_many_hands(world: World) -> None:
    """WR1: a block has one pin, however many store it."""
    blocks = [sealed(fresh(50_000)) for _ in range(8)]
    async with world.open() as engine:
        async with trio.open_nursery() as nursery:
            for step in range(5):
                nursery.start_soon(engine.store, blocks[step:] + blocks[:step])
        assert all(block.ref for block in blocks)
        assert engine.statistics().pinned_blocks == len(blocks)
        assert len(world.stored()) == len(blocks)
        await engine.store(blocks)
        assert engine.statistics().pinned_blocks == len(blocks)
        engine.settle((), blocks, ())
        assert engine.statistics().pinned_blocks == 0


async def test_many_small_blocks_go_together(world: World) -> None:
    blocks = [sealed(fresh(5_000 + number)) for number in range(600)]
    async with world.open() as engine:
        await engine.store(blocks)
        assert len(world.stored()) == len(blocks)
        await engine.harden()
        world.commit(blocks)
        engine.settle(blocks, (), ())
    async with world.open() as engine:
        refs = [ref_of(block) for block in blocks]
        contents = await engine.fetch_many([*refs, refs[0]])
        assert [chunk_hash(content) for content in contents] == [ref.hash for ref in [*refs, refs[0]]]


async def test_harden_moves_the_data_into_the_cache(world: World) -> None:
    content = bytearray(fresh())
    block = sealed(content)
    async with world.open() as engine:
        await engine.harden()  # nothing to do
        await engine.store([block])
        assert block.data == content
        assert engine.peek(ref_of(block)) is None
        await engine.harden()
        assert block.data is None
        assert engine.peek(block.ref) == content
        assert type(engine.peek(block.ref)) is bytes
        assert engine.statistics().barriers == 1
        await engine.harden()
        assert engine.statistics().barriers == 1, "nothing new: no journaled write"
        engine.settle((), [block], ())


async def test_at_once_is_durable_without_a_barrier_of_the_node(world: World) -> None:
    """BA1: the insert was journaled; duplicates of what only the index knows go with the commit."""
    content = fresh()
    async with world.open() as engine:
        (ref,) = await world.keep(engine, [content])
    async with world.open() as engine:
        known, new = sealed(content), sealed(fresh())
        marker = world.node_home()[NODE_MARKER].find_one({})
        await engine.store([known, new], at_once=True)
        await engine.harden()
        assert known.data is None
        assert new.data is None, "the data is let go as after any harden()"
        assert world.node_home()[NODE_MARKER].find_one({}) == marker, "the node was not asked"
        assert known.ref != ref, "the index was not asked"
        assert len(world.stored()) == 3
        world.commit([new])
        engine.settle([new], [known], ())
    assert len(world.stored()) == 2


async def test_dropped_blocks_leave_no_bytes(world: World) -> None:
    blocks = [sealed(fresh()) for _ in range(3)]
    async with world.open() as engine:
        await engine.store(blocks)
        engine.settle((), blocks, ())
        engine.settle((), [*blocks, sealed(b"never stored")], ())
        await until(lambda: engine.statistics().deleted_chunks == 3)
        assert world.stored() == {}


async def test_a_block_dropped_while_it_is_stored_leaves_no_bytes(world: World) -> None:
    blocks = [sealed(fresh(500_000)) for _ in range(6)]
    async with world.open() as engine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.store, blocks)
            await trio.lowlevel.checkpoint()  # it hashes now
            engine.settle((), blocks[:3], ())
            nursery.start_soon(engine.store, blocks)
            await trio.sleep(0.002)
            engine.settle((), blocks[3:], ())
        await engine.store([blocks[0]])  # by somebody who did not hear of it
        engine.settle((), blocks, ())
    assert world.stored() == {}


async def test_removal_of_what_is_pinned_keeps_the_bytes(world: World) -> None:
    """EN1."""
    content = fresh()
    async with world.open() as engine:
        [ref] = await world.keep(engine, [content])
        block = sealed(content)
        await engine.store([block])
        assert block.ref == ref
        engine.settle((), (), world.commit((), [ref]))
        await trio.lowlevel.checkpoint()
        third = sealed(content)
        await engine.store([third])
        assert third.ref == ref, "still known, though the index does not name it"
        await engine.harden()
        world.commit([block, third])
        engine.settle([block, third], (), ())
    assert list(world.stored()) == [ref.key]
    async with world.open() as engine:
        assert await engine.fetch(ref) == content
        engine.settle((), (), world.commit((), [ref]))
    assert world.stored() == {}


async def test_removed_content_comes_back_under_a_new_key(world: World) -> None:
    """Keys are never used twice, so a late deletion cannot hit the newer upload (DL1)."""
    content = fresh()
    async with world.open() as engine:
        [ref] = await world.keep(engine, [content])
        engine.settle((), (), world.commit((), [ref]))
        [again] = await world.keep(engine, [content])
        assert again.key != ref.key
        await until(lambda: engine.statistics().deleted_chunks == 1)
        assert list(world.stored()) == [again.key]


async def test_a_cancelled_store_is_taken_over(world: World) -> None:
    """WR4."""
    blocks = [sealed(fresh(300_000)) for _ in range(4)]
    async with world.open() as engine:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(engine.store, blocks)
                nursery.start_soon(trio.lowlevel.checkpoint)
                scope.cancel()
                await engine.store(blocks)
        assert all(block.ref for block in blocks)
        for delay in (0, 0.001, 0.005):
            more = [sealed(fresh(300_000)) for _ in range(4)]
            with trio.move_on_after(delay):
                await engine.store(more)
            engine.check_invariants()
            await engine.store(more)
            assert all(block.ref for block in more)
            blocks += more
        await engine.harden()
        engine.settle((), blocks, ())
    assert world.stored() == {}


async def test_a_read_only_engine_changes_nothing(world: World) -> None:
    async with world.open(writable=False) as engine:
        with pytest.raises(ReadOnly):
            await engine.store([sealed(b"x")])
        await engine.space()
        assert list_volumes(world.metadata, world.database) == []


async def test_space_counts_a_disk_once(world: World) -> None:
    world.add_node()
    async with world.open() as engine:
        before = await engine.space()
        blocks = [sealed(fresh(10_000)) for _ in range(10)]
        await engine.store(blocks)
        after = await engine.space()
        assert (after.chunks, after.stored_bytes) == (10, sum(block.stored_bytes for block in blocks))
        assert 0 < before.free_bytes < before.total_bytes
        one_disk = await disk_of(engine)
        assert before.total_bytes == one_disk, "two nodes on one server"
        engine.settle((), blocks, ())
        assert (await engine.space()).chunks == 0


async def test_space_is_what_may_be_written(world: World) -> None:
    """RO1: neither the reserve nor what is beyond a capacity, nor nodes that take nothing."""
    async with world.open() as engine:
        free = (await engine.space()).free_bytes
        reserve = free // 2
    async with world.open(reserve_bytes=reserve) as engine:
        assert (await engine.space()).free_bytes < free * 0.6
    set_node(world.metadata, world.database, 1, capacity=100_000)
    async with world.open() as engine:
        block = sealed(fresh(30_000))
        await engine.store([block])
        space = await engine.space()
        assert (space.total_bytes, space.free_bytes) == (100_000, 100_000 - block.stored_bytes)
        engine.settle((), [block], ())
    set_node(world.metadata, world.database, 1, state="draining")
    async with world.open() as engine:
        assert (await engine.space()).free_bytes == 0


def test_copies_need_different_disks() -> None:
    """RO3."""
    assert usable([10, 20, 30], 1) == 60
    assert usable([10, 20, 30], 2) == 60
    assert usable([10, 20, 100], 2) == 60, "30 on the large one, and 30 on the two others"
    assert usable([10, 20, 100], 3) == 30
    assert usable([5], 2) == 5, "two nodes on one disk"


async def disk_of(engine: Engine) -> int:
    return next(node.disk.total for node in engine._map.nodes.values() if node.disk)


async def test_figures_are_right_whenever_they_are_looked_at(world: World) -> None:
    """VO3: while chunks are in flight, stored, committed and counted by the volume document."""
    async with world.open() as engine:
        kept: list[Block] = []
        for _ in range(15):
            block = sealed(fresh())
            await engine.store([block])
            assert (await engine.space()).chunks - len(kept) in (1, 2), "never forgotten, at most one counted twice"
            await engine.harden()
            world.commit([block])
            engine.settle([block], (), ())
            kept.append(block)
            assert (await engine.space()).chunks - len(kept) in (0, 1)
        await engine._map.look()
        assert (await engine.space()).chunks == len(kept)
        assert [volume.chunks for volume in list_volumes(world.metadata, world.database)] == [len(kept)]
