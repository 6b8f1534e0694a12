"""Nodes that restart, die and come back between store and harden (EN2, BA1 to BA3, ND2, WR3, P6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from flakefs.engine import asking
from flakefs.engine.engine import Engine
from flakefs.errors import Unavailable
from flakefs.format.hashing import chunk_hash
from flakefs.values import Block, ChunkRef
from tests.engine.conftest import World, fresh, ref_of, sealed, until


async def in_thread(call: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(call)


async def test_a_node_killed_between_store_and_harden(private_world: World) -> None:
    """What the killed process took is written again under new keys, and is all there."""
    world = private_world
    node = world.node_servers[1]
    contents = [fresh(20_000) for _ in range(20)]
    async with world.open() as engine:
        early = [sealed(content) for content in contents[:10]]
        await engine.store(early)
        await engine.harden()
        blocks = [sealed(content) for content in contents[10:]]
        await engine.store(blocks)
        before = [ref_of(block) for block in blocks]
        node.kill()
        await in_thread(node.start)
        await engine.harden()
        assert all(block.data is None for block in blocks)
        assert {ref_of(block).key for block in blocks}.isdisjoint(ref.key for ref in before)
        assert engine.statistics().rewritten_chunks == 10, "what was durable is left alone"
        await engine.harden()
        assert engine.statistics().rewritten_chunks == 10
        world.commit(early + blocks)
        engine.settle(early + blocks, (), ())
    node.kill()
    node.start()
    async with world.open() as engine:
        assert await engine.fetch_many([ref_of(block) for block in early + blocks]) == contents
    assert set(world.stored()) == {ref_of(block).key for block in early + blocks}, "what the crash left was deleted"


async def test_a_clean_restart_is_noticed_too(private_world: World) -> None:
    world = private_world
    async with world.open() as engine:
        block = sealed(fresh())
        await engine.store([block])
        await in_thread(world.node_servers[1].restart)
        late = sealed(fresh())
        await engine.store([late])  # by a connection to the new process
        await engine.harden()
        assert engine.statistics().rewritten_chunks >= 1
        assert block.data is None
        assert late.data is None
        engine.settle((), [block, late], ())
    assert world.stored() == {}


async def test_storing_goes_on_through_a_restart(private_world: World) -> None:
    """A node of one copy that is back within the deadline costs a wait, not an error."""
    world = private_world
    node = world.node_servers[1]
    blocks: list[Block] = []
    contents: list[bytes] = []

    async def write(engine: Engine) -> None:
        for _ in range(25):
            content = fresh(50_000)
            block = sealed(content)
            await engine.store([block])
            blocks.append(block)
            contents.append(content)

    async def restart() -> None:
        await trio.sleep(0.05)
        node.kill()
        await in_thread(node.start)

    async with world.open() as engine:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(write, engine)
            nursery.start_soon(restart)
        await engine.harden()
        world.commit(blocks)
        engine.settle(blocks, (), ())
    node.kill()
    node.start()
    async with world.open() as engine:
        assert await engine.fetch_many([ref_of(block) for block in blocks]) == contents


async def test_a_node_that_stays_away(private_world: World) -> None:
    """Unavailable within the stated time; everything can be repeated when it is back."""
    world = private_world
    node = world.node_servers[1]
    async with world.open(deadline_seconds=1.0, error_timeout_seconds=2.0) as engine:
        [old] = await world.keep(engine, [b"old"])
        block, unsafe = sealed(fresh()), sealed(fresh())
        await engine.store([unsafe])
        node.kill()
        with trio.fail_after(20):
            with pytest.raises(Unavailable, match=r"node 1 .*check that it runs"):
                await engine.store([block])
            with pytest.raises(Unavailable):
                await engine.harden()
            with pytest.raises(Unavailable):
                await engine.fetch(sealed_ref(old))
            assert await engine.fetch(old) == b"old", "from the cache"
            engine.prefetch([sealed_ref(old)])
        assert block.ref is None
        assert engine._map.nodes[1]._process is None, "ND3: whatever answers next is asked who it is"
        assert unsafe.ref is not None
        assert unsafe.data is not None
        engine.check_invariants()
        await in_thread(node.start)
        with trio.fail_after(30):
            while True:
                try:
                    await engine.store([block])
                    await engine.harden()
                    break
                except Unavailable:
                    await trio.sleep(0.1)
        assert unsafe.data is None
        world.commit([block, unsafe])
        engine.settle([block, unsafe], (), ())
    async with world.open() as engine:
        assert chunk_hash(await engine.fetch(unsafe.ref)) == unsafe.ref.hash
        assert chunk_hash(await engine.fetch(block.ref)) == block.ref.hash


async def test_a_silent_node_lets_one_read_wait(private_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes right after a read that waited in vain is answered at once, until the node is heard of again."""
    world = private_world
    async with world.open(deadline_seconds=1.0, error_timeout_seconds=2.0, chunk_cache_bytes=0) as engine:
        one, two = await world.keep(engine, [fresh(), fresh()])
        node = engine._map.nodes[1]
        asked: list[object] = []
        read = node.read_sync

        def counted(*call: Any) -> list[dict[str, Any]]:
            asked.append(call)
            return read(*call)

        monkeypatch.setattr(asking, "SILENT_SECONDS", 3600.0)
        monkeypatch.setattr(node, "read_sync", counted)
        world.node_servers[1].pause()
        try:
            with pytest.raises(Unavailable, match="node 1"):
                await engine.fetch(one)
            waited = len(asked)
            assert waited
            for ref in (two, one):
                with pytest.raises(Unavailable, match="node 1"):
                    await engine.fetch(ref)
            assert len(asked) == waited
        finally:
            world.node_servers[1].resume()
        with trio.fail_after(30):
            while node.problem is not None:  # the one that runs may have asked while it was silent
                await engine._map.probe(node)
            assert chunk_hash(await engine.fetch(two)) == two.hash
        assert len(asked) > waited


def sealed_ref(ref: ChunkRef) -> ChunkRef:
    """The same place under another name, which no cache knows."""
    return ref._replace(hash=chunk_hash(b"unknown"))


async def test_a_second_node_takes_over(private_world: World) -> None:
    """P6: what the dead node had not made durable, and all that follows, goes to the other one."""
    world = private_world
    world.add_node(2)
    async with world.open(deadline_seconds=2.0) as engine:
        await until(lambda: len(engine._map.volumes()) == 2)
        blocks = [sealed(fresh(50_000)) for _ in range(20)]
        for block in blocks:
            await engine.store([block])
        assert len({ref_of(block).volume for block in blocks}) == 2
        world.node_servers[2].kill()
        more = [sealed(fresh(50_000)) for _ in range(5)]
        with trio.fail_after(60):
            await engine.store(more)
            await engine.harden()
        blocks += more
        assert len({ref_of(block).volume for block in blocks}) == 1
        assert engine.statistics().suspect_nodes == 1
        world.commit(blocks)
        engine.settle(blocks, (), ())
        refs = [ref_of(block) for block in blocks]
        await in_thread(world.node_servers[2].start)
        await until(lambda: not engine.statistics().suspect_nodes)
        late = [sealed(fresh(50_000)) for _ in range(4)]
        await engine.store(late)
        assert len({ref_of(block).volume for block in [*blocks, *late]}) == 2, "it is used again"
        engine.settle((), late, ())
    async with world.open() as engine:
        assert [chunk_hash(content) for content in await engine.fetch_many(refs)] == [ref.hash for ref in refs]


async def test_harden_calls_share_barriers(world: World) -> None:
    """BA3."""
    async with world.open() as engine:
        blocks = [sealed(fresh()) for _ in range(30)]

        async def one(block: Block) -> None:
            await engine.store([block])
            await engine.harden()
            assert block.data is None, "BA1, BA3: stored before the call"

        async with trio.open_nursery() as nursery:
            for block in blocks:
                nursery.start_soon(one, block)
        assert 1 <= engine.statistics().barriers < 30
        engine.settle((), blocks, ())


async def test_a_cancelled_harden_is_taken_over(world: World) -> None:
    async with world.open() as engine:
        for delay in (0, 0.0005, 0.002):
            block = sealed(fresh())
            await engine.store([block])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelled_harden, engine, delay)
                await trio.lowlevel.checkpoint()
                await engine.harden()
            assert block.data is None
            engine.settle((), [block], ())


async def cancelled_harden(engine: Engine, delay: float) -> None:
    with trio.move_on_after(delay):
        await engine.harden()


async def test_random_kills_lose_nothing_that_was_hardened(private_world: World) -> None:
    world = private_world
    node = world.node_servers[1]
    rng = random.Random(7)
    safe: list[tuple[Block, bytes]] = []
    for _ in range(3):
        async with world.open() as engine:
            batch: list[tuple[Block, bytes]] = []
            stop = trio.Event()

            async def work(
                engine: Engine = engine, batch: list[tuple[Block, bytes]] = batch, stop: trio.Event = stop
            ) -> None:
                while not stop.is_set():
                    content = fresh(rng.choice([500, 5_000, 200_000]))
                    block = sealed(content)
                    await engine.store([block])
                    await engine.harden()
                    assert block.data is None
                    batch.append((block, content))

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(work)
                for _ in range(2):
                    await trio.sleep(rng.random() * 0.2)
                    node.kill()
                    await in_thread(node.start)
                stop.set()
            world.commit([block for block, _ in batch])
            engine.settle([block for block, _ in batch], (), ())
            safe += batch
    node.kill()
    node.start()
    assert len(safe) > 10
    async with world.open() as engine:
        assert await engine.fetch_many([ref_of(block) for block, _ in safe]) == [content for _, content in safe]
