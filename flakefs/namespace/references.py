"""Reference counts of chunks: what a group of changes adds and takes away.

Invariants
    F1  `r` of an index entry is the number of extents that name the chunk; it changes in the transaction that
        stores them, by the difference between the extents of each changed segment and those of its last commit.
    F2  An extent names the locator that the index has for its hash: where the index knows another one than a new
        block, the index is right, and the block's own bytes are superfluous.

Concurrency
    Runs in a worker thread on what a cut took; nothing of it changes meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from bson.binary import Binary
from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.database import Database

from flakefs.format.documents import CHUNKS, VOLUMES, Document, IndexRecord, index_document, read_index
from flakefs.format.extents import references
from flakefs.namespace.maps import SegmentChange
from flakefs.values import Block, ChunkRef, Extent

FIND_BATCH = 5_000

Send = Callable[[str, str, list[Any]], int]
"""(kind of command, collection, statements) -> how many matched."""


class Delta:
    """What a group changes, by content hash."""

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self.locators: dict[bytes, list[ChunkRef]] = {}
        self.named: dict[Block, None] = {}
        self._stored_bytes: dict[bytes, int] = {}

    def add(self, change: SegmentChange) -> None:
        new, old = change.new, change.old
        start = common(new, old)
        for extent in new[start:]:
            source = extent.source
            if isinstance(source, Block):
                self.named[source] = None
                assert source.ref is not None
                self._stored_bytes[source.ref.hash] = source.stored_bytes
        difference = references(new[start:])
        difference.subtract(references(old[start:]))
        for ref, count in difference.items():
            self.counts[ref.hash] += count
            locators = self.locators.setdefault(ref.hash, [])
            if ref not in locators:
                locators.append(ref)

    def stored_bytes(self, ref: ChunkRef) -> int:
        """What a new entry is entered with; an entry that was lost is entered with the plain length."""
        return self._stored_bytes.get(ref.hash, ref.length)


class Plan(NamedTuple):
    """What the index needs, given what it holds now."""

    inserts: list[Document]
    updates: list[Document]
    deletes: list[Document]
    volumes: dict[int, Counter[str]]
    instead: dict[ChunkRef, ChunkRef]
    """Locators that give way to the one the index has (F2)."""
    removed: list[IndexRecord]


def common(new: list[Extent], old: list[Extent]) -> int:
    """Length of the common beginning."""
    index = 0
    for one, other in zip(new, old, strict=False):
        if one is not other:
            break
        index += 1
    return index


def plan(db: Database[Document], session: ClientSession, delta: Delta) -> Plan:
    """Look the chunks up, within the transaction, and say what to write."""
    result = Plan([], [], [], {}, {}, [])
    # a hash with several locators needs a look even when its count stays
    hashes = [key for key, count in delta.counts.items() if count or len(delta.locators[key]) > 1]
    there: dict[bytes, IndexRecord] = {}
    for start in range(0, len(hashes), FIND_BATCH):
        wanted = [Binary(key) for key in hashes[start : start + FIND_BATCH]]
        for document in db[CHUNKS].find({"_id": {"$in": wanted}}, session=session, batch_size=FIND_BATCH):
            record = read_index(document)
            there[record.ref.hash] = record
    for key in hashes:
        _plan_one(result, delta, key, delta.counts[key], there.get(key))
    return result


def _plan_one(result: Plan, delta: Delta, key: bytes, count: int, entry: IndexRecord | None) -> None:
    right = entry.ref if entry is not None else delta.locators[key][0]
    for ref in delta.locators[key]:
        if ref != right:
            result.instead[ref] = right
    if entry is None:
        if count > 0:
            stored = delta.stored_bytes(right)
            result.inserts.append(index_document(right, stored, count))
            _volume(result, right.volume, chunks=1, bytes=stored)
    elif entry.refs + count <= 0:
        result.deletes.append({"q": {"_id": Binary(key)}, "limit": 1})
        result.removed.append(entry)
        _volume(result, right.volume, chunks=-1, bytes=-entry.stored_bytes, garbage=entry.stored_bytes)
    elif count:
        result.updates.append({"q": {"_id": Binary(key)}, "u": {"$inc": {"r": Int64(count)}}})


def _volume(result: Plan, volume: int, **amounts: int) -> None:
    result.volumes.setdefault(volume, Counter()).update(amounts)


def write(plan: Plan, send: Send) -> None:
    """The statements for index and volume counters."""
    send("delete", CHUNKS, plan.deletes)
    send("insert", CHUNKS, plan.inserts)
    send("update", CHUNKS, plan.updates)
    send(
        "update",
        VOLUMES,
        [
            {"q": {"_id": volume}, "u": {"$inc": {name: Int64(amount) for name, amount in amounts.items()}}}
            for volume, amounts in sorted(plan.volumes.items())
        ],
    )
