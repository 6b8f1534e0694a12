"""A small file system, written document by document, so that single documents can be damaged."""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.format import documents as d
from flakefs.format import extents as x
from flakefs.format.codec import encode
from flakefs.format.hashing import chunk_hash
from flakefs.format.records import FormatRecord, NodeRecord, VolumeRecord
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.testing.servers import Servers
from flakefs.testing.stack import fresh, new_fresh
from flakefs.tools.fsck import check
from flakefs.tools.problems import Report
from flakefs.tools.system import INDEXES
from flakefs.values import SEGMENT_BYTES, ChunkRef, Extent

__all__ = ["fresh", "new_fresh"]

ONE, TWO, THREE = b"first chunk " * 500, os.urandom(3000), b"third" * 10
LITERAL = b"a few bytes"
NOW = time.time_ns()


class World:
    """The file system:

    /               1
    /a              2
    /a/b            3
    /a/b/big        4   chunk one at 0, chunk two in segment 1
    /a/small        5   literal
    /same           6   chunk one twice, chunk three; also /a/also (-20)
    /link           7   symlink
    /pipe           8
    /a/b/empty      9
    (open)          10  unlinked, held by session 1
    """

    def __init__(self, servers: Servers, database: str) -> None:
        self.door = Door(connect(servers.metadata_uri, purpose="test"), name="metadata")
        self.node_door = Door(connect(servers.node_uri(1), purpose="test"), name="node")
        self.database = database
        self.meta = self.door.client[database]
        self.node = self.node_door.client[database]
        self.good_uri = servers.node_uri(1)
        self.uris = {1: self.good_uri}
        self.uuid = str(uuid.uuid4())
        self.volume = self.node[d.volume_collection(self.uuid, 1)]
        self.one, self.two, self.three = (self.store(data) for data in (ONE, TWO, THREE))
        for keys, options in INDEXES:
            self.meta[d.INODES].create_index(list(keys), **options)
        self._system()
        self._files()
        self._index()
        self._kept = [
            (collection, list(collection.find()))
            for side in (self.meta, self.node)
            for collection in map(side.get_collection, side.list_collection_names())
        ]

    def reset(self) -> None:
        """As it was made: much faster than a new one."""
        self.uris = {1: self.good_uri}
        for collection, documents in self._kept:
            if list(collection.find()) != documents:
                collection.delete_many({})
                collection.insert_many(documents)
        for keys, options in INDEXES:
            self.meta[d.INODES].create_index(list(keys), **options)
        self.session(1)
        self.meta[d.SESSIONS].delete_many({"_id": {"$ne": 1}})
        self.meta[d.WORK].delete_many({})
        self.meta[d.COUNTERS].delete_one({"_id": "map"})

    def close(self) -> None:
        self.door.client.drop_database(self.database)
        self.node_door.client.drop_database(self.database)
        self.door.close()
        self.node_door.close()

    def store(self, data: bytes, volume: int = 1) -> ChunkRef:
        """A chunk on the node; not in the index."""
        ref = ChunkRef(chunk_hash(data), volume, ObjectId().binary, len(data))
        codec, stored = encode(data, "zstd")
        self.node[d.volume_collection(self.uuid, volume)].insert_one(d.chunk_document(ref.key, ref.hash, codec, stored))
        return ref

    def _system(self) -> None:
        made = FormatRecord(uuid=self.uuid, chunk_size=1 << 20, codec="zstd", created=NOW)
        self.meta[d.FORMAT].insert_one(made.document())
        self.meta[d.NODES].insert_one(NodeRecord(id=1, uri="test", database=self.database, added=NOW).document())
        self.node[d.NODE_MARKER].insert_one({"_id": self.uuid, "node": 1})
        counters = {"ino": 100, "volume": 2, "node": 2, "session": 3}
        self.meta[d.COUNTERS].insert_many([{"_id": name, "next": Int64(value)} for name, value in counters.items()])
        self.session(1)
        self.meta[d.ORPHANS].insert_one({"_id": Int64(10), "session": Int64(1)})

    def session(self, epoch: int, **changes: Any) -> None:
        """Alive, of a mount that only reads, on a host that is not this one."""
        document = {
            "_id": Int64(epoch), "host": "elsewhere", "boot": "b", "pid": 1, "start": 0, "kind": "mount", "mode": "ro",
            "where": "/mnt", "state": "alive", "beat": datetime.now(UTC), "lease": 600.0, "commits": Int64(0),
        }  # fmt: skip
        self.meta[d.SESSIONS].replace_one({"_id": epoch}, {**document, **changes}, upsert=True)

    def end_session(self, epoch: int = 1) -> None:
        self.session(epoch, beat=datetime.now(UTC) - timedelta(hours=1), lease=15.0)

    def inode(self, ino: int, parent: int, name: bytes, mode: int, extents: list[Extent] = [], **changes: Any) -> None:  # noqa: B006
        fields = {
            "ino": ino, "parent": parent, "name": name, "mode": mode, "uid": 0, "gid": 0, "rdev": 0, "size": 0,
            "nlink": 1, "used": x.covered(extents), "atime": NOW, "mtime": NOW, "ctime": NOW, "btime": NOW,
            "xattrs": {}, "target": b"", "mset": 0, "aset": 0,
        }  # fmt: skip
        node: Any = SimpleNamespace(**{**fields, **changes})
        self.meta[d.INODES].insert_one(d.inode_document(node, extents, 1))

    def _files(self) -> None:
        folder, regular = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
        one, two, three = self.one, self.two, self.three
        self.inode(1, 0, b"", folder, nlink=3)
        self.inode(2, 1, b"a", folder, nlink=3)
        self.inode(3, 2, b"b", folder, nlink=2)
        big = [Extent(0, one.length, one, 0)]
        size = SEGMENT_BYTES + two.length
        self.inode(4, 3, b"big", regular, big, size=size, used=one.length + two.length)
        self.segment(4, 1, [Extent(SEGMENT_BYTES, two.length, two, 0)])
        self.inode(5, 2, b"small", regular, [Extent(0, len(LITERAL), LITERAL, 0)], size=len(LITERAL))
        same = [Extent(0, one.length, one, 0), Extent(8000, 100, one, 7), Extent(9000, three.length, three, 0)]
        self.inode(6, 1, b"same", regular, same, size=10_000, nlink=2)
        self.link(-20, 2, b"also", 6)
        self.inode(7, 1, b"link", stat.S_IFLNK | 0o777, target=b"a/b", size=3)
        self.inode(8, 1, b"pipe", stat.S_IFIFO | 0o600)
        self.inode(9, 3, "größe".encode(), regular)
        self.inode(10, -10, b"", regular, [Extent(0, 5, b"12345", 0)], size=5, nlink=0)

    def segment(self, ino: int, number: int, extents: list[Extent]) -> None:
        self.meta[d.EXTENTS].insert_one(d.segment_document(ino, number, extents, 1))

    def link(self, key: int, parent: int, name: bytes, ino: int) -> None:
        self.meta[d.INODES].insert_one(d.link_document(d.LinkRecord(key, parent, name, ino, 1)))

    def index(self, ref: ChunkRef, count: int) -> None:
        chunk = self.node[d.volume_collection(self.uuid, ref.volume)].find_one({"_id": ObjectId(ref.key)})
        size = len(chunk["d"]) if chunk else ref.length
        self.meta[d.CHUNKS].insert_one(d.index_document(ref, size, count))

    def _index(self) -> None:
        for ref, count in ((self.one, 3), (self.two, 1), (self.three, 1)):
            self.index(ref, count)
        self.count_volume()

    def count_volume(self) -> None:
        entries = list(self.meta[d.CHUNKS].find({"v": 1}))
        record = VolumeRecord(id=1, nodes=(1,), chunks=len(entries), bytes=sum(e["w"] for e in entries), created=NOW)
        self.meta[d.VOLUMES].replace_one({"_id": 1}, record.document(), upsert=True)

    # What tests do

    def resolve(self, node: NodeRecord) -> str:
        return self.uris[node.id]

    def check(self, *, deep: bool = False) -> Report:
        return check(self.door, self.database, self.resolve, deep=deep)

    def set(self, collection: str, key: Any, **fields: Any) -> None:
        assert self.meta[collection].update_one({"_id": key}, {"$set": fields}).matched_count == 1

    def rename_chunk(self, ref: ChunkRef, code: str) -> None:
        """As if its files had asked for a replication of their own."""
        name = Binary(ref.hash + code.encode())
        self.chunk(ref, h=name)
        entry = self.meta[d.CHUNKS].find_one_and_delete({"_id": Binary(ref.hash)})
        assert entry is not None
        self.meta[d.CHUNKS].insert_one({**entry, "_id": name})
        named = {"e.h": Binary(ref.hash)}
        for maps in (self.meta[d.INODES], self.meta[d.EXTENTS]):
            maps.update_many(named, {"$set": {"e.$[x].h": name}}, array_filters=[{"x.h": Binary(ref.hash)}])

    def drop_unique_index(self) -> None:
        self.meta[d.INODES].drop_index([("p", 1), ("n", 1)])

    def chunk(self, ref: ChunkRef, **fields: Any) -> None:
        assert self.volume.update_one({"_id": ObjectId(ref.key)}, {"$set": fields}).matched_count == 1

    def entry(self, ref: ChunkRef) -> dict[str, Any] | None:
        return self.meta[d.CHUNKS].find_one({"_id": Binary(ref.hash)})


class Trio(World):
    """The same in replication 001: volume 1 on nodes 1 and 2; node 3 is empty. All on one server."""

    def __init__(self, servers: Servers, database: str) -> None:
        super().__init__(servers, database)
        client = self.node_door.client
        self.homes = {1: self.node, 2: client[f"{database}_2"], 3: client[f"{database}_3"]}
        self.copy = self.homes[2][self.volume.name]
        self.reset()

    def reset(self) -> None:
        super().reset()
        for number in (1, 2, 3) if hasattr(self, "homes") else ():
            self._reset_node(number)
        self.meta[d.FORMAT].update_one({}, {"$set": {"replication": "001"}})
        self.meta[d.VOLUMES].delete_many({"_id": {"$ne": 1}})
        self.set(d.VOLUMES, 1, nodes=[1, 2], code="001")
        self.set(d.COUNTERS, "node", next=Int64(4))

    def _reset_node(self, number: int) -> None:
        self.uris[number] = self.good_uri
        home = self.homes[number]
        record = NodeRecord(id=number, uri=f"test {number}", database=home.name, added=NOW)
        self.meta[d.NODES].replace_one({"_id": number}, record.document(), upsert=True)
        if number == 1:
            return
        for name in home.list_collection_names():
            home[name].delete_many({}) if number == 2 and name == self.volume.name else home.drop_collection(name)
        home[d.NODE_MARKER].insert_one({"_id": self.uuid, "node": number})
        if number == 2:
            self.copy.insert_many(list(self.volume.find()))

    def close(self) -> None:
        for number in (2, 3):
            self.node_door.client.drop_database(self.homes[number].name)
        super().close()

    def keys_on(self, number: int) -> set[ObjectId]:
        return {document["_id"] for document in self.homes[number][self.volume.name].find({}, {"_id": 1})}


@pytest.fixture(scope="session")
def one_trio(servers: Servers) -> Iterator[Trio]:
    made = Trio(servers, f"t{os.getpid()}_trio")
    yield made
    made.close()


@pytest.fixture
def trio_world(one_trio: Trio) -> Trio:
    """Three nodes, as if they were made for this test."""
    one_trio.reset()
    return one_trio


@pytest.fixture(scope="session")
def one_world(servers: Servers) -> Iterator[World]:
    """The one of all tests."""
    made = World(servers, f"t{os.getpid()}_tools")
    yield made
    made.close()


@pytest.fixture
def world(one_world: World) -> World:
    """As if it were made for this test."""
    one_world.reset()
    return one_world
