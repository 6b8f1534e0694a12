"""Damage to where content is: volumes, nodes, and the chunks on them."""

from __future__ import annotations

from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.format import documents as d
from tests.tools.planting import Plant, World, planter

PLANTS: list[Plant] = []
plant = planter(PLANTS)


# Volumes and nodes


@plant("volume-wrong")
def volume_in_no_state(world: World) -> None:
    world.set(d.VOLUMES, 1, state="strange")


@plant("volume-wrong")
def volume_with_negative_garbage(world: World) -> None:
    world.set(d.VOLUMES, 1, garbage=Int64(-3))


@plant("volume-node-unknown")
def volume_on_an_unknown_node(world: World) -> None:
    world.set(d.VOLUMES, 1, nodes=[1, 7])


@plant("volume-without-nodes", "content-lost")
def volume_that_was_given_up(world: World) -> None:
    world.set(d.VOLUMES, 1, nodes=[])


@plant("volume-short")
def replication_that_was_raised(world: World) -> None:
    world.set(d.FORMAT, "format", replication="001")


@plant("volume-short")
def volume_of_a_code_that_its_nodes_do_not_keep(world: World) -> None:
    for ref in (world.one, world.two, world.three):
        world.rename_chunk(ref, "010")
    world.set(d.VOLUMES, 1, own=True, code="010")


@plant("volume-wrong")
def volume_of_no_code(world: World) -> None:
    world.set(d.VOLUMES, 1, code="77")


@plant("volume-wrong")
def volume_on_one_node_twice(world: World) -> None:
    world.set(d.VOLUMES, 1, nodes=[1, 1])


@plant("volume-wrong")
def sealed_volume_that_became_writable(world: World) -> None:
    world.set(d.VOLUMES, 1, sealed_at=Int64(1))
    world.meta[d.COUNTERS].insert_one({"_id": "map", "next": Int64(2)})


@plant("chunk-class")
def plain_chunks_in_a_volume_of_an_own_code(world: World) -> None:
    world.set(d.VOLUMES, 1, own=True)


@plant("chunk-class")
def chunk_of_an_own_code_in_a_plain_volume(world: World) -> None:
    world.rename_chunk(world.three, "000")


@plant("counter-low")
def counter_of_map_epochs_behind(world: World) -> None:
    world.set(d.VOLUMES, 1, state="sealed", sealed_at=Int64(5))


@plant("volume-counts")
def volume_that_counts_wrongly(world: World) -> None:
    world.set(d.VOLUMES, 1, chunks=Int64(30))


@plant("node-unreachable")
def node_that_does_not_let_us_in(world: World) -> None:
    world.uris[1] = world.good_uri.replace("mongodb://", "mongodb://nobody:wrong@")


@plant("node-wrong")
def node_in_no_state(world: World) -> None:
    world.set(d.NODES, 1, state="asleep")


@plant("node-marker")
def node_without_a_marker(world: World) -> None:
    world.node[d.NODE_MARKER].delete_one({"_id": world.uuid})


@plant("node-marker")
def node_with_the_marker_of_another(world: World) -> None:
    world.node[d.NODE_MARKER].update_one({"_id": world.uuid}, {"$set": {"node": 8}})


# Chunks


@plant("node-collection-missing", "chunk-missing", "content-lost")
def collection_gone(world: World) -> None:
    world.volume.drop()


@plant("chunk-missing", "content-lost")
def chunk_gone(world: World) -> None:
    world.volume.delete_one({"_id": ObjectId(world.one.key)})


@plant("chunk-hash", "content-lost", deep=True)
def chunk_with_the_label_of_another(world: World) -> None:
    world.chunk(world.one, h=Binary(world.two.hash))


@plant("chunk-hash", "content-lost", deep=True)
def chunk_without_a_label(world: World) -> None:
    world.volume.update_one({"_id": ObjectId(world.two.key)}, {"$unset": {"h": 1}})


@plant("chunk-size", deep=True)
def chunk_with_another_stored_size(world: World) -> None:
    world.set(d.CHUNKS, Binary(world.two.hash), w=2999)
    world.count_volume()


@plant("chunk-corrupt", "content-lost", deep=True)
def chunk_with_other_content(world: World) -> None:
    world.chunk(world.two, d=Binary(bytes(world.two.length)), c="none")


@plant("chunk-corrupt", "content-lost", deep=True)
def chunk_with_half_its_content(world: World) -> None:
    data = world.volume.find_one({"_id": ObjectId(world.one.key)})["d"]
    world.chunk(world.one, d=Binary(data[: len(data) // 2]))


@plant("chunk-corrupt", "content-lost", deep=True)
def chunk_without_content(world: World) -> None:
    world.volume.update_one({"_id": ObjectId(world.three.key)}, {"$unset": {"d": 1}})


@plant("chunk-corrupt", "content-lost", deep=True)
def chunks_swapped(world: World) -> None:
    one, two = (world.volume.find_one({"_id": ObjectId(ref.key)}) for ref in (world.one, world.two))
    world.chunk(world.one, d=two["d"], c=two["c"])
    world.chunk(world.two, d=one["d"], c=one["c"])


@plant("chunk-codec", "content-lost", deep=True)
def chunk_of_an_unknown_codec(world: World) -> None:
    world.chunk(world.two, c="brotli")
