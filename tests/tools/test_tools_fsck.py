"""fsck finds every kind of damage, and nothing in a sound file system (F1, F8)."""

from __future__ import annotations

from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.errors import Conflict, FormatUnsupported, NotFormatted
from flakefs.format import documents as d
from flakefs.tools import content, problems
from flakefs.tools.nodes import NodeCheck
from flakefs.tools.problems import KINDS, NOTE, Report
from flakefs.tools.reader import Reader, open_reader
from flakefs.tools.system import System
from flakefs.tools.tree import Tree
from tests.tools.plants import PLANTS

World = Any


def said(report: Any) -> set[str]:
    """The kinds a report names, notes aside."""
    return {kind for kind in report.kinds if KINDS[kind].level != NOTE}


def test_a_sound_file_system_has_no_problems(world: World) -> None:
    report = world.check(deep=True)
    assert said(report) == set(), report.text()
    assert (report.leaked_chunks, report.leaked_bytes, report.exit_status) == (0, 0, 0)
    counts = report.counts
    assert (counts["inodes"], counts["folders"], counts["chunks"], counts["chunks on nodes"]) == (10, 3, 3, 3)
    assert counts["extents"] == 5


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_planted_damage_is_found(world: World, plant: Any) -> None:
    """F1"""
    plant.damage(world)
    report = world.check(deep=plant.deep)
    assert said(report) == plant.kinds, report.text()
    assert all(problem.detail and problem.where for problem in report.found)
    assert report.exit_status == (0 if plant.kinds == {"orphan-left"} else 1)


def test_every_kind_is_planted() -> None:
    """F1"""
    planted = set().union(*(plant.kinds for plant in PLANTS))
    assert {kind for kind in KINDS if KINDS[kind].level != NOTE} == planted


def test_a_collection_that_is_no_volume_is_only_noted(world: World) -> None:
    """O8: the client died after it made a volume's collection and before it wrote the document."""
    stray = world.node[d.volume_collection(world.uuid, 2)]
    stray.insert_one({"_id": ObjectId()})
    report = world.check()
    stray.drop()
    assert report.clean
    assert report.kinds["node-volume-stray"] == 1


def test_without_a_format_document_there_is_no_file_system(world: World) -> None:
    """O8: formatting was interrupted, or never begun."""
    world.meta[d.FORMAT].delete_many({})
    with pytest.raises(NotFormatted, match="flakefs format makes one"):
        world.check()


def test_a_newer_format_is_not_judged(world: World) -> None:
    world.set(d.FORMAT, "format", version=2)
    with pytest.raises(FormatUnsupported, match="version 2"):
        world.check()


@pytest.mark.parametrize(
    "name", ["", "reference_count_too_low", "index_entry_gone", "extent_with_another_key", "link_to_nothing"]
)
def test_counting_in_parts_finds_the_same(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """F4"""
    monkeypatch.setattr(content, "PART_CHUNKS", 1)
    plant = next((plant for plant in PLANTS if plant.name == name), None)
    if plant:
        plant.damage(world)
    report = world.check()
    assert said(report) == (plant.kinds if plant else set()), report.text()
    assert report.counts["chunks"] == world.meta[d.CHUNKS].count_documents({})


def test_pages_hold_every_document_once_and_in_order(world: World) -> None:
    """R2"""
    reader = Reader(world.door, world.database, None)
    expected = [document["_id"] for document in world.meta[d.INODES].find().sort("_id")]
    for page in (1, 2, 3, 100):
        assert [document["_id"] for document in reader.stream(d.INODES, page=page)] == expected
    assert [document["_id"] for document in reader.stream(d.INODES, {"i": 6}, page=1)] == [-20]
    segments = [document["_id"] for document in reader.stream(d.EXTENTS, page=1)]
    assert segments == [d.segment_id(4, 1)]


def test_all_reads_of_a_snapshot_see_one_moment(world: World) -> None:
    """R1"""
    with open_reader(world.door, world.database, snapshot=True) as reader:
        before = len(list(reader.stream(d.INODES, page=3)))
        world.inode(50, 1, b"later", 0o100644)
        assert len(list(reader.stream(d.INODES, page=3))) == before
        assert reader.one(d.INODES, 50) is None
        assert reader.aggregate(d.INODES, [{"$count": "n"}]) == [{"n": before}]
    assert Reader(world.door, world.database, None).one(d.INODES, 50)


def test_who_begins_to_write_during_the_check_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F8: what looks like damage may be his doing."""
    check_counters = System.check_counters

    def somebody_comes(self: System) -> None:
        world.session(2, mode="rw")
        check_counters(self)

    monkeypatch.setattr(System, "check_counters", somebody_comes)
    world.set(d.INODES, 4, used=Int64(1))
    with pytest.raises(Conflict, match=r"began to write .* check again"):
        world.check()


def test_chunks_freed_after_the_moment_that_is_checked_are_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F6, F8: a live mount forgets a chunk while fsck is on its way to the node, and stores another."""
    run = NodeCheck.run

    def meanwhile(self: NodeCheck, *arguments: Any) -> None:
        world.meta[d.INODES].update_one({"_id": 6}, {"$pop": {"e": 1}})
        world.meta[d.CHUNKS].delete_one({"_id": Binary(world.three.hash)})
        world.volume.delete_one({"_id": ObjectId(world.three.key)})
        world.index(world.store(b"new" * 50), 1)
        world.store(b"not yet committed" * 10)
        run(self, *arguments)

    monkeypatch.setattr(NodeCheck, "run", meanwhile)
    world.session(2, mode="rw")
    report = world.check(deep=True)
    assert said(report) == set(), report.text()
    assert report.leaked_chunks == 0


def test_what_is_kept_does_not_grow_with_the_number_of_files(world: World) -> None:
    """F3"""
    for ino in range(60, 90):
        world.inode(ino, 2, b"file %d" % ino, 0o100644)
    tree = Tree(Reader(world.door, world.database, None), Report(), set())
    tree.load()
    assert sum(len(kept) for kept in vars(tree).values() if isinstance(kept, dict | set)) <= 3 + 2 + 1 + 1
    assert world.check().clean


def test_findings_have_paths(world: World) -> None:
    world.set(d.INODES, 4, used=Int64(1))
    world.set(d.INODES, 9, nlink=Int64(4))
    world.set(d.INODES, 1, nlink=Int64(9))
    found = {problem.where for problem in world.check().problems}
    assert found == {"inode 4 (/a/b/big)", "inode 9 (/a/b/größe)", "inode 1 (/)"}


def test_more_findings_than_are_kept_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "DETAILED_MAX", 1)
    world.meta[d.INODES].update_many({"_id": {"$gt": 0}}, {"$set": {"uid": Int64(-1)}})
    report = world.check()
    assert report.kinds["attribute-wrong"] == 10
    assert len(report.found) == 1
    assert "and 10 more" in report.text()
    assert report.exit_status == 1


def test_every_kind_has_words_for_people() -> None:
    for kind in KINDS.values():
        assert kind.what
        assert kind.what[0].islower()
        assert not kind.what.endswith(".")
    assert len(KINDS) >= 40
