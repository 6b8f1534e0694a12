"""Writes to several replicas while nodes die, hang and come back (WR5, IN1 to IN3, BA4, P1, P6)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from bson.objectid import ObjectId

from flakefs.engine import Engine
from flakefs.engine.admin import set_replication
from flakefs.errors import Unavailable
from flakefs.format.hashing import chunk_hash
from flakefs.values import Block, ChunkRef
from tests.engine.conftest import World, fresh, ref_of, sealed, until

NODES = 3


async def in_thread(call: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(call)


@pytest.fixture
def three(private_world: World) -> World:
    """Three nodes on servers of their own, and two copies of everything."""
    for server in range(2, NODES + 1):
        private_world.add_node(server=server)
    set_replication(private_world.metadata, private_world.database, "001")
    return private_world


def assert_whole(world: World, blocks: list[Block]) -> None:
    """Every chunk lies, with its bytes, on both nodes of its volume; all servers run."""
    volumes = world.volumes()
    wanted: dict[int, dict[bytes, ChunkRef]] = {}
    for block in blocks:
        assert block.ref is not None
        wanted.setdefault(block.ref.volume, {})[block.ref.key] = block.ref
    for number, refs in wanted.items():
        assert len(volumes[number].nodes) == 2
        for node in volumes[number].nodes:  # all of a volume at once: there may be thousands
            chunks = world.volume(next(iter(refs.values())), node).find({})
            found = {chunk["_id"].binary: chunk_hash(chunk["d"]) for chunk in chunks}
            for key, ref in refs.items():
                assert key in found, f"node {node} lacks {ref}"
                assert found[key] == ref.hash[:32]


async def ready(engine: Engine) -> None:
    """All nodes have answered and have their volumes."""
    await until(lambda: len({v.nodes[0] for v in engine._map.volumes() if v.whole}) == NODES)


async def test_a_write_takes_as_long_as_the_slower_replica(three: World) -> None:
    """Both inserts are under way at the same time."""
    async with three.open() as engine:
        await ready(engine)
        meeting = threading.Barrier(2, timeout=30)
        for node in engine._map.nodes.values():

            def together(*call: Any, real: Any = node.insert_sync, **named: Any) -> Any:
                meeting.wait()
                return real(*call, **named)

            node.insert_sync = together  # type: ignore[method-assign]
        await engine.store([block := sealed(fresh())])
        await engine.harden()
        assert_whole(three, [block])
        engine.settle((), [block], ())


async def test_a_chunk_that_is_there_already_counts_as_inserted(three: World) -> None:
    """IN2: a tool has copied it a moment before."""
    async with three.open() as engine:
        await ready(engine)
        node = engine._map.nodes[2]
        document = {"_id": ObjectId(), "h": b"h" * 32, "c": "none", "d": b"x"}
        other = {**document, "_id": ObjectId()}
        collection = next(v.collection for v in engine._map.volumes() if node in v.nodes)
        await in_thread(lambda: node.insert_sync(collection, [document]))
        await in_thread(lambda: node.insert_sync(collection, [document, other]))
        assert three.node_home(2)[collection].count_documents({}) == 2


async def test_slow_nodes_are_not_given_up(three: World) -> None:
    """IN3: when every node takes longer than one is usually waited for, writing is slow and no error."""
    async with three.open() as engine:
        await ready(engine)
        waited: list[float | None] = []
        for node in engine._map.nodes.values():

            def slow(
                *call: Any, real: Any = node.insert_sync, deadline_seconds: float | None = None, **named: Any
            ) -> Any:
                waited.append(deadline_seconds)
                if deadline_seconds is not None:
                    raise Unavailable("too slow for that")
                return real(*call, **named)

            node.insert_sync = slow  # type: ignore[method-assign]
        await engine.store([block := sealed(fresh())])
        await engine.harden()
        assert waited[0] is not None
        assert waited[0] >= engine._map.options.node_patience_seconds
        assert_whole(three, [block])
        engine.settle((), [block], ())


@pytest.mark.parametrize("how", ["dies", "hangs"])
@pytest.mark.parametrize("when", ["before store", "before harden"])
async def test_p6_a_node_that_fails_in_the_middle(three: World, how: str, when: str) -> None:
    """No error, and what was hardened is on two nodes, whatever the third did."""
    server = three.node_servers[2]
    fail = server.kill if how == "dies" else server.pause
    blocks = [sealed(fresh(20_000)) for _ in range(20)]
    async with three.open(deadline_seconds=300.0) as engine:  # a test that waits for a deadline would not end
        await ready(engine)
        with trio.fail_after(120):
            await store_each(engine, blocks[:10])
            if when == "before store":
                await engine.harden()
                fail()
            await store_each(engine, blocks[10:])
            if when == "before harden":
                fail()
            await engine.harden()
            assert all(block.data is None for block in blocks)
            late = [sealed(fresh())]
            await store_each(engine, late)
            await engine.harden()
        rewritten = [block for block in blocks if 2 not in three.volumes()[ref_of(block).volume].nodes]
        assert rewritten
        await in_thread(server.start if how == "dies" else server.resume)
        await until(lambda: engine.statistics().suspect_nodes == 0)
        assert_whole(three, blocks + late)
        again = [sealed(fresh()) for _ in range(20)]
        await store_each(engine, again)
        assert any(2 in three.volumes()[ref_of(block).volume].nodes for block in again), "it is used again"
        three.commit(blocks + late + again)
        await engine.harden()
        engine.settle(blocks + late + again, (), ())


async def store_each(engine: Engine, blocks: list[Block]) -> None:
    for block in blocks:
        await engine.store([block])


async def test_a_node_that_restarts_between_store_and_harden(three: World) -> None:
    """Only what it took is written again; the other copy of it is given up, too."""
    server = three.node_servers[2]
    async with three.open() as engine:
        await ready(engine)
        blocks = [sealed(fresh(20_000)) for _ in range(20)]
        await store_each(engine, blocks)
        doubtful = [block for block in blocks if 2 in three.volumes()[ref_of(block).volume].nodes]
        before = {block: block.ref for block in blocks}
        server.kill()
        await in_thread(server.start)
        await engine.harden()
        assert all(block.ref != before[block] for block in doubtful)
        assert all(block.ref == before[block] for block in blocks if block not in doubtful)
        assert_whole(three, blocks)
        three.commit(blocks)
        engine.settle(blocks, (), ())
    named = {ref_of(block).key for block in blocks}
    assert set(three.stored(1)) | set(three.stored(2)) | set(three.stored(3)) == named, "no copy is left behind"


async def test_two_nodes_away_are_waited_for(three: World) -> None:
    """Too few are left: not NoSpace, but Unavailable after a deadline; then it goes on."""
    async with three.open(deadline_seconds=1.0, node_patience_seconds=0.5) as engine:
        await ready(engine)
        for number in (2, 3):
            three.node_servers[number].kill()
        block = sealed(fresh())
        with trio.fail_after(60), pytest.raises(Unavailable, match=r"node [23] "):
            await engine.store([block])
        await in_thread(three.node_servers[3].start)
        with trio.fail_after(60):
            while block.ref is None:
                try:
                    await engine.store([block])
                except Unavailable:
                    await trio.sleep(0.1)
            await engine.harden()
        assert set(three.replicas(block.ref)) == {1, 3}
        assert_whole(three, [block])
        engine.settle((), [block], ())
        await in_thread(three.node_servers[2].start)


@pytest.mark.timeout(400)
async def test_random_faults_lose_nothing_that_was_hardened(three: World) -> None:
    """One node at a time is killed, stopped or restarted; no error reaches anybody, and all copies are there.

    The patience is more than a node of a busy machine takes: with a second one under suspicion, nobody could stand in.
    """
    rng = random.Random(11)
    safe: list[tuple[ChunkRef, Block]] = []
    async with three.open(deadline_seconds=300.0, node_patience_seconds=4.0) as engine:
        await ready(engine)
        stop = trio.Event()

        async def work() -> None:
            while not stop.is_set():
                blocks = [sealed(fresh(rng.choice([500, 5_000, 200_000]))) for _ in range(rng.randrange(1, 4))]
                await engine.store(blocks, at_once=rng.random() < 0.2)
                await engine.harden()
                for block in blocks:
                    assert block.data is None
                    safe.append((ref_of(block), block))

        async def faults() -> None:
            for number in (1, 2, 3, rng.randrange(1, 4)):
                server = three.node_servers[number]
                how = rng.choice(["kill", "pause", "restart"])
                enough = len(safe) + 3
                if how == "pause":
                    server.pause()
                elif how == "kill":
                    server.kill()
                else:
                    await in_thread(server.restart)
                with trio.fail_after(120):
                    while len(safe) < enough:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                await in_thread(server.resume if how == "pause" else server.start)
                await until(lambda: engine.statistics().suspect_nodes == 0)
            stop.set()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work)
            nursery.start_soon(faults)
        blocks = [block for _, block in safe]
        assert [block.ref for block in blocks] == [ref for ref, _ in safe], "durable chunks stay where they are"
        three.commit(blocks)
        engine.settle(blocks, (), ())
    for server in three.node_servers.values():
        server.kill()
        server.start()
    assert len(safe) > 10
    assert_whole(three, blocks)
