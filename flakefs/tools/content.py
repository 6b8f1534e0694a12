"""Checks the index of chunks against the extents that name them, and the counts of volumes.

Purpose
    Reference counts are exact by design (design.md section 4), so the check is: count again and compare.

Invariants
    F4  Memory is bounded by PART_CHUNKS chunks, however many there are: hashes are counted in parts by their first
        two bytes, each part in a walk of its own.

Concurrency
    One thread, blocking, on one Reader.

Not here
    Whether chunks are on their nodes (tools.chunks).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from bson.binary import Binary
from bson.int64 import Int64

from flakefs.errors import Damaged
from flakefs.format import documents as d
from flakefs.format.documents import Document, IndexRecord
from flakefs.format.hashing import HASH_BYTES, OWN_NAME_BYTES, own_code_of, valid_name
from flakefs.format.records import VolumeRecord
from flakefs.format.windows import CHUNK_SIZE_MAX
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader
from flakefs.values import ChunkRef, Extent

PART_CHUNKS = 400_000
"""About 150 MB of Python objects."""
BUCKETS = 65_536


class Tally:
    """How many extents name each chunk whose hash lies in one part of all hashes."""

    def __init__(self, first: int, stop: int) -> None:
        self.first = first
        self.stop = stop
        self.named: dict[ChunkRef, list[int]] = {}
        """Chunk -> [number of extents, one inode that names it]."""
        self.extents = 0

    def take(self, ino: int, extents: list[Extent]) -> None:
        for extent in extents:
            ref = extent.source
            if not isinstance(ref, ChunkRef):
                continue
            self.extents += 1
            if self.first <= int.from_bytes(ref.hash[:2], "big") < self.stop:
                entry = self.named.get(ref)
                if entry is None:
                    self.named[ref] = [1, ino]
                else:
                    entry[0] += 1


class Index:
    """The check of all parts, one after the other."""

    def __init__(self, reader: Reader, report: Report, volumes: Mapping[int, VolumeRecord]) -> None:
        self._reader = reader
        self._report = report
        self._volumes = volumes
        self._chunks: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._unknown: defaultdict[int, int] = defaultdict(int)

    def tallies(self) -> Iterator[Tally]:
        """One for each part; the first is filled by the walk over the inodes, the others by walk_extents()."""
        counted = self._reader.aggregate(d.CHUNKS, [{"$count": "n"}])
        parts = 1 + (counted[0]["n"] if counted else 0) // PART_CHUNKS
        for part in range(parts):
            yield Tally(BUCKETS * part // parts, BUCKETS * (part + 1) // parts)

    def walk_extents(self, tally: Tally) -> None:
        """Count again for another part; what cannot be read was named by the first walk."""
        for document in self._reader.stream(d.INODES, {"e": {"$exists": True}}, fields={"e": 1}):
            self._take(tally, document["_id"], document)
        for document in self._reader.stream(d.EXTENTS, page=100):
            self._take(tally, document["_id"].get("i", 0), document)

    def _take(self, tally: Tally, ino: int, document: Document) -> None:
        try:
            tally.take(ino, [d.read_extent(e) for e in document["e"]])
        except d.UNREADABLE:
            return

    def compare(self, tally: Tally) -> None:
        """The index entries of this part against the tally, which is used up."""
        doubtful: dict[bytes, tuple[IndexRecord, int]] = {}
        for record in self._entries(tally):
            named = tally.named.pop(record.ref, None)
            count = named[0] if named else 0
            if count != record.refs:
                doubtful[record.ref.hash] = (record, count)
        for ref, (count, ino) in tally.named.items():
            self._misnamed(ref, count, ino, doubtful)
        for record, count in doubtful.values():
            self._miscounted(record, count)

    def _entries(self, tally: Tally) -> Iterator[IndexRecord]:
        for wanted in _ranges(tally):
            yield from self._read_entries(wanted)

    def _read_entries(self, wanted: Document) -> Iterator[IndexRecord]:
        for document in self._reader.stream(d.CHUNKS, wanted, page=5_000):
            self._report.counts["chunks"] += 1
            try:
                record = d.read_index(document)
            except Damaged as error:
                self._report.add("unreadable-document", f"index entry {document['_id']!r}", str(error))
                continue
            self._check_entry(record)
            yield record

    def _check_entry(self, record: IndexRecord) -> None:
        ref = record.ref
        where = f"chunk {ref.hash.hex()}"
        sizes = (
            isinstance(ref.length, int) and 1 <= ref.length <= CHUNK_SIZE_MAX and 1 <= record.stored_bytes <= ref.length
        )
        if not valid_name(ref.hash) or not sizes or record.refs < 1:
            said = f"length {ref.length}, stored {record.stored_bytes}, references {record.refs}"
            self._report.add("index-wrong", where, said)
        self._chunks[ref.volume] += 1
        self._bytes[ref.volume] += record.stored_bytes
        volume = self._volumes.get(ref.volume)
        if volume is None:
            self._unknown[ref.volume] += 1
        elif (code := own_code_of(ref.hash)) != (has := volume.code if volume.own else ""):
            said = f"asks for {_replication(code)}, volume {volume.id} is of {_replication(has)}"
            self._report.add("chunk-class", where, said)

    def _misnamed(self, ref: ChunkRef, count: int, ino: int, doubtful: dict[bytes, tuple[IndexRecord, int]]) -> None:
        """Extents name *ref*, and no index entry is just that."""
        where = f"inode {ino}"
        if ref.hash in doubtful:
            record, so_far = doubtful[ref.hash]
            doubtful[ref.hash] = (record, so_far + count)
        else:
            document = self._reader.one(d.CHUNKS, Binary(ref.hash))
            if document is None:
                said = f"chunk {ref.hash.hex()} in volume {ref.volume}, named by {count} extents, is not in the index"
                self._report.add("index-missing", where, said, ref=ref, count=count)
                return
            try:
                record = d.read_index(document)
            except Damaged:
                return  # named already
            doubtful[ref.hash] = (record, record.refs + count)
        if record.ref != ref:
            said = f"chunk {ref.hash.hex()}: {count} extents say {_place(ref)}, the index says {_place(record.ref)}"
            self._report.add("locator-differs", where, said, ref=ref, index=record.ref)

    def _miscounted(self, record: IndexRecord, count: int) -> None:
        ref = record.ref
        where = f"chunk {ref.hash.hex()}"
        if count == 0:
            self._report.add("index-unused", where, f"counts {record.refs} extents, there is none", hash=ref.hash)
        elif count != record.refs:
            kind = "refcount-low" if record.refs < count else "refcount-high"
            self._report.add(
                kind, where, f"counts {record.refs} extents, there are {count}", hash=ref.hash, count=count
            )

    def finish(self) -> None:
        """When all parts are compared: what the volumes say they hold."""
        for volume, count in sorted(self._unknown.items()):
            said = f"{count} index entries name it"
            self._report.add("index-volume-unknown", f"volume {volume}", said, volume=volume)
        for record in self._volumes.values():
            found = (self._chunks[record.id], self._bytes[record.id])
            if found != (record.chunks, record.bytes):
                said = f"says {record.chunks} chunks of {record.bytes} bytes, the index has {found[0]} of {found[1]}"
                facts = {"chunks": Int64(found[0]), "bytes": Int64(found[1])}
                self._report.add("volume-counts", f"volume {record.id}", said, volume=record.id, counts=facts)


def _ranges(tally: Tally) -> list[Document]:
    """Queries for the entries of one part. Ids are ordered by length first, so each length is a range of its own.

    The outermost ranges are open, for ids of wrong lengths and types.
    """
    if tally.first == 0 and tally.stop == BUCKETS:
        return [{}]
    ranges: list[Document] = []
    for length in (HASH_BYTES, OWN_NAME_BYTES):
        bounds: Document = {}
        if tally.first:
            bounds["$gte"] = Binary(tally.first.to_bytes(2, "big") + bytes(length - 2))
        elif length == OWN_NAME_BYTES:
            bounds["$gt"] = Binary(b"\xff" * HASH_BYTES)
        if tally.stop < BUCKETS:
            bounds["$lt"] = Binary(tally.stop.to_bytes(2, "big") + bytes(length - 2))
        elif length == HASH_BYTES:
            bounds["$lte"] = Binary(b"\xff" * HASH_BYTES)
        ranges.append({"_id": bounds})
    return ranges


def _replication(code: str) -> str:
    return f"replication {code}" if code else "the default replication"


def _place(ref: ChunkRef) -> str:
    return f"volume {ref.volume}, key {ref.key.hex()}, length {ref.length}"
