"""scrub reads every copy, mends what has rotted, and names what cannot be mended (SC1 to SC5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.binary import Binary
from bson.objectid import ObjectId

from flakefs.errors import Fenced, HeldElsewhere
from flakefs.format import documents as d
from flakefs.format.work import SCRUB, ScrubRecord, read_scrub
from flakefs.tools import scrub as module
from flakefs.tools.lease import volume_lease
from flakefs.tools.problems import KINDS, NOTE
from flakefs.tools.rate import Rate
from flakefs.tools.scrub import Scrubbed, scrub

World = Any


def run(world: World, **options: Any) -> Scrubbed:
    return scrub(world.door, world.database, world.resolve, **options)


def kinds(world: World) -> set[str]:
    return {kind for kind in world.check(deep=True).kinds if KINDS[kind].level != NOTE}


def test_every_copy_is_read(trio_world: World) -> None:
    done = run(trio_world)
    assert (done.sound, done.read, done.mended, done.refilled, done.extra) == (True, 6, 0, 0, 0), done.text()
    assert done.bytes == sum(len(e["d"]) for e in [*trio_world.volume.find(), *trio_world.copy.find()])
    assert trio_world.meta[d.WORK].find_one() is None


def flip_a_bit(world: World, side: Any) -> None:
    data = bytearray(side.find_one({"_id": ObjectId(world.two.key)})["d"])
    data[len(data) // 2] ^= 4
    side.update_one({"_id": ObjectId(world.two.key)}, {"$set": {"d": Binary(bytes(data))}})


def swap_content(world: World, side: Any) -> None:
    one, two = (side.find_one({"_id": ObjectId(ref.key)}) for ref in (world.one, world.two))
    side.update_one({"_id": one["_id"]}, {"$set": {"d": two["d"], "c": two["c"]}})
    side.update_one({"_id": two["_id"]}, {"$set": {"d": one["d"], "c": one["c"]}})


def swap_whole(world: World, side: Any) -> None:
    one, two = (side.find_one({"_id": ObjectId(ref.key)}) for ref in (world.one, world.two))
    side.replace_one({"_id": one["_id"]}, {**two, "_id": one["_id"]})
    side.replace_one({"_id": two["_id"]}, {**one, "_id": two["_id"]})


def wrong_label(world: World, side: Any) -> None:
    side.update_one({"_id": ObjectId(world.one.key)}, {"$set": {"h": Binary(b"?" * 32)}})


def no_label(world: World, side: Any) -> None:
    side.update_one({"_id": ObjectId(world.one.key)}, {"$unset": {"h": 1}})


def no_content(world: World, side: Any) -> None:
    side.update_one({"_id": ObjectId(world.one.key)}, {"$unset": {"d": 1}})


def unknown_codec(world: World, side: Any) -> None:
    side.update_one({"_id": ObjectId(world.one.key)}, {"$set": {"c": "brotli"}})


def missing(world: World, side: Any) -> None:
    side.delete_one({"_id": ObjectId(world.one.key)})


def no_collection(world: World, side: Any) -> None:
    side.drop()


DAMAGE = (
    flip_a_bit, swap_content, swap_whole, wrong_label, no_label, no_content, unknown_codec, missing, no_collection,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [1, 2])
def test_every_kind_of_damage_is_mended_from_the_good_copy(trio_world: World, damage: Any, number: int) -> None:
    """SC1"""
    side = trio_world.homes[number][trio_world.volume.name]
    damage(trio_world, side)
    assert kinds(trio_world)
    assert "content-lost" not in kinds(trio_world)
    done = run(trio_world)
    assert done.sound, done.text()
    assert done.mended + done.refilled == {swap_content: 2, swap_whole: 2, no_collection: 3}.get(damage, 1)
    assert kinds(trio_world) == set()


@pytest.mark.parametrize("damage", [flip_a_bit, no_content, unknown_codec, missing])
def test_what_has_no_good_copy_is_named(trio_world: World, damage: Any) -> None:
    for side in (trio_world.volume, trio_world.copy):
        damage(trio_world, side)
    done = run(trio_world)
    assert (done.sound, done.lost_chunks) == (False, 1)
    assert set(done.lost) == ({"/a/b/big"} if damage is flip_a_bit else {"/a/b/big", "/same"})


def test_a_wrong_label_is_mended_without_another_copy(world: World) -> None:
    """SC1: its own content is the proof."""
    wrong_label(world, world.volume)
    done = run(world)
    assert (done.sound, done.mended) == (True, 1)
    assert kinds(world) == set()


def test_extra_chunks_are_told_and_left(trio_world: World) -> None:
    """Old ones; young ones may wait for their commit."""
    key = ObjectId(ObjectId.from_datetime(datetime.now(UTC) - timedelta(hours=2)).binary[:4] + ObjectId().binary[4:])
    trio_world.copy.insert_one(d.chunk_document(key.binary, b"x" * 32, "none", b"leak"))
    trio_world.copy.insert_one(d.chunk_document(ObjectId().binary, b"y" * 32, "none", b"young"))
    done = run(trio_world)
    assert (done.sound, done.extra, done.read) == (True, 1, 8)
    assert "flakefs gc frees them" in done.text()
    trio_world.copy.delete_many({"h": {"$in": [b"x" * 32, b"y" * 32]}})


def test_nothing_is_lost_while_a_node_does_not_answer(trio_world: World) -> None:
    """SC2"""
    world = trio_world
    flip_a_bit(world, world.volume)
    world.uris[2] = world.good_uri.replace("mongodb://", "mongodb://nobody:wrong@")
    done = run(world)
    assert (done.sound, done.lost_chunks) == (False, 0)
    assert "which may have a good copy, does not answer" in done.text()
    world.uris[2] = world.good_uri
    assert run(world).sound


def test_a_volume_that_another_tool_works_on_is_told(trio_world: World) -> None:
    flip_a_bit(trio_world, trio_world.copy)
    with volume_lease(trio_world.door, trio_world.database, 1, "a test"):
        done = run(trio_world)
    assert not done.sound
    assert "is bad, and volume 1 is being worked on (a test)" in done.text()


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", range(1, 7))
def test_an_interrupted_scrub_goes_on_where_it_was(
    trio_world: World, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """SC3: page after page of one chunk, killed after each."""
    monkeypatch.setattr(module, "PAGE_CHUNKS", 1)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    flip_a_bit(trio_world, trio_world.copy)
    spend = Rate.spend
    calls = 0

    def stopping(self: Rate, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Stop
        spend(self, *arguments)

    monkeypatch.setattr(Rate, "spend", stopping)
    with pytest.raises(Stop):
        run(trio_world)
    place = read_scrub(trio_world.meta[d.WORK].find_one({"_id": SCRUB}))
    assert (place.read, place.node) == (after, 1 if after <= 3 else 2)
    done = run(trio_world)
    assert (done.sound, done.resumed, done.read, done.mended) == (True, True, 6, 1), done.text()
    assert calls == 6
    assert kinds(trio_world) == set()


def test_what_an_interrupted_one_found_lost_stays_named(trio_world: World) -> None:
    for side in (trio_world.volume, trio_world.copy):
        flip_a_bit(trio_world, side)
    put_place(trio_world, volume=1, node=2, key=ObjectId(b"\xff" * 12), read=6, lost=(trio_world.two.hash,))
    done = run(trio_world)
    assert (done.read, done.lost) == (6, {"/a/b/big": 1})


def put_place(world: World, **changes: Any) -> None:
    record = ScrubRecord(began=1, boot="elsewhere", pid=7, start=1, host="far")
    world.meta[d.WORK].insert_one({**replace(record, **changes).document(), "beat": None})


def test_doubts_of_an_interrupted_one_are_resolved(trio_world: World) -> None:
    """SC3"""
    wrong_label(trio_world, trio_world.copy)
    key = ObjectId(trio_world.one.key)
    put_place(trio_world, volume=1, node=2, key=ObjectId(b"\xff" * 12), doubts=(key,))
    assert run(trio_world).mended == 1
    assert kinds(trio_world) == set()


def test_restart_begins_anew(trio_world: World) -> None:
    put_place(trio_world, volume=1, node=2, key=ObjectId(b"\xff" * 12), read=6)
    done = run(trio_world, restart=True)
    assert (done.resumed, done.read) == (False, 6)


def test_one_scrub_at_a_time(trio_world: World) -> None:
    """SC4"""
    world = trio_world
    put_place(world)
    world.set(d.WORK, SCRUB, beat=datetime.now(UTC))
    with pytest.raises(HeldElsewhere, match="process 7 on host far"):
        run(world)
    world.set(d.WORK, SCRUB, beat=datetime.now(UTC) - timedelta(hours=1))
    assert run(world).resumed


def test_who_is_overtaken_ends(trio_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SC4"""
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    judge = module._Scrub._judge

    def overtaken(self: Any, *arguments: Any) -> Any:
        trio_world.set(d.WORK, SCRUB, pid=1)
        return judge(self, *arguments)

    monkeypatch.setattr(module._Scrub, "_judge", overtaken)
    with pytest.raises(Fenced, match="another scrub has taken over"):
        run(trio_world)


def test_many_doubts_are_looked_for_together(trio_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SC5"""
    monkeypatch.setattr(module, "DOUBTS_MAX", 1)
    monkeypatch.setattr(module, "PAGE_CHUNKS", 1)
    trio_world.copy.update_many({}, {"$unset": {"h": 1}})
    assert run(trio_world).mended == 3
    assert kinds(trio_world) == set()
