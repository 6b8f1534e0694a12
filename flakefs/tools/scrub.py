"""Reads every copy of every chunk on every node, and mends what has rotted.

Purpose
    Disks forget. `scrub()` compares the content of each copy with the hash of its name, and puts a good copy from
    another node in the place of a bad or a missing one, while there still is one.

Invariants
    SC1  A copy is called good only after its bytes were decoded and had the hash of the chunk's name, and only such
         bytes are written over another copy.
    SC2  Nothing is called lost while a node that should have a copy does not answer.
    SC3  It is interrupted anywhere and goes on where it was: what the document `scrub` of the collection `work` says
         is read, is judged. What was judged last is judged again.
    SC4  One scrub runs at a time.
    SC5  Memory does not depend on the number of chunks.

Concurrency
    Blocks. Beside mounts that write; what it mends in a volume, it mends under its lease.

Not here
    Deleting what nobody names (tools.gc), nodes that lost everything (tools.refill).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from time import monotonic, time_ns
from typing import TypeVar

from bson.binary import Binary
from bson.objectid import ObjectId
from pymongo.write_concern import WriteConcern

from flakefs.errors import Damaged, Fenced, FlakeError, HeldElsewhere
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.records import VolumeRecord, read_volume
from flakefs.format.verifying import verify
from flakefs.format.work import SCRUB, ScrubRecord, read_scrub
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import boot_id, identity, process_lives
from flakefs.tools import chunks, lost
from flakefs.tools.chunks import Node, Resolve, born
from flakefs.tools.fleet import Fleet, open_fleet
from flakefs.tools.holders import server_time
from flakefs.tools.lease import VolumeTaken, volume_lease
from flakefs.tools.mend_copies import Outcome
from flakefs.tools.moving import Watch
from flakefs.tools.rate import Rate
from flakefs.tools.reader import Reader
from flakefs.tools.refill import Repair
from flakefs.values import ChunkRef, readable

T = TypeVar("T")

PAGE_BYTES = 16 * 1024 * 1024
PAGE_CHUNKS = 256
DOUBTS_MAX = 5_000
"""Keys looked for in the index together: each time costs a walk over the index entries of the volume."""
SAVE_SECONDS = 5.0
SILENT_SECONDS = 300.0
"""A scrub on another machine that has not said anything for so long has ended."""
YOUNG_SECONDS = 3600.0
"""Chunks younger than this may wait for their commit."""
LOST_MAX = 10_000
"""Names of lost chunks kept in the document."""
DURABLE = WriteConcern("majority", j=True)


@dataclass(slots=True)
class Scrubbed:
    """What scrub() found and did, what an interrupted one did before included."""

    read: int = 0
    """Copies of chunks."""
    bytes: int = 0
    mended: int = 0
    """Copies that had rotted."""
    refilled: int = 0
    """Copies that were missing."""
    extra: int = 0
    """Copies of chunks that nobody names any more; gc frees them."""
    lost_chunks: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    """Path of a file -> number of its chunks that have no good copy."""
    waiting: list[str] = field(default_factory=list)
    """What could not be looked at or mended, in sentences."""
    resumed: bool = False

    @property
    def sound(self) -> bool:
        return not self.waiting and not self.lost_chunks

    def text(self) -> str:
        lines = ["went on with the scrub that was interrupted"] if self.resumed else []
        lines.append(f"read {self.read} copies of chunks, {readable(self.bytes)}")
        if self.mended or self.refilled:
            lines.append(f"mended {self.mended} copies that had rotted, {self.refilled} that were missing")
        if self.extra:
            lines.append(f"{self.extra} copies belong to no file; flakefs gc frees them")
        lines += lost.report(self.lost, self.lost_chunks)
        lines += self.waiting
        lines.append("every copy is good" if self.sound else "not every copy is good")
        return "\n".join(lines)


def scrub(
    metadata: Door,
    database: str,
    resolve: Resolve,
    *,
    rate: float | None = None,
    restart: bool = False,
    watch: Watch | None = None,
) -> Scrubbed:
    """*rate*: bytes a second. *restart*: from the beginning, whatever was interrupted.

    Raises HeldElsewhere while another one runs, NotFormatted, Unavailable and Refused (of the metadata server).
    """
    with open_fleet(metadata, database, resolve) as fleet:
        place = _Place(metadata, database)
        record, resumed = place.take(restart)
        work = _Scrub(fleet, place, record, watch or Watch(), Rate(rate))
        work.done.resumed = resumed
        work.refill()
        work.read()
        work.finish()
        return work.done


class _Place:
    """SC3, SC4: the document that says how far it is."""

    def __init__(self, door: Door, database: str) -> None:
        self._door = door
        self._work = door.client[database].get_collection(d.WORK, write_concern=DURABLE)
        self._saved = 0.0
        self._mine: Document = {}

    def take(self, restart: bool) -> tuple[ScrubRecord, bool]:
        """Where to begin, and whether that is the middle."""
        found = self._door.run_sync(lambda: self._work.find_one({"_id": SCRUB}))
        record = None
        if found is not None:
            try:
                record = read_scrub(found)
            except Damaged:
                if not restart:
                    raise
        if record is not None and self._lives(record, found):
            raise HeldElsewhere(f"a scrub runs already, as process {record.pid} on host {record.host}: wait for it")
        me = identity()
        who = {"boot": me["boot"], "pid": int(me["pid"]), "start": int(me["start"]), "host": me["host"]}
        if record is None or restart:
            taken, resumed = ScrubRecord(began=time_ns(), **who), False
        else:
            taken, resumed = replace(record, **who), True
        before = {"_id": SCRUB} if found is None else {"_id": SCRUB, "beat": found.get("beat")}
        self._mine = {"_id": SCRUB, "boot": taken.boot, "pid": taken.pid, "start": taken.start, "began": taken.began}
        update = _with_beat(taken)

        def take_sync() -> bool:
            return self._work.update_one(before, update, upsert=found is None).matched_count == 1 or found is None

        if not self._door.run_sync(take_sync):
            raise HeldElsewhere("another scrub began at the same moment: wait for it")
        return taken, resumed

    def save(self, record: ScrubRecord, *, now: bool = False) -> None:
        """From time to time, or *now*."""
        if not now and monotonic() - self._saved < SAVE_SECONDS:
            return
        update = _with_beat(record)
        if not self._door.run_sync(lambda: self._work.update_one(self._mine, update).matched_count):
            raise Fenced("another scrub has taken over: this one ends")
        self._saved = monotonic()

    def end(self) -> None:
        self._door.run_sync(lambda: self._work.delete_one(self._mine))

    def _lives(self, record: ScrubRecord, found: Document | None) -> bool:
        if record.boot == boot_id():
            return record.pid != identity()["pid"] and process_lives(record.pid, record.start)
        beat = (found or {}).get("beat")
        return isinstance(beat, datetime) and beat.replace(tzinfo=None) + timedelta(
            seconds=SILENT_SECONDS
        ) > server_time(self._door)


def _with_beat(record: ScrubRecord) -> list[Document]:
    return [{"$replaceWith": {"$mergeObjects": [{"$literal": record.document()}, {"beat": "$$NOW"}]}}]


class _Scrub:
    """One scrub()."""

    def __init__(self, fleet: Fleet, place: _Place, record: ScrubRecord, watch: Watch, rate: Rate) -> None:
        self.done = Scrubbed()
        self._fleet = fleet
        self._place = place
        self._record = record
        self._watch = watch
        self._rate = rate
        self._uuid = fleet.format.uuid
        self._reader = Reader(fleet.door, fleet.database, None)
        self._repair = Repair(fleet, None, watch, rate)
        self._lost = set(record.lost)
        self._page = max(1, min(PAGE_CHUNKS, PAGE_BYTES // fleet.format.chunk_size))
        self._oldest = server_time(fleet.door) - timedelta(seconds=YOUNG_SECONDS)

    def refill(self) -> None:
        """What copies lack."""
        self._repair.check_marks()
        self._repair.refill()
        self.done.refilled = self._repair.done.chunks
        self._lost |= self._repair.lost

    def read(self) -> None:
        """Every copy that is there, from the place where it was interrupted."""
        for id in sorted(self._fleet.volumes):
            if id < self._record.volume:
                continue
            document = self._reader.one(d.VOLUMES, id)
            if document is None:
                continue  # dropped meanwhile
            volume = read_volume(document)
            for number in sorted(volume.nodes):
                if (id, number) < (self._record.volume, self._record.node) or not self._fleet.answers(number):
                    continue
                if (id, number) != (self._record.volume, self._record.node):
                    self._record = replace(self._record, volume=id, node=number, key=None, doubts=())
                node = self._fleet.nodes[number]
                self._watch.begin(f"volume {id} on node {number}", volume.bytes)
                with suppress(_NodeFailed):
                    self._read_copy(node, volume)
                self._watch.end()

    def finish(self) -> None:
        """Name what is lost, and forget the place."""
        waiting = self._repair.done.waiting
        for number, node in self._fleet.nodes.items():
            said = f"the copies on node {number} could not be read"
            if node.failure and self._fleet.on(number) and not any(f"node {number}:" in line for line in waiting):
                waiting.append(f"{said}: {node.failure}")
        self.done.waiting = waiting + self.done.waiting
        self.done.lost_chunks = len(self._lost)
        self.done.lost = lost.paths_of(self._reader, self._lost)
        record = self._record
        self.done.read, self.done.bytes = record.read, record.size
        self.done.mended, self.done.extra = record.mended, record.extra
        self._place.end()

    # -- one copy of one volume --

    def _read_copy(self, node: Node, volume: VolumeRecord) -> None:
        name = d.volume_collection(self._uuid, volume.id)
        wanted: Document = {"_id": {"$type": "objectId"}}
        pages = node.reader.pages(name, wanted, after=self._record.key, page=self._page)
        while page := _asked(node, lambda: next(pages, None)):
            doubts = self._judge(node, volume, page)
            size = sum(_size(document) for document in page)
            self._record = replace(
                self._record,
                key=page[-1]["_id"],
                read=self._record.read + len(page),
                size=self._record.size + size,
                doubts=(*self._record.doubts, *doubts),
            )
            if len(self._record.doubts) >= DOUBTS_MAX:
                self._resolve(node, volume)
            self._save()
            self._watch.advance(len(page), size)
            self._rate.spend(size, self._save)
        self._resolve(node, volume)

    def _save(self) -> None:
        self._place.save(self._record)

    def _judge(self, node: Node, volume: VolumeRecord, page: list[Document]) -> list[ObjectId]:
        """Mend what is bad. Keys that the index does not name by the chunk's own label are returned."""
        labels = [Binary(label) for e in page if (label := chunks.as_bytes(e.get("h")))]
        entries = {bytes(e["_id"]): e for e in self._reader.stream(d.CHUNKS, {"_id": {"$in": labels}})}
        doubts, bad = [], []
        for document in page:
            entry = entries.get(chunks.as_bytes(document.get("h")))
            if entry is None or entry.get("k") != document["_id"] or entry.get("v") != volume.id:
                doubts.append(document["_id"])
                continue
            try:
                ref = d.read_index(entry).ref
            except Damaged:
                continue  # fsck names it
            if verify(document, ref).flaw is not None:
                bad.append(ref)
        self._mend(node, volume, bad)
        return doubts

    def _resolve(self, node: Node, volume: VolumeRecord) -> None:
        """Chunks whose label the index does not know, or elsewhere: bad when it names their key, else extra."""
        doubts = set(self._record.doubts)
        bad = []
        wanted: Document = {"v": volume.id}
        for entry in self._reader.stream(d.CHUNKS, wanted, page=chunks.KEYS_PAGE) if doubts else ():
            if entry.get("k") in doubts:
                doubts.discard(entry["k"])
                try:
                    bad.append(d.read_index(entry).ref)
                except Damaged:
                    continue
        self._mend(node, volume, bad)
        old = [key for key in doubts if born(key) < self._oldest]
        extra = len(_asked(node, lambda: chunks.present(node, self._uuid, volume.id, old)))
        self._record = replace(self._record, doubts=(), extra=self._record.extra + extra)

    def _mend(self, node: Node, volume: VolumeRecord, bad: Iterable[ChunkRef]) -> None:
        for ref in bad:
            try:
                with volume_lease(
                    self._fleet.door, self._fleet.database, volume.id, f"mending a chunk on node {node.record.id}"
                ) as lease:
                    self._mend_one(node, lease.record(), ref)
            except VolumeTaken as error:
                self.done.waiting.append(f"chunk {ref.hash.hex()} on node {node.record.id} is bad, and {error}")

    def _mend_one(self, node: Node, volume: VolumeRecord, ref: ChunkRef) -> None:
        if node.record.id not in volume.nodes or not self._still_named(ref):
            return
        outcome = _asked(node, lambda: self._repair.copies.mend(node, ref, self._repair.sources(volume)))
        if outcome is Outcome.MENDED:
            self._record = replace(self._record, mended=self._record.mended + 1)
        elif outcome is Outcome.NONE_GOOD:
            silent = [number for number in volume.nodes if not self._fleet.answers(number)]
            if silent:  # SC2
                self.done.waiting.append(
                    f"chunk {ref.hash.hex()} on node {node.record.id} is bad, and node {silent[0]}, which may have a "
                    "good copy, does not answer"
                )
            else:
                self._lost.add(ref.hash)
                self._record = replace(self._record, lost=tuple(sorted(self._lost)[:LOST_MAX]))

    def _still_named(self, ref: ChunkRef) -> bool:
        return bool(chunks.still_indexed(self._reader, ref.volume, {ObjectId(ref.key): ref.hash}))


class _NodeFailed(Exception):
    """The node's `failure` says how; failures of the metadata server end the scrub instead."""


def _asked(node: Node, call: Callable[[], T]) -> T:
    try:
        return call()
    except FlakeError as error:
        node.failure = error
        raise _NodeFailed from error


def _size(document: Document) -> int:
    data = document.get("d")
    return len(data) if isinstance(data, bytes) else 0
