"""Damage to names, folders, link counts, orphans and attributes of inodes."""

from __future__ import annotations

import stat

from bson.binary import Binary
from bson.int64 import Int64

from flakefs.format import documents as d
from flakefs.values import SEGMENT_BYTES
from tests.tools.planting import Plant, World, planter

PLANTS: list[Plant] = []
plant = planter(PLANTS)


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
