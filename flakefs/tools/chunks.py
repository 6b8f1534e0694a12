"""Compares the chunks that lie on nodes with the index that names them.

Purpose
    Both fsck and gc need the same answer: which keys of a volume does a node have that the index does not name, and
    the other way round. `compare()` gives it for all volumes of all nodes.

Invariants
    F5  Memory is bounded by WINDOW_KEYS keys: nodes are read window by window, in order of the key, and the index is
        read once a window.
    F6  Beside a live mount a difference counts only when it is still there in what is committed NOW: chunks are
        written before they are indexed, and deleted after.

Concurrency
    One thread, blocking.

Not here
    What follows from a difference (tools.nodes, tools.gc).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson.binary import Binary
from bson.objectid import ObjectId

from flakefs.engine.sweep import node_door
from flakefs.errors import FlakeError
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.records import NodeRecord, VolumeRecord
from flakefs.mongo.door import Door
from flakefs.tools.reader import Reader

Resolve = Callable[[NodeRecord], str]
"""From a node to the URI that leads to it from here."""

WINDOW_KEYS = 400_000
MISSING_KEYS = 20_000
"""So many missing ones of one stretch are handed out at a time."""
BATCH = 1_000
"""Keys in one query."""
KEYS_PAGE = 10_000
REACH_SECONDS = 10.0
"""A node that has not answered by then is unreachable."""


@dataclass(slots=True)
class Stretch:
    """The keys (*after*, *upto*] of one volume on one node; None is open. After compare(): the differences."""

    node: int
    volume: int
    after: ObjectId | None
    upto: ObjectId | None
    extra: set[ObjectId]
    """On the node and not in the index."""
    missing: dict[ObjectId, bytes] = field(default_factory=dict)
    """In the index and not on the node: key -> hash."""
    indexed: int = 0
    """In both."""


class Node:
    """A node that can be read, or why not."""

    def __init__(self, record: NodeRecord, door: Door | FlakeError) -> None:
        self.record = record
        self._door = door
        self.failure: FlakeError | None = door if isinstance(door, FlakeError) else None
        if isinstance(door, Door):
            self._reader = Reader(door, record.database, None)
            try:
                door.run_sync(lambda: door.client.admin.command("ping"), deadline_seconds=REACH_SECONDS)
            except FlakeError as error:
                self.failure = error

    @property
    def door(self) -> Door:
        """Raises when its address leads nowhere from here."""
        if isinstance(self._door, FlakeError):
            raise self._door
        return self._door

    @property
    def reader(self) -> Reader:
        """As door."""
        assert self.door
        return self._reader


@contextmanager
def open_nodes(records: Iterable[NodeRecord], resolve: Resolve) -> Iterator[dict[int, Node]]:
    """All nodes, those that cannot be used with their `failure`."""
    with ExitStack() as stack:
        nodes = {}
        for record in records:
            try:
                door: Door | FlakeError = stack.enter_context(node_door(record, resolve))
            except FlakeError as error:  # an address or a secret that there is only on another machine
                door = error
            nodes[record.id] = Node(record, door)
        yield nodes


def compare(
    metadata: Reader, uuid: str, volumes: Mapping[int, VolumeRecord], nodes: Mapping[int, Node]
) -> Iterator[Stretch]:
    """Every volume on every node that answers, in stretches. A node that fails on the way gets its `failure`."""
    window: list[Stretch] = []
    held = 0
    for node in nodes.values():
        for volume in volumes.values():
            if node.record.id not in volume.nodes or node.failure:
                continue
            try:
                for stretch in _stretches(node, uuid, volume.id):
                    window.append(stretch)
                    held += len(stretch.extra)
                    if held >= WINDOW_KEYS:
                        yield from _subtract_index(metadata, window)
                        window, held = [], 0
            except FlakeError as error:
                node.failure = error
    yield from _subtract_index(metadata, window)


def _stretches(node: Node, uuid: str, volume: int) -> Iterator[Stretch]:
    """Keys of one volume; together the stretches cover all possible keys."""
    after: ObjectId | None = None
    keys: set[ObjectId] = set()
    for page in node.reader.pages(d.volume_collection(uuid, volume), fields={"_id": 1}, page=KEYS_PAGE):
        keys.update(document["_id"] for document in page if isinstance(document["_id"], ObjectId))
        if len(keys) >= WINDOW_KEYS:
            upto = page[-1]["_id"]
            yield Stretch(node.record.id, volume, after, upto, keys)
            after, keys = upto, set()
    yield Stretch(node.record.id, volume, after, None, keys)


def _subtract_index(metadata: Reader, window: list[Stretch]) -> Iterator[Stretch]:
    """Take what the index names out of `extra`, and note what it names besides; much of that comes ahead, in parts."""
    by_volume: dict[int, list[Stretch]] = {}
    for stretch in window:
        by_volume.setdefault(stretch.volume, []).append(stretch)
    wanted: Document = {"v": {"$in": list(by_volume)}}
    for document in metadata.stream(d.CHUNKS, wanted, fields={"v": 1, "k": 1}, page=KEYS_PAGE) if window else ():
        key = document.get("k")
        if not isinstance(key, ObjectId):
            continue  # fsck names it when it checks the index
        for stretch in by_volume[document["v"]]:
            if (stretch.after is None or key > stretch.after) and (stretch.upto is None or key <= stretch.upto):
                if key in stretch.extra:
                    stretch.extra.discard(key)
                    stretch.indexed += 1
                else:
                    stretch.missing[key] = bytes(document["_id"])
                    if len(stretch.missing) >= MISSING_KEYS:  # F5: a node that was wiped lacks everything
                        yield Stretch(stretch.node, stretch.volume, stretch.after, stretch.upto, set(), stretch.missing)
                        stretch.missing = {}
    yield from window


def still_indexed(metadata: Reader, volume: int, keys: Mapping[ObjectId, bytes]) -> dict[ObjectId, bytes]:
    """Of chunks (key -> hash), those that the index names now. *metadata* must not be a snapshot (F6)."""
    found = {}
    for batch in batches(list(keys.items())):
        wanted = {"_id": {"$in": [Binary(content_hash) for _, content_hash in batch]}}
        places = {bytes(e["_id"]): (e.get("v"), e.get("k")) for e in metadata.stream(d.CHUNKS, wanted, page=BATCH)}
        found.update({key: content for key, content in batch if places.get(content) == (volume, key)})
    return found


def present(node: Node, uuid: str, volume: int, keys: Iterable[ObjectId]) -> set[ObjectId]:
    """Of these keys, those that are on the node now."""
    found: set[ObjectId] = set()
    name = d.volume_collection(uuid, volume)
    for batch in batches(list(keys)):
        found.update(e["_id"] for e in node.reader.stream(name, {"_id": {"$in": batch}}, fields={"_id": 1}))
    return found


def indexed_by_key(metadata: Reader, volume: int, keys: Iterable[ObjectId]) -> dict[ObjectId, bytes]:
    """Of these keys, those that the index names, whatever the hash: for chunks whose own label is in doubt. Slow."""
    found = {}
    for batch in batches(list(keys)):
        for entry in metadata.stream(d.CHUNKS, {"v": volume, "k": {"$in": batch}}, fields={"k": 1}):
            found[entry["k"]] = bytes(entry["_id"])
    return found


def describe(
    node: Node, uuid: str, volume: int, keys: Iterable[ObjectId]
) -> Iterator[list[tuple[ObjectId, bytes, int]]]:
    """(key, hash, stored bytes) of chunks on a node, in batches, without fetching their content."""
    data: Document = {"$cond": [{"$eq": [{"$type": "$d"}, "binData"]}, {"$binarySize": "$d"}, 0]}
    for batch in batches(sorted(keys)):
        pipeline: list[Document] = [{"$match": {"_id": {"$in": batch}}}, {"$project": {"h": 1, "n": data}}]
        found = node.reader.aggregate(d.volume_collection(uuid, volume), pipeline)
        yield [(e["_id"], as_bytes(e.get("h")), int(e["n"])) for e in found]


def born(key: ObjectId) -> datetime:
    """When a chunk was made, in UTC without a time zone."""
    return key.generation_time.replace(tzinfo=None)


def as_bytes(value: Any) -> bytes:
    """A label that may be damaged: what is no bytes is no hash."""
    return bytes(value) if isinstance(value, bytes) else b""


def batches(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
