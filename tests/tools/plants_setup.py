"""Damage to the set-up: documents that cannot be read, database indexes that are gone, counters behind."""

from __future__ import annotations

import stat

from bson.binary import Binary
from bson.int64 import Int64

from flakefs.format import documents as d
from tests.tools.planting import Plant, World, first_extent, planter

PLANTS: list[Plant] = []
plant = planter(PLANTS)


@plant("format-wrong")
def chunk_size_that_is_none(world: World) -> None:
    world.set(d.FORMAT, "format", chunk_size=3)


@plant("unreadable-document")
def inode_without_mtime(world: World) -> None:
    world.meta[d.INODES].update_one({"_id": 5}, {"$unset": {"mtime": 1}})


@plant("unreadable-document")
def inode_with_a_word_for_a_mode(world: World) -> None:
    world.set(d.INODES, 5, mode="rw")


@plant("unreadable-document", "index-unused")
def extent_without_hash(world: World) -> None:
    world.meta[d.INODES].update_one({"_id": 6}, {"$unset": {"e.2.h": 1}})
    world.set(d.CHUNKS, Binary(world.one.hash), r=Int64(1))


@plant("unreadable-document", "refcount-high", "index-unused")
def extent_with_a_word_for_a_length(world: World) -> None:
    first_extent(world, 6, l="long")


@plant("unreadable-document", "nlink-file")
def link_without_target(world: World) -> None:
    world.meta[d.INODES].update_one({"_id": -20}, {"$unset": {"i": 1}})


@plant("unreadable-document", "used-wrong", "index-unused")
def segment_without_extents_field(world: World) -> None:
    world.meta[d.EXTENTS].update_one({}, {"$unset": {"e": 1}})


@plant("unreadable-document", "volume-counts")
def index_entry_without_count(world: World) -> None:
    world.meta[d.CHUNKS].update_one({"_id": Binary(world.two.hash)}, {"$unset": {"r": 1}})


@plant("unreadable-document", "index-volume-unknown")
def volume_without_state(world: World) -> None:
    world.meta[d.VOLUMES].update_one({"_id": 1}, {"$unset": {"state": 1}})


@plant("unreadable-document")
def scrub_that_came_nowhere(world: World) -> None:
    world.meta[d.WORK].insert_one({"_id": "scrub", "began": "yesterday"})


@plant("database-index-missing")
def no_unique_index(world: World) -> None:
    world.drop_unique_index()


@plant("database-index-missing", "name-twice")
def a_name_twice(world: World) -> None:
    world.drop_unique_index()
    world.inode(30, 1, b"same", stat.S_IFREG | 0o600)


@plant("counter-low")
def counter_of_inodes_behind(world: World) -> None:
    world.set(d.COUNTERS, "ino", next=Int64(9))


@plant("counter-low")
def counter_behind_a_link(world: World) -> None:
    world.set(d.COUNTERS, "ino", next=Int64(20))


@plant("counter-low")
def counter_of_volumes_gone(world: World) -> None:
    world.meta[d.COUNTERS].delete_one({"_id": "volume"})
