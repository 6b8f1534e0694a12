"""Leases, seals, copies and moves of volumes (LE1 to LE4, SE1 to SE4, CO1 to CO4, MO1 to MO3)."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.int64 import Int64
from bson.objectid import ObjectId
from pymongo.collection import Collection

from flakefs.errors import Fenced, Refused, Unavailable, UsageError
from flakefs.format import documents as d
from flakefs.format.records import read_volume
from flakefs.namespace.sessions import identity
from flakefs.tools import rate as rates
from flakefs.tools.lease import VolumeTaken, volume_lease
from flakefs.tools.moving import Mover, Watch, move_volume
from flakefs.tools.rate import Rate
from flakefs.tools.sealing import seal, wait_acknowledged
from flakefs.tools.volume_copies import copy_volume, lacking
from tests.tools import fleets
from tests.tools.fleets import Other, fleet_of

World = Any
new_other, other = fleets.new_other, fleets.other


def keys(world: World) -> set[ObjectId]:
    return {e["_id"] for e in world.volume.find({}, {"_id": 1})}


def found_in(collection: Collection[d.Document], key: ObjectId) -> d.Document:
    document = collection.find_one({"_id": key})
    assert document is not None
    return document


def volume(world: World) -> Any:
    return read_volume(world.meta[d.VOLUMES].find_one({"_id": 1}))


def lease(world: World, what: str = "a test") -> Any:
    return volume_lease(world.door, world.database, 1, what)


# -- leases --


def test_a_volume_is_leased_once(world: World) -> None:
    """LE1"""
    with lease(world, "moving it") as held:
        work = volume(world).work
        assert work is not None
        assert work.what == "moving it"
        with pytest.raises(VolumeTaken, match=f"moving it.*process {os.getpid()} on host"), lease(world):
            pass
        held.check()
        assert held.update({"state": "sealed"})
    assert volume(world).work is None
    with lease(world):
        pass


def test_there_is_no_lease_of_no_volume(world: World) -> None:
    with pytest.raises(UsageError, match="no volume 77"), volume_lease(world.door, world.database, 77, "x"):
        pass


def test_a_lease_runs_out_by_the_clock_of_the_server(world: World) -> None:
    """LE2"""
    work = {
        "by": "process 1 on host elsewhere 1.abc.def",
        "what": "x",
        "until": datetime.now(UTC) + timedelta(minutes=5),
    }
    world.set(d.VOLUMES, 1, work=work)
    with pytest.raises(VolumeTaken, match="process 1 on host elsewhere, until"), lease(world):
        pass
    world.set(d.VOLUMES, 1, work=work | {"until": datetime.now(UTC) - timedelta(seconds=1)})
    with lease(world):
        pass


def test_the_lease_of_a_process_that_ended_here_is_taken_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """LE2"""
    with lease(world):
        by = volume(world).work.by
        ended = by.replace(f"process {os.getpid()} ", "process 4194303 ")
        world.set(d.VOLUMES, 1, **{"work.by": ended})
        with lease(world):
            assert volume(world).work.by != ended


def test_who_lost_the_lease_changes_nothing(world: World) -> None:
    """LE3, LE4"""
    with lease(world) as held:
        world.set(d.VOLUMES, 1, **{"work.by": "somebody else"})
        assert not held.update({"state": "sealed"})
        with pytest.raises(Fenced, match="run the command again"):
            held.record()
        with pytest.raises(Fenced):
            held.check()
    assert volume(world).work.by == "somebody else", "given back what was not ours"
    assert volume(world).state == "writable"


# -- seals --


def test_a_seal_is_waited_for_until_every_writer_follows(world: World) -> None:
    """SE1, SE2: readers and tools that store nothing are not waited for."""
    world.session(7, mode="rw")
    world.session(8, mode="rw", kind="tool", alone=True)
    with lease(world) as held:
        epoch = seal(world.door, world.database, held)
        assert seal(world.door, world.database, held) == epoch, "sealed once"
    assert (volume(world).state, volume(world).sealed_at) == ("sealed", epoch)
    said: list[str] = []

    def follow(text: str) -> None:
        said.append(text)
        world.session(7, mode="rw", map=Int64(epoch))

    wait_acknowledged(world.door, world.database, epoch, follow)
    assert said == ["waiting for the mount at /mnt on host elsewhere (process 1) to follow"]
    with pytest.raises(Unavailable, match="has not followed"):
        wait_acknowledged(world.door, world.database, epoch + 1, patience_seconds=0)


def test_a_volume_sealed_by_a_tool_that_was_killed_is_waited_for(world: World) -> None:
    """SE1: sealed, but the epoch was not raised any more."""
    world.set(d.VOLUMES, 1, state="sealed")
    with lease(world) as held:
        first = seal(world.door, world.database, held)
    assert volume(world).sealed_at == first > 0


def test_a_session_that_comes_later_is_not_waited_for(world: World) -> None:
    """SE3"""
    world.session(7, mode="rw")

    def follow(_: str) -> None:
        world.session(9, mode="rw")
        world.session(7, mode="rw", map=Int64(5))

    wait_acknowledged(world.door, world.database, 5, follow)


def test_the_dead_are_buried(world: World) -> None:
    """SE4: elsewhere by their lease, here by their process."""
    world.session(7, mode="rw", beat=datetime.now(UTC) - timedelta(minutes=1), lease=15.0)
    world.session(8, mode="rw", **(identity() | {"pid": 4194303}))
    wait_acknowledged(world.door, world.database, 5)
    states = {e["_id"]: e["state"] for e in world.meta[d.SESSIONS].find()}
    assert (states[7], states[8], states[1]) == ("dead", "dead", "alive")


# -- copies --


def test_a_copy_has_everything_and_goes_on_where_it_stopped(world: World, other: Other) -> None:
    """CO1, CO3"""
    strange = ObjectId()
    world.volume.insert_one({"_id": strange, "h": b"h" * 32, "c": "none", "d": b"x", "more": {"kept": [1]}})
    with fleet_of(world) as fleet:
        source, target = fleet.nodes[1], fleet.nodes[2]
        assert len(list(lacking(world.uuid, 1, [source], target))) == 4
        stops: list[int] = []

        def stop() -> None:
            stops.append(1)
            if len(stops) == 3:
                raise Fenced("stopped")

        with pytest.raises(Fenced):
            copy_volume(world.uuid, 1, [source], target, chunk_size=16 << 20, check=stop)
        assert len(other.keys(world)) == 2
        rest = copy_volume(world.uuid, 1, [source], target)
        assert (rest.chunks, rest.mended) == (2, 0)
        assert [key for key, _ in rest.bad] in ([], [strange])
        assert copy_volume(world.uuid, 1, [source], target).chunks == 0
        assert not list(lacking(world.uuid, 1, [source], target))
    assert other.keys(world) == keys(world)
    name = d.volume_collection(world.uuid, 1)
    assert found_in(other.home[name], strange)["more"] == {"kept": [1]}
    options = other.home[name].options()
    assert options["storageEngine"]["wiredTiger"]["configString"] == "block_compressor=none"


def test_a_bad_chunk_is_taken_from_another_copy_or_named(world: World, new_other: Callable[[int], Other]) -> None:
    """CO1"""
    new_other(2), new_other(3)
    with fleet_of(world) as fleet:
        first, second, third = (fleet.nodes[number] for number in (1, 2, 3))
        copy_volume(world.uuid, 1, [first], second)
        world.chunk(world.one, d=b"rotten")
        world.chunk(world.two, d=b"rotten")
        name = d.volume_collection(world.uuid, 1)
        second.door.client[second.record.database][name].delete_one({"_id": ObjectId(world.two.key)})
        extra = world.store(b"only on the second", 1)
        moved = world.volume.find_one_and_delete({"_id": ObjectId(extra.key)})
        second.door.client[second.record.database][name].insert_one(moved)
        copied = copy_volume(world.uuid, 1, [first, second], third)
        assert (copied.chunks, copied.mended) == (4, 1)
        assert copied.bad == [(ObjectId(world.two.key), world.two.hash)]
        there = third.door.client[third.record.database][name]
        assert found_in(there, ObjectId(world.one.key))["d"] != b"rotten"
        assert found_in(there, ObjectId(world.two.key))["d"] == b"rotten"


def test_what_lay_there_before_is_mended(world: World, other: Other) -> None:
    """CO3: an old copy on a disk that forgets does not take the place of the good one."""
    name = d.volume_collection(world.uuid, 1)
    with fleet_of(world) as fleet:
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[2])
        other.home[name].update_one({"_id": ObjectId(world.two.key)}, {"$set": {"d": b"rotten"}})
        world.chunk(world.three, d=b"rotten too")
        other.home[name].update_one({"_id": ObjectId(world.three.key)}, {"$set": {"d": b"rotten"}})
        mover = Mover(fleet)
        mover.move(1, 1, 2)
        assert mover.done.mended == 1
        mover.finish()
    assert found_in(other.home[name], ObjectId(world.two.key))["d"] != b"rotten"
    assert found_in(other.home[name], ObjectId(world.three.key))["d"] == b"rotten", "there is no good one"
    assert {problem.kind.id for problem in world.check(deep=True).problems} == {"chunk-corrupt", "content-lost"}


def test_a_wrong_database_is_neither_read_nor_written(world: World, other: Other) -> None:
    """CO4"""
    other.home[d.NODE_MARKER].update_one({}, {"$set": {"node": 9}})
    with fleet_of(world) as fleet, pytest.raises(Refused, match="is node 9"):
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[2])
    assert not other.volumes()


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(rates, "monotonic", lambda: now[0])
    monkeypatch.setattr(rates, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    rate = Rate(1000)
    for _ in range(5):
        rate.spend(1000, lambda: None)
    assert now[0] == pytest.approx(5.0)


# -- moves --


def test_a_volume_moves(world: World, other: Other) -> None:
    before = keys(world)
    with fleet_of(world) as fleet:
        moved = move_volume(fleet, 1, 1, 2, Watch(), None)
    assert moved.volumes == [(1, 1, 2)]
    assert (moved.chunks, moved.bad, moved.kept) == (3, [], [])
    assert volume(world).nodes == (2,)
    assert volume(world).state == "sealed"
    assert volume(world).work is None
    assert other.keys(world) == before
    assert not [name for name in world.node.list_collection_names() if name.startswith("vol_")]
    assert world.check(deep=True).clean


def test_the_old_copy_stays_until_writers_have_seen_the_switch(
    world: World, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MO4; the session has acknowledged the seal, and not yet the switch. After FINISH_SECONDS nobody is waited for."""
    monkeypatch.setattr("flakefs.tools.moving.FINISH_SECONDS", 0.0)
    world.session(7, mode="rw", map=Int64(1))
    with fleet_of(world) as fleet:
        mover = Mover(fleet)
        mover.move(1, 1, 2)
        assert (volume(world).nodes, len(keys(world))) == ((2,), 3)
        mover.finish()
    assert not keys(world)


def test_figures_follow_moves(world: World, other: Other) -> None:
    """FL2"""
    with fleet_of(world) as fleet:
        held, room = dict(fleet.stored), fleet.room(2)
        fleet.moved(1, [2])
        assert fleet.stored == {1: 0, 2: held[1]}
        assert (fleet.volumes[1].nodes, fleet.room(2)) == ((2,), room - held[1])
        fleet.refresh()
        assert fleet.stored == held


def test_it_is_not_moved_where_it_lies_or_where_nothing_answers(world: World, other: Other) -> None:
    with fleet_of(world) as fleet:
        assert not move_volume(fleet, 1, 2, 1, Watch(), None).volumes, "done by a run that was killed"
        for source, target, said in ((2, 2, "does not lie on node 2"), (1, 1, "already"), (1, 9, "no node 9")):
            with pytest.raises(UsageError, match=said):
                move_volume(fleet, 1, source, target, Watch(), None)
    world.set(d.NODES, 2, state="readonly")
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="readonly"):
        move_volume(fleet, 1, 1, 2, Watch(), None)
    world.set(d.NODES, 2, state="active", capacity=10)
    with fleet_of(world) as fleet, pytest.raises(UsageError, match="room for 10 bytes"):
        move_volume(fleet, 1, 1, 2, Watch(), None)
    assert volume(world).nodes == (1,)


def test_what_two_killed_moves_left_is_found(world: World, new_other: Callable[[int], Other]) -> None:
    """MO2, MO3: killed before the switch, and after it."""
    second, third = new_other(2), new_other(3)
    with fleet_of(world) as fleet:
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[3])
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[2])
        world.set(d.VOLUMES, 1, nodes=[2], state="sealed")
        mover = Mover(fleet)
        fleet.refresh()
        mover.drop_leftovers([1, 2, 3])
        assert not mover.done.kept
    assert not third.volumes()
    assert len(second.keys(world)) == 3
    assert not keys(world)
    assert world.check(deep=True).clean


def test_a_copy_that_is_needed_is_kept(world: World, other: Other) -> None:
    """MO2"""
    with fleet_of(world) as fleet:
        copy_volume(world.uuid, 1, [fleet.nodes[1]], fleet.nodes[2])
        world.volume.delete_one({"_id": ObjectId(world.one.key)})
        mover = Mover(fleet)
        mover.drop_leftovers([2])
        assert "lacks chunks that lie only here" in mover.done.kept[0]
    assert len(other.keys(world)) == 3


def test_a_move_waits_for_nobody_who_holds_the_lease(world: World, other: Other) -> None:
    with lease(world), fleet_of(world) as fleet, pytest.raises(VolumeTaken):
        move_volume(fleet, 1, 1, 2, Watch(), None)
    assert volume(world).nodes == (1,)
