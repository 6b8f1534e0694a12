"""repair, scrub and vacuum are killed before each of their calls to a server; the next run finishes (RF3, SC3, VA4)."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.format import documents as d
from flakefs.tools import completing, rewriting
from flakefs.tools import vacuum as vacuum_module
from flakefs.tools.problems import KINDS, NOTE
from flakefs.tools.refill import repair_replicas
from flakefs.tools.scrub import scrub
from flakefs.tools.vacuum import vacuum

World = Any
killed_before = runpy.run_path(str(Path(__file__).with_name("test_tools_moving_killed.py")))["killed_before"]


def problems(world: World) -> set[str]:
    return {kind for kind in world.check(deep=True).kinds if KINDS[kind].level != NOTE}


def at_every_call(
    world: World,
    damage: Callable[[], None],
    work: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> int:
    """Number of kills."""
    kills = 0
    while True:
        world.reset()
        damage()
        if not killed_before(kills + 1, work, monkeypatch):
            return kills
        kills += step
        assert work(), f"call {kills}: not finished"
        assert problems(world) == set(), f"call {kills}"


def test_repair(trio_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """RF3: an emptied node, and a volume that is short of a copy."""
    world = trio_world

    def damage() -> None:
        world.node_door.client.drop_database(world.homes[2].name)
        world.set(d.FORMAT, "format", replication="002")

    def work() -> bool:
        return repair_replicas(world.door, world.database, world.resolve).complete

    assert at_every_call(world, damage, work, monkeypatch, 5) > 20
    assert problems(world) == set()
    assert world.keys_on(1) == world.keys_on(2) == world.keys_on(3)
    assert completing.COMPARE_TRIES > 1


def test_scrub(trio_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SC3"""
    world = trio_world
    monkeypatch.setattr("flakefs.tools.scrub.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("flakefs.tools.scrub.PAGE_CHUNKS", 1)

    def damage() -> None:
        world.copy.delete_one({"_id": ObjectId(world.one.key)})
        world.copy.update_one({"_id": ObjectId(world.two.key)}, {"$set": {"d": Binary(b"rot"), "c": "none"}})
        world.volume.update_one({"_id": ObjectId(world.three.key)}, {"$unset": {"h": 1}})

    def work() -> bool:
        return scrub(world.door, world.database, world.resolve).sound

    assert at_every_call(world, damage, work, monkeypatch, 5) > 30
    assert problems(world) == set()


def test_vacuum(trio_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """VA4, RW2: of volume 1, as if it were worth it; volume 2 is empty."""
    world = trio_world
    monkeypatch.setattr(vacuum_module, "WORTH_BYTES", -1)
    monkeypatch.setattr(rewriting, "STEP_KEYS", 1)
    empty = [home[d.volume_collection(world.uuid, 2)] for home in (world.homes[1], world.homes[2])]

    def damage() -> None:
        world.set(d.VOLUMES, 1, garbage=Int64(1000))
        for collection in empty:
            collection.drop()
            collection.insert_one({})
            collection.delete_many({})
        volume = world.meta[d.VOLUMES].find_one({"_id": 1})
        hollow = {**volume, "_id": 2, "chunks": Int64(0), "bytes": Int64(0), "state": "sealed"}
        world.meta[d.VOLUMES].insert_one(hollow)
        world.set(d.COUNTERS, "volume", next=Int64(3))

    def work() -> bool:
        done = vacuum(world.door, world.database, world.resolve, min_garbage=0)
        return not done.waiting

    before = list(world.volume.find())
    assert at_every_call(world, damage, work, monkeypatch, 5) > 30
    assert problems(world) == set()
    assert list(world.volume.find()) == list(world.copy.find()) == before
    assert world.meta[d.VOLUMES].find_one({"_id": 2}) is None
    for home in world.homes.values():
        names = home.list_collection_names()
        assert not [name for name in names if name.endswith(rewriting.SUFFIX)]
        assert empty[0].name not in names
