"""The copies of whole volumes: makes one from the nodes that have its chunks, compares, drops one.

Purpose
    Moving a volume and making a new replica of it are the same work: `copy_volume()`, then `lacking()` to see that
    nothing is missing.

Invariants
    CO1  A chunk is copied as the document that it is, under its own key, and its content is compared with its hash on
         the way. One that is bad on a source is taken from another one; one that is bad on all is copied as it is, and
         named.
    CO2  What was copied is journaled when copy_volume() returns.
    CO3  The target says what it has already. So a copy that was interrupted goes on. What was there before is read, and
         replaced where it is bad and a source has a good one: it may have lain there for long, on a disk that fails.
    CO4  Only a node that bears its mark is read from or written to: an address may lead to a wrong database.

Concurrency
    Blocks; a thread of its own reads one batch ahead. The volume is to be sealed, and everybody to know it
    (tools.sealing); chunks may be deleted meanwhile.

Not here
    What a good chunk is (format.verifying), which node is the target, and what follows from a copy (tools.moving,
    tools.completing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from flakefs.engine import nodes
from flakefs.engine.nodes import create_chunk_collection, insert_new
from flakefs.format import documents as d
from flakefs.format.verifying import verify_by_label
from flakefs.tools.chunks import KEYS_PAGE, Node
from flakefs.tools.rate import Check, Rate

CHUNK_MAX = 8 * 1024 * 1024
BATCH_BYTES = 16 * 1024 * 1024
"""So much is read at once; twice as much is in memory, about."""
BATCH_CHUNKS_MAX = 500
CALL_SECONDS = 60.0
JOURNALED = WriteConcern("majority", j=True)

Advance = Callable[[int, int], None]
"""(chunks, stored bytes) that are now there; without bytes when they were there before."""


@dataclass(slots=True)
class Copied:
    """What copy_volume() did."""

    chunks: int = 0
    stored_bytes: int = 0
    mended: int = 0
    """Taken from another source, because the copy on the first was bad."""
    bad: list[tuple[ObjectId, bytes]] = field(default_factory=list)
    """(key, name) of chunks that are bad on all sources; copied as they are."""


def copy_volume(
    uuid: str,
    volume: int,
    sources: Sequence[Node],
    target: Node,
    *,
    chunk_size: int = CHUNK_MAX,
    check: Check = lambda: None,
    advance: Advance = lambda chunks, size: None,
    rate: Rate | None = None,
) -> Copied:
    """Give *target* every chunk of *volume* that one of *sources* has and it lacks. The first source is read most.

    *check* is called before each step and may raise (the lease is lost).
    """
    for node in (*sources, target):
        check_mark(node, uuid)
    name = d.volume_collection(uuid, volume)
    home = target.door.client[target.record.database]
    target.door.run_sync(lambda: create_chunk_collection(home, name), deadline_seconds=CALL_SECONDS)
    work = _Copy(name, sources, target, chunk_size)
    work.mend_target(check)
    together = max(1, min(BATCH_CHUNKS_MAX, BATCH_BYTES // chunk_size))
    rate = rate or Rate(None)
    with ThreadPoolExecutor(1, "copying") as ahead:
        for source in sources:
            batches = _batches(name, source, target, together, advance)
            coming = _submitted(ahead, work, source, batches)
            while coming is not None:
                documents = coming.result()
                check()
                coming = _submitted(ahead, work, source, batches)
                size = work.insert(documents)
                advance(len(documents), size)
                rate.spend(size, check)
    return work.done


def lacking(uuid: str, volume: int, sources: Sequence[Node], target: Node) -> Iterator[ObjectId]:
    """Keys of the volume that one of *sources* has and *target* has not."""
    name = d.volume_collection(uuid, volume)
    for source in sources:
        for _, missing in _compare(name, source, target):
            wanted = {"_id": {"$in": missing}}
            yield from (e["_id"] for e in source.reader.stream(name, wanted, fields={"_id": 1}) if missing)


def check_mark(node: Node, uuid: str) -> None:
    """CO4."""
    nodes.check_mark(node.reader.one(d.NODE_MARKER, uuid), node.record.id, node.door.name)


def drop_volume(node: Node, uuid: str, volume: int) -> None:
    """Forget the node's copy of a volume; fine when it has none. It must bear its mark (CO4)."""
    check_mark(node, uuid)
    home = node.door.client.get_database(node.record.database, write_concern=JOURNALED)
    name = d.volume_collection(uuid, volume)
    node.door.run_sync(lambda: home.drop_collection(name), deadline_seconds=CALL_SECONDS)


def _compare(name: str, source: Node, target: Node) -> Iterator[tuple[int, list[ObjectId]]]:
    """Page by page: how many keys of *source* are on *target*, and those that are not, ascending."""
    after: ObjectId | None = None
    for page in source.reader.pages(name, {"_id": {"$type": "objectId"}}, fields={"_id": 1}, page=KEYS_PAGE):
        keys = [document["_id"] for document in page]
        span = {"_id": {"$lte": keys[-1]} | ({} if after is None else {"$gt": after})}
        there = {document["_id"] for document in target.reader.stream(name, span, fields={"_id": 1}, page=KEYS_PAGE)}
        missing = [key for key in keys if key not in there]
        yield len(keys) - len(missing), missing
        after = keys[-1]


def _batches(name: str, source: Node, target: Node, together: int, advance: Advance) -> Iterator[list[ObjectId]]:
    """Keys that *target* lacks, as many as are copied together."""
    for there, missing in _compare(name, source, target):
        if there:
            advance(there, 0)
        for start in range(0, len(missing), together):
            yield missing[start : start + together]


def _submitted(
    ahead: ThreadPoolExecutor, work: _Copy, source: Node, batches: Iterator[list[ObjectId]]
) -> Future[list[RawBSONDocument]] | None:
    """The next batch on its way, while the one before it is being written; None: that was the last."""
    keys = next(batches, None)
    return None if keys is None else ahead.submit(work.read, source, keys)


class _Copy:
    """One copy_volume(). read() runs in a thread of its own, one batch ahead."""

    def __init__(self, name: str, sources: Sequence[Node], target: Node, chunk_size: int) -> None:
        self.done = Copied()
        self._name = name
        self._sources = sources
        self._target = target
        self._chunk_size = chunk_size

    def read(self, source: Node, keys: list[ObjectId]) -> list[RawBSONDocument]:
        """One batch, verified. A chunk that was deleted meanwhile is no more."""
        found = self._read(source, {"_id": {"$in": keys}})
        return [document if self._is_good(document) else self._other(source, document) for document in found]

    def mend_target(self, check: Check) -> None:
        """What is there already (CO3)."""
        after: ObjectId | None = None
        wanted: d.Document = {"_id": {"$type": "objectId"}}
        while page := self._page(wanted if after is None else {"_id": {"$gt": after}}):
            check()
            for document in page:
                if not self._is_good(document):
                    self._replace(document["_id"])
            after = page[-1]["_id"]

    def _is_good(self, document: RawBSONDocument) -> bool:
        return verify_by_label(document, self._chunk_size).flaw is None

    def _page(self, wanted: d.Document) -> list[RawBSONDocument]:
        collection = _raw(self._target, self._name)
        count = max(1, min(BATCH_CHUNKS_MAX, BATCH_BYTES // self._chunk_size))
        return self._target.door.run_sync(
            lambda: list(collection.find(wanted).sort("_id", 1).limit(count)), deadline_seconds=CALL_SECONDS
        )

    def _replace(self, key: ObjectId) -> None:
        """With a good one, if any."""
        collection = _raw(self._target, self._name)
        for source in self._sources:
            for good in self._read(source, {"_id": key}):
                if self._is_good(good):
                    call = partial(collection.replace_one, {"_id": key}, good)
                    self._target.door.run_sync(call, deadline_seconds=CALL_SECONDS)
                    self.done.mended += 1
                    return

    def insert(self, documents: list[RawBSONDocument]) -> int:
        """Journaled (CO2); the stored bytes."""
        if documents:
            call = partial(insert_new, _raw(self._target, self._name), documents)
            self._target.door.run_sync(call, deadline_seconds=CALL_SECONDS)
        size = sum(map(_stored_bytes, documents))
        self.done.chunks += len(documents)
        self.done.stored_bytes += size
        return size

    def _other(self, source: Node, bad: RawBSONDocument) -> RawBSONDocument:
        """The same chunk from a source whose copy is good; or the bad one (CO1)."""
        key = bad["_id"]
        for other in self._sources:
            if other is not source:
                for document in self._read(other, {"_id": key}):
                    if self._is_good(document):
                        self.done.mended += 1
                        return document
        self.done.bad.append((key, _label(bad)))
        return bad

    def _read(self, node: Node, wanted: d.Document) -> list[RawBSONDocument]:
        collection = _raw(node, self._name)
        return node.door.run_sync(lambda: list(collection.find(wanted).sort("_id", 1)), deadline_seconds=CALL_SECONDS)


def _raw(node: Node, name: str) -> Collection[RawBSONDocument]:
    """Documents as the bytes that they are; writes are journaled (CO2)."""
    options: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
    home = node.door.client[node.record.database]
    return home.get_collection(name, codec_options=options, write_concern=JOURNALED)  # type: ignore[return-value]


def _stored_bytes(document: RawBSONDocument) -> int:
    """As volumes are counted."""
    try:
        return len(document["d"])
    except (BSONError, KeyError, TypeError):
        return len(document.raw)


def _label(document: RawBSONDocument) -> bytes:
    try:
        return bytes(document["h"])
    except (BSONError, KeyError, TypeError, ValueError):
        return b""
