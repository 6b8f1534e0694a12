"""Further nodes beside the one of the small file system, and its volumes on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.format import documents as d
from flakefs.format.records import NodeRecord
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.testing.servers import Servers
from flakefs.tools.fleet import Fleet, open_fleet

World = Any


class Other:
    """A second and further nodes beside the world's: a database of their own on the same or another server."""

    def __init__(self, world: World, servers: Servers, number: int, database: str) -> None:
        self.number = number
        self.door = Door(connect(servers.node_uri(number), purpose="test"), name=f"node {number}")
        self.home = self.door.client[database]
        world.uris[number] = servers.node_uri(number)
        self.home[d.NODE_MARKER].insert_one({"_id": world.uuid, "node": number})
        world.meta[d.NODES].insert_one(NodeRecord(id=number, uri=f"test{number}", database=database).document())

    def keys(self, world: World, volume: int = 1) -> set[ObjectId]:
        return {e["_id"] for e in self.home[d.volume_collection(world.uuid, volume)].find({}, {"_id": 1})}

    def volumes(self) -> list[str]:
        return [name for name in self.home.list_collection_names() if name.startswith("vol_")]


@pytest.fixture
def new_other(world: World, servers: Servers, new_database: Callable[[], str]) -> Iterator[Callable[[int], Other]]:
    made: list[Other] = []

    def make(number: int) -> Other:
        made.append(Other(world, servers, number, new_database()))
        return made[-1]

    world.set(d.COUNTERS, "node", next=Int64(10))
    yield make
    world.meta[d.NODES].delete_many({"_id": {"$gt": 1}})
    for name in world.node.list_collection_names():
        if name.startswith("vol_") and name != d.volume_collection(world.uuid, 1):
            world.node.drop_collection(name)
    for other in made:
        other.door.close()


@pytest.fixture
def other(new_other: Callable[[int], Other]) -> Other:
    return new_other(2)


@contextmanager
def fleet_of(world: World) -> Iterator[Fleet]:
    with open_fleet(world.door, world.database, world.resolve) as fleet:
        yield fleet
