"""nodes repair: every volume has all its copies again (RF1 to RF4), or it is said which and why not."""

from __future__ import annotations

from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.errors import ConfigError, UsageError
from flakefs.format import documents as d
from flakefs.format.records import NodeRecord, VolumeRecord
from flakefs.tools import chunks
from flakefs.tools.fsck import check
from flakefs.tools.lease import volume_lease
from flakefs.tools.problems import KINDS, NOTE
from flakefs.tools.refill import Refilled, repair_replicas
from flakefs.tools.replicas import short_volumes

World = Any


def repair(world: World, **options: Any) -> Refilled:
    return repair_replicas(world.door, world.database, world.resolve, **options)


def kinds(world: World, *, deep: bool = True) -> set[str]:
    return {kind for kind in world.check(deep=deep).kinds if KINDS[kind].level != NOTE}


def test_a_sound_file_system_needs_nothing(trio_world: World) -> None:
    assert kinds(trio_world) == set()
    done = repair(trio_world)
    assert (done.complete, done.chunks, done.volumes, done.marked) == (True, 0, {}, []), done.text()


def test_missing_chunks_are_copied_from_the_other_node(trio_world: World) -> None:
    """RF2, CP1, CP2"""
    world = trio_world
    world.copy.delete_one({"_id": ObjectId(world.one.key)})
    world.volume.delete_one({"_id": ObjectId(world.two.key)})
    report = world.check()
    assert report.kinds["chunk-missing"] == 2
    assert all("nodes repair mends it" in problem.detail for problem in report.problems)
    done = repair(world)
    assert (done.complete, done.chunks) == (True, 2), done.text()
    assert kinds(world) == set()
    assert world.keys_on(1) == world.keys_on(2)


def test_missing_chunks_are_handed_out_in_parts(trio_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5"""
    monkeypatch.setattr(chunks, "MISSING_KEYS", 1)
    trio_world.copy.delete_many({})
    assert repair(trio_world).chunks == 3
    assert kinds(trio_world) == set()


def test_a_missing_collection_is_made_again(trio_world: World) -> None:
    trio_world.copy.drop()
    assert "node-collection-missing" in kinds(trio_world)
    assert repair(trio_world).complete
    assert kinds(trio_world) == set()
    options = trio_world.copy.options()
    assert options["storageEngine"]["wiredTiger"]["configString"] == "block_compressor=none"


def test_an_emptied_node_is_marked_and_refilled(trio_world: World) -> None:
    """RF1"""
    world = trio_world
    for name in world.homes[2].list_collection_names():
        world.homes[2].drop_collection(name)
    done = repair(world)
    assert (done.complete, done.marked, done.chunks) == (True, [2], 3), done.text()
    assert kinds(world) == set()


def test_a_database_of_another_program_is_refused(trio_world: World) -> None:
    """RF1"""
    world = trio_world
    for name in world.homes[2].list_collection_names():
        world.homes[2].drop_collection(name)
    world.homes[2]["customers"].insert_one({})
    done = repair(world)
    assert not done.complete
    assert "holds collections of another program (customers)" in done.text()
    assert world.homes[2].list_collection_names() == ["customers"]


def test_the_database_of_another_node_is_refused(trio_world: World) -> None:
    """RF1"""
    trio_world.homes[2][d.NODE_MARKER].update_one({}, {"$set": {"node": 3}})
    done = repair(trio_world)
    assert not done.complete
    assert "is node 3: correct the address" in done.text()


def test_an_emptied_node_that_had_the_only_copy_waits_for_its_data(trio_world: World) -> None:
    """RF1"""
    world = trio_world
    world.set(d.FORMAT, "format", replication="000")
    world.set(d.VOLUMES, 1, nodes=[2], code="000")
    for name in world.homes[2].list_collection_names():
        world.homes[2].drop_collection(name)
    done = repair(world)
    assert not done.complete
    assert "volumes 1 lay there alone" in done.text()
    assert world.homes[2].list_collection_names() == []
    forced = repair(world, force=True)
    assert forced.marked == [2]
    # what a killed move has left on node 1 is as good as any copy
    assert (forced.complete, forced.chunks) == (True, 3), forced.text()


def test_an_emptied_node_into_which_a_mount_wrote_is_an_emptied_one(trio_world: World) -> None:
    """RF1: an insert makes the collection anew; what lay in it before is gone all the same."""
    world = trio_world
    world.set(d.FORMAT, "format", replication="000")
    world.set(d.VOLUMES, 1, nodes=[2], code="000")
    for name in world.homes[2].list_collection_names():
        world.homes[2].drop_collection(name)
    world.homes[2][d.volume_collection(world.uuid, 1)].insert_one({"_id": ObjectId(), "h": b"h" * 32})
    done = repair(world)
    assert "volumes 1 lay there alone" in done.text()
    assert done.marked == []


def test_a_node_that_lost_only_its_mark_gets_it_again(trio_world: World) -> None:
    """RF1"""
    world = trio_world
    world.set(d.FORMAT, "format", replication="000")
    world.set(d.VOLUMES, 1, nodes=[2], code="000")
    world.homes[2].drop_collection(d.NODE_MARKER)
    done = repair(world)
    assert (done.marked, done.complete) == ([2], True), done.text()


def test_files_of_chunks_without_a_good_copy_are_named(trio_world: World) -> None:
    world = trio_world
    world.copy.delete_one({"_id": ObjectId(world.two.key)})
    world.volume.update_one({"_id": ObjectId(world.two.key)}, {"$set": {"d": Binary(b"rot"), "c": "none"}})
    done = repair(world)
    assert (done.complete, done.lost) == (False, {"/a/b/big": 1}), done.text()


def test_a_node_that_does_not_answer_is_waited_for(trio_world: World) -> None:
    world = trio_world
    world.uris[2] = world.good_uri.replace("mongodb://", "mongodb://nobody:wrong@")
    world.volume.delete_one({"_id": ObjectId(world.two.key)})
    done = repair(world)
    assert not done.complete
    assert not done.lost_chunks
    assert "1 volume waits for node 2" in done.text()
    assert "volume 1: 1 missing on node 1 wait for node 2, which may have them" in done.text()


def test_a_node_whose_address_means_nothing_here_is_waited_for(trio_world: World) -> None:
    """F7: an embedded server of another machine, a secret that is not here."""

    def resolve(node: NodeRecord) -> str:
        if node.id == 2:
            raise ConfigError("there is no secret here")
        return str(trio_world.resolve(node))

    done = repair_replicas(trio_world.door, trio_world.database, resolve)
    assert not done.complete
    assert "1 volume waits for node 2: there is no secret here" in done.text()
    report = check(trio_world.door, trio_world.database, resolve, deep=True)
    assert (set(report.kinds) - {"session-live"}) == {"node-unreachable"}


def test_only_one_node(trio_world: World) -> None:
    world = trio_world
    world.copy.delete_one({"_id": ObjectId(world.one.key)})
    world.volume.delete_one({"_id": ObjectId(world.two.key)})
    assert repair(world, node=2).chunks == 1
    assert kinds(world) == {"chunk-missing"}
    with pytest.raises(UsageError, match="there is no node 9"):
        repair(world, node=9)


def test_a_raised_replication_is_completed(trio_world: World) -> None:
    """CM1: the default code counts for volumes of an older one."""
    world = trio_world
    world.set(d.FORMAT, "format", replication="002")
    assert kinds(world) == {"volume-short"}
    done = repair(world)
    assert (done.complete, done.volumes) == (True, {1: [3]}), done.text()
    assert kinds(world) == set()
    volume = world.meta[d.VOLUMES].find_one({"_id": 1})
    assert (volume["nodes"], volume["state"], "work" in volume) == ([1, 2, 3], "sealed", False)
    assert world.keys_on(3) == world.keys_on(1)


def test_racks_count(trio_world: World) -> None:
    """CM2"""
    world = trio_world
    world.set(d.FORMAT, "format", replication="010")
    done = repair(world)
    assert not done.complete
    assert "missing is 1 further rack in one data center" in done.text()
    assert world.meta[d.VOLUMES].find_one({"_id": 1})["state"] == "writable"
    world.set(d.NODES, 3, rack="r2")
    assert repair(world).volumes == {1: [3]}
    assert kinds(world) == set()


def test_a_node_that_is_no_more_is_forgotten_and_replaced(trio_world: World) -> None:
    world = trio_world
    world.set(d.VOLUMES, 1, nodes=[9, 2])
    assert kinds(world) == {"volume-node-unknown", "volume-short"}
    done = repair(world)
    assert (done.complete, world.meta[d.VOLUMES].find_one({"_id": 1})["nodes"]) == (True, [2, done.volumes[1][0]])
    assert kinds(world) == set()
    world.set(d.VOLUMES, 1, nodes=[9])
    assert "of which there is no document" in repair(world).text()


def test_a_copy_that_was_begun_is_gone_on_with(trio_world: World) -> None:
    """RF3, CM3: killed after it had copied a part."""
    world = trio_world
    world.set(d.FORMAT, "format", replication="002")
    world.homes[3][world.volume.name].insert_one(world.volume.find_one({"_id": ObjectId(world.one.key)}))
    assert repair(world).complete
    assert kinds(world) == set()


def test_a_volume_that_another_tool_works_on_is_left_to_it(trio_world: World) -> None:
    trio_world.copy.delete_many({})
    with volume_lease(trio_world.door, trio_world.database, 1, "a test"):
        done = repair(trio_world)
    assert not done.complete
    assert "volume 1 is being worked on (a test)" in done.text()
    assert repair(trio_world).complete


def test_chunks_given_up_are_named(trio_world: World) -> None:
    trio_world.set(d.VOLUMES, 1, nodes=[])
    done = repair(trio_world)
    assert set(done.lost) == {"/same", "/a/b/big"}
    assert not done.complete


def test_short_volumes_are_told_from_documents_alone() -> None:
    nodes = [NodeRecord(id=number, uri="", database="", rack=rack) for number, rack in ((1, "a"), (2, "a"), (3, "b"))]
    volumes = [
        VolumeRecord(id=1, nodes=(1, 2)),
        VolumeRecord(id=2, nodes=(1, 3)),
        VolumeRecord(id=3, nodes=(1,), own=True, code="000"),
        VolumeRecord(id=4, nodes=(3, 1), own=True, code="010"),
        VolumeRecord(id=5, nodes=(1, 9)),
        VolumeRecord(id=6, nodes=()),
    ]
    found = {short.volume: short for short in short_volumes(nodes, volumes, "001")}
    assert sorted(found) == [2, 5, 6]
    assert found[5].why == "1 of the 2 copies that replication 001 asks for"
    assert "1 further node in one rack" in found[2].why
    assert short_volumes(nodes, [VolumeRecord(id=1, nodes=(1,), created=Int64(1))], "000") == []
