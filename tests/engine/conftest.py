"""A formatted file system without a namespace, and what a namespace would do to its index."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pymongo
import pytest
import trio
from bson.binary import Binary
from bson.objectid import ObjectId

from flakefs.engine import Engine, EngineOptions, open_engine
from flakefs.engine.admin import add_node, create_filesystem, list_volumes
from flakefs.format.documents import CHUNKS, VOLUMES, IndexRecord, index_document, read_index, volume_collection
from flakefs.format.records import FormatRecord, NodeRecord, VolumeRecord
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.testing.servers import Servers
from flakefs.values import Block, ChunkRef

DEADLINE = 10.0


def uri_of(record: NodeRecord) -> str:
    return record.uri


class World:
    """One file system: its metadata, its nodes, and a stand-in for the namespace's commits."""

    def __init__(self, servers: Servers, new_database: Callable[[], str], codec: str = "none") -> None:
        self.servers = servers
        self.new_database = new_database
        self.database = new_database()
        self._clients: dict[str, Any] = {}
        self._counts: dict[int, Counter[str]] = {}
        client = connect(servers.metadata_uri, purpose="test", deadline_seconds=DEADLINE)
        self.metadata = Door(client, name="the metadata server", deadline_seconds=DEADLINE)
        self.node_databases = {1: new_database()}
        self.format: FormatRecord = create_filesystem(
            self.metadata,
            self.database,
            chunk_size=1 << 20,
            codec=codec,
            first_node_uri=servers.node_uri(1),
            first_node_database=self.node_databases[1],
            resolve=uri_of,
        )
        self.node_servers = {1: servers.node(1)}

    def add_node(self, server: int = 1, **options: Any) -> NodeRecord:
        database = self.new_database()
        record = add_node(
            self.metadata,
            self.database,
            uri=self.servers.node_uri(server),
            node_database=database,
            resolve=uri_of,
            **options,
        )
        self.node_databases[record.id] = database
        self.node_servers[record.id] = self.servers.node(server)
        return record

    @asynccontextmanager
    async def open(self, *, writable: bool = True, session: int | None = None, **options: Any) -> AsyncIterator[Engine]:
        """Leaving checks the engine's invariants."""
        chosen = EngineOptions(**{"reserve_bytes": 0, "poll_seconds": 0.05, "deadline_seconds": DEADLINE, **options})
        async with open_engine(
            self.metadata, self.database, self.format, chosen, resolve=uri_of, writable=writable, session=session
        ) as engine:
            yield engine
            engine.check_invariants()

    # -- what the namespace does --

    def commit(self, blocks: Iterable[Block] = (), removes: Iterable[ChunkRef] = ()) -> list[IndexRecord]:
        """Name blocks and take the last references from chunks; the entries that went."""
        home = self.metadata.client[self.database]
        named = {block.ref.hash: block for block in blocks if block.ref}
        there = self._entries(named)
        assert all(record.ref == named[hash].ref for hash, record in there.items()), "one content at two places"
        new = [block for hash, block in named.items() if hash not in there]
        if new:
            home[CHUNKS].insert_many([index_document(block.ref, block.stored_bytes, 1) for block in new if block.ref])
        gone = list(self._entries(ref.hash for ref in removes).values())
        if gone:
            home[CHUNKS].delete_many({"_id": {"$in": [Binary(record.ref.hash) for record in gone]}})
        for ref, size, sign in [(block.ref, block.stored_bytes, 1) for block in new] + [
            (*record[:2], -1) for record in gone
        ]:
            assert ref is not None
            counts = self._counts.setdefault(ref.volume, Counter())
            counts.update({"chunks": sign, "bytes": sign * size, "garbage": size if sign < 0 else 0})
        for volume, counts in self._counts.items():
            home[VOLUMES].update_one({"_id": volume}, {"$set": dict(counts)})
        return gone

    def _entries(self, hashes: Iterable[bytes]) -> dict[bytes, IndexRecord]:
        wanted = {"_id": {"$in": [Binary(hash) for hash in hashes]}}
        found = self.metadata.client[self.database][CHUNKS].find(wanted)
        return {record.ref.hash: record for record in map(read_index, found)}

    async def keep(self, engine: Engine, contents: Iterable[bytes]) -> list[ChunkRef]:
        """Store, harden, commit and settle."""
        blocks = [sealed(content) for content in contents]
        await engine.store(blocks)
        await engine.harden()
        self.commit(blocks)
        engine.settle(blocks, (), ())
        return [block.ref for block in blocks if block.ref]

    # -- behind the scenes --

    def node_home(self, node: int = 1) -> Any:
        """The database of a node."""
        server = self.node_servers[node]
        if server.uri not in self._clients:
            self._clients[server.uri] = server.client()
        return self._clients[server.uri][self.node_databases[node]]

    def volumes(self) -> dict[int, VolumeRecord]:
        """All volume documents by id."""
        return {record.id: record for record in list_volumes(self.metadata, self.database)}

    def replicas(self, ref: ChunkRef) -> dict[int, dict[str, Any] | None]:
        """The chunk as each node of its volume has it."""
        nodes = self.volumes()[ref.volume].nodes
        return {node: self.volume(ref, node).find_one({"_id": ObjectId(ref.key)}) for node in nodes}

    def volume(self, ref: ChunkRef, node: int = 1) -> Any:
        """The collection that holds a chunk on a node."""
        return self.node_home(node)[volume_collection(self.format.uuid, ref.volume)]

    def stored(self, node: int = 1) -> dict[bytes, dict[str, Any]]:
        """All chunk documents on a node by key."""
        home = self.node_home(node)
        names = [name for name in home.list_collection_names() if name.startswith("vol_")]
        return {d["_id"].binary: d for name in names for d in home[name].find({})}

    def close(self) -> None:
        for client in self._clients.values():
            with pymongo.timeout(1):  # its server may be dead
                client.close()
        self.metadata.close()


def sealed(content: bytes | bytearray, code: str = "") -> Block:
    block = Block(content)
    block.code = code
    block.sealed = True
    return block


def ref_of(block: Block) -> ChunkRef:
    """Of a block that is stored."""
    assert block.ref is not None
    return block.ref


_numbers = itertools.count()


def fresh(size: int = 1000) -> bytes:
    """Content that no other call gives, and that does not shrink much."""
    return b"%d " % next(_numbers) + ObjectId().binary * (size // 12 + 1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in the background and tells nobody."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


@pytest.fixture
def world(servers: Servers, new_database: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[World]:
    """On the servers that all tests share; an indirect parameter is the codec."""
    world = World(servers, new_database, getattr(request, "param", "none"))
    yield world
    world.close()


@pytest.fixture
def private_world(private_servers: Servers) -> Iterator[World]:
    """With servers that the test may kill."""
    numbers = itertools.count(1)
    world = World(private_servers, lambda: f"t{next(numbers)}")
    yield world
    world.close()
