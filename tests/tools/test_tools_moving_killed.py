"""A tool that moves volumes is killed before each of its calls to a server; the next run finishes it (MO3, DR4)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from bson.objectid import ObjectId

from flakefs.format import documents as d
from flakefs.format.records import read_volume
from flakefs.mongo.door import Door
from flakefs.tools import lease
from flakefs.tools.balance import balance
from flakefs.tools.drain import drain
from flakefs.tools.moving import Watch, move_volume
from flakefs.tools.remove import remove
from flakefs.tools.volume_copies import copy_volume
from tests.tools import fleets
from tests.tools.fleets import fleet_of

World = Any
new_other = fleets.new_other
NewOther = Callable[[int], Any]


class Killed(BaseException):
    """In place of SIGKILL: nothing that runs on the way out reaches a server any more."""


def killed_before(call_number: int, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run *work* as a process that dies before that call to a server; False when it made fewer calls and is done."""
    calls = 0
    main = threading.current_thread()
    real, myself = Door.run_sync, lease._myself

    def run_sync(door: Door, call: Callable[[], Any], **options: Any) -> Any:
        nonlocal calls
        if threading.current_thread() is main:
            calls += 1
            if calls >= call_number:
                raise Killed
        return real(door, call, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Door, "run_sync", run_sync)
        patch.setattr(lease, "_myself", lambda: myself().replace("process ", "process 41943", 1))  # there is none
        try:
            work()
        except Killed:
            return True
        return False


def stored(world: World, others: list[Any]) -> dict[int, set[ObjectId]]:
    """Node -> keys of volume 1, of nodes that have a collection of it."""
    name = d.volume_collection(world.uuid, 1)
    homes = {1: world.node} | {other.number: other.home for other in others}
    return {
        number: {document["_id"] for document in home[name].find({}, {"_id": 1})}
        for number, home in homes.items()
        if name in home.list_collection_names()
    }


def drained(world: World) -> None:
    with fleet_of(world) as fleet:
        assert not drain(fleet, 1).kept


def moved(world: World) -> None:
    with fleet_of(world) as fleet:
        assert not move_volume(fleet, 1, 1, 3, Watch(), None).kept


def balanced(world: World) -> None:
    with fleet_of(world) as fleet:
        assert not balance(fleet).moved.kept


@pytest.mark.parametrize(("work", "step"), [(drained, 2), (moved, 4), (balanced, 4)])
def test_killed_at_every_call(
    world: World, new_other: NewOther, monkeypatch: pytest.MonkeyPatch, work: Callable[[World], None], step: int
) -> None:
    others = [new_other(2), new_other(3)]
    nodes = list(world.meta[d.NODES].find())
    with fleet_of(world) as fleet:
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[2])
    whole = stored(world, others)[1]
    world.set(d.FORMAT, "format", replication="001")
    volume = world.meta[d.VOLUMES].find_one({"_id": 1}) | {"nodes": [1, 2], "code": "001"}
    kills = 0
    while True:
        world.meta[d.NODES].delete_many({})
        world.meta[d.NODES].insert_many(nodes)
        world.set(d.NODES, 1, capacity=volume["bytes"] * (1 if work is balanced else 10))
        world.meta[d.VOLUMES].replace_one({"_id": 1}, volume)
        with fleet_of(world) as fleet:
            copy_volume(world.uuid, 1, [fleet.nodes[2]], fleet.nodes[1])
        others[1].home.drop_collection(d.volume_collection(world.uuid, 1))
        if not killed_before(kills + 1, lambda: work(world), monkeypatch):
            break
        kills += step
        record = read_volume(world.meta[d.VOLUMES].find_one({"_id": 1}))
        there = stored(world, others)
        assert all(there[number] == whole for number in record.nodes), f"call {kills}: a named copy is not whole"
        work(world)
        record = read_volume(world.meta[d.VOLUMES].find_one({"_id": 1}))
        assert set(record.nodes) == {2, 3}
        assert stored(world, others) == dict.fromkeys((2, 3), whole), f"call {kills}: not finished"
    assert kills > 20
    assert world.check(deep=True).clean


def test_a_removal_killed_at_every_call(world: World, new_other: NewOther, monkeypatch: pytest.MonkeyPatch) -> None:
    other = new_other(2)
    document = world.meta[d.NODES].find_one({"_id": 2})
    mark = other.home[d.NODE_MARKER].find_one({})
    kills = 0

    def removed() -> None:
        with fleet_of(world) as fleet:
            assert remove(fleet, 2).removed

    while True:
        if not killed_before(kills + 1, removed, monkeypatch):
            break
        kills += 1
        if world.meta[d.NODES].find_one({"_id": 2}) is not None:
            removed()
            assert other.home[d.NODE_MARKER].find_one({}) is None
        assert world.meta[d.NODES].find_one({"_id": 2}) is None
        world.meta[d.NODES].insert_one(document)
        other.home[d.NODE_MARKER].replace_one({"_id": mark["_id"]}, mark, upsert=True)
    assert kills > 5
    assert world.check(deep=True).clean
