"""Inserting chunks into one volume, on all its nodes at once.

Purpose
    What the index does not know of a share of chunks is encoded once and inserted on every replica.

Invariants
    IN1  Places are reported only when every document is on every node.
    IN2  A document that is there already under its own key is inserted: a tool that copies the volume was faster.
    IN3  A node for which others can stand in is not waited for longer than node_patience_seconds, and longer in
         proportion to the bytes; and not at all when it has become suspect while this waited for a thread. Any other
         gets the whole deadline, and every one when this is not the first failure: perhaps all nodes are slow.
    IN4  A volume of one node costs one thread hop.

Concurrency
    insert() is a trio task's; functions that end in _sync run in worker threads, the inserts in those of their node.

Not here
    Which volume, and what becomes of a failure (engine.writer).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import trio
from bson.binary import Binary
from bson.objectid import ObjectId
from pymongo.read_concern import ReadConcern

from flakefs.engine.clock import ServerClock
from flakefs.engine.nodes import Node
from flakefs.engine.options import MIB, EngineOptions
from flakefs.engine.placement import Placement
from flakefs.engine.table import Entry, Places
from flakefs.engine.topology import Shelf
from flakefs.engine.volumes import Volume
from flakefs.errors import FlakeError
from flakefs.format.codec import encode
from flakefs.format.documents import CHUNKS, Document, chunk_document, read_index
from flakefs.mongo.door import Door
from flakefs.values import ChunkRef

MESSAGE_BYTES = 32 * 1024 * 1024
"""Documents of one insert; the server takes 48 MB."""
SLOW_BYTES = 4 * MIB
"""A node that takes less in a second than this is as good as silent, when others can stand in."""


class Item:
    """An entry of the table on its way to the nodes."""

    __slots__ = ("codec", "data", "entry", "found", "key", "stored")

    def __init__(self, entry: Entry, data: bytes | bytearray) -> None:
        self.entry = entry
        self.data = data
        self.found: tuple[ChunkRef, int] | None = None
        self.codec = ""
        self.stored: bytes | None = None
        self.key = b""
        """Of the try under way."""


class Outcome(NamedTuple):
    """What became of one try with one volume."""

    volume: int
    places: Places | None = None
    """Where all that was not found has been inserted; None when that failed."""
    failed: tuple[tuple[Node, FlakeError], ...] = ()
    """Nodes that did not take everything."""
    error: FlakeError | None = None
    """Why the index could not be asked."""


class Inserter:
    def __init__(
        self,
        metadata: Door,
        database: str,
        codec: str,
        options: EngineOptions,
        placement: Placement,
        clock: ServerClock,
    ) -> None:
        # Dependencies
        self._metadata = metadata
        self._placement = placement
        self._clock = clock
        # Constant after construction
        self._options = options
        self._codec = codec
        self._index = metadata.client[database].get_collection(CHUNKS, read_concern=ReadConcern("majority"))
        self._encoders = trio.CapacityLimiter(2 * options.threads)

    async def insert(
        self, volume: Volume, share: list[Item], *, look_up: bool, journaled: bool, hurry: bool = True
    ) -> Outcome:
        """One try; raises no FlakeError. Cancelled, it ends when no thread is at work any more. *hurry*: IN3."""
        id, nodes = volume.record.id, volume.nodes
        if not nodes or len(nodes) != len(volume.record.nodes):
            return Outcome(id)  # it was moved since the plan was made
        shelf = Shelf(volume.record.code, volume.record.own)
        size = sum(len(item.data) for item in share)
        if len(nodes) == 1:  # IN4
            [node] = nodes
            patience = self._patience(shelf, node, size) if hurry else None

            def at_once() -> Outcome:
                missing = self._prepare_sync(share, look_up)
                if isinstance(missing, FlakeError):
                    return Outcome(id, error=missing)
                answer = self._insert_sync(node, volume.collection, _messages(missing), journaled, patience)
                return _outcome(id, {node: answer})

            return await trio.to_thread.run_sync(at_once, limiter=node.writers)
        missing = await trio.to_thread.run_sync(self._prepare_sync, share, look_up, limiter=self._encoders)
        if isinstance(missing, FlakeError):
            return Outcome(id, error=missing)
        messages = list(_messages(missing))
        answers: dict[Node, bytes | FlakeError] = {}

        async def on(node: Node) -> None:
            answers[node] = await trio.to_thread.run_sync(
                self._insert_sync,
                node,
                volume.collection,
                messages,
                journaled,
                self._patience(shelf, node, size) if hurry else None,
                limiter=node.writers,
            )

        async with trio.open_nursery() as nursery:
            for node in nodes if missing else ():
                nursery.start_soon(on, node)
        return _outcome(id, answers)

    def _patience(self, shelf: Shelf, node: Node, size: int) -> float | None:
        """Seconds that *node* has for *size* bytes; None: the deadline of its calls (IN3)."""
        if not self._placement.replaceable(shelf, node):
            return None
        return self._options.node_patience_seconds + size / SLOW_BYTES

    # -- in worker threads --

    def _prepare_sync(self, share: list[Item], look_up: bool) -> list[Item] | FlakeError:
        """Ask the index, encode what it does not know, and give that new keys."""
        missing = share
        if look_up:
            try:
                missing = self._metadata.run_sync(lambda: self._look_up_sync(share))
            except FlakeError as error:
                return error
        self._clock.refresh()  # also when nothing is missing: what was found has an age, too
        for item in missing:
            if item.stored is None:
                item.data = bytes(item.data)
                item.codec, item.stored = encode(item.data, self._codec)
            item.key = self._clock.key(ObjectId().binary)
        return missing

    def _look_up_sync(self, share: list[Item]) -> list[Item]:
        """Set `found` of what the index knows; the rest."""
        wanted = [item for item in share if item.found is None and item.stored is None]  # not tried before
        by_name = {item.entry.hash: item for item in wanted}
        names = [Binary(name) for name in by_name]
        if names:
            for document in self._index.find({"_id": {"$in": names}}, batch_size=len(names) + 1):
                record = read_index(document)
                by_name[record.ref.hash].found = record.ref, record.stored_bytes
        return [item for item in share if item.found is None]

    def _insert_sync(
        self,
        node: Node,
        collection: str,
        messages: Iterable[list[Document]],
        journaled: bool,
        patience: float | None,
    ) -> bytes | FlakeError:
        """The server process that took everything; b"" when there was none that took all, or nothing to take."""
        processes = set()
        try:
            problem = node.problem
            if patience is not None and problem is not None:  # IN3
                return type(problem)(str(problem))
            for documents in messages:
                processes.add(node.insert_sync(collection, documents, journaled=journaled, deadline_seconds=patience))
        except FlakeError as error:
            return error
        # several processes: one of them has ended, so nothing of this is proven (ND2)
        return processes.pop() if len(processes) == 1 else b""


def _outcome(volume: int, answers: dict[Node, bytes | FlakeError]) -> Outcome:
    """IN1."""
    failed = tuple((node, answer) for node, answer in answers.items() if isinstance(answer, FlakeError))
    if failed:
        return Outcome(volume, failed=failed)
    return Outcome(volume, tuple((node.record.id, answer) for node, answer in answers.items()))  # type: ignore[misc]


def _messages(items: Iterable[Item]) -> Iterator[list[Document]]:
    """Chunk documents, as many together as fit one message."""
    documents: list[Document] = []
    size = 0
    for item in items:
        assert item.stored is not None
        if documents and size + len(item.stored) > MESSAGE_BYTES:
            yield documents
            documents, size = [], 0
        documents.append(chunk_document(item.key, item.entry.hash, item.codec, item.stored))
        size += len(item.stored)
    if documents:
        yield documents
