"""Storing blocks: hash, look up, encode, insert.

Purpose
    `store` gives blocks their refs. A batch costs one thread hop for the hashes (none when it is small) and one for
    each volume that takes part: there the index is asked, and what it does not know is encoded and inserted.

Invariants
    WR1  A block is pinned before its hash is looked up and has its pin until it is settled, or lost it with an error.
    WR2  Of all blocks with one content, one store() looks up and writes at a time; the others wait for it.
    WR3  An insert that failed counts as unknown: its chunks are written again under new keys. Bytes that it may have
         left are deleted if that is possible, else they are a leak.
    WR4  When a store() ends, in whatever way, no entry is left BUSY on its behalf.

Concurrency
    Any number of store() at once. Between the hash and the pins, and between the end of a thread's work and its entry
    in the table, there is no await. A cancelled store() ends after the calls that are under way.

Not here
    The states of a chunk (engine.table), durability (engine.barrier), where chunks go (engine.placement).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import trio
from bson.binary import Binary
from bson.objectid import ObjectId
from pymongo.read_concern import ReadConcern

from flakefs.engine.nodes import Node
from flakefs.engine.placement import Placement
from flakefs.engine.table import BUSY, Entry, Places, Table
from flakefs.engine.volumes import Volume, VolumeMap
from flakefs.errors import FlakeError, Unavailable
from flakefs.format.codec import encode
from flakefs.format.documents import CHUNKS, Document, chunk_document, read_index
from flakefs.format.hashing import chunk_hash
from flakefs.mongo.door import Door
from flakefs.values import Block, ChunkRef

INLINE_HASH_BYTES = 128 * 1024
"""Hashed on the trio thread up to this size: 20 us, where a hop costs 80."""
RUN_BYTES = 1024 * 1024
"""Blocks that follow each other go to one volume up to this sum, so that small ones share an insert."""
MESSAGE_BYTES = 32 * 1024 * 1024
"""Documents of one insert; the server takes 48 MB."""
PATIENCE = 2.0
"""A store() or harden() begins no further try after this many deadlines."""


RETRY_SECONDS = 0.1
"""Between two questions whether any node is back; when none is after a deadline, that is the answer."""


class Flight:
    """The work of one store() on the entries it claimed."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: FlakeError | None = None


class Item:
    """A claimed entry on its way."""

    __slots__ = ("codec", "data", "entry", "found", "key", "stored")

    def __init__(self, entry: Entry, data: bytes | bytearray) -> None:
        self.entry = entry
        self.data = data
        self.found: tuple[ChunkRef, int] | None = None
        self.codec = ""
        self.stored: bytes | None = None
        self.key = b""


class Writer:
    def __init__(
        self,
        metadata: Door,
        database: str,
        codec: str,
        table: Table,
        map: VolumeMap,
        placement: Placement,
        discard: Callable[[ChunkRef], None],
    ) -> None:
        # Dependencies
        self._metadata = metadata
        self._table = table
        self._map = map
        self._placement = placement
        self._discard = discard
        # Constant after construction
        self._codec = codec
        self._index = metadata.client[database].get_collection(CHUNKS, read_concern=ReadConcern("majority"))
        self._hashers = trio.CapacityLimiter(map.options.threads)
        # Mutable; changed only between awaits
        self._taken: dict[Block, Flight] = {}
        """Blocks without ref that somebody works on, and whose work it is."""
        self._wanted: list[dict[Block, None]] = []
        """What the running store() calls want; dropped blocks are taken out."""
        self.stored_chunks = 0
        self.stored_bytes = 0
        self.duplicates = 0

    async def store(self, blocks: Iterable[Block], *, at_once: bool = False) -> None:
        """Every block has its ref and a pin on return, except those that were dropped meanwhile. *at_once*: what this
        call writes is not looked up, and durable on return.
        """
        wanted = {block: None for block in blocks if block.ref is None}
        self._wanted.append(wanted)
        try:
            while True:
                mine: list[Block] = []
                others: dict[Flight, None] = {}
                for block in wanted:
                    if block.ref is None:
                        flight = self._taken.get(block)
                        if flight is None:
                            mine.append(block)
                        else:
                            others[flight] = None
                if mine:
                    await self._store_mine(mine, wanted, at_once)
                elif others:
                    for flight in others:
                        await flight.done.wait()
                        if flight.error is not None:
                            raise flight.error.with_traceback(None)
                else:
                    return
        finally:
            self._wanted = [other for other in self._wanted if other is not wanted]

    def forget(self, block: Block) -> None:
        """*block* was dropped: a store() that has not pinned it yet shall not."""
        self._taken.pop(block, None)
        for wanted in self._wanted:
            wanted.pop(block, None)

    async def _store_mine(self, blocks: list[Block], wanted: dict[Block, None], at_once: bool) -> None:
        flight = Flight()
        for block in blocks:
            assert block.sealed, "stored before it was sealed"
            assert block.data is not None, "durable without a ref"
            self._taken[block] = flight
        items: list[Item] = []
        try:
            hashes = await self._hashes(blocks)
            for block, content_hash in zip(blocks, hashes, strict=True):  # no await until all are pinned (WR1)
                if block not in wanted:
                    continue
                entry, claimed = self._table.pin(block, content_hash)
                if claimed:
                    assert block.data is not None
                    entry.owner = flight
                    items.append(Item(entry, block.data))
                    continue
                self.duplicates += 1
                if entry.state is BUSY:
                    assert isinstance(entry.owner, Flight)
                    self._taken[block] = entry.owner
                else:
                    del self._taken[block]
            await self._settle_items(items, look_up=not at_once, journaled=at_once)
        except FlakeError as error:
            flight.error = error
            raise
        finally:
            self._finish(flight, items, blocks)

    async def rewrite(self, entries: Sequence[tuple[Entry, bytes | bytearray]]) -> None:
        """Write entries again that table.lost() made BUSY; those that could not be written are as they were."""
        flight = Flight()
        items = [Item(entry, data) for entry, data in entries]
        for item in items:
            item.entry.owner = flight
        try:
            await self._settle_items(items, look_up=False, journaled=False)
        except FlakeError as error:
            flight.error = error
            raise
        finally:
            self._finish(flight, items, ())

    def _finish(self, flight: Flight, items: Iterable[Item], blocks: Iterable[Block]) -> None:
        """WR4."""
        for item in items:
            if item.entry.state is BUSY and item.entry.owner is flight:
                for block in item.entry.blocks:
                    self._taken.pop(block, None)
                self._table.failed(item.entry)
        for block in blocks:
            if self._taken.get(block) is flight:
                del self._taken[block]
        flight.done.set()

    async def _hashes(self, blocks: Sequence[Block]) -> list[bytes]:
        contents = [block.data for block in blocks if block.data is not None]
        if sum(map(len, contents)) <= INLINE_HASH_BYTES:
            return [chunk_hash(content) for content in contents]
        return await trio.to_thread.run_sync(lambda: [chunk_hash(c) for c in contents], limiter=self._hashers)

    # -- rounds --

    async def _settle_items(self, items: Sequence[Item], *, look_up: bool, journaled: bool) -> None:
        """Find or write every item; other volumes are tried when one fails."""
        begun, deadline = trio.current_time(), self._map.options.deadline_seconds
        excluded: set[int] = set()
        failure: FlakeError | None = None
        while items:
            if failure is not None and trio.current_time() > begun + PATIENCE * deadline:
                raise failure
            plan = self._plan(items, excluded)
            if plan is None:
                await self._map.look_at_all()
                excluded.clear()  # whoever answers now may be tried again
                plan = self._plan(items, excluded)
            if plan is None:
                nobody = self._placement.nobody()
                if not isinstance(nobody, Unavailable) or trio.current_time() > begun + deadline:
                    raise nobody
                await trio.sleep(RETRY_SECONDS)  # a node that restarts breaks connections before it answers again
                continue
            outcomes: list[Outcome] = []
            if len(plan) == 1:
                await self._go(outcomes, *plan[0], look_up, journaled)
            else:
                async with trio.open_nursery() as nursery:
                    for volume, share in plan:
                        nursery.start_soon(self._go, outcomes, volume, share, look_up, journaled)
            for outcome in outcomes:
                if outcome.error is None:
                    continue
                if outcome.node is None:
                    raise outcome.error
                failure = outcome.error
                excluded.add(outcome.volume)
                self._map.suspect(outcome.node, failure)
            items = [item for item in items if item.entry.state is BUSY]

    def _plan(self, items: Iterable[Item], excluded: set[int]) -> list[tuple[Volume, list[Item]]] | None:
        """Volumes and what each shall take, reserved there; None when nobody takes chunks."""
        shares: dict[Volume, list[Item]] = {}
        volume: Volume | None = None
        run = 0
        for item in items:
            size = len(item.data)
            if volume is None or run + size > RUN_BYTES:
                volume = self._placement.choose(size, excluded)
                run = 0
                if volume is None:
                    for taker, share in shares.items():
                        self._reserve(taker, share, -1)
                    return None
            run += size
            shares.setdefault(volume, []).append(item)
            self._reserve(volume, (item,), 1)
        return list(shares.items())

    def _reserve(self, volume: Volume, share: Sequence[Item], sign: int) -> None:
        self._map.reserve(volume, sign * len(share), sign * sum(len(item.data) for item in share))

    async def _go(
        self, outcomes: list[Outcome], volume: Volume, share: list[Item], look_up: bool, journaled: bool
    ) -> None:
        """One try with one volume; never raises a FlakeError, for the sake of nurseries."""
        try:
            outcome = await trio.to_thread.run_sync(
                self._try_sync, volume, volume.nodes, share, look_up, journaled, limiter=volume.nodes[0].writers
            )
            self._apply(volume, share, outcome, journaled)
            outcomes.append(outcome)
        finally:
            self._reserve(volume, share, -1)

    def _apply(self, volume: Volume, share: Sequence[Item], outcome: Outcome, journaled: bool) -> None:
        """Tell the table; no await since the thread ended."""
        for item in share:
            entry = item.entry
            if item.found is None and outcome.places is None:
                if item.key:  # WR3
                    self._discard(ChunkRef(entry.hash, volume.record.id, item.key, len(item.data)))
                continue
            for block in entry.blocks:
                self._taken.pop(block, None)
                if block.data is not None:
                    block.data = item.data  # the same bytes; equal blocks share one copy from here on
            if item.found is not None:
                self.duplicates += 1
                self._table.found(entry, *item.found)
            elif outcome.places is not None and item.stored is not None:
                self.stored_chunks += 1
                self.stored_bytes += len(item.stored)
                ref = ChunkRef(entry.hash, volume.record.id, item.key, len(item.data))
                self._table.written(entry, ref, len(item.stored), outcome.places)
                if journaled:
                    self._table.hardened(entry)

    # -- in worker threads --

    def _try_sync(
        self, volume: Volume, nodes: Sequence[Node], share: list[Item], look_up: bool, journaled: bool
    ) -> Outcome:
        id = volume.record.id
        missing = share
        if look_up:
            try:
                missing = self._metadata.run_sync(lambda: self._look_up_sync(share))
            except FlakeError as error:
                return Outcome(id, None, None, error)
        for item in missing:
            if item.stored is None:
                item.data = bytes(item.data)
                item.codec, item.stored = encode(item.data, self._codec)
            item.key = ObjectId().binary
        places: list[tuple[int, bytes]] = []
        for node in nodes if missing else ():
            processes = set()
            for documents in _messages(missing):
                try:
                    processes.add(node.insert_sync(volume.collection, documents, journaled=journaled))
                except FlakeError as error:
                    return Outcome(id, None, node, error)
            # several processes: one of them has ended, so nothing of this is proven (ND2)
            places.append((node.record.id, processes.pop() if len(processes) == 1 else b""))
        return Outcome(id, tuple(places), None, None)

    def _look_up_sync(self, share: list[Item]) -> list[Item]:
        """Set `found` of what the index knows; the rest."""
        wanted = [item for item in share if item.found is None and not item.key]  # not tried before
        by_hash = {item.entry.hash: item for item in wanted}
        hashes = [Binary(content_hash) for content_hash in by_hash]
        if hashes:
            for document in self._index.find({"_id": {"$in": hashes}}, batch_size=len(hashes) + 1):
                record = read_index(document)
                by_hash[record.ref.hash].found = record.ref, record.stored_bytes
        return [item for item in share if item.found is None]


class Outcome(NamedTuple):
    """What became of one try with one volume."""

    volume: int
    places: Places | None
    """Where all that was not found has been inserted; None when that failed."""
    node: Node | None
    """The one that failed; None when the index could not be asked."""
    error: FlakeError | None


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
