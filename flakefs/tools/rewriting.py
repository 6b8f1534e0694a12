"""Writing a volume's collection anew on one node: what gives the disk space of deleted chunks back.

Purpose
    MongoDB uses the space of deleted documents again but never shrinks a collection's file. So the documents that are
    left are copied, on the server itself, to a fresh collection that then takes the place of the old one.

Invariants
    RW1  Every chunk that lies in the old collection when the copy is compared with it lies, journaled, in the new one
         before that takes its place; the exchange is one step of the server.
    RW2  What an attempt that ended half-way has left bears a name that no volume has; the next attempt drops it.

Concurrency
    Blocks; under the volume's lease, when nobody inserts into it any more. Chunks deleted meanwhile may come back as
    leaks, which gc frees. A reader that meets the exchange asks again (engine.reader).

Not here
    Which volumes are worth it (tools.vacuum).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bson.objectid import ObjectId
from pymongo.collection import Collection
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from flakefs.engine.nodes import create_chunk_collection
from flakefs.errors import Conflict
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.tools.chunks import KEYS_PAGE, Node

SUFFIX = "_vacuum"
STEP_BYTES = 64 * 1024 * 1024
"""Copied in one call,"""
STEP_KEYS = 5_000
"""and at most so many chunks."""
STEP_SECONDS = 300.0
ROUNDS_MAX = 5
"""Comparisons until nothing is missing; only readers that heal a copy add anything meanwhile."""
JOURNALED = WriteConcern("majority", j=True)
NAMESPACE_NOT_FOUND = 26

Copied = Callable[[int], None]
"""Told how many bytes were copied; may raise to end the work."""


class Filling(NamedTuple):
    """A volume's collection on one node, as the server measures it; bytes."""

    chunks: int
    content: int
    """Of the documents."""
    file: int
    """On disk."""
    free: int
    """Of the file, what holds nothing."""


def measure(node: Node, uuid: str, volume: int) -> Filling:
    """How full a volume's file is; all 0 when there is no collection."""
    collection = node.reader.collection(d.volume_collection(uuid, volume))

    def call() -> Document:
        try:
            found = list(collection.aggregate([{"$collStats": {"storageStats": {}}}]))
        except OperationFailure as error:
            if error.code != NAMESPACE_NOT_FOUND:
                raise
            found = []
        stats: list[Document] = [entry["storageStats"] for entry in found]  # one for each shard
        names = ("count", "size", "storageSize", "freeStorageSize")
        return {name: sum(int(entry.get(name, 0)) for entry in stats) for name in names}

    sums = node.door.run_sync(call)
    file = sums["storageSize"]
    # What is deleted counts as free only after a checkpoint, and thinned-out pages never do: so both are looked at.
    free = min(file, max(sums["freeStorageSize"], file - sums["size"] - sums["size"] // 8 - 64 * 1024))
    return Filling(sums["count"], sums["size"], file, max(0, free))


def copy_name(uuid: str, volume: int) -> str:
    return d.volume_collection(uuid, volume) + SUFFIX


def unfinished_copies(node: Node, uuid: str) -> list[str]:
    """RW2: collections that interrupted attempts have left on *node*."""
    prefix = d.volume_collection(uuid, 0).removesuffix("0")
    home = node.door.client[node.record.database]
    names = node.door.run_sync(lambda: home.list_collection_names(filter={"name": {"$regex": f"^{prefix}"}}))
    return sorted(name for name in names if name.endswith(SUFFIX))


def drop_unfinished(node: Node, uuid: str, volume: int) -> None:
    home = node.door.client[node.record.database]
    name = copy_name(uuid, volume)
    node.door.run_sync(lambda: home.drop_collection(name))


def rewrite(node: Node, uuid: str, volume: int, copied: Copied) -> None:
    """RW1."""
    home: Any = node.door.client[node.record.database]
    old, new = home[d.volume_collection(uuid, volume)], home[copy_name(uuid, volume)]
    drop_unfinished(node, uuid, volume)
    node.door.run_sync(lambda: create_chunk_collection(home, new.name))
    filling = measure(node, uuid, volume)
    step = max(1, min(STEP_KEYS, STEP_BYTES * filling.chunks // max(1, filling.content)))
    average = filling.content // max(1, filling.chunks)
    for keys in _pages(node, old.name, step):
        _copy(node, old, new.name, {"$gte": keys[0], "$lte": keys[-1]})
        copied(len(keys) * average)
    for _ in range(ROUNDS_MAX):
        missing = list(_missing(node, old.name, new.name))
        if not missing:
            break
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            _copy(node, old, new.name, {"$in": batch})
            copied(len(batch) * average)
    else:
        raise Conflict(f"volume {volume} on node {node.record.id} is being written to: try again")
    copied(0)

    def exchange() -> None:
        home.client.admin.command(
            "renameCollection", f"{home.name}.{new.name}", to=f"{home.name}.{old.name}", dropTarget=True,
            writeConcern=JOURNALED.document,
        )  # fmt: skip

    node.door.run_sync(exchange, deadline_seconds=STEP_SECONDS)


def _copy(node: Node, old: Collection[Document], new: str, keys: Document) -> None:
    """On the server; what is there already stays."""
    pipeline: list[Document] = [
        {"$match": {"_id": keys}},
        {"$sort": {"_id": 1}},
        {"$merge": {"into": new, "on": "_id", "whenMatched": "keepExisting", "whenNotMatched": "insert"}},
    ]
    source = old.with_options(write_concern=JOURNALED)
    node.door.run_sync(lambda: source.aggregate(pipeline).close(), deadline_seconds=STEP_SECONDS)


def _pages(node: Node, name: str, size: int) -> Iterator[list[ObjectId]]:
    for page in node.reader.pages(name, fields={"_id": 1}, page=size):
        yield [document["_id"] for document in page]


def _missing(node: Node, old: str, new: str) -> Iterator[ObjectId]:
    """Keys of *old* that *new* lacks: both are walked in order, a page at a time."""
    copies = (document["_id"] for document in node.reader.stream(new, fields={"_id": 1}, page=KEYS_PAGE))
    copy = next(copies, None)
    for document in node.reader.stream(old, fields={"_id": 1}, page=KEYS_PAGE):
        while copy is not None and copy < document["_id"]:
            copy = next(copies, None)
        if copy is None or copy != document["_id"]:
            yield document["_id"]
