"""Volumes with several replicas, made behind the engine's back."""

from __future__ import annotations

from typing import Any

from bson.objectid import ObjectId

from flakefs.engine import Engine
from flakefs.engine.nodes import Node
from flakefs.format.documents import VOLUMES, volume_collection
from flakefs.values import ChunkRef
from tests.engine.conftest import World, fresh


async def stored(world: World, count: int = 1, size: int = 1000) -> tuple[list[ChunkRef], list[bytes]]:
    """Chunks in one volume on node 1, and their contents."""
    contents = [fresh(size) for _ in range(count)]
    async with world.open() as engine:
        return await world.keep(engine, contents), contents


async def mirrored(
    world: World, count: int = 1, *, servers: tuple[int, ...] = (1,), size: int = 1000, **node: Any
) -> tuple[list[ChunkRef], list[bytes]]:
    """The same in a volume that lies on node 1 and on a further one on each of *servers*."""
    refs, contents = await stored(world, count, size)
    others = [world.add_node(server, **node).id for server in servers]
    for id in others:
        copy(world, refs[0], id)
    set_nodes(world, refs[0], 1, *others)
    return refs, contents


def copy(world: World, ref: ChunkRef, to: int) -> None:
    """The whole volume of *ref* from node 1 to another node."""
    name = volume_collection(world.format.uuid, ref.volume)
    world.node_home(to)[name].insert_many(list(world.volume(ref).find({})))


def set_nodes(world: World, ref: ChunkRef, *nodes: int) -> None:
    home = world.metadata.client[world.database]
    home[VOLUMES].update_one({"_id": ref.volume}, {"$set": {"nodes": list(nodes)}})


def spoil(world: World, ref: ChunkRef, node: int = 1) -> None:
    changed = world.volume(ref, node).update_one({"_id": ObjectId(ref.key)}, {"$set": {"d": b"rotten"}})
    assert changed.modified_count == 1


def lose(world: World, ref: ChunkRef, node: int = 1) -> None:
    assert world.volume(ref, node).delete_one({"_id": ObjectId(ref.key)}).deleted_count == 1


def document(world: World, ref: ChunkRef, node: int) -> Any:
    return world.volume(ref, node).find_one({"_id": ObjectId(ref.key)})


def node_of(engine: Engine, id: int) -> Node:
    return engine._map.nodes[id]


def prefer(engine: Engine, id: int) -> None:
    """Ask this node first."""
    nearness = engine._asker.nearness
    nearness.distance = lambda record: 0 if record.id == id else 1  # type: ignore[method-assign]
