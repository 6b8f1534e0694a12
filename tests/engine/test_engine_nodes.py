"""Several nodes: balance, a node added while storing, full nodes, volumes (BL1, BL2, PL1, VO1, VO2, ND1)."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import trio

from flakefs.engine.admin import list_volumes, set_node
from flakefs.engine.balance import Balancer, Candidate, Random, Strict, candidate, load_balancer
from flakefs.engine.engine import Engine
from flakefs.errors import ConfigError, NoSpace, Refused, Unavailable
from flakefs.format.documents import NODE_MARKER
from flakefs.values import Block
from tests.engine.conftest import World, fresh, ref_of, sealed, until


def simulate(
    balancer: Balancer, sizes: Iterable[int], nodes: int = 2, capacities: list[int] | None = None
) -> list[Candidate]:
    figures = [Candidate(number, 0, 0, (capacities or [100] * nodes)[number]) for number in range(nodes)]
    for size in sizes:
        chosen = balancer.choose(figures, size).volume
        old = figures[chosen]
        figures[chosen] = old._replace(chunks=old.chunks + 1, bytes=old.bytes + size)
    return figures


def spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / max(values)


@pytest.mark.parametrize("seed", range(5))
def test_strict_keeps_equal_nodes_equal(seed: int) -> None:
    """BL1: in bytes and in chunks, whatever sizes arrive."""
    rng = random.Random(seed)
    pattern = [1 << 20, *[4096] * rng.randrange(1, 20)]
    for sizes in (
        [1 << 20] * 100,
        [rng.choice([4096, 1 << 20]) for _ in range(400)],
        pattern * 60,
        [min(int(rng.paretovariate(1.2) * 2000), 1 << 18) for _ in range(2000)],
        [*[4096] * 500, *[1 << 20] * 100],
    ):
        for nodes in (2, 3):
            figures = simulate(Strict(), sizes, nodes)
            assert spread([figure.bytes for figure in figures]) < 0.05
            assert spread([figure.chunks for figure in figures]) < 0.05


def test_strict_weighs_against_the_capacity() -> None:
    small, large = simulate(Strict(), [1 << 20] * 400, capacities=[100, 300])
    assert 0.9 < 3 * small.bytes / large.bytes < 1.1
    assert 0.9 < 3 * small.chunks / large.chunks < 1.1


@pytest.mark.parametrize("capacities", [[100] * 3, [100] * 5, [100, 200, 200, 100], [100, 150, 200, 250, 300]])
def test_strict_with_two_copies(capacities: list[int]) -> None:
    """BL1: pairs of neighbours in a ring, as they are made for 001."""
    rng = random.Random(3)
    count = len(capacities)
    nodes = [(0, 0, capacity) for capacity in capacities]
    for _ in range(3000):
        size = rng.choice([4096, 100_000, 1 << 20])
        pairs = [(main, (main + 1) % count) for main in range(count)]
        offers = [candidate(main, [nodes[main], nodes[other]]) for main, other in pairs]
        for node in pairs[Strict().choose(offers, size).volume]:
            chunks, stored, capacity = nodes[node]
            nodes[node] = (chunks + 1, stored + size, capacity)
    for figure in (0, 1):
        assert spread([node[figure] / node[2] for node in nodes]) < 0.05


def test_strict_fills_a_new_node_first() -> None:
    figures = [Candidate(1, 1000, 1000 << 20, 100), Candidate(2, 0, 0, 100)]
    assert Strict().choose(figures, 1 << 20).volume == 2


def test_random_is_fair() -> None:
    """BL2: chi-square over four nodes, 10,000 draws; one fair run in a thousand passes 16.3, the seed is fixed."""
    counts = [figure.chunks for figure in simulate(Random(seed=11), [1] * 10_000, nodes=4)]
    assert sum((count - 2500) ** 2 / 2500 for count in counts) < 16.3


def test_balancers_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_balancer("strict"), Strict)
    assert isinstance(load_balancer("random"), Random)
    with pytest.raises(ConfigError, match="no balancer 'fair'; installed are: random, strict"):
        load_balancer("fair")


def test_a_balancer_may_come_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_fit.py").write_text(
        "class FirstFit:\n    def choose(self, candidates, size):\n        return candidates[0]\nclass Broken: pass\n"
    )
    info = tmp_path / "first_fit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-fit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[flakefs.balancers]\nfirst = first_fit:FirstFit\nbroken = first_fit:Broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_balancer("first").choose([Candidate(5, 0, 0, 1)], 1).volume == 5
    with pytest.raises(ConfigError, match=r"'broken' \(first_fit:Broken\) cannot be used"):
        load_balancer("broken")


async def store_all(engine: Engine, blocks: Iterable[Block], tasks: int = 4) -> None:
    """One by one, by several tasks at once; no nursery for a single one, so errors leave as they are."""
    waiting = iter(blocks)

    async def work() -> None:
        for block in waiting:
            await engine.store([block])

    if tasks == 1:
        await work()
        return
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(work)


async def test_two_nodes_stay_equally_full(world: World) -> None:
    """BL1 through the engine, with several stores in flight."""
    world.add_node()
    rng = random.Random(5)
    async with world.open() as engine:
        blocks = [sealed(fresh(rng.choice([2_000, 20_000, 200_000]))) for _ in range(300)]
        await store_all(engine, blocks)
        await engine.harden()
        engine.settle((), blocks[:0], ())
        figures = [
            (len(chunks), sum(len(chunk["d"]) for chunk in chunks.values()))
            for chunks in (world.stored(1), world.stored(2))
        ]
        assert spread([count for count, _ in figures]) < 0.1
        assert spread([size for _, size in figures]) < 0.1
        engine.settle((), blocks, ())


async def test_random_uses_all_nodes(world: World) -> None:
    world.add_node()
    async with world.open(balance="random") as engine:
        await until(lambda: len(engine._map.volumes()) == 2)
        blocks = [sealed(fresh()) for _ in range(60)]
        for block in blocks:
            await engine.store([block])
        counts = collections.Counter(ref_of(block).volume for block in blocks)
        assert len(counts) == 2
        assert min(counts.values()) > 10
        engine.settle((), blocks, ())


async def test_a_node_added_while_storing_takes_chunks(world: World) -> None:
    """VO2."""
    async with world.open() as engine:
        blocks = [sealed(fresh()) for _ in range(20)]
        await store_all(engine, blocks)
        added = world.add_node()
        with trio.fail_after(30):
            while not world.stored(added.id):
                blocks.append(sealed(fresh()))
                await engine.store(blocks[-1:])
                await trio.sleep(0.01)
        engine.settle((), blocks, ())


async def test_no_space_by_capacity(world: World) -> None:
    set_node(world.metadata, world.database, 1, capacity=100_000)
    async with world.open() as engine:
        blocks = [sealed(fresh(20_000)) for _ in range(10)]
        with pytest.raises(NoSpace, match=r"node 1 holds .* of the 100,000 bytes .*flakefs nodes add"):
            await store_all(engine, blocks, tasks=1)
        stored = [block for block in blocks if block.ref]
        assert 4 <= len(stored) <= 6
        await engine.harden()
        world.add_node()
        await engine.store(blocks)
        assert all(block.ref for block in blocks), "a new node helps at once"
        engine.settle((), blocks, ())


async def test_no_space_by_reserve(world: World) -> None:
    async with world.open(reserve_bytes=1 << 60) as engine:
        with pytest.raises(NoSpace, match="bytes free, less than the reserve"):
            await engine.store([sealed(fresh())])
    assert list_volumes(world.metadata, world.database) == [], "no volume for a node without room"


async def test_a_readonly_node_takes_nothing_and_answers_reads(world: World) -> None:
    async with world.open() as engine:
        [ref] = await world.keep(engine, [fresh()])
    set_node(world.metadata, world.database, 1, state="readonly")
    async with world.open() as engine:
        with pytest.raises(NoSpace, match="node 1 is readonly"):
            await engine.store([sealed(fresh())])
        await engine.fetch(ref)
        set_node(world.metadata, world.database, 1, state="active")
        block = sealed(fresh())
        await engine.store([block])
        engine.settle((), [block], ())


async def test_a_full_volume_is_sealed(world: World) -> None:
    async with world.open(volume_max_bytes=30_000) as engine:
        blocks: list[Block] = []
        with trio.fail_after(30):
            while len({ref_of(block).volume for block in blocks}) < 3:
                blocks.append(sealed(fresh(10_000)))
                await engine.store(blocks[-1:])
                await trio.sleep(0.02)
        states = {volume.id: volume.state for volume in list_volumes(world.metadata, world.database)}
        assert list(states.values()).count("writable") == 1
        assert max(states) == next(id for id, state in states.items() if state == "writable")
        await engine.harden()
        assert len(await engine.fetch_many([ref_of(block) for block in blocks])) == len(blocks)
        engine.settle((), blocks, ())


async def test_volumes_are_not_compressed_by_the_server(world: World) -> None:
    async with world.open() as engine:
        [ref] = await world.keep(engine, [b"a" * 1000])
        stats = world.node_home().command("collStats", world.volume(ref).name)
        assert "block_compressor=none" in stats["wiredTiger"]["creationString"]


async def test_a_wrong_database_is_refused(world: World) -> None:
    """ND1: an address that leads elsewhere neither loses reads nor takes chunks."""
    async with world.open() as engine:
        [ref] = await world.keep(engine, [fresh()])
    markers = world.node_home()[NODE_MARKER]
    markers.update_one({"_id": world.format.uuid}, {"$set": {"node": 7}})
    async with world.open() as engine:
        with pytest.raises(Refused, match="is node 7"):
            await engine.fetch(ref)
        with pytest.raises(Refused, match="wrong or an emptied database"):
            await engine.store([sealed(fresh())])
    markers.delete_one({"_id": world.format.uuid})
    async with world.open() as engine:
        with pytest.raises(Refused, match="bears no mark"):
            await engine.fetch(ref)


@pytest.mark.parametrize("at_once", [False, True])
async def test_nothing_counts_as_durable_on_a_node_that_was_emptied(world: World, at_once: bool) -> None:
    """ND1, ND3: its mark is gone while the connections are open, so no file may name what was put there."""
    async with world.open() as engine:
        await world.keep(engine, [fresh()])
        world.node_home().client.drop_database(world.node_databases[1])
        block = sealed(fresh())

        async def keep() -> None:
            await engine.store([block], at_once=at_once)
            await engine.harden()

        with pytest.raises(Refused, match="mark of this file system"):
            await keep()


async def test_an_unusable_address_is_named(world: World) -> None:
    async with world.open() as engine:
        [ref] = await world.keep(engine, [fresh()])
    nodes = world.metadata.client[world.database]["nodes"]
    nodes.update_one({"_id": 1}, {"$set": {"uri": "http://nowhere"}})
    async with world.open() as engine:
        with pytest.raises(Unavailable, match=r"node 1: .*not a MongoDB URI"):
            await engine.fetch(ref)
        with pytest.raises(NoSpace, match="not a MongoDB URI"):
            await engine.store([sealed(fresh())])


async def test_errors_of_the_body_leave_as_they_are(world: World) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with world.open():
            raise ValueError("mine")
