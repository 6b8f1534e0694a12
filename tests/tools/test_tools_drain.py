"""Emptying, evening out and removing nodes, document by document (DR1 to DR4, BA1 to BA3, RE1 to RE4)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
from bson.objectid import ObjectId

from flakefs.engine.admin import add_node
from flakefs.errors import UsageError
from flakefs.format import documents as d
from flakefs.format.records import VolumeRecord, read_volume
from flakefs.tools.balance import balance
from flakefs.tools.drain import _move_away, drain
from flakefs.tools.lease import VolumeTaken, volume_lease
from flakefs.tools.moving import Mover
from flakefs.tools.remove import remove
from flakefs.tools.rewriting import copy_name
from flakefs.tools.volume_copies import copy_volume
from tests.tools import fleets
from tests.tools.fleets import fleet_of

World = Any
new_other, other = fleets.new_other, fleets.other
NewOther = Callable[[int], Any]


def volumes(world: World) -> dict[int, VolumeRecord]:
    return {record.id: record for record in map(read_volume, world.meta[d.VOLUMES].find())}


def node_state(world: World, number: int) -> str:
    return str(world.meta[d.NODES].find_one({"_id": number})["state"])


def two_copies(world: World, target: int) -> None:
    """Volume 1 on node 1 and *target*."""
    with fleet_of(world) as fleet:
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[target])
    world.set(d.VOLUMES, 1, nodes=[1, target], code="001", own=False)
    world.set(d.FORMAT, "format", replication="001")


@pytest.fixture(autouse=True)
def short_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are dead here are known to be."""
    monkeypatch.setattr("flakefs.tools.chunks.REACH_SECONDS", 1.0)


def dead(world: World, number: int) -> None:
    """Its server is gone."""
    world.uris[number] = "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=300"


def test_a_drained_node_is_empty(world: World, other: Any) -> None:
    """DR2, DR3, with what vacuum, a killed move and a removed volume have left."""
    world.node.create_collection(copy_name(world.uuid, 1))
    world.node.create_collection(d.volume_collection(world.uuid, 55))
    with fleet_of(world) as fleet:
        moved = drain(fleet, 1)
    assert moved.volumes == [(1, 1, 2)]
    assert not moved.kept
    assert not [name for name in world.node.list_collection_names() if name.startswith("vol_")]
    assert node_state(world, 1) == "draining"
    assert world.check(deep=True).clean
    with fleet_of(world) as fleet:
        assert not drain(fleet, 1).volumes, "again: nothing to do"


def test_a_drain_that_cannot_end_does_not_begin(world: World, other: Any) -> None:
    """DR1"""
    world.set(d.NODES, 2, capacity=1000)
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="no other node has room for volume 1"):
        drain(fleet, 1)
    world.set(d.NODES, 2, state="readonly")
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="no other active node answers"):
        drain(fleet, 1)
    assert node_state(world, 1) == "active"
    assert volumes(world)[1].state == "writable"


def test_a_drain_keeps_the_code(world: World, new_other: NewOther) -> None:
    """DR1, FL1"""
    new_other(2), new_other(3)
    two_copies(world, 2)
    world.set(d.NODES, 3, rack="far")
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="replication 001 cannot be kept"):
        drain(fleet, 1)
    world.set(d.NODES, 3, rack="")
    with fleet_of(world) as fleet:
        assert drain(fleet, 1).volumes == [(1, 1, 3)]
    assert volumes(world)[1].nodes == (3, 2)
    assert world.check(deep=True).clean


def test_volumes_of_other_tools_are_waited_for(world: World, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flakefs.tools.drain.TAKEN_SECONDS", 0.0)
    with volume_lease(world.door, world.database, 1, "scrub"), fleet_of(world) as fleet:  # noqa: SIM117
        with pytest.raises(VolumeTaken, match=f"scrub.*process {os.getpid()}"):
            drain(fleet, 1)


def test_two_drains_at_once(world: World, new_other: NewOther) -> None:
    """The second one meets a volume that the first has moved since it looked."""
    new_other(2), new_other(3)
    with fleet_of(world) as fleet:
        second = Mover(fleet)
        volume = fleet.volumes[1]
        with fleet_of(world) as same:
            assert drain(same, 1).volumes == [(1, 1, 2)]
        _move_away(second, volume, 1)
    assert not second.done.volumes
    assert world.check(deep=True).clean


def test_a_volume_that_vacuum_drops_meanwhile(world: World, other: Any) -> None:
    world.meta[d.VOLUMES].insert_one(VolumeRecord(id=2, nodes=(1,), state="sealed", sealed_at=1).document())
    world.node.create_collection(d.volume_collection(world.uuid, 2))
    with fleet_of(world) as fleet:
        volume = fleet.volumes[2]
        world.meta[d.VOLUMES].delete_one({"_id": 2})
        _move_away(Mover(fleet), volume, 1)
        mover = Mover(fleet)
        fleet.volumes[2] = dataclasses.replace(volume, nodes=(2,))
        mover.drop_leftovers([1])
    assert not mover.done.kept
    assert d.volume_collection(world.uuid, 2) not in world.node.list_collection_names()


def test_a_half_made_copy_is_continued(world: World, new_other: NewOther) -> None:
    """DR4: not on the least full node, but where the killed run had begun."""
    new_other(2)
    third = new_other(3)
    with fleet_of(world) as fleet:
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[3])
        third.home[d.volume_collection(world.uuid, 1)].delete_one({"_id": ObjectId(world.one.key)})
        moved = drain(fleet, 1)
    assert moved.volumes == [(1, 1, 3)]
    assert moved.chunks == 1
    assert world.check(deep=True).clean


# -- balance --


def more_volumes(world: World, count: int, size: int) -> None:
    """Volumes 2 to *count* on node 1, empty but in their figures."""
    for number in range(2, count + 1):
        record = VolumeRecord(id=number, nodes=(1,), state="sealed", chunks=1, bytes=size, sealed_at=1)
        world.meta[d.VOLUMES].insert_one(record.document())
        world.node.create_collection(d.volume_collection(world.uuid, number))
    world.set(d.COUNTERS, "volume", next=count + 1)


def test_nodes_are_evened_out(world: World, new_other: NewOther) -> None:
    """BA1, BA2: in relation to the capacities."""
    new_other(2), new_other(3)
    for number, capacity in ((1, 10**9), (2, 10**9), (3, 2 * 10**9)):
        world.set(d.NODES, number, capacity=capacity)
    more_volumes(world, 41, 10**7)
    with fleet_of(world) as fleet:
        balanced = balance(fleet, 0.05)
        assert balanced.even, balanced.why
        assert fleet.stored[3] == pytest.approx(2 * fleet.stored[2], rel=0.05)
        assert all(abs(fill - balanced.mean) <= 0.05 * balanced.mean for fill in balanced.fill.values())
        again = balance(fleet, 0.05)
        assert again.even
        assert not again.moved.volumes
    assert len(balanced.moved.volumes) == len({volume for volume, _, _ in balanced.moved.volumes}) == 30


def test_what_cannot_be_even_says_so(world: World, other: Any) -> None:
    """BA2"""
    world.set(d.VOLUMES, 1, state="sealed", sealed_at=1)
    with fleet_of(world) as fleet:
        balanced = balance(fleet)
    assert not balanced.even
    assert "no move helps" in balanced.why
    assert not balanced.moved.volumes


def test_writable_volumes_move_when_no_other_helps(world: World, other: Any) -> None:
    """BA3"""
    more_volumes(world, 3, 50)
    size = volumes(world)[1].bytes
    world.meta[d.VOLUMES].update_many({"_id": {"$gt": 1}}, {"$set": {"bytes": size}})
    world.set(d.NODES, 1, capacity=size * 10)
    world.set(d.NODES, 2, capacity=size * 10)
    world.set(d.VOLUMES, 2, state="writable")
    with fleet_of(world) as fleet:
        balanced = balance(fleet)
    assert [volume for volume, _, _ in balanced.moved.volumes] == [3]
    world.set(d.VOLUMES, 3, nodes=[1], bytes=0)
    with fleet_of(world) as fleet:
        balanced = balance(fleet)
    assert [volume for volume, _, _ in balanced.moved.volumes] == [1]
    assert volumes(world)[1].state == "sealed"
    assert volumes(world)[2].state == "writable"


# -- remove --


def test_only_an_empty_node_is_removed(world: World, other: Any) -> None:
    """RE1, RE4"""
    with fleet_of(world) as fleet:
        with pytest.raises(UsageError, match="a volume lies on node 1: empty it first"):
            remove(fleet, 1)
        with pytest.raises(UsageError, match="there is no node 9"):
            remove(fleet, 9)
        assert node_state(world, 1) == "active"
        assert remove(fleet, 2).removed
    assert world.meta[d.NODES].find_one({"_id": 2}) is None
    assert d.NODE_MARKER not in other.home.list_collection_names()
    assert world.check(deep=True).clean
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="the only one"):
        remove(fleet, 1)
    resolve = lambda node: world.uris[2]  # noqa: E731
    added = add_node(world.door, world.database, uri="test2", node_database=other.home.name, resolve=resolve)
    assert added.id == 10, "an id is given once"


def test_a_dead_node_whose_chunks_have_copies(world: World, new_other: NewOther) -> None:
    """RE2, RE3"""
    new_other(2), new_other(3)
    two_copies(world, 2)
    dead(world, 1)
    with fleet_of(world) as fleet:
        removed = remove(fleet, 1)
    assert removed.removed
    assert "not answer" in removed.dead
    assert (removed.damage.chunks, removed.damage.files, removed.short) == (0, [], [])
    assert volumes(world)[1].nodes == (3, 2)
    assert world.check(deep=True).clean


def test_a_node_whose_data_is_gone_is_dead(world: World, new_other: NewOther) -> None:
    """RE2: it answers, with an empty disk."""
    new_other(2)
    third = new_other(3)
    two_copies(world, 2)
    world.node.drop_collection(d.NODE_MARKER)
    world.node.drop_collection(d.volume_collection(world.uuid, 1))
    with fleet_of(world) as fleet:
        removed = remove(fleet, 1)
    assert removed.removed
    assert "no mark" in removed.dead
    assert len(third.keys(world)) == 3
    assert world.check(deep=True).clean


def test_files_that_are_lost_with_a_node_are_named(world: World, other: Any) -> None:
    """RE2, RE3: the second copy lacks one chunk."""
    two_copies(world, 2)
    other.home[d.volume_collection(world.uuid, 1)].delete_one({"_id": ObjectId(world.one.key)})
    dead(world, 1)
    with fleet_of(world) as fleet:
        removed = remove(fleet, 1)
        assert not removed.removed
        assert removed.damage.chunks == 1
        assert removed.damage.files == [(4, b"/a/b/big", 1), (6, b"/same", 1)]
        assert node_state(world, 1) == "active"
        with pytest.raises(UsageError):
            drain(fleet, 1)
        forced = remove(fleet, 1, force=True)
    assert forced.removed
    assert forced.short == [1], "nobody else can take it"
    assert volumes(world)[1].nodes == (2,)


def test_a_removal_that_cannot_end_does_not_begin(world: World, other: Any) -> None:
    """RE5: the node may come back, and takes chunks then."""
    two_copies(world, 2)
    dead(world, 1)
    with fleet_of(world) as fleet, pytest.raises(UsageError, match=r"cannot be copied anew.*--force"):
        remove(fleet, 1)
    assert node_state(world, 1) == "active"
    assert volumes(world)[1].state == "writable"


def test_a_silent_node_is_not_emptied_of_what_lies_only_there(world: World, new_other: NewOther) -> None:
    """MO1: the second copy lacks a chunk, so the first is still needed; it would be forgotten with its node."""
    second = new_other(2)
    new_other(3)
    two_copies(world, 2)
    second.home[d.volume_collection(world.uuid, 1)].delete_one({"_id": ObjectId(world.one.key)})
    dead(world, 1)
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="lie only there"):
        drain(fleet, 1)
    assert volumes(world)[1].nodes == (1, 2)
    with fleet_of(world) as fleet:
        assert remove(fleet, 1).damage.chunks == 1
        assert remove(fleet, 1, force=True).removed
    assert volumes(world)[1].nodes == (3, 2)


@pytest.mark.parametrize("others", [2, 3])
def test_both_copies_may_be_given_up(world: World, new_other: NewOther, others: int) -> None:
    """RE3: whether there is a further node or not."""
    for number in range(2, others + 1):
        new_other(number)
    two_copies(world, 2)
    dead(world, 1)
    dead(world, 2)
    with fleet_of(world) as fleet:
        assert remove(fleet, 1).damage.chunks == 3
        assert remove(fleet, 1, force=True).removed
    assert volumes(world)[1].nodes == (2,)


def test_the_only_copy_may_be_given_up(world: World, other: Any) -> None:
    """RE3"""
    dead(world, 1)
    with fleet_of(world) as fleet:
        removed = remove(fleet, 1)
        assert (removed.removed, removed.damage.chunks) == (False, 3)
        assert remove(fleet, 1, force=True).removed
    assert world.meta[d.NODES].find_one({"_id": 1}) is None
    assert not world.check().clean
