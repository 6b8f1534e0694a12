"""Damage to what files say of their content: extents, segments, and the index of chunks."""

from __future__ import annotations

from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.format import documents as d
from flakefs.format.hashing import chunk_hash
from flakefs.values import SEGMENT_BYTES, ChunkRef, Extent
from tests.tools.planting import Plant, World, first_extent, planter

PLANTS: list[Plant] = []
plant = planter(PLANTS)


# Extents


@plant("extents-wrong")
def extents_out_of_order(world: World) -> None:
    world.set(d.INODES, 6, e=list(reversed(world.meta[d.INODES].find_one({"_id": 6})["e"])))


@plant("extents-wrong")
def extents_that_overlap(world: World) -> None:
    first_extent(world, 6, 1, o=Int64(9010))


@plant("extents-wrong", "used-wrong")
def extent_past_its_chunk(world: World) -> None:
    first_extent(world, 6, 0, l=7000)


@plant("extents-wrong", "used-wrong", "extents-past-size")
def extent_past_its_segment(world: World) -> None:
    first_extent(world, 6, 2, o=Int64(SEGMENT_BYTES - 1))
    world.set(d.INODES, 6, used=Int64(1))


@plant("extents-wrong", "extents-past-size")
def segment_number_that_is_none(world: World) -> None:
    document = world.meta[d.EXTENTS].find_one_and_delete({})
    document["_id"]["s"] = Int64(2**38)
    document["e"][0]["o"] = Int64(2**62)
    world.meta[d.EXTENTS].insert_one(document)


@plant("extents-misplaced")
def pipe_with_extents(world: World) -> None:
    world.set(d.INODES, 8, e=[d.extent_document(Extent(0, 50, world.three, 0))])
    world.set(d.CHUNKS, Binary(world.three.hash), r=Int64(2))


@plant("extents-misplaced", "segment-lost", "used-wrong")
def segment_of_a_folder(world: World) -> None:
    document = world.meta[d.EXTENTS].find_one_and_delete({})
    for ino in (3, 55):
        document["_id"]["i"] = Int64(ino)
        world.meta[d.EXTENTS].insert_one(document)
    world.set(d.CHUNKS, Binary(world.two.hash), r=Int64(2))


@plant("extents-past-size")
def file_that_is_shorter_than_its_extents(world: World) -> None:
    world.set(d.INODES, 6, size=Int64(9001))


@plant("literal-wrong")
def literal_in_a_large_file(world: World) -> None:
    world.set(d.INODES, 5, size=Int64(5000))


@plant("literal-wrong")
def literal_beside_chunks(world: World) -> None:
    extents = [Extent(0, 5, b"12345", 0), Extent(5, 50, world.three, 0)]
    world.set(d.INODES, 9, e=[d.extent_document(e) for e in extents], size=Int64(55), used=Int64(55))
    world.set(d.CHUNKS, Binary(world.three.hash), r=Int64(2))


@plant("literal-wrong", "used-wrong", "extents-past-size")
def literal_in_a_segment(world: World) -> None:
    world.segment(9, 1, [Extent(SEGMENT_BYTES, 5, b"12345", 0)])


@plant("segment-lost", "refcount-high")
def segment_of_a_lost_inode(world: World) -> None:
    world.meta[d.INODES].delete_one({"_id": 4})


@plant("segment-empty")
def segment_of_nothing(world: World) -> None:
    world.segment(4, 3, [])


# The index


@plant("index-wrong")
def stored_longer_than_plain(world: World) -> None:
    world.set(d.CHUNKS, Binary(world.three.hash), w=5000)
    world.count_volume()


@plant("index-wrong", "refcount-low")
def reference_count_of_nought(world: World) -> None:
    world.set(d.CHUNKS, Binary(world.one.hash), r=Int64(0))


@plant("index-missing", "volume-counts")
def index_entry_gone(world: World) -> None:
    world.meta[d.CHUNKS].delete_one({"_id": Binary(world.one.hash)})


@plant("index-missing", "volume-counts", "chunk-missing", "content-lost")
def index_entry_and_chunk_gone(world: World) -> None:
    world.meta[d.CHUNKS].delete_one({"_id": Binary(world.one.hash)})
    world.volume.delete_many({"_id": {"$in": [ObjectId(world.one.key), ObjectId(world.two.key)]}})


@plant("index-unused", "volume-counts")
def index_entry_of_a_chunk_nobody_names(world: World) -> None:
    world.index(world.store(b"nobody's" * 20), 1)


@plant("locator-differs")
def extent_with_another_key(world: World) -> None:
    copy = world.store(b"third" * 10)
    first_extent(world, 6, 2, k=ObjectId(copy.key))


@plant("locator-differs")
def extent_with_a_wrong_volume(world: World) -> None:
    first_extent(world, 6, 2, v=9)


@plant("refcount-low")
def reference_count_too_low(world: World) -> None:
    world.set(d.CHUNKS, Binary(world.one.hash), r=Int64(1))


@plant("refcount-high")
def reference_count_too_high(world: World) -> None:
    world.set(d.CHUNKS, Binary(world.one.hash), r=Int64(4))


@plant("key-twice", "index-unused", "volume-counts")
def two_entries_for_one_chunk(world: World) -> None:
    world.index(ChunkRef(chunk_hash(b"other"), 1, world.one.key, 6000), 1)


@plant("index-volume-unknown")
def volume_document_gone(world: World) -> None:
    world.meta[d.VOLUMES].delete_one({"_id": 1})
