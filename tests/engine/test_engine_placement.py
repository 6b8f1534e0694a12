"""Which volumes are made and used for a replication code (VO1 to VO6, OF1, OF2, PL1 to PL3), and map epochs."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Any

import pytest
import trio
from bson.int64 import Int64

from flakefs.engine.admin import check_replication, read_filesystem, set_node, set_replication
from flakefs.engine.epochs import Epochs
from flakefs.engine.growing import Grower, Order
from flakefs.engine.numbers import next_number
from flakefs.engine.topology import place_of, server_of
from flakefs.errors import ConfigError, NoSpace, UsageError
from flakefs.format.documents import CHUNKS, SESSIONS, VOLUMES
from flakefs.format.placement import copies, satisfies
from flakefs.format.records import NodeRecord
from tests.engine.conftest import World, fresh, ref_of, sealed, until

CODES = [f"{x}{y}{z}" for x, y, z in itertools.product(range(4), repeat=3) if x + y + z <= 3]


def replicated(world: World, nodes: int, code: str = "001", **options: Any) -> None:
    """So many nodes, all in one rack unless told, and a code."""
    while len(world.node_databases) < nodes:
        world.add_node(**options)
    set_replication(world.metadata, world.database, code)


def writable(world: World, code: str = "001") -> list[tuple[int, ...]]:
    """The nodes of the volumes that take chunks, in their order."""
    return [r.nodes for r in world.volumes().values() if r.state == "writable" and r.code == code]


async def test_every_node_is_the_main_one_of_a_volume(world: World) -> None:
    """VO2: and all are partners; what is stored is on both nodes of its volume."""
    replicated(world, 3)
    async with world.open() as engine:
        await until(lambda: {nodes[0] for nodes in writable(world)} == {1, 2, 3})
        blocks = [sealed(fresh()) for _ in range(30)]
        for block in blocks:
            await engine.store([block])
        await engine.harden()
        assert sorted(nodes[1] for nodes in writable(world)) == [1, 2, 3]
        for block in blocks:
            found = world.replicas(ref_of(block))
            assert len(found) == 2
            assert all(chunk is not None and chunk["d"] == chunk["d"] for chunk in found.values())
        assert {ref_of(block).volume for block in blocks} == set(world.volumes())
        assert all(block.data is None for block in blocks)
        engine.settle((), blocks, ())


async def test_every_code_on_a_large_layout(world: World) -> None:
    """3 data centers of 2 racks of 2 nodes: own codes side by side in one file system."""
    labels = [(f"dc{dc}", f"rack{rack}") for dc in range(3) for rack in range(2) for _ in range(2)]
    set_node(world.metadata, world.database, 1, dc=labels[0][0], rack=labels[0][1])
    for dc, rack in labels[1:]:
        world.add_node(dc=dc, rack=rack)
    async with world.open() as engine:
        places = {id: place_of(node.record) for id, node in engine._map.nodes.items()}
        content = fresh()
        blocks = {}
        for code in CODES:
            far, near, here = map(int, code)
            if far > 2 or near > 1 or here > 1:
                with pytest.raises(UsageError, match=r"missing (is|are)"):
                    engine.check_code(code)
                with pytest.raises(NoSpace, match=f"replication {code} cannot be kept by the 12 nodes"):
                    await engine.store([sealed(fresh(), code)])
                continue
            engine.check_code(code)
            blocks[code] = sealed(content, code)
            await engine.store([blocks[code]])
        await engine.harden()
        volumes = world.volumes()
        for code, block in blocks.items():
            record = volumes[ref_of(block).volume]
            assert (record.code, record.own) == (code, True)
            assert satisfies(code, [places[node] for node in record.nodes])
            assert len(record.nodes) == copies(code)
            chunks = world.replicas(ref_of(block)).values()
            assert all(chunk is not None and chunk["h"] == ref_of(block).hash for chunk in chunks)
        assert len(blocks) > 5
        engine.settle((), blocks.values(), ())


async def test_equal_content_is_stored_once_for_each_code(world: World) -> None:
    """An own code that equals that of the file system is one of its own all the same."""
    replicated(world, 2, "000")
    content = fresh()
    async with world.open() as engine:
        blocks = [sealed(content, code) for code in ("", "000", "001", "", "000", "001")]
        await engine.store(blocks)
        await engine.harden()
        assert [ref_of(block).hash[32:] for block in blocks] == [b"", b"000", b"001"] * 2
        assert len({block.ref for block in blocks}) == 3
        world.commit(blocks)
        engine.settle(blocks, (), ())
        assert world.metadata.client[world.database][CHUNKS].count_documents({}) == 3
        classes = {(record.code, record.own) for record in world.volumes().values()}
        assert classes == {("000", False), ("000", True), ("001", True)}
    async with world.open() as engine:
        again = sealed(content, "001")
        await engine.store([again])
        assert again.ref == blocks[2].ref, "found in the index"
        assert await engine.fetch_many([ref_of(block) for block in blocks]) == [content] * 6
        engine.settle((), [again], ())
    assert sum(len(world.stored(node)) for node in (1, 2)) == 4


async def test_a_changed_code_is_followed(world: World) -> None:
    async with world.open() as engine:
        [old] = await world.keep(engine, [fresh()])
        with pytest.raises(UsageError, match=r"replication 001 .*1 further node in one rack; add nodes"):
            set_replication(world.metadata, world.database, "001")
        with pytest.raises(UsageError, match="no replication code"):
            set_replication(world.metadata, world.database, "1")
        assert read_filesystem(world.metadata, world.database).replication == "000"
        world.add_node()
        check_replication(world.metadata, world.database, "001")
        set_replication(world.metadata, world.database, "001")
        await until(lambda: engine._map.replication == "001")
        [new] = await world.keep(engine, [fresh()])
        assert len(world.replicas(old)) == 1
        assert len(world.replicas(new)) == 2


async def test_a_code_that_the_nodes_cannot_keep(world: World) -> None:
    """NoSpace with what is missing; and nothing but the missing node is needed."""
    set_replication(world.metadata, world.database, "001", force=True)
    async with world.open() as engine:
        block = sealed(fresh())
        with pytest.raises(NoSpace, match=r"001 cannot be kept by the 1 node .*1 further node.*flakefs nodes add"):
            await engine.store([block])
        assert world.volumes() == {}
        world.add_node()
        await engine.store([block])
        assert len(world.replicas(ref_of(block))) == 2
        engine.settle((), [block], ())


@pytest.mark.logs
async def test_fewer_copies_by_option(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """PL2: the record keeps the wanted code, one line says so, and whole volumes are used again when there are any."""
    set_replication(world.metadata, world.database, "011", force=True)
    caplog.set_level(logging.WARNING, "flakefs")
    world.add_node()
    async with world.open(fewer_copies="warn") as engine:
        blocks = [sealed(fresh()) for _ in range(4)]
        await engine.store(blocks)
        await engine.harden()
        for block in blocks:
            assert world.volumes()[ref_of(block).volume].code == "011"
            assert len(world.replicas(ref_of(block))) == 2
        assert len([r for r in caplog.records if "cannot keep replication 011" in r.getMessage()]) == 1
    async with world.open() as engine:
        with pytest.raises(NoSpace, match="011"):
            await engine.store([sealed(fresh())])
    async with world.open(fewer_copies="warn") as engine:
        other = world.add_node(rack="other")
        await until(lambda: other.id in engine._map.nodes and engine._map.nodes[other.id].disk is not None)
        block = sealed(fresh())
        await engine.store([block])
        assert len(world.replicas(ref_of(block))) == 3
        engine.settle((), [block], ())


async def test_writing_limited_to_a_data_center(world: World) -> None:
    """The main copy only: the others go where the code says."""
    set_node(world.metadata, world.database, 1, dc="far")
    world.add_node(dc="here")
    set_replication(world.metadata, world.database, "100")
    async with world.open(write_dc="here") as engine:
        blocks = [sealed(fresh()) for _ in range(5)]
        for block in blocks:
            await engine.store([block])
        assert [nodes[0] for nodes in writable(world, "100")] == [2]
        assert all(set(world.replicas(ref_of(block))) == {1, 2} for block in blocks)
        engine.settle((), blocks, ())
    async with world.open(write_dc="nowhere") as engine:
        with pytest.raises(NoSpace, match="no node in data center 'nowhere', to which this mount's writing is limited"):
            await engine.store([sealed(fresh())])


@pytest.mark.parametrize("state", ["readonly", "draining"])
async def test_a_volume_with_a_node_that_takes_nothing_is_not_offered(world: World, state: str) -> None:
    """OF1: its main node gets other partners, its document stays, and it is offered again."""
    replicated(world, 3)
    async with world.open() as engine:
        await until(lambda: {nodes[0] for nodes in writable(world)} == {1, 2, 3})
        set_node(world.metadata, world.database, 2, state=state)
        await until(lambda: {(1, 3), (3, 1)} <= set(writable(world)))
        blocks = [sealed(fresh()) for _ in range(10)]
        for block in blocks:
            await engine.store([block])
        assert all(set(world.replicas(ref_of(block))) == {1, 3} for block in blocks)
        assert any(2 in nodes for nodes in writable(world))
        set_node(world.metadata, world.database, 2, state="active")
        await until(lambda: engine._map.nodes[2].record.state == "active")
        late = [sealed(fresh()) for _ in range(10)]
        for block in late:
            await engine.store([block])
        assert any(2 in world.replicas(ref_of(block)) for block in late)
        engine.settle((), blocks + late, ())


async def test_a_full_node_is_left_out(world: World) -> None:
    """PL1: capacity counts for partners, too; when too few are left it is NoSpace, and all that was stored is whole."""
    replicated(world, 3)
    set_node(world.metadata, world.database, 2, capacity=30_000)
    set_node(world.metadata, world.database, 3, capacity=90_000)
    async with world.open() as engine:
        blocks = []

        async def fill() -> None:
            for _ in range(100):
                block = sealed(fresh(5_000))
                await engine.store([block])
                blocks.append(block)

        with pytest.raises(NoSpace, match=r"node 3 holds .*flakefs nodes add"):
            await fill()
        await engine.harden()
        for block in blocks:
            assert all(chunk is not None for chunk in world.replicas(ref_of(block)).values())
        assert len({ref_of(block).volume for block in blocks}) > 1
        assert sum(len(chunk["d"]) for chunk in world.stored(3).values()) >= 85_000
        engine.settle((), blocks, ())


async def test_partners_are_on_other_servers_when_there_are_any(world: World) -> None:
    world.add_node(1)
    world.add_node(2)
    replicated(world, 3)
    async with world.open():
        await until(lambda: {nodes[0] for nodes in writable(world)} == {1, 2, 3})
    servers = {1: 1, 2: 1, 3: 2}
    assert all({servers[node] for node in nodes} == {1, 2} for nodes in writable(world))


def test_servers_are_told_apart_by_their_hosts() -> None:
    assert server_of("mongodb://user:pa%40ss@Host:1,other/db?x=y") == "host:1,other"
    assert server_of("mongodb+srv://cluster.example?x=y") == "cluster.example"
    assert server_of("mongodb://%2Ftmp%2Fx.sock/db") == "%2ftmp%2fx.sock"
    assert server_of("embedded") == "embedded"
    record = NodeRecord(id=3, uri="mongodb://a", database="x", dc="d", rack="r")
    assert place_of(record) == (3, "d", "r", "a")


async def test_volumes_grow_with_their_nodes(world: World) -> None:
    """A twentieth of the fullest node, within limits; the map epoch is raised after a volume was sealed (VO5)."""
    async with world.open(volume_min_bytes=20_000, volume_max_bytes=50_000) as engine:
        sizes: dict[int, int] = {}
        blocks = []
        with trio.fail_after(60):
            while len(sizes) < 4:
                await engine.store([block := sealed(fresh(10_000))])
                blocks.append(block)
                sizes[ref_of(block).volume] = sizes.get(ref_of(block).volume, 0) + 10_000
                await trio.sleep(0.02)
        first = world.volumes()[min(sizes)]
        await until(lambda: world.volumes()[first.id].sealed_at > 0)
        assert world.volumes()[first.id].state == "sealed"
        assert next_number(world.metadata, world.database, "map") > world.volumes()[first.id].sealed_at
        assert sizes[first.id] >= 20_000
        engine.settle((), blocks, ())


def test_options() -> None:
    from flakefs.engine import EngineOptions

    with pytest.raises(ConfigError, match="fewer_copies is refuse or warn, not 'no'"):
        EngineOptions(fewer_copies="no")
    with pytest.raises(ConfigError, match="node_patience_seconds must be more than 0"):
        EngineOptions(node_patience_seconds=0)


async def test_a_volume_in_the_making_holds_the_epoch_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """VO6: who drains a node is told only when no volume can appear on it any more."""
    begun, go_on = trio.Event(), trio.Event()
    make = Grower._make_safely

    async def slowly(self: Grower, order: Order) -> None:
        begun.set()
        await go_on.wait()
        await make(self, order)

    monkeypatch.setattr(Grower, "_make_safely", slowly)
    async with world.open() as engine:
        await begun.wait()
        before = engine._map.epochs.known()
        number = await engine._map._metadata.run(lambda: next_number(engine._map._metadata, world.database, "map"))
        await engine._map.look()
        assert engine._map.epochs.known() == before
        go_on.set()
        await until(lambda: engine._map.epochs.known() >= number)


# -- map epochs --


def test_an_epoch_is_said_when_earlier_plans_are_over() -> None:
    """EP1, EP2."""
    epochs = Epochs()
    epochs.looked(3)
    assert epochs.known() == 3
    first = epochs.begin()
    epochs.looked(3)
    second = epochs.begin()
    epochs.looked(4)
    assert epochs.known() == 3
    third = epochs.begin()
    epochs.looked(5)
    epochs.end(first)
    assert epochs.known() == 3
    epochs.end(second)
    assert epochs.known() == 4
    epochs.end(third)
    assert epochs.known() == 5


async def test_a_session_acknowledges_what_it_knows(world: World) -> None:
    """VO4, O11: not while an insert that was planned before is under way."""
    sessions = world.metadata.client[world.database][SESSIONS]
    sessions.insert_one({"_id": 7})

    def said() -> int:
        session = sessions.find_one({"_id": 7})
        assert session is not None
        return int(session.get("map", 0))

    async with world.open(session=7) as engine:
        [_] = await world.keep(engine, [fresh()])
        one = next_number(world.metadata, world.database, "map")
        await until(lambda: said() == one)
        session = sessions.find_one({"_id": 7})
        assert session is not None
        assert isinstance(session["map"], Int64)
        node = engine._map.nodes[1]
        going, release = threading.Event(), threading.Event()
        real = node.insert_sync

        def held(*call: Any, **named: Any) -> Any:
            going.set()
            assert release.wait(30)
            return real(*call, **named)

        node.insert_sync = held  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.store, [block := sealed(fresh())])
            await until(going.is_set)
            [volume] = world.volumes()
            world.metadata.client[world.database][VOLUMES].update_one({"_id": volume}, {"$set": {"state": "sealed"}})
            two = next_number(world.metadata, world.database, "map")

            def is_sealed() -> bool:
                known = engine._map.volume_nowait(volume)
                assert known is not None
                return known.record.state == "sealed"

            await until(is_sealed)
            await engine._map.look()
            await trio.sleep(0.2)  # nothing is to happen
            assert said() == one
            release.set()
        await until(lambda: said() == two)
        node.insert_sync = real  # type: ignore[method-assign]
        await engine.store([late := sealed(fresh())])
        assert ref_of(late).volume != volume
        engine.settle((), [block, late], ())
