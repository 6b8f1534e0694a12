"""Putting a good copy of a chunk in the place of a bad one.

Purpose
    A background task: what a read found bad on one node, while another one answered well, is copied from there.

Invariants
    HL1  Only a copy that was hashed is copied, and it is journaled on arrival. Its document is taken as it is but for
         its label, which is made the right one, so that all replicas hold the same bytes.
    HL2  Nothing is resurrected: a damaged copy is replaced only where it still is; a missing one is inserted only while
         the index names the chunk and the volume names the node, and taken back when they do not any more afterwards.
    HL3  At most QUEUE_MAX copies wait; the next read of what found no room finds it again. Reads never wait for this.
    HL4  An engine that was opened for reading only counts what it finds.

Concurrency
    Trio thread, one task; the copying in a worker thread of the bad node's door.

Not here
    Finding bad copies (engine.asking), copies that nobody reads, whole replicas (tools).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial

import trio
from bson.binary import Binary
from bson.objectid import ObjectId
from pymongo.read_concern import ReadConcern

from flakefs.engine.copies import Answer, documents_sync, judge
from flakefs.engine.nodes import Node
from flakefs.engine.volumes import Volume
from flakefs.errors import ChunkMissing, FlakeError
from flakefs.format.documents import CHUNKS, VOLUMES, Document, read_index
from flakefs.mongo.door import Door
from flakefs.values import ChunkRef

log = logging.getLogger(__name__)

QUEUE_MAX = 1000
LOG_SECONDS = 60.0
"""One line for each node in this time, however many bad copies it has."""


class Healer:
    def __init__(self, metadata: Door, database: str, *, writable: bool) -> None:
        # Dependencies
        self._metadata = metadata
        self._database = metadata.client[database]
        # Constant after construction
        self._writable = writable
        # Mutable; changed only between awaits
        self._waiting: dict[tuple[Node, ChunkRef], tuple[Volume, Answer]] = {}
        """In the order of their finding; the head stays in it while it is healed."""
        self._work = trio.Event()
        self._logged: dict[int, float] = {}
        """When a line about a node was written."""
        self.found = 0
        self.healed = 0

    def found_bad(self, volume: Volume, node: Node, ref: ChunkRef, bad: Answer) -> None:
        """*node* has no good copy of *ref*, but another one has. Never waits."""
        if (node, ref) in self._waiting:
            return
        self.found += 1
        if not self._writable:
            self._tell(node, ref, bad, "while another replica has a good one: a mount that may write puts it right")
        if self._writable and len(self._waiting) < QUEUE_MAX:  # HL3, HL4
            self._waiting[node, ref] = volume, bad
            self._work.set()

    def waiting(self) -> int:
        return len(self._waiting)

    async def run_forever(self) -> None:
        while True:
            while not self._waiting:
                self._work = trio.Event()
                await self._work.wait()
            (node, ref), (volume, bad) = next(iter(self._waiting.items()))
            try:
                if await self._heal(node, ref, volume, missing=isinstance(bad, ChunkMissing)):
                    self.healed += 1
                    self._tell(node, ref, bad, "and was put right from another replica")
            except FlakeError as error:
                log.info("a bad copy stays as it is until it is read again: %s", error)
            except Exception:
                log.exception("bug in FlakeFS while healing a chunk")
            finally:
                self._waiting.pop((node, ref), None)

    def _tell(self, node: Node, ref: ChunkRef, bad: Answer, what: str) -> None:
        now = trio.current_time()
        if now - self._logged.get(node.record.id, -LOG_SECONDS) < LOG_SECONDS:
            return
        self._logged[node.record.id] = now
        log.warning(
            "the copy of chunk %s (key %s) in volume %d on %s was %s, %s",
            ref.hash.hex()[:12],
            ref.key.hex(),
            ref.volume,
            node.title,
            "missing" if isinstance(bad, ChunkMissing) else "damaged",
            what,
        )

    async def _heal(self, node: Node, ref: ChunkRef, volume: Volume, *, missing: bool) -> bool:
        """HL1, HL2; False when it is not to be healed (any more)."""
        if node.problem is not None or not await self._metadata.run(partial(self._named_sync, node, ref), abandon=True):
            return False
        document = await self._good_copy(node, ref, volume)
        if document is None:
            return False
        healed = await node.door.run(partial(put_copy_sync, node, volume.collection, document, missing=missing))
        if healed and missing and not await self._metadata.run(partial(self._named_sync, node, ref)):
            await node.door.run(partial(node.delete_sync, volume.collection, [ref.key]))
            return False
        return healed

    def _named_sync(self, node: Node, ref: ChunkRef) -> bool:
        """Does the index name the chunk, and its volume the node?"""
        majority = ReadConcern("majority")
        index = self._database.get_collection(CHUNKS, read_concern=majority)
        entry = index.find_one({"_id": Binary(ref.hash)})
        if entry is None or read_index(entry).ref != ref:
            return False
        volumes = self._database.get_collection(VOLUMES, read_concern=majority)
        return volumes.find_one({"_id": ref.volume, "nodes": node.record.id}) is not None

    async def _good_copy(self, bad: Node, ref: ChunkRef, volume: Volume) -> Document | None:
        """From whichever node has one, verified (HL1)."""
        error: FlakeError | None = None
        for node in sorted(_others(volume.nodes, bad), key=lambda node: node.problem is not None):
            try:
                document = await node.door.run(
                    partial(good_copy_sync, node, volume.collection, volume.record.id, ref), abandon=True
                )
            except FlakeError as failure:
                error = failure
                continue
            if document is not None:
                return document
        if error is not None:
            raise error
        return None


def good_copy_sync(node: Node, collection: str, volume: int, ref: ChunkRef) -> Document | None:
    """The document of *ref* on *node* when it is a good copy. Runs inside the door."""
    document = documents_sync(node, collection, [ref]).get(ref.key)
    answer = judge(ref, document, f"volume {volume} on {node.title}")
    return document | {"h": ref.hash} if document is not None and isinstance(answer, bytes) else None


def put_copy_sync(node: Node, collection: str, document: Document, *, missing: bool) -> bool:
    """Put a good copy in its place on *node*, durable on return; False when there is nothing to replace (HL2).

    *missing*: insert it when it is not there. Runs inside the door.
    """
    node.introduce_sync()
    if missing:
        node.barrier_sync()  # raises Refused when the database was emptied: nothing is put into one that is not ours
        node.create_volume_sync(collection)
    chunks = node.collection(collection, journaled=True)
    key: ObjectId = document["_id"]
    result = chunks.replace_one({"_id": key}, document, upsert=missing)
    return bool(result.matched_count or result.upserted_id)


def _others(nodes: Iterable[Node], bad: Node) -> Sequence[Node]:
    return [node for node in nodes if node is not bad]
