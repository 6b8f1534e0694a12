"""A connection to one storage node.

Purpose
    Everything that is sent to a node while a file system is open: probes, inserts, journaled writes, reads, deletes.

Invariants
    ND1  Chunks are read from and written to a database only after its marker said that it is this node of this file
         system.
    ND2  insert() answers with a server process that was noted before the insert began, and barrier() with one that was
         asked for after its journaled write. When the two are equal, one process lived from before the insert until
         after the write, so the journal holds both.
    ND3  After a failed call the noted process is forgotten: the next insert asks anew.
    ND4  Every probe looks at the marker again, and so does a journaled insert, which no barrier follows.

Concurrency
    Methods with `_sync` run in worker threads; they touch only what is constant after construction, the driver, and
    `_process`, whose assignment is atomic and safe in any order (ND2 holds for whichever value a thread sees, because
    every value was asked for before it was noted). What introduce_sync() finds is the same in every thread; nobody
    holds a lock while a server is asked (rule D1). The rest belongs to the trio thread.

Not here
    Which node takes chunks (engine.volumes), deadlines and error translation (mongo.door).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import trio
from bson.objectid import ObjectId
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure
from pymongo.write_concern import WriteConcern

from flakefs.errors import FlakeError, Refused
from flakefs.format.documents import NODE_MARKER, Document
from flakefs.format.records import NodeRecord
from flakefs.mongo.clients import connect, redacted, server_process
from flakefs.mongo.door import Door

DUPLICATE_KEY = 11000


class Disk(NamedTuple):
    """A node's disk as its server sees it; bytes."""

    host: str
    total: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)

    def same_as(self, other: Disk) -> bool:
        """Are these two looks at one disk? Two equal disks with equal content on one host pass as one, too."""
        return self.host == other.host and self.total == other.total and abs(self.used - other.used) * 50 <= self.total


class Node:
    def __init__(
        self,
        record: NodeRecord,
        uuid: str,
        resolve: Callable[[NodeRecord], str],
        *,
        deadline_seconds: float,
        threads: int,
    ) -> None:
        # Constant after construction
        self.uuid = uuid
        uri = resolve(record)
        self.title = f"node {record.id} ({redacted(uri)}, database {record.database})"
        client = connect(uri, purpose="chunks", deadline_seconds=deadline_seconds, max_pool=2 * threads + 4)
        self.door = Door(client, name=self.title, deadline_seconds=deadline_seconds, threads=threads)
        self.writers = trio.CapacityLimiter(threads)
        self._database = client[record.database]
        # From worker threads, see Concurrency
        self._process: bytes | None = None
        self._introduced = False
        self._majority = False
        self._host = ""
        # Trio thread
        self.record = record
        """Changed in place when its document changes, but for the address."""
        self.disk: Disk | None = None
        self.problem: FlakeError | None = None
        """Why the node is suspect; None when it answered last."""
        self.silent_until = 0.0
        """Reads are not sent to it before, while `problem` is set: one of them has just waited its whole deadline."""
        self.asked = False
        """Was it probed at least once?"""
        self.confirmed = False
        """Did it fail the last probe, too? Another failure may be a moment's."""
        self.probing: trio.Event | None = None
        self.next_disk_look = 0.0
        self.written_since_look = 0
        """Bytes that the last look at the disk may not have seen."""
        self.chunks = 0
        """In its volumes: indexed, not yet counted and in flight. Same for bytes."""
        self.bytes = 0

    def suspect(self, error: FlakeError) -> None:
        """It failed: no new chunks for it until a probe succeeds."""
        self.problem = error
        self._process = None  # ND3

    async def probe(self, deadline_seconds: float) -> Disk:
        """Make sure that it answers and is the right node, and look at its disk."""
        return await self.door.run(self._probe_sync, deadline_seconds=deadline_seconds, abandon=True)

    # -- in worker threads --

    def _probe_sync(self) -> Disk:
        self.introduce_sync()
        self._check_marker_sync()  # ND4
        if self._process is None:
            self._process = server_process(self.door.client)
        stats = self._database.command("dbStats")
        total, used = int(stats.get("fsTotalSize", 0)), int(stats.get("fsUsedSize", 0))
        return Disk(self._host, total or 1 << 50, used)

    def introduce_sync(self) -> None:
        """ND1; once, and again when the marker was missed. Raises Refused when the database belongs to somebody else.

        Runs inside the door.
        """
        if self._introduced:
            return
        self._check_marker_sync()
        hello = self.door.client.admin.command("hello")
        self._majority = "setName" in hello or hello.get("msg") == "isdbgrid"
        self._host = self._host_sync(hello)
        self._introduced = True

    def _check_marker_sync(self) -> None:
        try:
            check_mark(self._database[NODE_MARKER].find_one({"_id": self.uuid}), self.record.id, self.title)
        except Refused:
            self._introduced = False
            raise

    def _host_sync(self, hello: dict[str, Any]) -> str:
        """The machine, for telling disks apart."""
        try:
            name = self.door.client.admin.command("serverStatus", repl=0, metrics=0, locks=0, wiredTiger=0)["host"]
        except OperationFailure:  # not allowed to ask: where we connected has to do
            address = self.door.client.address
            name = hello.get("me") or (address[0] if address else "")
        return str(name).rsplit(":", 1)[0]

    def collection(self, name: str, *, journaled: bool = False) -> Collection[Document]:
        """A collection whose writes are acknowledged as they must be on this kind of server."""
        concern = WriteConcern(w="majority" if self._majority else 1, j=journaled or self._majority)
        return self._database.get_collection(name, write_concern=concern)

    def insert_sync(
        self,
        collection: str,
        documents: Sequence[Document],
        *,
        journaled: bool = False,
        deadline_seconds: float | None = None,
    ) -> bytes:
        """Insert; the server process to prove at the barrier (ND2), unless *journaled*: then it is durable on return.

        A document that is there already counts as inserted: keys are never used twice, so it is the same. What a failed
        call inserted is unknown.
        """

        def insert() -> bytes:
            self.introduce_sync()
            process = self._process
            if process is None:
                process = self._process = server_process(self.door.client)
            insert_new(self.collection(collection, journaled=journaled), documents)
            if journaled:  # ND4
                self._check_marker_sync()
            return process

        return self.door.run_sync(insert, deadline_seconds=deadline_seconds)

    def barrier_sync(self) -> bytes:
        """All acknowledged inserts of the process that this returns are durable (ND2). Runs inside the door."""
        self.introduce_sync()
        marker = self.collection(NODE_MARKER, journaled=True)
        if not marker.update_one({"_id": self.uuid}, {"$inc": {"hardened": 1}}).matched_count:
            self._introduced = False
            raise Refused(f"{self.title} has lost its mark of this file system: restore the data of that database")
        process = self._process = server_process(self.door.client)
        return process

    def read_sync(self, collection: str, keys: Sequence[bytes]) -> list[Document]:
        """The chunk documents that are there, in any order. Runs inside the door."""
        self.introduce_sync()
        source = self._database[collection]
        if len(keys) == 1:
            document = source.find_one({"_id": ObjectId(keys[0])})
            return [] if document is None else [document]
        wanted = [ObjectId(key) for key in keys]
        return list(source.find({"_id": {"$in": wanted}}, batch_size=len(wanted) + 1))

    def delete_sync(self, collection: str, keys: Sequence[bytes]) -> None:
        """Forget chunks; unknown keys are fine. Runs inside the door."""
        self.introduce_sync()
        self.collection(collection).delete_many({"_id": {"$in": [ObjectId(key) for key in keys]}})

    def create_volume_sync(self, collection: str) -> None:
        """An empty collection for a volume; one that is there already is fine. Runs inside the door."""
        self.introduce_sync()
        create_chunk_collection(self._database, collection)


def check_mark(marker: Mapping[str, Any] | None, node: int, title: str) -> None:
    """Raise Refused when the *marker* found in a database is not that of *node*, whose address led there."""
    if marker is None or marker.get("node") != node:
        whose = "bears no mark of this file system" if marker is None else f"is node {marker.get('node')}"
        raise Refused(
            f"{title} {whose}: the address leads to a wrong or an emptied database; correct it or restore the data"
        )


def insert_new(collection: Collection[Any], documents: Sequence[Any]) -> None:
    """Insert what is not there. A chunk under its own key is the same wherever it comes from: an answer was lost, or
    somebody else who copies it was faster.
    """
    try:
        collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        details: Mapping[str, Any] = error.details or {}
        problems = details.get("writeErrors") or ()
        acknowledged = not details.get("writeConcernErrors")
        if not problems or not acknowledged or any(p.get("code") != DUPLICATE_KEY for p in problems):
            raise


def create_chunk_collection(database: Any, collection: str) -> None:
    """Without compression: the codec has done what is worthwhile."""
    try:
        database.create_collection(
            collection, storageEngine={"wiredTiger": {"configString": "block_compressor=none"}}, check_exists=False
        )
    except OperationFailure as error:
        if error.code != 48:  # NamespaceExists
            raise
