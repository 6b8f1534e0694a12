"""Repair mends what it promises, loses nothing, and leaves nothing behind (F2, M1 to M7)."""

from __future__ import annotations

import stat
from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64

from flakefs.errors import Fenced, HeldElsewhere
from flakefs.format import documents as d
from flakefs.tools.exclusive import Writer, exclusively
from flakefs.tools.problems import KINDS, NOTE, Report
from flakefs.tools.repair import CONTENT, NAMES, repair
from flakefs.values import SEGMENT_BYTES, Extent
from tests.tools.plants import PLANTS

World = Any
GONE = {"index_entry_and_chunk_gone", "node_with_the_marker_of_another", "root_that_is_a_file"}
"""Of kinds that can be mended, but not in this case: what it would take is gone, or somebody else's."""


def mend(world: World, *, deep: bool = False) -> Report:
    return repair(world.door, world.database, world.resolve, deep=deep)


def left(report: Report) -> set[str]:
    return {kind for kind in report.kinds if KINDS[kind].level != NOTE}


def names(world: World, parent: int) -> dict[Any, int]:
    return {e["n"]: e["_id"] for e in world.meta[d.INODES].find({"p": parent})}


def lost_and_found(world: World) -> dict[Any, int]:
    return names(world, names(world, 1)["lost+found"])


def test_every_mendable_kind_has_its_mending() -> None:
    assert {*NAMES, *CONTENT} == {kind.id for kind in KINDS.values() if kind.mended}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_what_is_promised_is_mended(world: World, plant: Any) -> None:
    """F2, M6: and a second check, and a second repair, find nothing more."""
    plant.damage(world)
    before = content(world)
    report = mend(world, deep=plant.deep)
    expected = {kind for kind in plant.kinds if not KINDS[kind].mended}
    if plant.name not in GONE:
        assert left(report) <= expected, report.text()
        assert sum(report.mended.values()) > 0 or plant.kinds == expected
    again = mend(world, deep=plant.deep)
    assert left(again) == left(report)
    assert not again.mended
    assert (again.leaked_chunks, world.check().leaked_chunks) == (0, 0)
    assert content(world) <= before or plant.name == "no_root", "M7: maps of files say what they said"


def content(world: World) -> set[tuple[int, bytes]]:
    """(ino, hash) of everything that maps name, orphans aside."""
    found = set()
    for document in [*world.meta[d.INODES].find(), *world.meta[d.EXTENTS].find()]:
        ino = document["_id"]["i"] if isinstance(document["_id"], dict) else document["_id"]
        found |= {(ino, e["h"]) for e in document.get("e") or () if "h" in e}
    return found


def test_a_lost_folder_comes_back_with_everything_in_it(world: World) -> None:
    """M1"""
    world.meta[d.INODES].update_one({"_id": 2}, {"$set": {"p": Int64(77)}})
    mend(world)
    assert lost_and_found(world) == {"#2-a": 2}
    assert names(world, 2) == {"b": 3, "small": 5, "also": -20}


def test_a_circle_is_opened_and_kept(world: World) -> None:
    """M1"""
    world.set(d.INODES, 2, p=Int64(3))
    assert left(mend(world)) == set()
    assert lost_and_found(world) == {"#2-a": 2}
    assert set(names(world, 3)) == {"big", "größe"}


def test_a_lost_file_keeps_its_content_and_a_part_of_its_name(world: World) -> None:
    """M1"""
    world.set(d.INODES, 9, p=Int64(5), n="x/" * 120)
    mend(world)
    (name,) = lost_and_found(world)
    assert name == "#9-" + "x_" * 100


def test_segments_without_an_inode_become_a_file(world: World) -> None:
    """M1"""
    world.meta[d.INODES].delete_one({"_id": 4})
    assert left(mend(world)) == set()
    ino = lost_and_found(world)["#4"]
    document = world.meta[d.INODES].find_one({"_id": ino})
    assert document["size"] == SEGMENT_BYTES + world.two.length
    assert document["used"] == world.two.length
    assert stat.S_ISREG(document["mode"])


def test_lost_and_found_is_used_again_and_never_a_file_of_that_name(world: World) -> None:
    world.set(d.INODES, 8, n="lost+found")
    for parent in (77, 78):
        world.set(d.INODES, 9, p=Int64(parent), n="file")
        assert left(mend(world)) == set()
    assert set(names(world, names(world, 1)["lost+found-"])) == {"#9-file"}
    assert names(world, 1)["lost+found"] == 8


def test_a_name_taken_twice_leaves_both_files(world: World) -> None:
    world.drop_unique_index()
    world.inode(30, 1, b"same", stat.S_IFREG | 0o600)
    mend(world)
    assert names(world, 1)["same"] == 6
    assert names(world, 1)["#30-same"] == 30


def test_a_promoted_link_takes_the_place_over(world: World) -> None:
    world.set(d.INODES, 6, p=Int64(-6), n="", nlink=Int64(1))
    mend(world)
    document = world.meta[d.INODES].find_one({"_id": 6})
    assert (document["p"], document["n"], document["nlink"]) == (2, "also", 1)
    assert world.meta[d.INODES].find_one({"_id": -20}) is None


def test_an_orphan_goes_with_its_chunks(world: World) -> None:
    """O5, O9: unlinked while open, then the client died."""
    world.set(d.INODES, 4, p=Int64(-4), n="", nlink=Int64(0))
    world.meta[d.ORPHANS].insert_one({"_id": Int64(4), "session": Int64(1)})
    world.end_session()
    report = world.check()
    assert report.clean
    assert left(report) == {"orphan-left"}
    assert left(mend(world)) == set()
    assert world.meta[d.INODES].find_one({"_id": 4}) is None
    assert world.meta[d.EXTENTS].count_documents({}) == 0
    assert world.meta[d.ORPHANS].count_documents({}) == 0
    assert world.entry(world.two) is None
    assert world.entry(world.one)["r"] == 2
    assert world.volume.count_documents({}) == 2


def test_an_index_entry_comes_back_only_for_a_chunk_that_is_whole(world: World) -> None:
    """M3"""
    before = world.entry(world.one)
    world.meta[d.CHUNKS].delete_many({"_id": {"$in": [Binary(world.one.hash), Binary(world.two.hash)]}})
    world.chunk(world.two, d=Binary(b"rotten"))
    report = mend(world)
    assert world.entry(world.one) == before
    assert world.entry(world.two) is None
    assert left(report) == {"index-missing"}


def test_extents_follow_the_index_or_the_index_the_extents(world: World) -> None:
    """M3: whichever chunk is whole."""
    copy = world.store(b"third" * 10)
    extents = [Extent(0, copy.length, copy, 0)]
    world.set(d.INODES, 9, e=[d.extent_document(e) for e in extents], size=Int64(50), used=Int64(50))
    world.set(d.CHUNKS, Binary(copy.hash), r=Int64(2))
    assert left(mend(world)) == set()
    assert bytes(world.meta[d.INODES].find_one({"_id": 9})["e"][0]["k"].binary) == world.three.key

    world.meta[d.INODES].update_one({"_id": 9}, {"$set": {"e.0.k": second(world)}})
    world.chunk(world.three, d=Binary(b"rotten"), c="none")
    assert left(mend(world)) == set()
    assert world.entry(copy)["k"] != world.three.key
    assert world.check(deep=True).clean


def second(world: World) -> Any:
    """The key of another whole copy of chunk three."""
    ref = world.store(b"third" * 10)
    return d.extent_document(Extent(0, 1, ref, 0))["k"]


def test_a_file_whose_chunk_is_gone_is_named_and_left_alone(world: World) -> None:
    """M7"""
    world.volume.delete_one({"h": world.two.hash})
    before = list(world.meta[d.INODES].find().sort("_id"))
    report = mend(world)
    assert left(report) == {"chunk-missing", "content-lost"}
    assert "inode 4 (/a/b/big)" in report.text()
    assert list(world.meta[d.INODES].find().sort("_id")) == before


def test_many_kinds_at_once(world: World) -> None:
    """M6: one mended thing shows the next, until nothing is left."""
    world.set(d.INODES, 2, p=Int64(77))
    world.meta[d.INODES].delete_one({"_id": 1})
    world.meta[d.INODES].delete_one({"_id": 6})
    world.set(d.COUNTERS, "ino", next=Int64(2))
    world.set(d.CHUNKS, Binary(world.two.hash), r=Int64(8))
    world.set(d.VOLUMES, 1, bytes=Int64(0))
    world.end_session()
    report = mend(world)
    assert left(report) == set(), report.text()
    assert world.check(deep=True).clean


def test_it_refuses_beside_a_live_writer(world: World) -> None:
    """M5"""
    world.session(2, mode="rw")
    world.set(d.CHUNKS, Binary(world.two.hash), r=Int64(8))
    with pytest.raises(HeldElsewhere, match="elsewhere"):
        mend(world)
    assert world.entry(world.two)["r"] == 8


def test_nothing_is_written_once_another_session_has_taken_over(world: World) -> None:
    """E1, E2, O6"""

    def work(writer: Writer) -> None:
        writer.write(lambda database, session: touch(database, session, 1))
        world.set(d.SESSIONS, writer.epoch, state="dead")
        writer.write(lambda database, session: touch(database, session, 2))

    def touch(database: Any, session: Any, value: int) -> None:
        database[d.INODES].update_one({"_id": 9}, {"$set": {"uid": Int64(value)}}, session=session)

    with pytest.raises(Fenced, match="has taken over"):
        exclusively(world.door, world.database, "a test", work)
    assert world.meta[d.INODES].find_one({"_id": 9})["uid"] == 1


def test_it_ends_its_session(world: World) -> None:
    """O6: a writer is not kept out by a repair that is over."""
    mend(world)
    assert world.meta[d.SESSIONS].count_documents({"state": "alive", "mode": "rw"}) == 0
