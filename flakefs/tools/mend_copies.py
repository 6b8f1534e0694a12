"""Puts good copies of chunks where they are missing or broken.

Purpose
    What repair, scrub and fsck have in common.

Invariants
    CP1  Only what decodes and has the hash of its name is ever written to a node, under the chunk's own key, and
         journaled before the call returns.
    CP2  A chunk is written in place without more ado: it is immutable, writers and deleters go by its key, and who
         comes second finds the same bytes. A chunk that loses its name meanwhile becomes a leak, which gc frees.

Concurrency
    One thread, blocking. At most BATCH_BYTES of plain content are in memory.

Not here
    What a good copy is (format.verifying), which are missing (tools.chunks), whole volumes on new nodes
    (tools.volume_copies).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum

from bson.binary import Binary
from bson.objectid import ObjectId
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from flakefs.engine.nodes import create_chunk_collection, insert_new
from flakefs.errors import Damaged, FlakeError
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.verifying import verify
from flakefs.tools.chunks import BATCH, Node, batches
from flakefs.tools.reader import Reader
from flakefs.values import ChunkRef

BATCH_BYTES = 32 * 1024 * 1024
WRITE_SECONDS = 60.0


def named_now(metadata: Reader, volume: int, names: Iterable[bytes]) -> list[ChunkRef]:
    """Of these chunks, those that the index names in *volume* now. *metadata* must not be a snapshot."""
    found = []
    for batch in batches(list(names)):
        for entry in metadata.stream(d.CHUNKS, {"_id": {"$in": [Binary(name) for name in batch]}}, page=BATCH):
            try:
                record = d.read_index(entry)
            except Damaged:
                continue  # fsck names it
            if record.ref.volume == volume:
                found.append(record.ref)
    return found


class Outcome(Enum):
    """What came of mend()."""

    FINE = "fine"
    """The copy is good: somebody was faster."""
    MENDED = "mended"
    NONE_GOOD = "none good"
    """No node that answers has a good copy."""


class Copies:
    """The copies of chunks on the nodes that answer."""

    def __init__(self, uuid: str, nodes: Mapping[int, Node]) -> None:
        self._uuid = uuid
        self._nodes = nodes

    def fill(
        self, node: Node, refs: Sequence[ChunkRef], others: Sequence[int], advance: Callable[[int, int], None]
    ) -> Filled:
        """Give *node* the chunks *refs* of one volume, which it lacks, from good copies on *others*.

        *advance* is told (chunks, stored bytes) copied, and may raise.

        Raises the failure of *node*; another node that fails gets its `failure`.
        """
        filled = Filled()
        for batch in by_bytes(refs):
            missing = {ref.key: ref for ref in batch}
            for number in others:
                source = self._nodes.get(number)
                if not missing:
                    break
                if source is None or source is node or source.failure:
                    continue
                try:
                    good = self._good(source, list(missing.values()))
                except FlakeError as error:
                    source.failure = error
                    continue
                if good:
                    self._insert(node, batch[0].volume, good)
                size = sum(len(document["d"]) for document in good)
                for document in good:
                    del missing[document["_id"].binary]
                filled.chunks += len(good)
                filled.bytes += size
                advance(len(good), size)
            filled.lacking += missing.values()
        return filled

    def mend(self, node: Node, ref: ChunkRef, others: Iterable[int]) -> Outcome:
        """Put a good copy in the place of the bad one on *node*.

        When only its label is wrong, its own content is the good copy. Raises the failure of *node*.
        """
        for number in dict.fromkeys((node.record.id, *others)):
            source = self._nodes.get(number)
            if source is None or source.failure:
                continue
            try:
                document = source.reader.one(d.volume_collection(self._uuid, ref.volume), ObjectId(ref.key))
            except FlakeError as error:
                source.failure = error
                continue
            if document is None:
                continue
            verdict = verify(document, ref)
            if source is node and verdict.flaw is None:
                return Outcome.FINE
            if verdict.content is not None:
                self._replace(node, ref.volume, document | {"h": ref.hash})
                return Outcome.MENDED
        if node.failure:
            raise node.failure
        return Outcome.NONE_GOOD

    def create(self, node: Node, volume: int) -> None:
        """The collection of a volume; one that is there is fine."""
        home = node.door.client[node.record.database]
        node.door.run_sync(lambda: create_chunk_collection(home, d.volume_collection(self._uuid, volume)))

    def _good(self, source: Node, refs: Sequence[ChunkRef]) -> list[Document]:
        wanted = {ObjectId(ref.key): ref for ref in refs}
        name = d.volume_collection(self._uuid, refs[0].volume)
        found = []
        for document in source.reader.stream(name, {"_id": {"$in": sorted(wanted)}}, page=len(wanted) + 1):
            ref = wanted[document["_id"]]
            if verify(document, ref).content is not None:
                found.append(document | {"h": ref.hash})
        return found

    def _insert(self, node: Node, volume: int, documents: list[Document]) -> None:
        collection = self._journaled(node, volume)
        node.door.run_sync(lambda: insert_new(collection, documents), deadline_seconds=WRITE_SECONDS)

    def _replace(self, node: Node, volume: int, document: Document) -> None:
        collection = self._journaled(node, volume)
        node.door.run_sync(
            lambda: collection.replace_one({"_id": document["_id"]}, document, upsert=True),
            deadline_seconds=WRITE_SECONDS,
        )

    def _journaled(self, node: Node, volume: int) -> Collection[Document]:
        home: Database[Document] = node.door.client[node.record.database]
        return home.get_collection(
            d.volume_collection(self._uuid, volume), write_concern=WriteConcern("majority", j=True)
        )


class Filled:
    """What fill() did."""

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0
        self.lacking: list[ChunkRef] = []
        """Chunks without a good copy on the nodes that answer."""


def by_bytes(refs: Sequence[ChunkRef], limit: int = BATCH_BYTES) -> Iterator[list[ChunkRef]]:
    """In order of their keys, in batches of bounded size; each has one at least."""
    batch: list[ChunkRef] = []
    size = 0
    for ref in sorted(refs, key=lambda ref: ref.key):
        if batch and (size + ref.length > limit or len(batch) >= BATCH):
            yield batch
            batch, size = [], 0
        batch.append(ref)
        size += ref.length
    if batch:
        yield batch
