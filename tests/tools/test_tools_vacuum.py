"""vacuum gives the disk space of deleted chunks back (VA1 to VA4, RW1, RW2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId
from pymongo.errors import OperationFailure

from flakefs.errors import UsageError
from flakefs.format import documents as d
from flakefs.format.hashing import chunk_hash
from flakefs.format.records import NodeRecord, VolumeRecord
from flakefs.testing.servers import Servers
from flakefs.tools import rewriting
from flakefs.tools.chunks import open_nodes
from flakefs.tools.lease import volume_lease
from flakefs.tools.rate import Rate
from flakefs.tools.rewriting import copy_name, measure
from flakefs.tools.vacuum import Vacuumed, vacuum

World = Any
CHUNKS, SIZE = 1200, 16 * 1024
WAIT_SECONDS = 60.0


class Hollow:
    """Volume 2 on node 2, a server of its own: many chunks, of which one in ten is left."""

    def __init__(self, world: World, servers: Servers, *, left: int = 10, replica_set: bool = False) -> None:
        self.world = world
        self.server = servers.metadata if replica_set else servers.node(5)
        self.client = self.server.client()
        self.home = self.client[f"{world.database}_hollow"]
        self.volume = self.home[d.volume_collection(world.uuid, 2)]
        world.uris[2] = self.server.uri
        record = NodeRecord(id=2, uri="hollow", database=self.home.name)
        world.meta[d.NODES].replace_one({"_id": 2}, record.document(), upsert=True)
        self.home[d.NODE_MARKER].insert_one({"_id": world.uuid, "node": 2})
        self.home.create_collection(
            self.volume.name, storageEngine={"wiredTiger": {"configString": "block_compressor=none"}}
        )
        chance = random.Random(7)
        documents = []
        for _ in range(CHUNKS):
            data = chance.randbytes(SIZE)
            documents.append(d.chunk_document(ObjectId().binary, chunk_hash(data), "none", data))
        self.volume.insert_many(documents)
        self.client.admin.command("fsync")
        self.full = self.disk()
        chance.shuffle(documents)
        self.kept = documents[:left]
        self.volume.delete_many({"_id": {"$in": [e["_id"] for e in documents[left:]]}})
        entries = [
            {"_id": Binary(e["h"]), "v": 2, "k": e["_id"], "z": SIZE, "w": SIZE, "r": Int64(1)} for e in self.kept
        ]
        if entries:
            world.meta[d.CHUNKS].insert_many(entries)
        volume = VolumeRecord(id=2, nodes=(2,), chunks=left, bytes=left * SIZE, garbage=(CHUNKS - left) * SIZE)
        world.meta[d.VOLUMES].replace_one({"_id": 2}, volume.document(), upsert=True)
        world.set(d.COUNTERS, "volume", next=Int64(3))
        world.set(d.COUNTERS, "node", next=Int64(3))

    def disk(self) -> int:
        """Bytes of the server's folder, its journal aside, which is not chunks'."""
        folder = Path(self.server.plan.data)
        return sum(path.stat().st_size for path in folder.glob("collection-*.wt"))

    def run(self, **options: Any) -> Vacuumed:
        return vacuum(self.world.door, self.world.database, self.world.resolve, **options)

    def document(self) -> Any:
        return self.world.meta[d.VOLUMES].find_one({"_id": 2})

    def assert_kept(self) -> None:
        assert list(self.volume.find().sort("_id")) == sorted(self.kept, key=lambda e: e["_id"])
        assert not [name for name in self.home.list_collection_names() if name.endswith(rewriting.SUFFIX)]

    def close(self) -> None:
        self.client.drop_database(self.home.name)
        self.client.close()
        for name, wanted in ((d.NODES, {"_id": 2}), (d.VOLUMES, {"_id": 2}), (d.CHUNKS, {"v": 2})):
            self.world.meta[name].delete_many(wanted)


@pytest.fixture
def new_hollow(world: World, servers: Servers) -> Iterator[Callable[..., Hollow]]:
    made: list[Hollow] = []

    def make(**options: Any) -> Hollow:
        made.append(Hollow(world, servers, **options))
        return made[-1]

    yield make
    for hollow in made:
        hollow.close()


def test_the_disk_space_of_deleted_chunks_comes_back(new_hollow: Callable[..., Hollow]) -> None:
    """Measured on the disk, not on counters; nine in ten chunks are gone."""
    hollow = new_hollow(left=CHUNKS // 10)
    stored = CHUNKS * SIZE
    assert hollow.full > stored
    done = hollow.run()
    assert (len(done.rewritten), done.waiting) == (1, []), done.text()
    assert done.freed_bytes > 0.8 * stored
    hollow.assert_kept()
    deadline = monotonic() + WAIT_SECONDS
    while hollow.full - hollow.disk() < 0.8 * stored:
        assert monotonic() < deadline, (hollow.full, hollow.disk())
        hollow.client.admin.command("fsync")
        sleep(0.2)
    document = hollow.document()
    assert (document["state"], document["garbage"], "work" in document) == ("sealed", 0, False)
    assert document["sealed_at"] > 0
    options = hollow.volume.options()
    assert options["storageEngine"]["wiredTiger"]["configString"] == "block_compressor=none"
    again = hollow.run()
    assert (again.rewritten, again.freed_bytes) == ([], 0), "it is measured again"


def test_a_replica_set_is_a_node_too(new_hollow: Callable[..., Hollow]) -> None:
    """RW1"""
    hollow = new_hollow(left=50, replica_set=True)
    assert len(hollow.run().rewritten) == 1
    hollow.assert_kept()


def test_what_is_not_worth_it_is_left(new_hollow: Callable[..., Hollow]) -> None:
    hollow = new_hollow(left=CHUNKS // 2)
    done = hollow.run(volumes=[2], min_garbage=0.9)
    assert (done.rewritten, done.untouched) == ([], 1), done.text()
    assert hollow.document()["state"] == "writable"
    with pytest.raises(UsageError, match="no volume 7"):
        hollow.run(volumes=[7])


def test_an_empty_volume_is_dropped(new_hollow: Callable[..., Hollow]) -> None:
    """VA2"""
    hollow = new_hollow(left=0)
    done = hollow.run()
    assert done.dropped == [2], done.text()
    assert hollow.document() is None
    assert hollow.volume.name not in hollow.home.list_collection_names()
    assert hollow.world.check().clean


def test_a_new_volume_without_chunks_is_left(world: World) -> None:
    """VA2"""
    world.meta[d.VOLUMES].insert_one(VolumeRecord(id=2, nodes=(1,)).document())
    assert vacuum(world.door, world.database, world.resolve).dropped == []
    assert world.meta[d.VOLUMES].find_one({"_id": 2})["state"] == "writable"


def test_an_empty_volume_whose_chunks_are_named_is_no_empty_one(new_hollow: Callable[..., Hollow]) -> None:
    """VA2: they are lost, and that must not be forgotten; the counter is not believed."""
    hollow = new_hollow(left=1)
    hollow.volume.delete_many({})
    hollow.world.set(d.VOLUMES, 2, chunks=Int64(0), state="sealed")
    assert hollow.run().dropped == []
    assert hollow.document() is not None


def test_what_a_killed_move_left_is_dropped(trio_world: World) -> None:
    """VA4"""
    world = trio_world
    stray = world.homes[3][world.volume.name]
    stray.insert_many(list(world.volume.find()))
    assert world.check().kinds["node-volume-stray"] == 1
    assert vacuum(world.door, world.database, world.resolve).waiting == []
    assert stray.name not in world.homes[3].list_collection_names()
    assert world.check(deep=True).clean


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_it_leaves_what_the_next_run_drops(
    new_hollow: Callable[..., Hollow], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """VA4, RW2"""
    hollow = new_hollow(left=20)
    monkeypatch.setattr(rewriting, "STEP_KEYS", 10)
    calls = 0

    def stopping(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Rate, "spend", stopping)
        with pytest.raises(Stop):
            hollow.run()
    assert copy_name(hollow.world.uuid, 2) in hollow.home.list_collection_names()
    report = hollow.world.check()
    assert report.kinds["node-copy-left"] == 1
    assert report.kinds["node-volume-stray"] == 0
    done = hollow.run()
    assert (len(done.cleaned), len(done.rewritten)) == (1, 1), done.text()
    hollow.assert_kept()


def test_a_chunk_written_while_it_copies_is_not_forgotten(
    new_hollow: Callable[..., Hollow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RW1: a reader heals a copy."""
    hollow = new_hollow(left=20)
    healed = d.chunk_document(bytes(12), b"h" * 32, "none", b"healed")
    copy = rewriting._copy
    calls = 0

    def meanwhile(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        copy(*arguments)
        if calls == 1:
            hollow.volume.insert_one(healed)

    monkeypatch.setattr(rewriting, "_copy", meanwhile)
    assert len(hollow.run().rewritten) == 1
    hollow.kept.append(healed)
    hollow.assert_kept()


def test_a_volume_that_another_tool_works_on_is_left_to_it(new_hollow: Callable[..., Hollow]) -> None:
    hollow = new_hollow()
    with volume_lease(hollow.world.door, hollow.world.database, 2, "a test"):
        done = hollow.run()
    assert not done.rewritten
    assert "volume 2 is being worked on (a test)" in done.text()


def test_a_node_that_does_not_answer_is_told(new_hollow: Callable[..., Hollow]) -> None:
    hollow = new_hollow()
    hollow.world.uris[2] = hollow.world.uris[2].replace("mongodb://", "mongodb://nobody:wrong@")
    done = hollow.run()
    assert "node 2 was left out" in done.text()
    assert not done.rewritten


def test_who_may_not_ask_for_a_checkpoint_is_served_too(
    new_hollow: Callable[..., Hollow], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymongo.database import Database

    hollow = new_hollow()
    command = Database.command

    def refusing(self: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        if name == "fsync":
            raise OperationFailure("not authorized", 13)
        return command(self, name, *arguments, **options)

    monkeypatch.setattr(Database, "command", refusing)
    assert not hollow.run(min_garbage=0).waiting


def test_a_volume_without_a_collection_measures_as_nothing(world: World) -> None:
    record = NodeRecord(id=1, uri="test", database=world.node.name)
    with open_nodes([record], world.resolve) as nodes:
        assert measure(nodes[1], world.uuid, 99) == (0, 0, 0, 0)
        assert measure(nodes[1], world.uuid, 1).chunks == 3
