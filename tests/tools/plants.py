"""Every kind of damage that fsck knows, and how to plant it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.format import documents as d
from flakefs.format.hashing import chunk_hash
from flakefs.values import SEGMENT_BYTES, ChunkRef, Extent

World = Any
"""tests/tools/conftest.py"""


class Plant(NamedTuple):
    """Do *damage* to a World: fsck says exactly *kinds* (notes aside). *deep*: only when it reads content."""

    name: str
    damage: Callable[[World], Any]
    kinds: set[str]
    deep: bool = False


PLANTS: list[Plant] = []


def plant(*kinds: str, deep: bool = False) -> Callable[[Callable[[World], Any]], Callable[[World], Any]]:
    def note(damage: Callable[[World], Any]) -> Callable[[World], Any]:
        PLANTS.append(Plant(damage.__name__, damage, set(kinds), deep))
        return damage

    return note


def first_extent(world: World, ino: int, number: int = 0, **fields: Any) -> None:
    world.set(d.INODES, ino, **{f"e.{number}.{name}": value for name, value in fields.items()})


# The set-up


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


# Names


@plant("root-missing", "parent-missing")
def no_root(world: World) -> None:
    world.meta[d.INODES].delete_one({"_id": 1})


@plant("root-wrong")
def root_with_a_name(world: World) -> None:
    world.set(d.INODES, 1, n="root")


@plant("root-wrong", "parent-not-folder", "nlink-file")
def root_that_is_a_file(world: World) -> None:
    world.set(d.INODES, 1, mode=stat.S_IFREG | 0o644)


@plant("parent-missing")
def file_in_a_folder_that_is_not_there(world: World) -> None:
    world.set(d.INODES, 9, p=Int64(77))


@plant("parent-missing", "nlink-folder")
def folder_deleted_under_its_content(world: World) -> None:
    world.meta[d.INODES].delete_one({"_id": 3})


@plant("parent-removed")
def file_in_a_removed_folder(world: World) -> None:
    world.inode(31, -31, b"", stat.S_IFDIR | 0o700, nlink=0)
    world.meta[d.ORPHANS].insert_one({"_id": Int64(31), "session": Int64(1)})
    world.set(d.INODES, 9, p=Int64(31))


@plant("parent-not-folder")
def file_in_a_file(world: World) -> None:
    world.set(d.INODES, 9, p=Int64(5))


@plant("parent-missing")
def link_in_a_folder_that_is_not_there(world: World) -> None:
    world.set(d.INODES, -20, p=Int64(77))


@plant("unreachable", "nlink-folder")
def folders_in_a_circle(world: World) -> None:
    world.set(d.INODES, 2, p=Int64(3))


@plant("unreachable", "nlink-folder")
def folder_in_itself(world: World) -> None:
    world.set(d.INODES, 3, p=Int64(3))


@plant("bad-name")
def name_with_a_slash(world: World) -> None:
    world.set(d.INODES, 9, n="a/b")


@plant("bad-name")
def name_of_two_dots(world: World) -> None:
    world.set(d.INODES, 3, n="..")


@plant("bad-name")
def empty_name(world: World) -> None:
    world.set(d.INODES, -20, n="")


@plant("bad-name")
def name_in_the_wrong_form(world: World) -> None:
    world.set(d.INODES, 9, n=Binary(b"plain"))


@plant("link-dangling", "index-unused", "refcount-high")
def link_to_nothing(world: World) -> None:
    world.meta[d.INODES].delete_one({"_id": 6})


@plant("link-to-folder")
def link_to_a_folder(world: World) -> None:
    world.link(-21, 1, b"again", 3)


@plant("nlink-file")
def file_with_a_wrong_link_count(world: World) -> None:
    world.set(d.INODES, 6, nlink=Int64(1))


@plant("nlink-file")
def open_nameless_file_with_a_link_count(world: World) -> None:
    world.set(d.INODES, 10, nlink=Int64(1))


@plant("nlink-folder")
def folder_with_a_wrong_link_count(world: World) -> None:
    world.set(d.INODES, 2, nlink=Int64(7))


@plant("name-not-promoted")
def first_name_gone_and_no_other_promoted(world: World) -> None:
    world.set(d.INODES, 6, p=Int64(-6), n="", nlink=Int64(1))


@plant("nameless")
def file_without_a_name(world: World) -> None:
    world.set(d.INODES, 4, p=Int64(-4), n="", nlink=Int64(0))


@plant("nameless", "nlink-folder")
def folder_without_a_name(world: World) -> None:
    world.meta[d.INODES].delete_many({"p": 3})
    world.inode(4, 2, b"big", stat.S_IFREG | 0o600, size=SEGMENT_BYTES * 2, used=len_two(world))
    world.set(d.CHUNKS, Binary(world.one.hash), r=Int64(2))
    world.set(d.INODES, 3, p=Int64(-3), n="")


def len_two(world: World) -> int:
    return int(world.two.length)


@plant("orphan-left")
def session_of_an_open_file_ended(world: World) -> None:
    world.end_session()


@plant("orphan-left")
def session_of_an_open_file_unknown(world: World) -> None:
    world.meta[d.SESSIONS].delete_one({"_id": 1})


@plant("orphan-without-inode")
def orphan_entry_of_nothing(world: World) -> None:
    world.meta[d.ORPHANS].insert_one({"_id": Int64(88), "session": Int64(1)})


@plant("orphan-with-name")
def orphan_entry_of_a_named_file(world: World) -> None:
    world.meta[d.ORPHANS].insert_one({"_id": Int64(9), "session": Int64(1)})


# Inodes


@plant("mode-unknown")
def mode_without_a_type(world: World) -> None:
    world.set(d.INODES, 8, mode=0o600)


@plant("attribute-wrong")
def negative_owner(world: World) -> None:
    world.set(d.INODES, 8, uid=Int64(-1))


@plant("attribute-wrong")
def version_nought(world: World) -> None:
    world.set(d.INODES, 8, v=Int64(0))


@plant("size-wrong")
def file_of_negative_size(world: World) -> None:
    world.set(d.INODES, 5, size=Int64(-1))


@plant("size-wrong")
def folder_with_a_size(world: World) -> None:
    world.set(d.INODES, 3, size=Int64(4096))


@plant("size-wrong")
def symlink_with_a_wrong_size(world: World) -> None:
    world.set(d.INODES, 7, size=Int64(40))


@plant("target-wrong")
def symlink_to_nowhere(world: World) -> None:
    world.set(d.INODES, 7, target=Binary(b""), size=Int64(0))


@plant("used-wrong")
def wrong_used_bytes(world: World) -> None:
    world.set(d.INODES, 4, used=Int64(1))


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
